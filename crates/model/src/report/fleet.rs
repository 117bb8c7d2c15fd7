//! The daily and the weekly report: how the fleet did in a period, and how it stands at its end.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::storage::Forecast;
use super::tally::{RunCounts, Tally};
use super::{Period, Verdict, VerdictState, shorten};
use crate::alert::{Language, Words};
use crate::manifest::Manifest;
use crate::objectives::{ObjectiveState, Report as Objectives, Standing};
use crate::text::counted;

/// Sources that a report names, those in the worst state first. All are counted.
pub const SOURCES_MAX: usize = 200;
/// Tables that are named of one source, those that changed most first.
pub const TABLES_MAX: usize = 5;
/// Incidents, problems and repositories that are named.
pub const LISTED_MAX: usize = 200;

/// What a period brought, and how the fleet stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetReport {
    /// What it covers.
    pub period: Period,
    /// When it was made; how things stand is as of then.
    pub generated_at: Timestamp,
    /// The environment; empty when none is declared.
    pub environment: String,
    /// How it was.
    pub verdict: Verdict,
    /// What came of all runs.
    pub runs: RunCounts,
    /// What is wrong now, the worst first.
    pub problems: Vec<Problem>,
    /// Problems that are not named here.
    pub problems_left_out: u64,
    /// How many sources there are in which state.
    pub source_counts: SourceCounts,
    /// The sources, those in the worst state first.
    pub sources: Vec<SourceReport>,
    /// Sources that are not named here; none of them is in a worse state than those that are.
    pub sources_left_out: u64,
    /// What was wrong in the period, the newest first.
    pub incidents: Vec<Incident>,
    /// Incidents that are not named here.
    pub incidents_left_out: u64,
    /// The repositories.
    pub repositories: Vec<RepositoryReport>,
    /// Repositories that are not named here.
    #[serde(default)]
    pub repositories_left_out: u64,
}

/// How many sources are in which state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceCounts {
    /// All.
    pub total: u64,
    /// Nothing is wrong with them.
    pub protected: u64,
    /// No backup of them begins by itself for now.
    pub paused: u64,
    /// Something is wrong with them.
    pub at_risk: u64,
    /// There is nothing of them to restore.
    pub not_restorable: u64,
    /// Of all: those that are under no policy, so that no backup begins by itself.
    pub unscheduled: u64,
    /// Of all: those that were never restored for proof.
    pub never_proven: u64,
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// source, repository or agent.
    pub object_kind: String,
    /// Which one.
    pub object: String,
    /// What is wrong.
    pub problem: String,
    /// A command against it.
    pub next: Option<String>,
}

/// A length of time that is promised beside the one that was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MeasuredTime {
    /// What is promised; null: nothing.
    pub objective_seconds: Option<i64>,
    /// What was measured; null: nothing, ever.
    pub actual_seconds: Option<i64>,
    /// `met`, `at_risk`, `breached`, `not_set` or `unknown`.
    pub state: String,
}

/// A number that is promised beside the one that was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MeasuredCount {
    /// What is promised; null: nothing.
    pub objective: Option<i64>,
    /// What was measured.
    pub actual: Option<i64>,
    /// `met`, `at_risk`, `breached`, `not_set` or `unknown`.
    pub state: String,
}

impl From<Standing<i64>> for MeasuredTime {
    fn from(standing: Standing<i64>) -> Self {
        Self {
            objective_seconds: standing.objective,
            actual_seconds: standing.actual,
            state: standing.state.as_str().to_owned(),
        }
    }
}

impl From<Standing<i64>> for MeasuredCount {
    fn from(standing: Standing<i64>) -> Self {
        Self {
            objective: standing.objective,
            actual: standing.actual,
            state: standing.state.as_str().to_owned(),
        }
    }
}

/// One source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceReport {
    /// Its name.
    pub source: String,
    /// Its engine.
    pub engine: String,
    /// The policy that it is under; null: no backup begins by itself.
    pub policy: Option<String>,
    /// The team that its labels name.
    pub team: Option<String>,
    /// protected, paused, at_risk or not_restorable.
    pub state: String,
    /// Why it is not protected.
    pub problem: Option<String>,
    /// Newest moment that can be restored.
    pub recovery_point_at: Option<Timestamp>,
    /// What would be lost now.
    pub rpo: MeasuredTime,
    /// How long a restore takes.
    pub rto: MeasuredTime,
    /// How long ago a restore was proven.
    pub drill_age: MeasuredTime,
    /// How long ago every byte of a snapshot was read.
    pub verify_age: MeasuredTime,
    /// In how many repositories it is.
    pub copies: MeasuredCount,
    /// When a restore was last proven.
    pub proven_at: Option<Timestamp>,
    /// When every byte of a snapshot was last read.
    pub verified_at: Option<Timestamp>,
    /// What came of its runs.
    pub runs: RunCounts,
    /// Restores that succeeded in the period.
    pub restores: u64,
    /// The longest time in the period without a backup that succeeded; null without a schedule.
    pub longest_without_backup_seconds: Option<i64>,
    /// Size of its newest snapshot.
    pub logical_bytes: Option<u64>,
    /// Size of the snapshot that the period began with, or the first one in it.
    pub logical_bytes_before: Option<u64>,
    /// Rows in its newest snapshot; null when it has no tables.
    pub rows: Option<u64>,
    /// Rows in the snapshot that the period began with, or the first one in it.
    pub rows_before: Option<u64>,
    /// The tables whose number of rows changed most.
    pub tables: Vec<TableTrend>,
}

