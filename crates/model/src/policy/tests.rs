use super::*;
use crate::error_code::ErrorCode;
use crate::fleet::{Fleet, FleetFile, diff, json_schema, locate, read_fleet, to_yaml};
use crate::ids::PolicyName;

const GOLD: &str = r#"api: holdfast/v1
repositories:
  main: { url: "file:///srv/main", encryption: { key: { file: /etc/holdfast/main.key } } }
  oss: { url: "s3://acme-backup/holdfast", encryption: { key: { file: /etc/holdfast/oss.key } } }
policies:
  gold:
    objectives: { rpo: 5m, rto: 30m, drill_every: 7d, verify_every: 30d, copies: 2 }
    schedule:
      full: { cron: "0 2 * * SUN", timezone: Asia/Shanghai, jitter: 10m }
      incremental: { cron: "0 * * * *" }
      differential: { every: 12h }
      snapshot: { after: full }
      log: stream
      timezone: Europe/Berlin
      window: "22:00-06:00"
      blackout: ["2026-12-24", "2026-12-31..2027-01-01"]
      catch_up: 6h
    keep: { last: 5, hourly: 24, daily: 30, weekly: 12, monthly: 12, yearly: 3, within: 2d, pitr: 14d, max_total_size: 50GiB, max_count: 500, cleanup: { above: 85%, newest: 10 } }
    keep_by_type: { snapshot: 1d, incremental: 7d, full: 30d }
    to: [main]
    copy_to: [oss]
    verify: { after_backup: true, sample: 5%/day, full: 30d }
    retry: { attempts: 3, backoff: 5m }
    priority: high
    resources: { memory: 80%, cpu: 70%, disk: 85%, wait: 5m, then: skip }
    hooks: { before: stop-app, after: start-app }
    limits: { runs: 4, runs_per_agent: 1, runs_per_repository: 2 }
    timeout: 4h
    bandwidth: { limit: 100MiB/s, hours: [{ window: "08:00-18:00", limit: 10MiB/s }] }
"#;

fn read_all(text: &str) -> Result<Fleet, Vec<(ErrorCode, String)>> {
    let files = [FleetFile { name: "fleet.yaml".to_owned(), text: text.to_owned() }];
    let plain = |errors: Vec<crate::fleet::FleetError>| {
        errors.into_iter().map(|error| (error.code, error.to_string())).collect::<Vec<_>>()
    };
    let fleet = read_fleet(&files).map_err(plain)?;
    let mut errors = fleet.check_references(&Fleet::default());
    locate(&mut errors, &files);
    if errors.is_empty() { Ok(fleet) } else { Err(plain(errors)) }
}

/// The one error of a policy `p` with this body, given from the third line on.
fn error_of(body: &str) -> (ErrorCode, String) {
    let text = format!("api: holdfast/v1\npolicies:\n  p:\n{body}\n");
    let errors = read_all(&text).unwrap_err();
    assert_eq!(errors.len(), 1, "{body}: {errors:?}");
    errors.into_iter().next().unwrap()
}

fn policy(body: &str) -> Policy {
    let fleet = read_all(&format!("api: holdfast/v1\npolicies:\n  p:\n{body}\n"));
    fleet.unwrap_or_else(|errors| panic!("{body}: {errors:#?}")).policies.into_values().next().unwrap()
}

#[test]
fn a_policy_with_every_key_reads_and_exports_unchanged() {
    let fleet = read_all(GOLD).unwrap();
    let gold = &fleet.policies[&PolicyName::new("gold").unwrap()];
    assert_eq!(gold.objectives.rpo, Some(Span::from_mins(5)));
    assert_eq!(gold.schedule.by_type().count(), 4);
    assert_eq!(gold.schedule.log, Some(LogArchiving::Stream));
    assert_eq!(gold.priority, Priority::HIGH);
    assert_eq!(gold.keep.as_ref().unwrap().cleanup.as_ref().unwrap().newest, Count::new(10));
    let exported = to_yaml(&fleet);
    assert_eq!(read_all(&exported).unwrap(), fleet, "{exported}");
    assert_eq!(to_yaml(&read_all(&exported).unwrap()), exported);
    for key in ["50GiB", "12h", "5%/day", "10MiB/s", "22:00-06:00", "2026-12-31..2027-01-01", "after: full"] {
        assert!(exported.contains(key), "{key} is missing: {exported}");
    }
}

