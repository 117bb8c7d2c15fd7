//! How people are told: channels, tests, previews, history.

use std::sync::Arc;

use holdfast_model::alert::message::Told;
use holdfast_model::alert::{
    AlertText, Channel, Language, Message, MessageKind, Object, ObjectKind, Severity, Way, Words,
};
use holdfast_model::ids::ChannelName;
use holdfast_model::text::nearest;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, parse, parse_optional, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::notify_service_server::NotifyService;
use jiff::SignedDuration;
use tonic::{Request, Response, Status};

use super::{caller_of, reply};
use crate::access::Caller;
use crate::core::Core;
use crate::notify::outbox::{ChannelState, Delivery, HISTORY_MAX, Outcome, unwell};
use crate::notify::test_message;

/// The service.
pub struct NotifyApi {
    core: Arc<Core>,
}

impl NotifyApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    pub(crate) fn channel(&self, name: &str) -> Result<(ChannelName, Channel), Failure> {
        let name: ChannelName = parse("channel", name)?;
        let current = self.core.definitions.current();
        let channels = &current.fleet.channels;
        match channels.get(&name) {
            Some(channel) => Ok((name, channel.clone())),
            None => {
                let failure = Failure::new(ErrorCode::NotFound, format!("there is no channel {name}"));
                let near = nearest(name.as_str(), channels.keys().map(ChannelName::as_str));
                Err(near
                    .into_iter()
                    .fold(failure, |failure, near| failure.because(format!("did you mean {near}?")))
                    .then("holdfast notify list"))
            }
        }
    }

    fn list_inner(&self) -> v1::ListChannelsResponse {
        let current = self.core.definitions.current();
        let states = self.core.outbox.states();
        let channels = current.fleet.channels.iter().map(|(name, channel)| {
            let state = states.get(name).cloned().unwrap_or_default();
            self.wire(name, channel, state)
        });
        v1::ListChannelsResponse { channels: channels.collect() }
    }

    fn wire(&self, name: &ChannelName, channel: &Channel, state: ChannelState) -> v1::Channel {
        let withheld = match channel.way {
            Way::Ping { .. } => unwell(&self.core),
            _ => None,
        };
        let (word, problem) = match (state.failing_since, withheld) {
            (Some(_), _) => ("failing", state.last_error.unwrap_or_default()),
            (None, Some(reason)) => ("withheld", reason),
            (None, None) => ("ok", String::new()),
        };
        let language = match channel.language {
            Language::English => "en",
            Language::Chinese => "zh-CN",
        };
        v1::Channel {
            name: name.to_string(),
            r#type: channel.channel_type().to_string(),
            language: language.to_owned(),
            state: word.to_owned(),
            problem,
            failing_since: state.failing_since.map(timestamp),
            waiting: u32::try_from(state.waiting).unwrap_or(u32::MAX),
            delivered_at: state.delivered_at.map(timestamp),
        }
    }

    async fn test_inner(&self, caller: &Caller, name: &str) -> Result<String, Failure> {
        let (name, channel) = self.channel(name)?;
        let message = test_message(&name, self.core.clock.now());
        self.deliver_by_hand(caller, &channel, message, "test".to_owned()).await
    }

    /// Delivers a message at once, and remembers how that went.
    pub(crate) async fn deliver_by_hand(
        &self,
        caller: &Caller,
        channel: &Channel,
        message: Message,
        title: String,
    ) -> Result<String, Failure> {
        let result = self.core.notifier.deliver(channel, std::slice::from_ref(&message)).await;
        let (outcome, answer) = match &result {
            Ok(answer) => (Outcome::Delivered, answer.clone()),
            Err(error) => (Outcome::Failed, error.text().to_owned()),
        };
        let name = message.channel;
        let delivery = Delivery {
            at: message.at,
            channel: name.clone(),
            message: message.id,
            event: message.kind.as_str().to_owned(),
            title,
            outcome,
            answer,
            attempts: 1,
        };
        self.core.outbox.note_test(&caller.actor(), &delivery).await?;
        result.map_err(|error| error.failure(name.as_str()))
    }

    async fn preview_inner(&self, request: v1::PreviewRequest) -> Result<v1::PreviewResponse, Failure> {
        let (name, channel) = self.channel(&request.channel)?;
        let kind = match request.event.as_str() {
            "" | "failing" => MessageKind::Failing,
            "worsened" => MessageKind::Worsened,
            "escalated" => MessageKind::Escalated,
            "reminder" => MessageKind::Reminder,
            "recovered" => MessageKind::Recovered,
            "test" => MessageKind::Test,
            _ => {
                let events = "failing, worsened, escalated, reminder, recovered and test";
                return Err(ConvertError::new("event", format!("is none of {events}")).into());
            }
        };
        let at = self.core.clock.now();
        let mut told = match request.alert {
            0 => made_up(at),
            id => {
                let book = self.core.alerts.book().await;
                let alert = book.alerts.get(&id).map(Told::from);
                alert.ok_or_else(|| {
                    Failure::new(ErrorCode::NotFound, format!("there is no alert {id}"))
                        .then("holdfast alert list --all")
                })?
            }
        };
        if kind == MessageKind::Recovered {
            told.recovered_at = told.recovered_at.or(Some(at));
        }
        let message = Message {
            id: "preview".to_owned(),
            channel: name.clone(),
            kind,
            at,
            alerts: vec![told],
            report: None,
        };
        let preview = self.core.notifier.preview(&message, &channel);
        let preview = preview.map_err(|error| error.failure(name.as_str()))?;
        Ok(v1::PreviewResponse { content_type: preview.content_type.to_owned(), body: preview.body })
    }

    async fn history_inner(&self, request: v1::HistoryRequest) -> Result<v1::HistoryResponse, Failure> {
        let channel: Option<ChannelName> = parse_optional("channel", &request.channel)?;
        let limit = match request.limit as usize {
            0 => 100,
            limit if limit <= HISTORY_MAX => limit,
            _ => return Err(ConvertError::new("limit", format!("is more than {HISTORY_MAX}")).into()),
        };
        let found = self.core.outbox.history(channel.as_ref(), limit).await?;
        let deliveries = found.into_iter().map(|delivery| v1::Delivery {
            at: Some(timestamp(delivery.at)),
            channel: delivery.channel.to_string(),
            message: delivery.message,
            event: delivery.event,
            title: delivery.title,
            outcome: delivery.outcome.as_str().to_owned(),
            answer: delivery.answer,
            attempts: delivery.attempts,
        });
        Ok(v1::HistoryResponse { deliveries: deliveries.collect() })
    }
}

