//! Secret references, resolved on the host where they are used.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_model::ErrorCode;
use holdfast_model::secret::{Secret, SecretRef};
use tokio_util::sync::CancellationToken;

use crate::guarded_file::{self, Guard};
use crate::tool::ToolCommand;
use crate::{HostError, SecretResolver};

/// The longest secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;

/// How long a command may take to print a secret.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// The search path and locale of secret commands; nothing else of this process's environment reaches them but `HOME`.
const COMMAND_ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C.UTF-8")];

/// Resolves secrets from the environment, files, commands and systemd credentials of this process.
///
/// One newline at the end of a file, a command's output or a credential is not part of the secret. Every secret is
/// UTF-8 text, not empty, without a zero byte, at most [`SECRET_BYTES_MAX`] long.
///
/// A file must belong to this process's user or to root and be readable by nobody else (`chmod 600`). Symbolic links
/// are followed: what they lead to is what is checked. systemd guards its credentials itself, so their modes are not
/// looked at.
///
/// A command runs without a shell, with an absolute path and [`COMMAND_DEADLINE`]; of the environment it gets a fixed
/// `PATH` and `LC_ALL`, and `HOME`.
#[derive(Clone)]
pub struct LocalSecretResolver {
    environment: BTreeMap<OsString, OsString>,
}

impl LocalSecretResolver {
    /// A resolver over the environment that this process has now.
    pub fn from_process() -> Self {
        Self::with_environment(std::env::vars_os())
    }

    /// A resolver over another environment. Credentials are looked for in its `CREDENTIALS_DIRECTORY`.
    pub fn with_environment(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self { environment: environment.into_iter().collect() }
    }

    fn variable(&self, name: &str) -> Result<Vec<u8>, Unresolved> {
        use std::os::unix::ffi::OsStrExt as _;
        let value = self.environment.get(std::ffi::OsStr::new(name)).ok_or("it is not set")?;
        Ok(value.as_bytes().to_vec())
    }

    fn credential(&self, name: &str) -> Result<Vec<u8>, Unresolved> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err("its name is not a plain file name".into());
        }
        let folder = self
            .environment
            .get(std::ffi::OsStr::new("CREDENTIALS_DIRECTORY"))
            .ok_or("systemd gave this process no credentials (CREDENTIALS_DIRECTORY is not set)")?;
        secret_file(&PathBuf::from(folder).join(name), Guard::None)
    }

    async fn printed_by(&self, argv: &[String]) -> Result<Vec<u8>, Unresolved> {
        let (program, arguments) = argv.split_first().ok_or("it is empty")?;
        let mut command =
            ToolCommand::new(program).map_err(tool_failed)?.args(arguments).deadline(COMMAND_DEADLINE);
        for (name, value) in COMMAND_ENVIRONMENT {
            command = command.env(name, value);
        }
        if let Some(home) = self.environment.get(std::ffi::OsStr::new("HOME")) {
            command = command.env("HOME", home);
        }
        // Nobody cancels it: its deadline is short. Dropping the future kills it.
        command.run(SECRET_BYTES_MAX + 1, &CancellationToken::new()).await.map_err(tool_failed)
    }
}

impl fmt::Debug for LocalSecretResolver {
    /// The environment is what must not be shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalSecretResolver")
    }
}

#[async_trait]
impl SecretResolver for LocalSecretResolver {
    async fn resolve(&self, reference: &SecretRef) -> Result<Secret, HostError> {
        let found = match reference {
            SecretRef::Env(name) => self.variable(name),
            SecretRef::File(path) if !path.is_absolute() => Err("it is not an absolute path".into()),
            SecretRef::File(path) => secret_file(path, Guard::Owner).map(without_newline),
            SecretRef::Command(argv) => self.printed_by(argv).await.map(without_newline),
            SecretRef::Credential(name) => self.credential(name).map(without_newline),
        };
        found.and_then(as_secret).map_err(|unresolved| unresolved.into_error(reference))
    }
}

/// Why a reference does not resolve; never holds any part of the secret.
struct Unresolved {
    why: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    fix: Option<String>,
}

impl Unresolved {
    fn into_error(self, reference: &SecretRef) -> HostError {
        let mut error = HostError::new(ErrorCode::SecretUnresolvable, format!("{reference}: {}", self.why));
        if let Some(source) = self.source {
            error = error.caused_by(source);
        }
        if let Some(fix) = self.fix {
            error = error.then(fix);
        }
        error
    }
}

impl From<&str> for Unresolved {
    fn from(why: &str) -> Self {
        Self { why: why.to_owned(), source: None, fix: None }
    }
}

fn secret_file(path: &Path, guard: Guard) -> Result<Vec<u8>, Unresolved> {
    guarded_file::read(path, guard, SECRET_BYTES_MAX).map_err(|refused| Unresolved {
        why: refused.why,
        source: refused.source.map(Into::into),
        fix: refused.fix,
    })
}

/// What the command said may hold the secret, or a part of it, so only how it ended is passed on.
fn tool_failed(error: HostError) -> Unresolved {
    Unresolved { why: error.to_string(), source: None, fix: None }
}

fn without_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

