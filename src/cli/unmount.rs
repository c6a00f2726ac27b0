//! `strata unmount`.

use std::path::PathBuf;

use crate::error::Result;
use crate::mount::{self, Unmount};

/// Options of `strata unmount`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder it is mounted on
    dir: PathBuf,

    /// Take it away now even if it is in use; it ends when its last user is gone
    #[arg(short, long)]
    lazy: bool,

    /// Cut it off first, for a server that does not answer: what waits for it fails
    #[arg(short, long)]
    force: bool,
}

/// Unmounts, and waits until the server has closed its files.
///
/// # Errors
/// What [`mount::unmount`] returns.
pub(super) fn run(args: &Args) -> Result<()> {
    mount::unmount(&args.dir, Unmount { lazy: args.lazy, force: args.force })
}
