//! Names out of an image made fit for a folder, and for a line on a terminal.

use std::collections::{HashMap, HashSet};

use crate::image::SnapshotInfo;
use crate::volume::Volume;

/// Bytes of a name taken from an image, at most.
const MOST: usize = 100;

/// `text` as part of a file name: no slash, no control characters, at most 100 bytes.
fn part(text: &str) -> String {
    let mut name = String::new();
    for letter in text.trim().chars() {
        let letter = if letter == '/' || letter.is_control() { '_' } else { letter };
        if name.len() + letter.len_utf8() > MOST {
            break;
        }
        name.push(letter);
    }
    // A cut may have left a blank at the end.
    name.truncate(name.trim_end().len());
    name
}

/// Text out of an image for a message: control characters are escaped.
pub(super) fn printable(text: &[u8]) -> String {
    let mut line = String::new();
    for letter in String::from_utf8_lossy(text).chars() {
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

/// What a message calls a volume: `volume 2 (Linux filesystem)`, or the disk itself.
pub(super) fn place(volume: Option<&Volume>) -> String {
    match volume {
        Some(volume) => format!("volume {} ({})", volume.number, volume.kind),
        None => "the disk".to_owned(),
    }
}

/// The folder of a volume, `2-root`: unlike every other of the disk, for its number.
pub(super) fn volume(volume: &Volume, label: Option<&str>) -> String {
    let told = told_name(volume).map(part).filter(|name| !name.is_empty());
    let label = || label.map(part).filter(|name| !name.is_empty());
    let kind = || volume.short_kind().map(str::to_owned);
    match told.or_else(label).or_else(kind) {
        Some(name) => format!("{}-{name}", volume.number),
        None => volume.number.to_string(),
    }
}

/// The partition's own name, unless it is what a tool writes when it is told none.
fn told_name(volume: &Volume) -> Option<&str> {
    volume.name.as_deref().filter(|name| *name != volume.kind)
}

/// The folder of the one filesystem on a disk without partitions.
pub(super) fn whole_disk(label: Option<&str>, kind: &str) -> String {
    match label.map(part) {
        Some(name) if !matches!(name.as_str(), "" | "." | "..") => name,
        _ => kind.to_owned(),
    }
}

/// One folder name for each snapshot, all different: its name, or with others of the same name
/// `name (id)`, or its id if it has none.
pub(super) fn snapshots(snapshots: &[SnapshotInfo]) -> Vec<String> {
    let plain = |snapshot: &SnapshotInfo| match part(&snapshot.name) {
        name if matches!(name.as_str(), "" | "." | "..") => part(&snapshot.id),
        name => name,
    };
    let mut count: HashMap<String, usize> = HashMap::new();
    for snapshot in snapshots {
        *count.entry(plain(snapshot)).or_default() += 1;
    }
    let mut taken = HashSet::new();
    let unique = |snapshot| {
        let name = plain(snapshot);
        let id = part(&snapshot.id);
        let alone = count.get(&name) == Some(&1) && !matches!(name.as_str(), "" | "." | "..");
        let base = if alone { name } else { format!("{name} ({id})") };
        // Ids are different in an honest image, and names may look like `name (id)`.
        let mut unique = base.clone();
        let mut again = 2u32;
        while !taken.insert(unique.clone()) {
            unique = format!("{base} [{again}]");
            again += 1;
        }
        unique
    };
    snapshots.iter().map(unique).collect()
}

#[cfg(test)]
mod tests;
