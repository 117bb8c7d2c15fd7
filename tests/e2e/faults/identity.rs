//! Agents that come too late, and agents that are not who they say.

use holdfast_agent::identity::Identity;
use holdfast_agent::{Agent, EnrollOptions, dial};
use holdfast_model::secret::Secret;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_proto::v1::agent_service_client::AgentServiceClient;
use holdfast_proto::v1::data_service_client::DataServiceClient;
use holdfast_proto::v1::fact::Event;
use holdfast_proto::v1::run_service_client::RunServiceClient;
use holdfast_proto::v1::session_request::Message as FromAgent;
use holdfast_proto::v1::session_response::Message as ToAgent;
use holdfast_runtime::{Clock as _, SystemClock};
use holdfast_tests::Fleet;
use holdfast_tests::wait::{PATIENCE, until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{add_tree, assert_work_goes_on};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_time_is_over_enrols_nobody() {
    let fleet = Fleet::controller_alone().await;
    let request = v1::CreateEnrollmentTokenRequest { agent: "late".to_owned(), ttl_seconds: 1 };
    let made = fleet.fleet().create_enrollment_token(request).await.unwrap().into_inner();
    let ends = made.not_after.unwrap();
    until("the end of the token's life", PATIENCE, || {
        let now = SystemClock.now();
        let is_over = (now.as_second(), now.subsec_nanosecond()) >= (ends.seconds, ends.nanos);
        is_over.then_some(())
    });
    let options = EnrollOptions {
        controller: fleet.address.parse().unwrap(),
        name: "late".parse().unwrap(),
        ca_pin: made.ca_pin.parse().unwrap(),
        data_dir: fleet.path().join("late"),
        token: Secret::new(made.token),
    };
    let refused = Agent::enroll(options).await.unwrap_err();
    assert_eq!(
        (refused.code, &*refused.message),
        (ErrorCode::TokenInvalid, "the token is unknown, used or expired")
    );
    let agents = fleet.fleet().list_agents(v1::ListAgentsRequest {}).await.unwrap().into_inner().agents;
    assert!(agents.is_empty(), "{agents:?}");
    assert!(!fleet.path().join("late/identity.json").exists());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_configured_under_the_name_of_another_does_not_start() {
    let mut fleet = Fleet::start().await;
    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| config.name = Some("a2".parse().unwrap()));
    let refused = Agent::start(fleet.agent_config("a1").clone(), SystemClock::shared()).await.err().unwrap();
    let message = "the configuration names this agent a2, it has enrolled as a1";
    assert_eq!((refused.code, &*refused.message), (ErrorCode::FileInvalid, message));
    fleet.stop().await;
}

/// A connection with the certificate of an agent that is stopped.
async fn connect_as(fleet: &Fleet, agent: &str) -> Channel {
    let identity = Identity::load(&fleet.agent_config(agent).data_dir).unwrap();
    dial::connect(identity.controller(), identity.tls()).await.unwrap()
}

/// A session that the test leads in the place of an agent.
struct Session {
    out: mpsc::Sender<v1::SessionRequest>,
    orders: Streaming<v1::SessionResponse>,
}

impl Session {
    async fn open(channel: Channel, runs_in_hand: Vec<v1::RunInHand>) -> Self {
        let hello = v1::Hello {
            agent_version: "0".to_owned(),
            protocol: holdfast_proto::PROTOCOL_VERSION,
            outbox_id: "an outbox of a test".to_owned(),
            slots: 1,
            runs_in_hand,
            ..v1::Hello::default()
        };
        let (out, requests) = mpsc::channel(16);
        out.send(v1::SessionRequest { message: Some(FromAgent::Hello(hello)) }).await.unwrap();
        let orders = AgentServiceClient::new(channel).session(ReceiverStream::new(requests)).await.unwrap();
        Self { out, orders: orders.into_inner() }
    }

    async fn tell(&self, seq: u64, run: &v1::RunRef, event: Event) {
        let fact = v1::Fact { seq, run_id: run.run_id.clone(), attempt: run.attempt, event: Some(event) };
        self.out.send(v1::SessionRequest { message: Some(FromAgent::Fact(fact)) }).await.unwrap();
    }

    /// The next order that `wanted` takes.
    async fn order<T>(&mut self, wanted: impl Fn(ToAgent) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let order = self.orders.message().await.unwrap().expect("the session goes on");
                if let Some(found) = order.message.and_then(&wanted) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the controller answers")
    }

    async fn acknowledged(&mut self, seq: u64) {
        self.order(|order| matches!(order, ToAgent::Ack(ack) if ack.seq == seq).then_some(())).await;
    }
}

/// Every call of the data plane about this run; the answer to each.
async fn data_calls(channel: Channel, run: &v1::RunRef) -> Vec<(&'static str, Result<(), Failure>)> {
    let mut data = DataServiceClient::new(channel);
    let run = || Some(run.clone());
    let mut answers = Vec::new();
    let open = data.open_repository(v1::OpenRepositoryRequest { run: run() }).await.map(drop);
    answers.push(("open", open));
    let asked =
        tokio_stream::iter([v1::LookupBlobsRequest { run: run(), ids: vec![0; 32].into(), trees: false }]);
    answers.push(("lookup", first(data.lookup_blobs(asked).await).await));
    let asked =
        tokio_stream::iter([v1::LocateBlobsRequest { run: run(), ids: vec![0; 32].into(), trees: false }]);
    answers.push(("locate", first(data.locate_blobs(asked).await).await));
    let header = v1::PackHeader { run: run(), pack_id: vec![0; 32], length: 1, ..v1::PackHeader::default() };
    let part = v1::PutPackRequest { part: Some(v1::put_pack_request::Part::Header(header)) };
    answers.push(("put", data.put_pack(tokio_stream::iter([part])).await.map(drop)));
    let read = v1::ReadPackRequest { run: run(), pack_id: vec![0; 32], offset: 0, length: 1 };
    answers.push(("read", first(data.read_pack(read).await).await));
    let commit = v1::CommitSnapshotRequest { run: run(), tree_id: vec![0; 32], ..Default::default() };
    answers.push(("commit", data.commit_snapshot(commit).await.map(drop)));
    answers.into_iter().map(|(call, answer)| (call, answer.map_err(|status| from_status(&status)))).collect()
}

async fn first<T>(answer: Result<tonic::Response<Streaming<T>>, Status>) -> Result<(), Status> {
    answer?.into_inner().message().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_another_agent_opens_no_run_that_is_not_its_own() {
    let mut fleet = Fleet::start().await;
    fleet.add_agent("a2").await;
    let tree = add_tree(&fleet, "a1").await;
    fleet.stop_agent("a1").await;
    fleet.stop_agent("a2").await;
    let (a1, a2) = (connect_as(&fleet, "a1").await, connect_as(&fleet, "a2").await);
    let mut owner = Session::open(a1.clone(), Vec::new()).await;
    let started = fleet.start_backup("tree", "full").await.unwrap();
    let run = owner
        .order(|order| match order {
            ToAgent::Assign(assign) => Some(v1::RunRef { run_id: assign.run_id, attempt: assign.attempt }),
            _ => None,
        })
        .await;
    assert_eq!(run.run_id, started.id);
    let not_its_own =
        format!("run {} attempt 1 is not in the hands of agent a2", &run.run_id[run.run_id.len() - 8..]);

    for (call, answer) in data_calls(a2.clone(), &run).await {
        let refused = answer.expect_err(call);
        assert_eq!((refused.code, &refused.message), (ErrorCode::StaleAttempt, &not_its_own), "{call}");
    }
    let in_hand = v1::RunInHand { run_id: run.run_id.clone(), attempt: run.attempt };
    let mut other = Session::open(a2.clone(), vec![in_hand]).await;
    let abandon = other.order(|order| match order {
        ToAgent::Abandon(abandon) => Some(abandon),
        _ => None,
    });
    let abandon = abandon.await;
    let reason = abandon.reason.unwrap();
    assert_eq!((&abandon.run_id, reason.code), (&run.run_id, ErrorCode::StaleAttempt.to_string()));
    assert_eq!(reason.message, not_its_own);
    let lie = v1::LogLine { text: "a line of another agent".to_owned(), ..v1::LogLine::default() };
    other.tell(1, &run, Event::Log(v1::LogLines { lines: vec![lie] })).await;
    other.tell(2, &run, Event::Cancelled(v1::Cancelled {})).await;
    other.acknowledged(2).await;
    let request = v1::GetRunRequest { run_id: run.run_id.clone() };
    let now = fleet.runs().get(request).await.unwrap().into_inner().run.unwrap();
    assert_eq!((&*now.phase, now.attempt, &*now.agent), ("assigned", 1, "a1"), "{now:?}");
    assert_eq!(fleet.log(&now).await, "");

    let refused = RunServiceClient::new(a2).list(v1::ListRunsRequest::default()).await.unwrap_err();
    let refused = from_status(&refused);
    assert_eq!((refused.code, &*refused.message), (ErrorCode::NotPermitted, "an agent may not call List"));

    let answers = data_calls(a1, &run).await;
    assert!(matches!(answers[0], ("open", Ok(()))), "the owner is let in: {answers:?}");
    owner.tell(1, &run, Event::Cancelled(v1::Cancelled {})).await;
    owner.acknowledged(1).await;
    assert_ne!(fleet.ended(&started).await.phase, "succeeded");
    drop((owner, other));
    fleet.start_agent("a1").await;
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}
