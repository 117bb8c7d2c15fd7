//! Secrets that were planted are found nowhere: not in arguments or environments, logs, errors, state or exports.

use std::path::Path;

use holdfast_proto::v1;
use holdfast_tests::canary::files_with;
use holdfast_tests::process_fleet::LONG_LEASE;
use holdfast_tests::{CanaryWatch, PostgresCluster, ProcessFleet, S3Server};

const ACCESS_KEY: &str = "canaryaccesskey417";

/// The secrets, different in each run: another run on this machine may have its own where it must.
struct Canaries {
    secret_key: String,
    password: String,
    login: String,
    wrong_login: String,
}

impl Canaries {
    fn new() -> Self {
        let canary = |name: &str| format!("canary-{name}-{:016x}", rand::random::<u64>());
        Self {
            secret_key: canary("secret-key"),
            password: canary("repository"),
            login: canary("login"),
            wrong_login: canary("wrong-login"),
        }
    }

    fn all(&self) -> [&str; 4] {
        [&self.secret_key, &self.password, &self.login, &self.wrong_login]
    }
}

fn plant(folder: &Path, name: &str, value: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, value).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    format!("{{ file: {} }}", path.display())
}

/// A cluster with a database `shop` and a login `keeper` that has the planted password.
fn cluster(login: &str) -> PostgresCluster {
    let cluster = PostgresCluster::start();
    cluster.psql("postgres", "CREATE DATABASE shop");
    cluster.psql("postgres", &format!("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{login}'"));
    cluster.psql("shop", "CREATE TABLE orders AS SELECT n AS id FROM generate_series(1, 20000) n");
    cluster
}

fn fleet_file(cluster: &PostgresCluster, server: &S3Server, canaries: &Canaries, secrets: &Path) -> String {
    let source = |name: &str, password: &str| {
        let port = cluster.port();
        format!(
            "  {name}: {{ engine: postgres, agent: a1, databases: [shop], connect: {{ host: 127.0.0.1, port: {port}, user: keeper, password: {password} }}, to: [vault] }}\n"
        )
    };
    format!(
        "repositories:\n  vault: {{ url: \"s3://{}/fleet\", region: {}, endpoint: \"{}\", encryption: {{ key: {} }}, credentials: {{ access_key: {}, secret_key: {} }} }}\nsources:\n{}{}",
        server.bucket(),
        S3Server::REGION,
        server.endpoint(),
        plant(secrets, "password", &canaries.password),
        plant(secrets, "access", ACCESS_KEY),
        plant(secrets, "secret", &canaries.secret_key),
        source("shop", &plant(secrets, "login", &canaries.login)),
        source("refused", &plant(secrets, "wrong", &canaries.wrong_login)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_show_nowhere() {
    let canaries = Canaries::new();
    let cluster = cluster(&canaries.login);
    let mut server = S3Server::start_with("holdfast", ACCESS_KEY, &canaries.secret_key);
    let secrets = holdfast_tests::temp_dir("secrets");
    let fleet = ProcessFleet::start(LONG_LEASE, []).await;
    let watch = CanaryWatch::start(&canaries.all(), &[server.process().id()]);
    let mut shown = Vec::new();
    let changes = fleet.apply(&fleet_file(&cluster, &server, &canaries, secrets.path())).await.unwrap();
    shown.push(format!("{changes:?}"));
    let init = v1::InitRepositoryRequest { name: "vault".to_owned() };
    shown.push(format!("{:?}", fleet.repositories().init(init).await.unwrap()));
    // What says the most.
    for source in ["shop", "refused"] {
        let debug = v1::DebugSourceRequest { source: source.to_owned(), for_seconds: 3600 };
        assert!(fleet.fleet().debug_source(debug).await.unwrap().into_inner().debug.is_some());
    }
    for source in ["shop", "shop", "refused"] {
        let run = fleet.backup(source, "full").await;
        let phase = if source == "shop" { "succeeded" } else { "failed" };
        assert_eq!(run.phase, phase, "{run:?}");
        shown.extend([format!("{run:?}"), fleet.log(&run).await]);
    }
    let request = v1::PlanRestoreRequest {
        source: "shop".to_owned(),
        into: "shop_again".to_owned(),
        ..v1::PlanRestoreRequest::default()
    };
    let (run, _) = fleet.restore_well(request).await;
    shown.push(fleet.log(&run).await);
    assert_eq!(cluster.psql("shop_again", "SELECT count(*) FROM orders"), "20000");
    let doctor = fleet.status().doctor(v1::DoctorRequest {}).await.unwrap().into_inner();
    shown.push(format!("{doctor:?}"));
    shown.push(fleet.fleet().export(v1::ExportRequest::default()).await.unwrap().into_inner().yaml);
    let mut audit = fleet.status().audit(v1::AuditRequest::default()).await.unwrap().into_inner();
    while let Some(part) = audit.message().await.unwrap() {
        shown.push(format!("{part:?}"));
    }
    watch.expect_unseen();
    for command in ["/pg_dumpall ", "/pg_dump ", "/pg_restore "] {
        assert!(shown.iter().any(|text| text.contains(command)), "no log names {command}");
    }
    assert!(shown.iter().any(|text| text.contains("vault")), "what was looked at is not the right thing");
    for canary in canaries.all() {
        assert!(!shown.iter().any(|text| text.contains(canary)), "{canary} was shown");
    }
    // State, logs, spools and scratch folders of both programs lie here.
    assert_eq!(files_with(fleet.path(), &canaries.all()), Vec::<std::path::PathBuf>::new());
}
