//! An upper, in the form of the kernel's overlayfs (`Documentation/filesystems/overlayfs.rst`),
//! turned into a layer of a container image (OCI image specification, "Image Layer Filesystem
//! Changeset").
//!
//! What an upper says by attributes and devices, a layer says by files: `.wh.NAME` for a whiteout,
//! `.wh..wh..opq` for an opaque folder. What a layer cannot say is written out: a file whose contents
//! stayed below comes whole, and so does a folder that was renamed, with all that is in it.

mod entry;
mod layer;

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Kind, Result, ResultExt};
use crate::oci::tar::{Member, MemberKind, OPAQUE, WHITEOUT};
use crate::tree::{Attr, FileKind, FileTree, NodeId, Time};
use entry::{Entry, Flavour, Folder};

pub(super) use layer::{Layer, Tar, Unpacked, compression_of};

/// Bytes moved at once.
const CHUNK: usize = 256 << 10;

/// How far it has come, for whoever watches.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) files: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Sockets, which no layer can hold.
    pub(super) sockets: AtomicU64,
}

/// Writes what the upper `dir` changes to `layer`.
///
/// # Errors
/// Those of the upper, the tree below and the layer: whatever is missing, there is no layer.
/// [`Kind::Usage`] if it takes the tree below and there is none.
pub(super) fn write(
    dir: &Path,
    lower: Option<&dyn FileTree>,
    layer: &mut dyn Layer,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<()> {
    let (folder, root, flavour) = Folder::root(dir)?;
    let mut walk = Walk {
        lower,
        flavour,
        layer,
        progress,
        stop,
        path: Vec::new(),
        links: HashMap::new(),
        entered: HashSet::new(),
        buffer: vec![0; CHUNK],
    };
    let below = lower.map(FileTree::root);
    let mut levels = Vec::new();
    levels.extend(walk.folder(&root, folder, below, false)?);
    while let Some(level) = levels.last_mut() {
        walk.path.truncate(level.path);
        let Some(item) = level.items.pop() else {
            levels.pop();
            continue;
        };
        if !walk.path.is_empty() {
            walk.path.push(b'/');
        }
        walk.path.extend_from_slice(&item.name);
        let next = walk.item(level, item);
        levels.extend(next.within(|| String::from_utf8_lossy(&walk.path).into_owned())?);
    }
    Ok(())
}

/// A name of a folder, and what has it.
struct Item {
    name: Vec<u8>,
    in_upper: Option<CString>,
    in_lower: Option<NodeId>,
}

/// A folder on the way.
struct Level {
    upper: Option<Folder>,
    /// The folder of the lower tree that is seen through it.
    below: Option<NodeId>,
    /// Whether what is below has to be written out.
    whole: bool,
    /// What is still to come, the next one last.
    items: Vec<Item>,
    path: usize,
}

/// What is the same for all names of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Identity {
    Upper((u64, u64)),
    Lower(NodeId),
}

