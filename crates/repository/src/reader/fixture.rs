//! Repositories for tests: made blob by blob in memory, or by `restic` in a folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use holdfast_model::secret::Secret;

use super::{BlobReader, LocalSource};
use crate::config::Config;
use crate::crypto::MasterKey;
use crate::format::{ObjectKind, ObjectName};
use crate::id::{BlobId, BlobType, PackId, SnapshotId};
use crate::index::IndexPack;
use crate::pack::{PackBuilder, PackEntry};
use crate::repository::Repository;
use crate::snapshot::SnapshotObject;
use crate::storage::ObjectStore;
use crate::storage::fs::FsStore;
use crate::storage::memory::MemoryStore;
use crate::tree::{FileTime, Node, NodeMetadata, NodeType, TreeEncoder};

pub(crate) const PASSWORD: &str = "correct horse";

/// A repository in memory, made blob by blob, so that it can be wrong in any way.
pub(crate) struct Fixture {
    pub(crate) store: MemoryStore,
    pub(crate) repository: Repository,
    packs: Vec<IndexPack>,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let store = MemoryStore::new();
        let config = Config::generate();
        let repository = Repository::from_keys(Arc::new(store.clone()), config, MasterKey::generate());
        let json = config.to_json();
        repository.save_unpacked(ObjectKind::Config, &json).await.unwrap();
        // Nobody opens it with a password; that it is there is all that a check asks.
        let key = crate::id::KeyId::of(b"a key");
        store.put(&crate::format::ObjectName::Key(key), (&b"a key"[..]).into()).await.unwrap();
        Self { store, repository, packs: Vec::new() }
    }

    /// Stores a pack with these blobs; odd ones compressed.
    pub(crate) async fn pack(&mut self, blob_type: BlobType, blobs: &[&[u8]]) -> Vec<BlobId> {
        let sealer = self.repository.sealer();
        let mut builder = PackBuilder::new(blob_type, 0);
        let mut ids = Vec::new();
        for (number, content) in blobs.iter().enumerate() {
            let mut sealed = Vec::new();
            let mut length = None;
            if number % 2 == 1 {
                sealer.seal(&zstd::bulk::compress(content, 1).unwrap(), &mut sealed);
                length = Some(content.len() as u32);
            } else {
                sealer.seal(content, &mut sealed);
            }
            ids.push(BlobId::of(content));
            builder.push(*ids.last().unwrap(), &sealed, length);
        }
        let pack = builder.finish(sealer);
        self.store.put(&ObjectName::Pack(pack.id), pack.bytes).await.unwrap();
        self.packs.push(IndexPack { id: pack.id, entries: pack.entries });
        ids
    }

    /// The entries of the pack that was stored last, to be falsified.
    pub(crate) fn last_entries(&mut self) -> &mut Vec<PackEntry> {
        &mut self.packs.last_mut().unwrap().entries
    }

    /// The pack that was stored last.
    pub(crate) fn last_pack(&self) -> PackId {
        self.packs.last().unwrap().id
    }

    /// Stores a folder with these entries, in a pack of its own.
    pub(crate) async fn tree(&mut self, nodes: &[Node]) -> BlobId {
        let mut encoder = TreeEncoder::new();
        nodes.iter().for_each(|node| encoder.push_node(node));
        let json = encoder.finish();
        self.pack(BlobType::Tree, &[&json]).await[0]
    }

    /// Stores the index and a snapshot of this tree.
    pub(crate) async fn finish(&mut self, tree: BlobId) -> SnapshotId {
        self.repository.save_index(&self.packs).await.unwrap();
        let json = format!(r#"{{"time":"2026-11-21T08:00:00Z","tree":"{tree}"}}"#);
        let snapshot: SnapshotObject = serde_json::from_str(&json).unwrap();
        self.repository.save_snapshot(&snapshot).await.unwrap()
    }

    pub(crate) async fn reader(&self) -> BlobReader {
        reader_of(&self.repository).await
    }
}

pub(crate) async fn reader_of(repository: &Repository) -> BlobReader {
    let index = Arc::new(repository.load_index().await.unwrap());
    let source = LocalSource::new(Arc::clone(repository.store()), index);
    BlobReader::new(Arc::new(source), Arc::clone(repository.sealer()))
}

pub(crate) fn folder_node(name: &str, subtree: BlobId) -> Node {
    let metadata = NodeMetadata::plain(NodeType::Directory, 0o755, FileTime::new(1_000_000_000, 5));
    Node { subtree: Some(subtree), ..Node::new(name, metadata) }
}

pub(crate) fn file_node(name: &str, size: u64, content: &[BlobId]) -> Node {
    let metadata = NodeMetadata::plain(NodeType::File, 0o644, FileTime::new(1_000_000_000, 5));
    Node { content: content.to_vec(), ..Node::new(name, NodeMetadata { size, ..metadata }) }
}

/// A repository that `restic` writes, in a folder.
pub(crate) struct ResticRepository {
    pub(crate) folder: tempfile::TempDir,
}

impl ResticRepository {
    pub(crate) fn new() -> Self {
        let made = Self { folder: tempfile::tempdir().unwrap() };
        made.restic(&["init", "--repository-version", "2"]);
        made
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// Runs `restic`, which must succeed, and gives what it printed.
    pub(crate) fn restic(&self, arguments: &[&str]) -> String {
        let output = Command::new("restic")
            .args(arguments)
            .env("RESTIC_REPOSITORY", self.path())
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RESTIC_CACHE_DIR", self.folder.path().join("cache"))
            .output()
            .expect("restic is installed: run `make setup`");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "restic {arguments:?}: {printed}{complaints}");
        printed
    }

    /// Backs up a folder by its absolute path.
    pub(crate) fn back_up(&self, folder: &Path) {
        self.restic(&["backup", "--quiet", folder.to_str().unwrap()]);
    }

    pub(crate) async fn open(&self) -> Repository {
        Repository::open(Arc::new(FsStore::new(self.path())), &Secret::new(PASSWORD)).await.unwrap()
    }

    /// The tree of a folder in the only snapshot.
    pub(crate) async fn tree_of(&self, repository: &Repository, folder: &Path) -> (SnapshotId, BlobId) {
        let ids = repository.snapshot_ids().await.unwrap();
        assert_eq!(ids.len(), 1);
        let root = repository.snapshot(ids[0]).await.unwrap().tree;
        let reader = reader_of(repository).await;
        let path = folder.to_str().unwrap().as_bytes();
        (ids[0], reader.find(root, path).await.unwrap().subtree.unwrap())
    }
}
