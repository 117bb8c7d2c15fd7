//! What is declared and configured, with secrets masked.

use holdfast_model::{ErrorCode, Failure};
use serde_json::Value;

use super::reply::Reply;
use super::request::Call;
use super::views::ConfigView;

/// What stands in the place of a secret.
const MASK: &str = "***";

/// The ways to say where a secret is: what is said so is a reference, under whatever key.
const REFERENCES: &[&str] = &["env", "file", "command", "credential"];

/// The keys under which a definition holds a secret, always as a reference.
const SECRETS: &[&str] = &["key", "access_key", "secret_key", "password", "token", "secret", "session_token"];

pub(super) async fn show(call: Call) -> Result<Reply, Failure> {
    let json = |value: serde_json::Result<Value>| {
        value.map_err(|error| Failure::from_error(ErrorCode::Internal, &error))
    };
    let mut controller = json(serde_json::to_value(&*call.core().config.get()))?;
    let mut fleet = json(serde_json::to_value(&call.core().definitions.current().fleet))?;
    mask(&mut controller);
    mask(&mut fleet);
    Ok(Reply::item(ConfigView { controller, fleet }))
}

/// Masks where each secret is, not only what it is: the name of a file or the arguments of a command tell a thief where
/// to go. The kind of reference stays.
fn mask(value: &mut Value) {
    match value {
        Value::Object(map) if map.len() == 1 && map.keys().all(|key| REFERENCES.contains(&key.as_str())) => {
            map.values_mut().for_each(|place| *place = MASK.into());
        }
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                if !SECRETS.contains(&key.as_str()) {
                    mask(value);
                } else if let Value::Object(reference) = value {
                    reference.values_mut().for_each(|place| *place = MASK.into());
                } else if !value.is_null() {
                    *value = MASK.into();
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::String(text) => {
            if let Some(masked) = without_login(text) {
                *text = masked;
            }
        }
        _ => {}
    }
}

/// A URL without the user and password in it; nothing when there are none.
fn without_login(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let at = rest[..end].rfind('@')?;
    Some(format!("{scheme}://{MASK}{}", &rest[at..]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_of_secrets_and_logins_in_urls_are_masked() {
        let mut value = json!({
            "url": "https://user:pass@host/x@y", "plain": "https://host/x@y",
            "encryption": { "key": { "command": ["vault", "read"] } },
            "credentials": [{ "access_key": { "env": "KEY" }, "secret_key": "inline", "token": null }],
            "webhook": { "env": "URL" }, "signing_key": { "credential": "hook" },
            "command": { "command": ["dump"], "file": "x" },
        });
        mask(&mut value);
        let expected = json!({
            "url": "https://***@host/x@y", "plain": "https://host/x@y",
            "encryption": { "key": { "command": "***" } },
            "credentials": [{ "access_key": { "env": "***" }, "secret_key": "***", "token": null }],
            "webhook": { "env": "***" }, "signing_key": { "credential": "***" },
            "command": { "command": ["dump"], "file": "x" },
        });
        assert_eq!(value, expected);
    }
}
