//! Enrolled agents: which certificates are theirs, and in which epoch they last connected.

use holdfast_model::ids::AgentName;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::records::{Batch, Records};
use crate::store::{Expect, Kind};

/// Certificates that are valid side by side: the current one and those it was renewed from.
const SERIALS_MAX: usize = 4;

/// What is stored of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its name.
    pub name: AgentName,
    /// When it was enrolled, the last time.
    pub enrolled_at: Timestamp,
    /// When it was revoked; until it is enrolled again.
    pub revoked_at: Option<Timestamp>,
    /// Its certificates, newest last.
    pub certificates: Vec<IssuedCertificate>,
    /// Number of its last session.
    pub epoch: u64,
    /// Its host, as it last said.
    pub host: HostRecord,
    /// Its version, as it last said.
    pub version: String,
    /// When its last session began.
    pub last_session_at: Option<Timestamp>,
}

/// A certificate that was issued to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: Timestamp,
}

/// What an agent says of its host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Host name.
    pub hostname: String,
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Logical processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl From<&v1::HostFacts> for HostRecord {
    fn from(facts: &v1::HostFacts) -> Self {
        let cut = |text: &str| text.chars().take(255).collect();
        Self {
            hostname: cut(&facts.hostname),
            os: cut(&facts.os),
            arch: cut(&facts.arch),
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
        }
    }
}

impl From<&HostRecord> for v1::HostFacts {
    fn from(host: &HostRecord) -> Self {
        Self {
            hostname: host.hostname.clone(),
            os: host.os.clone(),
            arch: host.arch.clone(),
            cpus: host.cpus,
            memory_bytes: host.memory_bytes,
        }
    }
}

/// The enrolled agents.
#[derive(Clone)]
pub struct Agents {
    records: Records,
}

impl Agents {
    /// The agents in these records.
    pub fn new(records: Records) -> Self {
        Self { records }
    }

    /// All of them, in the order of their names.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn all(&self) -> Result<Vec<AgentRecord>, Failure> {
        Ok(self.records.all(Kind::Agent, "").await?.into_iter().map(|found| found.value).collect())
    }

    /// One of them, enrolled and not revoked.
    ///
    /// # Errors
    /// `HF-4001` when it was never enrolled.
    pub async fn get(&self, name: &AgentName) -> Result<AgentRecord, Failure> {
        let found = self.records.get::<AgentRecord>(Kind::Agent, name.as_str()).await?;
        found.map(|found| found.value).ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("agent {name} is not enrolled"))
                .then(format!("holdfast agent enroll {name}"))
        })
    }

    /// Whether this certificate of this agent is let in.
    ///
    /// # Errors
    /// `HF-6006` when the agent was revoked or the certificate is not one of its current ones.
    pub async fn admit(&self, name: &AgentName, serial: &str) -> Result<(), Failure> {
        let found = self.records.get::<AgentRecord>(Kind::Agent, name.as_str()).await?;
        let admitted = found.is_some_and(|found| {
            found.value.revoked_at.is_none()
                && found.value.certificates.iter().any(|certificate| certificate.serial == serial)
        });
        if admitted {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::AgentRevoked,
            format!("the certificate of agent {name} is not accepted any more"),
        )
        .then(format!("holdfast agent enroll {name}")))
    }

    /// Records a new session and gives its number.
    ///
    /// # Errors
    /// `HF-6006` when the agent may not connect any more.
    pub async fn begin_session(
        &self,
        name: &AgentName,
        serial: &str,
        hello: &v1::Hello,
        now: Timestamp,
    ) -> Result<u64, Failure> {
        self.admit(name, serial).await?;
        let target = format!("agent/{name}");
        let record = self
            .change(name, "agent.connect", &target, |record| {
                record.epoch += 1;
                record.version = hello.agent_version.chars().take(64).collect();
                record.last_session_at = Some(now);
                if let Some(facts) = &hello.facts {
                    record.host = facts.into();
                }
            })
            .await?;
        Ok(record.epoch)
    }

    /// Adds to the batch that consumes an enrolment token what makes its agent known.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn enroll(
        &self,
        batch: Batch,
        name: &AgentName,
        certificate: IssuedCertificate,
        host: HostRecord,
        now: Timestamp,
    ) -> Result<Batch, Failure> {
        let before = self.records.get::<AgentRecord>(Kind::Agent, name.as_str()).await?;
        let expect = before.as_ref().map_or(Expect::Absent, |found| Expect::Version(found.version));
        let record = AgentRecord {
            name: name.clone(),
            enrolled_at: now,
            revoked_at: None,
            // A new enrolment ends the certificates of the one before.
            certificates: vec![certificate],
            epoch: before.map_or(0, |found| found.value.epoch),
            host,
            version: String::new(),
            last_session_at: None,
        };
        Ok(batch.put(Kind::Agent, name.as_str(), &record, expect))
    }

    /// Records a renewed certificate.
    ///
    /// # Errors
    /// `HF-6006` when the agent was revoked meanwhile.
    pub async fn renewed(&self, name: &AgentName, old: &str, new: IssuedCertificate) -> Result<(), Failure> {
        self.admit(name, old).await?;
        let target = format!("agent/{name} certificate {}", new.serial);
        self.change(name, "agent.renew", &target, |record| {
            record.certificates.push(new.clone());
            let surplus = record.certificates.len().saturating_sub(SERIALS_MAX);
            record.certificates.drain(..surplus);
        })
        .await?;
        Ok(())
    }

    /// Revokes an agent: none of its certificates is accepted any more.
    ///
    /// # Errors
    /// `HF-4001` when it was never enrolled.
    pub async fn revoke(
        &self,
        name: &AgentName,
        actor: &str,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), Failure> {
        self.get(name).await?;
        let found = self.records.get::<AgentRecord>(Kind::Agent, name.as_str()).await?;
        let Some(found) = found else { return Ok(()) };
        let mut record = found.value;
        record.revoked_at = Some(now);
        record.certificates.clear();
        let reason: String = reason.chars().take(500).collect();
        let batch = Batch::new(actor, "agent.revoke", format!("agent/{name}: {reason}"));
        self.records
            .commit(batch.put(Kind::Agent, name.as_str(), &record, Expect::Version(found.version)))
            .await?;
        Ok(())
    }

    /// Changes a record, trying again when somebody else changed it meanwhile.
    async fn change(
        &self,
        name: &AgentName,
        action: &str,
        target: &str,
        change: impl Fn(&mut AgentRecord),
    ) -> Result<AgentRecord, Failure> {
        for _ in 0..8 {
            let found = self.records.get::<AgentRecord>(Kind::Agent, name.as_str()).await?;
            let found = found.filter(|found| found.value.revoked_at.is_none()).ok_or_else(|| {
                Failure::new(ErrorCode::AgentRevoked, format!("agent {name} is not enrolled any more"))
            })?;
            let mut record = found.value;
            change(&mut record);
            let batch = Batch::new(format!("agent:{name}"), action, target);
            let batch = batch.put(Kind::Agent, name.as_str(), &record, Expect::Version(found.version));
            match self.records.commit(batch).await {
                Ok(_) => return Ok(record),
                Err(failure) if failure.code == ErrorCode::VersionConflict => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::new(ErrorCode::VersionConflict, format!("the record of agent {name} changes too often")))
    }
}
