//! What a mountpoint shows of a disk.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use super::cow::{Cow, Purpose};
use super::stored::StoreTree;
use super::system::Contents;
use super::{Disk, Opener, Reference, names};
use crate::block::{BlockSink, Window};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::fs;
use crate::image::qcow2::Delta;
use crate::tree::composed::Composed;
use crate::tree::folder::Folder;
use crate::tree::{FileTree, Served, Time};
use crate::volume;

pub use super::survey::{Survey, SurveyedVolume, survey};

/// What of a disk is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The files of a system or of the only filesystem, else the volumes that hold filesystems,
    /// else the disk.
    Auto,
    /// The operating system's own tree, or that of the one filesystem there is.
    Files,
    /// One folder per volume.
    Volumes,
    /// `disk.img`, and `p1.img` and so on for each volume.
    Disk,
    /// One folder per internal snapshot, showing its files.
    Snapshots,
    /// One folder per layer of a layered image, as it is.
    Layers,
}

impl View {
    /// All views, in the order they are listed to people.
    pub const ALL: [View; 6] =
        [View::Auto, View::Files, View::Volumes, View::Disk, View::Snapshots, View::Layers];

    /// What it is called on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            View::Auto => "auto",
            View::Files => "files",
            View::Volumes => "volumes",
            View::Disk => "disk",
            View::Snapshots => "snapshots",
            View::Layers => "layers",
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for View {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        View::ALL.into_iter().find(|view| view.name() == name).ok_or_else(|| {
            let names = View::ALL.map(View::name).join(", ");
            Error::new(Kind::Usage, format!("no view \"{name}\": there are {names}"))
        })
    }
}

/// A disk opened as a tree of files.
#[derive(Debug)]
pub struct Shown {
    /// The files.
    pub tree: Served,
    /// What is shown; never [`View::Auto`].
    pub view: View,
    /// What an operator should know, one line each.
    pub warnings: Vec<String>,
    /// Where changes of the disk go, if they are kept. It is to be closed once the tree is served no more.
    pub delta: Option<Arc<Delta>>,
    /// Why the disk is shown where files were to be: [`View::Auto`] found none that can be read.
    pub no_files: Option<Error>,
}

/// Opens what `reference`, a disk or a layered image, names and shows it as `view`, with the changes of
/// `cow`.
///
/// # Errors
/// As [`view`] and [`Opener::layered`].
pub fn show(
    opener: &Arc<Opener>,
    reference: &OsStr,
    view: View,
    cow: Option<(&Cow, Purpose)>,
) -> Result<Shown> {
    let Some(layered) = opener.layered_reference(reference)? else {
        return self::view(opener, &Reference::from(reference), view, cow);
    };
    if let Some((Cow::Delta { .. } | Cow::Scratch { .. }, _)) = cow {
        let error = Error::new(Kind::Usage, format!("{layered}: a layered image is no disk"));
        return Err(error.with_hint("its changes go to a folder: --cow UPPER/"));
    }
    super::layered::check_view(view).within(|| layered.to_string())?;
    let mut shown = opener.layered(&layered)?.show(view)?;
    shown.change(cow)?;
    Ok(shown)
}

/// Opens the disk that `reference` names and shows it as `view`, with the changes of `cow`.
///
/// A delta to be written makes the disk view writable, which [`View::Auto`] then means; one to be
/// read changes the disk that any view shows. An upper makes whatever tree is shown writable.
///
/// # Errors
/// As [`Opener::disk`]; [`Kind::NotFound`] or [`Kind::Unsupported`] if there is nothing of that
/// kind on the disk.
pub fn view(
    opener: &Arc<Opener>,
    reference: &Reference,
    view: View,
    cow: Option<(&Cow, Purpose)>,
) -> Result<Shown> {
    if reference.is_whole_store() {
        return whole_store(opener, reference, view, cow);
    }
    let reference = &*opener.pinned(reference)?;
    let mut disk = opener.disk(reference)?;
    let mut view = view;
    let (mut sink, mut delta): (Option<Arc<dyn BlockSink>>, _) = (None, None);
    match cow {
        Some((cow @ (Cow::Delta { .. } | Cow::Scratch { .. }), Purpose::Change)) => {
            view = writable(view)?;
            let opened = super::cow::delta(opener, reference, &disk, cow)?;
            disk.source = Arc::<Delta>::clone(&opened);
            if matches!(cow, Cow::Scratch { .. }) {
                sink = Some(Arc::new(super::cow::Scratch(opened)));
            } else {
                sink = Some(Arc::<Delta>::clone(&opened));
                delta = Some(opened);
            }
        }
        Some((Cow::Delta { path, .. }, Purpose::Read)) => {
            super::cow::belongs(opener, reference, &disk, path)?;
            disk = opener.disk_with(path, reference)?;
        }
        Some((Cow::Scratch { .. }, Purpose::Read) | (Cow::Upper { .. }, _)) | None => {}
    }
    let warnings = std::mem::take(&mut disk.warnings);
    let mut shown = Stage { opener, reference, disk, sink, delta, warnings }.show(view)?;
    shown.change(cow)?;
    Ok(shown)
}