/// An alert that nobody has, to show what one looks like.
fn made_up(at: jiff::Timestamp) -> Told {
    Told {
        id: 0,
        object: Object::new(ObjectKind::Source, "example"),
        reason: "rpo-breached".to_owned(),
        severity: Severity::Critical,
        text: AlertText {
            summary: Words::new("would lose 41 min (RPO 5 min)", "现在会丢失 41 分钟数据（目标 5 分钟）"),
            recovered: Words::new("is within its RPO again", "已重新满足 RPO 目标"),
            why: Some(Words::new("the database refused the login", "数据库拒绝登录")),
            safe: Some(Words::new("everything up to 41 min ago", "41 分钟之前的数据")),
            next: vec!["holdfast source test example".to_owned()],
        },
        labels: Default::default(),
        since: at - SignedDuration::from_mins(36),
        recovered_at: None,
        affected: 0,
    }
}

#[tonic::async_trait]
impl NotifyService for NotifyApi {
    async fn list(
        &self,
        _request: Request<v1::ListChannelsRequest>,
    ) -> Result<Response<v1::ListChannelsResponse>, Status> {
        reply(Ok(self.list_inner()))
    }

    async fn test(
        &self,
        request: Request<v1::TestChannelRequest>,
    ) -> Result<Response<v1::TestChannelResponse>, Status> {
        let caller = caller_of(&request);
        let answer = self.test_inner(&caller, &request.into_inner().channel).await;
        reply(answer.map(|answer| v1::TestChannelResponse { answer }))
    }

    async fn preview(
        &self,
        request: Request<v1::PreviewRequest>,
    ) -> Result<Response<v1::PreviewResponse>, Status> {
        reply(self.preview_inner(request.into_inner()).await)
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryResponse>, Status> {
        reply(self.history_inner(request.into_inner()).await)
    }
}
