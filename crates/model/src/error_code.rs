//! Stable error codes.
//!
//! A code never changes its meaning and is never reused. Each has a page `docs/errors/HF-nnnn.md` that says what
//! happened, what is at stake and what to do; a test holds the two lists equal.
//!
//! Ranges: 1xxx the request, files and the command line · 2xxx sources and engines · 3xxx repository and storage ·
//! 4xxx controller, runs and sessions · 5xxx agent · 6xxx identity and access.

use std::fmt;
use std::str::FromStr;

/// What kind of failure a code stands for. The exit status of the CLI and the gRPC status both derive from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    /// The request or a file was wrong; sending it again cannot help.
    Usage,
    /// It ran and failed.
    Failed,
    /// Finished, but some items failed or were skipped.
    Partial,
    /// No such source, run, snapshot, …
    NotFound,
    /// Not known, or not allowed.
    Denied,
    /// Something else holds it, or it changed meanwhile.
    Conflict,
    /// A controller, agent, database or repository could not be reached.
    Unreachable,
    /// The time allowed was over.
    Timeout,
    /// Refused: dangerous and not confirmed.
    NeedsConfirmation,
    /// Stored or restored data is not what it should be.
    DataBad,
}

/// What a retry can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// May pass by itself: try again with backoff.
    Transient,
    /// Will fail again until somebody changes the input.
    BadInput,
    /// Concerns one item: skip it, warn, go on.
    Item,
    /// Try the next endpoint or copy.
    Fallback,
    /// A person is needed at once.
    Human,
}

macro_rules! error_codes {
    ($($name:ident = $number:literal, $category:ident, $retry:ident, $title:literal;)*) => {
        /// One stable error code, printed as `HF-nnnn`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum ErrorCode {
            $(#[doc = $title] $name = $number,)*
        }

        impl ErrorCode {
            /// Every code, in order of its number.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code with this number.
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(ErrorCode::$name),)* _ => None }
            }

            /// What kind of failure it is.
            pub fn category(self) -> Category {
                match self { $(ErrorCode::$name => Category::$category,)* }
            }

            /// What a retry can do about it.
            pub fn retry(self) -> Retry {
                match self { $(ErrorCode::$name => Retry::$retry,)* }
            }

            /// One line that names the failure without its particulars.
            pub fn title(self) -> &'static str {
                match self { $(ErrorCode::$name => $title,)* }
            }
        }
    };
}

