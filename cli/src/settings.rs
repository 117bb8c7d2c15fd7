//! What the flags and the environment come to, decided once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::args::GlobalArgs;
use crate::error::{CliError, CliResult};
use crate::output::text::shell_word;
use crate::output::{OutputFormat, ProgressMode, TimeStyle};

/// What the process sees of its surroundings; given as a value so that decisions can be tested.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// The arguments behind the name of the program.
    pub arguments: Vec<String>,
    /// The environment.
    pub variables: BTreeMap<String, String>,
    /// Whether standard input is a terminal.
    pub stdin_is_terminal: bool,
    /// Whether standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// Whether standard error is a terminal.
    pub stderr_is_terminal: bool,
}

impl Surroundings {
    /// Those of this process. Variables that are not UTF-8 are left out.
    pub(crate) fn of_process() -> Self {
        use std::io::IsTerminal as _;
        Self {
            arguments: Vec::new(),
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// A variable that is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The command as it was given, as a shell takes it back.
    fn command(&self) -> String {
        let words = self.arguments.iter().map(|argument| shell_word(argument));
        std::iter::once("holdfast".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
    }

    fn is_ci(&self) -> bool {
        self.variable("CI").is_some_and(|value| value != "false" && value != "0")
    }

    /// Whether a stream that is a terminal may be coloured.
    pub(crate) fn may_colour(&self, is_terminal: bool, no_color: bool) -> bool {
        is_terminal
            && !no_color
            && !self.is_ci()
            && self.variable("NO_COLOR").is_none()
            && self.variable("TERM") != Some("dumb")
    }
}

/// How to answer when something dangerous is asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Consent {
    /// Whether a person can be asked.
    pub interactive: bool,
    /// Questions that lose no data are answered with yes.
    pub yes: bool,
    /// Names that were given for confirmation.
    pub confirm: Vec<String>,
    /// Why.
    pub reason: Option<String>,
    /// The command as it was given, ready to be given again with another flag.
    pub command: String,
}

/// How to reach the controller, as far as the flags say.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnectionChoice {
    /// Name of a context.
    pub context: Option<String>,
    /// Address.
    pub server: Option<String>,
    /// File with the token.
    pub token_file: Option<PathBuf>,
    /// Certificate of the CA.
    pub ca_file: Option<PathBuf>,
}

/// Everything that applies to every command.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The form of data.
    pub format: OutputFormat,
    /// How times are shown.
    pub time: TimeStyle,
    /// How progress is shown, resolved.
    pub progress: ProgressMode,
    /// Whether to wait for runs.
    pub wait: bool,
    /// How long to wait.
    pub timeout: Option<Duration>,
    /// Only data and errors.
    pub quiet: bool,
    /// How much to log: 0 to 3.
    pub verbosity: u8,
    /// How to answer questions.
    pub consent: Consent,
    /// How to reach the controller.
    pub connection: ConnectionChoice,
    /// Whether standard output is coloured.
    pub stdout_coloured: bool,
    /// Whether standard error is coloured.
    pub stderr_coloured: bool,
}

impl Settings {
    /// What flags and surroundings come to. `format_is_a_file`: the command takes `-o` for the name of a file.
    ///
    /// # Errors
    /// `HF-1001` when flags contradict each other.
    pub(crate) fn resolve(
        global: GlobalArgs,
        surroundings: &Surroundings,
        format_is_a_file: bool,
    ) -> CliResult<Settings> {
        let format = if format_is_a_file {
            OutputFormat::Table
        } else {
            OutputFormat::parse(&global.output)
                .ok_or_else(|| CliError::usage(format!("there is no output format {:?}", global.output)))?
        };
        if global.quiet && global.verbose > 0 {
            return Err(CliError::usage("--quiet and --verbose exclude each other"));
        }
        let interactive = surroundings.stdin_is_terminal
            && surroundings.stderr_is_terminal
            && !global.non_interactive
            && !surroundings.is_ci();
        Ok(Settings {
            format,
            time: global.time.unwrap_or(TimeStyle::Relative),
            progress: global
                .progress
                .unwrap_or(ProgressMode::Auto)
                .resolve(global.quiet, surroundings.stderr_is_terminal && !surroundings.is_ci()),
            wait: global.wait || !global.no_wait,
            timeout: global.timeout,
            quiet: global.quiet,
            verbosity: global.verbose,
            consent: Consent {
                interactive,
                yes: global.yes,
                confirm: global.confirm,
                reason: global.reason.filter(|reason| !reason.trim().is_empty()),
                command: surroundings.command(),
            },
            connection: ConnectionChoice {
                context: global.context,
                server: global.server,
                token_file: global.token_file,
                ca_file: global.ca_file,
            },
            stdout_coloured: surroundings.may_colour(surroundings.stdout_is_terminal, global.no_color),
            stderr_coloured: surroundings.may_colour(surroundings.stderr_is_terminal, global.no_color),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn settings(args: &[&str], surroundings: &Surroundings) -> Settings {
        let cli = Cli::try_parse_from([&["holdfast"], args].concat()).unwrap();
        Settings::resolve(cli.global, surroundings, false).unwrap()
    }

    fn terminal(variables: &[(&str, &str)]) -> Surroundings {
        Surroundings {
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            stdin_is_terminal: true,
            stdout_is_terminal: true,
            stderr_is_terminal: true,
            ..Surroundings::default()
        }
    }

    #[test]
    fn a_terminal_is_coloured_and_asked() {
        let settings = settings(&["status"], &terminal(&[]));
        assert!(settings.stdout_coloured && settings.consent.interactive && settings.wait);
        assert_eq!(settings.progress, ProgressMode::Tty);
    }

    #[test]
    fn ci_is_neither_coloured_nor_asked() {
        let settings = settings(&["status"], &terminal(&[("CI", "true")]));
        assert!(!settings.stdout_coloured && !settings.consent.interactive);
        assert_eq!(settings.progress, ProgressMode::Plain);
    }

    #[test]
    fn no_color_is_heeded_in_both_forms() {
        assert!(!settings(&["status"], &terminal(&[("NO_COLOR", "1")])).stdout_coloured);
        assert!(!settings(&["--no-color", "status"], &terminal(&[])).stdout_coloured);
        assert!(settings(&["status"], &terminal(&[("NO_COLOR", "")])).stdout_coloured);
    }

    #[test]
    fn the_last_word_on_waiting_counts() {
        assert!(!settings(&["backup", "run", "x", "--no-wait"], &terminal(&[])).wait);
        assert!(settings(&["--wait", "status"], &terminal(&[])).wait);
    }
}
