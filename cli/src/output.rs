//! What is printed: data on standard output, everything else on standard error, in the one format chosen at the start.
//!
//! * [`mod@format`]: the formats, and how each prints a list;
//! * [`columns`]: what a table shows of an item;
//! * [`text`]: sizes, counts, durations, times, and texts of others made harmless;
//! * [`progress`]: bars, lines or objects on standard error.

pub mod columns;
pub mod format;
pub mod progress;
pub mod text;

#[cfg(test)]
pub(crate) mod testing {
    use super::{Look, Palette, TimeStyle, TimeZone};

    /// How things look on 21 November 2026 at 13:41:07.
    pub(crate) fn look() -> Look {
        Look {
            now: "2026-11-21T13:41:07Z".parse().unwrap(),
            time: TimeStyle::Relative,
            zone: TimeZone::UTC,
            palette: Palette::plain(),
        }
    }
}

use std::io::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub use columns::{Align, Column, Record, Tone};
pub use format::OutputFormat;
pub use progress::ProgressMode;

use crate::error::{CliError, CliResult};

/// The value of `api` in every document.
pub const API: &str = holdfast_model::fleet::API;

/// How times are shown to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TimeStyle {
    /// `6s ago`
    Relative,
    /// `2026-11-21 13:41:07`, in the zone of this machine
    Local,
    /// `2026-11-21T13:41:07Z`
    Utc,
}

/// Colours, or none. A colour only repeats what a word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Palette {
    coloured: bool,
}

impl Palette {
    /// No colours.
    pub fn plain() -> Self {
        Self { coloured: false }
    }

    /// Colours when `coloured`.
    pub fn new(coloured: bool) -> Self {
        Self { coloured }
    }

    /// Whether there are colours.
    pub fn is_coloured(self) -> bool {
        self.coloured
    }

    /// As it should be.
    pub fn good(self, text: &str) -> String {
        self.paint(text, |text| owo_colors::OwoColorize::green(&text).to_string())
    }

    /// May need attention.
    pub fn warning(self, text: &str) -> String {
        self.paint(text, |text| owo_colors::OwoColorize::yellow(&text).to_string())
    }

    /// Wrong.
    pub fn bad(self, text: &str) -> String {
        self.paint(text, |text| {
            owo_colors::OwoColorize::bold(&owo_colors::OwoColorize::red(&text)).to_string()
        })
    }

    /// Of less importance.
    pub fn dim(self, text: &str) -> String {
        self.paint(text, |text| owo_colors::OwoColorize::dimmed(&text).to_string())
    }

    /// Of more importance.
    pub fn strong(self, text: &str) -> String {
        self.paint(text, |text| owo_colors::OwoColorize::bold(&text).to_string())
    }

    fn paint(self, text: &str, paint: impl Fn(&str) -> String) -> String {
        if self.coloured { paint(text) } else { text.to_owned() }
    }
}

/// What the texts for people depend on.
#[derive(Debug, Clone)]
pub struct Look {
    /// The moment of the command.
    pub now: Timestamp,
    /// How times are shown.
    pub time: TimeStyle,
    /// The zone of this machine.
    pub zone: TimeZone,
    /// Colours of standard output.
    pub palette: Palette,
}

impl Look {
    /// A moment, as people want to see it.
    pub fn time(&self, at: Timestamp) -> String {
        match self.time {
            TimeStyle::Relative => text::relative(self.now, at),
            TimeStyle::Local => at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
            TimeStyle::Utc => text::utc(at),
        }
    }

    /// A moment that may be absent.
    pub fn time_or(&self, at: Option<Timestamp>, absent: &str) -> String {
        at.map_or_else(|| absent.to_owned(), |at| self.time(at))
    }

    /// A moment in UTC and local time, for what is about to be acted on.
    pub fn both_times(&self, at: Timestamp) -> String {
        let local = at.to_zoned(self.zone.clone());
        let utc = text::utc(at);
        if local.offset().is_zero() {
            return utc;
        }
        format!("{utc} ({} local)", local.strftime("%Y-%m-%d %H:%M:%S %:z"))
    }
}

/// Where everything goes that a command says.
pub struct Output {
    format: OutputFormat,
    look: Look,
    quiet: bool,
    error_palette: Palette,
    out: Box<dyn Write + Send>,
    reader_is_gone: bool,
    err: Box<dyn Write + Send>,
}

impl Output {
    /// An output that writes data to `out` and everything else to `err`.
    pub fn new(
        format: OutputFormat,
        look: Look,
        quiet: bool,
        error_palette: Palette,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
    ) -> Self {
        Self { format, look, quiet, error_palette, out, reader_is_gone: false, err }
    }

