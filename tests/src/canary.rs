//! Secrets that were planted, and every place where they must not show.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::wait::{PATIENCE, until_true};

/// How often the processes of the machine are looked at. A shorter life than this may go unseen once; tests let the
/// same program run many times.
const SAMPLE_EVERY: Duration = Duration::from_millis(1);

/// A place where a planted secret was seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sighting {
    /// `argv` or `environ`.
    pub place: &'static str,
    /// The name of the program.
    pub program: String,
    /// Its process id.
    pub process: u32,
}

/// Looks at arguments and environment of every process of the machine until it is finished.
#[derive(Debug)]
pub struct CanaryWatch {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    sampler: Option<JoinHandle<BTreeSet<Sighting>>>,
}

impl CanaryWatch {
    /// Starts to watch for these secrets. Processes in `exempt` may carry them in their environment, because the test
    /// put them there; never in their arguments.
    ///
    /// # Panics
    /// When a canary is shorter than eight bytes: it would be found by chance.
    pub fn start(canaries: &[&str], exempt: &[u32]) -> Self {
        assert!(canaries.iter().all(|canary| canary.len() >= 8), "a canary has at least eight bytes");
        let canaries: Vec<Vec<u8>> = canaries.iter().map(|canary| canary.as_bytes().to_vec()).collect();
        let exempt: BTreeSet<u32> = exempt.iter().copied().chain([std::process::id()]).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&looks));
        let sampler = thread::spawn(move || {
            let mut sightings = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                sample(&canaries, &exempt, &mut sightings);
                counted.fetch_add(1, Ordering::SeqCst);
                thread::sleep(SAMPLE_EVERY);
            }
            sightings
        });
        Self { stop, looks, sampler: Some(sampler) }
    }

    /// Returns when every process that lives now and does not end meanwhile was looked at.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn look(&self) {
        // One look is under way, the next one begins after it.
        let enough = self.looks.load(Ordering::SeqCst) + 2;
        until_true("a look at all processes", PATIENCE, || self.looks.load(Ordering::SeqCst) >= enough);
    }

    /// Ends the watch and tells what was seen.
    ///
    /// # Panics
    /// When it never looked.
    pub fn finish(mut self) -> BTreeSet<Sighting> {
        self.stop.store(true, Ordering::Relaxed);
        let sampler = self.sampler.take().expect("a watch is finished once");
        let sightings = sampler.join().expect("the sampler does not panic");
        assert!(self.looks.load(Ordering::SeqCst) > 0, "the watch ended before its first look");
        sightings
    }

    /// Ends the watch and makes sure that nothing was seen.
    ///
    /// # Panics
    /// When something was; names the programs.
    pub fn expect_unseen(self) {
        let sightings = self.finish();
        assert!(sightings.is_empty(), "secrets showed: {sightings:#?}");
    }
}

impl Drop for CanaryWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn sample(canaries: &[Vec<u8>], exempt: &BTreeSet<u32>, sightings: &mut BTreeSet<Sighting>) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let folder = process.path();
        for (place, file) in [("argv", "cmdline"), ("environ", "environ")] {
            if place == "environ" && exempt.contains(&id) {
                continue;
            }
            // A process that ended meanwhile shows nothing.
            let Ok(bytes) = fs::read(folder.join(file)) else { continue };
            if canaries.iter().any(|canary| contains(&bytes, canary)) {
                let program = fs::read_to_string(folder.join("comm")).unwrap_or_default().trim().to_owned();
                sightings.insert(Sighting { place, program, process: id });
            }
        }
    }
}

/// The files below a folder, names included, that hold one of these secrets.
///
/// # Panics
/// When a folder cannot be read.
pub fn files_with(folder: &Path, canaries: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder can be read").path();
            let metadata = fs::symlink_metadata(&path).expect("an entry can be read");
            let named =
                canaries.iter().any(|canary| contains(path.as_os_str().as_bytes(), canary.as_bytes()));
            let holds = metadata.is_file() && {
                let bytes = fs::read(&path).expect("a file can be read");
                canaries.iter().any(|canary| contains(&bytes, canary.as_bytes()))
            };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            if named || holds {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
