//! `kill -9` at every named place of a prune and of a removal: what is kept is whole, and the next one does the rest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_proto::v1;
use holdfast_runtime::SystemClock;
use holdfast_tests::process_fleet::{Program, SHORT_LEASE, recovery_limit};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{ProcessFleet, assert_same_tree, note, run};

const FILES: usize = 8;

/// Snapshots that are kept, with a copy of what each holds.
struct Campaign {
    fleet: ProcessFleet,
    tree: PathBuf,
    kept: Vec<(String, PathBuf)>,
    rounds: usize,
}

/// Replaces some files, others each time, so that some packs go whole and some are repacked.
fn change(tree: &Path, round: usize) {
    use rand::{RngExt as _, SeedableRng as _};
    let mut random = rand::rngs::StdRng::seed_from_u64(round as u64);
    let files: Vec<usize> = match round {
        0 => (0..FILES).collect(),
        _ => (0..3).map(|number| (round * 3 + number) % FILES).collect(),
    };
    for file in files {
        let mut bytes = vec![0; 120_000];
        random.fill(&mut bytes[..]);
        let path = tree.join(file.to_string());
        let _ = std::fs::remove_file(&path);
        std::fs::write(path, bytes).unwrap();
    }
}

impl Campaign {
    async fn start(places: &[&'static str]) -> Self {
        let fleet = ProcessFleet::start(SHORT_LEASE, places.iter().copied()).await;
        let repository = format!(
            "repositories:\n  main: {{ url: \"file://{}\", encryption: {{ key: {{ file: {} }} }}, prune: {{ grace: 1s, approve_above: 100% }} }}\n",
            fleet.repository().display(),
            fleet.password_file().display()
        );
        fleet.apply(&repository).await.unwrap();
        let tree = fleet.path().join("data");
        std::fs::create_dir(&tree).unwrap();
        fleet.declare_tree(&tree).await;
        let mut campaign = Self { fleet, tree, kept: Vec::new(), rounds: 0 };
        for _ in 0..2 {
            campaign.back_up().await;
        }
        campaign
    }

    async fn back_up(&mut self) {
        change(&self.tree, self.rounds);
        let made = self.fleet.backup_well("tree", "incremental").await;
        let copy = self.fleet.path().join(format!("copy-{}", self.rounds));
        self.rounds += 1;
        drop(run(Command::new("cp").arg("-a").arg(&self.tree).arg(&copy), PATIENCE).expect_success());
        self.kept.push((made.snapshot_id, copy));
    }

    async fn forget(&self, id: &str) -> Result<(), tonic::Status> {
        let request = v1::ForgetSnapshotsRequest {
            ids: vec![id.to_owned()],
            confirm: vec!["tree".to_owned()],
            reason: "a test".to_owned(),
            dry_run: false,
        };
        self.fleet.snapshots().forget(request).await.map(drop)
    }

    async fn start_prune(&self) -> Option<v1::Run> {
        let request = v1::PruneRepositoryRequest {
            idempotency_key: format!("round {}", self.rounds),
            name: "main".to_owned(),
            ..Default::default()
        };
        self.fleet.repositories().prune(request).await.ok()?.into_inner().run
    }

    /// Makes garbage and kills the prune of it at a place; the same run must end well all the same.
    async fn die_pruning(&mut self, place: &'static str) {
        let began = Instant::now();
        self.back_up().await;
        let (oldest, _) = self.kept.remove(0);
        self.forget(&oldest).await.unwrap();
        if place == "prune-after-delete" {
            until_async("something to lie in the trash for its time", PATIENCE, async || self.old_trash())
                .await;
        }
        let hold = self.fleet.hold(place);
        let first = self.start_prune().await.unwrap();
        self.fleet.is_held(&hold).await;
        self.fleet.kill(Program::Controller);
        drop(hold);
        self.fleet.restart(Program::Controller);
        let limit = recovery_limit(SHORT_LEASE, Duration::from_secs(1));
        let found = until_async("the request to be answered", limit, async || self.start_prune().await).await;
        assert_eq!(found.id, first.id, "{place}: the same key gave another run");
        let ended = tokio::time::timeout(limit, self.fleet.ended(&found)).await;
        let ended = ended.unwrap_or_else(|_| panic!("{place}: the run does not end"));
        assert_eq!(ended.phase, "succeeded", "{place}: {ended:?}\n{}", self.fleet.log(&ended).await);
        note(&format!("{:>5} ms  killed at {place}", began.elapsed().as_millis()));
    }

    /// Whether something lies in the trash that the next prune deletes.
    fn old_trash(&self) -> Option<()> {
        let now = SystemClock::shared().now().as_second();
        let trash = std::fs::read_dir(self.fleet.repository().join("trash")).unwrap();
        let mut moments = trash.map(|moment| moment.unwrap().file_name().to_str().unwrap().parse::<i64>());
        moments.any(|moment| moment.unwrap() + 2 <= now).then_some(())
    }

    /// Kills the controller while it forgets a snapshot; what is left of it goes when the catalog is synced.
    async fn die_forgetting(&mut self, place: &'static str) {
        self.back_up().await;
        let (oldest, _) = self.kept.remove(0);
        let hold = self.fleet.hold(place);
        {
            let mut forgetting = std::pin::pin!(self.forget(&oldest));
            tokio::select! {
                done = &mut forgetting => panic!("{place}: it was not held: {done:?}"),
                () = self.fleet.is_held(&hold) => {}
            }
        }
        self.fleet.kill(Program::Controller);
        drop(hold);
        self.fleet.restart(Program::Controller);
        let open = async || {
            let request = v1::InitRepositoryRequest { name: "main".to_owned() };
            self.fleet.repositories().init(request).await.ok()
        };
        until_async("the repository to be open", PATIENCE, open).await;
        if place == "forget-before-delete" {
            self.forget(&oldest).await.unwrap();
        }
        let listed = self.fleet.snapshots_of("tree").await;
        assert!(listed.iter().all(|snapshot| snapshot.id != oldest), "{place}: it is listed and gone");
    }

    /// What is kept comes back bit by bit, and nothing else is left.
    async fn prove(mut self) {
        self.back_up().await;
        let restic = self.fleet.restic();
        restic.check_all_data();
        let mut listed: Vec<_> =
            restic.snapshots().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
        let mut kept: Vec<_> = self.kept.iter().map(|(id, _)| id.clone()).collect();
        listed.sort();
        kept.sort();
        assert_eq!(listed, kept);
        for (id, copied) in &self.kept {
            let restored = self.fleet.path().join(format!("restored-{id}"));
            restic.restore(id, &restored);
            assert_same_tree(copied, &restored.join(self.tree.strip_prefix("/").unwrap()));
        }
        let pruned = self.start_prune().await.unwrap();
        assert_eq!(self.fleet.ended(&pruned).await.phase, "succeeded");
        let request =
            v1::PruneRepositoryRequest { name: "main".to_owned(), dry_run: true, ..Default::default() };
        let plan = self.fleet.repositories().prune(request).await.unwrap().into_inner().plan.unwrap();
        assert!(plan.freed_bytes == 0 && plan.dead_bytes * 20 <= plan.bytes, "{plan:?}");
        restic.check_all_data();
    }
}

async fn die_pruning_at(places: &[&'static str]) {
    let mut campaign = Campaign::start(places).await;
    for place in places {
        campaign.die_pruning(place).await;
    }
    campaign.prove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_may_die_at_every_step_that_adds() {
    die_pruning_at(&[
        "prune-before-pack",
        "prune-after-pack",
        "prune-after-index",
        "prune-before-condemn",
        "prune-after-condemn",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_may_die_at_every_step_that_takes_away() {
    die_pruning_at(&[
        "prune-before-new-index",
        "prune-after-new-index",
        "prune-after-old-index",
        "controller-after-prune-index",
        "prune-after-trash",
        "prune-after-delete",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_of_a_snapshot_may_die_at_every_step() {
    let places = ["forget-before-delete", "forget-after-delete"];
    let mut campaign = Campaign::start(&places).await;
    for place in places {
        campaign.die_forgetting(place).await;
    }
    campaign.prove().await;
}