/// Shows `disk`, which `reference` names, as `view`, to be read.
pub(super) fn show_disk(
    opener: &Arc<Opener>,
    reference: &Reference,
    mut disk: Disk,
    view: View,
) -> Result<Shown> {
    let warnings = std::mem::take(&mut disk.warnings);
    Stage { opener, reference, disk, sink: None, delta: None, warnings }.show(view)
}

/// Shows all snapshots of a store, each as `view`.
fn whole_store(
    opener: &Arc<Opener>,
    reference: &Reference,
    view: View,
    cow: Option<(&Cow, Purpose)>,
) -> Result<Shown> {
    let named = || reference.path.display().to_string();
    let usage = |message: &'static str| Error::new(Kind::Usage, message).within(named());
    if cow.is_some() {
        let hint = format!("name one snapshot, as {}::SERIES", named());
        return Err(usage("all snapshots at once are not written").with_hint(hint));
    }
    let view = match view {
        // What it is anyway.
        View::Snapshots => View::Auto,
        View::Layers => return Err(usage("disks have no layers view")),
        view => view,
    };
    let store = opener.store(&reference.path)?;
    let tree = StoreTree::new(opener, reference, store, view)?;
    let (tree, warnings) = (Served::ReadOnly(Arc::new(tree)), Vec::new());
    Ok(Shown { tree, view: View::Snapshots, warnings, delta: None, no_files: None })
}

impl Shown {
    /// Puts an upper above the tree, if `cow` is one.
    fn change(&mut self, cow: Option<(&Cow, Purpose)>) -> Result<()> {
        if let Some((cow @ Cow::Upper { .. }, purpose)) = cow {
            self.tree = Served::Writable(super::cow::upper(self.tree.files(), cow, purpose)?);
        }
        Ok(())
    }
}

/// The view a delta is written through.
fn writable(view: View) -> Result<View> {
    match view {
        View::Auto | View::Disk => Ok(View::Disk),
        View::Files | View::Volumes | View::Snapshots | View::Layers => {
            let message = format!("a delta cannot be written through the {view} view");
            Err(Error::new(Kind::Usage, message).with_hint(
                "--view disk writes to the disk; to change files, give --cow a folder: --cow UPPER/",
            ))
        }
    }
}

/// A disk on its way to being shown.
struct Stage<'a> {
    opener: &'a Arc<Opener>,
    reference: &'a Reference,
    disk: Disk,
    /// The disk again, if it can be written.
    sink: Option<Arc<dyn BlockSink>>,
    /// What it is to be closed by, if it is kept.
    delta: Option<Arc<Delta>>,
    warnings: Vec<String>,
}

