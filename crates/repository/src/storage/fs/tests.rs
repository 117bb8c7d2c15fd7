use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use futures::TryStreamExt;
use holdfast_runtime::fail_point;

use super::*;
use crate::format::ObjectKind;
use crate::id::PackId;
use crate::storage::conformance;

fn pack(data: &[u8]) -> ObjectName {
    ObjectName::Pack(PackId::of(data))
}

async fn list(store: &dyn ObjectStore, kind: ObjectKind) -> Vec<(ObjectName, u64)> {
    store.list(kind).await.unwrap().try_collect().await.unwrap()
}

/// Every file below a folder, with its path.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance::run(&FsStore::new(folder.path())).await;
    conformance::racers_have_one_winner(std::sync::Arc::new(FsStore::new(folder.path()))).await;
}

#[tokio::test]
async fn files_and_folders_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let store = FsStore::create(folder.path().join("a/b")).await.unwrap();
    store.put(&pack(b"x"), Bytes::from_static(b"x")).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = store.path(&pack(b"x"));
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().unwrap()), 0o700);
    assert_eq!(mode(store.root()), 0o700);
}

#[tokio::test]
async fn a_missing_root_is_unreachable_and_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("not-mounted");
    let store = FsStore::new(&root);
    let name = pack(b"x");
    let errors = [
        store.put(&name, Bytes::from_static(b"x")).await.unwrap_err(),
        store.get(&name).await.unwrap_err(),
        store.list(ObjectKind::Pack).await.map(|_| ()).unwrap_err(),
        store.delete(&name).await.unwrap_err(),
        store.probe().await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), StorageErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains("not-mounted"), "{error}");
    }
    assert!(!root.exists());
}

#[tokio::test]
async fn what_is_no_object_is_not_listed() {
    let folder = tempfile::tempdir().unwrap();
    let store = FsStore::new(folder.path());
    let name = pack(b"x");
    store.put(&name, Bytes::from_static(b"x")).await.unwrap();
    let real = store.path(&name);
    let other = real.with_file_name(PackId::of(b"y").to_hex());
    std::fs::write(&other, b"in the wrong folder").unwrap();
    std::fs::write(real.with_file_name(".holdfast-tmp-0123456789abcdef"), b"temporary").unwrap();
    std::fs::write(real.with_file_name("README"), b"foreign").unwrap();
    let link = pack(b"link");
    std::fs::create_dir_all(store.path(&link).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", store.path(&link)).unwrap();
    assert_eq!(list(&store, ObjectKind::Pack).await, [(name, 1)]);
    assert!(store.get(&link).await.is_err(), "a symbolic link was followed");
}

#[tokio::test]
async fn a_pipe_in_the_place_of_an_object_does_not_block() {
    let folder = tempfile::tempdir().unwrap();
    let store = FsStore::new(folder.path());
    let name = pack(b"pipe");
    std::fs::create_dir_all(store.path(&name).parent().unwrap()).unwrap();
    rustix::fs::mkfifoat(CWD, store.path(&name), Mode::RUSR).unwrap();
    let error = store.get(&name).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Damaged);
}

#[test]
fn bytes_that_the_medium_has_lost_are_damage_of_their_object() {
    // Nothing of this process is mapped at its address nought: reading that is EIO, as of a bad sector.
    let error = read_exactly(File::open("/proc/self/mem").unwrap(), 10).unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Damaged);
    let expected = "storage: it is damaged, reading it failed: Input/output error (os error 5)";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn the_probe_counts_what_dead_writers_left() {
    let folder = tempfile::tempdir().unwrap();
    let store = FsStore::new(folder.path());
    let name = pack(b"x");
    store.put(&name, Bytes::from_static(b"x")).await.unwrap();
    let old = store.path(&name).with_file_name(".holdfast-tmp-0000000000000001");
    std::fs::write(&old, b"12345").unwrap();
    let two_days_ago = std::fs::metadata(&old).unwrap().modified().unwrap() - 2 * STALE_AFTER;
    File::options().write(true).open(&old).unwrap().set_modified(two_days_ago).unwrap();
    std::fs::write(old.with_file_name(".holdfast-tmp-0000000000000002"), b"a living writer's").unwrap();

    let probe = store.probe().await.unwrap();
    assert_eq!((probe.stale_temporary_files, probe.stale_temporary_bytes), (1, 5));
    assert_eq!(probe.create_only, CreateOnly::Kept);
    assert!(probe.free_bytes.is_some_and(|bytes| bytes > 0));
    assert_eq!(files_below(folder.path()).len(), 3, "the probe left something");
}

