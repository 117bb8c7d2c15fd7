use std::collections::BTreeSet;

use super::*;
use crate::ids::{AgentName, MilestoneName, RepositoryName, SourceName};
use crate::snapshot::Proof;

mod random_histories;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn now() -> Timestamp {
    at("2026-06-30T12:00:00Z")
}

fn rules(yaml: &str) -> RetentionRules {
    let policy: Policy =
        crate::fleet::read_yaml("policy.yaml", yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    RetentionRules::of(&policy)
}

fn good(number: u8, committed_at: Timestamp) -> Candidate {
    Candidate {
        id: SnapshotId([number; 32]),
        committed_at,
        snapshot_type: SnapshotType::Incremental,
        added_bytes: 100,
        good: true,
        complete: true,
        verified: false,
        held: None,
    }
}

/// A snapshot at noon of each of the last days, newest first.
fn days(count: u8) -> Vec<Candidate> {
    (0..count).map(|day| good(day, now() - SignedDuration::from_hours(24) * i32::from(day))).collect()
}

/// The decisions as text, newest first.
fn texts(snapshots: &[Candidate], rules: &RetentionRules, context: &Context) -> Vec<String> {
    let plan = plan(snapshots, rules, now(), context);
    plan.decisions.iter().map(|decision| decision.verdict.to_string()).collect()
}

fn kept(snapshots: &[Candidate], yaml: &str) -> Vec<u8> {
    let plan = plan(snapshots, &rules(yaml), now(), &Context::default());
    let kept = plan.decisions.iter().filter(|decision| matches!(decision.verdict, Verdict::Keep(_)));
    kept.map(|decision| decision.id.0[0]).collect()
}

#[test]
fn every_snapshot_has_its_reason_in_plain_words() {
    let mut snapshots = days(9);
    snapshots[4].verified = true;
    snapshots[5].held = Some("audit 2026".to_owned());
    snapshots[0].complete = false;
    let rules = rules("keep: { last: 2, daily: 3, within: 1d }\nkeep_by_type: { incremental: 3d }\n");
    assert_eq!(
        texts(&snapshots, &rules, &Context::default()),
        [
            "keep: the last good one; last 1 of 2; daily 1 of 3, newest of 2026-06-30; within 1d; \
             incremental within 3d",
            "keep: the last complete one; last 2 of 2; daily 2 of 3, newest of 2026-06-29; within 1d; \
             incremental within 3d",
            "keep: daily 3 of 3, newest of 2026-06-28; incremental within 3d",
            "keep: incremental within 3d",
            "keep: the last verified one",
            "keep: held: audit 2026",
            "forget: no rule keeps it",
            "forget: no rule keeps it",
            "forget: no rule keeps it",
        ]
    );
}

#[test]
fn without_keep_everything_is_kept() {
    let snapshots = days(40);
    assert_eq!(kept(&snapshots, "schedule: { full: { every: 1d } }").len(), 40);
    assert_eq!(kept(&snapshots, "keep_by_type: { incremental: 1d }").len(), 40);
    assert!(kept(&[], "keep: { last: 1 }").is_empty());
}

#[test]
fn periods_are_those_of_the_policy_s_time_zone() {
    // 22:30 and 23:30 UTC are 00:30 and 01:30 of the next day in Berlin.
    let snapshots = [
        good(1, at("2026-06-28T23:30:00Z")),
        good(2, at("2026-06-28T22:30:00Z")),
        good(3, at("2026-06-28T21:30:00Z")),
    ];
    assert_eq!(kept(&snapshots, "keep: { daily: 9 }"), [1]);
    assert_eq!(kept(&snapshots, "keep: { daily: 9 }\nschedule: { timezone: Europe/Berlin }"), [1, 3]);
    // The hour that comes twice in autumn is two hours.
    let snapshots = [
        good(1, at("2025-10-26T01:30:00Z")),
        good(2, at("2025-10-26T00:45:00Z")),
        good(3, at("2025-10-26T00:30:00Z")),
    ];
    assert_eq!(kept(&snapshots, "keep: { hourly: 9 }\nschedule: { timezone: Europe/Berlin }"), [1, 2]);
    // Monday 2025-12-29 is in the first week of 2026.
    let snapshots = [
        good(1, at("2026-01-04T12:00:00Z")),
        good(2, at("2025-12-29T12:00:00Z")),
        good(3, at("2025-12-28T12:00:00Z")),
    ];
    assert_eq!(kept(&snapshots, "keep: { weekly: 9 }"), [1, 3]);
    assert_eq!(kept(&snapshots, "keep: { yearly: 9 }"), [1, 2]);
    assert_eq!(kept(&snapshots, "keep: { monthly: 1 }"), [1]);
}

#[test]
fn damaged_and_ad_hoc_snapshots_do_not_stand_for_a_period() {
    let mut snapshots = days(5);
    snapshots[0].good = false;
    snapshots[2].snapshot_type = SnapshotType::Snapshot;
    // The ad hoc one is older than a day, so nothing keeps it; the damaged one is not needed either.
    assert_eq!(kept(&snapshots, "keep: { daily: 2 }"), [1, 3]);
    assert_eq!(kept(&snapshots, "keep: { daily: 2 }\nkeep_by_type: { snapshot: 7d }"), [1, 2, 3]);
    assert_eq!(kept(&snapshots, "keep: { last: 2 }"), [1, 2]);
    snapshots[1].snapshot_type = SnapshotType::Snapshot;
    assert_eq!(kept(&snapshots[1..], "keep: { monthly: 1 }"), [1, 3], "a day is the default");
}

#[test]
fn the_base_of_the_log_is_kept() {
    let snapshots = days(9);
    let policy = "keep: { last: 1, pitr: 84h }\nschedule: { full: { every: 1d }, log: stream }";
    assert_eq!(kept(&snapshots, policy), [0, 4], "the newest that is at least 84 hours old");
    assert_eq!(kept(&snapshots[..3], policy), [0, 2], "the oldest there is");
    let context = Context { log_from: Some(now() - SignedDuration::from_hours(150)), ..Context::default() };
    let texts = texts(&snapshots, &rules("keep: { last: 1 }"), &context);
    assert_eq!(texts[7], "keep: base of the log from 2026-06-24T06:00:00Z");
    assert_eq!(texts.iter().filter(|text| text.starts_with("keep")).count(), 2);
}

#[test]
fn limits_remove_the_oldest_and_never_what_is_protected() {
    let mut snapshots = days(9);
    snapshots[8].held = Some("audit".to_owned());
    assert_eq!(kept(&snapshots, "keep: { max_count: 3 }"), [0, 1, 8]);
    assert_eq!(kept(&snapshots, "keep: { daily: 7, max_count: 3 }"), [0, 1, 8]);
    assert_eq!(kept(&snapshots, "keep: { max_total_size: 450B }"), [0, 1, 2, 8]);
    assert_eq!(kept(&snapshots, "keep: { max_count: 1 }"), [0, 8]);
    let texts = texts(&snapshots, &rules("keep: { max_count: 3 }"), &Context::default());
    assert_eq!(texts[1], "keep: within the limits");
    assert_eq!(texts[2], "forget: more than 3 (max_count)");
}

#[test]
fn a_full_storage_is_cleaned_up_down_to_the_newest() {
    let snapshots = days(9);
    let kept = |cleanup: &str, used_bytes| {
        let storage = StorageUse { repository_bytes: 900, used_bytes, capacity_bytes: Some(10_000) };
        let context = Context { storage: Some(storage), ..Context::default() };
        let rules = rules(&format!("keep: {{ cleanup: {cleanup} }}"));
        let texts = texts(&snapshots, &rules, &context);
        texts.iter().filter(|text| text.starts_with("keep")).count()
    };
    assert_eq!(kept("{ above: 85%, newest: 4 }", 8500), 9, "the limit itself is not above it");
    assert_eq!(kept("{ above: 85%, newest: 4 }", 8650), 7);
    assert_eq!(kept("{ above: 85%, newest: 4 }", 9900), 4);
    assert_eq!(kept("{ above: 750B, newest: 4 }", 0), 7);
    let rules = rules("keep: { cleanup: { above: 85% } }");
    assert!(
        plan(&snapshots, &rules, now(), &Context::default()).forgotten().next().is_none(),
        "use is not known"
    );
}

#[test]
fn nothing_is_removed_while_backups_fail() {
    let keep = "keep: { last: 1 }\nschedule: { full: { every: 1d } }";
    assert_eq!(rules(keep).fresh_within(), Some(Span::from_hours(36)));
    let mut snapshots = days(9);
    assert_eq!(kept(&snapshots, keep), [0]);
    assert_eq!(kept(&snapshots[1..], keep), [1]);
    assert_eq!(kept(&snapshots[2..], keep).len(), 7);
    snapshots[0].good = false;
    snapshots[1].good = false;
    assert_eq!(
        texts(&snapshots, &rules(keep), &Context::default())[8],
        "keep: nothing is removed: the newest good one is 2d old, the schedule promises one every 1d12h"
    );
    snapshots.iter_mut().for_each(|snapshot| snapshot.good = false);
    assert_eq!(
        texts(&snapshots, &rules(keep), &Context::default())[0],
        "keep: nothing is removed: no snapshot is good"
    );
}

#[test]
fn nothing_is_removed_when_times_are_not_to_be_trusted() {
    let mut snapshots = days(9);
    let rules = rules("keep: { last: 1 }");
    let frozen = |snapshots: &[Candidate], error: i64| {
        let context = Context { clock_error: Some(SignedDuration::from_secs(error)), ..Context::default() };
        plan(snapshots, &rules, now(), &context).frozen.map(|freeze| freeze.to_string())
    };
    assert_eq!(frozen(&snapshots, 300), None);
    assert_eq!(frozen(&snapshots, 301).as_deref(), Some("the controller's clock is off by 5m1s"));
    assert_eq!(frozen(&snapshots, -301).as_deref(), Some("the controller's clock is off by 5m1s"));
    snapshots[0].committed_at = at("2026-06-30T12:05:00Z");
    assert_eq!(frozen(&snapshots, 0), None);
    snapshots[0].committed_at = at("2026-06-30T12:05:01Z");
    assert_eq!(frozen(&snapshots, 0).as_deref(), Some("one has a time in the future, 2026-06-30T12:05:01Z"));
}

#[test]
fn what_the_catalog_knows_becomes_a_candidate() {
    let mut record = SnapshotRecord {
        id: SnapshotId([7; 32]),
        repository: RepositoryName::new("main").unwrap(),
        source: Some(SourceName::new("carts").unwrap()),
        agent: Some(AgentName::new("app1").unwrap()),
        engine: None,
        snapshot_type: None,
        milestone: None,
        committed_at: now(),
        entered_at: None,
        run: None,
        original: None,
        tree: String::new(),
        paths: Vec::new(),
        hostname: String::new(),
        manifest: None,
        logical_bytes: 10,
        files: 1,
        stored_bytes: 5,
        duration_millis: 1,
        unreadable: 0,
        proof: Proof::default(),
        anomalies: Vec::new(),
    };
    let plain = Candidate { snapshot_type: SnapshotType::Full, added_bytes: 5, ..good(7, now()) };
    assert_eq!(Candidate::of(&record, None), plain);
    let hold = Hold {
        snapshot: record.id,
        repository: record.repository.clone(),
        reason: "audit".to_owned(),
        by: "li.wei".to_owned(),
        at: now(),
    };
    assert_eq!(Candidate::of(&record, Some(&hold)).held.as_deref(), Some("audit"));
    record.milestone = Some(MilestoneName::new("phase2").unwrap());
    record.proof.damage = Some("a pack is missing".to_owned());
    record.proof.restored_at = Some(now());
    record.unreadable = 1;
    let candidate = Candidate::of(&record, Some(&hold));
    assert_eq!(candidate.held.as_deref(), Some("milestone phase2"));
    assert!(!candidate.good && !candidate.complete && candidate.verified);
}
