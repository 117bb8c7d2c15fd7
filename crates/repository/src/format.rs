//! The constants and names of the repository format, in the order of `docs/format.md`.
//!
//! The format is version 2 of the one that restic publishes in `doc/design.rst`.

use std::fmt;

use crate::id::{IndexId, KeyId, LockId, PackId, SnapshotId};

/// The version of the format that is written, and the only one that is read.
pub const REPOSITORY_VERSION: u32 = 2;

/// Bytes of initialisation vector before each sealed text.
pub const IV_BYTES: usize = 16;
/// Bytes of authentication tag behind each sealed text.
pub const TAG_BYTES: usize = 16;
/// By how much sealing lengthens a text.
pub const SEAL_OVERHEAD_BYTES: usize = IV_BYTES + TAG_BYTES;

/// First byte of an unpacked object (index, snapshot, lock, config) whose JSON is compressed with zstd.
pub const UNPACKED_ZSTD: u8 = 2;

/// Bytes of the length field at the end of a pack.
pub const PACK_TRAILER_BYTES: usize = 4;
/// Bytes of a header entry of a blob that is stored as it is: type, length, id.
pub const HEADER_ENTRY_PLAIN_BYTES: usize = 37;
/// Bytes of a header entry of a compressed blob: type, length, length before compression, id.
pub const HEADER_ENTRY_COMPRESSED_BYTES: usize = 41;

/// Most entries that the writer puts in one pack.
pub const PACK_ENTRIES_MAX: usize = 32_768;
/// Longest sealed header that is read, in bytes; other clients refuse longer ones too.
pub const PACK_HEADER_BYTES_MAX: usize = 16 << 20;
/// Largest pack that is read, in bytes. Others may write 128 MiB; a blob that fills a pack of its own is at most this.
pub const PACK_BYTES_MAX: u64 = 1 << 30;

/// Largest content of one data blob that is read, in bytes; chunks of any client are at most 8 MiB.
pub const DATA_BLOB_BYTES_MAX: usize = 64 << 20;
/// Largest tree that is read, in bytes: a folder of about two million entries.
pub const TREE_BLOB_BYTES_MAX: usize = 1 << 30;
/// Largest unpacked object (index, snapshot, lock, config, key) that is read, in bytes as stored.
pub const UNPACKED_BYTES_MAX: usize = 128 << 20;
/// Largest JSON text of an unpacked object after decompression, in bytes.
pub const UNPACKED_TEXT_BYTES_MAX: usize = 1 << 30;

/// Blobs that the writer describes in one index object, so that it stays below 8 MiB as stored.
pub const INDEX_BLOBS_MAX: usize = 50_000;

/// The kinds of objects in a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// What holds for the whole repository; there is one.
    Config,
    /// The master key, sealed under a password.
    Key,
    /// Blobs and a header.
    Pack,
    /// Where blobs are.
    Index,
    /// One recoverable state of one source.
    Snapshot,
    /// Somebody writes, or works alone.
    Lock,
    /// A pack that nothing needs any more, until it is deleted. Other clients do not look there.
    Trash,
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [ObjectKind; 7] = [
        ObjectKind::Config,
        ObjectKind::Key,
        ObjectKind::Pack,
        ObjectKind::Index,
        ObjectKind::Snapshot,
        ObjectKind::Lock,
        ObjectKind::Trash,
    ];

    /// The folder of the kind within a repository; empty for the config, which lies at the top.
    pub fn folder(self) -> &'static str {
        match self {
            ObjectKind::Config => "",
            ObjectKind::Key => "keys",
            ObjectKind::Pack => "data",
            ObjectKind::Index => "index",
            ObjectKind::Snapshot => "snapshots",
            ObjectKind::Lock => "locks",
            ObjectKind::Trash => "trash",
        }
    }

    /// The word for it in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectKind::Config => "config",
            ObjectKind::Key => "key",
            ObjectKind::Pack => "pack",
            ObjectKind::Index => "index",
            ObjectKind::Snapshot => "snapshot",
            ObjectKind::Lock => "lock",
            ObjectKind::Trash => "pack in the trash",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of one object. Every name but the config's is the SHA-256 of the object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectName {
    /// `config`
    Config,
    /// `keys/ID`
    Key(KeyId),
    /// `data/xx/ID`, where `xx` are the first two digits of the id
    Pack(PackId),
    /// `index/ID`
    Index(IndexId),
    /// `snapshots/ID`
    Snapshot(SnapshotId),
    /// `locks/ID`
    Lock(LockId),
    /// `trash/SECONDS/ID`
    Trash(TrashedPack),
}

/// A pack in the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrashedPack {
    /// When it was put there, in seconds since 1970.
    pub at: u64,
    /// The pack.
    pub pack: PackId,
}

