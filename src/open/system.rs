//! The operating system on a disk: which filesystem is its root, and what its `/etc/fstab` puts
//! where.

use std::sync::Arc;

use super::fstab::{self, Device, Entry, Purpose};
use super::names::{place, printable};
use crate::block::{BlockSource, Cache};
use crate::error::{Error, Kind, Result};
use crate::fs::{self, Filesystem};
use crate::tree::composed::Composed;
use crate::tree::path::{self, Follow};
use crate::tree::{FileKind, FileTree};
use crate::volume::{self, Table, Volume};

/// Bytes read of a configuration file at most.
const MOST_BYTES: u64 = 1 << 20;

/// What lies on a disk.
#[derive(Debug)]
pub(super) struct Contents {
    /// The partition table.
    pub(super) table: Option<Table>,
    /// Each volume; or one that is the whole disk.
    pub(super) places: Vec<Place>,
}

/// A volume, or the whole disk, and what is there.
#[derive(Debug)]
pub(super) struct Place {
    /// `None` for the whole disk.
    pub(super) volume: Option<Volume>,
    pub(super) found: Found,
}

/// What is at a place.
#[derive(Debug)]
pub(super) enum Found {
    Filesystem(Filesystem),
    /// A filesystem that cannot be opened.
    Failed(Error),
    /// No filesystem that is known here; by its signature it is this.
    Unknown(Option<&'static str>),
}

impl Place {
    fn look(volume: Option<Volume>, disk: &Arc<dyn BlockSource>, cache: &Arc<Cache>) -> Self {
        let source = match &volume {
            Some(volume) => volume.window(disk),
            None => Ok(Arc::clone(disk)),
        };
        let found = source.and_then(|source| {
            Ok(match fs::open(Arc::clone(&source), cache)? {
                Some(filesystem) => Found::Filesystem(filesystem),
                None => Found::Unknown(fs::identify(&*source)?),
            })
        });
        Self { volume, found: found.unwrap_or_else(Found::Failed) }
    }

    pub(super) fn filesystem(&self) -> Option<&Filesystem> {
        match &self.found {
            Found::Filesystem(filesystem) => Some(filesystem),
            Found::Failed(_) | Found::Unknown(_) => None,
        }
    }

    /// What a message calls it.
    pub(super) fn name(&self) -> String {
        place(self.volume.as_ref())
    }
}

impl Contents {
    /// Looks at all volumes of `disk`, or at the disk as a whole if it has none with a filesystem.
    ///
    /// # Errors
    /// As [`volume::scan`]. What is wrong with one volume is told in its place.
    pub(super) fn look(disk: &Arc<dyn BlockSource>, cache: &Arc<Cache>) -> Result<Self> {
        let table = volume::scan(disk)?;
        let volumes = table.iter().flat_map(|table| &table.volumes);
        let places: Vec<Place> =
            volumes.map(|volume| Place::look(Some(volume.clone()), disk, cache)).collect();
        // A boot sector may look like a table.
        if places.iter().all(|place| matches!(place.found, Found::Unknown(_))) {
            let whole = Place::look(None, disk, cache);
            if places.is_empty() || whole.filesystem().is_some() {
                return Ok(Self { table, places: vec![whole] });
            }
        }
        Ok(Self { table, places })
    }

    /// What an operator should know, one line each.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings =
            self.table.as_ref().map(|table| table.warnings.clone()).unwrap_or_default();
        for place in &self.places {
            match &place.found {
                Found::Filesystem(Filesystem { info, .. }) => {
                    let lines = info.warnings.iter();
                    warnings.extend(lines.map(|line| format!("{}: {line}", place.name())));
                }
                Found::Failed(error) => warnings.push(format!("{}: {error}", place.name())),
                Found::Unknown(_) => {}
            }
        }
        warnings
    }

    /// What is on the volumes that are not shown for want of a reader, if there are any.
    pub(super) fn others(&self) -> Option<String> {
        let others = self.places.iter().filter_map(|place| match place.found {
            Found::Unknown(Some(what)) => Some(format!("{} holds {what}", place.name())),
            Found::Unknown(None) => Some(place.name()),
            Found::Filesystem(_) | Found::Failed(_) => None,
        });
        let others: Vec<String> = others.collect();
        (!others.is_empty())
            .then(|| format!("not shown: {} (--view disk has the bytes)", others.join(", ")))
    }

