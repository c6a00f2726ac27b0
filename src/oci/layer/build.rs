//! Making an index, entry by entry.

use std::collections::HashMap;
use std::io::Write;

use zerocopy::{FromZeros, IntoBytes};

use super::Facts;
use super::cause::Cause;
use super::check::{check, is_impossible, plain};
use super::format::{
    HEADER, Header, MAGIC, MOST_ATTRIBUTES, MOST_ENTRIES, MOST_LIST, MOST_PACKED, MOST_PATHS,
    MOST_RUNS, VERSION, head, next_place, zigzag,
};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::oci::tar::{Entry, EntryKind, Run, WHITEOUT};
use crate::tree::Time;

/// How hard the list is compressed: from here on it takes longer and hardly shrinks.
const LEVEL: i32 = 9;

/// Takes the entries of one layer, in the order of its tar.
///
/// It holds the compressed list and the different sets of attributes, both bounded: about 20 bytes
/// an entry.
pub struct Builder {
    out: zstd::stream::write::Encoder<'static, Vec<u8>>,
    /// The entry being written.
    record: Vec<u8>,
    /// Bytes of the list.
    plain: u64,
    entries: u64,
    whiteouts: u64,
    links: u64,
    runs: u64,
    /// Bytes of all paths.
    paths: u64,
    /// Where the last contents end.
    end: u64,
    newest: Option<Time>,
    /// Sets of attributes told before, by their bytes.
    sets: HashMap<Vec<u8>, u64>,
    set_bytes: u64,
    before: Before,
}

