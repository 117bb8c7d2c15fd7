use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_model::manifest::UnreadableItem;

use super::*;
use crate::test_support::{context, without_root_powers};
use crate::{Content, Entry, StoredSummary};

mod restores;

/// A folder for one test, its path resolved.
struct Tree {
    _guard: tempfile::TempDir,
    base: PathBuf,
}

impl Tree {
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let base = guard.path().canonicalize().unwrap();
        Self { _guard: guard, base }
    }

    fn file(&self, path: impl AsRef<Path>, content: &str) -> PathBuf {
        let path = self.base.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn engine(&self, paths: &[&str]) -> FilesEngine {
        FilesEngine::new(self.config(paths))
    }

    fn config(&self, paths: &[&str]) -> FilesConfig {
        FilesConfig {
            paths: paths.iter().map(|path| self.base.join(path)).collect(),
            exclude: Vec::new(),
            include: Vec::new(),
            one_file_system: false,
        }
    }

    /// Paths relative to this folder, of what lies in it.
    fn relative(&self, entries: &[Entry]) -> Vec<String> {
        let prefix = roots::tree_path(&self.base);
        entries
            .iter()
            .filter_map(|entry| entry.path.strip_prefix(prefix.as_slice()))
            .filter_map(|path| path.strip_prefix(b"/"))
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect()
    }
}

/// Takes a capture to its end, as a pipeline would that can read everything.
async fn capture(engine: &FilesEngine) -> (Vec<Entry>, Manifest) {
    let mut capture = engine.open_capture(&context()).await.unwrap();
    let mut entries = Vec::new();
    let mut stored = StoredSummary::default();
    while let Some(entry) = capture.next_entry().unwrap() {
        if entry.metadata.file_type == FileType::File {
            stored.files += 1;
            stored.bytes += entry.metadata.size;
        }
        entries.push(entry);
    }
    (entries, capture.finish(stored).await.unwrap())
}

#[tokio::test]
async fn entries_come_depth_first_in_the_order_of_raw_bytes_with_every_folder_on_the_way() {
    let tree = Tree::new();
    for path in ["b/x", "b.c", "b-d/y", "a/deep/er/z", "B", "\u{e9}"] {
        tree.file(Path::new("root").join(path), "12345");
    }
    let (entries, manifest) = capture(&tree.engine(&["root"])).await;
    let expected = [
        "root",
        "root/B",
        "root/a",
        "root/a/deep",
        "root/a/deep/er",
        "root/a/deep/er/z",
        "root/b",
        "root/b/x",
        "root/b-d",
        "root/b-d/y",
        "root/b.c",
        "root/\u{e9}",
    ];
    // "b" sorts before "b-d" and "b.c" as a name, and what is in it comes with it.
    assert_eq!(tree.relative(&entries), expected);
    let on_the_way: Vec<&Entry> =
        entries.iter().take_while(|entry| entry.path != roots::tree_path(&tree.base)).collect();
    assert_eq!(on_the_way.len(), tree.base.components().count() - 2);
    for entry in on_the_way {
        let path = Path::new("/").join(std::ffi::OsStr::from_bytes(&entry.path));
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((entry.metadata.inode, entry.metadata.uid), (metadata.ino(), metadata.uid()));
        assert_eq!(entry.metadata.file_type, FileType::Directory);
    }
    let totals = manifest.files.unwrap();
    assert_eq!((totals.files, totals.bytes, totals.others), (6, 30, 0));
    assert_eq!(totals.paths, [tree.base.join("root").to_str().unwrap()]);
    assert_eq!(
        totals.directories as usize,
        entries.iter().filter(|entry| entry.metadata.file_type == FileType::Directory).count()
    );
}

#[tokio::test]
async fn odd_names_are_kept_byte_for_byte() {
    let tree = Tree::new();
    let odd: [&[u8]; 9] = [
        b" leading space",
        b"-rf",
        b"\"quotes' \\ $(x)",
        b"..",
        b"...",
        b"new\nline",
        b"\x01\x7f",
        b"\xff\xfe not utf-8",
        "\u{65e5}\u{672c}".as_bytes(),
    ];
    for name in odd.iter().filter(|name| **name != b"..") {
        tree.file(Path::new("root").join(std::ffi::OsStr::from_bytes(name)), "x");
    }
    let (entries, _) = capture(&tree.engine(&["root"])).await;
    let names: Vec<Vec<u8>> = entries
        .iter()
        .filter(|entry| entry.metadata.file_type == FileType::File)
        .map(|entry| entry.path.rsplit(|&byte| byte == b'/').next().unwrap().to_vec())
        .collect();
    let mut expected: Vec<Vec<u8>> =
        odd.iter().filter(|name| **name != b"..").map(|name| name.to_vec()).collect();
    expected.sort();
    assert_eq!(names, expected);
    for entry in &entries {
        if let Content::File(path) = &entry.content {
            assert_eq!(fs::read(path).unwrap(), b"x");
        }
    }
}

