//! What every implementation of [`Store`] must keep to. `conformance!(open)` makes one test of each fact; `open` is
//! an `async fn() -> Fixture`.

use std::sync::Arc;
use std::time::Duration;

use holdfast_runtime::ManualClock;
use serde_json::{Value, json};

use super::lease;
use super::record::{BATCH_BYTES_MAX, KEY_BYTES_MAX, PAGE_RECORDS_MAX, VALUE_BYTES_MAX};
use super::*;

/// An empty store and what keeps it alive.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: ManualClock,
    pub(crate) _alive: Box<dyn std::any::Any + Send>,
}

macro_rules! conformance {
    ($open:path: $($fact:ident)*) => {
        $(#[tokio::test]
        async fn $fact() {
            $crate::store::conformance::$fact($open().await).await;
        })*
    };
    ($open:path) => {
        conformance! { $open:
            a_record_reads_back_with_the_number_of_its_commit
            versions_rise_by_one_with_every_commit
            a_batch_is_applied_as_a_whole_or_not_at_all
            expectations_are_judged_before_the_batch_takes_effect
            of_many_creators_exactly_one_wins
            a_read_modify_write_loop_loses_no_update
            scans_are_ordered_paged_and_kept_within_prefix_and_kind
            a_deleted_record_is_gone_and_its_key_free_again
            limits_are_refused_before_anything_is_written
            a_record_of_another_shape_is_an_error_that_names_it
            the_feed_gives_every_commit_once_and_in_order
            a_reader_far_behind_misses_nothing
            the_audit_log_has_an_entry_for_every_commit_and_its_chain_holds
            a_lease_has_one_holder_until_it_ends
            a_replaced_holder_can_no_longer_write
            a_lease_that_was_given_up_is_free_at_once
        }
    };
}

fn audit(action: &str) -> Audit {
    Audit::done("operator/test", action, "test/record")
}

fn put(key: &str, value: &Value, expect: Expect) -> Batch {
    let mut batch = Batch::new(audit("test.put"));
    batch.put(Kind::Run, key, value, expect);
    batch
}

async fn value(store: &dyn Store, key: &str) -> Option<(Sequence, Value)> {
    let found = store.get_as::<Value>(Kind::Run, key).await.unwrap();
    found.map(|record| (record.version, record.value))
}

pub(crate) async fn a_record_reads_back_with_the_number_of_its_commit(fixture: Fixture) {
    let store = &*fixture.store;
    assert_eq!(store.sequence(), 0);
    assert_eq!(value(store, "a").await, None);
    let first = store.commit(put("a", &json!({"n": 1}), Expect::Absent)).await.unwrap();
    assert_eq!(value(store, "a").await, Some((first.sequence, json!({"n": 1}))));
    let second = store.commit(put("a", &json!({"n": 2}), Expect::Version(first.sequence))).await.unwrap();
    assert_eq!(value(store, "a").await, Some((second.sequence, json!({"n": 2}))));
    assert_eq!(store.get(Kind::Agent, "a").await.unwrap(), None, "kinds are apart");
}

pub(crate) async fn versions_rise_by_one_with_every_commit(fixture: Fixture) {
    for expected in 1..=5 {
        let committed = fixture.store.commit(put("a", &json!(expected), Expect::Any)).await.unwrap();
        assert_eq!(committed.sequence, expected);
        assert_eq!(committed.time, fixture.clock.clone().shared().now());
        assert_eq!(fixture.store.sequence(), expected);
    }
}

pub(crate) async fn a_batch_is_applied_as_a_whole_or_not_at_all(fixture: Fixture) {
    let store = &*fixture.store;
    let mut batch = put("a", &json!(1), Expect::Absent);
    batch.put(Kind::Agent, "b", &json!(2), Expect::Absent);
    store.commit(batch).await.unwrap();
    let mut conflicting = put("c", &json!(3), Expect::Absent);
    conflicting.delete(Kind::Agent, "b", Expect::Any);
    conflicting.require(Kind::Run, "a", Expect::Absent);
    let error = store.commit(conflicting).await.unwrap_err();
    assert_eq!(error.code(), holdfast_model::ErrorCode::AlreadyExists);
    assert_eq!(value(store, "c").await, None);
    assert!(store.get(Kind::Agent, "b").await.unwrap().is_some());
    assert_eq!(store.sequence(), 1);
}

