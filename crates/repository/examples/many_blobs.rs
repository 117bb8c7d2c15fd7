//! Makes a repository of very many tiny files, for measuring what grows with their number:
//! `many_blobs FOLDER BLOBS`. Its password is `many blobs`.
//!
//! Each file has one blob of 16 bytes of its own; a hundred files are in a folder, a thousand folders in one above. A
//! second snapshot has every second folder.

use std::sync::Arc;

use holdfast_model::secret::Secret;
use holdfast_repository::format::ObjectName;
use holdfast_repository::id::{BlobId, BlobType};
use holdfast_repository::index::IndexPack;
use holdfast_repository::key_slot::{KeyOrigin, ScryptCost};
use holdfast_repository::pack::PackBuilder;
use holdfast_repository::snapshot::SnapshotObject;
use holdfast_repository::storage::fs::FsStore;
use holdfast_repository::tree::{FileTime, Node, NodeMetadata, NodeType, TreeEncoder};
use holdfast_repository::{CreateOptions, Repository};

type AnyError = Box<dyn std::error::Error>;

const FILES_IN_FOLDER: u64 = 100;
const FOLDERS_IN_FOLDER: usize = 1000;
const PACK_BLOBS: usize = 10_000;
const INDEX_PACKS: usize = 8;
const PACK_BYTES: usize = 16 << 20;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the snapshots are its result")]
async fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, blobs] = &arguments[..] else { return Err("usage: many_blobs FOLDER BLOBS".into()) };
    let origin = KeyOrigin {
        created: jiff::Timestamp::UNIX_EPOCH,
        hostname: "nowhere".to_owned(),
        username: "nobody".to_owned(),
    };
    let options = CreateOptions { cost: ScryptCost::default(), origin };
    let store = Arc::new(FsStore::create(folder).await?);
    let repository = Repository::create(store, &Secret::new("many blobs"), options).await?;
    let mut data = Packs::new(&repository, BlobType::Data);
    let mut trees = Packs::new(&repository, BlobType::Tree);
    let (mut folders, mut above, mut halves) = (Vec::new(), Vec::new(), Vec::new());
    let blobs: u64 = blobs.parse()?;
    for first in (0..blobs).step_by(FILES_IN_FOLDER as usize) {
        let mut encoder = TreeEncoder::new();
        for number in first..(first + FILES_IN_FOLDER).min(blobs) {
            let content = u128::from(number).to_le_bytes();
            let id = data.push(&content).await?;
            let metadata = NodeMetadata::plain(NodeType::File, 0o644, FileTime::new(1_000_000_000, 5));
            let metadata = NodeMetadata { size: content.len() as u64, ..metadata };
            encoder
                .push_node(&Node { content: vec![id], ..Node::new(format!("file {number:012}"), metadata) });
        }
        let folder = trees.push(&encoder.finish()).await?;
        folders.push(folder);
        if first.is_multiple_of(2 * FILES_IN_FOLDER) {
            halves.push(folder);
        }
        if folders.len() == FOLDERS_IN_FOLDER {
            above.push(trees.push(&folder_of(&std::mem::take(&mut folders))).await?);
        }
    }
    above.extend(folders);
    let all = trees.push(&folder_of(&above)).await?;
    let mut above = Vec::new();
    for half in halves.chunks(FOLDERS_IN_FOLDER) {
        above.push(trees.push(&folder_of(half)).await?);
    }
    let half = trees.push(&folder_of(&above)).await?;
    data.finish().await?;
    trees.finish().await?;
    for (hour, root) in [(8, all), (9, half)] {
        let json = format!(
            r#"{{"time":"2026-11-21T0{hour}:00:00Z","tree":"{root}","paths":["/many"],"hostname":"nowhere"}}"#
        );
        let snapshot: SnapshotObject = serde_json::from_str(&json)?;
        println!("{}", repository.save_snapshot(&snapshot).await?);
    }
    Ok(())
}

/// A folder of folders.
fn folder_of(trees: &[BlobId]) -> Vec<u8> {
    let mut encoder = TreeEncoder::new();
    for (number, tree) in trees.iter().enumerate() {
        let metadata = NodeMetadata::plain(NodeType::Directory, 0o755, FileTime::new(1_000_000_000, 5));
        encoder
            .push_node(&Node { subtree: Some(*tree), ..Node::new(format!("folder {number:08}"), metadata) });
    }
    encoder.finish()
}

/// Packs of one type, each in the index once there are enough.
struct Packs<'r> {
    repository: &'r Repository,
    blob_type: BlobType,
    open: PackBuilder,
    blobs: usize,
    done: Vec<IndexPack>,
}

impl<'r> Packs<'r> {
    fn new(repository: &'r Repository, blob_type: BlobType) -> Self {
        let open = PackBuilder::new(blob_type, PACK_BYTES);
        Self { repository, blob_type, open, blobs: 0, done: Vec::new() }
    }

    async fn push(&mut self, content: &[u8]) -> Result<BlobId, AnyError> {
        let id = BlobId::of(content);
        let mut sealed = Vec::new();
        self.repository.sealer().seal(&zstd::bulk::compress(content, 1)?, &mut sealed);
        self.open.push(id, &sealed, Some(u32::try_from(content.len())?));
        self.blobs += 1;
        if self.blobs == PACK_BLOBS || self.open.len() >= PACK_BYTES {
            self.end_pack().await?;
        }
        Ok(id)
    }

    async fn end_pack(&mut self) -> Result<(), AnyError> {
        let next = PackBuilder::new(self.blob_type, PACK_BYTES);
        let pack = std::mem::replace(&mut self.open, next).finish(self.repository.sealer());
        self.repository.store().put(&ObjectName::Pack(pack.id), pack.bytes).await?;
        self.done.push(IndexPack { id: pack.id, entries: pack.entries });
        self.blobs = 0;
        if self.done.len() == INDEX_PACKS {
            self.repository.save_index(&std::mem::take(&mut self.done)).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(), AnyError> {
        if !self.open.is_empty() {
            self.end_pack().await?;
        }
        self.repository.save_index(&self.done).await?;
        Ok(())
    }
}
