//! An S3 server of one's own: SeaweedFS, whose conditional writes, checksums and signatures behave as S3's do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use holdfast_runtime::test_port;
use tempfile::TempDir;

use crate::process::Process;
use crate::wait::PATIENCE;
use crate::workspace;

/// The server serves gRPC of each part on the port of that part plus this.
const GRPC_PORT_OFFSET: u16 = 10_000;

/// A running S3 server on loopback with one bucket; killed and its data removed when dropped.
#[derive(Debug)]
pub struct S3Server {
    process: Process,
    port: u16,
    bucket: String,
    _data: TempDir,
}

impl S3Server {
    /// The access key of the only identity.
    pub const ACCESS_KEY: &'static str = "holdfasttestkey";
    /// Its secret key.
    pub const SECRET_KEY: &'static str = "holdfasttestsecret";
    /// The region it answers to.
    pub const REGION: &'static str = "us-east-1";

    /// Starts a server with a bucket, and returns once objects can be stored in it.
    ///
    /// # Panics
    /// When it is not ready in time; shows its log.
    pub fn start(bucket: &str) -> Self {
        Self::start_with(bucket, Self::ACCESS_KEY, Self::SECRET_KEY)
    }

    /// As [`S3Server::start`], with keys of one's own.
    ///
    /// # Panics
    /// As [`S3Server::start`].
    pub fn start_with(bucket: &str, access_key: &str, secret_key: &str) -> Self {
        let data = crate::temp_dir("s3");
        let [master, volume, filer, s3, admin] =
            std::array::from_fn(|_| test_port::reserve_with(&[GRPC_PORT_OFFSET]));
        let mut command = Command::new(workspace::tool("weed"));
        command
            .current_dir(data.path())
            .env("AWS_ACCESS_KEY_ID", access_key)
            .env("AWS_SECRET_ACCESS_KEY", secret_key)
            .args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"])
            .args(["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", data.path().display()))
            .arg(format!("-master.port={master}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-filer.port={filer}"))
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-admin.port={admin}"))
            .arg(format!("-bucket={bucket}"));
        let process = Process::start("weed", &mut command, data.path());
        let mut server = Self { process, port: s3, bucket: bucket.to_owned(), _data: data };
        server.wait_until_ready(filer);
        server
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The name of its bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The address of a repository in the bucket, as `restic` writes it.
    pub fn restic_url(&self, prefix: &str) -> String {
        format!("s3:{}/{}/{prefix}", self.endpoint(), self.bucket)
    }

    /// The process of the server, to kill, stop or continue it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// An object has to be stored beside the bucket by the file interface, the bucket has to be there, and the S3 port
    /// has to answer: an open port alone says nothing.
    fn wait_until_ready(&mut self, filer: u16) {
        let bucket = format!("/buckets/{}/", self.bucket);
        let port = self.port;
        self.process.wait_until("the first stored object", PATIENCE, |_| {
            let stored = http_status(filer, "PUT", "/ready", b"ready")? == 201;
            let bucket_there = http_status(filer, "GET", &bucket, b"")? == 200;
            let answers = http_status(port, "GET", "/", b"").is_some();
            (stored && bucket_there && answers).then_some(())
        });
    }
}

/// Sends one request to a loopback port and reads the status of the answer.
fn http_status(port: u16, method: &str, path: &str, body: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut answer = Vec::new();
    // The status line is all that counts; a connection reset after it is no concern.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}