    /// How many filesystems could be opened.
    pub(super) fn filesystems(&self) -> usize {
        self.places.iter().filter(|place| place.filesystem().is_some()).count()
    }

    /// Why there is not a single filesystem.
    pub(super) fn nothing_known(self) -> Error {
        let mut seen = Vec::new();
        for place in self.places {
            let name = place.name();
            match place.found {
                Found::Failed(error) => return error.within(name),
                Found::Unknown(Some(what)) => seen.push(format!("{name} holds {what}")),
                Found::Unknown(None) | Found::Filesystem(_) => {}
            }
        }
        let error = if seen.is_empty() {
            Error::new(Kind::NotFound, "no filesystem and no partition with one on this disk")
        } else {
            let message = format!("no filesystem that can be read: {}", seen.join(", "));
            Error::new(Kind::Unsupported, message)
        };
        error.with_hint("--view disk shows the disk itself")
    }

    /// The place of the operating system's root filesystem, and the others that have one too.
    ///
    /// The first of: a root whose own `/etc/fstab` says that it is the root; one whose partition
    /// type says so; the first there is.
    fn roots(&self) -> Option<(&Place, Vec<&Place>)> {
        let mut roots: Vec<&Place> =
            self.places.iter().filter(|place| place.filesystem().is_some_and(is_system)).collect();
        let says_so = |place: &&Place| {
            place.filesystem().is_some_and(|filesystem| {
                let entries = table_of(&*filesystem.tree);
                entries.iter().any(|entry| {
                    let device = entry.device();
                    entry.is_root() && is_device(&device, place, filesystem, |_| true)
                })
            })
        };
        let typed = |place: &&Place| place.volume.as_ref().is_some_and(Volume::is_root_type);
        let best = if roots.len() == 1 {
            0
        } else {
            roots.iter().position(says_so).or_else(|| roots.iter().position(typed)).unwrap_or(0)
        };
        if roots.is_empty() {
            return None;
        }
        let root = roots.remove(best);
        Some((root, roots))
    }

    /// The place of the operating system's root filesystem, or of the only filesystem.
    pub(super) fn root(&self) -> Option<&Place> {
        if let Some((root, _)) = self.roots() {
            return Some(root);
        }
        let mut filesystems = self.places.iter().filter(|place| place.filesystem().is_some());
        filesystems.next().filter(|_| self.filesystems() == 1)
    }

    /// The operating system's name, as it calls itself.
    pub(super) fn system_name(&self) -> Option<String> {
        let (root, _) = self.roots()?;
        let tree = &*root.filesystem()?.tree;
        let text = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| read_file(tree, path.as_bytes()).ok())?;
        pretty_name(&text)
    }

    /// The files of the disk as its operating system sees them, or those of the one filesystem
    /// there is; `None` if there are several and none is a system's root.
    pub(super) fn files(&self, warnings: &mut Vec<String>) -> Option<Composed> {
        let Some((root, others)) = self.roots() else {
            let mut filesystems = self.places.iter().filter_map(Place::filesystem);
            let only = filesystems.next().filter(|_| self.filesystems() == 1)?;
            warnings.extend(self.others());
            return Some(Composed::new(Arc::clone(&only.tree)));
        };
        if !others.is_empty() {
            let others: Vec<String> = others.iter().map(|place| place.name()).collect();
            warnings.push(format!(
                "showing the system on {}; there is another on {} (--view volumes shows all)",
                root.name(),
                others.join(", ")
            ));
        }
        let tree = Arc::clone(&root.filesystem()?.tree);
        let mut entries = table_of(&*tree);
        let mut composed = Composed::new(tree);
        // What the guest called this disk, as its root entry tells.
        let own = entries.iter().filter(|entry| entry.is_root()).find_map(|entry| {
            match (entry.device(), &root.volume) {
                (Device::Partition { disk, number }, Some(volume)) if number == volume.number => {
                    Some(disk)
                }
                _ => None,
            }
        });
        let is_own = |disk: &str| match &own {
            Some(own) => own == disk,
            None => is_first_disk(disk),
        };
        // Stable: of two entries for one folder, the later one is on top.
        entries.sort_by_key(Entry::depth);
        for entry in entries.iter().filter(|entry| !entry.is_root()) {
            if let Err(fault) = self.mount(&mut composed, entry, is_own) {
                let at = printable(&entry.at);
                warnings.push(format!("{at} of /etc/fstab is not shown: {fault}"));
            }
        }
        Some(composed)
    }

    /// Grafts what `entry` mounts; `Err` says why that is not possible.
    fn mount(
        &self,
        composed: &mut Composed,
        entry: &Entry,
        is_own: impl Fn(&str) -> bool,
    ) -> std::result::Result<(), String> {
        let what = printable(entry.what.as_bytes());
        match entry.purpose() {
            Purpose::Filesystem => {}
            Purpose::Transient => return Ok(()),
            Purpose::Elsewhere => return Err(format!("{what} is not on this disk")),
            Purpose::Bind => return Err(format!("it is {what}, which is shown there")),
        }
        let device = entry.device();
        let found = self.places.iter().find_map(|place| {
            let filesystem = place.filesystem()?;
            is_device(&device, place, filesystem, &is_own).then_some(filesystem)
        });
        let Some(filesystem) = found else {
            // A CD drive, a stick: nobody expects them here.
            if entry.is_noauto() {
                return Ok(());
            }
            let kind = printable(entry.kind.as_bytes());
            return Err(format!("no filesystem that can be read here is {what} ({kind})"));
        };
        let grafted = path::resolve(&*composed, &entry.at, Follow::Always)
            .and_then(|at| composed.graft(at, Arc::clone(&filesystem.tree)));
        grafted.map_err(|error| error.to_string())
    }
}

