mod delta;
mod hostile;
mod oracle;
pub(super) mod picture;

use std::path::Path;

use super::*;

pub(super) async fn extract(
    reader: &BlobReader,
    root: BlobId,
    target: &Path,
    options: &ExtractOptions,
) -> Result<ExtractReport, ExtractError> {
    extract_tree(reader, root, target, options, Arc::default(), &CancellationToken::new()).await
}

/// As root everything is restored, owners too; as anybody else what that user may.
pub(super) fn options() -> ExtractOptions {
    ExtractOptions { owner: rustix::process::geteuid().is_root(), ..ExtractOptions::default() }
}
