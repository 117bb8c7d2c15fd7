//! What is wrong: list, show, acknowledge, silence.

use std::sync::Arc;

use holdfast_model::alert::{Ack, Alert, AlertState, Book, Language, Match, Silence};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::alert_service_server::AlertService;
use jiff::{SignedDuration, Timestamp};
use tonic::{Request, Response, Status};

use super::{Repeatable, caller_of, reply};
use crate::access::Caller;
use crate::alerts::config;
use crate::core::Core;
use crate::records::Batch;

/// The longest silence, in seconds.
const SILENCE_SECONDS_MAX: u32 = 366 * 24 * 3600;

/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 1000;

/// Silences that may be placed at a time.
const SILENCES_MAX: usize = 1000;

/// The service.
pub struct AlertsApi {
    core: Arc<Core>,
}

impl AlertsApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    fn declared(&self) -> Vec<Silence> {
        config(&self.core.definitions.current().fleet).silences
    }

    fn wire(&self, book: &Book, alert: &Alert) -> v1::Alert {
        let now = self.core.clock.now();
        let declared = self.declared();
        let silence = book.silenced(alert, &declared, now).filter(|_| alert.state != AlertState::Recovered);
        wire(alert, silence.map(|silence| silence.until))
    }

    pub(crate) async fn list_inner(&self, all: bool) -> v1::ListAlertsResponse {
        let book = self.core.alerts.book().await;
        let now = self.core.clock.now();
        let mut alerts: Vec<&Alert> =
            book.alerts.values().filter(|alert| all || alert.state != AlertState::Recovered).collect();
        alerts.sort_by_key(|alert| {
            let state = match alert.state {
                AlertState::Failing => 0,
                AlertState::Pending => 1,
                AlertState::Recovered => 2,
            };
            (state, std::cmp::Reverse((alert.severity, alert.recovered_at)), alert.since, alert.id)
        });
        let declared = self.declared();
        let placed = book.silences.iter().map(|(id, silence)| (*id, silence));
        let silences = placed.chain(declared.iter().map(|silence| (0, silence)));
        v1::ListAlertsResponse {
            alerts: alerts.into_iter().map(|alert| self.wire(&book, alert)).collect(),
            silences: silences
                .filter(|(_, silence)| now < silence.until)
                .map(|(id, silence)| wire_silence(id, silence))
                .collect(),
        }
    }

    pub(crate) async fn show_inner(&self, id: u64) -> Result<v1::Alert, Failure> {
        let book = self.core.alerts.book().await;
        book.alerts.get(&id).map(|alert| self.wire(&book, alert)).ok_or_else(|| unknown(id))
    }

    pub(crate) async fn acknowledge_inner(
        &self,
        caller: &Caller,
        request: v1::AcknowledgeRequest,
    ) -> Result<v1::Alert, Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if Repeatable::answered(repeatable.as_ref(), &self.core).await?.is_some() {
            return self.show_inner(request.id).await;
        }
        let reason = reason_of(request.reason, false)?;
        let mut change = self.core.alerts.change().await;
        let ack = Ack { by: caller.actor(), at: self.core.clock.now(), reason };
        if !change.book.alerts.contains_key(&request.id) {
            return Err(unknown(request.id));
        }
        let Some(alert) = change.book.acknowledge(request.id, ack) else {
            return Err(Failure::new(
                ErrorCode::VersionConflict,
                format!("alert {} is over already", request.id),
            )
            .then("holdfast alert list"));
        };
        let target = format!("alert/{}: {}", alert.id, alert.key);
        let batch = Batch::new(caller.actor(), "alert.acknowledge", target);
        let batch = Repeatable::remember(repeatable.as_ref(), batch, vec![request.id.to_string()]);
        change.commit(batch).await?;
        self.show_inner(request.id).await
    }

    pub(crate) async fn silence_inner(
        &self,
        caller: &Caller,
        request: v1::SilenceRequest,
    ) -> Result<v1::SilenceResponse, Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if let Some(ids) = Repeatable::answered(repeatable.as_ref(), &self.core).await? {
            let book = self.core.alerts.book().await;
            let id = ids.first().and_then(|id| id.parse().ok()).unwrap_or(0);
            let silence = book.silences.get(&id).map(|silence| wire_silence(id, silence));
            return Ok(v1::SilenceResponse { silence, covers: 0 });
        }
        let matches: Match = serde_json::from_str(&request.match_json)
            .map_err(|error| ConvertError::new("match_json", error))?;
        if matches.is_empty() {
            return Err(ConvertError::new("match_json", "fits every alert: say which").into());
        }
        if request.for_seconds == 0 || request.for_seconds > SILENCE_SECONDS_MAX {
            return Err(ConvertError::new("for_seconds", "is not between a second and 366 days").into());
        }
        let reason = reason_of(request.reason, true)?;
        let now = self.core.clock.now();
        let until = now + SignedDuration::from_secs(i64::from(request.for_seconds));
        let mut change = self.core.alerts.change().await;
        if let Some(id) = matches.alert
            && !change.book.active().any(|alert| alert.id == id)
        {
            return Err(unknown(id));
        }
        if change.book.silences.len() >= SILENCES_MAX {
            return Err(Failure::new(
                ErrorCode::QueueFull,
                format!("there are {SILENCES_MAX} silences already"),
            )
            .then("holdfast alert list"));
        }
        let silence = Silence { matches, until, reason: reason.clone(), by: caller.actor() };
        let covers = change.book.active().filter(|alert| silence.covers(alert, now)).count();
        let id = change.book.silence(silence.clone());
        let batch = Batch::new(caller.actor(), "alert.silence", format!("silence/{id}: {reason}"));
        let batch = Repeatable::remember(repeatable.as_ref(), batch, vec![id.to_string()]);
        change.commit(batch).await?;
        let covers = u32::try_from(covers).unwrap_or(u32::MAX);
        Ok(v1::SilenceResponse { silence: Some(wire_silence(id, &silence)), covers })
    }

    pub(crate) async fn unsilence_inner(
        &self,
        caller: &Caller,
        request: v1::UnsilenceRequest,
    ) -> Result<(), Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if Repeatable::answered(repeatable.as_ref(), &self.core).await?.is_some() {
            return Ok(());
        }
        let mut change = self.core.alerts.change().await;
        if change.book.silences.remove(&request.id).is_none() {
            return Err(Failure::new(ErrorCode::NotFound, format!("there is no silence {}", request.id))
                .because("silences that are declared in a fleet file end there")
                .then("holdfast alert list"));
        }
        let batch = Batch::new(caller.actor(), "alert.unsilence", format!("silence/{}", request.id));
        let batch = Repeatable::remember(repeatable.as_ref(), batch, vec![request.id.to_string()]);
        change.commit(batch).await
    }
}

