use super::*;

fn read(text: &str) -> Result<Fleet, Vec<FleetError>> {
    read_fleet(&[FleetFile { name: "fleet.yaml".to_owned(), text: text.to_owned() }])
}

fn only_error(text: &str) -> (ErrorCode, String) {
    let errors = read(text).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    (errors[0].code, errors[0].to_string())
}

const GOOD: &str = r#"
api: holdfast/v1
repositories:
  main: { url: "file:///var/lib/holdfast/repo", encryption: { key: { file: /etc/holdfast/main.key } } }
sources:
  pg-main: { engine: postgres, agent: db1, connect: { host: 127.0.0.1, port: 5438, user: holdfast, password: { file: /etc/holdfast/pg.pass } }, labels: { env: prod } }
  cache-db: { engine: sqlite, agent: app1, path: /srv/app/db.sqlite3 }
  images: { engine: files, agent: app1, paths: [/srv/app/images], exclude: ["*.tmp"], to: [main] }
agents:
  db1: { labels: { site: fra } }
"#;

#[test]
fn an_exported_fleet_reads_back_unchanged() {
    let fleet = read(GOOD).unwrap();
    assert_eq!(fleet.sources.len(), 3);
    assert_eq!(read(&to_yaml(&fleet)).unwrap(), fleet, "{}", to_yaml(&fleet));
}

#[test]
fn a_key_of_another_engine_is_refused() {
    let (code, message) =
        only_error("api: holdfast/v1\nsources:\n  a: { engine: sqlite, agent: x, path: /a, paths: [/b] }\n");
    assert_eq!(code, ErrorCode::FileInvalid);
    assert!(message.contains("`paths` does not apply to a source with engine sqlite"), "{message}");
}

#[test]
fn two_files_that_define_the_same_name_are_refused() {
    let file = |name: &str| FleetFile {
        name: name.to_owned(),
        text: "api: holdfast/v1\nagents: { a: {} }".to_owned(),
    };
    let errors = read_fleet(&[file("one.yaml"), file("two.yaml")]).unwrap_err();
    assert_eq!(errors[0].to_string(), "two.yaml: agent a is defined in one.yaml already");
}

#[test]
fn a_repository_within_one_that_exists_is_refused() {
    let repository = |name: &str, url: &str| {
        let text = format!(
            "api: holdfast/v1\nrepositories: {{ {name}: {{ url: \"{url}\", encryption: {{ key: {{ env: A }} }} }} }}"
        );
        read(&text).unwrap()
    };
    let known = repository("main", "file:///srv/r");
    let errors = repository("other", "file:///srv/r/inner").check_references(&known);
    assert_eq!(
        errors[0].to_string(),
        "repositories.other: `url` lies at or within the place of repository main"
    );
    // The same repository in another place is a change of it.
    assert_eq!(repository("main", "file:///srv/r/inner").check_references(&known), []);
}

#[test]
fn an_unknown_repository_is_named() {
    let fleet =
        read("api: holdfast/v1\nsources:\n  a: { engine: sqlite, agent: x, path: /a, to: [nowhere] }\n")
            .unwrap();
    let errors = fleet.check_references(&Fleet::default());
    assert_eq!(errors[0].to_string(), "sources.a: `to` names repository nowhere, which does not exist");
}

#[test]
fn a_diff_names_what_changes_and_marks_what_is_dangerous() {
    let current = read(GOOD).unwrap();
    let mut wanted = current.clone();
    wanted.sources.remove(&SourceName::new("images").unwrap());
    wanted.repositories.values_mut().for_each(|spec| spec.compression_level = 9);
    assert_eq!(diff(&current, &current, true), []);
    let changes = diff(&current, &wanted, true);
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0].details, ["compression_level: 3 → 9"]);
    assert!(!changes[0].dangerous && changes[1].dangerous);
    assert_eq!(diff(&current, &wanted, false).len(), 1, "without prune nothing is removed");
}

