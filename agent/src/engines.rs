//! From the definition of a source to its driver.

use std::sync::Arc;

use holdfast_engines::Engine;
use holdfast_engines::files::FilesEngine;
use holdfast_engines::postgres::PostgresEngine;
use holdfast_engines::sqlite::SqliteEngine;
use holdfast_model::source::{EngineConfig, Source};

/// Makes the driver of a source; exchanged in tests.
pub type EngineFactory = Arc<dyn Fn(&Source) -> Arc<dyn Engine> + Send + Sync>;

/// The drivers of this version.
pub fn drivers() -> EngineFactory {
    Arc::new(|source| match source.engine.clone() {
        EngineConfig::Postgres(config) => Arc::new(PostgresEngine::new(config)),
        EngineConfig::Sqlite(config) => Arc::new(SqliteEngine::new(config)),
        EngineConfig::Files(config) => Arc::new(FilesEngine::new(config)),
    })
}
