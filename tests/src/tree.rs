//! Trees that are hard to back up: made from a seed, the same each time.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, mkfifoat, utimensat};

/// Names that programs trip over. None holds a `/` or a zero byte, which no file name can.
const ODD_NAMES: &[&[u8]] = &[
    b"plain.txt",
    b"with space",
    b" leading and trailing ",
    b"-rf",
    b"--help",
    b"..hidden",
    b"...",
    b"new\nline",
    b"tab\tand\rreturn",
    b"quote'single",
    b"quote\"double",
    b"back\\slash",
    b"$HOME `id` $(id)",
    b"*?[a-z]{x,y}",
    b"!not#comment",
    b"percent%00%2F",
    b"semi;colon&and|pipe",
    b"null.txt.",
    b"con.",
    b"\x01\x1b[31mcontrol",
    "n\u{e4}mlich".as_bytes(),
    "na\u{308}mlich".as_bytes(),
    "\u{6570}\u{636e}\u{5e93}".as_bytes(),
    "\u{202e}right to left".as_bytes(),
    "\u{1f5c4}\u{fe0f}".as_bytes(),
    b"latin1-\xe9\xff",
    b"half-utf8-\xe2\x82",
];

/// The longest name a file may have.
const NAME_BYTES_MAX: usize = 255;

/// Times a file may carry: whole and fractional seconds, before 1970, after 2038, the last nanosecond.
const ODD_TIMES: &[(i64, u32)] = &[
    (0, 0),
    (1, 1),
    (-86_400, 0),
    (1_000_000_000, 999_999_999),
    (1_700_000_000, 123_456_789),
    (2_147_483_648, 500_000_000),
    (4_102_444_800, 7),
];

/// What kind of tree to make. All counts are in addition to one file for each odd name.
#[derive(Debug, Clone)]
pub struct TreeSpec {
    /// The same seed gives the same tree.
    pub seed: u64,
    /// Folders, nested at random.
    pub folders: usize,
    /// Regular files, spread over the folders.
    pub files: usize,
    /// Most files are small; one in sixteen has up to this many bytes.
    pub file_bytes_max: usize,
}

impl TreeSpec {
    /// A tree of a few hundred entries and a few megabytes.
    pub fn small(seed: u64) -> Self {
        Self { seed, folders: 24, files: 200, file_bytes_max: 256 * 1024 }
    }

    /// Makes the tree in an existing folder.
    ///
    /// Owners other than one's own are set only when the process runs as root.
    ///
    /// # Panics
    /// When the file system refuses something.
    pub fn make(&self, root: &Path) -> TreeSummary {
        let mut maker = Maker {
            rng: StdRng::seed_from_u64(self.seed),
            spec: self,
            as_root: rustix::process::geteuid().is_root(),
            folders: vec![root.to_owned()],
            files: Vec::new(),
            times: Vec::new(),
            summary: TreeSummary::default(),
        };
        maker.make_folders();
        maker.make_odd_names();
        maker.make_files();
        maker.make_special_files();
        maker.make_links();
        maker.settle_folders();
        maker.summary
    }
}

/// What a tree holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct TreeSummary {
    /// Folders, the root not counted.
    pub folders: u64,
    /// Names of regular files; a hard link counts each time.
    pub files: u64,
    /// Symbolic links and pipes.
    pub others: u64,
    /// Bytes of the regular files; a hard link counts each time.
    pub bytes: u64,
}

struct Maker<'a> {
    rng: StdRng,
    spec: &'a TreeSpec,
    as_root: bool,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    /// Times are set last: making an entry changes its folder.
    times: Vec<PathBuf>,
    summary: TreeSummary,
}