const ALERTS: &str = r#"
api: holdfast/v1
notifications:
  channels:
    ding: { type: dingtalk, webhook: { file: /run/ding }, secret: { env: SIGN }, at_mobiles: ["13800000000"], at_all: true, language: zh-CN }
    slack: { type: slack, webhook: { file: /run/slack } }
    mail: { type: email, to: [dba@example.com], smtp: { host: mail.example.com, user: holdfast, password: { file: /run/smtp } } }
    hook: { type: webhook, url: "https://cmdb.example.com/hook", signing_key: { file: /run/key }, template: "{{ title }}" }
    dead.man: { type: ping, url: { file: /run/ping }, every: 5m }
    log: { type: log }
  routes:
    - match: { labels: { tier: "1" }, severity: critical }
      to: [ding, slack]
      repeat: 1h
      escalate: [ { after: 30m, to: [mail] } ]
    - match: { severity: [critical, warning] }
      to: [slack]
      group_by: [repository, reason]
      wait: 5s
  silences:
    - { match: { source: old }, until: 2026-12-01T00:00:00Z, reason: migration, by: li.wei }
alerts:
  drill-overdue: { severity: critical, for: 1d }
  slow: { expr: "holdfast_potential_loss_seconds > 600 for 5m", message: "loses {{ value }} s", to: [hook] }
"#;

#[test]
fn notifications_and_alerts_read_back_unchanged() {
    let fleet = read(ALERTS).unwrap();
    assert_eq!((fleet.channels.len(), fleet.routing().unwrap().routes.len(), fleet.alerts.len()), (6, 2, 2));
    assert_eq!(fleet.check_references(&Fleet::default()), []);
    let text = to_yaml(&fleet);
    assert_eq!(read(&text).unwrap(), fleet, "{text}");
    let text = to_effective_yaml(&fleet);
    assert_eq!(read(&text).unwrap(), fleet, "{text}");
    let mut entered = Fleet::default();
    for path in diff(&entered.clone(), &fleet, false) {
        let (kind, name) = path.path.split_once('.').unwrap();
        entered.insert_json(kind, name, fleet.get_json(kind, name).unwrap()).unwrap();
    }
    assert_eq!(entered, fleet);
    assert_eq!(json_schema()["$defs"]["Channel"]["additionalProperties"], false);
}

/// The only problem of a file that differs from the good one in one place.
fn wrong(good: &str, bad: &str) -> (ErrorCode, String) {
    assert!(ALERTS.contains(good), "{good}");
    only_error(&ALERTS.replace(good, bad))
}

