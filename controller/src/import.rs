//! Soon.
use holdfast_model::Failure;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_proto::v1;
use std::sync::Arc;
use tonic::Streaming;
/// x
pub async fn import(
    _core: &Arc<crate::core::Core>,
    _caller: &crate::access::Caller,
    _parts: Streaming<v1::ImportSnapshotRequest>,
) -> Result<SnapshotRecord, Failure> {
    unimplemented!()
}
