//! One attempt from its assignment to its last fact.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;
use holdfast_proto::v1::fact::Event;
use holdfast_runtime::telemetry::adopt_trace_context;
use holdfast_runtime::{Backoff, BackoffPolicy, OnEnd, durable_file};
use tokio_util::sync::CancellationToken;

use super::ending::{Stopper, TimeLimit, end_event};
use super::{Assignment, Inner, Outcome, RunContext, StopReason};
use crate::counters::Counters;
use crate::disk;
use crate::journal::JournalEntry;
use crate::outbox::OutboxError;
use crate::run_log::RunLogger;

/// How long to wait before the end of a run is recorded again, when the disk was full.
const RECORD_AGAIN: BackoffPolicy =
    BackoffPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(30), factor: 2.0, jitter: 0.2 };

pub(super) struct AttemptTask {
    pub(super) executor: Arc<Inner>,
    pub(super) assignment: Assignment,
    pub(super) stopper: Stopper,
    pub(super) counters: Arc<Counters>,
    pub(super) log: RunLogger,
    /// Cancelled when an older attempt of the run has ended.
    pub(super) predecessor: Option<CancellationToken>,
}

impl AttemptTask {
    /// The span of the run, a child of the request that asked for it.
    pub(super) fn span(&self) -> tracing::Span {
        let span = tracing::info_span!(
            "run",
            run = %self.assignment.run,
            attempt = %self.assignment.attempt,
            kind = %self.assignment.spec.kind(),
            source = self.assignment.spec.source().map(AsRef::<str>::as_ref),
        );
        if let Ok(value) = self.assignment.traceparent.parse() {
            let headers = [(http::HeaderName::from_static("traceparent"), value)].into_iter().collect();
            adopt_trace_context(&span, &headers);
        }
        span
    }

    pub(super) async fn execute(self) {
        // A task that is aborted stops what it started, threads included.
        let _stop = self.stopper.token().clone().drop_guard();
        if let Some(predecessor) = &self.predecessor {
            predecessor.cancelled().await;
        }
        let (run, attempt) = (self.assignment.run, self.assignment.attempt);
        let log = self.log.clone();
        let slot = self.stopper.token().run_until_cancelled(self.executor.slots.acquire()).await;
        let result = match slot {
            Some(_slot) if self.executor.begin(run, attempt) => self.run(&log).await,
            _ => Err(Failure::new(ErrorCode::RunCancelled, "the run was stopped before it began")),
        };
        self.conclude(&log, result).await;
        self.executor.end(run, attempt);
    }

    /// The work between the journal's two entries.
    async fn run(&self, log: &RunLogger) -> Result<Outcome, Failure> {
        let parts = &self.executor.parts;
        let (run, attempt) = (self.assignment.run, self.assignment.attempt);
        let scratch = self.scratch();
        make_empty(&scratch)
            .map_err(|error| disk::failure(format!("{} cannot be made", scratch.display()), &error))?;
        let (spec, source) = (self.assignment.spec.clone(), self.assignment.source.clone());
        parts.journal.begin(JournalEntry::new(run, attempt, spec, source)).await?;
        parts.outbox.append(run, attempt, Event::Started(v1::Started {})).await?;
        let context = RunContext {
            run,
            attempt,
            cancel: self.stopper.token().clone(),
            log: log.clone(),
            counters: self.counters.clone(),
            scratch,
            tasks: parts.tasks.clone(),
        };
        let (worker, assignment) = (parts.worker.clone(), self.assignment.clone());
        let work = async move { worker.work(&assignment, &context).await };
        // A task of its own, so that a panic of an engine fails this run and nothing else.
        let work = parts.tasks.spawn(format!("work of run {}", run.short()), OnEnd::Isolated, work);
        let mut work = std::pin::pin!(work.join());
        let mut logging = std::pin::pin!(log.keep_flushing(&parts.outbox));
        let limit = match self.assignment.timeout {
            Some(timeout) if timeout < parts.deadline => TimeLimit::OfPolicy(timeout),
            _ => TimeLimit::OfAgent(parts.deadline),
        };
        let mut deadline = parts.clock.sleep(limit.length());
        let (mut log_fails, mut is_late) = (false, false);
        loop {
            tokio::select! {
                result = &mut work => {
                    return result.unwrap_or_else(|error| {
                        Err(Failure::new(ErrorCode::Internal, "the run ended by a defect").because(error.to_string()))
                    });
                }
                Err(error) = &mut logging, if !log_fails => {
                    log_fails = true;
                    self.stopper.stop(StopReason::Unrecordable(error.into()));
                }
                () = &mut deadline, if !is_late => {
                    is_late = true;
                    self.stopper.stop(StopReason::Deadline(limit));
                }
            }
        }
    }

    /// Tells the end, durably, and forgets what was kept for it.
    async fn conclude(&self, log: &RunLogger, result: Result<Outcome, Failure>) {
        let parts = &self.executor.parts;
        let (run, attempt) = (self.assignment.run, self.assignment.attempt);
        let reason = self.stopper.reason();
        match &result {
            Ok(_) => tracing::info!("the run is done"),
            Err(failure) if reason != Some(&StopReason::Abandoned) => log.error(&failure.to_string()),
            Err(failure) => tracing::info!(%failure, "the run was abandoned"),
        }
        if reason != Some(&StopReason::Abandoned)
            && let Err(error) = log.flush(&parts.outbox).await
        {
            tracing::warn!(%error, "the last lines of the run's log are lost");
        }
        if let Some(event) = end_event(&result, reason, log.warnings(), &self.counters.snapshot()) {
            self.record_end(event).await;
        }
        if let Err(error) = std::fs::remove_dir_all(self.scratch())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the scratch folder of the run could not be removed");
        }
        if let Err(error) = parts.journal.end(run, attempt).await {
            tracing::warn!(%error, "the end of the run could not be noted in the journal");
        }
    }

    /// Records the last fact. The run stays in hand until that has succeeded: nobody may take it for lost while only
    /// the disk of this host is full.
    async fn record_end(&self, event: Event) {
        let parts = &self.executor.parts;
        let mut backoff = Backoff::new(RECORD_AGAIN);
        loop {
            let made = parts.outbox.append(self.assignment.run, self.assignment.attempt, event.clone()).await;
            match made {
                Ok(_) => return,
                Err(error @ (OutboxError::Full { .. } | OutboxError::Io { .. })) => {
                    tracing::error!(%error, "the end of the run cannot be recorded yet");
                    if backoff.wait(&*parts.clock, parts.tasks.token()).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the end of the run cannot be recorded");
                    return;
                }
            }
        }
    }

    fn scratch(&self) -> PathBuf {
        let name = format!("{}-{}", self.assignment.run, self.assignment.attempt);
        self.executor.parts.scratch.join(name)
    }
}

fn make_empty(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    durable_file::create_folders(folder)
}
