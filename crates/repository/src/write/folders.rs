//! Open folders: entries wait here for their content, in order, and become the text of a tree.

use std::collections::VecDeque;

use super::fill::ReadContent;
use super::past::{Past, PastEntries, PastTrees};
use crate::error::RepositoryError;
use crate::id::BlobId;
use crate::tree::{FileTime, Fingerprint, Fingerprinter, Node, NodeMetadata, TreeEncoder};
use crate::tree_cache::TreeCacheWriter;

/// The place of an entry that waits for its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    folder: usize,
    position: u64,
}

/// What became of an entry that waited.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A file with its content.
    File(ReadContent),
    /// A folder with its tree.
    Folder(BlobId),
    /// It has no content.
    Other,
    /// It is left out.
    Omitted,
}

/// A tree whose text is complete.
#[derive(Debug)]
pub(super) struct FinishedTree {
    pub(super) id: BlobId,
    pub(super) text: Vec<u8>,
    /// Whether the parent snapshot has exactly this tree here.
    pub(super) unchanged: bool,
}

#[derive(Debug)]
struct Waiting {
    name: Vec<u8>,
    metadata: NodeMetadata,
    fingerprint: Fingerprint,
    /// `None` while its content is on the way.
    outcome: Option<Outcome>,
}

/// Where a folder stands in the one above.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// It is the root.
    Root,
    /// Its entry waits there for its tree.
    Waits(Ticket),
    /// Like this folder, the one above is as it was in the parent so far: no entry waits.
    AsBefore(usize),
}

#[derive(Debug)]
struct Folder {
    encoder: TreeEncoder,
    /// Of the entries in the encoder.
    fingerprints: Vec<Fingerprint>,
    /// The trees of the folders in the encoder.
    folders: Vec<BlobId>,
    waiting: VecDeque<Waiting>,
    /// The position of the first that waits.
    first_position: u64,
    last_name: Vec<u8>,
    closed: bool,
    place: Place,
    /// Its path with a `/` at the end; empty for the root.
    path: Vec<u8>,
    past: Past,
}

/// Every folder that is not finished. The root is folder 0.
pub(super) struct Folders {
    past_trees: Option<PastTrees>,
    /// The cache for the next backup.
    cache: Option<TreeCacheWriter>,
    fingerprinter: Fingerprinter,
    slots: Vec<Option<Folder>>,
    free: Vec<usize>,
    finished: Vec<FinishedTree>,
    root: Option<BlobId>,
}

pub(super) const ROOT: usize = 0;

impl Folders {
    /// Folders that are compared with these, from this root on, and kept in this cache.
    pub(super) fn new(past: Option<(PastTrees, BlobId)>, cache: Option<TreeCacheWriter>) -> Self {
        let (past_trees, root) = past.unzip();
        let mut folders = Self {
            past_trees,
            cache,
            fingerprinter: Fingerprinter::default(),
            slots: Vec::new(),
            free: Vec::new(),
            finished: Vec::new(),
            root: None,
        };
        // The root always differs: by the manifest in it.
        let past = folders.past_trees.as_ref().zip(root).map(|(trees, root)| trees.entries(root));
        folders.insert(Place::Root, Vec::new(), past.unwrap_or_default());
        folders
    }

    /// Opens a folder whose entry waits at `place`. Returns its number.
    pub(super) fn open(&mut self, place: Ticket, path: &[u8], parent: Option<&Node>) -> usize {
        let tree = parent.and_then(|node| node.subtree);
        let past = self.past_trees.as_ref().zip(tree).map(|(trees, tree)| trees.of(tree));
        self.insert(Place::Waits(place), [path, b"/"].concat(), past.unwrap_or_default())
    }

