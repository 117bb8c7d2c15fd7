//! Named places where a test makes the process die, fail or wait.
//!
//! Without the feature `fail-points` all of it compiles to nothing. With it, the environment variable
//! `HOLDFAST_FAIL_POINTS` arms points, separated by `|`:
//!
//! | text | what happens |
//! |---|---|
//! | `name=kill` or `name=kill:3` | SIGKILL to the own process at the first, or third, hit |
//! | `name=error` or `name=error:2` | [`hit_io`] fails at every hit, or at the second only; [`hit`] ignores it |
//! | `name=pause:PATH` | whoever comes there waits as long as the file `PATH` exists; the other tasks go on |
//!
//! `HOLDFAST_FAIL_POINTS_RECORD=FILE` appends the name of every hit to `FILE`, one a line, armed or not: a campaign
//! in which a point was never hit has not tested it.

/// The variable that arms points.
pub const ENVIRONMENT_VARIABLE: &str = "HOLDFAST_FAIL_POINTS";
/// The variable that names the file in which hits are recorded.
pub const RECORD_VARIABLE: &str = "HOLDFAST_FAIL_POINTS_RECORD";

/// A place where the process may be killed or held up.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn hit(_name: &str) {}

/// A place where an operation may be made to fail as the operating system would.
///
/// # Errors
/// An error of kind `Other` when the point is armed so; never without the feature `fail-points`.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn hit_io(_name: &str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "fail-points")]
pub use armed::{Armed, InvalidFailPoints, arm, hit, hit_io};

#[cfg(feature = "fail-points")]
mod armed {
    use std::collections::HashMap;
    use std::io::{self, Write as _};
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::Duration;

    use parking_lot::Mutex;

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Action {
        Kill { at_hit: u64 },
        Error { at_hit: Option<u64> },
        Pause { while_exists: PathBuf },
    }

    #[derive(Debug)]
    struct Point {
        action: Action,
        hits: u64,
    }

    /// The text does not describe fail points.
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    #[error("{0:?} is not a fail point: NAME=kill[:N], NAME=error[:N] and NAME=pause:PATH are")]
    pub struct InvalidFailPoints(String);

    fn parse(text: &str) -> Result<Vec<(String, Action)>, InvalidFailPoints> {
        let number = |text: &str| text.parse::<u64>().ok().filter(|&n| n > 0);
        text.split('|')
            .filter(|part| !part.trim().is_empty())
            .map(|part| {
                let invalid = || InvalidFailPoints(part.to_owned());
                let (name, action) = part.trim().split_once('=').ok_or_else(invalid)?;
                let action = match action.split_once(':').unwrap_or((action, "")) {
                    ("kill", "") => Action::Kill { at_hit: 1 },
                    ("kill", n) => Action::Kill { at_hit: number(n).ok_or_else(invalid)? },
                    ("error", "") => Action::Error { at_hit: None },
                    ("error", n) => Action::Error { at_hit: Some(number(n).ok_or_else(invalid)?) },
                    ("pause", path) if !path.is_empty() => Action::Pause { while_exists: path.into() },
                    _ => return Err(invalid()),
                };
                Ok((name.to_owned(), action))
            })
            .collect()
    }

