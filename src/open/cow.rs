//! Where changes go: a delta above a disk, or an upper above a tree.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, Opener, Reference};
use crate::block::{BlockSink, BlockSource, Extent, FileSource, Origin};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::Format;
use crate::image::qcow2::{self, Backing, Delta, NewDelta};
use crate::policy::{Gate, Policy};
use crate::tree::overlay::Overlay;
use crate::tree::{FileTree, WritableTree};

/// Where changes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cow {
    /// Into a qcow2 overlay of the disk, which is made if it is not there.
    Delta {
        /// The overlay.
        path: PathBuf,
        /// The size the disk is to have, in bytes, if not the one it has. It only grows.
        size: Option<u64>,
    },
    /// Into an overlay that vanishes.
    Scratch {
        /// As above.
        size: Option<u64>,
    },
    /// Into a folder in the form of the kernel's overlayfs, which is made if it is not there.
    Upper {
        /// The folder.
        dir: PathBuf,
        /// A folder of the same filesystem for what is not finished; beside `dir` if `None`.
        work: Option<PathBuf>,
    },
}

/// A throw-away delta. Nobody reads it after us: there is nothing to bring to stable storage, and no room
/// needed for that.
#[derive(Debug)]
pub(super) struct Scratch(pub(super) Arc<Delta>);

impl BlockSource for Scratch {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.0.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        self.0.origin_at(offset)
    }

    fn whole_file(&self) -> Option<&File> {
        self.0.whole_file()
    }
}

impl BlockSink for Scratch {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.0.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// What the changes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be looked at: nothing is written, not even to a delta that was not closed.
    Read,
    /// To be made.
    Change,
}

/// Opens the delta `cow` above `disk`, which `reference` named, to be written.
///
/// The delta is made if it is not there. One that is there must have been made above this very
/// image, and snapshot of it.
pub(super) fn delta(
    opener: &Opener,
    reference: &Reference,
    disk: &Disk,
    cow: &Cow,
) -> Result<Arc<Delta>> {
    let (path, size) = match cow {
        Cow::Delta { path, size } => (path.clone(), *size),
        Cow::Scratch { size } => return scratch(reference, disk, *size),
        Cow::Upper { .. } => return Err(Error::new(Kind::Usage, "an upper is no delta")),
    };
    let named = || path.display().to_string();
    if path.symlink_metadata().is_ok() {
        belongs(opener, reference, disk, &path)?;
    } else {
        create(&path, reference, disk, size.unwrap_or(disk.source.len())).within(named)?;
    }
    let below = Arc::clone(&disk.source);
    // It names the file in what it says.
    Ok(Arc::new(Delta::open(&path, Some(below), size)?))
}

/// A delta that has no name once it is open: it goes with whoever holds it, however that ends.
fn scratch(reference: &Reference, disk: &Disk, size: Option<u64>) -> Result<Arc<Delta>> {
    let folder = std::env::temp_dir();
    let name = format!(".strata-{}-{:x}.qcow2", std::process::id(), RandomState::new().hash_one(0));
    let path = folder.join(name);
    let named = || format!("a throw-away delta in {}", folder.display());
    let opened = create(&path, reference, disk, size.unwrap_or(disk.source.len()))
        .and_then(|()| Delta::open(&path, Some(Arc::clone(&disk.source)), None));
    // Were it kept on failure, nobody would know of it.
    let removed = std::fs::remove_file(&path);
    let opened = opened.within(named)?;
    removed.within(named)?;
    Ok(Arc::new(opened))
}

/// Makes a delta of `size` bytes above `disk`, which `reference` named.
///
/// # Errors
/// [`Kind::Usage`] if the disk is larger, and as [`Delta::create`].
pub(crate) fn create(path: &Path, reference: &Reference, disk: &Disk, size: u64) -> Result<()> {
    let len = disk.source.len();
    if size < len {
        let message = format!("a size of {size} bytes is less than the disk has, {len}");
        return Err(Error::new(Kind::Usage, message));
    }
    let name = backing_name(reference, disk, path)?;
    let format = disk.chain.first().map_or(Format::Raw, |top| top.format).to_string();
    let backing = Backing { name: &name, format: &format };
    Delta::create(path, &NewDelta { size, backing: Some(backing) })
}

