//! Requests that nobody sends in good faith: each has its exact answer over HTTP/1.1 and over HTTP/2, and the controller
//! goes on as before, with the same state.
//!
//! | what is sent | held by |
//! |---|---|
//! | no token, an ended one, one of another role | `tokens_that_are_missing_…`, table |
//! | other methods, overrides of methods | `a_method_is_what_the_first_line_says`, table |
//! | paths with dots, doubled slashes, parameters; names that are scripts | `a_path_is_taken_as_it_is_written`, table |
//! | JSON that is deep, doubled, too large, followed by something | `json_is_read_strictly`, table |
//! | other hosts and origins, forms, sockets of other sites | `requests_to_other_hosts_…`, table |
//! | numbers out of bounds, cursors that nobody gave | `queries_and_headers_have_bounds`, table |
//! | addresses that only the controller's host can reach | `nobody_is_told_at_addresses_…` |
//! | line breaks in headers | `what_would_break_out_of_a_header_…` |
//! | a thousand guesses at once | `a_thousand_guesses_at_once_…` |

mod table;

use std::io::Read as _;
use std::time::{Duration, Instant};

use holdfast_controller::access::Role;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::http::Answer;
use holdfast_tests::wait::{PATIENCE, until_true};
use holdfast_tests::{Fleet, HttpClient};
use serde_json::{Value, json};

use super::fleet_with_source;