#[test]
fn a_policy_survives_the_store_as_a_document() {
    let fleet = read_all(GOLD).unwrap();
    let mut copy = Fleet::default();
    for kind in ["repositories", "policies"] {
        for name in ["main", "oss", "gold"] {
            if let Some(document) = fleet.get_json(kind, name) {
                copy.insert_json(kind, name, document).unwrap();
            }
        }
    }
    assert_eq!(copy, fleet);
}

#[test]
fn defaults_are_visible() {
    let written = serde_json::to_value(policy("    schedule: { full: { every: 1d } }")).unwrap();
    let expected = serde_json::json!({
        "schedule": { "full": { "every": "1d" }, "timezone": "UTC", "catch_up": "6h" },
        "verify": { "after_backup": true },
        "retry": { "attempts": 3, "backoff": "5m" },
        "priority": "medium",
        "timeout": "1d",
    });
    assert_eq!(written, expected);
}

#[test]
fn the_schema_knows_every_key_of_the_example() {
    let schema = json_schema();
    let definitions = schema["$defs"].as_object().unwrap();
    for (name, keys) in [
        ("Policy", &["objectives", "schedule", "keep", "keep_by_type", "copy_to", "bandwidth"][..]),
        ("Objectives", &["rpo", "rto", "drill_every", "verify_every", "copies"]),
        (
            "Schedule",
            &["full", "incremental", "differential", "snapshot", "log", "window", "blackout", "catch_up"],
        ),
        ("When", &["cron", "every", "after", "timezone", "jitter"]),
        ("Keep", &["last", "hourly", "daily", "weekly", "monthly", "yearly", "within", "pitr", "max_count"]),
    ] {
        let properties = definitions[name]["properties"].as_object().unwrap();
        for key in keys {
            assert!(properties.contains_key(*key), "{name} lacks {key}: {properties:?}");
        }
        assert_eq!(definitions[name]["additionalProperties"], false, "{name}");
    }
    assert_eq!(definitions["Span"]["type"], "string");
}

#[test]
fn an_unknown_key_is_refused_with_those_that_are_known() {
    let (code, message) = error_of("    retension: { last: 7 }");
    assert_eq!(code, ErrorCode::FileUnknownKey);
    assert!(message.starts_with("fleet.yaml:4:5: "), "{message}");
    assert!(message.contains("retension") && message.contains("keep_by_type"), "{message}");
    for body in
        ["    keep: { dayly: 7 }", "    schedule: { full: { chron: x } }", "    objectives: { RPO: 5m }"]
    {
        assert_eq!(error_of(body).0, ErrorCode::FileUnknownKey, "{body}");
    }
    let (code, message) = error_of("    keep: { last: 7 }\n    keep: { last: 8 }");
    assert_eq!(code, ErrorCode::FileDuplicateKey, "{message}");
}

#[test]
fn counts_that_are_none_are_refused() {
    for (count, reason) in [
        ("0", "0 is not a count: leave the key out where there is to be none"),
        ("-1", "-1 is out of range: 1 to 1000000 are possible"),
        ("1000001", "1000001 is out of range: 1 to 1000000 are possible"),
    ] {
        let (code, message) = error_of(&format!("    keep: {{ last: {count} }}"));
        assert_eq!(code, ErrorCode::FileInvalid);
        assert!(message.starts_with("fleet.yaml:4:19: ") && message.ends_with(reason), "{message}");
    }
    for count in ["1e99", "\"7\"", "1_000x", "NO", "1.5", "[7]"] {
        let (code, message) = error_of(&format!("    keep: {{ last: {count} }}"));
        assert_eq!(code, ErrorCode::FileInvalid, "{count}: {message}");
        assert!(message.starts_with("fleet.yaml:4:"), "{count}: {message}");
    }
}

#[test]
fn lengths_of_time_that_are_none_are_refused() {
    for (span, reason) in [
        ("0s", "is no time at all"),
        ("-1h", "is negative"),
        ("9999999999h", "is too long"),
        ("300", "is not a length of time: write it with units"),
        ("5min", "is not a length of time"),
        ("NO", "is not a length of time"),
        ("\"\"", "is not a length of time"),
    ] {
        let (code, message) = error_of(&format!("    schedule: {{ full: {{ every: {span} }} }}"));
        assert_eq!(code, ErrorCode::FileInvalid);
        assert!(message.starts_with("fleet.yaml:4:") && message.contains(reason), "{span}: {message}");
    }
}

