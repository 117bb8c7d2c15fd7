//! Restores one batch after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use futures::StreamExt;
use rustix::fs::{AtFlags, FileType, Mode};

use super::batch::{Batch, HardLink, Item};
use super::delta::{Compared, Comparer};
use super::layout::{Blobs, Writing};
use super::locate::content_error;
use super::metadata::{Applier, apply_folder};
use super::target::{self, FolderCache, Target};
use super::write::{FileState, Writer};
use super::{ExtractError, Tally, Work};
use crate::error::RepositoryError;
use crate::id::BlobId;
use crate::reader::BlobOpener;
use crate::reader::plan::PackRead;
use crate::tree::NodeType;

/// Requests in flight, of at most 4 MiB each but for longer blobs.
const READS_IN_FLIGHT: usize = 6;
/// Files and links that a thread takes at once.
const ITEMS_AT_ONCE: usize = 64;

/// Restores the batches until there are no more.
pub(super) fn run(
    work: &Work,
    target: &Target,
    tally: &Tally,
    batches: Receiver<(Batch, Blobs)>,
    flush: Option<&Sender<()>>,
) -> Result<(), ExtractError> {
    let executor = Executor {
        work,
        target,
        applier: Applier { options: &work.options, tally },
        threads: work.options.threads.unwrap_or_else(cores).clamp(1, 64),
    };
    for (batch, blobs) in batches {
        executor.restore(&batch, &blobs)?;
        // One that is under way takes most of this batch with it.
        flush.map(|flush| flush.try_send(()));
    }
    Ok(())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

struct Executor<'w> {
    work: &'w Work,
    target: &'w Target,
    applier: Applier<'w>,
    threads: usize,
}

