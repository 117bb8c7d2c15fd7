//! Where the blobs of a batch lie.

use std::collections::HashMap;

use super::batch::Batch;
use super::layout::{Blobs, Reference};
use super::{ExtractError, Work};
use crate::error::RepositoryError;
use crate::id::{BlobId, BlobType, IdMap};

/// Files that an error names.
const FILES_NAMED: usize = 5;

/// Asks where the blobs of all files are, each once.
pub(super) fn locate(work: &Work, batch: &Batch) -> Result<Blobs, ExtractError> {
    let mut numbers: IdMap<BlobId, u32> = HashMap::default();
    let mut ids = Vec::new();
    let mut references = Vec::new();
    let mut first_of_file = Vec::with_capacity(batch.files.len() + 1);
    for (file, item) in batch.files.iter().enumerate() {
        first_of_file.push(references.len());
        for id in &item.node.content {
            let blob = *numbers.entry(*id).or_insert_with(|| {
                ids.push(*id);
                ids.len() as u32 - 1
            });
            references.push(Reference { blob, file: file as u32, offset: 0 });
        }
    }
    first_of_file.push(references.len());
    let located = work.reader.locate(&ids, BlobType::Data);
    let located = work.handle.block_on(work.token.run_until_cancelled(located));
    let places = located.ok_or(ExtractError::Cancelled)?.map_err(|error| match error {
        RepositoryError::BlobMissing { blob } => content_error(batch, &|id| *id == blob, error),
        error => content_error(batch, &|_| true, error),
    })?;
    for file in first_of_file.windows(2) {
        let mut offset = 0;
        for reference in &mut references[file[0]..file[1]] {
            reference.offset = offset;
            offset += u64::from(places[reference.blob as usize].content_length());
        }
    }
    Ok(Blobs { ids, places, references, first_of_file })
}

/// Names the files of a batch that hold certain blobs.
pub(super) fn content_error(
    batch: &Batch,
    lost: &dyn Fn(&BlobId) -> bool,
    source: RepositoryError,
) -> ExtractError {
    let mut concerned = batch.files.iter().filter(|item| item.node.content.iter().any(lost));
    let files: Vec<String> = concerned
        .by_ref()
        .take(FILES_NAMED)
        .map(|item| String::from_utf8_lossy(&item.path()).into_owned())
        .collect();
    ExtractError::Content { files, more: concerned.count(), source }
}
