//! `holdfast status`

use std::fmt::Write as _;

use holdfast_model::ErrorCode;
use holdfast_proto::v1;

use super::details;
use crate::app::App;
use crate::args::status::StatusArgs;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::{counted, plain, rough, short_run, short_snapshot, size};
use crate::output::{Align, Look, Record as _, Tone, format};
use crate::views::run::RunView;
use crate::views::status::{
    PlaceView, SourceStatusView, health_line, loss, objective_cells, restore_time, state_text, tone,
};

/// What an empty fleet is told.
const EMPTY: &str = "nothing is protected: no source is declared
  next   holdfast repo add main --url file:///var/lib/holdfast/main --key-file /etc/holdfast/main.key
         holdfast agent enroll NAME
         holdfast source add NAME --engine sqlite --agent NAME --path /srv/app.db";

pub(super) async fn status(app: &mut App, args: StatusArgs) -> CliResult {
    let client = app.connect().await?;
    let source = args.source.clone().unwrap_or_default();
    let reply = client.fleet_status(v1::FleetStatusRequest { source }).await?;
    let header = header(app, &reply);
    let all: Vec<SourceStatusView> = reply.sources.into_iter().map(SourceStatusView::from).collect();
    if let Some(name) = &args.source {
        let [one] = all.as_slice() else {
            return Err(CliError::new(ErrorCode::NotFound, format!("there is no source {name:?}"))
                .then("holdfast source list"));
        };
        let one = one.clone();
        app.output.show(&one, |look| detail(&one, look))?;
    } else {
        let shown: Vec<SourceStatusView> =
            all.iter().filter(|status| !args.problems || !status.is_protected()).cloned().collect();
        if !app.output.is_human() {
            app.output.list(&shown, EMPTY)?;
        } else if all.is_empty() {
            app.output.note(EMPTY);
        } else {
            let wide = app.output.format() == format::OutputFormat::Wide;
            let text = overview(&header, &all, &shown, app.output.look(), wide);
            app.output.write(&text)?;
        }
    }
    Ok(if args.check { verdict(&all) } else { ExitStatus::Ok })
}

/// What `--check` says. No source at all is nothing that is protected.
fn verdict(all: &[SourceStatusView]) -> ExitStatus {
    if all.iter().any(SourceStatusView::is_damaged) {
        ExitStatus::DataBad
    } else if all.is_empty() || !all.iter().all(SourceStatusView::is_protected) {
        ExitStatus::ObjectiveBreached
    } else {
        ExitStatus::Ok
    }
}

fn header(app: &App, reply: &v1::FleetStatusResponse) -> String {
    let name = app
        .connection()
        .ok()
        .and_then(|connection| connection.context)
        .map(|context| format!("{context}   "))
        .unwrap_or_default();
    let paused = match reply.sources.iter().filter(|source| source.state == "paused").count() {
        0 => String::new(),
        some => format!("   {some} paused"),
    };
    let count = |state: &str| reply.sources.iter().filter(|source| source.state == state).count();
    let not_restorable = match count("not_restorable") {
        0 => "0 not restorable".to_owned(),
        some => app.output.palette().bad(&format!("{some} NOT RESTORABLE")),
    };
    let unprotected = match reply.databases_unprotected {
        0 => String::new(),
        some => app.output.palette().warning(&format!(
            "\n{some} of {} seen on hosts in no policy   -> holdfast source discover",
            counted(reply.databases_found.into(), "database")
        )),
    };
    format!(
        "{name}{}   {} protected{paused}   {} at risk   {not_restorable}   controller {}, {} of {} connected{unprotected}",
        counted(reply.sources.len() as u64, "source"),
        count("protected"),
        count("at_risk"),
        plain(&reply.controller_version),
        reply.agents_online,
        counted(reply.agents_total.into(), "agent"),
    )
}

fn overview(
    header: &str,
    all: &[SourceStatusView],
    shown: &[SourceStatusView],
    look: &Look,
    wide: bool,
) -> String {
    let mut text = format!("{header}\n");
    if shown.is_empty() {
        text.push_str("nothing needs attention\n");
        return text;
    }
    let format = if wide { format::OutputFormat::Wide } else { format::OutputFormat::Table };
    text.push('\n');
    text.push_str(&format::render(format, shown, look));
    let problems: Vec<&SourceStatusView> = all.iter().filter(|status| !status.is_protected()).collect();
    if problems.is_empty() {
        return text;
    }
    let verb = if problems.len() == 1 { "needs" } else { "need" };
    // Writing into a String cannot fail.
    let _ = writeln!(text, "\n{} {verb} attention", problems.len());
    let rows: Vec<Vec<(String, Tone)>> = problems
        .iter()
        .map(|status| {
            let sign = state_text(status).split(' ').next().unwrap_or_default().to_owned();
            let remedy = status.remedy.as_deref().map(|remedy| format!("-> {}", plain(remedy)));
            vec![
                (format!("  {sign}"), tone(status)),
                (status.name(), Tone::Plain),
                (plain(status.problem.as_deref().unwrap_or("-")), Tone::Plain),
                (remedy.unwrap_or_default(), Tone::Plain),
            ]
        })
        .collect();
    text.push_str(&format::grid(&[("", Align::Left); 4], &rows, look));
    text
}

