//! A running capture of a database.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use async_trait::async_trait;
use holdfast_model::ErrorCode;
use holdfast_model::manifest::{DatabaseManifest, Manifest};
use holdfast_model::source::EngineKind;
use jiff::Timestamp;
use rusqlite::{Connection, InterruptHandle};
use tokio::sync::oneshot;

use super::connect::{LiveConnection, Patience, library_version, sqlite_error};
use super::facts::{self, Facts, Health};
use super::pages::{PageReader, PageSize};
use super::view::{self, View, Witness};
use crate::files::metadata;
use crate::{Capture, Content, EngineContext, EngineError, Entry, StoredSummary};

/// What the checking thread found out.
struct Checked {
    outcome: Result<(Facts, Health, Vec<String>), EngineError>,
    /// Keeps the view until everything is compared.
    checks: Checks,
}

/// A running capture.
pub(crate) struct SqliteCapture {
    file: PathBuf,
    name: Vec<u8>,
    entry: Option<Entry>,
    is_stream: bool,
    size: PageSize,
    witness: Option<Witness>,
    checked: Option<oneshot::Receiver<Checked>>,
    /// Stops the checks when the capture is given up.
    interrupt: InterruptHandle,
    captured_at: Timestamp,
    context: EngineContext,
}

impl SqliteCapture {
    /// Opens the view and starts to check it. Blocking.
    pub(crate) fn open(
        file: PathBuf,
        name: Vec<u8>,
        patience: &Patience,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        let failed = |error| sqlite_error(&file, error);
        let mut file_metadata = metadata::of_path(&file).map_err(|error| {
            EngineError::new(
                ErrorCode::SourcePermissionMissing,
                format!("the metadata of {} cannot be read", file.display()),
            )
            .caused_by(std::io::Error::from(error))
        })?;
        let view = view::open(&file, &context.scratch, patience, context.log.as_ref())?;
        let captured_at = context.clock.now();
        let (content, size, witness, checks) = match view {
            View::Live { pages, checks, witness } => {
                let size = PageSize::of(&pages.sqlite).map_err(failed)?;
                let reader = Box::new(PageReader::start(file.clone(), *pages, size)?);
                let content = Content::PageStream { reader, page_bytes: size.page_bytes };
                (content, size, Some(witness), Checks::Live(checks))
            }
            View::Copy { file: copy, checks } => {
                let size = PageSize::of(&checks).map_err(failed)?;
                let content = Content::Pages { path: copy, page_bytes: size.page_bytes };
                (content, size, None, Checks::Copy(checks))
            }
        };
        file_metadata.size = size.bytes();
        context.log.debug(format_args!("{} pages of {} bytes", size.pages, size.page_bytes));
        let is_stream = matches!(content, Content::PageStream { .. });
        let interrupt = checks.sqlite().get_interrupt_handle();
        let checked = start_checks(file.clone(), checks)?;
        let entry = Some(Entry { path: name.clone(), metadata: file_metadata, content });
        let context = context.clone();
        Ok(Self {
            file,
            name,
            entry,
            is_stream,
            size,
            witness,
            checked: Some(checked),
            interrupt,
            captured_at,
            context,
        })
    }

    /// Whether the pipeline took all of it.
    fn compare(&self, stored: &StoredSummary) -> Result<(), EngineError> {
        let taken =
            if self.is_stream { stored.streams.get(&self.name).copied().unwrap_or(0) } else { stored.bytes };
        let expected = self.size.bytes();
        if self.entry.is_some() || stored.files != 1 || stored.unreadable_count != 0 || taken != expected {
            let message =
                format!("{taken} of {expected} bytes of the database {} were stored", self.file.display());
            return Err(EngineError::new(ErrorCode::CaptureIncomplete, message));
        }
        Ok(())
    }

    async fn checked(&mut self) -> Result<Checked, EngineError> {
        let checked = self.checked.take().expect("only finish takes it, and finish consumes the capture");
        let lost = || {
            EngineError::new(
                ErrorCode::CaptureIncomplete,
                format!("the check of {} ended without a result", self.file.display()),
            )
        };
        tokio::select! {
            checked = checked => checked.map_err(|_| lost()),
            () = self.context.cancel.cancelled() => {
                self.interrupt.interrupt();
                Err(EngineError::new(ErrorCode::RunCancelled, "the run was cancelled"))
            }
        }
    }
}

