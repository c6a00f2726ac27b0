//! `strata man`.

use std::io::Write;
use std::path::PathBuf;

use clap_mangen::Man;

use super::{Outcome, output, stdout};
use crate::error::{Result, ResultExt};

/// Options of `strata man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata man --dir /usr/local/share/man/man1")]
pub(super) struct Args {
    /// Write strata.1 and a page for each command into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let mut command = super::command();
    command.build();
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        render(command, &mut page)?;
        let mut out = stdout()?;
        output(out.write_all(&page).and_then(|()| out.flush()))?;
        return Ok(Outcome::Done);
    };
    std::fs::create_dir_all(dir).within(|| dir.display().to_string())?;
    let subs = command.get_subcommands().filter(|sub| sub.get_name() != "help");
    for command in std::iter::once(&command).chain(subs) {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = dir.join(format!("{name}.1"));
        let mut page = Vec::new();
        render(command.clone(), &mut page)?;
        std::fs::write(&path, page).within(|| path.display().to_string())?;
    }
    Ok(Outcome::Done)
}

fn render(command: clap::Command, page: &mut Vec<u8>) -> Result<()> {
    let source = concat!("strata ", env!("CARGO_PKG_VERSION"));
    // No date: the same version makes the same pages.
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let man = Man::new(command).title(name).manual("strata manual").source(source).date("");
    output(man.render(page))
}
