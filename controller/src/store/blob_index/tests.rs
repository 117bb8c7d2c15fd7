use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use holdfast_repository::id::BlobType;
use holdfast_runtime::Shutdown;
use holdfast_runtime::TaskGroup;
use proptest::prelude::*;

use super::*;

#[cfg(feature = "fail-points")]
mod kills;

struct House {
    folder: tempfile::TempDir,
    tasks: TaskGroup,
    boot_id: &'static str,
    recent_slots_max: usize,
}

impl House {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            tasks: TaskGroup::new(&Shutdown::new()),
            boot_id: "first boot",
            recent_slots_max: 300,
        }
    }

    fn open(&self) -> DiskBlobIndex {
        let settings = BlobIndexSettings {
            recent_slots_max: self.recent_slots_max,
            ..BlobIndexSettings::new(self.folder.path(), Some(self.boot_id.to_owned()))
        };
        DiskBlobIndex::open(settings, &self.tasks).unwrap()
    }

    /// What a crash at this moment would leave behind.
    fn crashed(&self) -> House {
        let copy = House { recent_slots_max: self.recent_slots_max, boot_id: self.boot_id, ..House::new() };
        // Segments and logs appear and go in the background: copy until nothing did.
        loop {
            let names = self.names();
            for name in &names {
                let _ = std::fs::copy(self.folder.path().join(name), copy.folder.path().join(name));
            }
            if self.names() == names && copy.names() == names {
                return copy;
            }
            for name in copy.names() {
                std::fs::remove_file(copy.folder.path().join(name)).unwrap();
            }
        }
    }

    fn names(&self) -> BTreeSet<PathBuf> {
        let names =
            std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into());
        names.filter(|name: &PathBuf| name.extension().is_none_or(|suffix| suffix != "tmp")).collect()
    }

    fn files(&self, suffix: &str) -> Vec<PathBuf> {
        let names = self.names();
        let names = names.iter().filter(|name| name.extension().is_some_and(|found| found == suffix));
        names.map(|name| self.folder.path().join(name)).collect()
    }
}

fn blob(number: u32) -> BlobId {
    BlobId::of(&number.to_le_bytes())
}

fn pack(number: u32) -> PackId {
    PackId::of(&number.to_le_bytes())
}

/// A pack with these blobs; offsets tell in which pack and where.
fn entries(pack: u32, blobs: impl IntoIterator<Item = u32>) -> Vec<PackEntry> {
    let entry = |(place, number): (usize, u32)| PackEntry {
        id: blob(number),
        blob_type: BlobType::Data,
        offset: pack * 1_000 + place as u32,
        length: number + 32,
        uncompressed_length: (number % 3 != 0).then_some(number * 2),
    };
    blobs.into_iter().enumerate().map(entry).collect()
}

async fn fill(index: &DiskBlobIndex, packs: std::ops::Range<u32>, blobs_per_pack: u32) {
    for number in packs {
        let blobs = entries(number, number * blobs_per_pack..(number + 1) * blobs_per_pack);
        index.insert(vec![(pack(number), blobs)]).await.unwrap();
    }
}

async fn expect_filled(index: &DiskBlobIndex, packs: std::ops::Range<u32>, blobs_per_pack: u32) {
    for number in packs {
        let expected = entries(number, number * blobs_per_pack..(number + 1) * blobs_per_pack);
        let found =
            index.lookup(BlobType::Data, expected.iter().map(|entry| entry.id).collect()).await.unwrap();
        for (found, entry) in found.into_iter().zip(expected) {
            assert_eq!(found, Some(BlobLocation { pack: pack(number), entry }));
        }
    }
}

#[tokio::test]
async fn what_was_entered_is_found_in_the_order_of_the_question_and_nothing_else() {
    let house = House::new();
    let index = house.open();
    fill(&index, 0..40, 50).await;
    expect_filled(&index, 0..40, 50).await;
    let question = vec![blob(1_999), blob(2_000), blob(0), blob(5_000), blob(700)];
    assert_eq!(index.contains(BlobType::Data, question).await.unwrap(), [true, false, true, false, true]);
    assert_eq!(index.lookup(BlobType::Data, vec![]).await.unwrap(), []);
    assert_eq!(
        index.contains(BlobType::Data, (2_000..4_000).map(blob).collect()).await.unwrap(),
        vec![false; 2_000]
    );
}

