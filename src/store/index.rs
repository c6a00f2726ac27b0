//! An index: where blobs lie in packs (`docs/store-format.md`, "Index").
//!
//! It stays where it is. In memory is where each of its pages begins, 8 bytes for 85 entries, and which packs it tells of; a
//! look-up reads one page, which the cache keeps. A large one is in parts, each of them an object with its own range of
//! ids, which is opened when it is first asked.

use std::sync::{Arc, OnceLock};

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
/// Packs of an index at most, and parts: the lists of them are held in memory.
const MOST_PACKS: u32 = 1 << 24;
const MOST_PARTS: u32 = 1 << 20;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    entries: U64,
    packs: U32,
    crc: U32,
    /// The beginning of the last id.
    last: U64,
    parts: U32,
    zero: U32,
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

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PartEntry {
    id: Id,
    /// The beginning of its first id.
    first: U64,
    entries: U32,
    /// Those of its header.
    crc: U32,
    code: Code,
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

const _: () = assert!(size_of::<Header>() == 64 && size_of::<PartEntry>() == 64);

/// The bits of `plain` that are the length.
const LENGTH: u32 = (1 << 28) - 1;
const ZSTD: u32 = 1 << 28;
const IS_PAGE: u32 = 1 << 29;

/// What an index is opened with.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    keys: &'a Keys,
    objects: &'a Arc<dyn Objects>,
    cache: &'a Arc<Cache>,
    object: Object,
    id: Id,
}

/// Where a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) pack: Id,
    pub(super) salt: Salt,
    pub(super) blob: Blob,
}

/// Bytes of an object before its first page, and of what is used of them, if it has so many packs, parts and pages.
fn head_len(packs: u32, parts: u32, pages: u64) -> Option<(u64, u64)> {
    let packs = u64::from(packs) * size_of::<PackEntry>() as u64;
    let parts = u64::from(parts) * size_of::<PartEntry>() as u64;
    let used = pages.checked_mul(8)?.checked_add(packs + parts)?.checked_add(HEAD as u64)?;
    Some((used.checked_next_multiple_of(PAGE as u64)?, used))
}

/// Bytes of the two headers.
const HEAD: usize = sealed::HEADER + size_of::<Header>();

/// The index that tells of `blobs`, each with the number of its pack among `packs`.
///
/// # Errors
/// As [`Keys::seal`].
pub(super) fn make(keys: &Keys, packs: &[Pack], mut blobs: Vec<(u32, Blob)>) -> Result<Vec<u8>> {
    blobs.sort_unstable_by_key(|(pack, blob)| (blob.id, blob.kind, *pack));
    blobs.dedup_by_key(|(_, blob)| (blob.id, blob.kind));
    let entries = blobs.len() as u64;
    let last = blobs.last().map_or(0, |(_, blob)| blob.id.prefix());
    keys.seal(Sealed::Index, &payload(keys, packs, &[], (entries, last), &blobs)?)
}

/// A part of an index, whose `blobs` are in order: the object, and what the index says of it.
///
/// # Errors
/// As [`Keys::seal`].
pub(super) fn make_part(keys: &Keys, blobs: &[(u32, Blob)]) -> Result<(Vec<u8>, NewPart)> {
    let last = blobs.last().map_or(0, |(_, blob)| blob.id.prefix());
    let payload = payload(keys, &[], &[], (blobs.len() as u64, last), blobs)?;
    let header = wire::record::<Header>(&payload, 0).ok_or(Cause::Magic)?;
    let (crc, code) = (header.crc, header.code);
    let object = keys.seal(Sealed::Index, &payload)?;
    let id = Id::of_object(&object);
    let first = blobs.first().map_or(0, |(_, blob)| blob.id.prefix()).into();
    let entries = (blobs.len() as u32).into();
    Ok((object, NewPart { entry: PartEntry { id, first, entries, crc, code }, last }))
}

/// The index that is made of `parts`, in order, whose entries are of `packs`.
///
/// # Errors
/// As [`Keys::seal`].
pub(super) fn make_of_parts(keys: &Keys, packs: &[Pack], parts: &[NewPart]) -> Result<Vec<u8>> {
    let entries = parts.iter().map(|part| u64::from(part.entry.entries.get())).sum();
    let last = parts.last().map_or(0, |part| part.last);
    keys.seal(Sealed::Index, &payload(keys, packs, parts, (entries, last), &[])?)
}

/// A part that was made.
#[derive(Debug)]
pub(super) struct NewPart {
    entry: PartEntry,
    last: u64,
}

impl NewPart {
    pub(super) fn id(&self) -> Id {
        self.entry.id
    }
}

fn payload(
    keys: &Keys,
    packs: &[Pack],
    parts: &[NewPart],
    (entries, last): (u64, u64),
    blobs: &[(u32, Blob)],
) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    for pack in packs {
        let Pack { id, len, salt } = *pack;
        head.extend_from_slice(PackEntry { id, len: len.into(), salt }.as_bytes());
    }
    for part in parts {
        head.extend_from_slice(part.entry.as_bytes());
    }
    for page in blobs.chunks(PER_PAGE) {
        let fence = page.first().map_or(0, |(_, blob)| blob.id.prefix());
        head.extend_from_slice(&fence.to_be_bytes());
    }
    let mut header = Header {
        entries: entries.into(),
        packs: (packs.len() as u32).into(),
        crc: 0.into(),
        last: last.into(),
        parts: (parts.len() as u32).into(),
        zero: 0.into(),
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
    Ok(payload)
}

