//! Has the packs of repositories read as the policies say, in small portions, and enters into the catalog since when every
//! byte of each snapshot was read. A reconciler: it takes no input.
//!
//! That every pack that there is was read says nothing of one that is gone. So a snapshot counts as read only when its
//! structure was checked, and after packs went that no prune of ours took away only when that was checked again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use holdfast_model::fleet::Fleet;
use holdfast_model::ids::RepositoryName;
use holdfast_model::policy::Policy;
use holdfast_model::run::{RunKind, RunSpec};
use holdfast_model::snapshot::Proof;
use holdfast_model::source::Source;
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
/// How soon it looks again where a storage did not answer, or no policy has anything read.
const AFTER_FAILURE: SignedDuration = SignedDuration::from_secs(60);
/// Repositories that are looked at at the same time: one that does not answer keeps the others waiting no more.
const LOOKS_AT_ONCE: usize = 4;
/// How often at most it is entered since when snapshots are read: that costs a look at each of them.
const RECORD_EVERY_MAX: i64 = 24 * 3600;

/// When a repository is looked at next, and when it was last entered since when its snapshots are read.
#[derive(Debug, Clone, Default)]
struct Turn {
    next: Option<Timestamp>,
    recorded: Option<Timestamp>,
    /// When the structure was last asked to be checked, or the index to be built.
    asked: Option<Timestamp>,
    /// Whether it is looked at now. The look has its own copy, which takes the place of this one.
    is_taken: bool,
}

type Turns = BTreeMap<RepositoryName, Turn>;

/// A look at a repository.
type Look = BoxFuture<'static, (RepositoryName, Turn)>;

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let mut turns = Turns::new();
    let mut looks: FuturesUnordered<Look> = FuturesUnordered::new();
    loop {
        let definitions_changed = core.definitions.changed();
        if let Err(failure) = begin_looks(&core, &mut turns, &mut looks).await {
            tracing::warn!(%failure, "it is unknown what has to be read again");
        }
        let now = core.clock.now();
        let soonest = turns.values().filter(|turn| !turn.is_taken).filter_map(|turn| turn.next).min();
        let wait =
            soonest.map_or(PERIOD, |next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
        tokio::select! {
            () = stop.cancelled() => return,
            () = definitions_changed => turns.values_mut().for_each(|turn| turn.next = None),
            Some((name, turn)) = looks.next() => end_look(&mut turns, &name, turn),
            () = core.clock.sleep(wait.clamp(Duration::from_millis(200), PERIOD)) => {}
        }
    }
}

/// Takes over what a look came to. When the definitions changed meanwhile, it is looked at again.
fn end_look(turns: &mut Turns, name: &RepositoryName, mut turn: Turn) {
    if let Some(known) = turns.get_mut(name) {
        turn.next = known.next.and(turn.next);
        *known = turn;
    }
}

/// Begins to look at the repositories whose time it is, as many as may be looked at.
async fn begin_looks(
    core: &Arc<Core>,
    turns: &mut Turns,
    looks: &mut FuturesUnordered<Look>,
) -> Result<(), Failure> {
    let current = core.definitions.current();
    turns.retain(|name, _| current.fleet.repositories.contains_key(name));
    if Pace::strictest(current.fleet.policies.values().map(|policy| &policy.verify)).is_none() {
        return Ok(());
    }
    let now = core.clock.now();
    let longest = SignedDuration::from_secs(RECORD_EVERY_MAX);
    let is_due = |turn: &Turn| {
        // A clock that was set back must not put it off.
        let is_over = |next: Timestamp| next <= now || next.duration_since(now) > longest;
        !turn.is_taken && turn.next.is_none_or(is_over)
    };
    let names = current.fleet.repositories.keys();
    let due = names.filter(|name| turns.get(*name).is_none_or(is_due) && !is_busy(core, name));
    let due: Vec<&RepositoryName> = due.take(LOOKS_AT_ONCE.saturating_sub(looks.len())).collect();
    if due.is_empty() {
        return Ok(());
    }
    let paces = paces(core).await?;
    for name in due {
        let turn = turns.entry(name.clone()).or_default();
        turn.next = Some(now + AFTER_FAILURE);
        let Some(pace) = paces.get(name).copied() else { continue };
        let (core, name, own) = (core.clone(), name.clone(), turn.clone());
        turn.is_taken = true;
        looks.push(Box::pin(async move { look(core, name, pace, own).await }));
    }
    Ok(())
}

async fn look(core: Arc<Core>, name: RepositoryName, pace: Pace, mut turn: Turn) -> (RepositoryName, Turn) {
    let next = look_at(&core, &name, &pace, &mut turn).await;
    turn.next = Some(next.unwrap_or_else(|failure| {
        tracing::warn!(repository = %name, %failure, "what is due could not be read");
        core.clock.now() + AFTER_FAILURE
    }));
    (name, turn)
}

/// Whether somebody reads it or takes packs away: what is due will be another thing.
fn is_busy(core: &Core, name: &RepositoryName) -> bool {
    let kinds = [RunKind::Prune, RunKind::Check];
    let runs = core.runs.active();
    runs.iter().any(|run| kinds.contains(&run.spec.kind()) && run.spec.repository() == Some(name))
}

/// The paces at which repositories are read: of the sources that have snapshots there, or will have, the strictest rules.
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
        let mut repositories = source_status::repositories_of(core, name).await?;
        repositories.extend(declared(&current.fleet, source, policy));
        for repository in repositories {
            rules.entry(repository).or_default().push(&policy.verify);
        }
    }
    Ok(rules.into_iter().filter_map(|(name, rules)| Some((name, Pace::strictest(rules)?))).collect())
}

