"""What a check and a verification of very many blobs cost: `many_blobs.py REPOSITORY` with a repository that the example
`many_blobs` made. Prints wall time and the peak memory of the controller after each step."""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fleet import PROGRAMS, Fleet


def peak_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def main():
    repository = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(dir=repository.parent) as folder, Fleet(Path(folder) / "fleet") as fleet:
        fleet.write("many.key", "many blobs")

        def step(what, *arguments):
            begun = time.monotonic()
            finished = subprocess.run([PROGRAMS / "holdfast", *arguments], env=fleet.environment, capture_output=True, text=True, check=False)
            took, peak = time.monotonic() - begun, peak_mib(fleet.daemons()["controller"])
            print(f"{what:34} {took:8.1f} s   controller peak {peak:6.0f} MiB   exit {finished.returncode}", flush=True)
            if finished.returncode != 0:
                print(finished.stdout, finished.stderr)
            return finished.stdout

        step("open, index built", "repo", "add", "many", "--url", f"file://{repository}", "--key-file", str(fleet.folder / "many.key"))
        snapshot = max((repository / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime).name
        step("check of the structure", "repo", "check", "many", "--wait")
        step("check of all data", "repo", "check", "many", "--read-data", "--wait")
        step("verification of the snapshot", "backup", "verify", snapshot[:12], "--wait")


main()