error_codes! {
    // --- 1xxx: the request, files, the command line
    UsageInvalid = 1001, Usage, BadInput, "the command line is not valid";
    FileInvalid = 1002, Usage, BadInput, "a configuration file is not valid";
    FileUnknownKey = 1003, Usage, BadInput, "a configuration file has an unknown key";
    FileDuplicateKey = 1004, Usage, BadInput, "a configuration file has the same key twice";
    PlaintextSecret = 1005, Usage, BadInput, "a secret is written in plain text";
    SecretUnresolvable = 1006, Failed, Human, "a secret reference does not resolve";
    NameInvalid = 1007, Usage, BadInput, "a name is not valid";
    ReferenceUnknown = 1008, Usage, BadInput, "a definition refers to something that does not exist";
    NeedsConfirmation = 1009, NeedsConfirmation, BadInput, "the action is dangerous and was not confirmed";
    ContextMissing = 1010, Usage, BadInput, "no controller is configured for the command line";
    OutputFailed = 1011, Failed, Human, "the output could not be written";
    PathInvalid = 1012, Usage, BadInput, "a path is not acceptable";
    PolicyEmpty = 1013, Usage, BadInput, "a policy says nothing";
    PromiseImpossible = 1014, Usage, BadInput, "a policy promises what it cannot keep";
    RetentionEmpty = 1015, Usage, BadInput, "a policy would keep no snapshot";
    RequestInvalid = 1030, Usage, BadInput, "an HTTP request is not valid";
    // --- 2xxx: sources and engines
    SourceUnreachable = 2001, Unreachable, Transient, "the database cannot be reached";
    SourceLoginRefused = 2002, Denied, Human, "the database refused the login";
    SourcePermissionMissing = 2003, Denied, Human, "the login lacks a permission that the backup needs";
    ToolMissing = 2004, Failed, Human, "a client tool is missing on the agent";
    ToolTooOld = 2005, Failed, Human, "the client tool is older than the server";
    ToolFailed = 2006, Failed, Transient, "a client tool failed";
    CaptureIncomplete = 2007, Failed, Transient, "the capture ended early, nothing was committed";
    CaptureInconsistent = 2008, DataBad, Human, "what was captured does not agree with what was counted";
    SourceDamaged = 2009, DataBad, Human, "the source itself is damaged";
    SourceMissing = 2010, NotFound, BadInput, "the source does not exist on its agent";
    SourceItemUnreadable = 2011, Partial, Item, "some items of the source could not be read";
    TargetExists = 2012, Conflict, BadInput, "the restore target exists already";
    TargetNoSpace = 2013, Failed, Human, "the restore target lacks space";
    RestoreFailed = 2014, Failed, Human, "the engine could not apply the restored data";
    RestoreMismatch = 2015, DataBad, Human, "what was restored does not agree with the manifest";
    SourceChangedType = 2016, Failed, Human, "the source is not what its definition says";
    TargetInUse = 2017, Conflict, Human, "the restore target is in use";
    // --- 3xxx: repository and storage
    RepositoryMissing = 3001, NotFound, BadInput, "there is no repository at this place";
    RepositoryExists = 3002, Conflict, BadInput, "there is a repository at this place already";
    RepositoryWrongPassword = 3003, Denied, Human, "the password does not open the repository";
    RepositoryUnsupported = 3004, Failed, BadInput, "the repository has an unsupported version";
    ObjectMissing = 3005, DataBad, Fallback, "the repository lacks an object that it refers to";
    ObjectDamaged = 3006, DataBad, Fallback, "an object of the repository is damaged";
    RepositoryLocked = 3007, Conflict, Transient, "another process holds the repository";
    StorageUnreachable = 3008, Unreachable, Transient, "the storage cannot be reached";
    StorageDenied = 3009, Denied, Human, "the storage refused the credentials";
    StorageFull = 3010, Failed, Human, "the storage is full";
    StorageFailed = 3011, Failed, Transient, "the storage failed";
    ObjectExists = 3012, Conflict, BadInput, "the object exists already and is never overwritten";
    EncodingMismatch = 3013, DataBad, Human, "a blob did not decode to what was encoded, nothing was stored";
    SnapshotUnknown = 3014, NotFound, BadInput, "no such snapshot";
    SnapshotAmbiguous = 3015, Usage, BadInput, "the snapshot id fits more than one snapshot";
    PathNotInSnapshot = 3016, NotFound, BadInput, "the snapshot does not hold this path";
    UnsafePath = 3017, DataBad, Human, "a path would leave the restore target";
    LimitExceeded = 3018, DataBad, Human, "an object is larger than its format allows";
    ExportDamaged = 3019, DataBad, Human, "an exported file is damaged or incomplete";
    StorageFsyncFailed = 3020, Failed, Human, "the storage could not make data durable";
    CopyIncomplete = 3021, DataBad, Fallback, "some snapshots are damaged and were not copied";
    HealIncomplete = 3022, DataBad, Human, "not everything that is damaged could be stored again";
    RepositoryDisturbed = 3023, Conflict, Transient, "another program took away what a run relied on";
    // --- 4xxx: controller, runs and sessions
    NotFound = 4001, NotFound, BadInput, "no such object";
    AlreadyExists = 4002, Conflict, BadInput, "the object exists already";
    VersionConflict = 4003, Conflict, Transient, "the object changed meanwhile";
    StateUnavailable = 4004, Failed, Human, "the controller's state cannot be written";
    RunAlreadyActive = 4005, Conflict, Transient, "the source has an active run";
    RunNotCancellable = 4006, Conflict, BadInput, "the run can no longer be cancelled";
    StaleAttempt = 4007, Conflict, BadInput, "the report belongs to an older attempt";
    AgentOffline = 4008, Unreachable, Transient, "the agent is not connected";
    AgentLost = 4009, Failed, Transient, "the agent fell silent during the run";
    RunCancelled = 4010, Failed, BadInput, "the run was cancelled";
    RunDeadline = 4011, Timeout, Human, "the run took longer than allowed";
    SnapshotHeld = 4012, Conflict, BadInput, "the snapshot is held";
    PlanExpired = 4013, Conflict, BadInput, "the plan is too old, or the world changed since";
    InUse = 4014, Conflict, BadInput, "the object is still referred to";
    ControllerUnreachable = 4015, Unreachable, Transient, "the controller cannot be reached";
    WatchTimeout = 4016, Timeout, Transient, "the time to wait is over, the run goes on";
    Internal = 4017, Failed, Human, "an internal error";
    StateDamaged = 4018, DataBad, Human, "the controller's state is damaged";
    SessionReplaced = 4019, Conflict, Transient, "a newer session of the agent took over";
    Unsupported = 4020, Usage, BadInput, "not supported by this version";
    QueueFull = 4021, Conflict, Transient, "too much is waiting already";
    StateLocked = 4022, Conflict, Human, "another process holds the controller's state";
    RecordTooLarge = 4023, Usage, BadInput, "the object is larger than the controller's state takes";
    NotScheduled = 4030, Conflict, BadInput, "the source is under no policy";
    HostBusy = 4031, Failed, Transient, "the host of the source stayed too busy";
    TooLateToBegin = 4032, Failed, Transient, "the scheduled run could not begin in time";
    ManagedElsewhere = 4033, Conflict, BadInput, "the definition is managed elsewhere";
    CopyToItself = 4037, Usage, BadInput, "a repository cannot be copied to itself";
    NotificationFailed = 4050, Failed, Transient, "a notification was not delivered";
    AddressDenied = 4051, Denied, Human, "nothing may be sent to this address";
    // --- 5xxx: agent
    NotAllowedHere = 5001, Denied, Human, "the agent's own configuration does not allow this";
    HookFailed = 5002, Failed, Human, "a hook failed";
    HookUnknown = 5003, Usage, BadInput, "the agent's configuration has no hook of this name";
    AgentSpoolFull = 5004, Failed, Human, "the agent's data folder is full";
    AgentDraining = 5005, Conflict, Transient, "the agent is draining and takes no new work";
    AgentStateDamaged = 5006, Failed, Human, "the agent's journal is damaged";
    AgentFolderDenied = 5007, Denied, Human, "the agent may not use its data folder";
    AgentFolderReadOnly = 5008, Failed, Human, "the agent's data folder is on a read-only file system";
    AgentDiskFailed = 5009, Failed, Human, "the disk of the agent's data folder failed";
    AgentFileTooLarge = 5010, Failed, Human, "a file in the agent's data folder would be larger than allowed";
    // --- 6xxx: identity and access
    TokenInvalid = 6001, Denied, BadInput, "the token is unknown, used or expired";
    CertificateRejected = 6002, Denied, Human, "the certificate was rejected";
    CaPinMismatch = 6003, Denied, Human, "the controller's CA does not match the pin";
    NotAuthenticated = 6004, Denied, BadInput, "no valid credentials were given";
    NotPermitted = 6005, Denied, BadInput, "the role does not allow this";
    AgentRevoked = 6006, Denied, Human, "the agent was revoked";
    RequestRefused = 6010, Denied, BadInput, "an HTTP request was sent from or to another site";
}

