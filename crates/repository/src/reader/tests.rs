use std::io::Read;

use holdfast_model::ErrorCode;

use super::fixture::{Fixture, file_node, folder_node};
use super::*;
use crate::format::{ObjectKind, ObjectName};
use crate::storage::conformance::noise;
use crate::storage::faulty::{Fault, FaultPlan, FaultyStore};
use crate::storage::recording::{RecordingStore, Verb};
use crate::storage::{ObjectStore, StorageErrorKind};

async fn steps(walker: &mut TreeWalker) -> Result<Vec<String>, RepositoryError> {
    let mut seen = Vec::new();
    while let Some(step) = walker.next().await? {
        let sign = match step {
            WalkStep::Enter(_) => '+',
            WalkStep::Entry(_) => ' ',
            WalkStep::Leave(_) => '-',
        };
        seen.push(format!("{sign}{}", String::from_utf8_lossy(walker.path())));
    }
    Ok(seen)
}

#[tokio::test]
async fn blobs_load_whether_compressed_or_not() {
    let mut fixture = Fixture::new().await;
    let ids = fixture.pack(BlobType::Data, &[b"plain", &[7; 100_000], b""]).await;
    fixture.finish(ids[0]).await;
    let reader = fixture.reader().await;
    assert_eq!(reader.load(ids[0], BlobType::Data).await.unwrap(), b"plain");
    assert_eq!(reader.load(ids[1], BlobType::Data).await.unwrap(), [7; 100_000]);
    assert_eq!(reader.load(ids[2], BlobType::Data).await.unwrap(), b"");
}

#[tokio::test]
async fn a_blob_that_is_not_what_it_must_be_is_named_with_its_pack() {
    let mut fixture = Fixture::new().await;
    let ids = fixture.pack(BlobType::Data, &[b"first", &[7; 1000]]).await;
    let pack = fixture.last_pack();
    fixture.finish(ids[0]).await;
    let reader = fixture.reader().await;
    let whole = fixture.store.get(&ObjectName::Pack(pack)).await.unwrap();
    for position in 0..whole.len().min(90) {
        let mut spoilt = whole.to_vec();
        spoilt[position] ^= 0x20;
        fixture.store.replace(ObjectName::Pack(pack), spoilt);
        let results = [reader.load(ids[0], BlobType::Data).await, reader.load(ids[1], BlobType::Data).await];
        let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        for error in &errors {
            assert_eq!(error.code(), ErrorCode::ObjectDamaged);
            assert!(error.to_string().contains(&pack.to_hex()), "{error}");
            assert!(ids.iter().any(|id| error.to_string().contains(&id.to_hex())), "{error}");
        }
        let in_blobs = position < 5 + 32;
        assert!(!in_blobs || errors.len() == 1, "byte {position}: {errors:?}");
    }
}

#[tokio::test]
async fn what_an_index_claims_is_checked_before_it_is_used() {
    let content = [7; 5000];
    for (claim, code) in [
        (Some(u32::MAX - 1), ErrorCode::LimitExceeded),
        (Some(4999), ErrorCode::ObjectDamaged),
        (Some(5001), ErrorCode::ObjectDamaged),
        (None, ErrorCode::ObjectDamaged),
    ] {
        let mut fixture = Fixture::new().await;
        let ids = fixture.pack(BlobType::Data, &[b"", &content]).await;
        fixture.last_entries()[1].uncompressed_length = claim;
        fixture.finish(ids[0]).await;
        let error = fixture.reader().await.load(ids[1], BlobType::Data).await.unwrap_err();
        assert_eq!(error.code(), code, "{claim:?}: {error}");
    }
    for (offset, length) in [(0, 31), (0, 1 << 20), (u32::MAX, u32::MAX), (3, 40)] {
        let mut fixture = Fixture::new().await;
        let ids = fixture.pack(BlobType::Data, &[b"a blob", &content]).await;
        (fixture.last_entries()[0].offset, fixture.last_entries()[0].length) = (offset, length);
        fixture.finish(ids[0]).await;
        let error = fixture.reader().await.load(ids[0], BlobType::Data).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ObjectDamaged, "{offset} {length}: {error}");
    }
}

#[tokio::test]
async fn content_is_no_folder_whatever_it_reads_like() {
    let mut fixture = Fixture::new().await;
    let data = fixture.pack(BlobType::Data, &[b"{\"nodes\":[]}"]).await[0];
    fixture.finish(data).await;
    for id in [data, BlobId::of(b"absent")] {
        let error = fixture.reader().await.load_tree(id).await.unwrap_err();
        assert_eq!(error.to_string(), format!("blob {id} is in no index of the repository"));
    }
}

#[tokio::test]
async fn a_walk_visits_everything_in_order() {
    let mut fixture = Fixture::new().await;
    let empty = fixture.tree(&[]).await;
    let inner = fixture.tree(&[file_node("a", 0, &[]), folder_node("b", empty)]).await;
    let nodes =
        [folder_node("1", inner), file_node("2", 0, &[]), folder_node("3", empty), folder_node("4", inner)];
    let root = fixture.tree(&nodes).await;
    fixture.finish(root).await;
    let reader = fixture.reader().await;
    let mut walker = TreeWalker::new(reader.clone(), root, WalkLimits::default());
    let seen = steps(&mut walker).await.unwrap();
    let expected = ["+1", " 1/a", "+1/b", "-1/b", "-1", " 2", "+3", "-3", "+4", " 4/a", "+4/b", "-4/b", "-4"];
    assert_eq!(seen, expected);

    assert_eq!(reader.find(root, b"/4//b/").await.unwrap().subtree, Some(empty));
    assert_eq!(reader.find(root, b"").await.unwrap().subtree, Some(root));
    for absent in ["5", "1/a/x", "1/x", "2/"] {
        let found = reader.find(root, absent.as_bytes()).await;
        if absent != "2/" {
            assert_eq!(found.unwrap_err().code(), ErrorCode::PathNotInSnapshot, "{absent}");
        }
    }
}

