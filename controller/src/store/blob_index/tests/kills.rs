//! `kill -9` of a process that enters blobs, at every named place: what was acknowledged is found, and work goes on.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use holdfast_runtime::fail_point;

use super::*;

/// Where the process that is killed works; this very test, which the test starts.
const FOLDER_VARIABLE: &str = "HOLDFAST_TEST_BLOB_INDEX";
const SIGKILL: i32 = 9;
const BLOBS_PER_PACK: u32 = 50;
/// More than any place needs to be come to.
const PACKS_MAX: u32 = 500;

fn open(folder: &Path) -> DiskBlobIndex {
    let settings = BlobIndexSettings {
        recent_slots_max: 100,
        ..BlobIndexSettings::new(folder.join("index"), Some("one boot".to_owned()))
    };
    DiskBlobIndex::open(settings, &TaskGroup::new(&Shutdown::new())).unwrap()
}

fn acknowledged(folder: &Path) -> u32 {
    let text = std::fs::read_to_string(folder.join("acknowledged")).unwrap_or_default();
    text.lines().count() as u32
}

fn copy_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("index")).unwrap();
    for entry in std::fs::read_dir(folder.join("index")).unwrap() {
        let name = Path::new("index").join(entry.unwrap().file_name());
        std::fs::copy(folder.join(&name), copy.path().join(name)).unwrap();
    }
    copy
}

/// What the process does that is killed.
async fn enter_packs(folder: PathBuf) {
    let index = open(&folder);
    if !index.is_complete() {
        index.finish_rebuild().await.unwrap();
    }
    let log = std::fs::File::options().create(true).append(true).open(folder.join("acknowledged"));
    let mut log = log.unwrap();
    for number in acknowledged(&folder)..PACKS_MAX {
        fill(&index, number..number + 1, BLOBS_PER_PACK).await;
        writeln!(log, "{number}").unwrap();
    }
}

#[tokio::test]
async fn a_process_killed_at_any_place_loses_nothing_that_it_acknowledged() {
    if let Some(folder) = std::env::var_os(FOLDER_VARIABLE) {
        return enter_packs(folder.into()).await;
    }
    let own_name =
        "store::blob_index::tests::kills::a_process_killed_at_any_place_loses_nothing_that_it_acknowledged";
    let places = [
        "blob-index-after-segment",
        "blob-index-after-merge",
        "durable-file-before-fsync",
        "durable-file-before-rename",
        "durable-file-before-folder-fsync",
        "durable-file-done",
    ];
    for place in places {
        let folder = tempfile::tempdir().unwrap();
        for hit in [1, 2, 3, 5] {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", own_name]);
            child.env(FOLDER_VARIABLE, folder.path());
            child.env(fail_point::ENVIRONMENT_VARIABLE, format!("{place}=kill:{hit}"));
            let status = child.stdout(std::process::Stdio::null()).status().unwrap();
            assert_eq!(status.signal(), Some(SIGKILL), "{place}: it was not come to {hit} times");
            let acknowledged = acknowledged(folder.path());
            // A copy: the next process begins where this one died, not after an orderly stop.
            let copy = copy_of(folder.path());
            let index = open(copy.path());
            assert!(index.is_complete() || acknowledged == 0, "{place}: it has to be rebuilt");
            expect_filled(&index, 0..acknowledged, BLOBS_PER_PACK).await;
        }
        assert!(acknowledged(folder.path()) > 0, "{place}: nothing was entered");
    }
}
