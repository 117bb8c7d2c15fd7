//! One snapshot as one file: a tar inside zstd, readable without Holdfast.
//!
//! | entry | what it is |
//! |---|---|
//! | `holdfast-export/export.json` | what is exported, [`ExportHead`] |
//! | `holdfast-export/tree/…` | the tree of the snapshot, folders before what is in them, siblings in the order of their bytes |
//! | `holdfast-export/SHA256SUMS` | one line per regular file of the tree, as `sha256sum -c` reads it; the last entry |
//!
//! A file that ends before `SHA256SUMS` is incomplete. Sockets are left out: tar has no word for them.

use std::borrow::Cow;
use std::io::{self, Read, Seek as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::status::to_status;
use holdfast_proto::{DATA_PART_BYTES_MAX, v1};
use holdfast_repository::RepositoryError;
use holdfast_repository::id::BlobId;
use holdfast_repository::reader::{BlobReader, FileReader, TreeWalker, WalkLimits, WalkStep};
use holdfast_repository::tree::{Node, NodeType};
use holdfast_runtime::OnEnd;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::contents;
use crate::core::Core;
use crate::repositories::repository_failure;

/// The folder that everything lies in.
pub const ROOT: &str = "holdfast-export";
/// Name of the first entry within it.
pub const HEAD: &str = "export.json";
/// Name of the folder with the tree.
pub const TREE: &str = "tree";
/// Name of the last entry.
pub const SUMS: &str = "SHA256SUMS";

/// Key of an extended attribute as GNU tar and star write it.
pub const XATTR_PLAIN: &str = "SCHILY.xattr.";
/// Key of one as libarchive writes it: the name percent-encoded, the value in base64. Written as well where the plain
/// form is not read by everybody.
pub const XATTR_ENCODED: &str = "LIBARCHIVE.xattr.";

/// Parts that may wait to be sent.
const PARTS_MAX: usize = 4;

/// What is exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportHead {
    /// Always `holdfast-export`.
    pub format: String,
    /// Always 1 so far.
    pub version: u32,
    /// Id of the snapshot.
    pub snapshot: String,
    /// Name of the source.
    pub source: Option<String>,
    /// full, incremental, …
    pub snapshot_type: Option<String>,
    /// When it was committed.
    pub committed_at: jiff::Timestamp,
    /// Host that it names.
    pub hostname: String,
    /// Paths that it names.
    pub paths: Vec<String>,
}

type Parts = mpsc::Sender<Result<v1::ExportSnapshotResponse, Status>>;

/// Exports a snapshot as a stream of parts.
///
/// # Errors
/// When there is no such snapshot or its repository can not be opened; damage found on the way ends the stream with an
/// error, and the file is incomplete.
pub async fn export(
    core: &Arc<Core>,
    id: &str,
) -> Result<ReceiverStream<Result<v1::ExportSnapshotResponse, Status>>, Failure> {
    let record = core.records.snapshot_by_prefix(id).await?;
    let repository = core.repository(&record.repository).await?;
    let root: BlobId =
        record.tree.parse().map_err(|error| Failure::from_error(ErrorCode::StateDamaged, &error))?;
    let sums = tempfile::tempfile_in(&core.data_dir).map_err(|error| {
        Failure::new(ErrorCode::StateUnavailable, format!("{} can not be written", core.data_dir.display()))
            .because(error.to_string())
    })?;
    let (sender, parts) = mpsc::channel(PARTS_MAX);
    repository.update_index().await?;
    let reader = contents::reader(&repository);
    let in_use = repository.index().uses.begin();
    let name = repository.name.clone();
    core.tasks.spawn_blocking("export a snapshot", OnEnd::Isolated, move || {
        let _use = in_use;
        let out = PartWriter { sender: sender.clone(), waiting: Vec::new() };
        let exporter = Exporter { reader, handle: Handle::current(), sums };
        if let Err(error) = exporter.run(&record, root, out) {
            let failure = match error.downcast::<RepositoryError>() {
                Ok(error) => repository_failure(&name, &error),
                // Who asked is gone, or the disk of the controller is full.
                Err(error) => Failure::new(ErrorCode::OutputFailed, "the export could not be written")
                    .because(error.to_string()),
            };
            let _ = sender.blocking_send(Err(to_status(&failure)));
        }
    });
    Ok(ReceiverStream::new(parts))
}

