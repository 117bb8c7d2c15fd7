//! How much memory the allocator keeps for itself.
//!
//! The allocator of glibc gives threads arenas of their own, up to eight for each core, and each keeps what its threads
//! needed at their peaks: a controller that verified two million blobs took 359 MiB so, and 146 with two arenas, in the
//! same time (`docs/adr/0013-two-arenas.md`). How many there are is read from the environment when a process begins.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The variable that glibc reads.
const VARIABLE: &str = "MALLOC_ARENA_MAX";
/// Enough that threads seldom wait for each other: what takes long here is not the allocation.
const ARENAS: &str = "2";

/// Begins this process anew with few arenas, unless the environment says how many. To be called first, while there is
/// one thread. Returns when there is nothing to do or it cannot be done; then the process works, with more memory.
pub fn limit_arenas() {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) else { return };
    // It returns only when it failed, as when the file of the program was replaced this moment.
    let _refused = Command::new(program).arg0(name).args(arguments).env(VARIABLE, ARENAS).exec();
}
