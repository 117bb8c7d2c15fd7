//! A disk that a test can fill: a tmpfs of a few megabytes in a mount namespace of its own.
//!
//! Nobody's rights are needed: the namespace belongs to a user namespace in which the test's user may mount. It is
//! reached from outside through the folder of the process that keeps it, and is gone with that process, also when the
//! test is killed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::wait::PATIENCE;

/// A small file system of its own. Gone when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    keeper: Child,
    root: PathBuf,
    mount_point: TempDir,
}

impl SmallDisk {
    /// An empty disk of so many KiB.
    ///
    /// # Panics
    /// When this machine does not let the test's user mount in a namespace of its own.
    pub fn new(kibibytes: u32) -> Self {
        let mount_point = crate::temp_dir("disk");
        let script = "mount -t tmpfs -o size=\"$1\",mode=0700 tmpfs \"$2\" && echo mounted && exec cat";
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(format!("{kibibytes}k"))
            .arg(mount_point.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux is installed: run `make setup`");
        let mut said = String::new();
        let out = keeper.stdout.take().expect("standard output is a pipe");
        BufReader::new(out).read_line(&mut said).expect("a pipe is readable");
        assert_eq!(
            said, "mounted\n",
            "a test that fills a disk needs user namespaces, or root that may mount"
        );
        let inner = mount_point.path().strip_prefix("/").expect("temporary folders have absolute paths");
        let root = Path::new("/proc").join(keeper.id().to_string()).join("root").join(inner);
        Self { keeper, root, mount_point }
    }

    /// Its root folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Takes all the space that is left.
    ///
    /// # Panics
    /// When it ends for another reason than that the disk is full.
    pub fn fill(&self) {
        let mut file =
            File::options().create(true).append(true).open(self.ballast()).expect("the disk is ours");
        // Smaller and smaller pieces, so that not even one page is left.
        for size in [64 << 10, 4096, 1] {
            let piece = vec![0x5a; size];
            let error = loop {
                if let Err(error) = file.write_all(&piece) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("the disk was filled");
    }

    /// Takes no writes any more, or takes them again.
    ///
    /// # Panics
    /// When a file on it is open for writing.
    pub fn set_read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        let mut remount = Command::new("nsenter");
        remount.args([
            "--user",
            "--mount",
            "--preserve-credentials",
            "--target",
            &self.keeper.id().to_string(),
        ]);
        remount.args(["mount", "--options", options]).arg(self.mount_point.path());
        drop(crate::run(&mut remount, PATIENCE).expect_success());
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It ends by itself at the end of its standard input.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
