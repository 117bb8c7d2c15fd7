use std::io::{self, Cursor, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use holdfast_model::ErrorCode;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::chunker::{ChunkSizes, Chunker};
use crate::config::Config;
use crate::crypto::MasterKey;
use crate::error::RepositoryError;
use crate::format::ObjectKind;
use crate::id::{BlobId, BlobType};
use crate::pack::SealedPack;
use crate::reader::{BlobReader, LocalSource};
use crate::repository::Repository;
use crate::sink::{BlobSink, LocalSink};
use crate::storage::memory::MemoryStore;
use crate::storage::recording::{RecordingStore, Verb};
use crate::tree::{FileTime, NodeMetadata, NodeType, Tree};

mod tree_cache;

const TIME: FileTime = FileTime { seconds: 1_700_000_000, nanoseconds: 123_456_789 };

struct House {
    runtime: Runtime,
    store: RecordingStore,
    repository: Repository,
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let store = RecordingStore::new(Arc::new(MemoryStore::new()));
        let repository =
            Repository::from_keys(Arc::new(store.clone()), Config::generate(), MasterKey::generate());
        Self { runtime, store, repository, folder: tempfile::tempdir().unwrap() }
    }

    fn sink(&self) -> Arc<LocalSink> {
        self.runtime.block_on(LocalSink::open(self.repository.clone())).unwrap()
    }

    fn context(&self, sink: Arc<dyn BlobSink>) -> WriterContext {
        WriterContext {
            runtime: self.runtime.handle().clone(),
            sealer: Arc::clone(self.repository.sealer()),
            chunker: Chunker::of(self.repository.config()),
            sink,
            counters: Arc::default(),
            cancel: CancellationToken::new(),
            gate: None,
            tree_cache: None,
            read_observer: None,
        }
    }

    fn writer(&self, sink: Arc<dyn BlobSink>) -> SnapshotWriter {
        SnapshotWriter::new(self.context(sink), options(), None).unwrap()
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn reader(&self) -> BlobReader {
        let index = Arc::new(self.runtime.block_on(self.repository.load_index()).unwrap());
        let source = LocalSource::new(Arc::clone(self.repository.store()), index);
        BlobReader::new(Arc::new(source), Arc::clone(self.repository.sealer()))
    }

    fn tree(&self, id: BlobId) -> Tree {
        self.runtime.block_on(self.reader().load_tree(id)).unwrap()
    }

    fn content(&self, root: BlobId, path: &str) -> Vec<u8> {
        let reader = self.reader();
        let node = self.runtime.block_on(reader.find(root, path.as_bytes())).unwrap();
        let load = |id: &BlobId| self.runtime.block_on(reader.load(*id, BlobType::Data)).unwrap();
        let content = node.content.iter().map(load).collect::<Vec<_>>().concat();
        assert_eq!(content.len() as u64, node.metadata.size, "{path}");
        content
    }
}

fn options() -> WriteOptions {
    WriteOptions { threads: 2, pack_bytes_target: 1 << 20, ..WriteOptions::default() }
}

fn folder(path: &str) -> WriteEntry {
    let metadata = NodeMetadata::plain(NodeType::Directory, 0o755, TIME);
    WriteEntry { path: path.into(), metadata, content: WriteContent::None }
}

fn stream(path: &str, content: impl Into<Vec<u8>>) -> WriteEntry {
    let metadata = NodeMetadata::plain(NodeType::File, 0o600, TIME);
    WriteEntry {
        path: path.into(),
        metadata,
        content: WriteContent::Stream(Box::new(Cursor::new(content.into()))),
    }
}

fn file(path: &str, on_disk: &Path) -> WriteEntry {
    let mut metadata = NodeMetadata::plain(NodeType::File, 0o600, TIME);
    if let Ok(found) = std::fs::symlink_metadata(on_disk) {
        (metadata.size, metadata.inode, metadata.device_id) = (found.len(), found.ino(), found.dev());
    }
    WriteEntry { path: path.into(), metadata, content: WriteContent::File(on_disk.to_owned()) }
}

/// Bytes without structure, so that neither zstd nor deduplication makes them fewer.
fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend_from_slice(&seed.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn what_was_written_reads_back() {
    let house = House::new();
    let sink = house.sink();
    let large = noise(1, 20 << 20);
    let small = house.file("small", b"small");
    let big = house.file("big", &large);
    let pages = house.file("pages", &large[..3 << 20]);
    let mut writer = house.writer(Arc::clone(&sink) as _);
    writer.add(stream(".a", *b"before the own folder")).unwrap();
    writer.add(folder("dir")).unwrap();
    writer.add(file("dir/big", &big)).unwrap();
    writer.add(folder("dir/empty")).unwrap();
    let mut entry = file("dir/pages", &pages);
    entry.content = WriteContent::Pages { path: pages, page_bytes: 4096 };
    writer.add(entry).unwrap();
    writer.add(file("dir/small", &small)).unwrap();
    writer.add(stream("stream", large[7..].to_vec())).unwrap();
    let settled = writer.settle().unwrap();
    assert_eq!(settled.streams.get(&b"stream"[..]), Some(&(large.len() as u64 - 7)));
    let own = vec![OwnFile { name: "manifest.json".into(), bytes: b"{}".to_vec() }];
    let (root, written) = writer.finish(own, TIME).unwrap();
    house.runtime.block_on(sink.save_index()).unwrap();

    assert_eq!((written.totals.files, written.totals.folders, written.unreadable.len()), (5, 2, 0));
    assert_eq!(house.content(root, "dir/big"), large);
    assert_eq!(house.content(root, "dir/pages"), large[..3 << 20]);
    assert_eq!(house.content(root, "dir/small"), b"small");
    assert_eq!(house.content(root, "stream"), large[7..]);
    assert_eq!(house.content(root, ".holdfast/manifest.json"), b"{}");
    let names: Vec<_> = house.tree(root).nodes.into_iter().map(|node| node.name).collect();
    assert_eq!(names, [&b".a"[..], b".holdfast", b"dir", b"stream"]);
    // The stream is the file but for its first bytes: nearly all of its chunks were found again.
    assert!(written.totals.bytes_new < 26 << 20, "{:?}", written.totals);
}

#[test]
fn pages_are_cut_at_fixed_places() {
    let house = House::new();
    let sink = house.sink();
    let content = noise(3, 1_000_000);
    let path = house.file("pages", &content);
    let mut entry = file("pages", &path);
    entry.content = WriteContent::Pages { path, page_bytes: 4096 };
    let mut writer = house.writer(Arc::clone(&sink) as _);
    writer.add(entry).unwrap();
    let (root, _) = writer.finish(Vec::new(), TIME).unwrap();
    house.runtime.block_on(sink.save_index()).unwrap();
    let expected: Vec<BlobId> = content.chunks(16 << 10).map(BlobId::of).collect();
    assert_eq!(house.tree(root).find(b"pages").unwrap().content, expected);
}

#[test]
fn pages_may_be_read_from_a_copy_of_the_file_that_the_metadata_tell_of() {
    let house = House::new();
    let sink = house.sink();
    let (original, copy) = (house.file("original", b"old"), house.file("copy", &noise(4, 100_000)));
    let mut entry = file("pages", &original);
    entry.metadata.size = 100_000;
    entry.content = WriteContent::Pages { path: copy, page_bytes: 4096 };
    let mut writer = house.writer(Arc::clone(&sink) as _);
    writer.add(entry).unwrap();
    let (root, written) = writer.finish(Vec::new(), TIME).unwrap();
    house.runtime.block_on(sink.save_index()).unwrap();
    assert!(written.unreadable.is_empty(), "{:?}", written.unreadable);
    assert_eq!(house.content(root, "pages"), noise(4, 100_000));
}

#[test]
fn equal_content_is_stored_once() {
    let house = House::new();
    let sink = house.sink();
    let paths: Vec<_> = (0..600).map(|n| house.file(&format!("{n:03}"), &noise(n % 3, 5000))).collect();
    let mut writer = house.writer(sink);
    for (n, path) in paths.iter().enumerate() {
        writer.add(file(&format!("{n:03}"), path)).unwrap();
    }
    let (_, written) = writer.finish(Vec::new(), TIME).unwrap();
    assert_eq!((written.totals.files, written.totals.data_blobs_new), (600, 3));
}

fn write_folders(
    house: &House,
    sink: &Arc<LocalSink>,
    paths: &[PathBuf],
    parent: Option<Parent>,
) -> (BlobId, Written) {
    let mut writer = SnapshotWriter::new(house.context(Arc::clone(sink) as _), options(), parent).unwrap();
    for (n, path) in paths.iter().enumerate() {
        if n % 10 == 0 {
            writer.add(folder(&format!("{:03}", n / 10))).unwrap();
        }
        writer.add(file(&format!("{:03}/{n:04}", n / 10), path)).unwrap();
    }
    let finished = writer.finish(Vec::new(), TIME).unwrap();
    house.runtime.block_on(sink.save_index()).unwrap();
    finished
}

fn parent(house: &House, root: BlobId) -> Option<Parent> {
    let trees = Arc::new(ParentTrees::new(house.reader(), house.runtime.handle().clone()));
    Some(Parent { root, trees })
}

#[test]
fn an_unchanged_incremental_reads_no_file_and_writes_nothing() {
    let house = House::new();
    let sink = house.sink();
    let paths: Vec<_> = (0..300).map(|n| house.file(&n.to_string(), &noise(n, 900))).collect();
    let (first, _) = write_folders(&house, &sink, &paths, None);
    let parent = parent(&house, first);
    // A file that is not read need not be there.
    paths.iter().for_each(|path| std::fs::write(path, [0; 900]).unwrap());
    house.store.forget();
    let (second, written) = write_folders(&house, &sink, &paths, parent);
    assert_eq!(second, first);
    assert_eq!((written.totals.files_unchanged, written.totals.folders_unchanged), (300, 31));
    assert_eq!(written.totals.bytes_read, 0);
    let puts: usize = ObjectKind::ALL.iter().map(|kind| house.store.count(Verb::Put, *kind)).sum();
    assert_eq!(puts, 0, "the snapshot object alone is left to be written");
    // Trees of the parent, neighbours in one request; no content.
    assert!(house.store.count(Verb::GetRange, ObjectKind::Pack) <= 4, "{:?}", house.store.calls());
}

#[test]
fn a_changed_file_writes_its_content_and_the_trees_above_it() {
    let house = House::new();
    let sink = house.sink();
    let paths: Vec<_> = (0..300).map(|n| house.file(&n.to_string(), &noise(n, 900))).collect();
    let (first, _) = write_folders(&house, &sink, &paths, None);
    let parent = parent(&house, first);
    std::fs::write(&paths[123], noise(1234, 901)).unwrap();
    let (second, written) = write_folders(&house, &sink, &paths, parent);
    assert_ne!(second, first);
    let totals = written.totals;
    assert_eq!((totals.files_unchanged, totals.bytes_read), (299, 901));
    assert_eq!((totals.data_blobs_new, totals.tree_blobs_new), (1, 2));
    assert_eq!(house.content(second, "012/0123"), noise(1234, 901));
    assert_eq!(house.content(second, "012/0124"), noise(124, 900));
}

#[test]
fn a_parent_whose_trees_are_gone_is_read_as_if_new() {
    let house = House::new();
    let sink = house.sink();
    let paths: Vec<_> = (0..20).map(|n| house.file(&n.to_string(), &noise(n, 900))).collect();
    let (first, _) = write_folders(&house, &sink, &paths, None);
    let (second, written) = write_folders(&house, &sink, &paths, parent(&house, BlobId::of(b"gone")));
    assert_eq!((second, written.totals.files_unchanged), (first, 0));
}

#[test]
fn unreadable_files_are_left_out_and_named() {
    let house = House::new();
    let sink = house.sink();
    let good = house.file("good", b"good");
    let mut writer = house.writer(Arc::clone(&sink) as _);
    writer.add(folder("d")).unwrap();
    writer.add(file("d/a-folder", house.folder.path())).unwrap();
    writer.add(file("d/gone", &house.folder.path().join("gone"))).unwrap();
    writer.add(file("d/good", &good)).unwrap();
    let (root, written) = writer.finish(Vec::new(), TIME).unwrap();
    house.runtime.block_on(sink.save_index()).unwrap();
    let named: Vec<_> = written.unreadable.iter().map(|file| String::from_utf8_lossy(&file.path)).collect();
    assert_eq!(named, ["d/a-folder", "d/gone"]);
    assert!(written.unreadable[1].reason.contains("No such file"), "{:?}", written.unreadable);
    assert_eq!((written.totals.files, written.totals.unreadable), (1, 2));
    assert_eq!(house.content(root, "d/good"), b"good");
    let tree = house.tree(house.tree(root).find(b"d").unwrap().subtree.unwrap());
    assert_eq!(tree.nodes.len(), 1);
}

#[test]
fn more_unreadable_files_than_are_named_are_counted() {
    let house = House::new();
    let gone = house.folder.path().join("gone");
    let mut writer = house.writer(house.sink());
    for n in 0..1200 {
        writer.add(file(&format!("{n:04}"), &gone)).unwrap();
    }
    let written = writer.settle().unwrap();
    assert_eq!((written.unreadable.len(), written.totals.unreadable), (UNREADABLE_NAMED_MAX, 1200));
}

#[test]
fn a_file_of_another_size_than_announced_is_stored_as_read() {
    let house = House::new();
    let sink = house.sink();
    let path = house.file("f", &[9; 5000]);
    let mut writer = house.writer(Arc::clone(&sink) as _);
    for (name, size) in [("a", 10), ("b", 100_000_000), ("c", 5000)] {
        let mut entry = file(name, &path);
        entry.metadata.size = size;
        writer.add(entry).unwrap();
    }
    let (root, written) = writer.finish(Vec::new(), TIME).unwrap();
    house.runtime.block_on(sink.save_index()).unwrap();
    assert_eq!(written.totals.bytes, 15_000);
    for name in ["a", "b", "c"] {
        assert_eq!(house.content(root, name), [9; 5000]);
    }
}

struct Broken(usize);

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("the dump ended with status 1"));
        }
        let length = buffer.len().min(self.0);
        self.0 -= length;
        Ok(length)
    }
}

