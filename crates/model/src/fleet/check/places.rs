//! Places that definitions name: folders, files, hosts and addresses of repositories.

use std::path::{Component, Path};

use crate::repository_spec::RepositorySpec;
use crate::secret::SecretRef;
use crate::source::{EngineConfig, Source};

/// Why a variable in a value is refused.
const VARIABLES_STAY: &str =
    "variables are not filled in here; write the value, or fill it in before the file is applied";

/// What is wrong with the places of a source: the key, and why.
pub(super) fn problems(source: &Source) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    match &source.engine {
        EngineConfig::Postgres(config) => {
            problems.extend(variable("connect", &config.connect.host));
            if let Some(password) = &config.connect.password {
                problems.extend(secret_problem(password).map(|message| ("connect", message)));
            }
        }
        EngineConfig::Sqlite(config) => {
            problems.extend(variable("path", &config.path.to_string_lossy()));
            if is_root(&config.path) {
                problems.push(("path", "`path` is \"/\", which is not a file".to_owned()));
            }
        }
        EngineConfig::Files(config) => {
            problems
                .extend(config.paths.iter().filter_map(|path| variable("paths", &path.to_string_lossy())));
            if !config.one_file_system && config.paths.iter().any(|path| is_root(path)) {
                let message = "`paths` has \"/\", with /proc and /sys and whatever is mounted: name the folders, or add \
                               `one_file_system: true`";
                problems.push(("paths", message.to_owned()));
            }
        }
    }
    problems
}

/// What is wrong with where a secret is found.
pub(super) fn secret_problem(secret: &SecretRef) -> Option<String> {
    match secret {
        SecretRef::File(path) if !path.is_absolute() => {
            Some(format!("the secret's file {path:?} is not an absolute path"))
        }
        SecretRef::Command(argv) => match argv.first() {
            None => Some("the command that prints the secret is empty".to_owned()),
            Some(program) if !Path::new(program).is_absolute() => {
                Some(format!("the command {program:?} that prints the secret is not an absolute path"))
            }
            Some(_) => None,
        },
        SecretRef::Env(name) | SecretRef::Credential(name) if name.is_empty() => {
            Some("the secret's name is empty".to_owned())
        }
        _ => None,
    }
}

fn variable(key: &'static str, text: &str) -> Option<(&'static str, String)> {
    Some((key, format!("`{key}` has {}: {VARIABLES_STAY}", unfilled(text)?)))
}

/// A variable such as `${HOME}`, which somebody expects to be filled in.
fn unfilled(text: &str) -> Option<&str> {
    let from = text.find("${")?;
    let to = text[from..].find('}').map_or(text.len(), |end| from + end + 1);
    Some(&text[from..to])
}

/// Whether it is the root of the host, however it is written.
fn is_root(path: &Path) -> bool {
    path.components().eq([Component::RootDir])
}

pub(super) fn check_url(url: &str) -> Result<(), String> {
    if let Some(variable) = unfilled(url) {
        return Err(format!("`url` has {variable}: {VARIABLES_STAY}"));
    }
    if let Some(path) = url.strip_prefix("file://") {
        // One way to write a path: two repositories in one folder must not go unseen.
        let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        let path = path.strip_suffix('/').unwrap_or(path);
        let plain = path.strip_prefix('/').is_some_and(|path| path.split('/').all(is_plain));
        return if plain {
            Ok(())
        } else {
            Err(format!("`url` is {url:?}: file:///ABSOLUTE/PATH is needed"))
        };
    }
    if let Some(rest) = url.strip_prefix("s3://") {
        let bucket = rest.split('/').next().unwrap_or_default();
        let plain = (3..=63).contains(&bucket.len()) && rest.split('/').all(|part| part != "..");
        return if plain { Ok(()) } else { Err(format!("`url` is {url:?}: s3://BUCKET/PREFIX is needed")) };
    }
    Err(format!("`url` is {url:?}: file:///PATH and s3://BUCKET/PREFIX are supported"))
}

/// Whether one repository lies at the place of the other or within it. The same bucket of two services is two places.
pub(super) fn overlap(one: &RepositorySpec, other: &RepositorySpec) -> bool {
    let host = |endpoint: &str| {
        let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
        host.trim_end_matches('/').to_ascii_lowercase()
    };
    if one.url.starts_with("s3://")
        && let (Some(one), Some(other)) = (&one.endpoint, &other.endpoint)
        && host(one) != host(other)
    {
        return false;
    }
    let one = one.url.trim_end_matches('/');
    let other = other.url.trim_end_matches('/');
    let within = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    within(one, other) || within(other, one)
}
