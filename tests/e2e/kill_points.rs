//! `kill -9` at every named place of a backup: the run ends well, commits once, and nothing that was acknowledged is lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_proto::v1;
use holdfast_tests::process_fleet::{Hold, Program, SHORT_LEASE, recovery_limit};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{ProcessFleet, TreeSpec, assert_same_tree, note, run};

/// The places that lead to a death, one after another.
type Way = &'static [&'static str];

/// Makes or replaces a few files; the others stay, so that a snapshot shares most with its parent.
fn change(tree: &Path, round: usize) {
    for file in 0..4 {
        let path = tree.join(format!("changing {file}"));
        // A new file each time: the copy that a snapshot is compared with keeps the old one by a hard link.
        let _ = std::fs::remove_file(&path);
        std::fs::write(path, format!("round {round} file {file} ").repeat(10_000 * (file + 1))).unwrap();
    }
    std::fs::write(tree.join(format!("new in round {round}")), [round as u8; 70_000]).unwrap();
}

fn copy(tree: &Path, to: &Path) {
    drop(run(Command::new("cp").arg("-a").arg(tree).arg(to), PATIENCE).expect_success());
}

struct Campaign {
    fleet: ProcessFleet,
    tree: PathBuf,
    /// Acknowledged snapshots, each with a copy of what it holds.
    acknowledged: Vec<(String, PathBuf)>,
    rounds: usize,
    /// How long a run may take from the restart of what was killed.
    limit: Duration,
}

impl Campaign {
    async fn start(places: impl IntoIterator<Item = &'static str>) -> Self {
        let fleet = ProcessFleet::start(SHORT_LEASE, places).await;
        let tree = fleet.path().join("data");
        std::fs::create_dir(&tree).unwrap();
        TreeSpec { folders: 4, files: 20, ..TreeSpec::small(5) }.make(&tree);
        fleet.declare_tree(&tree).await;
        let began = Instant::now();
        let first = fleet.backup_well("tree", "full").await;
        let limit = recovery_limit(SHORT_LEASE, began.elapsed());
        let mut campaign = Self { fleet, tree, acknowledged: Vec::new(), rounds: 0, limit };
        campaign.acknowledge(first);
        campaign
    }

    fn acknowledge(&mut self, run: v1::Run) {
        let copied = self.fleet.path().join(format!("copy-{}", self.acknowledged.len()));
        copy(&self.tree, &copied);
        self.acknowledged.push((run.snapshot_id, copied));
    }

    /// Backs up and kills at the end of the way; the run must end well all the same.
    async fn die(&mut self, way: Way) {
        let began = Instant::now();
        self.rounds += 1;
        change(&self.tree, self.rounds);
        let request = request(self.rounds);
        let (first, hold) = begin(&self.fleet, &request, way).await;
        let program = Program::at(way.last().expect("a way leads somewhere"));
        self.fleet.kill(program);
        drop(hold);
        self.fleet.restart(program);
        let repeated = async || start(&self.fleet, &request).await;
        let run = until_async("the request to be answered", self.limit, repeated).await;
        assert!(first.is_none_or(|first| first.id == run.id), "{way:?}: the same key gave another run");
        let ended = tokio::time::timeout(self.limit, self.fleet.ended(&run)).await;
        let ended = ended.unwrap_or_else(|_| panic!("{way:?}: the run lasts longer than its lease and 30 s"));
        let log = self.fleet.log(&ended).await;
        assert_eq!(ended.phase, "succeeded", "{way:?}: {ended:?}\n{log}");
        self.acknowledge(ended);
        note(&format!("{:>5} ms  killed at {}", began.elapsed().as_millis(), way.join(", then ")));
    }

    /// Asks the controller to stop and kills it on the way to its end; the next backup goes on from what it left.
    async fn die_stopping(&mut self, place: &'static str) {
        self.rounds += 1;
        change(&self.tree, self.rounds);
        let before = self.fleet.backup_well("tree", "incremental").await;
        self.acknowledge(before);
        let hold = self.fleet.hold(place);
        self.fleet.ask_to_stop(Program::Controller);
        self.fleet.is_held(&hold).await;
        self.fleet.kill(Program::Controller);
        drop(hold);
        self.fleet.restart(Program::Controller);
        let request = request(self.rounds);
        let run = until_async("the next backup", PATIENCE, async || start(&self.fleet, &request).await).await;
        let ended = self.fleet.ended(&run).await;
        assert_eq!(ended.phase, "succeeded", "{place}: {ended:?}");
        let added = ended.progress.as_ref().map_or(0, |progress| progress.bytes_new);
        assert!(added < 10_000, "{place}: what was there is not known any more: {ended:?}");
        self.acknowledge(ended);
        note(&format!("killed at {place}"));
    }

