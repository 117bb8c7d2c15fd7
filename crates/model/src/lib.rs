//! The domain of Holdfast, pure: no runtime, no IO, no clock.
//!
//! In reading order: [`ids`], [`error_code`], [`secret`], [`source`], [`manifest`], [`restore`].

pub mod error_code;
pub mod ids;
pub mod manifest;
pub mod restore;
pub mod secret;
pub mod source;

pub use error_code::{Category, ErrorCode, Failure, Retry};
