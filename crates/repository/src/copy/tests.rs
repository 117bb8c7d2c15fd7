use std::path::Path;

use bytes::Bytes;
use futures::TryStreamExt;
use parking_lot::RwLock;

use super::*;
use crate::check::{CheckOptions, check};
use crate::crypto::MasterKey;
use crate::format::ObjectKind;
use crate::index::MemoryIndex;
use crate::reader::fixture::{Fixture, PASSWORD, ResticRepository, file_node, folder_node, reader_of};
use crate::repository::Repository;
use crate::sink::LocalSink;
use crate::storage::ObjectStore;
use crate::storage::conformance::noise;
use crate::storage::recording::{RecordingStore, Verb};

/// Copies trees one after the other, as a caller does, and publishes those that are whole.
struct Copying {
    to: Repository,
    sink: Arc<LocalSink>,
    context: CopyContext,
}

impl Copying {
    async fn new(from: Vec<BlobReader>, to: &Repository) -> Self {
        let sink = LocalSink::open(to.clone()).await.unwrap();
        let context = CopyContext {
            runtime: Handle::current(),
            from,
            to: sink.clone(),
            sealer: Arc::clone(to.sealer()),
            only_count: false,
            progress: Arc::default(),
            cancel: CancellationToken::new(),
        };
        Self { to: to.clone(), sink, context }
    }

    async fn trees(&self, roots: &[BlobId]) -> Vec<CopiedTree> {
        let (context, roots) = (self.context.clone(), roots.to_vec());
        let copied = tokio::task::spawn_blocking(move || {
            let mut copier = Copier::new(context);
            let copied = roots.iter().map(|root| copier.copy_tree(*root)).collect::<Result<_, _>>()?;
            copier.finish().map(|()| copied)
        });
        let copied = copied.await.unwrap().unwrap();
        self.sink.save_index().await.unwrap();
        copied
    }

    /// Copies snapshots and publishes them; gives their new ids.
    async fn snapshots(&self, from: &Repository, ids: &[SnapshotId]) -> Vec<SnapshotId> {
        let mut roots = Vec::new();
        for id in ids {
            roots.push(from.snapshot(*id).await.unwrap().tree);
        }
        let mut made = Vec::new();
        for (id, copied) in ids.iter().zip(self.trees(&roots).await) {
            assert!(copied.lost.is_empty(), "{:?}", copied.lost);
            let text = from.load_unpacked(&ObjectName::Snapshot(*id)).await.unwrap();
            let text = copied_snapshot(*id, &text, &copied.sent).unwrap();
            let name = self.to.save_unpacked(ObjectKind::Snapshot, &text).await.unwrap();
            made.push(SnapshotId::from_bytes(*name.content_hash().unwrap()));
        }
        made
    }
}

async fn expect_sound(repository: &Repository) {
    let index = Arc::new(RwLock::new(MemoryIndex::new()));
    let options = CheckOptions { read_data: true, ..CheckOptions::default() };
    let report = check(repository, index, options, Arc::default(), &CancellationToken::new()).await.unwrap();
    assert!(report.is_sound(), "{:#?}", report.findings);
}

async fn names(repository: &Repository, kind: ObjectKind) -> Vec<ObjectName> {
    let listed: Vec<_> = repository.store().list(kind).await.unwrap().try_collect().await.unwrap();
    listed.into_iter().map(|(name, _)| name).collect()
}

/// Two snapshots that share a folder, and their blobs.
struct History {
    fixture: Fixture,
    contents: Vec<Bytes>,
    snapshots: Vec<SnapshotId>,
}

