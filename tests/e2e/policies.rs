//! Policies as definitions: the examples of the documentation hold, and the controller takes, exports and guards them.

use holdfast_model::ErrorCode;
use holdfast_model::fleet::{Fleet as Declared, FleetFile, read_fleet};
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::{Fleet, workspace};

const POLICY: &str = "policies:
  daily:
    objectives: { rpo: 1d }
    schedule: { full: { every: 12h } }
    keep: { daily: 7 }
";

/// Reads the YAML blocks of a page: whole files, and bodies of one policy.
#[test]
fn the_examples_of_the_documentation_are_valid() {
    let page = std::fs::read_to_string(workspace::root().join("docs/policies.md")).unwrap();
    let mut blocks = 0;
    for block in page.split("```yaml").skip(1) {
        let (kind, body) = block.split_once('\n').unwrap();
        let body = body.split("```").next().unwrap();
        let text = if kind.trim() == "policy" {
            let indented: String = body.lines().map(|line| format!("    {line}\n")).collect();
            format!("api: holdfast/v1\npolicies:\n  example:\n{indented}")
        } else {
            body.to_owned()
        };
        let files = [FleetFile { name: "policies.md".to_owned(), text }];
        let fleet = read_fleet(&files).unwrap_or_else(|errors| panic!("{errors:#?} in:\n{body}"));
        assert_eq!(fleet.policies.len(), 1, "{body}");
        let broken: Vec<_> = fleet
            .check_references(&Declared::default())
            .into_iter()
            .filter(|error| error.code != ErrorCode::ReferenceUnknown)
            .collect();
        assert!(broken.is_empty(), "{broken:#?} in:\n{body}");
        blocks += 1;
    }
    assert_eq!(blocks, 9, "every block of the page was read");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_applied_exported_and_guarded_like_other_definitions() {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    let source = format!(
        "sources:\n  tree: {{ engine: files, agent: a1, paths: [{}], policy: daily }}\n",
        tree.display()
    );

    let dangling = fleet.apply(&source).await.unwrap_err();
    assert_eq!(dangling.code, ErrorCode::ReferenceUnknown);
    assert_eq!(
        dangling.message,
        "test.yaml:3:9: sources.tree: `policy` names policy daily, which does not exist"
    );

    let changes = fleet.apply(&format!("{POLICY}{source}")).await.unwrap();
    let paths: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, ["policies.daily", "sources.tree"]);
    let exported = fleet.fleet().export(v1::ExportRequest::default()).await.unwrap().into_inner().yaml;
    let again = fleet.apply(exported.strip_prefix("api: holdfast/v1\n").unwrap()).await.unwrap();
    assert!(again.is_empty(), "applying what was exported changes {again:?}");

    let broken = fleet.apply(&POLICY.replace("rpo: 1d", "rpo: 1h")).await.unwrap_err();
    assert_eq!(broken.code, ErrorCode::PromiseImpossible);
    assert_eq!(
        broken.message,
        "test.yaml:4:24: policies.daily.objectives.rpo: promises to lose at most 1h, but the schedule leaves up to \
         12h: back up at least every 1h, or promise 12h"
    );
    // The policy alone could keep it; the source that is under it already could not.
    let logged = POLICY.replace("rpo: 1d", "rpo: 1h").replace("every: 12h }", "every: 12h }, log: stream");
    let broken = fleet.apply(&logged).await.unwrap_err();
    assert_eq!(broken.code, ErrorCode::PromiseImpossible);
    assert!(broken.message.contains("for source tree, policy daily promises"), "{}", broken.message);
    let fewer = fleet.apply(&POLICY.replace("daily: 7", "daily: 6")).await.unwrap_err();
    assert_eq!(fewer.code, ErrorCode::NeedsConfirmation);

    let remove = |kind: &str, name: &str| v1::DeleteDefinitionRequest {
        kind: kind.to_owned(),
        name: name.to_owned(),
        confirm: name.to_owned(),
        reason: "no longer needed".to_owned(),
        ..v1::DeleteDefinitionRequest::default()
    };
    let used = from_status(&fleet.fleet().delete_definition(remove("policies", "daily")).await.unwrap_err());
    assert_eq!(used.code, ErrorCode::InUse);
    assert_eq!(used.message, "policy daily can not be removed: source tree is under it");
    fleet.fleet().delete_definition(remove("sources", "tree")).await.unwrap();
    fleet.fleet().delete_definition(remove("policies", "daily")).await.unwrap();
    fleet.stop().await;
}
