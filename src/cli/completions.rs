//! `strata completions`.

use std::io::Write;

use clap_complete::Shell;

use super::{Outcome, output, stdout};
use crate::error::Result;

/// Options of `strata completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata completions bash > /etc/bash_completion.d/strata")]
pub(super) struct Args {
    /// The shell to write for
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "strata", &mut script);
    let mut out = stdout()?;
    output(out.write_all(&script).and_then(|()| out.flush()))?;
    Ok(Outcome::Done)
}
