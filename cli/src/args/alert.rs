//! `holdfast alert …` and `holdfast notify …`

use clap::{Args, Subcommand, ValueEnum};
use holdfast_model::units::Span;

/// Alerts.
#[derive(Debug, Subcommand)]
pub enum AlertCommand {
    /// List what is wrong, the worst first
    List(AlertListArgs),
    /// Show one alert: what is at stake, since when, why, and what to do
    Show(AlertIdArgs),
    /// Say that you have seen it: it is not repeated and not escalated any more
    Ack(AlertIdArgs),
    /// Keep alerts quiet for a time
    Silence(AlertSilenceArgs),
    /// End a silence before its time
    Unsilence(AlertUnsilenceArgs),
}

/// `alert list`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast alert list
  holdfast alert list --all             those that were over in the last days, too
  holdfast alert list --silences        what is kept quiet, until when, why, by whom")]
pub struct AlertListArgs {
    /// Also those that are over
    #[arg(long, conflicts_with = "silences")]
    pub all: bool,

    /// The silences instead
    #[arg(long)]
    pub silences: bool,
}

/// A command about one alert.
#[derive(Debug, Args)]
pub struct AlertIdArgs {
    /// Number of the alert
    #[arg(value_name = "ALERT")]
    pub id: u64,
}

/// `alert silence`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast alert silence 17 --for 4h --reason \"the disk is being replaced\"
  holdfast alert silence --source pg-old --for 30d --reason migration
  holdfast alert silence --agent db1 --rule agent-down --for 1h --reason \"new kernel\"
  holdfast alert silence --label env=test --for 12h --reason \"load test\"

All that is given must fit. A silence keeps failures quiet, never the end of one that was told. When it ends and \
something still fails, that is told.")]
pub struct AlertSilenceArgs {
    /// Number of one alert
    #[arg(value_name = "ALERT", required_unless_present_any = ["source", "repository", "agent", "rule", "label"])]
    pub id: Option<u64>,

    /// Alerts of this source
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,

    /// Alerts of this repository, and of sources that are backed up to it
    #[arg(long, value_name = "REPO")]
    pub repository: Option<String>,

    /// Alerts of this agent, and of its sources
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<String>,

    /// Alerts of this rule, such as rpo-breached
    #[arg(long, value_name = "RULE")]
    pub rule: Option<String>,

    /// Alerts of what has this label, may be given often
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,

    /// For how long, such as 4h or 7d; at most a year
    #[arg(long = "for", value_name = "DURATION")]
    pub length: Span,
}

/// `alert unsilence`
#[derive(Debug, Args)]
pub struct AlertUnsilenceArgs {
    /// Number of the silence, as `holdfast alert list --silences` shows it
    #[arg(value_name = "SILENCE")]
    pub id: u64,
}

/// Notifications.
#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// List the channels, and how they do
    List,
    /// Send a message that says that nothing is wrong, and wait for the answer
    Test(NotifyTestArgs),
    /// Show what a channel would be sent, and send nothing
    Preview(NotifyPreviewArgs),
    /// Show what has become of messages, and what was answered
    History(NotifyHistoryArgs),
}

/// `notify test`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast notify test ops-ding

Exit status: 0 delivered, 1 not delivered (HF-4050), 5 nothing may be sent to this address (HF-4051).")]
pub struct NotifyTestArgs {
    /// Name of the channel
    #[arg(value_name = "CHANNEL")]
    pub channel: String,
}

/// Why a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NotifyEvent {
    /// Something fails
    Failing,
    /// It has become more severe
    Worsened,
    /// Nobody has acknowledged it
    Escalated,
    /// It still fails
    Reminder,
    /// It is over
    Recovered,
    /// Somebody tests the channel
    Test,
}

impl NotifyEvent {
    /// The word that calls use.
    pub fn as_str(self) -> &'static str {
        match self {
            NotifyEvent::Failing => "failing",
            NotifyEvent::Worsened => "worsened",
            NotifyEvent::Escalated => "escalated",
            NotifyEvent::Reminder => "reminder",
            NotifyEvent::Recovered => "recovered",
            NotifyEvent::Test => "test",
        }
    }
}

/// `notify preview`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast notify preview failing --channel ops-slack
  holdfast notify preview recovered --channel dba-mail --alert 17")]
pub struct NotifyPreviewArgs {
    /// Why it is sent
    #[arg(value_name = "EVENT")]
    pub event: NotifyEvent,

    /// Name of the channel
    #[arg(long, value_name = "CHANNEL")]
    pub channel: String,

    /// Of this alert; without it of one that is made up
    #[arg(long, value_name = "ALERT", default_value_t = 0, hide_default_value = true)]
    pub alert: u64,
}

/// `notify history`
#[derive(Debug, Args)]
pub struct NotifyHistoryArgs {
    /// Only of this channel
    #[arg(value_name = "CHANNEL")]
    pub channel: Option<String>,

    /// At most this many, the newest
    #[arg(long, value_name = "1-1000", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}