impl History {
    async fn new() -> Self {
        let mut fixture = Fixture::new().await;
        let contents: Vec<Bytes> = (0..12).map(|n| noise(3000 + n * 500, n as u64)).collect();
        let mut ids = Vec::new();
        for some in contents.chunks(4) {
            let blobs: Vec<&[u8]> = some.iter().map(|content| content.as_ref()).collect();
            ids.extend(fixture.pack(BlobType::Data, &blobs).await);
        }
        let file = |name: &str, range: std::ops::Range<usize>| {
            let size = contents[range.clone()].iter().map(|content| content.len() as u64).sum();
            file_node(name, size, &ids[range])
        };
        let shared = fixture.tree(&[file("a", 0..4), file("b", 2..3)]).await;
        let mut snapshots = Vec::new();
        for files in [vec![file("old", 4..8)], vec![file("new", 8..12)]] {
            let root = fixture.tree(&[&[folder_node("shared", shared)], files.as_slice()].concat()).await;
            snapshots.push(fixture.finish(root).await);
        }
        Self { fixture, contents, snapshots }
    }

    async fn tree(&self, snapshot: usize) -> BlobId {
        self.fixture.repository.snapshot(self.snapshots[snapshot]).await.unwrap().tree
    }

    /// The pack that holds one of the contents.
    async fn pack_of(&self, content: usize) -> ObjectName {
        let index = self.fixture.repository.load_index().await.unwrap();
        ObjectName::Pack(index.get(BlobType::Data, &BlobId::of(&self.contents[content])).unwrap().pack)
    }

    /// Damages one of the contents where it lies.
    async fn damage(&self, content: usize) {
        let id = BlobId::of(&self.contents[content]);
        let location = self.fixture.repository.load_index().await.unwrap().get(BlobType::Data, &id).unwrap();
        let name = ObjectName::Pack(location.pack);
        let mut bytes = self.fixture.store.get(&name).await.unwrap().to_vec();
        bytes[location.entry.offset as usize + 20] ^= 1;
        self.fixture.store.delete(&name).await.unwrap();
        self.fixture.store.put(&name, bytes.into()).await.unwrap();
    }

