//! Who may call what: one table, deny by default. A layer in front of every service looks each call up here.

use std::sync::Arc;

use holdfast_model::ids::AgentName;
use holdfast_model::{ErrorCode, Failure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a bearer of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees everything but secrets.
    Viewer,
    /// Starts and cancels runs, places holds.
    Operator,
    /// Restores.
    Restorer,
    /// Changes definitions, enrols and revokes agents.
    PolicyAdmin,
    /// Handles keys of repositories.
    KeyAdmin,
    /// Reads the audit log.
    Auditor,
    /// Everything.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 7] = [
        Role::Viewer,
        Role::Operator,
        Role::Restorer,
        Role::PolicyAdmin,
        Role::KeyAdmin,
        Role::Auditor,
        Role::Admin,
    ];

    /// The word used in output and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Restorer => "restorer",
            Role::PolicyAdmin => "policy-admin",
            Role::KeyAdmin => "key-admin",
            Role::Auditor => "auditor",
            Role::Admin => "admin",
        }
    }
}

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Public,
    /// A verified agent certificate.
    Agent,
    /// A token with one of these roles; admin may always.
    Roles(&'static [Role]),
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody known.
    Nobody,
    /// An agent, by its certificate.
    Agent {
        /// The name in the certificate.
        name: AgentName,
        /// Serial number of the certificate, hexadecimal.
        serial: Arc<str>,
    },
    /// A person or a pipeline, by its token.
    Operator {
        /// Name of the token.
        name: Arc<str>,
        /// Its role.
        role: Role,
        /// When the token ends.
        not_after: Timestamp,
    },
}

impl Caller {
    /// How the audit log names the caller.
    pub fn actor(&self) -> String {
        match self {
            Caller::Nobody => "nobody".to_owned(),
            Caller::Agent { name, .. } => format!("agent:{name}"),
            Caller::Operator { name, .. } => format!("token:{name}"),
        }
    }
}

use Role::{Auditor, KeyAdmin, Operator, PolicyAdmin, Restorer, Viewer};

const SEE: Access = Access::Roles(&[Viewer, Operator, Restorer, PolicyAdmin, KeyAdmin, Auditor]);
const RUN: Access = Access::Roles(&[Operator]);
const RESTORE: Access = Access::Roles(&[Restorer]);
const DEFINE: Access = Access::Roles(&[PolicyAdmin]);
const AUDIT: Access = Access::Roles(&[Auditor]);

