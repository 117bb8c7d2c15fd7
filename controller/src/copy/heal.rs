//! A heal: what snapshots of the second repository lack is stored there again.

use std::collections::BTreeSet;

use holdfast_model::run::{LogLevel, Run};
use holdfast_model::snapshot::{Proof, SnapshotRecord};
use holdfast_model::text::{counted, size};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::id::PackId;

use super::{Job, Selection, told};
use crate::maintenance::{Counters, Done};
use crate::records::Batch;
use crate::verify::object_damage;

/// How often it looks again when damage is found that was not known.
const ROUNDS: usize = 3;

/// What a round of looking at all snapshots came to.
#[derive(Default)]
struct Round {
    /// Those that were called damaged and lack nothing any more.
    whole: Vec<SnapshotRecord>,
    /// What is wrong with the others, one line each.
    findings: Vec<String>,
    /// How many of those have no object that can be read.
    without_object: u64,
    /// How often more of the repository had been found damaged when it began.
    times_worse: u64,
}

impl Job<'_> {
    /// Stores again in the second repository what its snapshots lack.
    pub(super) async fn heal(
        self,
        run: &Run,
        selection: Selection,
        counters: &Counters,
    ) -> Result<Done, Failure> {
        let worse = || (self.to.index().times_worse(), self.from.index().times_worse());
        let mut last = Round::default();
        for _ in 0..ROUNDS {
            let before = worse();
            last = self.heal_round(run, &selection, counters).await?;
            // What was relied on and is damaged is stored again in the next round.
            if worse() == before {
                break;
            }
        }
        self.fence(run)?;
        let (mut healed, mut left) = (0, Vec::new());
        for record in &last.whole {
            let short = record.id.short();
            if self.take_back(record, last.times_worse).await? {
                self.core.log(run, LogLevel::Info, vec![format!("snapshot {short} is whole again")]).await;
                healed += 1;
            } else {
                left.push(format!("snapshot {short} is still called damaged: more was found meanwhile"));
            }
        }
        let (sent, doubted) = (self.progress.sent(), self.to.doubted().len() as u64);
        if doubted > 0 {
            let target = format!("repository/{}: healed", self.order.to);
            let batch = Batch::new("controller", "repository.heal", target).garbage(&self.order.to);
            self.core.records.commit(batch).await?;
        }
        let blobs = counted(sent.data_blobs + sent.tree_blobs, "blob");
        let mut notes = vec![
            format!("stored again: {blobs}, {}", size(sent.stored_bytes)),
            format!("whole again: {}", counted(healed, "snapshot")),
        ];
        if doubted > 0 {
            let packs = counted(doubted, "damaged pack");
            notes.push(format!("left until the next prune: {packs}; holdfast repo prune {}", self.order.to));
        }
        let failure = self.not_healed(&last).or_else(|| self.not_settled(&left));
        let findings = last.findings.into_iter().chain(left).collect();
        Ok(Done { findings, notes, progress: counters.now(), failure })
    }

    /// Looks at every snapshot once and stores what it lacks.
    async fn heal_round(
        &self,
        run: &Run,
        selection: &Selection,
        counters: &Counters,
    ) -> Result<Round, Failure> {
        let mut round = Round { times_worse: self.to.index().times_worse(), ..Round::default() };
        let mut copier = self.copier(false);
        let mut damaged_packs = BTreeSet::new();
        let count = selection.todo.len();
        for (number, id) in selection.todo.iter().enumerate() {
            counters.stage(format!("healing {} ({} of {count})", id.short(), number + 1));
            let Some(record) = self.core.records.snapshot(*id).await? else { continue };
            let object_damage = object_damage(&self.to, &record).await?;
            let copied;
            (copier, copied) = self.copy_tree(copier, &record).await?;
            damaged_packs.extend(copied.damaged_packs);
            match (object_damage, copied.lost.first()) {
                (Some(error), _) if error.code() == ErrorCode::ObjectMissing => {
                    let line = format!("snapshot {} was forgotten meanwhile", id.short());
                    self.core.log(run, LogLevel::Warning, vec![line]).await;
                }
                (Some(error), _) => {
                    let finding = told(&record, &error);
                    let prove = |proof: &mut Proof| {
                        proof.damage.get_or_insert_with(|| finding.clone());
                    };
                    self.core.catalog.prove(record.id, "snapshot.read", prove).await?;
                    round.findings.push(finding);
                    round.without_object += 1;
                }
                (None, Some(error)) => round.findings.push(told(&record, error)),
                (None, None) if record.proof.damage.is_some() => {
                    // Of a record nothing else is needed.
                    round.whole.push(SnapshotRecord { manifest: None, ..record });
                }
                (None, None) => {}
            }
        }
        self.finish(copier).await?;
        if !(round.findings.is_empty() && damaged_packs.is_empty()) {
            self.is_read_undisturbed().await?;
        }
        let damaged_packs: Vec<PackId> = damaged_packs.into_iter().collect();
        self.doubt(&damaged_packs).await?;
        Ok(round)
    }

    fn not_healed(&self, round: &Round) -> Option<Failure> {
        let first = round.findings.first()?;
        let snapshots = counted(round.findings.len() as u64, "snapshot");
        let (from, to) = (&self.order.from, &self.order.to);
        let message = format!(
            "{snapshots} of repository {to} lack what repository {from} does not have either; the first: {first}"
        );
        let mut failure = Failure::new(ErrorCode::HealIncomplete, message)
            .at_stake("the snapshots named can not be restored whole from this repository")
            .then("holdfast backup run SOURCE --type full   # stores again what the source still has");
        if round.without_object > 0 {
            failure = failure
                .then(format!("holdfast repo copy {from} {to}   # copies anew what has no readable object"));
        }
        Some(failure)
    }

    fn not_settled(&self, left: &[String]) -> Option<Failure> {
        let first = left.first()?;
        let (from, to) = (&self.order.from, &self.order.to);
        let message =
            format!("damage of repository {to} was found until the end of its heal; the first: {first}");
        let failure = Failure::new(ErrorCode::HealIncomplete, message)
            .at_stake("what the snapshots named need may be damaged")
            .then(format!("holdfast repo copy {from} {to} --heal"));
        Some(failure)
    }
}
