//! Databases on this host that can be seen without a secret and without touching them: servers that listen, by the
//! tables of the kernel, and SQLite files and data folders in the folders that `allow.sources.paths` names.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_model::discovery::{DatabaseKind, Discovery, FOUND_MAX, Found, Place, merged};
use holdfast_runtime::SharedClock;
use tokio_util::sync::CancellationToken;

use crate::allow_list::AllowList;

mod walk;

/// Bytes of a table of the kernel that are read at most.
const TABLE_BYTES_MAX: u64 = 16 << 20;

/// How long folders are walked through.
const WALK_TIME_MAX: Duration = Duration::from_secs(20);

/// Files and folders that are looked at.
const ENTRIES_MAX: u64 = 200_000;

/// Ports by which a server is known that shows no socket.
const PORTS: [(u16, DatabaseKind); 3] =
    [(5432, DatabaseKind::Postgres), (3306, DatabaseKind::Mariadb), (6379, DatabaseKind::Redis)];

/// How far it is looked.
struct Limits {
    entries_max: u64,
    deadline: Instant,
    clock: SharedClock,
    cancel: CancellationToken,
}

impl Limits {
    fn is_over(&self) -> bool {
        self.cancel.is_cancelled() || self.clock.monotonic() >= self.deadline
    }
}

/// Looks at the host. It blocks, for twenty seconds at most unless a disk hangs.
pub(crate) fn look(allow: &AllowList, clock: &SharedClock, cancel: CancellationToken) -> Discovery {
    let deadline = clock.monotonic() + WALK_TIME_MAX;
    let limits = Limits { entries_max: ENTRIES_MAX, deadline, clock: clock.clone(), cancel };
    look_within(allow, Path::new("/proc"), &limits)
}

fn look_within(allow: &AllowList, proc: &Path, limits: &Limits) -> Discovery {
    let mut unseen = Vec::new();
    let mut found = servers(proc, &mut unseen);
    match allow.sources.paths.as_deref() {
        None | Some([]) => {
            unseen
                .push("files: `allow.sources.paths` of the agent's configuration names no folder".to_owned());
        }
        Some(folders) => {
            let runs = found.iter().map(|one| one.kind).collect();
            let mut walk = walk::Walk::new(limits, runs);
            folders.iter().for_each(|folder| walk.folder(folder));
            let (databases, not_seen) = walk.ended();
            found.extend(databases);
            unseen.extend(not_seen);
        }
    }
    let mut found = merged(found);
    if found.len() > FOUND_MAX {
        unseen.push(format!("{} databases beyond the first {FOUND_MAX}", found.len() - FOUND_MAX));
        found.truncate(FOUND_MAX);
    }
    Discovery { found, unseen }
}

/// Servers that listen in the network of this process.
fn servers(proc: &Path, unseen: &mut Vec<String>) -> Vec<Found> {
    let mut table = |name: &str| {
        let path = proc.join("net").join(name);
        read_table(&path).unwrap_or_else(|error| {
            unseen.push(format!("{}: {error}", path.display()));
            String::new()
        })
    };
    let mut found: Vec<Found> = sockets(&table("unix")).collect();
    let is_known = |port: u16| found.iter().any(|one| is_at(one, port));
    let listening: Vec<u16> = [table("tcp"), table("tcp6")].iter().flat_map(|text| ports(text)).collect();
    let by_port: Vec<Found> = PORTS
        .iter()
        .filter(|(port, _)| listening.contains(port) && !is_known(*port))
        .map(|(port, kind)| Found { kind: *kind, place: Place::Server { port: Some(*port), socket: None } })
        .collect();
    found.extend(by_port);
    found
}

fn is_at(found: &Found, wanted: u16) -> bool {
    matches!(&found.place, Place::Server { port: Some(port), .. } if *port == wanted)
}

fn read_table(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(TABLE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The TCP ports of a table of the kernel that are listened on.
fn ports(table: &str) -> Vec<u16> {
    let listening = table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next()?;
        let state = words.nth(1)?;
        (state == "0A").then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok()).flatten()
    });
    listening.collect()
}

/// Servers by the sockets that they listen on.
fn sockets(table: &str) -> impl Iterator<Item = Found> {
    table.lines().skip(1).filter_map(|line| {
        let path = line.find(" /").map(|at| &line[at + 1..])?;
        // Bit 16 of the flags: it is listened on.
        let flags = u32::from_str_radix(line.split_whitespace().nth(3)?, 16).ok()?;
        let is_listening = flags & 0x1_0000 != 0;
        if !is_listening || path.chars().any(char::is_control) || path.contains('\u{fffd}') {
            return None;
        }
        let (kind, port) = socket_kind(path.rsplit('/').next()?)?;
        Some(Found { kind, place: Place::Server { port, socket: Some(PathBuf::from(path)) } })
    })
}

fn socket_kind(name: &str) -> Option<(DatabaseKind, Option<u16>)> {
    if let Some(port) = name.strip_prefix(".s.PGSQL.") {
        return Some((DatabaseKind::Postgres, Some(port.parse().ok()?)));
    }
    match name {
        "mysqld.sock" | "mysql.sock" | "mariadb.sock" | "mariadbd.sock" => {
            // That it has the usual port is as good a guess as any: both are one server then.
            Some((DatabaseKind::Mariadb, Some(3306)))
        }
        _ if name.starts_with("redis") && name.ends_with(".sock") => Some((DatabaseKind::Redis, Some(6379))),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
