//! The controllers a user knows: `~/.config/holdfast/contexts.yaml`, which holds references only, never a token.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use holdfast_model::secret::Secret;
use holdfast_model::{ErrorCode, Failure, fleet};
use holdfast_runtime::durable_file::{self, Access};
use serde::{Deserialize, Serialize};

use crate::error::{CliError, CliResult};
use crate::output::text::size;
use crate::settings::{ConnectionChoice, Surroundings};
use holdfast_model::text::nearest;

/// The variable that names the file.
pub(crate) const FILE_VARIABLE: &str = "HOLDFAST_CONTEXTS_FILE";

/// The variable that holds a token itself.
pub(crate) const TOKEN_VARIABLE: &str = "HOLDFAST_TOKEN";

/// The largest token file that is read, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The context that is used when nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Its address.
    pub server: String,
    /// The certificate of its CA.
    pub ca_file: PathBuf,
    /// The file with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// How to reach a controller.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Name of the context, when there is one.
    pub context: Option<String>,
    /// Its address.
    pub server: String,
    /// The certificate of its CA.
    pub ca_file: PathBuf,
    /// Where the token is.
    pub token: TokenPlace,
}

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenPlace {
    /// In a file.
    File(PathBuf),
    /// In the environment.
    Variable(Secret),
    /// Nowhere.
    Nowhere,
}

impl TokenPlace {
    /// The token, read now.
    ///
    /// # Errors
    /// `HF-1006` when the file cannot be read, is open to others, or holds no token; `HF-6004` when there is none.
    pub(crate) fn read(&self) -> CliResult<Secret> {
        let text = match self {
            TokenPlace::Variable(token) => token.clone(),
            TokenPlace::File(path) => read_token_file(path)?,
            TokenPlace::Nowhere => {
                return Err(CliError::new(ErrorCode::NotAuthenticated, "no access token is configured")
                    .because(format!("neither --token-file, {TOKEN_VARIABLE} nor the context has one"))
                    .then("holdfast context add NAME --server URL --ca-file FILE --token-file FILE"));
            }
        };
        let visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if visible(text.reveal()) {
            return Ok(text);
        }
        Err(CliError::new(
            ErrorCode::SecretUnresolvable,
            "the access token is empty or holds spaces or control characters",
        ))
    }
}

fn read_token_file(path: &Path) -> CliResult<Secret> {
    let fail = |why: String| {
        CliError::new(
            ErrorCode::SecretUnresolvable,
            format!("the token file {} cannot be used", path.display()),
        )
        .because(why)
    };
    let metadata = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?;
    if metadata.len() > TOKEN_BYTES_MAX {
        return Err(fail(format!("it has {}, a token has far fewer", size(metadata.len()))));
    }
    // A file made by process substitution or a secret mount may have any mode, but is no regular file.
    if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
        return Err(fail(format!(
            "others may read it (mode {:04o})",
            metadata.permissions().mode() & 0o7777
        ))
        .then(format!("chmod 600 {}", crate::output::text::shell_word(&path.display().to_string()))));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    Ok(Secret::new(text.trim_end_matches(['\n', '\r'])))
}

/// Where the file lies.
///
/// # Errors
/// `HF-1010` when there is neither a home nor a variable that names it.
pub(crate) fn file_path(surroundings: &Surroundings) -> CliResult<PathBuf> {
    if let Some(path) = surroundings.variable(FILE_VARIABLE) {
        return Ok(PathBuf::from(path));
    }
    let folder = match (surroundings.variable("XDG_CONFIG_HOME"), surroundings.variable("HOME")) {
        (Some(config), _) => PathBuf::from(config),
        (None, Some(home)) => Path::new(home).join(".config"),
        (None, None) => {
            return Err(CliError::new(ErrorCode::ContextMissing, "there is no place for contexts")
                .because(format!("neither HOME nor {FILE_VARIABLE} is set")));
        }
    };
    Ok(folder.join("holdfast/contexts.yaml"))
}

