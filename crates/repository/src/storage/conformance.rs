//! What every storage must do, run over each implementation.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::{ObjectStore, StorageErrorKind};
use crate::format::{ObjectKind, ObjectName, TrashedPack};
use crate::id::PackId;

const MIB: usize = 1 << 20;

/// The whole suite, in an empty storage.
pub(crate) async fn run(store: &dyn ObjectStore) {
    an_empty_storage_lists_nothing(store).await;
    what_was_put_is_got(store).await;
    the_first_content_is_kept(store).await;
    ranges_are_exact(store).await;
    an_upload_is_invisible_until_it_is_finished(store).await;
    an_upload_of_the_wrong_length_is_refused(store).await;
    a_deleted_object_is_gone(store).await;
    a_renamed_object_has_the_other_name_alone(store).await;
    more_than_a_page_is_listed(store).await;
    the_probe_leaves_no_object(store).await;
}

/// Bytes without a pattern that compresses or repeats, the same for the same seed.
pub(crate) fn noise(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

fn name(text: &str) -> ObjectName {
    ObjectName::Pack(PackId::of(text.as_bytes()))
}

async fn list(store: &dyn ObjectStore, kind: ObjectKind) -> Vec<(ObjectName, u64)> {
    let mut objects: Vec<_> = store.list(kind).await.unwrap().try_collect().await.unwrap();
    objects.sort();
    objects
}

async fn an_empty_storage_lists_nothing(store: &dyn ObjectStore) {
    for kind in ObjectKind::ALL {
        assert_eq!(list(store, kind).await, [], "{kind}");
    }
    let error = store.get(&name("nothing")).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::NotFound);
    assert_eq!(error.code().to_string(), "HF-3005");
    assert_eq!(error.object_name(), Some(&name("nothing")));
    assert!(!error.is_transient());
    assert_eq!(store.size(&name("nothing")).await.unwrap_err().kind(), StorageErrorKind::NotFound);
    let range = store.get_range(&name("nothing"), 0, 1).await.unwrap_err();
    assert_eq!(range.kind(), StorageErrorKind::NotFound);
}

async fn what_was_put_is_got(store: &dyn ObjectStore) {
    for (length, kind) in
        [(0, ObjectKind::Lock), (1, ObjectKind::Key), (64 * MIB, ObjectKind::Pack), (7, ObjectKind::Config)]
    {
        let data = noise(length, 1);
        let name = ObjectName::new(kind, *PackId::of(&data).as_bytes());
        store.put(&name, data.clone()).await.unwrap();
        assert_eq!(store.size(&name).await.unwrap(), length as u64);
        assert!(store.get(&name).await.unwrap() == data, "{length} bytes differ");
        assert_eq!(list(store, kind).await, [(name, length as u64)]);
        store.delete(&name).await.unwrap();
    }
}

async fn the_first_content_is_kept(store: &dyn ObjectStore) {
    let name = name("twice");
    store.put(&name, Bytes::from_static(b"first")).await.unwrap();
    let error = store.put(&name, Bytes::from_static(b"second")).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::AlreadyExists);
    assert_eq!(error.code().to_string(), "HF-3012");
    let refused = match store.begin_put(&name, 5).await {
        Err(error) => error,
        Ok(mut upload) => {
            upload.write(Bytes::from_static(b"third")).await.unwrap();
            upload.finish().await.unwrap_err()
        }
    };
    assert_eq!(refused.kind(), StorageErrorKind::AlreadyExists);
    assert_eq!(store.get(&name).await.unwrap(), "first");
    store.delete(&name).await.unwrap();
}

async fn ranges_are_exact(store: &dyn ObjectStore) {
    let data = noise(3 * MIB + 17, 2);
    let name = name("ranges");
    store.put(&name, data.clone()).await.unwrap();
    let length = data.len() as u64;
    for (offset, wanted) in
        [(0, 1), (0, length), (length - 1, 1), (MIB as u64 - 3, 7), (5, 2 * MIB as u64), (9, 0)]
    {
        let got = store.get_range(&name, offset, wanted).await.unwrap();
        let start = offset as usize;
        assert!(got == data[start..start + wanted as usize], "{wanted} bytes from {offset} differ");
    }
    for (offset, wanted) in [(length, 1), (length - 1, 2), (0, length + 1), (u64::MAX, 1), (1, u64::MAX)] {
        let error = store.get_range(&name, offset, wanted).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Damaged, "{wanted} bytes from {offset}");
    }
    store.delete(&name).await.unwrap();
}

async fn an_upload_is_invisible_until_it_is_finished(store: &dyn ObjectStore) {
    let data = noise(5 * MIB, 3);
    let name = name("upload");
    let mut upload = store.begin_put(&name, data.len() as u64).await.unwrap();
    for piece in 0..4 {
        upload.write(data.slice(piece * MIB..(piece + 1) * MIB)).await.unwrap();
    }
    assert_eq!(list(store, ObjectKind::Pack).await, []);
    assert_eq!(store.get(&name).await.unwrap_err().kind(), StorageErrorKind::NotFound);
    drop(upload);
    assert_eq!(list(store, ObjectKind::Pack).await, []);

    let mut upload = store.begin_put(&name, data.len() as u64).await.unwrap();
    for piece in 0..5 {
        upload.write(data.slice(piece * MIB..(piece + 1) * MIB)).await.unwrap();
    }
    upload.finish().await.unwrap();
    assert!(store.get(&name).await.unwrap() == data);
    store.delete(&name).await.unwrap();
}

