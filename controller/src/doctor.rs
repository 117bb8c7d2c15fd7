//! Findings about the fleet, each with a remedy. Asks, changes nothing.

use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::text::{counted, size};
use holdfast_proto::v1;

use crate::core::Core;
use crate::fleet_folder::Standing;
use crate::self_backup;

/// Clock differences beyond this are worth a word, in milliseconds.
const CLOCK_SKEW_MILLIS_MAX: i64 = 2_000;

/// Free space below which a word is due, in bytes.
const FREE_BYTES_MIN: u64 = 1 << 30;

struct Findings(Vec<v1::Finding>);

impl Findings {
    fn add(&mut self, area: &str, object: &str, outcome: &str, message: String, remedy: String) {
        self.0.push(v1::Finding {
            area: area.to_owned(),
            object: object.to_owned(),
            outcome: outcome.to_owned(),
            message,
            remedy,
        });
    }
}

/// Looks at everything.
///
/// # Errors
/// When the controller's own state can not be read.
pub async fn examine(core: &Arc<Core>) -> Result<Vec<v1::Finding>, Failure> {
    let mut findings = Findings(Vec::new());
    let message =
        format!("version {}, {} active", crate::VERSION, counted(core.runs.active().len() as u64, "run"));
    findings.add("controller", "", "ok", message, String::new());
    examine_configuration(core, &mut findings);
    examine_fleet_folder(core, &mut findings);
    examine_self_backup(core, &mut findings).await?;
    examine_repositories(core, &mut findings).await?;
    examine_agents(core, &mut findings).await?;
    examine_sources(core, &mut findings).await?;
    examine_hosts(core, &mut findings);
    examine_channels(core, &mut findings);
    let rank = |finding: &v1::Finding| match finding.outcome.as_str() {
        "failed" => 0,
        "warning" => 1,
        "not_set" => 2,
        _ => 3,
    };
    findings.0.sort_by_key(|finding| (area_rank(&finding.area), rank(finding)));
    Ok(findings.0)
}

/// What came of reading `controller.yaml` anew, when somebody asked for it.
fn examine_configuration(core: &Core, findings: &mut Findings) {
    let Some(standing) = core.config.standing() else { return };
    let (outcome, message, remedy) = match &standing.outcome {
        Ok(waiting) if waiting.is_empty() => ("ok", format!("is in force as of {}", standing.at), ""),
        Ok(waiting) => (
            "warning",
            format!("what it says of {} needs a restart", waiting.join(", ")),
            "systemctl restart holdfast-controller   # on the controller's host",
        ),
        Err(failure) => (
            "failed",
            format!("is not taken, what was read before holds: {failure}"),
            "holdfast-controller check-config   # on the controller's host",
        ),
    };
    findings.add("controller", "controller.yaml", outcome, message, remedy.to_owned());
}

/// The folder that declares the fleet, when there is one.
fn examine_fleet_folder(core: &Core, findings: &mut Findings) {
    let config = core.config.get();
    let Some(folder) = &config.fleet.folder else { return };
    let mut add = |outcome: &str, message: String, remedy: String| {
        findings.add("controller", "fleet folder", outcome, message, remedy);
    };
    match core.fleet_folder.get() {
        None => add("not_set", format!("{} was not read yet", folder.display()), String::new()),
        Some(Standing { failure: None, .. }) => {
            add("ok", format!("the fleet is as {} says", folder.display()), String::new());
        }
        Some(Standing { failure: Some(failure), .. }) => {
            let remedy = failure.next.first().cloned().unwrap_or_default();
            add("failed", format!("the fleet is not as {} says: {failure}", folder.display()), remedy);
        }
    }
}

/// The controller's own state: where a copy of it is, and how old.
async fn examine_self_backup(core: &Arc<Core>, findings: &mut Findings) -> Result<(), Failure> {
    let mut add = |outcome: &str, message: String, remedy: &str| {
        findings.add("controller", "state", outcome, message, remedy.to_owned());
    };
    match self_backup::destination(core) {
        Ok(Some(_)) => {}
        Ok(None) => {
            let remedy = "holdfast repo add main --url file:///var/lib/holdfast/main --key-file /etc/holdfast/main.key";
            add(
                "not_set",
                "the controller's own state is copied nowhere: there is no repository".to_owned(),
                remedy,
            );
            return Ok(());
        }
        Err(failure) => {
            add("failed", failure.to_string(), "# set self_backup.to in controller.yaml");
            return Ok(());
        }
    }
    let Some(last) = self_backup::last_copy(core).await? else {
        add("not_set", "the controller's own state was not copied yet".to_owned(), "holdfast audit list");
        return Ok(());
    };
    let age = core.clock.now().duration_since(last.at);
    if age > self_backup::AGE_MAX {
        let message = format!("the newest copy of the controller's own state is of {}", last.at);
        add("failed", message, "journalctl -u holdfast-controller   # on the controller's host");
    } else {
        let message = format!("its own state is in repository {} as of {}", last.repository, last.at);
        add("ok", message, "");
    }
    Ok(())
}

fn area_rank(area: &str) -> usize {
    ["controller", "time", "key", "repository", "agent", "source", "channel"]
        .iter()
        .position(|known| *known == area)
        .unwrap_or(9)
}