/// What a delta at `path` calls what `reference` named: a path that QEMU follows, too, where a
/// path says it all, relative if the image lies in the delta's folder.
fn backing_name(reference: &Reference, disk: &Disk, path: &Path) -> Result<OsString> {
    let named = || reference.path.display().to_string();
    let image = reference.clone().absolute()?.path;
    let folder = std::path::absolute(path).within(|| path.display().to_string())?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    let inside = match (image.canonicalize(), folder.canonicalize()) {
        (Ok(image), Ok(folder)) => image.strip_prefix(folder).map(Path::to_owned).ok(),
        _ => None,
    };
    let mut name = match inside {
        // A colon before the first slash would be read as a protocol.
        Some(inside) if inside.as_os_str().as_bytes().contains(&b':') => {
            Path::new(".").join(inside)
        }
        Some(inside) => inside,
        None => image,
    }
    .into_os_string();
    if let Some(snapshot) = &reference.snapshot {
        let id = snapshot_id(disk, snapshot);
        if id.contains("::") {
            let message = format!("a delta above a snapshot called \"{id}\"");
            return Err(Error::new(Kind::Unsupported, message).within(named()));
        }
        let mut own = OsString::from(OWN_NAME);
        own.push(name);
        own.push("::");
        own.push(id);
        name = own;
    }
    Ok(name)
}

/// What a backing name begins with that says more than a path can. QEMU refuses it as a protocol it
/// does not know.
pub(crate) const OWN_NAME: &str = "strata:";

/// A backing name taken apart: the name of the file, and a snapshot of it.
pub(super) fn parse_backing(name: &OsStr) -> (&OsStr, Option<String>) {
    let Some(own) = name.as_bytes().strip_prefix(OWN_NAME.as_bytes()) else { return (name, None) };
    // A path may contain colons: what is written here as a snapshot does not.
    match own.windows(2).rposition(|two| two == b"::") {
        Some(at) => {
            let snapshot = String::from_utf8_lossy(&own[at + 2..]).into_owned();
            (OsStr::from_bytes(&own[..at]), Some(snapshot))
        }
        None => (OsStr::from_bytes(own), None),
    }
}

/// The id of the snapshot that `name` names: its id, or else its name.
fn snapshot_id(disk: &Disk, name: &str) -> String {
    let all = disk.snapshots.iter();
    let found = all.clone().find(|snapshot| snapshot.id == name);
    let found = found.or_else(|| all.clone().find(|snapshot| snapshot.name == name));
    found.map(|found| &found.id).filter(|id| !id.is_empty()).map_or(name, String::as_str).to_owned()
}

/// Makes sure that the image at `path` is a delta above what `reference` named.
pub(crate) fn belongs(
    opener: &Opener,
    reference: &Reference,
    disk: &Disk,
    path: &Path,
) -> Result<()> {
    let named = || path.display().to_string();
    let source = FileSource::open(path)?;
    // The person named the image: it may be opened wherever it lies.
    let mut policy = Policy { no_backing: false, ..opener.policy.clone() };
    policy.allow_paths.push(reference.path.clone());
    let gate = Gate::new(&policy, &source)?;
    let image = qcow2::open(Arc::new(source), named())?;
    let other = |message: String| {
        let hint = "give the image it was made above, or another delta";
        Err(Error::new(Kind::Usage, message).within(named()).with_hint(hint))
    };
    let Some(parent) = image.parent() else {
        return other("has no backing file: it is a disk of its own, and no delta".into());
    };
    let (name, snapshot) = parse_backing(&parent.name);
    let folder = std::path::absolute(path).within(named)?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    let same = if reference.is_stored() {
        let below = folder.join(name).canonicalize();
        // The name of a bucket is no path.
        name == reference.path.as_os_str()
            || below
                .is_ok_and(|below| reference.path.canonicalize().is_ok_and(|path| path == below))
    } else {
        // What may not be opened is not what the person named.
        let below = gate.open(name, folder);
        let identity = FileSource::open(&reference.path)?.identity();
        below.is_ok_and(|below| below.source.identity() == identity)
    };
    let wanted = reference.snapshot.as_deref().map(|name| snapshot_id(disk, name));
    if same && snapshot == wanted {
        return Ok(());
    }
    let told = |path: &Path, snapshot: Option<String>| match snapshot {
        Some(snapshot) => format!("{}::{snapshot}", path.display()),
        None => path.display().to_string(),
    };
    let (is, asked) = (told(Path::new(name), snapshot), told(&reference.path, wanted));
    other(format!("is a delta above {is}, not above {asked}"))
}

/// Opens the upper `cow` above `tree`.
pub(super) fn upper(
    tree: Arc<dyn FileTree>,
    cow: &Cow,
    purpose: Purpose,
) -> Result<Arc<dyn WritableTree>> {
    let Cow::Upper { dir, work } = cow else {
        return Err(Error::new(Kind::Usage, "a tree of files has its changes in a folder"));
    };
    let overlay = Overlay::open(tree, dir, work.as_deref(), purpose == Purpose::Change)?;
    Ok(Arc::new(overlay))
}
