//! The entries of a table of contents made into the index of a layer.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::cause::Cause;
use super::json::Raw;
use super::table::{Chunk, Writer};
use crate::error::{Error, Result};
use crate::oci::layer::Builder;
use crate::oci::tar::{Entry, EntryKind, Run};
use crate::tree::{Device, Time};

/// Takes the entries in their order, which has to be that of the blob.
#[derive(Debug)]
pub(super) struct Collect {
    pub(super) builder: Builder,
    pub(super) table: Writer,
    /// A regular file whose chunks are still coming.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    entry: Entry,
    /// Bytes of it that chunks were told of.
    filled: u64,
    /// Where the last of its chunks ends in the blob; 0 if that is not told.
    end: u64,
}

impl Collect {
    /// For a blob that has contents of files up to `limit`.
    pub(super) fn new(limit: u64) -> Result<Self> {
        Ok(Self { builder: Builder::new()?, table: Writer::new(limit), open: None })
    }

    /// Takes the next entry.
    pub(super) fn take(&mut self, raw: Raw) -> Result<()> {
        let name: String = raw.name.chars().take(4096).collect();
        self.add(raw).map_err(|error| error.within(format!("\"{name}\"")))
    }

    fn add(&mut self, raw: Raw) -> Result<()> {
        if raw.kind == "chunk" {
            let mut open = self.open.take().ok_or(Cause::Stray)?;
            if !raw.name.is_empty() && raw.name.as_bytes() != open.entry.path {
                return Err(Cause::Stray.into());
            }
            self.chunk(&raw, &mut open)?;
            self.open = Some(open);
            return Ok(());
        }
        self.finish_file()?;
        let entry = entry(&raw)?;
        if entry.kind != EntryKind::File {
            return self.builder.add(entry);
        }
        let end = number("end of contents", raw.end_offset)?;
        let mut open = Open { entry, filled: 0, end };
        if open.entry.size > 0 {
            self.chunk(&raw, &mut open)?;
        }
        self.open = Some(open);
        Ok(())
    }

    /// Takes a chunk of the open file.
    fn chunk(&mut self, raw: &Raw, open: &mut Open) -> Result<(), Cause> {
        let size = open.entry.size;
        let found = number("chunk offset", raw.chunk_offset)?;
        let left = size.saturating_sub(open.filled);
        if found != open.filled || left == 0 {
            return Err(Cause::Order { wanted: open.filled, found });
        }
        let len = match number("chunk size", raw.chunk_size)? {
            0 => left,
            len if len > left => return Err(Cause::ChunkLength { len, most: left }),
            len => len,
        };
        let at = number("offset", raw.offset)?;
        match &*raw.chunk_type {
            "" => {}
            // They are stored, too, and need not be fetched.
            "zeros" => {
                if at > 0 {
                    self.table.close(at)?;
                }
                open.filled += len;
                return Ok(());
            }
            other => return Err(Cause::Type(other.to_owned())),
        }
        let whole = len == size;
        let digest = match &*raw.chunk_digest {
            "" if whole => &raw.digest,
            digest => digest,
        };
        let inner = number("inner offset", raw.inner_offset)?;
        let place = self.table.add(at, Chunk { inner, len, digest: sha256(digest)? })?;
        match open.entry.runs.last_mut() {
            Some(run) if run.at + run.len == open.filled && run.place + run.len == place => {
                run.len += len;
            }
            _ => open.entry.runs.push(Run { at: open.filled, len, place }),
        }
        open.filled += len;
        Ok(())
    }

    /// Ends the file whose chunks were coming, and with it the last one of all.
    pub(super) fn finish_file(&mut self) -> Result<()> {
        let Some(Open { entry, filled, end }) = self.open.take() else { return Ok(()) };
        if filled != entry.size {
            let gap = Error::from(Cause::Gap { filled, size: entry.size });
            return Err(gap.within(format!("\"{}\"", String::from_utf8_lossy(&entry.path))));
        }
        if end > 0 && !entry.runs.is_empty() {
            self.table.close(end)?;
        }
        self.builder.add(entry)
    }
}

/// A number that is not negative.
fn number<T: TryFrom<i64>>(field: &'static str, value: i64) -> Result<T, Cause> {
    T::try_from(value).map_err(|_| Cause::Number { field, value })
}

/// The bytes of a name. What JSON could not hold was replaced when it was written.
fn name(text: &str) -> Result<Vec<u8>, Cause> {
    match text.contains('\u{fffd}') {
        true => Err(Cause::Name),
        false => Ok(text.as_bytes().to_vec()),
    }
}

pub(super) fn sha256(text: &str) -> Result<[u8; 32], Cause> {
    let bad = || Cause::ChunkDigest(text.chars().take(200).collect());
    let hex = text.strip_prefix("sha256:").ok_or_else(bad)?.as_bytes();
    let mut digest = [0; 32];
    if hex.len() != 2 * digest.len() {
        return Err(bad());
    }
    for (byte, pair) in digest.iter_mut().zip(hex.chunks(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'));
        *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(bad)?;
    }
    Ok(digest)
}

/// What the entry of a file says, without its contents.
fn entry(raw: &Raw) -> Result<Entry, Cause> {
    let device = || -> Result<Device, Cause> {
        let (major, minor) = (raw.dev_major, raw.dev_minor);
        Ok(Device { major: number("device", major)?, minor: number("device", minor)? })
    };
    let kind = match &*raw.kind {
        "reg" => EntryKind::File,
        "dir" => EntryKind::Folder,
        "symlink" => EntryKind::Symlink(name(&raw.link_name)?),
        "hardlink" => EntryKind::HardLink(name(&raw.link_name)?),
        "char" => EntryKind::CharDevice(device()?),
        "block" => EntryKind::BlockDevice(device()?),
        "fifo" => EntryKind::Fifo,
        other => return Err(Cause::Type(other.chars().take(200).collect())),
    };
    let size = match kind {
        EntryKind::File => number("size", raw.size)?,
        _ => 0,
    };
    let mode: u64 = number("mode", raw.mode)?;
    let mut xattrs = vec![];
    for (key, value) in raw.xattrs.iter().flatten() {
        let value = STANDARD.decode(value).map_err(|_| Cause::Attribute(key.clone()))?;
        xattrs.push((name(key)?, value));
    }
    Ok(Entry {
        path: name(&raw.name)?,
        kind,
        // Tars of old have the type in it, too.
        mode: (mode & 0o7777) as u16,
        uid: number("user", raw.uid)?,
        gid: number("group", raw.gid)?,
        modified: raw.modtime.as_deref().map_or(Ok(Time::default()), time)?,
        xattrs,
        size,
        runs: vec![],
    })
}

/// A time as of RFC 3339. Nothing, and what Go has for it, is 1970.
pub(super) fn time(text: &str) -> Result<Time, Cause> {
    if matches!(text, "" | "0001-01-01T00:00:00Z") {
        return Ok(Time::default());
    }
    let time: Timestamp =
        text.parse().map_err(|_| Cause::Time(text.chars().take(100).collect()))?;
    let nanos = time.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default();
    let nanos = u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default();
    Ok(Time { seconds, nanos })
}
