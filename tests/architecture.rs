//! The rooms of the crate import one way only; this reads the sources and fails on a breach.
//!
//! The rules are section "Rooms" of `docs/architecture.md`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms it may import besides itself. Any other room is a breach.
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("wire", &["error"]),
    ("block", &["error", "wire"]),
    ("chain", &["error", "wire", "block"]),
    ("image", &["error", "wire", "block", "chain"]),
    ("store", &["error", "wire", "block", "chain"]),
    ("volume", &["error", "wire", "block"]),
    ("tree", &["error", "wire", "block"]),
    ("fs", &["error", "wire", "block", "tree"]),
    ("oci", &["error", "wire", "block", "tree"]),
    // `image` for the formats that an image may name.
    ("policy", &["error", "wire", "block", "chain", "image"]),
    // `block` for the extents that a tree's files are told in.
    ("mount", &["error", "wire", "block", "tree"]),
    ("open", EVERY_ROOM_BELOW_OPEN),
    ("cli", EVERY_ROOM),
    ("main", EVERY_ROOM),
    ("lib", EVERY_ROOM),
];

const EVERY_ROOM_BELOW_OPEN: &[&str] =
    &["error", "wire", "block", "chain", "image", "store", "volume", "tree", "fs", "oci", "policy"];

const EVERY_ROOM: &[&str] = &[
    "error", "wire", "block", "chain", "image", "store", "volume", "tree", "fs", "oci", "policy",
    "mount", "open", "cli",
];

/// Rooms of formats that must not know each other.
const ROOMS_OF_STRANGERS: &[&str] = &["image", "fs"];
/// What asks each format in turn whether a source is one of its own, and so knows them all.
const PROBE: &str = "probe";

/// The files that may hold `unsafe`, each of which does.
const UNSAFE: &[&str] = &["block/lock.rs", "cli/mount.rs", "oci/layer/map.rs"];

/// Lines beyond which a file is two.
const LINES: usize = 600;
/// Lines beyond which it may not stay one.
const LINES_AT_MOST: usize = 700;

/// One source file: its path below `src/`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The module the file is, as the parts of its path: `image/qcow2/mod.rs` is `image`, `qcow2`.
    fn module(&self) -> Vec<&str> {
        let path = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let path = path.strip_suffix("/mod").unwrap_or(path);
        path.split('/').collect()
    }

    /// The file without comments, each line with its number.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }

    /// Every path of the crate that the file names, as written from its root, with the line.
    fn imports(&self) -> Vec<(usize, Vec<String>)> {
        let mut found = vec![];
        let code: Vec<_> = self.lines().collect();
        for (index, &(number, line)) in code.iter().enumerate() {
            for (start, base) in self.roots(line) {
                // A braced list may go on over the next lines.
                let rest: String = std::iter::once(&line[start..])
                    .chain(code[index + 1..].iter().map(|(_, line)| *line))
                    .take(60)
                    .collect::<Vec<_>>()
                    .join(" ");
                for path in paths(&rest, 2) {
                    found.push((number, base.iter().cloned().chain(path).collect()));
                }
            }
        }
        found
    }

    /// Where in `line` paths of the crate begin: the offset behind the root, and what it stands for.
    fn roots(&self, line: &str) -> Vec<(usize, Vec<String>)> {
        let mut roots = vec![];
        for root in ["crate::", "stratafs::"] {
            for (at, _) in line.match_indices(root) {
                if !line[..at].ends_with(is_word) {
                    roots.push((at + root.len(), vec![]));
                }
            }
        }
        let mut from = 0;
        while let Some(at) = line[from..].find("super::").map(|at| at + from) {
            from = at + "super::".len();
            if line[..at].ends_with(is_word) {
                continue;
            }
            let mut base: Vec<_> = self.module().into_iter().map(String::from).collect();
            base.pop();
            while line[from..].starts_with("super::") {
                from += "super::".len();
                base.pop();
            }
            roots.push((from, base));
        }
        roots
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths at the start of `text`, a use tree, each cut to `depth` parts.
fn paths(text: &str, depth: usize) -> Vec<Vec<String>> {
    let text = text.trim_start();
    if depth == 0 {
        return vec![vec![]];
    }
    if let Some(list) = text.strip_prefix('{') {
        return members(list).into_iter().flat_map(|member| paths(member, depth)).collect();
    }
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return vec![vec![]];
    }
    let below = match rest.strip_prefix("::") {
        Some(rest) => paths(rest, depth - 1),
        None => vec![vec![]],
    };
    below.into_iter().map(|path| std::iter::once(name.to_owned()).chain(path).collect()).collect()
}

