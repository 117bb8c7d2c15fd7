//! What end-to-end tests stand on: real servers, real binaries, real trees, and a watch for secrets.
//!
//! Everything here panics with a full account when something is not as a test needs it: a test has nobody to hand an
//! error to. Nothing here sleeps for a guessed time: [`wait::until`] polls a fact until a deadline.

pub mod canary;
pub mod fleet;
pub mod http;
pub mod http_sink;
pub mod mail_server;
pub mod otlp;
pub mod packs;
pub mod postgres;
pub mod process;
pub mod process_fleet;
pub mod promtool;
pub mod proxy;
pub mod restic;
pub mod s3;
pub mod skewed_clock;
pub mod small_disk;
pub mod tree;
pub mod tree_compare;
pub mod wait;
pub mod workspace;

pub use canary::CanaryWatch;
pub use fleet::Fleet;
pub use holdfast_runtime::test_port;
pub use http::HttpClient;
pub use http_sink::HttpSink;
pub use mail_server::MailServer;
pub use postgres::PostgresCluster;
pub use process::{Process, run};
pub use process_fleet::ProcessFleet;
pub use proxy::Proxy;
pub use restic::Restic;
pub use s3::S3Server;
pub use skewed_clock::SkewedClock;
pub use small_disk::SmallDisk;
pub use tree::{TreeSpec, TreeSummary};
pub use tree_compare::assert_same_tree;

use tempfile::TempDir;

/// A folder that is removed when dropped.
///
/// With `HOLDFAST_TEST_KEEP` set, it stays, and its path is printed: to look at what a failing test left behind.
pub fn temp_dir(name: &str) -> TempDir {
    let mut dir = tempfile::Builder::new()
        .prefix(&format!("holdfast-{name}-"))
        .tempdir()
        .expect("the temporary folder of the machine is writable");
    if std::env::var_os("HOLDFAST_TEST_KEEP").is_some() {
        dir.disable_cleanup(true);
        note(&format!("kept: {}", dir.path().display()));
    }
    dir
}

/// Writes one line to standard error, where the test runner shows it with a failure.
#[expect(clippy::print_stderr, reason = "a test harness speaks to the person who runs the test")]
pub fn note(text: &str) {
    eprintln!("{text}");
}