impl ObjectName {
    /// The kind of the object.
    pub fn kind(&self) -> ObjectKind {
        match self {
            ObjectName::Config => ObjectKind::Config,
            ObjectName::Key(_) => ObjectKind::Key,
            ObjectName::Pack(_) => ObjectKind::Pack,
            ObjectName::Index(_) => ObjectKind::Index,
            ObjectName::Snapshot(_) => ObjectKind::Snapshot,
            ObjectName::Lock(_) => ObjectKind::Lock,
            ObjectName::Trash(_) => ObjectKind::Trash,
        }
    }

    /// The name of an object of this kind with this id; the id is ignored for the config, and what is in the trash is
    /// there since 1970.
    pub fn new(kind: ObjectKind, id: [u8; 32]) -> Self {
        match kind {
            ObjectKind::Config => ObjectName::Config,
            ObjectKind::Key => ObjectName::Key(KeyId::from_bytes(id)),
            ObjectKind::Pack => ObjectName::Pack(PackId::from_bytes(id)),
            ObjectKind::Index => ObjectName::Index(IndexId::from_bytes(id)),
            ObjectKind::Snapshot => ObjectName::Snapshot(SnapshotId::from_bytes(id)),
            ObjectKind::Lock => ObjectName::Lock(LockId::from_bytes(id)),
            ObjectKind::Trash => ObjectName::Trash(TrashedPack { at: 0, pack: PackId::from_bytes(id) }),
        }
    }

    /// What the SHA-256 of the object's bytes must be; `None` for the config.
    pub fn content_hash(&self) -> Option<&[u8; 32]> {
        match self {
            ObjectName::Config => None,
            ObjectName::Key(id) => Some(id.as_bytes()),
            ObjectName::Pack(id) => Some(id.as_bytes()),
            ObjectName::Index(id) => Some(id.as_bytes()),
            ObjectName::Snapshot(id) => Some(id.as_bytes()),
            ObjectName::Lock(id) => Some(id.as_bytes()),
            ObjectName::Trash(trashed) => Some(trashed.pack.as_bytes()),
        }
    }

    /// The path within the repository, with `/` between its parts.
    pub fn path(&self) -> String {
        match self.content_hash() {
            None => "config".to_owned(),
            Some(hash) => {
                let digits = hex::encode(hash);
                let folder = self.kind().folder();
                match self {
                    ObjectName::Pack(_) => format!("{folder}/{}/{digits}", &digits[..2]),
                    ObjectName::Trash(trashed) => format!("{folder}/{}/{digits}", trashed.at),
                    _ => format!("{folder}/{digits}"),
                }
            }
        }
    }

    /// Reads a path within a repository; `None` when it is not the name of an object (a temporary file, a foreign one).
    pub fn parse(path: &str) -> Option<Self> {
        if path == "config" {
            return Some(ObjectName::Config);
        }
        let (folder, rest) = path.split_once('/')?;
        let kind = ObjectKind::ALL.into_iter().find(|kind| kind.folder() == folder && !folder.is_empty())?;
        let (prefix, digits) = match kind {
            ObjectKind::Pack | ObjectKind::Trash => rest.split_once('/')?,
            _ => ("", rest),
        };
        let id: PackId = digits.parse().ok()?;
        match kind {
            ObjectKind::Pack if prefix.len() != 2 || !digits.starts_with(prefix) => None,
            ObjectKind::Trash => {
                let at: u64 = prefix.parse().ok()?;
                // The one way to write it.
                (at.to_string() == prefix).then_some(ObjectName::Trash(TrashedPack { at, pack: id }))
            }
            _ => Some(Self::new(kind, *id.as_bytes())),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_from_its_path() {
        for kind in ObjectKind::ALL {
            let name = ObjectName::new(kind, [0xa7; 32]);
            assert_eq!(ObjectName::parse(&name.path()), Some(name));
        }
    }

    #[test]
    fn the_name_of_a_pack_in_the_trash_says_since_when() {
        let trashed = TrashedPack { at: 1_795_281_300, pack: PackId::of(b"") };
        let path = format!("trash/1795281300/{}", trashed.pack);
        assert_eq!(ObjectName::Trash(trashed).path(), path);
        assert_eq!(ObjectName::parse(&path), Some(ObjectName::Trash(trashed)));
    }

    #[test]
    fn a_pack_lies_in_the_folder_of_its_first_two_digits() {
        let name = ObjectName::Pack(PackId::of(b""));
        assert_eq!(name.path(), "data/e3/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn foreign_paths_are_no_names() {
        let digits = PackId::of(b"").to_hex();
        for path in [
            "",
            "tmp/x",
            "keys",
            "keys/",
            "config/x",
            "/config",
            &format!("data/{digits}"),
            &format!("data/e4/{digits}"),
            &format!("data/e/{digits}"),
            &format!("keys/{digits}.tmp"),
            &format!("/{digits}"),
            &format!("trash/{digits}"),
            &format!("trash/007/{digits}"),
            &format!("trash/+7/{digits}"),
            &format!("keys/{}", digits.to_uppercase()),
        ] {
            assert_eq!(ObjectName::parse(path), None, "{path}");
        }
    }
}
