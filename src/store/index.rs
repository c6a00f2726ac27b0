//! An index: where blobs lie in packs (`docs/store-format.md`, "Index").
//!
//! It stays where it is. In memory is where each of its pages begins, 8 bytes for 85 entries; a look-up
//! reads one page, which the cache keeps.

use std::sync::Arc;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cause::Cause;
use super::id::{BlobKind, ID, Id};
use super::keys::{Code, Keys, Salt};
use super::objects::{Object, Objects};
use super::pack::{Blob, Encoding, Pack};
use super::sealed::{self, Sealed};
use crate::block::{Cache, Key, Owner, Unit};
use crate::error::{Error, Result, ResultExt};
use crate::wire;

/// Bytes of a page of entries.
const PAGE: usize = 4096;
/// Entries of a page.
const PER_PAGE: usize = 85;
/// Bytes of the entries of a page,
const ENTRIES: usize = PER_PAGE * size_of::<Entry>();
/// and of its code, behind which are their number and a checksum.
const PAGE_CODE: usize = 8;
const _: () = assert!(ENTRIES + PAGE_CODE + 8 == PAGE);
/// What the code of the part before the pages is told from those of pages by,
const IN_FRONT: u64 = u64::MAX;
/// and where it lies behind the first header.
const CODE_AT: std::ops::Range<usize> = 48..64;
/// Packs of an index at most: the list of them is held in memory.
const MOST_PACKS: u32 = 1 << 24;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    entries: U64,
    packs: U32,
    crc: U32,
    /// The beginning of the last id.
    last: U64,
    /// What indexes have in common that were written together, each for its own range of ids; 0 for one alone.
    run: U64,
    /// What tells its codes from those of other indexes.
    salt: Salt,
    /// Of what is before the pages.
    code: Code,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PackEntry {
    id: Id,
    len: U64,
    salt: Salt,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    id: Id,
    pack: U32,
    at: U32,
    stored: U32,
    plain: U32,
}

const _: () = assert!(size_of::<Header>() == 64 && size_of::<Entry>() * PER_PAGE <= PAGE - 16);

/// The bits of `plain` that are the length.
const LENGTH: u32 = (1 << 28) - 1;
const ZSTD: u32 = 1 << 28;
const IS_PAGE: u32 = 1 << 29;

/// Where a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) pack: Id,
    pub(super) salt: Salt,
    pub(super) blob: Blob,
}

/// Bytes of an object before its first page, and of what is used of them, if it has so many packs and pages.
fn head_len(packs: u32, pages: u64) -> Option<(u64, u64)> {
    let packs = u64::from(packs) * size_of::<PackEntry>() as u64;
    let used = pages.checked_mul(8)?.checked_add(packs)?.checked_add(HEAD as u64)?;
    Some((used.checked_next_multiple_of(PAGE as u64)?, used))
}

/// Bytes of the two headers.
const HEAD: usize = sealed::HEADER + size_of::<Header>();

