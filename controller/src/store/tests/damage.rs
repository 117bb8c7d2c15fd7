//! Torn tails, damage, and disks that fail.

use super::*;

/// A store of three commits that crashed, and where its last frame begins.
async fn three_commits() -> (House, u64) {
    let house = House::new();
    let store = house.open().unwrap();
    store.commit(batch("a", 1)).await.unwrap();
    store.commit(batch("b", 2)).await.unwrap();
    let last_frame = std::fs::metadata(house.last_segment()).unwrap().len();
    store.commit(batch("c", 3)).await.unwrap();
    let crashed = house.crashed();
    // Its own boot: the view must not know more than the journal is going to.
    (House { boot_id: "second boot".to_owned(), ..crashed }, last_frame)
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

async fn opens_with(house: &House, commits: Sequence) {
    let store = house.open().unwrap();
    assert_eq!(store.sequence(), commits);
    assert_eq!(store.get(Kind::Run, "c").await.unwrap().is_some(), commits == 3);
    let next = store.commit(batch("d", 4)).await.unwrap();
    assert_eq!(next.sequence, commits + 1);
    assert_eq!(store.verify_audit().await.unwrap().last, commits + 1);
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_left_out_and_the_rest_is_there() {
    let (house, last_frame) = three_commits().await;
    let end = std::fs::metadata(house.last_segment()).unwrap().len();
    for cut in last_frame..end {
        let torn = House { boot_id: "second boot".to_owned(), ..house.crashed() };
        edit(&torn.last_segment(), |bytes| bytes.truncate(cut as usize));
        opens_with(&torn, 2).await;
    }
    opens_with(&house, 3).await;
}

#[tokio::test]
async fn a_tail_of_noughts_or_of_garbage_is_left_out() {
    for tail in [vec![0; 5_000], vec![0xff; 5_000], (0..5_000_u32).map(|n| (n * 31 % 251) as u8).collect()] {
        let (house, last_frame) = three_commits().await;
        edit(&house.last_segment(), |bytes| {
            bytes.truncate(last_frame as usize);
            bytes.extend_from_slice(&tail);
        });
        opens_with(&house, 2).await;
    }
}

#[tokio::test]
async fn a_frame_that_later_ones_knew_durable_is_damage_wherever_it_is_hit() {
    let (house, last_frame) = three_commits().await;
    for place in HEADER_BYTES..last_frame as usize {
        let damaged = House { boot_id: "second boot".to_owned(), ..house.crashed() };
        edit(&damaged.last_segment(), |bytes| bytes[place] ^= 0x10);
        let error = damaged.open().unwrap_err();
        assert_eq!(error.code(), ErrorCode::StateDamaged, "byte {place}: {error}");
        let StoreError::Damaged { path, offset, .. } = &error else { panic!("{error}") };
        assert_eq!(*path, damaged.last_segment());
        assert!(*offset <= place as u64 && *offset >= HEADER_BYTES as u64);
    }
}

#[tokio::test]
async fn a_damaged_header_is_damage() {
    let (house, _) = three_commits().await;
    for place in 0..HEADER_BYTES {
        let damaged = house.crashed();
        edit(&damaged.last_segment(), |bytes| bytes[place] ^= 1);
        assert_eq!(damaged.open().unwrap_err().code(), ErrorCode::StateDamaged, "byte {place}");
    }
}

#[tokio::test]
async fn after_a_clean_stop_nothing_may_be_missing_or_torn() {
    let house = House::new();
    let store = house.open().unwrap();
    for n in 0..3 {
        store.commit(batch("a", n)).await.unwrap();
    }
    let bytes = std::fs::metadata(house.last_segment()).unwrap().len();
    store.close().await.unwrap();
    drop(store);
    for boot_id in ["first boot", "second boot"] {
        for cut in [1, 20, bytes - HEADER_BYTES as u64] {
            let short = House { boot_id: boot_id.to_owned(), ..house.crashed() };
            edit(&short.last_segment(), |bytes| bytes.truncate(bytes.len() - cut as usize));
            assert_eq!(short.open().unwrap_err().code(), ErrorCode::StateDamaged, "{boot_id}, cut {cut}");
        }
    }
}

#[tokio::test]
async fn a_view_that_knows_more_than_the_journal_is_damage() {
    let (house, last_frame) = three_commits().await;
    let same_boot = House { boot_id: "first boot".to_owned(), ..house.crashed() };
    // Open and crash once more, so that the view has surely reached its files.
    drop(same_boot.open().unwrap());
    let marker = view::Marker { boot_id: "first boot".to_owned(), clean_end: None };
    marker.write(&same_boot.folder.path().join("view.marker")).unwrap();
    edit(&same_boot.last_segment(), |bytes| bytes.truncate(last_frame as usize));
    let error = same_boot.open().unwrap_err();
    assert_eq!(error.code(), ErrorCode::StateDamaged);
    assert!(error.to_string().contains("commit 3 is missing"), "{error}");
}

#[tokio::test]
async fn a_missing_exchanged_or_foreign_segment_is_damage() {
    let house = House { segment_bytes_max: 1_024, ..House::new() };
    let store = house.open().unwrap();
    for n in 0..40 {
        store.commit(batch(&n.to_string(), "x".repeat(100))).await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    let damaged = |change: &dyn Fn(&[std::path::PathBuf], &Path)| {
        let copy = house.crashed();
        std::fs::remove_file(copy.folder.path().join("view.marker")).unwrap();
        std::fs::remove_dir_all(copy.folder.path().join("checkpoints")).unwrap();
        let journal = copy.folder.path().join("journal");
        let paths: Vec<_> =
            segment::list_segments(&journal).unwrap().into_iter().map(|(_, path)| path).collect();
        change(&paths, &journal);
        copy.open().unwrap_err()
    };
    for error in [
        damaged(&|paths, _| std::fs::remove_file(&paths[0]).unwrap()),
        damaged(&|paths, _| std::fs::remove_file(&paths[2]).unwrap()),
        damaged(&|paths, _| assert!(std::fs::copy(&paths[1], &paths[2]).unwrap() > 0)),
        damaged(&|paths, _| edit(&paths[2], |bytes| bytes.truncate(bytes.len() - 1))),
        damaged(&|paths, _| edit(&paths[2], |bytes| bytes.truncate(HEADER_BYTES))),
        damaged(&|_, journal| std::fs::write(journal.join("notes.txt"), b"hello").unwrap()),
    ] {
        assert_eq!(error.code(), ErrorCode::StateDamaged, "{error}");
    }
}

#[tokio::test]
async fn files_of_a_newer_version_are_refused_as_such() {
    let (house, _) = three_commits().await;
    edit(&house.last_segment(), |bytes| {
        bytes[7] += 1;
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
    });
    assert_eq!(house.open().unwrap_err().code(), ErrorCode::Unsupported);
}

#[tokio::test]
async fn an_edited_audit_entry_is_found() {
    let house = House::new();
    let store = house.open().unwrap();
    for n in 0..10 {
        store.commit(batch(&n.to_string(), n)).await.unwrap();
    }
    let head = store.verify_audit().await.unwrap().head;
    // Whoever edits the journal with a right checksum still breaks the chain.
    let mut reader = segment::SegmentReader::open(&house.last_segment()).unwrap();
    let mut frames = Vec::new();
    while let segment::Next::Frame(frame) = reader.read_frame().unwrap() {
        frames.push(frame);
    }
    frames[4].audit.actor = "operator/nobody".to_owned();
    let mut forged = std::fs::read(house.last_segment()).unwrap()[..HEADER_BYTES].to_vec();
    for frame in &frames {
        frame::encode(frame, &mut forged);
    }
    std::fs::write(house.last_segment(), forged).unwrap();
    assert_eq!(store.verify_audit().await.unwrap_err().code(), ErrorCode::StateDamaged);
    // Whoever rewrites the whole chain is found by a head kept elsewhere.
    let mut rewritten = std::fs::read(house.last_segment()).unwrap()[..HEADER_BYTES].to_vec();
    let mut previous = [0; 32];
    for frame in &mut frames {
        frame.previous = previous;
        previous = frame::encode(frame, &mut rewritten);
    }
    std::fs::write(house.last_segment(), rewritten).unwrap();
    assert_ne!(store.verify_audit().await.unwrap().head, head);
}

#[cfg(feature = "fail-points")]
mod failing_disk {
    use super::*;
    use holdfast_runtime::{StopCause, fail_point};

    #[tokio::test]
    async fn after_an_error_of_the_journal_nothing_is_acknowledged_and_the_process_is_told_to_stop() {
        for point in ["journal-before-write", "journal-before-fsync", "store-before-apply"] {
            let house = House::new();
            let store = house.open().unwrap();
            store.commit(batch("a", 1)).await.unwrap();
            let armed = fail_point::arm(&format!("{point}=error:1")).unwrap();
            let error = store.commit(batch("b", 2)).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::StateUnavailable, "{point}");
            // The point fails once only, so a retry would succeed: there must be none.
            let later = store.commit(batch("c", 3)).await.unwrap_err();
            assert_eq!(later.to_string(), error.to_string());
            drop(armed);
            assert!(matches!(house.tasks.shutdown().cause(), Some(StopCause::Broken(_))));
            assert_eq!(store.sequence(), 1);
            assert!(store.get(Kind::Run, "a").await.unwrap().is_some(), "reading goes on");
            drop(store);
            let reopened = house.open().unwrap();
            assert!(reopened.get(Kind::Run, "a").await.unwrap().is_some());
            assert!(reopened.get(Kind::Run, "c").await.unwrap().is_none());
            reopened.commit(batch("d", 4)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_checkpoint_that_fails_is_made_up_for_later() {
        let house = House { segment_bytes_max: 2_048, ..House::new() };
        let store = house.open().unwrap();
        for n in 0..30 {
            store.commit(batch(&n.to_string(), "x".repeat(100))).await.unwrap();
        }
        let before = content(&*store).await;
        store.close().await.unwrap();
        drop(store);
        std::fs::remove_dir_all(house.folder.path().join("checkpoints")).unwrap();
        std::fs::create_dir(house.folder.path().join("checkpoints")).unwrap();
        let armed = fail_point::arm("durable-file-before-rename=error:2").unwrap();
        drop(house.open().unwrap());
        drop(armed);
        drop(house.open().unwrap());
        assert_eq!(checkpoint::list(&house.folder.path().join("checkpoints")).unwrap().len(), 2);
        std::fs::remove_file(house.folder.path().join("view.marker")).unwrap();
        assert_eq!(content(&*house.open().unwrap()).await, before);
    }
}
