use proptest::prelude::*;

use super::*;

const DAY: i64 = 86_400;
/// A day begins here.
const START: i64 = 20_000 * DAY;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pace(full: Option<i64>, sample: Option<&str>) -> Pace {
    let sample = sample.map(|sample| sample.parse().unwrap());
    let rule = Verify { after_backup: false, sample, full: full.map(Span::from_secs) };
    Pace::strictest([&rule]).unwrap()
}

fn pack(bytes: u32, first_seen: i64, read_at: i64) -> PackHistory {
    PackHistory { bytes, first_seen: first_seen as u32, read_at: read_at as u32 }
}

#[test]
fn the_strictest_of_all_rules_counts_and_nothing_is_read_without_one() {
    let rule = |full: Option<i32>, sample: Option<&str>| Verify {
        after_backup: true,
        sample: sample.map(|sample| sample.parse().unwrap()),
        full: full.map(|days| Span::from_days(days.into())),
    };
    assert_eq!(Pace::strictest([&rule(None, None), &Verify::default()]), None);
    let rules =
        [rule(Some(30), None), rule(Some(10), Some("5%/week")), rule(None, Some("1%/day")), rule(None, None)];
    let strictest = Pace::strictest(&rules).unwrap();
    assert_eq!(strictest, pace(Some(10 * DAY), Some("1%/day")));
    assert_eq!(strictest.all_within(), Span::from_days(10));
    assert_eq!(pace(None, Some("30%/day")).all_within(), Span::from_days(4));
    assert_eq!(pace(Some(30 * DAY), None).portion(), Span::from_hours(1));
    assert_eq!(pace(Some(160), None).portion(), Span::from_secs(10));
    assert_eq!(pace(Some(3), None).portion(), Span::from_secs(1));
}

#[test]
fn nothing_is_read_before_its_time() {
    let pace = pace(Some(30 * DAY), None);
    let fresh = [pack(1000, 0, START), pack(1000, 0, START)];
    assert_eq!(pace.due(&fresh, at(START), at(START + DAY)), Vec::<usize>::new());
    assert_eq!(pace.due(&[], at(START), at(START)), Vec::<usize>::new());
    // Read in the future: the clock was set back. It counts as read now, not as read for ever.
    let ahead = [pack(1000, 0, START + 400 * DAY)];
    assert_eq!(pace.due(&ahead, at(START), at(START)), Vec::<usize>::new());
}

#[test]
fn what_a_backup_stored_is_read_back_in_a_quarter_of_the_time_and_what_may_be_needed_by_all_first() {
    let pace = pace(Some(40 * DAY), None);
    let old = pack(1000, 0, START);
    let new = pack(1000, START + DAY, 0);
    // A prune wrote it: what it holds is as old as anything.
    let repacked = pack(1000, 0, 0);
    assert_eq!(pace.due(&[old, new], at(START), at(START + 11 * DAY)), [1]);
    assert_eq!(pace.due(&[old, new], at(START), at(START + 10 * DAY)), Vec::<usize>::new());
    assert_eq!(pace.due(&[old, new, repacked], at(START - 90 * DAY), at(START + 2 * DAY)), [2]);
}

#[test]
fn a_sample_takes_first_what_was_never_read() {
    let pace = pace(None, Some("50%/day"));
    let packs = [pack(1000, 0, START), pack(1000, 0, 0), pack(1000, 0, 0)];
    assert_eq!(pace.due(&packs, at(START), at(START + 2 * DAY - 1)), [1, 2]);
}

#[test]
fn a_snapshot_is_read_when_the_oldest_reading_of_what_it_may_need_was() {
    let packs = [pack(1, 0, 500), pack(1, 100, 400), pack(1, 200, 600), pack(1, 300, 0)];
    let coverage = Coverage::of(&packs);
    assert_eq!(coverage.read_at(Some(at(99))), Some(at(500)));
    assert_eq!(coverage.read_at(Some(at(100))), Some(at(400)));
    assert_eq!(coverage.read_at(Some(at(299))), Some(at(400)));
    assert_eq!(coverage.read_at(Some(at(300))), None, "one pack is unread");
    assert_eq!(coverage.read_at(None), None, "it may need any pack");
    assert_eq!(Coverage::of(&packs[..3]).read_at(None), Some(at(400)));
    assert_eq!(Coverage::of(&[]).read_at(None), None, "no pack proves nothing");
    assert_eq!(Coverage::of(&packs[3..]).read_at(Some(at(299))), None);
}