impl ErrorCode {
    /// The number behind `HF-`.
    pub fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HF-{:04}", self.number())
    }
}

/// The text is not an error code of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown error code {0:?}")]
pub struct UnknownErrorCode(pub String);

impl FromStr for ErrorCode {
    type Err = UnknownErrorCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("HF-")
            .and_then(|digits| digits.parse().ok())
            .and_then(Self::from_number)
            .ok_or_else(|| UnknownErrorCode(text.to_owned()))
    }
}

impl serde::Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // A code from a newer version must not make an old record unreadable.
        Ok(text.parse().unwrap_or(ErrorCode::Internal))
    }
}

/// The longest text of a failure that another process wrote, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// The most causes, and the most commands, of a failure that another process wrote.
const TEXTS_MAX: usize = 8;

/// An error as it crosses process borders: what happened, why, and what to do next.
///
/// This is what runs store, what gRPC carries and what the CLI prints.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The stable code.
    pub code: ErrorCode,
    /// What happened, one sentence without a full stop, with the particulars.
    pub message: String,
    /// The chain of causes, outermost first; never repeats `message`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
    /// What is at stake now, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
    /// Commands that work when pasted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<String>,
}

impl Failure {
    /// A failure with a message and nothing else.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), why: Vec::new(), now: None, next: Vec::new() }
    }

    /// Takes the message and the chain of causes from an error.
    pub fn from_error(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        let mut failure = Self::new(code, error.to_string());
        let mut cause = error.source();
        while let Some(inner) = cause {
            failure.why.push(inner.to_string());
            cause = inner.source();
        }
        failure
    }

    /// Of a length that can be stored and told, whoever wrote it.
    #[must_use]
    pub fn bounded(self) -> Self {
        let cut = |text: String| crate::text::cut(&text, TEXT_BYTES_MAX);
        let few = |texts: Vec<String>| texts.into_iter().take(TEXTS_MAX).map(cut).collect();
        Self {
            code: self.code,
            message: cut(self.message),
            why: few(self.why),
            now: self.now.map(cut),
            next: few(self.next),
        }
    }

    /// Adds a cause.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why.push(why.into());
        self
    }

    /// Says what is at stake.
    #[must_use]
    pub fn at_stake(mut self, now: impl Into<String>) -> Self {
        self.now = Some(now.into());
        self
    }

    /// Adds a command to try next.
    #[must_use]
    pub fn then(mut self, command: impl Into<String>) -> Self {
        self.next.push(command.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code, self.message)?;
        for cause in &self.why {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips_through_its_text() {
        for &code in ErrorCode::ALL {
            assert_eq!(code.to_string().parse(), Ok(code));
        }
    }

    #[test]
    fn codes_are_unique_and_in_order() {
        assert!(ErrorCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
    }

    #[test]
    fn a_code_of_a_newer_version_reads_as_internal() {
        let code: ErrorCode = serde_json::from_str("\"HF-9999\"").unwrap();
        assert_eq!(code, ErrorCode::Internal);
    }
}