#[tokio::test]
async fn every_type_of_entry_carries_what_the_file_system_says() {
    let tree = Tree::new();
    let file = tree.file("root/file", "content");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(&file, tree.base.join("root/hard")).unwrap();
    symlink(std::ffi::OsStr::from_bytes(b"no\xffwhere"), tree.base.join("root/link")).unwrap();
    symlink("..", tree.base.join("root/up")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.base.join("root/pipe"), 0o600.into()).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.base.join("root/socket")).unwrap();
    rustix::fs::setxattr(&file, "user.origin", b"a\0b", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&file, "user.empty", b"", rustix::fs::XattrFlags::empty()).unwrap();

    let (entries, manifest) = capture(&tree.engine(&["root"])).await;
    let find = |name: &str| {
        entries
            .iter()
            .find(|entry| entry.path.ends_with(name.as_bytes()))
            .map(|entry| &entry.metadata)
            .unwrap()
    };
    let on_disk = fs::symlink_metadata(&file).unwrap();
    let found = find("/file");
    assert_eq!(found.file_type, FileType::File);
    assert_eq!((found.mode, found.size, found.links), (0o4751, 7, 2));
    assert_eq!((found.inode, found.device_id), (on_disk.ino(), on_disk.dev()));
    assert_eq!(found.inode, find("/hard").inode);
    assert_eq!(
        (found.mtime.seconds, i64::from(found.mtime.nanoseconds)),
        (on_disk.mtime(), on_disk.mtime_nsec())
    );
    assert_eq!(
        (found.ctime.seconds, i64::from(found.ctime.nanoseconds)),
        (on_disk.ctime(), on_disk.ctime_nsec())
    );
    assert_eq!(found.atime, found.mtime);
    assert_eq!(
        found.xattrs,
        [(b"user.empty".to_vec(), b"".to_vec()), (b"user.origin".to_vec(), b"a\0b".to_vec())]
    );
    if on_disk.uid() == 0 {
        assert_eq!((found.user.as_deref(), found.group.as_deref()), (Some("root"), Some("root")));
    }
    let link = find("/link");
    assert_eq!((link.file_type, link.link_target.as_deref()), (FileType::Symlink, Some(&b"no\xffwhere"[..])));
    assert_eq!(find("/up").file_type, FileType::Symlink, "a link to a folder is not walked");
    assert_eq!(find("/pipe").file_type, FileType::Fifo);
    assert_eq!(find("/socket").file_type, FileType::Socket);
    let totals = manifest.files.unwrap();
    assert_eq!((totals.files, totals.others, totals.bytes), (2, 4, 14));
    let with_content = entries.iter().filter(|entry| matches!(entry.content, Content::File(_))).count();
    assert_eq!(with_content, 2);
}

#[tokio::test]
async fn devices_carry_their_numbers() {
    let config = FilesConfig {
        paths: vec!["/dev/null".into()],
        exclude: Vec::new(),
        include: Vec::new(),
        one_file_system: false,
    };
    let (entries, _) = capture(&FilesEngine::new(config)).await;
    let null = &entries.last().unwrap().metadata;
    assert_eq!(
        (null.file_type, null.device, null.size),
        (FileType::CharDevice, rustix::fs::makedev(1, 3), 0)
    );
}

#[tokio::test]
async fn several_paths_merge_and_one_inside_another_is_walked_once() {
    let tree = Tree::new();
    for path in ["srv/a/one", "srv/a/tmp/in/keep", "srv/a/tmp/drop", "srv/b/two", "srv/c/three"] {
        tree.file(path, "x");
    }
    let mut config = tree.config(&["srv/b", "srv/a", "srv/a/tmp/in", "srv/b/"]);
    config.exclude = vec!["tmp".into(), "/three".into()];
    let (entries, manifest) = capture(&FilesEngine::new(config)).await;
    // What is excluded in the outer path is passed through on the way to the inner one.
    let expected =
        ["srv", "srv/a", "srv/a/one", "srv/a/tmp", "srv/a/tmp/in", "srv/a/tmp/in/keep", "srv/b", "srv/b/two"];
    assert_eq!(tree.relative(&entries), expected);
    assert_eq!(manifest.files.unwrap().files, 3);
}

