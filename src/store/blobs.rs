//! Blocks and map pages, read out of packs.

use std::cell::RefCell;
use std::sync::Arc;

use zstd::zstd_safe::DCtx;

use super::Store;
use super::cause::Cause;
use super::id::{BlobKind, ID, Id};
use super::index::{Index, Location};
use super::map::{FANOUT, Shape, page_ids, span};
use super::objects::Object;
use super::pack::Encoding;
use crate::block::{Key, Weigh};
use crate::error::{Error, Kind, Result, ResultExt};

/// How often the places of a blob are looked for: each time they may be moved once more.
const TRIES: usize = 4;

thread_local! {
    static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
    /// What a blob is read into.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Plain bytes of a blob at most.
const MOST_BLOB: u32 = 4 << 20;

/// A map page in the cache.
#[derive(Debug)]
pub(super) struct Page {
    id: Id,
    ids: Box<[Id]>,
}

impl Page {
    /// The id of the `number`th block or page below it.
    pub(super) fn get(&self, number: u64) -> Id {
        usize::try_from(number)
            .ok()
            .and_then(|number| self.ids.get(number))
            .copied()
            .unwrap_or(Id::ZERO)
    }
}

impl Weigh for Page {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.ids.len() * ID
    }
}

impl Store {
    /// Whether the store has a blob that will stay.
    pub(super) fn has(&self, kind: BlobKind, id: &Id) -> Result<bool> {
        for is_again in [false, true] {
            if is_again {
                self.load_indexes()?;
            }
            let mut moved = false;
            for index in self.indexes.read().iter() {
                match index.find(id, kind) {
                    Ok(Some(location)) if !self.leaving.read().contains(&location.pack) => {
                        return Ok(true);
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == Kind::NotFound => moved = true,
                    Err(error) => return Err(error).within(|| self.name()),
                }
            }
            if !moved {
                break;
            }
        }
        Ok(false)
    }

    /// Where a blob lies; one place of perhaps several.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if no index knows.
    pub(super) fn locate(&self, kind: BlobKind, id: &Id) -> Result<Location> {
        for index in self.indexes.read().iter() {
            if let Some(location) = index.find(id, kind)? {
                return Ok(location);
            }
        }
        Err(Error::from(Cause::Missing(*id)).within(self.name()))
    }

    /// Fills `out` with the blob `id`, which is as long.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it is in no index, or damaged wherever it lies.
    pub(super) fn read_blob(&self, kind: BlobKind, id: &Id, out: &mut [u8]) -> Result<()> {
        self.try_each(kind, id, &mut |location| {
            if location.blob.plain as usize != out.len() {
                return Err(fault(location, "its length"));
            }
            self.fetch(location, out)
        })
    }

    /// The map page `id`, which stands for zeros if it is zero.
    pub(super) fn map_page(&self, id: Id) -> Result<Arc<Page>> {
        let load = || -> Result<Page> {
            let mut ids = None;
            if id.is_zero() {
                return Ok(Page { id, ids: Box::new([]) });
            }
            self.try_each(BlobKind::Page, &id, &mut |location| {
                let len = location.blob.plain as usize;
                if len > FANOUT as usize * ID {
                    return Err(fault(location, "its length"));
                }
                let mut bytes = vec![0; len];
                self.fetch(location, &mut bytes)?;
                ids = Some(page_ids(&bytes)?);
                Ok(())
            })?;
            Ok(Page { id, ids: ids.unwrap_or_default() })
        };
        let page = self.cache.get_or_load(Key(self.pages, id.prefix()), load)?;
        // Another one may begin alike.
        if page.id == id { Ok(page) } else { load().map(Arc::new) }
    }

    /// The id of a page of level 0 of a map.
    pub(super) fn leaf(&self, root: Id, shape: Shape, number: u64) -> Result<Id> {
        if number >= shape.leaves() {
            return Ok(Id::ZERO);
        }
        let mut id = root;
        for level in (0..shape.level).rev() {
            id = self.map_page(id)?.get(number / (span(level) / FANOUT) % FANOUT);
        }
        Ok(id)
    }

    /// Tries each place where a blob lies until one is good. It may have come, or moved, since the indexes were
    /// looked at.
    fn try_each(
        &self,
        kind: BlobKind,
        id: &Id,
        read: &mut dyn FnMut(&Location) -> Result<()>,
    ) -> Result<()> {
        let mut failed: Option<Error> = None;
        let mut moved = false;
        let mut tried: Vec<Arc<Index>> = Vec::new();
        for round in 0..TRIES {
            if round > 0 && failed.is_some() && !moved {
                break;
            }
            if round > 0 {
                self.load_indexes()?;
            }
            let indexes = self.indexes.read().clone();
            // Another thread may have looked at them for us.
            let is_tried = |index: &Arc<Index>| tried.iter().any(|tried| tried.id() == index.id());
            if round > 0 && indexes.iter().all(is_tried) {
                break;
            }
            for index in &indexes {
                let read = match index.find(id, kind) {
                    Ok(None) => continue,
                    Ok(Some(location)) => read(&location),
                    Err(error) => Err(error),
                };
                match read {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        moved |= error.kind() == Kind::NotFound;
                        failed = failed.or(Some(error));
                    }
                }
            }
            tried = indexes;
        }
        let failed = match failed {
            None => Cause::Missing(*id).into(),
            // The pack should be there.
            Some(error) if error.kind() == Kind::NotFound => {
                Error::new(Kind::Corrupt, error.to_string())
            }
            Some(error) => error,
        };
        Err(failed.within(self.name()))
    }