async fn an_upload_of_the_wrong_length_is_refused(store: &dyn ObjectStore) {
    let name = name("length");
    let mut short = store.begin_put(&name, 10).await.unwrap();
    short.write(Bytes::from_static(b"nine byte")).await.unwrap();
    assert_eq!(short.finish().await.unwrap_err().kind(), StorageErrorKind::Damaged);
    let mut long = store.begin_put(&name, 3).await.unwrap();
    assert_eq!(long.write(Bytes::from_static(b"four")).await.unwrap_err().kind(), StorageErrorKind::Damaged);
    assert!(long.finish().await.is_err());
    assert_eq!(list(store, ObjectKind::Pack).await, []);
}

async fn a_deleted_object_is_gone(store: &dyn ObjectStore) {
    let name = name("deleted");
    store.put(&name, Bytes::from_static(b"x")).await.unwrap();
    store.delete(&name).await.unwrap();
    assert_eq!(store.get(&name).await.unwrap_err().kind(), StorageErrorKind::NotFound);
    match store.delete(&name).await {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), StorageErrorKind::NotFound),
    }
    // The name is free again.
    store.put(&name, Bytes::from_static(b"y")).await.unwrap();
    assert_eq!(store.get(&name).await.unwrap(), "y");
    store.delete(&name).await.unwrap();
}

async fn a_renamed_object_has_the_other_name_alone(store: &dyn ObjectStore) {
    let pack = PackId::of(b"renamed");
    let (old, new) = (ObjectName::Pack(pack), ObjectName::Trash(TrashedPack { at: 1_795_281_300, pack }));
    let data = noise(MIB + 1, 9);
    store.put(&old, data.clone()).await.unwrap();
    store.rename(&old, &new).await.unwrap();
    assert_eq!(store.get(&new).await.unwrap(), data);
    assert_eq!(list(store, ObjectKind::Trash).await, [(new, data.len() as u64)]);
    assert_eq!(list(store, ObjectKind::Pack).await, []);
    assert_eq!(store.rename(&old, &new).await.unwrap_err().kind(), StorageErrorKind::NotFound);
    // As after a crash between the two names.
    store.put(&old, data.clone()).await.unwrap();
    store.rename(&old, &new).await.unwrap();
    assert_eq!(list(store, ObjectKind::Pack).await, []);
    store.rename(&new, &old).await.unwrap();
    assert_eq!(store.get(&old).await.unwrap(), data);
    store.delete(&old).await.unwrap();
}

async fn more_than_a_page_is_listed(store: &dyn ObjectStore) {
    let mut names: Vec<_> = (0..1100u32).map(|n| name(&format!("many {n}"))).collect();
    names.sort();
    stream::iter(&names)
        .for_each_concurrent(
            16,
            |name| async move { store.put(name, Bytes::from_static(b"many")).await.unwrap() },
        )
        .await;
    let snapshot = ObjectName::new(ObjectKind::Snapshot, [1; 32]);
    store.put(&snapshot, Bytes::from_static(b"of another kind")).await.unwrap();
    let expected: Vec<_> = names.iter().map(|name| (*name, 4)).collect();
    assert!(list(store, ObjectKind::Pack).await == expected, "the list differs");
    assert_eq!(list(store, ObjectKind::Snapshot).await, [(snapshot, 15)]);
    stream::iter(&names)
        .for_each_concurrent(16, |name| async move { store.delete(name).await.unwrap() })
        .await;
    store.delete(&snapshot).await.unwrap();
}

async fn the_probe_leaves_no_object(store: &dyn ObjectStore) {
    store.probe().await.unwrap();
    an_empty_storage_lists_nothing(store).await;
}

/// Thirty-two writers of one name at once: one succeeds, and its content is what is there.
pub(crate) async fn racers_have_one_winner(store: Arc<dyn ObjectStore>) {
    let name = name("race");
    let barrier = Arc::new(tokio::sync::Barrier::new(32));
    let racers = (0..32u64).map(|racer| {
        let (store, barrier) = (Arc::clone(&store), Arc::clone(&barrier));
        async move {
            barrier.wait().await;
            (racer, store.put(&name, noise(100_000, racer)).await)
        }
    });
    let outcomes = futures::future::join_all(racers).await;
    let winners: Vec<_> =
        outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(racer, _)| *racer).collect();
    assert_eq!(winners.len(), 1, "winners: {winners:?}");
    for (_, outcome) in &outcomes {
        if let Err(error) = outcome {
            assert_eq!(error.kind(), StorageErrorKind::AlreadyExists, "{error}");
        }
    }
    assert!(store.get(&name).await.unwrap() == noise(100_000, winners[0]), "not the winner's content");
    store.delete(&name).await.unwrap();
}
