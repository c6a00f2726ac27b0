//! Reading a tar from front to back, in every dialect: Seventh Edition, POSIX `ustar` and `pax`, GNU,
//! star, Solaris.
//!
//! Where programs disagree, this reads what those that unpack container images do (Go's
//! `archive/tar`), as an image means what its runtime sees:
//!
//! - A GNU long name (`L`, `K`) counts for more than one in an extended header.
//! - Of two extended headers before one member the last holds.
//! - Links, folders, devices and pipes have no contents, whatever size their header claims.
//!
//! One block of zeros ends a tar as well as two do, unless a member follows it.
//!
//! Unknown types are regular files, as POSIX demands. A regular file whose name ends in a slash is a
//! folder, as in tars from before folders had a type. What describes the next member in the way of
//! Solaris (`A`, `E`) is passed over.

mod acl;
mod cause;
mod extended;
mod number;
mod sparse;
mod stream;
mod xattr;

use std::io::BufRead;
use std::ops::ControlFlow;

use zerocopy::IntoBytes;

use super::header::{BLOCK, Dialect, GnuTail, Header, PREFIX, typeflag};
use super::{Entry, EntryKind, Run};
use crate::error::{Result, ResultExt};
use crate::tree::{Device, Time};
use crate::wire::record;
use cause::Cause;
use extended::{Extended, Said};
use sparse::{Form, Map};
use stream::Stream;

/// Bytes of a name or of a link's target: more than a path 4,096 folders deep has.
const NAME_LIMIT: u64 = 1 << 20;
/// Bytes of an extended header, attributes and the map of a sparse file among them.
const EXTENDED_LIMIT: u64 = 16 << 20;

/// Bytes of the prefix of star, which has two times after it.
const STAR_PREFIX: usize = 131;

/// Reads the members of a tar in the order they stand there.
///
/// Memory is bounded whatever the tar holds: some 40 MiB for the worst of members, a few hundred
/// bytes for an ordinary one. After an error it is of no more use.
#[derive(Debug)]
pub struct Reader<R> {
    stream: Stream<R>,
    /// What holds for all members that come.
    global: Extended,
    body: Body,
    /// Whether the end has been met.
    ended: bool,
}

/// What of the last member is not read yet.
#[derive(Debug, Default)]
struct Body {
    /// Bytes of its contents.
    contents: u64,
    /// Bytes after them that are none.
    rest: u64,
    /// Bytes that fill the last block.
    padding: u64,
    /// Bytes that a hard link claims to have. POSIX permits them in `pax`, old programs wrote a size
    /// and no bytes: whether they are there, the block in their place tells.
    claimed: u64,
}

/// What headers say about the member that comes next.
#[derive(Debug, Default)]
struct Before {
    any: bool,
    extended: Extended,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    /// Reads the tar that `input` begins with, which is not compressed.
    pub fn new(input: R) -> Self {
        let stream = Stream::new(input);
        Self { stream, global: Extended::default(), body: Body::default(), ended: false }
    }

    /// The next member, or `None` at the end; what is left of the one before is passed over. At the
    /// end all of the input has been read, whatever follows the tar in it.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if the tar is damaged or cut short,
    /// [`Kind::Unsupported`](crate::error::Kind::Unsupported) for what needs another volume or is in a
    /// form nobody documented, and those of the input.
    #[allow(clippy::should_implement_trait, reason = "an iterator could not lend its contents")]
    pub fn next(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        self.finish()?;
        let mut before = Before::default();
        loop {
            let at = self.stream.at();
            let step = self.step(&mut before).within(|| format!("member at {at:#x}"))?;
            if let ControlFlow::Break(entry) = step {
                return Ok(entry);
            }
        }
    }

    /// Reads one header. Goes on as long as it is about a member that is to come.
    fn step(&mut self, before: &mut Before) -> Result<ControlFlow<Option<Entry>>> {
        let claimed = std::mem::take(&mut self.body.claimed);
        let Some(block) = self.stream.block("a header")? else {
            return self.end(before);
        };
        if block == [0; BLOCK] {
            let next = self.stream.block("the end")?.filter(|next| next != &[0; BLOCK]);
            // Anything may follow the end but what would be lost: another member, or, if these were
            // the contents of a link, the rest of them.
            if next.is_some_and(|next| claimed > 0 || header_in(&next).is_some()) {
                return Err(Cause::LoneZeros.into());
            }
            return self.end(before);
        }
        if let Some(header) = header_in(&block) {
            return self.header(header, before);
        }
        if claimed == 0 {
            return Err(Cause::Checksum.into());
        }
        self.body.rest = claimed.saturating_sub(BLOCK as u64);
        self.body.padding = padding(claimed.max(BLOCK as u64));
        self.finish()?;
        Ok(ControlFlow::Continue(()))
    }

    /// Hands over the stored bytes of the last member, in the order of its runs, in pieces of any
    /// length; nothing if they have been passed.
    ///
    /// # Errors
    /// Those of `into`, of the input, and of a tar that is cut short.
    pub fn contents(&mut self, into: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.stream.pass(&mut self.body.contents, CONTENTS, into)
    }

