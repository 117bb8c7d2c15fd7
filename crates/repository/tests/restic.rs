//! restic as an independent reader of what we write, and as a writer of what we read.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::secret::Secret;
use holdfast_repository::chunker::Chunker;
use holdfast_repository::forget::forget_snapshot;
use holdfast_repository::id::BlobId;
use holdfast_repository::index::MemoryIndex;
use holdfast_repository::key_slot::{KeyOrigin, ScryptCost};
use holdfast_repository::lock::{HeldLock, LockMode, LockOwner};
use holdfast_repository::prune::{self, PruneNumbers, PruneOptions, SurveyOptions};
use holdfast_repository::prune_apply;
use holdfast_repository::reader::{BlobReader, LocalSource};
use holdfast_repository::sink::LocalSink;
use holdfast_repository::snapshot::SnapshotObject;
use holdfast_repository::storage::ObjectStore;
use holdfast_repository::storage::fs::FsStore;
use holdfast_repository::tree::{FileTime, NodeType};
use holdfast_repository::write::{
    OwnFile, Parent, ParentTrees, SnapshotWriter, WriteOptions, WriterContext, Written,
};
use holdfast_repository::{CreateOptions, Repository};
use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, mkfifoat, utimensat};
use tokio::runtime::Runtime;

#[path = "support/walk.rs"]
mod walk;

const PASSWORD: &str = "correct horse";
const NOW: &str = "2026-11-21T12:34:56.789Z";
/// When a second snapshot is made: restic takes the one with the latest time for the latest.
const LATER: &str = "2026-11-21T13:34:56.789Z";

struct House {
    runtime: Runtime,
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { runtime, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(FsStore::new(self.path("repository")))
    }

    fn create(&self) -> Repository {
        self.runtime.block_on(FsStore::create(self.path("repository"))).unwrap();
        let origin = KeyOrigin { created: now(), hostname: "db1".into(), username: "backup".into() };
        let options = CreateOptions { cost: ScryptCost { log_n: 10, r: 8, p: 1 }, origin };
        self.runtime.block_on(Repository::create(self.store(), &Secret::new(PASSWORD), options)).unwrap()
    }

    fn open(&self) -> Repository {
        self.runtime.block_on(Repository::open(self.store(), &Secret::new(PASSWORD))).unwrap()
    }

    fn reader(&self, repository: &Repository) -> BlobReader {
        let index = Arc::new(self.runtime.block_on(repository.load_index()).unwrap());
        let source = LocalSource::new(Arc::clone(repository.store()), index);
        BlobReader::new(Arc::new(source), Arc::clone(repository.sealer()))
    }

    /// Backs a folder up and commits the snapshot.
    fn back_up(&self, repository: &Repository, source: &Path, parent: Option<BlobId>) -> (BlobId, Written) {
        let sink = self.runtime.block_on(LocalSink::open(repository.clone())).unwrap();
        let context = WriterContext {
            runtime: self.runtime.handle().clone(),
            sealer: Arc::clone(repository.sealer()),
            chunker: Chunker::of(repository.config()),
            sink: Arc::clone(&sink) as _,
            counters: Arc::default(),
            cancel: tokio_util::sync::CancellationToken::new(),
            gate: None,
            tree_cache: None,
            read_observer: None,
        };
        let time = if parent.is_some() { LATER } else { NOW };
        let parent = parent.map(|root| {
            let trees = ParentTrees::new(self.reader(repository), self.runtime.handle().clone());
            Parent { root, trees: Arc::new(trees) }
        });
        let mut writer = SnapshotWriter::new(context, WriteOptions::default(), parent).unwrap();
        walk::walk(source, |entry| writer.add(entry).unwrap()).unwrap();
        let own = OwnFile { name: "manifest.json".into(), bytes: b"{\"engine\":\"files\"}\n".to_vec() };
        let (tree, written) = writer.finish(vec![own], FileTime::new(1_795_264_496, 0)).unwrap();
        let snapshot = SnapshotObject {
            time: time.into(),
            parent: None,
            tree,
            paths: vec!["/srv/data".into()],
            hostname: "db1".into(),
            username: "backup".into(),
            uid: 0,
            gid: 0,
            tags: vec!["holdfast".into(), "source:files".into()],
            original: None,
            program_version: "holdfast 0.1.0".into(),
            summary: None,
        };
        self.runtime.block_on(async {
            sink.save_index().await.unwrap();
            repository.save_snapshot(&snapshot).await.unwrap();
        });
        (tree, written)
    }

