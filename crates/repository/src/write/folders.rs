//! Open folders: entries wait here for their content, in order, and become the text of a tree.

use std::collections::VecDeque;

use super::fill::ReadContent;
use crate::id::BlobId;
use crate::tree::{FileTime, Node, NodeMetadata, Tree, TreeEncoder};

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
    /// `None` while its content is on the way.
    outcome: Option<Outcome>,
}

/// The same folder in the parent snapshot.
#[derive(Debug)]
struct ParentFolder {
    id: BlobId,
    /// What is left of its entries; they are asked for in order.
    nodes: std::iter::Peekable<std::vec::IntoIter<Node>>,
}

#[derive(Debug)]
struct Folder {
    encoder: TreeEncoder,
    waiting: VecDeque<Waiting>,
    /// The position of the first that waits.
    first_position: u64,
    last_name: Vec<u8>,
    closed: bool,
    /// Its own place in the folder above; the root has none.
    place: Option<Ticket>,
    /// Its path with a `/` at the end; empty for the root.
    path: Vec<u8>,
    parent: Option<ParentFolder>,
}

/// Every folder that is not finished. The root is folder 0.
#[derive(Debug)]
pub(super) struct Folders {
    slots: Vec<Option<Folder>>,
    free: Vec<usize>,
    finished: Vec<FinishedTree>,
    root: Option<BlobId>,
}

pub(super) const ROOT: usize = 0;

impl Folders {
    pub(super) fn new(parent: Option<(BlobId, Tree)>) -> Self {
        let mut folders = Self { slots: Vec::new(), free: Vec::new(), finished: Vec::new(), root: None };
        folders.insert(None, Vec::new(), parent);
        folders
    }

    /// Opens a folder whose entry waits at `place`. Returns its number.
    pub(super) fn open(&mut self, place: Ticket, path: &[u8], parent: Option<(BlobId, Tree)>) -> usize {
        self.insert(Some(place), [path, b"/"].concat(), parent)
    }

    fn insert(&mut self, place: Option<Ticket>, path: Vec<u8>, parent: Option<(BlobId, Tree)>) -> usize {
        let folder = Folder {
            encoder: TreeEncoder::new(),
            waiting: VecDeque::new(),
            first_position: 0,
            last_name: Vec::new(),
            closed: false,
            place,
            path,
            parent: parent.map(|(id, tree)| ParentFolder { id, nodes: tree.nodes.into_iter().peekable() }),
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

    /// The entry of this name in the parent snapshot. Names must be asked for in order.
    pub(super) fn parent_node(&mut self, number: usize, name: &[u8]) -> Option<Node> {
        let nodes = &mut self.folder(number).parent.as_mut()?.nodes;
        while nodes.next_if(|node| node.name.as_slice() < name).is_some() {}
        nodes.next_if(|node| node.name == name)
    }

    /// Adds an entry whose content is still to come.
    pub(super) fn wait(&mut self, number: usize, name: &[u8], metadata: NodeMetadata) -> Ticket {
        let folder = self.folder(number);
        let position = folder.first_position + folder.waiting.len() as u64;
        folder.waiting.push_back(Waiting { name: name.to_vec(), metadata, outcome: None });
        Ticket { folder: number, position }
    }

    /// Adds an entry that is complete.
    pub(super) fn add(
        &mut self,
        number: usize,
        name: &[u8],
        metadata: NodeMetadata,
        content: Option<ReadContent>,
    ) {
        let folder = self.folder(number);
        if folder.waiting.is_empty() {
            match content {
                Some(content) => folder.encoder.push_file(name, &metadata, content.size, &content.blobs),
                None => folder.encoder.push_other(name, &metadata),
            }
        } else {
            let outcome = content.map_or(Outcome::Other, Outcome::File);
            folder.waiting.push_back(Waiting { name: name.to_vec(), metadata, outcome: Some(outcome) });
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
    pub(super) fn close(&mut self, number: usize) {
        self.folder(number).closed = true;
        if let Some((ticket, outcome)) = self.advance(number) {
            self.resolve(ticket, outcome);
        }
    }

    /// Writes out what waits no longer. A folder that is closed and complete becomes a tree, which resolves its own
    /// entry in the folder above.
    fn advance(&mut self, number: usize) -> Option<(Ticket, Outcome)> {
        let folder = self.folder(number);
        while folder.waiting.front().is_some_and(|entry| entry.outcome.is_some()) {
            let entry = folder.waiting.pop_front()?;
            folder.first_position += 1;
            match entry.outcome? {
                Outcome::File(content) => {
                    folder.encoder.push_file(&entry.name, &entry.metadata, content.size, &content.blobs);
                }
                Outcome::Other => folder.encoder.push_other(&entry.name, &entry.metadata),
                Outcome::Folder(tree) => folder.encoder.push_folder(&entry.name, &entry.metadata, tree),
                Outcome::Omitted => {}
            }
        }
        if !folder.closed || !folder.waiting.is_empty() {
            return None;
        }
        let folder = self.slots[number].take()?;
        let text = folder.encoder.finish();
        let id = BlobId::of(&text);
        let unchanged = folder.parent.is_some_and(|parent| parent.id == id);
        self.finished.push(FinishedTree { id, text, unchanged });
        match folder.place {
            Some(place) => {
                self.free.push(number);
                Some((place, Outcome::Folder(id)))
            }
            None => {
                self.root = Some(id);
                None
            }
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
