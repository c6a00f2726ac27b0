//! Random stacks of layers, merged, beside a naive model and beside `umoci unpack`.
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/contract.rs"]
mod contract;
#[path = "layers/model.rs"]
mod model;
#[path = "layers/stacks.rs"]
mod stacks;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use model::{File, Model, Op, time};
use stacks::{Stack, stack};
use stratafs::block::MemorySource;
use stratafs::error::Result;
use stratafs::oci::layer::{Builder, Facts, Layer};
use stratafs::oci::merge::{LayerPart, Merged};
use stratafs::oci::tar::{Entry, EntryKind, Member, MemberKind, Run, Writer};
use stratafs::tree::{FileKind, FileTree, NodeId, Time};
use support::{run, tool};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn mode(op: &Op) -> u16 {
    match op {
        Op::Folder(_) => 0o711,
        Op::Symlink(..) => 0o777,
        Op::Fifo(_) => 0o600,
        _ => 0o644,
    }
}

/// The layer as an index and its data.
fn part(ops: &[Op], number: usize) -> LayerPart {
    let mut builder = Builder::new().unwrap();
    let mut data = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        let mut entry = Entry {
            path: op.path().into_bytes(),
            kind: EntryKind::File,
            mode: mode(op),
            uid: 0,
            gid: 0,
            modified: Time { seconds: time(number, index), nanos: 0 },
            xattrs: Vec::new(),
            size: 0,
            runs: Vec::new(),
        };
        match op {
            Op::File(_, text) => {
                let (len, place) = (text.len() as u64, data.len() as u64);
                entry.size = len;
                entry.runs.push(Run { at: 0, len, place });
                data.extend_from_slice(text.as_bytes());
            }
            Op::Folder(_) => entry.kind = EntryKind::Folder,
            Op::Symlink(_, target) => entry.kind = EntryKind::Symlink(target.clone().into()),
            Op::Link(_, target) => entry.kind = EntryKind::HardLink(target.clone().into()),
            Op::Fifo(_) => entry.kind = EntryKind::Fifo,
            Op::Whiteout(_) | Op::Opaque(_) => {}
        }
        builder.add(entry).unwrap();
    }
    let facts = Facts { tar_len: data.len() as u64, ..Facts::default() };
    let index = Layer::from_bytes(builder.finish(&facts, b"").unwrap()).unwrap();
    LayerPart { index: Arc::new(index), data: Arc::new(MemorySource::new(data)) }
}

fn merge(layers: &[Vec<Op>]) -> Result<Merged> {
    Merged::new((1..).zip(layers).map(|(number, ops)| part(ops, number)).collect())
}

/// A file as it is seen: what it is, its mode, its time, its names, and which of the names of the
/// same file comes first.
type Seen = (File, u16, i64, u64, String);

fn seen_of(tree: &Merged) -> BTreeMap<String, Seen> {
    let mut all = BTreeMap::new();
    let mut folders = vec![(tree.root(), String::new())];
    while let Some((folder, parent)) = folders.pop() {
        tree.read_dir(folder, 0, &mut |entry| {
            let path = format!("{parent}{}", std::str::from_utf8(entry.name).unwrap());
            let attr = tree.attr(entry.node).unwrap();
            let file = match attr.kind {
                FileKind::Directory => {
                    folders.push((entry.node, format!("{path}/")));
                    File::Folder
                }
                FileKind::Regular => {
                    let mut bytes = vec![0; attr.size as usize];
                    tree.read_at(entry.node, 0, &mut bytes).unwrap();
                    File::Text(String::from_utf8(bytes).unwrap())
                }
                FileKind::Symlink => {
                    File::Symlink(String::from_utf8(tree.read_link(entry.node).unwrap()).unwrap())
                }
                FileKind::Fifo => File::Fifo,
                other => panic!("{path}: {other:?}"),
            };
            let links = if file == File::Folder { 1 } else { attr.links.into() };
            all.insert(path, (file, attr.mode, attr.modified.seconds, links, entry.node));
            true
        })
        .unwrap();
    }
    let mut first: HashMap<NodeId, String> = HashMap::new();
    let seen = all.into_iter().map(|(path, (file, mode, time, links, node))| {
        let first = first.entry(node).or_insert_with(|| path.clone()).clone();
        (path, (file, mode, time, links, first))
    });
    seen.collect()
}