pub(crate) async fn expectations_are_judged_before_the_batch_takes_effect(fixture: Fixture) {
    let store = &*fixture.store;
    let mut batch = put("a", &json!(1), Expect::Absent);
    batch.put(Kind::Run, "a", &json!(2), Expect::Absent);
    store.commit(batch).await.unwrap();
    assert_eq!(value(store, "a").await, Some((1, json!(2))), "the later operation of a batch wins");
    for (expect, holds) in [
        (Expect::Absent, false),
        (Expect::Version(7), false),
        (Expect::Version(1), true),
        (Expect::Present, true),
    ] {
        let mut batch = Batch::new(audit("test.require"));
        batch.require(Kind::Run, "a", expect);
        assert_eq!(store.commit(batch).await.is_ok(), holds, "{expect:?}");
    }
    for expect in [Expect::Present, Expect::Version(1)] {
        let mut batch = Batch::new(audit("test.require"));
        batch.require(Kind::Run, "absent", expect);
        assert!(store.commit(batch).await.is_err(), "{expect:?}");
    }
}

pub(crate) async fn of_many_creators_exactly_one_wins(fixture: Fixture) {
    let racers = (0..200).map(|n| fixture.store.commit(put("prize", &json!(n), Expect::Absent)));
    let outcomes = futures::future::join_all(racers).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert_eq!(fixture.store.sequence(), 1);
}

pub(crate) async fn a_read_modify_write_loop_loses_no_update(fixture: Fixture) {
    let store = &fixture.store;
    store.commit(put("count", &json!(0), Expect::Absent)).await.unwrap();
    let add = async |_| {
        for _ in 0..10 {
            loop {
                let (version, current) = value(&**store, "count").await.unwrap();
                let next = json!(current.as_u64().unwrap() + 1);
                match store.commit(put("count", &next, Expect::Version(version))).await {
                    Ok(_) => break,
                    Err(error) => assert_eq!(error.code(), holdfast_model::ErrorCode::VersionConflict),
                }
            }
        }
    };
    futures::future::join_all((0..8).map(add)).await;
    assert_eq!(value(&**store, "count").await.unwrap().1, json!(80));
}

pub(crate) async fn scans_are_ordered_paged_and_kept_within_prefix_and_kind(fixture: Fixture) {
    let store = &*fixture.store;
    let mut batch = Batch::new(audit("test.fill"));
    for key in ["b/2", "a/1", "b/10", "b", "c", "b/1", "b0", "b/\u{10ffff}"] {
        batch.put(Kind::Run, key, &json!(key), Expect::Absent);
        batch.put(Kind::RunLog, format!("{key}x"), &json!(key), Expect::Absent);
    }
    store.commit(batch).await.unwrap();
    let keys = async |scan: Scan| -> Vec<String> {
        store.scan(Kind::Run, scan).await.unwrap().into_iter().map(|record| record.key).collect()
    };
    let page = Scan::below("b/");
    assert_eq!(keys(page.clone()).await, ["b/1", "b/10", "b/2", "b/\u{10ffff}"]);
    assert_eq!(keys(Scan { limit: 2, ..page.clone() }).await, ["b/1", "b/10"]);
    assert_eq!(keys(Scan { after: Some("b/10".into()), ..page.clone() }).await, ["b/2", "b/\u{10ffff}"]);
    let down = Scan { descending: true, ..page.clone() };
    assert_eq!(keys(Scan { limit: 2, ..down.clone() }).await, ["b/\u{10ffff}", "b/2"]);
    assert_eq!(keys(Scan { after: Some("b/2".into()), ..down.clone() }).await, ["b/10", "b/1"]);
    assert!(keys(Scan { after: Some("c".into()), ..page.clone() }).await.is_empty());
    assert_eq!(
        keys(Scan { after: Some("a".into()), ..page }).await.len(),
        4,
        "before the prefix is no limit"
    );
    assert!(keys(Scan { after: Some("a".into()), ..down }).await.is_empty());
    assert_eq!(keys(Scan::below("")).await.len(), 8);

    let mut batch = Batch::new(audit("test.fill"));
    for n in 0..PAGE_RECORDS_MAX + 5 {
        batch.put(Kind::Slot, format!("{n:06}"), &n, Expect::Absent);
    }
    store.commit(batch).await.unwrap();
    assert_eq!(
        store.scan(Kind::Slot, Scan { limit: usize::MAX, ..Scan::below("") }).await.unwrap().len(),
        PAGE_RECORDS_MAX
    );
    let all = store.all_as::<usize>(Kind::Slot, "").await.unwrap();
    assert!(all.iter().map(|record| record.value).eq(0..PAGE_RECORDS_MAX + 5));
}

