//! `holdfast audit …` and `holdfast whoami`

use holdfast_proto::v1;

use crate::app::App;
use crate::args::access::{AuditCommand, AuditListArgs};
use crate::client::Client;
use crate::error::CliResult;
use crate::exit_status::ExitStatus;
use crate::output::text::counted;
use crate::views::local::WhoamiView;
use crate::views::moment;
use crate::views::status::AuditView;

/// Most entries the controller gives at once.
const BATCH_MAX: u32 = 10_000;

pub(super) async fn audit(app: &mut App, command: AuditCommand) -> CliResult {
    match command {
        AuditCommand::List(args) => list(app, args).await,
        AuditCommand::Verify => verify(app).await,
    }
}

/// Entries after a number, in order, at most `limit`.
async fn entries(client: &Client, after: u64, limit: u32, verify: bool) -> CliResult<Vec<AuditView>> {
    let request = v1::AuditRequest { after, limit: limit.min(BATCH_MAX), verify };
    let mut replies = client.audit(request).await?;
    let mut found = Vec::new();
    while let Some(reply) = replies.next().await? {
        found.extend(reply.entries.into_iter().map(AuditView::from));
    }
    Ok(found)
}

async fn list(app: &mut App, args: AuditListArgs) -> CliResult {
    let client = app.connect().await?;
    let mut found: Vec<AuditView> = Vec::new();
    let mut after = args.after;
    while found.len() < args.limit as usize {
        let wanted = args.limit - u32::try_from(found.len()).unwrap_or(args.limit);
        let batch = entries(&client, after, wanted, false).await?;
        let Some(last) = batch.last() else { break };
        after = last.seq;
        found.extend(batch);
    }
    app.output.list(&found, "nobody did anything yet")?;
    Ok(ExitStatus::Ok)
}

async fn verify(app: &mut App) -> CliResult {
    let client = app.connect().await?;
    let mut after = 0;
    let mut checked: u64 = 0;
    let mut head: Option<AuditView> = None;
    loop {
        let mut batch = entries(&client, after, BATCH_MAX, true).await?;
        let Some(last) = batch.pop() else { break };
        checked += batch.len() as u64 + 1;
        after = last.seq;
        head = Some(last);
    }
    match head {
        Some(head) => {
            let text = format!(
                "{} checked, the chain is whole\n  last   {}   {}\n",
                counted(checked, "entry").replace("entrys", "entries"),
                head.seq,
                head.hash
            );
            app.output.show(&head, |_| text)?;
        }
        None => app.output.note("nobody did anything yet"),
    }
    Ok(ExitStatus::Ok)
}

pub(super) async fn whoami(app: &mut App) -> CliResult {
    let client = app.connect().await?;
    let reply = client.whoami(v1::WhoamiRequest {}).await?;
    let view = WhoamiView {
        name: reply.name,
        role: reply.role,
        not_after: moment(reply.not_after),
        server: client.address().to_string(),
        controller_version: reply.controller_version,
    };
    app.output.list(&[view], "")?;
    Ok(ExitStatus::Ok)
}
