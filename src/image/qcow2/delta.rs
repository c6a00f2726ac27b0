//! STUB: a delta made by qemu-img.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Kind, Result, ResultExt};

/// What a new delta is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewDelta<'a> {
    /// Bytes of its disk.
    pub size: u64,
    /// The image it lies above.
    pub backing: Option<Backing<'a>>,
}

/// The image below, as the delta names it.
#[derive(Debug, Clone, Copy)]
pub struct Backing<'a> {
    /// Its name.
    pub name: &'a OsStr,
    /// Its format.
    pub format: &'a str,
}

/// A qcow2 image that takes writes.
#[derive(Debug)]
pub struct Delta;

impl Delta {
    /// Makes a delta at `path`, where nothing is yet.
    ///
    /// # Errors
    /// What qemu-img says.
    pub fn create(path: &Path, new: &NewDelta<'_>) -> Result<Self> {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-u", "-f", "qcow2"]);
        if let Some(backing) = new.backing {
            command.arg("-b").arg(backing.name).args(["-F", backing.format]);
        }
        let made = command.arg(path).arg(new.size.to_string()).output().within(|| "qemu-img")?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            return Err(Error::new(Kind::Io, said));
        }
        Ok(Self)
    }
}