    /// The next backup succeeds, and everything that was acknowledged comes back bit by bit.
    async fn prove(mut self) {
        self.rounds += 1;
        change(&self.tree, self.rounds);
        let last = self.fleet.backup_well("tree", "incremental").await;
        self.acknowledge(last);
        let restic = self.fleet.restic();
        restic.check_all_data();
        let mut listed: Vec<_> =
            restic.snapshots().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
        let mut acknowledged: Vec<_> = self.acknowledged.iter().map(|(id, _)| id.clone()).collect();
        listed.sort();
        acknowledged.sort();
        assert_eq!(listed, acknowledged, "every run committed once, and nothing else was committed");
        for (id, copied) in &self.acknowledged {
            let restored = self.fleet.path().join(format!("restored-{id}"));
            restic.restore(id, &restored);
            assert_same_tree(copied, &restored.join(self.tree.strip_prefix("/").unwrap()));
        }
    }
}

fn request(round: usize) -> v1::StartRequest {
    let backup = v1::StartBackup {
        source: "tree".to_owned(),
        snapshot_type: "incremental".to_owned(),
        ..v1::StartBackup::default()
    };
    v1::StartRequest {
        idempotency_key: format!("round {round}"),
        what: Some(v1::start_request::What::Backup(backup)),
    }
}

/// Queues the run of a request, or finds it queued.
async fn start(fleet: &ProcessFleet, request: &v1::StartRequest) -> Option<v1::Run> {
    let reply = fleet.runs().start(request.clone()).await.ok()?;
    reply.into_inner().runs.into_iter().next()
}

/// Queues the run and goes the way to its end. There is no run when the request itself is held up.
async fn begin(fleet: &ProcessFleet, request: &v1::StartRequest, way: Way) -> (Option<v1::Run>, Hold) {
    let (first, rest) = way.split_first().expect("a way has an end");
    let mut arriving = std::pin::pin!(fleet.lead(fleet.hold(first), rest));
    tokio::select! {
        hold = &mut arriving => (None, hold),
        run = start(fleet, request) => (run, arriving.await),
    }
}

async fn die_at(ways: &[Way]) {
    let mut places: Vec<_> = ways.iter().flat_map(|way| way.iter().copied()).collect();
    places.sort_unstable();
    places.dedup();
    let mut campaign = Campaign::start(places).await;
    for way in ways {
        campaign.die(way).await;
    }
    campaign.prove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_die_at_every_step_of_a_backup() {
    die_at(&[
        &["agent-journal-before-begin"],
        &["agent-journal-write"],
        &["agent-journal-after-begin"],
        &["agent-outbox-before-append"],
        &["agent-outbox-append"],
        &["agent-outbox-fsync"],
        &["agent-outbox-after-fsync"],
        &["agent-before-put-pack"],
        &["agent-after-put-pack"],
        &["agent-before-commit-snapshot"],
        &["agent-after-commit-snapshot"],
        // Of its last word.
        &["agent-after-commit-snapshot", "agent-outbox-before-append"],
        &["agent-after-commit-snapshot", "agent-outbox-fsync"],
        &["agent-journal-before-end"],
        &["agent-journal-before-end", "agent-journal-write"],
        // Of the file of the journal.
        &["agent:durable-file-before-fsync"],
        &["agent:durable-file-before-rename"],
        &["agent:durable-file-before-folder-fsync"],
        &["agent:durable-file-done"],
        &["agent-journal-before-end", "agent:durable-file-before-rename"],
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_may_die_at_every_step_of_a_commit() {
    die_at(&[
        &["controller-before-assign"],
        &["controller-after-assign"],
        &["controller-before-index"],
        &["controller-after-index"],
        &["controller-before-snapshot"],
        &["controller-after-snapshot"],
        &["controller-after-commit"],
        // Of the first pack.
        &["fs-put-before-write"],
        &["fs-put-before-fsync"],
        &["fs-put-before-rename"],
        &["fs-put-before-folder-fsync"],
        &["fs-put-done"],
        // Of the snapshot object.
        &["controller-before-snapshot", "fs-put-before-rename"],
        &["controller-before-snapshot", "fs-put-before-folder-fsync"],
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_may_die_at_every_step_of_a_change_of_its_state() {
    die_at(&[
        // Of the request.
        &["journal-before-write"],
        &["journal-before-fsync"],
        &["journal-after-fsync"],
        &["store-before-apply"],
        &["view-before-apply"],
        &["view-after-apply"],
        &["store-before-acknowledge"],
        // Of the assignment.
        &["controller-before-assign", "journal-before-fsync"],
        &["controller-before-assign", "store-before-acknowledge"],
        // Of the commit, when the snapshot exists already.
        &["controller-after-snapshot", "journal-before-write"],
        &["controller-after-snapshot", "journal-after-fsync"],
        &["controller-after-snapshot", "view-after-apply"],
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_may_die_at_every_step_of_its_stop() {
    let places = [
        // Of the segment that the recent blobs become, and of the marker that says so.
        "durable-file-before-fsync",
        "durable-file-before-rename",
        "durable-file-before-folder-fsync",
        "blob-index-after-segment",
        "durable-file-done",
    ];
    let mut campaign = Campaign::start(places).await;
    for place in places {
        campaign.die_stopping(place).await;
    }
    campaign.prove().await;
}
