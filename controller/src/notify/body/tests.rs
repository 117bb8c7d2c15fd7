use holdfast_model::alert::message::Told;
use holdfast_model::alert::{AlertText, Object, ObjectKind, Words};
use holdfast_model::ids::ChannelName;
use jiff::Timestamp;

use super::*;

fn at() -> Timestamp {
    "2026-06-01T02:13:00Z".parse().unwrap()
}

fn message(kind: MessageKind) -> Message {
    let alert = Told {
        id: 17,
        object: Object::new(ObjectKind::Source, "pg-ledger"),
        reason: "rpo-breached".to_owned(),
        severity: Severity::Critical,
        text: AlertText {
            summary: Words::same("would lose 41 min"),
            recovered: Words::same("is within its RPO again"),
            why: Some(Words::same("<img src=x onerror=1> *bold* {{7*7}} & `code`")),
            safe: None,
            next: vec!["holdfast status pg-ledger".to_owned()],
        },
        labels: Default::default(),
        since: at(),
        recovered_at: (kind == MessageKind::Recovered).then(at),
        affected: 0,
    };
    Message {
        id: "m1".to_owned(),
        channel: ChannelName::new("c").unwrap(),
        kind,
        at: at(),
        alerts: vec![alert],
        report: None,
    }
}

fn channel(yaml: &str) -> Channel {
    holdfast_model::fleet::read_yaml("channel", yaml).unwrap()
}

const DING: &str =
    "{ type: dingtalk, webhook: { env: X }, at_mobiles: [\"13800000000\"], at_all: true, keyword: backup }";

#[test]
fn dingtalk_is_signed_as_its_test_vector_says() {
    let secret = format!("SECdemo{}", "0".repeat(57));
    assert_eq!(
        dingtalk_signature(&secret, 1_700_000_000_000),
        "timestamp=1700000000000&sign=R8Oht7pJmVQsC8nyRbdoYp18VczQJFqYQGNZHdd3Ia0%3D"
    );
}

#[test]
fn a_webhook_is_signed_as_the_standard_says() {
    // The example of the specification.
    let signature = webhook_signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        "{\"test\": 2432232314}",
    );
    assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[test]
fn people_are_called_for_failures_only_and_by_name_in_the_text() {
    let channel = channel(DING);
    let body = dingtalk(&[message(MessageKind::Failing)], &channel, "prod");
    assert_eq!(body["at"], json!({ "atMobiles": ["13800000000"], "isAtAll": true }));
    let text = body["markdown"]["text"].as_str().unwrap();
    assert!(text.contains("@13800000000") && text.contains("backup"), "{text}");
    assert!(text.contains("\\<img src=x onerror=1\\> \\*bold\\*"), "{text}");
    assert_eq!(body["markdown"]["title"], "[prod] CRITICAL pg-ledger would lose 41 min");
    let over = dingtalk(&[message(MessageKind::Recovered)], &channel, "prod");
    assert_eq!(over["at"], json!({ "atMobiles": [], "isAtAll": false }));
}

#[test]
fn as_many_messages_make_one_text_as_are_whole_in_it() {
    let channel = channel(DING);
    let many = vec![message(MessageKind::Failing); 500];
    let fitting = dingtalk_fitting(&many, &channel, "prod");
    let body = dingtalk(&many[..fitting], &channel, "prod");
    let text = body["markdown"]["text"].as_str().unwrap();
    assert!((15_000..20_000).contains(&text.len()) && text.contains("@13800000000"), "{}", text.len());
    assert_eq!(text.matches("would lose 41 min").count(), fitting);
    assert!(!text.contains('…'), "{text}");
    // A report is a text of its own.
    let (report, alert) = (long_report(), message(MessageKind::Failing));
    let fit = |messages: &[&Message]| dingtalk_fitting(messages.iter().copied(), &channel, "prod");
    assert_eq!(
        [fit(&[&alert, &alert, &report]), fit(&[&report, &alert]), fit(&[&report]), fit(&[])],
        [2, 1, 1, 0]
    );
}

