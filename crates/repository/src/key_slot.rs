//! Key objects: the master key, sealed under a password with scrypt. A repository may have several.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::secret::Secret;
use jiff::Timestamp;
use rand::Rng;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::crypto::{MASTER_KEY_BYTES, MasterKey, Sealer};
use crate::error::RepositoryError;
use crate::format::ObjectName;

/// Bytes of salt in keys that we write.
const SALT_BYTES: usize = 64;
/// Most memory that opening a key may take, in bytes (128 · N · r).
const SCRYPT_MEMORY_BYTES_MAX: u64 = 512 << 20;
/// Most work that opening a key may take (N · r · p): some seconds.
const SCRYPT_WORK_MAX: u64 = 1 << 24;
/// Largest key object, in bytes.
const KEY_OBJECT_BYTES_MAX: usize = 64 << 10;

/// The cost of trying a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScryptCost {
    /// Binary logarithm of N.
    pub log_n: u8,
    /// Block size.
    pub r: u32,
    /// Parallelism.
    pub p: u32,
}

impl Default for ScryptCost {
    /// N = 65,536, r = 8, p = 1: 64 MiB and about 0.2 seconds per try.
    fn default() -> Self {
        Self { log_n: 16, r: 8, p: 1 }
    }
}

/// Who made a key and when; not secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyOrigin {
    /// When it was made.
    pub created: Timestamp,
    /// On which host.
    pub hostname: String,
    /// By which user.
    pub username: String,
}

