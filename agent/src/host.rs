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
    /// Memory available in bytes.
    pub memory_available_bytes: u64,
    /// Free bytes where the data folder lies.
    pub disk_free_bytes: u64,
    /// Resident memory of this process in bytes.
    pub resident_bytes: u64,
}

impl HostLoad {
    /// Looks now. Reads a few files of `/proc`.
    pub fn now(data_dir: &Path) -> Self {
        let disk_free_bytes =
            rustix::fs::statvfs(data_dir).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        Self {
            load: System::load_average().map_or(0.0, |average| average.one),
            memory_available_bytes: memory().map_or(0, |memory| memory.available_memory()),
            disk_free_bytes,
            resident_bytes: resident_bytes().unwrap_or(0),
        }
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
    fn this_host_is_known() {
        let facts = facts();
        assert!(!facts.hostname.is_empty() && !facts.os.is_empty());
        assert!(facts.cpus > 0 && facts.memory_bytes > 1 << 20);
        let load = HostLoad::now(Path::new("/"));
        assert!(load.memory_available_bytes > 0 && load.disk_free_bytes > 0 && load.resident_bytes > 1 << 20);
    }
}
