//! The end-to-end tests, one module for each subject.

#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to hand an error to; helpers of tests are tests too"
)]

mod architecture;
mod control;
mod deploy;
mod documentation;
mod error_pages;
mod faults;
mod files;
mod harness;
mod kills;
mod postgres;
mod s3;
mod snapshots;
mod sqlite;
