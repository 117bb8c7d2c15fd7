//! A restore on paper: the plan before it, and what it did after it.

use std::fmt::Write as _;
use std::time::Duration;

use holdfast_model::restore::{CheckOutcome, RestoreCheck, RestoreReport};

use super::details;
use crate::output::text::{count, duration, plain, rough, short_snapshot, size};
use crate::output::{Align, Look, Tone, format};
use crate::views::plan::PlanView;

/// The plan as the operator reads it at three in the morning.
pub(super) fn render(plan: &PlanView, look: &Look) -> String {
    let valid = plan.not_after.map(|end| {
        let left = Duration::try_from(end.duration_since(look.now)).unwrap_or_default();
        format!(" (valid {})", rough(left))
    });
    let place = if plan.preview.replaces { "IN THE PLACE OF THE ORIGINAL" } else { "beside what exists" };
    let mut text = format!(
        "{} {}{}   {} -> {place}, on {}\n",
        look.palette.strong("PLAN"),
        plain(&plan.plan_id),
        valid.unwrap_or_default(),
        plain(&plan.source),
        plain(&plan.agent),
    );
    for (index, step) in plan.preview.steps.iter().enumerate() {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {:>2}  {}", index + 1, plain(step));
    }
    if !plan.preview.steps.is_empty() {
        text.push('\n');
    }
    let captured = plan.captured_at.map(|at| look.both_times(at)).unwrap_or_default();
    let becomes: Vec<String> = plan
        .preview
        .targets
        .iter()
        .map(|target| match plan.preview.replaces {
            true => format!("{} (restored as {} first)", target.live, target.restored),
            false => target.restored.clone(),
        })
        .map(|line| plain(&line))
        .collect();
    let time = match plan.estimated_seconds.map(Duration::try_from_secs_f64) {
        Some(Ok(length)) => format!("about {}, from earlier restores of this source", duration(length)),
        _ => "not known: no restore of this source was timed".to_owned(),
    };
    let space = match plan.preview.bytes_free {
        Some(free) => format!("needs {}, {} free", size(plan.preview.bytes_needed), size(free)),
        None => format!("needs {}, free space is not known", size(plan.preview.bytes_needed)),
    };
    let touches = match &plan.confirm_with {
        Some(name) => look.palette.warning(&format!("live data; asks for the name {}", plain(name))),
        None => "nothing that exists".to_owned(),
    };
    let mut lines = vec![
        (
            "snapshot",
            format!(
                "{} captured {captured}, from {}",
                short_snapshot(&plan.snapshot_id),
                plain(&plan.repository)
            ),
        ),
        ("becomes", becomes.first().cloned().unwrap_or_default()),
    ];
    lines.extend(becomes.iter().skip(1).take(TARGETS_SHOWN_MAX).map(|line| ("", line.clone())));
    if becomes.len() > TARGETS_SHOWN_MAX + 1 {
        lines.push(("", format!("and {} more", becomes.len() - TARGETS_SHOWN_MAX - 1)));
    }
    lines.extend([("time", time), ("space", space), ("touches", touches)]);
    text.push_str(&details(&lines));
    text.push_str(&check_table(&plan.preview.checks, look));
    for obstacle in &plan.obstacles {
        let sign = look.palette.bad("XX cannot run:");
        let _ = writeln!(text, "  {sign} {}", plain(obstacle));
    }
    text
}

/// How many targets people are shown besides the first.
const TARGETS_SHOWN_MAX: usize = 9;

fn check_table(checks: &[RestoreCheck], look: &Look) -> String {
    if checks.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<(String, Tone)>> = checks
        .iter()
        .map(|check| {
            let (word, tone) = outcome(check.outcome);
            vec![
                (format!("  {word}"), tone),
                (plain(&check.name), Tone::Plain),
                (plain(&check.detail), Tone::Plain),
            ]
        })
        .collect();
    format::grid(&[("", Align::Left); 3], &rows, look)
}

fn outcome(outcome: CheckOutcome) -> (&'static str, Tone) {
    match outcome {
        CheckOutcome::Ok => ("ok", Tone::Good),
        CheckOutcome::Warning => ("!!", Tone::Warning),
        CheckOutcome::Failed => ("XX", Tone::Bad),
        CheckOutcome::Unknown => ("not known", Tone::Warning),
    }
}

