use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use holdfast_model::ErrorCode;
use parking_lot::RwLock;

use super::*;
use crate::extract::{ExtractOptions, extract_tree};
use crate::format::ObjectKind;
use crate::id::BlobType;
use crate::index::MemoryIndex;
use crate::reader::fixture::{Fixture, PASSWORD, ResticRepository, file_node, folder_node};
use crate::storage::ObjectStore;
use crate::storage::conformance::noise;
use crate::storage::fs::FsStore;
use crate::storage::recording::{RecordingStore, Verb};
use holdfast_model::secret::Secret;

fn index() -> Arc<dyn WorkIndex> {
    Arc::new(RwLock::new(MemoryIndex::new()))
}

async fn checked(repository: &Repository, read_data: bool) -> CheckReport {
    let options = CheckOptions { read_data, ..CheckOptions::default() };
    check(repository, index(), options, Arc::default(), &CancellationToken::new()).await.unwrap()
}

/// A repository that restic wrote, with two snapshots of two folders of which the second changed.
struct Written {
    restic: ResticRepository,
    source: tempfile::TempDir,
    repository: Repository,
}

impl Written {
    async fn new() -> Self {
        let source = tempfile::tempdir().unwrap();
        for (name, seed) in [("kept", 1), ("changed", 2)] {
            std::fs::create_dir(source.path().join(name)).unwrap();
            for n in 0..20u64 {
                let content = noise(3000 * n as usize, seed * 100 + n);
                std::fs::write(source.path().join(name).join(format!("file {n}")), content).unwrap();
            }
        }
        let restic = ResticRepository::new();
        restic.back_up(source.path());
        std::fs::write(source.path().join("changed/file 3"), b"changed").unwrap();
        restic.back_up(source.path());
        let repository = restic.open().await;
        Self { restic, source, repository }
    }

    async fn files(&self, kind: ObjectKind) -> Vec<PathBuf> {
        let listed = self.repository.store().list(kind).await.unwrap();
        let names: Vec<_> = listed.try_collect().await.unwrap();
        let mut paths: Vec<_> = names.iter().map(|(name, _)| self.restic.path().join(name.path())).collect();
        paths.sort();
        paths
    }

