//! The domain of Holdfast, pure: no runtime, no IO, no clock.
//!
//! In reading order: [`ids`], [`error_code`], [`secret`], [`source`], [`repository_spec`], [`units`], [`policy`],
//! [`fleet`], [`manifest`], [`snapshot`], [`run`], [`run_state`], [`progress`], [`restore`], [`schedule`],
//! [`retention`], [`verification`], [`objectives`], [`metrics`], [`alert`], [`report`], [`discovery`], [`text`].

pub mod alert;
pub mod data_watch;
pub mod discovery;
pub mod error_code;
pub mod fleet;
pub mod health;
pub mod ids;
pub mod manifest;
pub mod metrics;
pub mod objectives;
pub mod policy;
pub mod progress;
#[cfg(test)]
mod random_numbers;
pub mod report;
pub mod repository_spec;
pub mod restore;
pub mod retention;
pub mod run;
pub mod run_state;
pub mod schedule;
pub mod secret;
pub mod snapshot;
pub mod source;
pub mod text;
pub mod units;
pub mod verification;

pub use error_code::{Category, ErrorCode, Failure, Retry};