    /// Gives back what it reads from.
    pub fn into_inner(self) -> R {
        self.stream.into_inner()
    }

    /// Passes over what is left of the last member.
    fn finish(&mut self) -> Result<()> {
        let Body { contents, rest, padding, claimed } = std::mem::take(&mut self.body);
        self.body.claimed = claimed;
        self.stream.skip(contents, CONTENTS)?;
        self.stream.skip(rest, CONTENTS)?;
        // Some programs leave the last block unfilled: nothing is lost by that.
        if padding > 0 && !self.stream.is_at_end()? {
            self.stream.skip(padding, "the padding after the contents of a member")?;
        }
        Ok(())
    }

    fn end(&mut self, before: &Before) -> Result<ControlFlow<Option<Entry>>> {
        if before.any {
            return Err(Cause::Dangling.into());
        }
        self.stream.drain()?;
        self.ended = true;
        Ok(ControlFlow::Break(None))
    }

    /// Takes one header and what is between it and the contents.
    fn header(
        &mut self,
        header: &Header,
        before: &mut Before,
    ) -> Result<ControlFlow<Option<Entry>>> {
        match header.typeflag {
            typeflag::EXTENDED | typeflag::SOLARIS_EXTENDED => {
                let records = self.meta(header, "an extended header", EXTENDED_LIMIT)?;
                before.extended = Extended::parse(&records)?;
                before.any = true;
            }
            typeflag::GLOBAL => {
                let records = self.meta(header, "an extended header", EXTENDED_LIMIT)?;
                self.global = Extended::parse(&records)?.after(&self.global)?;
            }
            typeflag::LONG_NAME => {
                before.long_name = text(&self.meta(header, "a long name", NAME_LIMIT)?);
                before.any = true;
            }
            typeflag::LONG_LINK => {
                before.long_link = text(&self.meta(header, "a long link target", NAME_LIMIT)?);
                before.any = true;
            }
            typeflag::VOLUME | typeflag::SOLARIS_ACL | typeflag::SOLARIS_ATTRIBUTE => {
                self.body.rest = size(header)?;
                self.body.padding = padding(self.body.rest);
                self.finish()?;
            }
            flag @ typeflag::CONTINUED => {
                return Err(Cause::Type { flag, what: "files that another volume begins" }.into());
            }
            flag @ typeflag::OLD_LONG_NAMES => {
                return Err(Cause::Type { flag, what: "long names of GNU tar before 1.11" }.into());
            }
            flag @ typeflag::INODE => {
                return Err(Cause::Type { flag, what: "files of star without contents" }.into());
            }
            _ => {
                let before = std::mem::take(before);
                return self.member(header, before).map(|entry| ControlFlow::Break(Some(entry)));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The contents of a header that is about other members, with their padding.
    fn meta(&mut self, header: &Header, what: &'static str, limit: u64) -> Result<Vec<u8>> {
        // Never the size that another extended header tells.
        let len = size(header)?;
        if len > limit {
            return Err(Cause::TooLong { what, len, limit }.into());
        }
        let bytes = self.stream.gather(len, what)?;
        self.stream.skip(padding(len), what)?;
        Ok(bytes)
    }

    fn member(&mut self, header: &Header, before: Before) -> Result<Entry> {
        let extended = before.extended.over(&self.global);
        let (form, sparse_name) = extended.sparse.form()?;
        let path = match (before.long_name, sparse_name) {
            (long, None) if long.is_empty() => extended.path.or_header(|| Ok(name(header)))?,
            (long, Some(name)) if long.is_empty() => name,
            (long, _) => long,
        };
        let target = || match before.long_link {
            long if long.is_empty() => extended.linkpath.or_header(|| Ok(text(&header.linkname))),
            long => Ok(long),
        };
        let device = |major: Said<u32>, minor: Said<u32>| -> Result<Device> {
            Ok(Device {
                major: major.or_header(|| small(&header.devmajor, "devmajor"))?,
                minor: minor.or_header(|| small(&header.devminor, "devminor"))?,
            })
        };
        let kind = match header.typeflag {
            typeflag::HARD_LINK => EntryKind::HardLink(target()?),
            typeflag::SYMLINK => EntryKind::Symlink(target()?),
            typeflag::CHAR_DEVICE => {
                EntryKind::CharDevice(device(extended.devmajor, extended.devminor)?)
            }
            typeflag::BLOCK_DEVICE => {
                EntryKind::BlockDevice(device(extended.devmajor, extended.devminor)?)
            }
            typeflag::FIFO => EntryKind::Fifo,
            typeflag::FOLDER | typeflag::DUMPED_FOLDER => EntryKind::Folder,
            0 | typeflag::FILE | typeflag::CONTIGUOUS if path.ends_with(b"/") => EntryKind::Folder,
            _ => EntryKind::File,
        };
        let mode = (number(&header.mode, "mode")?.cast_unsigned() & 0o7777) as u16;
        let mut entry = Entry {
            path,
            kind,
            mode: extended.permissions.map_or(mode, |bits| mode & 0o7000 | bits),
            uid: extended.uid.or_header(|| small(&header.uid, "uid"))?,
            gid: extended.gid.or_header(|| small(&header.gid, "gid"))?,
            modified: extended
                .mtime
                .or_header(|| Ok(Time { seconds: number(&header.mtime, "mtime")?, nanos: 0 }))?,
            xattrs: extended.xattrs,
            size: 0,
            runs: Vec::new(),
        };
        match (&entry.kind, header.typeflag) {
            (EntryKind::File, _) => {
                let stored = extended.size.or_header(|| size(header))?;
                (entry.size, entry.runs) = self.file(header, form, stored)?;
            }
            (EntryKind::HardLink(_), _) => {
                self.body.claimed = extended.size.or_header(|| size(header)).unwrap_or(0);
            }
            (EntryKind::Folder, flag) if flag != typeflag::FOLDER => {
                self.body.rest = extended.size.or_header(|| size(header))?;
                self.body.padding = padding(self.body.rest);
            }
            _ => {}
        }
        Ok(entry)
    }

    /// The size and runs of a regular file of which `stored` bytes follow.
    fn file(&mut self, header: &Header, form: Form, stored: u64) -> Result<(u64, Vec<Run>)> {
        let tail = record::<GnuTail>(header.as_bytes(), PREFIX);
        let mut contents = stored;
        let (size, map) = match (form, header.typeflag, header.dialect(), tail) {
            (_, typeflag::SPARSE, Dialect::Gnu, Some(tail)) => {
                let map = sparse::old_gnu(tail, &mut self.stream)?;
                (map.size(), map)
            }
            (_, flag @ typeflag::SPARSE, ..) => {
                return Err(
                    Cause::Type { flag, what: "sparse files of others than GNU tar" }.into()
                );
            }
            (Form::Dense, ..) => {
                let mut map = Map::new(stored);
                map.piece(0, stored)?;
                (stored, map)
            }
            (Form::Told { size, map: pieces }, ..) => {
                let mut map = Map::new(size);
                pieces.into_iter().try_for_each(|(start, len)| map.piece(start, len))?;
                (size, map)
            }
            (Form::Inline { size }, ..) => {
                (size, sparse::inline(size, &mut contents, &mut self.stream)?)
            }
        };
        let place = self.stream.at();
        // Every byte of the tar has a place.
        place.checked_add(stored).ok_or(Cause::Number("size"))?;
        let (runs, mapped) = map.runs(place, contents)?;
        self.body.contents = mapped;
        self.body.rest = contents - mapped;
        self.body.padding = padding(stored);
        Ok((size, runs))
    }
}

const CONTENTS: &str = "the contents of a member";

/// Bytes that fill the last block of contents of `len` bytes.
fn padding(len: u64) -> u64 {
    (BLOCK as u64 - len % BLOCK as u64) % BLOCK as u64
}

/// The header that a block is, if its checksum says so.
fn header_in(block: &[u8; BLOCK]) -> Option<&Header> {
    let header = record::<Header>(block, 0)?;
    let (unsigned, signed) = header.sums();
    let sum = number::field(&header.chksum)?;
    (sum == unsigned || sum == signed).then_some(header)
}

fn number(field: &[u8], what: &'static str) -> Result<i64> {
    number::field(field).ok_or_else(|| Cause::Number(what).into())
}

fn size(header: &Header) -> Result<u64> {
    u64::try_from(number(&header.size, "size")?).map_err(|_| Cause::Number("size").into())
}

fn small(field: &[u8], what: &'static str) -> Result<u32> {
    u32::try_from(number(field, what)?).map_err(|_| Cause::Number(what).into())
}

/// The text in a field, which a zero byte ends.
fn text(field: &[u8]) -> Vec<u8> {
    field.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

/// The name of a header, with its prefix if it has one.
fn name(header: &Header) -> Vec<u8> {
    let prefix = match header.dialect() {
        Dialect::V7 => Vec::new(),
        Dialect::Ustar => text(&header.prefix),
        Dialect::Star => text(header.prefix.get(..STAR_PREFIX).unwrap_or_default()),
        Dialect::Gnu => gnu_prefix(header),
    };
    let name = text(&header.name);
    if prefix.is_empty() { name } else { [&prefix, &b"/"[..], &name].concat() }
}

/// GNU headers have no prefix; Go before 1.8 wrote one where GNU tar has two times. It is told from
/// them by being no numbers.
fn gnu_prefix(header: &Header) -> Vec<u8> {
    let is_time = |field: &[u8]| field.first() == Some(&0) || number::field(field).is_some();
    let prefix = text(&header.prefix);
    match record::<GnuTail>(header.as_bytes(), PREFIX) {
        Some(tail) if is_time(&tail.atime) && is_time(&tail.ctime) => Vec::new(),
        _ if prefix.is_ascii() => prefix,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