/// How the number of rows of a table changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TableTrend {
    /// Its database.
    pub database: String,
    /// Its qualified name.
    pub table: String,
    /// Rows before; null: it was not there.
    pub rows_before: Option<u64>,
    /// Rows now; null: it is not there any more.
    pub rows: Option<u64>,
}

impl TableTrend {
    /// By how many rows it grew; negative when it shrank.
    pub fn change(&self) -> i64 {
        let rows = |rows: Option<u64>| i64::try_from(rows.unwrap_or(0)).unwrap_or(i64::MAX);
        rows(self.rows) - rows(self.rows_before)
    }
}

/// Something that was wrong for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Incident {
    /// The number of the alert.
    pub alert: u64,
    /// source, repository, agent, channel or controller.
    pub object_kind: String,
    /// Which one.
    pub object: String,
    /// The rule.
    pub rule: String,
    /// info, warning or critical.
    pub severity: String,
    /// What was at stake.
    pub summary: Words,
    /// Since when.
    pub since_at: Timestamp,
    /// When it was over; null: it is not.
    pub recovered_at: Option<Timestamp>,
    /// How long it took, or has taken so far.
    pub duration_seconds: i64,
    /// Who has acknowledged it.
    pub acknowledged_by: Option<String>,
}

/// One repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RepositoryReport {
    /// Its name.
    pub repository: String,
    /// Whether it can be reached.
    pub up: bool,
    /// Bytes in it.
    pub stored_bytes: Option<u64>,
    /// Bytes that its storage has left.
    pub free_bytes: Option<u64>,
    /// When its storage will be full.
    pub forecast: Forecast,
    /// Snapshots that retention removed in the period, to the hour.
    pub removed_by_retention: u64,
    /// Snapshots that people removed in the period, to the hour.
    pub removed_by_hand: u64,
}

/// What is known of a source.
#[derive(Debug, Clone)]
pub struct SourceInput {
    /// Its name.
    pub source: crate::ids::SourceName,
    /// Its engine.
    pub engine: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The policy that it is under, and since when.
    pub policy: Option<(String, Timestamp)>,
    /// protected, paused, at_risk or not_restorable.
    pub state: String,
    /// Why it is not protected.
    pub problem: String,
    /// Newest moment that can be restored.
    pub recovery_point: Option<Timestamp>,
    /// When a restore was last proven.
    pub proven_at: Option<Timestamp>,
    /// When every byte of a snapshot was last read.
    pub verified_at: Option<Timestamp>,
    /// Objectives beside what is measured.
    pub objectives: Objectives,
    /// Size and manifest of the snapshot that the period began with, or the first one in it.
    pub before: Option<(u64, Option<Manifest>)>,
    /// Size and manifest of its newest snapshot.
    pub newest: Option<(u64, Option<Manifest>)>,
}

/// What a report follows from.
#[derive(Debug, Clone)]
pub struct Input {
    /// When it is made.
    pub generated_at: Timestamp,
    /// The environment.
    pub environment: String,
    /// The runs.
    pub tally: Tally,
    /// What is wrong now, the worst first.
    pub problems: Vec<Problem>,
    /// The sources.
    pub sources: Vec<SourceReport>,
    /// What was wrong in the period.
    pub incidents: Vec<Incident>,
    /// The repositories.
    pub repositories: Vec<RepositoryReport>,
}

