use super::*;
use crate::manifest::{DatabaseManifest, TableManifest};
use crate::report::Report;
use crate::report::page::{Block, Row, page};
use crate::report::storage::{SizeHistory, SizeSample, forecast};

fn now() -> Timestamp {
    "2026-06-08T06:00:00Z".parse().unwrap()
}

fn not_set() -> Standing<i64> {
    Standing { objective: None, actual: None, state: ObjectiveState::NotSet }
}

fn input(name: &str, state: &str) -> SourceInput {
    SourceInput {
        source: crate::ids::SourceName::new(name).unwrap(),
        engine: "postgres".to_owned(),
        labels: BTreeMap::new(),
        policy: Some(("gold".to_owned(), Timestamp::UNIX_EPOCH)),
        state: state.to_owned(),
        problem: String::new(),
        recovery_point: Some(now()),
        proven_at: Some(now()),
        verified_at: None,
        objectives: Objectives {
            rpo: not_set(),
            rto: not_set(),
            drill_age: not_set(),
            verify_age: not_set(),
            copies: not_set(),
        },
        before: None,
        newest: None,
    }
}

fn tally() -> Tally {
    let zone = Default::default();
    Tally::new(Period::ending(super::super::ReportKind::Weekly, 0, now(), &zone), None)
}

fn report(sources: Vec<SourceInput>, change: impl FnOnce(&mut Input)) -> FleetReport {
    let tally = tally();
    let mut input = Input {
        generated_at: now(),
        environment: "prod".to_owned(),
        problems: Vec::new(),
        sources: sources.into_iter().map(|found| source(found, &tally)).collect(),
        incidents: Vec::new(),
        repositories: Vec::new(),
        tally,
    };
    input.tally.counts = RunCounts { ended: 266, succeeded: 266, ..RunCounts::default() };
    change(&mut input);
    build(input)
}

#[test]
fn however_long_names_and_errors_are_a_report_stays_small_enough_to_be_sent() {
    // As many sources, problems and incidents as are named, every name as bad as it can be.
    let long = "表\"\u{1}".repeat(1 << 16);
    let sources: Vec<SourceInput> = (0..300)
        .map(|number| SourceInput { problem: long.clone(), ..input(&format!("s{number}"), "at_risk") })
        .collect();
    let report = report(sources, |input| {
        for source in &mut input.sources {
            let table = long.clone();
            let trend = TableTrend { database: long.clone(), table, rows_before: None, rows: Some(1) };
            source.tables = vec![trend; TABLES_MAX];
        }
        let problem = Problem {
            object_kind: "source".to_owned(),
            object: "s".to_owned(),
            problem: long.clone(),
            next: Some(long.clone()),
        };
        input.problems = vec![problem; 300];
        let incident = Incident {
            alert: 1,
            object_kind: "source".to_owned(),
            object: "s".to_owned(),
            rule: "source-down".to_owned(),
            severity: "critical".to_owned(),
            summary: Words::same(long.clone()),
            since_at: now(),
            recovered_at: None,
            duration_seconds: 1,
            acknowledged_by: None,
        };
        input.incidents = vec![incident; 300];
    });
    let table = &report.sources[0].tables[0].table;
    assert_eq!((table.chars().count(), table.ends_with('…')), (300, true));
    let whole = Report::Weekly(Box::new(report));
    let bytes = |report: &Report| serde_json::to_vec(report).unwrap().len();
    assert!(bytes(&whole) < 4 << 20, "{} bytes", bytes(&whole));

    let short = whole.clone().without_lists();
    assert!(bytes(&short) < 4096, "{} bytes", bytes(&short));
    assert_eq!(short.verdict(), whole.verdict());
    let said = |report: &Report| {
        let page = page(report, Language::English);
        let texts = page.blocks.into_iter().filter_map(|block| match block {
            Block::Heading(text) | Block::Text(text) => Some(text),
            _ => None,
        });
        (page.verdict, texts.collect::<Vec<_>>())
    };
    assert_eq!(said(&short).0, said(&whole).0);
    let expected = [
        "2026-06-01 06:00 to 2026-06-08 06:00, UTC",
        "Problems",
        "and 300 more",
        "Incidents",
        "and 300 more",
        "Objectives: actual, and what is promised",
        "and 300 more",
        "Runs and sizes",
        "and 300 more",
    ];
    assert_eq!(said(&short).1, expected);
}

#[test]
fn the_times_of_a_zone_that_is_not_known_are_in_utc_and_say_so() {
    let mut report = report(Vec::new(), |_| {});
    report.period.timezone = "Mars/Olympus".to_owned();
    let page = page(&Report::Weekly(Box::new(report)), Language::English);
    assert_eq!(page.blocks[0], Block::Text("2026-06-01 06:00 to 2026-06-08 06:00, UTC".to_owned()));
}