fn seen_of_model(model: &Model) -> BTreeMap<String, Seen> {
    let mut first: HashMap<usize, String> = HashMap::new();
    let seen = model.paths.iter().map(|(path, &(node, _))| {
        let found = &model.nodes[node];
        let first = first.entry(node).or_insert_with(|| path.clone()).clone();
        let links = model.links(node) as u64;
        (path.clone(), (found.file.clone(), found.mode, found.time, links, first))
    });
    seen.collect()
}

#[test]
fn random_stacks_beside_a_model() {
    let first = setting("STRATA_SEED", 1);
    let (mut wrong, mut names, mut shared) = (0, 0, 0);
    let stacks = setting("STRATA_STACKS", 1000);
    for seed in first..first + stacks {
        let Stack { layers, model } = stack(seed, false);
        let merged = merge(&layers);
        let Ok(model) = model else {
            assert!(merged.is_err(), "seed {seed}: {layers:#?}");
            wrong += 1;
            continue;
        };
        let merged = merged.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{layers:#?}"));
        let expected = seen_of_model(&model);
        assert_eq!(seen_of(&merged), expected, "seed {seed}: {layers:#?}");
        names += expected.len();
        shared += expected.values().filter(|seen| seen.3 > 1).count();
        if seed % 10 == 0 {
            contract::check(&merged);
        }
    }
    // The stacks are of all sorts.
    let stacks = usize::try_from(stacks).unwrap();
    assert!(wrong * 50 > stacks / 10 && wrong * 3 < stacks, "{wrong} of {stacks} are wrong");
    assert!(names > stacks * 4 && shared > stacks / 4, "{names} names, {shared} of several");
}

/// The layer as a tar.
fn tar(ops: &[Op], number: usize) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (index, op) in ops.iter().enumerate() {
        let path = op.path();
        let text = match op {
            Op::File(_, text) => text.as_str(),
            _ => "",
        };
        let kind = match op {
            Op::File(..) | Op::Whiteout(_) | Op::Opaque(_) => MemberKind::File(text.len() as u64),
            Op::Folder(_) => MemberKind::Folder,
            Op::Symlink(_, target) => MemberKind::Symlink(target.as_bytes()),
            Op::Link(_, target) => MemberKind::HardLink(target.as_bytes()),
            Op::Fifo(_) => MemberKind::Fifo,
        };
        let modified = Time { seconds: time(number, index), nanos: 0 };
        let path = path.as_bytes();
        let member = Member { path, kind, mode: mode(op), uid: 0, gid: 0, modified, xattrs: &[] };
        writer.begin(&member).unwrap();
        writer.write(text.as_bytes()).unwrap();
    }
    writer.finish().unwrap()
}

/// What umoci unpacks of the layers, in `dir`; or what it says.
fn umoci(dir: &Path, layers: &[Vec<Op>]) -> Result<BTreeMap<String, Seen>, String> {
    let umoci = || tool("umoci", "umoci");
    let layout = dir.join("layout");
    let image = format!("{}:t", layout.display());
    run(umoci().args(["init", "--layout"]).arg(&layout));
    run(umoci().args(["new", "--image", &image]));
    for (number, ops) in (1..).zip(layers) {
        let file = dir.join("layer.tar");
        std::fs::write(&file, tar(ops, number)).unwrap();
        run(umoci().args(["raw", "add-layer", "--image", &image]).arg(&file));
    }
    let bundle = dir.join("bundle");
    let output = umoci().args(["unpack", "--image", &image]).arg(&bundle).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let root = bundle.join("rootfs");
    let mut all = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let file = if meta.is_dir() {
                folders.push(path.clone());
                File::Folder
            } else if meta.is_symlink() {
                File::Symlink(std::fs::read_link(&path).unwrap().to_str().unwrap().to_owned())
            } else if meta.file_type().is_fifo() {
                File::Fifo
            } else {
                File::Text(std::fs::read_to_string(&path).unwrap())
            };
            let links = if file == File::Folder { 1 } else { meta.nlink() };
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let mode = u16::try_from(meta.mode() & 0o7777).unwrap();
            all.push((name, file, mode, meta.mtime(), links, meta.ino()));
        }
    }
    all.sort();
    let mut first: HashMap<u64, String> = HashMap::new();
    let seen = all.into_iter().map(|(path, file, mode, time, links, inode)| {
        let first = first.entry(inode).or_insert_with(|| path.clone()).clone();
        (path, (file, mode, time, links, first))
    });
    Ok(seen.collect())
}

