//! Enrolment: this host makes a key, proves with a one-use token that it is expected, and gets a certificate.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_model::ids::AgentName;
use holdfast_model::secret::Secret;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;
use holdfast_proto::v1::enrollment_service_client::EnrollmentServiceClient;
use holdfast_runtime::durable_file::{self, FolderLock};
use holdfast_runtime::tls::{CaPin, client_config_by_pin};

use crate::address::ControllerAddress;
use crate::disk;
use crate::identity::{self, Identity};
use crate::{dial, host};

/// The variable that may hold the token.
pub const TOKEN_VARIABLE: &str = "HOLDFAST_ENROLL_TOKEN";
/// How long the controller may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest token, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// What an enrolment needs.
#[derive(Debug, Clone)]
pub struct EnrollOptions {
    /// The controller.
    pub controller: ControllerAddress,
    /// The name that the token was made for.
    pub name: AgentName,
    /// What the controller's CA must be.
    pub ca_pin: CaPin,
    /// Where the identity is kept.
    pub data_dir: PathBuf,
    /// The one-use token.
    pub token: Secret,
}

/// Where the token comes from; never from an argument, which every user of the host can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file; `-` is the standard input.
    File(PathBuf),
    /// The variable [`TOKEN_VARIABLE`].
    Environment,
}

impl TokenSource {
    /// Reads the token.
    ///
    /// # Errors
    /// `HF-1006` when there is none.
    pub fn read(&self) -> Result<Secret, Failure> {
        let text = match self {
            TokenSource::Environment => std::env::var(TOKEN_VARIABLE).map_err(|_| {
                Failure::new(
                    ErrorCode::SecretUnresolvable,
                    format!("no enrolment token: neither --token-file nor {TOKEN_VARIABLE} is given"),
                )
            })?,
            TokenSource::File(path) if path == Path::new("-") => {
                read_token(std::io::stdin().lock(), "the standard input")?
            }
            TokenSource::File(path) => {
                let what = path.display().to_string();
                let file = std::fs::File::open(path).map_err(|error| no_token(&what, &error))?;
                read_token(file, &what)?
            }
        };
        let token = text.trim();
        if token.is_empty() {
            return Err(Failure::new(ErrorCode::SecretUnresolvable, "the enrolment token is empty"));
        }
        Ok(Secret::new(token))
    }
}

fn read_token(from: impl std::io::Read, what: &str) -> Result<String, Failure> {
    let mut text = String::new();
    from.take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(|error| no_token(what, &error))?;
    Ok(text)
}

fn no_token(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(ErrorCode::SecretUnresolvable, format!("the enrolment token cannot be read from {what}"))
        .because(error.to_string())
}

/// Enrols, and keeps the identity in the data folder; an older one is replaced, but only once the new one is there.
///
/// # Errors
/// `HF-6001` when the token is unknown, used or expired, `HF-6003` when the controller's CA is not the pinned one,
/// `HF-6002` when its certificate or ours is not acceptable, `HF-4014` when an agent runs in this data folder.
pub async fn enroll(options: &EnrollOptions) -> Result<Identity, Failure> {
    let data_dir = &options.data_dir;
    let _lock = lock_data_dir(data_dir)?;
    let key = identity::new_key()?;
    let csr_pem = identity::signing_request(&key).map_err(|error| {
        Failure::new(ErrorCode::Internal, "no certificate request could be made").because(error.to_string())
    })?;
    let tls = client_config_by_pin(options.ca_pin)
        .map_err(|error| Failure::from_error(ErrorCode::CertificateRejected, &error))?;
    let channel = dial::connect(&options.controller, tls).await?;
    let mut request = tonic::Request::new(v1::EnrollRequest {
        token: options.token.reveal().to_owned(),
        name: options.name.to_string(),
        csr_pem,
        facts: Some(host::facts()),
    });
    request.set_timeout(ANSWER_TIMEOUT);
    let answer = EnrollmentServiceClient::new(channel)
        .enroll(request)
        .await
        .map_err(|status| dial::failure_of(&options.controller, &status))?
        .into_inner();
    // The certificate of the CA itself came in the answer: it must be the one that the connection was verified by.
    let shown = identity::pin_of(&answer.ca_pem)
        .map_err(|error| Failure::from_error(ErrorCode::CertificateRejected, &error))?;
    if shown != options.ca_pin {
        return Err(Failure::new(
            ErrorCode::CaPinMismatch,
            format!("the controller sent a CA with the pin {shown}, {} was expected", options.ca_pin),
        ));
    }
    let (name, controller) = (options.name.clone(), options.controller.clone());
    Identity::establish(data_dir, name, controller, &key, answer.certificate_pem, answer.ca_pem)
}

/// Makes the data folder, private, and takes it for this process.
///
/// # Errors
/// `HF-4014` when another process has it.
pub(crate) fn lock_data_dir(data_dir: &Path) -> Result<FolderLock, Failure> {
    durable_file::create_folders(data_dir).and_then(|()| FolderLock::take(data_dir)).map_err(|error| {
        if error.kind() == std::io::ErrorKind::WouldBlock {
            return Failure::new(
                ErrorCode::InUse,
                format!("another process of an agent uses the data folder {}", data_dir.display()),
            );
        }
        disk::failure(format!("the data folder {} cannot be used", data_dir.display()), &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::TestCa;
    use crate::testing::controller::FakeController;

    fn options(data_dir: &Path, controller: &FakeController, ca_pin: CaPin) -> EnrollOptions {
        EnrollOptions {
            controller: controller.address(),
            name: AgentName::new("db1").unwrap(),
            ca_pin,
            data_dir: data_dir.to_owned(),
            token: Secret::new("once"),
        }
    }

    #[tokio::test]
    async fn a_token_works_once_and_a_refusal_changes_nothing() {
        let controller = FakeController::start().await;
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path(), &controller, controller.ca.pin());
        let enrolled = enroll(&options).await.unwrap();
        let before = std::fs::read(folder.path().join(identity::FILE_NAME)).unwrap();
        let again = enroll(&options).await.unwrap_err();
        assert_eq!(again.to_string(), "[HF-6001] the token is unknown, used or expired");
        assert_eq!(std::fs::read(folder.path().join(identity::FILE_NAME)).unwrap(), before);
        assert_eq!(enrolled.controller(), &controller.address());
    }

    #[tokio::test]
    async fn a_wrong_pin_ends_before_the_token_is_sent() {
        let controller = FakeController::start().await;
        let folder = tempfile::tempdir().unwrap();
        let wrong = TestCa::new().pin();
        let failure = enroll(&options(folder.path(), &controller, wrong)).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::CaPinMismatch);
        assert_eq!(controller.conversations.tokens.lock().len(), 1);
        enroll(&options(folder.path(), &controller, controller.ca.pin())).await.unwrap();
    }

    #[tokio::test]
    async fn nothing_enrols_into_the_folder_of_a_running_agent() {
        let controller = FakeController::start().await;
        let folder = tempfile::tempdir().unwrap();
        let _running = lock_data_dir(folder.path()).unwrap();
        let failure = enroll(&options(folder.path(), &controller, controller.ca.pin())).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::InUse);
    }

    #[test]
    fn a_token_is_read_from_a_file_without_its_newline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "abc\n").unwrap();
        assert_eq!(TokenSource::File(path).read().unwrap().reveal(), "abc");
        let missing = TokenSource::File(folder.path().join("none")).read().unwrap_err();
        assert_eq!(missing.code, ErrorCode::SecretUnresolvable);
    }
}
