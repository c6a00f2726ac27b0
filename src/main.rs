//! The `strata` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    stratafs::cli::main(std::env::args_os())
}
