//! A ztoc: the entries of a layer's tar, and places where its gzip can be entered
//! (awslabs/soci-snapshotter, `ztoc/fbs/ztoc.fbs`, `ztoc/compression`).

use super::super::cause::Cause;
use super::super::collect::{sha256, time};
use super::super::table::MOST_UNIT;
use super::flatbuffer::{Buffer, Table};
use super::spans::{File, Span, Writer};
use crate::error::{Error, Result};
use crate::oci::layer::Builder;
use crate::oci::tar::{Entry, EntryKind, Run};
use crate::tree::Device;
use crate::wire::Budget;

/// Bytes that a checkpoint takes: two offsets, a count of bits, a window.
const CHECKPOINT: usize = 8 + 8 + 1 + WINDOW;
const WINDOW: usize = 32 << 10;
/// Bytes before the first one: how many there are, and how far they should be apart.
const CHECKPOINTS: usize = 4 + 8;
/// Where the first checkpoint is in a list that leaves it out: behind the shortest header of gzip.
const FIRST: u64 = 10;
/// Bytes of the headers of one member at most.
const MOST_HEADERS: u64 = 1 << 20;
/// Compressed bytes of a span at most.
const MOST_STORED: u64 = MOST_UNIT + (4 << 20);

/// Numbers of the fields, in the order of the schema.
mod field {
    pub(super) mod ztoc {
        pub(in super::super) const STORED: usize = 2;
        pub(in super::super) const PLAIN: usize = 3;
        pub(in super::super) const TOC: usize = 4;
        pub(in super::super) const COMPRESSION: usize = 5;
    }
    pub(super) mod compression {
        pub(in super::super) const ALGORITHM: usize = 0;
        pub(in super::super) const LAST: usize = 1;
        pub(in super::super) const DIGESTS: usize = 2;
        pub(in super::super) const CHECKPOINTS: usize = 3;
    }
    pub(super) mod file {
        pub(in super::super) const NAME: usize = 0;
        pub(in super::super) const TYPE: usize = 1;
        pub(in super::super) const PLACE: usize = 2;
        pub(in super::super) const SIZE: usize = 3;
        pub(in super::super) const LINK: usize = 4;
        pub(in super::super) const MODE: usize = 5;
        pub(in super::super) const UID: usize = 6;
        pub(in super::super) const GID: usize = 7;
        pub(in super::super) const TIME: usize = 10;
        pub(in super::super) const MAJOR: usize = 11;
        pub(in super::super) const MINOR: usize = 12;
        pub(in super::super) const HEADERS: usize = 13;
    }
}

/// What a ztoc comes down to.
pub(in super::super) struct Collected {
    pub(in super::super) builder: Builder,
    pub(in super::super) spans: Writer,
    /// Bytes of the tar.
    pub(in super::super) len: u64,
}

/// Takes the ztoc of a blob of `blob_len` bytes apart.
pub(in super::super) fn parse(bytes: &[u8], blob_len: u64) -> Result<Collected> {
    use field::ztoc::{COMPRESSION, PLAIN, STORED, TOC};
    let buffer = Buffer::new(bytes);
    let root = buffer.root()?;
    let stored = root.i64(STORED)?;
    if u64::try_from(stored) != Ok(blob_len) {
        return Err(Cause::Number { field: "length of the layer", value: stored }.into());
    }
    let len = number("length of the tar", root.i64(PLAIN)?)?;
    let compression = root.table(COMPRESSION)?.ok_or(Cause::FlatBuffer(0))?;
    let mut spans = Writer::new(len);
    for span in checkpoints(&compression, blob_len, len)? {
        spans.add(span?)?;
    }
    let mut builder = Builder::new()?;
    let mut next = 0;
    let mut files = Budget::new("entries", 1 << 24);
    for file in root.table(TOC)?.iter().flat_map(|toc| toc.tables(0)).flatten() {
        files.spend(1)?;
        let file = file?;
        let mut entry = entry(&file)?;
        let named = |error: Error, path: &[u8]| {
            let path = path.get(..4096).unwrap_or(path);
            error.within(format!("\"{}\"", String::from_utf8_lossy(path)))
        };
        let place = place(&file, &mut entry, (next, len), &mut spans)
            .map_err(|cause| named(cause.into(), &entry.path))?;
        next = place;
        builder.add(entry)?;
    }
    Ok(Collected { builder, spans, len })
}

/// Puts the contents of a file where they are; gives where the next header is. `next` is where that
/// of this one is, and the end of the tar.
fn place(
    file: &Table<'_>,
    entry: &mut Entry,
    (next, len): (u64, u64),
    spans: &mut Writer,
) -> Result<u64, Cause> {
    let place = number("offset", file.i64(field::file::PLACE)?)?;
    let size = match entry.kind {
        EntryKind::File => entry.size,
        _ => 0,
    };
    let headers = place.checked_sub(next).filter(|headers| (512..=MOST_HEADERS).contains(headers));
    if headers.is_none() || place % 512 != 0 {
        return Err(Cause::Order { wanted: next, found: place });
    }
    let end = place.checked_add(size).filter(|&end| end <= len);
    let end = end.ok_or(Cause::Outside { at: place, end: u64::MAX, limit: len })?;
    if size > 0 {
        entry.runs.push(Run { at: 0, len: size, place });
        spans.add_file(File { place, size, headers: next, name: name_hash(&entry.path) })?;
    }
    end.checked_next_multiple_of(512).ok_or(Cause::Outside { at: place, end, limit: len })
}

/// What stands for a name where it is held against another.
pub(super) fn name_hash(name: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(blake3::hash(name).as_bytes().get(..16).unwrap_or(&[0; 16]));
    short
}