/// What a report says of a source; made source by source, so that no two manifests are kept longer than needed.
pub fn source(input: SourceInput, tally: &Tally) -> SourceReport {
    let counted = tally.sources.get(&input.source).cloned().unwrap_or_default();
    let since = input.policy.as_ref().map(|(_, since)| *since);
    let manifest = |of: &Option<(u64, Option<Manifest>)>| of.as_ref().and_then(|(_, found)| found.clone());
    let (before, newest) = (manifest(&input.before), manifest(&input.newest));
    let rows = |of: &Option<Manifest>| of.as_ref().filter(|it| !it.databases.is_empty()).map(Manifest::rows);
    let objectives = input.objectives;
    SourceReport {
        source: input.source.to_string(),
        engine: input.engine,
        policy: input.policy.map(|(name, _)| name),
        team: input.labels.get("team").or_else(|| input.labels.get("owner")).cloned(),
        state: input.state,
        problem: Some(input.problem).filter(|problem| !problem.is_empty()),
        recovery_point_at: input.recovery_point,
        rpo: objectives.rpo.into(),
        rto: objectives.rto.into(),
        drill_age: objectives.drill_age.into(),
        verify_age: objectives.verify_age.into(),
        copies: objectives.copies.into(),
        proven_at: input.proven_at,
        verified_at: input.verified_at,
        runs: counted.counts.clone(),
        restores: counted.restores,
        longest_without_backup_seconds: since
            .map(|since| counted.longest_without_backup(&tally.period, since)),
        logical_bytes: input.newest.as_ref().map(|(bytes, _)| *bytes),
        logical_bytes_before: input.before.as_ref().map(|(bytes, _)| *bytes),
        rows: rows(&newest),
        rows_before: rows(&before),
        tables: match (&before, &newest) {
            (Some(before), Some(newest)) => trends(before, newest),
            _ => Vec::new(),
        },
    }
}

/// The tables whose number of rows changed most between two manifests.
pub fn trends(before: &Manifest, newest: &Manifest) -> Vec<TableTrend> {
    let mut tables: BTreeMap<(&str, &str), TableTrend> = BTreeMap::new();
    for (manifest, is_newest) in [(before, false), (newest, true)] {
        for database in &manifest.databases {
            for (name, table) in &database.tables {
                let trend = tables.entry((&database.name, name)).or_insert_with(|| TableTrend {
                    database: database.name.clone(),
                    table: name.clone(),
                    rows_before: None,
                    rows: None,
                });
                let rows = if is_newest { &mut trend.rows } else { &mut trend.rows_before };
                *rows = Some(table.rows);
            }
        }
    }
    let mut trends: Vec<TableTrend> = tables.into_values().collect();
    trends.retain(|trend| trend.rows != trend.rows_before);
    trends.sort_by_key(|trend| std::cmp::Reverse(trend.change().unsigned_abs()));
    trends.truncate(TABLES_MAX);
    trends
}

fn cut<T>(list: &mut Vec<T>, most: usize) -> u64 {
    let left_out = list.len().saturating_sub(most) as u64;
    list.truncate(most);
    left_out
}

/// The document that follows from what is known.
pub fn build(input: Input) -> FleetReport {
    let Input {
        generated_at,
        environment,
        tally,
        mut problems,
        mut sources,
        mut incidents,
        mut repositories,
    } = input;
    let mut source_counts = SourceCounts::default();
    for source in &sources {
        source_counts.total += 1;
        source_counts.never_proven += u64::from(source.proven_at.is_none());
        source_counts.unscheduled += u64::from(source.policy.is_none());
        match source.state.as_str() {
            "protected" => source_counts.protected += 1,
            "paused" => source_counts.paused += 1,
            "at_risk" => source_counts.at_risk += 1,
            _ => source_counts.not_restorable += 1,
        }
    }
    let rank = |source: &SourceReport| match source.state.as_str() {
        "not_restorable" => 0,
        "at_risk" => 1,
        "paused" => 2,
        _ => 3,
    };
    sources.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.source.cmp(&b.source)));
    incidents.sort_by_key(|incident| std::cmp::Reverse((incident.since_at, incident.alert)));
    let mut report = FleetReport {
        period: tally.period,
        generated_at,
        environment,
        verdict: Verdict { state: VerdictState::Unknown, sentence: String::new() },
        runs: tally.counts,
        problems_left_out: cut(&mut problems, LISTED_MAX),
        problems,
        source_counts,
        sources_left_out: cut(&mut sources, SOURCES_MAX),
        sources,
        incidents_left_out: cut(&mut incidents, LISTED_MAX),
        incidents,
        repositories_left_out: cut(&mut repositories, LISTED_MAX),
        repositories,
    };
    report.shorten();
    report.verdict = Verdict { state: report.judge(), sentence: report.sentence(Language::English) };
    report
}

impl FleetReport {
    /// Cuts what others have written: names of tables and errors of tools have no bound of their own.
    fn shorten(&mut self) {
        for problem in &mut self.problems {
            shorten(&mut problem.object);
            shorten(&mut problem.problem);
            problem.next.as_mut().map(shorten);
        }
        for source in &mut self.sources {
            source.team.as_mut().map(shorten);
            source.problem.as_mut().map(shorten);
            for table in &mut source.tables {
                shorten(&mut table.database);
                shorten(&mut table.table);
            }
        }
        for incident in &mut self.incidents {
            shorten(&mut incident.object);
            shorten(&mut incident.summary.en);
            shorten(&mut incident.summary.zh);
            incident.acknowledged_by.as_mut().map(shorten);
        }
    }

