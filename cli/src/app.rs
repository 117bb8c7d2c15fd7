//! What every command is given.

use std::time::Duration;

use holdfast_proto::v1;
use holdfast_runtime::SharedClock;
use jiff::Zoned;

use crate::client::Client;
use crate::confirm::{self, Confirmation, Terminal};
use crate::contexts::{self, Connection, Contexts};
use crate::error::CliResult;
use crate::output::Output;
use crate::output::progress::ProgressBoard;
use crate::references::{SnapshotReference, nth_latest};
use crate::settings::{Settings, Surroundings};
use crate::views::snapshot::SnapshotView;

/// The surroundings of one command.
pub(crate) struct App {
    /// What flags and environment came to.
    pub settings: Settings,
    /// Where everything goes that it says.
    pub output: Output,
    /// What time it is.
    pub clock: SharedClock,
    /// What the process sees of its surroundings.
    pub surroundings: Surroundings,
}

impl App {
    /// The contexts of the user.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn contexts(&self) -> CliResult<Contexts> {
        contexts::load(&contexts::file_path(&self.surroundings)?)
    }

    /// How to reach the controller.
    ///
    /// # Errors
    /// `HF-1010` when nothing says where it is.
    pub(crate) fn connection(&self) -> CliResult<Connection> {
        let choice = &self.settings.connection;
        // A complete choice by flags does not depend on a file that may be broken or belong to nobody.
        let contexts = if choice.server.is_some() { Contexts::default() } else { self.contexts()? };
        contexts::choose(choice, &contexts, &self.surroundings)
    }

    /// A connection to the controller.
    ///
    /// # Errors
    /// Those of [`App::connection`] and [`Client::connect`].
    pub(crate) async fn connect(&self) -> CliResult<Client> {
        let client = Client::connect(&self.connection()?, self.settings.timeout).await?;
        Ok(client)
    }

    /// Now, in the zone of this machine.
    pub(crate) fn now(&self) -> Zoned {
        self.clock.now().to_zoned(self.output.look().zone.clone())
    }

    /// A board for progress.
    pub(crate) fn progress(&self) -> ProgressBoard {
        ProgressBoard::new(self.settings.progress)
    }

    /// Asks for yes.
    ///
    /// # Errors
    /// `HF-1009` when the answer is no.
    pub(crate) fn ask_yes(&self, question: &str) -> CliResult<()> {
        confirm::yes(&self.settings.consent, &mut Terminal, question)
    }

    /// Asks for a name and a reason.
    ///
    /// # Errors
    /// `HF-1009` when they are not given.
    pub(crate) fn ask_name(&self, what: &str, name: &str) -> CliResult<Confirmation> {
        confirm::typed_name(&self.settings.consent, &mut Terminal, what, name)
    }

    /// Asks why.
    ///
    /// # Errors
    /// `HF-1001` when no reason is given.
    pub(crate) fn ask_reason(&self, what: &str) -> CliResult<String> {
        confirm::needed_reason(&self.settings.consent, &mut Terminal, what)
    }

    /// The key under which a repeated request counts once.
    pub(crate) fn idempotency_key(&self) -> String {
        uuid::Uuid::from_bytes(rand::random()).simple().to_string()
    }

    /// How long to wait for a run; as long as it takes without `--timeout`.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.settings.timeout
    }

    /// The id of the snapshot that is named, or the beginning of one as it was given.
    ///
    /// # Errors
    /// `HF-3014` when there is none in that place of the list.
    pub(crate) async fn snapshot_id(
        &self,
        client: &Client,
        reference: &SnapshotReference,
    ) -> CliResult<String> {
        let (source, back, kind) = match reference {
            SnapshotReference::Id(id) => return Ok(id.clone()),
            SnapshotReference::Latest { source, back, snapshot_type } => (source, *back, snapshot_type),
        };
        let snapshots = snapshots(client, source.as_deref(), None, SNAPSHOTS_SEARCHED_MAX).await?;
        nth_latest(&snapshots, back, kind.as_deref()).map(|snapshot| snapshot.id.clone())
    }
}

/// How many snapshots are looked through for `latest~N`.
const SNAPSHOTS_SEARCHED_MAX: u32 = 10_000;

/// Largest page the controller gives.
pub(crate) const PAGE_MAX: u32 = 1000;

/// Snapshots, newest first, at most `limit`.
///
/// # Errors
/// What the controller answered.
pub(crate) async fn snapshots(
    client: &Client,
    source: Option<&str>,
    repository: Option<&str>,
    limit: u32,
) -> CliResult<Vec<SnapshotView>> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let wanted = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        let reply = client
            .list_snapshots(v1::ListSnapshotsRequest {
                source: source.unwrap_or_default().to_owned(),
                repository: repository.unwrap_or_default().to_owned(),
                page_size: wanted.clamp(1, PAGE_MAX),
                page_token,
            })
            .await?;
        let got = reply.snapshots.len();
        found.extend(reply.snapshots.into_iter().map(SnapshotView::from));
        found.truncate(limit as usize);
        page_token = reply.next_page_token;
        if page_token.is_empty() || got == 0 || found.len() >= limit as usize {
            return Ok(found);
        }
    }
}