fn number(field: &'static str, value: i64) -> Result<u64, Cause> {
    u64::try_from(value).map_err(|_| Cause::Number { field, value })
}

/// The spans between checkpoints.
fn checkpoints<'a>(
    info: &Table<'a>,
    blob_len: u64,
    len: u64,
) -> Result<impl Iterator<Item = Result<Span<'a>, Cause>>, Cause> {
    use field::compression::{ALGORITHM, CHECKPOINTS as LIST, DIGESTS, LAST};
    let algorithm = info.i8(ALGORITHM, 1)?;
    if algorithm != 1 {
        return Err(Cause::Type(format!("compression {algorithm}")));
    }
    let bytes = info.bytes(LIST)?;
    let bad = || Cause::Checkpoints(bytes.len());
    let (head, list) = bytes.split_at_checked(CHECKPOINTS).ok_or_else(bad)?;
    let count = head.first_chunk().map_or(0, |it| u32::from_le_bytes(*it)) as usize;
    // The first version left the first one out.
    let first_is_left_out = match list.len().checked_div(CHECKPOINT) {
        Some(there) if list.len() % CHECKPOINT == 0 && there == count => false,
        Some(there) if list.len() % CHECKPOINT == 0 && Some(there) == count.checked_sub(1) => true,
        _ => return Err(bad()),
    };
    let digests: Vec<&[u8]> = info.strings(DIGESTS)?.collect::<Result<_, _>>()?;
    if digests.len() != count || i64::from(info.i32(LAST)?) != count as i64 - 1 {
        return Err(Cause::SpanCount { digests: digests.len(), checkpoints: count });
    }
    let point = move |nth: usize| -> Option<(u64, u64, u8, &'a [u8])> {
        let nth = match first_is_left_out {
            true if nth == 0 => return Some((FIRST, 0, 0, &[])),
            true => nth - 1,
            false => nth,
        };
        let point = list.chunks_exact(CHECKPOINT).nth(nth)?;
        let (at, rest) = point.split_first_chunk()?;
        let (place, rest) = rest.split_first_chunk()?;
        let (&bits, window) = rest.split_first()?;
        Some((u64::from_le_bytes(*at), u64::from_le_bytes(*place), bits, window))
    };
    // What follows the end of a tar may have checkpoints, too, and is of no use.
    let before_end =
        move |nth: &usize| *nth == 0 || point(*nth).is_none_or(|(_, place, ..)| place < len);
    Ok((0..count).take_while(before_end).map(move |nth| {
        let bad = || Cause::Checkpoint(nth);
        let (at, place, bits, window) = point(nth).ok_or_else(bad)?;
        let (end, place_end, next) = match nth + 1 < count {
            true => point(nth + 1).map(|(at, place, bits, _)| (at, place, Some(bits))),
            false => Some((blob_len, len, None)),
        }
        .ok_or_else(bad)?;
        let start = at.checked_sub(u64::from(bits > 0)).ok_or_else(bad)?;
        let ordered = start < end && end <= blob_len && place < place_end;
        let is_bits = bits < 8 && next.is_none_or(|next| next < 8);
        if !ordered || !is_bits || (nth == 0) != (place == 0) {
            return Err(bad());
        }
        let place_end = place_end.min(len);
        let (stored, plain) = (end - start, place_end - place);
        for (len, most) in [(stored, MOST_STORED), (plain, MOST_UNIT)] {
            if len > most {
                return Err(Cause::ChunkLength { len, most });
            }
        }
        let digest = digests.get(nth).and_then(|it| std::str::from_utf8(it).ok());
        let digest = sha256(digest.unwrap_or_default())?;
        Ok(Span { stored: start..end, place, bits, next, digest, window })
    }))
}

/// What the entry of a file says, without where its contents are.
fn entry(file: &Table<'_>) -> Result<Entry, Cause> {
    use field::file;
    let device = || -> Result<Device, Cause> {
        let part = |number| {
            let value = file.i64(number)?;
            u32::try_from(value).map_err(|_| Cause::Number { field: "device", value })
        };
        Ok(Device { major: part(file::MAJOR)?, minor: part(file::MINOR)? })
    };
    let link = || Ok(file.bytes(file::LINK)?.to_vec());
    let kind = match file.bytes(file::TYPE)? {
        b"reg" => EntryKind::File,
        b"dir" => EntryKind::Folder,
        b"symlink" => EntryKind::Symlink(link()?),
        b"hardlink" => EntryKind::HardLink(link()?),
        b"char" => EntryKind::CharDevice(device()?),
        b"block" => EntryKind::BlockDevice(device()?),
        b"fifo" => EntryKind::Fifo,
        other => {
            return Err(Cause::Type(String::from_utf8_lossy(other).chars().take(200).collect()));
        }
    };
    let size = match kind {
        EntryKind::File => number("size", file.i64(file::SIZE)?)?,
        _ => 0,
    };
    let mode = number("mode", file.i64(file::MODE)?)?;
    let modified = std::str::from_utf8(file.bytes(file::TIME)?).unwrap_or("?");
    let mut xattrs = vec![];
    for record in file.tables(file::HEADERS)? {
        let record = record?;
        let (key, value) = (record.bytes(0)?, record.bytes(1)?);
        if key.starts_with(b"GNU.sparse.") {
            // What lies in the tar is not what the file holds.
            return Err(Cause::Sparse);
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            xattrs.push((name.to_vec(), value.to_vec()));
        }
    }
    Ok(Entry {
        path: file.bytes(file::NAME)?.to_vec(),
        kind,
        mode: (mode & 0o7777) as u16,
        uid: file.u32(file::UID)?,
        gid: file.u32(file::GID)?,
        modified: time(modified)?,
        xattrs,
        size,
        runs: vec![],
    })
}
