//! A walk through folders that looks for databases. Everything below a folder is reached from the descriptor of the
//! folder that it lies in, no link is followed, and no other file system is entered.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use holdfast_model::discovery::{DatabaseKind, Found, Place};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use super::Limits;

/// Folders in folders.
const DEPTH_MAX: usize = 64;

/// What a SQLite file begins with, and how long it is at least.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
const SQLITE_BYTES_MIN: i64 = 512;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A name that is exchanged for a pipe meanwhile must not keep the walk.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// A walk.
pub(super) struct Walk<'a> {
    limits: &'a Limits,
    /// Kinds of servers that run: their data folders are theirs.
    runs: BTreeSet<DatabaseKind>,
    found: Vec<Found>,
    entries: u64,
    other_file_systems: u64,
    unreadable: u64,
    strange_names: u64,
    too_deep: u64,
    unseen: Vec<String>,
    is_cut: bool,
}

/// The names of a folder that are worth a look.
#[derive(Default)]
struct Names {
    folders: Vec<Vec<u8>>,
    files: Vec<Vec<u8>>,
}

impl Names {
    fn has_file(&self, name: &str) -> bool {
        self.files.iter().any(|known| known == name.as_bytes())
    }

    fn has_folder(&self, name: &str) -> bool {
        self.folders.iter().any(|known| known == name.as_bytes())
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(limits: &'a Limits, runs: BTreeSet<DatabaseKind>) -> Self {
        Self {
            limits,
            runs,
            found: Vec::new(),
            entries: 0,
            other_file_systems: 0,
            unreadable: 0,
            strange_names: 0,
            too_deep: 0,
            unseen: Vec::new(),
            is_cut: false,
        }
    }

    /// Looks into a folder, or at a file. The folders on the way to it may be links, it itself may not.
    pub(super) fn folder(&mut self, path: &Path) {
        match openat(CWD, path, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(folder) => match fstat(&folder) {
                Ok(stat) => self.enter(&folder, path, stat.st_dev, 0),
                Err(error) => self.unseen.push(format!("{}: {error}", path.display())),
            },
            // A link, or no folder.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
                let opened = openat(CWD, parent, FOLDER, Mode::empty());
                match opened.and_then(|folder| Ok((is_link(&folder, name.as_bytes())?, folder))) {
                    Ok((true, _)) => {
                        let why = "it is a link, name what it leads to";
                        self.unseen.push(format!("{}: {why}", path.display()));
                    }
                    Ok((false, folder)) => self.file(&folder, parent, name.as_bytes()),
                    Err(error) => self.unseen.push(format!("{}: {error}", path.display())),
                }
            }
            Err(error) => self.unseen.push(format!("{}: {error}", path.display())),
        }
    }

    /// What was found, and what was not looked at.
    pub(super) fn ended(mut self) -> (Vec<Found>, Vec<String>) {
        let mut add = |count: u64, what: &str| {
            if count > 0 {
                self.unseen.push(format!("{count} {what}"));
            }
        };
        add(self.unreadable, "files and folders that the agent may not read");
        add(self.other_file_systems, "folders on other file systems: `allow.sources.paths` may name them");
        add(self.strange_names, "names that are not UTF-8");
        add(self.too_deep, "folders that lie too deep");
        if self.is_cut {
            self.unseen.push(format!("what comes after {} files and folders", self.entries));
        }
        (self.found, self.unseen)
    }