/// The object that tells of `blobs`, each with the number of its pack among `packs`.
///
/// # Errors
/// As [`Keys::seal`].
pub(super) fn make(
    keys: &Keys,
    packs: &[Pack],
    mut blobs: Vec<(u32, Blob)>,
    run: u64,
) -> Result<Vec<u8>> {
    blobs.sort_unstable_by_key(|(pack, blob)| (blob.id, blob.kind, *pack));
    blobs.dedup_by_key(|(_, blob)| (blob.id, blob.kind));
    let mut head = Vec::new();
    for pack in packs {
        let Pack { id, len, salt } = *pack;
        head.extend_from_slice(PackEntry { id, len: len.into(), salt }.as_bytes());
    }
    for page in blobs.chunks(PER_PAGE) {
        let fence = page.first().map_or(0, |(_, blob)| blob.id.prefix());
        head.extend_from_slice(&fence.to_be_bytes());
    }
    let mut header = Header {
        entries: (blobs.len() as u64).into(),
        packs: (packs.len() as u32).into(),
        crc: 0.into(),
        last: blobs.last().map_or(0, |(_, blob)| blob.id.prefix()).into(),
        run: run.into(),
        salt: keys.new_pack()?.salt,
        code: Code::default(),
    };
    let salt = header.salt;
    header.code = keys.code(&salt, IN_FRONT, &[header.as_bytes(), &head]);
    header.crc = crc32c::crc32c_append(crc32c::crc32c(header.as_bytes()), &head).into();
    let mut payload = header.as_bytes().to_vec();
    payload.extend_from_slice(&head);
    let pages = (payload.len() + sealed::HEADER).next_multiple_of(PAGE) - sealed::HEADER;
    payload.reserve(pages - payload.len() + blobs.len().div_ceil(PER_PAGE) * PAGE);
    payload.resize(pages, 0);
    for (number, page) in blobs.chunks(PER_PAGE).enumerate() {
        let start = payload.len();
        for (pack, blob) in page {
            let encoding = if blob.encoding == Encoding::Zstd { ZSTD } else { 0 };
            let kind = if blob.kind == BlobKind::Page { IS_PAGE } else { 0 };
            let entry = Entry {
                id: blob.id,
                pack: (*pack).into(),
                at: blob.at.into(),
                stored: blob.stored.into(),
                plain: (blob.plain & LENGTH | encoding | kind).into(),
            };
            payload.extend_from_slice(entry.as_bytes());
        }
        payload.resize(start + ENTRIES, 0);
        let count = (page.len() as u32).to_le_bytes();
        let entries = payload.get(start..).unwrap_or_default();
        let code = keys.code(&salt, number as u64, &[entries, &count]);
        payload.extend_from_slice(code.get(..PAGE_CODE).unwrap_or_default());
        payload.extend_from_slice(&count);
        let sum = crc32c::crc32c(payload.get(start..).unwrap_or_default());
        payload.extend_from_slice(&sum.to_le_bytes());
    }
    keys.seal(Sealed::Index, &payload)
}

/// An index that can be asked.
#[derive(Debug)]
pub(super) struct Index {
    id: Id,
    keys: Keys,
    salt: Salt,
    objects: Arc<dyn Objects>,
    cache: Arc<Cache>,
    pages: Owner,
    packs: Vec<Pack>,
    entries: u64,
    first_page: u64,
    last: u64,
    run: u64,
    /// Of each page, the beginning of its first id.
    fences: Vec<u64>,
}

impl Index {
    /// Opens the index `id`. Its pages are left for later.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it is damaged, and the host's.
    pub(super) fn open(
        keys: &Keys,
        objects: &Arc<dyn Objects>,
        cache: &Arc<Cache>,
        id: Id,
    ) -> Result<Self> {
        Self::open_object(keys, objects, cache, id).within(|| Object::Index(id).to_string())
    }

    fn open_object(
        keys: &Keys,
        objects: &Arc<dyn Objects>,
        cache: &Arc<Cache>,
        id: Id,
    ) -> Result<Self> {
        let object = Object::Index(id);
        let len = objects.len(object)?;
        let mut head = vec![0; HEAD];
        if len < (HEAD + ID) as u64 {
            return Err(Cause::Magic.into());
        }
        objects.read_at(object, 0, &mut head)?;
        keys.payload_len(Sealed::Index, &head, len)?;
        let header: &Header = wire::record(&head, sealed::HEADER).ok_or(Cause::Magic)?;
        let (entries, packs, crc) = (header.entries.get(), header.packs.get(), header.crc.get());
        let (last, run) = (header.last.get(), header.run.get());
        let (salt, code) = (header.salt, header.code);
        let pages = entries.div_ceil(PER_PAGE as u64);
        let fault = || Cause::IndexSize { entries, packs: packs.into(), len };
        let (first_page, used) = head_len(packs, pages).ok_or_else(fault)?;
        let end = pages
            .checked_mul(PAGE as u64)
            .and_then(|pages| pages.checked_add(first_page + ID as u64));
        if end != Some(len) || packs > MOST_PACKS || u32::try_from(entries).is_err() {
            return Err(fault().into());
        }
        // As long as the object, which is there.
        head.resize(used as usize, 0);
        objects.read_at(object, HEAD as u64, head.get_mut(HEAD..).unwrap_or_default())?;
        let mut summed = head.get(sealed::HEADER..).unwrap_or_default().to_vec();
        summed.get_mut(12..16).unwrap_or_default().fill(0);
        if crc32c::crc32c(&summed) != crc {
            return Err(Cause::Seal.into());
        }
        summed.get_mut(CODE_AT).unwrap_or_default().fill(0);
        if !same(&keys.code(&salt, IN_FRONT, &[&summed]), &code) {
            return Err(Cause::Seal.into());
        }
        let list = head.get(HEAD..).unwrap_or_default();
        let (packs, fences) = list.split_at(packs as usize * size_of::<PackEntry>());
        let packs = wire::records::<PackEntry>(packs);
        let fences = wire::records::<zerocopy::big_endian::U64>(fences);
        Ok(Self {
            id,
            keys: keys.clone(),
            salt,
            objects: Arc::clone(objects),
            cache: Arc::clone(cache),
            pages: cache.owner(),
            packs: packs
                .iter()
                .map(|&PackEntry { id, len, salt }| Pack { id, len: len.get(), salt })
                .collect(),
            entries,
            first_page,
            last,
            run,
            fences: fences.iter().map(|fence| fence.get()).collect(),
        })
    }

