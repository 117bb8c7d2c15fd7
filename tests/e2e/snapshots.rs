//! Snapshots after they were made: checked, verified, damaged, held, exported and imported.

use holdfast_model::ErrorCode;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::packs::largest_pack;
use holdfast_tests::wait::PATIENCE;
use holdfast_tests::{Fleet, TreeSpec, assert_same_tree};

async fn fleet_with_backup() -> (Fleet, std::path::PathBuf, v1::Run) {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(11).make(&tree);
    fleet
        .apply(&format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display()))
        .await
        .unwrap();
    let run = fleet.backup_well("tree", "full").await;
    (fleet, tree, run)
}

async fn check(fleet: &Fleet, read_data: bool) -> v1::Run {
    let check = v1::StartCheck { repository: "main".to_owned(), read_data };
    let run = fleet.start_run(v1::start_request::What::Check(check)).await.unwrap();
    fleet.ended(&run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_named_and_shown_with_its_snapshot() {
    let (fleet, _, run) = fleet_with_backup().await;
    assert_eq!(check(&fleet, true).await.phase, "succeeded");
    assert_eq!(fleet.snapshots_of("tree").await[0].proof, "read");
    let pack = largest_pack(&fleet.repository());
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let found = check(&fleet, true).await;
    assert_eq!(found.phase, "failed");
    assert_eq!(found.failure.unwrap().code, ErrorCode::ObjectDamaged.to_string());
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(found.findings.iter().any(|finding| finding.contains(name)), "{:?}", found.findings);
    let snapshot = &fleet.snapshots_of("tree").await[0];
    assert_eq!((snapshot.proof.as_str(), snapshot.id == run.snapshot_id), ("damaged", true));
    let verify = v1::StartVerify { snapshot: run.snapshot_id.clone() };
    let verify = fleet.start_run(v1::start_request::What::Verify(verify)).await.unwrap();
    assert_eq!(fleet.ended(&verify).await.phase, "failed");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_snapshot_verifies() {
    let (fleet, _, run) = fleet_with_backup().await;
    let verify = v1::StartVerify { snapshot: run.snapshot_id[..8].to_owned() };
    let verify = fleet.start_run(v1::start_request::What::Verify(verify)).await.unwrap();
    let verified = fleet.ended(&verify).await;
    assert_eq!(verified.phase, "succeeded", "{verified:?}");
    assert_eq!(fleet.snapshots_of("tree").await[0].proof, "read");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_object_is_damaged_does_not_verify() {
    let (fleet, _, run) = fleet_with_backup().await;
    let object = fleet.repository().join("snapshots").join(&run.snapshot_id);
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&object, bytes).unwrap();
    let verify = v1::StartVerify { snapshot: run.snapshot_id.clone() };
    let verify = fleet.start_run(v1::start_request::What::Verify(verify)).await.unwrap();
    let verified = fleet.ended(&verify).await;
    assert_eq!(verified.phase, "failed");
    assert_eq!(verified.failure.unwrap().code, ErrorCode::ObjectDamaged.to_string());
    let expected = format!("snapshots/{} is damaged: ", run.snapshot_id);
    assert!(verified.findings[0].contains(&expected), "{:?}", verified.findings);
    assert_eq!(fleet.snapshots_of("tree").await[0].proof, "damaged");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_released_only_when_confirmed() {
    let (fleet, _, run) = fleet_with_backup().await;
    let hold = v1::HoldRequest { id: run.snapshot_id.clone(), reason: "audit".to_owned() };
    let held = fleet.snapshots().hold(hold).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(held.held_because, "audit");
    let release = v1::ReleaseRequest { id: run.snapshot_id.clone(), ..Default::default() };
    let refused = fleet.snapshots().release(release.clone()).await.unwrap_err();
    assert_eq!(from_status(&refused).code, ErrorCode::NeedsConfirmation);
    let release =
        v1::ReleaseRequest { confirm: run.snapshot_id[..8].to_owned(), reason: "done".to_owned(), ..release };
    let released = fleet.snapshots().release(release).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(released.held_because, "");
    fleet.stop().await;
}

async fn export(fleet: &Fleet, id: &str) -> Vec<u8> {
    let request = v1::ExportSnapshotRequest { id: id.to_owned() };
    let mut parts = fleet.snapshots().export(request).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        bytes.extend(part.data);
    }
    bytes
}

async fn import(fleet: &Fleet, source: &str, bytes: &[u8]) -> Result<v1::Snapshot, holdfast_model::Failure> {
    use v1::import_snapshot_request::Part;
    let header = v1::ImportHeader {
        repository: "main".to_owned(),
        source: source.to_owned(),
        file_name: "export.tar.zst".to_owned(),
    };
    let mut parts = vec![v1::ImportSnapshotRequest { part: Some(Part::Header(header)) }];
    let data = bytes.chunks(1 << 20).map(|data| Part::Data(data.to_vec()));
    parts.extend(data.map(|part| v1::ImportSnapshotRequest { part: Some(part) }));
    let reply =
        fleet.snapshots().import(tokio_stream::iter(parts)).await.map_err(|status| from_status(&status))?;
    Ok(reply.into_inner().snapshot.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_read_by_tar_and_comes_back_by_import() {
    let (fleet, tree, run) = fleet_with_backup().await;
    let bytes = export(&fleet, &run.snapshot_id).await;
    let file = fleet.path().join("export.tar.zst");
    std::fs::write(&file, &bytes).unwrap();
    let folder = fleet.path().join("by-tar");
    std::fs::create_dir(&folder).unwrap();
    let script = "zstd -dc export.tar.zst | tar -x -C by-tar --xattrs --xattrs-include='*' && cd by-tar/holdfast-export && sha256sum -c --quiet SHA256SUMS";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).current_dir(fleet.path());
    let _ = holdfast_tests::run(&mut command, PATIENCE).expect_success();
    let inside = folder.join("holdfast-export/tree").join(tree.strip_prefix("/").unwrap());
    assert!(inside.is_dir());
    let imported = import(&fleet, "copy", &bytes).await.unwrap();
    assert_eq!(imported.source, "copy");
    let by_restic = fleet.path().join("by-restic");
    fleet.restic().restore(&imported.id, &by_restic);
    assert_same_tree(&inside, &by_restic.join(tree.strip_prefix("/").unwrap()));
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_cut_export_is_refused_and_nothing_committed() {
    let (fleet, _, run) = fleet_with_backup().await;
    let bytes = export(&fleet, &run.snapshot_id).await;
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for bad in [&bytes[..bytes.len() / 2], &bytes[..bytes.len() - 1], flipped.as_slice(), b"nonsense", b""] {
        let refused = import(&fleet, "copy", bad).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::ExportDamaged, "{refused}");
    }
    assert!(fleet.snapshots_of("copy").await.is_empty());
    fleet.stop().await;
}
