//! Takes an export into a repository. Nothing is committed before its last checksum agreed.
//!
//! One thread takes the archive apart, another feeds the writer: a content goes from one to the other through a bounded
//! queue, and `SHA256SUMS` is compared as a whole, so memory does not grow with the number of files.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use holdfast_model::ids::{RepositoryName, SourceName};
use holdfast_model::manifest::{MANIFEST_PATH, Manifest};
use holdfast_model::run::SnapshotType;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::text::size;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, parse};
use holdfast_proto::v1;
use holdfast_proto::v1::import_snapshot_request::Part;
use holdfast_repository::RepositoryError;
use holdfast_repository::id::BlobId;
use holdfast_repository::tree::{FileTime, NodeMetadata, NodeType};
use holdfast_repository::write::{OwnFile, WriteContent, WriteEntry, Written};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::access::Caller;
use crate::catalog::{Tags, describe};
use crate::core::Core;
use crate::export::{
    ExportHead, HEAD, Hashing, ROOT, SUMS, TREE, XATTR_ENCODED, XATTR_PLAIN, percent_decoded, sum_line,
};
use crate::records::Batch;
use crate::repositories::{OpenRepository, repository_failure};
use crate::repository_uses::RepositoryUse;
use crate::snapshot_writer::{self, Unpublished};

/// Parts of the upload, and parts of a content, that may wait.
const PARTS_MAX: usize = 8;
/// Bytes of one part of a content.
const PART_BYTES: usize = 256 << 10;
/// Largest `export.json` and largest file of `.holdfast` that is read.
const OWN_BYTES_MAX: u64 = 64 << 20;
/// Most that lies before the content of an entry: its header, long names and attributes.
const HEADERS_BYTES_MAX: u64 = 16 << 20;
/// Largest back reference that a compressed file may ask memory for: 2^27 bytes.
const WINDOW_LOG_MAX: u32 = 27;

/// Imports a stream of parts.
///
/// # Errors
/// `HF-3019` when the file is damaged, incomplete or no export; then nothing was committed.
pub async fn import(
    core: &Arc<Core>,
    caller: &Caller,
    mut parts: Streaming<v1::ImportSnapshotRequest>,
) -> Result<SnapshotRecord, Failure> {
    let cut = || damaged("it ended early");
    let first = parts.message().await.map_err(|_| cut())?.and_then(|first| first.part);
    let Some(Part::Header(header)) = first else {
        return Err(ConvertError::new("part", "the first part of an import is its header").into());
    };
    let repository: RepositoryName = parse("repository", &header.repository)?;
    let source: SourceName = parse("source", &header.source)?;
    let repository = core.repository(&repository).await?;
    repository.update_index().await?;
    let in_use = repository.index().uses.begin();
    let (sender, receiver) = mpsc::channel::<Bytes>(PARTS_MAX);
    let work = {
        let repository = repository.clone();
        let cancel = core.tasks.token().child_token();
        core.blocking("import a snapshot", move || take_in(&repository, PartReader::new(receiver), cancel))
    };
    let feed = async move {
        while let Ok(Some(part)) = parts.message().await {
            let Some(Part::Data(data)) = part.part else { break };
            if sender.send(data.into()).await.is_err() {
                // The other side found the file damaged; it says so.
                break;
            }
        }
    };
    let ((), taken) = tokio::join!(feed, work);
    commit(core, caller, &repository, &in_use, source, taken?).await
}

/// What an archive held, durable but not committed.
struct Taken {
    head: ExportHead,
    tree: BlobId,
    manifest: Option<Manifest>,
    written: Written,
}