#[test]
fn what_is_no_time_is_refused_with_the_way_to_write_it() {
    for (schedule, reason) in [
        ("full: { cron: \"60 * * * *\" }", "\"60 * * * *\" is not a cron pattern: number out of bounds"),
        ("full: { cron: \"0 2 * *\" }", "it has 4 fields, five are needed"),
        ("full: { cron: \"0 0 2 * * *\" }", "it has 6 fields, five are needed"),
        ("full: { cron: \"@nightly\" }", "is not known: @hourly, @daily"),
        ("full: { cron: \"0 0 30 2 *\" }", "is a cron pattern for a date that never comes"),
        (
            "full: { cron: \"0 2 * * *\", timezone: Berlin }",
            "is not a time zone: write its name, as Europe/Berlin",
        ),
        ("timezone: GMT+25", "is not a time zone"),
        (
            "full: { cron: \"0 2 * * *\", every: 1d }",
            "exactly one of `cron`, `every` and `after` is needed, 2 are given",
        ),
        ("full: { jitter: 1m }", "exactly one of `cron`, `every` and `after` is needed, 0 are given"),
        ("full: { every: 1d, timezone: UTC }", "`timezone` belongs to `cron` only"),
        ("full: { after: \"Not A Name\" }", "a type of snapshot or the name of a source is needed"),
        ("window: \"22-6\"", "is not a window: write two times of the day, as 22:00-06:00"),
        ("window: \"22:00-25:00\"", "is not a window"),
        ("window: \"06:00-06:00\"", "ends when it begins"),
        ("blackout: [\"24.12.2026\"]", "is not a date: write 2026-12-24"),
        ("blackout: [\"2026-02-30\"]", "is not a date"),
        ("blackout: [\"2026-12-24..2026-12-20\"]", "ends before it begins"),
        ("blackout: [\"2026-12-24..2029-12-20\"]", "is too long"),
        ("log: sometimes", "fleet.yaml:4:"),
    ] {
        let (code, message) = error_of(&format!("    schedule: {{ {schedule} }}"));
        assert_eq!(code, ErrorCode::FileInvalid, "{schedule}: {message}");
        assert!(message.starts_with("fleet.yaml:4:") && message.contains(reason), "{schedule}: {message}");
    }
    for (body, reason) in [
        ("priority: urgent", "high, medium, low, or a number from 1 to 100"),
        ("priority: 0", "high, medium, low, or a number from 1 to 100"),
        ("resources: { cpu: 170% }", "is out of range: 1% to 100% are possible"),
        ("keep: { max_total_size: 50 }", "is not an amount of bytes"),
        ("bandwidth: { limit: 50MiB }", "is not a rate"),
    ] {
        let (code, message) = error_of(&format!("    {body}"));
        assert_eq!(code, ErrorCode::FileInvalid, "{body}: {message}");
        assert!(message.starts_with("fleet.yaml:4:") && message.contains(reason), "{body}: {message}");
    }
}

#[test]
fn a_time_zone_is_written_back_as_it_is_named() {
    let policy = policy("    schedule: { full: { cron: \"0  2 * * *\" }, timezone: europe/berlin }");
    assert_eq!(policy.schedule.timezone.as_str(), "Europe/Berlin");
    assert_eq!(serde_json::to_value(&policy.schedule.full).unwrap()["cron"], "0 2 * * *");
}

#[test]
fn a_policy_that_says_nothing_is_refused() {
    let (code, message) = error_of("    {}");
    assert_eq!(code, ErrorCode::PolicyEmpty);
    assert_eq!(
        message,
        "fleet.yaml:4:5: policies.p: says nothing: give it objectives, a schedule or what to keep"
    );
    let (code, message) = error_of("    schedule: { full: { every: 1d } }\n    keep: {}");
    assert_eq!(code, ErrorCode::RetentionEmpty);
    assert_eq!(
        message,
        "fleet.yaml:5:11: policies.p.keep: says nothing: leave it out to keep everything, or say what to keep"
    );
}