#[derive(Serialize, Deserialize)]
struct KeyJson {
    created: String,
    username: String,
    hostname: String,
    kdf: String,
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
    salt: String,
    data: String,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct MasterKeyJson {
    mac: MacKeyJson,
    encrypt: String,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct MacKeyJson {
    k: String,
    r: String,
}

/// Seals a master key under a password. Returns the bytes of the key object.
///
/// Takes the time and memory that `cost` says; call it where blocking is allowed.
///
/// # Errors
/// `HF-3018` when `cost` is beyond what [`open_key`] accepts.
pub fn seal_key(
    master: &MasterKey,
    password: &Secret,
    cost: ScryptCost,
    origin: &KeyOrigin,
) -> Result<Vec<u8>, RepositoryError> {
    let object = "a new key";
    let mut salt = [0; SALT_BYTES];
    rand::rng().fill_bytes(&mut salt);
    let n = 1u64.checked_shl(u32::from(cost.log_n)).unwrap_or(u64::MAX);
    let derived = derive(object, password, n, cost.r, cost.p, &salt)?;

    let bytes = master.to_bytes();
    let json = MasterKeyJson {
        mac: MacKeyJson { k: STANDARD.encode(&bytes[32..48]), r: STANDARD.encode(&bytes[48..]) },
        encrypt: STANDARD.encode(&bytes[..32]),
    };
    let text = Zeroizing::new(serde_json::to_vec(&json).expect("strings always serialise"));
    let mut sealed = Vec::new();
    Sealer::new(&derived).seal(&text, &mut sealed);
    let key = KeyJson {
        created: origin.created.to_string(),
        username: origin.username.clone(),
        hostname: origin.hostname.clone(),
        kdf: "scrypt".to_owned(),
        n,
        r: cost.r,
        p: cost.p,
        salt: STANDARD.encode(salt),
        data: STANDARD.encode(sealed),
    };
    Ok(serde_json::to_vec(&key).expect("numbers and strings always serialise"))
}

/// Tries a password on a key object; `None` when it is not its password.
///
/// Takes the time and memory that the object demands; call it where blocking is allowed.
///
/// # Errors
/// `HF-3006` when the object is no key, `HF-3018` when it demands more work than any honest one.
pub fn open_key(
    name: &ObjectName,
    data: &[u8],
    password: &Secret,
) -> Result<Option<MasterKey>, RepositoryError> {
    let damaged = |reason: &str| RepositoryError::damaged(name, reason);
    if data.len() > KEY_OBJECT_BYTES_MAX {
        return Err(limit(name, "bytes", data.len() as u64, KEY_OBJECT_BYTES_MAX as u64));
    }
    let key: KeyJson =
        serde_json::from_slice(data).map_err(|error| damaged(&format!("it is no key: {error}")))?;
    if key.kdf != "scrypt" {
        return Err(damaged("its key derivation is not scrypt"));
    }
    let salt = STANDARD.decode(&key.salt).map_err(|_| damaged("its salt is not base64"))?;
    let mut sealed = STANDARD.decode(&key.data).map_err(|_| damaged("its data is not base64"))?;
    let derived = derive(name, password, key.n, key.r, key.p, &salt)?;
    let Ok(text) = Sealer::new(&derived).open_in_place(&mut sealed) else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice::<MasterKeyJson>(text);
    text.zeroize();
    let json = parsed.map_err(|_| damaged("it opens, but holds no master key"))?;
    let mut bytes = Zeroizing::new([0; MASTER_KEY_BYTES]);
    let (encrypt, mac) = bytes.split_at_mut(32);
    let (k, r) = mac.split_at_mut(16);
    for (text, part) in [(&json.encrypt, encrypt), (&json.mac.k, k), (&json.mac.r, r)] {
        let decoded =
            Zeroizing::new(STANDARD.decode(text).map_err(|_| damaged("its master key is not base64"))?);
        if decoded.len() != part.len() {
            return Err(damaged("its master key has another length"));
        }
        part.copy_from_slice(&decoded);
    }
    Ok(Some(MasterKey::from_bytes(&bytes)))
}

fn limit(object: impl ToString, what: &'static str, actual: u64, limit: u64) -> RepositoryError {
    RepositoryError::LimitExceeded { object: object.to_string(), what, actual, limit }
}

fn derive(
    object: impl ToString,
    password: &Secret,
    n: u64,
    r: u32,
    p: u32,
    salt: &[u8],
) -> Result<MasterKey, RepositoryError> {
    let object = object.to_string();
    if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 || salt.is_empty() {
        let reason =
            format!("scrypt does not know N = {n}, r = {r}, p = {p} with {} bytes of salt", salt.len());
        return Err(RepositoryError::damaged(object, reason));
    }
    let memory = n.saturating_mul(u64::from(r)).saturating_mul(128);
    if memory > SCRYPT_MEMORY_BYTES_MAX {
        return Err(limit(object, "bytes of scrypt memory", memory, SCRYPT_MEMORY_BYTES_MAX));
    }
    let work = n.saturating_mul(u64::from(r)).saturating_mul(u64::from(p));
    if work > SCRYPT_WORK_MAX {
        return Err(limit(object, "rounds of scrypt work", work, SCRYPT_WORK_MAX));
    }
    let log_n = u8::try_from(n.ilog2()).expect("the logarithm of 64 bits is below 64");
    let params = scrypt::Params::new(log_n, r, p).map_err(|error| {
        RepositoryError::damaged(&object, format!("scrypt refuses its parameters: {error}"))
    })?;
    let mut derived = Zeroizing::new([0; MASTER_KEY_BYTES]);
    scrypt::scrypt(password.reveal().as_bytes(), salt, &params, derived.as_mut_slice())
        .map_err(|error| RepositoryError::damaged(&object, format!("scrypt failed: {error}")))?;
    Ok(MasterKey::from_bytes(&derived))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::KeyId;
    use crate::unpacked::decode_unpacked;
    use holdfast_model::ErrorCode;

    /// Made by restic 0.14.0 with the password `geheim`.
    const RESTIC_KEY: &str = r#"{"created":"2026-11-21T08:21:39.75974276Z","username":"root","hostname":"vm","kdf":"scrypt","N":32768,"r":8,"p":9,"salt":"C4axxcr6OR82InvHvbOP2TMaIT0kNgkywKlmCHVRQ+8nArhGNh4Ma6Rws3rmTq56Y8pKFPWqavE2tDMgVAz69A==","data":"XJVeKtINLY6Ne8pCbHAZCfa5xlIwpxPu23SBJmcNGbkhYnFHycTXZLrvq7hqFYv4lSBDLh0c1Zf3H+0PEtVi8dqr16+k+WzIZRBxAqvWXv+fQmawPf3nDr0YEice8UIdc1aIbW/luhaNG5OlXjulFcQ8MbAmIocUuzI5AcJJ4rV49VB+9mGhJRkFtZ3a/soRTTJvYBPAdPhkL78J3Ls3hw=="}"#;
    const RESTIC_CONFIG: &str = "986ab278669b9c2015dc1d8c196c93354f9f07e5c9f4ee60e5766006664a08b57a3152dca5d2a3e953da628d0a70b009496612821d940a2461a4771d2344424553dbc555d9525553987415b1a8f8a7e6b18a1b6eabeede4bfdcf31aadd04e8a129a61533bdb402ed75b893a1835a934761168d753829411b4c130349ebf824ade150f7f43464ea7fb66f06f2275364a33736efa449f350c88b7ba2";

    fn name() -> ObjectName {
        ObjectName::Key(KeyId::of(RESTIC_KEY.as_bytes()))
    }

    fn cheap() -> ScryptCost {
        ScryptCost { log_n: 4, r: 8, p: 1 }
    }

    fn origin() -> KeyOrigin {
        KeyOrigin { created: Timestamp::UNIX_EPOCH, hostname: "db1".into(), username: "backup".into() }
    }

    #[test]
    fn a_key_and_config_of_restic_open_with_its_password() {
        let key = open_key(&name(), RESTIC_KEY.as_bytes(), &Secret::new("geheim")).unwrap().unwrap();
        let encrypt = STANDARD.decode("ROMXa4ROY7Lx3e+5mOJoozZY5c/YCfNmCnw7d8K57Lg=").unwrap();
        assert_eq!(key.to_bytes()[..32], encrypt);
        let config = hex::decode(RESTIC_CONFIG).unwrap();
        let json = decode_unpacked(&ObjectName::Config, &config, &Sealer::new(&key)).unwrap();
        let config = crate::config::Config::from_json(&json).unwrap();
        assert_eq!(config.id.to_hex(), "b6db8dad2c5136e841b6ad40ec8161ab8c7d85944bad8d6ff0982325b521e56b");
        assert_eq!(config.chunker_polynomial.to_string(), "23e77ac6a3e35f");
    }

    #[test]
    fn a_wrong_password_is_no_error_of_the_key() {
        let key = seal_key(&MasterKey::generate(), &Secret::new("right"), cheap(), &origin()).unwrap();
        assert!(open_key(&name(), &key, &Secret::new("wrong")).unwrap().is_none());
    }

    #[test]
    fn a_key_opens_with_its_password() {
        let master = MasterKey::generate();
        let key = seal_key(&master, &Secret::new("pässword"), cheap(), &origin()).unwrap();
        assert!(open_key(&name(), &key, &Secret::new("pässword")).unwrap() == Some(master));
    }

    #[test]
    fn hostile_parameters_are_refused_before_any_work() {
        let original: serde_json::Value = serde_json::from_str(RESTIC_KEY).unwrap();
        let with = |field: &str, value: serde_json::Value| {
            let mut key = original.clone();
            key[field] = value;
            open_key(&name(), key.to_string().as_bytes(), &Secret::new("geheim")).unwrap_err().code()
        };
        assert_eq!(with("N", (1u64 << 40).into()), ErrorCode::LimitExceeded);
        assert_eq!(with("N", u64::MAX.into()), ErrorCode::ObjectDamaged);
        assert_eq!(with("N", 0.into()), ErrorCode::ObjectDamaged);
        assert_eq!(with("N", 1.into()), ErrorCode::ObjectDamaged);
        assert_eq!(with("N", 3.into()), ErrorCode::ObjectDamaged);
        assert_eq!(with("r", 0.into()), ErrorCode::ObjectDamaged);
        assert_eq!(with("r", u32::MAX.into()), ErrorCode::LimitExceeded);
        assert_eq!(with("p", u32::MAX.into()), ErrorCode::LimitExceeded);
        assert_eq!(with("p", 0.into()), ErrorCode::ObjectDamaged);
        assert_eq!(with("salt", "".into()), ErrorCode::ObjectDamaged);
        assert_eq!(with("salt", "*".into()), ErrorCode::ObjectDamaged);
        assert_eq!(with("kdf", "argon2".into()), ErrorCode::ObjectDamaged);
    }
}
