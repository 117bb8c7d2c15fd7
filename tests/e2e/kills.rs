//! `kill -9` of agent and controller at random moments of backups: what was acknowledged is there, and sound.
//!
//! `HOLDFAST_KILLS=40` (as `make kills` sets it) makes the campaign longer; a short one runs with the other tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_model::secret::Secret;
use holdfast_proto::v1;
use holdfast_tests::fleet::{Operator, REPOSITORY_PASSWORD};
use holdfast_tests::wait::until_async;
use holdfast_tests::{Process, Restic, TreeSpec, assert_same_tree, free_port, note, run, workspace};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// How long the controller may take to answer after a restart.
const DEADLINE: Duration = Duration::from_secs(60);

/// A fleet of real processes.
struct House {
    dir: tempfile::TempDir,
    controller: Process,
    agent: Process,
    operator: Operator,
}

fn controller_command(dir: &Path) -> Command {
    let mut command = Command::new(workspace::binary("holdfast-controller"));
    command.args(["run", "--config"]).arg(dir.join("controller.yaml"));
    command
}

fn agent_command(dir: &Path) -> Command {
    let mut command = Command::new(workspace::binary("holdfast-agent"));
    command.args(["run", "--config"]).arg(dir.join("agent.yaml"));
    command
}

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

impl House {
    async fn build() -> Self {
        holdfast_runtime::tls::install_crypto_provider();
        let dir = holdfast_tests::temp_dir("kills");
        let path = dir.path().to_owned();
        let port = free_port();
        write(
            &path.join("controller.yaml"),
            &format!(
                "api: holdfast/v1\ngrpc: {{ listen: \"127.0.0.1:{port}\" }}\ndata_dir: {}/controller\nlimits: {{ lease_seconds: 5 }}\n",
                path.display()
            ),
        );
        write(&path.join("password"), REPOSITORY_PASSWORD);
        let mut init = Command::new(workspace::binary("holdfast-controller"));
        init.arg("init").arg("--config").arg(path.join("controller.yaml"));
        init.arg("--token-file").arg(path.join("token")).arg("--ca-file").arg(path.join("ca.pem"));
        let _ = run(&mut init, Duration::from_secs(30)).expect_success();
        let controller = Process::start("controller", &mut controller_command(&path), &path);
        let operator = Operator {
            address: format!("https://127.0.0.1:{port}"),
            token: Secret::new(std::fs::read_to_string(path.join("token")).unwrap().trim()),
            ca_pem: std::fs::read_to_string(path.join("ca.pem")).unwrap(),
        };
        let token = until_async("the controller to answer", DEADLINE, async || {
            let request = v1::CreateEnrollmentTokenRequest { agent: "a1".to_owned(), ttl_seconds: 60 };
            Some(operator.fleet().create_enrollment_token(request).await.ok()?.into_inner())
        })
        .await;
        write(&path.join("agent.yaml"), &format!("api: holdfast/v1\ndata_dir: {}/agent\n", path.display()));
        let mut enroll = Command::new(workspace::binary("holdfast-agent"));
        enroll.args(["enroll", "--name", "a1", "--controller", &operator.address, "--ca-pin", &token.ca_pin]);
        enroll.arg("--data-dir").arg(path.join("agent")).env("HOLDFAST_ENROLL_TOKEN", &token.token);
        let _ = run(&mut enroll, Duration::from_secs(30)).expect_success();
        let agent = Process::start("agent", &mut agent_command(&path), &path);
        Self { dir, controller, agent, operator }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn declare(&self, tree: &Path) {
        let yaml = format!(
            "repositories:\n  main: {{ url: \"file://{0}/repository\", encryption: {{ key: {{ file: {0}/password }} }} }}\nsources:\n  tree: {{ engine: files, agent: a1, paths: [{1}] }}\n",
            self.path().display(),
            tree.display()
        );
        self.operator.apply(&yaml).await.unwrap();
        let request = v1::InitRepositoryRequest { name: "main".to_owned() };
        self.operator.repositories().init(request).await.unwrap();
    }

    fn kill_and_restart(&mut self, controller: bool) {
        let path = self.path().to_owned();
        if controller {
            self.controller.kill();
            self.controller = Process::start("controller", &mut controller_command(&path), &path);
        } else {
            self.agent.kill();
            self.agent = Process::start("agent", &mut agent_command(&path), &path);
        }
    }
}

fn change(tree: &Path, round: u32, random: &mut StdRng) {
    for file in 0..40 {
        let mut bytes = vec![0u8; random.random_range(1..300_000)];
        random.fill(bytes.as_mut_slice());
        std::fs::write(tree.join(format!("round {round} file {file}")), bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_agent_and_controller_lose_nothing_that_was_acknowledged() {
    let kills: u32 = std::env::var("HOLDFAST_KILLS").map_or(6, |text| text.parse().unwrap());
    let seed: u64 =
        std::env::var("HOLDFAST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    note(&format!("{kills} kills, HOLDFAST_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut house = House::build().await;
    let tree = house.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(seed).make(&tree);
    house.declare(&tree).await;
    // How long a backup takes when nothing happens to it; kills are spread over a little more than that.
    let began = std::time::Instant::now();
    let first = house.operator.backup_well("tree", "full").await;
    let usual = began.elapsed();
    let mut acknowledged = vec![first.snapshot_id];
    let mut phases: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..kills {
        change(&tree, round, &mut random);
        let started = until_async("a backup to be queued", DEADLINE, async || {
            house.operator.start_backup("tree", "full").await.ok()
        })
        .await;
        // The moment is what is tested here: a share of the usual time, drawn from the seed.
        tokio::time::sleep(usual.mul_f64(random.random_range(0.0..1.3))).await;
        let request = v1::GetRunRequest { run_id: started.id.clone() };
        let now = house.operator.runs().get(request).await.unwrap().into_inner().run.unwrap();
        *phases.entry(now.phase).or_default() += 1;
        house.kill_and_restart(round % 2 == 0);
        let ended = house.operator.ended(&started).await;
        assert_eq!(ended.phase, "succeeded", "{ended:?}\n{}", house.operator.log(&ended).await);
        acknowledged.push(ended.snapshot_id);
    }
    note(&format!("kills by phase: {phases:?}"));
    let restic =
        Restic::new(house.path().join("repository").display().to_string(), house.path().join("password"));
    restic.check_all_data();
    let listed = restic.snapshots();
    let ids: BTreeSet<&str> = listed.iter().map(|snapshot| snapshot["id"].as_str().unwrap()).collect();
    for id in &acknowledged {
        assert!(ids.contains(id.as_str()), "snapshot {id} was acknowledged and is gone");
    }
    let runs: Vec<&str> = listed
        .iter()
        .flat_map(|snapshot| snapshot["tags"].as_array().unwrap())
        .filter_map(|tag| tag.as_str().unwrap().strip_prefix("run:"))
        .collect();
    let different: BTreeSet<&&str> = runs.iter().collect();
    assert_eq!(different.len(), runs.len(), "a run committed twice");
    assert_eq!(runs.len(), acknowledged.len(), "every run committed once, and nothing else was committed");
    let restored: PathBuf = house.path().join("restored");
    restic.restore(acknowledged.last().unwrap(), &restored);
    assert_same_tree(&tree, &restored.join(tree.strip_prefix("/").unwrap()));
}