struct Exporter {
    reader: BlobReader,
    handle: Handle,
    /// The text of `SHA256SUMS`, which is known only at the end.
    sums: std::fs::File,
}

type Exported<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Exporter {
    fn run(mut self, record: &SnapshotRecord, root: BlobId, out: PartWriter) -> Exported<()> {
        let mut compressor = zstd::Encoder::new(out, 3)?;
        compressor.include_checksum(true)?;
        let mut archive = tar::Builder::new(compressor);
        self.head(&mut archive, record)?;
        let mut walker = TreeWalker::new(self.reader.clone(), root, WalkLimits::default());
        while let Some(step) = self.handle.block_on(walker.next())? {
            if let WalkStep::Enter(node) | WalkStep::Entry(node) = step {
                self.entry(&mut archive, walker.path(), node)?;
            }
        }
        self.sums.flush()?;
        let length = self.sums.stream_position()?;
        self.sums.rewind()?;
        let mut header = plain_header(length, 0o644, record.committed_at.as_second());
        archive.append_data(&mut header, format!("{ROOT}/{SUMS}"), &mut self.sums)?;
        let mut out = archive.into_inner()?.finish()?;
        out.flush()?;
        Ok(())
    }

    fn head<W: Write>(&self, archive: &mut tar::Builder<W>, record: &SnapshotRecord) -> Exported<()> {
        let head = ExportHead {
            format: ROOT.to_owned(),
            version: 1,
            snapshot: record.id.to_string(),
            source: record.source.as_ref().map(ToString::to_string),
            snapshot_type: record.snapshot_type.map(|kind| kind.to_string()),
            committed_at: record.committed_at,
            hostname: record.hostname.clone(),
            paths: record.paths.clone(),
        };
        let text = serde_json::to_vec_pretty(&head)?;
        let mut header = plain_header(text.len() as u64, 0o644, record.committed_at.as_second());
        archive.append_data(&mut header, format!("{ROOT}/{HEAD}"), text.as_slice())?;
        Ok(())
    }

    fn entry<W: Write>(&mut self, archive: &mut tar::Builder<W>, path: &[u8], node: Node) -> Exported<()> {
        let mut full = format!("{ROOT}/{TREE}/").into_bytes();
        full.extend_from_slice(path);
        let full = Path::new(std::ffi::OsStr::from_bytes(&full));
        let metadata = &node.metadata;
        let mut header = plain_header(0, metadata.mode, metadata.mtime.seconds);
        header.set_uid(u64::from(metadata.uid));
        header.set_gid(u64::from(metadata.gid));
        if let Some(user) = &metadata.user {
            // Names too long for a header are left out; the numbers are there.
            let _ = header.set_username(user);
        }
        if let Some(group) = &metadata.group {
            let _ = header.set_groupname(group);
        }
        self.extensions(archive, &node)?;
        match metadata.node_type {
            NodeType::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, full, io::empty())?;
            }
            NodeType::File => {
                header.set_size(metadata.size);
                let content = FileReader::new(self.reader.clone(), node.content, self.handle.clone())?;
                let mut hashing = Hashing { inner: content, hash: Sha256::new() };
                archive.append_data(&mut header, full, &mut hashing)?;
                let line = sum_line(&hashing.hash.finalize().into(), path);
                self.sums.write_all(&line)?;
            }
            NodeType::Symlink => {
                header.set_entry_type(tar::EntryType::Symlink);
                let target = metadata.link_target.as_deref().unwrap_or_default();
                archive.append_link(&mut header, full, Path::new(std::ffi::OsStr::from_bytes(target)))?;
            }
            NodeType::Fifo | NodeType::BlockDevice | NodeType::CharDevice => {
                header.set_entry_type(match metadata.node_type {
                    NodeType::Fifo => tar::EntryType::Fifo,
                    NodeType::BlockDevice => tar::EntryType::Block,
                    _ => tar::EntryType::Char,
                });
                header.set_device_major(rustix::fs::major(metadata.device))?;
                header.set_device_minor(rustix::fs::minor(metadata.device))?;
                archive.append_data(&mut header, full, io::empty())?;
            }
            NodeType::Socket | NodeType::Irregular => {}
        }
        Ok(())
    }

    /// What the plain header has no place for: nanoseconds, attributes.
    fn extensions<W: Write>(&self, archive: &mut tar::Builder<W>, node: &Node) -> Exported<()> {
        let time = node.metadata.mtime;
        let mtime = format!("{}.{:09}", time.seconds, time.nanoseconds);
        let mut extensions: Vec<(String, Cow<'_, [u8]>)> = Vec::new();
        if time.nanoseconds > 0 {
            extensions.push(("mtime".to_owned(), Cow::Borrowed(mtime.as_bytes())));
        }
        for (name, value) in &node.metadata.xattrs {
            let plain = std::str::from_utf8(name).ok().filter(|name| !name.contains(['=', '\n']));
            if plain.is_none() || value.contains(&b'\n') {
                // Some readers, our own library among them, take a plain value apart at its line breaks.
                let value = BASE64.encode(value).into_bytes();
                extensions.push((format!("{XATTR_ENCODED}{}", percent_encoded(name)), Cow::Owned(value)));
            }
            if let Some(name) = plain {
                extensions.push((format!("{XATTR_PLAIN}{name}"), Cow::Borrowed(value)));
            }
        }
        if !extensions.is_empty() {
            archive.append_pax_extensions(
                extensions.iter().map(|(name, value)| (name.as_str(), value.as_ref())),
            )?;
        }
        Ok(())
    }
}

