//! `strata ls`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use jiff::tz::TimeZone;
use serde::Serialize;

use super::{Failures, Outcome, TreeArgs, output, stdout, text};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::tree::path::{Follow, resolve};
use crate::tree::{Attr, FileKind, FileTree, NodeId};

/// Options of `strata ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata ls -l disk.qcow2 /etc /var/log")]
pub(super) struct Args {
    /// What to open
    #[arg(value_name = "REF")]
    reference: OsString,

    /// Files and folders in it [default: /]
    #[arg(value_name = "PATH", default_value = "/", hide_default_value = true)]
    paths: Vec<OsString>,

    /// Tell mode, links, owner, group, size, time of modification and target
    #[arg(short, long)]
    long: bool,

    /// List the folders below, too
    #[arg(short = 'R', long)]
    recursive: bool,

    /// List folders themselves, not what is in them
    #[arg(short, long, conflicts_with = "recursive")]
    directory: bool,

    /// Tell owners by number, not by the names the image's /etc/passwd gives them
    #[arg(short = 'n', long)]
    numeric: bool,

    /// One JSON object a line for each file (docs/json.md)
    #[arg(long)]
    json: bool,

    /// Nothing: names that begin with a dot are always listed
    #[arg(short = 'a', long, hide = true)]
    all: bool,

    #[command(flatten)]
    tree: TreeArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let tree = args.tree.tree(&args.reference)?;
    let style = Style {
        form: match (args.json, args.long) {
            (true, _) => Form::Json,
            (false, true) => Form::Long,
            (false, false) => Form::Names,
        },
        recursive: args.recursive,
        directory: args.directory,
        numeric: args.numeric,
        escape: io::stdout().is_terminal(),
        zone: TimeZone::system(),
    };
    let paths: Vec<Vec<u8>> = args.paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    let mut failures = Failures::default();
    let mut out = stdout()?;
    list(&*tree, &paths, &style, &mut out, &mut |error| {
        failures.tell(&tree.explain(error));
    })?;
    output(out.flush())?;
    Ok(failures.outcome())
}

/// What a listing tells of each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Its name.
    Names,
    /// A line as `ls -l` has it.
    Long,
    /// A line of JSON.
    Json,
}

/// How a listing looks.
#[derive(Debug, Clone)]
pub struct Style {
    /// What is told of each file.
    pub form: Form,
    /// Go into the folders below.
    pub recursive: bool,
    /// Tell of a folder itself instead of what is in it.
    pub directory: bool,
    /// Owners as numbers.
    pub numeric: bool,
    /// Escape what a terminal would act on; otherwise names are written as they are.
    pub escape: bool,
    /// Where times are told for.
    pub zone: TimeZone,
}

/// Entries of a folder that are sorted at once. Beyond that, a folder is listed in several sorted
/// pieces, so that memory stays bounded.
const SORTED: usize = 1 << 20;

/// Lists `paths` of `tree`: files first, then folders. What concerns one file is told to `failed`
/// and the rest goes on.
///
/// # Errors
/// Those of `out`.
pub fn list(
    tree: &dyn FileTree,
    paths: &[Vec<u8>],
    style: &Style,
    out: &mut dyn Write,
    failed: &mut dyn FnMut(Error),
) -> Result<()> {
    let names = match (style.form, style.numeric) {
        (Form::Long, false) => Names::of(tree),
        _ => Names::default(),
    };
    // As `ls` does: a long listing is about the link, a plain one about what it leads to.
    let follow = match (style.form, style.directory) {
        (Form::Names, false) => Follow::Always,
        _ => Follow::ExceptLast,
    };
    let mut files = Vec::new();
    let mut folders = Vec::new();
    for path in paths {
        // A path that leads nowhere is told by the place on the way where that was so.
        let attr = |node| tree.attr(node).within(|| text::printable(path).into_owned());
        match resolve(tree, path, follow).and_then(attr) {
            Ok(attr) if attr.kind == FileKind::Directory && !style.directory => {
                folders.push((path.clone(), attr.node));
            }
            Ok(attr) => {
                files.push(Row { name: path.clone(), path: path.clone(), attr: Some(attr) })
            }
            Err(error) => failed(error),
        }
    }
    let mut listing = Listing { tree, style, names, out, failed, first: true };
    let titled = style.form != Form::Json && (style.recursive || paths.len() > 1);
    if !files.is_empty() {
        listing.first = false;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        listing.rows(&files)?;
    }
    folders.sort();
    folders.reverse();
    // Folders still to list, the next one last. None comes twice, or a damaged image would have
    // us go on for ever.
    let mut seen = HashSet::new();
    while let Some((path, node)) = folders.pop() {
        if style.recursive && !seen.insert(node) {
            let error = Error::new(Kind::Corrupt, "the folder is in the tree more than once");
            (listing.failed)(error.within(text::printable(&path).into_owned()));
            continue;
        }
        let from = folders.len();
        listing.folder(&path, node, titled, &mut folders)?;
        if let Some(below) = folders.get_mut(from..) {
            below.reverse();
        }
    }
    Ok(())
}

