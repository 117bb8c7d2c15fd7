use std::os::unix::fs::symlink;

use holdfast_runtime::SystemClock;

use super::*;

fn limits(entries_max: u64) -> Limits {
    let clock = SystemClock::shared();
    let deadline = clock.monotonic() + Duration::from_secs(60);
    Limits { entries_max, deadline, clock, cancel: CancellationToken::new() }
}

fn allowing(folders: &[&Path]) -> AllowList {
    let mut allow = AllowList::default();
    allow.sources.paths = Some(folders.iter().map(|folder| (*folder).to_owned()).collect());
    allow
}

fn sqlite(path: &Path) {
    let mut bytes = b"SQLite format 3\0".to_vec();
    bytes.resize(4096, 0);
    std::fs::write(path, bytes).unwrap();
}

/// A folder with what is to be found, and beside it what must not be.
fn host() -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    let at = |path: &str| host.path().join(path);
    for folder in
        ["proc/net", "srv/app", "srv/pg/global", "srv/pg/base", "srv/old/global", "srv/my", "secret"]
    {
        std::fs::create_dir_all(at(folder)).unwrap();
    }
    sqlite(&at("srv/app/shop.db"));
    sqlite(&at("srv/pg/base/inside.db"));
    sqlite(&at("secret/hidden.db"));
    std::fs::write(at("srv/app/text.db"), "SQLite format 4, or so").unwrap();
    std::fs::write(at("srv/app/short.db"), "SQLite format 3\0").unwrap();
    symlink(at("secret"), at("srv/link")).unwrap();
    symlink(at("secret/hidden.db"), at("srv/app/linked.db")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("srv/app/pipe.db"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for folder in ["pg", "old"] {
        std::fs::write(at(&format!("srv/{folder}/PG_VERSION")), "15\n").unwrap();
    }
    std::fs::write(at("srv/pg/postmaster.pid"), "1\n/srv/pg\n1700000000\n5440\n/run/pg\n*\n").unwrap();
    std::fs::write(at("srv/my/ibdata1"), "").unwrap();
    let head = "  sl  local_address rem_address   st tx_queue rx_queue\n";
    let line =
        |address: &str, state: &str| format!("   0: {address} 00000000:0000 {state} 00000000:00000000\n");
    let tcp =
        [head, &line("0100007F:18EB", "0A"), &line("0100007F:1538", "01"), &line("00000000:0016", "0A")];
    std::fs::write(at("proc/net/tcp"), tcp.concat()).unwrap();
    let tcp6 = [head, &line("00000000000000000000000000000000:0CEA", "0A")].concat();
    std::fs::write(at("proc/net/tcp6"), tcp6).unwrap();
    let unix = "Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 1001 /run/pg/.s.PGSQL.5440
0000000000000000: 00000003 00000000 00000000 0001 03 1002 /run/pg/.s.PGSQL.5441
0000000000000000: 00000002 00000000 00010000 0001 01 1003 /run/sshd.sock
0000000000000000: 00000002 00000000 00010000 0001 01 1004 @/abstract/.s.PGSQL.x
";
    std::fs::write(at("proc/net/unix"), unix).unwrap();
    host
}

fn described(discovery: &Discovery, host: &Path) -> Vec<String> {
    let within = format!("{}/", host.display());
    let line = |one: &Found| format!("{} {}", one.kind.as_str(), one.place.describe().replace(&within, ""));
    discovery.found.iter().map(line).collect()
}

#[test]
fn servers_files_and_folders_are_seen_once_and_links_lead_nowhere() {
    let host = host();
    let srv = host.path().join("srv");
    let seen = look_within(&allowing(&[&srv]), &host.path().join("proc"), &limits(1000));
    assert_eq!(
        described(&seen, host.path()),
        [
            "postgres port 5440",
            "mariadb port 3306",
            "redis port 6379",
            "postgres srv/old (does not run)",
            "sqlite srv/app/shop.db",
        ]
    );
    assert_eq!(seen.unseen, Vec::<String>::new());
    // What is itself a link is not entered, and that is said.
    for link in ["link", "app/linked.db", "app/shop.db/x"].map(|name| srv.join(name)) {
        let linked = look_within(&allowing(&[&link]), &host.path().join("proc"), &limits(1000));
        assert!(!described(&linked, host.path()).iter().any(|line| line.contains("hidden")), "{linked:?}");
        let why = match link.ends_with("x") {
            false => "it is a link, name what it leads to",
            true => "Not a directory (os error 20)",
        };
        assert_eq!(linked.unseen, [format!("{}: {why}", link.display())]);
    }
    let file = look_within(&allowing(&[&srv.join("app/shop.db")]), &host.path().join("proc"), &limits(1000));
    assert!(described(&file, host.path()).contains(&"sqlite srv/app/shop.db".to_owned()), "{file:?}");
}

#[test]
fn without_folders_no_file_is_looked_at_and_it_is_said() {
    let host = host();
    let seen = look_within(&AllowList::default(), &host.path().join("proc"), &limits(1000));
    assert_eq!(described(&seen, host.path()), ["postgres port 5440", "mariadb port 3306", "redis port 6379"]);
    assert_eq!(seen.unseen, ["files: `allow.sources.paths` of the agent's configuration names no folder"]);
}

#[test]
fn a_walk_ends_at_its_limits_and_says_so() {
    let host = host();
    let srv = host.path().join("srv");
    let few = look_within(&allowing(&[&srv]), &host.path().join("proc"), &limits(3));
    assert!(few.unseen.iter().any(|line| line.starts_with("what comes after 4 files")), "{few:?}");
    let late = limits(1000);
    late.cancel.cancel();
    let seen = look_within(&allowing(&[&srv]), &host.path().join("proc"), &late);
    assert!(seen.unseen.iter().any(|line| line.starts_with("what comes after")), "{seen:?}");
    assert!(described(&seen, host.path()).iter().all(|line| line.contains("port")), "{seen:?}");
}

#[test]
fn tables_that_make_no_sense_are_no_servers() {
    for text in ["", "x", "a\nb", "h\n 0: zz 0 0A\n", "h\n0: 0:FFFFF 0 0A", "h\n0: 1 2", "h\n: / \u{fffd}"] {
        assert_eq!(ports(text), Vec::<u16>::new(), "{text:?}");
        assert_eq!(sockets(text).count(), 0, "{text:?}");
    }
    let odd =
        "h\n0: 2 0 00010000 1 1 1 /run/\u{1b}[31m/.s.PGSQL.5432\n0: 2 0 00010000 1 1 1 /x/.s.PGSQL.99999\n";
    assert_eq!(sockets(odd).count(), 0);
}
