//! Who is told when something is wrong, and when it is over: against sinks that check what comes.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use holdfast_controller::ControllerConfig;
use holdfast_controller::notify::check_templates;
use holdfast_model::ErrorCode;
use holdfast_model::alert::rule::{BUILT_IN, built_in};
use holdfast_model::fleet::{Fleet as Declared, FleetFile, read_fleet};
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::canary::files_with;
use holdfast_tests::http_sink::Received;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, HttpSink, MailServer, PostgresCluster, TreeSpec, run, workspace};
use sha2::Sha256;

/// Reads the YAML blocks of a page: whole files, and parts of them.
#[test]
fn the_examples_of_the_documentation_are_valid() {
    let page = std::fs::read_to_string(workspace::root().join("docs/alerts.md")).unwrap();
    let mut blocks = 0;
    for block in page.split("```yaml").skip(1) {
        let (kind, body) = block.split_once('\n').unwrap();
        let body = body.split("```").next().unwrap();
        let indented = |by: &str| body.lines().map(|line| format!("{by}{line}\n")).collect::<String>();
        let text = match kind.trim() {
            "alerts" => format!("api: holdfast/v1\nalerts:\n{}", indented("  ")),
            "channels" => format!("api: holdfast/v1\nnotifications:\n  channels:\n{}", indented("    ")),
            "controller" => {
                let folder = holdfast_tests::temp_dir("config");
                let path = folder.path().join("controller.yaml");
                std::fs::write(&path, format!("api: holdfast/v1\ndata_dir: /x\n{body}")).unwrap();
                let config = ControllerConfig::load(&path, []).unwrap();
                assert_eq!(config.notifications.allow_addresses.len(), 2);
                blocks += 1;
                continue;
            }
            _ => body.to_owned(),
        };
        let files = [FleetFile { name: "alerts.md".to_owned(), text }];
        let fleet = read_fleet(&files).unwrap_or_else(|errors| panic!("{errors:#?} in:\n{body}"));
        assert_eq!(fleet.check_references(&Declared::default()), []);
        assert_eq!(check_templates(&fleet), []);
        blocks += 1;
    }
    assert_eq!(blocks, 4, "every block of the page was read");
    let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let rules: Vec<&str> = listed.map(|(name, _)| name).filter(|name| built_in(name).is_some()).collect();
    assert_eq!(rules.len(), BUILT_IN.len(), "every built-in rule is on the page: {rules:?}");
}

/// What must show nowhere, different in each run.
struct Secrets {
    token: String,
    sign: String,
    hook: String,
    mail: String,
}

impl Secrets {
    fn new() -> Self {
        let canary = |name: &str| format!("canary-{name}-{:016x}", rand::random::<u64>());
        Self { token: canary("token"), sign: canary("SEC"), hook: canary("hook"), mail: canary("mail") }
    }

    fn all(&self) -> [&str; 4] {
        [&self.token, &self.sign, &self.hook, &self.mail]
    }
}

fn plant(folder: &Path, name: &str, value: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, value).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    format!("{{ file: {} }}", path.display())
}

/// A fleet whose controller may call this host.
async fn fleet() -> Fleet {
    let mut fleet = Fleet::start().await;
    fleet.stop_controller().await;
    fleet.configure_controller(|config| {
        config.notifications.environment = "prod".to_owned();
        config.notifications.allow_addresses = vec!["127.0.0.0/8".parse().unwrap()];
    });
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    fleet
}