async fn commit(
    core: &Arc<Core>,
    caller: &Caller,
    repository: &Arc<OpenRepository>,
    in_use: &RepositoryUse,
    source: SourceName,
    taken: Taken,
) -> Result<SnapshotRecord, Failure> {
    let tags = Tags {
        ours: true,
        source: Some(source),
        snapshot_type: taken.head.snapshot_type.as_deref().and_then(SnapshotType::parse),
        ..Tags::default()
    };
    let what = Unpublished {
        tree: taken.tree,
        written: taken.written,
        paths: taken.head.paths,
        hostname: taken.head.hostname,
        tags,
    };
    let (id, object) = snapshot_writer::publish(repository, in_use, what, core.clock.now()).await?;
    let record = describe(id, &repository.name, &object, taken.manifest);
    let record = SnapshotRecord { entered_at: Some(record.committed_at), ..record };
    let batch = Batch::new(caller.actor(), "snapshot.import", format!("snapshot/{id}"));
    core.records.commit(batch.put_snapshot(&record)).await?;
    record.source.iter().for_each(|source| core.snapshots_changed(source));
    Ok(record)
}

/// Reads an archive to its end and stores its tree. Blocks.
fn take_in(
    repository: &Arc<OpenRepository>,
    parts: PartReader,
    cancel: tokio_util::sync::CancellationToken,
) -> Result<Taken, Failure> {
    let fail = |error: RepositoryError| repository_failure(&repository.name, &error);
    let mut writer = snapshot_writer::open(repository, cancel)?;
    let (sender, items) = crossbeam_channel::bounded::<Item>(PARTS_MAX);
    let apart = std::thread::Builder::new()
        .name("import-archive".to_owned())
        .spawn(move || take_apart(parts, &sender))
        .map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
    let mut added = Ok(());
    for item in &items {
        added = writer.add(item.entry()).map_err(fail);
        if added.is_err() {
            break;
        }
    }
    drop(items);
    let apart =
        apart.join().map_err(|_| Failure::new(ErrorCode::Internal, "reading the archive panicked"))?;
    // What the archive says of itself explains more than the broken stream that followed from it.
    let archive = apart?;
    added?;
    let manifest_name = MANIFEST_PATH.rsplit('/').next().unwrap_or(MANIFEST_PATH);
    let manifest = archive.own_files.iter().find(|file| file.name == manifest_name);
    let manifest = manifest
        .map(|file| serde_json::from_slice(&file.bytes))
        .transpose()
        .map_err(|error: serde_json::Error| damaged("its manifest is not one").because(error.to_string()))?;
    let at = archive.head.committed_at;
    let time = FileTime { seconds: at.as_second(), nanoseconds: at.subsec_nanosecond().unsigned_abs() };
    let (tree, written) = writer.finish(archive.own_files, time).map_err(fail)?;
    Ok(Taken { head: archive.head, tree, manifest, written })
}

/// What is known of an archive at its end.
struct Archive {
    head: ExportHead,
    own_files: Vec<OwnFile>,
}

/// An entry of the tree on its way to the writer.
struct Item {
    path: Vec<u8>,
    metadata: NodeMetadata,
    content: Option<crossbeam_channel::Receiver<io::Result<Vec<u8>>>>,
}

impl Item {
    fn entry(self) -> WriteEntry {
        let content = match self.content {
            None => WriteContent::None,
            Some(parts) => {
                WriteContent::Stream(Box::new(ContentReader { parts, part: io::Cursor::default() }))
            }
        };
        WriteEntry { path: self.path, metadata: self.metadata, content }
    }
}

fn damaged(why: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::ExportDamaged, format!("the file can not be imported: {}", why.into()))
        .at_stake("nothing was committed")
}

fn unreadable(error: &io::Error) -> Failure {
    damaged("it is damaged or incomplete").because(error.to_string())
}