    pub(super) fn id(&self) -> Id {
        self.id
    }

    /// The packs it tells of.
    pub(super) fn packs(&self) -> &[Pack] {
        &self.packs
    }

    /// How many blobs it tells of.
    pub(super) fn entry_count(&self) -> u64 {
        self.entries
    }

    /// Which run it belongs to; none if it is one by itself.
    pub(super) fn run(&self) -> Option<u64> {
        Some(self.run).filter(|&run| run != 0)
    }

    /// Where `id` lies, if this index knows.
    pub(super) fn find(&self, id: &Id, kind: BlobKind) -> Result<Option<Location>> {
        let prefix = id.prefix();
        if prefix > self.last {
            return Ok(None);
        }
        // The last page that begins before it; ids that begin alike may lie on several.
        let mut number = self.fences.partition_point(|&fence| fence < prefix).saturating_sub(1);
        while self.fences.get(number).is_some_and(|&fence| fence <= prefix) {
            let page = self.page(number as u64)?;
            let entries = entries(&page.0, number as u64)?;
            let from = entries.partition_point(|entry| entry.id < *id);
            for entry in entries.get(from..).unwrap_or_default() {
                if entry.id != *id {
                    return Ok(None);
                }
                let location = self.location(entry, number as u64)?;
                if location.blob.kind == kind {
                    return Ok(Some(location));
                }
            }
            number += 1;
        }
        Ok(None)
    }

    /// All it tells of, in the order of ids and kinds; `pages` of it are read at once.
    pub(super) fn entries(&self, pages: usize) -> Entries<'_> {
        let (pages, most) = (vec![], pages.max(1));
        Entries { index: self, next: 0, most, pages, at: 0, locations: vec![].into_iter() }
    }

    fn page(&self, number: u64) -> Result<Arc<Unit>> {
        let page = self.cache.get_or_load(Key(self.pages, number), || {
            let mut page = vec![0; PAGE].into_boxed_slice();
            self.read_pages(number, &mut page)?;
            let at = self.first_page + number * PAGE as u64;
            // What is wrong only between here and where it lies is read again.
            if entries(&page, number).is_err()
                && self.objects.forget(Object::Index(self.id), at..at + PAGE as u64)
            {
                self.read_pages(number, &mut page)?;
            }
            entries(&page, number)?;
            Ok(Unit(page))
        });
        page.within(|| Object::Index(self.id).to_string())
    }

    fn read_pages(&self, number: u64, buf: &mut [u8]) -> Result<()> {
        let at = self.first_page + number * PAGE as u64;
        self.objects.read_at(Object::Index(self.id), at, buf)?;
        for (number, page) in (number..).zip(buf.chunks_exact(PAGE)) {
            let (entries, rest) = page.split_at_checked(ENTRIES).unwrap_or_default();
            let (code, rest) = rest.split_at_checked(PAGE_CODE).unwrap_or_default();
            let count = rest.get(..4).unwrap_or_default();
            let wanted = self.keys.code(&self.salt, number, &[entries, count]);
            if !same(wanted.get(..PAGE_CODE).unwrap_or_default(), code) {
                return Err(Cause::IndexPage { page: number }.into());
            }
        }
        Ok(())
    }

    fn location(&self, entry: &Entry, page: u64) -> Result<Location> {
        let pack =
            self.packs.get(entry.pack.get() as usize).ok_or(bad(page, "an entry names no pack"))?;
        let plain = entry.plain.get();
        if plain & !(LENGTH | ZSTD | IS_PAGE) != 0 {
            return Err(bad(page, "an entry has flags that are not known"));
        }
        let (at, stored) = (entry.at.get(), entry.stored.get());
        if u64::from(at) + u64::from(stored) > pack.len {
            return Err(bad(page, "an entry lies beyond its pack"));
        }
        let blob = Blob {
            id: entry.id,
            kind: if plain & IS_PAGE == 0 { BlobKind::Block } else { BlobKind::Page },
            at,
            stored,
            plain: plain & LENGTH,
            encoding: if plain & ZSTD == 0 { Encoding::Plain } else { Encoding::Zstd },
        };
        Ok(Location { pack: pack.id, salt: pack.salt, blob })
    }
}

