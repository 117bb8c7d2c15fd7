//! Keys of a configuration file that the environment overrides.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{FleetError, read_yaml};
use crate::ErrorCode;

/// Reads a configuration file as [`read_yaml`] does, then replaces keys by environment variables: `prefix` and the path
/// of the key in capitals, joined by `__`. Values are read as YAML, so that numbers and lists can be given.
///
/// # Errors
/// Those of [`read_yaml`] with their place in the file; of a variable by its name, `HF-1003` when it names no key and
/// `HF-1002` when its value does not fit.
pub fn read_with_environment<T: DeserializeOwned>(
    file: &str,
    text: &str,
    prefix: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<T, FleetError> {
    let mut document = read_yaml(file, text)?;
    let mut overrides: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with(prefix)).collect();
    if !overrides.is_empty() {
        overrides.sort();
        let mut tree: Value = read_yaml(file, text)?;
        for (variable, value) in &overrides {
            document = apply(&mut tree, variable, &variable[prefix.len()..], value)?;
        }
    }
    Ok(document)
}

/// Sets one key, and reads the whole document again so that an error names the variable it comes from.
fn apply<T: DeserializeOwned>(
    tree: &mut Value,
    variable: &str,
    path: &str,
    text: &str,
) -> Result<T, FleetError> {
    let file = format!("environment variable {variable}");
    let path: Vec<&str> = path.split("__").collect();
    // A text such as `8` may be meant as a number or as a name: the type of the key decides.
    let value = read_yaml::<Value>(&file, text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let before = tree.clone();
    set(tree, &path, value);
    match serde_json::from_value(tree.clone()) {
        Ok(document) => Ok(document),
        Err(first) => {
            *tree = before;
            set(tree, &path, Value::String(text.to_owned()));
            serde_json::from_value(tree.clone()).map_err(|_| {
                let message = first.to_string();
                // What serde says of `deny_unknown_fields`; it has no kinds.
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