/// Every method of gRPC by its path, and every route of REST by its method and path, with what it needs. Tests hold it
/// equal to the descriptor of the services and to [`crate::rest::routes`].
pub const METHODS: &[(&str, Access)] = &[
    ("/grpc.health.v1.Health/Check", Access::Public),
    ("/grpc.health.v1.Health/Watch", Access::Public),
    ("/grpc.health.v1.Health/List", Access::Public),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", SEE),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", SEE),
    ("/holdfast.v1.EnrollmentService/Enroll", Access::Public),
    ("/holdfast.v1.AgentService/Session", Access::Agent),
    ("/holdfast.v1.AgentService/RenewCertificate", Access::Agent),
    ("/holdfast.v1.DataService/OpenRepository", Access::Agent),
    ("/holdfast.v1.DataService/LookupBlobs", Access::Agent),
    ("/holdfast.v1.DataService/LocateBlobs", Access::Agent),
    ("/holdfast.v1.DataService/PutPack", Access::Agent),
    ("/holdfast.v1.DataService/CommitSnapshot", Access::Agent),
    ("/holdfast.v1.DataService/ReadPack", Access::Agent),
    ("/holdfast.v1.FleetService/Validate", SEE),
    ("/holdfast.v1.FleetService/Diff", SEE),
    ("/holdfast.v1.FleetService/Apply", DEFINE),
    ("/holdfast.v1.FleetService/Export", SEE),
    ("/holdfast.v1.FleetService/ListDefinitions", SEE),
    ("/holdfast.v1.FleetService/DeleteDefinition", DEFINE),
    ("/holdfast.v1.FleetService/TestSource", Access::Roles(&[Operator, PolicyAdmin])),
    ("/holdfast.v1.FleetService/DebugSource", Access::Roles(&[Operator, PolicyAdmin])),
    ("/holdfast.v1.FleetService/Discover", Access::Roles(&[Operator, PolicyAdmin])),
    ("/holdfast.v1.FleetService/CreateEnrollmentToken", DEFINE),
    ("/holdfast.v1.FleetService/ListAgents", SEE),
    ("/holdfast.v1.FleetService/RevokeAgent", DEFINE),
    ("/holdfast.v1.PolicyService/Next", SEE),
    ("/holdfast.v1.PolicyService/Simulate", SEE),
    ("/holdfast.v1.PolicyService/CleanUp", DEFINE),
    ("/holdfast.v1.PolicyService/Pause", Access::Roles(&[Operator, PolicyAdmin])),
    ("/holdfast.v1.PolicyService/Resume", Access::Roles(&[Operator, PolicyAdmin])),
    ("/holdfast.v1.RunService/Start", RUN),
    ("/holdfast.v1.RunService/PlanBackup", RUN),
    ("/holdfast.v1.RunService/Get", SEE),
    ("/holdfast.v1.RunService/List", SEE),
    ("/holdfast.v1.RunService/Cancel", Access::Roles(&[Operator, Restorer])),
    ("/holdfast.v1.RunService/Retry", RUN),
    ("/holdfast.v1.RunService/Watch", SEE),
    ("/holdfast.v1.RunService/Logs", SEE),
    ("/holdfast.v1.RestoreService/Plan", RESTORE),
    ("/holdfast.v1.RestoreService/Run", RESTORE),
    ("/holdfast.v1.RestoreService/Promote", RESTORE),
    ("/holdfast.v1.RestoreService/Discard", RESTORE),
    ("/holdfast.v1.SnapshotService/List", SEE),
    ("/holdfast.v1.SnapshotService/Show", SEE),
    ("/holdfast.v1.SnapshotService/Tree", SEE),
    ("/holdfast.v1.SnapshotService/Hold", RUN),
    ("/holdfast.v1.SnapshotService/Release", DEFINE),
    ("/holdfast.v1.SnapshotService/Forget", DEFINE),
    ("/holdfast.v1.SnapshotService/Export", RESTORE),
    ("/holdfast.v1.SnapshotService/Import", RUN),
    ("/holdfast.v1.RepositoryService/Init", DEFINE),
    ("/holdfast.v1.RepositoryService/List", SEE),
    ("/holdfast.v1.RepositoryService/Usage", SEE),
    ("/holdfast.v1.RepositoryService/Prune", DEFINE),
    ("/holdfast.v1.RepositoryService/Copy", RUN),
    ("/holdfast.v1.AlertService/List", SEE),
    ("/holdfast.v1.AlertService/Show", SEE),
    ("/holdfast.v1.AlertService/Acknowledge", RUN),
    ("/holdfast.v1.AlertService/Silence", RUN),
    ("/holdfast.v1.AlertService/Unsilence", RUN),
    ("/holdfast.v1.NotifyService/List", SEE),
    ("/holdfast.v1.NotifyService/Test", Access::Roles(&[Operator, PolicyAdmin])),
    ("/holdfast.v1.NotifyService/Preview", SEE),
    ("/holdfast.v1.NotifyService/History", SEE),
    ("/holdfast.v1.ReportService/Get", SEE),
    ("/holdfast.v1.ReportService/Send", Access::Roles(&[Operator, PolicyAdmin])),
    ("/holdfast.v1.StatusService/Fleet", SEE),
    ("/holdfast.v1.StatusService/Doctor", SEE),
    ("/holdfast.v1.StatusService/Audit", AUDIT),
    ("/holdfast.v1.StatusService/Whoami", SEE),
    ("GET /ping", Access::Public),
    ("GET /healthz", Access::Public),
    ("GET /readyz", Access::Public),
    ("GET /metrics", SEE),
    ("GET /api/v1/openapi.json", SEE),
    ("GET /api/v1/health", SEE),
    ("GET /api/v1/stats", SEE),
    ("GET /api/v1/backups", SEE),
    ("POST /api/v1/backups", RUN),
    ("GET /api/v1/backups/{id}", SEE),
    ("POST /api/v1/backups/{id}/verify", RUN),
    ("GET /api/v1/runs/{id}", SEE),
    ("POST /api/v1/cleanup", DEFINE),
    ("POST /api/v1/repositories/{name}/prune", DEFINE),
    ("GET /api/v1/alerts", SEE),
    ("GET /api/v1/alerts/{id}", SEE),
    ("POST /api/v1/alerts/{id}/ack", RUN),
    ("GET /api/v1/silences", SEE),
    ("POST /api/v1/silences", RUN),
    ("POST /api/v1/silences/{id}/end", RUN),
    ("GET /api/v1/config", SEE),
    ("GET /api/v1/sources/{name}/status", SEE),
    ("GET /api/v1/monitor/quick", SEE),
    ("GET /api/v1/monitor/database", SEE),
    ("GET /api/v1/monitor/performance", SEE),
    ("GET /api/v1/monitor/overview", SEE),
    ("GET /api/v1/reports/daily", SEE),
    ("GET /api/v1/reports/weekly", SEE),
    ("GET /api/v1/reports/logs", SEE),
    ("GET /api/v1/events", SEE),
];