    /// Runs restic on the repository; it must succeed. Returns what it printed.
    fn restic(&self, arguments: &[&OsStr]) -> String {
        let output = self.restic_may_fail(arguments);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "restic {arguments:?}: {text}");
        text
    }

    fn restic_may_fail(&self, arguments: &[&OsStr]) -> std::process::Output {
        Command::new("restic")
            .arg("--repo")
            .arg(self.path("repository"))
            .arg("--cache-dir")
            .arg(self.path("cache"))
            .args(arguments)
            .env("RESTIC_PASSWORD", PASSWORD)
            .output()
            .expect("restic is installed")
    }

    fn check(&self) {
        let text = self.restic(&["check".as_ref(), "--read-data".as_ref()]);
        assert!(text.contains("no errors were found"), "{text}");
        for word in ["warning", "error:", "Warning"] {
            assert!(!text.contains(word), "{text}");
        }
    }
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn set_times(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    utimensat(
        CWD,
        path,
        &Timestamps { last_access: time, last_modification: time },
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// A tree with everything that is awkward.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er/and/deeper")).unwrap();
    fs::create_dir(root.join("empty folder")).unwrap();
    fs::create_dir(root.join("<html>&amp;")).unwrap();
    let names: [&[u8]; 14] = [
        b"with space",
        b"with\nnewline\tand tab",
        b"-rf",
        b"--help",
        b"quote\"and'and\\backslash",
        "größe-日本語-🦀".as_bytes(),
        b"invalid-\xff\xfe-utf8",
        b"\x01\x7f control",
        "nbsp\u{a0}zwsp\u{200b}".as_bytes(),
        b"...",
        b"..hidden",
        b"<a>&b",
        b"trailing ",
        "e\u{301}".as_bytes(),
    ];
    for (number, name) in names.iter().enumerate() {
        let path = root.join(OsStr::from_bytes(name));
        fs::write(&path, noise(number as u64, number * 100 + 1)).unwrap();
        set_times(&path, 1_600_000_000 + number as i64, 123_456_789 - number as i64);
    }
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("large"), noise(77, 20 << 20)).unwrap();
    fs::write(root.join("compressible"), vec![b'x'; 5 << 20]).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(30 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 17 << 20).unwrap();
    symlink("large", root.join("link")).unwrap();
    symlink("/no/where\n", root.join("dangling link")).unwrap();
    fs::hard_link(root.join("large"), root.join("deep/hard link")).unwrap();
    mkfifoat(CWD, root.join("fifo"), Mode::from_raw_mode(0o640)).unwrap();
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("none", 0o000), ("all", 0o777)] {
        fs::write(root.join(name), name).unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    xattr::set(root.join("empty"), "user.holdfast.binary", b"\x00\xff value").unwrap();
    xattr::set(root.join("deep"), "user.holdfast", b"on a folder").unwrap();
    for (name, seconds) in
        [("large", 0), ("compressible", -1_000_000_000), ("deep/er", 4_000_000_000), ("link", 5)]
    {
        set_times(&root.join(name), seconds, 999_999_999);
    }
}

/// Every entry with everything that a restore must bring back.
fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inodes = std::collections::HashMap::new();
    walk::walk(root, |entry| {
        let m = entry.metadata;
        let path = entry.path.escape_ascii().to_string();
        // Hard links are told by the first name of their file, as inode numbers differ.
        let same = if m.links > 1 && m.node_type != NodeType::Directory {
            inodes.entry(m.inode).or_insert_with(|| path.clone()).clone()
        } else {
            String::new()
        };
        let content = match m.node_type {
            NodeType::File => fs::read(root.join(OsStr::from_bytes(&entry.path))).unwrap(),
            _ => Vec::new(),
        };
        let links = if m.node_type == NodeType::Directory { 0 } else { m.links };
        lines.push(format!(
            "{path} {:?} {:o} {:?} {}:{} {} {links} {same} {:?} {:?} {}",
            m.node_type,
            m.mode,
            m.mtime,
            m.uid,
            m.gid,
            m.size,
            m.link_target,
            m.xattrs,
            BlobId::of(&content)
        ));
    })
    .unwrap();
    lines
}

