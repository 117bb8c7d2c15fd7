//! What `deploy/` ships is right as it is: examples parse, units are accepted, the installer installs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_agent::agent::stop_limit;
use holdfast_agent::config::AgentConfig;
use holdfast_controller::{ControllerConfig, STOP_GRACE};
use holdfast_model::fleet::{Fleet, FleetFile, read_fleet};
use holdfast_tests::wait::PATIENCE;
use holdfast_tests::{run, temp_dir, workspace};

const UNITS: &[&str] = &["holdfast-controller.service", "holdfast-agent.service"];

fn deploy() -> PathBuf {
    workspace::root().join("deploy")
}

#[test]
fn the_example_fleet_is_valid() {
    let mut files: Vec<FleetFile> = fs::read_dir(deploy().join("fleet"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| FleetFile {
            name: entry.file_name().into_string().unwrap(),
            text: fs::read_to_string(entry.path()).unwrap(),
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let fleet = read_fleet(&files).unwrap_or_else(|errors| panic!("{errors:#?}"));
    let unresolved = fleet.check_references(&Fleet::default());
    assert!(unresolved.is_empty(), "{unresolved:#?}");
    let engines: BTreeSet<_> = fleet.sources.values().map(|source| source.engine.kind()).collect();
    assert_eq!(engines.len(), 3, "the example shows every engine");
}

#[test]
fn the_example_of_the_controller_is_valid() {
    let config = ControllerConfig::load(&deploy().join("controller.yaml"), []).unwrap();
    assert!(config.data_dir.starts_with("/var/lib/holdfast"), "the unit can write nowhere else");
}

#[test]
fn the_example_of_the_agent_is_valid() {
    let text = fs::read_to_string(deploy().join("agent.yaml")).unwrap();
    let config = AgentConfig::read("agent.yaml", &text, []).unwrap();
    assert!(config.data_dir.starts_with("/var/lib/holdfast-agent"), "the unit can write nowhere else");
    // The example fleet names these.
    assert_eq!(config.hooks.len(), 2);
}

/// The value of a setting of a unit that is given in seconds.
fn seconds_in_unit(name: &str, setting: &str) -> Duration {
    let text = fs::read_to_string(deploy().join("systemd").join(name)).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    let seconds = value.and_then(|value| value.strip_suffix('s')?.parse().ok());
    Duration::from_secs(seconds.unwrap_or_else(|| panic!("{name} has no {setting} in seconds")))
}

#[test]
fn units_give_programs_the_time_that_they_take_to_stop() {
    let text = fs::read_to_string(deploy().join("agent.yaml")).unwrap();
    let agent = AgentConfig::read("agent.yaml", &text, []).unwrap();
    let limits = [STOP_GRACE, stop_limit(agent.drain_grace)];
    for (name, taken) in UNITS.iter().zip(limits) {
        let given = seconds_in_unit(name, "TimeoutStopSec");
        assert!(given > taken, "{name} is killed after {given:?}, it may take {taken:?} to stop");
    }
}

/// A unit with its program replaced by one that exists on every machine.
fn unit_that_can_be_verified(name: &str, folder: &Path) -> PathBuf {
    let text = fs::read_to_string(deploy().join("systemd").join(name)).unwrap();
    let text = text.replace("ExecStart=/usr/local/bin/", "ExecStart=/bin/true ");
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn units_are_accepted_by_systemd() {
    let folder = temp_dir("units");
    for name in UNITS {
        let path = unit_that_can_be_verified(name, folder.path());
        let mut verify = Command::new("systemd-analyze");
        let finished = run(verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&path), PATIENCE);
        assert!(finished.status.success() && finished.stderr.is_empty(), "{name}: {}", finished.stderr);
    }
}

#[test]
fn units_expose_little() {
    let folder = temp_dir("units");
    for name in UNITS {
        let path = unit_that_can_be_verified(name, folder.path());
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=yes", "--no-pager", "--threshold=25"]).arg(&path);
        let finished = run(&mut security, PATIENCE);
        assert!(finished.status.success(), "{name} is exposed above 2.5 of 10:\n{}", finished.stdout);
    }
}

#[test]
fn installing_twice_keeps_configuration_and_replaces_programs() {
    let folder = temp_dir("install");
    let (programs, root) = (folder.path().join("programs"), folder.path().join("root"));
    fs::create_dir(&programs).unwrap();
    let build = |content: &str| {
        for name in ["holdfast", "holdfast-agent", "holdfast-controller"] {
            fs::write(programs.join(name), content).unwrap();
            fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
    };
    let install = || {
        let mut command = Command::new(deploy().join("install.sh"));
        command.arg("--root").arg(&root).arg("--from").arg(&programs).args(["--prefix", "/opt/holdfast"]);
        drop(run(command.args(["controller", "agent", "cli"]), PATIENCE).expect_success());
    };
    build("first");
    install();
    let configuration = root.join("etc/holdfast/agent.yaml");
    assert_eq!(fs::metadata(&configuration).unwrap().permissions().mode() & 0o777, 0o640);
    fs::write(&configuration, "edited").unwrap();
    build("second");
    install();
    assert_eq!(fs::read_to_string(&configuration).unwrap(), "edited");
    assert_eq!(fs::read_to_string(root.join("opt/holdfast/bin/holdfast")).unwrap(), "second");
    let unit = fs::read_to_string(root.join("etc/systemd/system/holdfast-agent.service")).unwrap();
    assert!(unit.contains("ExecStart=/opt/holdfast/bin/holdfast-agent "), "{unit}");
}

#[test]
fn the_installer_refuses_what_it_does_not_know() {
    for arguments in [&["--prefxi", "/x", "agent"][..], &["--prefix", "relative", "agent"], &["server"], &[]]
    {
        drop(run(Command::new(deploy().join("install.sh")).args(arguments), PATIENCE).expect_code(2));
    }
}