impl Stage<'_> {
    fn show(self, view: View) -> Result<Shown> {
        let name = self.reference.path.display().to_string();
        let shown = match view {
            View::Auto => self.auto(),
            View::Files => self.files(),
            View::Volumes => self.volumes(),
            View::Disk => self.disk(),
            View::Snapshots => self.snapshots(),
            View::Layers => {
                let error = Error::new(Kind::Usage, "a disk has no layers view");
                Err(error.with_hint("--view snapshots shows its internal snapshots"))
            }
        };
        shown.within(|| name)
    }

    fn contents(&self) -> Result<Contents> {
        Contents::look(&self.disk.source, &self.opener.cache)
    }

    fn shown(self, tree: Arc<dyn FileTree>, view: View) -> Shown {
        let tree = Served::ReadOnly(tree);
        Shown { tree, view, warnings: self.warnings, delta: self.delta, no_files: None }
    }

    fn auto(mut self) -> Result<Shown> {
        let contents = match self.contents() {
            Ok(contents) if contents.filesystems() > 0 => contents,
            Ok(contents) => {
                self.warnings
                    .extend(contents.table.iter().flat_map(|table| table.warnings.clone()));
                return self.disk_for_want_of_files(contents.nothing_known());
            }
            Err(error) => return self.disk_for_want_of_files(error),
        };
        let mut warnings = contents.warnings();
        match contents.files(&mut warnings) {
            Some(composed) => {
                self.warnings.extend(warnings);
                Ok(self.shown(composed.into_tree(), View::Files))
            }
            None => self.volumes_of(contents),
        }
    }

    fn files(mut self) -> Result<Shown> {
        let contents = self.contents()?;
        self.warnings.extend(contents.warnings());
        if contents.filesystems() == 0 {
            return Err(contents.nothing_known());
        }
        let Some(composed) = contents.files(&mut self.warnings) else {
            let message = format!(
                "{} filesystems, and none of them is the root of an operating system",
                contents.filesystems()
            );
            let error = Error::new(Kind::NotFound, message);
            return Err(error.with_hint("--view volumes shows each in a folder of its own"));
        };
        Ok(self.shown(composed.into_tree(), View::Files))
    }

    fn volumes(self) -> Result<Shown> {
        let contents = self.contents()?;
        self.volumes_of(contents)
    }

    /// Opening a filesystem costs a few reads, and tells its name and whether it is whole: so all
    /// are opened at once.
    fn volumes_of(mut self, contents: Contents) -> Result<Shown> {
        self.warnings.extend(contents.warnings());
        if contents.filesystems() == 0 {
            return Err(contents.nothing_known());
        }
        self.warnings.extend(contents.others());
        let mut folder = self.folder();
        let mut trees = Vec::new();
        for place in &contents.places {
            let Some(fs::Filesystem { tree, info }) = place.filesystem() else { continue };
            let name = match &place.volume {
                Some(volume) => names::volume(volume, info.label.as_deref()),
                None => names::whole_disk(info.label.as_deref(), &info.kind),
            };
            let changed = self.modified();
            let node = folder.add_folder(folder.root(), name.as_bytes(), changed)?;
            trees.push((node, Arc::clone(tree)));
        }
        let mut composed = Composed::new(Arc::new(folder));
        for (node, tree) in trees {
            composed.graft(node, tree)?;
        }
        Ok(self.shown(composed.into_tree(), View::Volumes))
    }

    fn disk(mut self) -> Result<Shown> {
        match volume::scan(&self.disk.source) {
            Ok(table) => self.warnings.extend(table.into_iter().flat_map(|table| table.warnings)),
            Err(error) => self.warnings.push(error.to_string()),
        }
        self.disk_without_warnings()
    }

    fn disk_for_want_of_files(mut self, why: Error) -> Result<Shown> {
        self.warnings.push(format!("{why}: showing the disk"));
        Ok(Shown { no_files: Some(why), ..self.disk_without_warnings()? })
    }

    fn disk_without_warnings(self) -> Result<Shown> {
        let mut folder = self.folder();
        let root = folder.root();
        let changed = self.modified();
        // What the chain takes on the host bounds what any part of it can.
        let allocated = self.disk.chain.iter().map(|image| image.allocated);
        let allocated = allocated.fold(0, u64::saturating_add);
        let disk = &self.disk.source;
        // A table that cannot be read has been warned of.
        let table = volume::scan(disk).unwrap_or_default();
        let volumes = table.iter().flat_map(|table| &table.volumes);
        let Some(sink) = self.sink.clone() else {
            folder.add_file(root, b"disk.img", Arc::clone(disk), allocated, changed)?;
            for volume in volumes {
                let name = format!("p{}.img", volume.number);
                folder.add_file(root, name.as_bytes(), volume.window(disk)?, allocated, changed)?;
            }
            return Ok(self.shown(Arc::new(folder), View::Disk));
        };
        folder.add_sink(root, b"disk.img", Arc::clone(&sink), allocated, changed)?;
        for volume in volumes {
            let name = format!("p{}.img", volume.number);
            let window = Window::new(Arc::clone(&sink), volume.start, volume.len)?;
            folder.add_sink(root, name.as_bytes(), Arc::new(window), allocated, changed)?;
        }
        let tree = Served::Writable(Arc::new(folder));
        let Self { warnings, delta, .. } = self;
        Ok(Shown { tree, view: View::Disk, warnings, delta, no_files: None })
    }

    fn snapshots(self) -> Result<Shown> {
        let snapshots = &self.disk.snapshots;
        if snapshots.is_empty() {
            let error = Error::new(Kind::NotFound, "the image has no internal snapshots");
            return Err(error.with_hint("--view files shows the disk as it is now"));
        }
        // The folder we are in may change before a snapshot is entered, and so may the file of
        // that name: then it is an error, not another image's files.
        let path = std::path::absolute(&self.reference.path).map_err(Error::io)?;
        let identity = identity(&path)?;
        let mut folder = self.folder();
        let mut nodes = Vec::new();
        for (snapshot, name) in snapshots.iter().zip(names::snapshots(snapshots)) {
            let created = Time {
                seconds: i64::try_from(snapshot.created.0).unwrap_or(i64::MAX),
                nanos: snapshot.created.1.min(999_999_999),
            };
            nodes.push(folder.add_folder(folder.root(), name.as_bytes(), created)?);
        }
        let mut composed = Composed::new(Arc::new(folder));
        for (snapshot, node) in snapshots.iter().zip(nodes) {
            // An id comes before a name where both are the same.
            let key = if snapshot.id.is_empty() { &snapshot.name } else { &snapshot.id };
            let reference = Reference { path: path.clone(), snapshot: Some(key.clone()) };
            let opener = Arc::clone(self.opener);
            composed.graft_lazily(node, move || snapshot_files(&opener, &reference, identity))?;
        }
        Ok(self.shown(composed.into_tree(), View::Snapshots))
    }

    /// When the disk was last changed: of a snapshot, of when it is.
    fn modified(&self) -> Time {
        match &self.disk.stored {
            Some(stored) if self.disk.chain.is_empty() => stored.time(),
            _ => modified(&self.reference.path),
        }
    }

    fn folder(&self) -> Folder {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Folder::new(uid, gid, self.modified())
    }
}

