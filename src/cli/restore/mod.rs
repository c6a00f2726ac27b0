//! `strata restore`.

mod contents;
pub mod engine;
mod folder;
mod metadata;
mod progress;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Outcome, TreeArgs, output, stdout, text};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::tree::path::{Follow, locate};
use crate::tree::{FileKind, FileTree};
use engine::{Item, Options, Progress, Summary};
use progress::Display;

/// Options of `strata restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata restore disk.qcow2 /etc /var/lib/app --to restored")]
pub(super) struct Args {
    /// What to open
    #[arg(value_name = "REF")]
    reference: OsString,

    /// Files and folders in it
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<OsString>,

    /// Folder to restore into; made if it is not there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,

    /// Replace files that are there and differ
    #[arg(long)]
    overwrite: bool,

    /// Also restore setuid and setgid bits, devices, and security.* and trusted.* attributes
    #[arg(long)]
    privileged: bool,

    /// Do not wait until everything is on stable storage
    #[arg(long)]
    no_sync: bool,

    /// Print neither progress nor summary
    #[arg(short, long)]
    quiet: bool,

    /// Print the summary as one JSON object (docs/json.md)
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    tree: TreeArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let tree = args.tree.tree(&args.reference)?;
    let items = items(&*tree, &args.paths).map_err(|error| tree.explain(error))?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second time, go at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .within(|| "cannot watch for signals")?;
    }
    let options = Options {
        privileged: args.privileged,
        overwrite: args.overwrite,
        sync: !args.no_sync,
        ..Options::default()
    };
    let began = Instant::now();
    let progress = Progress::default();
    let display = Display::new(args.quiet);
    let summary = std::thread::scope(|scope| {
        display.show(scope, &*tree, &items, &progress, &stop);
        let failed = |path: &[u8], error: &Error| display.failed(path, error);
        let done = engine::restore(&*tree, &items, &args.to, &options, &progress, &stop, &failed);
        display.finish();
        done
    })?;
    if args.json {
        let mut json =
            serde_json::to_vec(&summary).map_err(|error| Error::caused_by(Kind::Io, error))?;
        json.push(b'\n');
        let mut out = stdout()?;
        output(out.write_all(&json).and_then(|()| out.flush()))?;
    } else if !args.quiet {
        let mut told = tell(&summary, &args.to.display().to_string());
        if let Some(first) = told.first_mut() {
            let _ = write!(first, " in {:.1} s", began.elapsed().as_secs_f64());
        }
        let mut out = stdout()?;
        output(out.write_all((told.join("\n") + "\n").as_bytes()).and_then(|()| out.flush()))?;
    }
    if summary.interrupted && stop.load(Ordering::Relaxed) {
        return Err(
            Error::new(Kind::Io, "interrupted").with_hint("the same command finishes the rest")
        );
    }
    if summary.in_the_way > 0 {
        let files = text::count(summary.in_the_way, "file differs", "files differ");
        return Err(Error::new(Kind::Exists, format!("{files} from what is there already"))
            .with_hint("--overwrite replaces files that differ"));
    }
    Ok(if summary.is_complete() { Outcome::Done } else { Outcome::Partly })
}

/// What the paths name in the tree, and as what they are restored.
fn items(tree: &dyn FileTree, paths: &[OsString]) -> Result<Vec<Item>> {
    let mut items = Vec::with_capacity(paths.len());
    for path in paths {
        let path = path.as_bytes();
        let shown = || text::printable(path).into_owned();
        let found = locate(tree, path, Follow::ExceptLast)?;
        let attr = tree.attr(found.node).within(shown)?;
        let last = found.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let whole = last.is_empty() || path.ends_with(b"/");
        let name = (!whole || attr.kind != FileKind::Directory).then(|| last.to_vec());
        items.push(Item { node: found.node, name });
    }
    Ok(items)
}

/// What was done, a line for each kind of thing worth knowing.
fn tell(summary: &Summary, to: &str) -> Vec<String> {
    let mut made = vec![text::count(summary.files, "file", "files")];
    for (value, one, many) in [
        (summary.folders, "folder", "folders"),
        (summary.others, "link or special file", "links and special files"),
        (summary.hard_links, "hard link", "hard links"),
    ] {
        if value > 0 {
            made.push(text::count(value, one, many));
        }
    }
    let bytes = text::size(summary.bytes);
    let nothing = summary.files + summary.folders + summary.others + summary.hard_links == 0;
    let mut told = vec![match (nothing, summary.is_complete()) {
        (true, true) => format!("nothing was missing in {to}"),
        _ => format!("restored {} ({bytes}) to {to}", made.join(", ")),
    }];
    for (value, one, many, rest) in [
        (summary.already_there, "was", "were", "there already"),
        (summary.failed, "could", "could", "not be restored"),
    ] {
        if value > 0 {
            let verb = if value == 1 { one } else { many };
            told.push(format!("{} {verb} {rest}", text::number(value)));
        }
    }
    for (value, one, many, rest) in [
        (summary.owners_not_set, "owner", "owners", "not set: that takes root"),
        (summary.setuid_left_out, "file", "files", "without setuid or setgid (--privileged)"),
        (summary.devices_left_out, "device", "devices", "left out (--privileged)"),
        (summary.xattrs_left_out, "attribute", "attributes", "left out (--privileged)"),
        (summary.xattrs_refused, "attribute", "attributes", "not taken by the destination"),
    ] {
        if value > 0 {
            told.push(format!("{} {rest}", text::count(value, one, many)));
        }
    }
    told
}