#[tokio::test]
async fn hostile_trees_end_at_a_limit() {
    let mut fixture = Fixture::new().await;
    // Each level holds the one below twice: small, and 2^40 entries when unfolded.
    let mut bomb = fixture.tree(&[]).await;
    for _ in 0..40 {
        bomb = fixture.tree(&[folder_node("a", bomb), folder_node("b", bomb)]).await;
    }
    let mut deep = fixture.tree(&[]).await;
    for _ in 0..60 {
        deep = fixture.tree(&[folder_node("d", deep)]).await;
    }
    fixture.finish(bomb).await;
    let reader = fixture.reader().await;
    let limits = WalkLimits { depth_max: 50, entries_max: 10_000 };
    for (root, what) in [(bomb, "entries"), (deep, "levels")] {
        let mut walker = TreeWalker::new(reader.clone(), root, limits);
        let error = steps(&mut walker).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::LimitExceeded);
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() {
    let names = [
        ("../x", ErrorCode::UnsafePath),
        ("..", ErrorCode::UnsafePath),
        (".", ErrorCode::UnsafePath),
        ("", ErrorCode::UnsafePath),
        ("a/b", ErrorCode::UnsafePath),
        ("/etc/passwd", ErrorCode::UnsafePath),
        ("a\\x00b", ErrorCode::UnsafePath),
    ];
    for (name, code) in names {
        let mut fixture = Fixture::new().await;
        let json = serde_json::json!({"nodes": [{"name": name, "type": "file"}]}).to_string();
        let root = fixture.pack(BlobType::Tree, &[json.as_bytes()]).await[0];
        fixture.finish(root).await;
        let mut walker = TreeWalker::new(fixture.reader().await, root, WalkLimits::default());
        assert_eq!(steps(&mut walker).await.unwrap_err().code(), code, "{name:?}");
    }
}

/// A file of some blobs in two packs, and the number of requests that reading it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_reads_ahead_in_few_requests() {
    let mut fixture = Fixture::new().await;
    let parts: Vec<_> = (0..40).map(|n| noise(50_000 + n, n as u64)).collect();
    let slices: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
    let mut content = fixture.pack(BlobType::Data, &slices[..20]).await;
    content.extend(fixture.pack(BlobType::Data, &slices[20..]).await);
    // A blob that comes again, far from where it lies.
    content.push(content[3]);
    fixture.finish(content[0]).await;

    let recording = RecordingStore::new(Arc::new(fixture.store.clone()));
    let index = Arc::new(fixture.repository.load_index().await.unwrap());
    let source = LocalSource::new(Arc::new(recording.clone()), index);
    let reader = BlobReader::new(Arc::new(source), Arc::clone(fixture.repository.sealer()));
    let mut file = FileReader::new(reader, content, tokio::runtime::Handle::current()).unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut expected: Vec<u8> = slices.concat();
    expected.extend_from_slice(slices[3]);
    assert!(read.await.unwrap().unwrap() == expected);
    assert_eq!(recording.count(Verb::GetRange, ObjectKind::Pack), 3);
    assert_eq!(recording.count(Verb::Get, ObjectKind::Pack), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_breaks_ends_with_an_error_and_never_with_an_end() {
    let mut fixture = Fixture::new().await;
    let parts: Vec<_> = (0..4).map(|n| noise(3_000_000, n)).collect();
    let slices: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
    let content = fixture.pack(BlobType::Data, &slices).await;
    fixture.finish(content[0]).await;
    for fault in [Fault::Flip, Fault::Truncate, Fault::Fail(StorageErrorKind::Unreachable)] {
        let plan = FaultPlan::new().at(Verb::GetRange, None, 3, fault);
        let faulty = FaultyStore::new(Arc::new(fixture.store.clone()), plan);
        let index = Arc::new(fixture.repository.load_index().await.unwrap());
        let source = LocalSource::new(Arc::new(faulty.clone()), index);
        let reader = BlobReader::new(Arc::new(source), Arc::clone(fixture.repository.sealer()));
        let mut file = FileReader::new(reader, content.clone(), tokio::runtime::Handle::current()).unwrap();
        let (read, bytes) = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            (file.read_to_end(&mut bytes), bytes)
        })
        .await
        .unwrap();
        assert!(read.is_err(), "{fault:?}");
        assert_eq!(faulty.injected().len(), 1, "{fault:?} was not met");
        assert!(slices.concat().starts_with(&bytes), "{fault:?}: wrong bytes were returned");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_dropped_ends_its_thread() {
    let mut fixture = Fixture::new().await;
    let parts: Vec<_> = (0..30).map(|n| noise(100_000, n)).collect();
    let slices: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
    let content = fixture.pack(BlobType::Data, &slices).await;
    fixture.finish(content[0]).await;
    let reader = fixture.reader().await;
    let mut file = FileReader::new(reader, content, tokio::runtime::Handle::current()).unwrap();
    tokio::task::spawn_blocking(move || {
        file.read_exact(&mut [0; 10]).unwrap();
        // Dropping joins the thread, which waits for room in its queue: without the wake-up this would hang.
        drop(file);
    })
    .await
    .unwrap();
}
