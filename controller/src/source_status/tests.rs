use holdfast_model::ErrorCode;
use holdfast_model::ids::{Attempt, MilestoneName, RunId, SnapshotId};
use holdfast_model::run::{RunSpec, SnapshotType};
use holdfast_model::run_state::{Intent, RunState};
use holdfast_model::snapshot::Proof;
use holdfast_model::units::Count;

use super::*;

fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn minutes_ago(minutes: i64) -> Timestamp {
    now() - SignedDuration::from_mins(minutes)
}

fn snapshot(number: u8, repository: &str, minutes: i64) -> SnapshotRecord {
    SnapshotRecord {
        id: SnapshotId([number; 32]),
        repository: RepositoryName::new(repository).unwrap(),
        source: None,
        agent: None,
        engine: None,
        snapshot_type: Some(SnapshotType::Full),
        milestone: None::<MilestoneName>,
        committed_at: minutes_ago(minutes),
        entered_at: None,
        run: None,
        original: None,
        tree: String::new(),
        paths: Vec::new(),
        hostname: String::new(),
        manifest: None,
        logical_bytes: 1,
        files: 1,
        stored_bytes: 1,
        duration_millis: 1,
        unreadable: 0,
        proof: Proof::default(),
        anomalies: Vec::new(),
    }
}

fn well() -> Facts {
    Facts {
        snapshots: vec![snapshot(1, "main", 10)],
        agent_online: true,
        schedule: Some(ScheduleFacts {
            policy: PolicyName::new("gold").unwrap(),
            since: minutes_ago(100_000),
            next_run: Some(now() + SignedDuration::from_mins(20)),
            longest_gap: Some(Span::from_mins(30)),
            pause: None,
            missed: 0,
        }),
        ..Facts::default()
    }
}

fn found(facts: Facts) -> (Safety, String, String) {
    let yaml = "agent: db1\nengine: files\npaths: [/srv]\n";
    let source: Source = holdfast_model::fleet::read_yaml("test", yaml).unwrap();
    let standing = judge(&SourceName::new("pg").unwrap(), &source, facts, now());
    (standing.safety, standing.problem, standing.remedy)
}

fn promised(objectives: Objectives) -> Facts {
    Facts { objectives, ..well() }
}

#[test]
fn every_broken_promise_is_named_with_its_remedy() {
    assert_eq!(found(well()), (Safety::Protected, String::new(), String::new()));
    let rpo = promised(Objectives { rpo: Some(Span::from_mins(5)), ..Objectives::default() });
    assert_eq!(
        found(rpo),
        (
            Safety::AtRisk,
            "would lose 10m, at most 5m is promised".to_owned(),
            "holdfast backup run pg".to_owned()
        )
    );
    let mut rto = promised(Objectives { rto: Some(Span::from_mins(5)), ..Objectives::default() });
    rto.snapshots[0].proof.restored_at = Some(minutes_ago(3));
    rto.snapshots[0].proof.restore_millis = Some(600_000);
    assert_eq!(found(rto.clone()).1, "the last restore took 10m, 5m is promised");
    rto.objectives = Objectives { drill_every: Some(Span::from_mins(2)), ..Objectives::default() };
    assert_eq!(found(rto).1, "a restore was proven 3m ago, 2m is promised");
    let verify = promised(Objectives { verify_every: Some(Span::from_days(30)), ..Objectives::default() });
    let (_, problem, remedy) = found(verify);
    assert_eq!(problem, "a snapshot was read in full never, 30d is promised");
    assert_eq!(remedy, "holdfast backup verify 01010101");
    let copies = promised(Objectives { copies: Some(Count::new(2)), ..Objectives::default() });
    assert_eq!(found(copies).1, "is in 1 of the 2 repositories that are promised");
}

#[test]
fn a_damaged_snapshot_that_was_read_once_proves_nothing() {
    let promise = Objectives { verify_every: Some(Span::from_days(30)), ..Objectives::default() };
    let mut facts = promised(promise);
    facts.snapshots.push(snapshot(2, "main", 40));
    facts.snapshots[1].proof.read_at = Some(minutes_ago(30));
    assert_eq!(found(facts.clone()).0, Safety::Protected);
    facts.snapshots[1].proof.damage = Some("a pack is damaged".to_owned());
    assert_eq!(found(facts).1, "a snapshot was read in full never, 30d is promised");
}