enum Job<'b> {
    Blobs(&'b PackRead, Bytes),
    Files(&'b [u32]),
    Others(&'b [Item]),
}

impl Executor<'_> {
    fn restore(&self, batch: &Batch, blobs: &Blobs) -> Result<(), ExtractError> {
        let mut states: Vec<FileState> =
            (0..batch.files.len()).map(|file| FileState::new(blobs.length_of(file))).collect();
        let mut wanted = vec![true; blobs.references.len()];
        let mut finished = vec![false; batch.files.len()];
        if self.work.options.delta.is_some() {
            for (file, compared) in self.compare(batch, blobs)? {
                let references = blobs.first_of_file[file]..blobs.first_of_file[file + 1];
                match compared {
                    Compared::Replace => {}
                    Compared::Kept => {
                        finished[file] = true;
                        wanted[references].fill(false);
                    }
                    Compared::Change(differs) => {
                        states[file].in_place = true;
                        wanted[references].copy_from_slice(&differs);
                    }
                }
            }
            let kept = finished.iter().filter(|kept| **kept).count() as u64;
            self.applier.tally.add(|report| report.files_kept += kept);
        }
        let writing = Writing::new(blobs, &wanted, &finished, &mut states);
        self.write(batch, blobs, &writing, &states)?;
        self.link(&batch.links)?;
        for folder in &batch.finished {
            apply_folder(&self.applier, self.target, &folder.folder, &folder.metadata)?;
        }
        Ok(())
    }

    /// Compares the files that are there already, on all cores.
    fn compare(&self, batch: &Batch, blobs: &Blobs) -> Result<Vec<(usize, Compared)>, ExtractError> {
        let existing: Vec<usize> = (0..batch.files.len()).filter(|&file| batch.files[file].exists).collect();
        let next = AtomicUsize::new(0);
        let compare_some = || {
            let mut comparer = Comparer {
                folders: FolderCache::new(self.target),
                applier: self.applier,
                cancelled: &self.work.token,
                buffer: Vec::new(),
            };
            let mut found = Vec::new();
            loop {
                let start = next.fetch_add(ITEMS_AT_ONCE, Ordering::Relaxed);
                let Some(some) = existing.get(start..existing.len().min(start + ITEMS_AT_ONCE)) else {
                    break;
                };
                if some.is_empty() {
                    break;
                }
                for &file in some {
                    found.push((file, comparer.compare(&batch.files[file], &blobs.lengths_of(file))?));
                }
            }
            Ok(found)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(compare_some)).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let mut compared = Vec::with_capacity(existing.len());
        for result in results {
            compared.extend(result.unwrap_or(Err(ExtractError::Thread("comparing")))?);
        }
        Ok(compared)
    }

    /// Reads, opens and writes what is wanted.
    fn write(
        &self,
        batch: &Batch,
        blobs: &Blobs,
        writing: &Writing,
        states: &[FileState],
    ) -> Result<(), ExtractError> {
        let (jobs, queue) = crossbeam_channel::bounded(self.threads);
        let threads = Threads {
            executor: self,
            batch,
            blobs,
            writing,
            states,
            writer: Writer { target: self.target, applier: self.applier, open_files: AtomicUsize::new(0) },
        };
        let (fed, worked) = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads)
                .map(|_| {
                    let queue = queue.clone();
                    scope.spawn(|| threads.work(queue))
                })
                .collect();
            drop(queue);
            let fed = self.feed(batch, writing, blobs, jobs);
            let worked = workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or(Err(ExtractError::Thread("writing"))))
                .collect::<Vec<_>>();
            (fed, worked)
        });
        // The first error ended the others, which then report that they were cancelled.
        let mut outcome = fed;
        for result in worked {
            if matches!(outcome, Ok(()) | Err(ExtractError::Cancelled)) && result.is_err() {
                outcome = match (outcome, result) {
                    (Err(earlier), Err(ExtractError::Cancelled)) => Err(earlier),
                    (_, result) => result,
                };
            }
        }
        outcome
    }

    /// Hands out the work, and reads ahead of it.
    fn feed<'b>(
        &self,
        batch: &'b Batch,
        writing: &'b Writing,
        blobs: &Blobs,
        jobs: Sender<Job<'b>>,
    ) -> Result<(), ExtractError> {
        let files = writing.unwritten.chunks(ITEMS_AT_ONCE).map(Job::Files);
        let others = batch.others.chunks(ITEMS_AT_ONCE).map(Job::Others);
        for job in files.chain(others) {
            // The writers are gone: they have the error to report.
            jobs.send(job).map_err(|_| ExtractError::Cancelled)?;
        }
        let source = self.work.reader.source();
        let work = async {
            let reads = futures::stream::iter(&writing.reads)
                .map(|read| async move { (read, source.read(read.pack, read.offset, read.length).await) });
            let mut reads = std::pin::pin!(reads.buffered(READS_IN_FLIGHT));
            while let Some((read, bytes)) = reads.next().await {
                let bytes = bytes.map_err(|error| read_error(batch, blobs, writing, read, error))?;
                if bytes.len() != read.length as usize {
                    let error =
                        RepositoryError::Pipeline("the source gave another length than was asked for");
                    return Err(read_error(batch, blobs, writing, read, error));
                }
                jobs.send(Job::Blobs(read, bytes)).map_err(|_| ExtractError::Cancelled)?;
            }
            Ok(())
        };
        let fed = self.work.handle.block_on(self.work.token.run_until_cancelled(work));
        fed.unwrap_or(Err(ExtractError::Cancelled))
    }

    /// Gives files their further names. Their first ones are written.
    fn link(&self, links: &[HardLink]) -> Result<(), ExtractError> {
        let mut origins = FolderCache::new(self.target);
        let mut folders = FolderCache::new(self.target);
        for HardLink { item, first } in links {
            let failed =
                |error: std::io::Error| ExtractError::target("make the hard link", &item.path(), error);
            let origin = origins.get(&first.folder)?;
            let folder = folders.get(&item.folder)?;
            self.applier.tally.add(|report| report.hard_links += 1);
            if item.exists {
                let found = target::stat(folder, &item.node.name).map_err(|errno| failed(errno.into()))?;
                let wanted = target::stat(origin, &first.name).map_err(|errno| failed(errno.into()))?;
                let same = |(found, wanted): (rustix::fs::Stat, rustix::fs::Stat)| {
                    (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
                };
                if found.zip(wanted).is_some_and(same) {
                    continue;
                }
                self.target.make_way(folder, &item.folder, &item.node.name).map_err(failed)?;
            }
            rustix::fs::linkat(origin, &*first.name, folder, &*item.node.name, AtFlags::empty())
                .map_err(|errno| failed(errno.into()))?;
        }
        Ok(())
    }

    /// Restores a symbolic link or a pipe.
    fn other(&self, folders: &mut FolderCache<'_>, item: &Item) -> Result<(), ExtractError> {
        let failed = |error: std::io::Error| ExtractError::target("make", &item.path(), error);
        let metadata = &item.node.metadata;
        let folder = folders.get(&item.folder)?;
        let name = item.node.name.as_slice();
        if item.exists && !other_is_right(folder, item).map_err(|errno| failed(errno.into()))? {
            self.target.make_way(folder, &item.folder, name).map_err(failed)?;
        }
        let made = match (metadata.node_type, &metadata.link_target) {
            (NodeType::Symlink, Some(target)) => rustix::fs::symlinkat(target.as_slice(), folder, name),
            (NodeType::Fifo, _) => rustix::fs::mkfifoat(folder, name, Mode::RUSR | Mode::WUSR),
            _ => {
                let path = item.path();
                self.applier
                    .tally
                    .warn(format!("{:?}: the link has no target", String::from_utf8_lossy(&path)));
                return Ok(());
            }
        };
        match made {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) if item.exists => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        self.applier.tally.add(|report| match metadata.node_type {
            NodeType::Symlink => report.symlinks += 1,
            _ => report.fifos += 1,
        });
        self.applier.apply_named(folder, name, metadata, &|| item.path())
    }
}