fn refused(answer: &Answer, status: u16, code: &str, message: &str) {
    assert_eq!(answer.error(), (status, code.to_owned(), message.to_owned()));
    for (name, value) in [
        ("content-type", "application/json"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{answer:?}");
    }
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

/// All that a request could have changed.
fn state(fleet: &Fleet) -> Value {
    let rest = fleet.rest();
    let items = |path: &str| json!(rest.get(path).items());
    // What is known of a storage is not known before it was looked at.
    until_true("the repository to be looked at", PATIENCE, || {
        rest.get("/api/v1/stats").items()[0]["repositories"][0]["up"] == true
    });
    let stats = rest.get("/api/v1/stats").items().remove(0);
    assert!(fleet.controller().core().runs.active().is_empty());
    json!({
        "config": items("/api/v1/config"), "runs": stats["runs"], "repositories": stats["repositories"],
        "backups": items("/api/v1/backups"), "silences": items("/api/v1/silences"),
    })
}

/// Checks a fleet over both versions of HTTP: afterwards the controller answers, and its state is as before.
async fn over_both(check: impl AsyncFn(&Fleet, HttpClient)) {
    let fleet = fleet_with_source().await;
    fleet.backup_well("tree", "full").await;
    let before = state(&fleet);
    for rest in [fleet.rest(), fleet.rest().over_http2()] {
        let version = rest.version();
        check(&fleet, rest).await;
        assert_eq!(state(&fleet), before, "{version}");
    }
    fleet.stop().await;
}

const NO_CREDENTIALS: &str = "no valid token or agent certificate was given";

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_missing_wrong_ended_or_of_another_role_open_nothing() {
    over_both(async |fleet, rest| {
        let nobody = rest.without_token();
        let answer = nobody.get("/api/v1/stats");
        refused(&answer, 401, "HF-6004", NO_CREDENTIALS);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"holdfast\""));
        // Strangers do not learn which paths there are.
        refused(&nobody.get("/api/v1/nothing"), 401, "HF-6004", NO_CREDENTIALS);
        refused(&nobody.request("DELETE", "/api/v1/backups", &[], ""), 401, "HF-6004", NO_CREDENTIALS);

        let ended = fleet.token_of(Role::Admin, Duration::ZERO).await;
        let message = "the token is unknown or expired";
        for token in ["", "x", "hfo_00_00", &ended] {
            refused(&rest.with_token(token).get("/api/v1/stats"), 401, "HF-6004", message);
        }
        let basic =
            nobody.request("GET", "/api/v1/stats", &[("Authorization", "Basic YWRtaW46YWRtaW4=")], "");
        refused(&basic, 401, "HF-6004", message);
        let viewer = rest.with_token(&fleet.token_of(Role::Viewer, Duration::from_secs(60)).await);
        let answer = viewer.post("/api/v1/backups", r#"{"source":"tree"}"#);
        refused(&answer, 403, "HF-6005", "the role viewer may not call POST /api/v1/backups");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_is_what_the_first_line_says() {
    over_both(async |_, rest| {
        for method in ["DELETE", "PUT", "PATCH", "TRACE", "OPTIONS", "FOO"] {
            let answer = rest.request(method, "/api/v1/backups", &[], "");
            let message = format!("{method} is not possible here, GET, POST is");
            refused(&answer, 405, "HF-1030", &message);
            assert_eq!(answer.header("allow"), Some("GET, POST"));
        }
        for header in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"] {
            let answer = rest.request("GET", "/api/v1/backups", &[(header, "POST")], "");
            assert_eq!(answer.items().len(), 1);
        }
        let head = rest.request("HEAD", "/api/v1/stats", &[], "");
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        let nobody = rest.without_token();
        assert_eq!(nobody.request("HEAD", "/api/v1/stats", &[], "").status, 401);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_taken_as_it_is_written() {
    over_both(async |_, rest| {
    for path in [
        "/api/../metrics",
        "/api/v1/../v1/stats",
        "/api/v1/%2e%2e/stats",
        "//api/v1/stats",
        "/api/v1//stats",
        "/api/v1/stats/",
        "/api/v1/stats;x=1",
        "/API/v1/stats",
        "/api/v1/stats%00",
        "/api/v1/stat%73/",
        "/api/v1/sources//status",
    ] {
        let answer = rest.get(path);
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        refused(&answer, 404, "HF-4001", "there is nothing at this path");
    }
    let dots = rest.get("/api/v1/backups/%2e%2e");
    refused(&dots, 404, "HF-3014", "no snapshot has an id that begins with \"..\"");
    let slash = rest.get("/api/v1/backups/a%2fb");
    refused(&slash, 404, "HF-3014", "no snapshot has an id that begins with \"a/b\"");
    let script = rest.get("/api/v1/sources/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E/status");
    let name = "<img src=x onerror=alert(1)>";
    let message = format!(
        "field source: source name \"{name}\" is not valid: it must begin with a lower-case letter or a digit"
    );
    refused(&script, 400, "HF-1001", &message);
    for name in ["javascript:x", "{{7*7}}", "=cmd|x"] {
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(rest.get(&format!("/api/v1/sources/{encoded}/status")).error().1, "HF-1001", "{name}");
    }
    }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_read_strictly() {
    over_both(async |_, rest| {
        let deep = format!("{{\"source\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        for (body, why) in [
            (deep.as_str(), "invalid type: sequence, expected a string at line 1 column 10"),
            (r#"{"source":"tree","source":"tree"}"#, "duplicate field `source` at line 1 column 25"),
            (r#"{"source":1e400}"#, "number out of range at line 1 column 15"),
            (r#"{"source":"tree"} x"#, "trailing characters at line 1 column 19"),
            (r#"{"source":"tree"}{}"#, "trailing characters at line 1 column 18"),
            (
                r#"{"sauce":"tree"}"#,
                "unknown field `sauce`, expected one of `source`, `snapshot_type`, `repository`, `milestone` \
             at line 1 column 8",
            ),
            ("{'source':'tree'}", "key must be a string at line 1 column 2"),
            (r#"{"source":"tree""#, "EOF while parsing an object at line 1 column 16"),
        ] {
            let message = format!("the body is not what is asked for: {why}");
            refused(&rest.post("/api/v1/backups", body), 400, "HF-1030", &message);
        }
        let injected = rest.post("/api/v1/backups", "{\"a\\nb\\u001b[31m\":1}").error().2;
        assert!(injected.contains("unknown field `a\u{fffd}b\u{fffd}[31m`"), "{injected}");
        let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        for body in [r#"["tree"]"#, "null", "\"tree\"", " [] ", &nested] {
            let answer = rest.post("/api/v1/backups", body);
            refused(&answer, 400, "HF-1030", "the body is not a JSON object");
        }
        let long = format!("{{\"source\":\"{}\"}}", "x".repeat(70_000));
        refused(&rest.post("/api/v1/backups", &long), 413, "HF-1030", "the body is longer than 65536 bytes");
        let surplus = rest.post("/api/v1/backups/0123/verify", "{}");
        refused(&surplus, 400, "HF-1030", "this request takes no body");
        let surplus = rest.request("GET", "/api/v1/stats", &[("Content-Type", "application/json")], "{}");
        refused(&surplus, 400, "HF-1030", "this request takes no body");
        let unknown = rest.post("/api/v1/backups", r#"{"source":"nothing"}"#);
        refused(&unknown, 404, "HF-4001", "there is no source nothing");
        let kind = rest.post("/api/v1/backups", r#"{"source":"tree","snapshot_type":"half"}"#);
        let message = "field snapshot_type: \"half\" is not one of full, incremental, differential, snapshot";
        refused(&kind, 400, "HF-1001", message);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_other_hosts_and_from_other_sites_are_refused() {
    over_both(async |fleet, rest| {
        let port = fleet.controller().http_address().unwrap().port();
        let message = "the request names a host that is not this one";
        for host in ["evil", "evil.example:80", "127.0.0.2", "127.0.0.1.evil", "[::1]", "0x7f000001"] {
            refused(&rest.request("GET", "/ping", &[("Host", host)], ""), 421, "HF-6010", message);
        }
        // What a client of HTTP/2 refuses to send.
        let old = fleet.rest();
        for host in ["", "localhost@evil"] {
            refused(&old.request("GET", "/ping", &[("Host", host)], ""), 421, "HF-6010", message);
        }
        let twice = old.request("GET", "/ping", &[("Host", "localhost"), ("Host", "evil")], "");
        refused(&twice, 421, "HF-6010", message);
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1"] {
            assert_eq!(rest.request("GET", "/ping", &[("Host", host)], "").status, 200, "{host}");
        }
        let message = "the request comes from a page of another site";
        let wanted = r#"{"source":"tree"}"#;
        for origin in
            ["null", "https://evil.example", "http://127.0.0.1", &format!("https://127.0.0.1:{port}"), "*"]
        {
            let headers = [("Origin", origin), ("Content-Type", "application/json")];
            refused(&rest.request("POST", "/api/v1/backups", &headers, wanted), 403, "HF-6010", message);
            refused(&rest.request("GET", "/api/v1/events", &headers[..1], ""), 403, "HF-6010", message);
        }
        let own = format!("http://127.0.0.1:{port}");
        assert_eq!(rest.request("GET", "/api/v1/stats", &[("Origin", &own)], "").status, 200);
        // What a form of another site can send without asking first.
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/jsonx",
        ] {
            let answer = rest.request("POST", "/api/v1/backups", &[("Content-Type", kind)], wanted);
            refused(&answer, 415, "HF-1030", "the body must be application/json");
        }
        let answer = rest.request("POST", "/api/v1/backups", &[], wanted);
        refused(&answer, 415, "HF-1030", "the body must be application/json");
        let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")];
        assert_eq!(old.request("GET", "/api/v1/events?after=x", &upgrade, "").status, 400);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_and_headers_have_bounds() {
    over_both(async |_, rest| {
        for limit in ["-1", "0", "1001", "1e9", "1e400", "0x10", ""] {
            let message = format!("`limit` is {limit:?}, 1 to 1000 are possible");
            refused(&rest.get(&format!("/api/v1/backups?limit={limit}")), 400, "HF-1030", &message);
        }
        for cursor in ["x", "%00", "eA", "../../etc/passwd"] {
            let answer = rest.get(&format!("/api/v1/backups?cursor={cursor}"));
            refused(&answer, 400, "HF-1030", "`cursor` is not one that an answer gave");
        }
        let message = "there is no query parameter \"sauce\"; possible: source, repository, limit, cursor";
        refused(&rest.get("/api/v1/backups?sauce=tree"), 400, "HF-1030", message);
        refused(
            &rest.get("/api/v1/stats?x"),
            400,
            "HF-1030",
            "there is no query parameter \"x\"; possible: none",
        );
        let twice = rest.get("/api/v1/backups?limit=1&limit=2");
        refused(&twice, 400, "HF-1030", "the query parameter \"limit\" is there more than once");

        let wanted = r#"{"source":"tree"}"#;
        for key in ["", "ü", &"k".repeat(129)] {
            let headers = [("Idempotency-Key", key), ("Content-Type", "application/json")];
            let answer = rest.request("POST", "/api/v1/backups", &headers, wanted);
            refused(&answer, 400, "HF-1030", "Idempotency-Key must be 1 to 128 visible ASCII characters");
        }
        let large = rest.request("GET", "/ping", &[("X-A", &"a".repeat(20_000))], "");
        assert_eq!(large.status, 431);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_break_out_of_a_header_or_a_log_never_gets_in() {
    over_both(async |_, rest| {
        if rest.version() == "HTTP/1.1" {
            for bad in ["X-A: a\nX-B", "X-A: a\0b", "X A", "X-A: a\rb"] {
                let head = format!("GET /api/v1/stats HTTP/1.1\r\nHost: localhost\r\n{bad}: c\r\n\r\n");
                let status = rest.raw(head.as_bytes()).map(|answer| answer.status);
                assert!(matches!(status, Some(400 | 401)), "{bad:?}: {status:?}");
            }
            return;
        }
        let names_and_values: [(&[u8], &[u8]); 5] = [
            (b"x-a", b"a\r\nx-b: c"),
            (b"x-a", b"a\0b"),
            (b"x\na", b"b"),
            (b"X-A", b"b"),
            (b"connection", b"close"),
        ];
        for (name, value) in names_and_values {
            // RST_STREAM or GOAWAY with PROTOCOL_ERROR.
            let answer = rest.raw_http2(name, value);
            assert!(matches!(answer, (3 | 7, 1)), "{name:?}: {answer:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_at_addresses_that_only_this_host_can_reach() {
    let fleet = fleet_with_source().await;
    let hook = |url: &str| {
        format!("notifications: {{ channels: {{ hook: {{ type: webhook, url: \"{url}\" }} }} }}\n")
    };
    for url in ["file:///etc/passwd", "gopher://127.0.0.1/", "https://user:pass@198.51.100.7/"] {
        let refused = fleet.apply(&hook(url)).await.unwrap_err();
        let why = "https://HOST/PATH is needed, without a name and password in it";
        assert_eq!(refused.code.to_string(), "HF-1002", "{refused}");
        assert!(refused.message.ends_with(why) && !refused.message.contains("user:pass"), "{refused}");
    }
    for (url, why) in [
        (
            "http://169.254.169.254/latest/meta-data",
            "169.254.169.254 leads to 169.254.169.254, where nothing may be sent",
        ),
        ("https://[::1]/", "[::1] leads to ::1, which is not public"),
        ("https://0x7f000001/", "127.0.0.1 leads to 127.0.0.1, which is not public"),
        ("https://localhost/", "which is not public"),
    ] {
        fleet.apply(&hook(url)).await.unwrap();
        let request = v1::TestChannelRequest { channel: "hook".to_owned() };
        let failure = from_status(&fleet.notifications().test(request).await.unwrap_err());
        let said = format!("{} {}", failure.message, failure.why.join(" "));
        assert!(failure.code.to_string() == "HF-4051" && said.contains(why), "{url}: {failure:?}");
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_guesses_at_once_and_a_slow_sender_keep_nobody_out() {
    let fleet = fleet_with_source().await;
    let (rest, before) = (fleet.rest(), state(&fleet));
    let guesses: Vec<_> = (0..1000)
        .map(|number| {
            let guess = rest.with_token(&format!("hfo_{number:016x}_{number:064x}"));
            let guess = if number % 2 == 0 { guess } else { guess.over_http2() };
            std::thread::spawn(move || guess.get("/api/v1/stats").status)
        })
        .collect();
    assert_eq!(rest.get("/ping").status, 200);
    for guess in guesses {
        let status = guess.join().unwrap();
        assert!(matches!(status, 401 | 503), "{status}");
    }
    // Sends the beginning of its headers, and nothing more.
    let begun = Instant::now();
    let mut slow = rest.open(b"GET /ping HTTP/1.1\r\nHost: ");
    let mut rest_of_it = Vec::new();
    let _ = slow.read_to_end(&mut rest_of_it);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(!String::from_utf8_lossy(&rest_of_it).contains("200 OK"));
    assert_eq!(state(&fleet), before);
    fleet.stop().await;
}
