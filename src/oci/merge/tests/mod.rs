mod errors;
mod layers;
mod links;
mod rules;
mod tree;

use std::fmt::Write;
use std::sync::Arc;

use super::*;
use crate::block::MemorySource;
use crate::oci::layer::{Builder, Facts, Layer};
use crate::oci::tar::{Entry, EntryKind, Run};
use crate::tree::{Device, FileKind, Time};

/// A layer of these entries, each made as it reads:
///
/// `a/` a folder, `a = text` a file, `a -> b` a symbolic link, `a => b` a hard link, `a |` a pipe,
/// `a c 1:2` a character device; and anything may end in ` @ mode uid gid time`.
struct Made {
    entries: Vec<Entry>,
    data: Vec<u8>,
}

fn entry(path: &[u8], kind: EntryKind) -> Entry {
    let mode = if kind == EntryKind::Folder { 0o755 } else { 0o644 };
    let modified = Time { seconds: 1, nanos: 0 };
    let (xattrs, runs) = (Vec::new(), Vec::new());
    Entry { path: path.to_vec(), kind, mode, uid: 0, gid: 0, modified, xattrs, size: 0, runs }
}

impl Made {
    fn new(lines: &[&str]) -> Self {
        let mut made = Self { entries: Vec::new(), data: Vec::new() };
        for line in lines {
            let (what, attributes) = line.split_once(" @ ").unwrap_or((line, ""));
            let mut text = None;
            let mut entry = if let Some((path, contents)) = what.split_once(" = ") {
                text = Some(contents);
                entry(path.as_bytes(), EntryKind::File)
            } else if let Some((path, target)) = what.split_once(" -> ") {
                entry(path.as_bytes(), EntryKind::Symlink(target.into()))
            } else if let Some((path, target)) = what.split_once(" => ") {
                entry(path.as_bytes(), EntryKind::HardLink(target.into()))
            } else if let Some(path) = what.strip_suffix(" |") {
                entry(path.as_bytes(), EntryKind::Fifo)
            } else if let Some((path, device)) = what.split_once(" c ") {
                let (major, minor) = device.split_once(':').unwrap();
                let device =
                    Device { major: major.parse().unwrap(), minor: minor.parse().unwrap() };
                entry(path.as_bytes(), EntryKind::CharDevice(device))
            } else if what.ends_with('/') || what.is_empty() || what.ends_with('.') {
                entry(what.as_bytes(), EntryKind::Folder)
            } else {
                entry(what.as_bytes(), EntryKind::File)
            };
            let mut fields = attributes.split_whitespace();
            if let Some(mode) = fields.next() {
                entry.mode = u16::from_str_radix(mode, 8).unwrap();
            }
            entry.uid = fields.next().map_or(0, |uid| uid.parse().unwrap());
            entry.gid = fields.next().map_or(0, |gid| gid.parse().unwrap());
            entry.modified.seconds = fields.next().map_or(1, |time| time.parse().unwrap());
            if let Some(text) = text {
                made.fill(&mut entry, text.as_bytes());
            }
            made.entries.push(entry);
        }
        made
    }

    fn fill(&mut self, entry: &mut Entry, bytes: &[u8]) {
        let (len, place) = (bytes.len() as u64, self.data.len() as u64);
        entry.size = len;
        if len > 0 {
            entry.runs = vec![Run { at: 0, len, place }];
        }
        self.data.extend_from_slice(bytes);
    }

    fn part(self) -> LayerPart {
        let mut builder = Builder::new().unwrap();
        for entry in self.entries {
            builder.add(entry).unwrap();
        }
        let tar_len = self.data.len() as u64;
        let facts = Facts { blob_digest: "sha256:abc".into(), tar_len, ..Facts::default() };
        let index = Layer::from_bytes(builder.finish(&facts, b"").unwrap()).unwrap();
        LayerPart { index: Arc::new(index), data: Arc::new(MemorySource::new(self.data)) }
    }
}

fn part(lines: &[&str]) -> LayerPart {
    Made::new(lines).part()
}

fn try_merge(layers: &[&[&str]]) -> Result<Merged> {
    Merged::new(layers.iter().map(|lines| part(lines)).collect())
}

#[track_caller]
fn merge(layers: &[&[&str]]) -> Merged {
    let merged = try_merge(layers).unwrap();
    crate::tree::tests::contract::check(&merged);
    merged
}

fn contents(tree: &dyn FileTree, node: NodeId) -> String {
    let size = tree.attr(node).unwrap().size;
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    assert_eq!(tree.read_at(node, 0, &mut bytes).unwrap(), bytes.len());
    String::from_utf8(bytes).unwrap()
}

/// All files as they would be made, in the order of their paths; `*2` after one of two names.
fn shown(tree: &dyn FileTree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![(tree.root(), String::new())];
    while let Some((folder, path)) = folders.pop() {
        tree.read_dir(folder, 0, &mut |entry| {
            let path = format!("{path}{}", String::from_utf8_lossy(entry.name));
            let attr = tree.attr(entry.node).unwrap();
            let mut line = match attr.kind {
                FileKind::Directory => {
                    folders.push((entry.node, format!("{path}/")));
                    format!("{path}/")
                }
                FileKind::Symlink => {
                    let target = tree.read_link(entry.node).unwrap();
                    format!("{path} -> {}", String::from_utf8_lossy(&target))
                }
                FileKind::Regular if attr.size == 0 => path,
                FileKind::Regular => format!("{path} = {}", contents(tree, entry.node)),
                FileKind::Fifo => format!("{path} |"),
                FileKind::CharDevice(device) => {
                    format!("{path} c {}:{}", device.major, device.minor)
                }
                other => panic!("{path}: {other:?}"),
            };
            if attr.links > 1 && attr.kind != FileKind::Directory {
                write!(line, " *{}", attr.links).unwrap();
            }
            lines.push(line);
            true
        })
        .unwrap();
    }
    lines.sort();
    lines
}

/// The file at a path, no link followed.
#[track_caller]
fn at(tree: &dyn FileTree, path: &str) -> NodeId {
    path.split('/').filter(|name| !name.is_empty()).fold(tree.root(), |node, name| {
        tree.lookup(node, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("no {path}"))
    })
}

#[track_caller]
fn attr(tree: &dyn FileTree, path: &str) -> Attr {
    tree.attr(at(tree, path)).unwrap()
}
