//! What is stored: records, batches, and the audit entry that each batch carries.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// The number of a commit, from 1, without gaps. Also the version of the records it wrote and the cursor of the feed.
pub type Sequence = u64;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// The largest value, in bytes: a gRPC message (4 MiB) fits.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// The largest batch, in bytes of keys and values.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// The most records in one page of a scan.
pub const PAGE_RECORDS_MAX: usize = 1_000;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal $text:literal;)*) => {
        /// What a record is. The numbers are written to disk: they are never changed or used again.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind { $($(#[doc = $doc])* $name = $number,)* }

        impl Kind {
            /// Every kind, in order of its number.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The kind with this number; `None` for one of a newer version.
            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Kind::$name),)* _ => None }
            }

            /// Its name in messages.
            pub fn as_str(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// Something an operator declared: `source/NAME`, `repository/NAME`, `policy/NAME`, …
    Definition = 1 "definition";
    /// A run, by its id.
    Run = 2 "run";
    /// A line of a run's log.
    RunLog = 3 "run log";
    /// An entry of the catalog: a snapshot.
    Snapshot = 4 "snapshot";
    /// An enrolled agent, by its name.
    Agent = 5 "agent";
    /// A one-use token of an agent that has not enrolled yet, by its id.
    EnrollmentToken = 6 "enrollment token";
    /// A bearer token of a person or a pipeline, by its id.
    OperatorToken = 7 "operator token";
    /// A refusal to remove a snapshot.
    Hold = 8 "hold";
    /// A printed plan that waits for its execution.
    Plan = 9 "plan";
    /// The head of the audit chain as it was shipped elsewhere.
    AuditHead = 10 "audit head";
    /// The answer already given to an idempotency key.
    Idempotency = 11 "idempotency key";
    /// Who leads, until when, under which fencing number.
    Lease = 12 "lease";
    /// What has become of the slots of a source under its schedule, by the source.
    Slot = 13 "slot";
    /// Which fact of an agent was taken last, by the agent.
    Session = 14 "session";
    /// What the controller remembers of itself.
    Setting = 15 "setting";
    /// The packs of a repository that a check found damaged, by the name of the repository.
    DamagedPacks = 16 "damaged packs";
    /// That no backup of a source begins by itself for now, by the source.
    Pause = 17 "pause";
    /// That the runs of a source write debug lines, by the source.
    Debug = 18 "debug";
    /// An alert, a silence, or what counts beside them.
    Alert = 30 "alert";
    /// A message that waits to be delivered, by its channel and id.
    Outbox = 31 "outbox";
    /// What has become of a message.
    Delivery = 32 "delivery";
    /// What was sent of a report, the sizes of a repository, how many snapshots were removed from it, or what became of
    /// the messages of a channel.
    Report = 33 "report";
}

impl Kind {
    /// The number that is written to disk.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A stored record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key within its kind.
    pub key: String,
    /// The number of the commit that wrote it.
    pub version: Sequence,
    /// Its JSON.
    pub value: Vec<u8>,
}

impl Record {
    /// Reads the value.
    ///
    /// # Errors
    /// [`StoreError::Undecodable`] when the JSON does not fit the type.
    pub fn decode<T: DeserializeOwned>(self, kind: Kind) -> Result<Versioned<T>, StoreError> {
        match serde_json::from_slice(&self.value) {
            Ok(value) => Ok(Versioned { key: self.key, version: self.version, value }),
            Err(source) => Err(StoreError::Undecodable { kind, key: self.key, source }),
        }
    }
}

/// A value with the key and version it was read under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// Its key within its kind.
    pub key: String,
    /// The number of the commit that wrote it: what [`Expect::Version`] compares with.
    pub version: Sequence,
    /// The value.
    pub value: T,
}

/// Which records to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Keys that begin so; empty for all.
    pub prefix: String,
    /// Only keys greater than this one: the last of the page before.
    pub after: Option<String>,
    /// How many at most; never more than [`PAGE_RECORDS_MAX`].
    pub limit: usize,
    /// From the greatest key down; `after` then means keys smaller than it.
    pub descending: bool,
}

impl Scan {
    /// The first page of the keys with this prefix.
    pub fn below(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: PAGE_RECORDS_MAX, descending: false }
    }
}

/// What must be true of a record for a batch to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: the last writer wins.
    Any,
    /// There is no such record.
    Absent,
    /// There is one, of any version.
    Present,
    /// It was last written by this commit.
    Version(Sequence),
}

impl Expect {
    /// Whether a record found with this version (or not found) is as expected.
    pub fn holds(self, found: Option<Sequence>) -> bool {
        match self {
            Expect::Any => true,
            Expect::Absent => found.is_none(),
            Expect::Present => found.is_some(),
            Expect::Version(version) => found == Some(version),
        }
    }
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Writes the record.
    Put {
        /// Its kind.
        kind: Kind,
        /// Its key.
        key: String,
        /// Its JSON.
        value: Vec<u8>,
    },
    /// Removes it, if it is there.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its key.
        key: String,
    },
}

impl Operation {
    /// Which record it changes.
    pub fn target(&self) -> (Kind, &str) {
        match self {
            Operation::Put { kind, key, .. } | Operation::Delete { kind, key } => (*kind, key),
        }
    }
}

