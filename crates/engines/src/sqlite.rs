//! The SQLite engine: one database file, captured while applications use it.
//!
//! A capture is one consistent view, in which every table is counted and `integrity_check` is run while the pages are
//! stored. What a schema says is data here: no extension is loaded, no function of it is
//! trusted.
//!
//! The tree of a snapshot holds one file, named as the database is.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_model::health::HealthReport;
use holdfast_model::manifest::Manifest;
use holdfast_model::restore::{RestorePreview, RestoreReport, RestoredTarget};
use holdfast_model::source::SqliteConfig;
use holdfast_model::text;

use crate::path_target::{remove, settle, swap};
use crate::{
    Capture, Engine, EngineContext, EngineError, ProbeReport, RestoreOrder, SnapshotContents, blocking,
};

mod capture;
mod connect;
mod facts;
mod in_use;
mod pages;
mod restore;
mod tables;
mod view;

use capture::SqliteCapture;
use connect::{Access, LiveConnection, Patience, SIDECARS, library_version, locate};
use pages::PageSize;

/// How long a capture waits for locks of others without any progress.
pub const LOCK_DEADLINE: Duration = Duration::from_secs(30);

/// The driver for one SQLite database.
#[derive(Debug, Clone)]
pub struct SqliteEngine {
    config: SqliteConfig,
    lock_deadline: Duration,
}

impl SqliteEngine {
    /// A driver for this database.
    pub fn new(config: SqliteConfig) -> Self {
        Self { config, lock_deadline: LOCK_DEADLINE }
    }

    /// Waits this long for locks of others instead of [`LOCK_DEADLINE`].
    #[must_use]
    pub fn with_lock_deadline(mut self, lock_deadline: Duration) -> Self {
        self.lock_deadline = lock_deadline;
        self
    }

    fn probe_blocking(&self, context: &EngineContext) -> Result<ProbeReport, EngineError> {
        let file = locate(&self.config.path)?;
        let patience = Patience::new(self.lock_deadline, &context.cancel);
        let live = LiveConnection::open(&file, Access::to(&file), &patience)?;
        let size = patience.retry(&file, || PageSize::of(&live.sqlite))?;
        let ask = |sql: &str| live.sqlite.query_row(sql, [], |row| row.get::<_, String>(0));
        let count = |sql: &str| live.sqlite.query_row(sql, [], |row| row.get::<_, u32>(0));
        let journal_mode = patience.retry(&file, || ask("PRAGMA journal_mode"))?;
        let tables =
            patience.retry(&file, || count("SELECT count(*) FROM sqlite_schema WHERE type = 'table'"))?;
        let mut warnings = Vec::new();
        if journal_mode != "wal" {
            warnings.push(format!(
                "its journal mode is {journal_mode}: it is copied before it is stored, and writers may have to wait"
            ));
        }
        let details = format!(
            "{} of {}, journal mode {journal_mode}, {}",
            text::counted(size.pages, "page"),
            text::size(size.page_bytes.into()),
            text::counted(tables.into(), "table")
        );
        Ok(ProbeReport {
            version: library_version(),
            logical_bytes: size.bytes(),
            parts: vec![self.config.path.display().to_string()],
            tools: BTreeMap::new(),
            steps: vec![
                ("find".to_owned(), file.display().to_string()),
                ("open".to_owned(), format!("SQLite {}", library_version())),
                ("read".to_owned(), details),
            ],
            warnings,
        })
    }

    fn health_blocking(&self, context: &EngineContext) -> Result<HealthReport, EngineError> {
        let file = locate(&self.config.path)?;
        let patience = Patience::new(self.lock_deadline, &context.cancel);
        let live = LiveConnection::open(&file, Access::to(&file), &patience)?;
        patience.retry(&file, || {
            live.sqlite.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, u32>(0))
        })?;
        let mut log = file.into_os_string();
        log.push("-wal");
        let log_bytes = std::fs::metadata(&log).ok().map(|metadata| metadata.len());
        Ok(HealthReport { response_millis: 0, log_bytes, log_position: None })
    }

    fn open_blocking(&self, context: &EngineContext) -> Result<SqliteCapture, EngineError> {
        let file = locate(&self.config.path)?;
        let name = self.config.path.file_name().unwrap_or_default().as_bytes().to_vec();
        let patience = Patience::new(self.lock_deadline, &context.cancel);
        SqliteCapture::open(file, name, &patience, context)
    }
}

