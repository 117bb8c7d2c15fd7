//! Tokens: one-use ones with which an agent enrols, and bearer tokens of people and pipelines.
//!
//! A token is `PREFIX_ID_SECRET`: the id finds its record, the secret (160 random bits) proves that it was given out.
//! Stored is the SHA-256 of the whole text only, and compared in constant time. To whoever presents a bad one, unknown,
//! used, expired and foreign tokens look alike.

use std::fmt;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::ids::AgentName;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::access::Role;
use crate::store::{Batch, Expect, Kind, Sequence, Store, StoreError};

/// The longest life of an enrolment token.
pub const ENROLLMENT_LIFETIME_MAX: Duration = Duration::from_secs(3600);
const ENROLLMENT_PREFIX: &str = "hfe";
const OPERATOR_PREFIX: &str = "hft";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 20;

/// Why a token does not open anything.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is unknown, used, expired, or made for another: which of them is not said.
    #[error("the token is unknown, used or expired")]
    Invalid,
    /// The state could not be asked.
    #[error("the token could not be looked up")]
    Store(#[from] StoreError),
}

impl TokenError {
    /// Its stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            TokenError::Invalid => ErrorCode::TokenInvalid,
            TokenError::Store(error) => error.code(),
        }
    }
}

/// The text of a token, as it is shown once and presented later. It never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText {
    text: Zeroizing<String>,
    id_end: usize,
}

impl TokenText {
    fn random(prefix: &str) -> Self {
        let (id, secret): ([u8; ID_BYTES], [u8; SECRET_BYTES]) = (rand::random(), rand::random());
        let secret = Zeroizing::new(hex::encode(secret));
        let head = format!("{prefix}_{}", hex::encode(id));
        Self { id_end: head.len(), text: Zeroizing::new(format!("{head}_{}", *secret)) }
    }

    /// Takes a presented text apart; nothing when it cannot be a token of this kind.
    fn parse(prefix: &str, text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(prefix)?.strip_prefix('_')?.split_once('_')?;
        let is_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let fits =
            id.len() == 2 * ID_BYTES && secret.len() == 2 * SECRET_BYTES && is_hex(id) && is_hex(secret);
        fits.then(|| Self { text: Zeroizing::new(text.to_owned()), id_end: prefix.len() + 1 + id.len() })
    }

    /// The text, to be shown once, or sent.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The id: not secret, the key of the record.
    pub fn id(&self) -> &str {
        self.text[..self.id_end].rsplit('_').next().unwrap_or_default()
    }

    fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.text.as_bytes()).into()
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenText({}…)", &self.text[..self.id_end])
    }
}

/// The SHA-256 of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct TokenHash(#[serde(with = "hex_bytes")] [u8; 32]);

impl TokenHash {
    fn fits(&self, token: &TokenText) -> bool {
        self.0.ct_eq(&token.hash()).into()
    }
}

mod hex_bytes {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(String::deserialize(deserializer)?, &mut bytes)
            .map_err(serde::de::Error::custom)?;
        Ok(bytes)
    }
}

fn end(now: Timestamp, lifetime: Duration) -> Timestamp {
    SignedDuration::try_from(lifetime)
        .ok()
        .and_then(|span| now.checked_add(span).ok())
        .unwrap_or(Timestamp::MAX)
}

/// What is stored of an enrolment token, under its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollmentToken {
    /// The agent it is for, and no other.
    pub agent: AgentName,
    /// Who had it made.
    pub made_by: String,
    /// When it ends.
    pub not_after: Timestamp,
    hash: TokenHash,
}

/// A token that may be used, as long as nobody else does so first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeemable {
    /// The id of the token: the key of its record.
    pub id: String,
    /// The version of the record: whoever removes this version has used the token.
    pub version: Sequence,
    /// Who had it made.
    pub made_by: String,
}

impl Redeemable {
    /// Uses the token: of all batches that do so, one can be committed; the others fail with a conflict, which is
    /// [`TokenError::Invalid`] to whoever presented it.
    pub fn consume(&self, batch: &mut Batch) {
        batch.delete(Kind::EnrollmentToken, &self.id, Expect::Version(self.version));
    }
}

impl EnrollmentToken {
    /// Makes a token. The life is cut to [`ENROLLMENT_LIFETIME_MAX`]. Store the record under the id of the text, with
    /// [`Expect::Absent`], before the text is shown.
    pub fn make(agent: AgentName, made_by: &str, now: Timestamp, lifetime: Duration) -> (TokenText, Self) {
        let text = TokenText::random(ENROLLMENT_PREFIX);
        let not_after = end(now, lifetime.min(ENROLLMENT_LIFETIME_MAX));
        let record = Self { agent, made_by: made_by.to_owned(), not_after, hash: TokenHash(text.hash()) };
        (text, record)
    }

    /// Looks a presented token up. It is used only by [`Redeemable::consume`].
    ///
    /// # Errors
    /// [`TokenError::Invalid`], whatever it is that does not fit.
    pub async fn find(
        store: &dyn Store,
        presented: &str,
        agent: &AgentName,
        now: Timestamp,
    ) -> Result<Redeemable, TokenError> {
        let token = TokenText::parse(ENROLLMENT_PREFIX, presented).ok_or(TokenError::Invalid)?;
        let found =
            store.get_as::<Self>(Kind::EnrollmentToken, token.id()).await?.ok_or(TokenError::Invalid)?;
        let record = found.value;
        if !record.hash.fits(&token) || record.agent != *agent || now >= record.not_after {
            return Err(TokenError::Invalid);
        }
        Ok(Redeemable { id: found.key, version: found.version, made_by: record.made_by })
    }
}

/// What is stored of an operator's bearer token, under its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorToken {
    /// What it is called in lists and in the audit log.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// When it was made.
    pub made_at: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    hash: TokenHash,
}

impl OperatorToken {
    /// Makes a token. Store the record under the id of the text, with [`Expect::Absent`], before the text is shown.
    pub fn make(name: &str, role: Role, now: Timestamp, lifetime: Duration) -> (TokenText, Self) {
        let text = TokenText::random(OPERATOR_PREFIX);
        let record = Self {
            name: name.to_owned(),
            role,
            made_at: now,
            not_after: end(now, lifetime),
            hash: TokenHash(text.hash()),
        };
        (text, record)
    }

    /// The token that a presented text stands for.
    ///
    /// # Errors
    /// [`TokenError::Invalid`], whatever it is that does not fit.
    pub async fn authenticate(
        store: &dyn Store,
        presented: &str,
        now: Timestamp,
    ) -> Result<Self, TokenError> {
        let token = TokenText::parse(OPERATOR_PREFIX, presented).ok_or(TokenError::Invalid)?;
        let found =
            store.get_as::<Self>(Kind::OperatorToken, token.id()).await?.ok_or(TokenError::Invalid)?;
        let valid = found.value.hash.fits(&token) && now < found.value.not_after;
        if valid { Ok(found.value) } else { Err(TokenError::Invalid) }
    }
}

/// The ids of enrolment tokens that ended without being used, for whoever cleans up.
///
/// # Errors
/// The state cannot be read.
pub async fn expired_enrollments(store: &dyn Store, now: Timestamp) -> Result<Vec<String>, StoreError> {
    let all = store.all_as::<EnrollmentToken>(Kind::EnrollmentToken, "").await?;
    Ok(all.into_iter().filter(|token| token.value.not_after <= now).map(|token| token.key).collect())
}
