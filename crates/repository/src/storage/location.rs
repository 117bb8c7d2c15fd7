//! Where a repository lies: a URL, and what is needed to go there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::secret::Secret;

use super::fs::FsStore;
use super::s3::{S3Options, S3Store};
use super::{ObjectStore, StorageError};

/// The place of a repository.
///
/// | text | place |
/// |---|---|
/// | `file:///srv/backup/main` | a folder, by its absolute path |
/// | `s3://bucket/prefix` | a folder in a bucket |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// A folder of a local or mounted file system.
    Folder(PathBuf),
    /// A bucket, and the folder in it; empty for the whole bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// The folder in it, without slashes at its ends.
        prefix: String,
    },
}

/// The text is not a location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not a location of a repository: {reason}")]
pub struct InvalidLocation {
    /// The offending text. It never holds credentials: a text with `@` before the path is not repeated.
    pub url: String,
    /// Which rule it breaks.
    pub reason: &'static str,
}

impl InvalidLocation {
    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::PathInvalid
    }
}

/// What a location needs besides its URL. A folder needs nothing of it.
#[derive(Debug, Clone, Default)]
pub struct LocationOptions {
    /// The address of an S3-compatible store; the one of AWS when missing.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// Whether the bucket is named in the host instead of the path (OSS, COS).
    pub virtual_host_style: bool,
    /// The access key id.
    pub access_key_id: Option<Secret>,
    /// The secret access key.
    pub secret_access_key: Option<Secret>,
    /// The token of temporary credentials.
    pub session_token: Option<Secret>,
}

impl Location {
    /// The storage at this place. Nothing is sent or touched yet.
    ///
    /// # Errors
    /// `Other` when the options do not fit together.
    pub fn open(&self, options: &LocationOptions) -> Result<Arc<dyn ObjectStore>, StorageError> {
        match self {
            Location::Folder(path) => Ok(Arc::new(FsStore::new(path))),
            Location::S3 { bucket, prefix } => Ok(Arc::new(S3Store::new(&S3Options {
                endpoint: options.endpoint.clone(),
                region: options.region.clone(),
                path_style: !options.virtual_host_style,
                access_key_id: options.access_key_id.clone(),
                secret_access_key: options.secret_access_key.clone(),
                session_token: options.session_token.clone(),
                ..S3Options::new(bucket, prefix)
            })?)),
        }
    }

    /// As [`Self::open`], for a repository that is to be made here: makes the folder. A bucket must exist.
    ///
    /// # Errors
    /// As [`FsStore::create`] and [`Self::open`].
    pub async fn create(&self, options: &LocationOptions) -> Result<Arc<dyn ObjectStore>, StorageError> {
        if let Location::Folder(path) = self {
            return Ok(Arc::new(FsStore::create(path).await?));
        }
        self.open(options)
    }
}

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(url: &str) -> Result<Self, InvalidLocation> {
        let has_user = url
            .split_once("://")
            .is_some_and(|(_, rest)| rest.split('/').next().is_some_and(|authority| authority.contains('@')));
        let invalid = |reason| {
            let shown = if has_user { String::new() } else { url.chars().take(200).collect() };
            Err(InvalidLocation { url: shown, reason })
        };
        if has_user {
            return invalid("credentials do not belong in the URL, give them as references");
        }
        if url.contains(|c: char| c.is_control()) {
            return invalid("it holds a control character");
        }
        match url.split_once("://") {
            Some(("file", path)) => match check_folder(path) {
                Ok(path) => Ok(Location::Folder(path)),
                Err(reason) => invalid(reason),
            },
            Some(("s3", rest)) => match check_bucket(rest) {
                Ok((bucket, prefix)) => Ok(Location::S3 { bucket, prefix }),
                Err(reason) => invalid(reason),
            },
            Some(_) => invalid("only file:///absolute/path and s3://bucket/prefix are known"),
            None => invalid("it is no URL; file:///absolute/path and s3://bucket/prefix are"),
        }
    }
}

fn check_folder(path: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err("the path must be absolute: file:///srv/backup");
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err("the path must not contain ..");
    }
    if path.parent().is_none() {
        return Err("the root folder cannot be a repository");
    }
    Ok(path.components().collect())
}

fn check_bucket(rest: &str) -> Result<(String, String), &'static str> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(allowed) {
        return Err("a bucket has 3 to 63 lower-case letters, digits, '-' and '.'");
    }
    if prefix.contains(['?', '#']) {
        return Err("options do not belong in the URL");
    }
    let prefix = prefix.trim_matches('/');
    if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
        return Err("the prefix must not contain empty parts, . or ..");
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Folder(path) => write!(f, "file://{}", path.display()),
            Location::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Location::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_read_back_from_their_text() {
        for text in ["file:///srv/backup", "s3://bucket", "s3://my.bucket-1/a/b"] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
        }
        assert_eq!("file:///srv//backup/".parse::<Location>().unwrap().to_string(), "file:///srv/backup");
        assert_eq!("s3://bucket/a/".parse::<Location>().unwrap().to_string(), "s3://bucket/a");
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no URL"),
            ("/srv/backup", "no URL"),
            ("file://srv/backup", "absolute"),
            ("file:///", "root folder"),
            ("file:///srv/../etc", ".."),
            ("file:///srv/a\nb", "control"),
            ("s3://ab/x", "3 to 63"),
            ("s3://Bucket/x", "3 to 63"),
            ("s3://bucket/a/../b", ".."),
            ("s3://bucket/a?region=x", "options"),
            ("ftp://host/x", "only file"),
        ] {
            let error = text.parse::<Location>().unwrap_err();
            assert!(error.reason.contains(reason), "{text}: {error}");
            assert_eq!(error.code().to_string(), "HF-1012");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        let error = "s3://id:canary@bucket/x".parse::<Location>().unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