#[tokio::test]
async fn include_takes_what_matches_and_what_lies_in_a_folder_that_matches() {
    let tree = Tree::new();
    for path in
        ["a.conf", "b.txt", "sub/c.conf", "sub/d.txt", "docs/e.txt", "docs/deep/f", "x/docs/g", "keep/h.conf"]
    {
        tree.file(Path::new("root").join(path), "x");
    }
    let mut config = tree.config(&["root", "root/b.txt"]);
    config.include = vec!["*.conf".into(), "/docs".into()];
    config.exclude = vec!["keep/".into()];
    let (entries, _) = capture(&FilesEngine::new(config)).await;
    let files: Vec<String> = tree
        .relative(&entries)
        .into_iter()
        .zip(entries.iter().filter(|entry| entry.path.len() > roots::tree_path(&tree.base).len()))
        .filter(|(_, entry)| entry.metadata.file_type == FileType::File)
        .map(|(path, _)| path)
        .collect();
    assert_eq!(
        files,
        ["root/a.conf", "root/b.txt", "root/docs/deep/f", "root/docs/e.txt", "root/sub/c.conf"]
    );
}

#[tokio::test]
async fn another_file_system_is_not_entered_when_so_configured() {
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let shm = fs::metadata("/dev/shm").unwrap().dev();
    assert_ne!(shm, fs::metadata("/dev").unwrap().dev(), "this test needs /dev/shm to be a mount of its own");
    let capture_dev = |one_file_system: bool| async move {
        let config = FilesConfig {
            paths: vec!["/dev".into()],
            exclude: Vec::new(),
            include: Vec::new(),
            one_file_system,
        };
        let (entries, _) = capture(&FilesEngine::new(config)).await;
        entries.into_iter().map(|entry| entry.path).collect::<Vec<_>>()
    };
    let inside = roots::tree_path(elsewhere.path());
    let (all, one) = (capture_dev(false).await, capture_dev(true).await);
    assert!(all.contains(&inside));
    assert!(one.contains(&b"dev/shm".to_vec()), "the mount point itself is part of the tree");
    assert!(!one.contains(&inside));
}