/// Whether this caller may make this call.
///
/// # Errors
/// `HF-6004` when nobody known calls, `HF-6005` when the caller is known and may not, or the method does not exist: a
/// stranger learns nothing of what there is.
pub fn check(path: &str, caller: &Caller) -> Result<(), Failure> {
    let access = METHODS.iter().find(|(method, _)| *method == path).map(|(_, access)| *access);
    let denied = |who: &str| {
        let called = if path.starts_with('/') { path.rsplit('/').next().unwrap_or(path) } else { path };
        Failure::new(ErrorCode::NotPermitted, format!("{who} may not call {called}"))
    };
    match (access, caller) {
        (Some(Access::Public), _) | (Some(Access::Agent), Caller::Agent { .. }) => Ok(()),
        (_, Caller::Nobody) => {
            Err(Failure::new(ErrorCode::NotAuthenticated, "no valid token or agent certificate was given")
                .then("holdfast context show"))
        }
        (Some(Access::Roles(roles)), Caller::Operator { role, .. }) => {
            if *role == Role::Admin || roles.contains(role) {
                Ok(())
            } else {
                Err(denied(&format!("the role {}", role.as_str())))
            }
        }
        (_, Caller::Operator { .. }) => Err(denied("an operator")),
        (_, Caller::Agent { .. }) => Err(denied("an agent")),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn described() -> Vec<String> {
        let set = prost_types::FileDescriptorSet::decode(holdfast_proto::DESCRIPTOR_SET).unwrap();
        let mut paths = Vec::new();
        for file in set.file.iter().filter(|file| file.package() == "holdfast.v1") {
            for service in &file.service {
                for method in &service.method {
                    paths.push(format!("/holdfast.v1.{}/{}", service.name(), method.name()));
                }
            }
        }
        paths
    }

    #[test]
    fn every_method_has_exactly_one_row() {
        let mut described = described();
        let mut listed: Vec<String> = METHODS
            .iter()
            .map(|(path, _)| (*path).to_owned())
            .filter(|path| path.starts_with("/holdfast"))
            .collect();
        described.sort();
        listed.sort();
        assert_eq!(listed, described);
    }

    /// One row per method: who may. `n` nobody, `a` an agent, then the roles in the order of [`Role::ALL`].
    #[test]
    fn every_cell_of_the_table_is_as_designed() {
        let agent = Caller::Agent { name: AgentName::new("db1").unwrap(), serial: "01".into() };
        for (path, access) in METHODS {
            let may = |caller: &Caller| check(path, caller).is_ok();
            assert_eq!(may(&Caller::Nobody), *access == Access::Public, "{path}: nobody");
            assert_eq!(may(&agent), matches!(access, Access::Public | Access::Agent), "{path}: agent");
            for role in Role::ALL {
                let caller = Caller::Operator { name: "t".into(), role, not_after: Timestamp::MAX };
                let expected = match access {
                    Access::Public => true,
                    Access::Agent => false,
                    Access::Roles(roles) => role == Role::Admin || roles.contains(&role),
                };
                assert_eq!(may(&caller), expected, "{path}: {}", role.as_str());
            }
        }
    }

    #[test]
    fn what_destroys_or_restores_is_closed_to_those_who_only_look() {
        let viewer = Caller::Operator { name: "t".into(), role: Role::Viewer, not_after: Timestamp::MAX };
        for method in
            ["FleetService/Apply", "RestoreService/Run", "SnapshotService/Release", "StatusService/Audit"]
        {
            let failure = check(&format!("/holdfast.v1.{method}"), &viewer).unwrap_err();
            assert_eq!(failure.code, ErrorCode::NotPermitted);
        }
    }

    #[test]
    fn an_unknown_method_is_denied_without_saying_so() {
        let nobody = check("/holdfast.v1.Secret/Get", &Caller::Nobody).unwrap_err();
        assert_eq!(nobody.code, ErrorCode::NotAuthenticated);
        let admin = Caller::Operator { name: "t".into(), role: Role::Admin, not_after: Timestamp::MAX };
        assert_eq!(check("/holdfast.v1.Secret/Get", &admin).unwrap_err().code, ErrorCode::NotPermitted);
    }
}
