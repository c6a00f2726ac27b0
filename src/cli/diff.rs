//! `strata diff`.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;

use super::bar::Bar;
use super::{Failures, Files, Outcome, TreeArgs, ls, output, stdout, tell, text};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::open::Reference;
use crate::open::view::View;
use crate::tree::difference::{Aspect, Aspects, Change, Progress, Range, Side, compare, ranges};
use crate::tree::path::{Follow, Resolved, locate};
use crate::tree::{Attr, FileKind, FileTree};

/// Options of `strata diff`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "strata diff [OPTIONS] A B [PATH]...\n       \
                      strata diff [OPTIONS] --cow PATH REF [PATH]...",
    after_help = "Example: strata diff disk.qcow2::before-upgrade disk.qcow2 /etc"
)]
pub(super) struct Args {
    /// What it was
    #[arg(value_name = "A")]
    before: OsString,

    /// What it became, and files and folders to compare [default: /]
    #[arg(value_name = "B [PATH]...")]
    rest: Vec<OsString>,

    /// Leave out what differs in nothing else than these: type, contents, size, target, device,
    /// mode, owner, times, xattrs
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = aspect_parser())]
    #[arg(hide_possible_values = true)]
    ignore: Vec<Aspect>,

    /// Tell the ranges of the disk that are stored anew, a line each: offset and length in bytes
    ///
    /// Nothing of them is read: what was written again with the same bytes is told, too.
    #[arg(long, conflicts_with_all = ["ignore", "view"])]
    blocks: bool,

    /// Exit with 1 if anything differs, 0 if nothing does and 2 if that cannot be told
    #[arg(long)]
    exit_code: bool,

    /// One JSON object a line for each difference (docs/json.md)
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    tree: TreeArgs,
}

fn aspect_parser() -> impl TypedValueParser<Value = Aspect> {
    PossibleValuesParser::new(Aspect::ALL.map(Aspect::name)).try_map(|name| {
        let found = Aspect::ALL.into_iter().find(|aspect| aspect.name() == name);
        found.ok_or_else(|| Error::new(Kind::Usage, format!("no aspect \"{name}\"")))
    })
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let mut failures = Failures::default();
    let done = if args.blocks { blocks(args) } else { files(args, &mut failures) };
    match (done, failures.any) {
        (Ok(_), true) if args.exit_code => Ok(Outcome::Trouble),
        (Ok(_), true) => Ok(Outcome::Partly),
        (Ok(differs), false) => {
            Ok(if differs && args.exit_code { Outcome::Partly } else { Outcome::Done })
        }
        (Err(error), _) if args.exit_code && !super::is_broken_pipe(&error) => {
            tell(&error);
            Ok(Outcome::Trouble)
        }
        (Err(error), _) => Err(error),
    }
}

impl Args {
    /// Both sides, and the paths to compare.
    fn sides(&self, view: View) -> Result<(Files, Files, &[OsString])> {
        let opener = self.tree.open.opener();
        let (after, paths): (&OsStr, _) = if self.tree.cow.is_some() {
            (&self.before, self.rest.as_slice())
        } else {
            let (after, paths) = self.rest.split_first().ok_or_else(|| {
                Error::new(Kind::Usage, "one reference, and nothing to compare it with")
                    .with_hint("strata diff A B, or strata diff --cow PATH REF")
            })?;
            (after, paths)
        };
        let before = self.tree.files(&opener, &self.before, view, false)?;
        let after = self.tree.files(&opener, after, view, true)?;
        Ok((before, after, paths))
    }
}

/// Tells which files differ. Whether any did.
fn files(args: &Args, failures: &mut Failures) -> Result<bool> {
    let (before, after, paths) = args.sides(args.tree.view)?;
    let root = [OsString::from("/")];
    let paths = if paths.is_empty() { root.as_slice() } else { paths };
    let mut telling = Telling {
        out: stdout()?,
        json: args.json,
        escape: io::stdout().is_terminal(),
        trees: [&*before, &*after],
        any: false,
    };
    let ignored: Aspects = args.ignore.iter().copied().collect();
    let progress = Progress::default();
    // Lines that come on a terminal are progress enough.
    let bar = Bar::new(io::stdout().is_terminal(), None);
    std::thread::scope(|scope| {
        bar.show(scope, || {
            let files = progress.files.load(Ordering::Relaxed);
            let told = format!("{} compared", text::count(files, "file", "files"));
            (progress.bytes.load(Ordering::Relaxed), told)
        });
        let done = paths.iter().try_for_each(|path| {
            let path = path.as_bytes();
            let (path, nodes) = place(&before, &after, path)?;
            let [old, new] = nodes.map(|found| found.map(|found| found.node));
            let sides = (Side { tree: &*before, node: old }, Side { tree: &*after, node: new });
            let told = &mut telling;
            compare(
                sides,
                &path,
                ignored,
                &progress,
                &mut |change| told.change(change),
                &mut |path, error| {
                    let error = error.within(text::printable(path).into_owned());
                    bar.suspend(|| failures.tell(&error));
                },
            )
        });
        bar.finish();
        done
    })?;
    output(telling.out.flush())?;
    Ok(telling.any)
}

/// What `path` is in both trees, and how it is called. It has to be in one of them.
fn place(before: &Files, after: &Files, path: &[u8]) -> Result<(Vec<u8>, [Option<Resolved>; 2])> {
    let found = |files: &Files| match locate(&**files, path, Follow::ExceptLast) {
        Ok(found) => Ok(Ok(found)),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::NotADirectory) => {
            // Where there are no files to be read, that is no difference of the files.
            if files.no_files.is_some() { Err(files.explain(error)) } else { Ok(Err(error)) }
        }
        Err(error) => Err(error),
    };
    match (found(before)?, found(after)?) {
        (Err(error), Err(_)) => Err(error),
        (before, after) => {
            let (before, after) = (before.ok(), after.ok());
            let path = after.as_ref().or(before.as_ref()).map(|found| found.path.clone());
            Ok((path.unwrap_or_default(), [before, after]))
        }
    }
}

