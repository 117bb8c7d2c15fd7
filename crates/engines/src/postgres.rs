//! PostgreSQL, captured logically: `pg_dump` of each database inside a snapshot whose rows were counted.
//!
//! A snapshot's tree holds `databases/NAME.dump`, one archive in custom format without compression of its own per
//! database (the repository compresses and deduplicates), and `globals.sql` with roles and tablespaces. Every database
//! is consistent in itself; the snapshots of several databases are taken one after the other, milliseconds apart, as
//! PostgreSQL has no snapshot across databases.
//!
//! A capture counts only when every archive is whole (see `archive`), `pg_dump` says so by its exit status, and
//! the tables, rows and large objects in the archives are those that the server counted in the same snapshot.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_model::health::HealthReport;
use holdfast_model::manifest::Manifest;
use holdfast_model::restore::{RestorePreview, RestoreReport, RestoredTarget};
use holdfast_model::source::PostgresConfig;

use crate::{Capture, Engine, EngineContext, EngineError, ProbeReport, RestoreOrder, SnapshotContents};

mod archive;
mod capture;
mod catalog;
mod connect;
mod database_sql;
mod dump;
mod preview;
mod probe;
mod promote;
mod quote;
mod restore;
mod schema;
mod selection;
mod tools;
mod verify;

/// Folder of the tree that holds the archives.
const DATABASES_FOLDER: &str = "databases";
/// File of the tree that holds roles and tablespaces.
const GLOBALS_FILE: &str = "globals.sql";

/// The driver for one PostgreSQL server.
#[derive(Debug, Clone)]
pub struct PostgresEngine {
    config: PostgresConfig,
}

impl PostgresEngine {
    /// A driver for the server that the source describes. Nothing is reached yet.
    pub fn new(config: PostgresConfig) -> Self {
        Self { config }
    }
}

#[async_trait]
impl Engine for PostgresEngine {
    async fn probe(&self, context: &EngineContext) -> Result<ProbeReport, EngineError> {
        probe::probe(&self.config, context).await
    }

    async fn health(&self, context: &EngineContext) -> Result<HealthReport, EngineError> {
        probe::health(&self.config, context).await
    }

    async fn databases(&self, context: &EngineContext) -> Result<Vec<String>, EngineError> {
        probe::databases(&self.config, context).await
    }

    async fn open_capture(&self, context: &EngineContext) -> Result<Box<dyn Capture>, EngineError> {
        Ok(Box::new(capture::open(&self.config, context).await?))
    }

    async fn preview_restore(
        &self,
        order: &RestoreOrder,
        manifest: &Manifest,
        context: &EngineContext,
    ) -> Result<RestorePreview, EngineError> {
        preview::preview(&self.config, order, manifest, context).await
    }

    async fn restore(
        &self,
        order: &RestoreOrder,
        contents: Arc<dyn SnapshotContents>,
        context: &EngineContext,
    ) -> Result<RestoreReport, EngineError> {
        restore::restore(&self.config, order, contents, context).await
    }

    async fn promote(
        &self,
        targets: &[RestoredTarget],
        stamp: &str,
        context: &EngineContext,
    ) -> Result<Vec<RestoredTarget>, EngineError> {
        promote::promote(&self.config, targets, stamp, context).await
    }

    async fn marks(
        &self,
        targets: &[RestoredTarget],
        context: &EngineContext,
    ) -> Result<Vec<String>, EngineError> {
        promote::marks(&self.config, targets, context).await
    }

    async fn settle(
        &self,
        targets: &[RestoredTarget],
        marks: &[String],
        stamp: &str,
        context: &EngineContext,
    ) -> Result<Option<Vec<RestoredTarget>>, EngineError> {
        promote::settle(&self.config, targets, marks, stamp, context).await
    }

    async fn discard(&self, targets: &[RestoredTarget], context: &EngineContext) -> Result<(), EngineError> {
        promote::discard(&self.config, targets, context).await
    }
}
