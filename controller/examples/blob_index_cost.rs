//! What the index of blobs costs, beside the same in sled and in memory: `blob_index_cost FOLDER BLOBS [ours]`.
//!
//! Fills each with so many blobs, then enters 70,000 more, and asks for those and for as many unknown ones. Prints
//! processor and wall time for each, the size of the files and the memory of the process. Build it optimised.

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use holdfast_controller::store::blob_index::{BlobIndex, BlobIndexSettings, DiskBlobIndex};
use holdfast_repository::id::{BlobId, BlobType, PackId};
use holdfast_repository::index::MemoryIndex;
use holdfast_repository::pack::PackEntry;
use holdfast_runtime::{Shutdown, TaskGroup};

const ROUND_BLOBS: u64 = 70_000;
const PACK_BLOBS: u64 = 50;
/// Blobs of one question, as an agent asks.
const QUESTION_BLOBS: u64 = 1_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, blobs, only @ ..] = &arguments[..] else {
        anyhow::bail!("usage: blob_index_cost FOLDER BLOBS [ours]")
    };
    let blobs: u64 = blobs.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(ours(&Path::new(folder).join("ours"), blobs))?;
    if !only.is_empty() {
        return Ok(());
    }
    in_memory(blobs)?;
    in_sled(&Path::new(folder).join("sled"), blobs)
}

