//! What is said of the conditions of built-in rules, in every language.

use holdfast_model::Failure;
use holdfast_model::alert::render::{length, moment};
use holdfast_model::alert::{AlertText, Words};
use holdfast_model::ids::{AgentName, RepositoryName, SourceName};
use holdfast_model::objectives::Standing;
use jiff::Timestamp;

use crate::source_status::SourceStanding;

/// What can be restored nevertheless.
fn safe(standing: &SourceStanding) -> Option<Words> {
    let point = standing.recovery_point?;
    let proof = standing.proven.map(|(at, millis)| {
        let took = length(i64::try_from(millis / 1000).unwrap_or(i64::MAX));
        Words::new(
            format!("; a restore of {} took {}", moment(at), took.en),
            format!("；{} 的恢复验证耗时 {}", moment(at), took.zh),
        )
    });
    let proof = proof.unwrap_or_else(|| Words::new("; it was never restored", "；尚未做过恢复验证"));
    Some(Words::new(
        format!("everything up to {}{}", moment(point), proof.en),
        format!("{} 之前的数据{}", moment(point), proof.zh),
    ))
}

fn why(standing: &SourceStanding) -> Option<Words> {
    let problem = standing.problem.trim();
    (!problem.is_empty()).then(|| Words::same(problem))
}

fn seconds(standing: Standing<i64>) -> (Words, Words) {
    (length(standing.actual.unwrap_or(0)), length(standing.objective.unwrap_or(0)))
}

fn of_source(standing: &SourceStanding, summary: Words, recovered: Words, next: Vec<String>) -> AlertText {
    AlertText { summary, recovered, why: why(standing), safe: safe(standing), next }
}

pub(super) fn not_restorable(name: &SourceName, standing: &SourceStanding) -> AlertText {
    of_source(
        standing,
        Words::new("has nothing to restore", "没有任何可恢复的备份"),
        Words::new("can be restored again", "已可恢复"),
        vec![format!("holdfast doctor --source {name}"), format!("holdfast backup run {name}")],
    )
}

pub(super) fn rpo(name: &SourceName, standing: &SourceStanding) -> AlertText {
    let rpo = standing.objectives.rpo;
    let (actual, objective) = seconds(rpo);
    let summary = if rpo.actual.is_some() {
        Words::new(
            format!("would lose {} (RPO {})", actual.en, objective.en),
            format!("现在会丢失 {} 数据（目标 {}）", actual.zh, objective.zh),
        )
    } else {
        Words::new(
            format!("would lose everything (RPO {})", objective.en),
            format!("现在会丢失全部数据（目标 {}）", objective.zh),
        )
    };
    let next = vec![format!("holdfast status {name}"), format!("holdfast backup run {name}")];
    of_source(standing, summary, Words::new("is within its RPO again", "已重新满足 RPO 目标"), next)
}

pub(super) fn rto(name: &SourceName, standing: &SourceStanding) -> AlertText {
    let (actual, objective) = seconds(standing.objectives.rto);
    of_source(
        standing,
        Words::new(
            format!("took {} to restore (RTO {})", actual.en, objective.en),
            format!("恢复耗时 {}（目标 {}）", actual.zh, objective.zh),
        ),
        Words::new("restores within its RTO again", "已重新满足 RTO 目标"),
        vec![format!("holdfast restore plan {name}")],
    )
}

fn never_or(actual: Option<i64>, ago: Words) -> Words {
    if actual.is_some() {
        Words::new(format!("{} ago", ago.en), format!("{}前", ago.zh))
    } else {
        Words::new("never", "从未")
    }
}

pub(super) fn drill_overdue(name: &SourceName, standing: &SourceStanding) -> AlertText {
    let drill = standing.objectives.drill_age;
    let (actual, objective) = seconds(drill);
    let last = never_or(drill.actual, actual);
    of_source(
        standing,
        Words::new(
            format!("was last proven to restore: {} (every {} is promised)", last.en, objective.en),
            format!("上次恢复验证：{}（目标每 {} 一次）", last.zh, objective.zh),
        ),
        Words::new("is proven to restore again", "已通过恢复验证"),
        vec![format!("holdfast restore run {name}")],
    )
}

