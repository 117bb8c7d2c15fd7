"""Holdfast beside restic, row by row. Started by compare.sh."""

import argparse
import filecmp
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import data
from fleet import Fleet
from measure import Table, folder_mib, measure

RESTIC = os.environ["HOLDFAST_BENCH_RESTIC"]
ROOT = Path(os.environ["HOLDFAST_BENCH_DIR"])

# Row → (with whom it is compared, how many times as fast Holdfast has to be).
GOALS = {
    "files full": ("restic", 1.4),
    "files nothing changed": ("restic", 4.0),
    "files 1 % changed": ("restic", 3.0),
    "files restore": ("restic", 1.5),
    "files delta restore": ("restic", 2.0),
    "files check all data": ("restic", 1.4),
    "files copy": ("restic", 1.0),
    "sqlite full": ("restic", 1.25),
    "stream full": ("restic", 1.7),
    "postgres live dump": ("pg_dump to zstd", 1 / 1.1),
}


class Restic:
    """A repository of restic's, in a folder of its own, with a cache of its own."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir()
        (self.folder / "password").write_text("benchmark\n")
        subprocess.run(self.command("init"), check=True, capture_output=True)

    def command(self, *arguments):
        return [RESTIC, "-q", "-r", self.repository(), "--password-file", self.folder / "password", "--cache-dir", self.folder / "cache", *arguments]

    def repository(self):
        return self.folder / "repository"


class Round:
    """One round: fresh repositories on both sides, the same data for both."""

    def __init__(self, table, folder, number, scale):
        self.table, self.folder, self.number, self.scale = table, Path(folder), number, scale
        self.restic = Restic(self.folder / "restic")
        self.restic_unchecked = Restic(self.folder / "restic-unchecked")

    # --- files

    def files(self):
        kept = data.made(ROOT / f"tree-{self.scale}", lambda path: data.make_tree(path, self.scale))
        tree = self.folder / "tree"
        shutil.copytree(kept, tree, symlinks=True)
        warm(tree)
        self.holdfast.declare("tree", f"engine: files, paths: [{tree}]")
        self.add("files full", "restic", self.restic.command("backup", tree), size=self.restic.repository())
        self.add("files full", "restic, no extra verify", self.restic_unchecked.command("backup", "--no-extra-verify", tree))
        self.add_ours("files full", self.holdfast.backup("tree", "full"), size="tree")
        self.add_unverified("files full", "tree", f"engine: files, paths: [{tree}]")
        self.add("files nothing changed", "restic", self.restic.command("backup", tree))
        self.add_ours("files nothing changed", self.holdfast.backup("tree", "incremental"))
        data.change_tree(tree, data.SEED + self.number)
        self.add("files 1 % changed", "restic", self.restic.command("backup", tree))
        self.add_ours("files 1 % changed", self.holdfast.backup("tree", "incremental"))
        self.files_restore(tree)
        self.add("files check all data", "restic", self.restic.command("check", "--read-data"))
        self.add_ours("files check all data", self.holdfast.check("tree"))
        self.files_copy()

    def files_copy(self):
        """All snapshots into an empty repository with a key of its own."""
        other = Restic(self.folder / "restic-copy")
        source = ("--from-repo", self.restic.repository(), "--from-password-file", self.restic.folder / "password")
        self.add("files copy", "restic", other.command("copy", *source), size=other.repository())
        self.holdfast.add_repository("tree-copy")
        self.add_ours("files copy", self.holdfast.copy("tree", "tree-copy"), size="tree-copy")

    def files_restore(self, tree):
        theirs, ours = self.folder / "restored-restic", self.folder / "restored-holdfast"
        self.add("files restore", "restic", self.restic.command("restore", "latest", "--target", theirs))
        self.add_ours("files restore", self.holdfast.restore("tree", ours))
        expect_same(tree, find_root(theirs, tree))
        expect_same(tree, find_root(ours, tree))
        # Both repair the tree where it was backed up: the same five wrong files and the same missing one.
        kept = find_root(ours, tree)
        data.damage_tree(tree, data.SEED + self.number)
        self.add("files delta restore", "restic", self.restic.command("restore", "latest", "--target", "/"))
        expect_same(kept, tree)
        data.damage_tree(tree, data.SEED + self.number)
        self.add_ours("files delta restore", self.holdfast.restore_delta("tree"))
        expect_same(kept, tree)

    # --- a SQLite database in use

    def sqlite(self):
        kept = data.made(ROOT / f"bars-{self.scale}.sqlite3", lambda path: data.make_sqlite(path, self.scale))
        database = self.folder / "bars.sqlite3"
        shutil.copy(kept, database)
        warm(database)
        self.holdfast.declare("bars", f"engine: sqlite, path: {database}")
        writer = subprocess.Popen([sys.executable, Path(__file__).with_name("data.py"), "write-sqlite", database])
        try:
            self.add("sqlite full", "restic", self.restic.command("backup", database), size=self.restic.repository())
            self.add_ours("sqlite full", self.holdfast.backup("bars", "full"), size="bars")
            self.add_unverified("sqlite full", "bars", f"engine: sqlite, path: {database}")
        finally:
            writer.kill()
            writer.wait()

    # --- one long stream of a dump; Holdfast reads it as a file, through the same path

    def stream(self):
        with cluster(self.scale) as server:
            dump = data.made(ROOT / f"dump-{self.scale}.sql", server.dump_to)
        folder = self.folder / "stream"
        folder.mkdir()
        os.link(dump, folder / "dump.sql")
        warm(folder)
        self.holdfast.declare("stream", f"engine: files, paths: [{folder}]")
        with open(dump, "rb") as stdin:
            command = self.restic.command("backup", "--stdin", "--stdin-filename", "dump.sql")
            self.add("stream full", "restic", command, size=self.restic.repository(), stdin=stdin)
        self.add_ours("stream full", self.holdfast.backup("stream", "full"), size="stream")
        self.add_unverified("stream full", "stream", f"engine: files, paths: [{folder}]")

    # --- a live PostgreSQL database

    def postgres(self):
        with cluster(self.scale) as server:
            (self.folder / "pg.pass").write_text("none")
            (self.folder / "pg.pass").chmod(0o600)
            self.holdfast.declare(
                "live",
                f"engine: postgres, connect: {{ host: {server.socket}, port: {server.port}, user: postgres, database: bars, "
                f"password: {{ file: {self.folder / 'pg.pass'} }} }}, databases: [bars]",
            )
            dump = " ".join(map(str, server.client("pg_dump", "-Fp", "bars")))
            for tool, sink in {
                "pg_dump to zstd": f"zstd -q -3 -T2 -o {self.folder / 'dump.zst'}",
                "pg_dump to restic": " ".join(map(str, self.restic.command("backup", "--stdin", "--stdin-filename", "live.sql"))),
            }.items():
                self.add("postgres live dump", tool, ["bash", "-o", "pipefail", "-c", f"{dump} | {sink}"])
            self.add_ours("postgres live dump", self.holdfast.backup("live", "full"), size="live")

    # --- helpers

    def add(self, row, tool, argv, size=None, stdin=None):
        sample = measure(tool, argv, stdin=stdin)
        sample.size_mib = folder_mib(size) if size else None
        self.table.add(row, tool, sample)

    def add_ours(self, row, argv, size=None, tool="holdfast"):
        sample = measure("holdfast", argv, daemons=self.holdfast.daemons(), env=self.holdfast.environment)
        sample.size_mib = folder_mib(self.holdfast.repository(size)) if size else None
        self.table.add(row, tool, sample)

    def add_unverified(self, row, name, source):
        """The same into a repository of its own, without comparing what was encoded with what was read."""
        name += "-unverified"
        self.holdfast.declare(name, source)
        with self.holdfast.without_verification():
            self.add_ours(row, self.holdfast.backup(name, "full"), tool="holdfast, no extra verify")


class Cluster:
    """A PostgreSQL server with the bars, kept between runs, on a socket and a port of its own."""

    def __init__(self, scale):
        self.folder = ROOT / f"postgres-{scale}"
        self.socket, self.port = self.folder / "socket", 54399
        self.user = "postgres" if os.geteuid() == 0 else None
        versions = sorted(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name))
        self.tools = versions[-1] / "bin"

    def start(self):
        fresh = not (self.folder / "loaded").exists()
        if fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
            for path in (self.folder, self.socket, self.folder / "data"):
                path.mkdir()
                if self.user:
                    shutil.chown(path, self.user, self.user)
            self.run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", self.folder / "data")
        options = f"-c port={self.port} -c listen_addresses= -c unix_socket_directories={self.socket} -c shared_buffers=1GB"
        self.run("pg_ctl", "start", "--wait", "-D", self.folder / "data", "-l", self.folder / "data/server.log", "-o", options)
        return fresh

    def stop(self):
        self.run("pg_ctl", "stop", "--wait", "-m", "fast", "-D", self.folder / "data")

    def run(self, tool, *arguments):
        argv = [str(part) for part in (self.tools / tool, *arguments)]
        finished = subprocess.run(argv, user=self.user, group=self.user, cwd=self.folder, stdout=subprocess.DEVNULL, check=False)
        if finished.returncode != 0:
            raise SystemExit(f"{argv} ended with {finished.returncode}")

    def client(self, tool, *arguments):
        return [self.tools / tool, "-h", self.socket, "-p", str(self.port), "-U", "postgres", *arguments]

    def load(self, scale):
        subprocess.run(self.client("createdb", "bars"), check=True)
        data.load_bars(self.client("psql")[1:] + ["bars"], scale)
        (self.folder / "loaded").touch()

    def dump_to(self, path):
        with open(path, "wb") as file:
            subprocess.run(self.client("pg_dump", "-Fp", "bars"), check=True, stdout=file)


@contextmanager
def cluster(scale):
    server = Cluster(scale)
    fresh = server.start()
    try:
        if fresh:
            server.load(scale)
        yield server
    finally:
        server.stop()


def warm(path):
    """Reads everything once."""
    for file in [path] if path.is_file() else data.tree_files(path):
        with open(file, "rb") as opened:
            while opened.read(1 << 20):
                pass


def find_root(restored, tree):
    """Where in a restored folder the tree begins: tools differ in how much of its path they keep."""
    marker = sorted(os.listdir(tree))
    for folder, folders, _ in os.walk(restored):
        if sorted(os.listdir(folder)) == marker:
            return Path(folder)
        if len(folders) > 1:
            break
    raise SystemExit(f"{restored} does not hold the tree")


def expect_same(expected, restored):
    """A fast restore of wrong data is worth nothing: names, sizes and contents are compared."""
    names = {path.relative_to(expected) for path in data.tree_files(expected)}
    if names != {path.relative_to(restored) for path in data.tree_files(restored)}:
        raise SystemExit(f"{restored} holds other files than {expected}")
    _, different, failed = filecmp.cmpfiles(expected, restored, map(str, names), shallow=False)
    if different or failed:
        raise SystemExit(f"{restored} differs from {expected}: {(different + failed)[:5]}")


def describe_machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = int(next(line for line in open("/proc/meminfo")).split()[1]) / (1 << 20)
    version = subprocess.run([RESTIC, "version"], capture_output=True, text=True, check=True).stdout.strip()
    load = os.getloadavg()
    print(f"{platform.platform()}; {os.cpu_count()} × {model}; {memory:.0f} GiB; {version}")
    print(f"load before: {load[0]:.2f} {load[1]:.2f} {load[2]:.2f}\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="files,sqlite,stream,postgres")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data, to try the script")
    options = parser.parse_args()
    describe_machine()
    table = Table()
    # Removed at the very end: after inodes were freed ext4 looks for others for minutes, at the cost of whoever makes files.
    with tempfile.TemporaryDirectory(prefix="rounds-", dir=ROOT) as rounds:
        for number in range(1, options.rounds + 1):
            for group in options.rows.split(","):
                print(f"round {number} of {options.rounds}: {group}", flush=True)
                folder = Path(rounds) / f"{number}-{group}"
                folder.mkdir()
                with Fleet(folder / "fleet") as fleet:
                    one = Round(table, folder, number, options.scale)
                    one.holdfast = fleet
                    getattr(one, group)()
    table.print(GOALS)


if __name__ == "__main__":
    main()
