use super::*;

fn families() -> Vec<MetricFamily> {
    let mut loss = MetricFamily::gauge("holdfast_potential_loss_seconds", "x");
    loss.add(&[("source", "a")], 60.0);
    loss.add(&[("source", "b")], 700.0);
    loss.add(&[("source", "c")], f64::NAN);
    let mut failures = MetricFamily::gauge("holdfast_backup_consecutive_failures", "x");
    failures.add(&[("source", "a")], 0.0);
    failures.add(&[("source", "b")], 2.0);
    let mut certificates = MetricFamily::gauge("holdfast_agent_certificate_expiry_timestamp_seconds", "x");
    certificates.add(&[("agent", "db1")], 1_000_000.0);
    vec![loss, failures, certificates]
}

fn labels(text: &str) -> Vec<String> {
    let expression = Expression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let matches = expression.matches(&families(), 999_000.0);
    matches.into_iter().map(|found| found.labels.into_values().collect::<String>()).collect()
}

fn error(text: &str) -> (usize, String) {
    let error = Expression::parse(text).unwrap_err();
    (error.at, error.message)
}

#[test]
fn samples_for_which_it_holds_are_found() {
    for (text, expected) in [
        ("holdfast_potential_loss_seconds > 60", vec!["b"]),
        ("holdfast_potential_loss_seconds >= 1m", vec!["a", "b"]),
        ("60 < holdfast_potential_loss_seconds", vec!["b"]),
        ("holdfast_potential_loss_seconds{source=\"a\"} > 0", vec!["a"]),
        ("holdfast_potential_loss_seconds{source!='a',} > 0", vec!["b"]),
        ("holdfast_potential_loss_seconds{source!=\"\"} > 0", vec!["a", "b"]),
        ("holdfast_potential_loss_seconds / 60 > 11 + 0.5", vec!["b"]),
        ("-holdfast_potential_loss_seconds < -60", vec!["b"]),
        ("holdfast_potential_loss_seconds - holdfast_potential_loss_seconds == 0", vec!["a", "b"]),
        ("holdfast_potential_loss_seconds > 0 and holdfast_backup_consecutive_failures > 0", vec!["b"]),
        ("holdfast_potential_loss_seconds > 0 unless holdfast_backup_consecutive_failures > 0", vec!["a"]),
        (
            "holdfast_potential_loss_seconds > 600 or holdfast_backup_consecutive_failures == 0",
            vec!["a", "b"],
        ),
        ("(holdfast_potential_loss_seconds + 2) * 2 != 124", vec!["b", "c"]),
        ("holdfast_agent_certificate_expiry_timestamp_seconds - time() < 7d", vec!["db1"]),
        ("holdfast_agent_certificate_expiry_timestamp_seconds - time() < 1e3", vec![]),
        ("holdfast_potential_loss_seconds > 1e+2", vec!["b"]),
    ] {
        assert_eq!(labels(text), expected, "{text}");
    }
}

#[test]
fn a_time_to_hold_may_stand_at_its_end() {
    let expression = Expression::parse("holdfast_potential_loss_seconds > 60 for 5m").unwrap();
    assert_eq!(expression.hold(), Some(Span::from_mins(5)));
    let (_, message) = error("holdfast_potential_loss_seconds > 60 for 5");
    assert_eq!(message, "a length of time is needed, such as 5m, not `5`");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let loss = "holdfast_potential_loss_seconds";
    let no_number = "what was compared can not be compared or calculated with";
    let both_sides = "a comparison is needed on both sides, such as `a > 0 and b > 0`";
    for (text, at, message) in [
        ("", 0, "a metric or a number is needed, not the end"),
        ("L", 31, "a comparison is needed, such as `> 0`"),
        ("1 > 2", 2, "two numbers are compared: a metric is needed on one side"),
        ("L = 1", 32, "`=` compares labels; values are compared with `==`"),
        ("rate(L) > 1", 0, "there is no function rate; time() is one"),
        ("L > 1 2", 36, "`2` is not expected here"),
        ("L > 5x", 34, "\"5x\" is not a number"),
        ("L > 1e999", 34, "1e999 is too large"),
        ("L{source=a} > 1", 39, "the value of `source` is needed in quotes"),
        ("L{source=\"a} > 1", 39, "this text has no end"),
        ("L{\"a\"} > 1", 32, "a label is needed, such as source=\"pg-main\""),
        ("L{team=\"a\"} > 1", 32, "L has no label `team`, but source"),
        ("L{source \"a\"} > 1", 32, "`source` is compared with `=` or `!=`"),
        ("(L > 1", 36, "`)` is missing"),
        ("L > 1 and 1", 36, both_sides),
        ("(L > 1) + 1 > 2", 38, no_number),
        ("-(L > 1) > 2", 0, no_number),
        ("L > $x", 34, "'$' has no meaning here"),
        ("数 > 1", 0, "'数' has no meaning here"),
        (
            "holdfast_potential_los_seconds > 1",
            0,
            "there is no metric `holdfast_potential_los_seconds`; did you mean `L`?",
        ),
        ("potential_loss > 1", 0, "there is no metric `potential_loss`; did you mean `L`?"),
        ("zzz > 1", 0, "there is no metric `zzz`"),
    ] {
        assert_eq!(error(&text.replace('L', loss)), (at, message.replace('L', loss)), "{text}");
    }
}

#[test]
fn hostile_expressions_end_at_once() {
    let deep = format!("{}1 > 0", "(".repeat(300));
    assert_eq!(error(&deep), (20, "it is nested more than 20 deep".to_owned()));
    let signs = format!("{}1 > 0", "-".repeat(300));
    assert_eq!(error(&signs).1, "it is nested more than 20 deep");
    assert_eq!(error(&"x".repeat(1001)), (0, "the expression has more than 1000 bytes".to_owned()));
    let long = vec!["holdfast_potential_loss_seconds>0"; 26].join(" or ");
    assert_eq!(labels(&long), ["a", "b"]);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[a-z_(){}<>=!\"', .0-9+*/-]{0,80}|\\PC{0,40}") {
        if let Err(error) = Expression::parse(&text) {
            assert!(error.at <= text.chars().count());
        }
    }
}
