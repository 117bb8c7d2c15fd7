//! The log of one run: lines are collected for up to a second and become facts, in order. Both the lines that wait and
//! the lines of a run are bounded; what is left out is counted and said. Debug lines are written only while the debug
//! logging of the run's source is on, and never take the room of the others.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use holdfast_engines::RunLog;
use holdfast_model::ids::{Attempt, RunId};
use holdfast_model::run::{LogLevel, LogLine};
use holdfast_model::text::counted;
use holdfast_proto::v1;
use holdfast_runtime::SharedClock;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::outbox::{Outbox, OutboxError};

/// Lines in one fact, as the protocol says.
const LINES_PER_FACT_MAX: usize = 100;
/// How long lines are collected.
const COLLECT_FOR: Duration = Duration::from_secs(1);
/// Lines that wait to become facts.
const LINES_WAITING_MAX: usize = 10_000;
/// Lines of one attempt.
const LINES_MAX: u64 = 100_000;
/// Debug lines wait only while fewer lines than this do.
const LINES_WAITING_WITH_DEBUG_MAX: usize = LINES_WAITING_MAX / 2;
/// Bytes of debug lines of one attempt: the outbox holds those of several runs while the controller is away.
const DEBUG_BYTES_MAX: usize = 4 << 20;
/// The longest line, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// The log of one attempt. Clones share it; writing a line never waits.
#[derive(Clone)]
pub struct RunLogger {
    shared: Arc<Shared>,
}

struct Shared {
    run: RunId,
    attempt: Attempt,
    clock: SharedClock,
    state: Mutex<State>,
    /// Until when debug lines are written.
    debug_until: Mutex<Option<Instant>>,
    warnings: AtomicU32,
    written: Notify,
    full_fact: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<LogLine>,
    taken: u64,
    debug_bytes: usize,
    left_out: u64,
}

impl RunLogger {
    /// An empty log.
    pub fn new(run: RunId, attempt: Attempt, clock: SharedClock) -> Self {
        Self {
            shared: Arc::new(Shared {
                run,
                attempt,
                clock,
                state: Mutex::default(),
                debug_until: Mutex::default(),
                warnings: AtomicU32::new(0),
                written: Notify::new(),
                full_fact: Notify::new(),
            }),
        }
    }

    /// How many warnings there were.
    pub fn warnings(&self) -> u32 {
        self.shared.warnings.load(Ordering::Relaxed)
    }

    /// Writes debug lines for so long from now on; nothing: no more.
    pub fn debug_for(&self, length: Duration) {
        let until = (!length.is_zero()).then(|| self.shared.clock.monotonic().checked_add(length)).flatten();
        *self.shared.debug_until.lock() = until;
    }

    fn debugs(&self) -> bool {
        let until = *self.shared.debug_until.lock();
        until.is_some_and(|until| self.shared.clock.monotonic() < until)
    }

    /// A line that says why the run ended.
    pub fn error(&self, text: &str) {
        tracing::error!(run = %self.shared.run, attempt = %self.shared.attempt, "{text}");
        self.write(LogLevel::Error, text);
    }

    fn write(&self, level: LogLevel, text: &str) {
        let at = self.shared.clock.now();
        let mut state = self.shared.state.lock();
        for text in printable_lines(text) {
            let is_full = match level {
                LogLevel::Debug => {
                    state.debug_bytes += text.len();
                    state.waiting.len() >= LINES_WAITING_WITH_DEBUG_MAX || state.debug_bytes > DEBUG_BYTES_MAX
                }
                _ => state.waiting.len() >= LINES_WAITING_MAX,
            };
            if is_full || state.taken >= LINES_MAX {
                state.left_out += 1;
                continue;
            }
            state.taken += 1;
            state.waiting.push_back(LogLine { at, attempt: self.shared.attempt, level, text });
        }
        let waiting = state.waiting.len();
        drop(state);
        self.shared.written.notify_one();
        if waiting >= LINES_PER_FACT_MAX {
            self.shared.full_fact.notify_one();
        }
    }