/// An id that looks like a hash and costs less.
fn blob(number: u64) -> BlobId {
    let mut bytes = [0; 32];
    let mut state = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    for part in bytes.as_chunks_mut::<8>().0 {
        state =
            (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(0x94d0_49bb_1331_11eb);
        *part = (state ^ (state >> 29)).to_le_bytes();
    }
    BlobId::from_bytes(bytes)
}

fn packs(range: std::ops::Range<u64>) -> impl Iterator<Item = (PackId, Vec<PackEntry>)> {
    range.step_by(PACK_BLOBS as usize).map(|start| {
        let entry = |number| PackEntry {
            id: blob(number),
            blob_type: BlobType::Data,
            offset: ((number - start) * 100_000) as u32,
            length: 100_000,
            uncompressed_length: Some(250_000),
        };
        (PackId::of(&start.to_le_bytes()), (start..start + PACK_BLOBS).map(entry).collect())
    })
}

fn questions(range: std::ops::Range<u64>) -> impl Iterator<Item = Vec<BlobId>> {
    range.step_by(QUESTION_BLOBS as usize).map(|start| (start..start + QUESTION_BLOBS).map(blob).collect())
}

async fn ours(folder: &Path, blobs: u64) -> anyhow::Result<()> {
    let tasks = TaskGroup::new(&Shutdown::new());
    let index = DiskBlobIndex::open(BlobIndexSettings::new(folder, None), &tasks)?;
    index.begin_rebuild().await?;
    let meter = Meter::start();
    let mut waiting = Vec::new();
    for pack in packs(0..blobs) {
        waiting.push(pack);
        if waiting.len() == 200 {
            index.insert(std::mem::take(&mut waiting)).await?;
        }
    }
    index.insert(waiting).await?;
    index.finish_rebuild().await?;
    meter.print("ours: fill", blobs)?;
    let meter = Meter::start();
    for pack in packs(blobs..blobs + ROUND_BLOBS) {
        index.insert(vec![pack]).await?;
    }
    meter.print("ours: enter", ROUND_BLOBS)?;
    for (what, start) in [("ours: ask, known", blobs), ("ours: ask, unknown", 1 << 40)] {
        let meter = Meter::start();
        let mut known = 0;
        for question in questions(start..start + ROUND_BLOBS) {
            known += index.lookup(BlobType::Data, question).await?.iter().flatten().count();
        }
        meter.print(what, ROUND_BLOBS)?;
        anyhow::ensure!(known as u64 == if start == blobs { ROUND_BLOBS } else { 0 });
    }
    let meter = Meter::start();
    for question in questions(0..ROUND_BLOBS.min(blobs)) {
        index.lookup(BlobType::Data, question).await?;
    }
    meter.print("ours: ask, old", ROUND_BLOBS.min(blobs))?;
    index.close().await?;
    drop(index);
    let meter = Meter::start();
    let index = DiskBlobIndex::open(BlobIndexSettings::new(folder, None), &tasks)?;
    meter.print("ours: open again", blobs)?;
    anyhow::ensure!(index.is_complete() && index.counts().1 == blobs + ROUND_BLOBS);
    sizes(folder)
}

fn in_memory(blobs: u64) -> anyhow::Result<()> {
    let meter = Meter::start();
    let mut index = MemoryIndex::new();
    packs(0..blobs).for_each(|(pack, entries)| index.insert_pack(pack, &entries));
    meter.print("memory: fill", blobs)?;
    let meter = Meter::start();
    packs(blobs..blobs + ROUND_BLOBS).for_each(|(pack, entries)| index.insert_pack(pack, &entries));
    meter.print("memory: enter", ROUND_BLOBS)?;
    for (what, start) in [("memory: known", blobs), ("memory: unknown", 1 << 40), ("memory: old", 0)] {
        let meter = Meter::start();
        let known = questions(start..start + ROUND_BLOBS.min(blobs))
            .flatten()
            .filter_map(|id| index.get(BlobType::Data, &id));
        let known = known.count();
        meter.print(what, ROUND_BLOBS.min(blobs))?;
        anyhow::ensure!((known > 0) == (start != 1 << 40));
    }
    print_memory("memory")
}

fn in_sled(folder: &Path, blobs: u64) -> anyhow::Result<()> {
    let db = sled::Config::new().path(folder).cache_capacity(64 << 20).open()?;
    let enter = |range| -> anyhow::Result<()> {
        for (pack, entries) in packs(range) {
            let mut batch = sled::Batch::default();
            for entry in entries {
                let mut value = pack.as_bytes().to_vec();
                for number in [entry.offset, entry.length, entry.uncompressed_length.unwrap_or(0)] {
                    value.extend_from_slice(&number.to_le_bytes());
                }
                batch.insert(entry.id.as_bytes(), value);
            }
            db.apply_batch(batch)?;
        }
        Ok(())
    };
    let meter = Meter::start();
    enter(0..blobs)?;
    meter.print("sled: fill", blobs)?;
    let meter = Meter::start();
    enter(blobs..blobs + ROUND_BLOBS)?;
    meter.print("sled: enter", ROUND_BLOBS)?;
    for (what, start) in [("sled: ask, known", blobs), ("sled: ask, unknown", 1 << 40), ("sled: ask, old", 0)]
    {
        let meter = Meter::start();
        for question in questions(start..start + ROUND_BLOBS.min(blobs)) {
            for id in question {
                db.get(id.as_bytes())?;
            }
        }
        meter.print(what, ROUND_BLOBS.min(blobs))?;
    }
    drop(db);
    sizes(folder)
}

fn sizes(folder: &Path) -> anyhow::Result<()> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    writeln!(std::io::stdout(), "{}: {} MiB", folder.display(), bytes >> 20)?;
    print_memory(&folder.display().to_string())
}

fn print_memory(what: &str) -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let memory = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    let memory: Vec<&str> = memory.collect();
    writeln!(std::io::stdout(), "{what}: {}", memory.join("; "))?;
    Ok(())
}

/// Processor and wall time of the process.
struct Meter {
    wall: Instant,
    ticks: u64,
}

impl Meter {
    fn start() -> Self {
        Self { wall: Instant::now(), ticks: ticks() }
    }

    fn print(&self, what: &str, blobs: u64) -> anyhow::Result<()> {
        // A tick is 10 ms on Linux.
        let (wall, cpu) = (self.wall.elapsed().as_secs_f64(), (ticks() - self.ticks) as f64 / 100.0);
        let micros = cpu * 1e6 / blobs as f64;
        writeln!(
            std::io::stdout(),
            "{what:20} {blobs:>11} blobs {cpu:8.2} CPU s {wall:8.2} s {micros:6.2} µs CPU each"
        )?;
        Ok(())
    }
}

fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted behind the name of the program, which may hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}