async fn examine_repositories(core: &Arc<Core>, findings: &mut Findings) -> Result<(), Failure> {
    let current = core.definitions.current();
    if current.fleet.repositories.is_empty() {
        let remedy =
            "holdfast repo add main --url file:///var/lib/holdfast/repo --key-file /etc/holdfast/main.key";
        findings.add("repository", "", "not_set", "none is declared".to_owned(), remedy.to_owned());
    }
    for (name, spec) in &current.fleet.repositories {
        let opened = core.repositories.get(name, spec).await;
        let repository = match opened {
            Ok(repository) => repository,
            Err(failure) => {
                let remedy = failure.next.first().cloned().unwrap_or_else(|| "holdfast repo list".to_owned());
                findings.add("repository", name.as_str(), "failed", failure.to_string(), remedy);
                continue;
            }
        };
        match repository.store().probe().await {
            Err(error) => findings.add(
                "repository",
                name.as_str(),
                "failed",
                format!("the storage does not answer: {error}"),
                String::new(),
            ),
            Ok(probe) if probe.free_bytes.is_some_and(|free| free < FREE_BYTES_MIN) => findings.add(
                "repository",
                name.as_str(),
                "warning",
                format!("{} free", size(probe.free_bytes.unwrap_or(0))),
                format!("holdfast repo usage {name}"),
            ),
            Ok(_) => {
                let (packs, blobs) = repository.counts();
                let message =
                    format!("open, {} with {}", counted(packs as u64, "pack"), counted(blobs, "blob"));
                findings.add("repository", name.as_str(), "ok", message, String::new());
            }
        }
        if core.records.last_clean_check(name).await?.is_none() {
            findings.add(
                "repository",
                name.as_str(),
                "not_set",
                "was never checked".to_owned(),
                format!("holdfast repo check {name}"),
            );
        }
    }
    Ok(())
}

async fn examine_agents(core: &Arc<Core>, findings: &mut Findings) -> Result<(), Failure> {
    let sessions = core.sessions.states();
    for agent in core.agents.all().await?.into_iter().filter(|agent| agent.revoked_at.is_none()) {
        let name = agent.name.as_str();
        let Some(session) = sessions.get(&agent.name) else {
            let since = agent
                .last_session_at
                .map_or("it never connected".to_owned(), |at| format!("last session {at}"));
            let remedy = "systemctl status holdfast-agent   # on its host".to_owned();
            findings.add("agent", name, "failed", format!("not connected; {since}"), remedy);
            continue;
        };
        if session.clock_skew_millis.abs() > CLOCK_SKEW_MILLIS_MAX {
            let message = format!("its clock is {} ms off", session.clock_skew_millis);
            findings.add("time", name, "warning", message, "timedatectl status   # on its host".to_owned());
        }
        if agent.version != crate::VERSION {
            let message = format!("version {}, the controller has {}", agent.version, crate::VERSION);
            findings.add("agent", name, "warning", message, String::new());
        } else {
            findings.add("agent", name, "ok", format!("connected, session {}", session.epoch), String::new());
        }
    }
    Ok(())
}

/// Databases that the agents see and nobody protects.
fn examine_hosts(core: &Core, findings: &mut Findings) {
    let numbers = core.discovery.unprotected(&core.definitions.current().fleet);
    let found = counted(numbers.found as u64, "database");
    if numbers.unprotected > 0 {
        let message = format!("{} of {found} seen on hosts in no policy", numbers.unprotected);
        findings.add("source", "", "warning", message, "holdfast source discover".to_owned());
    } else if numbers.found > 0 {
        findings.add("source", "", "ok", format!("{found} seen on hosts, all under a policy"), String::new());
    }
}

/// Who is not told of a failure thinks that there is none.
fn examine_channels(core: &Core, findings: &mut Findings) {
    let current = core.definitions.current();
    if !current.fleet.channels.values().any(holdfast_model::alert::Channel::takes_messages) {
        let message = "none is declared: nobody is told when something is wrong".to_owned();
        findings.add("channel", "", "not_set", message, "holdfast notify list".to_owned());
    }
    let states = core.outbox.states();
    for name in current.fleet.channels.keys() {
        let failing = states.get(name).filter(|state| state.failing_since.is_some());
        match failing {
            Some(state) => {
                let error = state.last_error.as_deref().unwrap_or("no answer");
                let message = format!("does not deliver: {error}");
                findings.add(
                    "channel",
                    name.as_str(),
                    "failed",
                    message,
                    format!("holdfast notify test {name}"),
                );
            }
            None => findings.add("channel", name.as_str(), "ok", "delivers".to_owned(), String::new()),
        }
    }
}

async fn examine_sources(core: &Arc<Core>, findings: &mut Findings) -> Result<(), Failure> {
    let current = core.definitions.current();
    if current.fleet.sources.is_empty() {
        let remedy =
            "holdfast source add NAME --engine sqlite --agent AGENT --path /srv/app/app.db".to_owned();
        findings.add("source", "", "not_set", "none is declared".to_owned(), remedy);
    }
    for (name, source) in &current.fleet.sources {
        let object = name.as_str();
        if let Err(failure) = core.agents.get(&source.agent).await {
            let remedy = format!("holdfast agent enroll {}", source.agent);
            findings.add("source", object, "failed", failure.to_string(), remedy);
            continue;
        }
        if let Err(failure) = core.definitions.repositories_of(name, source) {
            findings.add("source", object, "failed", failure.to_string(), "holdfast repo list".to_owned());
            continue;
        }
        match core.catalog.latest(name, None, |record| record.proof.damage.is_none()).await? {
            None => {
                let remedy = format!("holdfast backup run {name}");
                findings.add("source", object, "failed", "has no snapshot to restore".to_owned(), remedy);
            }
            Some(record) if record.proof.restored_at.is_none() => {
                let message = format!("newest snapshot {} was never restored", record.id.short());
                findings.add("source", object, "not_set", message, format!("holdfast restore run {name}"));
            }
            Some(record) => {
                let message = format!("newest snapshot {} was restored and agreed", record.id.short());
                findings.add("source", object, "ok", message, String::new());
            }
        }
    }
    Ok(())
}