#[async_trait]
impl Engine for SqliteEngine {
    async fn probe(&self, context: &EngineContext) -> Result<ProbeReport, EngineError> {
        let (engine, context) = (self.clone(), context.clone());
        blocking(move || engine.probe_blocking(&context)).await
    }

    async fn health(&self, context: &EngineContext) -> Result<HealthReport, EngineError> {
        let (engine, context) = (self.clone(), context.clone());
        blocking(move || engine.health_blocking(&context)).await
    }

    async fn open_capture(&self, context: &EngineContext) -> Result<Box<dyn Capture>, EngineError> {
        let (engine, context) = (self.clone(), context.clone());
        Ok(Box::new(blocking(move || engine.open_blocking(&context)).await?))
    }

    async fn preview_restore(
        &self,
        order: &RestoreOrder,
        manifest: &Manifest,
        _context: &EngineContext,
    ) -> Result<RestorePreview, EngineError> {
        let (path, order, manifest) = (self.config.path.clone(), order.clone(), manifest.clone());
        blocking(move || restore::preview(&restore::plan(&order, &manifest, &path)?, &order, &manifest)).await
    }

    async fn restore(
        &self,
        order: &RestoreOrder,
        contents: Arc<dyn SnapshotContents>,
        context: &EngineContext,
    ) -> Result<RestoreReport, EngineError> {
        let (path, order, context) = (self.config.path.clone(), order.clone(), context.clone());
        blocking(move || {
            let plan = restore::plan(&order, contents.manifest(), &path)?;
            restore::restore(&plan, &order, &contents, &context)
        })
        .await
    }

    async fn promote(
        &self,
        targets: &[RestoredTarget],
        stamp: &str,
        context: &EngineContext,
    ) -> Result<Vec<RestoredTarget>, EngineError> {
        let (targets, stamp, context) = (targets.to_vec(), stamp.to_owned(), context.clone());
        blocking(move || {
            for target in &targets {
                in_use::check_not_open(target.restored.as_ref())?;
                let live = PathBuf::from(&target.live);
                if live.exists() {
                    in_use::settle(&live, &context.cancel, context.log.as_ref())?;
                }
            }
            // Who opened the old file in the meantime would go on writing to it, and lose that.
            swap::swap_all(&targets, &stamp, &SIDECARS, |promoted| {
                promoted
                    .iter()
                    .filter_map(|target| target.kept.as_ref())
                    .try_for_each(|kept| in_use::check_not_open(kept.as_ref()))
            })
        })
        .await
    }

    async fn marks(
        &self,
        targets: &[RestoredTarget],
        _context: &EngineContext,
    ) -> Result<Vec<String>, EngineError> {
        settle::mark_all(targets).await
    }

    async fn settle(
        &self,
        targets: &[RestoredTarget],
        marks: &[String],
        stamp: &str,
        _context: &EngineContext,
    ) -> Result<Option<Vec<RestoredTarget>>, EngineError> {
        settle::settle_all(targets, marks, stamp, &SIDECARS).await
    }

    async fn discard(&self, targets: &[RestoredTarget], _context: &EngineContext) -> Result<(), EngineError> {
        let (targets, sources) = (targets.to_vec(), vec![self.config.path.clone()]);
        blocking(move || {
            for target in &targets {
                in_use::check_not_open(target.kept.as_ref().unwrap_or(&target.restored).as_ref())?;
            }
            remove::remove_all(&targets, &sources, &SIDECARS)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
