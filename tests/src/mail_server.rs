//! A mail server of one's own: real SMTP with STARTTLS and a login.

use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use holdfast_runtime::test_port;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::process::Process;
use crate::wait::PATIENCE;

/// A running mail server on loopback; killed and its mail removed when dropped.
#[derive(Debug)]
pub struct MailServer {
    _process: Process,
    port: u16,
    folder: TempDir,
}

impl MailServer {
    /// The name that is logged in with.
    pub const USER: &'static str = "holdfast";

    /// Starts a server with this password.
    ///
    /// # Panics
    /// When it is not ready in time; shows its log.
    pub fn start(password: &str) -> Self {
        let folder = crate::temp_dir("mail");
        let port = test_port::reserve();
        let script = folder.path().join("mail_server.py");
        std::fs::write(&script, include_str!("mail_server.py")).expect("the folder is ours");
        let authority_key = KeyPair::generate().expect("a key can be made");
        let mut authority = CertificateParams::new(Vec::new()).expect("no names are good names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = authority.self_signed(&authority_key).expect("it can be signed").pem();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().expect("a key can be made");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("the name is good");
        let chain = params.signed_by(&key, &issuer).expect("it can be signed").pem();
        for (name, text) in [("ca.pem", ca), ("chain.pem", chain), ("key.pem", key.serialize_pem())] {
            std::fs::write(folder.path().join(name), text).expect("the folder is ours");
        }
        let at = |name: &str| folder.path().join(name);
        let mut command = Command::new("/usr/bin/python3");
        command.arg(&script).arg(folder.path()).arg(port.to_string());
        command.arg(at("chain.pem")).arg(at("key.pem")).args([Self::USER, password]);
        let mut process = Process::start("mail", &mut command, folder.path());
        process.wait_until("the mail server to listen", PATIENCE, |_| {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(drop)
        });
        Self { _process: process, port, folder }
    }

    /// Its port on `localhost`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The file with the certificate of the authority that signed its own.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The mails so far, in the order in which they came.
    pub fn mails(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).expect("the folder is ours");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be read").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|end| end == "eml"));
        paths.sort();
        paths.iter().map(|path| std::fs::read_to_string(path).expect("mails are text")).collect()
    }
}
