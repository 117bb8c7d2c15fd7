//! The means of the other tests, tried against independent programs: a harness that sees nothing proves nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use holdfast_tests::canary::{self, CanaryWatch};
use holdfast_tests::tree_compare::{allocated_bytes, compare_trees};
use holdfast_tests::{
    PostgresCluster, Process, Restic, S3Server, TreeSpec, assert_same_tree, run, temp_dir, wait,
};

const TREE: TreeSpec = TreeSpec { seed: 7, folders: 12, files: 80, file_bytes_max: 64 * 1024 };

#[test]
fn one_seed_makes_one_tree() {
    let (a, b, c) = (temp_dir("a"), temp_dir("b"), temp_dir("c"));
    let summary = TREE.make(a.path());
    assert_eq!(TREE.make(b.path()), summary);
    assert_same_tree(a.path(), b.path());
    TreeSpec { seed: 8, ..TREE }.make(c.path());
    assert!(!compare_trees(a.path(), c.path()).is_empty());
}

#[test]
fn restic_restores_the_hardest_tree_as_it_was() {
    let dir = temp_dir("restic");
    let (tree, back) = (dir.path().join("tree"), dir.path().join("back"));
    fs::create_dir(&tree).unwrap();
    TREE.make(&tree);
    fs::write(dir.path().join("key"), "a password\n").unwrap();
    let restic = Restic::new(dir.path().join("repository").to_str().unwrap(), dir.path().join("key"));
    restic.init();
    restic.backup(&tree);
    restic.restore("latest", &back);
    assert_same_tree(&tree, &back);
    restic.check_all_data();
    assert_eq!(restic.snapshots().len(), 1);
}

#[test]
fn every_kind_of_difference_is_seen() {
    let (a, b) = (temp_dir("a"), temp_dir("b"));
    type Change = fn(&std::path::Path);
    let changes: &[(&str, Change)] = &[
        ("content differs at byte 3", |root| fs::write(root.join("file"), "samE length").unwrap()),
        ("size", |root| fs::write(root.join("file"), "longer than before").unwrap()),
        ("mode", |root| fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o600)).unwrap()),
        ("attributes", |root| xattr::set(root.join("file"), "user.x", b"y").unwrap()),
        ("missing", |root| fs::remove_file(root.join("file")).unwrap()),
        ("not expected", |root| fs::write(root.join("other"), "").unwrap()),
        ("kind", |root| {
            fs::remove_file(root.join("file")).unwrap();
            fs::create_dir(root.join("file")).unwrap();
        }),
        ("hard link", |root| {
            fs::remove_file(root.join("twin")).unwrap();
            fs::write(root.join("twin"), "same length").unwrap();
        }),
        ("target", |root| {
            fs::remove_file(root.join("link")).unwrap();
            std::os::unix::fs::symlink("elsewhere", root.join("link")).unwrap();
        }),
        ("modified", |root| {
            let file = fs::File::options().write(true).open(root.join("file")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + Duration::new(1, 1)).unwrap();
        }),
    ];
    for (what, change) in changes {
        for root in [a.path(), b.path()] {
            let _ = fs::remove_dir_all(root);
            fs::create_dir(root).unwrap();
            fs::write(root.join("file"), "same length").unwrap();
            fs::hard_link(root.join("file"), root.join("twin")).unwrap();
            std::os::unix::fs::symlink("file", root.join("link")).unwrap();
            for name in ["file", "link"] {
                let at = rustix::fs::Timespec { tv_sec: 5, tv_nsec: 5 };
                let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(rustix::fs::CWD, root.join(name), &times, flags).unwrap();
            }
        }
        assert_eq!(compare_trees(a.path(), b.path()), []);
        change(b.path());
        if what.starts_with("content") {
            let file = fs::File::options().write(true).open(b.path().join("file")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + Duration::new(5, 5)).unwrap();
        }
        let found = compare_trees(a.path(), b.path());
        assert!(found.iter().any(|difference| difference.what.starts_with(what)), "{what}: {found:?}");
    }
}

#[test]
fn holes_take_no_space() {
    let dir = temp_dir("sparse");
    TreeSpec { seed: 1, folders: 0, files: 0, file_bytes_max: 0 }.make(dir.path());
    let bytes = fs::metadata(dir.path().join("sparse")).unwrap().len();
    assert_eq!(bytes, 3 << 20);
    assert!(allocated_bytes(dir.path()) < 1 << 20);
}

#[test]
fn a_bucket_takes_a_repository() {
    let server = S3Server::start("vault");
    let dir = temp_dir("s3-restic");
    fs::write(dir.path().join("key"), "a password\n").unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    let restic = Restic::new(server.restic_url("some/prefix"), dir.path().join("key"))
        .with_env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY)
        .with_env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY)
        .with_env("AWS_DEFAULT_REGION", S3Server::REGION);
    restic.init();
    restic.backup(dir.path());
    restic.check_all_data();
}

#[test]
fn a_cluster_starts_dies_and_starts_again() {
    let mut cluster = PostgresCluster::start();
    cluster.psql("postgres", "create table bars (at int); insert into bars values (1), (2); checkpoint");
    cluster.stop_immediately();
    assert!(!cluster.try_psql("postgres", "select 1").status.success());
    cluster.restart();
    assert_eq!(cluster.psql("postgres", "select count(*) from bars"), "2");
    let mut dump = cluster.client("pg_dump");
    assert!(run(dump.args(["postgres"]), wait::PATIENCE).expect_success().stdout.contains("CREATE TABLE"));
}

#[test]
fn a_canary_is_seen_in_arguments_environment_and_files() {
    let (first, second) = ("canary-in-argv-4711", "canary-in-environ-4712");
    let dir = temp_dir("canary");
    let watch = CanaryWatch::start(&[first, second], &[]);
    let mut sleep = Command::new("sleep");
    let _in_environ = Process::start("environ", sleep.args(["600"]).env("X", second), dir.path());
    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 600; :", first]);
    let _in_argv = Process::start("argv", &mut shell, dir.path());
    // Both live until they are dropped.
    watch.look();
    let places: Vec<_> =
        watch.finish().into_iter().map(|sighting| (sighting.place, sighting.program)).collect();
    assert!(places.contains(&("argv", "sh".to_owned())), "{places:?}");
    assert!(places.contains(&("environ", "sleep".to_owned())), "{places:?}");

    fs::write(dir.path().join("log"), format!("before {first} after")).unwrap();
    assert_eq!(canary::files_with(dir.path(), &[first]), [dir.path().join("log")]);
}

#[test]
#[should_panic(expected = "was not done after")]
fn a_program_past_its_deadline_is_killed() {
    drop(run(Command::new("sleep").arg("60"), Duration::from_millis(50)));
}
