//! The wire contract: messages and services generated from `proto/holdfast/v1`, conversions to the domain, and the
//! one table of error code ↔ gRPC status.
//!
//! Definitions and run specifications travel as JSON documents of the model's own schema (one schema for files, CLI
//! and wire, see `docs/adr`); everything else is typed.

pub mod convert;
pub mod status;
pub mod views;

/// Version of the session protocol. 1: the first.
pub const PROTOCOL_VERSION: u32 = 1;

/// A point in time as messages carry it.
pub use prost_types::Timestamp as WireTimestamp;

/// The descriptor set, for reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast.v1.bin"));

/// Largest number of ids in one lookup.
pub const LOOKUP_IDS_MAX: usize = 4096;

/// Largest number of bytes in one message of a pack or an export.
pub const DATA_PART_BYTES_MAX: usize = 1 << 20;

/// Messages and services, version 1.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("holdfast.v1");
}