#[test]
fn the_verdict_says_in_one_sentence_how_it_was() {
    let good = || vec![input("a", "protected"), input("b", "protected")];
    let verdict = |report: FleetReport| (report.verdict.state, report.verdict.sentence);
    assert_eq!(
        verdict(report(good(), |_| {})),
        (VerdictState::Good, "nothing failed, 266 of 266 runs done".to_owned())
    );
    assert_eq!(
        verdict(report(Vec::new(), |_| {})),
        (VerdictState::Unknown, "no source is declared: nothing is protected".to_owned())
    );
    assert_eq!(
        verdict(report(good(), |input| input.tally.counts = RunCounts::default())),
        (VerdictState::Unknown, "no run ended, there is no evidence".to_owned())
    );
    let failed = |input: &mut Input| {
        input.tally.counts =
            RunCounts { ended: 4, succeeded: 1, partial: 1, failed: 1, skipped: 1, ..RunCounts::default() };
    };
    assert_eq!(
        verdict(report(good(), failed)),
        (VerdictState::Attention, "1 of 4 runs failed, 1 with warnings, 1 left out by a rule".to_owned())
    );
    assert_eq!(
        verdict(report(vec![input("a", "protected"), input("b", "at_risk")], |_| {})),
        (
            VerdictState::Bad,
            "1 of 2 sources needs attention now; nothing failed, 266 of 266 runs done".to_owned()
        )
    );
}

#[test]
fn what_is_not_proven_or_not_scheduled_is_never_good() {
    let unproven = SourceInput { proven_at: None, ..input("a", "protected") };
    let found = report(vec![unproven], |_| {});
    assert_eq!(found.verdict.state, VerdictState::Attention);
    assert_eq!(
        found.verdict.sentence,
        "nothing failed, 266 of 266 runs done; 1 of 1 was never restored for proof"
    );
    let unscheduled = SourceInput { policy: None, ..input("a", "protected") };
    let found = report(vec![unscheduled], |_| {});
    assert_eq!(found.verdict.state, VerdictState::Attention);
    assert_eq!(found.verdict.sentence, "nothing failed, 266 of 266 runs done; 1 of 1 is under no policy");
    assert_eq!(found.sources[0].longest_without_backup_seconds, None);
}

#[test]
fn a_problem_of_a_repository_makes_the_verdict_bad_and_a_paused_source_does_not() {
    let problem = |kind: &str| Problem {
        object_kind: kind.to_owned(),
        object: "x".to_owned(),
        problem: "it cannot be reached".to_owned(),
        next: None,
    };
    let found = report(vec![input("a", "protected")], |input| input.problems.push(problem("repository")));
    assert_eq!(found.verdict.state, VerdictState::Bad);
    assert!(found.verdict.sentence.starts_with("there is 1 problem now; "), "{}", found.verdict.sentence);
    let found = report(vec![input("a", "paused")], |input| input.problems.push(problem("source")));
    assert_eq!(found.verdict.state, VerdictState::Attention);
}

#[test]
fn what_is_left_out_is_counted_and_is_never_the_worst() {
    let mut sources: Vec<SourceInput> =
        (0..SOURCES_MAX + 7).map(|number| input(&format!("s{number:03}"), "protected")).collect();
    sources.push(input("zz", "not_restorable"));
    let found = report(sources, |_| {});
    assert_eq!((found.sources.len(), found.sources_left_out), (SOURCES_MAX, 8));
    assert_eq!(found.sources[0].source, "zz");
    assert_eq!(found.source_counts.total, SOURCES_MAX as u64 + 8);
}

fn manifest(tables: &[(&str, u64)]) -> Manifest {
    let database = DatabaseManifest {
        name: "shop".to_owned(),
        path: "shop.dump".to_owned(),
        tables: tables
            .iter()
            .map(|(name, rows)| ((*name).to_owned(), TableManifest { rows: *rows }))
            .collect(),
        schema_hash: String::new(),
        extensions: BTreeMap::new(),
        sequences: BTreeMap::new(),
        large_objects: 0,
        roles: Vec::new(),
        encoding: None,
        settings: BTreeMap::new(),
        logical_bytes: 0,
    };
    Manifest {
        version: 1,
        engine: crate::source::EngineKind::Postgres,
        engine_version: "16".to_owned(),
        tools: BTreeMap::new(),
        captured_at: now(),
        log_position: None,
        system_id: None,
        databases: vec![database],
        files: None,
        logical_bytes: 0,
        unreadable: Vec::new(),
        unreadable_count: 0,
    }
}

