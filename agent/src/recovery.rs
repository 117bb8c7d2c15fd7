//! After a restart: what runs left behind is removed. Their processes are gone with the agent; what they had not yet
//! reported does not count, and the controller learns from the first message that they are not in hand any more. But a
//! promotion that was under way is brought to an end, and reported when the live data was replaced; and a hook that is
//! still to be run, since the one before it began, is run before anything else is done with its source.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engines::{EngineContext, EngineError, RunLog, SecretResolver};
use holdfast_model::Failure;
use holdfast_model::ids::HookName;
use holdfast_model::restore::{Placement, RestoreReport};
use holdfast_model::run::RunSpec;
use holdfast_model::source::Hooks;
use holdfast_proto::convert::document;
use holdfast_proto::v1;
use holdfast_runtime::{SharedClock, TaskGroup, durable_file, fail_point};
use tokio_util::sync::CancellationToken;

use crate::config::Hook;
use crate::disk;
use crate::engines::EngineFactory;
use crate::extraction;
use crate::hooks::RunHooks;
use crate::journal::{Journal, JournalEntry, Promotion};
use crate::outbox::Outbox;
use crate::run_log::RunLogger;

/// How long the removal of what one restore left may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What the removal needs.
pub(crate) struct Recovery<'a> {
    pub(crate) journal: &'a Journal,
    pub(crate) outbox: &'a Outbox,
    pub(crate) engines: &'a EngineFactory,
    pub(crate) secrets: &'a Arc<dyn SecretResolver>,
    pub(crate) hooks: &'a BTreeMap<HookName, Hook>,
    pub(crate) scratch: &'a Path,
    pub(crate) clock: &'a SharedClock,
    pub(crate) tasks: &'a TaskGroup,
}

struct RecoveryLog;

impl RunLog for RecoveryLog {
    fn debug(&self, line: std::fmt::Arguments<'_>) {
        tracing::debug!("{line}");
    }

    fn info(&self, line: &str) {
        tracing::info!("{line}");
    }

    fn warn(&self, line: &str) {
        tracing::warn!("{line}");
    }
}

impl Recovery<'_> {
    /// Removes all scratch files, and what unfinished restores made, and runs the hooks that are still to be run. What
    /// cannot be removed now is tried again at the next start, and said.
    ///
    /// # Errors
    /// When the scratch folder or the journal cannot be written.
    pub(crate) async fn clean_up(&self) -> Result<(), Failure> {
        let emptied =
            extraction::remove(self.scratch).and_then(|()| durable_file::create_folders(self.scratch));
        emptied.map_err(|error| {
            disk::failure(format!("the scratch folder {} cannot be emptied", self.scratch.display()), &error)
        })?;
        for entry in self.journal.runs() {
            tracing::info!(run = %entry.run, attempt = %entry.attempt, "the agent ended during this run");
            let log = RunLogger::new(entry.run, entry.attempt, self.clock.clone());
            let put_right = match &entry.promotion {
                Some(promotion) => self.settle(&entry, promotion, &log).await,
                None => self.remove_unfinished(&entry).await.map(|()| None),
            };
            // Whatever came of it, as at the end of a run that fails.
            self.run_owed_hook(&entry, &log).await?;
            if let Err(error) = log.flush(self.outbox).await {
                tracing::warn!(run = %entry.run, %error, "lines of its log are lost");
            }
            let put_right = match put_right {
                Ok(report) => self.report(&entry, report, &log).await,
                Err(failure) => Err(failure),
            };
            match put_right {
                Ok(()) => self.journal.end(entry.run, entry.attempt).await?,
                Err(failure) => tracing::warn!(
                    run = %entry.run,
                    %failure,
                    "what an interrupted restore left behind could not be put right; it is tried again at the next start"
                ),
            }
        }
        Ok(())
    }

    /// Starts what a hook had stopped when the agent ended. That is a warning in the log of the run, and so is its
    /// failure.
    async fn run_owed_hook(&self, entry: &JournalEntry, log: &RunLogger) -> Result<(), Failure> {
        let Some(name) = &entry.after_hook else { return Ok(()) };
        log.warn(&format!("the agent ended before it ran the hook {name}, which is run now"));
        let wanted = Hooks { before: None, after: Some(name.clone()) };
        // What a journal names are the hooks around the data of a source.
        let source = entry.spec.source().expect("only runs of a source have hooks");
        match RunHooks::resolve(&wanted, self.hooks, entry.run, source, self.tasks) {
            Ok(hooks) => hooks.after(log).await,
            Err(failure) => log.warn(&failure.to_string()),
        }
        fail_point::hit("agent-after-owed-hook");
        Ok(self.journal.owe_hook(entry.run, None).await?)
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
        let context = self.context();
        let engine = (self.engines)(&entry.source);
        self.in_time(&context, engine.discard(&entry.unfinished, &context)).await
    }

    /// Brings a promotion to an end. One that was done has a report: the data that is live now is the restored, and what
    /// it replaced can be discarded.
    async fn settle(
        &self,
        entry: &JournalEntry,
        promotion: &Promotion,
        log: &RunLogger,
    ) -> Result<Option<RestoreReport>, Failure> {
        let context = self.context();
        let engine = (self.engines)(&entry.source);
        let Promotion { restore, report, marks, stamp } = promotion;
        let settling = engine.settle(&report.targets, marks, stamp, &context);
        let Some(targets) = self.in_time(&context, settling).await? else {
            log.warn("the agent ended before the live data was replaced; what was restored is kept");
            return Ok(None);
        };
        self.journal.promoted(*restore, &targets).await?;
        log.warn("the agent ended while it replaced the live data: it is replaced");
        Ok(Some(RestoreReport { targets, ..report.clone() }))
    }

    async fn report(
        &self,
        entry: &JournalEntry,
        report: Option<RestoreReport>,
        log: &RunLogger,
    ) -> Result<(), Failure> {
        let is_reported = self.outbox.ended_runs().contains(&(entry.run, entry.attempt));
        if let Some(report) = report.filter(|_| !is_reported) {
            let restored_json = document(&report);
            let finished = v1::Finished { warnings: log.warnings(), restored_json, progress: None };
            self.outbox.append(entry.run, entry.attempt, v1::fact::Event::Finished(finished)).await?;
        }
        Ok(())
    }

    fn context(&self) -> EngineContext {
        EngineContext {
            secrets: self.secrets.clone(),
            scratch: self.scratch.to_owned(),
            cancel: CancellationToken::new(),
            log: Arc::new(RecoveryLog),
            clock: self.clock.clone(),
        }
    }

    async fn in_time<T>(
        &self,
        context: &EngineContext,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, Failure> {
        let _give_up = context.cancel.clone().drop_guard();
        tokio::select! {
            done = work => Ok(done?),
            () = self.clock.sleep(TIMEOUT) => Err(Failure::new(
                holdfast_model::ErrorCode::WatchTimeout,
                format!("it took longer than {} s", TIMEOUT.as_secs()),
            )),
        }
    }
}
