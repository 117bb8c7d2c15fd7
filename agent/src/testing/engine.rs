//! An engine whose source is a list of named texts, held in memory.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_engines::{
    Capture, Content, Engine, EngineContext, EngineError, Entry, FileType, Metadata, ProbeReport,
    RestoreOrder, SnapshotContents, StoredSummary,
};
use holdfast_model::ErrorCode;
use holdfast_model::health::HealthReport;
use holdfast_model::manifest::Manifest;
use holdfast_model::restore::{
    CheckOutcome, Placement, RestoreCheck, RestorePreview, RestoreReport, RestoredTarget,
};
use holdfast_model::source::{EngineKind, Source};
use parking_lot::Mutex;

use crate::engines::EngineFactory;

/// The world of the fake engine.
#[derive(Default)]
pub(crate) struct World {
    /// The live source: name → content.
    pub(crate) live: Mutex<BTreeMap<String, Vec<u8>>>,
    /// What restores made and promotions kept: name → content.
    pub(crate) beside: Mutex<BTreeMap<String, BTreeMap<String, Vec<u8>>>>,
    /// The capture ends with this error instead of a manifest.
    pub(crate) capture_fails: Mutex<Option<(ErrorCode, String)>>,
    /// The capture panics at its end.
    pub(crate) capture_panics: Mutex<bool>,
    /// A stream never ends until the run is cancelled.
    pub(crate) hangs: Mutex<bool>,
    /// What happened, in order.
    pub(crate) events: Mutex<Vec<String>>,
}

impl World {
    pub(crate) fn with(entries: &[(&str, Vec<u8>)]) -> Arc<Self> {
        let world = Self::default();
        *world.live.lock() = entries.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect();
        Arc::new(world)
    }

    pub(crate) fn factory(self: &Arc<Self>) -> EngineFactory {
        let world = self.clone();
        Arc::new(move |_: &Source| Arc::new(FakeEngine(world.clone())))
    }

    pub(crate) fn event(&self, text: impl Into<String>) {
        self.events.lock().push(text.into());
    }
}

struct FakeEngine(Arc<World>);

struct FakeCapture {
    world: Arc<World>,
    entries: std::vec::IntoIter<(String, Vec<u8>)>,
    context: EngineContext,
}

/// Gives nothing until the run is cancelled.
struct Hanging(EngineContext, tokio::runtime::Handle);

impl Read for Hanging {
    fn read(&mut self, _buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1.block_on(self.0.cancel.cancelled());
        Err(std::io::Error::other(EngineError::new(ErrorCode::ToolFailed, "the tool was killed")))
    }
}

const RESTORED: &str = "shop_restored";

#[async_trait]
impl Engine for FakeEngine {
    async fn probe(&self, _context: &EngineContext) -> Result<ProbeReport, EngineError> {
        Ok(ProbeReport {
            version: "1".to_owned(),
            logical_bytes: 7,
            parts: vec!["all".to_owned()],
            tools: BTreeMap::new(),
            steps: Vec::new(),
            warnings: Vec::new(),
        })
    }

    async fn health(&self, _context: &EngineContext) -> Result<HealthReport, EngineError> {
        Ok(HealthReport::default())
    }

    async fn open_capture(&self, context: &EngineContext) -> Result<Box<dyn Capture>, EngineError> {
        self.0.event("captured");
        let entries: Vec<_> = self.0.live.lock().clone().into_iter().collect();
        Ok(Box::new(FakeCapture {
            world: self.0.clone(),
            entries: entries.into_iter(),
            context: context.clone(),
        }))
    }

    async fn preview_restore(
        &self,
        _order: &RestoreOrder,
        _manifest: &Manifest,
        _context: &EngineContext,
    ) -> Result<RestorePreview, EngineError> {
        let exists = self.0.beside.lock().contains_key(RESTORED);
        let outcome = if exists { CheckOutcome::Failed } else { CheckOutcome::Ok };
        let check = RestoreCheck { name: "target".to_owned(), outcome, detail: String::new() };
        Ok(RestorePreview { checks: vec![check], targets: vec![target()], ..RestorePreview::default() })
    }