#[tokio::test]
async fn an_id_stands_for_a_folder_and_for_content_apart() {
    let house = House::new();
    let index = house.open();
    let as_type = |number: u32, blob_type| {
        let entries = entries(number, 0..200).into_iter();
        (pack(number), entries.map(|entry| PackEntry { blob_type, ..entry }).collect::<Vec<_>>())
    };
    let (data, trees) = (as_type(1, BlobType::Data), as_type(2, BlobType::Tree));
    index.insert(vec![data]).await.unwrap();
    assert_eq!(index.contains(BlobType::Tree, vec![blob(7)]).await.unwrap(), [false]);
    index.insert(vec![trees]).await.unwrap();
    for _ in 0..2 {
        for (blob_type, number) in [(BlobType::Data, 1), (BlobType::Tree, 2)] {
            let found = index.lookup(blob_type, vec![blob(7), blob(199), blob(200)]).await.unwrap();
            let places = found.iter().map(|place| place.map(|place| (place.pack, place.entry.blob_type)));
            let expected = Some((pack(number), blob_type));
            assert_eq!(places.collect::<Vec<_>>(), [expected, expected, None]);
        }
        // So many that those come to lie in a segment.
        fill(&index, 10..60, 50).await;
    }
    index.remove_packs(vec![pack(2)]).await.unwrap();
    assert_eq!(index.contains(BlobType::Data, vec![blob(7)]).await.unwrap(), [true]);
    assert_eq!(index.contains(BlobType::Tree, vec![blob(7)]).await.unwrap(), [false]);
}

#[tokio::test]
async fn it_is_complete_only_between_a_rebuild_and_a_loss_of_power() {
    let house = House::new();
    let index = house.open();
    assert!(!index.is_complete(), "an empty index knows nothing");
    fill(&index, 100..101, 5).await;
    index.begin_rebuild().await.unwrap();
    assert_eq!(index.contains(BlobType::Data, vec![blob(500)]).await.unwrap(), [false]);
    fill(&index, 0..20, 50).await;
    assert!(!index.is_complete());
    index.finish_rebuild().await.unwrap();
    assert!(index.is_complete());

    let crashed = house.crashed();
    let after_crash = crashed.open();
    assert!(after_crash.is_complete());
    expect_filled(&after_crash, 0..20, 50).await;

    let rebooted = House { boot_id: "second boot", ..house.crashed() }.open();
    assert!(!rebooted.is_complete());
    assert_eq!(
        rebooted.contains(BlobType::Data, (0..1_000).map(blob).collect()).await.unwrap(),
        vec![false; 1_000]
    );

    index.close().await.unwrap();
    let stopped = House { boot_id: "second boot", ..house.crashed() };
    let after_stop = stopped.open();
    assert!(after_stop.is_complete(), "a clean stop made it durable");
    expect_filled(&after_stop, 0..20, 50).await;
}

#[tokio::test]
async fn a_rebuild_that_was_cut_short_is_not_complete() {
    let house = House::new();
    let index = house.open();
    index.begin_rebuild().await.unwrap();
    index.finish_rebuild().await.unwrap();
    index.begin_rebuild().await.unwrap();
    fill(&index, 0..3, 10).await;
    let crashed = house.crashed();
    assert!(!crashed.open().is_complete());
    index.close().await.unwrap();
    assert!(!house.open().is_complete());
}

#[tokio::test]
async fn a_pack_entered_twice_is_one_pack() {
    let house = House::new();
    let index = house.open();
    for _ in 0..3 {
        fill(&index, 0..10, 50).await;
    }
    let twice = entries(77, 9_000..9_003);
    index.insert(vec![(pack(77), twice.clone()), (pack(77), twice)]).await.unwrap();
    index.close().await.unwrap();
    let packs = std::fs::metadata(house.folder.path().join("packs")).unwrap().len() / 32;
    assert_eq!(packs, 11);
    assert_eq!(segment_slots(&house), 503);
}

fn segment_slots(house: &House) -> u64 {
    house.files("segment").iter().map(|path| segment::Segment::open(path).unwrap().slots()).sum()
}

