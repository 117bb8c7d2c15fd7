//! Objects that are one sealed JSON text each: index, snapshot, lock, and the config.
//!
//! The text begins with the byte 2 and is compressed with zstd, or it is plain JSON that begins with `{` or `[`. The
//! config is always written plain, so that its version can be read by a client that does not know the others.

use bytes::Bytes;

use crate::crypto::Sealer;
use crate::error::RepositoryError;
use crate::format::{
    ObjectKind, ObjectName, SEAL_OVERHEAD_BYTES, UNPACKED_BYTES_MAX, UNPACKED_TEXT_BYTES_MAX, UNPACKED_ZSTD,
};

const ZSTD_LEVEL: i32 = 3;

/// Compresses and seals a JSON text. Returns the object's bytes and its name.
///
/// # Errors
/// `HF-3013` when zstd fails, which means no memory.
pub fn encode_unpacked(
    kind: ObjectKind,
    json: &[u8],
    sealer: &Sealer,
) -> Result<(ObjectName, Bytes), RepositoryError> {
    let mut sealed = Vec::new();
    if kind == ObjectKind::Config {
        sealer.seal(json, &mut sealed);
    } else {
        let mut text = Vec::with_capacity(zstd::zstd_safe::compress_bound(json.len()) + 1);
        text.push(UNPACKED_ZSTD);
        let compressed = zstd::bulk::compress(json, ZSTD_LEVEL)
            .map_err(|error| RepositoryError::damaged(kind, format!("zstd failed on it: {error}")))?;
        text.extend_from_slice(&compressed);
        sealer.seal(&text, &mut sealed);
    }
    let name = ObjectName::new(kind, *crate::id::PackId::of(&sealed).as_bytes());
    Ok((name, Bytes::from(sealed)))
}

/// Checks the hash, opens and decompresses an object. Returns the JSON text.
///
/// # Errors
/// `HF-3006` when the object is not what its name says or does not open; `HF-3018` when it is too large.
pub fn decode_unpacked(name: &ObjectName, data: &[u8], sealer: &Sealer) -> Result<Vec<u8>, RepositoryError> {
    if data.len() > UNPACKED_BYTES_MAX {
        return Err(RepositoryError::LimitExceeded {
            object: name.to_string(),
            what: "bytes",
            actual: data.len() as u64,
            limit: UNPACKED_BYTES_MAX as u64,
        });
    }
    check_hash(name, data)?;
    let mut text = Vec::with_capacity(data.len().saturating_sub(SEAL_OVERHEAD_BYTES));
    sealer
        .open(data, &mut text)
        .map_err(|_| RepositoryError::damaged(name, "it does not open with the key of the repository"))?;
    match text.first() {
        Some(b'{' | b'[') => Ok(text),
        Some(&UNPACKED_ZSTD) => decompress(&text[1..], UNPACKED_TEXT_BYTES_MAX)
            .map_err(|error| RepositoryError::damaged(name, format!("it does not decompress: {error}"))),
        Some(other) => Err(RepositoryError::damaged(name, format!("its encoding {other} is unknown"))),
        None => Err(RepositoryError::damaged(name, "it is empty")),
    }
}

/// Whether an object is what its name says. The config has no hash in its name and always passes.
pub(crate) fn check_hash(name: &ObjectName, data: &[u8]) -> Result<(), RepositoryError> {
    let found = crate::id::PackId::of(data);
    match name.content_hash() {
        Some(hash) if hash != found.as_bytes() => {
            Err(RepositoryError::damaged(name, format!("the SHA-256 of its {} bytes is {found}", data.len())))
        }
        _ => Ok(()),
    }
}

/// Decompresses zstd of unknown size, growing as the data comes and never beyond the limit: a frame's own claim of
/// its size is not trusted.
pub(crate) fn decompress(data: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    zstd::stream::read::Decoder::with_buffer(data)?.take(limit as u64 + 1).read_to_end(&mut text)?;
    if text.len() > limit {
        return Err(std::io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(text)
}