pub(crate) async fn a_deleted_record_is_gone_and_its_key_free_again(fixture: Fixture) {
    let store = &*fixture.store;
    store.commit(put("a", &json!(1), Expect::Absent)).await.unwrap();
    let mut delete = Batch::new(audit("test.delete"));
    delete.delete(Kind::Run, "a", Expect::Version(1));
    store.commit(delete.clone()).await.unwrap();
    assert_eq!(value(store, "a").await, None);
    assert!(store.commit(delete).await.is_err());
    let mut harmless = Batch::new(audit("test.delete"));
    harmless.delete(Kind::Run, "a", Expect::Any);
    store.commit(harmless).await.unwrap();
    store.commit(put("a", &json!(2), Expect::Absent)).await.unwrap();
}

pub(crate) async fn limits_are_refused_before_anything_is_written(fixture: Fixture) {
    let store = &*fixture.store;
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let mut bad = vec![put("", &json!(1), Expect::Any), put(&long, &json!(1), Expect::Any)];
    let mut large = Batch::new(audit("test.large"));
    large.put_bytes(Kind::Run, "a", vec![b' '; VALUE_BYTES_MAX + 1], Expect::Any);
    bad.push(large);
    let mut heavy = Batch::new(audit("test.heavy"));
    for n in 0..=BATCH_BYTES_MAX / VALUE_BYTES_MAX {
        heavy.put_bytes(Kind::Run, n.to_string(), vec![b' '; VALUE_BYTES_MAX], Expect::Any);
    }
    bad.push(heavy);
    bad.push(Batch::new(audit(&"long".repeat(20_000))));
    for batch in bad {
        let error = store.commit(batch).await.unwrap_err();
        assert_eq!(error.code(), holdfast_model::ErrorCode::RecordTooLarge);
    }
    assert_eq!(store.sequence(), 0);
    let mut largest = Batch::new(audit("test.largest"));
    largest.put_bytes(Kind::Run, &long[1..], vec![b'1'; VALUE_BYTES_MAX], Expect::Any);
    store.commit(largest).await.unwrap();
    assert_eq!(store.get(Kind::Run, &long[1..]).await.unwrap().unwrap().value.len(), VALUE_BYTES_MAX);
}

pub(crate) async fn a_record_of_another_shape_is_an_error_that_names_it(fixture: Fixture) {
    fixture.store.commit(put("a", &json!("text"), Expect::Any)).await.unwrap();
    let error = fixture.store.get_as::<u64>(Kind::Run, "a").await.unwrap_err();
    assert_eq!(error.to_string(), "the run \"a\" cannot be read");
    assert_eq!(error.code(), holdfast_model::ErrorCode::StateDamaged);
}

pub(crate) async fn the_feed_gives_every_commit_once_and_in_order(fixture: Fixture) {
    let store = &*fixture.store;
    store.commit(put("before", &json!(0), Expect::Any)).await.unwrap();
    let mut from_start = store.watch(0).unwrap();
    let mut from_now = store.watch(store.sequence()).unwrap();
    let mut agents = store.watch(0).unwrap();
    for n in 0..50 {
        store.commit(put(&n.to_string(), &json!(n), Expect::Absent)).await.unwrap();
    }
    let mut delete = Batch::new(audit("test.delete"));
    delete.delete(Kind::Agent, "gone", Expect::Any);
    store.commit(delete).await.unwrap();
    for expected in 1..=52 {
        let change = from_start.next().await.unwrap().unwrap();
        assert_eq!(change.sequence, expected);
        if expected > 1 {
            assert_eq!(from_now.next().await.unwrap().unwrap(), change);
        }
        assert_eq!(change.touches(Kind::Run), expected < 52);
        assert_eq!(change.changed[0].removed, expected == 52);
    }
    assert_eq!(agents.until_touched(&[Kind::Agent]).await.unwrap(), Some(52));
    assert!(futures::poll!(Box::pin(from_now.next())).is_pending());
}

pub(crate) async fn a_reader_far_behind_misses_nothing(fixture: Fixture) {
    let store = &*fixture.store;
    let mut slow = store.watch(0).unwrap();
    let total = 3 * 1_024;
    for chunk in 0..total / 64 {
        let commits = (0..64).map(|n| store.commit(put(&format!("{chunk}/{n}"), &json!(n), Expect::Absent)));
        futures::future::try_join_all(commits).await.unwrap();
        if chunk % 16 == 5 {
            slow.next().await.unwrap().unwrap();
        }
    }
    for expected in 4..=total {
        assert_eq!(slow.next().await.unwrap().unwrap().sequence, expected);
    }
}

