//! What policies do by themselves: the runs to come, pauses, what is kept.

use std::sync::Arc;

use holdfast_model::fleet::{FleetFile, read_fleet};
use holdfast_model::ids::{PolicyName, SourceName};
use holdfast_model::policy::Policy;
use holdfast_model::retention::Verdict;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, parse, parse_optional, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::policy_service_server::PolicyService;
use jiff::SignedDuration;
use tonic::{Request, Response, Status};

use super::{caller_of, reply};
use crate::access::Caller;
use crate::core::Core;
use crate::retention::{self, Retention};
use crate::schedules::{Entry, Pause};

/// The longest pause that ends by itself, in seconds.
const PAUSE_SECONDS_MAX: u32 = 366 * 24 * 3600;

/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 1000;

/// The service.
pub struct PoliciesApi {
    core: Arc<Core>,
}

impl PoliciesApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    fn next_inner(&self, request: &v1::NextRunsRequest) -> Result<v1::NextRunsResponse, Failure> {
        let count = match request.count {
            0 => 5,
            count @ 1..=100 => count as usize,
            _ => return Err(ConvertError::new("count", "is more than 100").into()),
        };
        let source: Option<SourceName> = parse_optional("source", &request.source)?;
        let policy: Option<PolicyName> = parse_optional("policy", &request.policy)?;
        if let Some(name) = &policy {
            self.core.definitions.policy(name)?;
        }
        let names = match source {
            Some(name) => {
                self.entry(&name)?;
                vec![name]
            }
            None => self.core.definitions.current().fleet.sources.keys().cloned().collect(),
        };
        let schedules = names.iter().filter_map(|name| {
            let entry = self.core.schedules.entry(name)?;
            let wanted = policy.as_ref().is_none_or(|policy| *policy == entry.state.policy);
            wanted.then(|| self.schedule(name, &entry, count))
        });
        Ok(v1::NextRunsResponse { sources: schedules.collect() })
    }

    fn schedule(&self, name: &SourceName, entry: &Entry, count: usize) -> v1::SourceSchedule {
        let now = self.core.clock.now();
        let upcoming = self.core.schedules.upcoming(name, now, count).unwrap_or_default();
        let missed = entry.state.last_missed.as_ref();
        v1::SourceSchedule {
            source: name.to_string(),
            policy: entry.state.policy.to_string(),
            upcoming: upcoming
                .into_iter()
                .map(|(at, slot)| v1::UpcomingRun {
                    begins_at: Some(timestamp(at)),
                    slot_at: Some(timestamp(slot.at)),
                    snapshot_type: slot.snapshot_type.to_string(),
                })
                .collect(),
            pause: self.core.schedules.pause_of(name, now).as_ref().map(pause),
            missed: entry.state.missed,
            last_missed_at: missed.map(|missed| timestamp(missed.at)),
            last_missed_reason: missed.map(|missed| missed.reason.clone()).unwrap_or_default(),
        }
    }

    async fn simulate_inner(&self, request: v1::SimulateRequest) -> Result<v1::SimulateResponse, Failure> {
        let (named, sources) = self.under(&request.name)?;
        let policy = match request.policy_file {
            Some(file) => policy_in(&file, &named)?,
            None => self.core.definitions.policy(&named)?,
        };
        let mut plans = Vec::new();
        for source in &sources {
            for planned in retention::plans(&self.core, source, &policy).await? {
                plans.push(retention_plan(source, &named, &planned));
            }
        }
        Ok(v1::SimulateResponse { plans })
    }

    /// A policy and sources under it: all of them, or the one that is meant.
    fn under(&self, name: &str) -> Result<(PolicyName, Vec<SourceName>), Failure> {
        let declared = self.core.definitions.current();
        let sources = &declared.fleet.sources;
        if let Some((source, definition)) = sources.iter().find(|(source, _)| source.as_str() == name) {
            let policy = definition.policy.clone().ok_or_else(|| {
                Failure::new(ErrorCode::NotScheduled, format!("source {source} is under no policy"))
                    .because("without one everything is kept")
            })?;
            return Ok((policy, vec![source.clone()]));
        }
        let policy: PolicyName = parse("name", name)?;
        let under = sources.iter().filter(|(_, source)| source.policy.as_ref() == Some(&policy));
        let names = under.map(|(name, _)| name.clone()).collect();
        Ok((policy, names))
    }

    pub(crate) async fn clean_up_inner(
        &self,
        caller: &Caller,
        request: v1::CleanUpRequest,
    ) -> Result<v1::CleanUpResponse, Failure> {
        let meant: Vec<(PolicyName, SourceName)> = if request.name.is_empty() {
            let declared = self.core.definitions.current();
            let under = declared.fleet.sources.iter();
            under.filter_map(|(name, source)| Some((source.policy.clone()?, name.clone()))).collect()
        } else {
            let (policy, sources) = self.under(&request.name)?;
            self.core.definitions.policy(&policy)?;
            sources.into_iter().map(|source| (policy.clone(), source)).collect()
        };
        let mut plans = Vec::new();
        for (name, source) in meant {
            let policy = self.core.definitions.policy(&name)?;
            let planned = if request.dry_run || policy.keep.is_none() {
                retention::plans(&self.core, &source, &policy).await?
            } else {
                let rules = format!("policy {name}");
                retention::clean_up(&self.core, &source, (&rules, &policy), &caller.actor()).await?
            };
            plans.extend(planned.iter().map(|planned| retention_plan(&source, &name, planned)));
        }
        Ok(v1::CleanUpResponse { plans })
    }

    /// The schedule of a source, which it has to have.
    fn entry(&self, name: &SourceName) -> Result<Entry, Failure> {
        self.core.definitions.source(name)?;
        self.core.schedules.entry(name).ok_or_else(|| {
            Failure::new(ErrorCode::NotScheduled, format!("source {name} is under no policy"))
                .because("nothing is backed up by itself without one")
                .then("holdfast policy list")
                .then("holdfast export > fleet.yaml    # give it a policy there, then holdfast apply -f fleet.yaml")
        })
    }

    async fn pause_inner(
        &self,
        caller: &Caller,
        request: v1::PauseSourceRequest,
    ) -> Result<v1::PauseSourceResponse, Failure> {
        let source: SourceName = parse("source", &request.source)?;
        self.entry(&source)?;
        if request.reason.trim().is_empty() {
            return Err(ConvertError::new("reason", "is missing: the next person wants to know").into());
        }
        if request.reason.len() > REASON_BYTES_MAX {
            return Err(
                ConvertError::new("reason", format!("is longer than {REASON_BYTES_MAX} bytes")).into()
            );
        }
        if request.for_seconds > PAUSE_SECONDS_MAX {
            return Err(ConvertError::new("for_seconds", "is more than 366 days").into());
        }
        let at = self.core.clock.now();
        let length = SignedDuration::from_secs(i64::from(request.for_seconds));
        let until = (request.for_seconds > 0).then(|| at + length);
        let placed = Pause { until, reason: request.reason, by: caller.actor(), at };
        self.core.schedules.pause(&source, placed.clone()).await?;
        Ok(v1::PauseSourceResponse { pause: Some(pause(&placed)) })
    }

    async fn resume_inner(
        &self,
        caller: &Caller,
        request: v1::ResumeSourceRequest,
    ) -> Result<v1::ResumeSourceResponse, Failure> {
        let source: SourceName = parse("source", &request.source)?;
        self.entry(&source)?;
        let now = self.core.clock.now();
        let was_paused = self.core.schedules.resume(&source, &caller.actor(), now).await?;
        Ok(v1::ResumeSourceResponse { was_paused })
    }
}