pub(super) fn verify_overdue(name: &SourceName, standing: &SourceStanding) -> AlertText {
    let verify = standing.objectives.verify_age;
    let (actual, objective) = seconds(verify);
    let last = never_or(verify.actual, actual);
    let newest = standing.newest().map_or_else(|| "latest".to_owned(), |record| record.id.short());
    of_source(
        standing,
        Words::new(
            format!("was last read in full: {} (every {} is promised)", last.en, objective.en),
            format!("上次完整校验：{}（目标每 {} 一次）", last.zh, objective.zh),
        ),
        Words::new("is verified again", "已完成校验"),
        vec![format!("holdfast backup verify {newest}"), format!("holdfast status {name}")],
    )
}

pub(super) fn too_few_copies(name: &SourceName, standing: &SourceStanding) -> AlertText {
    let copies = standing.objectives.copies;
    let (have, promised) = (copies.actual.unwrap_or(0), copies.objective.unwrap_or(0));
    of_source(
        standing,
        Words::new(
            format!("is in {have} of {promised} repositories that are promised"),
            format!("只有 {have} 份副本（目标 {promised} 份）"),
        ),
        Words::new("has its copies again", "副本数已满足目标"),
        vec![format!("holdfast status {name}"), "holdfast repo list".to_owned()],
    )
}

pub(super) fn backup_failing(name: &SourceName, standing: &SourceStanding, failures: u64) -> AlertText {
    let last = standing.facts.last_backup.as_ref();
    let (run, failed) = match last.map(|run| (run, &run.state.phase)) {
        Some((run, holdfast_model::run_state::Phase::Failed(failure))) => (Some(run), Some(failure)),
        other => (other.map(|(run, _)| run), None),
    };
    let summary = match failures {
        0 | 1 => Words::new("could not be backed up", "备份失败"),
        n => Words::new(format!("could not be backed up {n} times in a row"), format!("连续 {n} 次备份失败")),
    };
    let mut next = Vec::new();
    next.extend(run.map(|run| format!("holdfast run logs {}", run.id.short())));
    next.push(format!("holdfast source test {name}"));
    AlertText {
        summary,
        recovered: Words::new("is backed up again", "备份已恢复正常"),
        why: failed.map(|failure| Words::same(failure.to_string())).or_else(|| why(standing)),
        safe: safe(standing),
        next,
    }
}

pub(super) fn source_down(
    name: &SourceName,
    standing: &SourceStanding,
    failure: Option<&Failure>,
) -> AlertText {
    AlertText {
        why: failure.map(|failure| Words::same(failure.to_string())),
        ..of_source(
            standing,
            Words::new("does not answer", "无响应"),
            Words::new("answers again", "已恢复响应"),
            vec![format!("holdfast source test {name}"), format!("holdfast status {name}")],
        )
    }
}

pub(super) fn source_slow(name: &SourceName, standing: &SourceStanding, problem: &str) -> AlertText {
    AlertText {
        why: Some(Words::same(problem)),
        ..of_source(
            standing,
            Words::new("is slow to answer", "响应缓慢"),
            Words::new("answers in time again", "响应已恢复正常"),
            vec![format!("holdfast source test {name}")],
        )
    }
}

pub(super) fn data_anomaly(name: &SourceName, standing: &SourceStanding, found: &str) -> AlertText {
    let newest =
        standing.facts.snapshots.first().map_or_else(|| "latest".to_owned(), |record| record.id.short());
    AlertText {
        why: Some(Words::same(found)),
        ..of_source(
            standing,
            Words::new("has a newest snapshot that looks wrong", "最新快照的数据异常"),
            Words::new("has data as in the snapshot before again", "数据与上一快照相比已无异常"),
            vec![format!("holdfast backup show {newest}"), format!("holdfast backup list {name}")],
        )
    }
}

