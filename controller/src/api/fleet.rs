//! Definitions: validate, diff, apply, export, list, delete; and the test of a source.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::fleet::{self, Change, ChangeAction, FleetError, FleetFile};
use holdfast_model::ids::SourceName;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, document, parse, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::fleet_service_server::FleetService;
use tonic::{Request, Response, Status};

use super::{Repeatable, agents, caller_of, discovery, reply};
use crate::access::Caller;
use crate::core::Core;
use crate::debug_logging::DebugLogging;
use crate::fleet_changes::{
    self, Authorship, Confirmed, FleetPlan, all_in_one, managed_elsewhere, refuse_removal_in_use,
};
use crate::records::Batch;

/// The longest debug logging, in seconds: what writes ten times the lines must not be forgotten.
const DEBUG_SECONDS_MAX: u32 = 7 * 24 * 3600;

/// The service.
pub struct FleetApi {
    core: Arc<Core>,
}

impl FleetApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn apply_inner(
        &self,
        caller: &Caller,
        mut request: v1::ApplyRequest,
    ) -> Result<Vec<Change>, Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if let Some(paths) = Repeatable::answered(repeatable.as_ref(), &self.core).await? {
            let done =
                |path| Change { path, action: ChangeAction::Update, details: Vec::new(), dangerous: false };
            return Ok(paths.into_iter().map(done).collect());
        }
        let files = files_of(std::mem::take(&mut request.files));
        let authorship = Authorship::new(&request.owner, request.prune, request.take_over)?;
        let current = self.core.definitions.current();
        let plan =
            fleet_changes::plan(&current, &files, &authorship).map_err(|errors| all_in_one(&errors))?;
        let confirmed = Confirmed { paths: request.confirm, reason: request.reason };
        fleet_changes::apply(&self.core, &caller.actor(), &plan, &authorship, &confirmed, |batch, paths| {
            Repeatable::remember(repeatable.as_ref(), batch, paths)
        })
        .await?;
        Ok(plan.changes)
    }

    async fn debug_inner(
        &self,
        caller: &Caller,
        request: &v1::DebugSourceRequest,
    ) -> Result<v1::DebugSourceResponse, Failure> {
        let source: SourceName = parse("source", &request.source)?;
        self.core.definitions.source(&source)?;
        if request.for_seconds > DEBUG_SECONDS_MAX {
            return Err(ConvertError::new("for_seconds", "is more than a week").into());
        }
        let length = (request.for_seconds > 0).then(|| Duration::from_secs(request.for_seconds.into()));
        let (before, now) = self.core.debug_source(&source, length, &caller.actor()).await?;
        Ok(v1::DebugSourceResponse { debug: now.as_ref().map(debug_logging), was_on: before.is_some() })
    }

    async fn delete_inner(
        &self,
        caller: &Caller,
        request: v1::DeleteDefinitionRequest,
    ) -> Result<(), Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if Repeatable::answered(repeatable.as_ref(), &self.core).await?.is_some() {
            return Ok(());
        }
        if !matches!(request.kind.as_str(), "sources" | "repositories" | "policies") {
            return Err(ConvertError::new("kind", "is none of sources, repositories and policies").into());
        }
        let current = self.core.definitions.current();
        if current.fleet.get_json(&request.kind, &request.name).is_none() {
            return Err(Failure::new(
                ErrorCode::NotFound,
                format!("there is no definition {}.{}", request.kind, request.name.escape_default()),
            ));
        }
        let path = format!("{}.{}", request.kind, request.name);
        if let Some(owner) = current.owner_of(&path) {
            return Err(managed_elsewhere(&path, owner));
        }
        if request.confirm != request.name || request.reason.trim().is_empty() {
            return Err(Failure::new(
                ErrorCode::NeedsConfirmation,
                format!(
                    "{}.{} would not be protected any more; what is stored stays",
                    request.kind, request.name
                ),
            )
            .then(format!("add: --confirm {} --reason TEXT", request.name)));
        }
        let mut wanted = current.fleet.clone();
        wanted.remove(&request.kind, &request.name);
        let changes = fleet::diff(&current.fleet, &wanted, true);
        refuse_removal_in_use(&current.fleet, &wanted, &changes)?;
        let target = format!("{path}: {}", request.reason).chars().take(2000).collect::<String>();
        let batch = Batch::new(caller.actor(), "fleet.delete", target);
        let batch = Repeatable::remember(repeatable.as_ref(), batch, vec![path]);
        let now = self.core.clock.now();
        self.core.definitions.apply(&wanted, &changes, batch, &caller.actor(), None, now).await
    }

    fn list_inner(&self, request: &v1::ListDefinitionsRequest) -> Result<Vec<v1::Definition>, Failure> {
        let current = self.core.definitions.current();
        let prefix = format!("{}.", request.kind);
        let mut definitions = Vec::new();
        for (path, stamp) in current.stamps.range(prefix.clone()..) {
            let Some(name) = path.strip_prefix(&prefix) else { break };
            if !request.name.is_empty() && request.name != name {
                continue;
            }
            let spec = current.fleet.get_json(&request.kind, name).unwrap_or_default();
            definitions.push(v1::Definition {
                kind: request.kind.clone(),
                name: name.to_owned(),
                spec_json: spec.to_string(),
                version: stamp.version,
                updated_at: Some(timestamp(stamp.at)),
                updated_by: stamp.by.clone(),
                owner: stamp.owner.clone().unwrap_or_default(),
            });
        }
        if definitions.is_empty() && !request.name.is_empty() {
            return Err(Failure::new(
                ErrorCode::NotFound,
                format!(
                    "there is no definition {}.{}",
                    request.kind.escape_default(),
                    request.name.escape_default()
                ),
            ));
        }
        Ok(definitions)
    }

    async fn test_inner(&self, name: &str) -> Result<String, Failure> {
        let name: SourceName = parse("source", name)?;
        let source = self.core.definitions.source(&name)?;
        let question = v1::inquiry::Question::Probe(v1::ProbeSource {});
        self.core.sessions.ask(&source.agent, document(&source), question).await
    }
}

