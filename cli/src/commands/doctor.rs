//! `holdfast doctor`

use holdfast_proto::v1;

use crate::app::App;
use crate::args::status::DoctorArgs;
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::{counted, plain};
use crate::output::{Align, Look, Tone, format};
use crate::views::status::FindingView;

pub(super) async fn doctor(app: &mut App, args: DoctorArgs) -> CliResult {
    let mut findings = Vec::new();
    let mut unreached = None;
    match examine_controller(app).await {
        Ok((own, theirs)) => {
            findings.extend(own);
            findings.extend(theirs);
        }
        Err(error) => {
            findings.push(of_error(&error));
            unreached = Some(error);
        }
    }
    let findings: Vec<FindingView> =
        findings.into_iter().filter(|finding| concerns(finding, &args)).collect();
    if app.output.is_human() {
        let text = report(&findings, app.output.look());
        app.output.write(&text)?;
    } else {
        app.output.list(&findings, "")?;
    }
    match unreached {
        // The findings tell it already; the exit status must as well.
        Some(error) => Ok(error.exit_status()),
        None if findings.iter().any(|finding| finding.outcome == "failed") => Ok(ExitStatus::Failed),
        None => Ok(ExitStatus::Ok),
    }
}

/// What the command line finds on the way, then what the controller finds.
async fn examine_controller(app: &App) -> CliResult<(Vec<FindingView>, Vec<FindingView>)> {
    let connection = app.connection()?;
    let client = Client::connect(&connection, app.settings.timeout).await?;
    let who = client.whoami(v1::WhoamiRequest {}).await?;
    let mut own = vec![FindingView {
        area: "cli".to_owned(),
        object: connection.context.clone(),
        outcome: "ok".to_owned(),
        message: format!("{} answers, you are {} ({})", client.address(), who.name, who.role),
        remedy: None,
    }];
    let ours = env!("CARGO_PKG_VERSION");
    if who.controller_version != ours {
        own.push(FindingView {
            area: "cli".to_owned(),
            object: None,
            outcome: "warning".to_owned(),
            message: format!("this is version {ours}, the controller has {}", who.controller_version),
            remedy: None,
        });
    }
    let reply = client.doctor(v1::DoctorRequest {}).await?;
    Ok((own, reply.findings.into_iter().map(FindingView::from).collect()))
}

fn of_error(error: &CliError) -> FindingView {
    let failure = error.failure();
    let why = failure.why.first().map(|why| format!(": {why}")).unwrap_or_default();
    FindingView {
        area: "cli".to_owned(),
        object: None,
        outcome: "failed".to_owned(),
        message: format!("[{}] {}{why}", failure.code, failure.message),
        // A remedy that says to run this very command helps nobody.
        remedy: failure.next.iter().find(|next| !next.contains("doctor")).cloned(),
    }
}

fn concerns(finding: &FindingView, args: &DoctorArgs) -> bool {
    let wanted = [("source", &args.source), ("agent", &args.agent), ("repository", &args.repo)];
    wanted.iter().all(|(area, name)| {
        name.as_ref().is_none_or(|name| {
            finding.outcome == "failed" && finding.area == "cli"
                || finding.area == *area && finding.object.as_deref() == Some(name)
        })
    })
}

fn report(findings: &[FindingView], look: &Look) -> String {
    let mut rows: Vec<Vec<(String, Tone)>> = Vec::new();
    let mut last_area = "";
    for finding in findings {
        let area = if finding.area == last_area { "" } else { finding.area.as_str() };
        last_area = &finding.area;
        let text = match &finding.object {
            Some(object) => format!("{object}: {}", finding.message),
            None => finding.message.clone(),
        };
        let fix = finding.remedy.as_deref().map(|remedy| format!("fix: {}", plain(remedy)));
        rows.push(vec![
            (area.to_owned(), Tone::Plain),
            (finding.sign().to_owned(), finding.tone()),
            (plain(&text), Tone::Plain),
            (fix.unwrap_or_default(), Tone::Plain),
        ]);
    }
    let count = |outcome: &str| findings.iter().filter(|finding| finding.outcome == outcome).count() as u64;
    let mut text = format::grid(&[("", Align::Left); 4], &rows, look);
    text.push_str(&format!(
        "\n{}, {}, {} not set, {} ok\n",
        counted(count("failed"), "failure"),
        counted(count("warning"), "warning"),
        count("not_set"),
        count("ok"),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::look;

    fn finding(area: &str, object: &str, outcome: &str, message: &str, remedy: &str) -> FindingView {
        FindingView::from(v1::Finding {
            area: area.to_owned(),
            object: object.to_owned(),
            outcome: outcome.to_owned(),
            message: message.to_owned(),
            remedy: remedy.to_owned(),
        })
    }

    #[test]
    fn findings_are_grouped_and_counted() {
        let look = look();
        let findings = [
            finding("controller", "", "ok", "version 0.1.0", ""),
            finding("repository", "main", "failed", "the storage is full", "free space"),
            finding("repository", "spare", "warning", "never checked", "holdfast repo check spare"),
            finding("key", "main", "not_set", "no copy of the key is confirmed", ""),
        ];
        insta::assert_snapshot!(report(&findings, &look), @r#"
        controller  ok       version 0.1.0
        repository  XX       main: the storage is full              fix: free space
                    !!       spare: never checked                   fix: holdfast repo check spare
        key         not set  main: no copy of the key is confirmed

        1 failure, 1 warning, 1 not set, 1 ok
        "#);
    }

    #[test]
    fn a_filter_keeps_what_stands_in_the_way() {
        let args = DoctorArgs { source: Some("shop".to_owned()), agent: None, repo: None };
        assert!(concerns(&finding("source", "shop", "ok", "", ""), &args));
        assert!(!concerns(&finding("source", "pg-main", "failed", "", ""), &args));
        assert!(!concerns(&finding("agent", "shop", "ok", "", ""), &args));
        assert!(concerns(&finding("cli", "", "failed", "", ""), &args));
    }
}
