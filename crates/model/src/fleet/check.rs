//! What is wrong with definitions beyond their syntax: one by one, and as they refer to each other.

use crate::error_code::ErrorCode;
use crate::ids::{CONTROLLER_SOURCE, PolicyName, RepositoryName, SourceName};
use crate::policy::{After, Policy, Rule};
use crate::source::Source;

use super::{Fleet, FleetError};

mod alerts;
mod places;

/// An error of a definition, by its path; [`super::locate`] finds the line.
fn at_definition(code: ErrorCode, path: String, message: String) -> FleetError {
    FleetError { code, file: path, position: None, message }
}

impl Fleet {
    pub(super) fn check_definitions(&self) -> Vec<FleetError> {
        let mut errors = Vec::new();
        let mut fail = |name: &RepositoryName, message: String| {
            errors.push(at_definition(ErrorCode::FileInvalid, format!("repositories.{name}"), message));
        };
        for (name, spec) in &self.repositories {
            if let Err(message) = places::check_url(&spec.url) {
                fail(name, message);
            }
            for secret in spec.secrets() {
                if let Some(message) = places::secret_problem(secret) {
                    fail(name, message);
                }
            }
            if !(1..=19).contains(&spec.compression_level) {
                fail(
                    name,
                    format!("`compression_level` is {}, 1 to 19 are possible", spec.compression_level),
                );
            }
        }
        for (name, spec) in &self.repositories {
            let clash =
                self.repositories.iter().find(|(other, their)| *other < name && places::overlap(spec, their));
            if let Some((other, _)) = clash {
                fail(name, format!("`url` lies at or within the place of repository {other}"));
            }
        }
        for (name, source) in &self.sources {
            errors.extend(places::problems(source).into_iter().map(|(key, message)| {
                at_definition(ErrorCode::FileInvalid, format!("sources.{name}.{key}"), message)
            }));
        }
        for (name, policy) in &self.policies {
            errors.extend(policy.problems().into_iter().map(|problem| {
                let key = if problem.key.is_empty() { String::new() } else { format!(".{}", problem.key) };
                at_definition(problem.code, format!("policies.{name}{key}"), problem.message)
            }));
        }
        errors.extend(alerts::definitions(self));
        errors
    }

    /// What definitions refer to and neither this fleet nor `known` has, and promises that a policy can not keep for
    /// one of its sources.
    pub fn check_references(&self, known: &Fleet) -> Vec<FleetError> {
        let mut errors = Vec::new();
        for name in self.sources.keys().filter(|name| name.as_str() == CONTROLLER_SOURCE) {
            let message = "is the name of the controller's own state: choose another".to_owned();
            errors.push(at_definition(ErrorCode::NameInvalid, format!("sources.{name}"), message));
        }
        for (name, spec) in &self.repositories {
            let mut others =
                known.repositories.iter().filter(|(other, _)| !self.repositories.contains_key(*other));
            if let Some((other, _)) = others.find(|(_, their)| places::overlap(spec, their)) {
                let message = format!("`url` lies at or within the place of repository {other}");
                errors.push(at_definition(ErrorCode::FileInvalid, format!("repositories.{name}"), message));
            }
        }
        let mut repository = |path: &str, key: &str, name: &RepositoryName| {
            if !self.repositories.contains_key(name) && !known.repositories.contains_key(name) {
                let message = format!("`{key}` names repository {name}, which does not exist");
                errors.push(at_definition(ErrorCode::ReferenceUnknown, path.to_owned(), message));
            }
        };
        for (name, policy) in &self.policies {
            let path = format!("policies.{name}");
            policy.to.iter().for_each(|to| repository(&path, "to", to));
            policy.copy_to.iter().for_each(|to| repository(&path, "copy_to", to));
        }
        for (name, source) in &self.sources {
            source.to.iter().for_each(|to| repository(&format!("sources.{name}"), "to", to));
        }
        for (name, policy) in &self.policies {
            errors.extend(self.followed_sources(known, name, policy));
        }
        for (name, source) in &self.sources {
            let Some(wanted) = &source.policy else { continue };
            let path = format!("sources.{name}");
            match self.policies.get(wanted).or_else(|| known.policies.get(wanted)) {
                None => {
                    let message = format!("`policy` names policy {wanted}, which does not exist");
                    errors.push(at_definition(ErrorCode::ReferenceUnknown, path, message));
                }
                Some(policy) => {
                    let messages = self.promises_to(known, name, source, wanted, policy);
                    errors.extend(messages.into_iter().map(|message| {
                        at_definition(ErrorCode::PromiseImpossible, format!("{path}.policy"), message)
                    }));
                }
            }
        }
        errors.extend(self.promises_to_known(known));
        errors.extend(alerts::references(self, known));
        errors
    }

