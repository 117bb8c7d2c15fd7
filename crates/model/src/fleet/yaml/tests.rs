//! Hostile and mistaken files, by the kind of mistake. Each has its exact error; nothing of any is taken.

use super::super::{Fleet, FleetFile, read_fleet, to_effective_yaml, to_yaml};

fn errors(text: &str) -> Vec<String> {
    let file = FleetFile { name: "fleet.yaml".to_owned(), text: text.to_owned() };
    match read_fleet(&[file]) {
        Ok(fleet) => panic!("it was read: {fleet:?}"),
        Err(errors) => errors.iter().map(|error| format!("{} [{}]", error, error.code)).collect(),
    }
}

#[track_caller]
fn refused(text: &str, error: &str) {
    assert_eq!(errors(&format!("api: holdfast/v1\n{text}\n")), [error], "{text}");
}

fn accepted(text: &str) -> Fleet {
    let text = format!("api: holdfast/v1\n{text}\n");
    read_fleet(&[FleetFile { name: "fleet.yaml".to_owned(), text }]).unwrap()
}

fn policy(lines: &str) -> String {
    format!("policies:\n  gold:\n    schedule: {{ full: {{ every: 1d }} }}\n    {lines}")
}

#[test]
fn aliases_that_unfold_to_too_much_are_refused() {
    let wide: String = (0..20_000).map(|n| format!(", k{n}: *a")).collect();
    let text = format!("agents:\n  a: {{ labels: {{ x: &a {}{wide} }} }}", "y".repeat(1 << 20));
    let error = errors(&format!("api: holdfast/v1\n{text}\n")).remove(0);
    assert!(
        error.starts_with("fleet.yaml:3:")
            && error.ends_with(": there is too much in it, or its aliases unfold to too much [HF-1002]"),
        "{error}"
    );
    let agents: String = (0..100_000).map(|n| format!("  b{n}: *a\n")).collect();
    let error =
        errors(&format!("api: holdfast/v1\nagents:\n  a: &a {{ labels: {{ a: b }} }}\n{agents}")).remove(0);
    assert!(
        error.ends_with(": there is too much in it, or its aliases unfold to too much [HF-1002]"),
        "{error}"
    );
}

#[test]
fn a_key_written_twice_is_refused_wherever_it_is() {
    refused("agents:\n  a: {}\n  a: {}", "fleet.yaml:4:3: `a` is written twice [HF-1004]");
    refused(
        "sources:\n  a: { engine: sqlite, agent: x, path: /a, path: /b }",
        "fleet.yaml:3:44: `path` is written twice [HF-1004]",
    );
    refused("api: holdfast/v1", "fleet.yaml:2:1: `api` is written twice [HF-1004]");
}

#[test]
fn an_unknown_key_is_refused_with_what_was_meant() {
    refused(
        &policy("keeep: { last: 3 }"),
        "fleet.yaml:5:5: unknown key `keeep`, did you mean `keep`?; possible are objectives, schedule, keep, keep_by_type, \
         to, copy_to, verify, retry, priority, resources, hooks, limits, watch, health, timeout, bandwidth [HF-1003]",
    );
    refused(
        &policy("retension: { last: 3 }"),
        "fleet.yaml:5:5: unknown key `retension`; possible are objectives, schedule, keep, keep_by_type, to, copy_to, \
         verify, retry, priority, resources, hooks, limits, watch, health, timeout, bandwidth [HF-1003]",
    );
    refused(
        "policie: {}",
        "fleet.yaml:2:1: unknown key `policie`, did you mean `policies`?; possible are api, repositories, policies, \
         sources, agents, notifications, alerts, reports [HF-1003]",
    );
    refused(
        "sources:\n  a: { engine: sqlit, agent: x, path: /a }",
        "fleet.yaml:3:16: `sqlit` is not possible here, did you mean `sqlite`?; possible are postgres, sqlite, files \
         [HF-1002]",
    );
}