/// The files of one snapshot, as the files view shows them.
fn snapshot_files(
    opener: &Opener,
    reference: &Reference,
    identity_then: (u64, u64),
) -> Result<Composed> {
    let name = || {
        let snapshot = reference.snapshot.as_deref().unwrap_or_default();
        format!("{}::{snapshot}", reference.path.display())
    };
    let disk = opener.disk(reference)?;
    if identity(&reference.path)? != identity_then {
        let message = "is another file than when it was mounted";
        return Err(Error::new(Kind::Io, message).within(name()));
    }
    let contents = Contents::look(&disk.source, &opener.cache).within(name)?;
    if contents.filesystems() == 0 {
        return Err(contents.nothing_known().within(name()));
    }
    let mut warnings = contents.warnings();
    let files = contents.files(&mut warnings);
    for warning in disk.warnings.iter().chain(&warnings) {
        log::warn!("{}: {warning}", names::printable(name().as_bytes()));
    }
    files.ok_or_else(|| {
        let message = "several filesystems, and none of them is the root of an operating system";
        Error::new(Kind::NotFound, message)
            .within(name())
            .with_hint("--view volumes with this snapshot shows each in a folder of its own")
    })
}

fn identity(path: &Path) -> Result<(u64, u64)> {
    let metadata = std::fs::metadata(path).within(|| path.display().to_string())?;
    Ok((metadata.dev(), metadata.ino()))
}

/// When the image was last changed.
fn modified(path: &Path) -> Time {
    std::fs::metadata(path).map_or(Time::default(), |metadata| Time {
        seconds: metadata.mtime(),
        nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests;
