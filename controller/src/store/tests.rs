//! The embedded store: what a folder of files adds to the contract.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_runtime::{ManualClock, Shutdown, TaskGroup};

use super::conformance::Fixture;
use super::segment::HEADER_BYTES;
use super::*;

mod damage;
mod model;

/// A folder with a store that can be opened again and again.
struct House {
    folder: tempfile::TempDir,
    clock: ManualClock,
    /// Held: the tasks end when it is dropped.
    _shutdown: Shutdown,
    tasks: TaskGroup,
    segment_bytes_max: u64,
    boot_id: String,
}

impl House {
    fn new() -> Self {
        let shutdown = Shutdown::new();
        Self {
            folder: tempfile::tempdir().unwrap(),
            clock: ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap()),
            tasks: TaskGroup::new(&shutdown),
            _shutdown: shutdown,
            segment_bytes_max: 64 << 20,
            boot_id: "first boot".to_owned(),
        }
    }

    fn open(&self) -> Result<Arc<EmbeddedStore>, StoreError> {
        let settings = StoreSettings {
            segment_bytes_max: self.segment_bytes_max,
            boot_id: Some(self.boot_id.clone()),
            cache_bytes: 1 << 20,
            ..StoreSettings::new(self.folder.path())
        };
        EmbeddedStore::open(settings, self.clock.shared(), &self.tasks)
    }

    /// What a crash at this moment would leave behind: a copy of all files, as the page cache has them.
    fn crashed(&self) -> House {
        let copy = House { segment_bytes_max: self.segment_bytes_max, ..House::new() };
        // sled and the keeper write in the background: what was read while they did never was on the disk as a whole.
        let files = loop {
            let (files, again) = (files(self.folder.path()), files(self.folder.path()));
            if files == again {
                break files;
            }
        };
        for (path, content) in files {
            let target = copy.folder.path().join(path.strip_prefix(self.folder.path()).unwrap());
            match content {
                Some(content) => std::fs::write(target, content).unwrap(),
                None => std::fs::create_dir(target).unwrap(),
            }
        }
        copy
    }

    fn last_segment(&self) -> std::path::PathBuf {
        segment::list_segments(&self.folder.path().join("journal")).unwrap().pop().unwrap().1
    }

    fn has_view(&self) -> bool {
        self.folder.path().join("view").exists()
    }
}

/// Every file below a folder with its content, and every folder; a file that goes meanwhile may be left out.
fn files(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
            found.insert(path, None);
        } else if let Ok(content) = std::fs::read(&path) {
            found.insert(path, Some(content));
        }
    }
    found
}

async fn fixture() -> Fixture {
    let house = House::new();
    let store = house.open().unwrap();
    Fixture { store, clock: house.clock.clone(), _alive: Box::new(house) }
}

conformance!(fixture);

fn batch(key: &str, value: impl serde::Serialize) -> Batch {
    let mut batch = Batch::new(Audit::by_controller("test.put", format!("run/{key}")));
    batch.put(Kind::Run, key, &value, Expect::Any);
    batch
}