/// One line of a listing.
struct Row {
    name: Vec<u8>,
    path: Vec<u8>,
    attr: Option<Attr>,
}

struct Listing<'a> {
    tree: &'a dyn FileTree,
    style: &'a Style,
    names: Names,
    out: &'a mut dyn Write,
    failed: &'a mut dyn FnMut(Error),
    first: bool,
}

impl Listing<'_> {
    /// Lists one folder; those in it go to `below` if they are to be listed, too.
    fn folder(
        &mut self,
        path: &[u8],
        node: NodeId,
        titled: bool,
        below: &mut Vec<(Vec<u8>, NodeId)>,
    ) -> Result<()> {
        if titled {
            let gap = if self.first { "" } else { "\n" };
            let title = self.shown(path).into_owned();
            output(self.out.write_all(gap.as_bytes()))?;
            output(self.out.write_all(&title).and_then(|()| self.out.write_all(b":\n")))?;
        }
        self.first = false;
        let mut after = 0;
        loop {
            let mut entries: Vec<(Vec<u8>, NodeId)> = Vec::new();
            let mut more = false;
            let read = self.tree.read_dir(node, after, &mut |entry| {
                more = entries.len() >= SORTED;
                if !more {
                    entries.push((entry.name.to_vec(), entry.node));
                    after = entry.next;
                }
                !more
            });
            if let Err(error) = read {
                (self.failed)(error.within(text::printable(path).into_owned()));
                more = false;
            }
            entries.sort_unstable();
            let known = self.style.form != Form::Names || self.style.recursive;
            // Only a long listing has widths to find out, and so a reason to hold rows back.
            let piece = if self.style.form == Form::Long { 1 << 16 } else { 1 << 10 };
            let mut rows = Vec::with_capacity(entries.len().min(piece));
            for (name, node) in entries {
                let mut row = Row { path: join(path, &name), name, attr: None };
                if known {
                    match self.tree.attr(node) {
                        Ok(attr) => row.attr = Some(attr),
                        Err(error) => {
                            (self.failed)(error.within(text::printable(&row.path).into_owned()));
                        }
                    }
                }
                if self.style.recursive
                    && row.attr.is_some_and(|attr| attr.kind == FileKind::Directory)
                {
                    below.push((row.path.clone(), node));
                }
                rows.push(row);
                if rows.len() >= piece {
                    self.rows(&rows)?;
                    rows.clear();
                }
            }
            self.rows(&rows)?;
            if !more {
                return Ok(());
            }
        }
    }

    fn rows(&mut self, rows: &[Row]) -> Result<()> {
        match self.style.form {
            Form::Names => {
                for row in rows {
                    let name = self.shown(&row.name).into_owned();
                    output(self.out.write_all(&name).and_then(|()| self.out.write_all(b"\n")))?;
                }
                Ok(())
            }
            Form::Long => self.long(rows),
            Form::Json => rows.iter().try_for_each(|row| self.json(row)),
        }
    }

    fn long(&mut self, rows: &[Row]) -> Result<()> {
        let cells: Vec<[String; 6]> = rows
            .iter()
            .map(|row| match &row.attr {
                Some(attr) => [
                    mode(attr),
                    attr.links.to_string(),
                    self.names.user(attr.uid),
                    self.names.group(attr.gid),
                    match attr.kind {
                        FileKind::CharDevice(device) | FileKind::BlockDevice(device) => {
                            format!("{}, {}", device.major, device.minor)
                        }
                        _ => attr.size.to_string(),
                    },
                    text::local_time(attr.modified, &self.style.zone),
                ],
                None => ["??????????", "?", "?", "?", "?", "?"].map(String::from),
            })
            .collect();
        let lines = text::columns(&cells, [false, true, false, false, true, false], " ");
        for (row, line) in rows.iter().zip(lines) {
            let mut line = line.into_bytes();
            line.push(b' ');
            line.extend_from_slice(&self.shown(&row.name));
            if let Some(target) = self.target(row) {
                line.extend_from_slice(b" -> ");
                line.extend_from_slice(&self.shown(&target));
            }
            line.push(b'\n');
            output(self.out.write_all(&line))?;
        }
        Ok(())
    }

    fn json(&mut self, row: &Row) -> Result<()> {
        let target = self.target(row);
        let mut line = match &row.attr {
            Some(attr) => serde_json::to_vec(&Entry::new(row, attr, target.as_deref())),
            // It was told what is wrong with it.
            None => return Ok(()),
        }
        .map_err(|error| Error::caused_by(Kind::Io, error))?;
        line.push(b'\n');
        output(self.out.write_all(&line))
    }

    fn target(&mut self, row: &Row) -> Option<Vec<u8>> {
        let link = row.attr.filter(|attr| attr.kind == FileKind::Symlink)?;
        match self.tree.read_link(link.node) {
            Ok(target) => Some(target),
            Err(error) => {
                (self.failed)(error.within(text::printable(&row.path).into_owned()));
                None
            }
        }
    }

    fn shown<'n>(&self, name: &'n [u8]) -> Cow<'n, [u8]> {
        match self.style.escape {
            false => Cow::Borrowed(name),
            true => match text::printable(name) {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            },
        }
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.ends_with(b"/") { b"" } else { b"/" };
    [path, slash, name].concat()
}

