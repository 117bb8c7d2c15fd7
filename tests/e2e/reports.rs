//! Reports: they say what the runs and the status say, whatever names and errors hold is text in them, and what is sent by
//! itself arrives once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::fleet::{Fleet as Declared, FleetFile, read_fleet};
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::process_fleet::Program;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, HttpSink, MailServer, ProcessFleet, TreeSpec, run, workspace};
use serde_json::{Value, json};

/// What a page must show as text, in Markdown and HTML alike.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

/// Reads the YAML blocks of the page.
#[test]
fn the_examples_of_the_documentation_are_valid() {
    let page = std::fs::read_to_string(workspace::root().join("docs/reports.md")).unwrap();
    let blocks: Vec<&str> =
        page.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    for body in &blocks {
        let files = [FleetFile { name: "reports.md".to_owned(), text: (*body).to_owned() }];
        let fleet = read_fleet(&files).unwrap_or_else(|errors| panic!("{errors:#?} in:\n{body}"));
        assert_eq!(fleet.check_references(&Declared::default()), []);
        assert_eq!(fleet.reports.len(), 3);
    }
    assert_eq!(blocks.len(), 1, "every block of the page was read");
}

/// A fleet whose controller may call this host, with a source that can be backed up and one that can not.
async fn fleet() -> Fleet {
    let mut fleet = Fleet::start().await;
    fleet.stop_controller().await;
    fleet.configure_controller(|config| {
        config.notifications.environment = "prod".to_owned();
        config.notifications.allow_addresses = vec!["127.0.0.0/8".parse().unwrap()];
    });
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(3).make(&tree);
    let yaml = format!(
        "policies:\n  slow: {{ schedule: {{ full: {{ every: 300d }} }}, objectives: {{ rpo: 1y }} }}\nsources:\n  tree: {{ engine: files, agent: a1, paths: [{}], policy: slow }}\n  broken: {{ engine: files, agent: a1, paths: [\"{}/{HOSTILE}\"], labels: {{ team: \"{HOSTILE}\" }} }}\n",
        tree.display(),
        fleet.path().display(),
    );
    fleet.apply(&yaml).await.unwrap();
    fleet
}

fn by_command_line(fleet: &Fleet, arguments: &[&str]) -> String {
    run(fleet.cli().args(arguments), PATIENCE).expect_success().stdout
}

fn json_of(fleet: &Fleet, arguments: &[&str]) -> Vec<Value> {
    let text = by_command_line(fleet, &[arguments, &["-o", "json"]].concat());
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    document["items"].as_array().unwrap().clone()
}

