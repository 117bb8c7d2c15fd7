//! Which blob belongs where: from the files of a batch to the order of the packs. Pure.

use super::write::FileState;
use crate::id::BlobId;
use crate::reader::BlobPlace;
use crate::reader::plan::{PackRead, coalesce};

/// One use of a blob in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reference {
    pub(super) blob: u32,
    pub(super) file: u32,
    pub(super) offset: u64,
}

/// The blobs of a batch, and where they belong.
pub(super) struct Blobs {
    pub(super) ids: Vec<BlobId>,
    pub(super) places: Vec<BlobPlace>,
    /// In the order of the files and of the blobs in them.
    pub(super) references: Vec<Reference>,
    /// Where the references of each file begin; one more at the end.
    pub(super) first_of_file: Vec<usize>,
}

/// What is to be written, in the order of the packs.
pub(super) struct Writing {
    pub(super) reads: Vec<PackRead>,
    /// By the number of a place in the reads: which blob it is.
    pub(super) order: Vec<u32>,
    pub(super) sorted: Vec<BlobPlace>,
    /// Sorted by the number of their blob's place.
    pub(super) references: Vec<Reference>,
    /// Where the references of each place begin; one more at the end.
    pub(super) first_of_place: Vec<usize>,
    /// Files of which nothing is to be written, but which are not finished.
    pub(super) unwritten: Vec<u32>,
}

impl Blobs {
    pub(super) fn references_of(&self, file: usize) -> &[Reference] {
        &self.references[self.first_of_file[file]..self.first_of_file[file + 1]]
    }

    pub(super) fn lengths_of(&self, file: usize) -> Vec<u32> {
        self.references_of(file).iter().map(|reference| self.place(reference).content_length()).collect()
    }

    pub(super) fn length_of(&self, file: usize) -> u64 {
        self.references_of(file)
            .iter()
            .map(|reference| u64::from(self.place(reference).content_length()))
            .sum()
    }

    pub(super) fn place(&self, reference: &Reference) -> &BlobPlace {
        &self.places[reference.blob as usize]
    }
}

impl Writing {
    pub(super) fn new(blobs: &Blobs, wanted: &[bool], finished: &[bool], states: &mut [FileState]) -> Self {
        let mut references: Vec<Reference> =
            blobs.references.iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(r, _)| *r).collect();
        for reference in &references {
            *states[reference.file as usize].remaining.get_mut() += 1;
        }
        let unwritten =
            (0..states.len()).filter(|&file| !finished[file] && *states[file].remaining.get_mut() == 0);
        let unwritten = unwritten.map(|file| file as u32).collect();

        let mut order: Vec<u32> = references.iter().map(|reference| reference.blob).collect();
        let position =
            |&blob: &u32| (blobs.places[blob as usize].pack, blobs.places[blob as usize].offset, blob);
        order.sort_unstable_by_key(position);
        order.dedup();
        let sorted: Vec<BlobPlace> = order.iter().map(|&blob| blobs.places[blob as usize]).collect();
        let mut rank = vec![0; blobs.ids.len()];
        order.iter().enumerate().for_each(|(number, &blob)| rank[blob as usize] = number);
        references.sort_unstable_by_key(|reference| {
            (rank[reference.blob as usize], reference.file, reference.offset)
        });
        let mut first_of_place = vec![0; order.len() + 1];
        for reference in &references {
            first_of_place[rank[reference.blob as usize] + 1] += 1;
        }
        for place in 1..first_of_place.len() {
            first_of_place[place] += first_of_place[place - 1];
        }
        Self { reads: coalesce(&sorted), order, sorted, references, first_of_place, unwritten }
    }

    pub(super) fn references_of(&self, place: usize) -> &[Reference] {
        &self.references[self.first_of_place[place]..self.first_of_place[place + 1]]
    }
}
