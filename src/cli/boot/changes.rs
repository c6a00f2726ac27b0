//! Where the machine's writes go: a qcow2 delta, which QEMU opens itself.

use std::fs::{DirBuilder, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::qcow2::{Delta, NewDelta};
use crate::open::{Disk, Opener, Reference, cow};

/// Bytes of the disk, in whole sectors as a machine sees it.
fn size(disk: &Disk) -> Result<u64> {
    disk.source
        .len()
        .checked_next_multiple_of(512)
        .ok_or_else(|| Error::new(Kind::Unsupported, "a disk of more than 2^64 bytes"))
}

/// An open delta above `disk` that has no name and vanishes once it is closed.
///
/// It goes where QEMU itself puts such files: to `$TMPDIR`, or `/var/tmp`, which is no memory.
pub(super) fn throw_away(disk: &Disk) -> Result<OwnedFd> {
    let parent = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    let parent = parent.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    // Nobody else gets at the file in the moment that it has a name.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("strata-boot-{}-{}", std::process::id(), now.as_nanos());
    let folder = parent.join(name);
    DirBuilder::new().mode(0o700).create(&folder).within(|| folder.display().to_string())?;
    let path = folder.join("delta.qcow2");
    let opened = Delta::create(&path, &NewDelta { size: size(disk)?, backing: None })
        .and_then(|_| open(&path))
        .within(|| "the changes of the machine");
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_dir(&folder);
    opened
}

fn open(path: &Path) -> Result<OwnedFd> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(OwnedFd::from).within(|| path.display().to_string())
}

/// Makes the delta at `path` above `disk`, or checks that it is one; its name for QEMU.
pub(super) fn kept(
    path: &Path,
    opener: &Opener,
    reference: &Reference,
    disk: &Disk,
    dry_run: bool,
) -> Result<String> {
    let shown = || path.display().to_string();
    let Some(name) = path.to_str() else {
        let message = "QEMU takes no name that is not UTF-8";
        return Err(Error::new(Kind::Unsupported, message).within(shown()));
    };
    if path.is_dir() || name.ends_with('/') {
        let message = "is a folder: what a machine changes goes to a file";
        return Err(Error::new(Kind::Usage, message).within(shown()));
    }
    // A name that is there and leads nowhere is for the making of the file to refuse.
    if path.exists() {
        cow::belongs(opener, reference, disk, path)?;
    } else if !dry_run {
        cow::create(path, reference, disk, size(disk)?).within(shown)?;
    }
    Ok(name.to_owned())
}
