//! Questions that change nothing: can this source be reached, and what would that restore do?

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engines::{EngineContext, RestoreOrder, RunLog, SecretResolver};
use holdfast_model::discovery::FOUND_MAX;
use holdfast_model::manifest::Manifest;
use holdfast_model::run::RunSpec;
use holdfast_model::source::Source;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{document, from_document, required};
use holdfast_proto::v1;
use holdfast_runtime::{OnEnd, SharedClock, TaskGroup};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::allow_list::AllowList;
use crate::discovery;
use crate::disk;
use crate::engines::EngineFactory;
use crate::reload::InForce;
use crate::run;

/// Questions that are worked on at once.
const AT_ONCE: usize = 4;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Answers questions. Clones share it.
#[derive(Clone)]
pub struct Inquirer {
    parts: Arc<InquirerParts>,
    places: Arc<Semaphore>,
}

/// What answers are made with.
pub struct InquirerParts {
    /// Makes drivers.
    pub engines: EngineFactory,
    /// What may be asked for.
    pub config: InForce,
    /// Resolves secrets.
    pub secrets: Arc<dyn SecretResolver>,
    /// Folder for scratch files.
    pub scratch: PathBuf,
    /// The time.
    pub clock: SharedClock,
    /// The tasks of the agent.
    pub tasks: TaskGroup,
}

/// The log of a question: what matters is in its answer.
struct Unheard;

impl RunLog for Unheard {
    fn debug(&self, line: std::fmt::Arguments<'_>) {
        tracing::trace!("{line}");
    }

    fn info(&self, line: &str) {
        tracing::debug!("{line}");
    }

    fn warn(&self, line: &str) {
        tracing::info!("{line}");
    }
}

impl Inquirer {
    /// Answers with these parts.
    pub fn new(parts: InquirerParts) -> Self {
        Self { parts: Arc::new(parts), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The answer to a question, within a minute. Dropping the future gives up.
    pub async fn answer(&self, inquiry: v1::Inquiry) -> v1::Answer {
        let id = inquiry.id;
        let cancel = CancellationToken::new();
        // Also when this future is dropped: what an engine has started must end.
        let _give_up = cancel.clone().drop_guard();
        let late =
            || Failure::new(ErrorCode::WatchTimeout, format!("no answer within {} s", TIMEOUT.as_secs()));
        let outcome = tokio::select! {
            outcome = self.find_out(inquiry, &cancel) => outcome,
            () = self.parts.clock.sleep(TIMEOUT) => Err(late()),
        };
        let reply = match outcome {
            Ok(text) => v1::answer::Reply::DocumentJson(text),
            Err(failure) => v1::answer::Reply::Failure((&failure).into()),
        };
        v1::Answer { id, reply: Some(reply) }
    }

    async fn find_out(&self, inquiry: v1::Inquiry, cancel: &CancellationToken) -> Result<String, Failure> {
        let _place = self.places.acquire().await;
        let question = required("question", inquiry.question)?;
        if matches!(question, v1::inquiry::Question::Discover(_)) && inquiry.source_json.is_empty() {
            return self.look_at_host(cancel.clone()).await;
        }
        let source: Source = from_document("source_json", &inquiry.source_json)?;
        let config = self.parts.config.get();
        let allow = &config.allow;
        allow.check_source(&source)?;
        let scratch = tempfile::Builder::new().prefix("inquiry-").tempdir_in(&self.parts.scratch);
        let scratch = scratch.map_err(|error| disk::failure("no scratch folder can be made", &error))?;
        let context = EngineContext {
            secrets: self.parts.secrets.clone(),
            scratch: scratch.path().to_owned(),
            cancel: cancel.clone(),
            log: Arc::new(Unheard),
            clock: self.parts.clock.clone(),
        };
        let engine = (self.parts.engines)(&source);
        match question {
            v1::inquiry::Question::Probe(v1::ProbeSource {}) => Ok(document(&engine.probe(&context).await?)),
            v1::inquiry::Question::Health(v1::HealthOfSource {}) => {
                let began = self.parts.clock.monotonic();
                let mut report = engine.health(&context).await?;
                let took = self.parts.clock.monotonic().saturating_duration_since(began);
                report.response_millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                Ok(document(&report))
            }
            v1::inquiry::Question::Preview(preview) => {
                let spec: RunSpec = from_document("spec_json", &preview.spec_json)?;
                let manifest: Manifest = from_document("manifest_json", &preview.manifest_json)?;
                let stamp = run::stamp(&*self.parts.clock);
                let order = restore_order(&spec, allow, stamp)?;
                allow.check_restore(&source, &order.placement)?;
                Ok(document(&engine.preview_restore(&order, &manifest, &context).await?))
            }
            v1::inquiry::Question::Discover(v1::DiscoverDatabases {}) => {
                allow.check_discovery()?;
                let mut names = engine.databases(&context).await?;
                names.retain(|name| allow.may_name(name));
                names.truncate(FOUND_MAX);
                Ok(document(&names))
            }
        }
    }

    async fn look_at_host(&self, cancel: CancellationToken) -> Result<String, Failure> {
        let (config, clock) = (self.parts.config.get(), self.parts.clock.clone());
        config.allow.check_discovery()?;
        let look = move || discovery::look(&config.allow, &clock, cancel);
        let looking = self.parts.tasks.spawn_blocking("discovery", OnEnd::Isolated, look);
        let found = looking.join().await.map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
        Ok(document(&found))
    }
}

/// What a restore asks of the engine. `stamp`: ends the names of what it keeps.
///
/// # Errors
/// `HF-1001` when the run is no restore.
pub fn restore_order(spec: &RunSpec, allow: &AllowList, stamp: String) -> Result<RestoreOrder, Failure> {
    let RunSpec::Restore { snapshot, placement, only, .. } = spec else {
        return Err(Failure::new(ErrorCode::UsageInvalid, "only a restore can be previewed"));
    };
    Ok(RestoreOrder {
        placement: placement.clone(),
        only: only.clone(),
        snapshot_short: snapshot.short(),
        stamp,
        allowed_paths: allow.restore_paths.clone(),
    })
}
