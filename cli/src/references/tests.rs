use super::*;

fn snapshot(id: &str, run: &str, kind: &str) -> SnapshotView {
    SnapshotView {
        id: id.to_owned(),
        run_id: Some(run.to_owned()),
        snapshot_type: Some(kind.to_owned()),
        ..SnapshotView::default()
    }
}

fn latest(source: Option<&str>, back: usize, kind: Option<&str>) -> SnapshotReference {
    SnapshotReference::Latest {
        source: source.map(str::to_owned),
        back,
        snapshot_type: kind.map(str::to_owned),
    }
}

fn berlin(text: &str) -> Zoned {
    text.parse::<Timestamp>().unwrap().in_tz("Europe/Berlin").unwrap()
}

fn read(text: &str) -> Option<String> {
    moment(text, &berlin("2026-11-21T13:41:07Z")).ok().map(|at| at.to_string())
}

#[test]
fn snapshots_are_named_by_id_or_by_place() {
    assert_eq!(
        "3F2A91bc".parse::<SnapshotReference>().unwrap(),
        SnapshotReference::Id("3f2a91bc".to_owned())
    );
    assert_eq!("latest".parse::<SnapshotReference>().unwrap(), latest(None, 0, None));
    assert_eq!("latest~2".parse::<SnapshotReference>().unwrap(), latest(None, 2, None));
    assert_eq!(
        "shop@latest~1:full".parse::<SnapshotReference>().unwrap(),
        latest(Some("shop"), 1, Some("full"))
    );
}

#[test]
fn what_names_no_snapshot_is_refused() {
    for wrong in [
        "",
        "3f2",
        "xyz12345",
        "latest~",
        "latest~-1",
        "latest:weekly",
        "latestly",
        "@latest",
        "shop@3f2a91bc",
    ] {
        let error = wrong.parse::<SnapshotReference>().unwrap_err();
        assert_eq!(error.code(), ErrorCode::UsageInvalid, "{wrong:?}");
    }
}

#[test]
fn a_run_to_two_repositories_is_one_step_back() {
    let list = [
        snapshot("aa", "r3", "incremental"),
        snapshot("bb", "r3", "incremental"),
        snapshot("cc", "r1", "full"),
    ];
    assert_eq!(nth_latest(&list, 0, None).unwrap().id, "aa");
    assert_eq!(nth_latest(&list, 1, None).unwrap().id, "cc");
    assert_eq!(nth_latest(&list, 0, Some("full")).unwrap().id, "cc");
    let error = nth_latest(&list, 2, None).unwrap_err();
    assert_eq!(error.failure().message, "there are only 2 snapshots");
    assert_eq!(nth_latest(&[], 0, None).unwrap_err().code(), ErrorCode::SnapshotUnknown);
}

#[test]
fn moments_are_read_in_the_zone_of_the_machine() {
    assert_eq!(read("2026-11-21T10:00:00Z").as_deref(), Some("2026-11-21T10:00:00Z"));
    assert_eq!(read("2026-11-21T10:00:00+01:00").as_deref(), Some("2026-11-21T09:00:00Z"));
    assert_eq!(read("13:41").as_deref(), Some("2026-11-21T12:41:00Z"));
    assert_eq!(read("today 13:41:07").as_deref(), Some("2026-11-21T12:41:07Z"));
    assert_eq!(read("yesterday 22:00").as_deref(), Some("2026-11-20T21:00:00Z"));
    assert_eq!(read("2026-11-20 22:00").as_deref(), Some("2026-11-20T21:00:00Z"));
    assert_eq!(read("2026-11-20").as_deref(), Some("2026-11-19T23:00:00Z"));
    assert_eq!(read("10 minutes ago").as_deref(), Some("2026-11-21T13:31:07Z"));
    assert_eq!(read("2h ago").as_deref(), Some("2026-11-21T11:41:07Z"));
}

#[test]
fn what_is_no_moment_is_refused() {
    for wrong in ["soon", "25:00", "13", "tomorrow 10:00", "ago", "2026-02-30", "10 elephants ago"] {
        assert_eq!(read(wrong), None, "{wrong:?}");
    }
}

#[test]
fn an_hour_that_exists_twice_or_never_is_refused() {
    let now = berlin("2026-11-21T13:41:07Z");
    for hour in ["2026-10-25 02:30", "2026-03-29 02:30"] {
        let error = moment(hour, &now).unwrap_err();
        assert!(error.failure().why[0].contains("twice or not at all"), "{hour}");
    }
}

#[test]
fn a_target_in_the_future_is_refused() {
    let now = berlin("2026-11-21T13:41:07Z");
    let error = recovery_target("23:59", &now).unwrap_err();
    assert_eq!(error.failure().message, "\"23:59\" lies in the future");
}

#[test]
fn digits_alone_are_an_id() {
    let now = berlin("2026-11-21T13:41:07Z");
    assert_eq!(
        recovery_target("20261121", &now).unwrap(),
        RecoveryTarget::Snapshot(SnapshotReference::Id("20261121".to_owned()))
    );
}
