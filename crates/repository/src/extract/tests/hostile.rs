//! Trees that mean harm, and targets in which somebody prepared something.

use std::os::unix::fs::MetadataExt;

use holdfast_model::ErrorCode;

use super::*;
use crate::id::BlobType;
use crate::reader::fixture::{Fixture, file_node, folder_node};
use crate::tree::{FileTime, Node, NodeMetadata, NodeType};

fn link_node(name: &str, target: &str) -> Node {
    let metadata = NodeMetadata::plain(NodeType::Symlink, 0o777, FileTime::default());
    Node::new(name, NodeMetadata { link_target: Some(target.into()), ..metadata })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_target_does_not_lead_outside() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), b"canary").unwrap();
    std::fs::create_dir(outside.path().join("inner")).unwrap();
    let mut fixture = Fixture::new().await;
    let content = fixture.pack(BlobType::Data, &[b"restored"]).await;
    let inner = fixture.tree(&[file_node("file", 8, &content)]).await;
    let folder = fixture.tree(&[file_node("file", 8, &content), folder_node("inner", inner)]).await;
    let root = fixture.tree(&[folder_node("folder", folder), file_node("link to file", 8, &content)]).await;
    fixture.finish(root).await;

    let target = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), target.path().join("folder")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("file"), target.path().join("link to file")).unwrap();
    std::os::unix::fs::symlink(outside.path(), target.path().join("extra")).unwrap();
    let delta = ExtractOptions { delta: Some(Delta::Remove), ..options() };
    extract(&fixture.reader().await, root, target.path(), &delta).await.unwrap();

    assert_eq!(std::fs::read(outside.path().join("file")).unwrap(), b"canary");
    assert_eq!(std::fs::read_dir(outside.path().join("inner")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 2);
    for path in ["folder/file", "folder/inner/file", "link to file"] {
        assert_eq!(std::fs::read(target.path().join(path)).unwrap(), b"restored", "{path}");
        assert!(!target.path().join(path).is_symlink());
    }
    assert!(!target.path().join("extra").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_linked_file_of_the_target_is_not_changed_through() {
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    let mut old = vec![1; 2_000_000];
    std::fs::write(&canary, &old).unwrap();
    let mut fixture = Fixture::new().await;
    let content = fixture.pack(BlobType::Data, &[&old[..1_000_000], &[2; 1_000_000]]).await;
    let root = fixture.tree(&[file_node("file", 2_000_000, &content)]).await;
    fixture.finish(root).await;
    let target = tempfile::tempdir_in(outside.path()).unwrap();
    std::fs::hard_link(&canary, target.path().join("file")).unwrap();
    let delta = ExtractOptions { delta: Some(Delta::Remove), ..options() };
    extract(&fixture.reader().await, root, target.path(), &delta).await.unwrap();
    assert!(std::fs::read(&canary).unwrap() == old, "the other name was changed");
    old[1_000_000..].fill(2);
    assert!(std::fs::read(target.path().join("file")).unwrap() == old);
}

#[tokio::test(flavor = "multi_thread")]
async fn symbolic_links_of_the_tree_are_not_followed_by_it() {
    let outside = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::new().await;
    let content = fixture.pack(BlobType::Data, &[b"x"]).await;
    let folder = fixture.tree(&[file_node("file", 1, &content)]).await;
    let out = outside.path().to_str().unwrap();
    let root = fixture.tree(&[link_node("a", out), folder_node("b", folder), link_node("c", "../..")]).await;
    fixture.finish(root).await;
    let target = tempfile::tempdir().unwrap();
    extract(&fixture.reader().await, root, target.path(), &options()).await.unwrap();
    assert_eq!(std::fs::read_link(target.path().join("a")).unwrap(), outside.path());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);

    // Two entries of one name, a link and a folder, would be the way around: such a tree is refused.
    let twice = format!(
        r#"{{"nodes":[{{"name":"a","type":"symlink","linktarget":"{out}"}},
            {{"name":"a","type":"dir","subtree":"{folder}"}}]}}"#
    );
    let mut fixture_two = Fixture::new().await;
    let root = fixture_two.pack(BlobType::Tree, &[twice.as_bytes()]).await[0];
    fixture_two.finish(root).await;
    let target = tempfile::tempdir().unwrap();
    let error = extract(&fixture_two.reader().await, root, target.path(), &options()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ObjectDamaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_may_point_to_any_bytes() {
    let mut fixture = Fixture::new().await;
    let mut node = link_node("odd", "");
    node.metadata.link_target = Some(b"\xff\xfe".to_vec());
    let root = fixture.tree(&[node]).await;
    fixture.finish(root).await;
    let target = tempfile::tempdir().unwrap();
    extract(&fixture.reader().await, root, target.path(), &options()).await.unwrap();
    let found = std::fs::read_link(target.path().join("odd")).unwrap();
    assert_eq!(std::os::unix::ffi::OsStrExt::as_bytes(found.as_os_str()), b"\xff\xfe");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_claim_one_inode_but_differ_are_restored_apart() {
    let mut fixture = Fixture::new().await;
    let content = fixture.pack(BlobType::Data, &[b"first", b"other"]).await;
    let mut nodes = [
        file_node("a", 5, &content[..1]),
        file_node("b", 5, &content[1..]),
        file_node("c", 5, &content[..1]),
    ];
    for node in &mut nodes {
        (node.metadata.inode, node.metadata.device_id, node.metadata.links) = (7, 1, 3);
    }
    let root = fixture.tree(&nodes).await;
    fixture.finish(root).await;
    let target = tempfile::tempdir().unwrap();
    let report = extract(&fixture.reader().await, root, target.path(), &options()).await.unwrap();
    assert_eq!(report.hard_links, 1);
    assert_eq!(std::fs::read(target.path().join("b")).unwrap(), b"other");
    let inode = |name| std::fs::metadata(target.path().join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("c"));
    assert_ne!(inode("a"), inode("b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_warned_of_and_the_rest_is_restored() {
    let mut fixture = Fixture::new().await;
    let node =
        |name: &str, node_type| Node::new(name, NodeMetadata::plain(node_type, 0o600, FileTime::default()));
    let root = fixture
        .tree(&[
            node("device", NodeType::BlockDevice),
            node("socket", NodeType::Socket),
            file_node("file", 0, &[]),
        ])
        .await;
    fixture.finish(root).await;
    let target = tempfile::tempdir().unwrap();
    let report = extract(&fixture.reader().await, root, target.path(), &options()).await.unwrap();
    assert_eq!((report.files, report.warnings_total), (1, 2));
    assert!(report.warnings[0].contains("\"device\""), "{:?}", report.warnings);
    assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_deeper_than_a_path_may_be_is_restored() {
    let mut fixture = Fixture::new().await;
    let mut tree = fixture.tree(&[file_node("end", 0, &[])]).await;
    for _ in 0..60 {
        tree = fixture.tree(&[folder_node(&"d".repeat(100), tree)]).await;
    }
    fixture.finish(tree).await;
    let target = tempfile::tempdir().unwrap();
    let report = extract(&fixture.reader().await, tree, target.path(), &options()).await.unwrap();
    assert_eq!((report.folders, report.files), (60, 1));
}
