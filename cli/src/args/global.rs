//! Flags and variables that apply to every command.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use crate::output::{OutputFormat, ProgressMode, TimeStyle};

/// What applies to every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Which controller, by the name of its context
    #[arg(
        short = 'C',
        long,
        global = true,
        value_name = "NAME",
        env = "HOLDFAST_CONTEXT",
        hide_env_values = true
    )]
    pub context: Option<String>,

    /// Address of the controller, such as `https://backup.example.com:7443`; needs no context
    #[arg(long, global = true, value_name = "URL", env = "HOLDFAST_SERVER", hide_env_values = true)]
    pub server: Option<String>,

    /// File with the access token, readable by its owner only
    #[arg(long, global = true, value_name = "FILE", env = "HOLDFAST_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,

    /// Certificate of the controller's CA, the only one that is trusted
    #[arg(long, global = true, value_name = "FILE", env = "HOLDFAST_CA_FILE", hide_env_values = true)]
    pub ca_file: Option<PathBuf>,

    /// table, wide, json, jsonl, yaml, name, csv or markdown
    // A text here and in `backup export`, where the same flag names a file.
    #[arg(
        id = "output",
        short,
        long,
        global = true,
        value_name = "FORMAT",
        env = "HOLDFAST_OUTPUT",
        hide_env_values = true,
        hide_possible_values = true,
        default_value = "table",
        hide_default_value = true,
        value_parser = clap::builder::PossibleValuesParser::new(OutputFormat::NAMES)
    )]
    pub output: String,

    /// How times are shown: relative, local or utc; data for machines is always in UTC
    #[arg(
        long,
        global = true,
        value_name = "STYLE",
        env = "HOLDFAST_TIME",
        hide_env_values = true,
        hide_possible_values = true
    )]
    pub time: Option<TimeStyle>,

    /// Progress on standard error: auto, tty, plain (a line a minute), json or none
    #[arg(
        long,
        global = true,
        value_name = "MODE",
        env = "HOLDFAST_PROGRESS",
        hide_env_values = true,
        hide_possible_values = true
    )]
    pub progress: Option<ProgressMode>,

    /// Wait for the run to end (the default)
    #[arg(long, global = true, overrides_with = "no_wait")]
    pub wait: bool,

    /// Print the run and return at once
    #[arg(long, global = true)]
    pub no_wait: bool,

    /// Wait at most this long, such as 90s or 2h; the run itself goes on
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,

    /// Answer questions that lose no data with yes
    #[arg(short, long, global = true)]
    pub yes: bool,

    /// Confirm a dangerous action by the name it asks for
    #[arg(long, global = true, value_name = "NAME")]
    pub confirm: Vec<String>,

    /// Why a dangerous action is done; goes to the audit log
    #[arg(long, global = true, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Only data and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Say more; twice: much more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// No colours
    #[arg(long, global = true)]
    pub no_color: bool,

    /// Never ask: fail with exit status 9 and say which flag answers
    #[arg(long, global = true)]
    pub non_interactive: bool,
}

/// A length of time as people write it: `90s`, `5m`, `1h30m`, `2 days`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "a length of time is needed, such as 90s, 5m or 2h".to_owned())?;
    Duration::try_from(span).map_err(|_| "it must not be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "soon", "-5m", "5"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?} was accepted");
        }
    }
}