#[tokio::test]
async fn a_blob_in_two_packs_is_known_until_both_are_gone() {
    let house = House::new();
    let index = house.open();
    index.insert(vec![(pack(1), entries(1, [7, 8]))]).await.unwrap();
    fill(&index, 10..20, 50).await;
    index.insert(vec![(pack(2), entries(2, [8, 9]))]).await.unwrap();
    let known = async |index: &DiskBlobIndex| {
        index.contains(BlobType::Data, vec![blob(7), blob(8), blob(9)]).await.unwrap()
    };
    index.remove_packs(vec![pack(2), pack(999)]).await.unwrap();
    assert_eq!(known(&index).await, [true, true, false]);
    assert_eq!(index.lookup(BlobType::Data, vec![blob(8)]).await.unwrap()[0].unwrap().pack, pack(1));
    index.remove_packs(vec![pack(1)]).await.unwrap();
    assert_eq!(known(&index).await, [false, false, false]);
    let crashed = house.crashed();
    assert_eq!(known(&crashed.open()).await, [false, false, false]);
    index.insert(vec![(pack(2), entries(2, [8, 9]))]).await.unwrap();
    assert_eq!(known(&index).await, [false, true, true], "a pack may come back");
}

#[tokio::test]
async fn segments_are_merged_and_what_is_gone_is_left_out() {
    let house = House { recent_slots_max: 50, ..House::new() };
    let index = house.open();
    index.begin_rebuild().await.unwrap();
    index.finish_rebuild().await.unwrap();
    fill(&index, 0..20, 50).await;
    index.remove_packs((0..10).map(pack).collect()).await.unwrap();
    fill(&index, 20..84, 50).await;
    index.close().await.unwrap();
    let index = house.open();
    fill(&index, 84..100, 50).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while house.files("segment").len() > 9 {
        assert!(std::time::Instant::now() < deadline, "{} segments", house.files("segment").len());
        tokio::task::yield_now().await;
    }
    expect_filled(&index, 10..100, 50).await;
    assert!(!index.contains(BlobType::Data, (0..500).map(blob).collect()).await.unwrap().contains(&true));
    index.close().await.unwrap();
    assert_eq!(segment_slots(&house), 90 * 50);
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let house = House::new();
    let _index = house.open();
    let settings = BlobIndexSettings::new(house.folder.path(), None);
    let error = DiskBlobIndex::open(settings, &house.tasks).unwrap_err();
    assert_eq!(error.code(), ErrorCode::StateUnavailable);
}