/// What a restore did, as labelled lines.
pub(super) fn report_lines(report: &RestoreReport) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    for target in &report.targets {
        let line = match &target.kept {
            Some(kept) => format!("{} (the old is kept as {kept})", target.live),
            None => target.restored.clone(),
        };
        lines.push((if lines.is_empty() { "restored" } else { "" }, plain(&line)));
    }
    let unchanged = match report.bytes_unchanged {
        0 => String::new(),
        bytes => format!(", {} were there already", size(bytes)),
    };
    if report.bytes_written + report.bytes_unchanged > 0 {
        lines.push(("bytes", format!("{} written{unchanged}", size(report.bytes_written))));
    }
    match (report.rows, report.rows_expected) {
        (Some(rows), Some(expected)) if rows == expected => {
            lines.push(("rows", format!("{} restored = {} captured", count(rows), count(expected))));
        }
        (Some(rows), Some(expected)) => {
            lines.push(("rows", format!("{} restored, BUT {} captured", count(rows), count(expected))));
        }
        (Some(rows), None) => lines.push(("rows", count(rows))),
        (None, _) => {}
    }
    for check in &report.checks {
        lines.push((
            "check",
            format!("{}   {}   {}", outcome(check.outcome).0, plain(&check.name), plain(&check.detail)),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::look;
    use holdfast_model::restore::{RestorePreview, RestoredTarget};

    fn plan() -> PlanView {
        PlanView {
            plan_id: "8c1d7f2e".to_owned(),
            source: "shop".to_owned(),
            not_after: Some("2026-11-21T14:11:07Z".parse().unwrap()),
            snapshot_id: "3f2a91bc".repeat(8),
            captured_at: Some("2026-11-21T13:00:07Z".parse().unwrap()),
            repository: "main".to_owned(),
            agent: "app1".to_owned(),
            estimated_seconds: None,
            obstacles: Vec::new(),
            confirm_with: None,
            preview: RestorePreview {
                steps: vec![
                    "write 18.4 MiB to /srv/shop_restored_3f2a91bc.db".to_owned(),
                    "count the rows of 5 tables".to_owned(),
                ],
                checks: vec![RestoreCheck {
                    name: "version".to_owned(),
                    outcome: CheckOutcome::Ok,
                    detail: "3.50.4 -> 3.50.4".to_owned(),
                }],
                targets: vec![RestoredTarget {
                    part: "shop.db".to_owned(),
                    restored: "/srv/shop_restored_3f2a91bc.db".to_owned(),
                    live: "/srv/shop.db".to_owned(),
                    kept: None,
                }],
                bytes_needed: 19_293_798,
                bytes_free: Some(402 << 30),
                replaces: false,
            },
        }
    }

    #[test]
    fn a_plan_says_what_happens_and_what_it_touches() {
        insta::assert_snapshot!(render(&plan(), &look()), @r#"
        PLAN 8c1d7f2e (valid 30m)   shop -> beside what exists, on app1
           1  write 18.4 MiB to /srv/shop_restored_3f2a91bc.db
           2  count the rows of 5 tables

          snapshot   3f2a91bc captured 2026-11-21T13:00:07Z, from main
          becomes    /srv/shop_restored_3f2a91bc.db
          time       not known: no restore of this source was timed
          space      needs 18.4 MiB, 402.0 GiB free
          touches    nothing that exists
          ok  version  3.50.4 -> 3.50.4
        "#);
    }

    #[test]
    fn obstacles_and_replacements_stand_out() {
        let mut in_place = plan();
        in_place.preview.replaces = true;
        in_place.confirm_with = Some("shop".to_owned());
        in_place.obstacles = vec!["/srv lacks 4.0 MiB of space".to_owned()];
        let text = render(&in_place, &look());
        assert!(text.contains("IN THE PLACE OF THE ORIGINAL"));
        assert!(text.contains("live data; asks for the name shop"));
        assert!(text.contains("XX cannot run: /srv lacks 4.0 MiB of space"));
    }

    #[test]
    fn rows_that_differ_are_not_called_equal() {
        let report = RestoreReport { rows: Some(5), rows_expected: Some(6), ..RestoreReport::default() };
        assert_eq!(report_lines(&report), [("rows", "5 restored, BUT 6 captured".to_owned())]);
    }
}
