//! Metrics of agents.

use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::metrics::catalogue::Metric;

use super::{Families, flag, seconds};
use crate::core::Core;

/// Those that are enrolled; a revoked agent has no metrics.
pub(super) async fn collect(core: &Arc<Core>, families: &mut Families) -> Result<(), Failure> {
    let sessions = core.sessions.states();
    for agent in core.agents.all().await?.into_iter().filter(|agent| agent.revoked_at.is_none()) {
        let name = agent.name.as_str();
        let session = sessions.get(&agent.name);
        let info = [name, &agent.version, &agent.host.os, &agent.host.arch];
        families.set(Metric::AgentInfo, &info, 1.0);
        families.set(Metric::AgentUp, &[name], flag(session.is_some()));
        let seen = session.map(|session| session.last_seen_at).or(agent.last_session_at);
        families.set(Metric::AgentLastSeen, &[name], seconds(seen));
        if let Some(session) = session {
            let millis = i32::try_from(session.clock_skew_millis).unwrap_or(i32::MAX);
            families.set(Metric::AgentClockSkew, &[name], f64::from(millis) / 1000.0);
        }
        let ends = agent.certificates.last().map(|certificate| certificate.not_after);
        families.set(Metric::AgentCertificateExpiry, &[name], seconds(ends));
    }
    Ok(())
}
