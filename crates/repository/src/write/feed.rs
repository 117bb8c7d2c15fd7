//! The caller's side of a writer.

use std::io::Read;
use std::sync::Arc;

use crossbeam_channel::{Receiver, select};

use super::OWN_FOLDER;
use super::failed::{Failed, out_of_order};
use super::fill::{Cutting, Fill, Pipeline, ReadContent, ReadFailed};
use super::folders::{FinishedTree, Folders, Outcome, ROOT, Ticket};
use super::options::{
    FileIdentity, Parent, ReadObserver, UNREADABLE_NAMED_MAX, UnreadableFile, WriteContent, WriteCounters,
    WriteEntry, WriteOptions, WriterContext, Written,
};
use super::past::{PastTrees, as_before};
use super::shared::{Batch, BatchContent, Buffer, Chunk, Shared, Stopped};
use super::threads::Threads;
use super::worker::{FileJob, FileToRead, Job, JobContents};
use crate::chunker::fixed_chunk_bytes;
use crate::error::RepositoryError;
use crate::id::{BlobId, BlobType};
use crate::tree::{FileTime, Fingerprint, NodeMetadata, NodeType, TreeEncoder, name_is_safe};
use crate::tree_cache::{TreeCache, TreeCacheWriter};

/// Small files are read together until they have this many bytes.
const JOB_BYTES: u64 = 2 << 20;
/// Or until there are this many.
const JOB_FILES: usize = 256;
/// Trees are asked for together until they have this many bytes.
const TREE_BATCH_BYTES: usize = 1 << 20;
/// Or until there are this many.
const TREE_BATCH_TREES: usize = 512;

/// Writes the content of one snapshot. Everything it does blocks: use it on a thread of its own.
///
/// Feed it entries with [`SnapshotWriter::add`], a folder before what is in it and siblings in the order of their raw
/// bytes; then [`SnapshotWriter::settle`], and [`SnapshotWriter::finish`]. Dropping it before that stops its threads
/// and waits for them; packs that were stored stay as garbage that a later attempt finds and uses.
///
/// After an error every further call fails.
pub struct SnapshotWriter {
    // The first to be dropped: threads end before what they work with goes.
    threads: Threads,
    shared: Arc<Shared>,
    folders: Folders,
    /// The open folders from the root to the innermost.
    open: Vec<usize>,
    has_parent: bool,
    read_observer: Option<Arc<dyn ReadObserver>>,
    own_folder: Option<Ticket>,
    job: Job,
    job_bytes: u64,
    /// Jobs that were sent and whose contents have not come.
    open_jobs: usize,
    tree_texts: Vec<Vec<u8>>,
    tree_chunks: Vec<Chunk>,
    tree_bytes: usize,
    written: Written,
    contents: Receiver<JobContents>,
}