    /// The format.
    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// Makes this the moment that relative times are seen from.
    pub fn set_now(&mut self, now: Timestamp) {
        self.look.now = now;
    }

    /// Whether people read it.
    pub fn is_human(&self) -> bool {
        matches!(self.format, OutputFormat::Table | OutputFormat::Wide)
    }

    /// What texts for people depend on.
    pub fn look(&self) -> &Look {
        &self.look
    }

    /// Colours of standard output.
    pub fn palette(&self) -> Palette {
        self.look.palette
    }

    /// Colours of standard error.
    pub fn error_palette(&self) -> Palette {
        self.error_palette
    }

    /// Prints items in the chosen format. People get `empty` on standard error when there are none.
    ///
    /// # Errors
    /// `HF-1011` when they cannot be written.
    pub fn list<T: Record>(&mut self, items: &[T], empty: &str) -> CliResult<()> {
        if items.is_empty() && self.is_human() {
            self.note(empty);
            return Ok(());
        }
        let text = format::render(self.format, items, &self.look);
        self.write(&text)
    }

    /// Prints one item: for people as `human`, else as a list of one.
    ///
    /// # Errors
    /// `HF-1011` when it cannot be written.
    pub fn show<T: Record>(&mut self, item: &T, human: impl FnOnce(&Look) -> String) -> CliResult<()> {
        let text = if self.is_human() {
            human(&self.look)
        } else {
            format::render(self.format, std::slice::from_ref(item), &self.look)
        };
        self.write(&text)
    }

    /// Data that has a form of its own, such as YAML or a manual page. A reader that closes the pipe early, as `head`
    /// does, has what it wanted: the rest is dropped without a word, and the verdict of the command stays what it is.
    ///
    /// # Errors
    /// `HF-1011` when it cannot be written.
    pub fn write(&mut self, text: &str) -> CliResult<()> {
        if self.reader_is_gone {
            return Ok(());
        }
        let written = self.out.write_all(text.as_bytes());
        self.settle(written)
    }

    /// Bytes that are worth something only as a whole, such as an export.
    ///
    /// # Errors
    /// `HF-1011` when they cannot be written, also since the reader closed the pipe.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> CliResult<()> {
        self.out.write_all(bytes).map_err(|error| CliError::output(&error))
    }

    /// Makes sure that such bytes went out.
    ///
    /// # Errors
    /// As [`Output::write_bytes`].
    pub fn finish_bytes(&mut self) -> CliResult<()> {
        self.out.flush().map_err(|error| CliError::output(&error))
    }

    /// Whether nobody reads the data any more: a command that only prints may end.
    pub fn reader_is_gone(&self) -> bool {
        self.reader_is_gone
    }

    fn settle(&mut self, written: std::io::Result<()>) -> CliResult<()> {
        match written {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                self.reader_is_gone = true;
                Ok(())
            }
            other => other.map_err(|error| CliError::output(&error)),
        }
    }

    /// A line for people on standard error; nothing with `--quiet`.
    pub fn note(&mut self, line: &str) {
        if !self.quiet {
            self.error_line(line);
        }
    }

    /// What to do next, for people; nothing with `--quiet` or when machines read.
    pub fn next(&mut self, commands: &[String]) {
        if self.quiet || !self.is_human() {
            return;
        }
        for (index, command) in commands.iter().enumerate() {
            let label = if index == 0 { "next" } else { "" };
            let line = format!("  {}   {command}", self.error_palette.dim(&format!("{label:<4}")));
            self.error_line(&line);
        }
    }

    /// A line on standard error that `--quiet` does not silence.
    pub fn error_line(&mut self, line: &str) {
        self.error_text(&format!("{line}\n"));
    }

    /// Text on standard error as it is.
    pub fn error_text(&mut self, text: &str) {
        // Where both streams end in the same place, what was said first stands first. What cannot be written stays in
        // the buffer, and `finish` says so.
        let _ = self.out.flush();
        // Nothing can be said about a standard error that is closed, and the work goes on.
        let _ = self.err.write_all(text.as_bytes());
        let _ = self.err.flush();
    }

    /// Makes sure that the data went out, as far as somebody reads it.
    ///
    /// # Errors
    /// `HF-1011` when it did not.
    pub fn finish(&mut self) -> CliResult<()> {
        if self.reader_is_gone {
            return Ok(());
        }
        let flushed = self.out.flush();
        self.settle(flushed)
    }
}