/// The members of a braced list, whose opening brace is gone.
fn members(list: &str) -> Vec<&str> {
    let (mut open, mut start, mut members) = (0, 0, vec![]);
    for (at, c) in list.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => {
                members.push(&list[start..at]);
                return members;
            }
            '}' => open -= 1,
            ',' if open == 0 => {
                members.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    members
}

/// Whether `word` stands in `line` as a word of its own.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
    })
}

/// What breaks the rules, one line each.
fn breaches(sources: &[Source], may_be_unsafe: &[&str]) -> Vec<String> {
    let mut breaches = vec![];
    let siblings: BTreeSet<(String, String)> = sources
        .iter()
        .filter_map(|source| match source.module()[..] {
            [room, name, ..] if name != "tests" => Some((room.into(), name.into())),
            _ => None,
        })
        .collect();

    for source in sources {
        let path = &source.path;
        let module = source.module();
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == module[0]) else {
            breaches.push(format!("{path}: no room has that name"));
            continue;
        };
        for (line, import) in source.imports() {
            let Some(room) = import.first().map(String::as_str) else { continue };
            // An item of lib.rs itself, such as a macro, is of no room.
            let is_room = ROOMS.iter().any(|(name, _)| *name == room);
            if is_room && room != module[0] && !allowed.contains(&room) {
                breaches.push(format!("{path}:{line}: {} may not import {room}", module[0]));
            }
            let (Some(&own), Some(other)) = (module.get(1), import.get(1)) else { continue };
            if room == module[0]
                && ROOMS_OF_STRANGERS.contains(&room)
                && own != "tests"
                && own != PROBE
                && own != other
                && siblings.contains(&(room.to_owned(), other.clone()))
            {
                breaches.push(format!("{path}:{line}: {room}/{own} may not know {room}/{other}"));
            }
        }
        let mut is_unsafe = false;
        for (number, line) in source.lines() {
            if module[0] != "mount" && has_word(line, "fuser") && line.contains("fuser::") {
                breaches.push(format!("{path}:{number}: only mount may name fuser"));
            }
            if has_word(line, "unsafe") {
                is_unsafe = true;
                if !may_be_unsafe.contains(&path.as_str()) {
                    breaches.push(format!("{path}:{number}: unsafe, and not in the list"));
                }
            }
        }
        if may_be_unsafe.contains(&path.as_str()) && !is_unsafe {
            breaches.push(format!("{path}: listed as unsafe, and is not"));
        }
        let lines = source.text.lines().count();
        if lines > LINES_AT_MOST {
            breaches.push(format!("{path}: {lines} lines; beyond {LINES} it is two files"));
        }
    }
    for listed in may_be_unsafe {
        if !sources.iter().any(|source| source.path == *listed) {
            breaches.push(format!("{listed}: listed as unsafe, and not there"));
        }
    }
    breaches
}

fn read_sources(dir: &Path, root: &Path, into: &mut Vec<Source>) {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_sources(&path, root, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            into.push(Source { path: name, text: fs::read_to_string(&path).unwrap() });
        }
    }
}

#[test]
fn rooms_import_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = vec![];
    read_sources(&root, &root, &mut sources);
    assert!(sources.len() > 15, "read only {} files", sources.len());
    for source in &sources {
        let lines = source.text.lines().count();
        if lines > LINES {
            eprintln!("{}: {lines} lines are asking to be two files", source.path);
        }
    }
    let breaches = breaches(&sources, UNSAFE);
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

