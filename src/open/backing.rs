//! How a delta names the image it lies above.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::{Disk, Reference};
use crate::block::FileSource;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::qcow2;

/// The name and format of `reference`, which was opened as `disk`, as the backing file of a delta
/// at `delta`.
///
/// A file in the delta's folder tree is named from there, so that both can move; any other by its
/// absolute path. What no file name can say is named `strata:REF`.
///
/// # Errors
/// The host's.
pub fn name(reference: &Reference, disk: &Disk, delta: &Path) -> Result<(OsString, String)> {
    let named = || reference.path.display().to_string();
    let path = reference.path.canonicalize().within(named)?;
    if let Some(snapshot) = &reference.snapshot {
        let mut name = OsString::from("strata:");
        name.push(&path);
        name.push("::");
        name.push(snapshot);
        return Ok((name, "raw".into()));
    }
    let folder = std::path::absolute(delta).within(|| delta.display().to_string())?;
    let folder = folder.parent().and_then(|folder| folder.canonicalize().ok());
    let relative = folder.and_then(|folder| path.strip_prefix(folder).ok().map(Path::to_owned));
    let format = disk.chain.first().map_or("raw".into(), |image| image.format.to_string());
    Ok((relative.unwrap_or(path).into_os_string(), format))
}

/// Checks that the delta at `delta` lies above what `reference` named and was opened as `disk`;
/// its size in bytes.
///
/// # Errors
/// [`Kind::Usage`] if it lies above something else, [`Kind::Refused`] if it keeps its data in a
/// further file, and what reading its header finds.
pub fn check(reference: &Reference, disk: &Disk, delta: &Path) -> Result<u64> {
    let shown = || delta.display().to_string();
    let image = qcow2::open(Arc::new(FileSource::open(delta)?), shown())?;
    if let Some(data) = image.data_file()? {
        let message = format!("keeps its data in another file, \"{}\"", data.display());
        return Err(Error::new(Kind::Refused, message).within(shown()));
    }
    let Some(parent) = image.parent() else {
        let message = "is an image by itself, not the changes to another";
        return Err(Error::new(Kind::Usage, message)
            .within(shown())
            .with_hint("boot it by itself, or name a new file with --cow"));
    };
    let (expected, _) = name(reference, disk, delta)?;
    if parent.name == expected || is_same_file(&parent.name, reference, delta) {
        return Ok(image.virtual_size());
    }
    let message = format!("holds the changes to \"{}\"", parent.name.display());
    Err(Error::new(Kind::Usage, message)
        .within(shown())
        .with_hint("boot that image with it, or name a new file with --cow"))
}

fn is_same_file(name: &OsStr, reference: &Reference, delta: &Path) -> bool {
    let identity = |path: &Path| {
        let metadata = path.metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let folder = delta.parent().unwrap_or(Path::new(""));
    let theirs = identity(&folder.join(name));
    reference.snapshot.is_none() && theirs.is_some() && theirs == identity(&reference.path)
}
