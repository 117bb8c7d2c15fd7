//! The `holdfast` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast::run(std::env::args_os()).into()
}
