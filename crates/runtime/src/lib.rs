//! What every process of the house needs, and nothing of what the house is about.
//!
//! * [`allocator`]: how much memory the allocator keeps;
//! * [`clock`]: time as an argument, and a clock that tests advance by hand;
//! * [`shutdown`] and [`task_group`]: who asked the process to stop, which tasks it owns, how long they may take;
//! * [`backoff`]: when to try again;
//! * [`telemetry`]: logs, traces and the trace context that crosses processes;
//! * [`tls`]: identities, configurations and the accept loop;
//! * [`durable_file`]: files that are whole and on the disk, or not there;
//! * [`fail_point`]: named places where a test makes the process fail;
//! * `test_port`, with the feature `test-util`: ports for the servers of tests.

pub mod allocator;
pub mod backoff;
pub mod clock;
pub mod durable_file;
pub mod fail_point;
pub mod shutdown;
pub mod task_group;
pub mod telemetry;
#[cfg(feature = "test-util")]
pub mod test_port;
pub mod tls;

pub use backoff::{Backoff, BackoffPolicy};
pub use clock::{Clock, ManualClock, SharedClock, SystemClock};
pub use shutdown::{Ending, Shutdown, StopCause};
pub use task_group::{OnEnd, Task, TaskGroup};
