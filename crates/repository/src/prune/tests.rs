use std::collections::BTreeSet;

use bytes::Bytes;
use futures::TryStreamExt;
use holdfast_model::ErrorCode;
use parking_lot::RwLock;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::check::{CheckOptions, CheckReport, check};
use crate::error::RepositoryError;
use crate::forget::forget_snapshot;
use crate::format::{ObjectKind, ObjectName};
use crate::id::{BlobId, BlobType, IdSet, PackId, SnapshotId};
use crate::index::MemoryIndex;
use crate::prune_apply::{empty_trash, remove_from_index, to_trash};
use crate::reader::fixture::{Fixture, file_node, folder_node, reader_of};
use crate::repository::Repository;
use crate::storage::conformance::noise;
use crate::storage::faulty::{Fault, FaultPlan, FaultyStore};
use crate::storage::recording::Verb;
use crate::storage::{ObjectStore, StorageErrorKind};
use crate::tree::Node;

const KIB: usize = 1 << 10;

async fn surveyed(repository: &Repository, options: SurveyOptions) -> Result<Survey, RepositoryError> {
    let index = std::sync::Arc::new(RwLock::new(MemoryIndex::new()));
    survey(repository, index, options, Default::default(), &CancellationToken::new()).await
}

async fn planned(repository: &Repository, doubted: &[PackId]) -> Result<PrunePlan, RepositoryError> {
    let options = SurveyOptions { doubted: doubted.to_vec(), ..SurveyOptions::default() };
    surveyed(repository, options).await?.plan(PruneOptions::default()).await
}

/// All steps, with nobody else about. The trash is emptied at once.
async fn prune(repository: &Repository, doubted: &[PackId]) -> Result<PruneNumbers, RepositoryError> {
    prune_beside(repository, doubted, async || {}).await
}

/// All steps; something happens between the two surveys.
async fn prune_beside(
    repository: &Repository,
    doubted: &[PackId],
    meanwhile: impl AsyncFnOnce(),
) -> Result<PruneNumbers, RepositoryError> {
    let plan = planned(repository, doubted).await?;
    let (numbers, mut going, absent) = (plan.numbers, plan.condemned(), plan.absent.clone());
    let orphans: BTreeSet<PackId> = plan.orphans.iter().map(|pack| pack.id).collect();
    let repacked = repack(plan, Default::default()).await?;
    going.retain(|pack| !repacked.damaged.iter().any(|(damaged, _)| damaged == pack));
    meanwhile().await;
    let doubted = doubted.iter().copied().chain(repacked.damaged.iter().map(|(pack, _)| *pack)).collect();
    let survey = surveyed(repository, SurveyOptions { doubted, ..SurveyOptions::default() }).await?;
    let orphans: Vec<PackId> = survey.orphans().into_iter().filter(|pack| orphans.contains(pack)).collect();
    for pack in survey.rescue(going.clone()).await? {
        going.remove(&pack);
    }
    let unnamed: IdSet<PackId> = going.iter().copied().chain(absent).collect();
    remove_from_index(repository, &unnamed).await?;
    let now = "2026-11-21T12:00:00Z".parse().unwrap();
    to_trash(repository, going.into_iter().chain(orphans), now).await?;
    empty_trash(repository, now).await?;
    Ok(numbers)
}

async fn checked(repository: &Repository) -> CheckReport {
    let index = std::sync::Arc::new(RwLock::new(MemoryIndex::new()));
    let options = CheckOptions { read_data: true, ..CheckOptions::default() };
    check(repository, index, options, Default::default(), &CancellationToken::new()).await.unwrap()
}

async fn expect_sound(repository: &Repository, what: &str) {
    let report = checked(repository).await;
    assert!(report.is_sound(), "{what}: {:#?}", report.findings);
}

async fn sizes(repository: &Repository, kind: ObjectKind) -> Vec<u64> {
    let listed: Vec<_> = repository.store().list(kind).await.unwrap().try_collect().await.unwrap();
    listed.into_iter().map(|(_, size)| size).collect()
}

