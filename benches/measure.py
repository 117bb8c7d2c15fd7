"""Wall time, CPU seconds and peak memory of a command, and of the daemons that work for it."""

import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Sample:
    """One measured step."""

    wall_s: float
    cpu_s: float
    rss_mib: dict = field(default_factory=dict)
    foreign_cores: float = 0.0
    size_mib: float | None = None


def daemon_cpu_s(pid):
    """CPU seconds of a process with its threads and the children it has waited for."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / TICKS


def forget_peak(pid):
    """Begins the peak of resident memory anew."""
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def peak_rss_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def machine_busy_s():
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / TICKS


def measure(name, argv, daemons=None, env=None, stdin=None, cwd=None, shell=False):
    """Runs a command to its end; stops everything when it fails. `daemons` maps names to process ids."""
    daemons = daemons or {}
    os.sync()
    for pid in daemons.values():
        forget_peak(pid)
    before = {pid: daemon_cpu_s(pid) for pid in daemons.values()}
    busy, start = machine_busy_s(), time.monotonic()
    child = subprocess.Popen(argv, env=env, stdin=stdin, cwd=cwd, shell=shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall, busy = time.monotonic() - start, machine_busy_s() - busy
    if child.returncode != 0:
        raise SystemExit(f"{name}: {argv} ended with {child.returncode}\n{output.decode(errors='replace')}")
    cpu = usage.ru_utime + usage.ru_stime + sum(daemon_cpu_s(pid) - before[pid] for pid in daemons.values())
    rss = {daemon: peak_rss_mib(pid) for daemon, pid in daemons.items()} or {name: usage.ru_maxrss / 1024}
    return Sample(wall, cpu, rss, max(0.0, (busy - cpu) / wall))


def folder_mib(path):
    total = 0
    for folder, _, names in os.walk(path):
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return total / (1 << 20)


class Table:
    """The samples of all rows, and what they say."""

    def __init__(self):
        self.rows = {}

    def add(self, row, tool, sample):
        self.rows.setdefault(row, {}).setdefault(tool, []).append(sample)
        rss = ", ".join(f"{name} {value:.0f} MiB" for name, value in sample.rss_mib.items())
        print(
            f"  {row:<24} {tool:<22} {sample.wall_s:8.2f} s {sample.cpu_s:8.2f} CPU s  {rss}"
            f"  (foreign {sample.foreign_cores:.2f} cores)",
            flush=True,
        )

    def print(self, goals):
        print("\n| row | tool | n | wall s median (min–max) | CPU s | peak RSS MiB | repository MiB | foreign cores |")
        print("|---|---|---|---|---|---|---|---|")
        for row, tools in self.rows.items():
            for tool, samples in tools.items():
                walls = [sample.wall_s for sample in samples]
                peaks = {}
                for sample in samples:
                    for name, value in sample.rss_mib.items():
                        peaks[name] = max(peaks.get(name, 0), value)
                sizes = [sample.size_mib for sample in samples if sample.size_mib is not None]
                print(
                    f"| {row} | {tool} | {len(walls)} | {statistics.median(walls):.2f} ({min(walls):.2f}–{max(walls):.2f}) "
                    f"| {statistics.median(sample.cpu_s for sample in samples):.2f} "
                    f"| {', '.join(f'{name} {value:.0f}' for name, value in peaks.items())} "
                    f"| {f'{statistics.median(sizes):.0f}' if sizes else ''} "
                    f"| {max(sample.foreign_cores for sample in samples):.2f} |"
                )
        self.print_goals(goals)

    def wall(self, row, tool):
        samples = self.rows.get(row, {}).get(tool)
        return statistics.median(sample.wall_s for sample in samples) if samples else None

    def print_goals(self, goals):
        print("\n| row | goal | reached | verdict |\n|---|---|---|---|")
        for row, (peer, wanted) in goals.items():
            ours, theirs = self.wall(row, "holdfast"), self.wall(row, peer)
            if ours is None or theirs is None:
                continue
            ratio = theirs / ours
            print(f"| {row} | {wanted:.2f}× the speed of {peer} | {ratio:.2f}× | {'met' if ratio >= wanted else 'MISSED'} |")
        self.print_size_goal("files full", 1.03)
        self.print_memory_goal(256)

    def print_size_goal(self, row, wanted):
        sizes = {}
        for tool, samples in self.rows.get(row, {}).items():
            known = [sample.size_mib for sample in samples if sample.size_mib is not None]
            if known:
                sizes[tool] = statistics.median(known)
        if {"holdfast", "restic"} <= sizes.keys():
            ratio = sizes["holdfast"] / sizes["restic"]
            print(f"| {row}: size | at most {wanted:.2f}× of restic's | {ratio:.3f}× | {'met' if ratio <= wanted else 'MISSED'} |")

    def print_memory_goal(self, wanted_mib):
        peaks = {}
        for tools in self.rows.values():
            for sample in tools.get("holdfast", []):
                for name, value in sample.rss_mib.items():
                    peaks[name] = max(peaks.get(name, 0), value)
        for name, value in peaks.items():
            if name in ("agent", "controller"):
                print(f"| memory of the {name} | at most {wanted_mib} MiB | {value:.0f} MiB | {'met' if value <= wanted_mib else 'MISSED'} |")