fn plain_header(size: u64, mode: u32, mtime: i64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(u64::try_from(mtime).unwrap_or(0));
    header
}

fn percent_encoded(name: &[u8]) -> String {
    let mut text = String::new();
    for &byte in name {
        match byte {
            b'!'..=b'~' if !matches!(byte, b'%' | b'=') => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// The bytes behind a percent-encoded name; none when it is not one.
pub fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            name.push(byte);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        name.push(hex::decode(digits).ok()?[0]);
        rest = after;
    }
    Some(name)
}

/// A line as `sha256sum` writes it: a name with a line break or backslash is escaped, and the line says so.
pub fn sum_line(hash: &[u8; 32], path: &[u8]) -> Vec<u8> {
    let special = path.iter().any(|byte| matches!(byte, b'\n' | b'\\' | b'\r'));
    let mut line = Vec::with_capacity(path.len() + 80);
    if special {
        line.push(b'\\');
    }
    line.extend_from_slice(hex::encode(hash).as_bytes());
    line.extend_from_slice(b"  ");
    line.extend_from_slice(TREE.as_bytes());
    line.push(b'/');
    for &byte in path {
        match byte {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\\' => line.extend_from_slice(b"\\\\"),
            other => line.push(other),
        }
    }
    line.push(b'\n');
    line
}

/// Hashes what is read through it.
pub struct Hashing<R> {
    /// What is read.
    pub inner: R,
    /// The hash so far.
    pub hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        self.hash.update(&out[..length]);
        Ok(length)
    }
}

/// Sends what is written in parts; blocks while the receiver does not keep up.
struct PartWriter {
    sender: Parts,
    waiting: Vec<u8>,
}

impl PartWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.waiting);
        let part = Ok(v1::ExportSnapshotResponse { data });
        self.sender.blocking_send(part).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let space = DATA_PART_BYTES_MAX - self.waiting.len();
        let taken = bytes.len().min(space);
        self.waiting.extend_from_slice(&bytes[..taken]);
        if self.waiting.len() == DATA_PART_BYTES_MAX {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_attributes_survive_their_encoding() {
        for name in [b"user.a".as_slice(), b"user.a=b", b"user.\n%", &[0xff, 0x01]] {
            assert_eq!(percent_decoded(percent_encoded(name).as_bytes()).as_deref(), Some(name));
        }
        assert_eq!(percent_decoded(b"%4"), None);
    }

    #[test]
    fn lines_are_those_of_sha256sum() {
        let hash = [0xab; 32];
        let digits = "ab".repeat(32);
        assert_eq!(sum_line(&hash, b"a b"), format!("{digits}  tree/a b\n").into_bytes());
        assert_eq!(sum_line(&hash, b"a\n\\b"), format!("\\{digits}  tree/a\\n\\\\b\n").into_bytes());
    }
}