async fn pack_bytes(repository: &Repository) -> u64 {
    sizes(repository, ObjectKind::Pack).await.iter().sum()
}

/// A repository with a history: snapshots that share blobs, a hundred files each.
struct History {
    fixture: Fixture,
    snapshots: Vec<(SnapshotId, Vec<BlobId>)>,
}

impl History {
    async fn new(seed: u64, snapshots: usize) -> Self {
        let mut fixture = Fixture::new().await;
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let mut pool: Vec<(BlobId, u64)> = Vec::new();
        let mut made = Vec::new();
        for number in 0..snapshots {
            let contents: Vec<Bytes> = (0..random.random_range(8..24_u64))
                .map(|n| noise(random.random_range(2 * KIB..12 * KIB), seed << 20 | (number as u64) << 8 | n))
                .collect();
            for some in contents.chunks(random.random_range(2..9)) {
                let blobs: Vec<&[u8]> = some.iter().map(|content| content.as_ref()).collect();
                let ids = fixture.pack(BlobType::Data, &blobs).await;
                pool.extend(ids.into_iter().zip(some.iter().map(|content| content.len() as u64)));
            }
            let mut files: Vec<Node> = Vec::new();
            let mut needs = Vec::new();
            for file in 0..30 {
                let (blob, size) = pool[random.random_range(0..pool.len())];
                needs.push(blob);
                files.push(file_node(&format!("file {file:03}"), size, &[blob]));
            }
            let folder = fixture.tree(&files).await;
            let root = fixture.tree(&[folder_node("folder", folder)]).await;
            made.push((fixture.finish(root).await, needs));
        }
        Self { fixture, snapshots: made }
    }

    fn repository(&self) -> &Repository {
        &self.fixture.repository
    }

    /// Forgets every snapshot but each `keep`th.
    async fn forget_all_but(&mut self, keep: usize) {
        for (number, (id, _)) in self.snapshots.iter().enumerate() {
            if number % keep != 0 {
                forget_snapshot(&self.fixture.repository, *id).await.unwrap();
            }
        }
        let mut number = 0;
        self.snapshots.retain(|_| (number % keep == 0, number += 1).0);
    }