fn restored(house: &House, target: &str) -> Vec<String> {
    let path = house.path(target);
    house.restic(&["restore".as_ref(), "latest".as_ref(), "--target".as_ref(), path.as_ref()]);
    let manifest = fs::read(path.join(".holdfast/manifest.json")).unwrap();
    assert_eq!(manifest, b"{\"engine\":\"files\"}\n");
    fs::remove_dir_all(path.join(".holdfast")).unwrap();
    describe(&path)
}

#[test]
fn a_file_that_reads_like_an_empty_folder_is_stored_beside_it() {
    let text = b"{\"nodes\":[]}\n";
    let file = |path: &Path| fs::write(path.join("listing"), text).unwrap();
    let folder = |path: &Path| fs::create_dir(path.join("empty")).unwrap();
    let both = |path: &Path| (file(path), folder(path)).0;
    let makers: [&dyn Fn(&Path); 3] = [&file, &folder, &both];
    for order in [vec![0, 1], vec![1, 0], vec![2]] {
        let house = House::new();
        let repository = house.create();
        for number in order {
            let path = house.path(&number.to_string());
            fs::create_dir(&path).unwrap();
            makers[number](&path);
            let (tree, _) = house.back_up(&repository, &path, None);
            let reader = house.reader(&repository);
            let name = if number == 1 { "empty" } else { "listing" };
            house.runtime.block_on(reader.find(tree, name.as_bytes())).unwrap();
        }
        house.check();
        let restored = house.path("restored");
        house.restic(&["restore".as_ref(), "latest".as_ref(), "--target".as_ref(), restored.as_os_str()]);
    }
}

#[test]
fn restic_checks_lists_and_restores_what_we_wrote() {
    let house = House::new();
    let source = house.path("source");
    make_tree(&source);
    let repository = house.create();
    let (first, written) = house.back_up(&repository, &source, None);
    assert_eq!(written.unreadable, []);
    house.check();
    let listed = house.restic(&["ls".as_ref(), "latest".as_ref()]);
    assert!(listed.contains("/deep/er/and/deeper") && listed.contains("größe-日本語-🦀"), "{listed}");
    assert_eq!(restored(&house, "restored"), describe(&source));

    // An incremental after a change, against the first.
    fs::write(source.join("all"), "changed").unwrap();
    fs::remove_file(source.join("empty")).unwrap();
    fs::rename(source.join("compressible"), source.join("renamed")).unwrap();
    let (second, written) = house.back_up(&house.open(), &source, Some(first));
    assert_ne!(second, first);
    // Moving a file changes its ctime: it is read again, and nothing of it is new.
    assert_eq!((written.totals.bytes_read, written.totals.data_blobs_new), ((5 << 20) + 7 + 19, 1));
    house.check();
    assert_eq!(restored(&house, "restored-2"), describe(&source));
    let snapshots = house.restic(&["snapshots".as_ref(), "--group-by".as_ref(), "host,paths".as_ref()]);
    assert!(snapshots.contains("2 snapshots") && snapshots.contains("source:files"), "{snapshots}");
}

#[test]
fn restic_backs_up_into_our_repository_and_both_read_it() {
    let house = House::new();
    let source = house.path("source");
    make_tree(&source);
    let repository = house.create();
    house.back_up(&repository, &source, None);
    house.restic(&["backup".as_ref(), source.as_ref()]);
    house.check();
    house.restic(&["prune".as_ref(), "--max-unused".as_ref(), "0".as_ref()]);
    house.check();
    assert_eq!(house.runtime.block_on(repository.snapshot_ids()).unwrap().len(), 2);
}

#[test]
fn we_read_what_restic_wrote() {
    let house = House::new();
    let source = house.path("source");
    make_tree(&source);
    house.restic(&["init".as_ref(), "--repository-version".as_ref(), "2".as_ref()]);
    house.restic(&["backup".as_ref(), "--tag".as_ref(), "nightly".as_ref(), source.as_ref()]);
    let repository = house.open();
    let ids = house.runtime.block_on(repository.snapshot_ids()).unwrap();
    let snapshot = house.runtime.block_on(repository.snapshot(ids[0])).unwrap();
    assert_eq!((snapshot.tags.len(), snapshot.paths.len(), ids.len()), (1, 1, 1));
    let found = house.runtime.block_on(repository.find_snapshot(&ids[0].short())).unwrap();
    assert_eq!(found, ids[0]);

    let reader = house.reader(&repository);
    let below = source.strip_prefix("/").unwrap();
    let mut seen = 0;
    walk::walk(&source, |entry| {
        let path = [below.as_os_str().as_bytes(), b"/", &entry.path].concat();
        let node = house.runtime.block_on(reader.find(snapshot.tree, &path)).unwrap();
        let (m, known) = (&node.metadata, &entry.metadata);
        assert_eq!(
            (m.node_type, m.mode, m.mtime, m.ctime, m.size, m.inode, &m.link_target, &m.xattrs),
            (
                known.node_type,
                known.mode,
                known.mtime,
                known.ctime,
                known.size,
                known.inode,
                &known.link_target,
                &known.xattrs
            ),
            "{}",
            entry.path.escape_ascii()
        );
        let content: Vec<u8> = node
            .content
            .iter()
            .flat_map(|id| {
                house.runtime.block_on(reader.load(*id, holdfast_repository::id::BlobType::Data)).unwrap()
            })
            .collect();
        if m.node_type == NodeType::File {
            assert!(content == fs::read(source.join(OsStr::from_bytes(&entry.path))).unwrap());
        }
        seen += 1;
    })
    .unwrap();
    assert!(seen > 30);
}