fn reason_of(reason: String, needed: bool) -> Result<String, Failure> {
    if needed && reason.trim().is_empty() {
        return Err(ConvertError::new("reason", "is missing: the next person wants to know").into());
    }
    if reason.len() > REASON_BYTES_MAX {
        return Err(ConvertError::new("reason", format!("is longer than {REASON_BYTES_MAX} bytes")).into());
    }
    Ok(reason)
}

fn unknown(id: u64) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("there is no alert {id}")).then("holdfast alert list --all")
}

fn wire(alert: &Alert, silenced_until: Option<Timestamp>) -> v1::Alert {
    let language = Language::English;
    let words = |words: &Option<holdfast_model::alert::Words>| {
        words.as_ref().map_or(String::new(), |words| words.get(language).to_owned())
    };
    let ack = alert.ack.as_ref();
    let said = match alert.state {
        AlertState::Recovered => &alert.text.recovered,
        _ => &alert.text.summary,
    };
    v1::Alert {
        id: alert.id,
        object_kind: alert.key.object.kind.as_str().to_owned(),
        object: alert.key.object.name.clone(),
        reason: alert.key.reason.clone(),
        severity: alert.severity.as_str().to_owned(),
        state: alert.state.as_str().to_owned(),
        summary: said.get(language).to_owned(),
        why: words(&alert.text.why),
        safe: words(&alert.text.safe),
        next: alert.text.next.clone(),
        since: Some(timestamp(alert.since)),
        first_seen_at: Some(timestamp(alert.first_seen)),
        recovered_at: alert.recovered_at.map(timestamp),
        acknowledged_by: ack.map_or(String::new(), |ack| ack.by.clone()),
        acknowledged_at: ack.map(|ack| timestamp(ack.at)),
        acknowledged_reason: ack.map_or(String::new(), |ack| ack.reason.clone()),
        follows: alert.follows.unwrap_or(0),
        affected: alert.affected,
        told: alert.told.iter().map(ToString::to_string).collect(),
        silenced_until: silenced_until.map(timestamp),
        labels: alert.labels.clone().into_iter().collect(),
    }
}

fn wire_silence(id: u64, silence: &Silence) -> v1::Silence {
    v1::Silence {
        id,
        match_json: serde_json::to_string(&silence.matches).unwrap_or_default(),
        until: Some(timestamp(silence.until)),
        reason: silence.reason.clone(),
        by: silence.by.clone(),
    }
}

#[tonic::async_trait]
impl AlertService for AlertsApi {
    async fn list(
        &self,
        request: Request<v1::ListAlertsRequest>,
    ) -> Result<Response<v1::ListAlertsResponse>, Status> {
        reply(Ok(self.list_inner(request.into_inner().all).await))
    }

    async fn show(
        &self,
        request: Request<v1::ShowAlertRequest>,
    ) -> Result<Response<v1::ShowAlertResponse>, Status> {
        let alert = self.show_inner(request.into_inner().id).await;
        reply(alert.map(|alert| v1::ShowAlertResponse { alert: Some(alert) }))
    }

    async fn acknowledge(
        &self,
        request: Request<v1::AcknowledgeRequest>,
    ) -> Result<Response<v1::AcknowledgeResponse>, Status> {
        let caller = caller_of(&request);
        let alert = self.acknowledge_inner(&caller, request.into_inner()).await;
        reply(alert.map(|alert| v1::AcknowledgeResponse { alert: Some(alert) }))
    }

    async fn silence(
        &self,
        request: Request<v1::SilenceRequest>,
    ) -> Result<Response<v1::SilenceResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.silence_inner(&caller, request.into_inner()).await)
    }

    async fn unsilence(
        &self,
        request: Request<v1::UnsilenceRequest>,
    ) -> Result<Response<v1::UnsilenceResponse>, Status> {
        let caller = caller_of(&request);
        let ended = self.unsilence_inner(&caller, request.into_inner()).await;
        reply(ended.map(|()| v1::UnsilenceResponse {}))
    }
}