/// A file of the folder `.holdfast`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFile {
    /// Its name.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl SnapshotWriter {
    /// Starts the threads. With a parent, files that it has unchanged are not read.
    ///
    /// # Errors
    /// When a thread or a zstd context cannot be made.
    pub fn new(
        context: WriterContext,
        options: WriteOptions,
        parent: Option<Parent>,
    ) -> Result<Self, RepositoryError> {
        let options = WriteOptions { threads: options.threads.max(1), ..options };
        let shared = Arc::new(Shared::new(&context, options));
        let cache = context.tree_cache.as_deref().and_then(TreeCache::open).filter(|_| parent.is_some());
        let past = parent.map(|parent| (PastTrees::new(&parent, cache), parent.root));
        let next_cache = context.tree_cache.as_deref().and_then(|path| match TreeCacheWriter::create(path) {
            Ok(writer) => Some(writer),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the cache of trees cannot be written");
                None
            }
        });
        let read_observer = context.read_observer.clone().filter(|_| past.is_some());
        let (threads, contents) = Threads::start(&shared, context)?;
        Ok(Self {
            threads,
            shared,
            has_parent: past.is_some(),
            read_observer,
            folders: Folders::new(past, next_cache),
            open: vec![ROOT],
            own_folder: None,
            job: Vec::new(),
            job_bytes: 0,
            open_jobs: 0,
            tree_texts: Vec::new(),
            tree_chunks: Vec::new(),
            tree_bytes: 0,
            written: Written::default(),
            contents,
        })
    }

    /// Adds the next entry. Returns when it is on its way; a stream has been read to its end then.
    ///
    /// # Errors
    /// The first error of any thread; `HF-2007` when the stream breaks; `HF-4017` for an entry out of order.
    pub fn add(&mut self, entry: WriteEntry) -> Result<(), RepositoryError> {
        let added = self.try_add(entry);
        self.explain(added)
    }

    /// Waits until every file has been read, and says what was. Entries may not be added afterwards; what is known
    /// only now goes into [`Self::finish`].
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn settle(&mut self) -> Result<Written, RepositoryError> {
        let settled = self.try_settle();
        self.explain(settled)?;
        self.written.totals = self.shared.counters.totals();
        Ok(self.written.clone())
    }

    /// Adds the folder `.holdfast` with these files, if there are any, stores all trees and the last packs, and waits
    /// until everything is durable. Returns the id of the root tree and what was written.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn finish(
        mut self,
        own_files: Vec<OwnFile>,
        time: FileTime,
    ) -> Result<(BlobId, Written), RepositoryError> {
        let finished = self.try_settle().and_then(|()| self.try_finish(own_files, time));
        self.explain(finished)?;
        self.threads.join(false)?;
        self.folders.finish_cache();
        let root = self.folders.root().ok_or(RepositoryError::Pipeline("building the root tree"))?;
        self.written.totals = self.shared.counters.totals();
        Ok((root, std::mem::take(&mut self.written)))
    }

    fn explain<T>(&mut self, result: Result<T, Failed>) -> Result<T, RepositoryError> {
        result.map_err(|failed| match failed {
            Failed::Here(error) => {
                self.shared.fail(RepositoryError::Cancelled);
                error
            }
            Failed::Elsewhere => self.shared.take_failure(),
        })
    }

    fn try_add(&mut self, entry: WriteEntry) -> Result<(), Failed> {
        self.shared.check()?;
        while let Ok(contents) = self.contents.try_recv() {
            self.take_contents(contents)?;
        }
        let WriteEntry { path, metadata, content } = entry;
        let (folder, name) = self.locate(&path)?;
        let fingerprint = match content {
            WriteContent::None | WriteContent::File(_) => self.folders.fingerprint(name, &metadata),
            _ => Fingerprint::NONE,
        };
        if self.has_parent && self.take_as_before(folder, &path, &metadata, &fingerprint) {
            return self.send_trees(false);
        }
        let parent = if self.has_parent { self.folders.parent_node(folder, name)? } else { None };
        let counters = &self.shared.counters;
        match content {
            WriteContent::None if metadata.node_type == NodeType::Directory => {
                WriteCounters::add(&counters.folders, 1);
                let place = self.folders.wait(folder, name, metadata, fingerprint);
                let opened = self.folders.open(place, &path, parent.as_ref());
                self.open.push(opened);
                Ok(())
            }
            WriteContent::None => {
                WriteCounters::add(&counters.others, 1);
                self.folders.add(folder, name, metadata, None, fingerprint);
                Ok(())
            }
            WriteContent::Known(stored) => {
                let content = ReadContent { blobs: stored.blobs, size: stored.size };
                self.add_known(folder, name, metadata, content, fingerprint);
                Ok(())
            }
            WriteContent::File(file) => match as_before(parent, &metadata) {
                Ok(node) => {
                    WriteCounters::add(&counters.files_unchanged, 1);
                    let content = ReadContent { blobs: node.content, size: node.metadata.size };
                    self.add_known(folder, name, metadata, content, fingerprint);
                    Ok(())
                }
                Err(why) => {
                    if let Some(observer) = &self.read_observer {
                        observer.reads(&path, why);
                    }
                    let identity = FileIdentity { device_id: metadata.device_id, inode: metadata.inode };
                    let identity = Some(identity).filter(|identity| identity.inode != 0);
                    let file = FileToRead { path: file, identity, cutting: Cutting::ByContent };
                    self.read_later(folder, name, metadata, fingerprint, file)
                }
            },
            WriteContent::Pages { path: file, page_bytes } => {
                let cutting = Cutting::Fixed(fixed_chunk_bytes(metadata.size, page_bytes));
                let file = FileToRead { path: file, identity: None, cutting };
                self.read_later(folder, name, metadata, fingerprint, file)
            }
            WriteContent::Stream(stream) => {
                self.add_stream(folder, &path, metadata, stream, Cutting::ByContent)
            }
            WriteContent::PageStream { reader, page_bytes } => {
                let cutting = Cutting::Fixed(fixed_chunk_bytes(metadata.size, page_bytes));
                self.add_stream(folder, &path, metadata, reader, cutting)
            }
        }
        .and_then(|()| self.send_trees(false))
    }

    fn add_stream(
        &mut self,
        folder: usize,
        path: &[u8],
        mut metadata: NodeMetadata,
        mut stream: Box<dyn Read + Send>,
        cutting: Cutting,
    ) -> Result<(), Failed> {
        self.send_job()?;
        let content = self.read_stream(path, stream.as_mut(), cutting)?;
        metadata.size = content.size;
        self.written.streams.insert(path.to_vec(), content.size);
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        self.add_known(folder, name, metadata, content, Fingerprint::NONE);
        Ok(())
    }

    fn add_known(
        &mut self,
        folder: usize,
        name: &[u8],
        metadata: NodeMetadata,
        content: ReadContent,
        fingerprint: Fingerprint,
    ) {
        WriteCounters::add(&self.shared.counters.files, 1);
        WriteCounters::add(&self.shared.counters.bytes, content.size);
        self.folders.add(folder, name, metadata, Some(content), fingerprint);
    }

    /// Takes an entry without looking at the parent's tree, if its folder is as before up to here.
    fn take_as_before(
        &mut self,
        folder: usize,
        path: &[u8],
        metadata: &NodeMetadata,
        fingerprint: &Fingerprint,
    ) -> bool {
        if metadata.node_type == NodeType::Directory {
            let Some(opened) = self.folders.open_as_before(folder, path, fingerprint) else { return false };
            WriteCounters::add(&self.shared.counters.folders, 1);
            self.open.push(opened);
            return true;
        }
        let taken = self.folders.take_as_before(folder, fingerprint);
        if taken {
            let counters = &self.shared.counters;
            if metadata.node_type == NodeType::File {
                WriteCounters::add(&counters.files, 1);
                WriteCounters::add(&counters.files_unchanged, 1);
                WriteCounters::add(&counters.bytes, metadata.size);
            } else {
                WriteCounters::add(&counters.others, 1);
            }
        }
        taken
    }

    /// Closes what the path leaves behind, and returns the folder of the entry with its name.
    fn locate<'p>(&mut self, path: &'p [u8]) -> Result<(usize, &'p [u8]), Failed> {
        let slash = path.iter().rposition(|&byte| byte == b'/');
        let (above, name) = path.split_at(slash.map_or(0, |slash| slash + 1));
        let folder = loop {
            let innermost = self.open.last().copied().unwrap_or(ROOT);
            if self.folders.path(innermost) == above {
                break innermost;
            }
            if innermost == ROOT {
                return Err(out_of_order(
                    path,
                    b"",
                    "its folder was not given before it, or was left already",
                ));
            }
            self.folders.close(innermost)?;
            self.open.pop();
        };
        if !name_is_safe(name) {
            return Err(out_of_order(path, above, "its name is empty, too long, a dot, or has a NUL"));
        }
        if folder == ROOT {
            if name == OWN_FOLDER {
                return Err(out_of_order(path, above, "this name is reserved"));
            }
            self.reserve_own_folder(name);
        }
        if !self.folders.name_follows(folder, name) {
            return Err(out_of_order(
                path,
                above,
                "its name does not come after that of the entry before it",
            ));
        }
        Ok((folder, name))
    }

    /// Keeps the place of `.holdfast` among the entries of the root, as what is in it is known last.
    fn reserve_own_folder(&mut self, next_name: &[u8]) {
        if self.own_folder.is_none() && next_name > OWN_FOLDER {
            let metadata = NodeMetadata::plain(NodeType::Directory, 0o755, FileTime::default());
            self.folders.name_follows(ROOT, OWN_FOLDER);
            self.own_folder = Some(self.folders.wait(ROOT, OWN_FOLDER, metadata, Fingerprint::NONE));
        }
    }

    fn read_later(
        &mut self,
        folder: usize,
        name: &[u8],
        metadata: NodeMetadata,
        fingerprint: Fingerprint,
        file: FileToRead,
    ) -> Result<(), Failed> {
        let size = metadata.size;
        let ticket = self.folders.wait(folder, name, metadata, fingerprint);
        if size >= JOB_BYTES {
            self.send_job()?;
        }
        self.job.push(FileJob { ticket, file });
        self.job_bytes += size;
        if self.job_bytes >= JOB_BYTES || self.job.len() >= JOB_FILES {
            self.send_job()?;
        }
        Ok(())
    }

    fn send_job(&mut self) -> Result<(), Failed> {
        if self.job.is_empty() {
            return Ok(());
        }
        while self.open_jobs >= self.shared.jobs_max() {
            self.wait_for_contents()?;
        }
        let job = std::mem::take(&mut self.job);
        self.job_bytes = 0;
        self.open_jobs += 1;
        Ok(self.threads.send_job(job)?)
    }

    fn wait_for_contents(&mut self) -> Result<(), Failed> {
        let contents = select! {
            recv(self.contents) -> contents => contents.map_err(|_| Failed::Elsewhere)?,
            recv(self.shared.stop) -> _ => return Err(Failed::Elsewhere),
        };
        self.take_contents(contents)
    }

    fn take_contents(&mut self, contents: JobContents) -> Result<(), Failed> {
        self.open_jobs -= 1;
        for (ticket, content) in contents {
            match content {
                Ok(content) => {
                    WriteCounters::add(&self.shared.counters.files, 1);
                    WriteCounters::add(&self.shared.counters.bytes, content.size);
                    self.folders.resolve(ticket, Outcome::File(content));
                }
                Err(reason) => {
                    WriteCounters::add(&self.shared.counters.unreadable, 1);
                    if self.written.unreadable.len() < UNREADABLE_NAMED_MAX {
                        let path = self.folders.path_of(ticket);
                        self.written.unreadable.push(UnreadableFile { path, reason });
                    }
                    self.folders.resolve(ticket, Outcome::Omitted);
                }
            }
        }
        self.send_trees(false)
    }

    fn read_stream(
        &mut self,
        path: &[u8],
        mut stream: &mut (dyn Read + Send),
        cutting: Cutting,
    ) -> Result<ReadContent, Failed> {
        let mut content = ReadContent::default();
        let mut fill = Fill::new(self)?;
        match fill.read(&mut stream, None, cutting, &mut content, self) {
            Ok(()) => {
                fill.finish(self)?;
                Ok(content)
            }
            Err(ReadFailed::Stopped) => Err(Failed::Elsewhere),
            Err(ReadFailed::Source(source)) => Err(Failed::Here(RepositoryError::StreamBroken {
                path: String::from_utf8_lossy(path).into_owned(),
                read_bytes: content.size,
                source,
            })),
        }
    }

    /// Takes finished trees over into the batch of trees, and sends that when it is large enough or `all` shall go.
    fn send_trees(&mut self, all: bool) -> Result<(), Failed> {
        for FinishedTree { id, text, unchanged } in self.folders.take_finished() {
            if unchanged {
                // A committed snapshot has this tree and everything below it.
                WriteCounters::add(&self.shared.counters.folders_unchanged, 1);
                continue;
            }
            self.tree_bytes += text.len();
            self.tree_chunks.push(Chunk { id, start: 0, length: text.len(), known: false });
            self.tree_texts.push(text);
            if self.tree_bytes >= TREE_BATCH_BYTES || self.tree_chunks.len() >= TREE_BATCH_TREES {
                self.send_tree_batch()?;
            }
        }
        if all && !self.tree_chunks.is_empty() {
            self.send_tree_batch()?;
        }
        Ok(())
    }

    fn send_tree_batch(&mut self) -> Result<(), Failed> {
        select! {
            recv(self.shared.tree_permits) -> _ => {}
            recv(self.shared.stop) -> _ => return Err(Failed::Elsewhere),
        }
        self.tree_bytes = 0;
        let content = BatchContent::Texts(std::mem::take(&mut self.tree_texts));
        let chunks = std::mem::take(&mut self.tree_chunks);
        Ok(self.send_batch(Batch { blob_type: BlobType::Tree, content, chunks, question: 0 })?)
    }

    fn try_settle(&mut self) -> Result<(), Failed> {
        self.send_job()?;
        while self.open.len() > 1 {
            if let Some(innermost) = self.open.pop() {
                self.folders.close(innermost)?;
            }
        }
        while self.open_jobs > 0 {
            self.wait_for_contents()?;
        }
        self.send_trees(false)
    }

    fn try_finish(&mut self, mut own_files: Vec<OwnFile>, time: FileTime) -> Result<(), Failed> {
        // Any name after `.holdfast` makes the reservation.
        self.reserve_own_folder(b"\xff");
        let outcome = if own_files.is_empty() {
            Outcome::Omitted
        } else {
            own_files.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
            Outcome::Folder(self.write_own_folder(&own_files, time)?)
        };
        if let Some(place) = self.own_folder {
            self.folders.date(place, time);
            self.folders.resolve(place, outcome);
        }
        self.folders.close(ROOT)?;
        self.send_trees(true)
    }

    fn write_own_folder(&mut self, files: &[OwnFile], time: FileTime) -> Result<BlobId, Failed> {
        let mut encoder = TreeEncoder::new();
        for file in files {
            let content =
                self.read_stream(file.name.as_bytes(), &mut file.bytes.as_slice(), Cutting::ByContent)?;
            let mut metadata = NodeMetadata::plain(NodeType::File, 0o644, time);
            metadata.links = 1;
            encoder.push_file(file.name.as_bytes(), &metadata, content.size, &content.blobs);
        }
        let text = encoder.finish();
        let id = BlobId::of(&text);
        self.tree_bytes += text.len();
        self.tree_chunks.push(Chunk { id, start: 0, length: text.len(), known: false });
        self.tree_texts.push(text);
        Ok(id)
    }
}

impl Pipeline for SnapshotWriter {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn take_buffer(&mut self) -> Result<Buffer, Stopped> {
        select! {
            recv(self.shared.buffers) -> buffer => buffer.map_err(|_| Stopped),
            recv(self.shared.stop) -> _ => Err(Stopped),
        }
    }

    fn send_batch(&mut self, batch: Batch) -> Result<(), Stopped> {
        self.threads.send_batch(batch)
    }
}
