//! A SeaweedFS server for tests: a real S3 server on ports of its own, with a folder of its own, gone with its value.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_model::secret::Secret;
use holdfast_runtime::test_port;

use super::s3::{S3Options, S3Store};
use super::{ObjectStore, StorageError};
use crate::format::ObjectName;

const ACCESS_KEY: &str = "testkey";
const SECRET_KEY: &str = "testsecret";
/// How long a server may take to start.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The bucket that the server has.
pub(crate) const BUCKET: &str = "holdfast-test";

/// A running server.
pub(crate) struct Weed {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Weed {
    /// Starts a server and waits until it stores an object.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Each part serves gRPC ten thousand above its own port.
        let ports: [u16; 5] = std::array::from_fn(|_| test_port::reserve_with(&[10_000]));
        let process = Command::new(binary())
            .arg("mini")
            .arg(format!("-dir={}", folder.path().display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false"])
            .args(["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-bucket={BUCKET}"))
            .arg(format!("-s3.port={}", ports[0]))
            .arg(format!("-master.port={}", ports[1]))
            .arg(format!("-filer.port={}", ports[2]))
            .arg(format!("-volume.port={}", ports[3]))
            .arg(format!("-admin.port={}", ports[4]))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, port: ports[0], _folder: folder };
        server.wait_until_it_stores().await;
        server
    }

    /// Options for a folder of the server's bucket.
    pub(crate) fn options(&self, prefix: &str) -> S3Options {
        S3Options {
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            access_key_id: Some(Secret::new(ACCESS_KEY)),
            secret_access_key: Some(Secret::new(SECRET_KEY)),
            ..S3Options::new(BUCKET, prefix)
        }
    }

    /// The port of its S3 interface.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    async fn wait_until_it_stores(&self) {
        let options = S3Options { retries_max: 0, ..self.options("ready") };
        let deadline = Instant::now() + READY_WITHIN;
        let mut last: Option<StorageError> = None;
        while Instant::now() < deadline {
            let store = S3Store::new(&options).unwrap();
            match store.put(&ObjectName::Config, Bytes::from_static(b"ready")).await {
                Ok(()) => return,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("SeaweedFS did not store an object in time: {last:?}");
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        // It takes half a minute to end by itself; there is nothing to keep.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program that `make setup` put into the cache.
fn binary() -> PathBuf {
    let cache = std::env::var_os("HOLDFAST_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").expect("HOME is set");
        PathBuf::from(home).join(".cache/holdfast")
    });
    let path = cache.join("tools/bin/weed");
    assert!(path.is_file(), "{} is missing: run `make setup`", path.display());
    path
}
