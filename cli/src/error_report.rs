//! How an error is told: what happened, why, what is at stake now, what to do next, where to look.

use serde::Serialize;

use crate::error::CliError;
use crate::output::Palette;
use crate::output::text::plain;

/// For people.
pub(crate) fn render(error: &CliError, palette: Palette) -> String {
    let failure = error.failure();
    let code = palette.bad(&format!("error[{}]", failure.code));
    let mut text = format!("{code}: {}\n", plain(&failure.message));
    let mut section = |word: &str, lines: &[String]| {
        for (index, line) in lines.iter().enumerate() {
            let word = if index == 0 { word } else { "" };
            let label = palette.dim(&format!("{word:<4}"));
            text.push_str(&format!("  {label}   {}\n", indented(line)));
        }
    };
    section("why", &failure.why);
    section("now", failure.now.as_slice());
    section("next", &failure.next);
    let mut reference = Vec::new();
    if let Some(run) = error.run() {
        reference.push(format!("run {run}"));
    }
    if let Some(trace) = error.trace() {
        reference.push(format!("trace {trace}"));
    }
    reference.push(format!("holdfast explain {}", failure.code));
    section("ref", &[reference.join("   ")]);
    text
}

/// A text of several lines stays under its label.
fn indented(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n         ")
}

#[derive(Serialize)]
struct Document<'a> {
    api: &'static str,
    kind: &'static str,
    code: String,
    message: &'a str,
    why: &'a [String],
    now: Option<&'a str>,
    next: &'a [String],
    run_id: Option<&'a str>,
    trace_id: Option<&'a str>,
    exit_status: u8,
}

/// For machines: one JSON object on one line.
pub(crate) fn render_json(error: &CliError) -> String {
    let failure = error.failure();
    let document = Document {
        api: crate::output::API,
        kind: "Error",
        code: failure.code.to_string(),
        message: &failure.message,
        why: &failure.why,
        now: failure.now.as_deref(),
        next: &failure.next,
        run_id: error.run(),
        trace_id: error.trace(),
        exit_status: error.exit_status().number(),
    };
    let mut line = serde_json::to_string(&document).expect("texts and numbers always serialise");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use holdfast_model::{ErrorCode, Failure};

    use super::*;

    fn refused_login() -> CliError {
        let failure =
            Failure::new(ErrorCode::SourceLoginRefused, "pg-main: login refused for role \"holdfast\"")
                .because("password authentication failed (28P01)")
                .because("last worked 02:10:44, before agent db7 restarted")
                .at_stake("newest restorable point is 02:10:44")
                .then("holdfast source test pg-main");
        CliError::from(failure)
            .of_run("9f2c11e1")
            .of_trace(Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()))
    }

    #[test]
    fn an_error_says_what_why_now_next_and_ref() {
        insta::assert_snapshot!(render(&refused_login(), Palette::plain()), @r#"
        error[HF-2002]: pg-main: login refused for role "holdfast"
          why    password authentication failed (28P01)
                 last worked 02:10:44, before agent db7 restarted
          now    newest restorable point is 02:10:44
          next   holdfast source test pg-main
          ref    run 9f2c11e1   trace 4bf92f3577b34da6a3ce929d0e0e4736   holdfast explain HF-2002
        "#);
    }

    #[test]
    fn sections_without_content_are_left_out() {
        let error = CliError::usage("a name is needed");
        insta::assert_snapshot!(render(&error, Palette::plain()), @r"
        error[HF-1001]: a name is needed
          ref    holdfast explain HF-1001
        ");
    }

    #[test]
    fn machines_get_one_object_on_one_line() {
        let line = render_json(&refused_login());
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["code"], "HF-2002");
        assert_eq!(value["exit_status"], 5);
        assert_eq!(value["why"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn control_characters_of_a_message_do_not_reach_the_terminal() {
        let error = CliError::usage("no source \u{1b}]0;owned\u{7}x\u{202e}");
        assert_eq!(
            render(&error, Palette::plain()).lines().next(),
            Some(r"error[HF-1001]: no source \u{1b}]0;owned\u{7}x\u{202e}")
        );
    }
}
