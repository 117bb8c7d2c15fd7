//! Making an existing folder equal to a snapshot.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;
use crate::reader::fixture::{ResticRepository, reader_of};

fn delta() -> ExtractOptions {
    ExtractOptions { delta: Some(Delta::Remove), ..options() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_becomes_equal_again_and_what_matches_is_kept() {
    let source = tempfile::tempdir().unwrap();
    picture::make_everything(source.path());
    let restic = ResticRepository::new();
    restic.back_up(source.path());
    let repository = restic.open().await;
    let (_, tree) = restic.tree_of(&repository, source.path()).await;
    let reader = reader_of(&repository).await;
    let target = tempfile::tempdir().unwrap();
    let folder = target.path();
    let full = extract(&reader, tree, folder, &options()).await.unwrap();

    let inode = |name: &str| std::fs::symlink_metadata(folder.join(name)).unwrap().ino();
    let before = (inode("a/b/c/big"), inode("many/7"), inode("link"), inode("pipe"));
    let unchanged = extract(&reader, tree, folder, &delta()).await.unwrap();
    picture::assert_same(source.path(), folder);
    assert_eq!((unchanged.bytes_written, unchanged.removed), (0, 0));
    assert_eq!((unchanged.files, unchanged.files_kept), (full.files, full.files));
    assert_eq!(unchanged.bytes_kept, full.bytes_written);

    spoil(folder);
    let report = extract(&reader, tree, folder, &delta()).await.unwrap();
    picture::assert_same(source.path(), folder);
    assert_eq!(
        before,
        (inode("a/b/c/big"), inode("many/7"), inode("link"), inode("pipe")),
        "something was not kept"
    );
    assert!(report.bytes_written < full.bytes_written / 2, "{} bytes were written", report.bytes_written);
    // The file, the folder with what is in it, and the dangling link.
    assert_eq!(report.removed, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_way_is_kept_under_its_path_when_that_is_asked_for() {
    let source = tempfile::tempdir().unwrap();
    picture::make_everything(source.path());
    let restic = ResticRepository::new();
    restic.back_up(source.path());
    let repository = restic.open().await;
    let (_, tree) = restic.tree_of(&repository, source.path()).await;
    let reader = reader_of(&repository).await;
    let target = tempfile::tempdir().unwrap();
    let (folder, kept) = (target.path().join("live"), target.path().join("live_before_x"));
    let full = extract(&reader, tree, &folder, &options()).await.unwrap();
    spoil(&folder);
    let spoilt = std::fs::read(folder.join("a/b/c/big")).unwrap();
    let several = std::fs::read(folder.join("many/201")).unwrap();

    let keep = ExtractOptions { delta: Some(Delta::Keep(kept.clone())), ..options() };
    let report = extract(&reader, tree, &folder, &keep).await.unwrap();
    picture::assert_same(source.path(), &folder);
    assert!(report.bytes_kept > 0 && report.bytes_written < full.bytes_written, "{report:?}");
    assert!(std::fs::read(kept.join("a/b/c/big")).unwrap() == spoilt);
    assert!(std::fs::read(kept.join("many/201")).unwrap() == several);
    assert_eq!(std::fs::read(kept.join("many/203/inner")).unwrap(), b"x");
    // What matched is not there.
    assert!(!kept.join("many/7").exists());

    // The folder for what makes way is made by the restore that uses it.
    let error = extract(&reader, tree, &folder, &keep).await.unwrap_err();
    assert_eq!(error.code().to_string(), "HF-2014", "{error}");
    picture::assert_same(source.path(), &folder);
}

/// Everything that can have happened to a folder.
fn spoil(folder: &Path) {
    // One byte in the middle of a large file, whose times are then put back.
    let big = std::fs::File::options().write(true).open(folder.join("a/b/c/big")).unwrap();
    let modified = big.metadata().unwrap().modified().unwrap();
    big.write_all_at(b"?", 4_500_000).unwrap();
    big.set_modified(modified).unwrap();
    // Shorter, longer, gone, and of another kind.
    std::fs::File::options().write(true).open(folder.join("many/200")).unwrap().set_len(100).unwrap();
    std::fs::File::options().write(true).open(folder.join("many/201")).unwrap().set_len(5000).unwrap();
    std::fs::remove_file(folder.join("many/202")).unwrap();
    std::fs::remove_file(folder.join("many/203")).unwrap();
    std::fs::create_dir(folder.join("many/203")).unwrap();
    std::fs::write(folder.join("many/203/inner"), b"x").unwrap();
    std::fs::remove_dir(folder.join("empty folder")).unwrap();
    std::fs::write(folder.join("empty folder"), b"now a file").unwrap();
    std::fs::remove_file(folder.join("dangling")).unwrap();
    std::os::unix::fs::symlink("elsewhere", folder.join("dangling")).unwrap();
    // A name of a file with several is a file of its own now.
    std::fs::remove_file(folder.join("one again")).unwrap();
    std::fs::write(folder.join("one again"), b"1").unwrap();
    // Bytes in a hole.
    let sparse = std::fs::File::options().write(true).open(folder.join("sparse")).unwrap();
    sparse.write_all_at(b"filled", 20_000_000).unwrap();
    // Metadata alone.
    std::fs::set_permissions(folder.join("twin 2"), std::fs::Permissions::from_mode(0o777)).unwrap();
    xattr::set(folder.join("twin 2"), "user.extra", b"x").unwrap();
    xattr::remove(folder.join("twin 1"), "user.colour").unwrap();
    // A file that cannot be written as it is.
    let read_only = folder.join("a/read only");
    std::fs::remove_file(&read_only).unwrap();
    std::fs::write(&read_only, b"read ONLY").unwrap();
    std::fs::set_permissions(&read_only, std::fs::Permissions::from_mode(0o400)).unwrap();
    // What the snapshot does not have.
    std::fs::write(folder.join("many/new"), b"new").unwrap();
    std::fs::create_dir_all(folder.join("new folder/inner")).unwrap();
    std::fs::write(folder.join("new folder/inner/file"), b"new").unwrap();
    std::os::unix::fs::symlink("/etc", folder.join("a/b/c/new link")).unwrap();
}
