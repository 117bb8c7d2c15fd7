//! Finding client tools that fit a server.
//!
//! A tool must not be older than the server it dumps. Of those that fit, the *lowest* major version is taken (its
//! newest minor), the server's own if it is installed: what a newer `pg_restore` sends at its start (such as
//! `SET transaction_timeout`, since 17) an older server refuses. See `docs/adr/0008-lowest-tool-that-fits.md`.

use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use tokio_util::sync::CancellationToken;

use crate::EngineError;
use crate::tool::{ToolVersion, query_version};

/// Where packages install versions side by side: a parent folder, and what stands before the version in the names of
/// its folders. Debian has `/usr/lib/postgresql/15/bin`, PostgreSQL's own RPM packages `/usr/pgsql-15/bin`.
const VERSIONED_FOLDERS: [(&str, &str); 2] = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];

/// A folder of client tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tools {
    /// Where they are.
    pub(crate) folder: PathBuf,
    /// The version of the tool that was asked.
    pub(crate) version: ToolVersion,
}

impl Tools {
    /// The path of one tool.
    pub(crate) fn path(&self, tool: &str) -> PathBuf {
        self.folder.join(tool)
    }
}

/// Finds the folder of `tool` that fits best.
///
/// # Errors
/// `HF-2004` when there is none, `HF-2005` when all are older than `major_min`.
pub(crate) async fn find(
    tool: &str,
    configured: Option<&Path>,
    major_min: u32,
    cancel: &CancellationToken,
) -> Result<Tools, EngineError> {
    let folders = match configured {
        Some(folder) => vec![folder.to_owned()],
        None => installed_folders(tool),
    };
    let mut found = Vec::new();
    for folder in folders {
        match query_version(&folder.join(tool), cancel).await {
            Ok(version) => found.push(Tools { folder, version }),
            // A folder the user named must work; one that was only found there may be passed over.
            Err(error) if configured.is_some() || error.code() == ErrorCode::RunCancelled => {
                return Err(error);
            }
            Err(error) => tracing::debug!(folder = %folder.display(), %error, "client tools passed over"),
        }
    }
    choose(found, major_min).map_err(|newest| match newest {
        Some(newest) => EngineError::new(
            ErrorCode::ToolTooOld,
            format!("{tool} {} is older than the server, which has version {major_min}", newest.version),
        )
        .caused_by(format!("the newest one found is {}", newest.path(tool).display()))
        .then(format!("apt-get install postgresql-client-{major_min}")),
        None => EngineError::new(ErrorCode::ToolMissing, format!("no {tool} is installed"))
            .then(format!("apt-get install postgresql-client-{major_min}")),
    })
}

/// The lowest major version that is not below the minimum, its newest minor; otherwise the newest of all.
fn choose(found: Vec<Tools>, major_min: u32) -> Result<Tools, Option<Tools>> {
    let fits = found.iter().filter(|tools| tools.version.major >= major_min);
    let best = fits.min_by_key(|tools| (tools.version.major, std::cmp::Reverse(tools.version.minor)));
    match best {
        Some(best) => Ok(best.clone()),
        None => Err(found.into_iter().max_by_key(|tools| (tools.version.major, tools.version.minor))),
    }
}

/// Folders on this host that hold the tool: those of packages that install versions side by side, then `PATH`.
fn installed_folders(tool: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (parent, prefix) in VERSIONED_FOLDERS {
        let Ok(entries) = std::fs::read_dir(parent) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix(prefix));
            if version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit())) {
                folders.push(entry.path().join("bin"));
            }
        }
    }
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders.retain(|folder| folder.is_absolute() && is_the_tool_itself(&folder.join(tool)));
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Debian puts a wrapper for all tools in `/usr/bin`, which needs an environment that tools are not given here.
fn is_the_tool_itself(path: &Path) -> bool {
    path.canonicalize().is_ok_and(|real| real.is_file() && real.file_name() == path.file_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(version: &str) -> Tools {
        let version = ToolVersion::parse(version).unwrap();
        Tools { folder: PathBuf::from(format!("/opt/{version}/bin")), version }
    }

    #[test]
    fn the_lowest_major_that_fits_wins_with_its_newest_minor() {
        let found = vec![tools("14.9"), tools("18.1"), tools("16.2"), tools("16.4")];
        assert_eq!(choose(found.clone(), 15).unwrap().version.text, "16.4");
        assert_eq!(choose(found.clone(), 14).unwrap().version.text, "14.9");
        assert_eq!(choose(found, 17).unwrap().version.text, "18.1");
    }

    #[test]
    fn the_newest_is_named_when_all_are_too_old() {
        let error = choose(vec![tools("13.9"), tools("14.2")], 15).unwrap_err();
        assert_eq!(error.unwrap().version.text, "14.2");
        assert_eq!(choose(Vec::new(), 15), Err(None));
    }

    #[tokio::test]
    async fn an_old_tool_is_refused_with_both_versions() {
        let cancel = CancellationToken::new();
        let error = find("pg_dump", None, 99, &cancel).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ToolTooOld);
        assert!(error.to_string().contains("older than the server, which has version 99"), "{error}");
    }
}
