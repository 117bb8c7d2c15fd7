//! The shape of the house: who may know whom, and the form of the source files.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_tests::workspace::{Package, files_ending, packages, relative, root};

/// A file that outgrows this wants to become a folder.
const FILE_LINES_MAX: usize = 600;

/// Which of our packages each package may use. Domain and runtime stand on nothing of ours; an engine knows no
/// repository and no wire; the controller knows no engine.
const ARROWS: &[(&str, &[&str])] = &[
    ("holdfast-model", &[]),
    ("holdfast-runtime", &[]),
    ("holdfast-proto", &["holdfast-model"]),
    ("holdfast-repository", &["holdfast-model", "holdfast-runtime"]),
    ("holdfast-host", &["holdfast-model"]),
    ("holdfast-engines", &["holdfast-fuzz", "holdfast-host", "holdfast-model", "holdfast-runtime"]),
    (
        "holdfast-controller",
        &[
            "holdfast-fuzz",
            "holdfast-host",
            "holdfast-model",
            "holdfast-proto",
            "holdfast-repository",
            "holdfast-runtime",
        ],
    ),
    // Stands on nothing of ours; its own tests do.
    ("holdfast-fuzz", &["holdfast-model", "holdfast-repository"]),
    (
        "holdfast-agent",
        &[
            "holdfast-engines",
            "holdfast-host",
            "holdfast-model",
            "holdfast-proto",
            "holdfast-repository",
            "holdfast-runtime",
        ],
    ),
    (
        "holdfast",
        &["holdfast-agent", "holdfast-controller", "holdfast-model", "holdfast-proto", "holdfast-runtime"],
    ),
    (
        "holdfast-tests",
        &[
            "holdfast-agent",
            "holdfast-controller",
            "holdfast-engines",
            "holdfast-model",
            "holdfast-proto",
            "holdfast-repository",
            "holdfast-runtime",
        ],
    ),
];

/// Libraries that only one part of a package may name: the crate, where it may be named, and where it may not.
const CONFINED: &[(&str, &str, &str)] = &[
    ("sled", "controller/src/store", "controller/src"),
    ("opendal", "crates/repository/src/storage", "crates/repository/src"),
    ("reqwest", "controller/src/notify", "controller/src"),
    ("lettre", "controller/src/notify", "controller/src"),
    ("minijinja", "controller/src/notify", "controller/src"),
];

#[test]
fn packages_import_only_downwards() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(package, uses)| (*package, uses.iter().copied().collect())).collect();
    assert_eq!(
        ours,
        allowed.keys().copied().collect(),
        "a package is missing from the table, or from the workspace"
    );
    for package in &packages {
        let uses = package.uses(&ours);
        // Its tests may use a package's own features for tests.
        let refused: Vec<_> =
            uses.difference(&allowed[package.name.as_str()]).filter(|used| **used != package.name).collect();
        assert!(refused.is_empty(), "{} must not use {refused:?}", package.name);
    }
}

#[test]
fn every_package_inherits_the_lints_of_the_workspace() {
    for Package { name, manifest_path, .. } in packages() {
        let manifest = std::fs::read_to_string(&manifest_path).unwrap();
        let mut lines = manifest.lines().skip_while(|line| line.trim() != "[lints]").skip(1);
        assert_eq!(
            lines.next().map(str::trim),
            Some("workspace = true"),
            "{name} has lints of its own, or none"
        );
    }
}

#[test]
fn no_module_is_called_mod_rs() {
    let offenders: Vec<_> = files_ending(".rs").into_iter().filter(|path| path.ends_with("mod.rs")).collect();
    assert!(offenders.is_empty(), "{offenders:?}");
}

#[test]
fn no_file_outgrows_its_limit() {
    for path in files_ending(".rs") {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines, more than {FILE_LINES_MAX}", relative(&path));
    }
}

#[test]
fn libraries_for_one_module_are_named_nowhere_else() {
    for (library, home, package) in CONFINED {
        let path_use = format!("{library}::");
        for path in files_ending(".rs") {
            let place = relative(&path);
            if !place.starts_with(package) || place.starts_with(home) {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let named =
                text.lines().find(|line| !line.trim_start().starts_with("//") && line.contains(&path_use));
            assert!(
                named.is_none(),
                "{place} names {library}, which belongs to {home}: {}",
                named.unwrap_or_default()
            );
        }
    }
}

/// Where objects of a repository are removed or renamed: snapshots that are forgotten, what is pruned, locks of our own.
const DELETING: &[&str] = &[
    "crates/repository/src/forget.rs",
    "crates/repository/src/lock.rs",
    "crates/repository/src/prune_apply.rs",
    "crates/repository/src/storage/",
];

#[test]
fn objects_are_deleted_in_few_places() {
    let mut deleting: BTreeSet<&&str> = BTreeSet::new();
    for path in files_ending(".rs") {
        let place = relative(&path);
        if !place.contains("/src/") || place.contains("/tests") || place.starts_with("tests/") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        // Whoever has a storage has it as `store`, or asks for `store()`.
        let calls = ["store.delete(", "store().delete(", "store.rename(", "store().rename("];
        if calls.iter().any(|call| text.contains(call)) {
            let known = DELETING.iter().find(|known| place.starts_with(**known));
            assert!(known.is_some(), "{place} deletes objects, which only {DELETING:?} may");
            deleting.extend(known);
        }
    }
    assert_eq!(deleting.len(), DELETING.len(), "only {deleting:?} still delete");
}

#[test]
fn every_package_has_its_folder() {
    for Package { name, manifest_path, .. } in packages() {
        let folder = relative(manifest_path.parent().unwrap());
        let expected = match name.as_str() {
            "holdfast" => "cli".to_owned(),
            other => other.trim_start_matches("holdfast-").to_owned(),
        };
        assert!(folder == expected || folder == format!("crates/{expected}"), "{name} lies in {folder}");
    }
    assert!(root().join("ARCHITECTURE.md").is_file());
}
