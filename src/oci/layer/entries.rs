//! Reading the list of entries of an index, from its start to its end.

use std::io::{BufRead, BufReader, Read};

use super::build::Before;
use super::cause::Cause;
use super::check::{check, check_places, is_impossible};
use super::format::{
    MOST_ATTRIBUTES, MOST_PATH, MOST_PATHS, MOST_RUNS, MOST_TARGET, head, next_place, unzigzag,
};
use crate::error::{Result, ResultExt};
use crate::oci::tar::{Entry, EntryKind, Run};
use crate::tree::{Device, Time};

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// The entries of a layer, in the order of its tar, each with its path in the plain form: names and
/// single slashes, empty for the root.
pub struct Entries<'a> {
    input: BufReader<zstd::stream::read::Decoder<'static, &'a [u8]>>,
    /// Entries still to come.
    left: u64,
    /// Bytes still to come.
    plain_left: u64,
    tar_len: u64,
    runs: u64,
    /// Bytes of the paths so far.
    paths: u64,
    sets: Vec<Attributes>,
    set_bytes: u64,
    before: Before,
    /// The one told last.
    entry: Entry,
}

impl std::fmt::Debug for Entries<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'a> Entries<'a> {
    pub(super) fn new(list: &'a [u8], entries: u64, plain: u64, tar_len: u64) -> Result<Self> {
        let input = zstd::stream::read::Decoder::with_buffer(list)
            .within(|| "cannot start to decompress")?
            .single_frame();
        Ok(Self {
            input: BufReader::with_capacity(1 << 16, input),
            left: entries,
            plain_left: plain,
            tar_len,
            runs: 0,
            paths: 0,
            sets: Vec::new(),
            set_bytes: 0,
            before: Before::default(),
            entry: Entry {
                path: Vec::new(),
                kind: EntryKind::File,
                mode: 0,
                uid: 0,
                gid: 0,
                modified: Time::default(),
                xattrs: Vec::new(),
                size: 0,
                runs: Vec::new(),
            },
        })
    }

    /// The next entry; `None` after the last one.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if the list is not what an index holds. What
    /// came before was right as far as that can be told.
    #[expect(clippy::should_implement_trait, reason = "it lends the entry")]
    pub fn next(&mut self) -> Result<Option<&Entry>> {
        if self.left == 0 {
            if self.plain_left > 0 || !matches!(self.input.read(&mut [0]), Ok(0)) {
                return Err(Cause::ListLong.into());
            }
            return Ok(None);
        }
        self.left -= 1;
        self.decode()?;
        Ok(Some(&self.entry))
    }

    fn decode(&mut self) -> Result<(), Cause> {
        let [head] = self.array()?;
        self.decode_path()?;
        if head & head::SAME_OWNER == 0 {
            let mode = self.field("mode")?;
            self.before.owner = (mode, self.field("user")?, self.field("group")?);
        }
        if head & head::SAME_TIME == 0 {
            let seconds = unzigzag(self.number()?);
            self.before.time.seconds = self.before.time.seconds.wrapping_add(seconds);
            self.before.time.nanos = self.field("nanoseconds")?;
        }
        (self.entry.mode, self.entry.uid, self.entry.gid) = self.before.owner;
        self.entry.modified = self.before.time;
        self.entry.xattrs.clear();
        if head & head::ATTRIBUTES != 0 {
            self.decode_set()?;
        }
        self.entry.size = 0;
        self.entry.runs.clear();
        self.entry.kind = match head & head::KIND {
            head::FILE => {
                self.decode_contents(head & head::SPARSE != 0)?;
                EntryKind::File
            }
            head::HARD_LINK => {
                let fault = |len| Cause::PathLength(len, MOST_PATH);
                EntryKind::HardLink(self.bytes(MOST_PATH as u64, fault)?)
            }
            head::SYMLINK => EntryKind::Symlink(self.bytes(MOST_TARGET, Cause::Target)?),
            head::FOLDER => EntryKind::Folder,
            head::FIFO => EntryKind::Fifo,
            head::CHAR_DEVICE => EntryKind::CharDevice(self.device()?),
            head::BLOCK_DEVICE => EntryKind::BlockDevice(self.device()?),
            kind => return Err(Cause::Kind(kind)),
        };
        if self.entry.runs.is_empty() {
            self.before.place = self.before.place.wrapping_add(512);
        }
        check(&self.entry)?;
        check_places(&self.entry, self.tar_len)
    }

