//! The state as lines of JSON, read page by page while they are written: memory does not grow with the state.

use std::io::{self, Read};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::runtime::Handle;

use crate::store::{Kind, Scan, Sequence, Store, StoreError};

/// The kinds that are copied. Left out is what makes sense for this process alone: sessions, leases, open tokens, answers
/// to repeated requests, plans that wait.
pub const COPIED: [Kind; 11] = [
    Kind::Definition,
    Kind::Run,
    Kind::Snapshot,
    Kind::Agent,
    Kind::OperatorToken,
    Kind::Hold,
    Kind::AuditHead,
    Kind::Slot,
    Kind::Setting,
    Kind::DamagedPacks,
    Kind::Pause,
];

/// Ended runs that are copied, the newest.
const RUNS_MAX: usize = 10_000;

/// Records and entries read at once.
const PAGE: usize = 500;

/// One record.
#[derive(Debug, Serialize, Deserialize)]
pub struct StateLine {
    /// Its key.
    pub key: String,
    /// Its value, as it is stored.
    pub value: Box<RawValue>,
}

/// The path of the file of a kind.
pub fn file_of(kind: Kind) -> String {
    format!("records/{}.jsonl", kind.as_str().replace(' ', "-"))
}

/// What gives lines page by page.
pub(super) trait Pages {
    /// The next page as lines; none at the end.
    fn next_page(&mut self) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Lines as they are read by who writes them. To be read on a thread that may block.
pub(super) struct Lines<P> {
    pages: P,
    page: io::Cursor<Vec<u8>>,
}

impl<P: Pages> Lines<P> {
    pub(super) fn of(pages: P) -> Self {
        Self { pages, page: io::Cursor::default() }
    }
}

impl<P: Pages> Read for Lines<P> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.page.read(out)?;
            if length > 0 || out.is_empty() {
                return Ok(length);
            }
            match self.pages.next_page().map_err(io::Error::other)? {
                Some(page) => self.page = io::Cursor::new(page),
                None => return Ok(0),
            }
        }
    }
}

/// The records of one kind.
pub(super) struct Entries {
    store: Arc<dyn Store>,
    handle: Handle,
    kind: Kind,
    /// What is to be read yet, the next last.
    scans: Vec<Scan>,
}

impl Entries {
    /// Of this kind.
    pub(super) fn new(store: Arc<dyn Store>, handle: Handle, kind: Kind) -> Self {
        let scans = match kind {
            // The marks of those that have not ended are left out: no agent of theirs is left when this is needed.
            Kind::Run => ["run/", "last-", "totals/", "garbage/"].map(Scan::below).to_vec(),
            // The others are made of these.
            Kind::Snapshot => vec![Scan::below("id/")],
            _ => vec![Scan::below("")],
        };
        Self { store, handle, kind, scans }
    }

    /// Where the newest so many runs begin.
    fn first_run(&self) -> Result<Option<String>, StoreError> {
        let (mut after, mut seen) = (None, 0);
        while seen < RUNS_MAX {
            let scan = Scan { after: after.clone(), limit: PAGE, descending: true, ..Scan::below("run/") };
            let page = self.handle.block_on(self.store.scan(Kind::Run, scan))?;
            seen += page.len();
            let complete = page.len() < PAGE;
            after = page.into_iter().last().map(|record| record.key).or(after);
            if complete {
                return Ok(None);
            }
        }
        Ok(after)
    }
}

impl Pages for Entries {
    fn next_page(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        while let Some(mut scan) = self.scans.pop() {
            if scan.prefix == "run/" && scan.after.is_none() {
                scan.after = self.first_run()?;
            }
            scan.limit = PAGE;
            let records = self.handle.block_on(self.store.scan(self.kind, scan.clone()))?;
            let Some(last) = records.last() else { continue };
            let mut lines = Vec::new();
            for record in &records {
                // What is stored is JSON; it goes out as it is.
                let key = serde_json::Value::from(record.key.as_str());
                lines.extend_from_slice(format!("{{\"key\":{key},\"value\":").as_bytes());
                lines.extend_from_slice(&record.value);
                lines.extend_from_slice(b"}\n");
            }
            scan.after = Some(last.key.clone());
            self.scans.push(scan);
            return Ok(Some(lines));
        }
        Ok(None)
    }
}

/// The audit log up to a commit.
pub(super) struct AuditEntries {
    store: Arc<dyn Store>,
    handle: Handle,
    after: Sequence,
    until: Sequence,
}

/// One entry of the audit log.
#[derive(Debug, Serialize)]
struct AuditLine<'a> {
    sequence: Sequence,
    at: jiff::Timestamp,
    actor: &'a str,
    action: &'a str,
    target: &'a str,
    result: &'a str,
    hash: String,
}

impl AuditEntries {
    /// Up to this commit.
    pub(super) fn new(store: Arc<dyn Store>, handle: Handle, until: Sequence) -> Self {
        Self { store, handle, after: 0, until }
    }
}

impl Pages for AuditEntries {
    fn next_page(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        if self.after >= self.until {
            return Ok(None);
        }
        let entries = self.handle.block_on(self.store.audit(self.after, PAGE))?;
        let Some(last) = entries.last() else { return Ok(None) };
        self.after = last.sequence;
        let mut lines = Vec::new();
        for entry in entries.iter().filter(|entry| entry.sequence <= self.until) {
            let line = AuditLine {
                sequence: entry.sequence,
                at: entry.time,
                actor: &entry.audit.actor,
                action: &entry.audit.action,
                target: &entry.audit.target,
                result: &entry.audit.result,
                hash: hex::encode(entry.hash),
            };
            // A value of texts and numbers can be written.
            lines.extend(serde_json::to_vec(&line).unwrap_or_default());
            lines.push(b'\n');
        }
        Ok(Some(lines))
    }
}