/// An index that can be asked, or a part of one.
#[derive(Debug)]
pub(super) struct Index {
    /// Where it lies.
    object: Object,
    id: Id,
    keys: Keys,
    salt: Salt,
    objects: Arc<dyn Objects>,
    cache: Arc<Cache>,
    pages: Owner,
    packs: Arc<[Pack]>,
    parts: Vec<Part>,
    entries: u64,
    first_page: u64,
    last: u64,
    /// Of each page, the beginning of its first id.
    fences: Vec<u64>,
}

/// A part of an index, open once it was asked.
#[derive(Debug)]
struct Part {
    told: PartEntry,
    open: OnceLock<Box<Index>>,
}

impl Index {
    /// Opens the index `id`. Its pages and parts are left for later.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it is damaged, and the host's.
    pub(super) fn open(
        keys: &Keys,
        objects: &Arc<dyn Objects>,
        cache: &Arc<Cache>,
        id: Id,
    ) -> Result<Self> {
        let object = Object::Index(id);
        let place = Place { keys, objects, cache, object, id };
        Self::open_object(&place, None).within(|| object.to_string())
    }

    /// Opens an index, or what `part` says of another, whose packs these are.
    fn open_object(place: &Place<'_>, part: Option<(&PartEntry, &Arc<[Pack]>)>) -> Result<Self> {
        let Place { keys, objects, cache, object, id } = *place;
        let len = objects.len(object)?;
        let mut head = vec![0; HEAD];
        if len < (HEAD + ID) as u64 {
            return Err(Cause::Magic.into());
        }
        objects.read_at(object, 0, &mut head)?;
        keys.payload_len(Sealed::Index, &head, len)?;
        let header: &Header = wire::record(&head, sealed::HEADER).ok_or(Cause::Magic)?;
        let (entries, packs, crc) = (header.entries.get(), header.packs.get(), header.crc.get());
        let (last, parts, zero) = (header.last.get(), header.parts.get(), header.zero.get());
        let (salt, code) = (header.salt, header.code);
        // What has parts has no pages of its own, and what is one has neither packs nor parts.
        let pages = if parts == 0 { entries.div_ceil(PER_PAGE as u64) } else { 0 };
        let fault = || Cause::IndexSize { entries, packs: packs.into(), len };
        let (first_page, used) = head_len(packs, parts, pages).ok_or_else(fault)?;
        let end = pages
            .checked_mul(PAGE as u64)
            .and_then(|pages| pages.checked_add(first_page + ID as u64));
        let is_whole = part.is_none();
        let is_sound = match part {
            None => packs <= MOST_PACKS && parts <= MOST_PARTS,
            Some((told, _)) => packs == 0 && parts == 0 && entries == u64::from(told.entries.get()),
        };
        if end != Some(len) || !is_sound {
            return Err(fault().into());
        }
        if zero != 0 {
            return Err(Cause::NotZero(sealed::HEADER as u64 + 28).into());
        }
        // As long as the object, which is there.
        head.resize(used as usize, 0);
        objects.read_at(object, HEAD as u64, head.get_mut(HEAD..).unwrap_or_default())?;
        let mut summed = head.get(sealed::HEADER..).unwrap_or_default().to_vec();
        summed.get_mut(12..16).unwrap_or_default().fill(0);
        if crc32c::crc32c(&summed) != crc || part.is_some_and(|(told, _)| told.crc.get() != crc) {
            return Err(Cause::Seal.into());
        }
        summed.get_mut(CODE_AT).unwrap_or_default().fill(0);
        let is_told = part.is_none_or(|(told, _)| same(&told.code, &code));
        if !is_told || !same(&keys.code(&salt, IN_FRONT, &[&summed]), &code) {
            return Err(Cause::Seal.into());
        }
        let list = head.get(HEAD..).unwrap_or_default();
        let (packs, list) = list.split_at(packs as usize * size_of::<PackEntry>());
        let (parts, fences) = list.split_at(parts as usize * size_of::<PartEntry>());
        let packs = wire::records::<PackEntry>(packs);
        let packs: Vec<Pack> = packs
            .iter()
            .map(|&PackEntry { id, len, salt }| Pack { id, len: len.get(), salt })
            .collect();
        let parts = wire::records::<PartEntry>(parts);
        let sum: u64 = parts.iter().map(|part| u64::from(part.entries.get())).sum();
        let is_ordered = parts.is_sorted_by_key(|part| part.first.get());
        if is_whole && !parts.is_empty() && (sum != entries || !is_ordered) {
            return Err(fault().into());
        }
        let fences = wire::records::<zerocopy::big_endian::U64>(fences);
        Ok(Self {
            object,
            id,
            keys: keys.clone(),
            salt,
            objects: Arc::clone(objects),
            cache: Arc::clone(cache),
            pages: cache.owner(),
            packs: part.map_or_else(|| packs.into(), |(_, packs)| Arc::clone(packs)),
            parts: parts.iter().map(|&told| Part { told, open: OnceLock::new() }).collect(),
            entries,
            first_page,
            last,
            fences: fences.iter().map(|fence| fence.get()).collect(),
        })
    }