fn files_of(files: Vec<v1::FleetFile>) -> Vec<FleetFile> {
    files.into_iter().map(|file| FleetFile { name: file.name, text: file.text }).collect()
}

fn problem(error: &FleetError) -> v1::FileProblem {
    let (line, column) = error.position.unwrap_or((0, 0));
    v1::FileProblem {
        code: error.code.to_string(),
        file: error.file.clone(),
        line,
        column,
        message: error.message.clone(),
    }
}

fn change(change: &Change) -> v1::Change {
    let action = match change.action {
        ChangeAction::Create => "create",
        ChangeAction::Update => "update",
        ChangeAction::Remove => "remove",
    };
    v1::Change {
        path: change.path.clone(),
        action: action.to_owned(),
        details: change.details.clone(),
        dangerous: change.dangerous,
    }
}

/// Debug logging on the wire.
pub fn debug_logging(logging: &DebugLogging) -> v1::DebugLogging {
    v1::DebugLogging {
        until: Some(timestamp(logging.until)),
        by: logging.by.clone(),
        at: Some(timestamp(logging.at)),
    }
}

#[tonic::async_trait]
impl FleetService for FleetApi {
    async fn validate(
        &self,
        request: Request<v1::ValidateRequest>,
    ) -> Result<Response<v1::ValidateResponse>, Status> {
        let files = files_of(request.into_inner().files);
        // Whose definitions they are is asked when they are applied.
        let anybody = Authorship { take_over: true, ..Authorship::default() };
        let problems = match fleet_changes::plan(&self.core.definitions.current(), &files, &anybody) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(problem).collect(),
        };
        reply(Ok(v1::ValidateResponse { problems }))
    }

    async fn diff(&self, request: Request<v1::DiffRequest>) -> Result<Response<v1::DiffResponse>, Status> {
        let request = request.into_inner();
        let planned = Authorship::new(&request.owner, request.prune, request.take_over).map(|asked| {
            fleet_changes::plan(&self.core.definitions.current(), &files_of(request.files), &asked)
        });
        reply(planned.and_then(|planned| match planned {
            Err(errors) => {
                Ok(v1::DiffResponse { changes: Vec::new(), problems: errors.iter().map(problem).collect() })
            }
            Ok(FleetPlan { changes, foreign, .. }) => match foreign.first() {
                Some((path, owner)) => Err(managed_elsewhere(path, owner)),
                None => Ok(v1::DiffResponse {
                    changes: changes.iter().map(change).collect(),
                    problems: Vec::new(),
                }),
            },
        }))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let caller = caller_of(&request);
        let changes = self.apply_inner(&caller, request.into_inner()).await;
        reply(changes.map(|changes| v1::ApplyResponse { changes: changes.iter().map(change).collect() }))
    }

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<v1::ExportResponse>, Status> {
        let current = self.core.definitions.current();
        let yaml = if request.into_inner().effective {
            fleet::to_effective_yaml(&current.fleet)
        } else {
            fleet::to_yaml(&current.fleet)
        };
        reply(Ok(v1::ExportResponse { yaml }))
    }

    async fn list_definitions(
        &self,
        request: Request<v1::ListDefinitionsRequest>,
    ) -> Result<Response<v1::ListDefinitionsResponse>, Status> {
        let definitions = self.list_inner(&request.into_inner());
        reply(definitions.map(|definitions| v1::ListDefinitionsResponse { definitions }))
    }

    async fn delete_definition(
        &self,
        request: Request<v1::DeleteDefinitionRequest>,
    ) -> Result<Response<v1::DeleteDefinitionResponse>, Status> {
        let caller = caller_of(&request);
        let deleted = self.delete_inner(&caller, request.into_inner()).await;
        reply(deleted.map(|()| v1::DeleteDefinitionResponse {}))
    }

    async fn test_source(
        &self,
        request: Request<v1::TestSourceRequest>,
    ) -> Result<Response<v1::TestSourceResponse>, Status> {
        let report = self.test_inner(&request.into_inner().source).await;
        reply(report.map(|report_json| v1::TestSourceResponse { report_json }))
    }

    async fn debug_source(
        &self,
        request: Request<v1::DebugSourceRequest>,
    ) -> Result<Response<v1::DebugSourceResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.debug_inner(&caller, &request.into_inner()).await)
    }

    async fn discover(
        &self,
        request: Request<v1::DiscoverRequest>,
    ) -> Result<Response<v1::DiscoverResponse>, Status> {
        reply(discovery::discover(&self.core, request.into_inner()).await)
    }

    async fn create_enrollment_token(
        &self,
        request: Request<v1::CreateEnrollmentTokenRequest>,
    ) -> Result<Response<v1::CreateEnrollmentTokenResponse>, Status> {
        let caller = caller_of(&request);
        reply(agents::create_token(&self.core, &caller, request.into_inner()).await)
    }

    async fn list_agents(
        &self,
        _request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        reply(agents::list(&self.core).await)
    }

    async fn revoke_agent(
        &self,
        request: Request<v1::RevokeAgentRequest>,
    ) -> Result<Response<v1::RevokeAgentResponse>, Status> {
        let caller = caller_of(&request);
        reply(agents::revoke(&self.core, &caller, request.into_inner()).await)
    }
}
