//! Writes to the controller's state until it is killed, and checks afterwards that nothing acknowledged is lost.
//!
//! ```text
//! state_torture write FOLDER BOOT-ID     prints `WRITER NUMBER` for each commit, once it is acknowledged
//! state_torture check FOLDER BOOT-ID     reads such lines, of all runs so far, and says what is lost
//! ```
//!
//! The tests kill the first with SIGKILL; `scripts/power-cuts.sh` takes its file system away. Each of a few writers
//! commits the numbers 1, 2, 3, … : the number itself under one of [`SLOTS`] keys, and in the same batch as its last.
//! So the state proves itself: what every key must hold follows from the last numbers alone.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use holdfast_controller::store::{
    Audit, Batch, EmbeddedStore, Expect, Kind, Scan, Store, StoreSettings, Versioned,
};
use holdfast_runtime::{OnEnd, Shutdown, SystemClock, TaskGroup};

/// Commits under way at once; an odd number that shares no factor with the slots.
const WRITERS: u64 = 7;
/// Keys that each writer writes in turn.
const SLOTS: u64 = 40;
/// Small, so that segments and checkpoints are begun often.
const SEGMENT_BYTES: u64 = 64 << 10;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, folder, boot_id] = <[String; 3]>::try_from(arguments)
        .map_err(|_| anyhow::anyhow!("usage: state_torture write|check FOLDER BOOT-ID"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let tasks = TaskGroup::new(&Shutdown::new());
        let settings = StoreSettings {
            boot_id: Some(boot_id),
            segment_bytes_max: SEGMENT_BYTES,
            ..StoreSettings::new(folder)
        };
        let store = EmbeddedStore::open(settings, SystemClock::shared(), &tasks)?;
        match mode.as_str() {
            "write" => write(store, &tasks).await,
            "check" => check(&store).await,
            other => bail!("{other} is neither write nor check"),
        }
    })
}

fn last_key(writer: u64) -> String {
    format!("last/{writer}")
}

fn slot_key(writer: u64, slot: u64) -> String {
    format!("slot/{writer}/{slot:02}")
}

async fn last_number(store: &dyn Store, writer: u64) -> anyhow::Result<Option<Versioned<u64>>> {
    Ok(store.get_as(Kind::Run, &last_key(writer)).await?)
}

async fn write(store: Arc<EmbeddedStore>, tasks: &TaskGroup) -> anyhow::Result<ExitCode> {
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tasks.spawn("writer", OnEnd::Finite, write_numbers(store.clone(), writer)))
        .collect();
    for writer in writers {
        writer.join().await??;
    }
    Ok(ExitCode::SUCCESS)
}

async fn write_numbers(store: Arc<dyn Store>, writer: u64) -> anyhow::Result<()> {
    let last = last_number(&*store, writer).await?;
    let mut number = last.as_ref().map_or(0, |last| last.value);
    let mut expect = last.map_or(Expect::Absent, |last| Expect::Version(last.version));
    loop {
        number += 1;
        let mut batch = Batch::new(Audit::done("test/torture", "number.write", last_key(writer)));
        batch.put(Kind::Run, last_key(writer), &number, expect);
        let slot = slot_key(writer, number % SLOTS);
        // Some numbers are removed again, and sizes differ, so that frames begin anywhere in a block of the disk.
        if number % SLOTS == 3 {
            batch.delete(Kind::RunLog, slot, Expect::Any);
        } else {
            let padding = "x".repeat((number * 37 % 900) as usize);
            batch.put(Kind::RunLog, slot, &(number, padding), Expect::Any);
        }
        let committed = store.commit(batch).await?;
        expect = Expect::Version(committed.sequence);
        // One write per line: a process killed right after leaves whole lines.
        std::io::stdout().lock().write_all(format!("{writer} {number}\n").as_bytes())?;
    }
}

async fn check(store: &EmbeddedStore) -> anyhow::Result<ExitCode> {
    let mut acknowledged = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (writer, number) = line.split_once(' ').context("a line is not WRITER NUMBER")?;
        let (writer, number): (u64, u64) = (writer.parse()?, number.parse()?);
        let highest = acknowledged.entry(writer).or_insert(number);
        *highest = number.max(*highest);
    }
    let store: &dyn Store = store;
    let mut expected = BTreeMap::new();
    for writer in 0..WRITERS {
        let last = last_number(store, writer).await?.map_or(0, |last| last.value);
        let highest = acknowledged.get(&writer).copied().unwrap_or(0);
        ensure!(last >= highest, "writer {writer}: {highest} was acknowledged, {last} is the last one there");
        // One commit of each writer may be durable and not acknowledged, per run; the runs are not counted here.
        for number in (1..=last).rev().take(SLOTS as usize) {
            if number % SLOTS != 3 {
                expected.insert(slot_key(writer, number % SLOTS), number);
            }
        }
    }
    let mut found = BTreeMap::new();
    let mut after = None;
    loop {
        let page = store
            .scan_as::<(u64, String)>(Kind::RunLog, Scan { after: after.take(), ..Scan::below("") })
            .await?;
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        found.extend(page.into_iter().map(|record| (record.key, record.value.0)));
    }
    ensure!(found == expected, "the keys do not hold what follows from the last numbers");
    let verdict = store.verify_audit().await?;
    ensure!(verdict.last == store.sequence(), "the audit log ends early");
    let total: u64 = acknowledged.values().sum();
    writeln!(std::io::stdout(), "{total} acknowledged, {} commits, nothing lost", store.sequence())?;
    Ok(ExitCode::SUCCESS)
}