/// What is wrong with `text` at `path`, next to a few files that are fine.
fn judge(path: &str, text: &str) -> Vec<String> {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let sources = [
        source("image/mod.rs", ""),
        source("image/qcow2/mod.rs", ""),
        source("image/raw.rs", ""),
        source("mount/table.rs", "// SAFETY: why\nunsafe { f() }\nuse fuser::Session;"),
        source(path, text),
    ];
    breaches(&sources, &["mount/table.rs"])
}

#[test]
fn finds_each_kind_of_breach() {
    let cases = [
        (
            "block/file.rs",
            "use crate::chain::Chain;",
            "block/file.rs:1: block may not import chain",
        ),
        (
            "block/file.rs",
            "\nlet x = crate::tree::root();",
            "block/file.rs:2: block may not import tree",
        ),
        ("error.rs", "use crate::wire;", "error.rs:1: error may not import wire"),
        (
            "image/vhd.rs",
            "use crate::{error::Kind, policy::Policy};",
            "image/vhd.rs:1: image may not import policy",
        ),
        (
            "fs/xfs.rs",
            "use crate::{\n    error::{Error, Kind},\n    volume,\n};",
            "fs/xfs.rs:1: fs may not import volume",
        ),
        ("open/mod.rs", "use crate::mount::mount;", "open/mod.rs:1: open may not import mount"),
        ("tree/view.rs", "use super::super::fs::open;", "tree/view.rs:1: tree may not import fs"),
        (
            "image/vhd.rs",
            "use crate::image::{Format, raw};",
            "image/vhd.rs:1: image/vhd may not know image/raw",
        ),
        (
            "image/vhd/bat.rs",
            "use super::super::qcow2::L1;",
            "image/vhd/bat.rs:1: image/vhd may not know image/qcow2",
        ),
        ("image/vhd.rs", "use super::qcow2;", "image/vhd.rs:1: image/vhd may not know image/qcow2"),
        ("cli/mount.rs", "let e: fuser::Errno = e;", "cli/mount.rs:1: only mount may name fuser"),
        ("wire.rs", "unsafe fn f() {}", "wire.rs:1: unsafe, and not in the list"),
        ("attic.rs", "", "attic.rs: no room has that name"),
    ];
    for (path, text, breach) in cases {
        assert_eq!(judge(path, text), [breach], "{path}: {text}");
    }
    let long = "\n".repeat(LINES_AT_MOST + 1);
    assert_eq!(judge("wire.rs", &long), ["wire.rs: 701 lines; beyond 600 it is two files"]);
    assert_eq!(
        breaches(&[], &["wire.rs"]),
        ["wire.rs: listed as unsafe, and not there"],
        "a list that has gone stale"
    );
}

#[test]
fn lets_what_is_fine_pass() {
    let cases = [
        (
            "block/file.rs",
            "// use crate::chain::Chain;\n/// [`crate::tree`]\nuse crate::error::Kind;",
        ),
        ("image/vhd.rs", "use crate::image::Format;\nuse crate::chain::{Layer, Place};"),
        ("image/qcow2/layer.rs", "use super::header::Header;\nuse crate::image::qcow2::L1;"),
        ("image/mod.rs", "mod raw;\nuse raw::Raw;\nuse self::qcow2::Qcow2;"),
        ("fs/mod.rs", "#![deny(unsafe_code)]\nlet tool = \"fuser\";"),
        ("block/mod.rs", "mod tests {\n    use super::*;\n}"),
        ("cli/mod.rs", "use crate::{open::Opener, mount::mount};"),
        ("main.rs", "use stratafs::cli;"),
        ("image/probe.rs", "use super::{qcow2, raw};"),
    ];
    for (path, text) in cases {
        let found: Vec<_> =
            judge(path, text).into_iter().filter(|breach| breach.starts_with(path)).collect();
        assert!(found.is_empty(), "{path}: {found:?}");
    }
}
