//! The JSON text of index objects, read as a stream: one pack at a time, nothing kept.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};

use crate::error::RepositoryError;
use crate::format::ObjectName;
use crate::id::{BlobId, BlobType, PackId};
use crate::pack::PackEntry;

/// One pack with what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexPack {
    /// The pack.
    pub id: PackId,
    /// Its blobs.
    pub entries: Vec<PackEntry>,
}

#[derive(Serialize, Deserialize)]
struct BlobJson {
    id: BlobId,
    #[serde(rename = "type")]
    blob_type: BlobType,
    offset: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uncompressed_length: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct IndexJson<'a> {
    packs: Vec<PackJson<'a>>,
}

struct PackJson<'a>(&'a IndexPack);

impl Serialize for PackJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut pack = serializer.serialize_struct("pack", 2)?;
        pack.serialize_field("id", &self.0.id)?;
        pack.serialize_field("blobs", &BlobsJson(&self.0.entries))?;
        pack.end()
    }
}

struct BlobsJson<'a>(&'a [PackEntry]);

impl Serialize for BlobsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|entry| BlobJson {
            id: entry.id,
            blob_type: entry.blob_type,
            offset: entry.offset,
            length: entry.length,
            uncompressed_length: entry.uncompressed_length.unwrap_or(0),
        }))
    }
}

/// The JSON text of an index object for these packs.
pub fn encode_index(packs: &[IndexPack]) -> Vec<u8> {
    let blobs: usize = packs.iter().map(|pack| pack.entries.len()).sum();
    let mut json = Vec::with_capacity(blobs * 180 + packs.len() * 90 + 16);
    let index = IndexJson { packs: packs.iter().map(PackJson).collect() };
    serde_json::to_writer(&mut json, &index).expect("numbers and strings always serialise into memory");
    json
}

/// Reads the JSON text of an index object and hands over one pack after the other. Fields that newer or older clients
/// add (`supersedes`) are passed over.
///
/// # Errors
/// `HF-3006` when the text is no index.
pub fn visit_index(
    name: &ObjectName,
    json: &[u8],
    mut visit: impl FnMut(PackId, &[PackEntry]),
) -> Result<(), RepositoryError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let damaged = |error| RepositoryError::damaged(name, format!("it is no index: {error}"));
    deserializer.deserialize_map(IndexVisitor(&mut visit)).map_err(damaged)?;
    deserializer.end().map_err(damaged)
}

struct IndexVisitor<'f, F>(&'f mut F);

impl<'de, F: FnMut(PackId, &[PackEntry])> Visitor<'de> for IndexVisitor<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            if key == "packs" {
                map.next_value_seed(PacksSeed(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct PacksSeed<'f, F>(&'f mut F);

impl<'de, F: FnMut(PackId, &[PackEntry])> DeserializeSeed<'de> for PacksSeed<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, F: FnMut(PackId, &[PackEntry])> Visitor<'de> for PacksSeed<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of packs")
    }

    // An empty list of the Go encoder is `null`.
    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut packs: A) -> Result<(), A::Error> {
        let mut entries = Vec::new();
        while let Some(pack) = packs.next_element_seed(PackSeed(&mut entries))? {
            (self.0)(pack, &entries);
            entries.clear();
        }
        Ok(())
    }
}

/// Reads one pack; its entries go into the borrowed list, which is used again for the next.
struct PackSeed<'e>(&'e mut Vec<PackEntry>);

impl<'de> DeserializeSeed<'de> for PackSeed<'_> {
    type Value = PackId;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<PackId, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PackSeed<'_> {
    type Value = PackId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pack with its blobs")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PackId, A::Error> {
        let mut id = None;
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            match key.as_ref() {
                "id" => id = Some(map.next_value()?),
                "blobs" => map.next_value_seed(BlobsSeed(self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        id.ok_or_else(|| serde::de::Error::missing_field("id"))
    }
}

struct BlobsSeed<'e>(&'e mut Vec<PackEntry>);

impl<'de> DeserializeSeed<'de> for BlobsSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for BlobsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of blobs")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut blobs: A) -> Result<(), A::Error> {
        while let Some(blob) = blobs.next_element::<BlobJson>()? {
            self.0.push(PackEntry {
                id: blob.id,
                blob_type: blob.blob_type,
                offset: blob.offset,
                length: blob.length,
                uncompressed_length: (blob.uncompressed_length != 0).then_some(blob.uncompressed_length),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::IndexId;
    use holdfast_model::ErrorCode;

    fn name() -> ObjectName {
        ObjectName::Index(IndexId::of(b""))
    }

    fn read(json: &str) -> Result<Vec<IndexPack>, RepositoryError> {
        let mut packs = Vec::new();
        visit_index(&name(), json.as_bytes(), |id, entries| {
            packs.push(IndexPack { id, entries: entries.to_vec() })
        })?;
        Ok(packs)
    }

    #[test]
    fn an_index_reads_back() {
        let entry = |n: u8, blob_type, uncompressed_length| PackEntry {
            id: BlobId::of(&[n]),
            blob_type,
            offset: u32::from(n) * 100,
            length: 100,
            uncompressed_length,
        };
        let packs = vec![
            IndexPack {
                id: PackId::of(b"a"),
                entries: vec![entry(0, BlobType::Data, None), entry(1, BlobType::Data, Some(400))],
            },
            IndexPack { id: PackId::of(b"b"), entries: vec![entry(2, BlobType::Tree, Some(1))] },
        ];
        let json = String::from_utf8(encode_index(&packs)).unwrap();
        assert!(json.starts_with(r#"{"packs":[{"id":"#), "{json}");
        assert_eq!(json.matches("uncompressed_length").count(), 2);
        assert_eq!(read(&json).unwrap(), packs);
    }

    #[test]
    fn what_other_clients_write_is_read() {
        let id = PackId::of(b"");
        for json in [
            r#"{"packs":null}"#.to_owned(),
            r#"{"supersedes":["x"],"packs":[]}"#.to_owned(),
            format!(r#"{{"packs":[{{"id":"{id}","blobs":null,"size":3}}],"later":{{"a":[1]}}}}"#),
        ] {
            assert!(read(&json).unwrap().iter().all(|pack| pack.entries.is_empty()), "{json}");
        }
    }

    #[test]
    fn what_is_no_index_is_damaged() {
        for json in ["", "[]", "{", r#"{"packs":[{}]}"#, r#"{"packs":[{"id":"x"}]}"#, r#"{"packs":[]} x"#] {
            assert_eq!(read(json).unwrap_err().code(), ErrorCode::ObjectDamaged, "{json}");
        }
    }
}