#[test]
fn an_rpo_that_the_schedule_cannot_keep_is_refused_where_it_is_written() {
    let (code, message) = error_of("    objectives: { rpo: 15m }\n    schedule: { full: { every: 1d } }");
    assert_eq!(code, ErrorCode::PromiseImpossible);
    assert_eq!(
        message,
        "fleet.yaml:4:24: policies.p.objectives.rpo: promises to lose at most 15m, but the schedule leaves up to 1d: \
         back up at least every 15m, or promise 1d"
    );
    let (_, message) = error_of("    objectives: { rpo: 15m }");
    assert!(
        message.ends_with("promises to lose at most 15m, but nothing is scheduled: add `schedule`"),
        "{message}"
    );
    for (schedule, worst) in [
        // Seen from New York, one day of the year has 25 hours.
        ("full: { cron: \"0 12 * * *\", timezone: America/New_York }", "1d1h"),
        ("full: { cron: \"0 * * * *\", jitter: 5m }", "1h5m"),
        ("full: { cron: \"0 2 * * MON-FRI\" }", "3d"),
        ("incremental: { every: 1h }, window: \"22:00-06:00\"", "17h"),
        ("full: { every: 1d }, blackout: [\"2027-12-24..2027-12-26\"]", "4d"),
        ("full: { cron: \"0 0 29 2 *\" }", "1461d"),
        ("full: { cron: \"*/5 * * 6 *\" }", "335d5m"),
        ("log: { every: 10m }", "10m"),
    ] {
        let (code, message) =
            error_of(&format!("    objectives: {{ rpo: 1m }}\n    schedule: {{ {schedule} }}"));
        assert_eq!(code, ErrorCode::PromiseImpossible);
        assert!(message.contains(&format!("leaves up to {worst}:")), "{schedule}: {message}");
    }
    policy(
        "    objectives: { rpo: 1h }\n    schedule: { full: { cron: \"0 2 * * *\" }, incremental: { every: 1h } }",
    );
    policy("    objectives: { rpo: 1m }\n    schedule: { full: { every: 1d }, log: stream }");
}

#[test]
fn rules_that_never_begin_are_refused() {
    for (schedule, key, reason) in [
        (
            "full: { cron: \"0 12 * * *\" }, window: \"22:00-06:00\"",
            "full",
            "never begins: its times are outside the window, and catch_up (6h) is over before the window opens",
        ),
        (
            "incremental: { after: full }",
            "incremental",
            "follows full, which is not scheduled: it would never begin",
        ),
        ("full: { after: full }", "full", "follows itself: it would never begin"),
    ] {
        let (code, message) = error_of(&format!("    schedule:\n      {{ {schedule} }}"));
        assert_eq!(code, ErrorCode::PromiseImpossible);
        assert!(message.starts_with("fleet.yaml:5:"), "{message}");
        assert!(message.ends_with(&format!("policies.p.schedule.{key}: {reason}")), "{message}");
    }
    policy("    schedule: { full: { cron: \"0 12 * * *\" }, window: \"22:00-06:00\", catch_up: 10h }");
}

#[test]
fn a_retention_that_would_keep_nothing_is_refused() {
    let (code, message) =
        error_of("    schedule: { full: { cron: \"0 2 * * SUN\" } }\n    keep: { within: 3d }");
    assert_eq!(code, ErrorCode::RetentionEmpty);
    assert_eq!(
        message,
        "fleet.yaml:5:11: policies.p.keep: keeps snapshots for 3d, but 7d may pass between backups: all would be gone \
         before the next; add `last: 3`, or keep them for longer"
    );
    policy("    schedule: { full: { cron: \"0 2 * * SUN\" } }\n    keep: { within: 3d, last: 1 }");
    policy(
        "    schedule: { full: { cron: \"0 2 * * SUN\" } }\n    keep: { within: 3d }\n    keep_by_type: { full: 8d }",
    );
}

#[test]
fn snapshots_that_are_gone_before_they_are_read_are_refused() {
    let daily = "    schedule: { full: { cron: \"0 2 * * *\" } }\n    verify: { full: 30d }\n";
    let (code, message) = error_of(&format!("{daily}    keep: {{ within: 7d, daily: 9 }}"));
    assert_eq!(code, ErrorCode::PromiseImpossible);
    assert_eq!(
        message,
        "fleet.yaml:5:21: policies.p.verify.full: has a snapshot read in full up to 9d9h after it was made, but none is \
         kept for longer than 9d: none would ever be proven; set `full: 28d`, or keep snapshots for 9d9h"
    );
    for right in ["within: 7d, daily: 10", "last: 10", "weekly: 2", "max_count: 2", "within: 9d9h"] {
        policy(&format!("{daily}    keep: {{ {right} }}"));
    }
    policy(&format!("{daily}    keep: {{ within: 7d }}\n    keep_by_type: {{ full: 10d }}"));
    let within = daily.replace("30d", "28d");
    policy(&format!("{within}    keep: {{ within: 7d, daily: 9 }}"));
}