#[test]
fn headers_of_restic_packs_agree_with_its_index() {
    let house = House::new();
    let source = house.path("source");
    make_tree(&source);
    house.restic(&["init".as_ref(), "--repository-version".as_ref(), "2".as_ref()]);
    house.restic(&["backup".as_ref(), source.as_ref()]);
    let repository = house.open();
    let index = house.runtime.block_on(repository.load_index()).unwrap();
    let mut blobs = 0;
    for pack in index.packs() {
        for entry in house.runtime.block_on(repository.read_pack_header(*pack)).unwrap() {
            assert_eq!(index.get(entry.blob_type, &entry.id).unwrap().entry, entry);
            blobs += 1;
        }
    }
    assert_eq!(blobs, index.len());
}

#[test]
fn a_wrong_password_and_a_missing_repository_have_their_codes() {
    let house = House::new();
    fs::create_dir(house.path("repository")).unwrap();
    let missing =
        house.runtime.block_on(Repository::open(house.store(), &Secret::new(PASSWORD))).unwrap_err();
    assert_eq!(missing.code(), ErrorCode::RepositoryMissing);
    house.create();
    let wrong = house.runtime.block_on(Repository::open(house.store(), &Secret::new("wrong"))).unwrap_err();
    assert_eq!(wrong.code(), ErrorCode::RepositoryWrongPassword);
    assert_eq!(wrong.to_string(), "the password opens none of the 1 keys of the repository");
    let origin = KeyOrigin { created: now(), hostname: String::new(), username: String::new() };
    let options = CreateOptions { cost: ScryptCost { log_n: 4, r: 8, p: 1 }, origin };
    let again = house.runtime.block_on(Repository::create(house.store(), &Secret::new("x"), options.clone()));
    assert_eq!(again.unwrap_err().code(), ErrorCode::RepositoryExists);
    // A second key opens it too, for us and for restic.
    house.runtime.block_on(house.open().add_key(&Secret::new("second"), options)).unwrap();
    house.runtime.block_on(Repository::open(house.store(), &Secret::new("second"))).unwrap();
    assert_eq!(house.restic(&["key".as_ref(), "list".as_ref()]).matches("backup").count(), 1);
}

fn owner(pid: u32) -> LockOwner {
    LockOwner { hostname: "db1".into(), username: "backup".into(), pid, uid: 0, gid: 0 }
}

/// All steps of a prune, with nobody else about; what goes stays in the trash.
async fn prune(repository: &Repository) -> PruneNumbers {
    let survey = async || {
        let index = Arc::new(parking_lot::RwLock::new(MemoryIndex::new()));
        let token = tokio_util::sync::CancellationToken::new();
        prune::survey(repository, index, SurveyOptions::default(), Arc::default(), &token).await.unwrap()
    };
    let plan = survey().await.plan(PruneOptions::default()).await.unwrap();
    let (numbers, going) = (plan.numbers, plan.condemned());
    let repacked = prune::repack(plan, Arc::default()).await.unwrap();
    assert_eq!(repacked.damaged, []);
    assert_eq!(survey().await.rescue(going.clone()).await.unwrap(), []);
    prune_apply::remove_from_index(repository, &going).await.unwrap();
    prune_apply::to_trash(repository, going, now()).await.unwrap();
    numbers
}

