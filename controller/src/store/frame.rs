//! A commit as bytes. One frame of the journal:
//!
//! ```text
//! length      u32  bytes of the body
//! checksum    u32  CRC-32C of length and body
//! body:
//!   sequence    u64
//!   durable     u64  the last commit known durable when this frame was written
//!   previous    32   SHA-256 of the previous frame's body
//!   time        i64  microseconds since 1970, by the controller's clock
//!   format      u8   1
//!   actor, action, target, result   each u16 length and UTF-8
//!   operations  u32  their number; each:
//!     what u8 (1 put, 2 delete) · kind u8 · key u16 length and UTF-8 · for a put: value u32 length and bytes
//! ```
//!
//! Numbers are little-endian. The hashes chain the frames: that is the audit log. `durable` tells a torn tail from
//! damage: a frame that some later frame knew to be durable had been acknowledged.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::record::{Audit, BATCH_BYTES_MAX, Kind, Operation, Sequence};

/// The SHA-256 of a frame's body.
pub type Hash = [u8; 32];

/// Length and checksum.
pub const PREFIX_BYTES: usize = 8;
/// Sequence, durable, previous, time, format, four empty texts, no operations.
const BODY_BYTES_MIN: usize = 8 + 8 + 32 + 8 + 1 + 4 * 2 + 4;
/// The largest body: a full batch with room for its smallest operations and the audit entry.
pub const BODY_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;
const FORMAT: u8 = 1;
const PUT: u8 = 1;
const DELETE: u8 = 2;

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub sequence: Sequence,
    /// The last commit known durable when it was written.
    pub durable: Sequence,
    /// The hash of the frame before.
    pub previous: Hash,
    /// When, by the controller's clock; whole microseconds.
    pub time: Timestamp,
    /// Who did what.
    pub audit: Audit,
    /// What it changed.
    pub operations: Vec<Operation>,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The bytes end within it.
    #[error("the frame is incomplete")]
    Incomplete,
    /// The length is not one that a frame has.
    #[error("the length of the frame is impossible")]
    Length,
    /// The checksum does not fit.
    #[error("the checksum of the frame does not fit")]
    Checksum,
    /// The checksum fits, the content makes no sense.
    #[error("the content of the frame cannot be read")]
    Content,
    /// A newer version wrote it.
    #[error("a newer version wrote the frame")]
    TooNew,
}

/// The moment as a frame stores it, so that a commit reports the time that the journal will give.
pub fn whole_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).expect("fewer digits of the same moment")
}

/// Appends a frame to `out` and returns the hash of its body.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) -> Hash {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    out.extend_from_slice(&frame.sequence.to_le_bytes());
    out.extend_from_slice(&frame.durable.to_le_bytes());
    out.extend_from_slice(&frame.previous);
    out.extend_from_slice(&frame.time.as_microsecond().to_le_bytes());
    out.push(FORMAT);
    let audit = &frame.audit;
    for text in [&audit.actor, &audit.action, &audit.target, &audit.result] {
        put_text(text, out);
    }
    let count =
        u32::try_from(frame.operations.len()).expect("the limit of a batch keeps operations below 2^32");
    out.extend_from_slice(&count.to_le_bytes());
    for operation in &frame.operations {
        let (kind, key) = operation.target();
        out.push(if matches!(operation, Operation::Put { .. }) { PUT } else { DELETE });
        out.push(kind.number());
        put_text(key, out);
        if let Operation::Put { value, .. } = operation {
            put_bytes(value, out);
        }
    }
    let body = start + PREFIX_BYTES;
    let length = u32::try_from(out.len() - body).expect("the limit of a batch keeps a frame below 4 GiB");
    let length = length.to_le_bytes();
    let checksum = checksum(length, &out[body..]);
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..body].copy_from_slice(&checksum.to_le_bytes());
    Sha256::digest(&out[body..]).into()
}

/// Appends a text with its length in two bytes.
pub fn put_text(text: &str, out: &mut Vec<u8>) {
    let length = u16::try_from(text.len()).expect("texts are checked against their limits before");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends bytes with their length in four.
pub fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(bytes.len()).expect("values are checked against their limit before");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn checksum(length: [u8; 4], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), body)
}

/// The length of the body and its checksum, from the first bytes of a frame.
///
/// # Errors
/// The length is impossible.
pub fn decode_prefix(prefix: [u8; PREFIX_BYTES]) -> Result<(usize, u32), FrameFault> {
    let [a, b, c, d, checksum @ ..] = prefix;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if !(BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&length) {
        return Err(FrameFault::Length);
    }
    Ok((length, u32::from_le_bytes(checksum)))
}

/// Whether a body fits its checksum.
pub fn is_intact(body: &[u8], expected: u32) -> bool {
    u32::try_from(body.len()).is_ok_and(|length| checksum(length.to_le_bytes(), body) == expected)
}

