//! What this agent knows of its host.

use std::path::Path;

use holdfast_proto::v1;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Facts that do not change while the agent runs.
pub fn facts() -> v1::HostFacts {
    v1::HostFacts {
        hostname: hostname(),
        os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
        arch: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory().map_or(0, |memory| memory.total_memory()),
    }
}

/// Name of the host, as snapshots carry it.
pub fn hostname() -> String {
    System::host_name().unwrap_or_else(|_| "localhost".to_owned())
}

/// The load of the host and of this process, as far as it can be found out: what is not known is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HostLoad {
    /// Load average over one minute.
    pub load: f64,
    /// Memory in bytes.
    pub memory_total_bytes: u64,
    /// Memory available in bytes.
    pub memory_available_bytes: u64,
    /// Size in bytes of where the data folder lies.
    pub disk_total_bytes: u64,
    /// Free bytes where the data folder lies.
    pub disk_free_bytes: u64,
    /// Resident memory of this process in bytes.
    pub resident_bytes: u64,
}

impl HostLoad {
    /// Looks now. Reads a few files of `/proc`.
    pub fn now(data_dir: &Path) -> Self {
        // What only root may still write counts neither as free nor as room.
        let (disk_free_bytes, disk_total_bytes) = rustix::fs::statvfs(data_dir).map_or((0, 0), |stat| {
            let used = stat.f_blocks.saturating_sub(stat.f_bfree);
            let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
            (bytes(stat.f_bavail), bytes(used.saturating_add(stat.f_bavail)))
        });
        let memory = memory();
        Self {
            load: System::load_average().map_or(0.0, |average| average.one),
            memory_total_bytes: memory.as_ref().map_or(0, System::total_memory),
            memory_available_bytes: memory.as_ref().map_or(0, System::available_memory),
            disk_total_bytes,
            disk_free_bytes,
            resident_bytes: resident_bytes().unwrap_or(0),
        }
    }
}

/// How long the processors were busy since the host started, and how long they were there, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTimes {
    busy: u64,
    all: u64,
}

impl CpuTimes {
    /// Reads them; none where the host does not tell.
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        let all: u64 = ticks.iter().sum();
        let idle = ticks.get(3)? + ticks.get(4)?;
        Some(Self { busy: all.saturating_sub(idle), all })
    }

    /// The share that was busy between an earlier moment and this one, 0 to 1.
    pub fn share_since(self, earlier: Self) -> Option<f64> {
        let all = self.all.checked_sub(earlier.all).filter(|all| *all > 0)?;
        Some(self.busy.saturating_sub(earlier.busy).min(all) as f64 / all as f64)
    }
}

fn memory() -> Option<System> {
    let memory = MemoryRefreshKind::nothing().with_ram();
    System::new_with_specifics(RefreshKind::nothing().with_memory(memory)).ok()
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_busy_processors_is_that_of_the_time_between() {
        let at = |text: &str| CpuTimes::parse(text).unwrap();
        let earlier = at("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n");
        let later = at("cpu  130 10 110 730 120 0 0 0 0 0\n");
        assert_eq!(later.share_since(earlier), Some(0.5));
        assert_eq!(earlier.share_since(earlier), None, "no time between");
        assert_eq!(earlier.share_since(later), None, "the counters began anew");
        assert_eq!(CpuTimes::parse("intr 5\n"), None);
    }

    #[test]
    fn this_host_is_known() {
        let facts = facts();
        assert!(!facts.hostname.is_empty() && !facts.os.is_empty());
        assert!(facts.cpus > 0 && facts.memory_bytes > 1 << 20);
        let load = HostLoad::now(Path::new("/"));
        assert!(load.memory_total_bytes > load.memory_available_bytes);
        assert!(load.disk_total_bytes > load.disk_free_bytes && CpuTimes::now().is_some());
        assert!(load.memory_available_bytes > 0 && load.disk_free_bytes > 0 && load.resident_bytes > 1 << 20);
    }
}