    async fn expect_whole(&self, what: &str) {
        expect_sound(self.repository(), what).await;
        let reader = reader_of(self.repository()).await;
        for (id, needs) in &self.snapshots {
            let root = self.repository().snapshot(*id).await.unwrap().tree;
            reader.find(root, b"folder/file 029").await.unwrap();
            for blob in needs {
                reader.load(*blob, BlobType::Data).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_forgotten_the_rest_is_whole_and_the_dead_bytes_are_gone() {
    for seed in 0..25 {
        let mut history = History::new(seed, 6).await;
        history.forget_all_but(2 + seed as usize % 4).await;
        let before = pack_bytes(history.repository()).await;
        let numbers = prune(history.repository(), &[]).await.unwrap();
        assert_eq!((numbers.snapshots, numbers.bytes), (history.snapshots.len() as u64, before));
        assert!(numbers.delete_packs > 0 && numbers.repack_packs > 0, "{seed}: {numbers:?}");
        history.expect_whole(&format!("seed {seed}")).await;
        let after = pack_bytes(history.repository()).await;
        let reclaimed = (before - after) as f64 / numbers.dead_bytes as f64;
        assert!(reclaimed >= 0.95, "seed {seed}: {reclaimed} of the dead bytes went: {numbers:?}");
        let again = planned(history.repository(), &[]).await.unwrap().numbers;
        assert!(again.is_nothing(), "seed {seed}: {again:?}");
        assert!(again.unused_left_bytes * 20 <= again.bytes, "seed {seed}: {again:?}");
        assert!(sizes(history.repository(), ObjectKind::Trash).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_in_which_all_is_needed_is_left_as_it_is() {
    let mut history = History::new(3, 4).await;
    // What a history of random files never used is dead from the beginning.
    prune(history.repository(), &[]).await.unwrap();
    let objects = history.fixture.store.len();
    let numbers = prune(history.repository(), &[]).await.unwrap();
    assert!(numbers.is_nothing(), "{numbers:?}");
    assert_eq!((numbers.freed_bytes(), numbers.freed_percent()), (0, 0));
    assert_eq!(history.fixture.store.len(), objects);
    history.forget_all_but(100).await;
    let numbers = planned(history.repository(), &[]).await.unwrap().numbers;
    assert!(numbers.freed_percent() > 30, "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_that_dies_at_any_step_costs_nothing_and_the_next_does_the_rest() {
    let mut died = 0;
    for fault in [Fault::Fail(StorageErrorKind::Other), Fault::LoseAnswer] {
        for verb in [Verb::Put, Verb::Delete, Verb::Rename] {
            for nth in 1.. {
                let mut history = History::new(7, 5).await;
                history.forget_all_but(2).await;
                let (config, keys) = (*history.repository().config(), history.repository().keys().clone());
                let faulty = FaultyStore::new(
                    history.repository().store().clone(),
                    FaultPlan::new().at(verb, None, nth, fault),
                );
                let repository = Repository::from_keys(std::sync::Arc::new(faulty.clone()), config, keys);
                let ended = prune(&repository, &[]).await;
                if faulty.injected().is_empty() {
                    ended.unwrap();
                    break;
                }
                died += 1;
                let what = format!("{verb:?} {nth} {fault:?}");
                // A pack in no index is garbage, and no harm.
                let report = checked(history.repository()).await;
                let harmful = report.findings.iter().any(|finding| finding.kind.is_harmful());
                assert!(!harmful, "{what}: {:#?}", report.findings);
                prune(history.repository(), &[]).await.unwrap();
                history.expect_whole(&what).await;
                let left = planned(history.repository(), &[]).await.unwrap().numbers;
                assert!(left.is_nothing(), "{what}: {left:?}");
            }
        }
    }
    assert!(died > 40, "only {died} steps were tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_needed_again_meanwhile_is_rescued() {
    let mut fixture = Fixture::new().await;
    let (kept, dead, also) = (noise(9 * KIB, 1), noise(9 * KIB, 2), noise(9 * KIB, 3));
    let dead_id = fixture.pack(BlobType::Data, &[&dead]).await[0];
    let rescued = fixture.last_pack();
    fixture.pack(BlobType::Data, &[&also]).await;
    let gone = fixture.last_pack();
    let kept_id = fixture.pack(BlobType::Data, &[&kept]).await[0];
    let tree = fixture.tree(&[file_node("kept", kept.len() as u64, &[kept_id])]).await;
    fixture.finish(tree).await;
    let repository = fixture.repository.clone();
    let numbers = prune_beside(&repository, &[], async || {
        let tree = fixture.tree(&[file_node("again", dead.len() as u64, &[dead_id])]).await;
        fixture.finish(tree).await;
    })
    .await
    .unwrap();
    assert_eq!(numbers.delete_packs, 2);
    expect_sound(&repository, "after a rescue").await;
    let is_there = async |pack| repository.store().size(&ObjectName::Pack(pack)).await.is_ok();
    assert!(is_there(rescued).await);
    assert!(!is_there(gone).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_came_meanwhile_is_left_alone_and_an_old_orphan_goes() {
    let mut fixture = Fixture::new().await;
    let tree = fixture.tree(&[]).await;
    fixture.finish(tree).await;
    let repository = fixture.repository.clone();
    fixture.pack(BlobType::Data, &[b"of a writer that died"]).await;
    let old = fixture.last_pack();
    let mut young = old;
    prune_beside(&repository, &[], async || {
        fixture.pack(BlobType::Data, &[b"of a writer that goes on"]).await;
        young = fixture.last_pack();
    })
    .await
    .unwrap();
    assert!(repository.store().size(&ObjectName::Pack(young)).await.is_ok());
    assert!(repository.store().size(&ObjectName::Pack(old)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_the_very_content_of_a_folder_is_told_from_the_folder() {
    let mut fixture = Fixture::new().await;
    let content = fixture.pack(BlobType::Data, &[b"in the folder below"]).await[0];
    let below = fixture.tree(&[file_node("file", 19, &[content])]).await;
    let twin_pack = fixture.last_pack();
    let text = reader_text(&fixture, twin_pack).await;
    let twin = fixture.pack(BlobType::Data, &[&text]).await[0];
    assert_eq!(twin, below);
    // Sorted before the folder, the file is met first.
    let files = [file_node("a twin", text.len() as u64, &[twin]), folder_node("folder", below)];
    let root = fixture.tree(&files).await;
    fixture.finish(root).await;
    let numbers = prune(&fixture.repository, &[]).await.unwrap();
    assert!(numbers.is_nothing(), "{numbers:?}");
    assert_eq!(pack_bytes(&fixture.repository).await, numbers.bytes);
}

/// The content of the only blob of a pack.
async fn reader_text(fixture: &Fixture, pack: PackId) -> Vec<u8> {
    let entry = fixture.repository.read_pack_header(pack).await.unwrap()[0];
    let name = ObjectName::Pack(pack);
    let sealed = fixture.store.get_range(&name, 0, u64::from(entry.length)).await.unwrap();
    let mut text = Vec::new();
    fixture.repository.sealer().open(&sealed, &mut text).unwrap();
    text
}

/// A pack with `one`, a pack with `one` and `two`, of which `needed` are needed.
async fn two_packs(needed: &[&[u8]]) -> (Fixture, PackId, PackId) {
    let mut fixture = Fixture::new().await;
    fixture.pack(BlobType::Data, &[b"one"]).await;
    let first = fixture.last_pack();
    fixture.pack(BlobType::Data, &[b"one", b"two"]).await;
    let second = fixture.last_pack();
    let files: Vec<Node> = needed
        .iter()
        .map(|content| file_node(std::str::from_utf8(content).unwrap(), 3, &[BlobId::of(content)]))
        .collect();
    let tree = fixture.tree(&files).await;
    fixture.finish(tree).await;
    (fixture, first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_goes_when_all_of_it_that_is_needed_is_elsewhere() {
    let (fixture, first, second) = two_packs(&[b"one", b"two"]).await;
    fixture.store.replace(ObjectName::Pack(first), &b"damaged"[..]);
    let plan = planned(&fixture.repository, &[first]).await.unwrap();
    assert_eq!(plan.delete.iter().map(|pack| pack.id).collect::<Vec<_>>(), [first]);
    assert_eq!(plan.doubtful, []);
    prune(&fixture.repository, &[first]).await.unwrap();
    expect_sound(&fixture.repository, "without the damaged pack").await;
    assert!(fixture.store.size(&ObjectName::Pack(second)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_with_something_that_is_nowhere_else_stays_and_is_named() {
    let (fixture, _, second) = two_packs(&[b"one", b"two"]).await;
    let plan = planned(&fixture.repository, &[second]).await.unwrap();
    assert_eq!(plan.doubtful, [DoubtfulPack { id: second, needed_bytes: 44 }]);
    prune(&fixture.repository, &[second]).await.unwrap();
    expect_sound(&fixture.repository, "it was in doubt for nothing").await;
    assert!(fixture.store.size(&ObjectName::Pack(second)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_shows_while_a_pack_is_repacked_keeps_the_pack() {
    let (fixture, first, second) = two_packs(&[b"two"]).await;
    let mut bytes = fixture.store.get(&ObjectName::Pack(second)).await.unwrap().to_vec();
    bytes[35 + 20] ^= 1;
    fixture.store.replace(ObjectName::Pack(second), bytes.clone());
    let plan = planned(&fixture.repository, &[]).await.unwrap();
    assert_eq!(plan.repack.iter().map(|pack| pack.id).collect::<Vec<_>>(), [second]);
    let repacked = repack(plan, Default::default()).await.unwrap();
    let [(pack, reason)] = &repacked.damaged[..] else { panic!("{repacked:?}") };
    assert_eq!(*pack, second);
    assert!(reason.ends_with("is damaged: its authentication tag does not fit"), "{reason}");
    prune(&fixture.repository, &[]).await.unwrap();
    assert!(fixture.store.size(&ObjectName::Pack(second)).await.is_ok(), "it may be mended");
    assert!(fixture.store.size(&ObjectName::Pack(first)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_gone_and_not_needed_goes_from_the_index() {
    let (fixture, first, second) = two_packs(&[b"two"]).await;
    fixture.store.delete(&ObjectName::Pack(first)).await.unwrap();
    let numbers = prune(&fixture.repository, &[]).await.unwrap();
    assert_eq!((numbers.absent_packs, numbers.repack_packs), (1, 1));
    expect_sound(&fixture.repository, "it is named no more").await;
    assert!(fixture.store.size(&ObjectName::Pack(second)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_while_a_folder_or_a_snapshot_can_not_be_read() {
    let expect_refused = async |fixture: &Fixture, code: ErrorCode| {
        let objects = fixture.store.len();
        let refused = prune(&fixture.repository, &[]).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert_eq!(fixture.store.len(), objects);
    };
    let mut history = History::new(1, 3).await;
    history.forget_all_but(2).await;
    let missing = BlobId::of(b"a folder that is nowhere");
    let root = history.fixture.tree(&[folder_node("folder", missing)]).await;
    let id = history.fixture.finish(root).await;
    let error = prune(history.repository(), &[]).await.unwrap_err();
    assert_eq!(error.to_string(), format!("blob {missing} is in no index of the repository"));
    expect_refused(&history.fixture, ErrorCode::ObjectMissing).await;
    history.fixture.store.replace(ObjectName::Snapshot(id), &b"damaged"[..]);
    expect_refused(&history.fixture, ErrorCode::ObjectDamaged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_lost_keeps_the_packs_in_no_index() {
    let mut fixture = Fixture::new().await;
    let lost = BlobId::of(b"lost");
    let tree = fixture.tree(&[file_node("file", 4, &[lost])]).await;
    fixture.finish(tree).await;
    fixture.pack(BlobType::Data, &[b"lost"]).await;
    let plan = planned(&fixture.repository, &[]).await.unwrap();
    assert_eq!((plan.lost.as_slice(), plan.numbers.lost_blobs), (&[lost][..], 1));
    prune(&fixture.repository, &[]).await.unwrap();
    assert!(fixture.store.size(&ObjectName::Pack(fixture.last_pack())).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trash_is_emptied_of_what_lies_there_long_enough() {
    let (fixture, first, second) = two_packs(&[]).await;
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    assert_eq!(to_trash(&fixture.repository, [first], at("2026-11-20T12:00:00Z")).await.unwrap(), 1);
    assert_eq!(to_trash(&fixture.repository, [first, second], at("2026-11-21T12:00:00Z")).await.unwrap(), 1);
    let (deleted, left) = empty_trash(&fixture.repository, at("2026-11-21T11:59:59Z")).await.unwrap();
    assert_eq!((deleted.packs, left.packs), (1, 1));
    assert!(deleted.bytes > 0 && left.bytes > deleted.bytes);
    let (deleted, left) = empty_trash(&fixture.repository, at("2026-11-21T12:00:00Z")).await.unwrap();
    assert_eq!((deleted.packs, left.packs), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_that_is_cancelled_ends_at_once() {
    let history = History::new(2, 2).await;
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let index = std::sync::Arc::new(RwLock::new(MemoryIndex::new()));
    let ended = survey(history.repository(), index, SurveyOptions::default(), Default::default(), &cancelled);
    assert_eq!(ended.await.map(drop).unwrap_err().code(), ErrorCode::RunCancelled);
}