/// The policy of this name in a file.
fn policy_in(file: &v1::FleetFile, name: &PolicyName) -> Result<Policy, Failure> {
    let file = FleetFile { name: file.name.clone(), text: file.text.clone() };
    let fleet = read_fleet(std::slice::from_ref(&file)).map_err(|errors| match errors.first() {
        Some(error) => error.into(),
        None => Failure::new(ErrorCode::FileInvalid, format!("{} is not valid", file.name)),
    })?;
    fleet.policies.get(name).cloned().ok_or_else(|| {
        Failure::new(ErrorCode::ReferenceUnknown, format!("{} has no policy {name}", file.name))
    })
}

fn retention_plan(source: &SourceName, policy: &PolicyName, planned: &Retention) -> v1::RetentionPlan {
    let decisions = planned.records.iter().zip(&planned.plan.decisions).map(|(record, decision)| {
        let text = decision.verdict.to_string();
        let reason = text.split_once(": ").map_or(text.as_str(), |(_, reason)| reason).to_owned();
        v1::RetentionDecision {
            snapshot_id: decision.id.to_string(),
            committed_at: Some(timestamp(decision.committed_at)),
            snapshot_type: record.snapshot_type.map(|kind| kind.to_string()).unwrap_or_default(),
            stored_bytes: record.stored_bytes,
            keep: matches!(decision.verdict, Verdict::Keep(_)),
            reason,
        }
    });
    v1::RetentionPlan {
        source: source.to_string(),
        repository: planned.repository.to_string(),
        policy: policy.to_string(),
        frozen: planned.plan.frozen.as_ref().map(ToString::to_string).unwrap_or_default(),
        decisions: decisions.collect(),
    }
}

/// A pause on the wire.
pub fn pause(pause: &Pause) -> v1::Pause {
    v1::Pause {
        until: pause.until.map(timestamp),
        reason: pause.reason.clone(),
        by: pause.by.clone(),
        at: Some(timestamp(pause.at)),
    }
}

#[tonic::async_trait]
impl PolicyService for PoliciesApi {
    async fn next(
        &self,
        request: Request<v1::NextRunsRequest>,
    ) -> Result<Response<v1::NextRunsResponse>, Status> {
        reply(self.next_inner(&request.into_inner()))
    }

    async fn simulate(
        &self,
        request: Request<v1::SimulateRequest>,
    ) -> Result<Response<v1::SimulateResponse>, Status> {
        reply(self.simulate_inner(request.into_inner()).await)
    }

    async fn clean_up(
        &self,
        request: Request<v1::CleanUpRequest>,
    ) -> Result<Response<v1::CleanUpResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.clean_up_inner(&caller, request.into_inner()).await)
    }

    async fn pause(
        &self,
        request: Request<v1::PauseSourceRequest>,
    ) -> Result<Response<v1::PauseSourceResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.pause_inner(&caller, request.into_inner()).await)
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeSourceRequest>,
    ) -> Result<Response<v1::ResumeSourceResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.resume_inner(&caller, request.into_inner()).await)
    }
}