/// Whether what is there is the link or pipe that is wanted.
fn other_is_right(folder: std::os::fd::BorrowedFd<'_>, item: &Item) -> rustix::io::Result<bool> {
    let metadata = &item.node.metadata;
    let Some(stat) = target::stat(folder, &item.node.name)? else { return Ok(false) };
    match (metadata.node_type, target::file_type(&stat)) {
        (NodeType::Symlink, FileType::Symlink) => {
            let found = rustix::fs::readlinkat(folder, &*item.node.name, Vec::new())?;
            Ok(metadata.link_target.as_deref() == Some(found.as_bytes()))
        }
        (NodeType::Fifo, FileType::Fifo) => Ok(true),
        _ => Ok(false),
    }
}

/// What the threads that write a batch share.
struct Threads<'b> {
    executor: &'b Executor<'b>,
    batch: &'b Batch,
    blobs: &'b Blobs,
    writing: &'b Writing,
    states: &'b [FileState],
    writer: Writer<'b>,
}

impl Threads<'_> {
    fn work(&self, queue: Receiver<Job<'_>>) -> Result<(), ExtractError> {
        let work = self.executor.work;
        let mut folders = FolderCache::new(self.executor.target);
        let mut opener = BlobOpener::new(Arc::clone(work.reader.sealer()))
            .map_err(|error| content_error(self.batch, &|_| true, error))?;
        for job in queue {
            let done = match job {
                _ if work.token.is_cancelled() => Err(ExtractError::Cancelled),
                Job::Blobs(read, bytes) => self.blobs(&mut folders, &mut opener, read, &bytes),
                Job::Files(files) => files.iter().try_for_each(|&file| {
                    let (item, state) = (&self.batch.files[file as usize], &self.states[file as usize]);
                    self.writer.finish_unwritten(&mut folders, item, state)
                }),
                Job::Others(items) => {
                    items.iter().try_for_each(|item| self.executor.other(&mut folders, item))
                }
            };
            if done.is_err() {
                work.token.cancel();
                return done;
            }
        }
        Ok(())
    }

    /// Opens the blobs of one request and writes them wherever they belong.
    fn blobs(
        &self,
        folders: &mut FolderCache<'_>,
        opener: &mut BlobOpener,
        read: &PackRead,
        bytes: &Bytes,
    ) -> Result<(), ExtractError> {
        for member in read.members.clone() {
            if self.executor.work.token.is_cancelled() {
                return Err(ExtractError::Cancelled);
            }
            let place = &self.writing.sorted[member];
            let id = &self.blobs.ids[self.writing.order[member] as usize];
            let content = opener
                .open(id, place, read.part(bytes, place))
                .map_err(|error| content_error(self.batch, &|other| other == id, error))?;
            for reference in self.writing.references_of(member) {
                let (item, state) =
                    (&self.batch.files[reference.file as usize], &self.states[reference.file as usize]);
                self.writer.write(folders, item, state, reference.offset, content)?;
            }
        }
        Ok(())
    }
}

/// A request failed: every file that needs something of it is concerned.
fn read_error(
    batch: &Batch,
    blobs: &Blobs,
    writing: &Writing,
    read: &PackRead,
    error: RepositoryError,
) -> ExtractError {
    let lost: Vec<BlobId> =
        read.members.clone().map(|member| blobs.ids[writing.order[member] as usize]).collect();
    content_error(batch, &|id| lost.contains(id), error)
}