    fn enter(&mut self, folder: &OwnedFd, path: &Path, device: u64, depth: usize) {
        if depth > DEPTH_MAX {
            self.too_deep += 1;
            return;
        }
        let Some(names) = self.names(folder) else { return };
        if let Some(found) = self.data_folder(folder, path, &names) {
            self.found.extend(found);
            return;
        }
        for name in &names.files {
            self.file(folder, path, name);
        }
        for name in names.folders {
            if self.is_cut {
                return;
            }
            let opened = openat(folder, name.as_slice(), FOLDER | OFlags::NOFOLLOW, Mode::empty());
            let opened = opened.and_then(|inner| fstat(&inner).map(|stat| (inner, stat)));
            match opened {
                Ok((_, stat)) if stat.st_dev != device => self.other_file_systems += 1,
                Ok((inner, _)) => {
                    self.enter(&inner, &path.join(OsStr::from_bytes(&name)), device, depth + 1);
                }
                // Gone, or a link by now.
                Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
                Err(_) => self.unreadable += 1,
            }
        }
    }

    fn names(&mut self, folder: &OwnedFd) -> Option<Names> {
        let Ok(entries) = Dir::read_from(folder) else {
            self.unreadable += 1;
            return None;
        };
        let mut names = Names::default();
        for entry in entries {
            let Ok(entry) = entry else { break };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.entries += 1;
            if self.entries > self.limits.entries_max || self.limits.is_over() {
                self.is_cut = true;
                break;
            }
            match self.kind(folder, name, entry.file_type()) {
                FileType::Directory => names.folders.push(name.to_bytes().to_vec()),
                FileType::RegularFile => names.files.push(name.to_bytes().to_vec()),
                _ => {}
            }
        }
        Some(names)
    }

    /// Not every file system says it with the name.
    fn kind(&self, folder: &OwnedFd, name: &CStr, said: FileType) -> FileType {
        if said != FileType::Unknown {
            return said;
        }
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
    }

    /// The database whose data folder it is: inside nothing else is looked for.
    fn data_folder(&self, folder: &OwnedFd, path: &Path, names: &Names) -> Option<Option<Found>> {
        let kind = if names.has_file("PG_VERSION") && names.has_folder("global") {
            DatabaseKind::Postgres
        } else if names.has_file("ibdata1") {
            DatabaseKind::Mariadb
        } else if names.has_file("dump.rdb") || names.has_folder("appendonlydir") {
            DatabaseKind::Redis
        } else {
            return None;
        };
        let port = (kind == DatabaseKind::Postgres).then(|| running_port(folder)).flatten();
        let place = match port {
            Some(port) => Place::Server { port: Some(port), socket: None },
            // Whose it is can not be told where one runs.
            None if kind != DatabaseKind::Postgres && self.runs.contains(&kind) => return Some(None),
            None => Place::Folder(plain_path(path)?),
        };
        Some(Some(Found { kind, place }))
    }

    fn file(&mut self, folder: &OwnedFd, path: &Path, name: &[u8]) {
        let opened = openat(folder, name, FILE | OFlags::NOFOLLOW, Mode::empty());
        let file = match opened {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP) => return,
            Err(_) => {
                self.unreadable += 1;
                return;
            }
        };
        if !is_sqlite(file) {
            return;
        }
        match plain_path(&path.join(OsStr::from_bytes(name))) {
            Some(path) => self.found.push(Found { kind: DatabaseKind::Sqlite, place: Place::File(path) }),
            None => self.strange_names += 1,
        }
    }
}

fn is_link(folder: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// A path that can be written into a message.
fn plain_path(path: &Path) -> Option<PathBuf> {
    path.to_str().map(PathBuf::from)
}

fn is_sqlite(file: OwnedFd) -> bool {
    let is_fit = fstat(&file).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size >= SQLITE_BYTES_MIN
    });
    let mut begins = [0; 16];
    is_fit && File::from(file).read_exact(&mut begins).is_ok() && begins == *SQLITE_MAGIC
}

/// The port of the server that runs in a data folder of PostgreSQL, by its own file.
fn running_port(folder: impl AsFd) -> Option<u16> {
    let file = openat(folder, "postmaster.pid", FILE | OFlags::NOFOLLOW, Mode::empty()).ok()?;
    let mut text = String::new();
    File::from(file).take(4096).read_to_string(&mut text).ok()?;
    text.lines().nth(3)?.trim().parse().ok()
}
