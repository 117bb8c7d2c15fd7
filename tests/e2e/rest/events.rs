//! The stream of events: nothing is missed over a broken connection, and it ends with its token.

use std::time::Duration;

use holdfast_controller::access::Role;
use holdfast_tests::http::ServerEvent;

use super::fleet_with_source;

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_a_run_and_are_told_again_after_a_broken_connection() {
    let fleet = fleet_with_source().await;
    let mut events = fleet.rest().events("/api/v1/events", "");
    let run = fleet.backup_well("tree", "full").await;
    let mut seen: Vec<ServerEvent> = Vec::new();
    let is_end = |event: &ServerEvent| event.event == "run" && event.data["run"]["phase"] == "succeeded";
    while !seen.last().is_some_and(is_end) {
        seen.push(events.next().expect("the stream goes on"));
    }
    drop(events);
    assert!(seen.iter().any(|event| event.event == "run" && event.data["object"] == run.id.as_str()));
    assert!(seen.iter().any(|event| event.event == "snapshot"));
    assert!(seen.is_sorted_by_key(|event| event.id));

    let cut = seen[0].id;
    let after: Vec<ServerEvent> = seen.iter().filter(|event| event.id > cut).cloned().collect();
    let header = format!("Last-Event-ID: {cut}\r\n");
    for (path, header) in
        [(format!("/api/v1/events?after={cut}"), ""), ("/api/v1/events".to_owned(), &*header)]
    {
        let mut told = fleet.rest().events(&path, header);
        for expected in &after {
            let event = told.next().expect("the stream goes on");
            assert_eq!((event.id, &event.data["object"]), (expected.id, &expected.data["object"]));
        }
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_does_and_when_the_controller_stops() {
    let mut fleet = fleet_with_source().await;
    let short = fleet.token_of(Role::Viewer, Duration::from_secs(2)).await;
    let begun = std::time::Instant::now();
    let mut until_end = fleet.rest().with_token(&short).events("/api/v1/events", "");
    let mut lasting = fleet.rest().events("/api/v1/events", "");
    while until_end.next().is_some() {}
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(fleet.rest().with_token(&short).get("/api/v1/stats").status, 401);
    let reading = tokio::task::spawn_blocking(move || while lasting.next().is_some() {});
    fleet.stop_controller().await;
    tokio::time::timeout(Duration::from_secs(30), reading).await.expect("the stream ends").unwrap();
    fleet.start_controller().await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_the_future_are_refused() {
    let fleet = fleet_with_source().await;
    let rest = fleet.rest();
    let (status, code, message) = rest.get("/api/v1/events?after=99999999").error();
    assert_eq!((status, code.as_str()), (400, "HF-1030"));
    assert!(message.starts_with("`after` is \"99999999\", 0 to "), "{message}");
    let refused = rest.request("GET", "/api/v1/events", &[("Last-Event-ID", "x")], "").error();
    assert_eq!(refused.2, "Last-Event-ID is not the id of an event");
    fleet.stop().await;
}
