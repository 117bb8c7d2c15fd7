"""What very many blobs cost: `many_blobs.py check|prune REPOSITORY` with a repository that the example `many_blobs` made.

check: its structure, all data, and the verification of the newest snapshot.
prune: the repository is changed. Half of its files are forgotten, so that every pack of data is repacked.

Prints wall time, the peak memory of the controller and the size of the packs after each step."""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fleet import PROGRAMS, Fleet


class Steps:
    """Commands against one repository, each measured."""

    def __init__(self, fleet, repository):
        self.fleet, self.repository = fleet, repository
        fleet.write("many.key", "many blobs")
        self.step("open, index built", "repo", "add", "many", "--url", f"file://{repository}", "--key-file", str(fleet.folder / "many.key"))

    def holdfast(self, *arguments):
        return subprocess.run([PROGRAMS / "holdfast", *arguments], env=self.fleet.environment, capture_output=True, text=True, check=False)

    def step(self, what, *arguments):
        begun = time.monotonic()
        finished = self.holdfast(*arguments)
        took = time.monotonic() - begun
        status = Path(f"/proc/{self.fleet.daemons()['controller']}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) >> 10
        stored = sum(path.stat().st_size for path in (self.repository / "data").rglob("*") if path.is_file()) >> 20
        print(f"{what:34} {took:8.1f} s   controller peak {peak:6} MiB   packs {stored:5} MiB   exit {finished.returncode}", flush=True)
        if finished.returncode != 0:
            print(finished.stdout, finished.stderr)

    def snapshots(self):
        """Ids of the snapshots, oldest first: their files may be of the same moment."""
        items = json.loads(self.holdfast("backup", "list", "-o", "json").stdout)["items"]
        return [item["id"] for item in sorted(items, key=lambda item: item["committed_at"])]

    def check(self):
        self.step("check of the structure", "repo", "check", "many", "--wait")
        self.step("check of all data", "repo", "check", "many", "--read-data", "--wait")
        self.step("verification of the snapshot", "backup", "verify", self.snapshots()[-1][:12], "--wait")

    def prune(self):
        self.step("plan, all is needed", "repo", "prune", "many", "--dry-run")
        self.step("forget the larger snapshot", "backup", "delete", self.snapshots()[0][:12], "--confirm", "many", "--reason", "measured")
        self.step("plan, half is needed", "repo", "prune", "many", "--dry-run")
        self.step("plan and prune", "repo", "prune", "many", "--confirm", "many", "--reason", "measured", "--wait")
        self.step("check of all data", "repo", "check", "many", "--read-data", "--wait")


def main():
    what, repository = sys.argv[1], Path(sys.argv[2]).resolve()
    with tempfile.TemporaryDirectory(dir=repository.parent) as folder, Fleet(Path(folder) / "fleet") as fleet:
        {"check": Steps.check, "prune": Steps.prune}[what](Steps(fleet, repository))


main()
