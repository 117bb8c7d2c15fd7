//! Reports: looked at, and sent by hand.

use std::sync::Arc;

use holdfast_model::alert::render::render;
use holdfast_model::ids::SourceName;
use holdfast_model::policy::Zone;
use holdfast_model::report::{HOURS_DEFAULT, HOURS_MAX, Report, ReportKind};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, document, parse_optional, required};
use holdfast_proto::v1;
use holdfast_proto::v1::report_service_server::ReportService;
use tonic::{Request, Response, Status};

use super::notify::NotifyApi;
use super::{caller_of, reply};
use crate::access::Caller;
use crate::core::Core;
use crate::reports::{self, Asked};

/// The service.
pub struct ReportsApi {
    core: Arc<Core>,
}

impl ReportsApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    fn asked(&self, request: &v1::GetReportRequest) -> Result<Asked, Failure> {
        let kind = ReportKind::parse(&request.report)
            .ok_or_else(|| ConvertError::new("report", "is none of daily, weekly and logs"))?;
        let hours = match request.hours {
            0 => HOURS_DEFAULT,
            hours if hours <= HOURS_MAX => hours,
            _ => return Err(ConvertError::new("hours", format!("is more than {HOURS_MAX}")).into()),
        };
        let source: Option<SourceName> = parse_optional("source", &request.source)?;
        if let Some(source) = &source {
            self.core.definitions.source(source)?;
        }
        if kind != ReportKind::Logs && (request.hours != 0 || source.is_some()) {
            return Err(ConvertError::new("report", "covers all sources of its day or week").into());
        }
        let zone: Zone = match request.timezone.as_str() {
            "" => Zone::default(),
            name => name.parse().map_err(|error| Failure::from_error(ErrorCode::UsageInvalid, &error))?,
        };
        Ok(Asked { kind, hours, source, zone, until: self.core.clock.now() })
    }

    pub(crate) async fn get_inner(&self, request: &v1::GetReportRequest) -> Result<Report, Failure> {
        reports::make(&self.core, &self.asked(request)?).await
    }

    async fn send_inner(&self, caller: &Caller, request: v1::SendReportRequest) -> Result<String, Failure> {
        let (name, channel) = NotifyApi::new(self.core.clone()).channel(&request.channel)?;
        if !channel.takes_messages() {
            return Err(reports::no_messages(&name));
        }
        let report = self.get_inner(&required("report", request.report)?).await?;
        let id = format!("report-{}", hex::encode(rand::random::<[u8; 12]>()));
        let message = reports::message(id, &name, self.core.clock.now(), report);
        let title = render(&message, channel.language, &self.core.notifier.environment()).title;
        NotifyApi::new(self.core.clone()).deliver_by_hand(caller, &channel, message, title).await
    }
}

#[tonic::async_trait]
impl ReportService for ReportsApi {
    async fn get(
        &self,
        request: Request<v1::GetReportRequest>,
    ) -> Result<Response<v1::GetReportResponse>, Status> {
        let report = self.get_inner(&request.into_inner()).await;
        reply(report.map(|report| v1::GetReportResponse { report_json: document(&report) }))
    }

    async fn send(
        &self,
        request: Request<v1::SendReportRequest>,
    ) -> Result<Response<v1::SendReportResponse>, Status> {
        let caller = caller_of(&request);
        let answer = self.send_inner(&caller, request.into_inner()).await;
        reply(answer.map(|answer| v1::SendReportResponse { answer }))
    }
}
