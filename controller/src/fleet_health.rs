//! How the fleet is, in one number with its reasons. Pure: what is known in, a verdict out.

use holdfast_model::metrics::MetricFamily;
use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::Serialize;

/// How much is deducted when every source has nothing to restore, and for each one its share.
const NOT_RESTORABLE: f64 = 0.6;
/// The same for sources whose newest backup failed, is damaged, or whose agent is away.
const AT_RISK: f64 = 0.3;
/// The same for repositories that cannot be reached.
const REPOSITORY_DOWN: f64 = 0.3;
/// The same for repositories with damaged objects.
const REPOSITORY_DAMAGED: f64 = 0.3;
/// The same for agents that are not connected.
const AGENT_AWAY: f64 = 0.1;

/// How the fleet is.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Health {
    /// healthy, degraded, critical, or unknown while nothing is declared.
    pub status: &'static str,
    /// 1 when nothing is wrong, 0 when nothing is right.
    pub health_score: f64,
    /// What is wrong, the worst first. The points add up to what is missing from 1, as far as there is that much.
    pub deductions: Vec<Deduction>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Deduction {
    /// What it costs.
    pub points: f64,
    /// source, repository or agent.
    pub area: &'static str,
    /// Which one.
    pub object: String,
    /// Why.
    pub reason: String,
    /// A command against it.
    pub remedy: Option<String>,
    #[serde(skip)]
    is_critical: bool,
}

/// The health that follows from the state of the sources and from metrics. Without a source there is nothing to be
/// healthy: nothing is green without evidence.
pub fn of(sources: &[v1::SourceStatus], families: &[MetricFamily]) -> Health {
    if sources.is_empty() {
        let nothing = Deduction {
            points: 1.0,
            area: "source",
            object: String::new(),
            reason: "no source is declared, nothing is protected".to_owned(),
            remedy: Some("holdfast source add NAME --engine files --agent AGENT --path /srv/app".to_owned()),
            is_critical: false,
        };
        return Health { status: "unknown", health_score: 0.0, deductions: vec![nothing] };
    }
    let mut deductions = of_sources(sources);
    let labelled = |name: &str, label: &str| -> Vec<(String, f64)> {
        let samples = families.iter().filter(|family| family.name == name).flat_map(|family| &family.samples);
        samples.map(|sample| (sample.label(label).to_owned(), sample.value)).collect()
    };
    let mut deduct = |area,
                      weight,
                      is_critical,
                      all: &[(String, f64)],
                      is_bad: fn(f64) -> bool,
                      reason: &str,
                      remedy: &str| {
        for (object, _) in all.iter().filter(|(_, value)| is_bad(*value)) {
            deductions.push(Deduction {
                points: share(weight, all.len()),
                area,
                object: object.clone(),
                reason: reason.to_owned(),
                remedy: Some(remedy.replace("NAME", object)),
                is_critical,
            });
        }
    };
    let is_zero = |value: f64| value == 0.0;
    let is_some = |value: f64| value > 0.0;
    let up = labelled("holdfast_repository_up", "repository");
    deduct("repository", REPOSITORY_DOWN, true, &up, is_zero, "it cannot be reached", "holdfast doctor");
    let damaged = labelled("holdfast_corrupt_objects", "repository");
    let reason = "it holds damaged objects";
    deduct(
        "repository",
        REPOSITORY_DAMAGED,
        true,
        &damaged,
        is_some,
        reason,
        "holdfast repo check NAME --read-data",
    );
    let agents = labelled("holdfast_agent_up", "agent");
    deduct("agent", AGENT_AWAY, false, &agents, is_zero, "it is not connected", "holdfast agent list");
    deductions.sort_by(|a, b| b.points.total_cmp(&a.points).then_with(|| a.object.cmp(&b.object)));
    let score: f64 = 1.0 - deductions.iter().map(|deduction| deduction.points).sum::<f64>();
    let status = if deductions.iter().any(|deduction| deduction.is_critical) {
        "critical"
    } else if deductions.is_empty() {
        "healthy"
    } else {
        "degraded"
    };
    Health { status, health_score: rounded(score.max(0.0)), deductions }
}

fn of_sources(sources: &[v1::SourceStatus]) -> Vec<Deduction> {
    let wrong = sources.iter().filter(|source| source.state != "protected");
    let deduction = |source: &v1::SourceStatus| {
        let is_critical = source.state == "not_restorable";
        Deduction {
            points: share(if is_critical { NOT_RESTORABLE } else { AT_RISK }, sources.len()),
            area: "source",
            object: source.source.clone(),
            reason: source.problem.clone(),
            remedy: Some(source.remedy.clone()).filter(|remedy| !remedy.is_empty()),
            is_critical,
        }
    };
    wrong.map(deduction).collect()
}

fn share(weight: f64, count: usize) -> f64 {
    rounded(weight / f64::from(u32::try_from(count).unwrap_or(u32::MAX)))
}

/// To a millionth, so that sums look like what was added.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, state: &str) -> v1::SourceStatus {
        v1::SourceStatus {
            source: name.to_owned(),
            state: state.to_owned(),
            problem: format!("{name} is {state}"),
            ..v1::SourceStatus::default()
        }
    }

    fn gauge(name: &'static str, label: &'static str, values: &[(&str, f64)]) -> MetricFamily {
        let mut family = MetricFamily::gauge(name, "");
        for (object, value) in values {
            family.add(&[(label, object)], *value);
        }
        family
    }

    #[test]
    fn without_sources_nothing_is_healthy() {
        let health = of(&[], &[]);
        assert_eq!((health.status, health.health_score), ("unknown", 0.0));
    }

    #[test]
    fn a_fleet_without_a_fault_has_the_full_score() {
        let families = [
            gauge("holdfast_repository_up", "repository", &[("main", 1.0)]),
            gauge("holdfast_agent_up", "agent", &[("a1", 1.0)]),
            gauge("holdfast_corrupt_objects", "repository", &[("main", 0.0)]),
        ];
        let health = of(&[source("a", "protected")], &families);
        assert_eq!(health, Health { status: "healthy", health_score: 1.0, deductions: Vec::new() });
    }

    #[test]
    fn each_fault_costs_its_share_and_says_why() {
        let families = [
            gauge("holdfast_repository_up", "repository", &[("main", 1.0), ("far", 0.0)]),
            gauge("holdfast_agent_up", "agent", &[("a1", 0.0)]),
            gauge("holdfast_corrupt_objects", "repository", &[("main", 2.0), ("far", 0.0)]),
        ];
        let sources = ["protected", "at_risk", "not_restorable", "protected"].map(|state| source("s", state));
        let health = of(&sources, &families);
        let points: Vec<_> =
            health.deductions.iter().map(|d| (d.area, d.object.as_str(), d.points)).collect();
        let expected = [
            ("repository", "far", 0.15),
            ("repository", "main", 0.15),
            ("source", "s", 0.15),
            ("agent", "a1", 0.1),
            ("source", "s", 0.075),
        ];
        assert_eq!(points, expected);
        assert_eq!((health.status, health.health_score), ("critical", 0.375));
    }

    #[test]
    fn what_is_only_at_risk_is_degraded_and_the_score_never_below_nothing() {
        assert_eq!(of(&[source("a", "at_risk")], &[]).status, "degraded");
        let families = [
            gauge("holdfast_repository_up", "repository", &[("main", 0.0)]),
            gauge("holdfast_corrupt_objects", "repository", &[("main", 1.0)]),
        ];
        assert_eq!(of(&[source("a", "not_restorable")], &families).health_score, 0.0);
    }
}
