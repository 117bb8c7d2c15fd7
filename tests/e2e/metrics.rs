//! Metrics: right from the first moment, after a backup, after a failure and after a restart; readable by Prometheus.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_controller::config::OtlpConfig;
use holdfast_controller::metrics::{collect, text};
use holdfast_model::metrics::catalogue::CATALOGUE;
use holdfast_model::metrics::{MetricFamily, MetricKind};
use holdfast_proto::v1;
use holdfast_tests::otlp::OtlpSink;
use holdfast_tests::promtool::check_metrics;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, TreeSpec};

async fn metrics(fleet: &Fleet) -> Vec<MetricFamily> {
    collect(fleet.controller().core()).await.unwrap()
}

/// The value of the series that has these labels, among others.
fn value(families: &[MetricFamily], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let family = families.iter().find(|family| family.name == name)?;
    let fits = |found: &[(&'static str, String)]| {
        labels.iter().all(|(name, value)| found.iter().any(|(n, v)| n == name && v == value))
    };
    let mut found = family.samples.iter().filter(|sample| fits(&sample.labels));
    let first = found.next()?;
    assert!(found.next().is_none(), "{name}{labels:?} is more than one series");
    Some(first.value)
}

/// Every series there is, without its value.
fn series(families: &[MetricFamily]) -> BTreeSet<String> {
    let named = families.iter().flat_map(|family| {
        family
            .samples
            .iter()
            .map(move |sample| format!("{}{}{:?}", family.name, sample.suffix, sample.labels))
    });
    named.collect()
}

async fn fleet_with_source() -> Fleet {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(3).make(&tree);
    let labels = "labels: { team: \"a \\\"b\\\" \\\\ c\", env: prod, other: x }";
    let source = format!("  tree: {{ engine: files, agent: a1, paths: [{}], {labels} }}\n", tree.display());
    fleet.apply(&format!("sources:\n{source}")).await.unwrap();
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_of_a_source_exists_before_its_first_run_and_no_other_appears_later() {
    let fleet = fleet_with_source().await;
    let before = metrics(&fleet).await;
    let of = |name: &str, labels: &[(&str, &str)]| value(&before, name, labels);
    let (source, at) = (("source", "tree"), ("repository", "main"));
    assert_eq!(of("holdfast_sources", &[("state", "not_restorable")]), Some(1.0));
    assert_eq!(of("holdfast_recovery_point_timestamp_seconds", &[source, at]), Some(0.0));
    assert_eq!(of("holdfast_potential_loss_seconds", &[source]), Some(f64::INFINITY));
    assert_eq!(of("holdfast_backup_last_success_timestamp_seconds", &[source, at]), Some(0.0));
    assert_eq!(of("holdfast_source_info", &[source, ("team", "a \"b\" \\ c"), ("env", "prod")]), Some(1.0));
    assert_eq!(of("holdfast_agent_up", &[("agent", "a1")]), Some(1.0));
    assert_eq!(of("holdfast_repository_up", &[at]), Some(1.0));
    assert!(of("holdfast_repository_free_bytes", &[at]).unwrap() > 0.0);

    fleet.backup_well("tree", "full").await;
    let after = metrics(&fleet).await;
    let of = |name: &str, labels: &[(&str, &str)]| value(&after, name, labels);
    let now = fleet.controller().core().clock.now().as_duration().as_secs_f64();
    let recent = |at: Option<f64>| at.is_some_and(|at| (now - 60.0..=now).contains(&at));
    assert!(recent(of("holdfast_recovery_point_timestamp_seconds", &[source, at])));
    assert!(recent(of("holdfast_backup_last_success_timestamp_seconds", &[source, at])));
    assert!(of("holdfast_potential_loss_seconds", &[source]).unwrap() < 60.0);
    assert_eq!(of("holdfast_sources", &[("state", "protected")]), Some(1.0));
    assert_eq!(of("holdfast_source_copies", &[source]), Some(1.0));
    assert!(of("holdfast_backup_last_logical_bytes", &[source, ("type", "full")]).unwrap() > 0.0);
    let success = [("kind", "backup"), source, ("outcome", "success")];
    assert_eq!(of("holdfast_runs_total", &success), Some(1.0));
    assert!(
        of("holdfast_run_bytes_total", &[("kind", "backup"), source, ("direction", "read")]).unwrap() > 0.0
    );
    assert_eq!(series(&after), series(&before));

    check_metrics(&text::render(&before));
    check_metrics(&text::render(&after));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_survive_a_restart_and_failures_in_a_row_are_counted() {
    let mut fleet = fleet_with_source().await;
    fleet.backup_well("tree", "full").await;
    let tree = fleet.path().join("data");
    std::fs::rename(&tree, fleet.path().join("elsewhere")).unwrap();
    for _ in 0..2 {
        assert_eq!(fleet.backup("tree", "full").await.phase, "failed");
    }
    let check = v1::StartCheck { repository: "main".to_owned(), read_data: true };
    let check = fleet.start_run(v1::start_request::What::Check(check)).await.unwrap();
    assert_eq!(fleet.ended(&check).await.phase, "succeeded");

    let before = metrics(&fleet).await;
    let in_a_row = |families: &[MetricFamily]| {
        value(families, "holdfast_backup_consecutive_failures", &[("source", "tree")])
    };
    assert_eq!(in_a_row(&before), Some(2.0));
    assert!(
        value(&before, "holdfast_verify_last_success_timestamp_seconds", &[("level", "full")]).unwrap() > 0.0
    );
    fleet.stop_controller().await;
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    let after = metrics(&fleet).await;
    assert_eq!(series(&after), series(&before));
    // What says how things stand at the moment may differ, what says what was done may not.
    let lasting = |families: &[MetricFamily]| -> BTreeMap<String, f64> {
        let lasts = |name: &str| {
            ["runs_total", "run_bytes", "run_duration", "backup_", "recovery_point", "verify_", "corrupt_"]
                .iter()
                .any(|part| name.contains(part))
        };
        let values = families.iter().filter(|family| lasts(family.name)).flat_map(|family| {
            let key = |sample: &holdfast_model::metrics::Sample| {
                (format!("{}{}{:?}", family.name, sample.suffix, sample.labels), sample.value)
            };
            family.samples.iter().map(key).collect::<Vec<_>>()
        });
        values.collect()
    };
    assert_eq!(lasting(&after), lasting(&before));

    std::fs::rename(fleet.path().join("elsewhere"), &tree).unwrap();
    fleet.backup_well("tree", "incremental").await;
    let healed = metrics(&fleet).await;
    assert_eq!(in_a_row(&healed), Some(0.0));
    let outcome = |outcome| {
        value(&healed, "holdfast_runs_total", &[("kind", "backup"), ("source", "tree"), ("outcome", outcome)])
    };
    assert_eq!((outcome("success"), outcome("failure")), (Some(2.0), Some(2.0)));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_timed_and_a_silent_storage_holds_nothing_up() {
    let fleet = fleet_with_source().await;
    fleet.backup_well("tree", "full").await;
    let request = v1::PlanRestoreRequest {
        source: "tree".to_owned(),
        into: fleet.path().join("restored").display().to_string(),
        ..v1::PlanRestoreRequest::default()
    };
    fleet.restore_well(request).await;
    // The proof is stored after the end of the run.
    let proven = async || {
        let found = metrics(&fleet).await;
        let name = "holdfast_restore_last_success_timestamp_seconds";
        let at = value(&found, name, &[("source", "tree")]).filter(|at| *at > 0.0)?;
        Some((found, at))
    };
    let (found, at) = until_async("the restore to be proof", PATIENCE, proven).await;
    let took = value(&found, "holdfast_restore_rto_seconds", &[("source", "tree")]).unwrap();
    assert!(at > 0.0 && took > 0.0 && took < 60.0, "{at} {took}");

    // A port that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let (password, secret) = (fleet.password_file(), fleet.password_file());
    let definition = format!(
        "repositories:\n  far: {{ url: \"s3://bucket/x\", endpoint: \"{endpoint}\", region: x, \
         credentials: {{ access_key: {{ file: {} }}, secret_key: {{ file: {} }} }}, \
         encryption: {{ key: {{ file: {} }} }} }}\n",
        secret.display(),
        secret.display(),
        password.display()
    );
    fleet.apply(&definition).await.unwrap();
    let begun = std::time::Instant::now();
    let found = metrics(&fleet).await;
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    assert_eq!(value(&found, "holdfast_repository_up", &[("repository", "far")]), Some(0.0));
    assert_eq!(value(&found, "holdfast_repository_up", &[("repository", "main")]), Some(1.0));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_catalogue_is_filled_by_something() {
    let fleet = fleet_with_source().await;
    let policy = "policies: { gold: { objectives: { rpo: 1d }, schedule: { full: { every: 12h } }, keep: { last: 3 } } }";
    let tree = fleet.path().join("data");
    let source = format!("  tree: {{ engine: files, agent: a1, paths: [{}], policy: gold }}", tree.display());
    let channels = "notifications: { channels: { own-log: { type: log } } }";
    fleet.apply(&format!("{policy}\nsources:\n{source}\n{channels}\n")).await.unwrap();
    let run = fleet.start_backup("tree", "full").await.unwrap();
    let mut filled: BTreeSet<&str> = BTreeSet::new();
    while !fleet.controller().core().runs.active().is_empty() {
        filled.extend(metrics(&fleet).await.iter().map(|family| family.name));
    }
    fleet.ended(&run).await;
    let found = metrics(&fleet).await;
    let rpo = [("source", "tree"), ("objective", "rpo")];
    assert_eq!(value(&found, "holdfast_objective_met", &rpo), Some(1.0));
    assert_eq!(value(&found, "holdfast_objective_target_seconds", &rpo), Some(86_400.0));
    filled.extend(found.iter().map(|family| family.name));
    let all: BTreeSet<&str> = CATALOGUE.iter().map(|row| row.name).collect();
    // Its size is known for a moment only.
    let missing: Vec<_> =
        all.difference(&filled).filter(|name| **name != "holdfast_run_progress_ratio").collect();
    assert!(missing.is_empty(), "{missing:?}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_values_that_are_shown() {
    let sink = OtlpSink::start().await;
    let mut fleet = fleet_with_source().await;
    fleet.stop_controller().await;
    let endpoint = sink.endpoint();
    fleet.configure_controller(|config| {
        config.telemetry.otlp = Some(OtlpConfig { endpoint, metrics_every_seconds: 1 });
    });
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    fleet.backup_well("tree", "full").await;
    let shown = metrics(&fleet).await;
    let before = sink.metrics().len();
    // One that began after the backup.
    let sent = async || sink.metrics().get(before + 1).cloned();
    let sent = until_async("an export of metrics", PATIENCE, sent).await;
    assert!(sent.iter().all(|value| value.service == "holdfast-controller"));
    let names: BTreeSet<&str> = sent.iter().map(|value| value.name.as_str()).collect();
    let expected: BTreeSet<String> = shown.iter().map(shown_name).collect();
    assert_eq!(names, expected.iter().map(String::as_str).collect());
    // What changes by itself is left out: ages, and the room on the disk.
    let moves = ["potential_loss", "last_seen", "clock_skew", "free_bytes", "stored_bytes"];
    for family in shown.iter().filter(|family| !moves.iter().any(|part| family.name.contains(part))) {
        for sample in family.samples.iter().filter(|sample| ["", "_count"].contains(&sample.suffix)) {
            let labels: Vec<_> =
                sample.labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            let found =
                sent.iter().find(|value| value.name == shown_name(family) && value.attributes == labels);
            let found = found.unwrap_or_else(|| panic!("{} {labels:?} was not sent", family.name));
            assert_eq!(found.value, sample.value, "{} {labels:?}", family.name);
        }
    }
    fleet.stop().await;
}

/// The name of the sample that says most of a family.
fn shown_name(family: &MetricFamily) -> String {
    match family.kind {
        MetricKind::Histogram => format!("{}_count", family.name),
        MetricKind::Counter | MetricKind::Gauge => family.name.to_owned(),
    }
}