#[test]
fn promises_without_means_are_refused() {
    for (body, key, reason) in [
        (
            "keep: { pitr: 14d }",
            "keep.pitr",
            "promises every moment of 14d, which needs the log: add `log: stream` to the schedule",
        ),
        (
            "objectives: { copies: 2 }",
            "objectives.copies",
            "promises 2 copies, but `to` and `copy_to` make 1: name more repositories",
        ),
        (
            "objectives: { verify_every: 30d }",
            "objectives.verify_every",
            "promises a verification every 30d, but nothing makes sure that everything is read: set `verify.full: 30d`",
        ),
        (
            "objectives: { verify_every: 7d }\n    verify: { sample: 5%/day }",
            "objectives.verify_every",
            "promises a verification every 7d, but everything is read within 20d only: set `verify.full: 7d`",
        ),
    ] {
        let (code, message) = error_of(&format!("    {body}"));
        assert_eq!(code, ErrorCode::PromiseImpossible);
        assert!(message.starts_with("fleet.yaml:4:"), "{message}");
        assert!(message.ends_with(&format!("policies.p.{key}: {reason}")), "{message}");
    }
}

#[test]
fn references_to_nothing_are_named_with_their_line() {
    let text = "api: holdfast/v1
policies:
  p: { schedule: { full: { every: 1d }, incremental: { after: nobody } }, to: [nowhere], copy_to: [elsewhere] }
sources:
  a: { engine: sqlite, agent: x, path: /a, policy: gold }
";
    let errors = read_all(text).unwrap_err();
    assert!(errors.iter().all(|(code, _)| *code == ErrorCode::ReferenceUnknown), "{errors:?}");
    let messages: Vec<&str> = errors.iter().map(|(_, message)| message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "fleet.yaml:3:6: policies.p: `to` names repository nowhere, which does not exist",
            "fleet.yaml:3:6: policies.p: `copy_to` names repository elsewhere, which does not exist",
            "fleet.yaml:3:54: policies.p.schedule.incremental: `after` names source nobody, which does not exist",
            "fleet.yaml:5:6: sources.a: `policy` names policy gold, which does not exist",
        ]
    );
}

#[test]
fn promises_that_do_not_hold_for_one_source_are_named_there() {
    let text = "api: holdfast/v1
repositories:
  main: { url: \"file:///srv/main\", encryption: { key: { env: KEY } } }
policies:
  gold: { objectives: { rpo: 5m, copies: 2 }, schedule: { incremental: { every: 1h }, log: stream }, copy_to: [main] }
  loop: { schedule: { full: { after: b } } }
sources:
  a: { engine: sqlite, agent: x, path: /a, policy: gold, to: [main] }
  b: { engine: sqlite, agent: x, path: /b, policy: loop }
";
    let errors = read_all(text).unwrap_err();
    assert!(errors.iter().all(|(code, _)| *code == ErrorCode::PromiseImpossible), "{errors:?}");
    let messages: Vec<&str> = errors.iter().map(|(_, message)| message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "fleet.yaml:8:52: sources.a.policy: policy gold promises to lose at most 5m, but the log of sqlite is not \
             archived by this version and backups leave up to 1h: back up at least every 5m, or promise 1h",
            "fleet.yaml:8:52: sources.a.policy: policy gold promises 2 copies, but `to` and `copy_to` make 1: name \
             more repositories",
            "fleet.yaml:9:52: sources.b.policy: policy loop makes it follow itself: it would never begin",
        ]
    );
}

#[test]
fn a_changed_policy_is_held_against_sources_that_are_known_already() {
    let read = |text: &str| read_all(&format!("api: holdfast/v1\n{text}")).unwrap();
    let known = read(
        "policies:\n  p: { schedule: { full: { every: 1h } } }\nsources:\n  a: { engine: sqlite, agent: x, path: /a, \
         policy: p }\n",
    );
    let changed =
        read("policies:\n  p: { objectives: { rpo: 5m }, schedule: { full: { every: 1h }, log: stream } }\n");
    let errors = changed.check_references(&known);
    assert_eq!(errors.len(), 1);
    assert_eq!(
        errors[0].to_string(),
        "policies.p: for source a, policy p promises to lose at most 5m, but the log of sqlite is not archived by this \
         version and backups leave up to 1h: back up at least every 5m, or promise 1h"
    );
}

