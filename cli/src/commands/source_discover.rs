//! `holdfast source discover`

use std::time::Duration;

use holdfast_proto::v1;

use crate::app::App;
use crate::args::fleet::SourceDiscoverArgs;
use crate::error::CliResult;
use crate::exit_status::ExitStatus;
use crate::output::text::{counted, plain};
use crate::views::discovery::FoundView;

/// How long all agents together may take.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) async fn discover(app: &mut App, args: SourceDiscoverArgs) -> CliResult {
    let client = app.connect().await?;
    let request = v1::DiscoverRequest {
        agent: args.agent.unwrap_or_default(),
        policy: args.policy.unwrap_or_default(),
    };
    let reply = client.patient(DISCOVER_TIMEOUT).discover(request).await?;
    let found: Vec<FoundView> = reply.databases.into_iter().map(FoundView::from).collect();
    app.output.list(&found, "no database was found")?;
    for line in &reply.unseen {
        app.output.note(&format!("not looked at: {}", plain(line)));
    }
    let unprotected = found.iter().filter(|one| one.policy.is_none()).count();
    if unprotected > 0 {
        app.output.note(&format!(
            "{} of {} in no policy",
            unprotected,
            counted(found.len() as u64, "database")
        ));
    }
    let lines: Vec<&str> = found.iter().filter_map(|one| one.definition.as_deref()).collect();
    if app.output.is_human() && !lines.is_empty() {
        app.output.write(&format!(
            "\n# For a fleet file; then: holdfast apply -f FILE\napi: holdfast/v1\nsources:\n{}\n",
            lines.iter().map(|line| plain(line)).collect::<Vec<_>>().join("\n")
        ))?;
    }
    Ok(ExitStatus::Ok)
}
