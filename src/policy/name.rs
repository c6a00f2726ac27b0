//! How an image may name another file: a plain path, `file:PATH`, or `json:` that says no more than
//! that. Everything else QEMU understands (`nbd:`, `http:`, `fat:`, other block drivers) would make
//! the image reach for more than a file, and is refused by name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::image::Format;

/// Longest name that is looked at: the host's longest path.
const MAX_LEN: usize = 4096;

/// A file an image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// The path, relative to the folder of the image or absolute.
    pub path: OsString,
    /// The format `json:` gave with it.
    pub format: Option<Format>,
}

impl Name {
    /// Understands `name` as QEMU would, or refuses it.
    pub(super) fn parse(name: &OsStr) -> Result<Self> {
        let bytes = name.as_bytes();
        if bytes.len() > MAX_LEN {
            return refused(format!("a name of {} bytes", bytes.len()));
        }
        if let Some(json) = bytes.strip_prefix(b"json:") {
            return from_json(json);
        }
        let path = match bytes.strip_prefix(b"file:") {
            Some(path) => path,
            None => {
                // A colon before the first slash ends a protocol.
                let stop = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
                if let Some(at) = stop.filter(|&at| bytes.get(at) == Some(&b':')) {
                    let protocol = String::from_utf8_lossy(&bytes[..at]);
                    return refused(format!("protocol \"{protocol}\": only files are opened"));
                }
                bytes
            }
        };
        Self::plain(path, None)
    }

    fn plain(path: &[u8], format: Option<Format>) -> Result<Self> {
        if path.is_empty() {
            return refused("an empty name");
        }
        if path.contains(&0) {
            return refused("a name with a NUL byte");
        }
        if path.starts_with(br"\\") {
            return refused("a UNC path: only files of this machine are opened");
        }
        Ok(Self { path: OsString::from_vec(path.to_vec()), format })
    }
}

fn refused<T>(message: impl Into<std::borrow::Cow<'static, str>>) -> Result<T> {
    Err(Error::new(Kind::Refused, message))
}

/// Options that change how QEMU reads a file, but not which file or which bytes.
const HARMLESS: &[&str] = &[
    "aio",
    "aio-max-batch",
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "detect-zeroes",
    "discard",
    "drop-cache",
    "force-share",
    "locking",
    "node-name",
    "read-only",
];

fn from_json(json: &[u8]) -> Result<Name> {
    let Ok(Value::Object(object)) = serde_json::from_slice(json) else {
        return refused("a json: name that is no JSON object");
    };
    let mut options = Vec::new();
    flatten("", Value::Object(object), &mut options);
    let (mut driver, mut file_driver) = (None, None);
    let (mut filename, mut file_filename) = (None, None);
    for (key, value) in options {
        let slot = match key.as_str() {
            "driver" => &mut driver,
            "file.driver" => &mut file_driver,
            "filename" => &mut filename,
            "file.filename" => &mut file_filename,
            other => {
                let option = other.strip_prefix("file.").unwrap_or(other);
                if HARMLESS.contains(&option) {
                    continue;
                }
                return refused(format!("json: option \"{other}\": only plain files are opened"));
            }
        };
        let Value::String(text) = value else {
            return refused(format!("json: option \"{key}\" that is no string"));
        };
        // `file` given both as an object and flattened.
        if slot.replace(text).is_some() {
            return refused(format!("json: option \"{key}\" given twice"));
        }
    }
    if let Some(driver) = file_driver.filter(|driver| driver != "file") {
        return refused(format!("json: driver \"{driver}\": only plain files are opened"));
    }
    let format = match driver.as_deref() {
        None => None,
        Some("qcow2") => Some(Format::Qcow2),
        Some("raw") => Some(Format::Raw),
        // The protocol by itself: the bytes of the file as they are.
        Some("file") if file_filename.is_none() => Some(Format::Raw),
        Some(other) => {
            return refused(format!("json: driver \"{other}\": only plain files are opened"));
        }
    };
    let protocol = driver.as_deref() == Some("file");
    match (filename, file_filename) {
        (Some(path), None) if protocol => Name::plain(path.as_bytes(), format),
        (None, Some(path)) => Name::plain(path.as_bytes(), format),
        (Some(_), _) => refused("json: option \"filename\" of a driver that has none"),
        (None, None) => refused("a json: name without a file name"),
    }
}

/// Nested objects become dotted keys, as QEMU reads them. The parser bounds the depth.
fn flatten(prefix: &str, value: Value, options: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                flatten(&key, value, options);
            }
        }
        value => options.push((prefix.to_owned(), value)),
    }
}
