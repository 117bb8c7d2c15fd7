use std::sync::Arc;

use futures::TryStreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::storage::{conformance, weed::Weed};

fn name(byte: u8) -> ObjectName {
    ObjectName::new(ObjectKind::Pack, [byte; 32])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_conforms() {
    let server = Weed::start().await;
    let store = S3Store::new(&server.options("conformance/inner")).unwrap();
    conformance::run(&store).await;
    conformance::racers_have_one_winner(Arc::new(store.clone())).await;
    assert_eq!(store.probe().await.unwrap().create_only, CreateOnly::Kept);

    // Two repositories in one bucket do not see each other.
    let other = S3Store::new(&server.options("conformance")).unwrap();
    store.put(&name(1), Bytes::from_static(b"x")).await.unwrap();
    let seen: Vec<_> = other.list(ObjectKind::Pack).await.unwrap().try_collect().await.unwrap();
    assert_eq!(seen, []);
    objects_above_the_limit_travel_in_parts(&store).await;
    a_store_without_create_only_is_asked_before(&server).await;
    wrong_credentials_are_denied(&server).await;
    a_missing_bucket_is_named(&server).await;
    a_lost_answer_to_a_write_is_not_taken_for_a_conflict(&server).await;
}

async fn objects_above_the_limit_travel_in_parts(store: &S3Store) {
    let data = conformance::noise((WHOLE_BYTES_MAX + 3) as usize, 9);
    store.put(&name(2), data.clone()).await.unwrap();
    assert!(store.get(&name(2)).await.unwrap() == data);
    let error = store.put(&name(2), data).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::AlreadyExists);

    let mut upload = store.begin_put(&name(3), WHOLE_BYTES_MAX + 1).await.unwrap();
    upload.write(conformance::noise(PART_BYTES * 2, 1)).await.unwrap();
    assert_eq!(upload.finish().await.unwrap_err().kind(), StorageErrorKind::Damaged);
    assert_eq!(store.size(&name(3)).await.unwrap_err().kind(), StorageErrorKind::NotFound);
}

async fn a_store_without_create_only_is_asked_before(server: &Weed) {
    let store = S3Store::new(&server.options("asked")).unwrap();
    store.create_only.set(CreateOnly::AskedBefore).unwrap();
    store.put(&name(1), Bytes::from_static(b"first")).await.unwrap();
    let error = store.put(&name(1), Bytes::from_static(b"second")).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::AlreadyExists);
    assert_eq!(store.get(&name(1)).await.unwrap(), "first");
}

async fn wrong_credentials_are_denied(server: &Weed) {
    let options =
        S3Options { secret_access_key: Some(Secret::new("canary-wrong")), ..server.options("denied") };
    let store = S3Store::new(&options).unwrap();
    let error = store.get(&name(1)).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Denied);
    assert_eq!(error.code().to_string(), "HF-3009");
    assert!(!error.is_transient());
    assert!(!format!("{error:?} {error}").contains("canary"), "{error:?}");
}

async fn a_missing_bucket_is_named(server: &Weed) {
    let options = S3Options { bucket: "no-such-bucket".into(), ..server.options("x") };
    let store = S3Store::new(&options).unwrap();
    let error = store.list(ObjectKind::Pack).await.unwrap().try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unreachable);
    assert!(!error.is_transient());
}

/// Passes bytes to the server and back, but cuts the first connection that carries a certain PUT once the server
/// has answered it.
async fn proxy_that_loses_one_answer(listener: TcpListener, port: u16, path: String) {
    let mut lost = false;
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut to_server, mut to_client) = (vec![0; 65536], vec![0; 65536]);
        let mut watched = false;
        loop {
            tokio::select! {
                read = client.read(&mut to_server) => match read {
                    Ok(n) if n > 0 => {
                        let text = String::from_utf8_lossy(&to_server[..n]).into_owned();
                        watched |= text.starts_with("PUT") && text.contains(&path);
                        server.write_all(&to_server[..n]).await.unwrap();
                    }
                    _ => break,
                },
                read = server.read(&mut to_client) => match read {
                    Ok(n) if n > 0 && watched && !lost => {
                        lost = true;
                        break;
                    }
                    Ok(n) if n > 0 => client.write_all(&to_client[..n]).await.unwrap(),
                    _ => break,
                },
            }
        }
    }
}

async fn a_lost_answer_to_a_write_is_not_taken_for_a_conflict(server: &Weed) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let options = S3Options { endpoint: Some(endpoint), ..server.options("lost") };
    let store = S3Store::new(&options).unwrap();
    let work = async {
        // Through the same connection first, so that the trial of create-only is over.
        store.put(&name(5), Bytes::from_static(b"warm up")).await.unwrap();
        store.put(&name(6), Bytes::from_static(b"answer lost")).await.unwrap();
        assert_eq!(store.get(&name(6)).await.unwrap(), "answer lost");
        let error = store.put(&name(6), Bytes::from_static(b"other")).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::AlreadyExists);
    };
    tokio::select! {
        () = work => {}
        () = proxy_that_loses_one_answer(listener, server.port(), name(6).path()) => {}
    }
}

#[tokio::test]
async fn a_dead_endpoint_is_unreachable_after_the_retries() {
    let port = holdfast_runtime::test_port::reserve();
    let store = S3Store::new(&S3Options {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        access_key_id: Some(Secret::new("id")),
        secret_access_key: Some(Secret::new("key")),
        retries_max: 1,
        ..S3Options::new("bucket", "prefix")
    })
    .unwrap();
    for error in [
        store.get(&name(1)).await.unwrap_err(),
        store.put(&name(1), Bytes::from_static(b"x")).await.unwrap_err(),
        store.probe().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StorageErrorKind::Unreachable, "{error:?}");
        assert_eq!(error.code().to_string(), "HF-3008");
        assert!(error.is_transient());
    }
}