/// Whether `device` is the filesystem at `place`; `is_own` says whether the guest called this
/// disk so.
fn is_device(
    device: &Device,
    place: &Place,
    filesystem: &Filesystem,
    is_own: impl Fn(&str) -> bool,
) -> bool {
    let volume = place.volume.as_ref();
    let same = |ours: Option<&String>, theirs: &str| {
        ours.is_some_and(|ours| ours.eq_ignore_ascii_case(theirs))
    };
    match device {
        Device::Uuid(uuid) => same(filesystem.info.uuid.as_ref(), uuid),
        Device::Label(label) => filesystem.info.label.as_ref() == Some(label),
        Device::PartUuid(uuid) => same(volume.and_then(|volume| volume.uuid.as_ref()), uuid),
        Device::PartLabel(name) => volume.and_then(|volume| volume.name.as_ref()) == Some(name),
        Device::Partition { disk, number } => {
            volume.map_or(0, |volume| volume.number) == *number && is_own(disk)
        }
        Device::Other => false,
    }
}

/// Whether a guest with one disk calls it so.
fn is_first_disk(name: &str) -> bool {
    matches!(name, "sda" | "vda" | "hda" | "xvda" | "ubda" | "nvme0n1" | "mmcblk0")
}

/// Whether these are the files of an operating system.
fn is_system(filesystem: &Filesystem) -> bool {
    let has =
        |path: &str| path::resolve(&*filesystem.tree, path.as_bytes(), Follow::ExceptLast).is_ok();
    has("/etc/fstab")
        || has("/etc/os-release")
        || has("/usr/lib/os-release")
        || (has("/etc/") && (has("/bin") || has("/usr/")))
}

/// The entries of its `/etc/fstab`; a missing or unreadable one has none.
fn table_of(tree: &dyn FileTree) -> Vec<Entry> {
    read_file(tree, b"/etc/fstab").map(|text| fstab::parse(&text)).unwrap_or_default()
}

/// A configuration file, as far as it is of reasonable size.
fn read_file(tree: &dyn FileTree, path: &[u8]) -> Result<Vec<u8>> {
    let node = path::resolve(tree, path, Follow::Always)?;
    let attr = tree.attr(node)?;
    if attr.kind != FileKind::Regular {
        return Err(Error::new(Kind::Usage, "is not a regular file"));
    }
    let mut bytes = vec![0; usize::try_from(attr.size.min(MOST_BYTES)).unwrap_or(0)];
    let len = tree.read_at(node, 0, &mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

/// `PRETTY_NAME` of os-release(5), else `NAME`.
fn pretty_name(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let value = |key: &str| {
        let line =
            text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        let value = line.trim();
        let quoted = ['"', '\''].iter().find_map(|&quote| {
            value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote))
        });
        let mut plain = String::new();
        let mut escaped = false;
        for letter in quoted.unwrap_or(value).chars().take(200) {
            escaped = letter == '\\' && !escaped;
            if !escaped {
                plain.push(letter);
            }
        }
        Some(printable(plain.as_bytes())).filter(|name| !name.is_empty())
    };
    value("PRETTY_NAME").or_else(|| value("NAME"))
}

#[cfg(test)]
mod tests;
