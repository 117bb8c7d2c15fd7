//! What `deploy/monitoring/` ships: rules that fire when they must, and a dashboard that asks for metrics there are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use holdfast_model::metrics::catalogue::{CATALOGUE, is_known};
use holdfast_tests::promtool::promtool;
use holdfast_tests::wait::PATIENCE;
use holdfast_tests::{run, temp_dir, workspace};
use serde_json::Value;

fn shipped(name: &str) -> PathBuf {
    workspace::root().join("deploy/monitoring").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(shipped(name)).unwrap()
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("holdfast_")).map(str::to_owned).collect()
}

/// The values of the lines with this key, in order.
fn values(text: &str, key: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
    lines.map(|value| value.trim().trim_matches(['"', '\'']).to_owned()).collect()
}

#[test]
fn rules_are_valid_and_each_fires_when_it_must() {
    let checked = promtool(&["check".into(), "rules".into(), shipped("alerts.yaml").into_os_string()]);
    drop(checked.expect_success());
    let tested = promtool(&["test".into(), "rules".into(), shipped("alerts.test.yaml").into_os_string()]);
    drop(tested.expect_success());
    let rules = values(&text("alerts.yaml"), "alert:");
    assert_eq!(
        rules,
        values(&text("alerts.test.yaml"), "name:"),
        "each rule has its test, in the same order"
    );
}

#[test]
fn rules_ask_for_metrics_there_are_and_say_what_to_do() {
    let rules = text("alerts.yaml");
    let unknown: Vec<_> = metrics_in(&rules).into_iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let alerts = values(&rules, "alert:").len();
    assert_eq!((values(&rules, "summary:").len(), values(&rules, "next:").len()), (alerts, alerts));
    for command in values(&rules, "next:") {
        let words: Vec<&str> = command.split_whitespace().collect();
        if words[0] == "systemctl" {
            continue;
        }
        assert_eq!(words[0], "holdfast", "{command}");
        // The second word may be an argument already: `holdfast status pg`.
        let is_word = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase());
        let path: Vec<&str> = words[1..].iter().take(2).take_while(is_word).copied().collect();
        let help = run(Command::new(workspace::binary("holdfast")).args(path).arg("--help"), PATIENCE);
        let help = help.expect_success().stdout;
        let missing: Vec<_> =
            words.iter().filter(|word| word.starts_with("--") && !help.contains(**word)).collect();
        assert!(missing.is_empty(), "{command}: {missing:?}");
    }
}

#[test]
fn the_program_prints_the_rules_that_are_shipped() {
    let printed = run(Command::new(workspace::binary("holdfast-controller")).arg("rules"), PATIENCE);
    assert_eq!(printed.expect_success().stdout, text("alerts.yaml"));
}

fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().unwrap()
}

/// Every expression of the dashboard.
fn expressions(dashboard: &Value) -> Vec<String> {
    let targets = panels(dashboard).iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_dashboard_asks_for_metrics_there_are_and_leaves_none_out() {
    let dashboard: Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let asked = metrics_in(&text("dashboard.json"));
    let unknown: Vec<_> = asked.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let is_shown = |name: &str| asked.iter().any(|asked| asked.starts_with(name));
    let missing: Vec<_> = CATALOGUE.iter().map(|row| row.name).filter(|name| !is_shown(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let ids: BTreeSet<i64> = panels(&dashboard).iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), panels(&dashboard).len());
}

#[test]
fn the_expressions_of_the_dashboard_are_valid() {
    let dashboard: Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 40, "{}", expressions.len());
    for (number, expression) in expressions.iter().enumerate() {
        let quoted = expression.replace("$source", "pg").replace('\'', "''");
        rules.push_str(&format!("      - {{ record: 'panel:{number}', expr: '{quoted}' }}\n"));
    }
    let folder = temp_dir("dashboard");
    let file = folder.path().join("rules.yaml");
    std::fs::write(&file, rules).unwrap();
    drop(promtool(&["check".into(), "rules".into(), file.into_os_string()]).expect_success());
}

#[test]
fn the_page_lists_every_metric_with_its_labels_and_no_other() {
    let page = std::fs::read_to_string(workspace::root().join("docs/monitoring.md")).unwrap();
    for row in CATALOGUE {
        let labels: Vec<String> = row.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        let line = format!("| `{}` | {labels} | {} |", row.name, row.help);
        assert!(page.contains(&line), "the page lacks:\n{line}");
    }
    let unknown: Vec<_> = metrics_in(&page)
        .into_iter()
        .filter(|name| !is_known(name) && CATALOGUE.iter().all(|row| row.name != name))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
