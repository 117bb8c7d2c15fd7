//! A repository in an S3-compatible store.

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