fn take_apart(parts: impl Read, sender: &crossbeam_channel::Sender<Item>) -> Result<Archive, Failure> {
    let mut decoder = zstd::Decoder::new(parts).map_err(|error| unreadable(&error))?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(|error| unreadable(&error))?;
    let budget = Rc::new(Cell::new(0));
    let mut archive = tar::Archive::new(Budgeted { inner: decoder, left: budget.clone() });
    let mut head: Option<ExportHead> = None;
    let mut own_files = Vec::new();
    let mut sums = Sha256::new();
    let mut agreed = false;
    let prefix = format!("{ROOT}/");
    let mut entries = archive.entries().map_err(|error| unreadable(&error))?;
    loop {
        budget.set(HEADERS_BYTES_MAX);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|error| unreadable(&error))?;
        budget.set(u64::MAX);
        let path = entry.path_bytes().into_owned();
        let path =
            path.strip_prefix(prefix.as_bytes()).ok_or_else(|| damaged("it is no export of Holdfast"))?;
        if path == HEAD.as_bytes() {
            let read: ExportHead = serde_json::from_slice(&read_own(&mut entry)?)
                .map_err(|error| damaged("its head is not one").because(error.to_string()))?;
            if read.format != ROOT || read.version != 1 {
                return Err(damaged(format!(
                    "it has version {} of the format {:?}",
                    read.version, read.format
                )));
            }
            head = Some(read);
        } else if path == SUMS.as_bytes() {
            let found = Sha256::digest(read_own(&mut entry)?);
            if found != sums.clone().finalize() {
                return Err(damaged("its files do not agree with its checksums"));
            }
            agreed = true;
            break;
        } else if let Some(path) = path.strip_prefix(format!("{TREE}/").as_bytes()) {
            let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
            match path.strip_prefix(b".holdfast") {
                Some(b"") => {}
                Some([b'/', name @ ..]) => {
                    let bytes = read_own(&mut entry)?;
                    sums.update(sum_line(&Sha256::digest(&bytes).into(), &path));
                    let name = String::from_utf8_lossy(name).into_owned();
                    own_files.push(OwnFile { name, bytes });
                }
                _ => hand_over(&mut entry, path, sender, &mut sums)?,
            }
        } else {
            return Err(damaged("it is no export of Holdfast"));
        }
    }
    if !agreed {
        return Err(damaged("it ends before its checksums"));
    }
    // The end of the compressed file proves that nothing of it is missing.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| unreadable(&error))?;
    let head = head.ok_or_else(|| damaged("it has no head"))?;
    Ok(Archive { head, own_files })
}

