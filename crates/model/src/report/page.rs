//! A report in words: what people read, in their language, without saying how it looks.
//!
//! Every text of others goes through [`line`]: one line, no control characters. What a form gives a meaning is for the
//! form to escape.

use jiff::Timestamp;

use super::fleet::{FleetReport, MeasuredTime, Problem, RepositoryReport, SourceReport, is_broken};
use super::logs::LogReport;
use super::storage::{Forecast, ForecastState};
use super::{Period, Report, ReportKind, VerdictState};
use crate::alert::Language;
use crate::alert::render::{length, line};
use crate::policy::Zone;
use crate::text::{count, counted, size};

/// The longest text of a cell, in characters.
const CELL_CHARS_MAX: usize = 300;

/// Tables of sources whose number of rows changed, that are shown.
const TRENDS_MAX: usize = 20;

/// A report in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// One line: the environment, and which report.
    pub title: String,
    /// How the period was.
    pub state: VerdictState,
    /// That in one sentence.
    pub verdict: String,
    /// The rest, the most important first.
    pub blocks: Vec<Block>,
}

/// A part of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// The heading of what follows.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// Things to do: what is wrong, and a command against it.
    Tasks(Vec<(String, Option<String>)>),
    /// A table. The first column says what a row is about.
    Table {
        /// The headings, each with whether the column is one of numbers.
        headings: Vec<(String, bool)>,
        /// The rows.
        rows: Vec<Row>,
    },
}

impl Block {
    fn has_rows(&self) -> bool {
        matches!(self, Block::Table { rows, .. } if !rows.is_empty())
    }
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// As many cells as there are headings.
    pub cells: Vec<String>,
    /// Whether somebody should look at it.
    pub is_bad: bool,
}

/// The words of a language, and the zone of its times.
struct Writer {
    language: Language,
    zone: Zone,
    now: Timestamp,
}

/// A report in words.
pub fn page(report: &Report, language: Language) -> Page {
    let period = report.period();
    // A zone that only another version knows: the times are in UTC, and say so.
    let zone = period.timezone.parse().unwrap_or_default();
    let writer = |now| Writer { language, zone, now };
    match report {
        Report::Daily(fleet) | Report::Weekly(fleet) => {
            writer(fleet.generated_at).fleet_page(report.kind(), fleet)
        }
        Report::Logs(logs) => writer(logs.generated_at).logs_page(logs),
    }
}

fn cell(text: &str) -> String {
    line(text, CELL_CHARS_MAX)
}

impl Writer {
    fn say(&self, en: &str, zh: &str) -> String {
        match self.language {
            Language::English => en.to_owned(),
            Language::Chinese => zh.to_owned(),
        }
    }

    fn heading(&self, en: &str, zh: &str) -> Block {
        Block::Heading(self.say(en, zh))
    }

    fn headings(&self, columns: &[(&str, &str, bool)]) -> Vec<(String, bool)> {
        columns.iter().map(|(en, zh, is_number)| (self.say(en, zh), *is_number)).collect()
    }

    fn title(&self, kind: ReportKind, environment: &str) -> String {
        let environment = if environment.is_empty() { "holdfast" } else { environment };
        let what = match kind {
            ReportKind::Daily => self.say("daily report", "日报"),
            ReportKind::Weekly => self.say("weekly report", "周报"),
            ReportKind::Logs => self.say("report of the runs", "运行报告"),
        };
        format!("[{}] {what}", line(environment, 40))
    }

