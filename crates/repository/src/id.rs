//! Ids: 32 bytes, mostly the SHA-256 of what they name, shown as 64 lower-case hexadecimal digits.
//!
//! Each kind of object has its own type, so that the id of a blob is never taken for that of a pack.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Length of an id in bytes.
pub const ID_BYTES: usize = 32;

/// The text is not an id: 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id of 64 lower-case hexadecimal digits")]
pub struct InvalidId(pub String);

fn parse_hex(text: &str) -> Result<[u8; ID_BYTES], InvalidId> {
    let invalid = || InvalidId(text.chars().take(80).collect());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(invalid()) };
    if pairs.len() != ID_BYTES {
        return Err(invalid());
    }
    let mut bytes = [0; ID_BYTES];
    let mut all_valid = true;
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = (NIBBLES[usize::from(*high)], NIBBLES[usize::from(*low)]);
        all_valid &= high < 16 && low < 16;
        *byte = high << 4 | (low & 15);
    }
    if all_valid { Ok(bytes) } else { Err(invalid()) }
}

/// The value of each lower-case hexadecimal digit, 255 for every other byte. A tree has an id per file.
const NIBBLES: [u8; 256] = {
    let mut table = [255; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digit += 1;
    }
    table
};

/// Reads an id out of a JSON string, borrowed or not, without an allocation.
struct HexVisitor;

impl serde::de::Visitor<'_> for HexVisitor {
    type Value = [u8; ID_BYTES];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 lower-case hexadecimal digits")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        parse_hex(text).map_err(E::custom)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; ID_BYTES]);

        impl $name {
            /// Takes the raw bytes of an id.
            pub const fn from_bytes(bytes: [u8; ID_BYTES]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; ID_BYTES] {
                &self.0
            }

            /// The id of these bytes: their SHA-256.
            pub fn of(data: &[u8]) -> Self {
                Self(Sha256::digest(data).into())
            }

            /// All 64 digits.
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }

            /// The first eight digits, as lists print it.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut digits = [0; ID_BYTES * 2];
                hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
                f.pad(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse_hex(text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut digits = [0; ID_BYTES * 2];
                hex::encode_to_slice(self.0, &mut digits).map_err(serde::ser::Error::custom)?;
                serializer.serialize_str(std::str::from_utf8(&digits).map_err(serde::ser::Error::custom)?)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(HexVisitor).map(Self)
            }
        }
    )*};
}

ids! {
    /// The SHA-256 of a blob's content, before compression and sealing.
    BlobId;
    /// The SHA-256 of a whole pack object as stored.
    PackId;
    /// The SHA-256 of an index object as stored.
    IndexId;
    /// The SHA-256 of a snapshot object as stored.
    SnapshotId;
    /// The SHA-256 of a key object as stored.
    KeyId;
    /// The SHA-256 of a lock object as stored.
    LockId;
    /// The random id of a repository, from its config.
    RepositoryId;
}

/// What a blob holds. A repository tells blobs by type and id: the same bytes may be stored twice, as the content of a
/// file and as a folder, and neither stands for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobType {
    /// Content of files.
    Data,
    /// One folder.
    Tree,
}

impl BlobType {
    /// Both types.
    pub const ALL: [BlobType; 2] = [BlobType::Data, BlobType::Tree];

    /// The word used in index objects.
    pub fn as_str(self) -> &'static str {
        match self {
            BlobType::Data => "data",
            BlobType::Tree => "tree",
        }
    }
}

impl fmt::Display for BlobType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Hashes an id by taking eight of its bytes: they are evenly spread already.
#[derive(Debug, Default, Clone, Copy)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        match bytes.first_chunk::<8>() {
            Some(first) => self.0 ^= u64::from_le_bytes(*first),
            None => bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte)),
        }
    }

    fn write_usize(&mut self, _length: usize) {
        // The length of an id is always the same.
    }
}

/// A map by id.
pub type IdMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<IdHasher>>;
/// A set of ids.
pub type IdSet<K> = std::collections::HashSet<K, BuildHasherDefault<IdHasher>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_text_and_json() {
        let id = BlobId::of(b"holdfast");
        assert_eq!(id.to_string().parse(), Ok(id));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<BlobId>(&json).unwrap(), id);
    }

    #[test]
    fn other_texts_are_refused() {
        let digits = BlobId::of(b"").to_string();
        for text in ["", "ab", &digits.to_uppercase(), &digits[1..], &format!("{}g", &digits[1..]), "é"] {
            assert!(text.parse::<BlobId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_id_of_nothing_is_the_sha_256_of_nothing() {
        let known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(PackId::of(b"").to_hex(), known);
        assert_eq!(PackId::of(b"").short(), "e3b0c442");
    }
}
