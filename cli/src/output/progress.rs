//! Progress on standard error: a live bar on a terminal, one line a minute elsewhere, objects for machines.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::Output;
use super::text::{count, counted, duration, rate, short_run, size};
use crate::views::run::{ProgressView, RunView};

/// How long a plain watcher is silent between two lines.
pub const PLAIN_INTERVAL: Duration = Duration::from_secs(60);

/// Machines get at most one object per run in this time.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProgressMode {
    /// Bars on a terminal, else a line a minute
    Auto,
    /// Bars
    Tty,
    /// A line a minute
    Plain,
    /// One JSON object a second
    Json,
    /// Nothing
    None,
}

impl ProgressMode {
    /// What `auto` means here.
    pub fn resolve(self, quiet: bool, terminal: bool) -> ProgressMode {
        match self {
            ProgressMode::Auto if quiet => ProgressMode::None,
            ProgressMode::Auto if terminal => ProgressMode::Tty,
            ProgressMode::Auto => ProgressMode::Plain,
            other => other,
        }
    }
}

/// Shows how runs get on.
pub struct ProgressBoard {
    mode: ProgressMode,
    bars: MultiProgress,
    runs: BTreeMap<String, Shown>,
}

struct Shown {
    bar: Option<ProgressBar>,
    began: Instant,
    last_line: Option<Instant>,
    began_line_printed: bool,
}

impl ProgressBoard {
    /// A board for a resolved mode.
    pub fn new(mode: ProgressMode) -> Self {
        Self { mode, bars: MultiProgress::new(), runs: BTreeMap::new() }
    }

    /// Shows the state of a run at a moment.
    pub fn update(&mut self, run: &RunView, at: Instant, output: &mut Output) {
        let mode = self.mode;
        let bars = &self.bars;
        let shown = self.runs.entry(run.id.clone()).or_insert_with(|| Shown {
            bar: (mode == ProgressMode::Tty).then(|| {
                let bar = bars.add(ProgressBar::no_length());
                bar.set_style(style(false));
                bar
            }),
            began: at,
            last_line: None,
            began_line_printed: false,
        });
        let elapsed = at.saturating_duration_since(shown.began);
        match mode {
            ProgressMode::Tty => {
                if let Some(bar) = &shown.bar {
                    draw(bar, run, elapsed);
                }
            }
            ProgressMode::Plain => {
                if !shown.began_line_printed {
                    shown.began_line_printed = true;
                    shown.last_line = Some(at);
                    output.note(&format!("{}   {}", label(run), line(run, elapsed)));
                } else if is_due(shown.last_line, at, PLAIN_INTERVAL) {
                    shown.last_line = Some(at);
                    output.note(&format!("{}   {}", label(run), line(run, elapsed)));
                }
            }
            ProgressMode::Json => {
                if is_due(shown.last_line, at, JSON_INTERVAL) {
                    shown.last_line = Some(at);
                    output.error_line(&json(run));
                }
            }
            ProgressMode::Auto | ProgressMode::None => {}
        }
    }

    /// Takes an ended run off the board; a plain watcher gets its last line.
    pub fn end(&mut self, run: &RunView, at: Instant, output: &mut Output) {
        let Some(shown) = self.runs.remove(&run.id) else { return };
        if let Some(bar) = shown.bar {
            bar.finish_and_clear();
        }
        match self.mode {
            ProgressMode::Plain => {
                let elapsed = at.saturating_duration_since(shown.began);
                output.note(&format!("{}   {} after {}", label(run), run.phase, duration(elapsed)));
            }
            ProgressMode::Json => output.error_line(&json(run)),
            _ => {}
        }
    }

    /// Takes everything off the board.
    pub fn clear(&mut self) {
        for shown in std::mem::take(&mut self.runs).into_values() {
            if let Some(bar) = shown.bar {
                bar.finish_and_clear();
            }
        }
    }

    /// A line that must not be torn by a bar.
    pub fn note(&self, line: &str, output: &mut Output) {
        self.bars.suspend(|| output.note(line));
    }
}

fn is_due(last: Option<Instant>, at: Instant, interval: Duration) -> bool {
    last.is_none_or(|last| at.saturating_duration_since(last) >= interval)
}

fn style(known_length: bool) -> ProgressStyle {
    let template = if known_length { "{prefix}  {bar:24}  {msg}" } else { "{prefix}  {spinner}  {msg}" };
    ProgressStyle::with_template(template)
        .expect("the template is a constant that a test reads")
        .progress_chars("##-")
        .tick_chars("|/-\\ ")
}