#[test]
fn a_message_of_more_alerts_than_a_chat_takes_says_how_many_are_left_out() {
    let mut long = message(MessageKind::Failing);
    long.alerts[0].text.why = Some(Words::same("字".repeat(600)));
    long.alerts = vec![long.alerts[0].clone(); 100];
    assert_eq!(dingtalk_fitting([&long, &long], &channel(DING), "prod"), 1);
    let body = dingtalk(std::slice::from_ref(&long), &channel(DING), "prod");
    let text = body["markdown"]["text"].as_str().unwrap();
    let named = text.matches("**pg-ledger would lose 41 min**").count();
    assert!(named > 5 && text.len() < 20_000, "{named} in {}", text.len());
    assert!(text.contains(&format!("\nand {} more: holdfast alert list\n", 100 - named)), "{text}");

    let slack = slack(&long, &channel("{ type: slack, webhook: { env: X }, language: zh-CN }"), "prod");
    let blocks = slack["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 42);
    assert_eq!(blocks[41]["text"]["text"], "另有 60 项：holdfast alert list");
}

#[test]
fn slack_is_not_told_to_call_anybody_by_a_foreign_text() {
    let mut message = message(MessageKind::Failing);
    message.alerts[0].text.why = Some(Words::same("<!channel> <https://evil|x>"));
    let text = slack(&message, &channel("{ type: slack, webhook: { env: X } }"), "prod").to_string();
    assert!(text.contains("&lt;!channel&gt;") && !text.contains("<!channel>"), "{text}");
}

#[test]
fn html_holds_no_foreign_markup() {
    let rendered = render(&message(MessageKind::Failing), Language::English, "prod");
    let html = html(&rendered, Language::English);
    assert!(html.contains("&lt;img src=x") && !html.contains("<img"), "{html}");
}

#[test]
fn a_webhook_has_the_documented_keys() {
    let body =
        webhook(&message(MessageKind::Failing), &channel("{ type: webhook, url: \"https://x/\" }"), "prod");
    let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    let expected =
        ["alerts", "api", "at", "environment", "event", "id", "kind", "report", "severity", "text", "title"];
    assert_eq!(keys, expected);
    assert_eq!(body["alerts"][0]["object"], json!({ "kind": "source", "name": "pg-ledger" }));
}

#[test]
fn a_template_makes_the_body() {
    let with = |template: &str| {
        let mut channel = channel("{ type: webhook, url: \"https://x/\" }");
        if let Way::Webhook { template: place, .. } = &mut channel.way {
            *place = Some(template.to_owned());
        }
        webhook_body(&message(MessageKind::Failing), &channel, "prod")
    };
    let body = with("{\"t\": {{ title|tojson }}, \"n\": {{ alerts|length }}}").unwrap();
    assert_eq!(body, "{\"t\": \"[prod] CRITICAL pg-ledger would lose 41 min\", \"n\": 1}");
    let refused = with("{{ nothing.at.all }}").unwrap_err();
    assert_eq!(
        refused,
        DeliveryError::Refused(
            "the template does not work: undefined value (line 1 of the template)".to_owned()
        )
    );
}

/// A report with an error of every kind, each with a long and hostile text.
fn long_report() -> Message {
    use holdfast_model::ErrorCode;
    use holdfast_model::ids::RunId;
    use holdfast_model::policy::Zone;
    use holdfast_model::report::tally::ErrorTally;
    use holdfast_model::report::{Period, Report, ReportKind, Tally, logs};

    let period = Period::ending(ReportKind::Logs, 24, at(), &Zone::default());
    let mut tally = Tally::new(period, None);
    let said = format!("<img src=x onerror=alert(1)>*_`{}", "字".repeat(500));
    for &code in ErrorCode::ALL {
        let run = RunId::at(0, [0; 10]);
        tally.errors.insert(
            code.number(),
            ErrorTally { code, count: 1, newest_at: at(), run, message: said.clone() },
        );
    }
    tally.counts.ended = 100;
    tally.counts.failed = 100;
    let report = Report::Logs(Box::new(logs::build(tally, at(), "prod".to_owned())));
    Message {
        kind: MessageKind::Report,
        alerts: Vec::new(),
        report: Some(report),
        ..message(MessageKind::Test)
    }
}

#[test]
fn a_report_is_cut_to_what_each_chat_takes_and_says_so() {
    let report = long_report();
    let ding = dingtalk(std::slice::from_ref(&report), &channel(DING), "");
    let text = ding["markdown"]["text"].as_str().unwrap();
    assert!(text.len() <= 20_000 && text.len() > 15_000, "{}", text.len());
    assert!(text.starts_with("### \\[prod\\] report of the runs\n\n**100 of 100 runs failed**"), "{text}");
    assert!(text.contains(" more lines: holdfast report") && text.contains("backup"), "{text}");
    assert!(!text.replace("\\<", "").contains('<'), "{text}");
    assert_eq!((&ding["at"]["isAtAll"], &ding["at"]["atMobiles"]), (&json!(false), &json!([])));

    let slack = slack(&report, &channel("{ type: slack, webhook: { env: X } }"), "");
    let blocks = slack["blocks"].as_array().unwrap();
    assert!((10..=50).contains(&blocks.len()), "{}", blocks.len());
    for block in blocks {
        let text = block["text"]["text"].as_str().unwrap();
        assert!(text.len() <= 3000 && !text.contains('<'), "{text}");
    }
    assert!(blocks.last().unwrap().to_string().contains(" more lines: holdfast report"), "{slack}");

    let hook = webhook(&report, &channel("{ type: log }"), "");
    assert_eq!((&hook["event"], &hook["report"]["report"]), (&json!("report"), &json!("logs")));
    assert_eq!(hook["alerts"], json!([]));
}