/// Cuts the log where the third pack lies, and leaves so many packs in the list.
async fn with_a_log_cut_anywhere(packs_listed: usize, check: impl AsyncFn(DiskBlobIndex)) {
    let house = House { recent_slots_max: 10_000, ..House::new() };
    let index = house.open();
    index.finish_rebuild().await.unwrap();
    fill(&index, 0..2, 3).await;
    let [log] = <[PathBuf; 1]>::try_from(house.files("log")).unwrap();
    let first_end = std::fs::metadata(&log).unwrap().len();
    fill(&index, 2..3, 3).await;
    let whole = std::fs::read(&log).unwrap();
    let packs = std::fs::read(house.folder.path().join("packs")).unwrap();
    for cut in (first_end as usize..whole.len()).step_by(7) {
        let torn = house.crashed();
        std::fs::write(torn.folder.path().join("000000000009.segment.tmp"), b"half").unwrap();
        std::fs::write(torn.folder.path().join(log.file_name().unwrap()), &whole[..cut]).unwrap();
        std::fs::write(torn.folder.path().join("packs"), &packs[..packs_listed * 32]).unwrap();
        check(torn.open()).await;
        let left = std::fs::read_dir(torn.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        assert!(!left.into_iter().any(|path| path.extension().is_some_and(|suffix| suffix == "tmp")));
    }
}

#[tokio::test]
async fn a_log_that_a_crash_cut_keeps_its_whole_groups() {
    with_a_log_cut_anywhere(2, async |index| {
        assert!(index.is_complete());
        expect_filled(&index, 0..2, 3).await;
        assert_eq!(index.contains(BlobType::Data, vec![blob(6)]).await.unwrap(), [false]);
        assert!(!index.contains_pack(&pack(2)));
        fill(&index, 2..4, 3).await;
        expect_filled(&index, 0..4, 3).await;
    })
    .await;
}

#[tokio::test]
async fn a_log_that_lost_a_listed_pack_asks_for_a_rebuild() {
    with_a_log_cut_anywhere(3, async |index| {
        assert!(!index.is_complete());
        assert!(!index.contains_pack(&pack(0)));
        assert_eq!(index.counts(), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_list_of_packs_that_lost_its_end_asks_for_a_rebuild() {
    let house = House::new();
    let index = house.open();
    index.finish_rebuild().await.unwrap();
    fill(&index, 0..10, 50).await;
    index.close().await.unwrap();
    assert!(house.crashed().open().is_complete());
    let packs = house.folder.path().join("packs");
    let whole = std::fs::read(&packs).unwrap();
    for cut in [0, 31, 32, 9 * 32, whole.len() - 1] {
        std::fs::write(&packs, &whole[..cut]).unwrap();
        assert!(!house.crashed().open().is_complete(), "cut at {cut}");
    }
}

#[tokio::test]
async fn packs_are_counted_and_known_by_name_until_they_are_gone() {
    let house = House::new();
    let index = house.open();
    fill(&index, 0..10, 50).await;
    assert_eq!(index.counts(), (10, 500));
    index.remove_packs(vec![pack(3)]).await.unwrap();
    for index in [index, house.crashed().open()] {
        assert_eq!(index.counts().0, 9);
        assert_eq!([2, 3, 4].map(|number| index.contains_pack(&pack(number))), [true, false, true]);
    }
}

#[tokio::test]
async fn blobs_of_doubted_packs_are_not_contained_and_located_there_only_for_want_of_another() {
    let house = House::new();
    let index = house.open();
    fill(&index, 0..20, 50).await;
    index.doubt_only(&[pack(3), pack(999)]);
    let question = || vec![blob(149), blob(150), blob(199), blob(200)];
    assert_eq!(index.contains(BlobType::Data, question()).await.unwrap(), [true, false, false, true]);
    let places = async || {
        let found = index.lookup(BlobType::Data, question()).await.unwrap().into_iter();
        found.map(|found| found.map(|found| found.pack)).collect::<Vec<_>>()
    };
    assert_eq!(places().await, [Some(pack(2)), Some(pack(3)), Some(pack(3)), Some(pack(4))]);

    // Stored again in another pack: that one counts, also before what is doubted in the order of the segments.
    index.insert(vec![(pack(500), entries(500, [150]))]).await.unwrap();
    assert_eq!(index.contains(BlobType::Data, question()).await.unwrap(), [true, true, false, true]);
    assert_eq!(places().await, [Some(pack(2)), Some(pack(500)), Some(pack(3)), Some(pack(4))]);
    fill(&index, 20..40, 50).await;
    assert_eq!(places().await[1], Some(pack(500)));

    index.doubt_only(&[]);
    assert_eq!(index.contains(BlobType::Data, question()).await.unwrap(), [true; 4]);
}

#[tokio::test]
async fn a_damaged_segment_never_gives_a_wrong_answer_and_asks_for_a_rebuild() {
    let house = House::new();
    let index = house.open();
    index.begin_rebuild().await.unwrap();
    fill(&index, 0..10, 20).await;
    index.finish_rebuild().await.unwrap();
    index.close().await.unwrap();
    let [path] = <[PathBuf; 1]>::try_from(house.files("segment")).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let (all, unknown): (Vec<_>, Vec<_>) = ((0..200).map(blob).collect(), (200..260).map(blob).collect());
    let right = house.crashed().open().lookup(BlobType::Data, all.clone()).await.unwrap();
    for place in (0..whole.len()).step_by(101) {
        let damaged = house.crashed();
        let mut bytes = whole.clone();
        bytes[place] ^= 0x20;
        std::fs::write(damaged.folder.path().join(path.file_name().unwrap()), bytes).unwrap();
        let index = damaged.open();
        match index.lookup(BlobType::Data, all.clone()).await {
            Ok(found) if index.is_complete() => assert_eq!(found, right, "byte {place}"),
            Ok(found) => assert!(found.iter().all(Option::is_none), "byte {place}: begun anew"),
            Err(error) => assert_eq!(error.code(), ErrorCode::StateDamaged, "byte {place}"),
        }
        assert!(!index.is_complete(), "byte {place}: every byte counts");
        let _ = index.contains(BlobType::Data, unknown.clone()).await;
        drop(index);
        assert!(!damaged.open().is_complete(), "byte {place}: it is remembered");
    }
}

#[tokio::test]
async fn readers_and_writers_work_side_by_side() {
    let house = House { recent_slots_max: 100, ..House::new() };
    let index = std::sync::Arc::new(house.open());
    let write = async {
        for number in 0..60 {
            fill(&index, number..number + 1, 50).await;
        }
    };
    let read = async |_| {
        for number in 0..60 {
            let question: Vec<_> = (number * 50..(number + 1) * 50).map(blob).collect();
            let found = index.contains(BlobType::Data, question).await.unwrap();
            let known = found.iter().filter(|known| **known).count();
            assert!(known == 0 || known == 50, "a pack appears as a whole");
        }
    };
    futures::join!(write, futures::future::join_all((0..4).map(read)));
    expect_filled(&index, 0..60, 50).await;
}

#[cfg(feature = "fail-points")]
#[tokio::test]
async fn an_index_that_cannot_be_written_takes_nothing_more_until_it_is_rebuilt() {
    let house = House { recent_slots_max: 100, ..House::new() };
    let index = house.open();
    let armed = holdfast_runtime::fail_point::arm("durable-file-before-fsync=error").unwrap();
    let mut number = 0;
    let error = loop {
        match index.insert(vec![(pack(number), entries(number, number * 50..(number + 1) * 50))]).await {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
        assert!(number < 1_000, "the failure is never told");
    };
    assert_eq!(error.code(), ErrorCode::StateUnavailable);
    assert_eq!(index.contains(BlobType::Data, vec![blob(0)]).await.unwrap(), [true], "reading goes on");
    assert!(!index.is_complete());
    drop(armed);
    index.begin_rebuild().await.unwrap();
    fill(&index, 0..10, 50).await;
    index.finish_rebuild().await.unwrap();
    assert!(index.is_complete(), "it takes entries again");
    expect_filled(&index, 0..10, 50).await;
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32, Vec<u32>),
    Remove(Vec<u32>),
    CleanStop,
    Crash,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..60_u32, proptest::collection::vec(0..150_u32, 1..12)).prop_map(|(pack, blobs)| Step::Insert(pack, blobs)),
        2 => proptest::collection::vec(0..60_u32, 1..6).prop_map(Step::Remove),
        1 => Just(Step::CleanStop),
        1 => Just(Step::Crash),
    ]
}

/// Which blobs each pack holds. A pack keeps the blobs it came with first.
type Model = BTreeMap<u32, BTreeSet<u32>>;

async fn follows_the_model(steps: Vec<Step>) {
    let mut house = House { recent_slots_max: 25, ..House::new() };
    let mut index = house.open();
    index.finish_rebuild().await.unwrap();
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Insert(number, blobs) => {
                let blobs: BTreeSet<u32> =
                    model.entry(number).or_insert_with(|| blobs.into_iter().collect()).clone();
                index.insert(vec![(pack(number), entries(number, blobs))]).await.unwrap();
            }
            Step::Remove(numbers) => {
                numbers.iter().for_each(|number| drop(model.remove(number)));
                index.remove_packs(numbers.into_iter().map(pack).collect()).await.unwrap();
            }
            Step::CleanStop => {
                index.close().await.unwrap();
                index = house.open();
            }
            Step::Crash => {
                let crashed = house.crashed();
                drop(index);
                house = crashed;
                index = house.open();
            }
        }
        assert!(index.is_complete());
    }
    let mut places: HashMap<BlobId, Vec<BlobLocation>> = HashMap::new();
    for (&number, blobs) in &model {
        for entry in entries(number, blobs.iter().copied()) {
            places.entry(entry.id).or_default().push(BlobLocation { pack: pack(number), entry });
        }
    }
    let all: Vec<BlobId> = (0..150).map(blob).collect();
    for (id, found) in all.iter().zip(index.lookup(BlobType::Data, all.clone()).await.unwrap()) {
        match (places.get(id), found) {
            (None, None) => {}
            (Some(places), Some(found)) => {
                assert!(places.contains(&found), "{found:?} is none of {places:?}")
            }
            (expected, found) => panic!("{expected:?} became {found:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_packs_with_stops_and_crashes_follow_the_model(steps in proptest::collection::vec(any_step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(follows_the_model(steps));
    }
}