struct Telling<'a> {
    out: io::BufWriter<std::fs::File>,
    json: bool,
    escape: bool,
    trees: [&'a dyn FileTree; 2],
    any: bool,
}

impl Telling<'_> {
    fn change(&mut self, change: &Change) -> Result<()> {
        self.any = true;
        let kind = match (&change.before, &change.after) {
            (None, _) => Status::Added,
            (_, None) => Status::Removed,
            _ if change.aspects.contains(Aspect::Type) => Status::Type,
            _ => Status::Modified,
        };
        if self.json {
            let [before, after] = self.trees;
            let line = Line {
                change: kind.name(),
                path: String::from_utf8_lossy(&change.path),
                path_hex: std::str::from_utf8(&change.path)
                    .is_err()
                    .then(|| text::hex(&change.path)),
                aspects: change.aspects.iter().map(Aspect::name).collect(),
                before: change.before.map(|attr| File::new(before, &attr)).transpose()?,
                after: change.after.map(|attr| File::new(after, &attr)).transpose()?,
            };
            return json(&mut self.out, &line);
        }
        let path: Cow<'_, [u8]> = if self.escape {
            text::printable(&change.path).into_owned().into_bytes().into()
        } else {
            change.path.as_slice().into()
        };
        let mut line = vec![kind.letter(), b'\t'];
        line.extend_from_slice(&path);
        if kind == Status::Modified {
            line.push(b'\t');
            let aspects: Vec<_> = change.aspects.iter().map(Aspect::name).collect();
            line.extend_from_slice(aspects.join(",").as_bytes());
        }
        line.push(b'\n');
        output(self.out.write_all(&line))
    }
}

fn json(out: &mut impl Write, line: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(line).map_err(|error| Error::caused_by(Kind::Io, error))?;
    line.push(b'\n');
    output(out.write_all(&line))
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Added,
    Removed,
    Modified,
    Type,
}

impl Status {
    /// As `git diff --name-status` has it.
    fn letter(self) -> u8 {
        match self {
            Status::Added => b'A',
            Status::Removed => b'D',
            Status::Modified => b'M',
            Status::Type => b'T',
        }
    }

    fn name(self) -> &'static str {
        match self {
            Status::Added => "added",
            Status::Removed => "removed",
            Status::Modified => "modified",
            Status::Type => "type",
        }
    }
}

/// A difference in JSON; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    change: &'static str,
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    aspects: Vec<&'static str>,
    before: Option<File>,
    after: Option<File>,
}

/// One side of it.
#[derive(Debug, Serialize)]
struct File {
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<[u32; 2]>,
}

impl File {
    fn new(tree: &dyn FileTree, attr: &Attr) -> Result<Self> {
        let target = match attr.kind {
            FileKind::Symlink => {
                Some(String::from_utf8_lossy(&tree.read_link(attr.node)?).into_owned())
            }
            _ => None,
        };
        Ok(Self {
            kind: ls::kind(attr.kind),
            mode: format!("{:04o}", attr.mode),
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            modified: text::exact_time(attr.modified),
            target,
            device: match attr.kind {
                FileKind::CharDevice(device) | FileKind::BlockDevice(device) => {
                    Some([device.major, device.minor])
                }
                _ => None,
            },
        })
    }
}

/// Tells which ranges of the disk differ. Whether any did.
fn blocks(args: &Args) -> Result<bool> {
    let whole_disks = |paths: &[OsString]| match paths.first() {
        Some(path) => {
            let message = format!("--blocks is about whole disks, not about {}", path.display());
            Err(Error::new(Kind::Usage, message))
        }
        None => Ok(()),
    };
    let mut out = stdout()?;
    let mut any = false;
    let mut tell = |range: Range| {
        any = true;
        if args.json {
            return json(&mut out, &Block::from(range));
        }
        let zeros = if range.zeros { "\tzeros" } else { "" };
        output(writeln!(out, "{}\t{}{zeros}", range.offset, range.len))
    };
    if let (None, Some((after, paths))) = (&args.tree.cow, args.rest.split_first()) {
        let [old, new] = [&args.before, after].map(|text| Reference::from(text.as_os_str()));
        let opener = args.tree.open.opener();
        if let Some((store, old, new)) = opener.stored_pair(&old, &new)? {
            whole_disks(paths)?;
            store.differences(&old, &new, &mut |range, zeros| {
                tell(Range { offset: range.start, len: range.end - range.start, zeros })
            })?;
            output(out.flush())?;
            return Ok(any);
        }
    }
    let (before, after, paths) = args.sides(View::Disk)?;
    whole_disks(paths)?;
    let disk = |files: &Files| {
        let found = files.lookup(files.root(), b"disk.img")?;
        found.ok_or_else(|| Error::new(Kind::NotFound, "no disk"))
    };
    let (old, new) = (disk(&before)?, disk(&after)?);
    ranges((&*before, old), (&*after, new), &mut tell).within(|| "comparing the disks")?;
    output(out.flush())?;
    Ok(any)
}

/// A range in JSON; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
struct Block {
    offset: u64,
    length: u64,
    zeros: bool,
}

impl From<Range> for Block {
    fn from(range: Range) -> Self {
        Self { offset: range.offset, length: range.len, zeros: range.zeros }
    }
}
