//! Has the packs of repositories read as the policies say, in small portions, and enters into the catalog since when every
//! byte of each snapshot was read. A reconciler: it takes no input.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ids::RepositoryName;
use holdfast_model::run::{Run, RunKind, RunSpec};
use holdfast_model::units::Span;
use holdfast_model::verification::{Coverage, Pace};
use holdfast_model::{ErrorCode, Failure};
use jiff::{SignedDuration, Timestamp};

use crate::core::Core;
use crate::records::Batch;
use crate::repositories::OpenRepository;
use crate::run_lifecycle::NewRun;
use crate::verify_due::Doubts;
use crate::{source_status, verify_due};

/// How often it looks what is due. That costs a glance at each repository's time.
const PERIOD: Duration = Duration::from_secs(1);
/// How soon it looks again where something is under way, or no snapshot is yet.
const AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// How soon it looks again where a storage did not answer.
const AFTER_FAILURE: SignedDuration = SignedDuration::from_secs(60);
/// How often at most it is entered since when snapshots are read: that costs a look at each of them.
const RECORD_EVERY_MAX: i64 = 24 * 3600;

/// When a repository is looked at next, and when it was last entered since when its snapshots are read.
#[derive(Default)]
struct Turn {
    next: Option<Timestamp>,
    recorded: Option<Timestamp>,
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let mut turns: BTreeMap<RepositoryName, Turn> = BTreeMap::new();
    loop {
        let definitions_changed = core.definitions.changed();
        if let Err(failure) = pass(&core, &mut turns).await {
            tracing::warn!(%failure, "it is unknown what has to be read again");
        }
        let now = core.clock.now();
        let soonest = turns.values().filter_map(|turn| turn.next).min();
        let wait =
            soonest.map_or(PERIOD, |next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
        tokio::select! {
            () = stop.cancelled() => return,
            () = definitions_changed => turns.values_mut().for_each(|turn| turn.next = None),
            () = core.clock.sleep(wait.clamp(Duration::from_millis(200), PERIOD)) => {}
        }
    }
}

async fn pass(core: &Arc<Core>, turns: &mut BTreeMap<RepositoryName, Turn>) -> Result<(), Failure> {
    let current = core.definitions.current();
    turns.retain(|name, _| current.fleet.repositories.contains_key(name));
    if Pace::strictest(current.fleet.policies.values().map(|policy| &policy.verify)).is_none() {
        return Ok(());
    }
    let now = core.clock.now();
    let longest = SignedDuration::from_secs(RECORD_EVERY_MAX);
    let due: Vec<&RepositoryName> = current
        .fleet
        .repositories
        .keys()
        .filter(|name| {
            let next = turns.get(*name).and_then(|turn| turn.next);
            // A clock that was set back must not put it off.
            next.is_none_or(|next| next <= now || next.duration_since(now) > longest)
        })
        .collect();
    if due.is_empty() {
        return Ok(());
    }
    let paces = paces(core).await?;
    for name in due {
        let turn = turns.entry(name.clone()).or_default();
        turn.next = Some(match paces.get(name) {
            None => now + AGAIN,
            Some(pace) => look_at(core, name, pace, turn).await.unwrap_or_else(|failure| {
                tracing::warn!(repository = %name, %failure, "what is due could not be read");
                now + AFTER_FAILURE
            }),
        });
    }
    Ok(())
}

/// The paces at which repositories are read: of the sources that have snapshots there, the strictest rules.
///
/// # Errors
/// When the state can not be read.
pub async fn paces(core: &Core) -> Result<BTreeMap<RepositoryName, Pace>, Failure> {
    let current = core.definitions.current();
    let mut rules: BTreeMap<RepositoryName, Vec<_>> = BTreeMap::new();
    for (name, source) in &current.fleet.sources {
        let Some((_, policy)) = current.fleet.policy_of(source) else { continue };
        if Pace::strictest([&policy.verify]).is_none() {
            continue;
        }
        for repository in source_status::repositories_of(core, name).await? {
            rules.entry(repository).or_default().push(&policy.verify);
        }
    }
    Ok(rules.into_iter().filter_map(|(name, rules)| Some((name, Pace::strictest(rules)?))).collect())
}

/// Has read what is due, if it is time; says when to look again.
async fn look_at(
    core: &Arc<Core>,
    name: &RepositoryName,
    pace: &Pace,
    turn: &mut Turn,
) -> Result<Timestamp, Failure> {
    let repository = core.repository(name).await?;
    let (now, portion) = (core.clock.now(), pace.portion());
    verify_due::look(core, &repository).await?;
    let doubts = Doubts::of(core, &repository).await?;
    let readings = &repository.index().readings;
    let step = Span::from_secs((pace.all_within().secs() / 16).clamp(1, RECORD_EVERY_MAX));
    // Who knows what is touched by damage that nobody looked into?
    if doubts.open.is_empty() && turn.recorded.is_none_or(|at| is_over(at, step, now)) {
        let coverage = readings.coverage(&doubts.named);
        if !coverage.is_empty() {
            record(core, &repository, &coverage, step).await?;
            turn.recorded = Some(now);
        }
    }
    if let Some(begun) = readings.last_portion().filter(|begun| !is_over(*begun, portion, now)) {
        return Ok(begun + portion.duration());
    }
    let busy = |run: &Run| {
        let kinds = [RunKind::Prune, RunKind::Check];
        kinds.contains(&run.spec.kind()) && run.spec.repository() == Some(name)
    };
    if core.runs.active().iter().any(busy) {
        return Ok(now + AGAIN.min(portion.duration()));
    }
    if !doubts.due(readings.due(pace, &doubts.named, now)).is_empty() {
        queue(core, name).await?;
        // What it reads may prove something at last.
        return Ok(now + AGAIN.min(portion.duration()));
    }
    Ok(now + portion.duration())
}

/// Whether a span is over; it is when its beginning lies in the future.
fn is_over(begun: Timestamp, span: Span, now: Timestamp) -> bool {
    begun > now || now.duration_since(begun) >= span.duration()
}

async fn queue(core: &Core, name: &RepositoryName) -> Result<(), Failure> {
    let new = NewRun::new(
        RunSpec::Check { repository: name.clone(), read_data: true, only_due: true },
        "controller",
    );
    let batch = Batch::new("controller", "run.start", format!("repository/{name}: check what is due"));
    match core.runs.queue(vec![new], batch, |batch, _| batch).await {
        Err(failure) if failure.code == ErrorCode::RunAlreadyActive => Ok(()),
        other => other.map(drop),
    }
}

/// Enters since when every byte of each snapshot was read, where that is news by more than `step`.
async fn record(
    core: &Core,
    repository: &OpenRepository,
    coverage: &Coverage,
    step: Span,
) -> Result<(), Failure> {
    let mut before: Option<String> = None;
    loop {
        let page = core.records.snapshots_before(None, before.as_deref(), 500).await?;
        let Some((_, last)) = page.last() else { return Ok(()) };
        before = Some(last.clone());
        for (record, _) in page {
            if record.repository != repository.name || record.proof.damage.is_some() {
                continue;
            }
            let Some(read_at) = coverage.read_at(record.entered_at) else { continue };
            if record.proof.read_at.is_none_or(|known| read_at.duration_since(known) >= step.duration()) {
                core.catalog
                    .prove(record.id, "snapshot.read", |proof| {
                        // It may have been found damaged meanwhile.
                        if proof.damage.is_none() {
                            proof.read_at = proof.read_at.max(Some(read_at));
                        }
                    })
                    .await?;
            }
        }
    }
}