#[test]
fn the_tables_that_changed_most_are_named_with_what_came_and_what_went() {
    let before = manifest(&[("a", 10), ("b", 100), ("gone", 7), ("same", 5)]);
    let newest = manifest(&[("a", 12), ("b", 40), ("new", 3), ("same", 5)]);
    let found = trends(&before, &newest);
    let found: Vec<_> = found.iter().map(|trend| (trend.table.as_str(), trend.change())).collect();
    assert_eq!(found, [("b", -60), ("gone", -7), ("new", 3), ("a", 2)]);
    let whole = source(
        SourceInput {
            before: Some((5, Some(before))),
            newest: Some((9, Some(newest))),
            ..input("a", "protected")
        },
        &tally(),
    );
    assert_eq!((whole.rows_before, whole.rows), (Some(122), Some(60)));
    assert_eq!((whole.logical_bytes_before, whole.logical_bytes), (Some(5), Some(9)));
}

#[test]
fn a_report_reads_back_from_its_json() {
    let found = report(vec![input("a", "at_risk")], |input| {
        input.repositories.push(RepositoryReport {
            repository: "main".to_owned(),
            up: true,
            stored_bytes: Some(1),
            free_bytes: None,
            forecast: forecast(&SizeHistory::default(), None, now()),
            removed_by_retention: 1,
            removed_by_hand: 0,
        });
    });
    let report = super::super::Report::Weekly(Box::new(found));
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.starts_with("{\"report\":\"weekly\",\"period\":"), "{text}");
    assert_eq!(serde_json::from_str::<super::super::Report>(&text).unwrap(), report);
}

/// The rows of the table whose first column has this heading.
fn rows(report: FleetReport, heading: &str, language: Language) -> Vec<Row> {
    let page = page(&super::super::Report::Daily(Box::new(report)), language);
    let mut found = page.blocks.into_iter().filter_map(|block| match block {
        Block::Table { headings, rows } if headings.iter().any(|(title, _)| title == heading) => Some(rows),
        _ => None,
    });
    found.next().unwrap()
}

#[test]
fn what_is_measured_stands_beside_what_is_promised_and_nothing_is_well_without_it() {
    let mut breached = input("a", "at_risk");
    breached.objectives.rpo =
        Standing { objective: Some(300), actual: Some(2460), state: ObjectiveState::Breached };
    breached.objectives.copies =
        Standing { objective: Some(2), actual: Some(1), state: ObjectiveState::AtRisk };
    let nothing =
        SourceInput { recovery_point: None, proven_at: None, policy: None, ..input("b", "not_restorable") };
    let made = || report(vec![breached.clone(), nothing.clone()], |_| {});
    let found = rows(made(), "LOSS NOW", Language::English);
    let cells: Vec<Vec<&str>> =
        found.iter().map(|row| row.cells.iter().map(String::as_str).collect()).collect();
    let unset = ["unknown (not set)", "never (not set)"];
    assert_eq!(
        cells[0],
        ["b", "NOT RESTORABLE", "everything (not set)", unset[0], unset[1], unset[1], unset[0], "none"]
    );
    assert_eq!(
        cells[1],
        [
            "a",
            "AT RISK",
            "41 min (5 min) BREACHED",
            unset[0],
            "0 s ago (not set)",
            unset[1],
            "1 (2) at risk",
            "gold"
        ]
    );
    assert!(found.iter().all(|row| row.is_bad));
    let chinese = rows(made(), "当前损失", Language::Chinese);
    assert_eq!(chinese[1].cells[2], "41 分钟 (5 分钟) 违反");
}

#[test]
fn a_forecast_says_what_it_rests_on() {
    let said = |hours: &[i64], free: Option<u64>| {
        let sample = |hour: &i64| SizeSample {
            at: now() - jiff::SignedDuration::from_hours(*hour),
            stored_bytes: 1 << 30,
        };
        let mut sizes = SizeHistory(hours.iter().map(sample).collect());
        sizes.0.last_mut().into_iter().for_each(|last| last.stored_bytes *= 2);
        let found = report(vec![input("a", "protected")], |input| {
            input.repositories.push(RepositoryReport {
                repository: "main".to_owned(),
                up: true,
                stored_bytes: None,
                free_bytes: free,
                forecast: forecast(&sizes, free, now()),
                removed_by_retention: 0,
                removed_by_hand: 0,
            });
        });
        rows(found, "REPOSITORY", Language::English)[0].cells[5].clone()
    };
    assert_eq!(said(&[0], Some(1)), "unknown: 1 size over 0 s, 3 over 2 days are needed");
    assert_eq!(said(&[96, 48, 0], None), "unknown: the storage does not say what is free");
    assert_eq!(said(&[96, 48, 0], Some(1 << 29)), "about 2026-06-10 06:00, by 3 sizes over 4 days");
    assert_eq!(said(&[96, 48, 0], Some(1 << 50)), "not within ten years, by 3 sizes over 4 days");
}