    async fn expect_whole_in(&self, repository: &Repository, snapshot: SnapshotId, which: usize) {
        let reader = reader_of(repository).await;
        let root = repository.snapshot(snapshot).await.unwrap().tree;
        reader.find(root, b"shared/a").await.unwrap();
        for content in (0..4).chain(4 + 4 * which..8 + 4 * which) {
            let id = BlobId::of(&self.contents[content]);
            assert_eq!(reader.load(id, BlobType::Data).await.unwrap(), self.contents[content]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_whole_under_another_key_and_its_origin_is_only_read() {
    let history = History::new().await;
    let recording = RecordingStore::new(Arc::new(history.fixture.store.clone()));
    let origin = &history.fixture.repository;
    let keys = MasterKey::from_bytes(&origin.keys().to_bytes());
    let from = Repository::from_keys(Arc::new(recording.clone()), *origin.config(), keys);
    let to = Fixture::new().await;
    let copying = Copying::new(vec![reader_of(&from).await], &to.repository).await;
    let made = copying.snapshots(&from, &history.snapshots).await;
    assert!(recording.calls().iter().all(|call| {
        matches!(call.verb, Verb::Get | Verb::GetRange | Verb::Size | Verb::List) && call.bytes < (64 << 20)
    }));
    expect_sound(&to.repository).await;
    for (which, (copy, origin)) in made.iter().zip(&history.snapshots).enumerate() {
        history.expect_whole_in(&to.repository, *copy, which).await;
        let object = to.repository.snapshot(*copy).await.unwrap();
        assert_eq!((object.original, object.parent), (Some(*origin), None));
    }
    let sent = copying.context.progress.sent();
    assert_eq!((sent.data_blobs, sent.tree_blobs), (12, 3));
    // One pack of data and one of folders: small snapshots share them.
    assert_eq!(names(&to.repository, ObjectKind::Pack).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_copy_sends_only_what_the_first_did_not() {
    let history = History::new().await;
    let from = history.fixture.reader().await;
    let to = Fixture::new().await;
    let first = Copying::new(vec![from.clone()], &to.repository).await.trees(&[history.tree(0).await]).await;
    assert_eq!((first[0].sent.data_blobs, first[0].sent.tree_blobs), (8, 2));
    let packs = names(&to.repository, ObjectKind::Pack).await;
    let again = Copying::new(vec![from.clone()], &to.repository).await.trees(&[history.tree(0).await]).await;
    assert!(again[0].sent.is_nothing());
    assert_eq!(names(&to.repository, ObjectKind::Pack).await, packs);
    let counting = Copying::new(vec![from.clone()], &to.repository).await;
    let context = CopyContext { only_count: true, ..counting.context.clone() };
    let counted = Copying { context, ..counting }.trees(&[history.tree(1).await]).await;
    assert_eq!(names(&to.repository, ObjectKind::Pack).await, packs);
    let second = Copying::new(vec![from], &to.repository).await.trees(&[history.tree(1).await]).await;
    assert_eq!((second[0].sent.data_blobs, second[0].sent.tree_blobs), (4, 1));
    assert_eq!(counted[0].sent, second[0].sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_other_repository_has_as_content_is_no_folder_there_and_the_reverse() {
    let text: &[u8] = b"{\"nodes\":[]}\n";
    let (mut as_folder, mut as_content) = (Fixture::new().await, Fixture::new().await);
    let empty = as_folder.tree(&[]).await;
    let root = as_folder.tree(&[folder_node("empty", empty)]).await;
    as_folder.finish(root).await;
    let content = as_content.pack(BlobType::Data, &[text]).await;
    assert_eq!(content, [empty], "the same bytes have the same id");
    let listing = as_content.tree(&[file_node("listing", text.len() as u64, &content)]).await;
    as_content.finish(listing).await;
    for (from, to, root) in [(&as_folder, &as_content, root), (&as_content, &as_folder, listing)] {
        let copying = Copying::new(vec![from.reader().await], &to.repository).await;
        assert!(copying.trees(&[root]).await[0].lost.is_empty());
        let reader = reader_of(&to.repository).await;
        assert!(reader.load_tree(empty).await.unwrap().nodes.is_empty());
        assert_eq!(reader.load(empty, BlobType::Data).await.unwrap(), text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_named_by_every_snapshot_that_needs_it_and_the_others_are_copied() {
    let history = History::new().await;
    // Of the older snapshot alone, then of the folder that both share.
    for (content, fails) in [(5, [true, false]), (2, [true, true])] {
        let history = if content == 5 { &history } else { &History::new().await };
        history.damage(content).await;
        let to = Fixture::new().await;
        let copying = Copying::new(vec![history.fixture.reader().await], &to.repository).await;
        let copied = copying.trees(&[history.tree(0).await, history.tree(1).await]).await;
        assert_eq!([0, 1].map(|which| !copied[which].lost.is_empty()), fails);
        let pack = history.pack_of(content).await;
        let blob = BlobId::of(&history.contents[content]);
        let expected = format!("blob {blob} in {pack} is damaged: its authentication tag does not fit");
        assert_eq!(copied[0].lost[0].to_string(), expected);
        assert_eq!(copied[0].lost.len(), 1);
        assert_eq!(
            copied[0].damaged_packs.iter().map(|pack| ObjectName::Pack(*pack)).collect::<Vec<_>>(),
            [pack]
        );
        let index = to.repository.load_index().await.unwrap();
        let there = |content: &Bytes| index.contains(BlobType::Data, &BlobId::of(content));
        let absent: Vec<_> = (0..12).filter(|n| !there(&history.contents[*n])).collect();
        assert_eq!(absent, [content]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_gone_is_named_with_each_of_its_blobs() {
    let history = History::new().await;
    let pack = history.pack_of(9).await;
    history.fixture.store.delete(&pack).await.unwrap();
    let to = Fixture::new().await;
    let copying = Copying::new(vec![history.fixture.reader().await], &to.repository).await;
    let copied = copying.trees(&[history.tree(1).await, history.tree(0).await]).await;
    assert_eq!(copied[0].lost.len(), 4);
    assert!(copied[0].lost.iter().all(|error| error.to_string().contains(&pack.to_string())));
    assert!(copied[1].lost.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_taken_from_another_source() {
    let history = History::new().await;
    let copy = Fixture::new().await;
    let first = Copying::new(vec![history.fixture.reader().await], &copy.repository).await;
    first.snapshots(&history.fixture.repository, &history.snapshots).await;
    history.damage(2).await;
    let ObjectName::Pack(damaged) = history.pack_of(2).await else { panic!() };
    // As a caller does who knows of the damage.
    let mut index = history.fixture.repository.load_index().await.unwrap();
    index.doubt(damaged);
    let doubting: Arc<dyn BlobSink> =
        Arc::new(Doubting(index, LocalSink::open(history.fixture.repository.clone()).await.unwrap()));
    let sources = vec![history.fixture.reader().await, reader_of(&copy.repository).await];
    let healing = Copying::new(sources, &history.fixture.repository).await;
    let context = CopyContext { to: doubting, ..healing.context.clone() };
    let healing = Copying { context, ..healing };
    let copied = healing.trees(&[history.tree(0).await, history.tree(1).await]).await;
    assert!(copied.iter().all(|copied| copied.lost.is_empty()), "{copied:?}");
    // All blobs of the pack are stored again, three of them from the pack itself.
    assert_eq!(healing.context.progress.sent().data_blobs, 4);
    assert_eq!(copied[0].damaged_packs, [damaged]);
}

/// A sink that relies not on a pack.
struct Doubting(MemoryIndex, Arc<LocalSink>);

#[async_trait::async_trait]
impl BlobSink for Doubting {
    async fn known(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Vec<bool>, RepositoryError> {
        Ok(ids.iter().map(|id| self.0.is_sound(blob_type, id)).collect())
    }

    async fn put_pack(&self, pack: crate::pack::SealedPack) -> Result<(), RepositoryError> {
        self.1.put_pack(pack).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_stops() {
    let history = History::new().await;
    let to = Fixture::new().await;
    let copying = Copying::new(vec![history.fixture.reader().await], &to.repository).await;
    copying.context.cancel.cancel();
    let (context, root) = (copying.context.clone(), history.tree(0).await);
    let ended = tokio::task::spawn_blocking(move || Copier::new(context).copy_tree(root).map(drop));
    assert_eq!(ended.await.unwrap().unwrap_err().code(), ErrorCode::RunCancelled);
    assert!(names(&to.repository, ObjectKind::Pack).await.is_empty());
}

fn make_files(folder: &Path) {
    std::fs::create_dir_all(folder.join("below")).unwrap();
    for number in 0..20u64 {
        std::fs::write(folder.join(format!("below/{number}")), noise(20_000, number)).unwrap();
    }
    std::fs::write(folder.join("text"), "the same line again\n".repeat(100_000)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn restic_reads_a_copy_of_its_snapshot_and_knows_it_for_one() {
    let files = tempfile::tempdir().unwrap();
    make_files(files.path());
    let (one, other) = (ResticRepository::new(), ResticRepository::new());
    one.restic(&["backup", "--quiet", "--exclude", "*.tmp", "--tag", "a", files.path().to_str().unwrap()]);
    let (from, to) = (one.open().await, other.open().await);
    let ids = from.snapshot_ids().await.unwrap();
    let copying = Copying::new(vec![reader_of(&from).await], &to).await;
    let made = copying.snapshots(&from, &ids).await;
    other.restic(&["check", "--read-data"]);
    expect_sound(&to).await;
    let listed: Value = serde_json::from_str(&other.restic(&["snapshots", "--json"])).unwrap();
    assert_eq!(
        (&listed[0]["id"], &listed[0]["original"]),
        (&made[0].to_hex().into(), &ids[0].to_hex().into())
    );
    assert_eq!(listed[0]["excludes"][0], "*.tmp");
    let password = files.path().join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let (from_path, password) = (one.path(), password.display().to_string());
    let said = other.restic(&[
        "copy",
        "--from-repo",
        from_path.to_str().unwrap(),
        "--from-password-file",
        &password,
    ]);
    assert!(said.contains("was already copied to snapshot"), "{said}");
    let target = files.path().join("restored");
    other.restic(&["restore", &made[0].to_hex(), "--target", target.to_str().unwrap()]);
    let restored = target.join(files.path().strip_prefix("/").unwrap());
    for name in ["below/7", "text"] {
        assert_eq!(
            std::fs::read(restored.join(name)).unwrap(),
            std::fs::read(files.path().join(name)).unwrap()
        );
    }
    // And the other way round: what restic copied is known for a copy by the same field.
    let third = ResticRepository::new();
    third.restic(&["copy", "--from-repo", from_path.to_str().unwrap(), "--from-password-file", &password]);
    let third = third.open().await;
    let copied = third.snapshot(third.snapshot_ids().await.unwrap()[0]).await.unwrap();
    assert_eq!(copied.original, Some(ids[0]));
}

#[test]
fn a_copy_of_a_copy_names_the_first_and_says_what_it_took_itself() {
    let origin = SnapshotId::from_bytes([1; 32]);
    let text = format!(
        r#"{{"time":"2026-11-21T08:00:00Z","tree":"{0}","parent":"{0}","original":"{1}","later":{{"x":1}},
        "summary":{{"files_new":3,"data_added":9}}}}"#,
        BlobId::of(b""),
        "02".repeat(32)
    );
    let sent = Sent { data_blobs: 1, tree_blobs: 2, content_bytes: 3, stored_bytes: 4 };
    let made: Value =
        serde_json::from_slice(&copied_snapshot(origin, text.as_bytes(), &sent).unwrap()).unwrap();
    assert_eq!((&made["original"], &made["parent"]), (&"02".repeat(32).into(), &Value::Null));
    assert_eq!((&made["later"]["x"], &made["summary"]["files_new"]), (&1.into(), &3.into()));
    assert_eq!(
        (&made["summary"]["data_added"], &made["summary"]["data_added_packed"]),
        (&3.into(), &4.into())
    );
    let refused = copied_snapshot(origin, b"[]", &sent).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::ObjectDamaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_open_to_what_was_sealed_is_not_stored() {
    let history = History::new().await;
    let to = Fixture::new().await;
    let copying = Copying::new(vec![history.fixture.reader().await], &to.repository).await;
    let armed = holdfast_runtime::fail_point::arm("repository.encode.damage=error:3").unwrap();
    let (context, root) = (copying.context.clone(), history.tree(0).await);
    let ended = tokio::task::spawn_blocking(move || Copier::new(context).copy_tree(root).map(drop));
    let failed = ended.await.unwrap().unwrap_err();
    drop(armed);
    assert_eq!(failed.code(), ErrorCode::EncodingMismatch);
    assert!(names(&to.repository, ObjectKind::Pack).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_folders_are_opened_a_few_at_a_time_and_all_of_them_copied() {
    let mut fixture = Fixture::new().await;
    let content = fixture.pack(BlobType::Data, &[b"the same"]).await[0];
    let mut folders = Vec::new();
    for number in 0..12 {
        // 67 bytes of text for each.
        let file = file_node(&number.to_string(), 8 * 15_000, &[content; 15_000]);
        folders.push(fixture.tree(&[file]).await);
    }
    let nodes: Vec<_> = folders
        .iter()
        .enumerate()
        .map(|(number, folder)| folder_node(&number.to_string(), *folder))
        .collect();
    let root = fixture.tree(&nodes).await;
    fixture.finish(root).await;
    let to = Fixture::new().await;
    let copying = Copying::new(vec![fixture.reader().await], &to.repository).await;
    let context = CopyContext { only_count: true, ..copying.context.clone() };
    let taken = tokio::task::spawn_blocking(move || {
        let mut copier = Copier::new(context);
        let wanted = copier.ask(BlobType::Tree, &folders)?;
        copier.take(wanted, BlobType::Tree)
    });
    let (trees, left) = taken.await.unwrap().unwrap();
    assert_eq!((trees.len(), left.len()), (8, 4));
    let counted = copying.context.progress.sent();
    let copied = copying.trees(&[root]).await;
    assert!(copied[0].lost.is_empty(), "{:?}", copied[0].lost);
    assert_eq!((counted.tree_blobs, copied[0].sent.tree_blobs, copied[0].sent.data_blobs), (8, 13, 1));
}