    fn decode_path(&mut self) -> Result<(), Cause> {
        let shared = self.number()?;
        let has = self.entry.path.len();
        let keep = usize::try_from(shared).ok().filter(|&shared| shared <= has);
        self.entry.path.truncate(keep.ok_or(Cause::Shared(shared, has))?);
        let more = self.number()?;
        let len = more.saturating_add(self.entry.path.len() as u64);
        if len > MOST_PATH as u64 {
            return Err(Cause::PathLength(len, MOST_PATH));
        }
        self.paths = self.paths.saturating_add(len);
        if self.paths > MOST_PATHS {
            return Err(Cause::Budget(MOST_PATHS, "bytes of paths in a layer"));
        }
        let start = self.entry.path.len();
        // Just seen to be at most `MOST_PATH`.
        self.entry.path.resize(len as usize, 0);
        let mut path = std::mem::take(&mut self.entry.path);
        let done = self.fill(path.get_mut(start..).unwrap_or_default());
        self.entry.path = path;
        done
    }

    fn decode_set(&mut self) -> Result<(), Cause> {
        let which = self.number()?;
        if which == self.sets.len() as u64 {
            let set = self.decode_attributes()?;
            self.sets.push(set);
        }
        let set = usize::try_from(which).ok().and_then(|which| self.sets.get(which));
        self.entry.xattrs.clone_from(set.ok_or(Cause::Attributes(which))?);
        Ok(())
    }

    fn decode_attributes(&mut self) -> Result<Attributes, Cause> {
        let mut set = Attributes::new();
        for _ in 0..self.number()? {
            let name = self.bytes(MOST_ATTRIBUTES, |len| Cause::Field("name of", len))?;
            let value = self.bytes(MOST_ATTRIBUTES, |len| Cause::Field("value of", len))?;
            self.set_bytes = self.set_bytes.saturating_add((name.len() + value.len()) as u64);
            if self.set_bytes > MOST_ATTRIBUTES {
                return Err(Cause::Budget(MOST_ATTRIBUTES, "bytes of attributes in a layer"));
            }
            let in_order = set.last().is_none_or(|(before, _)| *before < name);
            if !in_order || is_impossible(&name) {
                return Err(Cause::AttributeOrder);
            }
            set.push((name, value));
        }
        Ok(set)
    }

    fn decode_contents(&mut self, sparse: bool) -> Result<(), Cause> {
        let size = self.number()?;
        self.entry.size = size;
        if !sparse {
            if size > 0 {
                let place = self.place()?;
                self.entry.runs.push(Run { at: 0, len: size, place });
            }
        } else {
            let count = self.number()?;
            self.runs = self.runs.saturating_add(count);
            if self.runs > MOST_RUNS {
                return Err(Cause::Budget(MOST_RUNS, "pieces of sparse files in a layer"));
            }
            let mut end: u64 = 0;
            for _ in 0..count {
                let (gap, len) = (self.number()?, self.number()?);
                let fault = Cause::Run { at: gap, len, size };
                let at = end.checked_add(gap).ok_or_else(|| fault.clone())?;
                end = at.checked_add(len).ok_or(fault)?;
                let place = self.place()?;
                self.entry.runs.push(Run { at, len, place });
                self.before.place = place.wrapping_add(len);
            }
        }
        if let Some(last) = self.entry.runs.last() {
            self.before.place = next_place(last.place.wrapping_add(last.len));
        }
        Ok(())
    }

    fn place(&mut self) -> Result<u64, Cause> {
        let away = unzigzag(self.number()?);
        Ok(self.before.place.wrapping_add(away.cast_unsigned()))
    }

    fn device(&mut self) -> Result<Device, Cause> {
        Ok(Device { major: self.field("major")?, minor: self.field("minor")? })
    }

    /// A number that must fit a field.
    fn field<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, Cause> {
        let value = self.number()?;
        T::try_from(value).map_err(|_| Cause::Field(what, value))
    }

    fn number(&mut self) -> Result<u64, Cause> {
        // Most are of one byte, which mostly is at hand.
        if let Some(&byte) = self.input.buffer().first()
            && byte & 0x80 == 0
        {
            self.plain_left = self.plain_left.checked_sub(1).ok_or(Cause::List)?;
            self.input.consume(1);
            return Ok(byte.into());
        }
        let mut value: u64 = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return Err(Cause::Number);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Cause::Number)
    }

    /// Bytes behind their length, `most` at most.
    fn bytes(&mut self, most: u64, fault: impl FnOnce(u64) -> Cause) -> Result<Vec<u8>, Cause> {
        let len = self.number()?;
        if len > most || len > self.plain_left {
            return Err(fault(len));
        }
        // Not more than the list has left, but that is a claim, too: what is not there ends it.
        let mut bytes = Vec::new();
        let mut left = len;
        while left > 0 {
            let piece = left.min(1 << 16);
            let start = bytes.len();
            bytes.resize(start + piece as usize, 0);
            self.fill(bytes.get_mut(start..).unwrap_or_default())?;
            left -= piece;
        }
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Cause> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), Cause> {
        self.plain_left = self.plain_left.checked_sub(out.len() as u64).ok_or(Cause::List)?;
        self.input.read_exact(out).map_err(|_| Cause::List)
    }
}
