//! Errors of the command line itself, told like all others.

use std::ffi::OsString;
use std::io::Write as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory as _};

use crate::args::Cli;
use crate::error::CliError;
use crate::exit_status::ExitStatus;
use crate::settings::Surroundings;
use crate::suggest;

/// Whether errors are wanted as JSON, found out before anything is parsed.
pub(crate) fn wants_json(arguments: &[OsString], surroundings: &Surroundings) -> bool {
    let texts: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    let mut format = surroundings.variable("HOLDFAST_OUTPUT");
    let mut rest = texts.iter().skip(1).copied();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            break;
        }
        if argument == "-o" || argument == "--output" {
            format = rest.next().or(format);
        } else if let Some(value) = argument.strip_prefix("--output=").or_else(|| argument.strip_prefix("-o"))
        {
            format = Some(value.trim_start_matches('='));
        }
    }
    matches!(format, Some("json" | "jsonl"))
}

/// Prints help and version as asked, or the error; returns the verdict.
pub(crate) fn report(
    error: &clap::Error,
    arguments: &[OsString],
    surroundings: &Surroundings,
    json: bool,
) -> ExitStatus {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let colour = surroundings.may_colour(surroundings.stdout_is_terminal, false);
            let text = rendered(error, colour);
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => ExitStatus::Ok,
                // Who reads has what it wanted, as `head` has.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitStatus::Ok,
                Err(error) => super::tell(&CliError::output(&error), surroundings, json),
            }
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let colour = surroundings.may_colour(surroundings.stderr_is_terminal, false);
            // Nothing can be said about a standard error that is closed.
            let _ = std::io::stderr().write_all(rendered(error, colour).as_bytes());
            ExitStatus::Usage
        }
        _ => super::tell(&translate(error, arguments), surroundings, json),
    }
}

fn rendered(error: &clap::Error, colour: bool) -> String {
    let styled = error.render();
    if colour { styled.ansi().to_string() } else { styled.to_string() }
}

/// Our error for one of the parser's.
fn translate(error: &clap::Error, arguments: &[OsString]) -> CliError {
    let parent = understood(arguments);
    let help = match parent.as_str() {
        "" => "holdfast --help".to_owned(),
        parent => format!("holdfast {parent} --help"),
    };
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand)
    {
        let full = if parent.is_empty() { typed.clone() } else { format!("{parent} {typed}") };
        return match suggest::command(typed, &parent, &command_paths()) {
            Some(near) => CliError::usage(format!("unknown command \"{full}\" - did you mean \"{near}\"?"))
                .then(format!("holdfast {near} --help")),
            None => CliError::usage(format!("unknown command \"{full}\"")).then(help),
        };
    }
    let text = error.to_string();
    let mut paragraphs = text.split("\n\n").map(|paragraph| {
        paragraph.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
    });
    let first = paragraphs.next().unwrap_or_default();
    let mut report = CliError::usage(first.strip_prefix("error: ").unwrap_or(&first));
    for paragraph in paragraphs {
        if let Some(tip) = paragraph.strip_prefix("tip: ") {
            report = report.because(tip);
        }
    }
    report.then(help)
}

/// The commands that were understood before the error, such as `backup` of `backup lsit`.
fn understood(arguments: &[OsString]) -> String {
    let mut command = &Cli::command();
    let mut path = Vec::new();
    for argument in arguments.iter().skip(1) {
        let Some(next) = argument.to_str().and_then(|name| command.find_subcommand(name)) else { continue };
        path.push(next.get_name().to_owned());
        command = next;
    }
    path.join(" ")
}

/// Every command there is, as it is typed.
pub(crate) fn command_paths() -> Vec<String> {
    fn gather(command: &Command, parent: &str, paths: &mut Vec<String>) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let path = if parent.is_empty() {
                sub.get_name().to_owned()
            } else {
                format!("{parent} {}", sub.get_name())
            };
            gather(sub, &path, paths);
            paths.push(path);
        }
    }
    let mut paths = Vec::new();
    gather(&Cli::command(), "", &mut paths);
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn error(line: &str) -> CliError {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        translate(&Cli::try_parse_from(&arguments).unwrap_err(), &arguments)
    }

    #[test]
    fn an_unknown_command_suggests_the_nearest() {
        let list = error("holdfast list-backups");
        assert_eq!(
            list.failure().message,
            "unknown command \"list-backups\" - did you mean \"backup list\"?"
        );
        assert_eq!(list.failure().next, ["holdfast backup list --help"]);
        assert_eq!(
            error("holdfast backup lsit").failure().message,
            "unknown command \"backup lsit\" - did you mean \"backup list\"?"
        );
        assert_eq!(error("holdfast frobnicate").failure().message, "unknown command \"frobnicate\"");
    }

    #[test]
    fn an_unknown_flag_is_told_with_the_tip() {
        let flag = error("holdfast backup run shop --tpye full");
        assert_eq!(flag.failure().message, "unexpected argument '--tpye' found");
        assert_eq!(flag.failure().why, ["a similar argument exists: '--type'"]);
        assert_eq!(flag.failure().next, ["holdfast backup run --help"]);
    }

    #[test]
    fn a_missing_argument_is_named() {
        let missing = error("holdfast backup show");
        assert!(missing.failure().message.contains("<SNAPSHOT>"), "{missing}");
    }

    #[test]
    fn json_errors_are_found_before_parsing() {
        let wants = |line: &str| {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            wants_json(&arguments, &Surroundings::default())
        };
        assert!(wants("holdfast status -o json"));
        assert!(wants("holdfast -ojson bogus"));
        assert!(wants("holdfast --output=jsonl bogus"));
        assert!(!wants("holdfast status"));
        assert!(!wants("holdfast status -o table"));
    }
}