#[test]
fn a_copy_that_is_too_old_is_none() {
    let mut facts = promised(Objectives { copies: Some(Count::new(2)), ..Objectives::default() });
    facts.snapshots.push(snapshot(2, "other", 39));
    assert_eq!(found(facts.clone()).0, Safety::Protected);
    facts.snapshots[1] = snapshot(2, "other", 41);
    assert_eq!(found(facts.clone()).0, Safety::AtRisk, "the schedule makes one every 30 minutes");
    facts.snapshots[1] = snapshot(2, "other", 39);
    facts.snapshots[1].proof.damage = Some("a pack is damaged".to_owned());
    assert_eq!(found(facts).0, Safety::AtRisk);
}

#[test]
fn silence_and_a_pause_are_said() {
    let mut facts = well();
    facts.snapshots = vec![snapshot(1, "main", 46)];
    let (safety, problem, remedy) = found(facts.clone());
    assert_eq!(safety, Safety::AtRisk);
    assert_eq!(problem, "no backup for longer than the schedule promises, which is one every 30m");
    assert_eq!(remedy, "holdfast run list --source pg");
    let pause =
        Pause { until: None, reason: "repair".to_owned(), by: "token:me".to_owned(), at: minutes_ago(1) };
    facts.schedule.as_mut().unwrap().pause = Some(pause);
    let (safety, problem, remedy) = found(facts);
    assert_eq!(safety, Safety::Paused);
    assert_eq!(problem, "is paused until it is resumed by token:me: repair");
    assert_eq!(remedy, "holdfast source resume pg");
}

#[test]
fn what_is_wrong_now_comes_before_what_is_promised() {
    let spec = RunSpec::Backup {
        source: SourceName::new("pg").unwrap(),
        repository: RepositoryName::new("main").unwrap(),
        snapshot_type: SnapshotType::Full,
        milestone: None,
    };
    let failed = |minutes| Run {
        state: RunState {
            phase: Phase::Failed(Failure::new(ErrorCode::SourceUnreachable, "the server is down")),
            intent: Intent::Finish,
            attempt: Attempt::FIRST,
        },
        ended_at: Some(minutes_ago(minutes)),
        ..Run::queued(RunId::at(1, [7; 10]), spec.clone(), "test", minutes_ago(minutes))
    };
    let facts = Facts { last_backup: Some(failed(5)), ..well() };
    assert_eq!(found(facts).1, "the last backup failed: [HF-2001] the server is down");
    let facts = Facts { last_backup: Some(failed(50)), ..well() };
    assert_eq!(found(facts).0, Safety::Protected, "a newer snapshot is there");
    let facts = Facts { snapshots: Vec::new(), last_backup: Some(failed(5)), ..well() };
    assert_eq!(found(facts).0, Safety::NotRestorable);
    let facts = Facts { agent_online: false, ..well() };
    assert_eq!(found(facts).1, "agent db1 is not connected");
}

fn with_copies(behind_minutes: i64, problem: Option<Failure>) -> Facts {
    let mut copy = snapshot(2, "offsite", 10 + behind_minutes);
    copy.original = Some(SnapshotId([1; 32]));
    let target = |name, problem| CopyTarget { repository: RepositoryName::new(name).unwrap(), problem };
    let mut facts = well();
    facts.snapshots.push(copy);
    facts.copy_to = vec![target("offsite", problem), target("vault", None)];
    facts
}

#[test]
fn each_repository_says_how_far_it_is_behind_the_newest_snapshot() {
    let source: Source =
        holdfast_model::fleet::read_yaml("test", "agent: db1\nengine: files\npaths: [/srv]\n").unwrap();
    let name = SourceName::new("pg").unwrap();
    let mut facts = with_copies(7, None);
    // A damaged copy is none.
    let mut damaged = snapshot(3, "vault", 10);
    damaged.proof.damage = Some("a pack is damaged".to_owned());
    facts.snapshots.insert(1, damaged);
    let standing = judge(&name, &source, facts, now());
    let places: Vec<_> = standing
        .places
        .iter()
        .map(|place| (place.repository.as_str(), place.behind_seconds, place.is_copy))
        .collect();
    assert_eq!(places, [("main", Some(0), false), ("offsite", Some(420), true), ("vault", None, true)]);
    assert_eq!((standing.copies, standing.safety), (2, Safety::Protected));
}

#[test]
fn a_copy_that_fails_puts_the_source_at_risk_and_is_named() {
    let away = Failure::new(ErrorCode::StorageUnreachable, "nobody answers");
    let problem = "its copy to offsite fails: [HF-3008] nobody answers".to_owned();
    let remedy = "holdfast repo copy main offsite --source pg".to_owned();
    assert_eq!(found(with_copies(7, Some(away))), (Safety::AtRisk, problem, remedy));
}