#[test]
fn counts_are_whole_numbers_from_one_on() {
    for (count, column, why) in [
        ("0", 19, "0 is not a count: leave the key out where there is to be none"),
        ("-1", 19, "-1 is out of range: 1 to 1000000 are possible"),
        ("1000001", 19, "1000001 is out of range: 1 to 1000000 are possible"),
        ("\"7\"", 13, "invalid type: string \"7\", expected a number from 1 to 1000000"),
        ("7.5", 13, "invalid type: floating point `7.5`, expected a number from 1 to 1000000"),
        ("true", 13, "invalid type: boolean `true`, expected a number from 1 to 1000000"),
    ] {
        let error = format!("fleet.yaml:5:{column}: {why} [HF-1002]");
        refused(&policy(&format!("keep: {{ last: {count} }}")), &error);
    }
    let huge = errors(&format!("api: holdfast/v1\n{}", policy("keep: { last: 1e99 }")));
    assert!(huge[0].ends_with("expected a number from 1 to 1000000 [HF-1002]"), "{huge:?}");
}

#[test]
fn lengths_of_time_are_more_than_none_and_have_a_unit() {
    for (length, why) in [
        ("0s", "\"0s\" is no time at all: at least 1s is needed"),
        ("-1h", "\"-1h\" is negative: a length of time is more than none"),
        ("9999999999h", "\"9999999999h\" is too long: at most 100y is possible"),
        ("60", "\"60\" is not a length of time: write it with units, as 30s, 5m, 6h, 7d, 2w, 1y or 1h30m"),
        (
            "1:30",
            "\"1:30\" is not a length of time: write it with units, as 30s, 5m, 6h, 7d, 2w, 1y or 1h30m",
        ),
        (
            ".inf",
            "\".inf\" is not a length of time: write it with units, as 30s, 5m, 6h, 7d, 2w, 1y or 1h30m",
        ),
    ] {
        refused(
            &format!("policies:\n  gold:\n    schedule: {{ full: {{ every: {length} }} }}"),
            &format!("fleet.yaml:4:32: {why} [HF-1002]"),
        );
    }
}

#[test]
fn what_yaml_versions_disagree_about_is_refused() {
    let surprise = |number: &str| {
        format!(
            "`{number}` is a number to some readers and a text to others: write it in plain digits, or in quotes where \
             it is a text"
        )
    };
    for number in ["0o17", "0x1F", "0b11", "1_000", "-1_0", "0o1_7"] {
        let labels = format!("agents:\n  a: {{ labels: {{ x: {number} }} }}");
        refused(&labels, &format!("fleet.yaml:3:21: {} [HF-1002]", surprise(number)));
    }
    let port = |port: &str| {
        format!(
            "sources:\n  a: {{ engine: postgres, agent: x, connect: {{ host: h, user: u, port: {port} }} }}"
        )
    };
    refused(&port("0o17"), &format!("fleet.yaml:3:71: {} [HF-1002]", surprise("0o17")));
    refused(&port("5_432"), &format!("fleet.yaml:3:71: {} [HF-1002]", surprise("5_432")));
    refused(&policy("keep: { last: 1_000 }"), &format!("fleet.yaml:5:19: {} [HF-1002]", surprise("1_000")));
    for word in ["NO", "yes", "off", "on"] {
        refused(
            &policy(&format!("verify: {{ after_backup: {word} }}")),
            "fleet.yaml:5:29: true or false is needed: `yes`, `no`, `on` and `off` are words here [HF-1002]",
        );
    }
    refused(
        "agents:\n  NO: {}",
        "fleet.yaml:3:3: agent name \"NO\" is not valid: it must begin with a lower-case letter or a digit [HF-1002]",
    );
    // A country, a phone number in quotes, and words with digits stay what they are, also when written out again.
    let fleet = accepted(
        "agents:\n  a: { labels: { country: NO, phone: \"0171\", id: \"1_000\", hash: \"0x1f\", day: 2026-11-21, host: a_1 } }",
    );
    let labels = &fleet.agents.values().next().unwrap().labels;
    assert_eq!(
        labels.values().map(String::as_str).collect::<Vec<_>>(),
        ["NO", "2026-11-21", "0x1f", "a_1", "1_000", "0171"]
    );
    for written in [to_yaml(&fleet), to_effective_yaml(&fleet)] {
        let again = FleetFile { name: "again.yaml".to_owned(), text: written.clone() };
        assert_eq!(read_fleet(&[again]).unwrap(), fleet, "{written}");
    }
}