#[test]
fn restic_finds_nothing_wrong_with_a_repository_that_we_pruned() {
    let house = House::new();
    let repository = house.create();
    let tree = house.path("tree");
    for (folder, seed) in [("kept", 0), ("gone", 100)] {
        fs::create_dir_all(tree.join(folder)).unwrap();
        for number in 0..12 {
            let content = noise(number + seed, 300_000);
            fs::write(tree.join(folder).join(number.to_string()), content).unwrap();
        }
    }
    let (first, _) = house.back_up(&repository, &tree, None);
    let before = house.runtime.block_on(repository.snapshot_ids()).unwrap();
    fs::remove_dir_all(tree.join("gone")).unwrap();
    house.back_up(&repository, &tree, Some(first));
    house.runtime.block_on(forget_snapshot(&repository, before[0])).unwrap();
    let numbers = house.runtime.block_on(prune(&repository));
    assert!(numbers.repack_packs > 0 && numbers.freed_bytes() > 3_600_000, "{numbers:?}");
    house.check();
    let restored = house.path("restored");
    house.restic(&["restore".as_ref(), "latest".as_ref(), "--target".as_ref(), restored.as_ref()]);
    for number in 0..12 {
        let path = format!("kept/{number}");
        assert_eq!(fs::read(tree.join(&path)).unwrap(), fs::read(restored.join(&path)).unwrap());
    }
    // It goes on with it, and what it prunes is its own affair: the trash is none of it.
    house.restic(&["backup".as_ref(), "--quiet".as_ref(), tree.as_os_str()]);
    let printed = house.restic(&["prune".as_ref(), "--max-unused".as_ref(), "0".as_ref()]);
    assert!(printed.contains("done"), "{printed}");
    house.check();
    assert!(house.path("repository/trash").is_dir());
}

#[test]
fn locks_keep_restic_and_us_apart() {
    let house = House::new();
    let repository = house.create();
    let acquire_as = |username: &str, mode, at: Timestamp| {
        let owner = LockOwner { username: username.into(), ..owner(std::process::id()) };
        house.runtime.block_on(HeldLock::acquire(&repository, owner, mode, at))
    };
    let acquire = |mode, at| match mode {
        LockMode::Shared => acquire_as("backup", mode, at),
        LockMode::Exclusive => acquire_as("prune", mode, at),
    };
    let real_now =
        Timestamp::try_from(fs::metadata(house.path("repository/config")).unwrap().modified().unwrap())
            .unwrap();

    let shared = acquire(LockMode::Shared, real_now).unwrap();
    let second = acquire(LockMode::Shared, real_now).unwrap();
    // Whose process these locks are of may do with them as it likes.
    house.runtime.block_on(acquire_as("backup", LockMode::Exclusive, real_now).unwrap().release()).unwrap();
    assert_eq!(acquire(LockMode::Exclusive, real_now).unwrap_err().code(), ErrorCode::RepositoryLocked);
    let refused = house.restic_may_fail(&["prune".as_ref()]);
    assert!(!refused.status.success(), "restic respects our lock");
    house.runtime.block_on(second.release()).unwrap();

    // Refreshing moves the time on; a lock that was not refreshed for half an hour counts for nothing.
    let mut shared = shared;
    let later = real_now + jiff::SignedDuration::from_mins(29);
    house.runtime.block_on(shared.refresh(later)).unwrap();
    let much_later = real_now + jiff::SignedDuration::from_mins(40);
    assert!(acquire(LockMode::Exclusive, much_later).is_err());
    let stale = real_now + jiff::SignedDuration::from_mins(60);
    let exclusive = acquire(LockMode::Exclusive, stale).unwrap();
    let error = acquire(LockMode::Shared, stale).unwrap_err();
    assert!(error.to_string().starts_with("the repository is locked exclusively by prune@db1"), "{error}");
    house.runtime.block_on(exclusive.release()).unwrap();
    house.runtime.block_on(shared.release()).unwrap();
    house.restic(&["prune".as_ref()]);
}

#[test]
fn a_lock_of_a_process_of_this_host_that_is_gone_counts_for_nothing() {
    let house = House::new();
    let repository = house.create();
    // Far above what a system gives: no other process has it by now, as it may have that of a child that has ended.
    let pid = i32::MAX.cast_unsigned();
    let left_behind = HeldLock::acquire(&repository, owner(pid), LockMode::Exclusive, now());
    house.runtime.block_on(left_behind).unwrap();
    let lock = HeldLock::acquire(&repository, owner(std::process::id()), LockMode::Exclusive, now());
    house.runtime.block_on(lock).unwrap();
}
