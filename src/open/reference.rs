//! References: what the person wrote, taken apart.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, ResultExt};
use crate::store::objects::Location;

/// What to open: `disk.qcow2`, or `disk.qcow2::before-upgrade` for an internal snapshot of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The image.
    pub path: PathBuf,
    /// The id or name of an internal snapshot.
    pub snapshot: Option<String>,
}

impl Reference {
    /// The reference as a person would write it.
    pub fn text(&self) -> OsString {
        let mut text = self.path.clone().into_os_string();
        if let Some(snapshot) = &self.snapshot {
            text.push("::");
            text.push(snapshot);
        }
        text
    }
}

impl Reference {
    /// The same in whatever folder this program is later.
    ///
    /// # Errors
    /// The host's.
    pub fn absolute(mut self) -> Result<Self, Error> {
        if !Location::is_bucket(&self.path) {
            let path = std::path::absolute(&self.path);
            self.path = path.within(|| self.path.display().to_string())?;
        }
        Ok(self)
    }
}

impl From<&OsStr> for Reference {
    /// Takes a reference apart at a `::`. A file of the whole name wins, and then the leftmost
    /// `::` that has a file before it: both paths and snapshot names may contain `::`.
    fn from(text: &OsStr) -> Self {
        if Path::new(text).exists() {
            return Self { path: text.into(), snapshot: None };
        }
        let bytes = text.as_bytes();
        let mut splits = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"::"));
        let split = |at: usize| {
            let snapshot = String::from_utf8_lossy(&bytes[at + 2..]).into_owned();
            Self { path: OsStr::from_bytes(&bytes[..at]).into(), snapshot: Some(snapshot) }
        };
        let Some(first) = splits.clone().next() else {
            return Self { path: text.into(), snapshot: None };
        };
        split(splits.find(|&at| split(at).path.exists()).unwrap_or(first))
    }
}

impl From<&Path> for Reference {
    fn from(path: &Path) -> Self {
        path.as_os_str().into()
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(OsStr::new(text).into())
    }
}
