//! The agent: the process beside the sources that moves the bytes and decides nothing about policy.
//!
//! ```text
//!  session ──assign──▶ executor ──▶ run ──▶ engine ──entries──▶ pipeline ──▶ repository writer ──▶ data plane
//!     ▲                    │                                                                        │
//!     └───── outbox ◀──────┴── facts: started, log, finished, failed              packs, lookups ───┘
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`agent`] | how all of it is put together, started and stopped |
//! | [`config`], [`allow_list`], [`reload`] | what this host allows, whatever the controller asks for |
//! | [`enroll`], [`identity`], [`certificate_renewal`], [`dial`] | who the agent is, and the way to the controller |
//! | [`session`], [`inquiry`], [`discovery`](self) | the live stream: orders, questions, signs of life |
//! | [`outbox`], [`journal`], [`recovery`](self) | what survives a crash |
//! | [`executor`] | slots, cancellation, deadlines, the end of a run |
//! | [`run`] | one file for each kind of run |
//! | [`pipeline`], [`contents`], [`data_plane`] | between engines, the repository format and the controller |
//! | [`tree_caches`] | what makes the next backup of the same files fast |
//! | [`hooks`], [`secrets`], [`run_log`], [`progress_reporter`] | what runs use |

pub mod address;
pub mod agent;
pub mod allow_list;
pub mod certificate_renewal;
pub mod config;
pub mod contents;
pub mod counters;
pub mod data_plane;
pub mod dial;
mod discovery;
mod disk;
pub mod engines;
pub mod enroll;
pub mod executor;
mod extraction;
pub mod hooks;
pub mod host;
pub mod identity;
pub mod inquiry;
pub mod journal;
pub mod outbox;
pub mod pacer;
pub mod pipeline;
pub mod progress_reporter;
mod recovery;
pub mod reload;
pub mod run;
pub mod run_log;
pub mod secrets;
pub mod session;
#[cfg(test)]
mod testing;
pub mod tree_caches;

pub use address::ControllerAddress;
pub use agent::{Agent, RunningAgent};
pub use config::AgentConfig;
pub use enroll::{EnrollOptions, TokenSource};
pub use session::SessionState;