/// What the entry before said.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub(super) path: Vec<u8>,
    pub(super) owner: (u16, u32, u32),
    pub(super) time: Time,
    /// Where the next contents are expected.
    pub(super) place: u64,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Builder {
    /// An index of nothing yet.
    ///
    /// # Errors
    /// [`Kind::Io`] if the compressor does not start.
    pub fn new() -> Result<Self> {
        let out = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)
            .within(|| "cannot start to compress")?;
        Ok(Self {
            out,
            record: Vec::new(),
            plain: 0,
            entries: 0,
            whiteouts: 0,
            links: 0,
            runs: 0,
            paths: 0,
            end: 0,
            newest: None,
            sets: HashMap::new(),
            set_bytes: 0,
            before: Before::default(),
        })
    }

    /// Adds the next entry of the tar.
    ///
    /// Its path, and that of a hard link's target, are brought into their plain form. A regular file
    /// whose name ends in a slash is a folder, as old tars have them and as GNU tar reads them.
    /// Attributes with names no kernel would take are left out.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] or [`Kind::Unsupported`], naming the entry: a name over 255 bytes, a zero
    /// byte in a name, contents out of order, or more of anything than the budgets allow.
    pub fn add(&mut self, mut entry: Entry) -> Result<()> {
        self.take(&mut entry).map_err(|error| {
            let place = self.entries.saturating_add(1);
            let path = entry.path.get(..4096).unwrap_or(&entry.path);
            error.within(format!("entry {place}, \"{}\"", String::from_utf8_lossy(path)))
        })
    }

    /// Ends the index: its bytes.
    ///
    /// `spans` are bytes of whoever reads the layer, kept as they are.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if an entry's contents pass the end of the tar that `facts` tells,
    /// [`Kind::Usage`] for digests longer than any that are known.
    pub fn finish(self, facts: &Facts, spans: &[u8]) -> Result<Vec<u8>> {
        if self.end > facts.tar_len {
            let message =
                format!("contents up to {:#x} in a tar of {:#x} bytes", self.end, facts.tar_len);
            return Err(Error::new(Kind::Corrupt, message));
        }
        let list = self.out.finish().within(|| "cannot compress")?;
        let newest = self.newest.unwrap_or_default();
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        header.version.set(VERSION);
        header.entries.set(self.entries);
        header.whiteouts.set(self.whiteouts);
        header.links.set(self.links);
        header.newest_seconds.set(newest.seconds);
        header.newest_nanos.set(newest.nanos);
        header.list_crc.set(crc32c::crc32c(&list));
        header.list_at.set(HEADER as u64);
        header.list_len.set(list.len() as u64);
        header.list_plain.set(self.plain);
        header.spans_at.set((HEADER + list.len()) as u64);
        header.spans_len.set(spans.len() as u64);
        header.spans_crc.set(crc32c::crc32c(spans));
        header.blob_len.set(facts.blob_len);
        header.tar_len.set(facts.tar_len);
        header.learnt.set(facts.learnt.number());
        for (field, digest) in
            [(&mut header.blob_digest, &facts.blob_digest), (&mut header.diff_id, &facts.diff_id)]
        {
            let Some(start) = field.get_mut(..digest.len()) else {
                return Err(Error::new(Kind::Usage, format!("digest {digest}")));
            };
            start.copy_from_slice(digest.as_bytes());
        }
        header.crc.set(header.sum());
        let mut bytes = Vec::with_capacity(HEADER + list.len() + spans.len());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&list);
        bytes.extend_from_slice(spans);
        Ok(bytes)
    }

    fn take(&mut self, entry: &mut Entry) -> Result<()> {
        if entry.kind == EntryKind::File && entry.path.ends_with(b"/") {
            entry.kind = EntryKind::Folder;
            entry.size = 0;
            entry.runs.clear();
        }
        entry.path = plain(&entry.path)?;
        if let EntryKind::HardLink(target) = &mut entry.kind {
            *target = plain(target)?;
            self.links += 1;
        }
        check(entry)?;
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(Cause::Budget(MOST_ENTRIES, "entries in a layer").into());
        }
        self.paths = self.paths.saturating_add(entry.path.len() as u64);
        if self.paths > MOST_PATHS {
            return Err(Cause::Budget(MOST_PATHS, "bytes of paths in a layer").into());
        }
        let is_whiteout = |name: &[u8]| name.starts_with(WHITEOUT);
        self.whiteouts += u64::from(entry.path.split(|&byte| byte == b'/').any(is_whiteout));
        self.newest = self.newest.max(Some(entry.modified));
        let set = attributes(&mut entry.xattrs);
        self.encode(entry, &set)?;
        self.before.path.clone_from(&entry.path);
        self.before.owner = (entry.mode, entry.uid, entry.gid);
        self.before.time = entry.modified;

        self.plain = self.plain.saturating_add(self.record.len() as u64);
        if self.plain > MOST_LIST || self.out.get_ref().len() as u64 > MOST_PACKED {
            return Err(Cause::Budget(MOST_LIST, "bytes of names in a layer").into());
        }
        self.out.write_all(&self.record).within(|| "cannot compress")
    }

    fn encode(&mut self, entry: &Entry, set: &[u8]) -> Result<()> {
        let mut head = match &entry.kind {
            EntryKind::File => head::FILE,
            EntryKind::HardLink(_) => head::HARD_LINK,
            EntryKind::Symlink(_) => head::SYMLINK,
            EntryKind::Folder => head::FOLDER,
            EntryKind::Fifo => head::FIFO,
            EntryKind::CharDevice(_) => head::CHAR_DEVICE,
            EntryKind::BlockDevice(_) => head::BLOCK_DEVICE,
        };
        let same_owner = self.before.owner == (entry.mode, entry.uid, entry.gid);
        let same_time = self.before.time == entry.modified;
        let is_whole = match entry.runs.as_slice() {
            [] => entry.size == 0,
            [run] => run.at == 0 && run.len == entry.size,
            _ => false,
        };
        for (flag, set) in [
            (head::ATTRIBUTES, !set.is_empty()),
            (head::SPARSE, !is_whole),
            (head::SAME_OWNER, same_owner),
            (head::SAME_TIME, same_time),
        ] {
            if set {
                head |= flag;
            }
        }
        self.record.clear();
        self.record.push(head);
        let shared = shared(&self.before.path, &entry.path);
        number(&mut self.record, shared as u64);
        bytes(&mut self.record, entry.path.get(shared..).unwrap_or_default());
        if !same_owner {
            for field in [entry.mode.into(), entry.uid, entry.gid] {
                number(&mut self.record, field.into());
            }
        }
        if !same_time {
            let seconds = entry.modified.seconds.wrapping_sub(self.before.time.seconds);
            number(&mut self.record, zigzag(seconds));
            number(&mut self.record, entry.modified.nanos.into());
        }
        if !set.is_empty() {
            self.encode_set(set)?;
        }
        match &entry.kind {
            EntryKind::File => self.encode_contents(entry, is_whole)?,
            EntryKind::HardLink(target) | EntryKind::Symlink(target) => {
                bytes(&mut self.record, target);
            }
            EntryKind::CharDevice(device) | EntryKind::BlockDevice(device) => {
                number(&mut self.record, device.major.into());
                number(&mut self.record, device.minor.into());
            }
            EntryKind::Folder | EntryKind::Fifo => {}
        }
        if entry.runs.is_empty() {
            self.before.place = self.before.place.wrapping_add(512);
        }
        Ok(())
    }

    fn encode_set(&mut self, set: &[u8]) -> Result<()> {
        let next = self.sets.len() as u64;
        if let Some(&number_of_set) = self.sets.get(set) {
            number(&mut self.record, number_of_set);
            return Ok(());
        }
        self.set_bytes = self.set_bytes.saturating_add(set.len() as u64);
        if self.set_bytes > MOST_ATTRIBUTES {
            return Err(Cause::Budget(MOST_ATTRIBUTES, "bytes of attributes in a layer").into());
        }
        number(&mut self.record, next);
        self.record.extend_from_slice(set);
        self.sets.insert(set.to_vec(), next);
        Ok(())
    }

    fn encode_contents(&mut self, entry: &Entry, is_whole: bool) -> Result<()> {
        number(&mut self.record, entry.size);
        if !is_whole {
            self.runs = self.runs.saturating_add(entry.runs.len() as u64);
            if self.runs > MOST_RUNS {
                return Err(Cause::Budget(MOST_RUNS, "pieces of sparse files in a layer").into());
            }
            number(&mut self.record, entry.runs.len() as u64);
        }
        let mut end = 0;
        for Run { at, len, place } in &entry.runs {
            if !is_whole {
                // `check` has seen that they ascend and end within the file.
                number(&mut self.record, at - end);
                number(&mut self.record, *len);
                end = at + len;
            }
            let away = place.wrapping_sub(self.before.place).cast_signed();
            number(&mut self.record, zigzag(away));
            let place_end = place.checked_add(*len).ok_or(Cause::Place {
                place: *place,
                len: *len,
                end: u64::MAX,
            })?;
            self.end = self.end.max(place_end);
            self.before.place = place_end;
        }
        if let Some(last) = entry.runs.last() {
            self.before.place = next_place(last.place + last.len);
        }
        Ok(())
    }
}

/// The bytes of a set of attributes, in the order of their names; empty if there are none.
fn attributes(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    xattrs.retain(|(name, _)| {
        let impossible = is_impossible(name);
        if impossible {
            log::debug!("attribute \"{}\" is left out", String::from_utf8_lossy(name));
        }
        !impossible
    });
    xattrs.sort_by(|one, other| one.0.cmp(&other.0));
    xattrs.dedup_by(|next, kept| next.0 == kept.0);
    let mut set = Vec::new();
    if !xattrs.is_empty() {
        number(&mut set, xattrs.len() as u64);
    }
    for (name, value) in xattrs {
        bytes(&mut set, name);
        bytes(&mut set, value);
    }
    set
}

/// Bytes that both begin with.
fn shared(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// A number in the form LEB128: seven bits a byte, the lowest first.
fn number(record: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        record.push(value as u8 | 0x80);
        value >>= 7;
    }
    record.push(value as u8);
}

fn bytes(record: &mut Vec<u8>, bytes: &[u8]) {
    number(record, bytes.len() as u64);
    record.extend_from_slice(bytes);
}