/// See [`Index::entries`].
#[derive(Debug)]
pub(super) struct Entries<'a> {
    index: &'a Index,
    /// The first page that was not read yet.
    next: u64,
    most: usize,
    /// Pages that were read, and how far they are used.
    pages: Vec<u8>,
    at: usize,
    locations: std::vec::IntoIter<Location>,
}

impl Entries<'_> {
    /// The next one.
    ///
    /// # Errors
    /// Those of reading it.
    pub(super) fn next(&mut self) -> Result<Option<Location>> {
        loop {
            if let Some(location) = self.locations.next() {
                return Ok(Some(location));
            }
            if self.at == self.pages.len() {
                let left = self.index.fences.len() as u64 - self.next;
                let count = left.min(self.most as u64);
                if count == 0 {
                    return Ok(None);
                }
                self.pages.resize(count as usize * PAGE, 0);
                self.index.read_pages(self.next, &mut self.pages)?;
                (self.next, self.at) = (self.next + count, 0);
            }
            let number = self.next - ((self.pages.len() - self.at) / PAGE) as u64;
            let page = self.pages.get(self.at..).and_then(|rest| rest.get(..PAGE));
            let found = entries(page.unwrap_or_default(), number)?;
            let locations = found.iter().map(|entry| self.index.location(entry, number));
            self.locations = locations.collect::<Result<Vec<_>>>()?.into_iter();
            self.at += PAGE;
        }
    }
}

/// Whether two codes are one, in a time that tells nothing of where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |all, (one, other)| all | (one ^ other));
    one.len() == other.len() && differing == 0
}

fn bad(page: u64, what: &'static str) -> Error {
    Cause::IndexEntry { page, what }.into()
}

/// The entries of a page, which is held against its checksum.
fn entries(page: &[u8], number: u64) -> Result<&[Entry]> {
    let fault = || Error::from(Cause::IndexPage { page: number });
    let (summed, sum) = page.split_last_chunk::<4>().ok_or_else(fault)?;
    if crc32c::crc32c(summed) != u32::from_le_bytes(*sum) {
        return Err(fault());
    }
    let (rest, count) = summed.split_last_chunk::<4>().ok_or_else(fault)?;
    let len = u32::from_le_bytes(*count) as usize * size_of::<Entry>();
    let entries = rest.get(..len).filter(|_| len <= PER_PAGE * size_of::<Entry>());
    let entries = wire::records::<Entry>(entries.ok_or_else(fault)?);
    let ordered = entries.is_sorted_by(|one, other| {
        (one.id, one.plain.get() & IS_PAGE) < (other.id, other.plain.get() & IS_PAGE)
    });
    if !ordered {
        return Err(bad(number, "ids are not in order"));
    }
    Ok(entries)
}
