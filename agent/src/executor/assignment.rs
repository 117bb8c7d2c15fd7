//! An assignment, as it came from the controller and was understood.

use std::time::Duration;

use holdfast_model::Failure;
use holdfast_model::ids::{Attempt, RunId};
use holdfast_model::manifest::Manifest;
use holdfast_model::policy::Pace;
use holdfast_model::run::RunSpec;
use holdfast_model::source::Source;
use holdfast_proto::convert::{ConvertError, from_document, parse};
use holdfast_proto::v1;

/// A run to be done here.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Which run.
    pub run: RunId,
    /// Which attempt.
    pub attempt: Attempt,
    /// What to do.
    pub spec: RunSpec,
    /// The source it concerns.
    pub source: Source,
    /// What the engine knew when it captured what is to be restored.
    pub manifest: Option<Manifest>,
    /// W3C trace context of whoever asked for it; empty when there is none.
    pub traceparent: String,
    /// How long it may take by its policy.
    pub timeout: Option<Duration>,
    /// How fast it may send.
    pub pace: Option<Pace>,
    /// For how long from now on its log holds debug lines.
    pub debug: Duration,
}

/// An assignment that cannot be understood, and whose it is, so that this can be reported.
#[derive(Debug, Clone, PartialEq)]
pub struct Incomprehensible {
    /// Which run.
    pub run: RunId,
    /// Which attempt.
    pub attempt: Attempt,
    /// What is wrong with it.
    pub failure: Failure,
}

impl Assignment {
    /// Reads an assignment.
    ///
    /// # Errors
    /// `Incomprehensible` when its documents are not of this version's schema; a [`ConvertError`] when not even the
    /// run can be told.
    pub fn read(assign: &v1::Assign) -> Result<Result<Self, Incomprehensible>, ConvertError> {
        let run = parse("run_id", &assign.run_id)?;
        let attempt = Attempt(assign.attempt);
        let documents = || -> Result<_, ConvertError> {
            let spec = from_document("spec_json", &assign.spec_json)?;
            let source = from_document("source_json", &assign.source_json)?;
            let manifest = match assign.manifest_json.as_str() {
                "" => None,
                text => Some(from_document("manifest_json", text)?),
            };
            let pace = match assign.pace_json.as_str() {
                "" => None,
                text => Some(from_document("pace_json", text)?),
            };
            Ok((spec, source, manifest, pace))
        };
        Ok(match documents() {
            Ok((spec, source, manifest, pace)) => Ok(Self {
                run,
                attempt,
                spec,
                source,
                manifest,
                traceparent: assign.traceparent.clone(),
                timeout: (assign.timeout_seconds > 0)
                    .then(|| Duration::from_secs(u64::from(assign.timeout_seconds))),
                pace,
                debug: Duration::from_secs(u64::from(assign.debug_seconds)),
            }),
            Err(error) => Err(Incomprehensible { run, attempt, failure: error.into() }),
        })
    }
}
