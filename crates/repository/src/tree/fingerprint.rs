//! A short name for everything that is known of an entry but its content.

use sha2::{Digest as _, Sha256};

use super::{FileTime, NodeMetadata, NodeType};

/// Bytes of a fingerprint.
pub const FINGERPRINT_BYTES: usize = 16;

/// The first bytes of the SHA-256 of an entry's name and metadata. Entries with equal fingerprints become equal nodes,
/// given the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

impl Fingerprint {
    /// The fingerprint of an entry that must be looked at again next time.
    pub const NONE: Self = Self([0; FINGERPRINT_BYTES]);

    /// From bytes that were kept.
    pub fn from_bytes(bytes: [u8; FINGERPRINT_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be kept.
    pub fn as_bytes(&self) -> &[u8; FINGERPRINT_BYTES] {
        &self.0
    }

    /// Whether an entry was this one and is so still.
    pub fn confirms(&self, now: &Self) -> bool {
        self != &Self::NONE && self == now
    }
}

/// Makes fingerprints, in one buffer.
#[derive(Debug, Default)]
pub struct Fingerprinter {
    text: Vec<u8>,
}

impl Fingerprinter {
    /// The fingerprint of an entry.
    pub fn of(&mut self, name: &[u8], metadata: &NodeMetadata) -> Fingerprint {
        let NodeMetadata {
            node_type,
            mode,
            mtime,
            atime,
            ctime,
            uid,
            gid,
            user,
            group,
            inode,
            device_id,
            size,
            links,
            link_target,
            xattrs,
            device,
        } = metadata;
        self.text.clear();
        self.bytes(node_type.as_str().as_bytes());
        self.bytes(name);
        for FileTime { seconds, nanoseconds } in [mtime, atime, ctime] {
            self.text.extend_from_slice(&seconds.to_le_bytes());
            self.text.extend_from_slice(&nanoseconds.to_le_bytes());
        }
        for number in [*mode, *uid, *gid] {
            self.text.extend_from_slice(&number.to_le_bytes());
        }
        // As in the text of a tree: the number of a device counts where hard links need it.
        let device_id = if *links > 1 && *node_type != NodeType::Directory { *device_id } else { 0 };
        for number in [*inode, device_id, *size, *links, *device] {
            self.text.extend_from_slice(&number.to_le_bytes());
        }
        self.bytes(user.as_deref().unwrap_or_default().as_bytes());
        self.bytes(group.as_deref().unwrap_or_default().as_bytes());
        self.bytes(link_target.as_deref().unwrap_or_default());
        for (name, value) in xattrs {
            self.bytes(name);
            self.bytes(value);
        }
        let digest = Sha256::digest(&self.text);
        let mut fingerprint = [0; FINGERPRINT_BYTES];
        fingerprint.copy_from_slice(&digest[..FINGERPRINT_BYTES]);
        Fingerprint(fingerprint)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.text.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::TreeEncoder;

    fn metadata() -> impl Strategy<Value = NodeMetadata> {
        let node_type = prop_oneof![Just(NodeType::File), Just(NodeType::Directory), Just(NodeType::Symlink)];
        let time = || (0..3i64, 0..3u32).prop_map(|(seconds, nanoseconds)| FileTime { seconds, nanoseconds });
        let name = || proptest::option::of(prop_oneof![Just("a"), Just("bb")]);
        let bytes = || prop_oneof![Just(b"x".to_vec()), Just(b"yy".to_vec())];
        let numbers = (0..2u32, 0..2u32, 0..2u32, 0..2u64, 0..2u64, 0..2u64, 0..3u64, 0..2u64);
        let texts = (
            name(),
            name(),
            proptest::option::of(bytes()),
            proptest::collection::vec((bytes(), bytes()), 0..2),
        );
        (node_type, time(), time(), time(), numbers, texts).prop_map(
            |(node_type, mtime, atime, ctime, n, t)| NodeMetadata {
                mode: n.0,
                atime,
                ctime,
                uid: n.1,
                gid: n.2,
                user: t.0.map(Into::into),
                group: t.1.map(Into::into),
                inode: n.3,
                device_id: n.4,
                size: n.5,
                links: n.6,
                link_target: t.2,
                xattrs: t.3,
                device: n.7,
                ..NodeMetadata::plain(node_type, 0, mtime)
            },
        )
    }

    fn text(name: &[u8], metadata: &NodeMetadata) -> Vec<u8> {
        let mut encoder = TreeEncoder::new();
        match metadata.node_type {
            NodeType::File => encoder.push_file(name, metadata, metadata.size, &[]),
            _ => encoder.push_other(name, metadata),
        }
        encoder.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn equal_fingerprints_mean_equal_nodes(
            a in metadata(), b in metadata(), names in (0..2usize, 0..2usize), same in any::<bool>(),
        ) {
            let names = [[&b"n"[..], b"nx"][names.0], [&b"n"[..], b"nx"][names.1]];
            let (b, names) = if same { (a.clone(), [names[0]; 2]) } else { (b, names) };
            let mut fingerprinter = Fingerprinter::default();
            let (x, y) = (fingerprinter.of(names[0], &a), fingerprinter.of(names[1], &b));
            if same {
                prop_assert!(x.confirms(&y));
            }
            if text(names[0], &a) != text(names[1], &b) {
                prop_assert!(!x.confirms(&y));
            }
        }
    }

    #[test]
    fn an_entry_without_a_fingerprint_is_never_confirmed() {
        assert!(!Fingerprint::NONE.confirms(&Fingerprint::NONE));
    }
}
