//! The fleet as files: owners, a watched folder, defaults written out, and a folder to begin with.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use holdfast_model::fleet::{FleetFile, read_fleet};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, run, workspace};

fn policy(name: &str, daily: u32) -> String {
    format!("  {name}: {{ schedule: {{ full: {{ every: 1d }} }}, keep: {{ daily: {daily} }} }}\n")
}

async fn apply(
    fleet: &Fleet,
    yaml: &str,
    owner: &str,
    more: v1::ApplyRequest,
) -> Result<Vec<String>, Failure> {
    let text = format!("api: holdfast/v1\n{yaml}");
    let files = vec![v1::FleetFile { name: "test.yaml".to_owned(), text }];
    let request = v1::ApplyRequest { files, owner: owner.to_owned(), ..more };
    let reply = fleet.fleet().apply(request).await.map_err(|status| from_status(&status))?;
    Ok(reply
        .into_inner()
        .changes
        .into_iter()
        .map(|change| format!("{} {}", change.action, change.path))
        .collect())
}

async fn doctor(fleet: &Fleet) -> Option<v1::Finding> {
    let findings = fleet.status().doctor(v1::DoctorRequest {}).await.unwrap().into_inner().findings;
    findings.into_iter().find(|finding| finding.object == "fleet folder")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_an_owner_is_changed_and_pruned_by_that_owner_alone() {
    let fleet = Fleet::controller_alone().await;
    let plain = v1::ApplyRequest::default;
    let both = format!("policies:\n{}{}", policy("gold", 7), policy("silver", 7));
    let made = apply(&fleet, &both, "git:main", plain()).await.unwrap();
    assert_eq!(made, ["create policies.gold", "create policies.silver"]);
    apply(&fleet, &format!("policies:\n{}", policy("by-hand", 7)), "", plain()).await.unwrap();

    let more = format!("policies:\n{}", policy("gold", 14));
    let refused = apply(&fleet, &more, "", plain()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ManagedElsewhere);
    assert_eq!(refused.message, "policies.gold is managed by git:main");
    let other = apply(&fleet, &more, "git:other", plain()).await.unwrap_err();
    assert_eq!(other.code, ErrorCode::ManagedElsewhere);
    let delete = v1::DeleteDefinitionRequest {
        kind: "policies".to_owned(),
        name: "gold".to_owned(),
        confirm: "gold".to_owned(),
        reason: "test".to_owned(),
        ..v1::DeleteDefinitionRequest::default()
    };
    let deleted = from_status(&fleet.fleet().delete_definition(delete).await.unwrap_err());
    assert_eq!(deleted.code, ErrorCode::ManagedElsewhere);

    // What the owner's files lack goes, what others manage stays.
    let prune = |confirm: &[&str]| v1::ApplyRequest {
        prune: true,
        confirm: confirm.iter().map(|path| (*path).to_owned()).collect(),
        reason: "not needed".to_owned(),
        ..v1::ApplyRequest::default()
    };
    let unconfirmed = apply(&fleet, &more, "git:main", prune(&[])).await.unwrap_err();
    assert_eq!(unconfirmed.code, ErrorCode::NeedsConfirmation);
    let pruned = apply(&fleet, &more, "git:main", prune(&["policies.silver"])).await.unwrap();
    assert_eq!(pruned, ["update policies.gold", "remove policies.silver"]);
    let taken = v1::ApplyRequest { take_over: true, ..v1::ApplyRequest::default() };
    assert_eq!(apply(&fleet, &more, "", taken).await.unwrap(), ["update policies.gold"]);
    let by_hand = apply(&fleet, &format!("policies:\n{}", policy("gold", 15)), "", plain()).await.unwrap();
    assert_eq!(by_hand, ["update policies.gold"]);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_folder_is_followed_but_for_what_loses_protection() {
    let mut fleet = Fleet::controller_alone().await;
    let folder = fleet.path().join("fleet");
    std::fs::create_dir_all(folder.join("policies")).unwrap();
    let file = folder.join("policies/gold.yaml");
    let beside = fleet.path().join("beside");
    let write = |file: &Path, body: &str| {
        // As a checkout does it: the file is never half there.
        std::fs::write(&beside, format!("api: holdfast/v1\npolicies:\n{body}")).unwrap();
        std::fs::rename(&beside, file).unwrap();
    };
    write(&file, &policy("gold", 7));
    std::fs::write(folder.join(".hidden.yaml"), "no yaml: [").unwrap();
    let declared = async |fleet: &Fleet| {
        let request = v1::ListDefinitionsRequest { kind: "policies".to_owned(), name: String::new() };
        fleet.fleet().list_definitions(request).await.unwrap().into_inner().definitions
    };
    let watched = folder.clone();
    fleet.stop_controller().await;
    fleet.configure_controller(|config| {
        config.fleet.folder = Some(watched);
        config.fleet.every = holdfast_model::units::Span::from_secs(1);
    });
    fleet.start_controller().await;
    let gold = until_async("the folder to be applied", PATIENCE, async || declared(&fleet).await.pop()).await;
    assert_eq!(gold.owner, format!("folder:{}", folder.display()));

    write(&file, &policy("gold", 30));
    until_async("the change to be applied", PATIENCE, async || {
        declared(&fleet).await.pop().filter(|gold| gold.spec_json.contains("30"))
    })
    .await;

    write(&file, &policy("gold", 3));
    let waiting = until_async("the doctor to say what waits", PATIENCE, async || {
        doctor(&fleet).await.filter(|finding| finding.outcome == "failed")
    })
    .await;
    assert!(
        waiting.message.contains("1 changes lose protection and were not confirmed: policies.gold"),
        "{waiting:?}"
    );
    assert!(declared(&fleet).await[0].spec_json.contains("30"), "nothing was lost");
    let remedy = format!(
        "holdfast apply -f {0} --owner folder:{0} --prune --confirm policies.gold --reason TEXT",
        folder.display()
    );
    assert_eq!(waiting.remedy, remedy);
    let mut command = fleet.cli();
    command.args(remedy.split_whitespace().skip(1).map(|word| if word == "TEXT" { "tested" } else { word }));
    drop(run(&mut command, PATIENCE).expect_success());
    until_async("the doctor to be content", PATIENCE, async || {
        doctor(&fleet).await.filter(|finding| finding.outcome == "ok")
    })
    .await;

    write(&file, "  gold: { retension: 5 }\n");
    let broken = until_async("the doctor to name the mistake", PATIENCE, async || {
        doctor(&fleet).await.filter(|finding| finding.outcome == "failed")
    })
    .await;
    assert!(broken.message.contains("policies/gold.yaml:3:11: unknown key `retension`"), "{broken:?}");
    assert!(declared(&fleet).await[0].spec_json.contains("\"daily\":3"), "the last good state stays");

    // Whoever may write a folder may put files into it.
    let inner = folder.join("policies");
    std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o777)).unwrap();
    let open = until_async("the doctor to name the open folder", PATIENCE, async || {
        doctor(&fleet).await.filter(|finding| finding.remedy.starts_with("chmod"))
    })
    .await;
    assert!(open.message.contains("everybody may write it (mode 0777)"), "{open:?}");
    assert_eq!(open.remedy, format!("chmod o-w {}", inner.display()));
    write(&file, &policy("gold", 60));
    std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o755)).unwrap();
    until_async("the folder to be followed again", PATIENCE, async || {
        declared(&fleet).await.pop().filter(|gold| gold.spec_json.contains("60"))
    })
    .await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_effective_export_shows_every_default_and_means_the_same() {
    let fleet = Fleet::start().await;
    fleet.apply(&format!("policies:\n{}", policy("gold", 7))).await.unwrap();
    let export = async |effective| {
        let request = v1::ExportRequest { effective };
        fleet.fleet().export(request).await.unwrap().into_inner().yaml
    };
    let read = |text: String| read_fleet(&[FleetFile { name: "export".to_owned(), text }]).unwrap();
    let (short, long) = (export(false).await, export(true).await);
    for key in
        ["catch_up: 6h", "wait: 5m", "at_least_rows: 100", "attempts: 3", "priority: medium", "timeout: 1d"]
    {
        assert!(long.contains(key), "{key} is missing in:\n{long}");
    }
    assert!(!short.contains("at_least_rows"), "{short}");
    let (mut short, mut long) = (read(short), read(long));
    // What is kept of ad hoc snapshots is written out; it is the same without.
    for fleet in [&mut short, &mut long] {
        fleet.policies.values_mut().for_each(|policy| policy.keep_by_type = Default::default());
    }
    assert_eq!(short, long);
    fleet.stop().await;
}

#[test]
fn a_folder_to_begin_with_is_valid_and_nothing_in_it_is_replaced() {
    let dir = holdfast_tests::temp_dir("init");
    let mut init = std::process::Command::new(workspace::binary("holdfast"));
    init.args(["init", "my fleet"]).current_dir(dir.path());
    drop(run(&mut init, PATIENCE).expect_success());
    let mut validate = std::process::Command::new(workspace::binary("holdfast"));
    validate.args(["validate", "--offline", "-f", "my fleet"]).current_dir(dir.path());
    drop(run(&mut validate, PATIENCE).expect_success());
    let again = run(&mut init, PATIENCE);
    assert_eq!(again.status.code(), Some(6), "{again:?}");
    assert!(again.stderr.contains("my fleet/repositories.yaml is there already"), "{}", again.stderr);
}