    async fn restore(
        &self,
        order: &RestoreOrder,
        contents: Arc<dyn SnapshotContents>,
        _context: &EngineContext,
    ) -> Result<RestoreReport, EngineError> {
        assert!(!matches!(order.placement, Placement::Into(_)));
        let world = self.0.clone();
        let read = move || -> Result<u64, EngineError> {
            let names: Vec<String> = contents.manifest().tools.keys().cloned().collect();
            let mut restored = BTreeMap::new();
            for name in names {
                let mut text = Vec::new();
                contents.open(&name)?.read_to_end(&mut text).map_err(|error| {
                    EngineError::new(ErrorCode::RestoreFailed, "it could not be read").caused_by(error)
                })?;
                assert_eq!(contents.size(&name)?, text.len() as u64);
                restored.insert(name, text);
            }
            let bytes = restored.values().map(|text| text.len() as u64).sum();
            world.beside.lock().insert(RESTORED.to_owned(), restored);
            world.event("restored");
            Ok(bytes)
        };
        let bytes_written = tokio::task::spawn_blocking(read).await.unwrap()?;
        Ok(RestoreReport { targets: vec![target()], bytes_written, items: 1, ..RestoreReport::default() })
    }

    async fn promote(
        &self,
        targets: &[RestoredTarget],
        stamp: &str,
        _context: &EngineContext,
    ) -> Result<Vec<RestoredTarget>, EngineError> {
        self.0.event("promoted");
        let mut beside = self.0.beside.lock();
        let restored = beside
            .remove(&targets[0].restored)
            .ok_or_else(|| EngineError::new(ErrorCode::NotFound, "there is nothing to promote"))?;
        let kept = format!("shop_before_{stamp}");
        beside.insert(kept.clone(), std::mem::replace(&mut *self.0.live.lock(), restored));
        Ok(vec![RestoredTarget { kept: Some(kept), ..targets[0].clone() }])
    }

    async fn marks(
        &self,
        targets: &[RestoredTarget],
        _context: &EngineContext,
    ) -> Result<Vec<String>, EngineError> {
        Ok(targets.iter().map(|target| target.restored.clone()).collect())
    }

    async fn settle(
        &self,
        targets: &[RestoredTarget],
        _marks: &[String],
        stamp: &str,
        _context: &EngineContext,
    ) -> Result<Option<Vec<RestoredTarget>>, EngineError> {
        self.0.event("settled");
        let kept = format!("shop_before_{stamp}");
        let is_swapped = self.0.beside.lock().contains_key(&kept);
        Ok(is_swapped.then(|| vec![RestoredTarget { kept: Some(kept), ..targets[0].clone() }]))
    }

    async fn discard(&self, targets: &[RestoredTarget], _context: &EngineContext) -> Result<(), EngineError> {
        for target in targets {
            let name = target.kept.as_ref().unwrap_or(&target.restored);
            self.0.event(format!("discarded {name}"));
            self.0.beside.lock().remove(name);
        }
        Ok(())
    }
}

fn target() -> RestoredTarget {
    RestoredTarget { part: "shop".into(), restored: RESTORED.into(), live: "shop".into(), kept: None }
}

#[async_trait]
impl Capture for FakeCapture {
    fn next_entry(&mut self) -> Result<Option<Entry>, EngineError> {
        let Some((name, text)) = self.entries.next() else { return Ok(None) };
        let content: Box<dyn Read + Send> = if *self.world.hangs.lock() {
            Box::new(Hanging(self.context.clone(), tokio::runtime::Handle::current()))
        } else {
            Box::new(std::io::Cursor::new(text))
        };
        Ok(Some(Entry { path: name.into_bytes(), metadata: metadata(), content: Content::Stream(content) }))
    }

    async fn finish(self: Box<Self>, stored: StoredSummary) -> Result<Manifest, EngineError> {
        self.world.event("finished");
        assert!(!*self.world.capture_panics.lock(), "a defect that the test wants");
        if let Some((code, message)) = self.world.capture_fails.lock().take() {
            return Err(EngineError::new(code, message));
        }
        let live = self.world.live.lock();
        assert_eq!(stored.files as usize, live.len());
        for (name, text) in live.iter() {
            assert_eq!(stored.streams[name.as_bytes()], text.len() as u64);
        }
        let manifest = serde_json::json!({
            "version": 1,
            "engine": EngineKind::Files,
            "engine_version": "1",
            "captured_at": self.context.clock.now(),
            "logical_bytes": stored.bytes,
            // The names, where a restore finds them.
            "tools": live.keys().map(|name| (name.clone(), String::new())).collect::<BTreeMap<_, _>>(),
        });
        Ok(serde_json::from_value(manifest).unwrap())
    }
}

fn metadata() -> Metadata {
    Metadata {
        file_type: FileType::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
        user: None,
        group: None,
        size: 0,
        mtime: Default::default(),
        ctime: Default::default(),
        atime: Default::default(),
        inode: 0,
        device_id: 0,
        links: 1,
        link_target: None,
        device: 0,
        xattrs: Vec::new(),
    }
}
