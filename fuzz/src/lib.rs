//! Damaged input for parsers of bytes that nobody vouches for: what is in a repository, in a fleet file, in a dump.
//!
//! A campaign changes good examples at random, over and over, and reads the result. No input may panic, take longer
//! than [`INPUT_LIMIT`], or make the process take more than [`MEMORY_BYTES_MAX`] beyond what it has at the beginning.
//! An input with an outcome that was not seen before becomes an example itself, so that a campaign gets deeper.
//!
//! | variable | says |
//! |---|---|
//! | `HOLDFAST_FUZZ_SECONDS` | how long each campaign lasts; [`SECONDS_DEFAULT`] without it |
//! | `HOLDFAST_FUZZ_SEED` | where the random numbers begin; the same ones every time without it |
//! | `HOLDFAST_FUZZ_INPUT` | a file to read once, instead of a campaign |

mod mutation;

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use mutation::INPUT_BYTES_MAX;

/// How long a campaign lasts when nobody says otherwise.
pub const SECONDS_DEFAULT: u64 = 1;
/// How long one input may take; far more than any needs, since the machine may be busy.
pub const INPUT_LIMIT: Duration = Duration::from_secs(10);
/// What reading may take of memory. Beyond it the process ends.
pub const MEMORY_BYTES_MAX: u64 = 1 << 30;
/// Examples that are kept.
const EXAMPLES_MAX: usize = 4096;

/// Feeds a parser until the time is over. `parse` says in a word what came of an input, such as its error.
///
/// The input that is being read lies in a file whose name is printed first: it is still there when the process is ended
/// from outside.
///
/// # Panics
/// When the parser does, or takes too long; the file then holds the input.
pub fn campaign(name: &str, examples: Vec<Vec<u8>>, mut parse: impl FnMut(&[u8]) -> String) {
    limit_memory();
    if let Some(path) = std::env::var_os("HOLDFAST_FUZZ_INPUT") {
        let input = std::fs::read(&path).expect("HOLDFAST_FUZZ_INPUT names a file");
        say(&format!("{name}: {}", parse(&input)));
        return;
    }
    let seconds = number("HOLDFAST_FUZZ_SECONDS").unwrap_or(SECONDS_DEFAULT);
    let seed = number("HOLDFAST_FUZZ_SEED").unwrap_or_default();
    let file = std::env::temp_dir().join(format!("holdfast-fuzz-{name}-{}", std::process::id()));
    say(&format!("{name}: seed {seed}, the input that is read lies in {}", file.display()));
    let kept = File::create(&file).expect("the folder for temporary files takes one more");
    let mut state = State { examples, seen: HashSet::new(), file, kept, name, seed };
    for example in state.examples.clone() {
        let outcome = state.read(&example, &mut parse);
        state.seen.insert(outcome);
    }
    let mut random = StdRng::seed_from_u64(seed);
    let began = Instant::now();
    let mut inputs = 0_u64;
    while began.elapsed() < Duration::from_secs(seconds) {
        let input = mutation::mutated(&mut random, &state.examples);
        let outcome = state.read(&input, &mut parse);
        if state.examples.len() < EXAMPLES_MAX && state.seen.insert(outcome) {
            state.examples.push(input);
        }
        inputs += 1;
    }
    // The examples alone are no campaign.
    assert!(inputs > 0, "{name}: no input was read");
    say(&format!("{name}: {inputs} inputs, {} outcomes", state.seen.len()));
    let _ = std::fs::remove_file(&state.file);
}

struct State<'a> {
    examples: Vec<Vec<u8>>,
    seen: HashSet<String>,
    file: PathBuf,
    kept: File,
    name: &'a str,
    seed: u64,
}

impl State<'_> {
    fn read(&self, input: &[u8], parse: &mut impl FnMut(&[u8]) -> String) -> String {
        // Opened once: a file that is replaced costs more than most parsers.
        let kept = self.kept.write_all_at(input, 0).and_then(|()| self.kept.set_len(input.len() as u64));
        kept.expect("the folder for temporary files has room");
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| parse(input)));
        let took = began.elapsed();
        if outcome.is_err() || took > INPUT_LIMIT {
            let again = format!("HOLDFAST_FUZZ_INPUT={} make fuzz", self.file.display());
            say(&format!("{}: an input of seed {} took {took:?}; again: {again}", self.name, self.seed));
        }
        let outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic));
        assert!(took <= INPUT_LIMIT, "{}: an input took {took:?}", self.name);
        kind_of(&outcome)
    }
}

fn say(line: &str) {
    // There is nowhere left to say that this failed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The text of an outcome without what differs from input to input.
fn kind_of(outcome: &str) -> String {
    let words = outcome.split_whitespace().filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.take(30).collect::<Vec<_>>().join(" ")
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// From here on the process may take so much more memory; asking for more ends it.
fn limit_memory() {
    let status = std::fs::read_to_string("/proc/self/status").expect("the system tells what a process takes");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("it tells its size");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a size is a number");
    let Rlimit { maximum, .. } = getrlimit(Resource::As);
    let limit = Rlimit { current: Some((kibibytes << 10) + MEMORY_BYTES_MAX), maximum };
    setrlimit(Resource::As, limit).expect("a process may limit itself");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_campaign_finds_a_defect_behind_a_check() {
        let defective = |input: &[u8]| match input {
            [b'O', b'K', length, ..] if *length > 100 => panic!("the length is believed"),
            [b'O', b'K', ..] => "good".to_owned(),
            _ => "it does not begin with OK".to_owned(),
        };
        let found = catch_unwind(|| campaign("defective", vec![b"OK\x01 rest".to_vec()], defective));
        assert_eq!(*found.unwrap_err().downcast::<&str>().unwrap(), "the length is believed");
    }

    #[test]
    fn outcomes_that_differ_by_numbers_are_one_kind() {
        assert_eq!(kind_of("byte 17 of pack 3fa2"), kind_of("byte 3 of pack 41bc"));
        assert_ne!(kind_of("too long"), kind_of("too short"));
    }
}