#[test]
fn a_broken_stream_ends_the_backup() {
    let house = House::new();
    let mut writer = house.writer(house.sink());
    let mut entry = stream("db.dump", "");
    entry.content = WriteContent::Stream(Box::new(Broken(10_000_000)));
    let error = writer.add(entry).unwrap_err();
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete);
    assert_eq!(error.to_string(), "the stream db.dump broke after 9.5 MiB");
    assert!(writer.finish(Vec::new(), TIME).is_err(), "nothing goes on after an error");
}

#[test]
fn entries_out_of_order_are_refused() {
    let refused = |paths: &[&str]| {
        let house = House::new();
        let mut writer = house.writer(house.sink());
        let mut last = Ok(());
        for path in paths {
            assert!(last.is_ok(), "{paths:?}: {last:?}");
            last = writer.add(if path.ends_with('/') {
                folder(path.trim_end_matches('/'))
            } else {
                stream(path, "")
            });
        }
        last.unwrap_err().code()
    };
    for paths in [
        &["b", "a"][..],
        &["a", "a"],
        &["d/", "d/a", "e", "d/b"],
        &["x/a"],
        &["d/", "d/e/f"],
        &[""],
        &["d/", "d/"],
        &["d/", "d/.."],
        &["/a"],
        &[".holdfast"],
        &["d/", "d/a\0b"],
    ] {
        assert_eq!(refused(paths), ErrorCode::Internal, "{paths:?}");
    }
}

