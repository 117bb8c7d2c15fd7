//! Definitions: validate, diff, apply, export, list, delete; and the test of a source.

use std::sync::Arc;

use holdfast_model::fleet::{self, Change, ChangeAction, Fleet, FleetError, FleetFile, read_fleet};
use holdfast_model::ids::SourceName;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, document, parse, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::fleet_service_server::FleetService;
use tonic::{Request, Response, Status};

use super::{Repeatable, agents, caller_of, reply};
use crate::access::Caller;
use crate::core::Core;
use crate::records::Batch;

/// Files of one request.
const FILES_MAX: usize = 1000;

/// The service.
pub struct FleetApi {
    core: Arc<Core>,
}

impl FleetApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// What the files say, checked by itself and against what is declared.
    fn read(&self, files: Vec<v1::FleetFile>, prune: bool) -> Result<Fleet, Vec<FleetError>> {
        if files.len() > FILES_MAX {
            return Err(vec![FleetError {
                code: ErrorCode::FileInvalid,
                file: "request".to_owned(),
                position: None,
                message: format!("{} files are too many, the limit is {FILES_MAX}", files.len()),
            }]);
        }
        let files: Vec<FleetFile> =
            files.into_iter().map(|file| FleetFile { name: file.name, text: file.text }).collect();
        let wanted = read_fleet(&files)?;
        let current = self.core.definitions.current();
        let known = if prune { Fleet::default() } else { current.fleet.clone() };
        let mut errors = wanted.check_references(&known);
        fleet::locate(&mut errors, &files);
        if errors.is_empty() { Ok(wanted) } else { Err(errors) }
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
        let files = std::mem::take(&mut request.files);
        let wanted = self.read(files, request.prune).map_err(|errors| all_in_one(&errors))?;
        let current = self.core.definitions.current();
        let changes = fleet::diff(&current.fleet, &wanted, request.prune);
        let unconfirmed: Vec<&Change> = changes
            .iter()
            .filter(|change| change.dangerous && !request.confirm.contains(&change.path))
            .collect();
        if let Some(first) = unconfirmed.first() {
            let mut failure = Failure::new(
                ErrorCode::NeedsConfirmation,
                format!("{} changes lose protection and were not confirmed", unconfirmed.len()),
            );
            failure.why = unconfirmed.iter().map(|change| change.path.clone()).collect();
            return Err(failure.then(format!("add: --confirm {} --reason TEXT", first.path)));
        }
        if changes.iter().any(|change| change.dangerous) && request.reason.trim().is_empty() {
            return Err(Failure::new(
                ErrorCode::NeedsConfirmation,
                "a change that loses protection needs a reason",
            )
            .then("add: --reason TEXT"));
        }
        refuse_removal_in_use(&current.fleet, &wanted, &changes)?;
        self.store(caller, "fleet.apply", &request.reason, &wanted, &changes, repeatable.as_ref()).await?;
        Ok(changes)
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
        self.store(caller, "fleet.delete", &request.reason, &wanted, &changes, repeatable.as_ref()).await
    }

    async fn store(
        &self,
        caller: &Caller,
        action: &str,
        reason: &str,
        wanted: &Fleet,
        changes: &[Change],
        repeatable: Option<&Repeatable>,
    ) -> Result<(), Failure> {
        let paths: Vec<String> = changes.iter().map(|change| change.path.clone()).collect();
        let mut target = paths.join(" ");
        if !reason.is_empty() {
            target = format!("{target}: {reason}");
        }
        let batch = Batch::new(caller.actor(), action, target.chars().take(2000).collect::<String>());
        let batch = Repeatable::remember(repeatable, batch, paths);
        self.core.definitions.apply(wanted, changes, batch, &caller.actor(), self.core.clock.now()).await
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

/// What others still refer to can not be removed.
fn refuse_removal_in_use(current: &Fleet, wanted: &Fleet, changes: &[Change]) -> Result<(), Failure> {
    let mut after = current.clone();
    for change in changes {
        let (kind, name) = change.path.split_once('.').unwrap_or((&change.path, ""));
        match (change.action, wanted.get_json(kind, name)) {
            (ChangeAction::Create | ChangeAction::Update, Some(spec)) => {
                after.insert_json(kind, name, spec).map_err(|why| Failure::new(ErrorCode::Internal, why))?;
            }
            _ => after.remove(kind, name),
        }
    }
    let removed = changes.iter().filter(|change| change.action == ChangeAction::Remove);
    match removed.filter_map(|change| after.user_of(&change.path)).next() {
        Some(message) => Err(Failure::new(ErrorCode::InUse, message)),
        None => Ok(()),
    }
}

/// Problems of files as one failure.
fn all_in_one(errors: &[FleetError]) -> Failure {
    let Some(first) = errors.first() else {
        return Failure::new(ErrorCode::FileInvalid, "the files are not valid");
    };
    let mut failure = Failure::from(first);
    failure.why = errors.iter().skip(1).map(ToString::to_string).collect();
    failure.then("holdfast validate -f DIR")
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

#[tonic::async_trait]
impl FleetService for FleetApi {
    async fn validate(
        &self,
        request: Request<v1::ValidateRequest>,
    ) -> Result<Response<v1::ValidateResponse>, Status> {
        let problems = match self.read(request.into_inner().files, false) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(problem).collect(),
        };
        reply(Ok(v1::ValidateResponse { problems }))
    }

    async fn diff(&self, request: Request<v1::DiffRequest>) -> Result<Response<v1::DiffResponse>, Status> {
        let request = request.into_inner();
        reply(Ok(match self.read(request.files, request.prune) {
            Err(errors) => {
                v1::DiffResponse { changes: Vec::new(), problems: errors.iter().map(problem).collect() }
            }
            Ok(wanted) => {
                let current = self.core.definitions.current();
                let changes = fleet::diff(&current.fleet, &wanted, request.prune);
                v1::DiffResponse { changes: changes.iter().map(change).collect(), problems: Vec::new() }
            }
        }))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let caller = caller_of(&request);
        let changes = self.apply_inner(&caller, request.into_inner()).await;
        reply(changes.map(|changes| v1::ApplyResponse { changes: changes.iter().map(change).collect() }))
    }

    async fn export(
        &self,
        _request: Request<v1::ExportRequest>,
    ) -> Result<Response<v1::ExportResponse>, Status> {
        let yaml = fleet::to_yaml(&self.core.definitions.current().fleet);
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
