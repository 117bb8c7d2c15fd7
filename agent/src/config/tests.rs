use std::path::PathBuf;
use std::time::Duration;

use super::AgentConfig;

const FULL: &str = r#"
api: holdfast/v1
controller: https://backup.example.com:7443
name: db1
data_dir: /var/lib/holdfast-agent
slots: 3
work_threads: 4
verify_encoding: false
drain_grace: 5m
run_deadline: 12h
allow:
  restore_paths: [/srv/restore]
  restore_in_place: false
  sources:
    paths: [/srv, /etc]
    databases: [orders, "shop_*"]
  commands: [/usr/bin/vault]
hooks:
  stop-app: { command: [/usr/bin/systemctl, stop, app], timeout: 90s }
  start-app: { command: [/usr/bin/systemctl, start, app] }
telemetry: { format: json, filter: "debug", otlp_endpoint: "http://127.0.0.1:4317", sampled_share: 0.5 }
"#;

fn read(text: &str) -> Result<AgentConfig, String> {
    read_with(text, &[])
}

fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<AgentConfig, String> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    AgentConfig::read("agent.yaml", text, variables).map_err(|error| format!("[{}] {error}", error.code))
}

#[test]
fn every_key_is_read() {
    let config = read(FULL).unwrap();
    assert_eq!(config.controller.unwrap().to_string(), "https://backup.example.com:7443");
    assert_eq!(config.name.unwrap().as_str(), "db1");
    assert_eq!((config.slots, config.work_threads, config.verify_encoding), (3, Some(4), false));
    assert_eq!(config.drain_grace, Duration::from_secs(300));
    assert_eq!(config.run_deadline, Duration::from_secs(12 * 3600));
    assert_eq!(config.allow.restore_paths, [PathBuf::from("/srv/restore")]);
    let hooks: Vec<_> =
        config.hooks.iter().map(|(name, hook)| (name.as_str(), hook.timeout.as_secs())).collect();
    assert_eq!(hooks, [("start-app", 60), ("stop-app", 90)]);
    assert_eq!(config.telemetry.sampled_share, 0.5);
}

#[test]
fn two_keys_are_enough() {
    let config = read("api: holdfast/v1\ndata_dir: /var/lib/holdfast-agent\n").unwrap();
    assert_eq!(config.slots, 2);
    assert_eq!(config.drain_grace, Duration::from_secs(600));
    assert!(config.controller.is_none() && config.allow.restore_paths.is_empty());
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let head = "api: holdfast/v1\ndata_dir: /d\n";
    for (text, expected) in [
        (
            "api: holdfast/v2\ndata_dir: /d\n",
            "[HF-1002] agent.yaml: `api` is \"holdfast/v2\", this version reads \"holdfast/v1\"",
        ),
        ("api: holdfast/v1\n", "[HF-1002] agent.yaml: `data_dir` is missing"),
        (
            "api: holdfast/v1\ndata_dir: d\n",
            "[HF-1002] agent.yaml: `data_dir` is d, an absolute path is needed",
        ),
        (&format!("{head}slots: 0\n"), "[HF-1002] agent.yaml: `slots` is 0, 1 to 64 are allowed"),
        (
            &format!("{head}work_threads: 0\n"),
            "[HF-1002] agent.yaml: `work_threads` is 0, 1 to 256 are allowed",
        ),
        (
            &format!("{head}hooks: {{ a: {{ command: [] }} }}\n"),
            "[HF-1002] agent.yaml: hook a: `command` is empty",
        ),
        (
            &format!("{head}hooks: {{ a: {{ command: [./sh] }} }}\n"),
            "[HF-1002] agent.yaml: hook a: the program \"./sh\" is neither a bare name nor an absolute path",
        ),
        (
            &format!("{head}allow: {{ restore_paths: [srv] }}\n"),
            "[HF-1002] agent.yaml: `allow.restore_paths` has the path \"srv\": absolute paths without `..` are needed",
        ),
        (
            &format!("{head}telemetry: {{ sampled_share: 2 }}\n"),
            "[HF-1002] agent.yaml: `telemetry.sampled_share` is 2, 0 to 1 are allowed",
        ),
    ] {
        assert_eq!(read(text).expect_err(text), expected);
    }
    let unknown = read(&format!("{head}slot: 3\n")).unwrap_err();
    assert!(unknown.starts_with("[HF-1003] agent.yaml:3:1: "), "{unknown}");
    let twice = read(&format!("{head}data_dir: /e\n")).unwrap_err();
    assert!(twice.starts_with("[HF-1004] agent.yaml:3:1: "), "{twice}");
    let no_duration = read(&format!("{head}drain_grace: soon\n")).unwrap_err();
    assert!(no_duration.contains("\"soon\" is no duration: 90s, 10m and 1h 30m are"), "{no_duration}");
    assert!(no_duration.starts_with("[HF-1002] agent.yaml:3:"), "{no_duration}");
}

#[test]
fn the_environment_overrides_every_key() {
    let config = read_with(
        FULL,
        &[
            ("HOLDFAST_AGENT__DATA_DIR", "/elsewhere"),
            ("HOLDFAST_AGENT__NAME", "7"),
            ("HOLDFAST_AGENT__SLOTS", "8"),
            ("HOLDFAST_AGENT__ALLOW__RESTORE_PATHS", "[/a, /b]"),
            ("HOLDFAST_AGENT__HOOKS__STOP_APP__TIMEOUT", "5s"),
            ("HOLDFAST_AGENT__TELEMETRY__FORMAT", "text"),
            ("HOLDFAST_ENROLL_TOKEN", "is no key"),
        ],
    )
    .unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/elsewhere"));
    assert_eq!(config.name.unwrap().as_str(), "7");
    assert_eq!(config.slots, 8);
    assert_eq!(config.allow.restore_paths, [PathBuf::from("/a"), PathBuf::from("/b")]);
    let stop = config.hooks.iter().find(|(name, _)| name.as_str() == "stop-app").unwrap().1;
    assert_eq!((stop.timeout, stop.command.len()), (Duration::from_secs(5), 3));
}

#[test]
fn a_variable_for_no_key_is_an_error_that_names_it() {
    let error = read_with(FULL, &[("HOLDFAST_AGENT__SLOT", "8")]).unwrap_err();
    assert!(
        error.starts_with("[HF-1003] environment variable HOLDFAST_AGENT__SLOT: unknown field `slot`"),
        "{error}"
    );
    let error = read_with(FULL, &[("HOLDFAST_AGENT__SLOTS", "many")]).unwrap_err();
    assert!(
        error.starts_with("[HF-1002] environment variable HOLDFAST_AGENT__SLOTS: invalid type"),
        "{error}"
    );
}

#[test]
fn the_example_that_is_shipped_is_valid() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/agent.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let config = read(&text).unwrap();
    assert!(config.controller.is_some() && !config.hooks.is_empty());
}
