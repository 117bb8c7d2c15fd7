//! One trace through all programs, as an independent collector sees it.

use std::path::Path;
use std::process::Command;

use holdfast_tests::fleet::REPOSITORY_PASSWORD;
use holdfast_tests::otlp::{CollectedSpan, OtlpSink};
use holdfast_tests::wait::{PATIENCE, until, until_async};
use holdfast_tests::{Process, TreeSpec, run, temp_dir, test_port, workspace};

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A program of ours that exports what it has as soon as it has it.
fn program(name: &str) -> Command {
    let mut command = Command::new(workspace::binary(name));
    command.env("OTEL_BSP_SCHEDULE_DELAY", "50");
    command
}

fn holdfast(dir: &Path, port: u16) -> Command {
    let mut command = program("holdfast");
    command.env("HOME", dir).env("XDG_CONFIG_HOME", dir);
    command.arg("--server").arg(format!("https://127.0.0.1:{port}"));
    command.arg("--token-file").arg(dir.join("token")).arg("--ca-file").arg(dir.join("ca.pem"));
    command
}

/// Starts a controller and an agent that send their traces to a sink, and declares a tree.
async fn start(dir: &Path, port: u16, sink: &OtlpSink) -> (Process, Process) {
    let (here, endpoint) = (dir.display(), sink.endpoint());
    write(
        &dir.join("controller.yaml"),
        &format!(
            "api: holdfast/v1\ngrpc: {{ listen: \"127.0.0.1:{port}\" }}\ndata_dir: {here}/controller\n\
             telemetry: {{ filter: warn, sampled_share: 0.0, otlp: {{ endpoint: \"{endpoint}\" }} }}\n"
        ),
    );
    write(
        &dir.join("agent.yaml"),
        &format!(
            "api: holdfast/v1\ndata_dir: {here}/agent\n\
             telemetry: {{ filter: warn, sampled_share: 0.0, otlp_endpoint: \"{endpoint}\" }}\n"
        ),
    );
    write(&dir.join("password"), REPOSITORY_PASSWORD);
    let config = |name: &str| dir.join(format!("{name}.yaml"));
    let mut init = program("holdfast-controller");
    init.arg("init").arg("--config").arg(config("controller"));
    init.arg("--token-file").arg(dir.join("token")).arg("--ca-file").arg(dir.join("ca.pem"));
    drop(run(&mut init, PATIENCE).expect_success());
    let mut command = program("holdfast-controller");
    let controller =
        Process::start("controller", command.args(["run", "--config"]).arg(config("controller")), dir);
    let enrolled = until("a token for the agent", PATIENCE, || {
        let mut command = holdfast(dir, port);
        let finished = run(command.args(["agent", "enroll", "a1", "-o", "json"]), PATIENCE);
        let list: serde_json::Value = serde_json::from_str(&finished.stdout).ok()?;
        Some(list["items"][0].clone())
    });
    let text = |key: &str| enrolled[key].as_str().unwrap_or_else(|| panic!("{key} in {enrolled}")).to_owned();
    let mut enroll = program("holdfast-agent");
    enroll.args(["enroll", "--name", "a1", "--controller", &format!("https://127.0.0.1:{port}")]);
    enroll.args(["--ca-pin", &text("ca_pin"), "--data-dir"]).arg(dir.join("agent"));
    drop(run(enroll.env("HOLDFAST_ENROLL_TOKEN", text("token")), PATIENCE).expect_success());
    let mut command = program("holdfast-agent");
    let agent = Process::start("agent", command.args(["run", "--config"]).arg(config("agent")), dir);
    let mut command = holdfast(dir, port);
    command.args(["repo", "add", "main", "--url", &format!("file://{here}/repository"), "--key-file"]);
    drop(run(command.arg(dir.join("password")), PATIENCE).expect_success());
    let mut command = holdfast(dir, port);
    command.args(["source", "add", "tree", "--engine", "files", "--agent", "a1", "--path"]);
    drop(run(command.arg(dir.join("data")), PATIENCE).expect_success());
    (controller, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_one_trace_from_the_command_line_to_the_commit() {
    let dir = temp_dir("tracing");
    let (path, port, sink) = (dir.path(), test_port::reserve(), OtlpSink::start().await);
    std::fs::create_dir(path.join("data")).unwrap();
    TreeSpec::small(5).make(&path.join("data"));
    let (mut controller, mut agent) = start(path, port, &sink).await;
    // Nobody has asked for a trace so far, and the programs record a share of nought of their own.
    assert_eq!(sink.spans(), []);
    let mut command = holdfast(path, port);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint()).args(["backup", "run", "tree"]);
    drop(tokio::task::block_in_place(|| run(&mut command, PATIENCE)).expect_success());

    let find = |accept: &dyn Fn(&CollectedSpan) -> bool| sink.spans().into_iter().find(|span| accept(span));
    let call = |method: &'static str| {
        move |span: &CollectedSpan| {
            span.service == "holdfast-controller" && span.attribute("path").ends_with(method)
        }
    };
    let whole = async || {
        Some([
            find(&|span| span.service == "holdfast" && span.name == "holdfast backup")?,
            find(&call("RunService/Start"))?,
            find(&|span| span.service == "holdfast-agent" && span.name == "run")?,
            find(&call("DataService/CommitSnapshot"))?,
        ])
    };
    let [command, start, run, commit] = until_async("the spans of all programs", PATIENCE, whole).await;
    assert!(command.parent.is_empty(), "the command begins the trace");
    for span in [&start, &run, &commit] {
        assert_eq!(span.trace, command.trace, "{span:?}");
    }
    assert_eq!(start.parent, command.id);
    assert_eq!(run.parent, start.id);
    assert_eq!(commit.parent, run.id);
    assert!(agent.terminate(PATIENCE).success() && controller.terminate(PATIENCE).success());
}