/// Who did what to what, and what came of it. Never holds a secret: it is kept for years and shipped elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Audit {
    /// Who: `operator/NAME`, `agent/NAME`, or `controller`.
    pub actor: String,
    /// What, as a verb with its object: `run.start`, `agent.enroll`.
    pub action: String,
    /// To what: `source/pg-main`.
    pub target: String,
    /// What came of it: `done`, or the code of the refusal.
    pub result: String,
}

impl Audit {
    /// An action that takes effect with its commit.
    pub fn done(actor: impl Into<String>, action: impl Into<String>, target: impl Into<String>) -> Self {
        Self { actor: actor.into(), action: action.into(), target: target.into(), result: "done".to_owned() }
    }

    /// What the controller does by itself.
    pub fn by_controller(action: impl Into<String>, target: impl Into<String>) -> Self {
        Self::done("controller", action, target)
    }

    /// An action that was refused; its batch has no operations.
    pub fn refused(
        actor: impl Into<String>,
        action: impl Into<String>,
        target: impl Into<String>,
        code: holdfast_model::ErrorCode,
    ) -> Self {
        Self { result: code.to_string(), ..Self::done(actor, action, target) }
    }
}

/// What to commit: preconditions, operations and the audit entry, as a whole or not at all.
///
/// All preconditions are judged before any operation of the batch takes effect.
#[derive(Debug, Clone)]
pub struct Batch {
    pub(super) audit: Audit,
    pub(super) conditions: Vec<(Kind, String, Expect)>,
    pub(super) operations: Vec<Operation>,
    bytes: usize,
}

impl Batch {
    /// A batch that writes its audit entry and nothing else yet.
    pub fn new(audit: Audit) -> Self {
        Self { audit, conditions: Vec::new(), operations: Vec::new(), bytes: 0 }
    }

    /// How much its operations write, in bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Requires something of a record that the batch may or may not change.
    pub fn require(&mut self, kind: Kind, key: impl Into<String>, expect: Expect) -> &mut Self {
        if expect != Expect::Any {
            self.conditions.push((kind, key.into(), expect));
        }
        self
    }

    /// Writes a record.
    ///
    /// # Panics
    /// The type cannot be written as JSON (a map whose keys are not text): a defect, not a matter of input.
    pub fn put<T: Serialize>(
        &mut self,
        kind: Kind,
        key: impl Into<String>,
        value: &T,
        expect: Expect,
    ) -> &mut Self {
        let value = serde_json::to_vec(value).expect("the types of records can be written as JSON");
        self.put_bytes(kind, key, value, expect)
    }

    /// Writes a record whose JSON is at hand.
    pub fn put_bytes(
        &mut self,
        kind: Kind,
        key: impl Into<String>,
        value: Vec<u8>,
        expect: Expect,
    ) -> &mut Self {
        let key = key.into();
        self.require(kind, key.clone(), expect);
        self.bytes += key.len() + value.len();
        self.operations.push(Operation::Put { kind, key, value });
        self
    }

    /// Removes a record. Without an expectation, one that is not there is no error.
    pub fn delete(&mut self, kind: Kind, key: impl Into<String>, expect: Expect) -> &mut Self {
        let key = key.into();
        self.require(kind, key.clone(), expect);
        self.bytes += key.len();
        self.operations.push(Operation::Delete { kind, key });
        self
    }

    /// Refuses what the format cannot hold.
    pub(super) fn check_limits(&self) -> Result<(), StoreError> {
        let too_large = |what, bytes, bytes_max| Err(StoreError::TooLarge { what, bytes, bytes_max });
        let keys = self.conditions.iter().map(|(_, key, _)| key.as_str());
        for key in keys.chain(self.operations.iter().map(|operation| operation.target().1)) {
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return too_large("key", key.len(), KEY_BYTES_MAX);
            }
        }
        for operation in &self.operations {
            let value_bytes = match operation {
                Operation::Put { value, .. } => value.len(),
                Operation::Delete { .. } => 0,
            };
            if value_bytes > VALUE_BYTES_MAX {
                return too_large("value", value_bytes, VALUE_BYTES_MAX);
            }
        }
        if self.bytes > BATCH_BYTES_MAX {
            return too_large("batch", self.bytes, BATCH_BYTES_MAX);
        }
        for text in [&self.audit.actor, &self.audit.action, &self.audit.target, &self.audit.result] {
            if text.len() > usize::from(u16::MAX) {
                return too_large("audit entry", text.len(), usize::from(u16::MAX));
            }
        }
        Ok(())
    }
}

/// A commit that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its number, and the version of every record it wrote.
    pub sequence: Sequence,
    /// When, by the controller's clock.
    pub time: Timestamp,
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// The number of its commit.
    pub sequence: Sequence,
    /// When, by the controller's clock.
    pub time: Timestamp,
    /// Who did what.
    pub audit: Audit,
    /// Which records the commit changed.
    pub changed: Vec<(Kind, String)>,
    /// The SHA-256 of the entry; the next one carries it.
    pub hash: [u8; 32],
}

/// The chain of the audit log holds from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The oldest entry that is still kept.
    pub first: Sequence,
    /// What the oldest entry says of the one before: nought when the log reaches back to its beginning.
    pub anchor: [u8; 32],
    /// The newest entry.
    pub last: Sequence,
    /// Its hash: kept elsewhere, it proves later that nothing was cut off or changed.
    pub head: [u8; 32],
}