    pub(super) fn leave_out_lists(&mut self) {
        self.problems_left_out += cut(&mut self.problems, 0);
        self.sources_left_out += cut(&mut self.sources, 0);
        self.incidents_left_out += cut(&mut self.incidents, 0);
        self.repositories_left_out += cut(&mut self.repositories, 0);
    }

    fn judge(&self) -> VerdictState {
        let counts = &self.source_counts;
        if counts.total == 0 {
            VerdictState::Unknown
        } else if counts.at_risk + counts.not_restorable > 0
            || self.problems.iter().any(|problem| problem.object_kind != "source")
        {
            VerdictState::Bad
        } else if self.runs.ended == 0 {
            VerdictState::Unknown
        } else if self.runs.failed + self.runs.partial > 0
            || !self.incidents.is_empty()
            || counts.paused + counts.never_proven + counts.unscheduled > 0
        {
            VerdictState::Attention
        } else {
            VerdictState::Good
        }
    }

    /// The verdict in one sentence.
    pub fn sentence(&self, language: Language) -> String {
        let counts = &self.source_counts;
        let mut parts: Vec<Words> = Vec::new();
        if counts.total == 0 {
            return Words::new(
                "no source is declared: nothing is protected",
                "未声明任何数据源：没有任何保护",
            )
            .get(language)
            .to_owned();
        }
        let wrong = counts.at_risk + counts.not_restorable;
        let problems = self.problems.len() as u64 + self.problems_left_out;
        if wrong > 0 {
            let (total, verb) = (counted(counts.total, "source"), if wrong == 1 { "needs" } else { "need" });
            parts.push(Words::new(
                format!("{wrong} of {total} {verb} attention now"),
                format!("{} 个数据源中有 {wrong} 个现在需要处理", counts.total),
            ));
        } else if problems > 0 {
            let verb = if problems == 1 { "is" } else { "are" };
            parts.push(Words::new(
                format!("there {verb} {} now", counted(problems, "problem")),
                format!("现在有 {problems} 个问题"),
            ));
        }
        parts.push(runs_sentence(&self.runs));
        let incidents = self.incidents.len() as u64 + self.incidents_left_out;
        if incidents > 0 {
            parts.push(Words::new(counted(incidents, "incident"), format!("{incidents} 次事件")));
        }
        if counts.unscheduled > 0 {
            let verb = if counts.unscheduled == 1 { "is" } else { "are" };
            parts.push(Words::new(
                format!("{} of {} {verb} under no policy", counts.unscheduled, counts.total),
                format!("{} 个数据源中有 {} 个没有策略", counts.total, counts.unscheduled),
            ));
        }
        if counts.never_proven > 0 {
            let verb = if counts.never_proven == 1 { "was" } else { "were" };
            parts.push(Words::new(
                format!("{} of {} {verb} never restored for proof", counts.never_proven, counts.total),
                format!("{} 个数据源中有 {} 个从未做过恢复验证", counts.total, counts.never_proven),
            ));
        }
        let parts: Vec<&str> = parts.iter().map(|part| part.get(language)).collect();
        parts.join(if language == Language::Chinese { "；" } else { "; " })
    }
}

/// What came of the runs, in one part of a sentence.
pub(super) fn runs_sentence(runs: &RunCounts) -> Words {
    let total = counted(runs.ended, "run");
    if runs.ended == 0 {
        return Words::new("no run ended, there is no evidence", "没有运行结束，没有任何证据");
    }
    let mut said = match runs.failed {
        0 => Words::new(
            format!("nothing failed, {} of {total} done", crate::text::count(runs.done())),
            format!("没有失败，{} 次运行中完成 {} 次", runs.ended, runs.done()),
        ),
        failed => Words::new(
            format!("{} of {total} failed", crate::text::count(failed)),
            format!("{} 次运行中失败 {failed} 次", runs.ended),
        ),
    };
    let more: [(u64, &str, &str); 3] = [
        (runs.partial, "with warnings", "有警告"),
        (runs.skipped, "left out by a rule", "按规则跳过"),
        (runs.cancelled, "cancelled", "已取消"),
    ];
    for (count, en, zh) in more.into_iter().filter(|(count, ..)| *count > 0) {
        said.en.push_str(&format!(", {} {en}", crate::text::count(count)));
        said.zh.push_str(&format!("，{count} 次{zh}"));
    }
    said
}

/// Whether an objective is one that somebody should look at.
pub(super) fn is_broken(state: &str) -> bool {
    state == ObjectiveState::Breached.as_str()
}

#[cfg(test)]
mod tests;