#[test]
fn a_share_counts_what_was_read_in_time() {
    let packs = [pack(10, 0, START - 5), pack(20, 0, START - 50), pack(40, START - 3, 0)];
    let share = ReadShare::of(&packs, at(1), Span::from_secs(10), at(START));
    let expected = ReadShare {
        packs: 3,
        bytes: 70,
        read_packs: 1,
        read_bytes: 10,
        unread_packs: 1,
        oldest: Some(at(START - 50)),
    };
    assert_eq!(share, expected);
    let pace = pace(Some(16), None);
    assert_eq!(pace.all_read_by(&packs, at(1), at(START)), Some(at(START + 1)));
    assert_eq!(pace.all_read_by(&packs[..1], at(1), at(START)), None);
}

/// A repository through time: packs come, are read when it is said, and go.
#[derive(Debug, Clone)]
struct World {
    begun: i64,
    packs: Vec<PackHistory>,
}

impl World {
    /// Does what is due; says how many bytes that were.
    fn read_due(&mut self, pace: &Pace, now: i64) -> u64 {
        let due = pace.due(&self.packs, at(self.begun), at(now));
        for place in &due {
            self.packs[*place].read_at = now as u32;
        }
        due.iter().map(|place| u64::from(self.packs[*place].bytes)).sum()
    }
}

proptest! {
    /// Whenever it is looked, up to twice a portion late, after restarts or not, with packs that come and go.
    #[test]
    fn every_pack_is_read_within_the_time(
        sizes in prop::collection::vec(1u32..200_000, 1..60),
        steps in prop::collection::vec((1i64..=100, 0u32..8, any::<prop::sample::Index>()), 400),
        hours in 16i64..1000,
        known_from_the_beginning in any::<bool>(),
    ) {
        let full = hours * 3600;
        let pace = pace(Some(full), None);
        let portion = pace.portion().secs();
        let first_seen = if known_from_the_beginning { 0 } else { START as u32 };
        let packs = sizes.iter().map(|bytes| PackHistory { bytes: *bytes, first_seen, read_at: 0 }).collect();
        let mut world = World { begun: START, packs };
        let mut now = START;
        for (percent, event, which) in steps {
            now += (portion * percent / 100).max(1);
            match event {
                0 => world.packs.push(pack(which.index(200_000) as u32, now - 1, 0)),
                1 if world.packs.len() > 1 => drop(world.packs.swap_remove(which.index(world.packs.len()))),
                _ => {}
            }
            world.read_due(&pace, now);
            for pack in &world.packs {
                let waits = now - pack.waits_since(world.begun, now);
                prop_assert!(waits <= full, "{pack:?} waits for {waits} of {full} seconds");
            }
        }
    }

    /// The same number of looks in other places reads about the same: no state but the packs'.
    #[test]
    fn a_day_reads_its_share_and_less_than_a_pack_more(
        sizes in prop::collection::vec(1u32..50_000_000, 20..80),
        percent in 1u8..60,
        looks in prop::collection::vec(1i64..3600, 60),
    ) {
        let pace = pace(None, Some(&format!("{percent}%/day")));
        let packs: Vec<PackHistory> = sizes.iter().map(|bytes| pack(*bytes, 0, 0)).collect();
        let mut world = World { begun: START - DAY, packs };
        let all: u64 = sizes.iter().map(|bytes| u64::from(*bytes)).sum();
        let largest = u64::from(*sizes.iter().max().unwrap());
        let share = all * u64::from(percent) / 100;
        for day in 0..3 {
            let (mut now, mut read) = (START + day * DAY, 0);
            for look in &looks {
                read += world.read_due(&pace, now);
                now = (now + look).min(START + (day + 1) * DAY - 1);
            }
            read += world.read_due(&pace, START + (day + 1) * DAY - 1);
            prop_assert!(read >= share, "{read} of {share} bytes");
            prop_assert!(read < share + largest + 1, "{read} instead of {share} bytes, the largest pack has {largest}");
        }
    }

    /// What is spread over the time is spread evenly: no portion reads much more than its part.
    #[test]
    fn what_was_begun_together_is_read_in_even_portions(count in 200usize..600) {
        let full = 30 * DAY;
        let pace = pace(Some(full), None);
        let packs: Vec<PackHistory> = (0..count).map(|_| pack(1000, 0, 0)).collect();
        let mut world = World { begun: START, packs };
        let even = (count as u64 * 1000).div_ceil((full - full / 8) as u64 / 3600);
        let mut now = START;
        while now < START + full {
            let read = world.read_due(&pace, now);
            prop_assert!(read <= 2 * even + 2000, "{read} at once, {even} on average");
            now += 3600;
        }
    }
}