#[test]
fn letters_that_do_not_belong_in_a_file_are_refused() {
    refused("agents:\n  a\0b: {}", "fleet.yaml:3:4: unexpected character: `\\u{0}' [HF-1002]");
    refused(
        "agents:\n\ta: {}",
        "fleet.yaml:3:2: tabs disallowed within this context (block indentation) [HF-1002]",
    );
    refused("agents:\n  \u{feff}a: {}", "fleet.yaml:3:3: a BOM must not appear inside a document [HF-1002]");
    refused(
        "agents:\n  \"a\\0b\": {}",
        "fleet.yaml:3:3: agent name \"a\\0b\" is not valid: only lower-case letters, digits, '-', '_' and '.' are allowed \
         [HF-1002]",
    );
    refused(
        "agents:\n  a\u{202e}b: {}",
        "fleet.yaml:3:3: agent name \"a\\u{202e}b\" is not valid: only lower-case letters, digits, '-', '_' and '.' are \
         allowed [HF-1002]",
    );
    // A mark at the very beginning and the line ends of another system are only a way to write.
    let plain = accepted("agents:\n  a: {}");
    for text in ["\u{feff}api: holdfast/v1\nagents:\n  a: {}\n", "api: holdfast/v1\r\nagents:\r\n  a: {}\r\n"]
    {
        let file = FleetFile { name: "fleet.yaml".to_owned(), text: text.to_owned() };
        assert_eq!(read_fleet(&[file]).unwrap(), plain, "{text:?}");
    }
}