impl Maker<'_> {
    fn make_folders(&mut self) {
        for number in 0..self.spec.folders {
            let parent = self.any_folder();
            let path = parent.join(format!("d{number:03}"));
            fs::create_dir(&path).expect("a folder can be made");
            self.folders.push(path);
            self.summary.folders += 1;
        }
    }

    fn make_odd_names(&mut self) {
        let odd = self.folders[0].join(OsStr::new("odd names"));
        fs::create_dir(&odd).expect("a folder can be made");
        self.folders.push(odd.clone());
        self.summary.folders += 1;
        let longest = vec![b'x'; NAME_BYTES_MAX];
        for name in ODD_NAMES.iter().copied().chain([longest.as_slice()]) {
            let path = odd.join(OsString::from_vec(name.to_vec()));
            let content = name.repeat(3);
            self.write_file(&path, &content);
        }
    }

    fn make_files(&mut self) {
        for number in 0..self.spec.files {
            let path = self.any_folder().join(format!("f{number:05}"));
            let content = self.any_content();
            self.write_file(&path, &content);
        }
    }

    fn make_special_files(&mut self) {
        // Data, a hole of a megabyte, data, and a hole at the end.
        let sparse = self.folders[0].join("sparse");
        let file = File::create(&sparse).expect("a file can be made");
        file.write_all_at(b"begin", 0).expect("a file can be written");
        file.write_all_at(b"middle", 1 << 20).expect("a file can be written");
        file.set_len(3 << 20).expect("a file can be extended");
        self.summary.files += 1;
        self.summary.bytes += 3 << 20;
        self.finish_file(sparse);

        let pipe = self.folders[0].join("pipe");
        mkfifoat(CWD, &pipe, Mode::from_raw_mode(0o640)).expect("a pipe can be made");
        self.times.push(pipe);
        self.summary.others += 1;

        fs::create_dir(self.folders[0].join("empty folder")).expect("a folder can be made");
        self.folders.push(self.folders[0].join("empty folder"));
        self.summary.folders += 1;
    }

    fn make_links(&mut self) {
        for number in 0..self.files.len() / 20 {
            let target = self.files[self.rng.random_range(0..self.files.len())].clone();
            let path = self.any_folder().join(format!("hard{number:03}"));
            fs::hard_link(&target, path).expect("a hard link can be made");
            self.summary.files += 1;
            self.summary.bytes += target.metadata().expect("the target exists").len();
        }
        // Targets are UTF-8: the `restic` of Debian 12 replaces other bytes in them when it writes.
        let targets: &[&[u8]] = &[
            b"f00000",
            b"../sparse",
            b"/nowhere/at all",
            b"dangling",
            b".",
            b"new\nline and \xc3\xa4",
            b"-rf",
        ];
        for (number, target) in targets.iter().enumerate() {
            let path = self.any_folder().join(format!("link{number:03}"));
            symlink(OsString::from_vec(target.to_vec()), &path).expect("a symbolic link can be made");
            if self.as_root {
                lchown(&path, Some(2000), Some(3000)).expect("root may change owners");
            }
            self.times.push(path);
            self.summary.others += 1;
        }
    }

    /// Modes and times of folders, and times of everything, once nothing in them changes any more.
    fn settle_folders(&mut self) {
        let modes = [0o755, 0o700, 0o1777, 0o2775, 0o751];
        for folder in self.folders.clone().into_iter().skip(1) {
            self.set_attributes(&folder);
            let mode = modes[self.rng.random_range(0..modes.len())];
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("a mode can be set");
            self.times.push(folder);
        }
        for path in std::mem::take(&mut self.times) {
            let (seconds, nanoseconds) = ODD_TIMES[self.rng.random_range(0..ODD_TIMES.len())];
            let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times can be set");
        }
    }

    fn write_file(&mut self, path: &Path, content: &[u8]) {
        let mut file = File::create(path).expect("a file can be made");
        file.write_all(content).expect("a file can be written");
        self.summary.files += 1;
        self.summary.bytes += content.len() as u64;
        self.files.push(path.to_owned());
        self.finish_file(path.to_owned());
    }

    fn finish_file(&mut self, path: PathBuf) {
        self.set_attributes(&path);
        // Changing the owner clears the set-id bits, so the mode comes after it.
        let modes: &[u32] = if self.as_root {
            &[0o644, 0o600, 0o755, 0o444, 0o4755, 0o2755, 0o000]
        } else {
            &[0o644, 0o600, 0o755, 0o444]
        };
        let mode = modes[self.rng.random_range(0..modes.len())];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode can be set");
        self.times.push(path);
    }

    /// Extended attributes and, as root, an owner.
    fn set_attributes(&mut self, path: &Path) {
        if self.rng.random_bool(0.2) {
            let mut value = vec![0; self.rng.random_range(0..200)];
            self.rng.fill_bytes(&mut value);
            xattr::set(path, "user.holdfast.test", &value)
                .expect("the file system keeps extended attributes");
            xattr::set(path, "user.n\u{e4}me", b"").expect("the file system keeps extended attributes");
        }
        if self.as_root && self.rng.random_bool(0.3) {
            let (user, group) = (self.rng.random_range(1..70_000), self.rng.random_range(1..70_000));
            chown(path, Some(user), Some(group)).expect("root may change owners");
        }
    }

    fn any_folder(&mut self) -> PathBuf {
        self.folders[self.rng.random_range(0..self.folders.len())].clone()
    }

    /// Empty, text that compresses, noise that does not, or long zeros.
    fn any_content(&mut self) -> Vec<u8> {
        let large = self.rng.random_bool(1.0 / 16.0);
        let limit = if large { self.spec.file_bytes_max } else { self.spec.file_bytes_max.min(8 * 1024) };
        let length = self.rng.random_range(0..=limit);
        match self.rng.random_range(0..8) {
            0 => Vec::new(),
            1 => vec![0; length],
            2..=4 => {
                let word = format!("line {} of a file that compresses\n", self.rng.random_range(0..1_000));
                word.bytes().cycle().take(length).collect()
            }
            _ => {
                let mut noise = vec![0; length];
                self.rng.fill_bytes(&mut noise);
                noise
            }
        }
    }
}
