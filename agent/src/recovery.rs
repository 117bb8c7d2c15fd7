//! After a restart: what runs left behind is removed. Their processes are gone with the agent; what they had not yet
//! reported does not count, and the controller learns from the first message that they are not in hand any more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engines::{EngineContext, RunLog, SecretResolver};
use holdfast_model::Failure;
use holdfast_model::restore::Placement;
use holdfast_model::run::RunSpec;
use holdfast_runtime::{SharedClock, durable_file};
use tokio_util::sync::CancellationToken;

use crate::engines::EngineFactory;
use crate::extraction;
use crate::journal::{Journal, JournalEntry};

/// How long the removal of what one restore left may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What the removal needs.
pub(crate) struct Recovery<'a> {
    pub(crate) journal: &'a Journal,
    pub(crate) engines: &'a EngineFactory,
    pub(crate) secrets: &'a Arc<dyn SecretResolver>,
    pub(crate) scratch: &'a Path,
    pub(crate) clock: &'a SharedClock,
}

struct RecoveryLog;

impl RunLog for RecoveryLog {
    fn info(&self, line: &str) {
        tracing::info!("{line}");
    }

    fn warn(&self, line: &str) {
        tracing::warn!("{line}");
    }
}

impl Recovery<'_> {
    /// Removes all scratch files, and what unfinished restores made. What cannot be removed now is tried again at the
    /// next start, and said.
    ///
    /// # Errors
    /// When the scratch folder or the journal cannot be written.
    pub(crate) async fn clean_up(&self) -> Result<(), Failure> {
        let emptied =
            extraction::remove(self.scratch).and_then(|()| durable_file::create_folders(self.scratch));
        emptied.map_err(|error| {
            Failure::new(
                holdfast_model::ErrorCode::AgentSpoolFull,
                format!("the scratch folder {} cannot be emptied", self.scratch.display()),
            )
            .because(error.to_string())
        })?;
        for entry in self.journal.runs() {
            tracing::info!(run = %entry.run, attempt = %entry.attempt, "the agent ended during this run");
            match self.remove_unfinished(&entry).await {
                Ok(()) => self.journal.end(entry.run, entry.attempt).await?,
                Err(failure) => tracing::warn!(
                    run = %entry.run,
                    %failure,
                    "what an interrupted restore left behind could not be removed; it is tried again at the next start"
                ),
            }
        }
        Ok(())
    }

    async fn remove_unfinished(&self, entry: &JournalEntry) -> Result<(), Failure> {
        for target in &entry.unfinished {
            let path = Path::new(&target.restored);
            if path.is_absolute() {
                let temporary = extraction::temporary_beside(path, entry.run);
                if let Err(error) = extraction::remove(&temporary) {
                    tracing::warn!(path = %temporary.display(), %error, "a temporary folder could not be removed");
                }
            }
        }
        let RunSpec::Restore { placement, .. } = &entry.spec else { return Ok(()) };
        if entry.unfinished.is_empty() {
            return Ok(());
        }
        if let Placement::Into(target) = placement {
            // Its name is not one of ours: that nothing was there before cannot be proven any more.
            tracing::warn!(%target, "an interrupted restore may have left a part of its target; it is not removed by itself");
            return Ok(());
        }
        let context = EngineContext {
            secrets: self.secrets.clone(),
            scratch: self.scratch.to_owned(),
            cancel: CancellationToken::new(),
            log: Arc::new(RecoveryLog),
            clock: self.clock.clone(),
        };
        let _give_up = context.cancel.clone().drop_guard();
        let engine = (self.engines)(&entry.source);
        tokio::select! {
            removed = engine.discard(&entry.unfinished, &context) => Ok(removed?),
            () = self.clock.sleep(TIMEOUT) => Err(Failure::new(
                holdfast_model::ErrorCode::WatchTimeout,
                format!("it took longer than {} s", TIMEOUT.as_secs()),
            )),
        }
    }
}