    fn moment(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.time_zone().clone()).strftime("%Y-%m-%d %H:%M").to_string()
    }

    fn period(&self, period: &Period) -> Block {
        let (from, until) = (self.moment(period.from), self.moment(period.until));
        let zone = self.zone.as_str();
        Block::Text(match self.language {
            Language::English => format!("{from} to {until}, {zone}"),
            Language::Chinese => format!("{from} 至 {until}（{zone}）"),
        })
    }

    fn length(&self, seconds: i64) -> String {
        length(seconds).get(self.language).to_owned()
    }

    fn ago(&self, at: Option<Timestamp>) -> String {
        let Some(at) = at else { return self.say("never", "从未") };
        let age = self.length(self.now.duration_since(at).as_secs());
        match self.language {
            Language::English => format!("{age} ago"),
            Language::Chinese => format!("{age}前"),
        }
    }

    fn fleet_page(&self, kind: ReportKind, report: &FleetReport) -> Page {
        let mut blocks = vec![self.period(&report.period)];
        let mut list = |heading: Block, named: Option<Block>, left_out: u64| {
            if named.is_some() || left_out > 0 {
                blocks.push(heading);
                blocks.extend(named);
                blocks.extend(self.left_out(left_out));
            }
        };
        let problems = || Block::Tasks(report.problems.iter().map(|problem| self.problem(problem)).collect());
        let problems = (!report.problems.is_empty()).then(problems);
        list(self.heading("Problems", "问题"), problems, report.problems_left_out);
        let table = |table: Block| Some(table).filter(Block::has_rows);
        let incidents = table(self.incidents(report));
        list(self.heading("Incidents", "事件"), incidents, report.incidents_left_out);
        let heading = self.heading("Objectives: actual, and what is promised", "目标：实际值与承诺值");
        list(heading, table(self.objectives(&report.sources)), report.sources_left_out);
        let heading = self.heading("Runs and sizes", "运行与大小");
        list(heading, table(self.activity(&report.sources)), report.sources_left_out);
        let trends = table(self.trends(&report.sources));
        list(self.heading("Tables that changed most", "行数变化最大的表"), trends, 0);
        let repositories = table(self.repositories(&report.repositories));
        list(self.heading("Storage", "存储"), repositories, report.repositories_left_out);
        Page {
            title: self.title(kind, &report.environment),
            state: report.verdict.state,
            verdict: report.sentence(self.language),
            blocks,
        }
    }

    fn left_out(&self, number: u64) -> Option<Block> {
        (number > 0).then(|| match self.language {
            Language::English => Block::Text(format!("and {} more", count(number))),
            Language::Chinese => Block::Text(format!("另有 {number} 项")),
        })
    }

    fn problem(&self, problem: &Problem) -> (String, Option<String>) {
        let kind = match problem.object_kind.as_str() {
            "source" => String::new(),
            "repository" => self.say("repository ", "存储库 "),
            "agent" => self.say("agent ", "代理 "),
            other => format!("{} ", cell(other)),
        };
        let text = format!("{kind}{}: {}", cell(&problem.object), cell(&problem.problem));
        (text, problem.next.as_deref().map(cell))
    }

    fn incidents(&self, report: &FleetReport) -> Block {
        let columns = [
            ("OBJECT", "对象", false),
            ("WHAT", "内容", false),
            ("SEVERITY", "级别", false),
            ("SINCE", "开始", false),
            ("FOR", "持续", true),
            ("STATE", "状态", false),
            ("SEEN BY", "确认人", false),
        ];
        let rows = report.incidents.iter().map(|incident| Row {
            cells: vec![
                cell(&match incident.object_kind.as_str() {
                    "source" => incident.object.clone(),
                    kind => format!("{kind} {}", incident.object),
                }),
                cell(incident.summary.get(self.language)),
                cell(&incident.severity),
                self.moment(incident.since_at),
                self.length(incident.duration_seconds),
                match incident.recovered_at {
                    Some(_) => self.say("over", "已恢复"),
                    None => self.say("not over", "未恢复"),
                },
                incident.acknowledged_by.as_deref().map_or_else(|| "-".to_owned(), cell),
            ],
            is_bad: incident.recovered_at.is_none(),
        });
        Block::Table { headings: self.headings(&columns), rows: rows.collect() }
    }

    fn state(&self, state: &str) -> String {
        match state {
            "protected" => self.say("protected", "受保护"),
            "paused" => self.say("paused", "已暂停"),
            "at_risk" => self.say("AT RISK", "有风险"),
            _ => self.say("NOT RESTORABLE", "无法恢复"),
        }
    }

    /// What was measured, and what is promised; never well without both.
    fn measured(&self, found: &MeasuredTime, actual: Option<String>) -> String {
        let unknown = || match found.actual_seconds {
            None => self.say("unknown", "未知"),
            Some(seconds) => self.length(seconds),
        };
        let actual = actual.unwrap_or_else(unknown);
        let objective = found.objective_seconds.map(|seconds| self.length(seconds));
        self.beside(actual, objective, &found.state)
    }

    fn beside(&self, actual: String, objective: Option<String>, state: &str) -> String {
        let objective = objective.unwrap_or_else(|| self.say("not set", "未设置"));
        let word = match state {
            "breached" => self.say(" BREACHED", " 违反"),
            "at_risk" => self.say(" at risk", " 有风险"),
            _ => String::new(),
        };
        format!("{actual} ({objective}){word}")
    }

    fn objectives(&self, sources: &[SourceReport]) -> Block {
        let columns = [
            ("SOURCE", "数据源", false),
            ("STATE", "状态", false),
            ("LOSS NOW", "当前损失", false),
            ("RESTORE", "恢复时间", false),
            ("PROVEN", "恢复验证", false),
            ("READ", "完整读取", false),
            ("COPIES", "副本", false),
            ("POLICY", "策略", false),
        ];
        let rows = sources.iter().map(|source| {
            let times = [&source.rpo, &source.rto, &source.drill_age, &source.verify_age];
            let copies = source.copies.actual.map_or_else(|| self.say("unknown", "未知"), |n| n.to_string());
            let promised = source.copies.objective.map(|copies| copies.to_string());
            let everything = source.recovery_point_at.is_none().then(|| self.say("everything", "全部"));
            let never = |at: Option<Timestamp>| Some(self.ago(at));
            Row {
                cells: vec![
                    cell(&source.source),
                    self.state(&source.state),
                    self.measured(&source.rpo, everything),
                    self.measured(&source.rto, None),
                    self.measured(&source.drill_age, never(source.proven_at)),
                    self.measured(&source.verify_age, never(source.verified_at)),
                    self.beside(copies, promised, &source.copies.state),
                    source.policy.as_deref().map_or_else(|| self.say("none", "无"), cell),
                ],
                is_bad: matches!(source.state.as_str(), "at_risk" | "not_restorable")
                    || times.iter().any(|found| is_broken(&found.state))
                    || is_broken(&source.copies.state),
            }
        });
        Block::Table { headings: self.headings(&columns), rows: rows.collect() }
    }

    fn activity(&self, sources: &[SourceReport]) -> Block {
        let columns = [
            ("SOURCE", "数据源", false),
            ("DONE", "完成", true),
            ("PARTIAL", "部分", true),
            ("FAILED", "失败", true),
            ("SKIPPED", "跳过", true),
            ("RESTORED", "恢复", true),
            ("LONGEST WITHOUT", "最长无备份", true),
            ("SIZE", "大小", true),
            ("CHANGE", "变化", true),
            ("ROWS", "行数", true),
            ("CHANGE", "变化", true),
        ];
        let dash = || "-".to_owned();
        let rows = sources.iter().map(|source| Row {
            cells: vec![
                cell(&source.source),
                count(source.runs.done()),
                count(source.runs.partial),
                count(source.runs.failed),
                count(source.runs.skipped),
                count(source.restores),
                source.longest_without_backup_seconds.map_or_else(dash, |seconds| self.length(seconds)),
                source.logical_bytes.map_or_else(dash, size),
                change(source.logical_bytes_before, source.logical_bytes, size),
                source.rows.map_or_else(dash, count),
                change(source.rows_before, source.rows, count),
            ],
            is_bad: source.runs.failed > 0,
        });
        Block::Table { headings: self.headings(&columns), rows: rows.collect() }
    }

    fn trends(&self, sources: &[SourceReport]) -> Block {
        let columns = [
            ("SOURCE", "数据源", false),
            ("DATABASE", "数据库", false),
            ("TABLE", "表", false),
            ("BEFORE", "之前", true),
            ("NOW", "现在", true),
            ("CHANGE", "变化", true),
        ];
        let mut trends: Vec<_> = sources
            .iter()
            .flat_map(|source| source.tables.iter().map(move |trend| (source, trend)))
            .collect();
        trends.sort_by_key(|(_, trend)| std::cmp::Reverse(trend.change().unsigned_abs()));
        trends.truncate(TRENDS_MAX);
        let rows = trends.into_iter().map(|(source, trend)| Row {
            cells: vec![
                cell(&source.source),
                cell(&trend.database),
                cell(&trend.table),
                trend.rows_before.map_or_else(|| self.say("not there", "不存在"), count),
                trend.rows.map_or_else(|| self.say("gone", "已消失"), count),
                change(Some(trend.rows_before.unwrap_or(0)), Some(trend.rows.unwrap_or(0)), count),
            ],
            is_bad: false,
        });
        Block::Table { headings: self.headings(&columns), rows: rows.collect() }
    }

    fn repositories(&self, repositories: &[RepositoryReport]) -> Block {
        let columns = [
            ("REPOSITORY", "存储库", false),
            ("STATE", "状态", false),
            ("SIZE", "大小", true),
            ("FREE", "可用", true),
            ("A DAY", "每日增长", true),
            ("FULL", "写满时间", false),
            ("REMOVED", "按规则删除", true),
            ("BY HAND", "手动删除", true),
        ];
        let unknown = || self.say("unknown", "未知");
        let rows = repositories.iter().map(|repository| Row {
            cells: vec![
                cell(&repository.repository),
                if repository.up { self.say("up", "可达") } else { self.say("NOT REACHED", "不可达") },
                repository.stored_bytes.map_or_else(unknown, size),
                repository.free_bytes.map_or_else(unknown, size),
                repository.forecast.growth_bytes_per_day.map_or_else(unknown, |bytes| {
                    format!("{}{}", if bytes < 0 { "-" } else { "+" }, size(bytes.unsigned_abs()))
                }),
                self.forecast(&repository.forecast),
                count(repository.removed_by_retention),
                count(repository.removed_by_hand),
            ],
            is_bad: !repository.up,
        });
        Block::Table { headings: self.headings(&columns), rows: rows.collect() }
    }

    /// When it is full, and what that rests on.
    fn forecast(&self, forecast: &Forecast) -> String {
        let span = self.length(forecast.span_seconds);
        let samples = forecast.samples;
        let known = counted(samples, "size");
        match (forecast.state, self.language) {
            (ForecastState::UnknownHistory, Language::English) => {
                format!("unknown: {known} over {span}, 3 over 2 days are needed")
            }
            (ForecastState::UnknownHistory, Language::Chinese) => {
                format!("未知：已知 {samples} 个大小，跨度 {span}；需要 3 个，跨度 2 天")
            }
            (ForecastState::UnknownFree, _) => {
                self.say("unknown: the storage does not say what is free", "未知：存储不提供可用空间")
            }
            (ForecastState::NotSoon, Language::English) => {
                format!("not within ten years, by {known} over {span}")
            }
            (ForecastState::NotSoon, Language::Chinese) => {
                format!("十年内不会，依据 {samples} 个大小，跨度 {span}")
            }
            (ForecastState::FillsUp, language) => {
                let at = forecast.full_at.map_or_else(String::new, |at| self.moment(at));
                match language {
                    Language::English => format!("about {at}, by {known} over {span}"),
                    Language::Chinese => format!("约 {at}，依据 {samples} 个大小，跨度 {span}"),
                }
            }
        }
    }

    fn logs_page(&self, report: &LogReport) -> Page {
        let mut blocks = vec![self.period(&report.period)];
        if let Some(source) = &report.source {
            blocks.push(Block::Text(format!("{} {}", self.say("source", "数据源"), cell(source))));
        }
        if !report.errors.is_empty() {
            blocks.push(self.heading("Errors", "错误"));
            let tasks = report.errors.iter().map(|error| {
                let text = match self.language {
                    Language::English => format!("{} × {} {}", count(error.count), error.code, error.title),
                    Language::Chinese => format!("{} 次 {} {}", error.count, error.code, error.title),
                };
                let text = format!("{text}: {}", cell(&error.newest_message));
                let run = error.newest_run.get(error.newest_run.len().saturating_sub(8)..);
                (text, Some(format!("holdfast run logs {}", run.unwrap_or_default())))
            });
            blocks.push(Block::Tasks(tasks.collect()));
        }
        blocks.push(self.heading("Runs", "运行"));
        blocks.push(self.kinds(report));
        Page {
            title: self.title(ReportKind::Logs, &report.environment),
            state: report.verdict.state,
            verdict: report.sentence(self.language),
            blocks,
        }
    }

    fn kinds(&self, report: &LogReport) -> Block {
        let columns = [
            ("KIND", "类型", false),
            ("ENDED", "结束", true),
            ("DONE", "完成", true),
            ("PARTIAL", "部分", true),
            ("FAILED", "失败", true),
            ("CANCELLED", "取消", true),
            ("SKIPPED", "跳过", true),
            ("UNDER WAY", "进行中", true),
            ("SUCCESS", "成功率", true),
            ("MEAN TIME", "平均耗时", true),
        ];
        let row = |name: String, runs: &super::RunCounts, mean: Option<f64>| {
            let judged = runs.done() + runs.failed;
            let rate = (judged > 0)
                .then(|| format!("{}.{} %", runs.done() * 100 / judged, runs.done() * 1000 / judged % 10));
            let counts = [
                runs.ended,
                runs.done(),
                runs.partial,
                runs.failed,
                runs.cancelled,
                runs.skipped,
                runs.under_way,
            ];
            let mut cells = vec![name];
            cells.extend(counts.map(count));
            cells.push(rate.unwrap_or_else(|| "-".to_owned()));
            cells.push(mean.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s")));
            Row { cells, is_bad: runs.failed > 0 }
        };
        let mut rows = vec![row(
            format!("{} ({} {})", self.say("all", "全部"), count(report.started), self.say("began", "开始")),
            &report.runs,
            report.mean_duration_seconds,
        )];
        rows.extend(
            report.kinds.iter().map(|kind| row(kind.kind.clone(), &kind.runs, kind.mean_duration_seconds)),
        );
        Block::Table { headings: self.headings(&columns), rows }
    }
}

/// How much more or less there is than before.
fn change(before: Option<u64>, now: Option<u64>, shown: fn(u64) -> String) -> String {
    match (before, now) {
        (Some(before), Some(now)) if now >= before => format!("+{}", shown(now - before)),
        (Some(before), Some(now)) => format!("-{}", shown(before - now)),
        _ => "-".to_owned(),
    }
}
