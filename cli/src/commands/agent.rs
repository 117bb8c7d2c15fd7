//! `holdfast agent …`

use holdfast_proto::v1;

use super::details;
use super::source_definition::name;
use crate::app::App;
use crate::args::fleet::{AgentCommand, AgentEnrollArgs, AgentRevokeArgs};
use crate::error::CliResult;
use crate::exit_status::ExitStatus;
use crate::output::Look;
use crate::views::fleet::{AgentView, EnrollmentView};
use crate::views::moment;

pub(super) async fn agent(app: &mut App, command: AgentCommand) -> CliResult {
    match command {
        AgentCommand::Enroll(args) => enroll(app, args).await,
        AgentCommand::List => list(app).await,
        AgentCommand::Revoke(args) => revoke(app, args).await,
    }
}

async fn enroll(app: &mut App, args: AgentEnrollArgs) -> CliResult {
    let _: holdfast_model::ids::AgentName = name(&args.name)?;
    let client = app.connect().await?;
    let ttl_seconds = u32::try_from(args.ttl.as_secs()).unwrap_or(u32::MAX);
    let request = v1::CreateEnrollmentTokenRequest { agent: args.name.clone(), ttl_seconds };
    let reply = client.create_enrollment_token(request).await?;
    let server = client.address().to_string();
    let command = enroll_command(&args.name, &reply.token, &server, &reply.ca_pin);
    let view = EnrollmentView {
        agent: args.name,
        token: reply.token,
        ca_pin: reply.ca_pin,
        server,
        not_after: moment(reply.not_after),
        command,
    };
    app.output.show(&view, |look| describe(&view, look))?;
    app.output.next(&["holdfast agent list".to_owned()]);
    Ok(ExitStatus::Ok)
}

/// Where the packaged agent keeps its identity.
const AGENT_DATA_DIR: &str = "/var/lib/holdfast-agent";

/// What to run on the agent's host. The token stands in the environment: arguments can be read by everyone there.
fn enroll_command(agent: &str, token: &str, server: &str, ca_pin: &str) -> String {
    format!(
        "HOLDFAST_ENROLL_TOKEN={token} \\\n    \
         holdfast-agent enroll --controller {server} --name {agent} \\\n    \
         --ca-pin {ca_pin} --data-dir {AGENT_DATA_DIR}"
    )
}

fn describe(view: &EnrollmentView, look: &Look) -> String {
    format!(
        "run this on the host of {}, as the user of the agent; the token works once\n\n  {}\n\n{}",
        look.palette.strong(&view.agent),
        view.command,
        details(&[("valid", look.time_or(view.not_after, "-"))]),
    )
}

async fn list(app: &mut App) -> CliResult {
    let client = app.connect().await?;
    let reply = client.list_agents(v1::ListAgentsRequest {}).await?;
    let found: Vec<AgentView> = reply.agents.into_iter().map(AgentView::from).collect();
    app.output.list(&found, "no agent is enrolled\n  next   holdfast agent enroll NAME")?;
    Ok(ExitStatus::Ok)
}

async fn revoke(app: &mut App, args: AgentRevokeArgs) -> CliResult {
    let client = app.connect().await?;
    let what =
        format!("agent {} loses its access; its sources are not backed up any more. Revoke it?", args.name);
    app.ask_yes(&what)?;
    let reason = app.ask_reason("a revocation")?;
    client.revoke_agent(v1::RevokeAgentRequest { name: args.name.clone(), reason }).await?;
    app.output.note(&format!("agent {} is revoked", args.name));
    app.output.next(&[format!("holdfast agent enroll {}", args.name)]);
    Ok(ExitStatus::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_not_an_argument_of_the_agent() {
        let command = enroll_command("db1", "hfe_abc", "https://backup:7443", "sha256:00");
        let (variable, arguments) = command.split_once(" \\\n    holdfast-agent ").unwrap();
        assert_eq!(variable, "HOLDFAST_ENROLL_TOKEN=hfe_abc");
        assert!(!arguments.contains("hfe_abc"));
    }
}
