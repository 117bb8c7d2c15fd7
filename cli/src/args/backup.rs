//! `holdfast backup …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// How the arguments that name a snapshot are explained.
pub const SNAPSHOT_HELP: &str = "Id or a unique beginning of it; or [SOURCE@]latest[~N][:TYPE]";

/// Snapshots.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Back up sources now
    Run(BackupRunArgs),
    /// List snapshots, newest first
    List(BackupListArgs),
    /// Show one snapshot: its manifest, or what lies in it
    Show(BackupShowArgs),
    /// Read every byte of a snapshot and open it
    Verify(SnapshotArgs),
    /// Refuse the removal of a snapshot from now on
    Hold(BackupHoldArgs),
    /// End a hold
    Release(SnapshotArgs),
    /// Remove snapshots for good
    Delete(BackupDeleteArgs),
    /// Write a snapshot as one tar + zstd file with checksums, for a handover without Holdfast
    Export(BackupExportArgs),
    /// Take an exported file into a repository
    Import(BackupImportArgs),
}

/// What a backup re-reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SnapshotKind {
    /// Re-reads everything
    Full,
    /// Skips what is unchanged since the last snapshot
    Incremental,
    /// Skips what is unchanged since the last full one
    Differential,
    /// Ad hoc and short-lived
    Snapshot,
}

impl SnapshotKind {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            SnapshotKind::Full => "full",
            SnapshotKind::Incremental => "incremental",
            SnapshotKind::Differential => "differential",
            SnapshotKind::Snapshot => "snapshot",
        }
    }
}

/// `backup run`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast backup run pg-main                                incremental; waits for the end
  holdfast backup run pg-main files-etc --type full
  holdfast backup run pg-main --milestone before-migration   named and held for ever
  holdfast backup run --all --no-wait -o name
  holdfast backup run pg-main --dry-run                      only what it would do

Ctrl-C leaves the run alone and prints how to come back; a second one within 3 s asks it to stop.
Exit status: 0 done, 1 failed, 3 partial (some items could not be read, or some runs failed), 4 no such source, \
6 a run of the source is active, 7 the agent is not connected, 8 --timeout is over and the run goes on.")]
pub struct BackupRunArgs {
    /// Names of sources
    #[arg(value_name = "SOURCE", required_unless_present = "all")]
    pub sources: Vec<String>,

    /// Every source of the fleet
    #[arg(long, conflicts_with = "sources")]
    pub all: bool,

    /// What is re-read; every type restores alone
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<SnapshotKind>,

    /// Name the snapshot and hold it for ever
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    pub milestone: Option<String>,

    /// Only to this repository
    #[arg(long, value_name = "REPO")]
    pub repo: Option<String>,

    /// Find out what would happen, and begin nothing; fails as the backup would
    #[arg(long)]
    pub dry_run: bool,
}

/// `backup list`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast backup list pg-main
  holdfast backup list --repo main -o csv > snapshots.csv
  holdfast backup list pg-main -o name | head -1")]
pub struct BackupListArgs {
    /// Only of this source
    #[arg(value_name = "SOURCE")]
    pub source: Option<String>,

    /// Only in this repository
    #[arg(long, value_name = "REPO")]
    pub repo: Option<String>,

    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

/// `backup show`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast backup show 3f2a91bc                     databases, tables with rows, sizes
  holdfast backup show pg-main@latest
  holdfast backup show 3f2a91bc --files             what lies in its root
  holdfast backup show 3f2a91bc --files srv/app --recursive")]
pub struct BackupShowArgs {
    #[arg(value_name = "SNAPSHOT", help = SNAPSHOT_HELP)]
    /// The snapshot.
    pub snapshot: String,

    /// List what lies in a folder of it
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "")]
    pub files: Option<String>,

    /// With all that is below
    #[arg(long, requires = "files")]
    pub recursive: bool,
}

/// A command about one snapshot.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[arg(value_name = "SNAPSHOT", help = SNAPSHOT_HELP)]
    /// The snapshot.
    pub snapshot: String,
}

/// `backup hold`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast backup hold 3f2a91bc --reason \"audit 2026\"

A held snapshot is removed by nothing and nobody until `holdfast backup release`.")]
pub struct BackupHoldArgs {
    #[arg(value_name = "SNAPSHOT", help = SNAPSHOT_HELP)]
    /// The snapshot.
    pub snapshot: String,
}

/// `backup delete`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast backup delete 3f2a91bc --dry-run
  holdfast backup delete 3f2a91bc 77d01e5a --confirm shop --reason \"customer left\"

The name of each source is asked for, and the id of a snapshot that is the last good one of its source. A held snapshot \
is refused. What only these snapshots needed gives its room back with the next `holdfast repo prune`. Exit status: 0 done, \
6 held or the repository is pruned, 9 must be confirmed.")]
pub struct BackupDeleteArgs {
    #[arg(value_name = "SNAPSHOT", help = SNAPSHOT_HELP, required = true)]
    /// The snapshots.
    pub snapshots: Vec<String>,

    /// Print what would be removed and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// `backup export`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast backup export 3f2a91bc -o shop.tar.zst
  tar --zstd -tf shop.tar.zst                       any tar reads it

The file appears under its name only when it is complete and on the disk.")]
pub struct BackupExportArgs {
    #[arg(value_name = "SNAPSHOT", help = SNAPSHOT_HELP)]
    /// The snapshot.
    pub snapshot: String,

    /// The file to write; it must not exist. `-` is standard output
    #[arg(id = "output", short = 'o', long = "output", value_name = "FILE", required = true)]
    pub file: String,
}

/// `backup import`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast backup import shop.tar.zst --repo main --source shop")]
pub struct BackupImportArgs {
    /// A file that `backup export` wrote, or a plain dump
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Into which repository
    #[arg(long, value_name = "REPO")]
    pub repo: String,

    /// Whose snapshot it becomes
    #[arg(long, value_name = "SOURCE")]
    pub source: String,
}
