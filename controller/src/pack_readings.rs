//! When each pack of a repository was last read in full: 44 bytes for each, in memory and in a file beside the index of
//! blobs.
//!
//! It is evidence and nothing else: where it is lost or damaged it begins anew, and every pack counts as unread. A pack
//! that is new counts as not there yet at the last look, so that no snapshot which needs it is taken for older than it; one
//! that came while some are damaged may hold what any snapshot needs, for a backup may have stored it again. Where packs are
//! gone, that goes for all: what they held may have been moved into any of the others, also into one that came before.
//!
//! Packs that went and that no prune of ours took away may have been needed. It is remembered that they did until the
//! structure of the repository was checked: readings of what is left prove nothing of a snapshot that needed them.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_model::verification::{Coverage, Pace, PackHistory, ReadShare};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::id::{IdMap, IdSet, PackId};
use holdfast_runtime::durable_file::{self, Access};
use jiff::Timestamp;
use parking_lot::Mutex;

/// The first bytes of the file.
const MAGIC: &[u8; 8] = b"HFREAD\0\x02";
/// Magic, four times, and the number of packs.
const HEAD_BYTES: usize = 8 + 4 * 4 + 8;
const PACK_BYTES: usize = 44;

/// The readings of one repository.
#[derive(Debug)]
pub struct PackReadings {
    path: PathBuf,
    known: Mutex<Known>,
    /// Orders the writing of the file.
    writing: Mutex<()>,
}

/// Times are in seconds since 1970; nought for never.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// Since when packs are remembered.
    begun: u32,
    /// When it was last looked which packs there are.
    looked: u32,
    /// When a portion was last begun.
    portion: u32,
    /// When it was last seen that packs had gone which no prune of ours took away; nought when the structure was checked
    /// since.
    vanished: u32,
    /// Sorted by id.
    packs: Vec<(PackId, PackHistory)>,
}

/// A moment as it is remembered.
fn second(at: Timestamp) -> u32 {
    u32::try_from(at.as_second()).unwrap_or(if at.as_second() < 0 { 0 } else { u32::MAX })
}