    /// Reads, decodes and verifies. What is wrong only between here and where it lies is read again.
    pub(super) fn fetch(&self, location: &Location, out: &mut [u8]) -> Result<()> {
        let fetched = self.fetch_once(location, out);
        let (at, stored) = (u64::from(location.blob.at), u64::from(location.blob.stored));
        match fetched {
            Err(error)
                if error.kind() == Kind::Corrupt
                    && self.objects.forget(Object::Pack(location.pack), at..at + stored) =>
            {
                self.fetch_once(location, out)
            }
            fetched => fetched,
        }
    }

    fn fetch_once(&self, location: &Location, out: &mut [u8]) -> Result<()> {
        let Location { pack, blob, .. } = location;
        if blob.encoding == Encoding::Plain && !self.keys.are_there() {
            if blob.stored != blob.plain {
                return Err(fault(location, "its length"));
            }
            self.objects.read_at(Object::Pack(*pack), blob.at.into(), out)?;
            return self.verify(location, out);
        }
        STORED.with_borrow_mut(|stored| {
            self.fetch_stored(location, stored)?;
            self.decode(location, stored, out)
        })
    }

    /// The bytes of a blob as they are in a pack but for encryption, to be added to another: they are verified, with
    /// `plain` for room.
    pub(super) fn stored_bytes(
        &self,
        location: &Location,
        stored: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        self.fetch_stored(location, stored)?;
        self.decode_all(location, stored, plain)
    }

    /// Verifies the bytes of a blob as they are in its pack; `plain` is for room.
    pub(super) fn verify_stored(
        &self,
        location: &Location,
        stored: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        self.decrypt(location, stored)?;
        self.decode_all(location, stored, plain)
    }

    fn decode_all(&self, location: &Location, stored: &[u8], plain: &mut Vec<u8>) -> Result<()> {
        if location.blob.plain > MOST_BLOB {
            return Err(fault(location, "its length"));
        }
        plain.resize(location.blob.plain as usize, 0);
        self.decode(location, stored, plain)
    }

    /// Reads and decrypts.
    fn fetch_stored(&self, location: &Location, stored: &mut Vec<u8>) -> Result<()> {
        let blob = &location.blob;
        // What does not become shorter is stored plain.
        if blob.stored > blob.plain.saturating_add(self.keys.pack(location.salt).overhead()) {
            return Err(fault(location, "its length"));
        }
        stored.resize(blob.stored as usize, 0);
        self.objects.read_at(Object::Pack(location.pack), blob.at.into(), stored)?;
        self.decrypt(location, stored)
    }

    fn decrypt(&self, location: &Location, stored: &mut Vec<u8>) -> Result<()> {
        let Location { pack, salt, blob } = location;
        let what = Object::Pack(*pack);
        let seal = Cause::BlobSeal { what, at: blob.at.into(), id: blob.id };
        let len = blob.decrypt(&self.keys.pack(*salt), stored).ok_or(seal)?;
        stored.truncate(len);
        Ok(())
    }

    /// Fills `out` with what `stored` decodes to, and holds it against the blob's id.
    fn decode(&self, location: &Location, stored: &[u8], out: &mut [u8]) -> Result<()> {
        match location.blob.encoding {
            Encoding::Plain if stored.len() != out.len() => {
                return Err(fault(location, "its length"));
            }
            Encoding::Plain => out.copy_from_slice(stored),
            Encoding::Zstd => {
                let decoded =
                    CONTEXT.with_borrow_mut(|context| context.decompress(&mut *out, stored));
                if !matches!(decoded, Ok(len) if len == out.len()) {
                    return Err(fault(location, "what is stored"));
                }
            }
        }
        self.verify(location, out)
    }

    fn verify(&self, location: &Location, plain: &[u8]) -> Result<()> {
        match self.keys.id(location.blob.kind, plain) == location.blob.id {
            true => Ok(()),
            false => Err(fault(location, "what is stored")),
        }
    }
}

fn fault(location: &Location, found: &'static str) -> Error {
    let Location { pack, blob, .. } = location;
    Cause::Blob { what: Object::Pack(*pack), at: blob.at.into(), found, id: blob.id }.into()
}