/// Everything in the store, by kind and key.
async fn content(store: &dyn Store) -> BTreeMap<(Kind, String), (Sequence, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for &kind in Kind::ALL {
        let mut after = None;
        loop {
            let page = store.scan(kind, Scan { after: after.take(), ..Scan::below("") }).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            all.extend(page.into_iter().map(|record| ((kind, record.key), (record.version, record.value))));
        }
    }
    all
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_clean_stop() {
    let house = House::new();
    let store = house.open().unwrap();
    for n in 0..20 {
        store.commit(batch(&n.to_string(), n)).await.unwrap();
    }
    let before = content(&*store).await;
    store.close().await.unwrap();
    assert!(matches!(store.get(Kind::Run, "1").await, Err(StoreError::Closed)));
    assert!(matches!(store.commit(batch("late", 1)).await, Err(StoreError::Closed)));
    drop(store);
    let store = house.open().unwrap();
    assert_eq!(store.sequence(), 20);
    assert_eq!(content(&*store).await, before);
    assert_eq!(store.commit(batch("next", 1)).await.unwrap().sequence, 21);
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_crash_in_the_same_boot_and_after_another_boot() {
    let house = House::new();
    let store = house.open().unwrap();
    for n in 0..200 {
        store.commit(batch(&(n % 50).to_string(), n)).await.unwrap();
    }
    let before = content(&*store).await;
    for boot_id in ["first boot", "second boot"] {
        let crashed = House { boot_id: boot_id.to_owned(), ..house.crashed() };
        let store = crashed.open().unwrap();
        assert_eq!(content(&*store).await, before, "{boot_id}");
        assert_eq!(store.verify_audit().await.unwrap().last, 200);
    }
}

#[tokio::test]
async fn the_view_is_made_anew_after_another_boot_and_only_then() {
    let house = House::new();
    let store = house.open().unwrap();
    store.commit(batch("a", 1)).await.unwrap();
    let planted = |house: &House| std::fs::write(house.folder.path().join("view/planted"), b"").unwrap();
    let kept = |house: &House| house.folder.path().join("view/planted").exists();
    planted(&house);
    let same = house.crashed();
    drop(same.open().unwrap());
    assert!(kept(&same));
    let other = House { boot_id: "second boot".to_owned(), ..house.crashed() };
    drop(other.open().unwrap());
    assert!(!kept(&other));
    store.close().await.unwrap();
    drop(store);
    let clean = House { boot_id: "second boot".to_owned(), ..house.crashed() };
    drop(clean.open().unwrap());
    assert!(kept(&clean), "a clean stop made the view durable");
}

#[tokio::test]
async fn a_view_that_does_not_open_or_is_missing_is_made_anew() {
    let house = House::new();
    let store = house.open().unwrap();
    for n in 0..50 {
        store.commit(batch(&n.to_string(), "x".repeat(1_000))).await.unwrap();
    }
    let before = content(&*store).await;
    store.close().await.unwrap();
    drop(store);
    let garbled = house.crashed();
    let conf = garbled.folder.path().join("view/conf");
    std::fs::write(&conf, b"not what sled wrote").unwrap();
    assert_eq!(content(&*garbled.open().unwrap()).await, before);
    std::fs::remove_dir_all(house.folder.path().join("view")).unwrap();
    assert_eq!(content(&*house.open().unwrap()).await, before);
}

#[tokio::test]
async fn a_second_process_is_refused_while_the_first_lives() {
    let house = House::new();
    let store = house.open().unwrap();
    let error = house.open().unwrap_err();
    assert_eq!(error.code(), ErrorCode::StateLocked);
    assert_eq!(
        error.to_string(),
        format!("another process holds the state in {}", house.folder.path().display())
    );
    drop(store);
    house.open().unwrap();
}

#[tokio::test]
async fn segments_and_checkpoints_follow_each_other_and_the_view_can_be_made_of_them() {
    let house = House { segment_bytes_max: 4_096, ..House::new() };
    let store = house.open().unwrap();
    for n in 0..300 {
        let mut batch = batch(&(n % 40).to_string(), "x".repeat(100));
        if n % 7 == 0 {
            batch.delete(Kind::Run, ((n + 1) % 40).to_string(), Expect::Any);
        }
        store.commit(batch).await.unwrap();
    }
    let before = content(&*store).await;
    store.close().await.unwrap();
    drop(store);
    let segments = segment::list_segments(&house.folder.path().join("journal")).unwrap();
    let checkpoints = checkpoint::list(&house.folder.path().join("checkpoints")).unwrap();
    assert!(segments.len() > 5, "{} segments", segments.len());
    assert_eq!(checkpoints.len(), 2);
    assert_eq!(checkpoints[1].0 + 1, segments.last().unwrap().0, "every complete segment is in a checkpoint");

    let rebuilt = House { boot_id: "second boot".to_owned(), ..house.crashed() };
    std::fs::remove_file(rebuilt.folder.path().join("view.marker")).unwrap();
    assert_eq!(content(&*rebuilt.open().unwrap()).await, before);

    // The newest checkpoint is damaged: the one before and more of the journal give the same.
    let fallback = house.crashed();
    std::fs::remove_file(fallback.folder.path().join("view.marker")).unwrap();
    let newest = fallback.folder.path().join("checkpoints").join(checkpoints[1].1.file_name().unwrap());
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    assert_eq!(content(&*fallback.open().unwrap()).await, before);
}

#[tokio::test]
async fn an_old_journal_is_let_go_once_checkpoints_cover_it_and_the_chain_still_holds() {
    let house = House { segment_bytes_max: 4_096, ..House::new() };
    let store = house.open().unwrap();
    for n in 0..200 {
        store.commit(batch(&n.to_string(), "x".repeat(100))).await.unwrap();
    }
    let before = content(&*store).await;
    house.clock.advance(Duration::from_secs(401 * 24 * 3600));
    let mut late = 200;
    // The keeper works in the background, after a segment is complete.
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    while store.watch(0).is_ok() {
        store.commit(batch("late", late)).await.unwrap();
        late += 1;
        assert!(std::time::Instant::now() < deadline, "no segment was let go");
    }
    assert!(matches!(store.watch(0), Err(StoreError::HistoryGone { .. })));
    let verdict = store.verify_audit().await.unwrap();
    assert!(verdict.first > 1 && verdict.anchor != [0; 32]);
    assert_eq!(verdict.last, store.sequence());
    store.close().await.unwrap();
    drop(store);
    std::fs::remove_file(house.folder.path().join("view.marker")).unwrap();
    let mut after = content(&*house.open().unwrap()).await;
    after.remove(&(Kind::Run, "late".to_owned()));
    assert_eq!(after, before);
}

#[tokio::test]
async fn everything_submitted_at_once_is_committed_in_few_groups() {
    let house = House::new();
    let store = house.open().unwrap();
    let commits = (0..500).map(|n| store.commit(batch(&n.to_string(), n)));
    futures::future::try_join_all(commits).await.unwrap();
    assert_eq!(store.sequence(), 500);
    let entries = store.audit(0, 1_000).await.unwrap();
    assert!(entries.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence));
    assert!(house.has_view());
}

#[tokio::test]
async fn dropping_the_caller_does_not_harm_the_commit() {
    let house = House::new();
    let store = house.open().unwrap();
    let mut abandoned = Box::pin(store.commit(batch("a", 1)));
    assert!(futures::poll!(&mut abandoned).is_pending());
    drop(abandoned);
    store.commit(batch("b", 2)).await.unwrap();
    assert_eq!(store.sequence(), 2);
    assert!(store.get(Kind::Run, "a").await.unwrap().is_some());
}