fn count(runs: &[Value], fits: impl Fn(&Value) -> bool) -> usize {
    runs.iter().filter(|run| fits(run)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_says_what_the_runs_and_the_status_say() {
    let fleet = fleet().await;
    fleet.backup_well("tree", "full").await;
    fleet.backup_well("tree", "incremental").await;
    let failed = fleet.backup("broken", "full").await;
    assert_eq!(failed.phase, "failed");

    let runs = json_of(&fleet, &["run", "list"]);
    let status = json_of(&fleet, &["status"]);
    let report = json_of(&fleet, &["report", "daily"]).remove(0);
    assert_eq!(report["report"], "daily");
    let ended = |phase: &str| json!(count(&runs, |run| run["phase"] == phase));
    assert_eq!(
        [&report["runs"]["succeeded"], &report["runs"]["failed"], &report["runs"]["ended"]],
        [&ended("succeeded"), &ended("failed"), &json!(count(&runs, |run| run["ended_at"].is_string()))]
    );
    assert_eq!(report["runs"]["failed"], 1);
    for source in report["sources"].as_array().unwrap() {
        let name = &source["source"];
        let of = status.iter().find(|found| found["source"] == *name).unwrap();
        assert_eq!([&source["state"], &source["policy"]], [&of["state"], &of["policy"]], "{name}");
        assert_eq!(source["problem"], of["problem"]);
        let bytes = if of["snapshot_id"].is_null() { &Value::Null } else { &of["logical_bytes"] };
        assert_eq!(source["logical_bytes"], *bytes);
        assert_eq!(source["runs"]["ended"], count(&runs, |run| run["source"] == *name));
        let rpo = of["objectives"].as_array().unwrap().iter().find(|it| it["objective"] == "rpo").unwrap();
        assert_eq!(source["rpo"]["state"], rpo["state"]);
    }
    // The worst first, and nothing is well without proof.
    assert_eq!(report["sources"][0]["source"], "broken");
    assert_eq!(report["source_counts"]["never_proven"], 2);
    assert_eq!(report["verdict"]["state"], "bad");
    assert_eq!(report["repositories"][0]["forecast"]["state"], "unknown_history");

    let logs = json_of(&fleet, &["report", "logs", "--hours", "1"]).remove(0);
    assert_eq!(logs["errors"][0]["code"], failed.failure.as_ref().unwrap().code);
    assert_eq!(logs["errors"][0]["newest_run"], failed.id.as_str());
    assert_eq!(logs["runs"], report["runs"]);
    let of_tree = json_of(&fleet, &["report", "logs", "--source", "tree"]).remove(0);
    assert_eq!((&of_tree["runs"]["succeeded"], &of_tree["success_rate"]), (&json!(2), &json!(1.0)));

    let rest = fleet.rest();
    let by_rest = rest.get("/api/v1/reports/daily").items().remove(0);
    assert_eq!([&by_rest["runs"], &by_rest["source_counts"]], [&report["runs"], &report["source_counts"]]);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_and_errors_hold_is_text_in_every_form() {
    let fleet = fleet().await;
    assert_eq!(fleet.backup("broken", "full").await.phase, "failed");
    let rest = fleet.rest();
    for report in ["daily", "weekly", "logs"] {
        let page = rest.get(&format!("/api/v1/reports/{report}?format=html"));
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("sandbox"), "{policy}");
        assert!(page.body.contains("&lt;img src=x onerror=alert(1)&gt;"), "{}", page.body);
        assert!(!page.body.contains("<img") && !page.body.contains("<script"), "{}", page.body);
        let headers = [("Accept", "text/markdown")];
        let markdown = rest.request("GET", &format!("/api/v1/reports/{report}"), &headers, "");
        assert_eq!(markdown.header("content-type"), Some("text/markdown; charset=utf-8"));
        assert!(markdown.body.contains("\\<img src=x onerror=alert(1)\\>"), "{}", markdown.body);
        assert!(!markdown.body.replace("\\<img", "").contains("<img"), "{}", markdown.body);
        assert_eq!(by_command_line(&fleet, &["report", report, "--html"]).matches("<img").count(), 0);
        let text = by_command_line(&fleet, &["report", report]);
        assert!(text.contains(HOSTILE), "a terminal gives it no meaning: {text}");
    }
    let refused = rest.get("/api/v1/reports/daily?format=pdf").error();
    let message = "`format` is \"pdf\", json, markdown and html are possible";
    assert_eq!(refused, (400, "HF-1030".to_owned(), message.to_owned()));
    let refused = rest.get("/api/v1/reports/daily?hours=5").error();
    assert_eq!(refused.1, "HF-1030", "{refused:?}");
    let request = |report: &str, source: &str, timezone: &str| v1::GetReportRequest {
        report: report.to_owned(),
        source: source.to_owned(),
        timezone: timezone.to_owned(),
        hours: 0,
    };
    for (asked, code) in [
        (request("hourly", "", ""), ErrorCode::UsageInvalid),
        (request("daily", "tree", ""), ErrorCode::UsageInvalid),
        (request("logs", "nowhere", ""), ErrorCode::NotFound),
        (request("logs", "", "Mars/Phobos"), ErrorCode::UsageInvalid),
    ] {
        let refused = fleet.reports().get(asked.clone()).await.unwrap_err();
        assert_eq!(from_status(&refused).code, code, "{asked:?}");
    }
    fleet.stop().await;
}

fn plant(folder: &Path, name: &str, value: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, value).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    format!("{{ file: {} }}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_channel_gets_the_form_that_it_can_show() {
    let mut fleet = fleet().await;
    assert_eq!(fleet.backup("broken", "full").await.phase, "failed");
    let (sink, mail) = (HttpSink::start().await, MailServer::start("password"));
    let folder = holdfast_tests::temp_dir("channels");
    let (ding, slack) = (
        plant(folder.path(), "ding", &sink.url("/ding")),
        plant(folder.path(), "slack", &sink.url("/slack")),
    );
    let (ping, password) =
        (plant(folder.path(), "ping", &sink.url("/ping")), plant(folder.path(), "password", "password"));
    let yaml = format!(
        "notifications:
  channels:
    ding: {{ type: dingtalk, webhook: {ding}, at_all: true, language: zh-CN }}
    slack: {{ type: slack, webhook: {slack} }}
    hook: {{ type: webhook, url: \"{}\" }}
    mail: {{ type: email, to: [dba@example.com], smtp: {{ host: localhost, port: {}, ca: {}, user: {}, password: {password} }} }}
    alive: {{ type: ping, url: {ping}, every: 1h }}
  routes: [{{ match: {{ severity: critical }}, to: [hook], wait: 1h }}]
",
        sink.url("/hook"),
        mail.port(),
        mail.ca().display(),
        MailServer::USER,
    );
    fleet.apply(&yaml).await.unwrap();
    for channel in ["ding", "slack", "hook", "mail"] {
        drop(by_command_line(&fleet, &["report", "weekly", "--send", channel]));
    }
    let ding = sink.received("/ding")[0].json();
    assert_eq!(ding["at"]["isAtAll"], false);
    let text = ding["markdown"]["text"].as_str().unwrap();
    assert!(text.contains("### \\[prod\\] 周报") && text.contains("\\<img src=x"), "{text}");
    let slack = sink.received("/slack")[0].json();
    let shown = slack["blocks"].to_string();
    assert!(shown.contains("[prod] weekly report") && shown.contains("&lt;img src=x"), "{shown}");
    let hook = sink.received("/hook")[0].json();
    assert_eq!([&hook["event"], &hook["report"]["report"]], [&json!("report"), &json!("weekly")]);
    assert_eq!(hook["report"]["runs"]["failed"], 1);
    let mail = mail.mails().remove(0);
    assert!(mail.contains("multipart/alternative") && mail.contains("text/html"), "{mail}");
    assert!(mail.contains("Subject: [prod] weekly report: "), "{mail}");

    let finished = run(fleet.cli().args(["report", "daily", "--send", "alive"]), PATIENCE);
    assert_eq!(finished.status.code(), Some(2), "{finished:?}");
    assert!(finished.stderr.contains("HF-1001"), "{finished:?}");
    let history = fleet.notifications().history(v1::HistoryRequest::default()).await.unwrap().into_inner();
    let outcomes: BTreeSet<_> =
        history.deliveries.iter().map(|it| (it.event.as_str(), it.outcome.as_str())).collect();
    assert_eq!(outcomes, BTreeSet::from([("report", "delivered")]));
    fleet.stop_controller().await;
    fleet.start_controller().await;
    let metrics = fleet.rest().get("/metrics").body;
    for channel in ["ding", "slack", "hook", "mail"] {
        let delivered =
            format!("holdfast_notifications_total{{channel=\"{channel}\",outcome=\"delivered\"}} 1\n");
        assert!(metrics.contains(&delivered), "{metrics}");
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_are_applied_exported_and_guarded_like_other_definitions() {
    let fleet = Fleet::start().await;
    let channels = "notifications:\n  channels:\n    ops: { type: log }\n";
    let reports =
        "reports:\n  monday: { report: weekly, cron: \"0 8 * * MON\", timezone: Asia/Shanghai, to: [ops] }\n";
    let dangling = fleet.apply(reports).await.unwrap_err();
    assert_eq!(dangling.code, ErrorCode::ReferenceUnknown);
    assert_eq!(
        dangling.message,
        "test.yaml:3:11: reports.monday: `to` names channel ops, which does not exist"
    );
    let changes = fleet.apply(&format!("{reports}{channels}")).await.unwrap();
    let paths: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, ["channels.ops", "reports.monday"]);
    let exported = fleet.fleet().export(v1::ExportRequest::default()).await.unwrap().into_inner().yaml;
    let again = fleet.apply(exported.strip_prefix("api: holdfast/v1\n").unwrap()).await.unwrap();
    assert!(again.is_empty(), "applying what was exported changes {again:?}");
    let wrong = fleet.apply(&reports.replace("weekly", "weekly, hours: 5")).await.unwrap_err();
    assert_eq!(wrong.code, ErrorCode::FileInvalid);
    assert_eq!(wrong.message, "test.yaml:3:36: reports.monday.hours: `hours` belongs to `report: logs` only");
    fleet.stop().await;
}

/// The message ids of mails, without the host.
fn ids(mail: &MailServer) -> Vec<String> {
    let id = |mail: &String| {
        let line = mail.lines().find_map(|line| line.strip_prefix("Message-ID: <")).unwrap();
        line.split('@').next().unwrap().to_owned()
    };
    mail.mails().iter().map(id).collect()
}

/// How many reports were handed over, as the audit log says.
async fn handed_over(fleet: &ProcessFleet) -> usize {
    let mut entries = fleet
        .status()
        .audit(v1::AuditRequest { limit: 10_000, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let mut found = 0;
    while let Some(part) = entries.message().await.unwrap() {
        found += part.entries.iter().filter(|entry| entry.action == "report.send").count();
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_report_arrives_once_although_the_controller_is_killed_around_it() {
    let places = ["controller-before-report", "controller-after-report"];
    let mut fleet = ProcessFleet::start(Duration::from_secs(10), places).await;
    let mail = MailServer::start("password");
    let folder = holdfast_tests::temp_dir("channels");
    let password = plant(folder.path(), "password", "password");
    let yaml = format!(
        "notifications:
  channels:
    mail: {{ type: email, to: [dba@example.com], smtp: {{ host: localhost, port: {}, ca: {}, user: {}, password: {password} }} }}
  routes: [{{ match: {{ severity: critical }}, to: [mail], wait: 1h }}]
reports:
  often: {{ report: daily, every: 2s, to: [mail] }}
",
        mail.port(),
        mail.ca().display(),
        MailServer::USER,
    );
    let mut sent = 0;
    for (round, place) in places.into_iter().enumerate() {
        let hold = fleet.hold(place);
        if round == 0 {
            fleet.apply(&yaml).await.unwrap();
        }
        fleet.is_held(&hold).await;
        fleet.kill(Program::Controller);
        drop(hold);
        fleet.restart(Program::Controller);
        let more = async || (ids(&mail).len() >= sent + 2).then_some(());
        until_async(format!("two more reports after a death at {place}"), PATIENCE, more).await;
        sent = ids(&mail).len();
    }
    // No further one is due.
    fleet.apply(&yaml.replace("every: 2s", "every: 300d")).await.unwrap();
    let all = async || {
        let (handed, arrived) = (handed_over(&fleet).await, ids(&mail).len());
        (handed == arrived).then_some(())
    };
    until_async("all that was handed over to arrive", PATIENCE, all).await;
    let arrived = ids(&mail);
    let different: BTreeSet<&String> = arrived.iter().collect();
    assert_eq!(different.len(), arrived.len(), "one arrived twice: {arrived:?}");
}