pub(crate) async fn the_audit_log_has_an_entry_for_every_commit_and_its_chain_holds(fixture: Fixture) {
    let store = &*fixture.store;
    store.commit(put("a", &json!(1), Expect::Absent)).await.unwrap();
    let denied = holdfast_model::ErrorCode::NotPermitted;
    store
        .commit(Batch::new(Audit::refused("operator/eve", "repo.prune", "repository/main", denied)))
        .await
        .unwrap();
    let entries = store.audit(0, 10).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(entries[0].audit, audit("test.put"));
    assert_eq!(entries[0].changed, [(Kind::Run, "a".to_owned())]);
    assert_eq!(
        (entries[1].audit.actor.as_str(), entries[1].audit.result.as_str()),
        ("operator/eve", "HF-6005")
    );
    assert_eq!(store.audit(1, 10).await.unwrap(), entries[1..]);
    assert_eq!(store.audit(0, 1).await.unwrap(), entries[..1]);
    let verdict = store.verify_audit().await.unwrap();
    assert_eq!((verdict.first, verdict.last, verdict.anchor), (1, 2, [0; 32]));
    assert_eq!(verdict.head, entries[1].hash);
}

const TERM: Duration = Duration::from_secs(30);

pub(crate) async fn a_lease_has_one_holder_until_it_ends(fixture: Fixture) {
    let (store, clock) = (&*fixture.store, &fixture.clock);
    let racers = ["a", "b", "c"].map(|holder| lease::take(store, clock, "scheduler", holder, TERM));
    let won: Vec<_> = futures::future::try_join_all(racers).await.unwrap().into_iter().flatten().collect();
    let [mut first] = <[_; 1]>::try_from(won).unwrap();
    clock.advance(TERM / 2);
    assert!(lease::renew(store, clock, &mut first, TERM).await.unwrap());
    clock.advance(TERM);
    assert_eq!(
        lease::take(store, clock, "scheduler", "d", TERM).await.unwrap(),
        None,
        "clocks may differ a little"
    );
    clock.advance(lease::CLOCK_SKEW_MAX);
    let second = lease::take(store, clock, "scheduler", "d", TERM).await.unwrap().unwrap();
    assert!(second.number() > first.number());
    assert!(!lease::renew(store, clock, &mut first, TERM).await.unwrap());
    assert!(lease::take(store, clock, "reaper", "a", TERM).await.unwrap().is_some(), "leases are apart");
}

pub(crate) async fn a_replaced_holder_can_no_longer_write(fixture: Fixture) {
    let (store, clock) = (&*fixture.store, &fixture.clock);
    let mut first = lease::take(store, clock, "scheduler", "a", TERM).await.unwrap().unwrap();
    let write = async |lease: &lease::Lease| {
        let mut batch = put("work", &json!(lease.number()), Expect::Any);
        lease.fence(&mut batch);
        store.commit(batch).await
    };
    write(&first).await.unwrap();
    assert!(lease::renew(store, clock, &mut first, TERM).await.unwrap());
    write(&first).await.unwrap();
    clock.advance(TERM * 2);
    write(&first).await.expect("nobody else took it meanwhile");
    let second = lease::take(store, clock, "scheduler", "b", TERM).await.unwrap().unwrap();
    assert!(write(&first).await.is_err());
    write(&second).await.unwrap();
    let again = lease::take(store, clock, "scheduler", "b", TERM).await.unwrap().unwrap();
    assert!(write(&second).await.is_err(), "the same holder, started anew, fences its former self");
    write(&again).await.unwrap();
}

pub(crate) async fn a_lease_that_was_given_up_is_free_at_once(fixture: Fixture) {
    let (store, clock) = (&*fixture.store, &fixture.clock);
    let first = lease::take(store, clock, "scheduler", "a", TERM).await.unwrap().unwrap();
    let number = first.number();
    lease::give_up(store, first.clone()).await.unwrap();
    let second = lease::take(store, clock, "scheduler", "b", TERM).await.unwrap().unwrap();
    assert!(second.number() > number);
    lease::give_up(store, first).await.expect("giving up a lost lease is no error");
    assert_eq!(lease::take(store, clock, "scheduler", "a", TERM).await.unwrap(), None);
}