#[test]
fn a_nested_file_without_end_is_not_searched_for_places() {
    let deep = format!("api: holdfast/v1\nx: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    let empty = "api: holdfast/v1\npolicies: { p: {} }\n".to_owned();
    let files = [("deep.yaml", deep), ("empty.yaml", empty)]
        .map(|(name, text)| FleetFile { name: name.to_owned(), text });
    let errors = read_fleet(&files).unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert_eq!((errors[0].file.as_str(), errors[1].position), ("deep.yaml", Some((2, 16))));
}

#[test]
fn dates_and_windows_need_no_quotes() {
    let policy = policy("    schedule: { full: { every: 1d }, blackout: [2026-12-24], window: 22:00-06:00 }");
    assert_eq!((policy.schedule.blackout.len(), policy.schedule.window.is_some()), (1, true));
}

#[test]
fn what_is_still_in_use_says_by_whom() {
    let text = "api: holdfast/v1
repositories:
  main: { url: \"file:///srv/main\", encryption: { key: { env: KEY } } }
  other: { url: \"file:///srv/other\", encryption: { key: { env: KEY } } }
policies:
  gold: { schedule: { full: { every: 1d }, snapshot: { after: b } }, to: [main], copy_to: [other] }
sources:
  a: { engine: sqlite, agent: x, path: /a, policy: gold }
  b: { engine: sqlite, agent: x, path: /b, to: [main] }
";
    let fleet = read_all(text).unwrap();
    for (path, user) in [
        ("policies.gold", Some("policy gold can not be removed: source a is under it")),
        ("repositories.main", Some("repository main can not be removed: source b is backed up to it")),
        ("repositories.other", Some("repository other can not be removed: policy gold names it")),
        ("sources.b", Some("source b can not be removed: policy gold follows it")),
        ("sources.a", None),
    ] {
        assert_eq!(fleet.user_of(path).as_deref(), user, "{path}");
    }
}

#[test]
fn a_change_that_keeps_less_is_dangerous_and_one_that_keeps_more_is_not() {
    let fleet = |keep: &str| {
        let text = format!(
            "api: holdfast/v1\npolicies:\n  p:\n    schedule: {{ full: {{ every: 1d }} }}\n    {keep}\n"
        );
        read_all(&text).unwrap()
    };
    for (old, new, dangerous) in [
        ("keep: { daily: 14 }", "keep: { daily: 7 }", true),
        ("keep: { daily: 7 }", "keep: { daily: 14 }", false),
        ("keep: { daily: 7, weekly: 4 }", "keep: { daily: 7 }", true),
        ("keep: { daily: 7 }", "keep: { daily: 7, max_count: 5 }", true),
        ("keep: { daily: 7, max_count: 5 }", "keep: { daily: 7, max_count: 6 }", false),
        ("keep: { daily: 7, max_count: 5 }", "keep: { daily: 7 }", false),
        ("priority: low", "keep: { daily: 7 }", true),
        ("keep: { daily: 7 }", "priority: low", false),
        ("keep: { max_count: 500 }", "keep: { daily: 7 }", true),
        ("keep: { daily: 7 }", "keep: { max_count: 500 }", true),
        ("keep: { daily: 7 }\n    keep_by_type: { full: 9d }", "keep: { daily: 7 }", true),
        ("priority: low", "priority: high", false),
    ] {
        let changes = diff(&fleet(old), &fleet(new), true);
        assert_eq!(changes.len(), 1, "{old} to {new}");
        assert_eq!(
            (changes[0].path.as_str(), changes[0].dangerous),
            ("policies.p", dangerous),
            "{old} to {new}"
        );
    }
    let none = Fleet::default();
    assert!(diff(&fleet("priority: low"), &none, true)[0].dangerous, "removing a policy is");
}

#[test]
fn a_pace_follows_the_hours_of_its_zone() {
    let pace: Pace = serde_json::from_value(serde_json::json!({
        "bandwidth": { "limit": "100MiB/s", "hours": [{ "window": "08:00-18:00", "limit": "10MiB/s" }] },
        "timezone": "Asia/Shanghai",
    }))
    .unwrap();
    let at = |text: &str| pace.rate_at(text.parse().unwrap()).map(|rate| rate.0.0 >> 20);
    assert_eq!(at("2026-06-01T00:00:00Z"), Some(10), "08:00 in Shanghai");
    assert_eq!(at("2026-06-01T09:59:59Z"), Some(10));
    assert_eq!(at("2026-06-01T10:00:00Z"), Some(100));
    let free = Pace { bandwidth: Bandwidth { limit: None, ..pace.bandwidth.clone() }, ..pace.clone() };
    assert_eq!(free.rate_at("2026-06-01T10:00:00Z".parse().unwrap()), None);
}