    /// Makes facts of the lines as they come. Ends only by being dropped, or when the outbox takes no more.
    ///
    /// # Errors
    /// Those of the outbox.
    pub async fn keep_flushing(&self, outbox: &Outbox) -> Result<std::convert::Infallible, OutboxError> {
        loop {
            self.shared.written.notified().await;
            tokio::select! {
                () = self.shared.clock.sleep(COLLECT_FOR) => {}
                () = self.shared.full_fact.notified() => {}
            }
            self.flush(outbox).await?;
        }
    }

    /// Makes facts of all lines that wait.
    ///
    /// # Errors
    /// Those of the outbox; the lines of the fact that failed are lost.
    pub async fn flush(&self, outbox: &Outbox) -> Result<(), OutboxError> {
        while let Some(lines) = self.take_lines() {
            let event = v1::fact::Event::Log(v1::LogLines { lines });
            outbox.append(self.shared.run, self.shared.attempt, event).await?;
        }
        Ok(())
    }

    fn take_lines(&self) -> Option<Vec<v1::LogLine>> {
        let mut state = self.shared.state.lock();
        if state.left_out > 0 && state.waiting.len() < LINES_PER_FACT_MAX {
            let text = format!("{} left out", counted(std::mem::take(&mut state.left_out), "more line"));
            let (at, attempt) = (self.shared.clock.now(), self.shared.attempt);
            state.waiting.push_back(LogLine { at, attempt, level: LogLevel::Info, text });
        }
        let count = state.waiting.len().min(LINES_PER_FACT_MAX);
        (count > 0).then(|| state.waiting.drain(..count).map(|line| (&line).into()).collect())
    }
}

impl RunLog for RunLogger {
    fn debug(&self, line: fmt::Arguments<'_>) {
        tracing::debug!(run = %self.shared.run, attempt = %self.shared.attempt, "{line}");
        if self.debugs() {
            self.write(LogLevel::Debug, &line.to_string());
        }
    }

    fn info(&self, line: &str) {
        tracing::info!(run = %self.shared.run, attempt = %self.shared.attempt, "{line}");
        self.write(LogLevel::Info, line);
    }

    fn warn(&self, line: &str) {
        tracing::warn!(run = %self.shared.run, attempt = %self.shared.attempt, "{line}");
        self.shared.warnings.fetch_add(1, Ordering::Relaxed);
        self.write(LogLevel::Warning, line);
    }
}

/// The lines of a text without control characters (names of tables and files are hostile input), each cut at a limit.
pub fn printable_lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(printable).collect()
}

