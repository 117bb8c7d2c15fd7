//! Random operations against a map, with clean stops, crashes and reboots in between.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(u8, Option<u16>, Wish)>),
    CleanStop,
    Crash,
    Reboot,
}

#[derive(Debug, Clone, Copy)]
enum Wish {
    Any,
    Absent,
    Present,
    Current,
    Outdated,
}

fn any_step() -> impl Strategy<Value = Step> {
    let wish = prop_oneof![
        4 => Just(Wish::Any), 2 => Just(Wish::Current), 1 => Just(Wish::Absent),
        1 => Just(Wish::Present), 1 => Just(Wish::Outdated)
    ];
    let operation = (0..12_u8, proptest::option::weighted(0.7, any::<u16>()), wish);
    prop_oneof![
        30 => proptest::collection::vec(operation, 0..4).prop_map(Step::Commit),
        1 => Just(Step::CleanStop),
        1 => Just(Step::Crash),
        1 => Just(Step::Reboot),
    ]
}

type Model = BTreeMap<(Kind, String), (Sequence, Vec<u8>)>;

/// The batch, and what the model is if it is accepted.
fn plan(model: &Model, sequence: Sequence, operations: &[(u8, Option<u16>, Wish)]) -> (Batch, Option<Model>) {
    let mut batch = Batch::new(Audit::by_controller("test.step", "test"));
    let mut next = model.clone();
    let mut accepted = true;
    for (key, value, wish) in operations {
        let kind = if key % 2 == 0 { Kind::Run } else { Kind::Agent };
        let key = format!("{:02}", key / 2);
        let current = model.get(&(kind, key.clone())).map(|(version, _)| *version);
        let expect = match wish {
            Wish::Any => Expect::Any,
            Wish::Absent => Expect::Absent,
            Wish::Present => Expect::Present,
            Wish::Current => current.map_or(Expect::Absent, Expect::Version),
            Wish::Outdated => Expect::Version(current.unwrap_or(1) + 1_000_000),
        };
        accepted &= match wish {
            Wish::Any | Wish::Current => true,
            Wish::Absent => current.is_none(),
            Wish::Present => current.is_some(),
            Wish::Outdated => false,
        };
        match value {
            Some(value) => {
                batch.put(kind, &key, value, expect);
                next.insert((kind, key), (sequence + 1, value.to_string().into_bytes()));
            }
            None => {
                batch.delete(kind, &key, expect);
                next.remove(&(kind, key));
            }
        }
    }
    (batch, accepted.then_some(next))
}

async fn follows_the_model(steps: Vec<Step>) {
    let mut house = House { segment_bytes_max: 2_000, ..House::new() };
    let mut store = house.open().unwrap();
    let mut model = Model::new();
    let mut sequence = 0;
    let mut boots = 0;
    for step in steps {
        match step {
            Step::Commit(operations) => {
                let (batch, next) = plan(&model, sequence, &operations);
                let outcome = store.commit(batch).await;
                assert_eq!(outcome.is_ok(), next.is_some(), "{operations:?}: {outcome:?}");
                if let Some(next) = next {
                    sequence += 1;
                    model = next;
                }
            }
            Step::CleanStop => {
                store.close().await.unwrap();
                drop(store);
                store = house.open().unwrap();
            }
            Step::Crash | Step::Reboot => {
                let reboot = matches!(step, Step::Reboot);
                boots += i32::from(reboot);
                let boot_id = if reboot { format!("boot {boots}") } else { house.boot_id.clone() };
                let crashed = House { boot_id, ..house.crashed() };
                drop(store);
                house = crashed;
                store = house.open().unwrap();
            }
        }
        assert_eq!(store.sequence(), sequence);
    }
    assert_eq!(content(&*store).await, model);
    assert_eq!(store.verify_audit().await.unwrap().last, sequence);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_operations_with_stops_and_crashes_follow_the_model(
        steps in proptest::collection::vec(any_step(), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(follows_the_model(steps));
    }
}
