//! A repository in an S3-compatible store.

use holdfast_proto::v1;
use holdfast_proto::v1::PlanRestoreRequest;
use holdfast_tests::{Fleet, Restic, S3Server, TreeSpec, assert_same_tree};

fn secret(fleet: &Fleet, name: &str, value: &str) -> String {
    let path = fleet.path().join(name);
    std::fs::write(&path, value).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_to_a_bucket_and_comes_back() {
    let server = S3Server::start("holdfast");
    let mut fleet = Fleet::controller_alone().await;
    fleet.add_agent("a1").await;
    let more = format!(
        ", region: {}, endpoint: \"{}\", credentials: {{ access_key: {{ file: {} }}, secret_key: {{ file: {} }} }}",
        S3Server::REGION,
        server.endpoint(),
        secret(&fleet, "access", S3Server::ACCESS_KEY),
        secret(&fleet, "secret", S3Server::SECRET_KEY),
    );
    fleet.add_repository("main", &format!("s3://{}/fleet", server.bucket()), &more).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(5).make(&tree);
    fleet
        .apply(&format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display()))
        .await
        .unwrap();
    fleet.backup_well("tree", "full").await;
    fleet.backup_well("tree", "incremental").await;
    let request = PlanRestoreRequest { source: "tree".to_owned(), ..PlanRestoreRequest::default() };
    let (_, report) = fleet.restore_well(request).await;
    assert_same_tree(&tree, report.targets[0].restored.as_ref());
    let restic = Restic::new(server.restic_url("fleet"), fleet.password_file())
        .with_env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY)
        .with_env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY);
    restic.check_all_data();
    assert_eq!(restic.snapshots().len(), 2);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_in_a_bucket_is_pruned() {
    let server = S3Server::start("holdfast");
    let mut fleet = Fleet::controller_alone().await;
    fleet.add_agent("a1").await;
    let more = format!(
        ", region: {}, endpoint: \"{}\", credentials: {{ access_key: {{ file: {} }}, secret_key: {{ file: {} }} }}, prune: {{ grace: 1s, approve_above: 100% }}",
        S3Server::REGION,
        server.endpoint(),
        secret(&fleet, "access", S3Server::ACCESS_KEY),
        secret(&fleet, "secret", S3Server::SECRET_KEY),
    );
    fleet.add_repository("main", &format!("s3://{}/fleet", server.bucket()), &more).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    let write = |seed: u64| {
        use rand::{RngExt as _, SeedableRng as _};
        let mut bytes = vec![0; 400_000];
        rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
        std::fs::write(tree.join((seed % 4).to_string()), bytes).unwrap();
    };
    (0..4).for_each(write);
    fleet
        .apply(&format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display()))
        .await
        .unwrap();
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    (5..7).for_each(write);
    fleet.backup_well("tree", "incremental").await;
    let request = v1::ForgetSnapshotsRequest {
        ids: vec![first],
        confirm: vec!["tree".to_owned()],
        reason: "a test".to_owned(),
        dry_run: false,
    };
    fleet.snapshots().forget(request).await.unwrap();
    let prune =
        |dry_run| v1::PruneRepositoryRequest { name: "main".to_owned(), dry_run, ..Default::default() };
    let plan = async || fleet.repositories().prune(prune(true)).await.unwrap().into_inner().plan.unwrap();
    let before = plan().await;
    assert!(before.dead_bytes > 800_000 && before.repack_packs > 0, "{before:?}");
    let run = fleet.repositories().prune(prune(false)).await.unwrap().into_inner().run.unwrap();
    let ended = fleet.ended(&run).await;
    assert_eq!(ended.phase, "succeeded", "{ended:?}\n{}", fleet.log(&ended).await);
    let after = plan().await;
    assert!(before.bytes - after.bytes >= before.dead_bytes * 95 / 100, "{before:?} {after:?}");
    let request = v1::PlanRestoreRequest { source: "tree".to_owned(), ..Default::default() };
    let (_, report) = fleet.restore_well(request).await;
    assert_same_tree(&tree, report.targets[0].restored.as_ref());
    let restic = Restic::new(server.restic_url("fleet"), fleet.password_file())
        .with_env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY)
        .with_env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY);
    restic.check_all_data();
    fleet.stop().await;
}