fn printable(line: &str) -> String {
    let mut clean = String::with_capacity(line.len().min(LINE_BYTES_MAX));
    for character in line.chars() {
        if clean.len() > LINE_BYTES_MAX - 16 {
            clean.push('…');
            break;
        }
        match character {
            '\t' => clean.push(' '),
            // Besides the control characters: what turns the direction of the text around.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                clean.extend(c.escape_default());
            }
            c => clean.push(c),
        }
    }
    clean
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Keeps the lines in memory.
    #[derive(Default)]
    pub(crate) struct MemoryLog {
        lines: Mutex<Vec<(LogLevel, String)>>,
    }

    impl MemoryLog {
        fn of(&self, level: LogLevel) -> Vec<String> {
            let lines = self.lines.lock();
            lines.iter().filter(|(found, _)| *found == level).map(|(_, text)| text.clone()).collect()
        }

        pub(crate) fn infos(&self) -> Vec<String> {
            self.of(LogLevel::Info)
        }

        pub(crate) fn warnings(&self) -> Vec<String> {
            self.of(LogLevel::Warning)
        }
    }

    impl RunLog for MemoryLog {
        fn debug(&self, line: fmt::Arguments<'_>) {
            self.lines.lock().push((LogLevel::Debug, line.to_string()));
        }

        fn info(&self, line: &str) {
            self.lines.lock().push((LogLevel::Info, line.to_owned()));
        }

        fn warn(&self, line: &str) {
            self.lines.lock().push((LogLevel::Warning, line.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::{ManualClock, Shutdown, TaskGroup};

    use super::*;

    fn logger(clock: &ManualClock) -> (RunLogger, RunId) {
        let run = RunId::at(1, [1; 10]);
        (RunLogger::new(run, Attempt(1), clock.shared()), run)
    }

    async fn lines(outbox: &Outbox) -> Vec<Vec<String>> {
        let facts = outbox.read_after(0, 10_000).await.unwrap();
        let of = |fact: v1::Fact| match fact.event {
            Some(v1::fact::Event::Log(log)) => log.lines.into_iter().map(|line| line.text).collect(),
            other => panic!("{other:?}"),
        };
        facts.into_iter().map(of).collect()
    }

    #[tokio::test]
    async fn lines_of_a_second_become_one_fact() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let outbox = Outbox::open(folder.path(), &tasks).unwrap();
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let (log, _) = logger(&clock);
        log.info("one");
        log.warn("two");
        let flushing = log.keep_flushing(&outbox);
        let test = async {
            clock.until_sleepers(1).await;
            log.info("three");
            clock.advance(COLLECT_FOR);
            let mut seen = outbox.watch_last_seq();
            seen.wait_for(|&seq| seq == 1).await.unwrap();
        };
        tokio::select! {
            ended = flushing => panic!("{ended:?}"),
            () = test => {}
        }
        assert_eq!(lines(&outbox).await, [["one", "two", "three"]]);
        assert_eq!(log.warnings(), 1);
    }

    #[tokio::test]
    async fn many_lines_become_facts_of_a_hundred_and_the_excess_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let outbox = Outbox::open(folder.path(), &tasks).unwrap();
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let (log, _) = logger(&clock);
        for n in 0..LINES_WAITING_MAX + 7 {
            log.write(LogLevel::Info, &n.to_string());
        }
        log.flush(&outbox).await.unwrap();
        let facts = lines(&outbox).await;
        assert!(facts.iter().all(|fact| fact.len() <= LINES_PER_FACT_MAX));
        let all: Vec<String> = facts.concat();
        assert_eq!(all.len(), LINES_WAITING_MAX + 1);
        assert_eq!(all.last().unwrap(), "7 more lines left out");
        assert_eq!(all[4321], "4321");
    }

    #[tokio::test]
    async fn debug_lines_are_written_for_a_while_only_and_leave_room_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let outbox = Outbox::open(folder.path(), &tasks).unwrap();
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let (log, _) = logger(&clock);
        log.debug(format_args!("before"));
        log.debug_for(Duration::from_secs(60));
        log.debug(format_args!("during"));
        clock.advance(Duration::from_secs(60));
        log.debug(format_args!("after"));
        log.debug_for(Duration::from_secs(60));
        log.debug(format_args!("again"));
        log.debug_for(Duration::ZERO);
        log.debug(format_args!("no more"));
        log.flush(&outbox).await.unwrap();
        assert_eq!(lines(&outbox).await, [["during", "again"]]);
        assert_eq!(log.warnings(), 0);

        log.debug_for(Duration::from_secs(60));
        for n in 0..LINES_WAITING_MAX {
            log.debug(format_args!("{n}"));
        }
        log.warn("the one that counts");
        log.flush(&outbox).await.unwrap();
        let all: Vec<String> = lines(&outbox).await.concat();
        assert_eq!(all.len(), 2 + LINES_WAITING_WITH_DEBUG_MAX + 2);
        assert_eq!(&all[all.len() - 2..], ["the one that counts", "5,000 more lines left out"]);
    }

    #[test]
    fn lines_carry_no_control_characters_and_have_a_limit() {
        assert_eq!(printable_lines("a\n\nb\x1b[31m\tc\r\n"), ["a", "b\\u{1b}[31m c"]);
        assert_eq!(printable_lines("x\u{202e}y"), ["x\\u{202e}y"]);
        let long = printable_lines(&"ü".repeat(100_000));
        assert!(long[0].len() <= LINE_BYTES_MAX && long[0].ends_with('…'));
    }
}
