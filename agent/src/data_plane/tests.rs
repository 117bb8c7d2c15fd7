use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::ids::{Attempt, RunId};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::id::{BlobId, BlobType, PackId};
use holdfast_repository::pack::{PackEntry, SealedPack};
use holdfast_repository::reader::BlobSource as _;
use holdfast_repository::sink::BlobSink as _;
use holdfast_runtime::{Shutdown, SystemClock, TaskGroup};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{DataPlane, GrpcSink, GrpcSource, failure_of};
use crate::counters::Counters;
use crate::dial::Link;
use crate::executor::RunContext;
use crate::run_log::RunLogger;
use crate::testing::controller::FakeController;

struct Fixture {
    controller: FakeController,
    plane: DataPlane,
    counters: Arc<Counters>,
    cancel: CancellationToken,
    _folder: TempDir,
}

async fn fixture(patience: Duration) -> Fixture {
    let controller = FakeController::start().await;
    let folder = tempfile::tempdir().unwrap();
    let identity = controller.enroll(folder.path());
    let link = Arc::new(Link::new(controller.address(), Arc::new(identity)));
    let cancel = CancellationToken::new();
    let (run, attempt, clock) = (RunId::at(1, [1; 10]), Attempt(1), SystemClock::shared());
    let context = RunContext {
        run,
        attempt,
        cancel: cancel.clone(),
        log: RunLogger::new(run, attempt, clock.clone()),
        counters: Arc::default(),
        scratch: folder.path().join("scratch"),
        tasks: TaskGroup::new(&Shutdown::new()),
    };
    let plane = DataPlane::new(link, clock, &context, patience, None);
    Fixture { controller, plane, counters: Arc::default(), cancel, _folder: folder }
}

const LONG: Duration = Duration::from_secs(60);

/// A pack of this many bytes, of which each belongs to one of two blobs.
fn pack(bytes: usize) -> SealedPack {
    let content: Vec<u8> = (0..bytes).map(|n| (n * 31 % 251) as u8).collect();
    let content = Bytes::from(content);
    let half = u32::try_from(bytes / 2).unwrap();
    let entry = |n: u8, offset, length, blob_type| PackEntry {
        id: BlobId::of(&[n]),
        blob_type,
        offset,
        length,
        uncompressed_length: (n == 1).then_some(12345),
    };
    SealedPack {
        id: PackId::of(&content),
        entries: vec![
            entry(1, 0, half, BlobType::Data),
            entry(2, half, u32::try_from(bytes).unwrap() - half, BlobType::Tree),
        ],
        bytes: content,
    }
}

#[tokio::test]
async fn a_pack_arrives_as_it_was_sent_and_is_known_then() {
    let fixture = fixture(LONG).await;
    let sink = GrpcSink::new(&fixture.plane, fixture.counters.clone());
    let ids = [BlobId::of(&[1]), BlobId::of(&[2]), BlobId::of(&[3])];
    assert_eq!(sink.known(BlobType::Data, &ids).await.unwrap(), [false; 3]);
    let sent = pack(3_500_001);
    sink.put_pack(sent.clone()).await.unwrap();
    assert_eq!(sink.known(BlobType::Data, &ids).await.unwrap(), [true, false, false]);
    assert_eq!(sink.known(BlobType::Tree, &ids).await.unwrap(), [false, true, false]);
    let stored = fixture.controller.repository.state.lock().packs[&sent.id.as_bytes()[..]].clone();
    assert_eq!(stored, sent.bytes);
    assert_eq!(fixture.counters.bytes_stored.get(), 3_500_001);
}