/// umoci sets the times of folders that it puts something in again, but not of those it makes up,
/// and not of their parents.
fn without_times_of_folders(mut seen: BTreeMap<String, Seen>) -> BTreeMap<String, Seen> {
    for (file, _, time, ..) in seen.values_mut() {
        if *file == File::Folder {
            *time = 0;
        }
    }
    seen
}

/// Rules that random layers do not come to, whiteouts behind what they hide above all.
#[test]
fn rules_that_umoci_follows() {
    support::require_root();
    let file = |path: &str, text: &str| Op::File(path.into(), text.into());
    let folder = |path: &str| Op::Folder(path.into());
    let link = |path: &str, target: &str| Op::Link(path.into(), target.into());
    let symlink = |path: &str, target: &str| Op::Symlink(path.into(), target.into());
    let (whiteout, opaque) =
        (|path: &str| Op::Whiteout(path.into()), |path: &str| Op::Opaque(path.into()));
    let lower = vec![
        file("a", "1"),
        folder("d"),
        file("d/old", "2"),
        folder("d/e"),
        file("d/e/deep", "3"),
        folder("usr"),
        file("usr/x", "4"),
        symlink("lib", "../../usr"),
        symlink("dangling", "not/there"),
    ];
    let cases = [
        (
            "a late whiteout",
            vec![file("a", "new"), whiteout("a"), folder("d"), file("d/new", "5"), whiteout("d")],
        ),
        (
            "a late opaque",
            vec![folder("d"), file("d/new", "5"), folder("d/e"), file("d/e/own", "6"), opaque("d")],
        ),
        ("an opaque root", vec![opaque(""), file("c", "3")]),
        ("whiteouts of nothing", vec![whiteout("d/nothing"), whiteout("nowhere")]),
        ("a whiteout and one in what it hides", vec![whiteout("d"), whiteout("d/old")]),
        ("the same the other way round", vec![whiteout("d/old"), whiteout("d")]),
        ("something in a hidden folder", vec![whiteout("d"), file("d/new", "5")]),
        ("a link to what is hidden then", vec![link("b", "a"), whiteout("a")]),
        ("a link to what is replaced then", vec![link("b", "a"), file("a", "new")]),
        ("a link to a symbolic link", vec![link("l", "lib")]),
        ("parents that are symbolic links", vec![file("lib/y", "5"), link("lib/z", "lib/x")]),
        ("a dangling link on the way", vec![file("dangling/y", "5")]),
        ("a whiteout behind a symbolic link", vec![whiteout("lib/x")]),
        ("a folder over a symbolic link", vec![folder("lib"), opaque("lib"), file("lib/y", "5")]),
        (
            "names that lead out",
            vec![file("../../x", "5"), file("/../y", "6"), link("z", "../../x")],
        ),
        (
            "type changes",
            vec![file("d", "5"), folder("a"), symlink("usr", "a"), Op::Fifo("lib".into())],
        ),
    ];
    for (rule, upper) in cases {
        let layers = [lower.clone(), upper];
        let dir = tempfile::tempdir().unwrap();
        let theirs = umoci(dir.path(), &layers).unwrap_or_else(|said| panic!("{rule}: {said}"));
        let merged = merge(&layers).unwrap();
        contract::check(&merged);
        let ours = without_times_of_folders(seen_of(&merged));
        assert_eq!(ours, without_times_of_folders(theirs), "{rule}");
    }
}

#[test]
fn random_stacks_beside_umoci() {
    support::require_root();
    let first = setting("STRATA_SEED", 1);
    for seed in first..first + setting("STRATA_UMOCI_STACKS", 25) {
        let Stack { layers, model } = stack(seed, true);
        let merged = merge(&layers).unwrap();
        assert_eq!(seen_of(&merged), seen_of_model(&model.unwrap()), "seed {seed}: {layers:#?}");
        let dir = tempfile::tempdir().unwrap();
        let theirs = umoci(dir.path(), &layers)
            .unwrap_or_else(|said| panic!("seed {seed}: {said}\n{layers:#?}"));
        assert_eq!(
            without_times_of_folders(seen_of(&merged)),
            without_times_of_folders(theirs),
            "seed {seed}: {layers:#?}"
        );
    }
}
