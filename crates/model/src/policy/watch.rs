//! What of the data itself is watched.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Count, Percent, Span};

/// How much each snapshot may differ from the one before it without a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// Change of the number of rows of a table.
    pub rows: WatchLimits,
    /// Change of the size of the source.
    pub size: WatchLimits,
    /// Share of the source that had to be stored, compressed, above which it looks rewritten as a whole.
    pub rewrite: Percent,
    /// Nothing is said of tables with fewer rows than this, before and now.
    pub at_least_rows: Count,
    /// Tables with limits of their own, or none: `TABLE` or `DATABASE.TABLE`, as `backup show` names them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, TableWatch>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            rows: WatchLimits { warning: Percent::new(10), critical: Percent::new(25) },
            size: WatchLimits { warning: Percent::new(30), critical: Percent::new(60) },
            rewrite: Percent::new(60),
            at_least_rows: Count::new(100),
            tables: BTreeMap::new(),
        }
    }
}

/// Changes, either way, as shares of what was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchLimits {
    /// Above this it is worth a look.
    pub warning: Percent,
    /// Above this it is probably wrong.
    pub critical: Percent,
}

/// How often a source is asked whether it is well, and how slow its answers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthLimits {
    /// How often.
    pub every: Span,
    /// An answer that takes longer is worth a look.
    pub warning: Span,
    /// An answer that takes longer is probably wrong.
    pub critical: Span,
}

impl Default for HealthLimits {
    fn default() -> Self {
        Self { every: Span::from_mins(1), warning: Span::from_secs(2), critical: Span::from_secs(5) }
    }
}

/// How one table is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TableWatch {
    /// With limits of its own.
    Limits(WatchLimits),
    /// Not at all: `ignore`.
    #[serde(with = "ignore")]
    #[schemars(with = "IgnoreWord")]
    Ignore,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum IgnoreWord {
    Ignore,
}

mod ignore {
    use super::IgnoreWord;
    use serde::{Deserialize as _, Serialize as _};

    pub(super) fn serialize<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
        IgnoreWord::Ignore.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
        IgnoreWord::deserialize(deserializer).map(|_| ())
    }
}