fn channels(sink: &HttpSink, mail: &MailServer, secrets: &Secrets, folder: &Path) -> String {
    let ding = plant(folder, "ding", &sink.url(&format!("/ding?access_token={}", secrets.token)));
    let slack = plant(folder, "slack", &sink.url(&format!("/slack/{}", secrets.token)));
    let ping = plant(folder, "ping", &sink.url("/ping"));
    let (sign, hook) = (plant(folder, "sign", &secrets.sign), plant(folder, "hook", &secrets.hook));
    let password = plant(folder, "mail", &secrets.mail);
    format!(
        "notifications:
  channels:
    ding: {{ type: dingtalk, webhook: {ding}, secret: {sign}, at_mobiles: [\"13800000000\"], at_all: true, language: zh-CN }}
    slack: {{ type: slack, webhook: {slack} }}
    hook: {{ type: webhook, url: \"{}\", signing_key: {hook} }}
    mail: {{ type: email, to: [dba@example.com], smtp: {{ host: localhost, port: {}, ca: {}, user: {}, password: {password} }} }}
    dead-man: {{ type: ping, url: {ping}, every: 1s }}
  routes:
    - {{ to: [ding, slack, hook, mail], wait: 1s }}
",
        sink.url("/hook"),
        mail.port(),
        mail.ca().display(),
        MailServer::USER,
    )
}

fn sign(key: &str, text: &str) -> String {
    let mut mac = <Hmac<Sha256>>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// The request is signed as DingTalk demands, in a query that has the token, too.
fn check_ding(request: &Received, secrets: &Secrets) {
    let query = request.target.split_once('?').unwrap().1;
    let value =
        |name: &str| query.split('&').find_map(|part| part.strip_prefix(&format!("{name}="))).unwrap();
    assert_eq!(value("access_token"), secrets.token);
    let expected = sign(&secrets.sign, &format!("{}\n{}", value("timestamp"), secrets.sign));
    let found = value("sign").replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
    assert_eq!(found, expected);
}

fn check_hook(request: &Received, secrets: &Secrets) {
    let signed =
        format!("{}.{}.{}", request.header("webhook-id"), request.header("webhook-timestamp"), request.body);
    assert_eq!(request.header("webhook-signature"), format!("v1,{}", sign(&secrets.hook, &signed)));
    assert_eq!(request.json()["id"], request.header("webhook-id"));
}

/// How many runs have ended so.
async fn runs(fleet: &Fleet, phase: &str) -> usize {
    let request = v1::ListRunsRequest { phase: phase.to_owned(), ..v1::ListRunsRequest::default() };
    fleet.runs().list(request).await.unwrap().into_inner().runs.len()
}

/// The alerts that hold, and have held for long enough.
async fn failing(fleet: &Fleet) -> Vec<v1::Alert> {
    let listed = fleet.alerts().list(v1::ListAlertsRequest::default()).await.unwrap().into_inner().alerts;
    listed.into_iter().filter(|alert| alert.state == "failing").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_is_told_once_everywhere_and_so_is_its_return() {
    let (secrets, sink) = (Secrets::new(), HttpSink::start().await);
    let mail = MailServer::start(&secrets.mail);
    let mut fleet = fleet().await;
    let mut cluster = PostgresCluster::start();
    cluster.psql("postgres", "CREATE DATABASE shop");
    let source = cluster.source(fleet.path(), "shop").replace("agent: a1", "agent: a1, policy: often");
    let folder = holdfast_tests::temp_dir("channels");
    let slack = format!("/slack/{}", secrets.token);
    let yaml = format!(
        "policies:\n  often: {{ schedule: {{ full: {{ every: 1s }} }}, retry: {{ attempts: 1, backoff: 1s }} }}\n{source}{}alerts:\n  backup-failing: {{ severity: critical }}\n",
        channels(&sink, &mail, &secrets, folder.path()),
    );
    fleet.apply(&yaml).await.unwrap();
    until_async("a sign of life", PATIENCE, async || sink.received("/ping").first().cloned()).await;
    until_async("a first backup", PATIENCE, async || (runs(&fleet, "succeeded").await > 0).then_some(()))
        .await;

    cluster.stop_immediately();
    let counts = || {
        let requests = ["/ding", "/hook", &slack].map(|path| sink.received(path).len());
        [requests[0], requests[1], requests[2], mail.mails().len()]
    };
    until_async("a word everywhere", PATIENCE, async || (counts() == [1; 4]).then_some(())).await;
    fleet.stop_controller().await;
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    let failed = runs(&fleet, "failed").await;
    let more = async || (runs(&fleet, "failed").await >= failed + 2).then_some(());
    until_async("two more backups to fail", PATIENCE, more).await;
    assert_eq!(counts(), [1; 4]);
    let holds = failing(&fleet).await;
    assert_eq!(holds.len(), 1, "{holds:?}");
    assert_eq!((holds[0].reason.as_str(), holds[0].object.as_str()), ("backup-failing", "pg"));

    cluster.restart();
    until_async("the end everywhere", PATIENCE, async || (counts() == [2; 4]).then_some(())).await;
    assert_eq!(failing(&fleet).await, []);
    fleet.stop_controller().await;
    assert_eq!(counts(), [2; 4]);

    let ding = sink.received("/ding");
    ding.iter().for_each(|request| check_ding(request, &secrets));
    assert!(ding[0].json()["markdown"]["title"].as_str().unwrap().starts_with("[prod] 严重 pg "), "{ding:?}");
    assert!(
        ding[1].json()["markdown"]["title"].as_str().unwrap().starts_with("[prod] 已恢复 pg "),
        "{ding:?}"
    );
    assert_eq!([&ding[0], &ding[1]].map(|request| request.json()["at"]["isAtAll"].clone()), [true, false]);
    let hook = sink.received("/hook");
    hook.iter().for_each(|request| check_hook(request, &secrets));
    assert_eq!([&hook[0], &hook[1]].map(|request| request.json()["event"].clone()), ["failing", "recovered"]);
    let alert = &hook[0].json()["alerts"][0];
    assert!(alert["why"].as_str().unwrap().contains("HF-2001"), "{alert}");
    assert!(alert["next"].as_array().unwrap().len() >= 2, "{alert}");
    assert_ne!(hook[0].header("webhook-id"), hook[1].header("webhook-id"));
    let mails = mail.mails();
    assert!(
        mails[0].contains("X-Recipients: dba@example.com") && mails[0].contains("text/html"),
        "{}",
        mails[0]
    );
    let thread = |mail: &str| mail.lines().find(|line| line.starts_with("References: ")).map(str::to_owned);
    assert!(thread(&mails[0]).is_some() && thread(&mails[0]) == thread(&mails[1]), "{mails:?}");
    assert!(mails.iter().all(|mail| mail.contains("Auto-Submitted: auto-generated")));
    // Its state and logs; the files with the secrets lie elsewhere.
    assert_eq!(files_with(fleet.path(), &secrets.all()), Vec::<std::path::PathBuf>::new());
}

/// A source whose folder does not exist yet, and two channels on sinks of their own.
async fn broken_source(
    ding: &HttpSink,
    hook: &HttpSink,
    secrets: &Secrets,
    folder: &Path,
) -> (Fleet, String) {
    let fleet = fleet().await;
    let webhook = plant(folder, "ding", &ding.url(&format!("/ding?access_token={}", secrets.token)));
    let ping = plant(folder, "ping", &ding.url("/ping"));
    let yaml = format!(
        "sources:
  tree: {{ engine: files, agent: a1, paths: [{}], labels: {{ env: test }} }}
notifications:
  channels:
    ding: {{ type: dingtalk, webhook: {webhook} }}
    hook: {{ type: webhook, url: \"{}\", template: '{{{{ title|tojson }}}}' }}
    dead-man: {{ type: ping, url: {ping}, every: 1s }}
  routes: [{{ to: [ding, hook], wait: 1s }}]
",
        fleet.path().join("tree").display(),
        hook.url("/hook"),
    );
    fleet.apply(&yaml).await.unwrap();
    (fleet, yaml)
}

/// Lets the source of [`broken_source`] fail, or not any more.
async fn back_up(fleet: &Fleet, well: bool) {
    if well {
        let tree = fleet.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        TreeSpec::small(5).make(&tree);
    }
    let ended = fleet.backup("tree", "full").await;
    assert_eq!(ended.phase, if well { "succeeded" } else { "failed" }, "{ended:?}");
}

async fn history(fleet: &Fleet, channel: &str) -> Vec<(String, String, String)> {
    let request = v1::HistoryRequest { channel: channel.to_owned(), limit: 0 };
    let found = fleet.notifications().history(request).await.unwrap().into_inner().deliveries;
    found.into_iter().map(|found| (found.event, found.outcome, found.answer)).collect()
}

async fn channel(fleet: &Fleet, name: &str) -> v1::Channel {
    let found = fleet.notifications().list(v1::ListChannelsRequest {}).await.unwrap().into_inner().channels;
    found.into_iter().find(|channel| channel.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_was_away_or_refused_hears_of_it_later_and_once() {
    let (secrets, ding, mut hook) = (Secrets::new(), HttpSink::start().await, HttpSink::start().await);
    let folder = holdfast_tests::temp_dir("channels");
    let (mut fleet, _) = broken_source(&ding, &hook, &secrets, folder.path()).await;
    for _ in 0..2 {
        // The robot answers 200, and repeats what it was sent.
        ding.answer("/ding", 200, &format!("{{\"errcode\":310000,\"errmsg\":\"not {}\"}}", secrets.token));
    }
    hook.go_away().await;
    back_up(&fleet, false).await;
    until_async("the robot to take it", PATIENCE, async || (ding.received("/ding").len() == 3).then_some(()))
        .await;
    let failing = until_async("the webhook to be known as failing", PATIENCE, async || {
        Some(channel(&fleet, "hook").await).filter(|channel| channel.state == "failing")
    })
    .await;
    assert_eq!(failing.waiting, 1);
    assert!(failing.problem.contains("no connection"), "{}", failing.problem);
    let dead_man = channel(&fleet, "dead-man").await;
    assert_eq!(
        (dead_man.state.as_str(), dead_man.problem.as_str()),
        ("withheld", "channel hook does not deliver")
    );
    fleet.stop_controller().await;
    hook.listen().await;
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    until_async("the webhook to hear of it", PATIENCE, async || hook.received("/hook").first().cloned())
        .await;
    back_up(&fleet, true).await;
    until_async("both to hear of the end", PATIENCE, async || {
        (hook.received("/hook").len() == 2 && ding.received("/ding").len() == 4).then_some(())
    })
    .await;
    let titles: Vec<String> = hook.received("/hook").iter().map(|request| request.body.clone()).collect();
    assert_eq!(titles[0], "\"[test] WARNING tree could not be backed up\"");
    assert!(titles[1].starts_with("\"[test] RESOLVED tree is backed up again after "), "{titles:?}");

    // What was answered is known a little later than what was received.
    let of_ding = until_async("the history of three deliveries", PATIENCE, async || {
        Some(history(&fleet, "ding").await).filter(|found| found.len() == 3)
    })
    .await;
    let outcomes: Vec<(&str, &str)> =
        of_ding.iter().map(|(event, outcome, _)| (event.as_str(), outcome.as_str())).collect();
    // The same refusal twice is one entry.
    assert_eq!(outcomes, [("recovered", "delivered"), ("failing", "delivered"), ("failing", "failed")]);
    assert_eq!(of_ding[2].2, "HTTP 200 {\"errcode\":310000,\"errmsg\":\"not ***\"}");
    until_async("the history of the webhook", PATIENCE, async || {
        let found = history(&fleet, "hook").await;
        (found.iter().filter(|(_, outcome, _)| outcome == "delivered").count() == 2).then_some(())
    })
    .await;
    assert_eq!([channel(&fleet, "hook").await.state, channel(&fleet, "dead-man").await.state], ["ok", "ok"]);
    fleet.stop_controller().await;
    assert_eq!((hook.received("/hook").len(), ding.received("/ding").len()), (2, 4));
    assert_eq!(files_with(fleet.path(), &secrets.all()), Vec::<std::path::PathBuf>::new());
}

/// Runs the command line; gives its exit status and what it printed.
fn cli(fleet: &Fleet, arguments: &[&str]) -> (i32, String) {
    let mut command: Command = fleet.cli();
    let done = run(command.args(arguments), PATIENCE);
    (done.status.code().unwrap_or(-1), format!("{}{}", done.stdout, done.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_acknowledges_silences_tests_and_previews() {
    let (secrets, sink) = (Secrets::new(), HttpSink::start().await);
    let folder = holdfast_tests::temp_dir("channels");
    let (fleet, yaml) = broken_source(&sink, &sink, &secrets, folder.path()).await;
    let (status, text) = cli(&fleet, &["alert", "list"]);
    assert!(status == 0 && !text.contains("tree"), "{text}");
    let (status, text) =
        cli(&fleet, &["alert", "silence", "--source", "tree", "--for", "1h", "--reason", "a test"]);
    assert!(status == 0 && text.contains("silence 1 keeps 0 alerts quiet now"), "{text}");
    back_up(&fleet, false).await;
    let id = until_async("the alert", PATIENCE, async || {
        failing(&fleet).await.first().map(|alert| alert.id.to_string())
    })
    .await;
    let (status, text) = cli(&fleet, &["alert", "list"]);
    assert!(
        status == 0 && text.contains("could not be backed up") && text.contains("failing, silenced"),
        "{text}"
    );
    let (_, text) = cli(&fleet, &["alert", "list", "--silences"]);
    assert!(text.contains("{\"source\":\"tree\"}") && text.contains("token:admin"), "{text}");
    let (status, text) = cli(&fleet, &["alert", "unsilence", "1"]);
    assert_eq!(status, 0, "{text}");
    until_async("the word to go out", PATIENCE, async || sink.received("/hook").first().cloned()).await;
    let (status, text) = cli(&fleet, &["alert", "ack", &id, "--reason", "on it"]);
    assert_eq!(status, 0, "{text}");
    let (status, text) = cli(&fleet, &["alert", "show", &id]);
    assert!(status == 0 && text.contains("by token:admin: on it") && text.contains("HF-2010"), "{text}");
    for (arguments, expected, part) in [
        (vec!["alert", "show", "999"], 4, "HF-4001"),
        (vec!["alert", "unsilence", "1"], 4, "there is no silence 1"),
        (vec!["alert", "silence", "--for", "1h", "--reason", "x"], 2, "required"),
        (vec!["notify", "test", "hok"], 4, "did you mean hook?"),
        (vec!["notify", "test", "hook"], 0, "channel hook delivered it: HTTP 200"),
        (vec!["notify", "list"], 0, "dingtalk"),
        (vec!["notify", "history", "hook"], 0, "delivered"),
        (
            vec!["notify", "preview", "recovered", "--channel", "hook"],
            0,
            "RESOLVED example is within its RPO again",
        ),
        (
            vec!["notify", "preview", "failing", "--channel", "ding", "--alert", &id],
            0,
            "\"msgtype\": \"markdown\"",
        ),
    ] {
        let (status, text) = cli(&fleet, &arguments);
        assert!(status == expected && text.contains(part), "{arguments:?} gave {status}: {text}");
    }
    // A receiver that asks to go elsewhere, and one where nothing may be sent.
    sink.answer("/hook", 302, "");
    let (status, text) = cli(&fleet, &["notify", "test", "hook"]);
    assert!(status == 1 && text.contains("HF-4050") && text.contains("redirects are not followed"), "{text}");
    let denied = yaml.replace(&sink.url("/hook"), "http://169.254.169.254/latest/meta-data");
    fleet.apply(&denied).await.unwrap();
    let (status, text) = cli(&fleet, &["notify", "test", "hook"]);
    assert!(status == 5 && text.contains("HF-4051") && text.contains("where nothing may be sent"), "{text}");
    assert!(!text.contains(&secrets.token));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_over_the_metrics_is_told_by_its_own_words_and_channels() {
    let (secrets, sink) = (Secrets::new(), HttpSink::start().await);
    let folder = holdfast_tests::temp_dir("channels");
    let (fleet, yaml) = broken_source(&sink, &sink, &secrets, folder.path()).await;
    let rule = |expr: &str| {
        format!(
            "{yaml}alerts:\n  backup-failing: {{ enabled: false }}\n  mine: {{ expr: '{expr}', severity: critical, message: \"{{{{ source }}}} failed {{{{ value }}}} times\", to: [hook] }}\n"
        )
    };
    let wrong = fleet.apply(&rule("holdfast_backup_consecutive_failure > 0")).await.unwrap_err();
    assert_eq!(wrong.code, ErrorCode::FileInvalid);
    let near = "there is no metric `holdfast_backup_consecutive_failure`; did you mean `holdfast_backup_consecutive_failures`?";
    assert!(wrong.message.contains(":12:17: alerts.mine.expr:") && wrong.message.ends_with(near), "{wrong}");
    let template = yaml.replace("title|tojson", "title ~ title");
    let wrong = fleet.apply(&template).await.unwrap_err();
    assert!(wrong.message.contains("channels.hook.template: `~` is not possible in a template"), "{wrong}");

    fleet.apply(&rule("holdfast_backup_consecutive_failures{source=\"tree\"} >= 1 for 1s")).await.unwrap();
    back_up(&fleet, false).await;
    let received = until_async("the word", PATIENCE, async || sink.received("/hook").first().cloned()).await;
    assert_eq!(received.body, "\"[test] CRITICAL tree tree failed 1 times\"");
    back_up(&fleet, true).await;
    until_async("the end", PATIENCE, async || sink.received("/hook").get(1).cloned()).await;
    assert_eq!(sink.received("/ding").len(), 0, "the rule names its channels");
    let refused = fleet.alerts().show(v1::ShowAlertRequest { id: 77 }).await.unwrap_err();
    assert_eq!(from_status(&refused).code, ErrorCode::NotFound);
    fleet.stop().await;
}