    fn insert(&mut self, place: Place, path: Vec<u8>, past: Past) -> usize {
        let folder = Folder {
            encoder: TreeEncoder::new(),
            fingerprints: Vec::new(),
            folders: Vec::new(),
            waiting: VecDeque::new(),
            first_position: 0,
            last_name: Vec::new(),
            closed: false,
            place,
            path,
            past,
        };
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(folder);
                slot
            }
            None => {
                self.slots.push(Some(folder));
                self.slots.len() - 1
            }
        }
    }

    fn folder(&mut self, number: usize) -> &mut Folder {
        self.slots[number].as_mut().expect("an open folder keeps its place until it is finished")
    }

    /// The path of a folder with a `/` at its end.
    pub(super) fn path(&self, number: usize) -> &[u8] {
        self.slots[number].as_ref().map_or(&[], |folder| &folder.path)
    }

    /// Takes note of the next name in a folder; `false` when it does not come after the last.
    pub(super) fn name_follows(&mut self, number: usize, name: &[u8]) -> bool {
        let folder = self.folder(number);
        let follows = name > folder.last_name.as_slice();
        if follows {
            folder.last_name.clear();
            folder.last_name.extend_from_slice(name);
        }
        follows
    }

    /// The fingerprint of an entry, if anybody will ask for it.
    pub(super) fn fingerprint(&mut self, name: &[u8], metadata: &NodeMetadata) -> Fingerprint {
        if self.cache.is_none() {
            return Fingerprint::NONE;
        }
        self.fingerprinter.of(name, metadata)
    }

    /// Takes an entry that needs no reading if its folder is as it was in the parent up to and with this entry.
    pub(super) fn take_as_before(&mut self, number: usize, now: &Fingerprint) -> bool {
        match &mut self.folder(number).past {
            Past::Same(same) if same.goes_on_with(now) => {
                same.entries += 1;
                true
            }
            _ => false,
        }
    }

    /// The same for a folder, which is opened: its number. `None` when it has to be compared by its entries.
    pub(super) fn open_as_before(&mut self, number: usize, path: &[u8], now: &Fingerprint) -> Option<usize> {
        let Past::Same(same) = &self.folder(number).past else { return None };
        let tree = same.cached.folder(same.folders).filter(|_| same.goes_on_with(now))?;
        let past = self.past_trees.as_ref()?.same(tree)?;
        let opened = self.insert(Place::AsBefore(number), [path, b"/"].concat(), past);
        if let Past::Same(same) = &mut self.folder(number).past {
            same.entries += 1;
            same.folders += 1;
            same.open_folder = Some(opened);
        }
        Some(opened)
    }

    /// Compares a folder, and those it lies in, entry by entry from here on.
    ///
    /// # Errors
    /// A tree of the cache that was read and checked does not read now.
    fn compare_by_entries(&mut self, number: usize) -> Result<(), RepositoryError> {
        let mut upwards = vec![number];
        let mut innermost = number;
        while let Place::AsBefore(above) = self.folder(innermost).place {
            upwards.push(above);
            innermost = above;
        }
        upwards.into_iter().rev().try_for_each(|number| self.unfold(number))
    }

    /// Writes out what was as in the parent so far. The folder above has done so.
    fn unfold(&mut self, number: usize) -> Result<(), RepositoryError> {
        let folder = self.folder(number);
        let same = match std::mem::take(&mut folder.past) {
            Past::Same(same) => same,
            other => {
                folder.past = other;
                return Ok(());
            }
        };
        let tree = same.cached.tree(&same.id).ok_or(RepositoryError::Pipeline("a tree of the cache"))?;
        let mut nodes = tree.nodes.into_iter();
        let complete = same.entries - usize::from(same.open_folder.is_some());
        for (n, node) in nodes.by_ref().take(complete).enumerate() {
            folder.encoder.push_node(&node);
            folder.fingerprints.push(same.cached.fingerprint(n).unwrap_or(Fingerprint::NONE));
            folder.folders.extend(node.subtree);
        }
        if let Some(open) = same.open_folder
            && let Some(node) = nodes.next()
        {
            let fingerprint = same.cached.fingerprint(complete).unwrap_or(Fingerprint::NONE);
            let place = self.wait(number, &node.name, node.metadata, fingerprint);
            self.folder(open).place = Place::Waits(place);
        }
        self.folder(number).past = Past::Entries(PastEntries::new(same.id, nodes));
        Ok(())
    }

    /// The entry of this name in the parent snapshot. Names must be asked for in order.
    ///
    /// # Errors
    /// A tree of the cache that was read and checked does not read now.
    pub(super) fn parent_node(
        &mut self,
        number: usize,
        name: &[u8],
    ) -> Result<Option<Node>, RepositoryError> {
        if matches!(self.folder(number).past, Past::Same(_)) {
            self.compare_by_entries(number)?;
        }
        Ok(match &mut self.folder(number).past {
            Past::Entries(entries) => entries.find(name),
            Past::Unknown | Past::Same(_) => None,
        })
    }

    /// Adds an entry whose content is still to come.
    pub(super) fn wait(
        &mut self,
        number: usize,
        name: &[u8],
        metadata: NodeMetadata,
        fingerprint: Fingerprint,
    ) -> Ticket {
        let folder = self.folder(number);
        let position = folder.first_position + folder.waiting.len() as u64;
        folder.waiting.push_back(Waiting { name: name.to_vec(), metadata, fingerprint, outcome: None });
        Ticket { folder: number, position }
    }

    /// Adds an entry that is complete.
    pub(super) fn add(
        &mut self,
        number: usize,
        name: &[u8],
        metadata: NodeMetadata,
        content: Option<ReadContent>,
        fingerprint: Fingerprint,
    ) {
        let outcome = content.map_or(Outcome::Other, Outcome::File);
        let folder = self.folder(number);
        if folder.waiting.is_empty() {
            folder.write(name, &metadata, fingerprint, outcome);
        } else {
            let outcome = Some(outcome);
            folder.waiting.push_back(Waiting { name: name.to_vec(), metadata, fingerprint, outcome });
        }
    }

    /// The path of an entry that waits.
    pub(super) fn path_of(&mut self, ticket: Ticket) -> Vec<u8> {
        let folder = self.folder(ticket.folder);
        let index = (ticket.position - folder.first_position) as usize;
        [&folder.path[..], &folder.waiting[index].name].concat()
    }

    /// Gives an entry that waits this time.
    pub(super) fn date(&mut self, ticket: Ticket, time: FileTime) {
        let folder = self.folder(ticket.folder);
        let metadata = &mut folder.waiting[(ticket.position - folder.first_position) as usize].metadata;
        (metadata.mtime, metadata.atime, metadata.ctime) = (time, time, time);
    }

    /// Says what became of an entry that waited.
    pub(super) fn resolve(&mut self, ticket: Ticket, outcome: Outcome) {
        let mut next = Some((ticket, outcome));
        while let Some((ticket, outcome)) = next {
            let folder = self.folder(ticket.folder);
            let index = (ticket.position - folder.first_position) as usize;
            folder.waiting[index].outcome = Some(outcome);
            next = self.advance(ticket.folder);
        }
    }

    /// Says that a folder gets no more entries.
    ///
    /// # Errors
    /// A tree of the cache that was read and checked does not read now.
    pub(super) fn close(&mut self, number: usize) -> Result<(), RepositoryError> {
        if let Past::Same(same) = &self.folder(number).past {
            if same.is_complete() {
                self.finish_as_before(number);
                return Ok(());
            }
            self.compare_by_entries(number)?;
        }
        self.folder(number).closed = true;
        if let Some((ticket, outcome)) = self.advance(number) {
            self.resolve(ticket, outcome);
        }
        Ok(())
    }

    /// Ends a folder that is as it was in the parent.
    fn finish_as_before(&mut self, number: usize) {
        let Some(Folder { past: Past::Same(same), place, .. }) = self.slots[number].take() else { return };
        self.free.push(number);
        self.keep(|cache| cache.copy(same.id, &same.cached));
        self.finished.push(FinishedTree { id: same.id, text: Vec::new(), unchanged: true });
        match place {
            Place::Waits(ticket) => self.resolve(ticket, Outcome::Folder(same.id)),
            Place::AsBefore(above) => {
                if let Past::Same(same) = &mut self.folder(above).past {
                    same.open_folder = None;
                }
            }
            Place::Root => self.root = Some(same.id),
        }
    }

    /// Writes out what waits no longer. A folder that is closed and complete becomes a tree, which resolves its own
    /// entry in the folder above.
    fn advance(&mut self, number: usize) -> Option<(Ticket, Outcome)> {
        let folder = self.folder(number);
        while folder.waiting.front().is_some_and(|entry| entry.outcome.is_some()) {
            let entry = folder.waiting.pop_front()?;
            folder.first_position += 1;
            folder.write(&entry.name, &entry.metadata, entry.fingerprint, entry.outcome?);
        }
        if !folder.closed || !folder.waiting.is_empty() {
            return None;
        }
        let folder = self.slots[number].take()?;
        let text = folder.encoder.finish();
        let id = BlobId::of(&text);
        let unchanged = matches!(&folder.past, Past::Entries(entries) if entries.id == id);
        self.keep(|cache| cache.add(id, &folder.fingerprints, &folder.folders, &text));
        self.finished.push(FinishedTree { id, text, unchanged });
        match folder.place {
            Place::Waits(place) => {
                self.free.push(number);
                Some((place, Outcome::Folder(id)))
            }
            // A folder that is not as before has written out those above.
            Place::Root | Place::AsBefore(_) => {
                self.root = Some(id);
                None
            }
        }
    }

    /// Adds to the cache, which is given up when that fails: a backup does not need it.
    fn keep(&mut self, add: impl FnOnce(&mut TreeCacheWriter) -> std::io::Result<()>) {
        if let Some(Err(error)) = self.cache.as_mut().map(add) {
            tracing::warn!(%error, "the cache of trees cannot be written");
            self.cache = None;
        }
    }

    /// Puts the cache for the next backup in its place.
    pub(super) fn finish_cache(&mut self) {
        if let Some(Err(error)) = self.cache.take().map(TreeCacheWriter::finish) {
            tracing::warn!(%error, "the cache of trees cannot be written");
        }
    }

    /// Trees that were finished since the last call.
    pub(super) fn take_finished(&mut self) -> Vec<FinishedTree> {
        std::mem::take(&mut self.finished)
    }

    /// The root tree, once it is finished.
    pub(super) fn root(&self) -> Option<BlobId> {
        self.root
    }
}

impl Folder {
    /// Writes an entry out: its place is reached and its content known.
    fn write(&mut self, name: &[u8], metadata: &NodeMetadata, fingerprint: Fingerprint, outcome: Outcome) {
        let mut kept = fingerprint;
        match outcome {
            Outcome::File(content) => {
                // It changed while it was read: what was read is not what the fingerprint tells of.
                if content.size != metadata.size {
                    kept = Fingerprint::NONE;
                }
                self.encoder.push_file(name, metadata, content.size, &content.blobs);
            }
            Outcome::Other => self.encoder.push_other(name, metadata),
            Outcome::Folder(tree) => {
                self.encoder.push_folder(name, metadata, tree);
                self.folders.push(tree);
            }
            Outcome::Omitted => return,
        }
        self.fingerprints.push(kept);
    }
}
