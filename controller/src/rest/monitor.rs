//! How things stand.

use std::collections::BTreeMap;

use holdfast_model::Failure;
use holdfast_model::metrics::MetricFamily;
use holdfast_proto::v1;

use super::reply::Reply;
use super::request::Call;
use super::views::{
    AgentCounts, KindPerformance, OverviewView, PerformanceView, QuickView, RepositorySize, RunView,
    SourceStatusView, StatsView,
};
use crate::api::status::StatusApi;
use crate::fleet_health::{self, Health};
use crate::metrics;

/// All that these routes say, found out once.
struct Standing {
    health: Health,
    sources: Vec<v1::SourceStatus>,
    families: Vec<MetricFamily>,
}

impl Standing {
    async fn of(call: &Call) -> Result<Self, Failure> {
        let core = call.core();
        let fleet = StatusApi::new(core.clone()).fleet_inner("").await?;
        let families = metrics::collect(core).await?;
        let health = fleet_health::of(&fleet.sources, &families);
        Ok(Self { health, sources: fleet.sources, families })
    }

    /// The sum of the samples of a metric with these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let family = self.families.iter().filter(|family| family.name == name);
        let samples = family.flat_map(|family| &family.samples).filter(|sample| sample.suffix.is_empty());
        let fits = samples.filter(|sample| labels.iter().all(|(name, value)| sample.label(name) == *value));
        fits.map(|sample| sample.value).sum()
    }

    /// The values of a metric by one of its labels.
    fn by(&self, name: &str, label: &str, suffix: &str) -> BTreeMap<String, f64> {
        let family = self.families.iter().filter(|family| family.name == name);
        let samples = family.flat_map(|family| &family.samples).filter(|sample| sample.suffix == suffix);
        let mut sums = BTreeMap::new();
        for sample in samples {
            *sums.entry(sample.label(label).to_owned()).or_default() += sample.value;
        }
        sums
    }

    fn counts(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        self.by(name, label, "").into_iter().map(|(key, value)| (key, whole(value))).collect()
    }

    fn agents(&self) -> AgentCounts {
        let up = self.by("holdfast_agent_up", "agent", "");
        AgentCounts { online: whole(up.values().sum()), total: up.len() as u64 }
    }

    fn stats(&self) -> StatsView {
        let up = self.by("holdfast_repository_up", "repository", "");
        let stored = self.by("holdfast_repository_stored_bytes", "repository", "");
        let free = self.by("holdfast_repository_free_bytes", "repository", "");
        let size = |name: &String| RepositorySize {
            name: name.clone(),
            up: up[name] > 0.0,
            stored_bytes: stored.get(name).copied().map(whole),
            free_bytes: free.get(name).copied().map(whole),
        };
        let mut runs: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for kind in self.by("holdfast_runs_total", "kind", "").into_keys() {
            for outcome in self.by("holdfast_runs_total", "outcome", "").into_keys() {
                let labels = [("kind", kind.as_str()), ("outcome", outcome.as_str())];
                let count = whole(self.sum("holdfast_runs_total", &labels));
                runs.entry(kind.clone()).or_default().insert(outcome, count);
            }
        }
        StatsView {
            sources: self.counts("holdfast_sources", "state"),
            agents: self.agents(),
            runs,
            running: self.counts("holdfast_runs_running", "kind"),
            queued: self.counts("holdfast_runs_queued", "kind"),
            repositories: up.keys().map(size).collect(),
            controller_version: crate::VERSION.to_owned(),
        }
    }
}

/// A count that came as a metric.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole and not negative"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

pub(super) async fn health(call: Call) -> Result<Reply, Failure> {
    Ok(Reply::item(Standing::of(&call).await?.health))
}

pub(super) async fn stats(call: Call) -> Result<Reply, Failure> {
    Ok(Reply::item(Standing::of(&call).await?.stats()))
}

pub(super) async fn source(call: Call) -> Result<Reply, Failure> {
    let fleet = StatusApi::new(call.core().clone()).fleet_inner(&call.parameter()).await?;
    Ok(Reply::items(fleet.sources.into_iter().map(SourceStatusView::from)))
}

pub(super) async fn database(call: Call) -> Result<Reply, Failure> {
    let fleet = StatusApi::new(call.core().clone()).fleet_inner("").await?;
    Ok(Reply::items(fleet.sources.into_iter().map(SourceStatusView::from)))
}

pub(super) async fn quick(call: Call) -> Result<Reply, Failure> {
    let standing = Standing::of(&call).await?;
    let stats = standing.stats();
    Ok(Reply::item(QuickView {
        status: standing.health.status.to_owned(),
        health_score: standing.health.health_score,
        sources: stats.sources,
        agents: stats.agents,
        running: stats.running.values().sum(),
        queued: stats.queued.values().sum(),
    }))
}

pub(super) async fn performance(call: Call) -> Result<Reply, Failure> {
    let standing = Standing::of(&call).await?;
    let counts = standing.by("holdfast_run_duration_seconds", "kind", "_count");
    let sums = standing.by("holdfast_run_duration_seconds", "kind", "_sum");
    let mut kinds = Vec::new();
    for (kind, count) in counts {
        let of = |outcome| standing.sum("holdfast_runs_total", &[("kind", &kind), ("outcome", outcome)]);
        let (good, bad) = (of("success") + of("partial"), of("failure"));
        kinds.push(KindPerformance {
            duration_mean_seconds: (count > 0.0).then(|| sums.get(&kind).copied().unwrap_or(0.0) / count),
            success_ratio: (good + bad > 0.0).then(|| good / (good + bad)),
            succeeded: whole(good),
            failed: whole(bad),
            kind,
        });
    }
    let active = call.core().runs.active();
    Ok(Reply::item(PerformanceView {
        kinds,
        active_runs: active.iter().map(|run| RunView::from(v1::Run::from(run))).collect(),
        scheduler_lag_seconds: standing.sum("holdfast_scheduler_lag_seconds", &[]),
    }))
}

pub(super) async fn overview(call: Call) -> Result<Reply, Failure> {
    let standing = Standing::of(&call).await?;
    let stats = standing.stats();
    let sources = standing.sources.into_iter().map(SourceStatusView::from).collect();
    Ok(Reply::item(OverviewView { health: standing.health, stats, sources }))
}
