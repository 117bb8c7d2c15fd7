//! Databases that were found on hosts.

use holdfast_proto::v1;
use serde::Serialize;

use super::filled;
use crate::output::text::plain;
use crate::output::{Column, Record, Tone};

/// A database that an agent sees.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FoundView {
    /// The agent on its host.
    pub agent: String,
    /// postgres, mariadb, redis or sqlite.
    pub kind: String,
    /// Where it is.
    pub place: String,
    /// The source that covers it.
    pub source: Option<String>,
    /// The policy of that source; null: nothing backs it up by itself.
    pub policy: Option<String>,
    /// A line of `sources:` in a fleet file that would protect it.
    pub definition: Option<String>,
}

impl From<v1::FoundDatabase> for FoundView {
    fn from(found: v1::FoundDatabase) -> Self {
        Self {
            agent: found.agent,
            kind: found.kind,
            place: found.place,
            source: filled(found.source),
            policy: filled(found.policy),
            definition: filled(found.definition),
        }
    }
}

impl FoundView {
    fn state(&self) -> String {
        match (&self.source, &self.policy) {
            (Some(source), Some(_)) => format!("covered by {source}"),
            (Some(source), None) => format!("in no policy: {source} has none"),
            (None, _) if self.definition.is_none() => "in no policy: there is no engine for it".to_owned(),
            (None, _) => "in no policy".to_owned(),
        }
    }
}

impl Record for FoundView {
    const KIND: &'static str = "FoundDatabase";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("AGENT", |found, _| found.agent.clone()),
            Column::<Self>::left("KIND", |found, _| found.kind.clone()),
            Column::<Self>::left("WHERE", |found, _| plain(&found.place)),
            Column::<Self>::left("STATE", |found, _| found.state())
                .toned(|found| if found.policy.is_some() { Tone::Good } else { Tone::Warning }),
            Column::<Self>::left("POLICY", |found, _| found.policy.clone().unwrap_or_default()).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.place.clone()
    }
}