fn as_secret(bytes: Vec<u8>) -> Result<Secret, Unresolved> {
    if bytes.is_empty() {
        return Err("it is empty".into());
    }
    if bytes.len() > SECRET_BYTES_MAX {
        return Err("it is longer than 64 KiB".into());
    }
    if bytes.contains(&0) {
        return Err("it holds a zero byte".into());
    }
    // The error of the conversion would carry the bytes.
    String::from_utf8(bytes).map(Secret::new).map_err(|_| "it is not UTF-8 text".into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn resolver(variables: &[(&str, &str)]) -> LocalSecretResolver {
        LocalSecretResolver::with_environment(
            variables.iter().map(|(name, value)| ((*name).into(), (*value).into())),
        )
    }

    async fn refused(resolver: &LocalSecretResolver, reference: SecretRef) -> String {
        let error = resolver.resolve(&reference).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::SecretUnresolvable);
        let failure = holdfast_model::Failure::from(error);
        assert!(!format!("{failure:?}").contains("canary"), "{failure:?}");
        failure.message
    }

    fn file(folder: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_variable_is_taken_as_it_is() {
        let resolver = resolver(&[("PASSWORD", "canary \n")]);
        let secret = resolver.resolve(&SecretRef::Env("PASSWORD".into())).await.unwrap();
        assert_eq!(secret.reveal(), "canary \n");
        assert_eq!(
            refused(&resolver, SecretRef::Env("OTHER".into())).await,
            "environment variable OTHER: it is not set"
        );
    }

    #[tokio::test]
    async fn one_newline_at_the_end_of_a_file_is_not_part_of_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        for (content, expected) in [
            ("canary", "canary"),
            ("canary\n", "canary"),
            ("canary\r\n", "canary"),
            ("canary\n\n", "canary\n"),
        ] {
            let path = file(folder.path(), "pass", content.as_bytes(), 0o600);
            let secret = resolver(&[]).resolve(&SecretRef::File(path)).await.unwrap();
            assert_eq!(secret.reveal(), expected);
        }
    }

    #[tokio::test]
    async fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o660, 0o610] {
            let path = file(folder.path(), "pass", b"canary", mode);
            let message = refused(&resolver(&[]), SecretRef::File(path.clone())).await;
            assert_eq!(
                message,
                format!("file {}: others than its owner may use it (mode {mode:04o})", path.display())
            );
        }
        let path = file(folder.path(), "pass", b"canary", 0o644);
        let error = resolver(&[]).resolve(&SecretRef::File(path.clone())).await.unwrap_err();
        assert_eq!(holdfast_model::Failure::from(error).next, [format!("chmod 600 {}", path.display())]);
    }

    #[tokio::test]
    async fn what_is_no_secret_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cases: [(&[u8], &str); 4] = [
            (b"\n", "it is empty"),
            (b"canary\0", "it holds a zero byte"),
            (b"canary\xff", "it is not UTF-8 text"),
            (&[b'x'; SECRET_BYTES_MAX + 2], "it is longer than 64 KiB"),
        ];
        for (content, why) in cases {
            let path = file(folder.path(), "pass", content, 0o600);
            let message = refused(&resolver(&[]), SecretRef::File(path)).await;
            assert!(message.ends_with(why), "{message}");
        }
        let missing = SecretRef::File(folder.path().join("missing"));
        assert!(refused(&resolver(&[]), missing).await.ends_with(": it cannot be opened"));
        let no_file = SecretRef::File(folder.path().to_owned());
        assert!(refused(&resolver(&[]), no_file).await.ends_with(": it is not a regular file"));
        let relative = SecretRef::File("pass".into());
        assert_eq!(refused(&resolver(&[]), relative).await, "file pass: it is not an absolute path");
    }

    #[tokio::test]
    async fn a_command_prints_the_secret_and_its_failure_shows_nothing_of_it() {
        let resolver = resolver(&[("HOME", "/root"), ("OTHER", "canary")]);
        let shell = |script: &str| SecretRef::Command(vec!["/bin/sh".into(), "-c".into(), script.into()]);
        let secret = resolver.resolve(&shell("echo canary; echo noise >&2")).await.unwrap();
        assert_eq!(secret.reveal(), "canary");
        let secret = resolver.resolve(&shell("echo \"$HOME $OTHER\"")).await.unwrap();
        assert_eq!(secret.reveal(), "/root ");
        assert_eq!(
            refused(&resolver, shell("echo canary; echo canary >&2; exit 4")).await,
            "command /bin/sh: sh ended with exit status 4"
        );
        assert_eq!(
            refused(&resolver, SecretRef::Command(vec!["vault".into()])).await,
            "command vault: the tool vault is not given as an absolute path"
        );
        assert_eq!(refused(&resolver, SecretRef::Command(vec![])).await, "command (empty): it is empty");
    }

    #[tokio::test]
    async fn a_credential_comes_from_the_folder_that_systemd_gives() {
        let folder = tempfile::tempdir().unwrap();
        file(folder.path(), "pg", b"canary\n", 0o440);
        let resolver_with = resolver(&[("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())]);
        let secret = resolver_with.resolve(&SecretRef::Credential("pg".into())).await.unwrap();
        assert_eq!(secret.reveal(), "canary");
        assert_eq!(
            refused(&resolver_with, SecretRef::Credential("../pg".into())).await,
            "credential ../pg: its name is not a plain file name"
        );
        assert_eq!(
            refused(&resolver(&[]), SecretRef::Credential("pg".into())).await,
            "credential pg: systemd gave this process no credentials (CREDENTIALS_DIRECTORY is not set)"
        );
    }
}
