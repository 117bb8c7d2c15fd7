//! Bad faith towards what removes or keeps quiet.

use std::time::Duration;

use holdfast_controller::access::Role;

use super::{NO_CREDENTIALS, over_both, refused};

/// A request and its exact answer: role of the token, method, path, headers, body, status, code, message.
type Row<'a> = (Role, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str, &'a str);

const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];
const OTHER_SITE: &[(&str, &str)] =
    &[("Content-Type", "application/json"), ("Origin", "https://evil.example")];
const FORM: &[(&str, &str)] = &[("Content-Type", "text/plain")];
const OVERRIDE: &[(&str, &str)] = &[("X-HTTP-Method-Override", "POST")];

const CLEANUP: &str = "/api/v1/cleanup";
const PRUNE: &str = "/api/v1/repositories/main/prune";
const ACK: &str = "/api/v1/alerts/999/ack";
const SILENCES: &str = "/api/v1/silences";
const END: &str = "/api/v1/silences/1/end";

/// What begins to remove, or keeps quiet, asked for in bad faith.
const TABLE: &[Row<'_>] = &[
    (
        Role::Operator,
        "POST",
        CLEANUP,
        JSON,
        r#"{"dry_run":false}"#,
        403,
        "HF-6005",
        "the role operator may not call POST /api/v1/cleanup",
    ),
    (
        Role::Viewer,
        "POST",
        CLEANUP,
        JSON,
        "{}",
        403,
        "HF-6005",
        "the role viewer may not call POST /api/v1/cleanup",
    ),
    (
        Role::Operator,
        "POST",
        PRUNE,
        JSON,
        r#"{"dry_run":false}"#,
        403,
        "HF-6005",
        "the role operator may not call POST /api/v1/repositories/{name}/prune",
    ),
    (
        Role::Viewer,
        "POST",
        ACK,
        JSON,
        "{}",
        403,
        "HF-6005",
        "the role viewer may not call POST /api/v1/alerts/{id}/ack",
    ),
    (
        Role::PolicyAdmin,
        "POST",
        SILENCES,
        JSON,
        "{}",
        403,
        "HF-6005",
        "the role policy-admin may not call POST /api/v1/silences",
    ),
    (
        Role::Viewer,
        "POST",
        END,
        &[],
        "",
        403,
        "HF-6005",
        "the role viewer may not call POST /api/v1/silences/{id}/end",
    ),
    (Role::Admin, "GET", CLEANUP, OVERRIDE, "", 405, "HF-1030", "GET is not possible here, POST is"),
    (Role::Admin, "DELETE", "/api/v1/silences/1", &[], "", 404, "HF-4001", "there is nothing at this path"),
    (Role::Admin, "TRACE", SILENCES, &[], "", 405, "HF-1030", "TRACE is not possible here, GET, POST is"),
    (Role::Admin, "PUT", PRUNE, JSON, "{}", 405, "HF-1030", "PUT is not possible here, POST is"),
    (
        Role::Admin,
        "POST",
        "/api/v1/alerts/1/../1/ack",
        JSON,
        "{}",
        404,
        "HF-4001",
        "there is nothing at this path",
    ),
    (Role::Admin, "POST", "/api/v1//cleanup", JSON, "{}", 404, "HF-4001", "there is nothing at this path"),
    (Role::Admin, "POST", "/api/v1/cleanup;x=1", JSON, "{}", 404, "HF-4001", "there is nothing at this path"),
    (
        Role::Admin,
        "POST",
        "/api/v1/repositories/%2e%2e/prune",
        JSON,
        "{}",
        400,
        "HF-1001",
        "field name: repository name \"..\" is not valid: it must begin with a lower-case letter or a digit",
    ),
    (
        Role::Admin,
        "POST",
        CLEANUP,
        JSON,
        r#"{"dry_run":false,"dry_run":true}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: duplicate field `dry_run` at line 1 column 26",
    ),
    (
        Role::Admin,
        "POST",
        CLEANUP,
        JSON,
        r#"{"dry_run":"false"}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: invalid type: string \"false\", expected a boolean at line 1 column 18",
    ),
    (
        Role::Admin,
        "POST",
        CLEANUP,
        JSON,
        r#"{"dry_run":0}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: invalid type: integer `0`, expected a boolean at line 1 column 12",
    ),
    (
        Role::Admin,
        "POST",
        CLEANUP,
        JSON,
        r#"{"dryrun":false}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: unknown field `dryrun`, expected `name` or `dry_run` at line 1 column 9",
    ),
    (
        Role::Admin,
        "POST",
        CLEANUP,
        JSON,
        r#"{"dry_run":false} x"#,
        400,
        "HF-1030",
        "the body is not what is asked for: trailing characters at line 1 column 19",
    ),
    (
        Role::Admin,
        "POST",
        CLEANUP,
        JSON,
        r#"["tree",false]"#,
        400,
        "HF-1030",
        "the body is not a JSON object",
    ),
    (Role::Admin, "POST", CLEANUP, JSON, "", 400, "HF-1030", "the body is not a JSON object"),
    (
        Role::Admin,
        "POST",
        PRUNE,
        JSON,
        r#"{"dry_run":false,"confirm":["main"]}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: invalid type: sequence, expected a string at line 1 column 27",
    ),
    (
        Role::Admin,
        "POST",
        SILENCES,
        JSON,
        r#"{"match":{},"for_seconds":60,"reason":"x"}"#,
        400,
        "HF-1001",
        "field match_json: fits every alert: say which",
    ),
    (
        Role::Admin,
        "POST",
        SILENCES,
        JSON,
        r#"{"match":{"sauce":"x"},"for_seconds":60,"reason":"x"}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: unknown field `sauce`, expected one of `alert`, `source`, `repository`, `agent`, `reason`, `severity`, `labels` at line 1 column 17",
    ),
    (
        Role::Admin,
        "POST",
        SILENCES,
        JSON,
        r#"{"match":{"source":"x"},"for_seconds":60}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: missing field `reason` at line 1 column 41",
    ),
    (
        Role::Admin,
        "POST",
        SILENCES,
        JSON,
        r#"{"match":{"source":"x"},"for_seconds":60,"reason":" "}"#,
        400,
        "HF-1001",
        "field reason: is missing: the next person wants to know",
    ),
    (
        Role::Admin,
        "POST",
        SILENCES,
        JSON,
        r#"{"match":{"source":"x"},"for_seconds":-1,"reason":"x"}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: invalid value: integer `-1`, expected u32 at line 1 column 40",
    ),
    (
        Role::Admin,
        "POST",
        SILENCES,
        JSON,
        r#"{"match":{"source":"x"},"for_seconds":1e9,"reason":"x"}"#,
        400,
        "HF-1030",
        "the body is not what is asked for: invalid type: floating point `1000000000.0`, expected u32 at line 1 column 41",
    ),
    (
        Role::Admin,
        "POST",
        SILENCES,
        JSON,
        r#"{"match":{"source":"x"},"for_seconds":4000000000,"reason":"x"}"#,
        400,
        "HF-1001",
        "field for_seconds: is not between a second and 366 days",
    ),
    (Role::Admin, "POST", END, JSON, "{}", 400, "HF-1030", "this request takes no body"),
    (
        Role::Admin,
        "POST",
        CLEANUP,
        OTHER_SITE,
        r#"{"dry_run":false}"#,
        403,
        "HF-6010",
        "the request comes from a page of another site",
    ),
    (
        Role::Admin,
        "POST",
        PRUNE,
        FORM,
        r#"{"dry_run":false}"#,
        415,
        "HF-1030",
        "the body must be application/json",
    ),
    (
        Role::Admin,
        "POST",
        END,
        OTHER_SITE,
        "",
        403,
        "HF-6010",
        "the request comes from a page of another site",
    ),
    (
        Role::Admin,
        "POST",
        CLEANUP,
        JSON,
        r#"{"name":"<img src=x onerror=alert(1)>"}"#,
        400,
        "HF-1001",
        "field name: policy name \"<img src=x onerror=alert(1)>\" is not valid: it must begin with a lower-case letter or a digit",
    ),
    (
        Role::Admin,
        "POST",
        "/api/v1/repositories/%7B%7B7*7%7D%7D/prune",
        JSON,
        "{}",
        400,
        "HF-1001",
        "field name: repository name \"{{7*7}}\" is not valid: it must begin with a lower-case letter or a digit",
    ),
    (
        Role::Admin,
        "GET",
        "/api/v1/alerts/javascript%3Ax",
        &[],
        "",
        400,
        "HF-1030",
        "\"javascript:x\" in the path is not a number",
    ),
    (Role::Admin, "GET", "/api/v1/alerts/-1", &[], "", 400, "HF-1030", "\"-1\" in the path is not a number"),
    (
        Role::Admin,
        "GET",
        "/api/v1/alerts/1e9",
        &[],
        "",
        400,
        "HF-1030",
        "\"1e9\" in the path is not a number",
    ),
    (
        Role::Admin,
        "GET",
        "/api/v1/alerts/99999999999999999999",
        &[],
        "",
        400,
        "HF-1030",
        "\"99999999999999999999\" in the path is not a number",
    ),
    (
        Role::Admin,
        "GET",
        "/api/v1/alerts/18446744073709551615",
        &[],
        "",
        404,
        "HF-4001",
        "there is no alert 18446744073709551615",
    ),
    (
        Role::Admin,
        "GET",
        "/api/v1/alerts?all=1",
        &[],
        "",
        400,
        "HF-1030",
        "`all` is \"1\", true and false are possible",
    ),
    (
        Role::Admin,
        "GET",
        "/api/v1/alerts?all=true&all=true",
        &[],
        "",
        400,
        "HF-1030",
        "the query parameter \"all\" is there more than once",
    ),
    (
        Role::Admin,
        "POST",
        "/api/v1/cleanup?dry_run=false",
        JSON,
        "{}",
        400,
        "HF-1030",
        "there is no query parameter \"dry_run\"; possible: none",
    ),
    (Role::Admin, "POST", ACK, JSON, "{}", 404, "HF-4001", "there is no alert 999"),
    (Role::Admin, "POST", END, &[], "", 404, "HF-4001", "there is no silence 1"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_would_remove_or_silence_has_its_exact_refusal() {
    over_both(async |fleet, rest| {
        for (role, method, path, headers, body, status, code, message) in TABLE {
            let token = fleet.token_of(*role, Duration::from_secs(60)).await;
            let answer = rest.with_token(&token).request(method, path, headers, body);
            let expected = (*status, (*code).to_owned(), (*message).to_owned());
            assert_eq!(answer.error(), expected, "{} {method} {path} {body}", rest.version());
            refused(&answer, *status, code, message);
            // Strangers do not even learn that much.
            if *code != "HF-6010" {
                let stranger = rest.without_token().request(method, path, headers, body);
                refused(&stranger, 401, "HF-6004", NO_CREDENTIALS);
            }
        }
    })
    .await;
}