fn draw(bar: &ProgressBar, run: &RunView, elapsed: Duration) {
    let progress = &run.progress;
    if progress.total_bytes > 0 && bar.length() != Some(progress.total_bytes) {
        bar.set_style(style(true));
        bar.set_length(progress.total_bytes);
    }
    bar.set_prefix(label(run));
    bar.set_position(progress.done_bytes.min(progress.total_bytes.max(progress.done_bytes)));
    bar.set_message(line(run, elapsed));
    bar.tick();
}

/// Which run a line is about.
fn label(run: &RunView) -> String {
    let what = run.source.as_deref().or(run.repository.as_deref()).unwrap_or("-");
    format!("{} {what} ({})", run.kind, short_run(&run.id))
}

/// The state of a run in one line.
pub fn line(run: &RunView, elapsed: Duration) -> String {
    if let (Some(reason), "queued") = (&run.waiting_for, run.phase.as_str()) {
        return format!("queued: {}", super::text::plain(reason));
    }
    let progress = &run.progress;
    let stage = if progress.stage.is_empty() { run.phase.as_str() } else { progress.stage.as_str() };
    let mut parts = vec![super::text::plain(stage)];
    match (progress.done_bytes, progress.total_bytes) {
        (0, 0) => {}
        (done, 0) => parts.push(size(done)),
        (done, total) => parts.push(format!("{} of {}", size(done), size(total))),
    }
    if progress.done_bytes > 0 && elapsed >= Duration::from_secs(1) {
        parts.push(rate(progress.done_bytes, elapsed));
    }
    if let Some(left) = remaining(progress, elapsed) {
        parts.push(format!("ETA {}", duration(left)));
    }
    match (progress.done_files, progress.total_files) {
        (0, 0) => {}
        (done, 0) => parts.push(counted(done, "file")),
        (done, total) => parts.push(format!("{} of {}", count(done), counted(total, "file"))),
    }
    if progress.unreadable > 0 {
        parts.push(format!("{} unreadable", count(progress.unreadable)));
    }
    parts.join(", ")
}

/// How long the rest takes at the speed so far; nothing while that is a guess.
fn remaining(progress: &ProgressView, elapsed: Duration) -> Option<Duration> {
    let (done, total) = (progress.done_bytes, progress.total_bytes);
    if elapsed < Duration::from_secs(2) || done == 0 || total <= done {
        return None;
    }
    Some(elapsed.mul_f64((total - done) as f64 / done as f64))
}

fn json(run: &RunView) -> String {
    serde_json::json!({
        "api": super::API,
        "kind": "Progress",
        "run_id": run.id,
        "phase": run.phase,
        "waiting_for": run.waiting_for,
        "progress": run.progress,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_way() -> RunView {
        RunView {
            id: "018f00000000700080000000deadbeef".to_owned(),
            kind: "backup".to_owned(),
            phase: "running".to_owned(),
            source: Some("shop".to_owned()),
            progress: ProgressView {
                stage: "uploading".to_owned(),
                total_bytes: 400 << 20,
                done_bytes: 100 << 20,
                total_files: 4,
                done_files: 1,
                ..ProgressView::default()
            },
            ..RunView::default()
        }
    }

    #[test]
    fn a_line_says_bytes_rate_eta_and_files() {
        assert_eq!(
            line(&half_way(), Duration::from_secs(10)),
            "uploading, 100.0 MiB of 400.0 MiB, 10.0 MiB/s, ETA 30s, 1 of 4 files"
        );
    }

    #[test]
    fn a_queued_run_says_what_it_waits_for() {
        let run = RunView {
            phase: "queued".to_owned(),
            waiting_for: Some("agent db1 is not connected".to_owned()),
            ..half_way()
        };
        assert_eq!(line(&run, Duration::ZERO), "queued: agent db1 is not connected");
    }

    #[test]
    fn no_eta_is_guessed_from_nothing() {
        let run = RunView { progress: ProgressView::default(), ..half_way() };
        assert_eq!(line(&run, Duration::from_secs(100)), "running");
    }

    #[test]
    fn auto_follows_the_terminal() {
        assert_eq!(ProgressMode::Auto.resolve(false, true), ProgressMode::Tty);
        assert_eq!(ProgressMode::Auto.resolve(false, false), ProgressMode::Plain);
        assert_eq!(ProgressMode::Auto.resolve(true, true), ProgressMode::None);
        assert_eq!(ProgressMode::Json.resolve(true, true), ProgressMode::Json);
    }

    #[test]
    fn the_templates_of_the_bars_are_valid() {
        drop((style(true), style(false)));
    }
}
