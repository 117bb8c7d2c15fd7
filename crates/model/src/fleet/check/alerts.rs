//! What is wrong with channels, routes, rules of alerts, and reports.

use crate::error_code::ErrorCode;
use crate::ids::ChannelName;

use super::super::{Fleet, FleetError, ROUTES};
use super::at_definition;

/// What is wrong with each by itself.
pub(super) fn definitions(fleet: &Fleet) -> Vec<FleetError> {
    let mut errors = Vec::new();
    let mut wrong = |path: String, message: String| {
        errors.push(at_definition(ErrorCode::FileInvalid, path, message));
    };
    for (name, routing) in &fleet.notifications {
        let path = format!("notifications.{name}");
        if name.as_str() != ROUTES {
            wrong(path.clone(), format!("there is no such part of notifications: {ROUTES} is one"));
        }
        for (index, route) in routing.routes.iter().enumerate() {
            if route.to.is_empty() || route.escalate.iter().any(|step| step.to.is_empty()) {
                wrong(path.clone(), format!("`to` of route {} is empty", index + 1));
            }
            if route.escalate.windows(2).any(|pair| pair[0].after >= pair[1].after) {
                let number = index + 1;
                wrong(path.clone(), format!("`escalate` of route {number} is not in the order of `after`"));
            }
        }
        if routing.silences.iter().any(|silence| silence.reason.trim().is_empty()) {
            wrong(format!("{path}.silences"), "a silence has no reason".to_owned());
        }
    }
    for (name, rule) in &fleet.alerts {
        for problem in rule.problems(name) {
            let key = if problem.key.is_empty() { String::new() } else { format!(".{}", problem.key) };
            wrong(format!("alerts.{name}{key}"), problem.message);
        }
    }
    for (name, report) in &fleet.reports {
        for (key, message) in report.problems() {
            wrong(format!("reports.{name}.{key}"), message);
        }
    }
    errors
}

/// Each channel that is named, with the place that names it.
fn named(fleet: &Fleet) -> Vec<(String, &ChannelName)> {
    let mut named = Vec::new();
    for (name, routing) in &fleet.notifications {
        for route in &routing.routes {
            let escalated = route.escalate.iter().flat_map(|step| &step.to);
            named.extend(route.to.iter().chain(escalated).map(|to| (format!("notifications.{name}"), to)));
        }
    }
    for (name, rule) in &fleet.alerts {
        named.extend(rule.to.iter().map(|to| (format!("alerts.{name}"), to)));
    }
    for (name, report) in &fleet.reports {
        named.extend(report.to.iter().map(|to| (format!("reports.{name}"), to)));
    }
    named
}

/// Channels that are named and do not exist, or take no messages.
pub(super) fn references(fleet: &Fleet, known: &Fleet) -> Vec<FleetError> {
    let problem = |name: &ChannelName| match fleet.channels.get(name).or_else(|| known.channels.get(name)) {
        None => Some(format!("`to` names channel {name}, which does not exist")),
        Some(channel) if !channel.takes_messages() => {
            Some(format!("`to` names channel {name}, which gives signs of life only"))
        }
        Some(_) => None,
    };
    let channels = named(fleet).into_iter().filter_map(|(path, name)| Some((path, problem(name)?)));
    let sources = fleet.reports.iter().filter_map(|(name, report)| {
        let source = report.source.as_ref()?;
        let is_known = fleet.sources.contains_key(source) || known.sources.contains_key(source);
        let message = format!("`source` names source {source}, which does not exist");
        (!is_known).then(|| (format!("reports.{name}"), message))
    });
    let wrong = |(path, message)| at_definition(ErrorCode::ReferenceUnknown, path, message);
    channels.chain(sources).map(wrong).collect()
}

/// Why a channel that is gone already can not be removed.
pub(super) fn user_of_channel(fleet: &Fleet, removed: &str) -> Option<String> {
    let (user, _) = named(fleet).into_iter().find(|(_, name)| name.as_str() == removed)?;
    Some(format!("channel {removed} can not be removed: {user} names it"))
}
