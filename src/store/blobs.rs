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
use crate::error::{Error, Kind, Result};

thread_local! {
    static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
    /// What a blob is read into.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

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
    /// Whether the store has a blob.
    pub(super) fn has(&self, kind: BlobKind, id: &Id) -> Result<bool> {
        for index in self.indexes.read().iter() {
            if index.find(id, kind)?.is_some() {
                return Ok(true);
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

    /// Tries each place where a blob lies until one is good. One that no index knows may have come since
    /// they were looked at.
    fn try_each(
        &self,
        kind: BlobKind,
        id: &Id,
        read: &mut dyn FnMut(&Location) -> Result<()>,
    ) -> Result<()> {
        let mut failed = None;
        for is_again in [false, true] {
            if is_again && (failed.is_some() || !self.load_indexes()?) {
                break;
            }
            let indexes: Vec<Arc<Index>> = self.indexes.read().clone();
            for index in indexes {
                let read = match index.find(id, kind) {
                    Ok(None) => continue,
                    Ok(Some(location)) => read(&location),
                    Err(error) => Err(error),
                };
                match read {
                    Ok(()) => return Ok(()),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        Err(failed.unwrap_or_else(|| Cause::Missing(*id).into()).within(self.name()))
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
        let Location { pack, blob } = location;
        let pack = Object::Pack(*pack);
        match blob.encoding {
            Encoding::Plain if blob.stored != blob.plain => {
                return Err(fault(location, "its length"));
            }
            Encoding::Plain => self.objects.read_at(pack, blob.at.into(), out)?,
            Encoding::Zstd => STORED.with_borrow_mut(|stored| -> Result<()> {
                stored.resize(blob.stored as usize, 0);
                self.objects.read_at(pack, blob.at.into(), stored)?;
                let decoded =
                    CONTEXT.with_borrow_mut(|context| context.decompress(&mut *out, stored));
                match decoded {
                    Ok(len) if len == out.len() => Ok(()),
                    _ => Err(fault(location, "what is stored")),
                }
            })?,
        }
        if Id::of(blob.kind, out) != blob.id {
            return Err(fault(location, "what is stored"));
        }
        Ok(())
    }
}

fn fault(location: &Location, found: &'static str) -> Error {
    let Location { pack, blob } = location;
    Cause::Blob { what: Object::Pack(*pack), at: blob.at.into(), found, id: blob.id }.into()
}