/// The repositories that a source goes to by its definition and its policy.
fn declared(fleet: &Fleet, source: &Source, policy: &Policy) -> Vec<RepositoryName> {
    let mut names = match (source.to.as_slice(), policy.to.as_slice()) {
        // With none named it is the only one that there is.
        ([], []) if fleet.repositories.len() == 1 => fleet.repositories.keys().cloned().collect(),
        ([], by_policy) => by_policy.to_vec(),
        (own, _) => own.to_vec(),
    };
    names.extend(policy.copy_to.iter().cloned());
    names.retain(|name| fleet.repositories.contains_key(name));
    names
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
    let readings = &repository.index().readings;
    let step = Span::from_secs((pace.all_within().secs() / 16).clamp(1, RECORD_EVERY_MAX));
    let is_record_due = turn.recorded.is_none_or(|at| is_over(at, step, now));
    let begun = readings.last_portion().filter(|begun| !is_over(*begun, portion, now));
    if let Some(begun) = begun.filter(|_| !is_record_due) {
        return Ok(begun + portion.duration());
    }
    // What is under way, or proves something at last, is soon over.
    let soon = now + AGAIN.min(portion.duration());
    let is_known = verify_due::look(core, &repository).await?;
    let is_to_be_checked = readings.is_to_be_checked();
    if (!is_known || is_to_be_checked) && turn.asked.is_none_or(|at| is_over(at, portion, now)) {
        turn.asked = Some(now);
        queue(core, name, !is_known).await?;
        return Ok(soon);
    }
    if !is_known {
        return Ok(soon);
    }
    let doubts = Doubts::of(core, &repository).await?;
    // Who knows what is touched by damage that nobody looked into?
    if doubts.open.is_empty() && is_record_due && !is_to_be_checked {
        let coverage = readings.coverage(&doubts.named);
        if !coverage.is_empty() {
            let is_unchecked = record(core, &repository, &coverage, step).await?;
            turn.recorded = Some(now);
            let rest = Span::from_secs(step.secs() * 4);
            if is_unchecked && turn.asked.is_none_or(|at| is_over(at, rest, now)) {
                turn.asked = Some(now);
                queue(core, name, false).await?;
                return Ok(soon);
            }
        }
    }
    if let Some(begun) = begun {
        return Ok(begun + portion.duration());
    }
    if !doubts.due(readings.due(pace, &doubts.named, now)).is_empty() {
        queue(core, name, true).await?;
        return Ok(soon);
    }
    Ok(now + portion.duration())
}

/// Whether a span is over; it is when its beginning lies in the future.
fn is_over(begun: Timestamp, span: Span, now: Timestamp) -> bool {
    begun > now || now.duration_since(begun) >= span.duration()
}

/// Asks for a check of what is due, or of the structure.
async fn queue(core: &Core, name: &RepositoryName, only_due: bool) -> Result<(), Failure> {
    let spec = RunSpec::Check { repository: name.clone(), read_data: only_due, only_due };
    let new = NewRun::new(spec, "controller");
    let what = if only_due { "what is due" } else { "its structure" };
    let batch = Batch::new("controller", "run.start", format!("repository/{name}: check {what}"));
    match core.runs.queue(vec![new], batch, |batch, _| batch).await {
        Err(failure) if failure.code == ErrorCode::RunAlreadyActive => Ok(()),
        other => other.map(drop),
    }
}

/// Enters since when every byte of each snapshot was read, where that is news by more than `step`. Says whether there is one
/// that could be entered, if only its structure had been checked; those that came within a `step` are given that time.
async fn record(
    core: &Core,
    repository: &OpenRepository,
    coverage: &Coverage,
    step: Span,
) -> Result<bool, Failure> {
    let now = core.clock.now();
    let is_checked = core.repositories.is_checked(&repository.name).await?;
    let mut is_unchecked = false;
    let mut before: Option<String> = None;
    loop {
        let page = core.records.snapshots_before(None, before.as_deref(), 500).await?;
        let Some((_, last)) = page.last() else { return Ok(is_unchecked) };
        before = Some(last.clone());
        for (record, _) in page {
            if record.repository != repository.name || record.proof.damage.is_some() {
                continue;
            }
            let Some(read_at) = coverage.read_at(record.entered_at) else { continue };
            if !is_checked(&record) {
                is_unchecked |= record.entered_at.is_none_or(|at| is_over(at, step, now));
                continue;
            }
            // A time that lies ahead is of a clock that was wrong.
            let known = |proof: &Proof| proof.read_at.filter(|known| *known <= now);
            let is_news = |known: Timestamp| read_at.duration_since(known) >= step.duration();
            if known(&record.proof).is_none_or(is_news) {
                core.catalog
                    .prove(record.id, "snapshot.read", |proof| {
                        // It may have been found damaged meanwhile.
                        if proof.damage.is_none() {
                            proof.read_at = known(proof).max(Some(read_at));
                        }
                    })
                    .await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_ends_after_the_definitions_changed_is_done_again() {
        let (name, now) = ("main".parse::<RepositoryName>().unwrap(), Timestamp::UNIX_EPOCH);
        let taken = |next| Turns::from([(name.clone(), Turn { next, is_taken: true, ..Turn::default() })]);
        let looked = Turn { next: Some(now), recorded: Some(now), ..Turn::default() };
        let ended = |mut turns: Turns| {
            end_look(&mut turns, &name, looked.clone());
            turns.remove(&name).map(|turn| (turn.next, turn.recorded, turn.is_taken))
        };
        assert_eq!(ended(taken(Some(now))), Some((Some(now), Some(now), false)));
        assert_eq!(ended(taken(None)), Some((None, Some(now), false)));
        assert_eq!(ended(Turns::new()), None, "the repository is not declared any more");
    }
}
