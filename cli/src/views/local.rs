//! What the command line itself knows: contexts, who one is, versions, error codes.

use jiff::Timestamp;
use serde::Serialize;

use super::dash;
use crate::output::{Column, Record};

/// One context.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ContextView {
    /// Its name.
    pub name: String,
    /// Whether commands use it when nothing else is said.
    pub current: bool,
    /// Address of the controller.
    pub server: String,
    /// Certificate of its CA.
    pub ca_file: String,
    /// Where the token is.
    pub token_file: Option<String>,
}

impl Record for ContextView {
    const KIND: &'static str = "Context";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("", |context, _| if context.current { "*" } else { " " }.to_owned()),
            Column::<Self>::left("CONTEXT", |context, _| context.name.clone()),
            Column::<Self>::left("SERVER", |context, _| context.server.clone()),
            Column::<Self>::left("CA", |context, _| context.ca_file.clone()),
            Column::<Self>::left("TOKEN", |context, _| dash(context.token_file.as_deref())),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// Who one is to a controller.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WhoamiView {
    /// Name of the token.
    pub name: String,
    /// Its role.
    pub role: String,
    /// Until when it is valid; null: for ever.
    pub not_after: Option<Timestamp>,
    /// Address of the controller.
    pub server: String,
    /// Version of the controller.
    pub controller_version: String,
}

impl Record for WhoamiView {
    const KIND: &'static str = "Whoami";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("NAME", |who, _| who.name.clone()),
            Column::<Self>::left("ROLE", |who, _| who.role.clone()),
            Column::<Self>::left("VALID", |who, look| look.time_or(who.not_after, "for ever")),
            Column::<Self>::left("CONTROLLER", |who, _| who.server.clone()),
            Column::<Self>::left("VERSION", |who, _| who.controller_version.clone()),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// The version of this program.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct VersionView {
    /// Of this program.
    pub version: &'static str,
    /// Of the protocol between agents and controller.
    pub session_protocol: u32,
    /// Of the documents it reads and prints.
    pub api_version: &'static str,
}

impl Record for VersionView {
    const KIND: &'static str = "Version";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("VERSION", |version, _| version.version.to_owned()),
            Column::<Self>::left("API", |version, _| version.api_version.to_owned()),
            Column::<Self>::right("SESSION PROTOCOL", |version, _| version.session_protocol.to_string()),
        ]
    }

    fn name(&self) -> String {
        self.version.to_owned()
    }
}

/// One error code.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ErrorCodeView {
    /// Such as HF-2002.
    pub code: String,
    /// What it stands for.
    pub title: &'static str,
    /// The exit status that it leads to.
    pub exit_status: u8,
}

impl Record for ErrorCodeView {
    const KIND: &'static str = "ErrorCode";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("CODE", |code, _| code.code.clone()),
            Column::<Self>::right("EXIT", |code, _| code.exit_status.to_string()),
            Column::<Self>::left("MEANING", |code, _| code.title.to_owned()),
        ]
    }

    fn name(&self) -> String {
        self.code.clone()
    }
}
