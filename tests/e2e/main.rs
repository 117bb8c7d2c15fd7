//! The end-to-end tests, one module for each subject.

#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to hand an error to; helpers of tests are tests too"
)]

mod alerts;
mod architecture;
mod clocks;
mod control;
mod copies;
mod debug_logging;
mod deploy;
mod discovery;
mod documentation;
mod dry_runs;
mod error_pages;
mod faults;
mod files;
mod gitops;
mod harness;
mod index;
mod kill_hooks;
mod kill_points;
mod kill_prunes;
mod kill_restores;
mod kills;
mod metrics;
mod monitoring;
mod other_programs;
mod partitions;
mod policies;
mod postgres;
mod prunes;
mod recover;
mod reload;
mod reports;
mod rest;
mod retention;
mod s3;
mod schedules;
mod secrets;
mod snapshots;
mod sqlite;
mod tracing;
mod unattended;
mod verification;
