//! What an entry must be to go into an index, and what one out of an index is.

use super::cause::Cause;
use super::format::{MOST_NAME, MOST_PATH, MOST_TARGET};
use crate::oci::tar::{Entry, EntryKind};

/// The plain form of a path: names and single slashes, no `.`, and `..` gone, which stops at the
/// root. The root is empty.
pub(super) fn plain(path: &[u8]) -> Result<Vec<u8>, Cause> {
    let mut plain = Vec::with_capacity(path.len());
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                let end = plain.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                plain.truncate(end);
            }
            name => {
                check_name(name)?;
                if !plain.is_empty() {
                    plain.push(b'/');
                }
                plain.extend_from_slice(name);
            }
        }
    }
    match plain.len() {
        len if len > MOST_PATH => Err(Cause::PathLength(len as u64, MOST_PATH)),
        _ => Ok(plain),
    }
}

fn check_name(name: &[u8]) -> Result<(), Cause> {
    if name.len() > MOST_NAME {
        return Err(Cause::NameLength(name.len()));
    }
    if memchr::memchr(0, name).is_some() {
        return Err(Cause::ZeroByte);
    }
    Ok(())
}

/// Fails unless a path is in its plain form.
fn check_path(path: &[u8]) -> Result<(), Cause> {
    if path.is_empty() {
        return Ok(());
    }
    let mut start = 0;
    for end in memchr::memchr_iter(b'/', path).chain([path.len()]) {
        let name = path.get(start..end).unwrap_or_default();
        if matches!(name, b"" | b"." | b"..") {
            return Err(Cause::Path);
        }
        check_name(name)?;
        start = end + 1;
    }
    Ok(())
}

/// Fails unless `entry` is one that an index may hold.
pub(super) fn check(entry: &Entry) -> Result<(), Cause> {
    check_path(&entry.path)?;
    match &entry.kind {
        EntryKind::HardLink(target) => check_path(target)?,
        EntryKind::Symlink(target) => {
            let len = target.len() as u64;
            if len == 0 || len > MOST_TARGET {
                return Err(Cause::Target(len));
            }
            if target.contains(&0) {
                return Err(Cause::ZeroByte);
            }
        }
        _ => {}
    }
    if entry.modified.nanos >= 1_000_000_000 {
        return Err(Cause::Nanos(entry.modified.nanos));
    }
    if entry.mode & !0o7777 != 0 {
        return Err(Cause::Field("mode", entry.mode.into()));
    }
    if entry.kind != EntryKind::File && entry.size > 0 {
        return Err(Cause::Contents(entry.size));
    }
    let mut end = 0;
    for run in &entry.runs {
        let fault = Cause::Run { at: run.at, len: run.len, size: entry.size };
        let run_end = run.at.checked_add(run.len).ok_or_else(|| fault.clone())?;
        if run.at < end || run.len == 0 || run_end > entry.size {
            return Err(fault);
        }
        end = run_end;
    }
    Ok(())
}

/// Fails unless the contents of `entry` lie in a tar of `tar_len` bytes.
pub(super) fn check_places(entry: &Entry, tar_len: u64) -> Result<(), Cause> {
    for run in &entry.runs {
        if run.place.checked_add(run.len).is_none_or(|end| end > tar_len) {
            return Err(Cause::Place { place: run.place, len: run.len, end: tar_len });
        }
    }
    Ok(())
}

/// Whether no kernel would take an attribute of that name.
pub(super) fn is_impossible(name: &[u8]) -> bool {
    let dot = name.iter().position(|&byte| byte == b'.');
    dot.is_none_or(|dot| dot == 0 || dot + 1 == name.len())
        || name.len() > MOST_NAME
        || name.contains(&0)
}