#[tokio::test]
async fn many_questions_are_under_way_on_one_stream() {
    let fixture = fixture(LONG).await;
    let sink = Arc::new(GrpcSink::new(&fixture.plane, fixture.counters.clone()));
    sink.put_pack(pack(1000)).await.unwrap();
    let ask = |n: usize| {
        let sink = sink.clone();
        async move {
            // More than fit into one question; the known ones at different places.
            let mut ids = vec![BlobId::of(b"unknown"); 5000];
            ids[n] = BlobId::of(&[1]);
            ids[4999 - n] = BlobId::of(&[1]);
            let known = sink.known(BlobType::Data, &ids).await.unwrap();
            let expected: Vec<usize> =
                known.iter().enumerate().filter(|(_, known)| **known).map(|(n, _)| n).collect();
            assert_eq!(expected, [n, 4999 - n]);
        }
    };
    futures::future::join_all((0..40).map(ask)).await;
    assert_eq!(fixture.controller.repository.lookup_streams.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_while_a_pack_is_sent_costs_a_second_sending_and_nothing_else() {
    let fixture = fixture(LONG).await;
    let repository = &fixture.controller.repository;
    let sink = GrpcSink::new(&fixture.plane, fixture.counters.clone());
    let connections = fixture.controller.connections();
    *repository.break_at.lock() = Some((2 << 20, connections.clone()));
    let sent = pack(6 << 20);
    let (stored, ()) = futures::join!(sink.put_pack(sent.clone()), async {
        connections.cancelled().await;
        fixture.controller.restart().await;
    });
    stored.unwrap();
    assert_eq!(repository.put_calls.load(Ordering::Relaxed), 2);
    assert_eq!(repository.state.lock().packs[&sent.id.as_bytes()[..]], sent.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_that_were_under_way_are_asked_again_after_a_restart() {
    let fixture = fixture(LONG).await;
    let sink = GrpcSink::new(&fixture.plane, fixture.counters.clone());
    sink.put_pack(pack(1000)).await.unwrap();
    let ids = [BlobId::of(&[1]), BlobId::of(&[9])];
    assert_eq!(sink.known(BlobType::Data, &ids).await.unwrap(), [true, false]);
    fixture.controller.kill();
    let (known, ()) = futures::join!(sink.known(BlobType::Data, &ids), fixture.controller.restart());
    assert_eq!(known.unwrap(), [true, false]);
    assert!(fixture.controller.repository.lookup_streams.load(Ordering::Relaxed) >= 2);
}

#[tokio::test]
async fn a_refusal_is_final_and_in_the_controllers_words() {
    let fixture = fixture(LONG).await;
    let refusal = Failure::new(ErrorCode::StaleAttempt, "attempt 2 has taken over");
    *fixture.controller.repository.refusal.lock() = Some(refusal.clone());
    let sink = GrpcSink::new(&fixture.plane, fixture.counters.clone());
    assert_eq!(failure_of(&sink.put_pack(pack(1000)).await.unwrap_err()), refusal);
    assert_eq!(fixture.controller.repository.put_calls.load(Ordering::Relaxed), 1);
    assert_eq!(failure_of(&sink.known(BlobType::Data, &[BlobId::of(&[1])]).await.unwrap_err()), refusal);
}

#[tokio::test]
async fn a_storage_that_is_away_for_a_moment_is_waited_for() {
    let fixture = fixture(LONG).await;
    let repository = &fixture.controller.repository;
    *repository.refusal.lock() = Some(Failure::new(ErrorCode::StorageUnreachable, "no route to host"));
    let sink = GrpcSink::new(&fixture.plane, fixture.counters.clone());
    let (stored, ()) = futures::join!(sink.put_pack(pack(1000)), async {
        while repository.put_calls.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        *repository.refusal.lock() = None;
    });
    stored.unwrap();
}

#[tokio::test]
async fn patience_has_an_end() {
    let fixture = fixture(Duration::from_millis(300)).await;
    fixture.controller.kill();
    let sink = GrpcSink::new(&fixture.plane, fixture.counters.clone());
    let ids = [BlobId::of(&[1])];
    let (stored, known) = futures::join!(sink.put_pack(pack(1000)), sink.known(BlobType::Data, &ids));
    for error in [stored.unwrap_err(), known.unwrap_err()] {
        let failure = failure_of(&error);
        assert_eq!(failure.code, ErrorCode::ControllerUnreachable, "{failure:?}");
        assert!(failure.why.iter().any(|why| why.starts_with("tried again for ")), "{failure:?}");
    }
}

#[tokio::test]
async fn a_cancelled_run_waits_for_nothing() {
    let fixture = fixture(LONG).await;
    fixture.controller.kill();
    let sink = GrpcSink::new(&fixture.plane, fixture.counters.clone());
    let ids = [BlobId::of(&[1])];
    let (stored, known, ()) =
        futures::join!(sink.put_pack(pack(1000)), sink.known(BlobType::Data, &ids), async {
            tokio::task::yield_now().await;
            fixture.cancel.cancel();
        });
    assert_eq!(failure_of(&stored.unwrap_err()).code, ErrorCode::RunCancelled);
    assert_eq!(failure_of(&known.unwrap_err()).code, ErrorCode::RunCancelled);
}

#[tokio::test]
async fn ranges_of_packs_come_back_as_they_were_stored() {
    let fixture = fixture(LONG).await;
    let sent = pack(3 << 20);
    fixture.plane.put_pack(&sent).await.unwrap();
    let source = GrpcSource::new(&fixture.plane, fixture.counters.clone());
    let ids = [BlobId::of(&[2]), BlobId::of(b"none"), BlobId::of(&[1])];
    let places = async |blob_type| source.locate(blob_type, &ids).await.unwrap();
    let (trees, data) = (places(BlobType::Tree).await, places(BlobType::Data).await);
    assert_eq!([&trees, &data].map(|places| places.iter().flatten().count()), [1, 1]);
    let (tree, data) = (trees[0].unwrap(), data[2].unwrap());
    assert_eq!((tree.pack, tree.blob_type, tree.uncompressed_length), (sent.id, BlobType::Tree, None));
    assert_eq!((data.blob_type, data.uncompressed_length), (BlobType::Data, Some(12345)));
    for (offset, length) in [(0, 10), (100, 1 << 20), (7, (2 << 20) + 1), (0, 3 << 20)] {
        let read = source.read(sent.id, offset, length).await.unwrap();
        assert_eq!(read, sent.bytes.slice(offset as usize..(offset + length) as usize));
    }
    let short = source.read(sent.id, (3 << 20) - 5, 10).await.unwrap_err();
    assert_eq!(short.code(), ErrorCode::ObjectDamaged);
    let missing = source.read(PackId::of(b"none"), 0, 10).await.unwrap_err();
    assert_eq!(missing.code(), ErrorCode::ObjectMissing);
}
