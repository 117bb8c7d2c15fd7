//! Every metric there is: its name, kind, labels and meaning. `docs/monitoring.md` lists the same.

use super::MetricKind;

/// One row of the [`CATALOGUE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// How its values behave over time.
    pub kind: MetricKind,
    /// Its labels, in the order in which they are shown.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! catalogue {
    ($($metric:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// A metric: its place in the [`CATALOGUE`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Metric { $(#[doc = $help] $metric,)* }

        /// Every metric there is.
        pub const CATALOGUE: &[Definition] = &[$(Definition {
            name: $name,
            kind: MetricKind::$kind,
            labels: &[$($label),*],
            help: $help,
        },)*];
    };
}

/// Whether there are samples of this name; those of a histogram end in `_bucket`, `_sum` and `_count`.
pub fn is_known(name: &str) -> bool {
    let ends = ["_bucket", "_sum", "_count"];
    CATALOGUE.iter().any(|row| match (row.kind, name.strip_prefix(row.name)) {
        (MetricKind::Histogram, Some(suffix)) => ends.contains(&suffix),
        (_, Some(suffix)) => suffix.is_empty(),
        (_, None) => false,
    })
}

catalogue! {
    // --- sources
    SourceInfo = Gauge "holdfast_source_info" ["source", "engine", "policy", "agent", "team", "env", "tier"]
        "Always 1: what a source is, to be joined to other metrics; team, env and tier are labels of the source.";
    Sources = Gauge "holdfast_sources" ["state"]
        "Sources by their state.";
    ObjectiveMet = Gauge "holdfast_objective_met" ["source", "objective"]
        "1 while a promise is kept, 0 when it is broken; absent where nothing is promised or nothing is measured yet.";
    ObjectiveTarget = Gauge "holdfast_objective_target_seconds" ["source", "objective"]
        "What is promised; only promises about time.";
    RecoveryPoint = Gauge "holdfast_recovery_point_timestamp_seconds" ["source", "repository"]
        "The newest moment that can be restored from a repository, copies included; 0 when there is none.";
    PotentialLoss = Gauge "holdfast_potential_loss_seconds" ["source"]
        "How much would be lost if the source were lost now; +Inf when nothing can be restored.";
    SourceCopies = Gauge "holdfast_source_copies" ["source"]
        "Repositories that hold a sound snapshot of the source.";
    BackupLastSuccess = Gauge "holdfast_backup_last_success_timestamp_seconds" ["source", "repository"]
        "When a backup last succeeded; 0 for never.";
    BackupLastAttempt = Gauge "holdfast_backup_last_attempt_timestamp_seconds" ["source", "repository"]
        "When a backup last ended, however it did; 0 for never.";
    BackupConsecutiveFailures = Gauge "holdfast_backup_consecutive_failures" ["source"]
        "Backups that failed in a row since the last that succeeded, in the worst repository.";
    BackupLastDuration = Gauge "holdfast_backup_last_duration_seconds" ["source", "type"]
        "How long the newest snapshot of a type took; 0 when there is none.";
    BackupLastLogicalBytes = Gauge "holdfast_backup_last_logical_bytes" ["source", "type"]
        "Bytes in the newest snapshot of a type; 0 when there is none.";
    BackupLastAddedBytes = Gauge "holdfast_backup_last_added_bytes" ["source", "type"]
        "Bytes that the newest snapshot of a type added to its repository; 0 when there is none.";
    BackupAnomalies = Gauge "holdfast_backup_anomalies" ["source", "severity"]
        "What looks wrong about the data of the newest snapshot beside the one before: rows, size, rewrites.";
    RestoreLastSuccess = Gauge "holdfast_restore_last_success_timestamp_seconds" ["source"]
        "When a snapshot of the source was last restored and agreed with its manifest; 0 for never.";
    RestoreRto = Gauge "holdfast_restore_rto_seconds" ["source"]
        "How long that restore took; 0 for never.";
    // --- runs
    Runs = Counter "holdfast_runs_total" ["kind", "source", "repository", "outcome"]
        "Runs that ended, of checks, verifications, prunes and copies of all sources by repository, of all others by source; \
         and slots of a schedule that yielded none (skipped).";
    RunBytes = Counter "holdfast_run_bytes_total" ["kind", "source", "direction"]
        "Bytes that runs read from a source or wrote to a restore target (read), and sent to repositories (stored).";
    RunDuration = Histogram "holdfast_run_duration_seconds" ["kind", "outcome"]
        "How long runs took from the beginning of their last attempt to their end.";
    RunsRunning = Gauge "holdfast_runs_running" ["kind"]
        "Runs that an agent or the controller works on.";
    RunsQueued = Gauge "holdfast_runs_queued" ["kind"]
        "Runs that wait.";
    RunProgress = Gauge "holdfast_run_progress_ratio" ["kind", "source"]
        "How far a running run is, 0 to 1; only while its size is known.";
    SchedulerLag = Gauge "holdfast_scheduler_lag_seconds" []
        "How late the scheduled run began that began last.";
    // --- repositories
    RepositoryUp = Gauge "holdfast_repository_up" ["repository"]
        "Whether the repository could be opened, written and read, within the last minutes.";
    RepositoryStoredBytes = Gauge "holdfast_repository_stored_bytes" ["repository"]
        "Bytes of its packs; absent until they were first listed.";
    RepositoryFreeBytes = Gauge "holdfast_repository_free_bytes" ["repository"]
        "Bytes that its storage can still take; absent where the storage does not say.";
    VerifyLastSuccess = Gauge "holdfast_verify_last_success_timestamp_seconds" ["repository", "level"]
        "When a check (metadata), one of all data (full) or of a snapshot (snapshot) last found nothing; 0 for never.";
    RepositoryReadBytes = Gauge "holdfast_repository_read_bytes" ["repository"]
        "Bytes of its packs that were read again within the time that policies say, or ever when none does; absent until \
         its packs were first listed.";
    RepositoryOldestUnread = Gauge "holdfast_repository_oldest_unread_timestamp_seconds" ["repository"]
        "Since when the pack was not read that was not for longest; absent until packs were first listed, 0 for no pack.";
    CorruptObjects = Gauge "holdfast_corrupt_objects" ["repository"]
        "Packs known to be damaged or gone.";
    // --- agents, controller
    AgentInfo = Gauge "holdfast_agent_info" ["agent", "version", "os", "arch"]
        "Always 1: what an agent is.";
    AgentUp = Gauge "holdfast_agent_up" ["agent"]
        "Whether the agent is connected.";
    AgentLastSeen = Gauge "holdfast_agent_last_seen_timestamp_seconds" ["agent"]
        "The agent's last sign of life; while it is away, the beginning of its last session; 0 for never.";
    AgentClockSkew = Gauge "holdfast_agent_clock_skew_seconds" ["agent"]
        "How far the agent's clock is ahead of the controller's; only while it is connected.";
    AgentCertificateExpiry = Gauge "holdfast_agent_certificate_expiry_timestamp_seconds" ["agent"]
        "When the newest certificate of the agent ends.";
    Notifications = Counter "holdfast_notifications_total" ["channel", "outcome"]
        "Messages by what became of them: delivered, failed (each attempt, it is tried again), given_up, dropped.";
    CaCertificateExpiry = Gauge "holdfast_ca_certificate_expiry_timestamp_seconds" []
        "When the certificate of the controller's certificate authority ends.";
    SelfBackup = Gauge "holdfast_controller_self_backup_timestamp_seconds" []
        "When the controller's own state was last copied to a repository; 0 for never.";
    BuildInfo = Gauge "holdfast_build_info" ["version"]
        "Always 1: the version of the controller.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What may be a label: never an id, a time, a path or the text of an error.
    const LABELS: &[&str] = &[
        "source",
        "objective",
        "repository",
        "policy",
        "engine",
        "kind",
        "type",
        "outcome",
        "agent",
        "channel",
        "state",
        "level",
        "severity",
        "direction",
        "version",
        "os",
        "arch",
        "team",
        "env",
        "tier",
    ];

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let names: BTreeSet<_> = CATALOGUE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        for row in CATALOGUE {
            assert!(row.name.starts_with("holdfast_"), "{}", row.name);
            assert_eq!(row.name.ends_with("_total"), row.kind == MetricKind::Counter, "{}", row.name);
            assert!(row.labels.iter().all(|label| LABELS.contains(label)), "{}: {:?}", row.name, row.labels);
            assert!(row.help.ends_with('.'), "{}", row.name);
        }
    }

    #[test]
    fn names_of_samples_are_known() {
        for known in ["holdfast_agent_up", "holdfast_run_duration_seconds_sum"] {
            assert!(is_known(known), "{known}");
        }
        for unknown in ["holdfast_run_duration_seconds", "holdfast_agent_up_sum", "holdfast_agent", ""] {
            assert!(!is_known(unknown), "{unknown}");
        }
    }

    #[test]
    fn what_belongs_to_whom_is_labelled_on_the_info_only() {
        for row in CATALOGUE.iter().filter(|row| row.name != "holdfast_source_info") {
            assert!(!row.labels.iter().any(|label| ["team", "env", "tier", "policy"].contains(label)));
        }
    }
}
