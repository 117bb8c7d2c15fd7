//! Which packs of a repository are read again, and when; and what that says of its snapshots. Pure: what is known of the
//! packs and the time come in, a decision goes out. So nothing depends on what was decided before a restart.

use jiff::Timestamp;

use crate::policy::Verify;
use crate::units::{SampleRate, Span};

/// The longest time between two portions.
const PORTION_MAX: i64 = 3600;
/// Portions in the time within which everything is read.
const PORTIONS: i64 = 16;

/// How long after it was made a snapshot is proven to be read, at the latest: what is new is read within a quarter of the
/// time for everything, and entered within a sixteenth.
pub fn proven_within(full: Span) -> Span {
    Span::from_secs(full.secs().saturating_mul(5) / 16)
}

/// The longest time for everything by which a snapshot is proven that is kept for so long, in whole days, hours or minutes.
pub fn proves_within(life: Span) -> Span {
    let secs = life.secs().saturating_mul(16) / 5;
    let unit = [24 * 3600, 3600, 60].into_iter().find(|unit| secs >= *unit).unwrap_or(1);
    Span::from_secs(secs - secs % unit)
}

/// What is known of the reading of one pack. Times are in seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackHistory {
    /// Its size.
    pub bytes: u32,
    /// When it was not there yet; nought when it may hold what any snapshot needs, however old.
    pub first_seen: u32,
    /// When it was last read in full and found sound; nought for never.
    pub read_at: u32,
}

impl PackHistory {
    /// Since when it waits to be read, given since when packs are remembered. A time in the future is now.
    fn waits_since(&self, begun: i64, now: i64) -> i64 {
        let since = if self.read_at > 0 { self.read_at.into() } else { begun.max(self.first_seen.into()) };
        since.min(now)
    }

    fn is_new(&self) -> bool {
        self.read_at == 0 && self.first_seen > 0
    }
}

/// How fast the packs of a repository are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    full: Option<Span>,
    sample: Option<SampleRate>,
}

impl Pace {
    /// The pace at which all of these rules are kept; none when none of them has anything read.
    pub fn strictest<'r>(rules: impl IntoIterator<Item = &'r Verify>) -> Option<Self> {
        let mut pace = Self { full: None, sample: None };
        for rule in rules {
            pace.full = pace.full.into_iter().chain(rule.full).min();
            let speed = |sample: &SampleRate| f64::from(sample.share.get()) / sample.per.secs() as f64;
            let samples = pace.sample.into_iter().chain(rule.sample);
            pace.sample = samples.max_by(|a, b| speed(a).total_cmp(&speed(b)));
        }
        (pace.full.is_some() || pace.sample.is_some()).then_some(pace)
    }

    /// The time within which everything is read.
    pub fn all_within(&self) -> Span {
        let rules = Verify { after_backup: false, sample: self.sample, full: self.full };
        rules.reads_all_within().unwrap_or(Span::from_days(365))
    }

    /// How long after one portion the next is due.
    pub fn portion(&self) -> Span {
        Span::from_secs((self.all_within().secs() / PORTIONS).clamp(1, PORTION_MAX))
    }

    /// The packs that are to be read now, by their places, those that wait longest first. `begun` is since when packs are
    /// remembered.
    ///
    /// Asked once in each portion, or after a restart at once, and done what it says, every pack is read within
    /// [`Pace::all_within`] where `full` says so; and of each day or week the share of the bytes that `sample` says, and
    /// less than a pack more.
    pub fn due(&self, packs: &[PackHistory], begun: Timestamp, now: Timestamp) -> Vec<usize> {
        let (begun, now) = (begun.as_second(), now.as_second());
        let mut chosen = match self.full {
            Some(full) => self.due_by_deadline(packs, full.secs(), begun, now),
            None => Vec::new(),
        };
        if let Some(sample) = self.sample {
            self.add_sample(&mut chosen, packs, sample, begun, now);
        }
        chosen
    }

    /// The earliest deadline first, as evenly as the deadlines allow: none is read much before its time, and no time is
    /// left in which more is to be read than in another.
    fn due_by_deadline(&self, packs: &[PackHistory], full: i64, begun: i64, now: i64) -> Vec<usize> {
        let portion = self.portion().secs();
        let mut by_deadline: Vec<(i64, usize)> =
            packs.iter().enumerate().map(|(place, pack)| (deadline(pack, full, begun, now), place)).collect();
        by_deadline.sort_unstable();
        // How many must be read before the next portion, and how many bytes now so that later ones are not too many.
        let (mut must, mut wanted, mut bytes) = (0, 0, 0_i128);
        for (number, (deadline, place)) in by_deadline.iter().enumerate() {
            bytes += i128::from(packs[*place].bytes);
            let left = deadline - now;
            if left <= portion {
                must = number + 1;
            } else {
                wanted = wanted.max(bytes * i128::from(portion) / i128::from(left));
            }
        }
        let mut bytes = 0_i128;
        let fitting = by_deadline.iter().take_while(|(_, place)| {
            bytes += i128::from(packs[*place].bytes);
            bytes <= wanted
        });
        let count = fitting.count().max(must);
        by_deadline.into_iter().take(count).map(|(_, place)| place).collect()
    }

    /// Adds what is missing of the share of this day or week, the longest unread first.
    fn add_sample(
        &self,
        chosen: &mut Vec<usize>,
        packs: &[PackHistory],
        sample: SampleRate,
        begun: i64,
        now: i64,
    ) {
        let per = sample.per.secs();
        let into = now.rem_euclid(per);
        let (mut all, mut read) = (0_i128, 0_i128);
        for pack in packs {
            all += i128::from(pack.bytes);
            if i64::from(pack.read_at) >= now - into {
                read += i128::from(pack.bytes);
            }
        }
        let passed = (into + self.portion().secs()).min(per);
        let target =
            (all * i128::from(sample.share.get()) * i128::from(passed)).div_euclid(100 * i128::from(per));
        let is_chosen: std::collections::HashSet<usize> = chosen.iter().copied().collect();
        read += chosen.iter().map(|place| i128::from(packs[*place].bytes)).sum::<i128>();
        // Of two that wait equally long, the one that was never read.
        let mut waiting: Vec<(i64, bool, usize)> = packs
            .iter()
            .enumerate()
            .filter(|(place, _)| !is_chosen.contains(place))
            .map(|(place, pack)| (pack.waits_since(begun, now), pack.read_at > 0, place))
            .collect();
        waiting.sort_unstable();
        for (_, _, place) in waiting {
            if read >= target {
                return;
            }
            read += i128::from(packs[place].bytes);
            chosen.push(place);
        }
    }

    /// When every pack that is unread now, or was read longer ago than [`Pace::all_within`], has been read if all goes as
    /// planned; none when there is none.
    pub fn all_read_by(&self, packs: &[PackHistory], begun: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let (begun, now) = (begun.as_second(), now.as_second());
        let within = self.all_within().secs();
        let open = packs.iter().filter(|pack| !is_read_within(pack, within, now));
        let last = open.map(|pack| deadline(pack, within, begun, now).max(now)).max()?;
        Timestamp::from_second(last).ok()
    }
}

