//! The files engine: trees of files as the file system shows them.
//!
//! A path of the snapshot's tree is the absolute path without its leading `/`. Every folder from `/` down to a
//! configured path is part of the tree, with its true metadata, and empty but for the way. Which files are taken is
//! told by patterns, as in `.gitignore`: without a `/` (one at the end does not count) a pattern matches a name
//! anywhere, with one it is anchored at each configured path; the last that matches decides, and `!` turns one around.
//! Sockets, pipes and devices are entries without content, and symbolic links are never followed.
//!
//! What cannot be read is recorded and the rest is saved: a capture with unreadable items is partial. A configured
//! path that does not exist, however, fails the capture: a source that has gone must not look like an empty one.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_model::health::HealthReport;
use holdfast_model::manifest::{FilesManifest, Manifest};
use holdfast_model::restore::{Placement, RestorePreview, RestoreReport, RestoredTarget};
use holdfast_model::source::FilesConfig;
use holdfast_model::text::counted;

use crate::path_target::{remove, settle, swap};
use crate::{
    Capture, Engine, EngineContext, EngineError, FileType, ProbeReport, RestoreOrder, SnapshotContents,
    blocking,
};

mod capture;
mod delta;
pub(crate) mod metadata;
mod patterns;
mod restore;
pub(crate) mod roots;
mod walk;

use capture::FilesCapture;
use patterns::Patterns;
use roots::Roots;
use walk::{Step, Walker};

/// How many entries a probe looks at.
const PROBE_ENTRIES_MAX: u64 = 200_000;

/// The driver for file trees.
#[derive(Debug, Clone)]
pub struct FilesEngine {
    config: FilesConfig,
}

impl FilesEngine {
    /// A driver for these trees.
    pub fn new(config: FilesConfig) -> Self {
        Self { config }
    }

    fn walker(&self) -> Result<(Roots, Walker), EngineError> {
        let roots = Roots::new(&self.config.paths)?;
        let patterns = Patterns::new(&self.config.exclude, &self.config.include)?;
        let walker = Walker::new(&roots, patterns, self.config.one_file_system)?;
        Ok((roots, walker))
    }

    fn probe_blocking(&self, context: &EngineContext) -> Result<ProbeReport, EngineError> {
        let (roots, walker) = self.walker()?;
        let mut walker = walker.without_attributes();
        let mut report = ProbeReport {
            version: system_version(),
            logical_bytes: 0,
            parts: roots.paths().iter().map(|path| path.display().to_string()).collect(),
            tools: BTreeMap::new(),
            steps: vec![("paths".to_owned(), format!("{} found", roots.paths().len()))],
            warnings: Vec::new(),
        };
        let (mut files, mut entries, mut unreadable) = (0_u64, 0_u64, 0_u64);
        let mut first_unreadable = None;
        while let Some(step) = walker.next_step()? {
            match step {
                Step::Entry(entry) => {
                    entries += 1;
                    if entry.metadata.file_type == FileType::File {
                        files += 1;
                        report.logical_bytes += entry.metadata.size;
                    }
                }
                Step::Unreadable(path, why) => {
                    unreadable += 1;
                    first_unreadable
                        .get_or_insert_with(|| format!("/{}: {why}", String::from_utf8_lossy(&path)));
                }
                Step::AttributesUnreadable(..) | Step::LeftOut(_) => {}
            }
            if entries >= PROBE_ENTRIES_MAX || context.cancel.is_cancelled() {
                report.warnings.push(format!("only the first {} were looked at", counted(entries, "entry")));
                break;
            }
        }
        let walked = format!("{}, {}", counted(entries, "entry"), counted(files, "file"));
        report.steps.push(("walk".to_owned(), walked));
        if let Some(first) = first_unreadable {
            let items = counted(unreadable, "item");
            report.warnings.push(format!("{items} cannot be read, such as {first}"));
        }
        Ok(report)
    }
}

/// Name and version of the operating system.
pub(crate) fn system_version() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy())
}

#[async_trait]
impl Engine for FilesEngine {
    async fn probe(&self, context: &EngineContext) -> Result<ProbeReport, EngineError> {
        let (engine, context) = (self.clone(), context.clone());
        blocking(move || engine.probe_blocking(&context)).await
    }

    async fn health(&self, _context: &EngineContext) -> Result<HealthReport, EngineError> {
        let engine = self.clone();
        blocking(move || engine.walker().map(|_| HealthReport::default())).await
    }

    async fn open_capture(&self, context: &EngineContext) -> Result<Box<dyn Capture>, EngineError> {
        let engine = self.clone();
        let (roots, walker) = blocking(move || engine.walker()).await?;
        let paths = roots.paths().iter().map(|path| path.display().to_string()).collect();
        Ok(Box::new(FilesCapture {
            walker,
            captured_at: context.clock.now(),
            context: context.clone(),
            engine_version: system_version(),
            totals: FilesManifest { paths, ..FilesManifest::default() },
            unreadable: Vec::new(),
            unreadable_count: 0,
            attribute_warnings: 0,
            ended: false,
        }))
    }

    async fn preview_restore(
        &self,
        order: &RestoreOrder,
        manifest: &Manifest,
        _context: &EngineContext,
    ) -> Result<RestorePreview, EngineError> {
        let (engine, order, manifest) = (self.clone(), order.clone(), manifest.clone());
        blocking(move || {
            let plan = restore::plan(&order, &manifest, &engine.config.paths)?;
            match order.placement {
                Placement::InPlaceDelta => delta::preview(&plan, &order, &manifest),
                _ => restore::preview(&plan, &order, &manifest),
            }
        })
        .await
    }

    async fn restore(
        &self,
        order: &RestoreOrder,
        contents: Arc<dyn SnapshotContents>,
        _context: &EngineContext,
    ) -> Result<RestoreReport, EngineError> {
        let (engine, order) = (self.clone(), order.clone());
        blocking(move || {
            let plan = restore::plan(&order, contents.manifest(), &engine.config.paths)?;
            match order.placement {
                Placement::InPlaceDelta => delta::restore(&plan, &order, &contents),
                _ => restore::restore(&plan, &order, &contents),
            }
        })
        .await
    }

    async fn promote(
        &self,
        targets: &[RestoredTarget],
        stamp: &str,
        _context: &EngineContext,
    ) -> Result<Vec<RestoredTarget>, EngineError> {
        let (targets, stamp) = (targets.to_vec(), stamp.to_owned());
        blocking(move || swap::swap_all(&targets, &stamp, &[], |_| Ok(()))).await
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
        settle::settle_all(targets, marks, stamp, &[]).await
    }

    async fn discard(&self, targets: &[RestoredTarget], _context: &EngineContext) -> Result<(), EngineError> {
        let (targets, sources) = (targets.to_vec(), self.config.paths.clone());
        blocking(move || remove::remove_all(&targets, &sources, &[])).await
    }
}

#[cfg(test)]
mod tests;