#[test]
fn what_is_wrong_with_a_channel_is_said_with_its_place() {
    for (good, bad, code, message) in [
        ("template: \"{{ title }}\"", "temlate: x", ErrorCode::FileUnknownKey, "fleet.yaml:8:"),
        (
            "{ type: log }",
            "{ type: log, every: 5m }",
            ErrorCode::FileInvalid,
            "`every` does not apply to a channel with type log",
        ),
        (
            "webhook: { file: /run/slack }",
            "webhook: \"https://canary-1\"",
            ErrorCode::PlaintextSecret,
            "a secret is never written here",
        ),
        (
            "url: { file: /run/ping }",
            "url: \"https://canary-1\"",
            ErrorCode::FileInvalid,
            "is a secret: give a reference",
        ),
        (
            "https://cmdb.example.com/hook",
            "file:///etc/passwd",
            ErrorCode::FileInvalid,
            "`url` is \"file:///etc/passwd\"",
        ),
        ("https://cmdb.example.com/hook", "gopher://x/", ErrorCode::FileInvalid, "`url` is \"gopher://x/\""),
        (
            "https://cmdb.example.com/hook",
            "https://u:canary-1@h/",
            ErrorCode::FileInvalid,
            "`url` is \"…@h/\"",
        ),
        (
            "to: [dba@example.com]",
            "to: [\"a@b\\nBcc: c@d\"]",
            ErrorCode::FileInvalid,
            "is not a mail address",
        ),
        ("to: [dba@example.com]", "to: []", ErrorCode::FileInvalid, "`to` is empty or too long"),
        (
            "host: mail.example.com,",
            "host: mail.example.com, tls: none,",
            ErrorCode::FileInvalid,
            "`smtp.tls` is none: that is possible only",
        ),
        ("user: holdfast, ", "", ErrorCode::FileInvalid, "are given both, or neither"),
        ("\"13800000000\"", "\"1380'\"", ErrorCode::FileInvalid, "`at_mobiles` has \"1380'\""),
        (
            "{ type: log }",
            "{ type: slack }",
            ErrorCode::FileInvalid,
            "a channel with type slack needs `webhook`",
        ),
    ] {
        let (found, text) = wrong(good, bad);
        assert_eq!(found, code, "{text}");
        assert!(text.starts_with("fleet.yaml:") && text.contains(message), "{text}");
        assert!(!text.contains("canary-1"), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_rule_is_said_with_its_place_and_a_suggestion() {
    for (good, bad, message) in [
        (
            "_loss_seconds > 600",
            "_los_seconds > 600",
            "fleet.yaml:24:17: alerts.slow.expr: \"holdfast_potential_los_seconds > 600 for 5m\" at character 1: there is no metric `holdfast_potential_los_seconds`; did you mean `holdfast_potential_loss_seconds`?",
        ),
        (
            "message: \"loses",
            "for: 1m, message: \"loses",
            "fleet.yaml:24:70: alerts.slow.for: is given in `expr` already",
        ),
        (
            "  drill-overdue:",
            "  dril-overdue:",
            "fleet.yaml:23:17: alerts.dril-overdue: there is no built-in rule dril-overdue, and it has no `expr` of its own; did you mean drill-overdue?",
        ),
        ("  slow:", "  agent-down:", "fleet.yaml:24:"),
        ("for: 1d }", "within: 1d }", "fleet.yaml:23:"),
        ("to: [ding, slack]", "to: []", "fleet.yaml:12:5: notifications.routes: `to` of route 1 is empty"),
        ("reason: migration", "reason: \"\"", "fleet.yaml:"),
    ] {
        let errors = read(&ALERTS.replace(good, bad)).unwrap_err();
        assert!(errors[0].to_string().starts_with(message), "{}", errors[0]);
    }
}

#[test]
fn channels_that_are_named_must_exist_and_take_messages() {
    for (good, bad, message) in [
        ("to: [hook]", "to: [hok]", "alerts.slow: `to` names channel hok, which does not exist"),
        (
            "after: 30m, to: [mail]",
            "after: 30m, to: [dead.man]",
            "notifications.routes: `to` names channel dead.man, which gives signs of life only",
        ),
    ] {
        let errors = read(&ALERTS.replace(good, bad)).unwrap().check_references(&Fleet::default());
        assert_eq!(errors[0].to_string(), message);
    }
    let mut fleet = read(ALERTS).unwrap();
    fleet.remove("channels", "mail");
    assert_eq!(
        fleet.user_of("channels.mail").unwrap(),
        "channel mail can not be removed: notifications.routes names it"
    );
}

#[test]
fn a_report_reads_back_unchanged_and_keeps_its_channel() {
    let fleet = read(
        "api: holdfast/v1\nnotifications:\n  channels:\n    ops: { type: log }\nreports:\n  morning: { report: daily, \
         cron: \"@daily\", timezone: Asia/Shanghai, to: [ops] }\n",
    )
    .unwrap();
    assert_eq!(read(&to_yaml(&fleet)).unwrap(), fleet, "{}", to_yaml(&fleet));
    assert_eq!(
        fleet.user_of("channels.ops").unwrap(),
        "channel ops can not be removed: reports.morning names it"
    );
}
