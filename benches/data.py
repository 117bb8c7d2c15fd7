"""The data of the comparison: made from a seed once, kept, and changed by the same rules in every round."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

TREE_FILES = 64_000
TREE_BYTES = 1_700_000_000
SQLITE_BYTES = 550_000_000
DUMP_BYTES = 1_000_000_000
SEED = 20261121

SYMBOLS = [f"{600000 + n * 7 % 4000:06d}.SH" for n in range(800)]
MINUTE = 60


def made(path, make):
    """Makes something once: in a folder beside it, renamed when complete."""
    if path.exists():
        return path
    partial = path.with_name(path.name + ".partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    elif partial.exists():
        partial.unlink()
    start = time.monotonic()
    print(f"making {path} ...", file=sys.stderr, flush=True)
    make(partial)
    partial.rename(path)
    print(f"made {path} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return path


# --- a tree of real files


def tree_sources():
    """Folders of a Rust machine with many real files, in the order in which they are taken."""
    home = Path.home()
    sysroot = Path(subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip())
    registry = home / ".cargo/registry/src"
    return [Path("/usr/include"), registry, sysroot / "bin", sysroot / "lib", sysroot / "share"]


def make_tree(target, scale):
    """Copies files until there are enough of them or enough bytes; the order does not depend on the file system."""
    files, size = 0, 0
    for number, source in enumerate(tree_sources()):
        for folder, folders, names in os.walk(source):
            folders.sort()
            into = target / f"{number}-{source.name}" / Path(folder).relative_to(source)
            for name in sorted(names):
                path = Path(folder) / name
                if path.is_symlink() or not path.is_file():
                    continue
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, into / name)
                files += 1
                size += path.stat().st_size
                if files >= TREE_FILES * scale or size >= TREE_BYTES * scale:
                    return


def tree_files(tree):
    """Every file of a tree, in an order that does not depend on the file system."""
    files = []
    for folder, folders, names in os.walk(tree):
        folders.sort()
        files.extend(Path(folder) / name for name in sorted(names))
    return files


def change_tree(tree, seed):
    """Overwrites 64 bytes in one file of a hundred; one in ten of these also grows by 4 KiB."""
    rng = random.Random(seed)
    files = tree_files(tree)
    for number, path in enumerate(rng.sample(files, max(1, len(files) // 100))):
        size = path.stat().st_size
        path.chmod(path.stat().st_mode | 0o200)
        with open(path, "r+b") as file:
            file.seek(rng.randrange(max(1, size - 64)))
            file.write(rng.randbytes(min(64, max(1, size))))
            if number % 10 == 0:
                file.seek(0, os.SEEK_END)
                file.write(rng.randbytes(4096))


def damage_tree(tree, seed):
    """What a delta restore repairs: five files with wrong bytes, one that is gone. Times stay, as after bit rot."""
    rng = random.Random(seed)
    chosen = rng.sample([path for path in tree_files(tree) if path.stat().st_size > 4096], 6)
    for path in chosen[:5]:
        stat = path.stat()
        path.chmod(stat.st_mode | 0o200)
        with open(path, "r+b") as file:
            file.seek(rng.randrange(stat.st_size - 64))
            file.write(rng.randbytes(64))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    chosen[5].unlink()


# --- bars of a stock exchange


def bars(seed):
    """Open, high, low, close, volume and turnover of one minute after the other, symbol by symbol, without an end."""
    rng = random.Random(seed)
    day = 0
    while True:
        for symbol in SYMBOLS:
            price = 5 + abs(hash_of(symbol)) % 20000 / 100 * (1 + rng.gauss(0, 0.02))
            at = 1_577_923_200 + day * 86_400
            for _ in range(240):
                at += MINUTE
                move = rng.gauss(0, 0.0008) * price
                close = max(0.01, price + move)
                spread = abs(rng.gauss(0, 0.0004)) * price
                high, low = max(price, close) + spread, max(0.01, min(price, close) - spread)
                volume = int(rng.expovariate(1 / 4000)) * 100
                yield symbol, at, round(price, 2), round(high, 2), round(low, 2), round(close, 2), volume, round(volume * close, 2)
                price = close
        day += 1


def hash_of(text):
    """A number from a text, the same in every process."""
    value = 0
    for byte in text.encode():
        value = (value * 131 + byte) % 1_000_003
    return value


def make_sqlite(target, scale):
    database = sqlite3.connect(target, isolation_level=None)
    database.executescript(
        """
        pragma journal_mode = wal; pragma synchronous = off; pragma page_size = 4096;
        create table bars (id integer primary key, symbol text not null, at integer not null, open real, high real,
                           low real, close real, volume integer, turnover real);
        create index bars_by_symbol on bars (symbol, at);
        create table orders (id integer primary key, symbol text not null, at integer, amount integer, state text);
        """
    )
    source = bars(SEED)
    size = 0
    while size < SQLITE_BYTES * scale:
        database.execute("begin")
        rows = (next(source) for _ in range(50_000))
        database.executemany(
            "insert into bars (symbol, at, open, high, low, close, volume, turnover) values (?, ?, ?, ?, ?, ?, ?, ?)", rows
        )
        database.execute("commit")
        size = database.execute("select page_count * page_size from pragma_page_count, pragma_page_size").fetchone()[0]
    database.execute("pragma wal_checkpoint(truncate)")
    database.close()


def write_sqlite(path):
    """A writer at work, 50 transactions a second, until it is ended."""
    database = sqlite3.connect(path, isolation_level=None, timeout=30)
    rng = random.Random()
    while True:
        database.execute("begin immediate")
        symbol = rng.choice(SYMBOLS)
        database.execute("insert into orders (symbol, at, amount, state) values (?, ?, ?, 'new')", (symbol, int(time.time()), rng.randrange(1, 900)))
        database.execute("update orders set state = 'done' where id = (select max(id) from orders where symbol = ?)", (symbol,))
        database.execute("commit")
        time.sleep(0.02)


BARS_SQL = """
create table bars (symbol text not null, at timestamptz not null, open numeric(12,2), high numeric(12,2),
                   low numeric(12,2), close numeric(12,2), volume bigint, turnover numeric(18,2));
"""


def load_bars(connection_arguments, scale):
    """Fills a PostgreSQL database, by COPY, until its plain dump has the size wanted."""
    base = ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *connection_arguments]
    subprocess.run([*base, "--command", BARS_SQL], check=True)
    copy = subprocess.Popen([*base, "--command", "copy bars from stdin"], stdin=subprocess.PIPE)
    source, written = bars(SEED + 1), 0
    while written < DUMP_BYTES * scale:
        lines = []
        for _ in range(20_000):
            symbol, at, *values = next(source)
            lines.append(f"{symbol}\t{time.strftime('%Y-%m-%d %H:%M:%S+00', time.gmtime(at))}\t" + "\t".join(map(str, values)))
        block = ("\n".join(lines) + "\n").encode()
        copy.stdin.write(block)
        written += len(block)
    copy.stdin.close()
    if copy.wait() != 0:
        raise SystemExit("the bars could not be loaded")
    subprocess.run([*base, "--command", "alter table bars add primary key (symbol, at)", "--command", "vacuum analyze bars"], check=True)


if __name__ == "__main__" and sys.argv[1] == "write-sqlite":
    write_sqlite(sys.argv[2])
