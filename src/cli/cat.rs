//! `strata cat`.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use super::{Failures, Outcome, TreeArgs, output, stdout, text};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::tree::path::{Follow, resolve};
use crate::tree::{FileKind, FileTree, NodeId};

/// Options of `strata cat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata cat disk.qcow2 /etc/fstab")]
pub(super) struct Args {
    /// What to open
    #[arg(value_name = "REF")]
    reference: OsString,

    /// Files in it, written one after the other
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<OsString>,

    #[command(flatten)]
    tree: TreeArgs,
}

/// Bytes moved at once.
const CHUNK: usize = 1 << 20;

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let tree = args.tree.tree(&args.reference)?;
    // Pieces are large already: no other buffer in between.
    let mut out = stdout()?.into_parts().0;
    let mut buffer = vec![0; CHUNK];
    let mut failures = Failures::default();
    for path in &args.paths {
        let path = path.as_bytes();
        // A path that leads nowhere is told by the place on the way where that was so.
        let done = match resolve(&*tree, path, Follow::Always) {
            Ok(node) => copy(&*tree, node, &mut out, &mut buffer)?
                .within(|| text::printable(path).into_owned()),
            Err(error) => Err(tree.explain(error)),
        };
        if let Err(error) = done {
            failures.tell(&error);
        }
    }
    Ok(failures.outcome())
}

/// The outer error is one of the output and ends everything, the inner one concerns this file.
fn copy(
    tree: &dyn FileTree,
    node: NodeId,
    out: &mut dyn Write,
    buffer: &mut [u8],
) -> Result<Result<()>> {
    let attr = match tree.attr(node) {
        Ok(attr) => attr,
        Err(error) => return Ok(Err(error)),
    };
    match attr.kind {
        FileKind::Regular => {}
        FileKind::Directory => return Ok(Err(Error::new(Kind::IsADirectory, "is a folder"))),
        _ => return Ok(Err(Error::new(Kind::Unsupported, "is no regular file"))),
    }
    let mut at = 0;
    while at < attr.size {
        let count = match tree.read_at(attr.node, at, buffer).within(|| format!("at byte {at}")) {
            Ok(0) => return Ok(Err(Error::new(Kind::Corrupt, format!("ends at byte {at}")))),
            Ok(count) => count,
            Err(error) => return Ok(Err(error)),
        };
        output(out.write_all(buffer.get(..count).unwrap_or_default()))?;
        at += count as u64;
    }
    Ok(Ok(()))
}
