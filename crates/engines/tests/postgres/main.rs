//! The PostgreSQL engine against real servers and real client tools.

#![expect(clippy::unwrap_used, reason = "what a test cannot do fails it")]

mod faults;
mod probe;
mod promote;
mod restore;
mod round_trip;
mod support;