/// In which repositories it is, when there is more than one, and how far they are behind.
fn places(status: &SourceStatusView, look: &Look) -> String {
    if status.places.len() < 2 {
        return String::new();
    }
    let place = |place: &PlaceView| {
        let text = match (place.behind_seconds, &place.problem) {
            (None, _) => "nothing yet".to_owned(),
            (Some(0), None) => "up to date".to_owned(),
            (Some(seconds), _) => {
                format!("{} behind", rough(std::time::Duration::from_secs(seconds.unsigned_abs())))
            }
        };
        let kind = if place.is_copy { " (copy)" } else { "" };
        let text = format!("{}{kind} {text}", plain(&place.repository));
        if place.problem.is_some() { look.palette.bad(&text) } else { text }
    };
    status.places.iter().map(place).collect::<Vec<_>>().join(", ")
}

fn detail(status: &SourceStatusView, look: &Look) -> String {
    let paint = |text: String| match tone(status) {
        Tone::Good => look.palette.good(&text),
        Tone::Warning => look.palette.warning(&text),
        _ => look.palette.bad(&text),
    };
    let online = if status.agent_online { "connected" } else { "not connected" };
    let mut text = format!(
        "{}   {}   on {} ({online})   {}\n",
        plain(&status.source),
        plain(&status.engine),
        plain(&status.agent),
        paint(state_text(status)),
    );
    let snapshot = status.snapshot_id.as_deref().map(|id| {
        format!(
            "{}, {}, {} in {}",
            short_snapshot(id),
            status.proof.as_deref().unwrap_or("-"),
            counted(status.snapshots, "snapshot"),
            counted(u64::from(status.copies), "repository").replace("repositorys", "repositories"),
        )
    });
    let run = |run: &Option<RunView>| {
        run.as_ref().map_or_else(String::new, |run| {
            format!(
                "{} {} {}   {}",
                run.kind,
                short_run(&run.id),
                run.phase,
                look.time_or(run.ended_at.or(run.started_at).or(run.queued_at), "")
            )
        })
    };
    let promised = status.objectives.iter().any(|objective| objective.target.is_some());
    if promised {
        let rows: Vec<_> = status.objectives.iter().map(objective_cells).collect();
        text.push_str(&format::grid(&[("", Align::Left); 4], &rows, look));
    }
    // What is promised stands beside its promise already.
    let unless_promised = |text: String| if promised { String::new() } else { text };
    let next_run = match (&status.policy, status.next_run_at) {
        (None, _) => "none by itself: it is under no policy".to_owned(),
        (Some(policy), _) if status.paused => format!("paused; policy {policy}"),
        (Some(policy), None) => format!("none by the clock; policy {policy}"),
        (Some(policy), Some(at)) => format!("{}; policy {policy}", look.time(at)),
    };
    text.push_str(&details(&[
        ("loss if now", unless_promised(loss(status))),
        ("restorable to", look.time_or(status.recovery_point_at, "nothing: there is no snapshot")),
        (
            "restore takes",
            unless_promised(match status.restore_seconds {
                Some(_) => format!("{} (the last one)", restore_time(status)),
                None => "not known: none was timed".to_owned(),
            }),
        ),
        ("restore proven", unless_promised(look.time_or(status.proven_at, "never"))),
        ("read in full", unless_promised(look.time_or(status.verified_at, "never"))),
        ("next run", next_run),
        (
            "missed",
            if status.missed_slots == 0 { String::new() } else { counted(status.missed_slots, "slot") },
        ),
        ("health", plain(&health_line(&status.health))),
        ("size", size(status.logical_bytes)),
        ("newest", snapshot.unwrap_or_default()),
        ("is in", places(status, look)),
        ("running", run(&status.active_run)),
        ("last backup", run(&status.last_backup)),
        ("debug", status.debug_until.map(|at| format!("until {}", look.time(at))).unwrap_or_default()),
        ("problem", status.problem.as_deref().map(plain).unwrap_or_default()),
        ("next", status.remedy.as_deref().map(plain).unwrap_or_default()),
    ]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::look;
    use crate::views::status::ObjectiveView;

    fn protected() -> SourceStatusView {
        SourceStatusView {
            source: "pg-main".to_owned(),
            engine: "postgres 15.18".to_owned(),
            agent: "db1".to_owned(),
            agent_online: true,
            state: "protected".to_owned(),
            recovery_point_at: Some("2026-11-21T13:41:01Z".parse().unwrap()),
            loss_seconds: Some(6),
            restore_seconds: Some(702.0),
            proven_at: Some("2026-11-21T04:41:01Z".parse().unwrap()),
            copies: 2,
            snapshots: 14,
            logical_bytes: 4 << 30,
            snapshot_id: Some("3f2a91bc".repeat(8)),
            proof: Some("restored".to_owned()),
            ..SourceStatusView::default()
        }
    }

    fn without_snapshot() -> SourceStatusView {
        SourceStatusView {
            source: "shop".to_owned(),
            engine: "sqlite".to_owned(),
            agent: "app1".to_owned(),
            state: "not_restorable".to_owned(),
            problem: Some("no backup has ever succeeded".to_owned()),
            remedy: Some("holdfast backup run shop".to_owned()),
            ..SourceStatusView::default()
        }
    }

    #[test]
    fn the_overview_leads_with_loss_time_and_proof() {
        let all = [without_snapshot(), protected()];
        insta::assert_snapshot!(overview("prod   2 sources", &all, &all, &look(), false), @r#"
        prod   2 sources

        SOURCE   ENGINE          RESTORABLE TO  LOSS IF NOW  RESTORE TAKES  RESTORE PROVEN  COPIES  PROMISES  NEXT RUN  STATE
        shop     sqlite          -                      ALL              -  never                0  -         -         XX not restorable
        pg-main  postgres 15.18  6s ago                  6s         11m42s  9h ago               2  -         -         ok

        1 needs attention
          XX  shop  no backup has ever succeeded  -> holdfast backup run shop
        "#);
    }

    #[test]
    fn one_source_is_shown_in_full() {
        insta::assert_snapshot!(detail(&protected(), &look()), @r#"
        pg-main   postgres 15.18   on db1 (connected)   ok
          loss if now      6s
          restorable to    6s ago
          restore takes    11m42s (the last one)
          restore proven   9h ago
          read in full     never
          next run         none by itself: it is under no policy
          size             4.0 GiB
          newest           3f2a91bc, restored, 14 snapshots in 2 repositories
        "#);
    }

    #[test]
    fn promises_stand_beside_what_is_measured() {
        let objective = |name: &str, target, actual, state: &str| ObjectiveView {
            objective: name.to_owned(),
            target,
            actual,
            state: state.to_owned(),
        };
        let status = SourceStatusView {
            state: "at_risk".to_owned(),
            problem: Some("would lose 6s, at most 5s is promised".to_owned()),
            remedy: Some("holdfast backup run pg-main".to_owned()),
            policy: Some("gold".to_owned()),
            next_run_at: Some("2026-11-21T13:56:07Z".parse().unwrap()),
            missed_slots: 1,
            objectives: vec![
                objective("rpo", Some(5), Some(6), "breached"),
                objective("rto", Some(900), Some(702), "met"),
                objective("drill_age", Some(604_800), None, "unknown"),
                objective("verify_age", None, Some(60), "not_set"),
                objective("copies", Some(2), Some(2), "met"),
            ],
            ..protected()
        };
        insta::assert_snapshot!(detail(&status, &look()), @r#"
        pg-main   postgres 15.18   on db1 (connected)   !! at risk
          loss if now     6s      5s promised        XX breached
          restore takes   11m     15m promised       ok
          restore proven  never   every 7d promised  ?? not known yet
          read in full    1m ago                     not promised
          copies          2       2 promised         ok
          restorable to    6s ago
          next run         in 15m; policy gold
          missed           1 slot
          size             4.0 GiB
          newest           3f2a91bc, restored, 14 snapshots in 2 repositories
          problem          would lose 6s, at most 5s is promised
          next             holdfast backup run pg-main
        "#);
        let all = [status];
        insta::assert_snapshot!(overview("prod   1 source", &all, &all, &look(), false), @r#"
        prod   1 source

        SOURCE   ENGINE          RESTORABLE TO  LOSS IF NOW  RESTORE TAKES  RESTORE PROVEN  COPIES  PROMISES  NEXT RUN  STATE
        pg-main  postgres 15.18  6s ago                  6s         11m42s  9h ago               2  XX rpo    in 15m    !! at risk

        1 needs attention
          !!  pg-main  would lose 6s, at most 5s is promised  -> holdfast backup run pg-main
        "#);
    }

    #[test]
    fn the_verdict_tells_bad_data_from_a_missed_promise() {
        let damaged = SourceStatusView { proof: Some("damaged".to_owned()), ..protected() };
        assert_eq!(verdict(&[protected()]), ExitStatus::Ok);
        assert_eq!(verdict(&[protected(), without_snapshot()]), ExitStatus::ObjectiveBreached);
        assert_eq!(verdict(&[without_snapshot(), damaged]), ExitStatus::DataBad);
        assert_eq!(verdict(&[]), ExitStatus::ObjectiveBreached);
    }
}
