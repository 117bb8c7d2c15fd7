//! Keys of the file that the environment overrides.

use holdfast_model::ErrorCode;
use holdfast_model::fleet::{self, FleetError};
use serde_json::{Map, Value};

use super::AgentDocument;

const PREFIX: &str = "HOLDFAST_AGENT__";

/// The variables that override a key, in the order of their names.
pub(super) fn overrides(variables: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut found: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    found.sort();
    found
}

/// Sets one key, and reads the whole document again so that an error names the variable it comes from.
pub(super) fn apply(tree: &mut Value, variable: &str, text: &str) -> Result<AgentDocument, FleetError> {
    let file = format!("environment variable {variable}");
    let path: Vec<&str> = variable[PREFIX.len()..].split("__").collect();
    // A text such as `8` may be meant as a number or as a name: the type of the key decides.
    let value = fleet::read_yaml::<Value>(&file, text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let before = tree.clone();
    set(tree, &path, value);
    match serde_json::from_value(tree.clone()) {
        Ok(document) => Ok(document),
        Err(first) => {
            *tree = before;
            set(tree, &path, Value::String(text.to_owned()));
            serde_json::from_value(tree.clone()).map_err(|_| {
                let message = first.to_string();
                let unknown = message.contains("unknown field");
                let code = if unknown { ErrorCode::FileUnknownKey } else { ErrorCode::FileInvalid };
                FleetError { code, file, position: None, message }
            })
        }
    }
}

fn set(tree: &mut Value, path: &[&str], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        *tree = value;
        return;
    };
    if !tree.is_object() {
        *tree = Value::Object(Map::new());
    }
    let Value::Object(map) = tree else { return };
    let key = map.keys().find(|key| same(key, first)).cloned().unwrap_or_else(|| first.to_lowercase());
    set(map.entry(key).or_insert(Value::Null), rest, value);
}

/// A variable's name has no dashes, dots or lower-case letters, the name of a hook may.
fn same(key: &str, part: &str) -> bool {
    key.len() == part.len()
        && key.bytes().zip(part.bytes()).all(|(a, b)| match a {
            b'-' | b'.' => b == b'_',
            a => a.eq_ignore_ascii_case(&b),
        })
}