/// Reads a body whose checksum fits, and returns the frame with its hash.
///
/// # Errors
/// The content makes no sense, or a newer version wrote it.
pub fn decode_body(body: &[u8]) -> Result<(Frame, Hash), FrameFault> {
    let mut fields = Fields(body);
    let sequence = fields.u64()?;
    let durable = fields.u64()?;
    let previous = fields.array()?;
    let time =
        Timestamp::from_microsecond(i64::from_le_bytes(fields.array()?)).map_err(|_| FrameFault::Content)?;
    if fields.u8()? != FORMAT {
        return Err(FrameFault::TooNew);
    }
    let audit = Audit {
        actor: fields.text()?,
        action: fields.text()?,
        target: fields.text()?,
        result: fields.text()?,
    };
    let count = u32::from_le_bytes(fields.array()?);
    let mut operations = Vec::new();
    for _ in 0..count {
        let what = fields.u8()?;
        let kind = Kind::from_number(fields.u8()?).ok_or(FrameFault::TooNew)?;
        let key = fields.text()?;
        operations.push(match what {
            PUT => Operation::Put { kind, key, value: fields.bytes()?.to_vec() },
            DELETE => Operation::Delete { kind, key },
            _ => return Err(FrameFault::TooNew),
        });
    }
    if !fields.0.is_empty() {
        return Err(FrameFault::Content);
    }
    let frame = Frame { sequence, durable, previous, time, audit, operations };
    Ok((frame, Sha256::digest(body).into()))
}

/// Sequence and durable sequence of a body, without reading the rest.
pub fn peek(body: &[u8]) -> Option<(Sequence, Sequence)> {
    let mut fields = Fields(body);
    Some((fields.u64().ok()?, fields.u64().ok()?))
}

/// Reads fields one after the other, never past the end.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], FrameFault> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(FrameFault::Content)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameFault> {
        self.take(N)?.try_into().map_err(|_| FrameFault::Content)
    }

    /// The next byte.
    ///
    /// # Errors
    /// There is none.
    pub fn u8(&mut self) -> Result<u8, FrameFault> {
        Ok(self.array::<1>()?[0])
    }

    /// The next number.
    ///
    /// # Errors
    /// There are fewer than 8 bytes.
    pub fn u64(&mut self) -> Result<u64, FrameFault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next text, after its length in two bytes.
    ///
    /// # Errors
    /// It is shorter than it says, or no UTF-8.
    pub fn text(&mut self) -> Result<String, FrameFault> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| FrameFault::Content)?;
        Ok(text.to_owned())
    }

    /// The next bytes, after their length in four.
    ///
    /// # Errors
    /// There are fewer than it says.
    pub fn bytes(&mut self) -> Result<&'a [u8], FrameFault> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_operation() -> impl Strategy<Value = Operation> {
        let kind = proptest::sample::select(Kind::ALL);
        (kind, "[a-z/ü]{1,20}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64))).prop_map(
            |(kind, key, value)| match value {
                Some(value) => Operation::Put { kind, key, value },
                None => Operation::Delete { kind, key },
            },
        )
    }

    prop_compose! {
        fn any_frame()(
            sequence in 1..u64::MAX, durable in any::<u64>(), previous in any::<[u8; 32]>(),
            micros in 0..4_000_000_000_000_000_i64, texts in proptest::collection::vec(".{0,12}", 4),
            operations in proptest::collection::vec(any_operation(), 0..6),
        ) -> Frame {
            let [actor, action, target, result] = <[String; 4]>::try_from(texts).unwrap();
            let time = Timestamp::from_microsecond(micros).unwrap();
            Frame { sequence, durable, previous, time, audit: Audit { actor, action, target, result }, operations }
        }
    }

    fn decode(bytes: &[u8]) -> Result<(Frame, Hash), FrameFault> {
        let prefix = bytes.get(..PREFIX_BYTES).ok_or(FrameFault::Incomplete)?.try_into().unwrap();
        let (length, checksum) = decode_prefix(prefix)?;
        let body = bytes.get(PREFIX_BYTES..PREFIX_BYTES + length).ok_or(FrameFault::Incomplete)?;
        if !is_intact(body, checksum) {
            return Err(FrameFault::Checksum);
        }
        decode_body(body)
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_with_its_hash(frame in any_frame()) {
            let mut bytes = Vec::new();
            let hash = encode(&frame, &mut bytes);
            prop_assert_eq!(decode(&bytes), Ok((frame, hash)));
        }

        #[test]
        fn a_flipped_bit_is_noticed(frame in any_frame(), place in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut bytes = Vec::new();
            encode(&frame, &mut bytes);
            let place = place.index(bytes.len());
            bytes[place] ^= 1_u8 << bit;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn bodies_that_others_wrote_never_panic(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_body(&body);
        }

        #[test]
        fn a_frame_cut_short_is_incomplete(frame in any_frame(), place in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            encode(&frame, &mut bytes);
            prop_assert_eq!(decode(&bytes[..place.index(bytes.len())]), Err(FrameFault::Incomplete));
        }
    }
}