fn moment(second: u32) -> Timestamp {
    Timestamp::from_second(second.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl PackReadings {
    /// Reads the file, or begins anew. Blocks.
    pub fn open(path: &Path) -> Self {
        let known = match std::fs::read(path) {
            Ok(bytes) => Known::decode(&bytes).unwrap_or_else(|| {
                tracing::warn!(file = %path.display(), "what packs were read is damaged: all count as unread");
                Known::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Known::default(),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "what packs were read is not readable: all count as unread");
                Known::default()
            }
        };
        Self { path: path.to_owned(), known: Mutex::new(known), writing: Mutex::default() }
    }

    /// Whether these are not the packs that are remembered, so that [`PackReadings::look`] needs their sizes.
    pub fn differs(&self, there: &[PackId]) -> bool {
        let known = self.known.lock();
        let is_known = |pack: &PackId| known.place(pack).is_ok();
        known.begun == 0 || there.len() != known.packs.len() || !there.iter().all(is_known)
    }

    /// Takes in which packs there are, found out after `now`, with the sizes of those that are new; `any_damaged`: whether
    /// some of them are known to be damaged. Blocks.
    ///
    /// # Errors
    /// `HF-4004` when the file can not be written.
    pub fn look(
        &self,
        now: Timestamp,
        there: &[PackId],
        sizes: &IdMap<PackId, u64>,
        any_damaged: bool,
    ) -> Result<(), Failure> {
        let changed = self.known.lock().look(second(now), there, sizes, any_damaged);
        if changed { self.save() } else { Ok(()) }
    }

    /// Takes in that a prune of ours took these packs away. Blocks.
    ///
    /// # Errors
    /// `HF-4004` when the file can not be written.
    pub fn removed(&self, packs: &IdSet<PackId>) -> Result<(), Failure> {
        let gone = self.known.lock().remove(|pack| packs.contains(pack));
        if gone > 0 { self.save() } else { Ok(()) }
    }

    /// Whether packs are gone that no prune of ours took away, and nobody checked since whether something needs them.
    pub fn is_to_be_checked(&self) -> bool {
        self.known.lock().vanished > 0
    }

    /// Notes that the structure of the repository was checked, by a check that began then. Blocks.
    ///
    /// # Errors
    /// `HF-4004` when the file can not be written.
    pub fn checked(&self, began: Timestamp) -> Result<(), Failure> {
        {
            let mut known = self.known.lock();
            if known.vanished == 0 || known.vanished >= second(began) {
                return Ok(());
            }
            known.vanished = 0;
        }
        self.save()
    }

    /// Notes that these packs were read in full and found sound, no earlier than `at`. Blocks.
    ///
    /// # Errors
    /// `HF-4004` when the file can not be written.
    pub fn note(&self, packs: &[PackId], at: Timestamp) -> Result<(), Failure> {
        let at = second(at);
        {
            let mut known = self.known.lock();
            for pack in packs {
                if let Ok(place) = known.place(pack) {
                    known.packs[place].1.read_at = at;
                }
            }
        }
        self.save()
    }

    /// Notes that a portion is begun. Becomes durable with what is noted next.
    pub fn begin_portion(&self, now: Timestamp) {
        self.known.lock().portion = second(now);
    }

    /// When a portion was last begun.
    pub fn last_portion(&self) -> Option<Timestamp> {
        let portion = self.known.lock().portion;
        (portion > 0).then(|| moment(portion))
    }

    /// The packs that are to be read now, and their sizes as far as they are known; none of those in `without`.
    pub fn due(&self, pace: &Pace, without: &IdSet<PackId>, now: Timestamp) -> Vec<(PackId, u64)> {
        let (ids, packs, begun) = self.without(without);
        let due = pace.due(&packs, begun, now).into_iter();
        due.map(|place| (ids[place], u64::from(packs[place].bytes))).collect()
    }

    /// Since when every byte of any snapshot was read. Packs in `without` are not relied on, and prove nothing.
    pub fn coverage(&self, without: &IdSet<PackId>) -> Coverage {
        Coverage::of(&self.without(without).1)
    }

    /// How much was read at a pace, and when all will have been; without a pace, of what was ever read.
    pub fn share(&self, pace: Option<&Pace>, now: Timestamp) -> (ReadShare, Option<Timestamp>) {
        let (_, packs, begun) = self.without(&IdSet::default());
        let within = pace.map_or(holdfast_model::units::Span::from_days(100 * 365), Pace::all_within);
        (
            ReadShare::of(&packs, begun, within, now),
            pace.and_then(|pace| pace.all_read_by(&packs, begun, now)),
        )
    }

    fn without(&self, without: &IdSet<PackId>) -> (Vec<PackId>, Vec<PackHistory>, Timestamp) {
        let known = self.known.lock();
        let (ids, packs) = known.packs.iter().filter(|(pack, _)| !without.contains(pack)).copied().unzip();
        (ids, packs, moment(known.begun))
    }

    fn save(&self) -> Result<(), Failure> {
        let _turn = self.writing.lock();
        let bytes = self.known.lock().encode();
        durable_file::replace(&self.path, &bytes, Access::Owner)
            .map_err(|error| Failure::from_error(ErrorCode::StateUnavailable, &error))
    }
}

impl Known {
    fn place(&self, pack: &PackId) -> Result<usize, usize> {
        self.packs.binary_search_by_key(pack, |(id, _)| *id)
    }

    /// Forgets packs that are gone; says how many those were. Any of the others may hold now what they held.
    fn remove(&mut self, is_gone: impl Fn(&PackId) -> bool) -> usize {
        let before = self.packs.len();
        self.packs.retain(|(pack, _)| !is_gone(pack));
        let gone = before - self.packs.len();
        if gone > 0 {
            self.packs.iter_mut().for_each(|(_, pack)| pack.first_seen = 0);
        }
        gone
    }

    /// Takes back what was noted by a clock that was ahead; says whether there was anything.
    fn correct(&mut self, now: u32) -> bool {
        let mut is_wrong = self.begun > now || self.vanished > now;
        self.begun = self.begun.min(now);
        self.vanished = self.vanished.min(now);
        for (_, pack) in &mut self.packs {
            if pack.read_at > now || pack.first_seen > now {
                is_wrong = true;
                pack.read_at = pack.read_at.min(now);
                // Snapshots that are entered from now on may need it.
                pack.first_seen = 0;
            }
        }
        is_wrong
    }

    /// Says whether anything changed that has to be durable.
    fn look(&mut self, now: u32, there: &[PackId], sizes: &IdMap<PackId, u64>, any_damaged: bool) -> bool {
        let there: IdSet<PackId> = there.iter().copied().collect();
        let is_wrong = self.correct(now.max(1));
        let gone = self.remove(|pack| !there.contains(pack));
        if gone > 0 {
            self.vanished = now.max(1);
        }
        let is_first = self.begun == 0;
        if is_first {
            self.begun = now.max(1);
        }
        let is_any_age = is_first || gone > 0 || any_damaged || now < self.looked;
        let first_seen = if is_any_age { 0 } else { self.looked };
        let new: Vec<(PackId, PackHistory)> = there
            .into_iter()
            .filter(|pack| self.place(pack).is_err())
            .map(|pack| {
                // One that is not in the storage has no size; who reads it finds that out.
                let bytes = sizes.get(&pack).map_or(0, |bytes| u32::try_from(*bytes).unwrap_or(u32::MAX));
                (pack, PackHistory { bytes, first_seen, read_at: 0 })
            })
            .collect();
        self.looked = now;
        let changed = is_first || is_wrong || gone > 0 || !new.is_empty();
        if !new.is_empty() {
            self.packs.extend(new);
            self.packs.sort_unstable_by_key(|(pack, _)| *pack);
        }
        changed
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.packs.len() * PACK_BYTES + 4);
        bytes.extend(MAGIC);
        let times = [self.begun, self.looked, self.portion, self.vanished];
        times.iter().for_each(|time| bytes.extend(time.to_le_bytes()));
        bytes.extend((self.packs.len() as u64).to_le_bytes());
        for (id, pack) in &self.packs {
            bytes.extend(id.as_bytes());
            [pack.bytes, pack.first_seen, pack.read_at]
                .iter()
                .for_each(|number| bytes.extend(number.to_le_bytes()));
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, sum) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(content) != u32::from_le_bytes(*sum) {
            return None;
        }
        let (head, packs) = content.split_first_chunk::<HEAD_BYTES>()?;
        let (magic, numbers) = head.split_first_chunk::<8>()?;
        let (times, count) = numbers.split_first_chunk::<16>()?;
        let count = u64::from_le_bytes(count.try_into().ok()?);
        let (packs, rest) = packs.as_chunks::<PACK_BYTES>();
        if magic != MAGIC || packs.len() as u64 != count || !rest.is_empty() {
            return None;
        }
        let number = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        let [begun, looked, portion, vanished] = times.as_chunks::<4>().0 else { return None };
        let packs = packs.iter().filter_map(|pack| {
            let (id, numbers) = pack.split_first_chunk::<32>()?;
            let [bytes, first_seen, read_at] = numbers.as_chunks::<4>().0 else { return None };
            let history = PackHistory {
                bytes: number(bytes),
                first_seen: number(first_seen),
                read_at: number(read_at),
            };
            Some((PackId::from_bytes(*id), history))
        });
        let packs: Vec<_> = packs.collect();
        Some(Self {
            begun: number(begun),
            looked: number(looked),
            portion: number(portion),
            vanished: number(vanished),
            packs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pack(name: &str) -> PackId {
        PackId::of(name.as_bytes())
    }

    fn sizes(names: &[&str]) -> IdMap<PackId, u64> {
        names.iter().map(|name| (pack(name), 100)).collect()
    }

    struct Opened {
        folder: tempfile::TempDir,
        readings: PackReadings,
    }

    impl Opened {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let readings = PackReadings::open(&folder.path().join("readings"));
            Self { folder, readings }
        }

        fn look(&self, now: i64, names: &[&str], any_damaged: bool) {
            let there: Vec<PackId> = names.iter().map(|name| pack(name)).collect();
            self.readings.look(at(now), &there, &sizes(names), any_damaged).unwrap();
            assert!(!self.readings.differs(&there));
        }

        fn first_seen(&self, name: &str) -> u32 {
            let known = self.readings.known.lock();
            known.packs[known.place(&pack(name)).unwrap()].1.first_seen
        }

        fn reopen(&mut self) {
            self.readings = PackReadings::open(&self.folder.path().join("readings"));
        }

        fn read_at(&self, entered: i64) -> Option<i64> {
            let coverage = self.readings.coverage(&IdSet::default());
            coverage.read_at(Some(at(entered))).map(Timestamp::as_second)
        }
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart() {
        let mut opened = Opened::new();
        assert!(opened.readings.differs(&[]), "what was never looked at is unknown");
        opened.look(1000, &["a", "b"], false);
        opened.readings.begin_portion(at(1500));
        opened.readings.note(&[pack("a"), pack("unknown")], at(2000)).unwrap();
        let before = opened.readings.known.lock().clone();
        opened.reopen();
        assert_eq!(*opened.readings.known.lock(), before);
        assert_eq!(opened.readings.last_portion(), Some(at(1500)));
        assert_eq!(opened.read_at(3000), None);
        opened.readings.note(&[pack("b")], at(2500)).unwrap();
        assert_eq!(opened.read_at(3000), Some(2000));
        let share = opened.readings.share(None, at(3000)).0;
        assert_eq!((share.packs, share.bytes, share.read_packs, share.unread_packs), (2, 200, 2, 0));
    }

    #[test]
    fn a_new_pack_is_as_old_as_the_look_before_it() {
        let opened = Opened::new();
        opened.look(1000, &["a"], false);
        opened.readings.note(&[pack("a")], at(1000)).unwrap();
        opened.look(2000, &["a"], false);
        opened.look(3000, &["a", "b"], false);
        assert_eq!(opened.first_seen("b"), 2000);
        assert_eq!(opened.read_at(1999), Some(1000), "the snapshot was there before the pack");
        assert_eq!(opened.read_at(2000), None);
    }

    #[test]
    fn what_came_when_packs_went_or_were_damaged_may_be_needed_by_any_snapshot() {
        let opened = Opened::new();
        opened.look(1000, &["a", "b"], false);
        opened.look(2000, &["a", "repacked"], false);
        assert_eq!(opened.first_seen("repacked"), 0);
        opened.look(3000, &["a", "repacked", "healed"], true);
        assert_eq!(opened.first_seen("healed"), 0);
        opened.look(2500, &["a", "repacked", "healed", "set back"], false);
        assert_eq!(opened.first_seen("set back"), 0);
        assert_eq!(opened.readings.known.lock().packs.len(), 4);
    }

    #[test]
    fn a_pack_that_came_before_others_went_may_hold_what_they_held() {
        let opened = Opened::new();
        opened.look(1000, &["old"], false);
        opened.readings.note(&[pack("old")], at(1000)).unwrap();
        // A prune stores what is needed of the old pack anew before it takes that away.
        opened.look(2000, &["old", "repacked"], false);
        opened.look(3000, &["old", "repacked"], false);
        assert_eq!(opened.read_at(500), Some(1000));
        opened.look(4000, &["repacked"], false);
        assert_eq!((opened.first_seen("repacked"), opened.read_at(500)), (0, None));
        opened.look(5000, &["repacked", "new"], false);
        opened.look(5500, &["repacked", "new"], false);
        opened.readings.removed(&[pack("repacked")].into_iter().collect()).unwrap();
        assert_eq!(opened.first_seen("new"), 0);
    }

    #[test]
    fn packs_that_vanish_ask_for_a_check_and_those_that_a_prune_removes_do_not() {
        let mut opened = Opened::new();
        opened.look(1000, &["a", "b", "c"], false);
        opened.readings.removed(&[pack("c")].into_iter().collect()).unwrap();
        opened.look(2000, &["a", "b"], false);
        assert!(!opened.readings.is_to_be_checked());
        opened.look(3000, &["a"], false);
        assert!(opened.readings.is_to_be_checked());
        opened.reopen();
        opened.readings.checked(at(3000)).unwrap();
        assert!(opened.readings.is_to_be_checked(), "it may have begun before");
        opened.readings.checked(at(3001)).unwrap();
        opened.reopen();
        assert!(!opened.readings.is_to_be_checked());
    }

    #[test]
    fn what_a_clock_that_was_ahead_noted_counts_as_now() {
        let mut opened = Opened::new();
        opened.look(9000, &["a"], false);
        opened.look(9500, &["a", "b"], false);
        opened.readings.note(&[pack("a"), pack("b")], at(9600)).unwrap();
        opened.look(2000, &["a", "b"], false);
        opened.reopen();
        assert_eq!((opened.first_seen("b"), opened.read_at(2500)), (0, Some(2000)));
        let share = opened.readings.share(None, at(3000)).0;
        assert_eq!(share.oldest, Some(at(2000)));
        assert_eq!(opened.readings.known.lock().begun, 2000);
    }

    #[test]
    fn a_damaged_file_begins_anew() {
        let mut opened = Opened::new();
        opened.look(1000, &["a", "b"], false);
        opened.readings.note(&[pack("a"), pack("b")], at(2000)).unwrap();
        assert_eq!(opened.read_at(3000), Some(2000));
        let path = opened.folder.path().join("readings");
        let whole = std::fs::read(&path).unwrap();
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            assert_eq!(Known::decode(&bytes), None, "byte {position}");
            assert_eq!(Known::decode(&whole[..position]), None, "cut at {position}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        opened.reopen();
        assert_eq!(*opened.readings.known.lock(), Known::default());
        opened.look(4000, &["a", "b"], false);
        assert_eq!(opened.read_at(5000), None, "all count as unread");
    }

    #[test]
    fn a_million_packs_take_44_bytes_each() {
        let packs: Vec<(PackId, PackHistory)> = (0..1_000_000u32)
            .map(|number| {
                (PackId::of(&number.to_le_bytes()), PackHistory { bytes: number, ..Default::default() })
            })
            .collect();
        let mut known = Known { begun: 1, packs, ..Known::default() };
        known.packs.sort_unstable_by_key(|(pack, _)| *pack);
        assert_eq!(size_of::<(PackId, PackHistory)>(), PACK_BYTES);
        let bytes = known.encode();
        assert_eq!(bytes.len(), HEAD_BYTES + 1_000_000 * PACK_BYTES + 4);
        assert_eq!(Known::decode(&bytes), Some(known));
    }
}
