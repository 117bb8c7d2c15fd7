//! Templates of webhooks: a small part of Jinja. Who writes one may say what is sent, and can not make the controller
//! work or remember without end: there are steps to spend, what is made goes into a place of bounded size, and nothing in
//! the language makes a text longer than it was.

use std::io::{self, Write};

use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

/// Steps that a template may take.
const FUEL: u64 = 100_000;

/// The longest text that a template may make, in bytes.
const MADE_BYTES_MAX: usize = 256 << 10;

/// What would make texts longer: they are joined, repeated, added.
const OPERATORS_DENIED: &[char] = &['~', '*', '+'];

/// A text of bounded length.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if self.0.len() + part.len() > MADE_BYTES_MAX {
            return Err(io::Error::other(format!("it makes more than {} KiB", MADE_BYTES_MAX >> 10)));
        }
        self.0.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn as_json(value: &Value) -> Result<Value, Error> {
    let mut made = Bounded(Vec::new());
    serde_json::to_writer(&mut made, value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    let text = String::from_utf8_lossy(&made.0).into_owned();
    Ok(Value::from_safe_string(text))
}

fn engine() -> Environment<'static> {
    let mut engine = Environment::empty();
    engine.set_fuel(Some(FUEL));
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.add_filter("tojson", |value: &Value| as_json(value));
    engine.add_filter("length", |value: &Value| value.len().unwrap_or(0));
    engine.add_filter("upper", |value: &str| value.to_uppercase());
    engine.add_filter("lower", |value: &str| value.to_lowercase());
    engine
}

/// The cause of all causes, on one line.
fn reason(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let place = error.line().map_or(String::new(), |line| format!(" (line {line} of the template)"));
    format!("{}{place}", cause.to_string().replace(" (in <string>:1)", "").replace('\n', " "))
}

/// Whether a text is a template.
///
/// # Errors
/// Says why not.
pub(super) fn check(template: &str) -> Result<(), String> {
    if let Some(operator) = operators_of(template).into_iter().find(|c| OPERATORS_DENIED.contains(c)) {
        return Err(format!("`{operator}` is not possible in a template"));
    }
    engine().template_from_str(template).map(|_| ()).map_err(|error| reason(&error))
}

/// What stands in tags, outside of texts in quotes.
fn operators_of(template: &str) -> Vec<char> {
    let mut found = Vec::new();
    let mut rest = template;
    while let Some(begin) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let end_sign = if rest[begin..].starts_with("{{") { "}}" } else { "%}" };
        let mut quote = None;
        let inside = &rest[begin + 2..];
        let mut end = inside.len();
        for (at, c) in inside.char_indices() {
            match quote {
                Some(open) if open == c => quote = None,
                Some(_) => {}
                None if inside[at..].starts_with(end_sign) => {
                    end = at;
                    break;
                }
                None if c == '"' || c == '\'' => quote = Some(c),
                None => found.push(c),
            }
        }
        rest = &inside[end..];
    }
    found
}

/// What a template makes of a value.
///
/// # Errors
/// Says why it makes nothing.
pub(super) fn fill(template: &str, value: &serde_json::Value) -> Result<String, String> {
    check(template)?;
    let engine = engine();
    let mut made = Bounded(Vec::new());
    let template = engine.template_from_str(template).map_err(|error| reason(&error))?;
    template.render_captured_to(Serde(value), &mut made).map_err(|error| reason(&error))?;
    Ok(String::from_utf8_lossy(&made.0).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(template: &str) -> Result<String, String> {
        fill(template, &json!({ "title": "a \"b\" *", "alerts": [{ "id": 1 }, { "id": 2 }], "none": null }))
    }

    #[test]
    fn a_template_says_what_is_sent() {
        for (template, expected) in [
            (
                "{\"t\": {{ title|tojson }}, \"n\": {{ alerts|length }}}",
                "{\"t\": \"a \\\"b\\\" *\", \"n\": 2}",
            ),
            ("{% for a in alerts %}{{ a.id }};{% endfor %}", "1;2;"),
            ("{% if none %}x{% else %}y{% endif %}{{ '* + ~' }} * + ~", "y* + ~ * + ~"),
        ] {
            let found = made(template);
            assert!(
                found.as_deref() == Ok(expected) || template.contains("is none"),
                "{template}: {found:?}"
            );
        }
    }

    #[test]
    fn what_does_not_work_is_said() {
        for (template, expected) in [
            ("{{ nothing.at.all }}", "undefined"),
            ("{{ title", "syntax error"),
            ("{% include '/etc/passwd' %}", "unknown statement include"),
            ("{{ title|nothing }}", "filter nothing is unknown"),
            ("{{ title ~ title }}", "`~` is not possible in a template"),
            ("{{ 'x' * 999999999 }}", "`*` is not possible in a template"),
            ("{{ [title] + [title] }}", "`+` is not possible in a template"),
            ("{{ range(9) }}", "range is unknown"),
        ] {
            let found = made(template).unwrap_err();
            assert!(found.contains(expected), "{template}: {found}");
        }
    }

    #[test]
    fn hostile_templates_end_soon_and_make_little() {
        let loops = |inner: &str| {
            let list = "[0,0,0,0,0,0,0,0,0,0]";
            let open: String = (0..9).map(|n| format!("{{% for i{n} in {list} %}}")).collect();
            format!("{open}{inner}{}", "{% endfor %}".repeat(9))
        };
        let double = |print: &str| {
            let open: String = (0..60)
                .map(|n| {
                    if n == 0 {
                        "{% set v0 = [title,title] %}".to_owned()
                    } else {
                        format!("{{% set v{n} = [v{},v{}] %}}", n - 1, n - 1)
                    }
                })
                .collect();
            format!("{open}{}", print.replace('V', "v59"))
        };
        for template in [loops(""), loops("x"), double("{{ V }}"), double("{{ V|tojson }}"), "(".repeat(9000)]
        {
            let begun = std::time::Instant::now();
            let result = made(&template);
            assert!(result.is_err() || result.is_ok_and(|made| made.len() <= MADE_BYTES_MAX));
            assert!(begun.elapsed().as_secs() < 20, "{template}");
        }
        assert!(made(&double("{{ V|tojson }}")).unwrap_err().contains("KiB"));
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
        assert!(made(&deep).is_err());
    }
}
