use holdfast_model::ids::{Attempt, RunId};
use holdfast_proto::v1;

use super::file::{OutboxFile, PENDING_BYTES_MAX};
use super::{FILE_NAME, OutboxError};

fn run(n: u8) -> RunId {
    RunId::at(1_700_000_000_000 + u64::from(n), [n; 10])
}

fn log(text: &str) -> v1::fact::Event {
    let line = v1::LogLine { text: text.to_owned(), ..Default::default() };
    v1::fact::Event::Log(v1::LogLines { lines: vec![line] })
}

fn finished() -> v1::fact::Event {
    v1::fact::Event::Finished(v1::Finished::default())
}

fn texts(facts: &[v1::Fact]) -> Vec<(u64, String)> {
    facts
        .iter()
        .map(|fact| match &fact.event {
            Some(v1::fact::Event::Log(log)) => (fact.seq, log.lines[0].text.clone()),
            other => (fact.seq, format!("{other:?}")),
        })
        .collect()
}

#[test]
fn facts_survive_a_restart_with_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut outbox = OutboxFile::open(&path).unwrap();
    let id = outbox.id();
    assert_eq!(outbox.append(run(1), Attempt(1), log("a")).unwrap(), 1);
    assert_eq!(outbox.append(run(1), Attempt(1), finished()).unwrap(), 2);
    drop(outbox);
    let mut outbox = OutboxFile::open(&path).unwrap();
    assert_eq!(outbox.id(), id);
    assert_eq!(outbox.last_seq(), 2);
    assert_eq!(outbox.ended_runs(), [(run(1), Attempt(1))]);
    assert_eq!(outbox.append(run(2), Attempt(1), log("b")).unwrap(), 3);
    let facts = outbox.read_after(0, 10).unwrap();
    assert_eq!(facts.iter().map(|fact| fact.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(texts(&outbox.read_after(2, 10).unwrap()), [(3, "b".to_owned())]);
    assert_eq!(outbox.read_after(0, 2).unwrap().len(), 2);
}

#[test]
fn a_file_torn_at_any_byte_keeps_every_whole_fact_and_takes_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut outbox = OutboxFile::open(&path).unwrap();
    let header_bytes = std::fs::metadata(&path).unwrap().len();
    let mut ends = vec![header_bytes];
    for text in ["first", "second", "third, the one that tears"] {
        outbox.append(run(1), Attempt(1), log(text)).unwrap();
        ends.push(std::fs::metadata(&path).unwrap().len());
    }
    drop(outbox);
    let whole = std::fs::read(&path).unwrap();
    for length in header_bytes..=whole.len() as u64 {
        for tail in [&b""[..], &[0; 7], &[0xff; 40]] {
            let torn = folder.path().join("torn");
            let mut bytes = whole[..usize::try_from(length).unwrap()].to_vec();
            bytes.extend_from_slice(tail);
            std::fs::write(&torn, &bytes).unwrap();
            let kept = ends.iter().filter(|&&end| end <= length).count() as u64 - 1;
            let mut outbox = OutboxFile::open(&torn).unwrap();
            assert_eq!(outbox.last_seq(), kept, "{length} bytes and {} of garbage", tail.len());
            assert_eq!(outbox.append(run(1), Attempt(1), log("next")).unwrap(), kept + 1);
            drop(outbox);
            let outbox = OutboxFile::open(&torn).unwrap();
            let facts = texts(&outbox.read_after(kept, 10).unwrap());
            assert_eq!(facts, [(kept + 1, "next".to_owned())]);
        }
    }
}

#[test]
fn a_flipped_bit_before_the_last_fact_is_damage_and_is_not_cut_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut outbox = OutboxFile::open(&path).unwrap();
    for text in ["first", "second", "third"] {
        outbox.append(run(1), Attempt(1), log(text)).unwrap();
    }
    let before_last = {
        let last = outbox.read_after(2, 1).unwrap();
        prost::Message::encoded_len(&last[0])
    };
    drop(outbox);
    let whole = std::fs::read(&path).unwrap();
    let last_frame = whole.len() - before_last - 16;
    for at in 0..last_frame {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        let error = OutboxFile::open(&path).expect_err("damage was taken for a torn end");
        assert!(matches!(error, OutboxError::Damaged { .. }), "byte {at}: {error}");
        assert_eq!(error.code().to_string(), "HF-5006");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the damaged file was changed");
    }
}

#[test]
fn acknowledged_facts_are_not_read_again_and_the_file_shrinks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut outbox = OutboxFile::open(&path).unwrap();
    let long = "x".repeat(300_000);
    for _ in 0..5 {
        outbox.append(run(1), Attempt(1), log(&long)).unwrap();
    }
    outbox.acknowledge(4).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < 400_000);
    assert_eq!(outbox.read_after(0, 10).unwrap().len(), 1);
    outbox.append(run(1), Attempt(1), log("six")).unwrap();
    drop(outbox);
    let mut outbox = OutboxFile::open(&path).unwrap();
    let facts = outbox.read_after(0, 10).unwrap();
    assert_eq!(facts.iter().map(|fact| fact.seq).collect::<Vec<_>>(), [5, 6]);
    outbox.acknowledge(6).unwrap();
    assert!(outbox.is_empty());
    assert_eq!(outbox.append(run(1), Attempt(1), log("seven")).unwrap(), 7);
}

#[test]
fn a_new_identity_numbers_what_waits_from_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut outbox = OutboxFile::open(&path).unwrap();
    for text in ["a", "b", "c"] {
        outbox.append(run(1), Attempt(1), log(text)).unwrap();
    }
    outbox.acknowledge(1).unwrap();
    let old = outbox.id();
    outbox.renew_identity().unwrap();
    assert_ne!(outbox.id(), old);
    let expected = [(1, "b".to_owned()), (2, "c".to_owned())];
    assert_eq!(texts(&outbox.read_after(0, 10).unwrap()), expected);
    drop(outbox);
    let outbox = OutboxFile::open(&path).unwrap();
    assert_eq!(texts(&outbox.read_after(0, 10).unwrap()), expected);
    assert_eq!(outbox.last_seq(), 2);
}

#[test]
fn a_full_outbox_refuses_log_lines_and_still_takes_the_end_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = OutboxFile::open(&folder.path().join(FILE_NAME)).unwrap();
    let long = "x".repeat(1_000_000);
    let mut taken = 0;
    let error = loop {
        match outbox.append(run(1), Attempt(1), log(&long)) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(taken > 50 && taken * 1_000_000 < PENDING_BYTES_MAX, "{taken}");
    assert_eq!(error.code().to_string(), "HF-5004");
    outbox.append(run(1), Attempt(1), finished()).unwrap();
}