pub(super) fn snapshot_damaged(name: &SourceName, standing: &SourceStanding, damage: &str) -> AlertText {
    AlertText {
        why: Some(Words::same(damage)),
        ..of_source(
            standing,
            Words::new("has a newest snapshot that is damaged", "最新快照已损坏"),
            Words::new("has a newest snapshot that is whole again", "最新快照已完好"),
            vec![format!("holdfast backup run {name} --type full"), format!("holdfast backup list {name}")],
        )
    }
}

pub(super) fn state_not_copied(last: Option<Timestamp>) -> AlertText {
    let summary = match last {
        Some(at) => Words::new(
            format!("was last copied {}", moment(at)),
            format!("控制器状态上次备份于 {}", moment(at)),
        ),
        None => Words::new("was never copied", "控制器状态从未备份"),
    };
    AlertText {
        summary,
        recovered: Words::new("is copied again", "控制器状态已恢复备份"),
        why: None,
        safe: None,
        next: vec!["holdfast doctor".to_owned()],
    }
}

pub(super) fn agent_down(name: &AgentName, last_session_at: Option<Timestamp>, sources: usize) -> AlertText {
    let since = match last_session_at {
        Some(at) => Words::new(
            format!("its last session began {}", moment(at)),
            format!("上次会话开始于 {}", moment(at)),
        ),
        None => Words::new("it never connected", "从未连接"),
    };
    AlertText {
        summary: Words::new(
            format!("is not connected: {sources} sources are not backed up"),
            format!("未连接：{sources} 个数据源无法备份"),
        ),
        recovered: Words::new("is connected again", "已重新连接"),
        why: Some(since),
        safe: None,
        next: vec![
            format!("systemctl status holdfast-agent   # on the host of {name}"),
            "holdfast agent list".to_owned(),
        ],
    }
}

pub(super) fn repository_down(sources: usize) -> AlertText {
    AlertText {
        summary: Words::new(
            format!("can not be reached: {sources} sources affected"),
            format!("无法访问：影响 {sources} 个数据源"),
        ),
        recovered: Words::new("can be reached again", "已可访问"),
        why: None,
        safe: None,
        next: vec!["holdfast doctor".to_owned()],
    }
}

pub(super) fn corruption(name: &RepositoryName, objects: u64) -> AlertText {
    AlertText {
        summary: Words::new(format!("holds {objects} damaged objects"), format!("有 {objects} 个损坏的对象")),
        recovered: Words::new("holds no damaged object any more", "已无损坏的对象"),
        why: None,
        safe: None,
        next: vec![format!("holdfast repo check {name} --read-data"), "holdfast backup list".to_owned()],
    }
}

pub(super) fn certificate(name: &AgentName, ends: Timestamp, now: Timestamp) -> AlertText {
    let left = ends.duration_since(now).as_secs();
    let summary = if left > 0 {
        let left = length(left);
        Words::new(
            format!("has a certificate that ends in {}", left.en),
            format!("的证书将在 {} 后过期", left.zh),
        )
    } else {
        Words::new(
            format!("has a certificate that ended {}", moment(ends)),
            format!("的证书已于 {} 过期", moment(ends)),
        )
    };
    AlertText {
        summary,
        recovered: Words::new("has a new certificate", "证书已更新"),
        why: Some(Words::new("it was not renewed by itself", "证书没有自动更新")),
        safe: None,
        next: vec![format!("holdfast agent enroll {name}")],
    }
}

pub(super) fn notifications_failing(name: &str, error: Option<&str>) -> AlertText {
    AlertText {
        summary: Words::new("does not deliver", "无法送达通知"),
        recovered: Words::new("delivers again", "通知已恢复送达"),
        why: error.map(Words::same),
        safe: None,
        next: vec![format!("holdfast notify history {name}"), format!("holdfast notify test {name}")],
    }
}