#[tokio::test]
async fn a_full_disk_is_told_apart_and_leaves_nothing() {
    // `/dev/full` answers every write with ENOSPC, as a full disk does.
    let error = StorageError::from_io(std::fs::write("/dev/full", b"x").unwrap_err());
    assert_eq!(error.kind(), StorageErrorKind::Full);
    assert_eq!(error.code().to_string(), "HF-3010");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_failed_fsync_ends_the_attempt_and_removes_the_file() {
    for point in ["fs-put-before-fsync", "fs-put-before-folder-fsync"] {
        let folder = tempfile::tempdir().unwrap();
        let store = FsStore::new(folder.path());
        let name = pack(point.as_bytes());
        store.put(&pack(b"other"), Bytes::from_static(b"other")).await.unwrap();

        let armed = fail_point::arm(&format!("{point}=error")).unwrap();
        let error = store.put(&name, Bytes::from_static(b"data")).await.unwrap_err();
        drop(armed);
        assert_eq!(error.kind(), StorageErrorKind::FsyncFailed, "{point}");
        assert_eq!(error.code().to_string(), "HF-3020");
        assert!(!error.is_transient(), "a failed fsync must not be retried by itself");
        assert_eq!(files_below(folder.path()).len(), 1, "{point}: something was left");

        store.put(&name, Bytes::from_static(b"data")).await.unwrap();
        assert_eq!(store.get(&name).await.unwrap(), "data");
    }
}

/// Where the process works that the next test starts, which is this very test, and kills.
const KILL_ROOT_VARIABLE: &str = "HOLDFAST_TEST_KILL_ROOT";

/// Stores one object and says so.
async fn store_one(root: PathBuf) {
    let store = FsStore::new(&root);
    store.put(&pack(b"payload"), Bytes::from_static(b"payload")).await.unwrap();
    std::fs::write(root.join("acknowledged"), b"").unwrap();
}

#[tokio::test]
async fn a_writer_killed_at_any_step_leaves_the_whole_object_or_nothing() {
    if let Some(root) = std::env::var_os(KILL_ROOT_VARIABLE) {
        return store_one(root.into()).await;
    }
    let own_name = "storage::fs::tests::a_writer_killed_at_any_step_leaves_the_whole_object_or_nothing";
    let steps = [
        ("fs-put-before-write", false),
        ("fs-put-before-fsync", false),
        ("fs-put-before-rename", false),
        ("fs-put-before-folder-fsync", true),
        ("fs-put-done", true),
    ];
    for (step, visible) in steps {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", own_name])
            .env(KILL_ROOT_VARIABLE, folder.path())
            .env(fail_point::ENVIRONMENT_VARIABLE, format!("{step}=kill"))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{step} did not kill");
        assert!(!folder.path().join("acknowledged").exists());

        let store = FsStore::new(folder.path());
        let listed = list(&store, ObjectKind::Pack).await;
        assert_eq!(listed.len(), usize::from(visible), "{step}");
        // The next writer finishes the work without a hand, whatever the first left.
        match store.put(&pack(b"payload"), Bytes::from_static(b"payload")).await {
            Ok(()) => assert!(!visible, "{step}"),
            Err(error) => assert_eq!(error.kind(), StorageErrorKind::AlreadyExists, "{step}"),
        }
        assert_eq!(store.get(&pack(b"payload")).await.unwrap(), "payload", "{step}");
    }
}
