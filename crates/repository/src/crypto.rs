//! Sealing: `IV (16) ‖ AES-256-CTR ciphertext ‖ Poly1305-AES tag (16)`.
//!
//! The random IV is the counter's first block and also the nonce of the tag. The tag covers the ciphertext and is
//! compared in constant time before anything is decrypted. AES-NI and AVX2 are found at run time by the libraries.

use std::fmt;

use aes::{Aes128, Aes256};
use cipher::{Block, BlockCipherEncrypt, InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper};
use ctr::CtrCore;
use ctr::flavors::Ctr128BE;
use poly1305::Poly1305;
use poly1305::universal_hash::UniversalHash;
use rand::Rng;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::format::{IV_BYTES, SEAL_OVERHEAD_BYTES, TAG_BYTES};

/// Bytes of all three keys together.
pub const MASTER_KEY_BYTES: usize = 64;

/// The three keys that seal everything in a repository. Wiped when dropped; its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey {
    encrypt: [u8; 32],
    mac_k: [u8; 16],
    mac_r: [u8; 16],
}

impl MasterKey {
    /// Makes a new one from the system's randomness.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; MASTER_KEY_BYTES]);
        rand::rng().fill_bytes(bytes.as_mut_slice());
        Self::from_bytes(&bytes)
    }

    /// Takes the keys in the order encrypt, k, r; `r` is masked as Poly1305 demands.
    pub fn from_bytes(bytes: &[u8; MASTER_KEY_BYTES]) -> Self {
        let mut key = Self { encrypt: [0; 32], mac_k: [0; 16], mac_r: [0; 16] };
        key.encrypt.copy_from_slice(&bytes[..32]);
        key.mac_k.copy_from_slice(&bytes[32..48]);
        key.mac_r.copy_from_slice(&bytes[48..]);
        for index in [3, 7, 11, 15] {
            key.mac_r[index] &= 0x0f;
        }
        for index in [4, 8, 12] {
            key.mac_r[index] &= 0xfc;
        }
        key
    }

    /// The keys in the order encrypt, k, r.
    pub fn to_bytes(&self) -> Zeroizing<[u8; MASTER_KEY_BYTES]> {
        let mut bytes = Zeroizing::new([0; MASTER_KEY_BYTES]);
        bytes[..32].copy_from_slice(&self.encrypt);
        bytes[32..48].copy_from_slice(&self.mac_k);
        bytes[48..].copy_from_slice(&self.mac_r);
        bytes
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(***)")
    }
}

/// What was to be opened is not a text sealed with this key: too short, or altered, or sealed with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the authentication tag does not fit")]
pub struct NotAuthentic;

/// Seals and opens with one master key. Holds expanded keys; cheap to share by reference between threads.
#[derive(Clone)]
pub struct Sealer {
    encrypt: Aes256,
    mac: Aes128,
    mac_r: Zeroizing<[u8; 16]>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(***)")
    }
}

impl Sealer {
    /// Expands the keys.
    pub fn new(key: &MasterKey) -> Self {
        Self {
            encrypt: Aes256::new((&key.encrypt).into()),
            mac: Aes128::new((&key.mac_k).into()),
            mac_r: Zeroizing::new(key.mac_r),
        }
    }

    /// Appends the sealed text to `out`, which grows by the text's length + 32. Returns that number.
    pub fn seal(&self, text: &[u8], out: &mut Vec<u8>) -> usize {
        let mut iv = [0; IV_BYTES];
        rand::rng().fill_bytes(&mut iv);
        self.seal_with_iv(&iv, text, out)
    }

    fn seal_with_iv(&self, iv: &[u8; IV_BYTES], text: &[u8], out: &mut Vec<u8>) -> usize {
        out.reserve(text.len() + SEAL_OVERHEAD_BYTES);
        out.extend_from_slice(iv);
        let start = out.len();
        out.extend_from_slice(text);
        self.key_stream(iv).apply_keystream(&mut out[start..]);
        let tag = self.tag(iv, &out[start..]);
        out.extend_from_slice(&tag);
        text.len() + SEAL_OVERHEAD_BYTES
    }