    /// A copy of the repository, opened with the keys that are known: scrypt is not what is tested.
    fn copy(&self) -> (tempfile::TempDir, Repository) {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&self.restic.path(), &folder.path().join("copy"));
        let store = Arc::new(FsStore::new(folder.path().join("copy")));
        let keys = self.repository.keys().clone();
        (folder, Repository::from_keys(store, *self.repository.config(), keys))
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::write(&target, std::fs::read(&path).unwrap()).unwrap();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Damage {
    Delete,
    Truncate,
    Flip,
}

fn damage(path: &Path, how: Damage, position: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    match how {
        Damage::Delete => return std::fs::remove_file(path).unwrap(),
        Damage::Truncate => bytes.truncate(position % bytes.len()),
        Damage::Flip => {
            let position = position % bytes.len();
            bytes[position] ^= 1 << (position % 8);
        }
    }
    std::fs::write(path, bytes).unwrap();
}

/// Restores the newest snapshot; says what went wrong on the way, and fails the test when wrong bytes came out.
async fn restore(repository: &Repository, source: &Path) -> Result<(), ErrorCode> {
    let index = repository.load_index().await.map_err(|error| error.code())?;
    let local = crate::reader::LocalSource::new(Arc::clone(repository.store()), Arc::new(index));
    let reader = crate::reader::BlobReader::new(Arc::new(local), Arc::clone(repository.sealer()));
    let mut newest = None;
    let ids = repository.snapshot_ids().await.map_err(|error| error.code())?;
    // When one of the two is gone, the file in which they differ may be either.
    let both = ids.len() == 2;
    for id in ids {
        let snapshot = repository.snapshot(id).await.map_err(|error| error.code())?;
        newest = newest.max(Some((snapshot.time.clone(), snapshot.tree)));
    }
    let (_, root) = newest.ok_or(ErrorCode::SnapshotUnknown)?;
    let path = source.to_str().unwrap().as_bytes();
    let tree = reader.find(root, path).await.map_err(|error| error.code())?.subtree.unwrap();
    let target = tempfile::tempdir().unwrap();
    let options = ExtractOptions { sync: false, ..ExtractOptions::default() };
    extract_tree(&reader, tree, target.path(), &options, Arc::default(), &CancellationToken::new())
        .await
        .map_err(|error| error.code())?;
    for folder in ["kept", "changed"] {
        for n in 0..20 {
            let path = format!("{folder}/file {n}");
            if !both && path == "changed/file 3" {
                continue;
            }
            let (expected, found) =
                (std::fs::read(source.join(&path)), std::fs::read(target.path().join(&path)));
            assert!(expected.unwrap() == found.unwrap(), "{path}: wrong bytes were restored");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_restic_wrote_is_sound() {
    let written = Written::new().await;
    let report = checked(&written.repository, true).await;
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!(report.findings, []);
    assert_eq!((report.snapshots, report.keys, report.packs_read), (2, 1, report.packs));
    assert_eq!(report.bytes_read, report.pack_bytes);
    assert_eq!(report.blobs_read, report.blobs);
    restore(&written.repository, written.source.path()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_to_every_kind_of_object_is_found_and_named() {
    let written = Written::new().await;
    let kinds =
        [ObjectKind::Config, ObjectKind::Key, ObjectKind::Snapshot, ObjectKind::Index, ObjectKind::Pack];
    for kind in kinds {
        for how in [Damage::Delete, Damage::Truncate, Damage::Flip] {
            for path in written.files(kind).await {
                let (folder, repository) = written.copy();
                let inner = path.strip_prefix(written.restic.path()).unwrap();
                let damaged = folder.path().join("copy").join(inner);
                damage(&damaged, how, 1000);
                let report = checked(&repository, true).await;
                let restored = restore(&repository, written.source.path()).await;
                let context = format!("{how:?} of {}: {:?}", inner.display(), report.findings);
                judge(kind, how, inner, &report, restored, &context);
            }
        }
    }
}

/// What a check and a restore must say of one damage.
fn judge(
    kind: ObjectKind,
    how: Damage,
    path: &Path,
    report: &CheckReport,
    restored: Result<(), ErrorCode>,
    context: &str,
) {
    let name = ObjectName::parse(path.to_str().unwrap()).unwrap();
    let about_it: Vec<_> =
        report.findings.iter().filter(|finding| finding.object == FindingObject::Object(name)).collect();
    match (kind, how) {
        (ObjectKind::Key, Damage::Delete) => {
            let found: Vec<_> =
                report.findings.iter().map(|finding| (finding.kind, finding.object)).collect();
            assert_eq!(found, [(FindingKind::Missing, FindingObject::Keys)], "{context}");
            assert_eq!(restored, Ok(()), "{context}");
        }
        // A snapshot that is gone leaves no trace in the repository; the controller remembers it.
        (ObjectKind::Snapshot, Damage::Delete) => {
            assert!(report.is_sound() && report.snapshots == 1, "{context}");
        }
        (ObjectKind::Index, Damage::Delete) => {
            assert!(!report.is_sound(), "{context}");
            assert!(
                report.findings.iter().any(|finding| finding.kind == FindingKind::Unreferenced),
                "{context}"
            );
        }
        (_, Damage::Delete) => {
            assert!(about_it.iter().any(|finding| finding.kind == FindingKind::Missing), "{context}");
        }
        _ => assert!(about_it.iter().any(|finding| finding.kind == FindingKind::Damaged), "{context}"),
    }
    match (kind, how) {
        (ObjectKind::Config | ObjectKind::Key, _) => {
            assert_eq!(restored, Ok(()), "the keys are known: {context}")
        }
        (ObjectKind::Snapshot, Damage::Delete) => {}
        (ObjectKind::Snapshot, _) => assert_eq!(restored, Err(ErrorCode::ObjectDamaged), "{context}"),
        (ObjectKind::Index, Damage::Delete) => {
            assert!(matches!(restored, Err(ErrorCode::ObjectMissing) | Ok(())), "{restored:?} {context}");
        }
        (ObjectKind::Index, _) => assert_eq!(restored, Err(ErrorCode::ObjectDamaged), "{context}"),
        // Some packs are needed by the older snapshot alone, and a header is needed by no restore.
        (ObjectKind::Pack, Damage::Delete) => {
            assert!(matches!(restored, Err(ErrorCode::ObjectMissing) | Ok(())), "{restored:?} {context}");
        }
        _ => assert!(matches!(restored, Err(ErrorCode::ObjectDamaged) | Ok(())), "{restored:?} {context}"),
    }
    if kind == ObjectKind::Pack {
        assert!(
            about_it.iter().any(|finding| !finding.snapshots.is_empty()),
            "no snapshot is named: {context}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_before_a_repository_is_open_has_its_own_errors() {
    let written = Written::new().await;
    let cases = [
        (ObjectKind::Config, Damage::Delete, ErrorCode::RepositoryMissing),
        (ObjectKind::Config, Damage::Truncate, ErrorCode::ObjectDamaged),
        (ObjectKind::Config, Damage::Flip, ErrorCode::ObjectDamaged),
        (ObjectKind::Key, Damage::Truncate, ErrorCode::ObjectDamaged),
        (ObjectKind::Key, Damage::Flip, ErrorCode::ObjectDamaged),
    ];
    for (kind, how, code) in cases {
        let (folder, _) = written.copy();
        let path = written.files(kind).await.remove(0);
        let inner = path.strip_prefix(written.restic.path()).unwrap();
        damage(&folder.path().join("copy").join(inner), how, 77);
        let store = Arc::new(FsStore::new(folder.path().join("copy")));
        let error = Repository::open(store, &Secret::new(PASSWORD)).await.unwrap_err();
        assert_eq!(error.code(), code, "{how:?} of {kind}: {error}");
    }
    let (folder, _) = written.copy();
    let store = Arc::new(FsStore::new(folder.path().join("copy")));
    let error = Repository::open(store, &Secret::new("wrong")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RepositoryWrongPassword);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_anywhere_is_found_and_never_restored() {
    let written = Written::new().await;
    let mut paths = Vec::new();
    for kind in [ObjectKind::Snapshot, ObjectKind::Index, ObjectKind::Pack] {
        paths.extend(written.files(kind).await);
    }
    let (folder, repository) = written.copy();
    let mut state = 7u64;
    for round in 0..120 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let path = &paths[(state >> 33) as usize % paths.len()];
        let damaged = folder.path().join("copy").join(path.strip_prefix(written.restic.path()).unwrap());
        let whole = std::fs::read(&damaged).unwrap();
        let position = (state >> 20) as usize % whole.len();
        damage(&damaged, Damage::Flip, position);
        // It ends with an error or with the right bytes, which `restore` compares.
        let _ = restore(&repository, written.source.path()).await;
        let report = checked(&repository, true).await;
        assert!(!report.is_sound(), "round {round}: byte {position} of {} was not found", damaged.display());
        std::fs::write(&damaged, whole).unwrap();
    }
    assert!(checked(&repository, true).await.is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finding_names_only_the_snapshots_that_it_touches() {
    let mut fixture = Fixture::new().await;
    let shared = fixture.pack(BlobType::Data, &[b"shared"]).await;
    let own = fixture.pack(BlobType::Data, &[b"only in the second"]).await;
    let pack = fixture.last_pack();
    let kept = fixture.tree(&[file_node("kept", 6, &shared)]).await;
    let first_root = fixture.tree(&[folder_node("folder", kept)]).await;
    let added = fixture.tree(&[file_node("kept", 6, &shared), file_node("added", 18, &own)]).await;
    let second_root = fixture.tree(&[folder_node("folder", added)]).await;
    fixture.finish(first_root).await;
    let second = fixture.finish(second_root).await;
    assert!(checked(&fixture.repository, true).await.is_sound());

    fixture.store.delete(&ObjectName::Pack(pack)).await.unwrap();
    let report = checked(&fixture.repository, false).await;
    let [finding] = report.findings.as_slice() else { panic!("{:?}", report.findings) };
    assert_eq!(
        (finding.kind, finding.object),
        (FindingKind::Missing, FindingObject::Object(ObjectName::Pack(pack)))
    );
    assert_eq!(finding.snapshots, [second]);
    assert_eq!(finding.kind.code(), Some(ErrorCode::ObjectMissing));
    assert!(finding.to_string().ends_with(&format!("(touches snapshot {})", second.short())), "{finding}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_are_missing_or_of_the_wrong_size_are_named() {
    let mut fixture = Fixture::new().await;
    let content = fixture.pack(BlobType::Data, &[b"content"]).await;
    let absent = BlobId::of(b"nowhere");
    let missing_tree = BlobId::of(b"no tree");
    let nodes = [
        file_node("absent", 3, &[absent]),
        file_node("short", 8, &content),
        folder_node("gone", missing_tree),
    ];
    let root = fixture.tree(&nodes).await;
    let snapshot = fixture.finish(root).await;
    let report = checked(&fixture.repository, false).await;
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.kind, finding.object)).collect();
    let root_pack = fixture.last_pack();
    for expected in [
        (FindingKind::Missing, FindingObject::Blob { blob: absent, pack: None }),
        (FindingKind::Missing, FindingObject::Blob { blob: missing_tree, pack: None }),
        (FindingKind::Contradiction, FindingObject::Blob { blob: root, pack: Some(root_pack) }),
    ] {
        assert!(found.contains(&expected), "{expected:?} is not in {found:?}");
    }
    assert_eq!(report.findings.len(), 3);
    assert!(report.findings.iter().all(|finding| finding.snapshots == [snapshot]), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_in_no_index_is_harmless() {
    let mut fixture = Fixture::new().await;
    let root = fixture.tree(&[]).await;
    fixture.finish(root).await;
    fixture.pack(BlobType::Data, &[b"left by a writer that died"]).await;
    let report = checked(&fixture.repository, true).await;
    assert!(report.is_sound());
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].kind, FindingKind::Unreferenced);
    assert_eq!(report.packs_read, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_check_ends() {
    let mut fixture = Fixture::new().await;
    let root = fixture.tree(&[]).await;
    fixture.finish(root).await;
    let token = CancellationToken::new();
    token.cancel();
    let error = check(&fixture.repository, index(), CheckOptions::default(), Arc::default(), &token)
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::RunCancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_some_packs_reads_those_and_says_which_are_sound() {
    let written = Written::new().await;
    let (folder, repository) = written.copy();
    let mut packs = written.files(ObjectKind::Pack).await;
    // The largest first: it holds contents, which a walk over the folders does not read.
    packs.sort_by_key(|path| std::cmp::Reverse(path.metadata().unwrap().len()));
    let ids: Vec<PackId> =
        packs.iter().map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect();
    let inner = packs[0].strip_prefix(written.restic.path()).unwrap();
    damage(&folder.path().join("copy").join(inner), Damage::Flip, 40);
    let read = async |only: Vec<PackId>| {
        let options = CheckOptions { read_data: true, only: Some(only), ..CheckOptions::default() };
        check(&repository, index(), options, Arc::default(), &CancellationToken::new()).await.unwrap()
    };
    let others = read(ids[1..].to_vec()).await;
    assert_eq!((others.packs_read, others.damaged_packs), (others.packs - 1, Vec::new()));
    let mut sound = ids[1..].to_vec();
    sound.sort_unstable();
    assert_eq!(others.sound_packs, sound);
    let one = read(vec![ids[0]]).await;
    assert_eq!((one.packs_read, one.damaged_packs, one.sound_packs), (1, vec![ids[0]], Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_touched_snapshot_is_told_however_many_findings_there_are() {
    let mut fixture = Fixture::new().await;
    let content = fixture.pack(BlobType::Data, &[b"content"]).await;
    let root = fixture.tree(&[file_node("whole", 7, &content)]).await;
    let sound = fixture.finish(root).await;
    let mut touched = Vec::new();
    for number in 0..3_u32 {
        let absent = |file: u32| BlobId::of(&(number * FINDINGS_KEPT as u32 + file).to_le_bytes());
        let absent: Vec<BlobId> = (0..FINDINGS_KEPT as u32).map(absent).collect();
        let root = fixture.tree(&[file_node("lost", 9, &absent)]).await;
        touched.push(fixture.finish(root).await);
    }
    let broken = ObjectName::Snapshot(SnapshotId::from_bytes([7; 32]));
    fixture.store.put(&broken, "no snapshot".into()).await.unwrap();
    touched.push(SnapshotId::from_bytes([7; 32]));
    touched.sort_unstable();
    let report = checked(&fixture.repository, false).await;
    assert_eq!((report.findings.len(), report.findings_total), (FINDINGS_KEPT, 3001));
    assert_eq!((report.sound_snapshots, report.touched_snapshots), (vec![sound], touched));
}

#[test]
fn of_too_many_lost_blobs_their_packs_count_as_lost() {
    let mut lost = Lost::default();
    let (blob, pack) = (|number: usize| BlobId::of(&number.to_le_bytes()), PackId::of(b"pack"));
    assert!((0..LOST_BLOBS_KEPT).all(|number| lost.lose_blob(blob(number), Some(pack))));
    assert!(lost.packs.is_empty() && !lost.lose_blob(blob(0), Some(pack)));
    assert!(lost.lose_blob(blob(LOST_BLOBS_KEPT), Some(pack)));
    assert!(lost.packs.contains(&pack) && !lost.is_incomplete);
    assert!(lost.lose_blob(blob(LOST_BLOBS_KEPT), None) && lost.is_incomplete);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_during_a_check_is_not_taken_for_damaged() {
    let mut fixture = Fixture::new().await;
    let root = fixture.tree(&[]).await;
    let first = fixture.finish(root).await;
    let recording = RecordingStore::new(Arc::new(fixture.store.clone()));
    let keys = fixture.repository.keys().clone();
    let repository = Repository::from_keys(Arc::new(recording.clone()), *fixture.repository.config(), keys);
    let report = checked(&repository, true).await;
    assert!(report.is_sound() && report.sound_snapshots == [first]);
    let lists = recording.calls().into_iter().filter(|call| call.verb == Verb::List);
    let kinds: Vec<ObjectKind> = lists.filter_map(|call| call.kind).collect();
    // A backup makes its packs durable, then names them in an index object, then commits.
    assert_eq!(kinds, [ObjectKind::Key, ObjectKind::Snapshot, ObjectKind::Index, ObjectKind::Pack]);
}
