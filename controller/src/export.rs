//! Soon.
use holdfast_model::Failure;
use holdfast_proto::v1;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
/// x
pub async fn export(
    _core: &Arc<crate::core::Core>,
    _id: &str,
) -> Result<ReceiverStream<Result<v1::ExportSnapshotResponse, Status>>, Failure> {
    unimplemented!()
}