/// When a pack has to be read at the latest. What a backup stored is read back soon, so that its snapshot is proven long
/// before it is old; the rest, with a margin for what comes between.
fn deadline(pack: &PackHistory, full: i64, begun: i64, now: i64) -> i64 {
    // With what `proven_within` says.
    let allowed = if pack.is_new() { full / 4 } else { full - full / 8 };
    pack.waits_since(begun, now).saturating_add(allowed)
}

fn is_read_within(pack: &PackHistory, within: i64, now: i64) -> bool {
    pack.read_at > 0 && i64::from(pack.read_at) >= now.saturating_sub(within)
}

/// How much of a repository was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadShare {
    /// Packs there are.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that were read within the time.
    pub read_packs: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Packs that were never read since they were written.
    pub unread_packs: u64,
    /// Since when the pack waits that waits longest: when it was last read, or first seen.
    pub oldest: Option<Timestamp>,
}

impl ReadShare {
    /// Counts packs; those read longer ago than `within` do not count as read.
    pub fn of(packs: &[PackHistory], begun: Timestamp, within: Span, now: Timestamp) -> Self {
        let (begun, now) = (begun.as_second(), now.as_second());
        let mut share = Self::default();
        for pack in packs {
            share.packs += 1;
            share.bytes += u64::from(pack.bytes);
            share.unread_packs += u64::from(pack.read_at == 0);
            if is_read_within(pack, within.secs(), now) {
                share.read_packs += 1;
                share.read_bytes += u64::from(pack.bytes);
            }
        }
        let oldest = packs.iter().map(|pack| pack.waits_since(begun, now)).min();
        share.oldest = oldest.and_then(|second| Timestamp::from_second(second).ok());
        share
    }
}

/// Since when every byte of a snapshot was read, for any snapshot of a repository, from what is known of its packs.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    /// By the time at which packs were first seen: the oldest reading among all packs up to there; nought: one was never
    /// read.
    steps: Vec<(u32, u32)>,
}

impl Coverage {
    /// From the packs that are relied on.
    pub fn of(packs: &[PackHistory]) -> Self {
        let mut by_age: Vec<(u32, u32)> = packs.iter().map(|pack| (pack.first_seen, pack.read_at)).collect();
        by_age.sort_unstable();
        let mut steps: Vec<(u32, u32)> = Vec::new();
        for (first_seen, read_at) in by_age {
            match steps.last_mut() {
                Some((_, oldest)) if *oldest <= read_at => {}
                Some((seen, oldest)) if *seen == first_seen => *oldest = read_at,
                _ => steps.push((first_seen, read_at)),
            }
        }
        Self { steps }
    }

    /// Whether nothing is proven of any snapshot.
    pub fn is_empty(&self) -> bool {
        self.steps.first().is_none_or(|(_, oldest)| *oldest == 0)
    }

    /// The oldest reading among the packs that a snapshot may need which was entered into the catalog then; nothing while
    /// one of them is unread. When it was entered is unknown: it may need any pack.
    pub fn read_at(&self, entered_at: Option<Timestamp>) -> Option<Timestamp> {
        let entered = entered_at.map_or(i64::MAX, Timestamp::as_second);
        let count = self.steps.partition_point(|(seen, _)| i64::from(*seen) <= entered);
        let (_, oldest) = self.steps[..count].last().filter(|(_, oldest)| *oldest > 0)?;
        Timestamp::from_second((*oldest).into()).ok()
    }
}

#[cfg(test)]
mod tests;
