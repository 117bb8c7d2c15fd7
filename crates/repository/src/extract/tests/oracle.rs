//! `restic` as the other side: it writes, we restore, and the result is what it was.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::error::RepositoryError;
use crate::format::{ObjectKind, ObjectName};
use crate::id::BlobType;
use crate::id::PackId;
use crate::reader::fixture::{Fixture, ResticRepository, file_node, reader_of};
use crate::reader::{BlobPlace, BlobSource};
use crate::repository::Repository;
use crate::storage::fs::FsStore;
use crate::storage::recording::{RecordingStore, Verb};
use holdfast_model::ErrorCode;

#[tokio::test(flavor = "multi_thread")]
async fn what_restic_backed_up_is_restored_bit_exact_with_its_metadata() {
    let source = tempfile::tempdir().unwrap();
    picture::make_everything(source.path());
    let restic = ResticRepository::new();
    restic.back_up(source.path());
    let repository = restic.open().await;
    let (_, tree) = restic.tree_of(&repository, source.path()).await;

    // Count what the storage is asked for: neighbouring blobs come together.
    let recording = RecordingStore::new(Arc::new(FsStore::new(restic.path())));
    let recorded =
        Repository::from_keys(Arc::new(recording.clone()), *repository.config(), repository.keys().clone());
    let reader = reader_of(&recorded).await;
    recording.forget();
    let target = tempfile::tempdir().unwrap();
    let report = extract(&reader, tree, target.path(), &options()).await.unwrap();
    picture::assert_same(source.path(), target.path());
    assert_eq!(report.warnings, Vec::<String>::new());
    assert_eq!((report.hard_links, report.symlinks, report.fifos), (2, 2, 1));
    let requests = recording.count(Verb::GetRange, ObjectKind::Pack);
    assert!(requests < 25, "{requests} requests for {} files", report.files);

    let sparse = std::fs::metadata(target.path().join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 3_000_000, "holes were filled: {} blocks", sparse.blocks());

    // What we restored, restic finds unchanged.
    let again = restic.restic(&[
        "restore",
        "latest",
        "--target",
        restic.folder.path().join("by-restic").to_str().unwrap(),
    ]);
    let inner = source.path().strip_prefix("/").unwrap();
    picture::assert_same(&restic.folder.path().join("by-restic").join(inner), target.path());
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_ownership_no_special_bits_and_no_system_attributes_are_restored() {
    let mut fixture = Fixture::new().await;
    let mut node = file_node("tool", 0, &[]);
    node.metadata.mode = 0o6755;
    node.metadata.uid = 12_345;
    node.metadata.xattrs = vec![
        (b"security.capability".to_vec(), vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (b"user.ok".to_vec(), b"1".to_vec()),
    ];
    let root = fixture.tree(&[node]).await;
    fixture.finish(root).await;
    let target = tempfile::tempdir().unwrap();
    let plain = ExtractOptions { owner: false, ..ExtractOptions::default() };
    let report = extract(&fixture.reader().await, root, target.path(), &plain).await.unwrap();
    let metadata = std::fs::metadata(target.path().join("tool")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o755);
    assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
    let names: Vec<_> = xattr::list(target.path().join("tool")).unwrap().collect();
    assert_eq!(names, ["user.ok"]);
    assert_eq!(report.warnings_total, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_content_is_left_alone() {
    let mut fixture = Fixture::new().await;
    let root = fixture.tree(&[]).await;
    fixture.finish(root).await;
    let target = tempfile::tempdir().unwrap();
    std::fs::write(target.path().join("mine"), b"mine").unwrap();
    let error = extract(&fixture.reader().await, root, target.path(), &options()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetExists);
    assert_eq!(std::fs::read(target.path().join("mine")).unwrap(), b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_reported_with_the_object_and_the_files() {
    let mut fixture = Fixture::new().await;
    let ids = fixture.pack(BlobType::Data, &[b"good", b"bad", b"ugly"]).await;
    let pack = ObjectName::Pack(fixture.last_pack());
    let nodes: Vec<_> = (0..7).map(|n| file_node(&format!("file {n}"), 3, &ids[1..2])).collect();
    let root = fixture.tree(&nodes).await;
    fixture.finish(root).await;
    let reader = fixture.reader().await;
    let whole = crate::storage::ObjectStore::get(&fixture.store, &pack).await.unwrap();
    let mut spoilt = whole.to_vec();
    spoilt[40] ^= 1;
    fixture.store.replace(pack, spoilt);
    let target = tempfile::tempdir().unwrap();
    let error = extract(&reader, root, target.path(), &options()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ObjectDamaged);
    let text = error.to_string();
    assert!(text.contains("\"file 0\"") && text.contains("and 2 more files"), "{text}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains(&pack.path()) && cause.contains(&ids[1].to_hex()), "{cause}");

    crate::storage::ObjectStore::delete(&fixture.store, &pack).await.unwrap();
    let target = tempfile::tempdir().unwrap();
    let error = extract(&reader, root, target.path(), &options()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ObjectMissing);
    assert!(error.to_string().contains("\"file 0\""), "{error}");
}

/// Cancels the restore once some ranges were read.
struct CancelsAfter {
    inner: Arc<dyn BlobSource>,
    reads: AtomicUsize,
    token: CancellationToken,
}

#[async_trait]
impl BlobSource for CancelsAfter {
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobPlace>>, RepositoryError> {
        self.inner.locate(blob_type, ids).await
    }

    async fn read(&self, pack: PackId, offset: u32, length: u32) -> Result<Bytes, RepositoryError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) == 3 {
            self.token.cancel();
            // A request that is never answered: only the token ends it.
            std::future::pending::<()>().await;
        }
        self.inner.read(pack, offset, length).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_ends_even_while_the_storage_hangs() {
    let mut fixture = Fixture::new().await;
    let parts: Vec<_> = (0..8).map(|n| crate::storage::conformance::noise(3 << 20, n)).collect();
    let slices: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
    let content = fixture.pack(BlobType::Data, &slices).await;
    let root = fixture.tree(&[file_node("file", 24 << 20, &content)]).await;
    fixture.finish(root).await;
    let reader = fixture.reader().await;
    let token = CancellationToken::new();
    let source =
        CancelsAfter { inner: Arc::clone(reader.source()), reads: AtomicUsize::new(0), token: token.clone() };
    let reader = BlobReader::new(Arc::new(source), Arc::clone(reader.sealer()));
    let target = tempfile::tempdir().unwrap();
    let restored =
        extract_tree(&reader, root, &target.path().join("new"), &options(), Arc::default(), &token).await;
    assert_eq!(restored.unwrap_err().code(), ErrorCode::RunCancelled);
}