/// Longer than any test may wait.
const HANGS: Duration = Duration::from_secs(3600);

/// A sink that takes its time, fails on demand and counts.
#[derive(Default)]
struct TestSink {
    delay: Duration,
    /// The first packs wait until there are so many at once.
    gather: usize,
    fail_at_pack: Option<usize>,
    packs: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl BlobSink for TestSink {
    async fn known(&self, _: BlobType, ids: &[BlobId]) -> Result<Vec<bool>, RepositoryError> {
        Ok(vec![false; ids.len()])
    }

    async fn put_pack(&self, _: SealedPack) -> Result<(), RepositoryError> {
        let number = self.packs.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        while self.most.load(Ordering::SeqCst) < self.gather {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(self.delay).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        if self.fail_at_pack == Some(number) {
            return Err(RepositoryError::sink(ErrorCode::ControllerUnreachable, "the connection broke"));
        }
        Ok(())
    }
}

fn feed(house: &House, sink: Arc<TestSink>) -> Result<(BlobId, Written), RepositoryError> {
    let mut writer = house.writer(sink);
    for n in 0..24 {
        writer.add(stream(&format!("{n:02}"), noise(n, 1 << 20)))?;
    }
    writer.finish(Vec::new(), TIME)
}

#[test]
fn packs_on_their_way_are_bounded() {
    let house = House::new();
    let (delay, gather) = (Duration::from_millis(20), options().packs_in_flight);
    let sink = Arc::new(TestSink { delay, gather, ..TestSink::default() });
    feed(&house, Arc::clone(&sink)).unwrap();
    assert_eq!(sink.most.load(Ordering::SeqCst), gather);
    assert!(sink.packs.load(Ordering::SeqCst) >= 20);
}

#[test]
fn a_failing_sink_ends_the_backup_with_its_error() {
    let house = House::new();
    for fail_at_pack in [0, 3, 22] {
        let sink = TestSink { fail_at_pack: Some(fail_at_pack), ..TestSink::default() };
        let error = feed(&house, Arc::new(sink)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ControllerUnreachable);
    }
}

#[test]
fn cancel_stops_a_writer_whose_sink_hangs() {
    let house = House::new();
    let sink = Arc::new(TestSink { delay: HANGS, ..TestSink::default() });
    let context = house.context(sink);
    let cancel = context.cancel.clone();
    let mut writer = SnapshotWriter::new(context, options(), None).unwrap();
    let canceller = std::thread::spawn(move || {
        // Time for the pipeline to fill up; that it has is not needed for the test to hold.
        std::thread::sleep(Duration::from_millis(100));
        cancel.cancel();
        Instant::now()
    });
    let error =
        (0..1000).find_map(|n| writer.add(stream(&format!("{n:04}"), noise(n, 1 << 20))).err()).unwrap();
    drop(writer);
    let cancelled = canceller.join().unwrap();
    assert_eq!(error.code(), ErrorCode::RunCancelled);
    assert!(cancelled.elapsed() < HANGS / 10, "it waited for its sink");
}

#[test]
fn a_writer_that_is_dropped_does_not_wait_for_its_sink() {
    let house = House::new();
    let sink = Arc::new(TestSink { delay: HANGS, ..TestSink::default() });
    let mut writer = house.writer(Arc::clone(&sink) as _);
    for n in 0..4 {
        writer.add(stream(&format!("{n:02}"), noise(n, 1 << 20))).unwrap();
    }
    while sink.packs.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let began = Instant::now();
    drop(writer);
    assert!(began.elapsed() < HANGS / 10, "it waited for its sink");
}

#[test]
fn a_writer_that_is_dropped_ends_its_threads() {
    let house = House::new();
    let sink = house.sink();
    let shared = Arc::downgrade(&sink);
    let mut writer = house.writer(sink);
    writer.add(stream("a", noise(1, 3 << 20))).unwrap();
    drop(writer);
    assert!(shared.upgrade().is_none(), "no thread holds the sink any more");
}

#[test]
fn what_was_damaged_while_it_was_encoded_is_never_stored() {
    let house = House::new();
    let armed = holdfast_runtime::fail_point::arm("repository.encode.damage=error:3").unwrap();
    let mut writer = house.writer(house.sink());
    let mut result = Ok(());
    for n in 0..10 {
        result = result.and_then(|()| writer.add(stream(&n.to_string(), vec![n; 100_000])));
    }
    let error = result.and_then(|()| writer.finish(Vec::new(), TIME).map(|_| ())).unwrap_err();
    drop(armed);
    assert_eq!(error.code(), ErrorCode::EncodingMismatch);
    assert_eq!(house.store.count(Verb::Put, ObjectKind::Pack), 0);
}

#[test]
fn many_small_chunks_fill_packs_and_read_back() {
    let house = House::new();
    let sink = house.sink();
    let mut context = house.context(Arc::clone(&sink) as _);
    let sizes = ChunkSizes { min: 64, average: 256, max: 1024 };
    context.chunker = Chunker::with_sizes(house.repository.config(), sizes);
    let content = noise(5, 3 << 20);
    let mut writer = SnapshotWriter::new(context, options(), None).unwrap();
    writer.add(stream("f", content.clone())).unwrap();
    let (root, written) = writer.finish(Vec::new(), TIME).unwrap();
    house.runtime.block_on(sink.save_index()).unwrap();
    assert!(written.totals.data_blobs_new > 8000, "{:?}", written.totals);
    assert_eq!(house.content(root, "f"), content);
}
