use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::restore::{CheckOutcome, Placement};

use super::{Tree, capture};
use crate::files::FilesEngine;
use crate::test_support::{DirectoryContents, context};
use crate::{Engine as _, RestoreOrder, SnapshotContents as _};

/// Captures a tree into a folder that stands for the repository.
async fn snapshot(engine: &FilesEngine) -> (tempfile::TempDir, Arc<DirectoryContents>) {
    let (entries, manifest) = capture(engine).await;
    let stored = tempfile::tempdir().unwrap();
    let contents = DirectoryContents::store(stored.path(), entries, manifest);
    (stored, Arc::new(contents))
}

fn order(placement: Placement, only: &[&str]) -> RestoreOrder {
    RestoreOrder {
        placement,
        only: only.iter().map(|&path| path.to_owned()).collect(),
        stamp: "20261121T120000Z".to_owned(),
        snapshot_short: "1a2b3c4d".to_owned(),
        allowed_paths: Vec::new(),
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_restore_goes_beside_the_original_and_can_be_discarded() {
    let tree = Tree::new();
    let original = tree.file("srv/app/conf/a", "old");
    symlink("a", tree.base.join("srv/app/conf/link")).unwrap();
    let engine = tree.engine(&["srv/app"]);
    let (_stored, contents) = snapshot(&engine).await;
    fs::write(&original, "changed").unwrap();

    let order = order(Placement::Beside, &[]);
    let preview = engine.preview_restore(&order, contents.manifest(), &context()).await.unwrap();
    let (live, beside) = (tree.base.join("srv/app"), tree.base.join("srv/app_restored_1a2b3c4d"));
    assert_eq!(preview.steps, [format!("restore {} to {}", live.display(), beside.display())]);
    assert!(preview.checks.iter().all(|check| check.outcome == CheckOutcome::Ok), "{:?}", preview.checks);
    assert_eq!((preview.bytes_needed, preview.replaces), (3, false));
    assert!(preview.bytes_free.is_some());
    assert!(!beside.exists());

    let report = engine.restore(&order, contents.clone(), &context()).await.unwrap();
    assert_eq!(fs::read_to_string(beside.join("conf/a")).unwrap(), "old");
    assert_eq!(fs::read_link(beside.join("conf/link")).unwrap(), Path::new("a"));
    assert_eq!(fs::read_to_string(&original).unwrap(), "changed");
    assert_eq!((report.items, report.targets.clone()), (1, preview.targets));
    assert_eq!(report.checks.last().unwrap().detail, "1 file, 3 B, as in the manifest");

    let error = engine.restore(&order, contents, &context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetExists);
    assert_eq!(error.to_string(), format!("the restore target {} exists already", beside.display()));

    engine.discard(&report.targets, &context()).await.unwrap();
    assert!(!beside.exists() && live.exists());
}

#[tokio::test]
async fn in_place_keeps_the_old_tree_until_it_is_discarded() {
    let tree = Tree::new();
    tree.file("srv/app/a", "old");
    let engine = tree.engine(&["srv/app"]);
    let (_stored, contents) = snapshot(&engine).await;
    tree.file("srv/app/a", "changed");
    tree.file("srv/app/new", "new");

    let order = order(Placement::InPlace, &[]);
    let preview = engine.preview_restore(&order, contents.manifest(), &context()).await.unwrap();
    assert!(preview.replaces);
    assert_eq!(preview.steps.len(), 3);
    let report = engine.restore(&order, contents, &context()).await.unwrap();
    assert!(tree.base.join("srv/app/new").exists(), "nothing is swapped yet");
    let promoted = engine.promote(&report.targets, "20261121T081500Z", &context()).await.unwrap();
    let kept = tree.base.join("srv/app_before_20261121T081500Z");
    assert_eq!(promoted[0].kept.as_deref(), Some(text(&kept).as_str()));
    assert_eq!(fs::read_to_string(tree.base.join("srv/app/a")).unwrap(), "old");
    assert!(!tree.base.join("srv/app/new").exists());
    assert_eq!(fs::read_to_string(kept.join("a")).unwrap(), "changed");
    engine.discard(&promoted, &context()).await.unwrap();
    let left: Vec<_> =
        fs::read_dir(tree.base.join("srv")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["app"]);
}

#[tokio::test]
async fn a_tree_whose_folder_is_gone_comes_back_to_its_place() {
    let tree = Tree::new();
    tree.file("srv/app/a", "old");
    let engine = tree.engine(&["srv/app"]);
    let (_stored, contents) = snapshot(&engine).await;
    fs::remove_dir_all(tree.base.join("srv")).unwrap();
    let order = order(Placement::InPlace, &[]);
    let preview = engine.preview_restore(&order, contents.manifest(), &context()).await.unwrap();
    assert!(!preview.replaces);
    let report = engine.restore(&order, contents, &context()).await.unwrap();
    let promoted = engine.promote(&report.targets, "T1", &context()).await.unwrap();
    assert_eq!(promoted[0].kept, None);
    assert_eq!(fs::read_to_string(tree.base.join("srv/app/a")).unwrap(), "old");
}

#[tokio::test]
async fn only_restores_the_named_parts_beside_each_or_into_a_path() {
    let tree = Tree::new();
    for path in ["srv/app/conf/a", "srv/app/conf/b", "srv/app/data/c", "srv/other/d"] {
        tree.file(path, path);
    }
    let engine = tree.engine(&["srv/app", "srv/other"]);
    let (_stored, contents) = snapshot(&engine).await;
    let file = text(&tree.base.join("srv/app/conf/a"));
    // Without its leading slash it is a path of the snapshot's tree.
    let folder = text(&tree.base.join("srv/app/data"));
    let only = [file.as_str(), &folder[1..]];

    let report =
        engine.restore(&order(Placement::Beside, &only), contents.clone(), &context()).await.unwrap();
    assert_eq!(report.items, 2);
    let beside = tree.base.join("srv/app/conf/a_restored_1a2b3c4d");
    assert_eq!(fs::read_to_string(&beside).unwrap(), "srv/app/conf/a");
    assert!(tree.base.join("srv/app/data_restored_1a2b3c4d/c").exists());
    engine.discard(&report.targets, &context()).await.unwrap();
    assert!(!beside.exists());

    let into = tree.base.join("new/place");
    let placement = Placement::Into(text(&into));
    engine.restore(&order(placement.clone(), &only[..1]), contents.clone(), &context()).await.unwrap();
    assert_eq!(fs::read_to_string(&into).unwrap(), "srv/app/conf/a", "a single part becomes the path");
    fs::remove_file(&into).unwrap();
    fs::create_dir(&into).unwrap();
    let report = engine.restore(&order(placement.clone(), &[]), contents.clone(), &context()).await.unwrap();
    assert_eq!(report.items, 4);
    let below = into.join(tree.base.strip_prefix("/").unwrap());
    assert!(below.join("srv/app/conf/b").exists() && below.join("srv/other/d").exists());
    assert_eq!(report.targets[1].restored, text(&below.join("srv/other")));

    let missing = text(&tree.base.join("srv/third"));
    let error = engine.restore(&order(placement, &[&missing]), contents, &context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PathNotInSnapshot);
    assert_eq!(
        error.to_string(),
        format!("the snapshot holds {0}/srv/app, {0}/srv/other, but not {missing}", tree.base.display())
    );
}

#[tokio::test]
async fn the_paths_are_those_of_the_snapshot_not_of_the_definition_of_today() {
    let tree = Tree::new();
    tree.file("srv/app/a", "x");
    let (_stored, contents) = snapshot(&tree.engine(&["srv/app"])).await;
    let today = tree.engine(&["srv/elsewhere"]);
    let report = today.restore(&order(Placement::Beside, &[]), contents, &context()).await.unwrap();
    assert_eq!(report.targets[0].part, text(&tree.base.join("srv/app")));
}

#[tokio::test]
async fn a_restore_outside_the_allowed_folders_is_refused_and_previewed_so() {
    let tree = Tree::new();
    tree.file("srv/app/a", "x");
    let engine = tree.engine(&["srv/app"]);
    let (_stored, contents) = snapshot(&engine).await;
    let mut order = order(Placement::Into(text(&tree.base.join("out"))), &[]);
    order.allowed_paths = vec![tree.base.join("srv")];
    let preview = engine.preview_restore(&order, contents.manifest(), &context()).await.unwrap();
    let failed: Vec<_> =
        preview.checks.iter().filter(|check| check.outcome == CheckOutcome::Failed).collect();
    let message =
        format!("the agent's configuration does not allow restores to {}", tree.base.join("out").display());
    assert_eq!((failed.len(), failed[0].detail.as_str()), (1, message.as_str()));
    let error = engine.restore(&order, contents, &context()).await.unwrap_err();
    assert_eq!((error.code(), error.to_string()), (ErrorCode::NotAllowedHere, message));
    assert!(!tree.base.join("out").exists());
}

#[tokio::test]
async fn a_restore_that_lacks_a_file_is_removed_and_fails() {
    let tree = Tree::new();
    tree.file("srv/app/a", "x");
    tree.file("srv/app/b", "x");
    let engine = tree.engine(&["srv/app"]);
    let (stored, contents) = snapshot(&engine).await;
    fs::remove_file(stored.path().join(tree.base.strip_prefix("/").unwrap()).join("srv/app/b")).unwrap();
    let into = tree.base.join("new/deep/er");
    let order = order(Placement::Into(text(&into)), &[]);
    let error = engine.restore(&order, contents.clone(), &context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RestoreMismatch);
    assert_eq!(error.to_string(), "restored were 1 file of 1 byte, but the manifest says 2 files of 2 bytes");
    assert!(!tree.base.join("new").exists(), "the folders made on the way are gone, too");
    fs::create_dir_all(&into).unwrap();
    engine.restore(&order, contents, &context()).await.unwrap_err();
    assert_eq!(fs::read_dir(&into).unwrap().count(), 0, "a folder that was there is only emptied");
}