/// One file in JSON; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    links: u32,
    size: u64,
    allocated: u64,
    node: u64,
    modified: String,
    accessed: String,
    changed: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<[u32; 2]>,
}

impl<'a> Entry<'a> {
    fn new(row: &'a Row, attr: &Attr, target: Option<&'a [u8]>) -> Self {
        let bytes = |bytes: &[u8]| std::str::from_utf8(bytes).is_err().then(|| text::hex(bytes));
        Self {
            path: String::from_utf8_lossy(&row.path),
            path_hex: bytes(&row.path),
            kind: kind(attr.kind),
            mode: format!("{:04o}", attr.mode),
            uid: attr.uid,
            gid: attr.gid,
            links: attr.links,
            size: attr.size,
            allocated: attr.blocks.saturating_mul(512),
            node: attr.node.0,
            modified: text::exact_time(attr.modified),
            accessed: text::exact_time(attr.accessed),
            changed: text::exact_time(attr.changed),
            created: attr.created.map(text::exact_time),
            target: target.map(String::from_utf8_lossy),
            target_hex: target.and_then(bytes),
            device: match attr.kind {
                FileKind::CharDevice(device) | FileKind::BlockDevice(device) => {
                    Some([device.major, device.minor])
                }
                _ => None,
            },
        }
    }
}

pub(super) fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "folder",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice(_) => "char-device",
        FileKind::BlockDevice(_) => "block-device",
    }
}

/// Type and permissions as `ls -l` has them: `drwxr-sr-t`.
fn mode(attr: &Attr) -> String {
    let mut text = String::with_capacity(10);
    text.push(match attr.kind {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice(_) => 'c',
        FileKind::BlockDevice(_) => 'b',
    });
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    for (shift, (bit, with, without)) in [6, 3, 0].into_iter().zip(special) {
        let bits = attr.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, attr.mode & bit != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => with,
            (false, true) => without,
        });
    }
    text
}

/// The names an image has for its owners.
#[derive(Debug, Default)]
struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Out of the image's own `/etc/passwd` and `/etc/group`. Without them, or where they make no
    /// sense, owners stay numbers.
    fn of(tree: &dyn FileTree) -> Self {
        Self { users: names(tree, b"/etc/passwd"), groups: names(tree, b"/etc/group") }
    }

    fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// Larger tables of names are not read.
const NAMES_MOST: u64 = 4 << 20;

fn names(tree: &dyn FileTree, path: &[u8]) -> HashMap<u32, String> {
    let read = || -> Result<Vec<u8>> {
        let attr = tree.attr(resolve(tree, path, Follow::Always)?)?;
        let len = match attr.kind {
            FileKind::Regular if attr.size <= NAMES_MOST => attr.size,
            _ => 0,
        };
        let mut contents = vec![0; usize::try_from(len).unwrap_or(0)];
        let mut filled = 0;
        while let Some(rest) = contents.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match tree.read_at(attr.node, filled as u64, rest)? {
                0 => break,
                count => filled += count,
            }
        }
        contents.truncate(filled);
        Ok(contents)
    };
    let contents = read().unwrap_or_default();
    let mut names = HashMap::new();
    for line in contents.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b':');
        let (name, id) = (fields.next(), fields.nth(1));
        let text = |field: Option<&[u8]>| std::str::from_utf8(field?).ok().map(String::from);
        // Only what a shell would take for a name: it goes to the terminal as it is.
        let plain = |name: &String| {
            (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if let (Some(name), Some(id)) = (text(name).filter(plain), text(id))
            && let Ok(id) = id.parse()
        {
            names.entry(id).or_insert(name);
        }
    }
    names
}