fn read_own(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    entry.take(OWN_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > OWN_BYTES_MAX {
        return Err(damaged(format!("a file of its own has more than {}", size(OWN_BYTES_MAX))));
    }
    Ok(bytes)
}

fn hand_over(
    entry: &mut tar::Entry<'_, impl Read>,
    path: Vec<u8>,
    sender: &crossbeam_channel::Sender<Item>,
    sums: &mut Sha256,
) -> Result<(), Failure> {
    let metadata = metadata(entry)?;
    // A writer that has failed takes nothing any more and says why itself.
    let stopped = || damaged("the repository did not take it");
    if metadata.node_type != NodeType::File {
        return sender.send(Item { path, metadata, content: None }).map_err(|_| stopped());
    }
    let (content, parts) = crossbeam_channel::bounded(PARTS_MAX);
    let line_path = path.clone();
    sender.send(Item { path, metadata, content: Some(parts) }).map_err(|_| stopped())?;
    let mut hashing = Hashing { inner: entry, hash: Sha256::new() };
    loop {
        let mut part = vec![0; PART_BYTES];
        match hashing.read(&mut part) {
            Ok(0) => break,
            Ok(length) => {
                part.truncate(length);
                content.send(Ok(part)).map_err(|_| stopped())?;
            }
            Err(error) => {
                let failure = unreadable(&error);
                // The writer must not take what came so far for the whole.
                let _ = content.send(Err(error));
                return Err(failure);
            }
        }
    }
    sums.update(sum_line(&hashing.hash.finalize().into(), &line_path));
    Ok(())
}

fn metadata(entry: &mut tar::Entry<'_, impl Read>) -> Result<NodeMetadata, Failure> {
    let header = entry.header();
    let node_type = match header.entry_type() {
        tar::EntryType::Regular | tar::EntryType::Continuous => NodeType::File,
        tar::EntryType::Directory => NodeType::Directory,
        tar::EntryType::Symlink => NodeType::Symlink,
        tar::EntryType::Fifo => NodeType::Fifo,
        tar::EntryType::Block => NodeType::BlockDevice,
        tar::EntryType::Char => NodeType::CharDevice,
        other => return Err(damaged(format!("it holds an entry of the type {other:?}"))),
    };
    let number = |value: io::Result<u64>| value.map_err(|error| unreadable(&error));
    let id = |value: io::Result<u64>| number(value).map(|id| u32::try_from(id).unwrap_or(u32::MAX));
    let seconds = i64::try_from(number(header.mtime())?).unwrap_or(i64::MAX);
    let mode = header.mode().map_err(|error| unreadable(&error))? & 0o7777;
    let mut metadata = NodeMetadata::plain(node_type, mode, FileTime { seconds, nanoseconds: 0 });
    (metadata.uid, metadata.gid) = (id(header.uid())?, id(header.gid())?);
    metadata.user = header.username().ok().flatten().filter(|name| !name.is_empty()).map(Into::into);
    metadata.group = header.groupname().ok().flatten().filter(|name| !name.is_empty()).map(Into::into);
    if matches!(node_type, NodeType::BlockDevice | NodeType::CharDevice) {
        let part = |value: io::Result<Option<u32>>| value.ok().flatten().unwrap_or(0);
        metadata.device = rustix::fs::makedev(part(header.device_major()), part(header.device_minor()));
    }
    if node_type == NodeType::Symlink {
        let target = entry.link_name_bytes().ok_or_else(|| damaged("a link in it has no target"))?;
        metadata.link_target = Some(target.into_owned());
    }
    if let Some(extensions) = entry.pax_extensions().map_err(|error| unreadable(&error))? {
        // A plain attribute whose value has line breaks shows as pieces that are no extensions; it is there encoded too.
        for extension in extensions.flatten() {
            extend(&mut metadata, extension.key_bytes(), extension.value_bytes());
        }
    }
    metadata.xattrs.sort();
    metadata.size = 0;
    (metadata.atime, metadata.ctime) = (metadata.mtime, metadata.mtime);
    Ok(metadata)
}

fn extend(metadata: &mut NodeMetadata, key: &[u8], value: &[u8]) {
    if let Some(name) = key.strip_prefix(XATTR_PLAIN.as_bytes()) {
        if metadata.xattrs.iter().all(|(known, _)| known != name) {
            metadata.xattrs.push((name.to_vec(), value.to_vec()));
        }
    } else if let Some(name) = key.strip_prefix(XATTR_ENCODED.as_bytes()) {
        if let (Some(name), Ok(value)) = (percent_decoded(name), BASE64.decode(value)) {
            metadata.xattrs.retain(|(known, _)| *known != name);
            metadata.xattrs.push((name, value));
        }
    } else if key == b"mtime"
        && let Ok(text) = std::str::from_utf8(value)
        && let Some((seconds, fraction)) = text.split_once('.')
        && let (Ok(seconds), Some(Ok(nanoseconds))) =
            (seconds.parse(), format!("{fraction:0<9}").get(..9).map(str::parse))
    {
        metadata.mtime = FileTime { seconds, nanoseconds };
    }
}

/// Gives no more than what is left: names and attributes are kept in memory, and a few bytes unpack to any number.
struct Budgeted<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        let left = self.left.get().checked_sub(length as u64);
        self.left
            .set(left.ok_or_else(|| io::Error::other("the names and attributes of an entry are too long"))?);
        Ok(length)
    }
}

/// The upload as a blocking reader.
struct PartReader {
    parts: mpsc::Receiver<Bytes>,
    part: io::Cursor<Bytes>,
}

impl PartReader {
    fn new(parts: mpsc::Receiver<Bytes>) -> Self {
        Self { parts, part: io::Cursor::default() }
    }
}

impl Read for PartReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.part.read(out)?;
            if length > 0 || out.is_empty() {
                return Ok(length);
            }
            match self.parts.blocking_recv() {
                Some(part) => self.part = io::Cursor::new(part),
                None => return Ok(0),
            }
        }
    }
}

/// A content on its way from one thread to the other. A queue that ends is the end of the content only because an error
/// is sent through it as well.
struct ContentReader {
    parts: crossbeam_channel::Receiver<io::Result<Vec<u8>>>,
    part: io::Cursor<Vec<u8>>,
}

impl Read for ContentReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.part.read(out)?;
            if length > 0 || out.is_empty() {
                return Ok(length);
            }
            match self.parts.recv() {
                Ok(part) => self.part = io::Cursor::new(part?),
                Err(_) => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests;