/// What a member gets besides its kind.
struct Metadata {
    mode: u16,
    uid: u32,
    gid: u32,
    modified: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl From<&Entry> for Metadata {
    fn from(entry: &Entry) -> Self {
        let (uid, gid) = entry.owner();
        Self {
            mode: entry.mode(),
            uid,
            gid,
            modified: entry.modified(),
            xattrs: entry.xattrs.clone(),
        }
    }
}

struct Walk<'a> {
    lower: Option<&'a dyn FileTree>,
    flavour: Flavour,
    layer: &'a mut dyn Layer,
    progress: &'a Progress,
    stop: &'a AtomicBool,
    path: Vec<u8>,
    /// Files of several names that were written, and under which.
    links: HashMap<Identity, Vec<u8>>,
    /// Folders of the lower tree that were written out; in a sound one, none comes twice.
    entered: HashSet<NodeId>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn item(&mut self, level: &Level, item: Item) -> Result<Option<Level>> {
        self.go_on()?;
        let (Some(folder), Some(name)) = (&level.upper, &item.in_upper) else {
            return match (item.in_lower, self.lower) {
                (Some(node), Some(tree)) => self.lower(tree, node),
                _ => Ok(None),
            };
        };
        let entry = folder.entry(name, self.flavour)?;
        if entry.is_whiteout() {
            // Where all is written out, it is enough to leave it out.
            return if level.whole { Ok(None) } else { self.whiteout(&item.name).map(|()| None) };
        }
        self.check_name(&item.name)?;
        match entry.kind {
            FileKind::Directory => {
                let below = self.below(&entry, level, &item.name)?;
                if below.is_none() && entry.redirect().is_some() && !entry.is_opaque() {
                    let message = "was renamed, and most of it is to be below, where it is not";
                    return Err(Error::new(Kind::Corrupt, message)
                        .with_hint("is REF what the upper was made over?"));
                }
                let inner = folder.folder(name)?;
                self.folder(&entry, inner, below, level.whole)
            }
            kind => {
                if entry.stat.st_nlink > 1
                    && self.link(&Identity::Upper(entry.identity()), &entry)?
                {
                    return Ok(None);
                }
                match kind {
                    FileKind::Regular if entry.is_metacopy() => {
                        let node = self.below(&entry, level, &item.name)?;
                        self.metacopy(&entry, node)?;
                    }
                    FileKind::Regular => self.file(&entry, folder, name)?,
                    FileKind::Symlink => {
                        let target = folder.target(name)?;
                        self.begin(&Metadata::from(&entry), MemberKind::Symlink(&target))?;
                    }
                    kind => self.special(&Metadata::from(&entry), kind)?,
                }
                Ok(None)
            }
        }
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Io, "interrupted"));
        }
        Ok(())
    }

    /// A layer has no way to hold a file whose name means something else in it.
    fn check_name(&self, name: &[u8]) -> Result<()> {
        if name.starts_with(WHITEOUT) {
            let message = "a name that begins with .wh. means a removed file in a layer";
            return Err(Error::new(Kind::Unsupported, message));
        }
        Ok(())
    }

    /// The file of the lower tree that `entry` is the upper part of.
    fn below(&self, entry: &Entry, level: &Level, name: &[u8]) -> Result<Option<NodeId>> {
        let Some(tree) = self.lower else {
            let needed = if entry.is_metacopy() {
                "holds only the file's metadata: its contents stayed in what lies below"
            } else if entry.redirect().is_some() {
                "is a folder that was renamed: most of it stayed in what lies below"
            } else {
                return Ok(None);
            };
            return Err(Error::new(Kind::Usage, needed)
                .with_hint("name that, too: strata commit --cow UPPER/ REF --to ..."));
        };
        let look = |dir: NodeId, name: &[u8]| match tree.attr(dir)?.kind {
            FileKind::Directory if !matches!(name, b"." | b"..") => tree.lookup(dir, name),
            _ => Ok(None),
        };
        let redirect = entry.redirect().unwrap_or(name);
        let Some(path) = redirect.strip_prefix(b"/") else {
            return level.below.map_or(Ok(None), |dir| look(dir, redirect));
        };
        let mut node = tree.root();
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            match look(node, name)? {
                Some(next) => node = next,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Begins a folder of the upper, which hides or shows the folder `below`.
    fn folder(
        &mut self,
        entry: &Entry,
        folder: Folder,
        below: Option<NodeId>,
        in_whole: bool,
    ) -> Result<Option<Level>> {
        self.begin(&Metadata::from(entry), MemberKind::Folder)?;
        let redirected = entry.redirect().is_some();
        if !in_whole && (entry.is_opaque() || redirected) {
            self.marker(OPAQUE)?;
        }
        let mut below = below.filter(|_| !entry.is_opaque());
        if let (Some(node), Some(tree)) = (below, self.lower)
            && tree.attr(node)?.kind != FileKind::Directory
        {
            below = None;
        }
        let whole = in_whole || redirected;
        let mut items: Vec<Item> = folder
            .names()?
            .into_iter()
            .map(|name| Item {
                name: name.to_bytes().to_vec(),
                in_upper: Some(name),
                in_lower: None,
            })
            .collect();
        if let (true, Some(node), Some(tree)) = (whole, below, self.lower) {
            let known: HashSet<Vec<u8>> = items.iter().map(|item| item.name.clone()).collect();
            let lower = self.entries(tree, node)?;
            items.extend(lower.into_iter().filter(|item| !known.contains(&item.name)));
        }
        Ok(Some(self.level(Some(folder), below, whole, items)))
    }

    fn level(
        &self,
        upper: Option<Folder>,
        below: Option<NodeId>,
        whole: bool,
        mut items: Vec<Item>,
    ) -> Level {
        items.sort_unstable_by(|a, b| b.name.cmp(&a.name));
        Level { upper, below, whole, items, path: self.path.len() }
    }

    fn entries(&mut self, tree: &dyn FileTree, node: NodeId) -> Result<Vec<Item>> {
        if !self.entered.insert(node) {
            return Err(Error::new(
                Kind::Corrupt,
                "the folder below is in the tree more than once",
            ));
        }
        let mut items = Vec::new();
        tree.read_dir(node, 0, &mut |entry| {
            let name = entry.name.to_vec();
            items.push(Item { name, in_upper: None, in_lower: Some(entry.node) });
            true
        })?;
        Ok(items)
    }

    /// Writes out a file of the lower tree.
    fn lower(&mut self, tree: &dyn FileTree, node: NodeId) -> Result<Option<Level>> {
        let name = self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec();
        self.check_name(&name)?;
        let attr = tree.attr(node)?;
        let mut xattrs = Vec::new();
        for name in tree.xattr_names(node)? {
            if let Some(value) = tree.xattr(node, &name)? {
                xattrs.push((name, value));
            }
        }
        xattrs.sort();
        let Attr { mode, uid, gid, modified, .. } = attr;
        let metadata = Metadata { mode, uid, gid, modified, xattrs };
        if attr.kind == FileKind::Directory {
            self.begin(&metadata, MemberKind::Folder)?;
            let items = self.entries(tree, node)?;
            return Ok(Some(self.level(None, Some(node), true, items)));
        }
        if attr.links > 1 && self.link_of(&Identity::Lower(attr.node), &metadata)? {
            return Ok(None);
        }
        match attr.kind {
            FileKind::Regular => self.contents_of(&metadata, tree, node, attr.size)?,
            FileKind::Symlink => {
                let target = tree.read_link(node)?;
                self.begin(&metadata, MemberKind::Symlink(&target))?;
            }
            kind => self.special(&metadata, kind)?,
        }
        Ok(None)
    }

    fn link(&mut self, identity: &Identity, entry: &Entry) -> Result<bool> {
        if entry.kind == FileKind::Socket {
            return Ok(false);
        }
        self.link_of(identity, &Metadata::from(entry))
    }

    /// Writes a further name of a file that was written before; or remembers its first.
    fn link_of(&mut self, identity: &Identity, metadata: &Metadata) -> Result<bool> {
        if let Some(first) = self.links.get(identity).cloned() {
            self.begin(metadata, MemberKind::HardLink(&first))?;
            return Ok(true);
        }
        self.links.insert(*identity, self.path.clone());
        Ok(false)
    }

    fn file(&mut self, entry: &Entry, folder: &Folder, name: &CStr) -> Result<()> {
        let file = folder.file(name)?;
        let size = entry.size();
        self.begin(&Metadata::from(entry), MemberKind::File(size))?;
        self.copy(size, |at, buffer| file.read_at(buffer, at).map_err(Error::io))
    }

    /// A file with its metadata here and its contents below.
    fn metacopy(&mut self, entry: &Entry, node: Option<NodeId>) -> Result<()> {
        let missing = || {
            let message = "its contents are to be below, and there is no such file there";
            Error::new(Kind::Corrupt, message).with_hint("is it the REF the upper was made over?")
        };
        let (Some(tree), Some(node)) = (self.lower, node) else { return Err(missing()) };
        let attr = tree.attr(node)?;
        if attr.kind != FileKind::Regular {
            return Err(missing());
        }
        self.contents_of(&Metadata::from(entry), tree, node, attr.size)
    }

    fn contents_of(
        &mut self,
        metadata: &Metadata,
        tree: &dyn FileTree,
        node: NodeId,
        size: u64,
    ) -> Result<()> {
        self.begin(metadata, MemberKind::File(size))?;
        self.copy(size, |at, buffer| tree.read_at(node, at, buffer))
    }

    /// Copies the contents of the file just begun.
    fn copy(
        &mut self,
        size: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        let mut at = 0;
        while at < size {
            self.go_on()?;
            let wanted = usize::try_from(size - at).unwrap_or(usize::MAX).min(CHUNK);
            let part = self.buffer.get_mut(..wanted).unwrap_or_default();
            let count = read(at, part)?;
            if count == 0 {
                let message = format!("ends at byte {at}, {} bytes early", size - at);
                return Err(Error::new(Kind::Io, message));
            }
            self.layer.write(part.get(..count).unwrap_or_default())?;
            at += count as u64;
            self.progress.bytes.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn special(&mut self, metadata: &Metadata, kind: FileKind) -> Result<()> {
        let kind = match kind {
            FileKind::Fifo => MemberKind::Fifo,
            FileKind::CharDevice(device) => MemberKind::CharDevice(device),
            FileKind::BlockDevice(device) => MemberKind::BlockDevice(device),
            FileKind::Regular | FileKind::Directory | FileKind::Symlink | FileKind::Socket => {
                self.progress.sockets.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        };
        self.begin(metadata, kind)
    }

    fn begin(&mut self, metadata: &Metadata, kind: MemberKind<'_>) -> Result<()> {
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        self.layer.begin(&Member {
            path: &self.path,
            kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            modified: metadata.modified,
            xattrs: &metadata.xattrs,
        })
    }

    /// Says that the file at the path was removed.
    fn whiteout(&mut self, name: &[u8]) -> Result<()> {
        let folder = self.path.len() - name.len();
        let path = [self.path.get(..folder).unwrap_or_default(), WHITEOUT, name].concat();
        self.empty(&path)
    }

    /// Puts an empty file into the folder at the path.
    fn marker(&mut self, name: &[u8]) -> Result<()> {
        let slash: &[u8] = if self.path.is_empty() { b"" } else { b"/" };
        let path = [&self.path, slash, name].concat();
        self.empty(&path)
    }

    fn empty(&mut self, path: &[u8]) -> Result<()> {
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        self.layer.begin(&Member {
            path,
            kind: MemberKind::File(0),
            mode: 0,
            uid: 0,
            gid: 0,
            modified: Time::default(),
            xattrs: &[],
        })
    }
}
