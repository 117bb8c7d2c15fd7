//! What tests of this package and of the whole need: real servers, made and removed by the test.
//!
//! Only with the feature `test-util`. What cannot be done panics with the reason: a test has nothing else to do then.

pub mod postgres_cluster;