    fn points() -> &'static Mutex<HashMap<String, Point>> {
        static POINTS: OnceLock<Mutex<HashMap<String, Point>>> = OnceLock::new();
        POINTS.get_or_init(|| {
            let text = std::env::var(super::ENVIRONMENT_VARIABLE).unwrap_or_default();
            let armed = parse(&text).expect("the test armed valid fail points");
            let points = armed.into_iter().map(|(name, action)| (name, Point { action, hits: 0 }));
            Mutex::new(points.collect())
        })
    }

    /// Points armed from within the process; dropping it disarms them.
    #[derive(Debug)]
    pub struct Armed {
        names: Vec<String>,
    }

    impl Drop for Armed {
        fn drop(&mut self) {
            let mut points = points().lock();
            for name in &self.names {
                points.remove(name);
            }
        }
    }

    /// Arms points for this process, as the environment variable does; the counts of hits start at nought.
    ///
    /// # Errors
    /// [`InvalidFailPoints`] names the part that cannot be read.
    pub fn arm(text: &str) -> Result<Armed, InvalidFailPoints> {
        let armed = parse(text)?;
        let names = armed.iter().map(|(name, _)| name.clone()).collect();
        points().lock().extend(armed.into_iter().map(|(name, action)| (name, Point { action, hits: 0 })));
        Ok(Armed { names })
    }

    fn record(name: &str) {
        static RECORD: OnceLock<Option<Mutex<std::fs::File>>> = OnceLock::new();
        let file = RECORD.get_or_init(|| {
            let path = std::env::var_os(super::RECORD_VARIABLE)?;
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            Some(Mutex::new(file.expect("the test can write its record of hits")))
        });
        if let Some(file) = file {
            // One write per line: a process killed right after must leave whole lines.
            let _ = file.lock().write_all(format!("{name}\n").as_bytes());
        }
    }

    /// Counts the hit and says what to do about it.
    fn due(name: &str) -> Option<Action> {
        record(name);
        let mut points = points().lock();
        let point = points.get_mut(name)?;
        point.hits += 1;
        let due = match &point.action {
            Action::Kill { at_hit } => *at_hit == point.hits,
            Action::Error { at_hit } => at_hit.is_none_or(|n| n == point.hits),
            Action::Pause { .. } => true,
        };
        due.then(|| point.action.clone())
    }

    fn kill_self() -> ! {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // SIGKILL arrives before this process runs much further; until then nothing more may happen.
        loop {
            std::thread::park();
        }
    }

    fn pause(path: &std::path::Path) {
        let wait = || {
            while path.exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        let runtime = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
        match runtime {
            // Tasks that wait behind this one are taken over by another thread.
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
            _ => wait(),
        }
    }

    /// A place where the process may be killed or held up.
    pub fn hit(name: &str) {
        match due(name) {
            Some(Action::Kill { .. }) => kill_self(),
            Some(Action::Pause { while_exists }) => pause(&while_exists),
            Some(Action::Error { .. }) | None => {}
        }
    }

    /// A place where an operation may be made to fail as the operating system would.
    ///
    /// # Errors
    /// An error of kind `Other` when the point is armed so.
    pub fn hit_io(name: &str) -> io::Result<()> {
        match due(name) {
            Some(Action::Kill { .. }) => kill_self(),
            Some(Action::Pause { while_exists }) => pause(&while_exists),
            Some(Action::Error { .. }) => {
                return Err(io::Error::other(format!("injected at fail point {name}")));
            }
            None => {}
        }
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_error_is_injected_at_its_hit_only() {
            let armed = arm("unit-a=error:2|unit-b=error").unwrap();
            assert!(hit_io("unit-a").is_ok());
            assert!(hit_io("unit-a").is_err());
            assert!(hit_io("unit-a").is_ok());
            assert!(hit_io("unit-b").is_err());
            assert!(hit_io("unit-b").is_err());
            drop(armed);
            assert!(hit_io("unit-b").is_ok());
        }

        #[test]
        fn a_pause_lasts_as_long_as_its_file() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("hold");
            std::fs::write(&path, b"").unwrap();
            let _armed = arm(&format!("unit-pause=pause:{}", path.display())).unwrap();
            let held = std::thread::spawn(|| hit("unit-pause"));
            while points().lock()["unit-pause"].hits == 0 {
                std::thread::yield_now();
            }
            assert!(!held.is_finished());
            std::fs::remove_file(&path).unwrap();
            held.join().unwrap();
        }

        #[test]
        fn nonsense_is_refused() {
            for bad in ["a", "a=", "a=kill:0", "a=kill:x", "a=pause", "a=explode"] {
                assert!(arm(bad).is_err(), "{bad} was accepted");
            }
        }
    }
}

#[cfg(all(test, not(feature = "fail-points")))]
mod tests {
    #[test]
    fn without_the_feature_a_point_does_nothing() {
        super::hit("any");
        assert!(super::hit_io("any").is_ok());
    }
}