    /// The part `part` of it.
    fn part<'a>(&'a self, part: &'a Part) -> Result<&'a Self> {
        if let Some(open) = part.open.get() {
            return Ok(open);
        }
        let (id, object) = (part.told.id, Object::Part(part.told.id));
        let (keys, objects, cache) = (&self.keys, &self.objects, &self.cache);
        let place = Place { keys, objects, cache, object, id };
        let told = Some((&part.told, &self.packs));
        let open = Self::open_object(&place, told).within(|| object.to_string())?;
        // Another thread may have been quicker.
        Ok(part.open.get_or_init(|| Box::new(open)))
    }

    /// The ids of its parts, if it is in parts.
    pub(super) fn parts(&self) -> impl Iterator<Item = Id> {
        self.parts.iter().map(|part| part.told.id)
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

    /// Where `id` lies, if this index knows.
    pub(super) fn find(&self, id: &Id, kind: BlobKind) -> Result<Option<Location>> {
        let prefix = id.prefix();
        if prefix > self.last {
            return Ok(None);
        }
        // The last part, or page, that begins before it; ids that begin alike may lie in several.
        let mut number = self.parts.partition_point(|part| part.told.first.get() < prefix);
        number = number.saturating_sub(1);
        while let Some(part) = self.parts.get(number).filter(|part| part.told.first.get() <= prefix)
        {
            if let Some(found) = self.part(part)?.find(id, kind)? {
                return Ok(Some(found));
            }
            number += 1;
        }
        let mut number = self.fences.partition_point(|&fence| fence < prefix).saturating_sub(1);
        while self.fences.get(number).is_some_and(|&fence| fence <= prefix) {
            let page = self.page(number as u64)?;
            // It was held against its checksum when it was read.
            let entries = wire::records::<Entry>(listed(&page.0).unwrap_or_default());
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
        let parts = self.parts.iter();
        let locations = vec![].into_iter();
        Entries { index: self, asked: self, parts, next: 0, most, pages, at: 0, locations }
    }

    fn page(&self, number: u64) -> Result<Arc<Unit>> {
        let page = self.cache.get_or_load(Key(self.pages, number), || {
            let mut page = vec![0; PAGE].into_boxed_slice();
            self.read_pages(number, &mut page)?;
            let at = self.first_page + number * PAGE as u64;
            // What is wrong only between here and where it lies is read again.
            if entries(&page, number).is_err()
                && self.objects.forget(self.object, at..at + PAGE as u64)
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
        self.objects.read_at(self.object, at, buf)?;
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
    /// The same, or the part of it that is gone through just now,
    asked: &'a Index,
    /// and those behind that.
    parts: std::slice::Iter<'a, Part>,
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
                let left = self.asked.fences.len() as u64 - self.next;
                let count = left.min(self.most as u64);
                if count == 0 {
                    let Some(part) = self.parts.next() else { return Ok(None) };
                    (self.asked, self.next) = (self.index.part(part)?, 0);
                    continue;
                }
                self.pages.resize(count as usize * PAGE, 0);
                self.asked.read_pages(self.next, &mut self.pages)?;
                (self.next, self.at) = (self.next + count, 0);
            }
            let number = self.next - ((self.pages.len() - self.at) / PAGE) as u64;
            let page = self.pages.get(self.at..).and_then(|rest| rest.get(..PAGE));
            let found = entries(page.unwrap_or_default(), number)?;
            let locations = found.iter().map(|entry| self.asked.location(entry, number));
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

/// The bytes of the entries of a page.
fn listed(page: &[u8]) -> Option<&[u8]> {
    let count = page.get(PAGE - 8..)?.first_chunk()?;
    let len = (u32::from_le_bytes(*count) as usize).checked_mul(size_of::<Entry>())?;
    page.get(..len).filter(|_| len <= ENTRIES)
}

/// The entries of a page, which is held against its checksum.
fn entries(page: &[u8], number: u64) -> Result<&[Entry]> {
    let fault = || Error::from(Cause::IndexPage { page: number });
    let (summed, sum) = page.split_last_chunk::<4>().ok_or_else(fault)?;
    if crc32c::crc32c(summed) != u32::from_le_bytes(*sum) {
        return Err(fault());
    }
    let entries = wire::records::<Entry>(listed(page).ok_or_else(fault)?);
    let ordered = entries.is_sorted_by(|one, other| {
        (one.id, one.plain.get() & IS_PAGE) < (other.id, other.plain.get() & IS_PAGE)
    });
    if !ordered {
        return Err(bad(number, "ids are not in order"));
    }
    Ok(entries)
}