    /// Seals a text where it lies: `buffer` is 16 bytes of room, the text, 16 bytes of room.
    ///
    /// # Panics
    /// When the buffer is shorter than the room.
    pub fn seal_in_place(&self, buffer: &mut [u8]) {
        let (iv, rest) = buffer.split_first_chunk_mut::<IV_BYTES>().expect("there is room for the IV");
        let (text, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().expect("there is room for the tag");
        rand::rng().fill_bytes(iv);
        self.key_stream(iv).apply_keystream(text);
        *tag = self.tag(iv, text);
    }

    /// Opens a sealed text where it lies and returns the part that holds the plain text.
    ///
    /// # Errors
    /// [`NotAuthentic`]; the buffer is unchanged then.
    pub fn open_in_place<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a mut [u8], NotAuthentic> {
        let iv = self.authenticate(sealed)?;
        let end = sealed.len() - TAG_BYTES;
        let text = &mut sealed[IV_BYTES..end];
        self.key_stream(&iv).apply_keystream(text);
        Ok(text)
    }

    /// Opens a sealed text into `out`, which is cleared first.
    ///
    /// # Errors
    /// [`NotAuthentic`]; `out` is empty then.
    pub fn open(&self, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), NotAuthentic> {
        out.clear();
        let iv = self.authenticate(sealed)?;
        out.extend_from_slice(&sealed[IV_BYTES..sealed.len() - TAG_BYTES]);
        self.key_stream(&iv).apply_keystream(out);
        Ok(())
    }

    fn authenticate(&self, sealed: &[u8]) -> Result<[u8; IV_BYTES], NotAuthentic> {
        if sealed.len() < SEAL_OVERHEAD_BYTES {
            return Err(NotAuthentic);
        }
        let (iv, rest) = sealed.split_first_chunk::<IV_BYTES>().ok_or(NotAuthentic)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(NotAuthentic)?;
        if bool::from(self.tag(iv, ciphertext).ct_eq(tag)) { Ok(*iv) } else { Err(NotAuthentic) }
    }

    fn key_stream(&self, iv: &[u8; IV_BYTES]) -> StreamCipherCoreWrapper<CtrCore<Aes256, Ctr128BE>> {
        let core = CtrCore::inner_iv_init(self.encrypt.clone(), iv.into());
        StreamCipherCoreWrapper::from_core(core)
    }

    fn tag(&self, iv: &[u8; IV_BYTES], ciphertext: &[u8]) -> [u8; TAG_BYTES] {
        let mut masked: Block<Aes128> = (*iv).into();
        self.mac.encrypt_block(&mut masked);
        let mut one_time = Zeroizing::new([0; 32]);
        one_time[..16].copy_from_slice(self.mac_r.as_slice());
        one_time[16..].copy_from_slice(&masked);
        let mut mac = Poly1305::new((&*one_time).into());
        let (blocks, tail) = poly1305::Block::slice_as_chunks(ciphertext);
        mac.update(blocks);
        mac.compute_unpadded(tail).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer() -> Sealer {
        let mut bytes = [0; MASTER_KEY_BYTES];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = index as u8;
        }
        Sealer::new(&MasterKey::from_bytes(&bytes))
    }

    #[test]
    fn every_length_opens_to_what_was_sealed() {
        let sealer = sealer();
        let text: Vec<u8> = (0..1000u32).map(|n| (n * 7) as u8).collect();
        for length in (0..200).chain([255, 256, 257, 511, 512, 513, 1000]) {
            let mut sealed = Vec::new();
            assert_eq!(sealer.seal(&text[..length], &mut sealed), sealed.len());
            assert_eq!(sealed.len(), length + SEAL_OVERHEAD_BYTES);
            let mut opened = Vec::new();
            sealer.open(&sealed, &mut opened).unwrap();
            assert_eq!(opened, &text[..length]);
            let mut buffer = [&[0; 16], &text[..length], &[0; 16]].concat();
            sealer.seal_in_place(&mut buffer);
            sealer.open(&buffer, &mut opened).unwrap();
            assert_eq!(opened, &text[..length]);
            assert_eq!(sealer.open_in_place(&mut sealed).unwrap(), &text[..length]);
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_is_refused() {
        let sealer = sealer();
        let mut sealed = Vec::new();
        sealer.seal(b"what was sealed", &mut sealed);
        for index in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[index] ^= 1 << (index % 8);
            assert_eq!(sealer.open_in_place(&mut altered), Err(NotAuthentic), "byte {index}");
        }
        for length in 0..sealed.len() {
            assert_eq!(sealer.open(&sealed[..length], &mut Vec::new()), Err(NotAuthentic));
        }
    }

    #[test]
    fn the_tag_is_poly1305_aes_of_the_reference() {
        // D. J. Bernstein, "The Poly1305-AES message-authentication code", appendix B, first example.
        let mut keys = [0; MASTER_KEY_BYTES];
        keys[32..48].copy_from_slice(&hex::decode("ec074c835580741701425b623235add6").unwrap());
        keys[48..].copy_from_slice(&hex::decode("851fc40c3467ac0be05cc20404f3f700").unwrap());
        let iv: [u8; 16] = hex::decode("fb447350c4e868c52ac3275cf9d4327e").unwrap().try_into().unwrap();
        let tag = Sealer::new(&MasterKey::from_bytes(&keys)).tag(&iv, &[0xf3, 0xf6]);
        assert_eq!(hex::encode(tag), "f4c633c3044fc145f84f335cb81953de");
    }

    #[test]
    fn keys_do_not_show_in_debug() {
        assert_eq!(format!("{:?} {:?}", MasterKey::generate(), sealer()), "MasterKey(***) Sealer(***)");
    }
}