#[tokio::test]
async fn what_cannot_be_read_is_recorded_and_the_rest_is_saved() {
    let tree = Tree::new();
    tree.file("root/closed/inside", "x");
    tree.file("root/half/inside", "x");
    tree.file("root/open", "x");
    tree.file("root/unreadable", "x");
    fs::set_permissions(tree.base.join("root/closed"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(tree.base.join("root/half"), fs::Permissions::from_mode(0o444)).unwrap();
    let engine = tree.engine(&["root"]);
    let mut capture = engine.open_capture(&context()).await.unwrap();
    let paths = without_root_powers(|| {
        let mut entries = Vec::new();
        while let Some(entry) = capture.next_entry().unwrap() {
            entries.push(entry);
        }
        tree.relative(&entries)
    });
    for folder in ["closed", "half"] {
        let path = tree.base.join("root").join(folder);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(paths, ["root", "root/closed", "root/half", "root/open", "root/unreadable"]);

    let item = |path: &str, reason: &str| UnreadableItem {
        path: format!("{}/{path}", String::from_utf8(roots::tree_path(&tree.base)).unwrap()),
        reason: reason.to_owned(),
    };
    let denied = "Permission denied (os error 13)";
    let stored = StoredSummary {
        files: 1,
        bytes: 1,
        unreadable: vec![item("root/unreadable", "the pipeline could not open it")],
        unreadable_count: 1,
        ..StoredSummary::default()
    };
    let manifest = capture.finish(stored).await.unwrap();
    assert_eq!(manifest.unreadable_count, 3);
    assert_eq!(
        manifest.unreadable,
        [
            item("root/closed", denied),
            item("root/half/inside", denied),
            item("root/unreadable", "the pipeline could not open it")
        ]
    );
    assert_eq!(manifest.files.unwrap().files, 1);
}

#[tokio::test]
async fn counts_that_disagree_fail_the_capture() {
    let tree = Tree::new();
    tree.file("root/a", "x");
    tree.file("root/b", "x");
    let engine = tree.engine(&["root"]);
    let mut capture = engine.open_capture(&context()).await.unwrap();
    while capture.next_entry().unwrap().is_some() {}
    let error = capture.finish(StoredSummary { files: 1, ..StoredSummary::default() }).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CaptureInconsistent);
    assert_eq!(error.to_string(), "2 files found, but 1 stored and 0 could not be read");

    let capture = engine.open_capture(&context()).await.unwrap();
    let error = capture.finish(StoredSummary::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete);
    assert_eq!(error.to_string(), "the file tree was not walked to its end");
}

#[tokio::test]
async fn a_path_that_does_not_exist_or_is_a_link_is_refused() {
    let tree = Tree::new();
    tree.file("root/a", "x");
    symlink("root", tree.base.join("link")).unwrap();
    let missing = tree.base.join("missing");
    let refused = |paths: &[&str]| {
        let engine = tree.engine(paths);
        async move { engine.open_capture(&context()).await.err().unwrap() }
    };
    let error = refused(&["root", "missing"]).await;
    assert_eq!(error.code(), ErrorCode::SourceMissing);
    assert_eq!(error.to_string(), format!("the path {} does not exist", missing.display()));
    let error = refused(&["root/a/below"]).await;
    assert_eq!(error.code(), ErrorCode::SourceMissing);
    let error = refused(&["link"]).await;
    assert_eq!(error.code(), ErrorCode::PathInvalid);
    assert_eq!(
        error.to_string(),
        format!(
            "the path {} is a symbolic link to {}: give that instead",
            tree.base.join("link").display(),
            tree.base.join("root").display()
        )
    );
    // A link on the way is how the path was configured, and a folder in the tree.
    let (entries, _) = capture(&tree.engine(&["link/a"])).await;
    assert_eq!(tree.relative(&entries), ["link", "link/a"]);
    assert_eq!(entries[entries.len() - 2].metadata.file_type, FileType::Directory);
}

#[tokio::test]
async fn trees_deeper_than_the_open_folders_and_longer_than_a_path_are_walked() {
    let tree = Tree::new();
    // Made by its own descriptors, as no path reaches so deep.
    let mut folder = fs::File::open(&tree.base).unwrap();
    for depth in 0..300 {
        let name = format!("{depth:03}-{}", "x".repeat(20));
        rustix::fs::mkdirat(&folder, &name, 0o755.into()).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        let next = rustix::fs::openat(&folder, &name, flags, 0o755.into()).unwrap();
        rustix::fs::mkdirat(&folder, "z-after", 0o755.into()).unwrap();
        folder = next.into();
    }
    let engine = FilesEngine::new(FilesConfig { paths: vec![tree.base.clone()], ..tree.config(&[]) });
    let (entries, manifest) = capture(&engine).await;
    assert_eq!(manifest.unreadable_count, 0);
    assert_eq!(tree.relative(&entries).len(), 600);
    let deepest = entries.iter().map(|entry| entry.path.len()).max().unwrap();
    assert!(deepest > 4096, "{deepest}");
}

#[tokio::test]
async fn a_cancelled_run_ends_the_walk() {
    let tree = Tree::new();
    tree.file("root/a", "x");
    let context = context();
    let mut capture = tree.engine(&["root"]).open_capture(&context).await.unwrap();
    capture.next_entry().unwrap();
    context.cancel.cancel();
    let error = capture.next_entry().err().unwrap();
    assert_eq!((error.code(), error.to_string()), (ErrorCode::RunCancelled, "the run was cancelled".into()));
}

#[tokio::test]
async fn a_probe_tells_what_would_be_captured() {
    let tree = Tree::new();
    tree.file("root/a", "12345");
    tree.file("root/skip.tmp", "12345");
    let mut config = tree.config(&["root"]);
    config.exclude = vec!["*.tmp".into()];
    let report = FilesEngine::new(config).probe(&context()).await.unwrap();
    assert_eq!(report.logical_bytes, 5);
    assert_eq!(report.parts, [tree.base.join("root").to_str().unwrap()]);
    assert!(report.version.starts_with("Linux "));
    assert!(report.warnings.is_empty());
}

#[tokio::test]
async fn the_files_of_a_database_that_is_being_captured_are_not_opened() {
    let tree = Tree::new();
    tree.file("root/a", "x");
    let database = tree.file("root/shop.db", "x");
    let metadata = fs::metadata(&database).unwrap();
    let file = crate::file_gate::FileId { device_id: metadata.dev(), inode: metadata.ino() };
    let hold = crate::file_gate::FILE_GATE.hold(&[file]).unwrap();
    let (entries, manifest) = capture(&tree.engine(&["root"])).await;
    assert_eq!(tree.relative(&entries), ["root", "root/a"]);
    assert_eq!(manifest.unreadable_count, 1);
    assert_eq!(
        manifest.unreadable[0].reason,
        "it belongs to a SQLite database that is being backed up at this moment"
    );
    drop(hold);
    let (_, manifest) = capture(&tree.engine(&["root"])).await;
    assert_eq!((manifest.unreadable_count, manifest.files.unwrap().files), (0, 2));
}
