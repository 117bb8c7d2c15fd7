//! `holdfast alert …`

use std::collections::BTreeMap;

use holdfast_model::alert::Match;
use holdfast_proto::v1;

use super::details;
use crate::app::App;
use crate::args::alert::{AlertCommand, AlertIdArgs, AlertListArgs, AlertSilenceArgs};
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::Look;
use crate::output::text::{counted, plain};
use crate::views::alert::{AlertView, SilenceView, object, state};
use crate::views::moment;

pub(super) async fn alert(app: &mut App, command: AlertCommand) -> CliResult {
    match command {
        AlertCommand::List(args) => list(app, &args).await,
        AlertCommand::Show(args) => show(app, &args).await,
        AlertCommand::Ack(args) => acknowledge(app, &args).await,
        AlertCommand::Silence(args) => silence(app, args).await,
        AlertCommand::Unsilence(args) => unsilence(app, args.id).await,
    }
}

async fn list(app: &mut App, args: &AlertListArgs) -> CliResult {
    let client = app.connect().await?;
    let reply = client.list_alerts(v1::ListAlertsRequest { all: args.all }).await?;
    if args.silences {
        let silences: Vec<SilenceView> = reply.silences.into_iter().map(SilenceView::from).collect();
        app.output.list(&silences, "nothing is silenced")?;
        return Ok(ExitStatus::Ok);
    }
    let alerts: Vec<AlertView> = reply.alerts.into_iter().map(AlertView::from).collect();
    app.output.list(&alerts, "nothing is wrong")?;
    if let Some(first) = alerts.first() {
        app.output.next(&[format!("holdfast alert show {}", first.id)]);
    }
    Ok(ExitStatus::Ok)
}

async fn show(app: &mut App, args: &AlertIdArgs) -> CliResult {
    let client = app.connect().await?;
    let reply = client.show_alert(v1::ShowAlertRequest { id: args.id }).await?;
    let view = AlertView::from(reply.alert.unwrap_or_default());
    app.output.show(&view, |look| describe(&view, look))?;
    app.output.next(&view.next);
    Ok(ExitStatus::Ok)
}

fn describe(view: &AlertView, look: &Look) -> String {
    let text = |value: &Option<String>| value.as_deref().map(plain).unwrap_or_default();
    let acknowledged = view.acknowledged_by.as_ref().map(|by| {
        let reason = view.acknowledged_reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        plain(&format!("{} by {by}{reason}", look.time_or(view.acknowledged_at, "-")))
    });
    let time = |at| look.time_or(at, "");
    let affected =
        if view.affected == 0 { String::new() } else { counted(u64::from(view.affected), "alert") };
    format!(
        "{} {} {}\n{}",
        plain(&view.severity),
        object(view),
        plain(&view.summary),
        details(&[
            ("alert", format!("{}, rule {}", view.id, plain(&view.rule))),
            ("state", state(view)),
            ("why", text(&view.why)),
            ("safe", text(&view.safe)),
            ("since", time(view.since_at)),
            ("first seen", time(view.first_seen_at)),
            ("over", time(view.recovered_at)),
            ("followed by", affected),
            ("told", view.told.join(" ")),
            ("acknowledged", acknowledged.unwrap_or_default()),
            ("silenced until", time(view.silenced_until_at)),
        ])
    )
}

async fn acknowledge(app: &mut App, args: &AlertIdArgs) -> CliResult {
    let client = app.connect().await?;
    let request = v1::AcknowledgeRequest {
        idempotency_key: app.idempotency_key(),
        id: args.id,
        reason: app.settings.consent.reason.clone().unwrap_or_default(),
    };
    let view = AlertView::from(client.acknowledge_alert(request).await?.alert.unwrap_or_default());
    app.output.note(&format!("alert {} is acknowledged: it is told again only if it becomes worse", view.id));
    app.output.next(&[format!("holdfast alert show {}", view.id)]);
    Ok(ExitStatus::Ok)
}

/// Which alerts are meant.
fn matches(args: &AlertSilenceArgs) -> CliResult<Match> {
    let label = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(CliError::usage(format!("--label is {text:?}: NAME=VALUE is needed"))),
    };
    Ok(Match {
        alert: args.id,
        source: args.source.clone(),
        repository: args.repository.clone(),
        agent: args.agent.clone(),
        reason: args.rule.clone(),
        labels: args.label.iter().map(label).collect::<CliResult<BTreeMap<_, _>>>()?,
        ..Match::default()
    })
}

async fn silence(app: &mut App, args: AlertSilenceArgs) -> CliResult {
    let matches = matches(&args)?;
    let for_seconds = u32::try_from(args.length.secs()).unwrap_or(u32::MAX);
    let client = app.connect().await?;
    let request = v1::SilenceRequest {
        idempotency_key: app.idempotency_key(),
        match_json: serde_json::to_string(&matches).unwrap_or_default(),
        for_seconds,
        reason: app.ask_reason("a silence")?,
    };
    let reply = client.silence_alerts(request).await?;
    let silence = reply.silence.unwrap_or_default();
    let until = moment(silence.until).map_or(String::new(), |until| app.output.look().both_times(until));
    let now = counted(u64::from(reply.covers), "alert");
    app.output
        .note(&format!("silence {} keeps {now} quiet now, and others that fit, until {until}", silence.id));
    app.output.next(&[format!("holdfast alert unsilence {}", silence.id)]);
    Ok(ExitStatus::Ok)
}

async fn unsilence(app: &mut App, id: u64) -> CliResult {
    let client = app.connect().await?;
    let request = v1::UnsilenceRequest { idempotency_key: app.idempotency_key(), id };
    client.unsilence_alerts(request).await?;
    app.output.note(&format!("silence {id} is over: what still fails is told"));
    app.output.next(&["holdfast alert list".to_owned()]);
    Ok(ExitStatus::Ok)
}