/// Reads the file; a missing one has no contexts.
///
/// # Errors
/// `HF-1002` when it cannot be read, is open to others or not valid.
pub(crate) fn load(path: &Path) -> CliResult<Contexts> {
    let fail = |why: String| {
        CliError::new(ErrorCode::FileInvalid, format!("{} cannot be used", path.display())).because(why)
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
        Err(error) => return Err(fail(error.to_string())),
    };
    let mode = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(fail(format!(
            "others may use it (mode {:04o}); it says which CA is trusted and where tokens are",
            mode & 0o7777
        ))
        .then(format!("chmod 600 {}", crate::output::text::shell_word(&path.display().to_string()))));
    }
    fleet::read_yaml(&path.display().to_string(), &text).map_err(|error| Failure::from(&error).into())
}

/// Writes the file, whole or not at all.
///
/// # Errors
/// `HF-1012` when it cannot be written.
pub(crate) fn save(path: &Path, contexts: &Contexts) -> CliResult<()> {
    let text = serde_saphyr::to_string(contexts)
        .expect("texts and paths of a file that was read as UTF-8 serialise");
    write_private(path, text.as_bytes())
}

/// Writes a file that only its owner may read, making its folder.
///
/// # Errors
/// `HF-1012` when it cannot be written.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> CliResult<()> {
    let write = || -> io::Result<()> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            durable_file::create_folders(folder)?;
        }
        durable_file::replace(path, bytes, Access::Owner)
    };
    write().map_err(|error| CliError::file("writing", path, &error))
}

/// The connection that flags, environment and contexts come to. An explicit server stands alone; otherwise single
/// flags override the context.
///
/// # Errors
/// `HF-1010` when nothing says where the controller is.
pub(crate) fn choose(
    choice: &ConnectionChoice,
    contexts: &Contexts,
    surroundings: &Surroundings,
) -> CliResult<Connection> {
    let variable = surroundings.variable(TOKEN_VARIABLE).map(Secret::new);
    let token = |of_context: Option<&PathBuf>| match (&choice.token_file, &variable, of_context) {
        (Some(path), _, _) => TokenPlace::File(path.clone()),
        (None, Some(token), _) => TokenPlace::Variable(token.clone()),
        (None, None, Some(path)) => TokenPlace::File(path.clone()),
        (None, None, None) => TokenPlace::Nowhere,
    };
    if let Some(server) = &choice.server {
        let ca_file = choice.ca_file.clone().ok_or_else(|| {
            CliError::new(ErrorCode::ContextMissing, "the CA of the controller is not known")
                .because("--server needs --ca-file (or HOLDFAST_CA_FILE): no other CA is ever trusted")
        })?;
        return Ok(Connection { context: None, server: server.clone(), ca_file, token: token(None) });
    }
    let name = choice.context.clone().or_else(|| contexts.current.clone());
    let name = name.or_else(|| {
        let mut names = contexts.contexts.keys();
        names.next().filter(|_| names.next().is_none()).cloned()
    });
    let Some(name) = name else {
        return Err(no_context(contexts));
    };
    let Some(context) = contexts.contexts.get(&name) else {
        return Err(unknown(&name, contexts));
    };
    Ok(Connection {
        context: Some(name),
        server: context.server.clone(),
        ca_file: choice.ca_file.clone().unwrap_or_else(|| context.ca_file.clone()),
        token: token(context.token_file.as_ref()),
    })
}

fn no_context(contexts: &Contexts) -> CliError {
    let error = CliError::new(ErrorCode::ContextMissing, "no controller is configured for the command line");
    if contexts.contexts.is_empty() {
        error
            .then("holdfast context add NAME --server https://HOST:7443 --ca-file FILE --token-file FILE")
            .then("holdfast demo")
    } else {
        error
            .because(format!("there are {} contexts and none is current", contexts.contexts.len()))
            .then("holdfast context use NAME")
            .then("holdfast context list")
    }
}

/// The error about a context that does not exist.
pub(crate) fn unknown(name: &str, contexts: &Contexts) -> CliError {
    let error = CliError::new(ErrorCode::NotFound, format!("there is no context {name:?}"));
    match nearest(name, contexts.contexts.keys().map(String::as_str)) {
        Some(near) => error.because(format!("did you mean {near:?}?")).then("holdfast context list"),
        None => error.then("holdfast context list"),
    }
}

#[cfg(test)]
mod tests;