#[test]
fn files_that_are_too_large_or_too_deep_are_refused() {
    let long = format!("# {}", "x".repeat(20_000_000));
    refused(&long, "fleet.yaml: the file has 20,000,020 bytes, the limit is 4,194,304 [HF-1002]");
    let deep = format!("agents:\n{}{}", "{a: ".repeat(10_000), "}".repeat(10_000));
    refused(&deep, "fleet.yaml:3:1021: recursion limit exceeded [HF-1002]");
    let deep = format!("agents: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    refused(&deep, "fleet.yaml:2:9: expected mapping start [HF-1002]");
}

#[test]
fn two_repositories_in_one_place_are_refused_however_it_is_written() {
    let two = |one: &str, other: &str| {
        format!(
            "repositories:\n  a: {{ url: \"{one}\", encryption: {{ key: {{ file: /k }} }} }}\n  \
             b: {{ url: \"{other}\", encryption: {{ key: {{ file: /k }} }} }}"
        )
    };
    let within =
        "fleet.yaml:4:6: repositories.b: `url` lies at or within the place of repository a [HF-1002]";
    refused(&two("file:///srv/r", "file:///srv/r"), within);
    refused(&two("file:///srv/r", "file:///srv/r/"), within);
    refused(&two("file:///srv/r", "file:///srv/r/in"), within);
    refused(&two("file:///srv/r/in", "file:///srv/r"), within);
    refused(&two("s3://bucket/p", "s3://bucket/p/q"), within);
    for other in ["file:///srv//r", "file:///srv/./r", "file:///srv/x/../r", "file:////srv/r"] {
        let error = format!(
            "fleet.yaml:4:6: repositories.b: `url` is {other:?}: file:///ABSOLUTE/PATH is needed [HF-1002]"
        );
        refused(&two("file:///srv/r", other), &error);
    }
    accepted(&two("file:///srv/r", "file:///srv/r2"));
    let services = |one: &str, other: &str| {
        let with = |endpoint: &str| format!("endpoint: \"{endpoint}\", encryption");
        two("s3://backups/db", "s3://backups/db")
            .replacen("encryption", &with(one), 1)
            .replace("db\", encryption", &format!("db\", {}", with(other)))
    };
    accepted(&services("https://s3.here.example", "https://s3.there.example"));
    refused(&services("https://s3.here.example", "http://S3.here.example/"), within);
}

#[test]
fn variables_are_not_left_standing() {
    let why = "variables are not filled in here; write the value, or fill it in before the file is applied [HF-1002]";
    refused(
        "repositories:\n  a: { url: \"file:///srv/${NOPE}/r\", encryption: { key: { env: NOPE } } }",
        &format!("fleet.yaml:3:6: repositories.a: `url` has ${{NOPE}}: {why}"),
    );
    refused(
        "sources:\n  a: { engine: sqlite, agent: x, path: \"/srv/${NOPE}\" }",
        &format!("fleet.yaml:3:40: sources.a.path: `path` has ${{NOPE}}: {why}"),
    );
    refused(
        "sources:\n  a: { engine: files, agent: x, paths: [\"/srv/${NOPE\"] }",
        &format!("fleet.yaml:3:40: sources.a.paths: `paths` has ${{NOPE: {why}"),
    );
    refused(
        "sources:\n  a: { engine: postgres, agent: x, connect: { host: \"${HOST}\", user: u } }",
        &format!("fleet.yaml:3:45: sources.a.connect: `connect` has ${{HOST}}: {why}"),
    );
}

#[test]
fn paths_are_absolute_and_name_something() {
    let files = |path: &str| format!("sources:\n  a: {{ engine: files, agent: x, paths: [{path}] }}");
    for path in ["", "~", "~/x", "srv", ".", "..", "/srv/../etc", "C:\\\\x", "/a\\0b"] {
        let shown = path.replace("\\\\", "\\");
        let shown =
            if shown.contains("\\0") { shown } else { format!("{shown:?}").trim_matches('"').to_owned() };
        refused(
            &files(&format!("\"{path}\"")),
            &format!(
                "fleet.yaml:3:6: `paths` has the path \"{shown}\": absolute paths without `..` are needed [HF-1002]"
            ),
        );
    }
    refused(
        &files("~"),
        "fleet.yaml:3:41: a text is needed: `~` and `null` stand for nothing, unless they are in quotes [HF-1002]",
    );
    refused(&files(""), "fleet.yaml:3:6: `paths` is empty [HF-1002]");
    for root in ["/", "//", "/."] {
        refused(
            &files(root),
            "fleet.yaml:3:40: sources.a.paths: `paths` has \"/\", with /proc and /sys and whatever is mounted: name the \
             folders, or add `one_file_system: true` [HF-1002]",
        );
    }
    accepted("sources:\n  a: { engine: files, agent: x, paths: [/], one_file_system: true }");
    refused(
        "sources:\n  a: { engine: sqlite, agent: x, path: / }",
        "fleet.yaml:3:40: sources.a.path: `path` is \"/\", which is not a file [HF-1002]",
    );
    for url in ["file:///", "file://srv/r", "file:", "/srv/r", "~", ""] {
        let needed = if url.starts_with("file://") {
            "file:///ABSOLUTE/PATH is needed"
        } else {
            "file:///PATH and s3://BUCKET/PREFIX are supported"
        };
        refused(
            &format!("repositories:\n  a: {{ url: \"{url}\", encryption: {{ key: {{ file: /k }} }} }}"),
            &format!("fleet.yaml:3:6: repositories.a: `url` is {url:?}: {needed} [HF-1002]"),
        );
    }
}

#[test]
fn a_secret_is_somewhere_definite() {
    let repository =
        |key: &str| format!("repositories:\n  a: {{ url: \"file:///srv\", encryption: {{ key: {key} }} }}");
    for (key, why) in [
        ("{ file: main.key }", "the secret's file \"main.key\" is not an absolute path"),
        ("{ command: [] }", "the command that prints the secret is empty"),
        ("{ command: [vault] }", "the command \"vault\" that prints the secret is not an absolute path"),
        ("{ env: \"\" }", "the secret's name is empty"),
    ] {
        refused(&repository(key), &format!("fleet.yaml:3:6: repositories.a: {why} [HF-1002]"));
    }
    let plain = "a secret is never written here: give a reference, one of { env: NAME }, { file: PATH }, \
                 { command: [ARGV] }, { credential: NAME } [HF-1005]";
    for key in ["canary-7f", "\"canary-7f\"", "{ canary-7f: x }"] {
        let found = errors(&format!("api: holdfast/v1\n{}", repository(key)));
        assert!(found[0].ends_with(plain) && !found[0].contains("canary"), "{found:?}");
    }
}