impl Drop for SqliteCapture {
    fn drop(&mut self) {
        self.interrupt.interrupt();
    }
}

/// A connection in the view, for the checks.
enum Checks {
    Live(Box<LiveConnection>),
    Copy(Box<Connection>),
}

impl Checks {
    fn sqlite(&self) -> &Connection {
        match self {
            Checks::Live(live) => &live.sqlite,
            Checks::Copy(sqlite) => sqlite,
        }
    }
}

/// Counts and checks on a thread, beside the pipeline that reads the pages.
fn start_checks(file: PathBuf, checks: Checks) -> Result<oneshot::Receiver<Checked>, EngineError> {
    let (sender, receiver) = oneshot::channel();
    let name = file.display().to_string();
    std::thread::Builder::new()
        .name("sqlite-checks".to_owned())
        .spawn(move || {
            let mut warnings = Vec::new();
            let outcome = facts::collect(checks.sqlite(), &mut warnings)
                .and_then(|facts| facts::check(checks.sqlite()).map(|health| (facts, health, warnings)))
                .map_err(|error| sqlite_error(&file, error));
            // A capture that was given up does not ask.
            let _ = sender.send(Checked { outcome, checks });
        })
        .map_err(|error| {
            EngineError::new(ErrorCode::CaptureIncomplete, format!("no thread to check {name} with"))
                .caused_by(error)
        })?;
    Ok(receiver)
}

/// The error for a damaged database, with the first findings.
pub(crate) fn damaged(what: &str, health: &Health, code: ErrorCode) -> EngineError {
    let first: Vec<&str> = health.damage.iter().take(3).map(String::as_str).collect();
    let more = match health.damage.len().saturating_sub(first.len()) {
        0 => String::new(),
        more => format!("; {more} more"),
    };
    EngineError::new(code, format!("{what} is damaged: {}{more}", first.join("; ")))
}

#[async_trait]
impl Capture for SqliteCapture {
    fn next_entry(&mut self) -> Result<Option<Entry>, EngineError> {
        Ok(self.entry.take())
    }

    async fn finish(mut self: Box<Self>, stored: StoredSummary) -> Result<Manifest, EngineError> {
        self.compare(&stored)?;
        let checked = self.checked().await?;
        if let Some(witness) = &self.witness
            && !witness.still_holds()
        {
            let message = format!(
                "the database {} or its write-ahead log was replaced while it was read",
                self.file.display()
            );
            return Err(EngineError::new(ErrorCode::CaptureInconsistent, message));
        }
        drop(checked.checks);
        let (facts, health, warnings) = checked.outcome?;
        for (table, counted) in &facts.tables {
            self.context.log.debug(format_args!("table {}: {} rows", table.escape_debug(), counted.rows));
        }
        if !health.damage.is_empty() {
            let what = format!("the database {}", self.file.display());
            return Err(damaged(&what, &health, ErrorCode::SourceDamaged));
        }
        for warning in warnings.iter().chain(&health.warnings) {
            self.context.log.warn(warning);
        }
        let name = std::ffi::OsStr::from_bytes(&self.name).display().to_string();
        Ok(Manifest {
            version: 1,
            engine: EngineKind::Sqlite,
            engine_version: library_version(),
            tools: BTreeMap::new(),
            captured_at: self.captured_at,
            log_position: None,
            system_id: None,
            databases: vec![DatabaseManifest {
                name: name.clone(),
                path: name,
                tables: facts.tables,
                schema_hash: facts.schema_hash,
                extensions: BTreeMap::new(),
                sequences: facts.sequences,
                large_objects: 0,
                roles: Vec::new(),
                encoding: Some(facts.encoding),
                settings: facts.settings,
                logical_bytes: self.size.bytes(),
            }],
            files: None,
            logical_bytes: self.size.bytes(),
            unreadable: Vec::new(),
            unreadable_count: 0,
        })
    }
}
