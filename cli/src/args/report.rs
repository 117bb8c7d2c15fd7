//! `holdfast report …`

use clap::{Args, Subcommand};
use holdfast_model::report::{HOURS_DEFAULT, HOURS_MAX};

/// Reports.
#[derive(Debug, Subcommand)]
pub enum ReportCommand {
    /// What the last day brought, and how the fleet stands
    Daily(FleetReportArgs),
    /// What the last seven days brought, and how the fleet stands
    Weekly(FleetReportArgs),
    /// What came of the runs of the last hours: how they ended, how long they took, why they failed
    Logs(LogReportArgs),
}

/// How a report is shown, or where it goes.
#[derive(Debug, Args)]
pub struct ReportForm {
    /// Time zone of its days and times, such as Asia/Shanghai
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub timezone: String,

    /// As a page of HTML that stands alone
    #[arg(long, conflicts_with = "send")]
    pub html: bool,

    /// Send it by this channel instead, and wait for the answer
    #[arg(long, value_name = "CHANNEL")]
    pub send: Option<String>,
}

/// `report daily`, `report weekly`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast report weekly
  holdfast report weekly --timezone Asia/Shanghai -o markdown     for a wiki
  holdfast report weekly --html > week.html
  holdfast report daily -o json
  holdfast report daily --send ops-mail   sends it

The verdict comes first, then what is wrong, each with a command. Exit status: 0 when the report could be made, \
whatever it says; for a verdict see `holdfast status --check`.")]
pub struct FleetReportArgs {
    /// How it is shown
    #[command(flatten)]
    pub form: ReportForm,
}

/// `report logs`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast report logs
  holdfast report logs --hours 48 --source pg-main
  holdfast report logs --hours 1 -o json

A run counts in the hours in which it ended. Exit status: 0 when the report could be made, whatever it says.")]
pub struct LogReportArgs {
    /// How many hours back
    #[arg(long, value_name = "1-744", default_value_t = HOURS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(HOURS_MAX)))]
    pub hours: u32,

    /// Only runs of this source
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,

    /// How it is shown
    #[command(flatten)]
    pub form: ReportForm,
}