    /// Promises of changed policies to sources that are not changed with them.
    fn promises_to_known(&self, known: &Fleet) -> Vec<FleetError> {
        let mut errors = Vec::new();
        for (name, source) in known.sources.iter().filter(|(name, _)| !self.sources.contains_key(*name)) {
            let Some(wanted) = &source.policy else { continue };
            let Some(policy) = self.policies.get(wanted) else { continue };
            errors.extend(self.promises_to(known, name, source, wanted, policy).into_iter().map(|message| {
                let path = format!("policies.{wanted}");
                at_definition(ErrorCode::PromiseImpossible, path, format!("for source {name}, {message}"))
            }));
        }
        errors
    }

    /// Why a definition, gone already, can not be removed: somebody still refers to it.
    pub fn user_of(&self, path: &str) -> Option<String> {
        let (kind, removed) = path.split_once('.')?;
        let follows = |policy: &Policy| {
            policy.schedule.by_type().any(|(_, when)| match &when.rule {
                Rule::After(After::Source(source)) => source.as_str() == removed,
                _ => false,
            })
        };
        let names = |list: &[RepositoryName]| list.iter().any(|name| name.as_str() == removed);
        let mut sources = self.sources.iter();
        let mut policies = self.policies.iter();
        match kind {
            "channels" => alerts::user_of_channel(self, removed),
            "repositories" => sources
                .find(|(_, source)| names(&source.to))
                .map(|(source, _)| {
                    format!("repository {removed} can not be removed: source {source} is backed up to it")
                })
                .or_else(|| {
                    policies.find(|(_, policy)| names(&policy.to) || names(&policy.copy_to)).map(
                        |(policy, _)| {
                            format!("repository {removed} can not be removed: policy {policy} names it")
                        },
                    )
                }),
            "policies" => sources
                .find(|(_, source)| source.policy.as_ref().is_some_and(|policy| policy.as_str() == removed))
                .map(|(source, _)| {
                    format!("policy {removed} can not be removed: source {source} is under it")
                }),
            "sources" => policies.find(|(_, policy)| follows(policy)).map(|(policy, _)| {
                format!("source {removed} can not be removed: policy {policy} follows it")
            }),
            _ => None,
        }
    }

    /// Sources that rules of a policy follow and that do not exist.
    fn followed_sources(&self, known: &Fleet, name: &PolicyName, policy: &Policy) -> Vec<FleetError> {
        let followed = policy.schedule.by_type().filter_map(|(snapshot_type, when)| match &when.rule {
            Rule::After(After::Source(source)) => Some((snapshot_type, source)),
            _ => None,
        });
        followed
            .filter(|(_, source)| !self.sources.contains_key(source) && !known.sources.contains_key(source))
            .map(|(snapshot_type, source)| {
                let path = format!("policies.{name}.schedule.{snapshot_type}");
                let message = format!("`after` names source {source}, which does not exist");
                at_definition(ErrorCode::ReferenceUnknown, path, message)
            })
            .collect()
    }

    /// What a policy promises and can not keep for this source.
    fn promises_to(
        &self,
        known: &Fleet,
        name: &SourceName,
        source: &Source,
        policy_name: &PolicyName,
        policy: &Policy,
    ) -> Vec<String> {
        let mut messages = Vec::new();
        let engine = source.engine.kind();
        if let Some(rpo) = policy.objectives.rpo
            && policy.schedule.log.is_some()
            && !engine.archives_log()
            && let Some(worst) = policy.worst_loss(false)
            && worst > rpo
        {
            messages.push(format!(
                "policy {policy_name} promises to lose at most {rpo}, but the log of {engine} is not archived by this \
                 version and backups leave up to {worst}: back up at least every {rpo}, or promise {worst}"
            ));
        }
        if !source.to.is_empty()
            && let Some(message) = policy.copies_problem(&source.to)
        {
            messages.push(format!("policy {policy_name} {message}"));
        }
        if self.waits_for_itself(known, name) {
            messages.push(format!("policy {policy_name} makes it follow itself: it would never begin"));
        }
        messages
    }

    /// Whether all rules of a source follow sources that, in the end, follow it.
    fn waits_for_itself(&self, known: &Fleet, name: &SourceName) -> bool {
        let follows = |name: &SourceName| -> Vec<SourceName> {
            let source = self.sources.get(name).or_else(|| known.sources.get(name));
            let policy = source.and_then(|source| source.policy.as_ref());
            let policy =
                policy.and_then(|policy| self.policies.get(policy).or_else(|| known.policies.get(policy)));
            let Some(policy) = policy else { return Vec::new() };
            let mut followed = Vec::new();
            for (_, when) in policy.schedule.by_type() {
                match &when.rule {
                    Rule::After(After::Source(source)) => followed.push(source.clone()),
                    Rule::After(After::Type(_)) => {}
                    // It begins by the clock, whatever else it waits for.
                    Rule::Cron(_) | Rule::Every(_) => return Vec::new(),
                }
            }
            followed
        };
        let mut seen = std::collections::BTreeSet::new();
        let mut open = follows(name);
        while let Some(next) = open.pop() {
            if next == *name {
                return true;
            }
            if seen.insert(next.clone()) {
                open.extend(follows(&next));
            }
        }
        false
    }
}
