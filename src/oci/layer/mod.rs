//! The index of one layer: what its tar holds, read once and kept in one small file.
//!
//! An index lists the entries of the tar in its order, whiteouts and all, with the places of their
//! contents in the uncompressed tar. Beside the list it keeps bytes of whoever reads the layer (its
//! restart points), the layer's digests and its lengths. `docs/layer-index.md` describes the file.
//!
//! The file is ours, and still it is read as if it were hostile: every number in it is checked when
//! it is used, and a damaged file is an error.

mod build;
mod cause;
mod check;
mod entries;
mod format;
mod map;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result, ResultExt};
use crate::tree::Time;
use crate::wire::record;
use cause::Cause;
use format::{HEADER, Header, MAGIC, MOST_ENTRIES, MOST_LIST, MOST_PACKED, VERSION};
use map::Bytes;

pub use build::Builder;
pub use entries::Entries;

/// What is known about a layer besides its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Digest of the blob as it is stored, as `sha256:…`.
    pub blob_digest: String,
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    /// Bytes of the blob.
    pub blob_len: u64,
    /// Bytes of the uncompressed tar; of what a table of contents leads to, if it was learnt so.
    pub tar_len: u64,
    /// How all this was learnt.
    pub learnt: Learnt,
}

/// How the entries of a layer were learnt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Learnt {
    /// All of it was read, and held against its digests.
    #[default]
    Whole,
    /// From an eStargz table of contents that a manifest vouches for. Digests of the layer are what
    /// was said.
    Estargz,
    /// The same from one of zstd:chunked.
    ZstdChunked,
    /// From a ztoc of a SOCI index. Digests of the layer are what was said.
    Soci,
}

impl Learnt {
    const ALL: [Self; 4] = [Self::Whole, Self::Estargz, Self::ZstdChunked, Self::Soci];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Estargz => "estargz",
            Self::ZstdChunked => "zstd:chunked",
            Self::Soci => "soci",
        }
    }

    fn number(self) -> u32 {
        self as u32
    }

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|learnt| learnt.number() == number)
    }
}

/// The index of one layer, opened.
#[derive(Debug)]
pub struct Layer {
    bytes: Bytes,
    facts: Facts,
    header: Header,
    /// Whether the restart points were found whole.
    spans_whole: AtomicBool,
}

impl Layer {
    /// Opens a file of the cache folder, which has its name since it was whole. It is mapped: pages that nobody reads take no memory.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it is no index or damaged, [`Kind::Unsupported`](crate::error::Kind::Unsupported) if it is one of another
    /// version, [`Kind::NotFound`](crate::error::Kind::NotFound) and the host's.
    pub fn open(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let file = File::open(path).within(name)?;
        if file.metadata().within(name)?.len() == 0 {
            // Nothing of nothing can be mapped.
            return Err(Error::from(Cause::Magic).within(name()));
        }
        Self::new(Bytes::map(&file).within(name)?).within(name)
    }

    /// Opens an index whose bytes are in memory.
    ///
    /// # Errors
    /// As [`Layer::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::new(Bytes::Held(bytes))
    }

    fn new(bytes: Bytes) -> Result<Self> {
        let header: &Header = record(&bytes, 0).ok_or(Cause::Magic)?;
        if header.magic != MAGIC {
            return Err(Cause::Magic.into());
        }
        if header.version.get() != VERSION {
            return Err(Cause::Version(header.version.get()).into());
        }
        if header.crc.get() != header.sum() {
            return Err(Cause::HeaderChecksum.into());
        }
        if header.entries.get() > MOST_ENTRIES {
            return Err(Cause::Budget(MOST_ENTRIES, "entries in a layer").into());
        }
        if header.list_plain.get() > MOST_LIST || header.list_len.get() > MOST_PACKED + (1 << 20) {
            return Err(Cause::Budget(MOST_LIST, "bytes of names in a layer").into());
        }
        if header.newest_nanos.get() >= 1_000_000_000 {
            return Err(Cause::Nanos(header.newest_nanos.get()).into());
        }
        let facts = Facts {
            blob_digest: text(&header.blob_digest)?,
            diff_id: text(&header.diff_id)?,
            blob_len: header.blob_len.get(),
            tar_len: header.tar_len.get(),
            learnt: Learnt::from_number(header.learnt.get())
                .ok_or(Cause::Header("learnt in a way that is not known"))?,
        };
        let header = header.clone();
        let layer = Self { bytes, facts, header, spans_whole: AtomicBool::new(false) };
        layer.list()?;
        layer.spans_unchecked()?;
        Ok(layer)
    }

    /// What is known about the layer.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes of the index.
    #[expect(clippy::len_without_is_empty, reason = "no index is empty")]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Entries of the tar, whiteouts counted.
    pub fn entry_count(&self) -> u64 {
        self.header.entries.get()
    }

    /// Entries that are whiteouts, or lie below one.
    pub fn whiteout_count(&self) -> u64 {
        self.header.whiteouts.get()
    }

    /// Entries that are hard links.
    pub fn link_count(&self) -> u64 {
        self.header.links.get()
    }

    /// Entries to make room for: a header that claims more than its list can well hold is not
    /// believed.
    pub(crate) fn likely_entries(&self) -> usize {
        let packed = self.header.list_len.get().min(self.len());
        usize::try_from(self.header.entries.get().min(2 * packed + 1024)).unwrap_or_default()
    }

    /// The newest time of any entry: about when the layer was made. 1970 if there are none.
    pub fn newest(&self) -> Time {
        Time { seconds: self.header.newest_seconds.get(), nanos: self.header.newest_nanos.get() }
    }

    /// The entries, whose bytes are checked against their checksum first.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if they are damaged.
    pub fn entries(&self) -> Result<Entries<'_>> {
        let list = self.list()?;
        if crc32c::crc32c(list) != self.header.list_crc.get() {
            return Err(Cause::SectionChecksum("entries").into());
        }
        let header = &self.header;
        Entries::new(list, header.entries.get(), header.list_plain.get(), header.tar_len.get())
    }

    /// The bytes kept for whoever reads the layer, checked against their checksum the first time.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if they are damaged.
    pub fn spans(&self) -> Result<&[u8]> {
        let spans = self.spans_unchecked()?;
        if !self.spans_whole.load(Ordering::Relaxed) {
            if crc32c::crc32c(spans) != self.header.spans_crc.get() {
                return Err(Cause::SectionChecksum("restart points").into());
            }
            self.spans_whole.store(true, Ordering::Relaxed);
        }
        Ok(spans)
    }

    fn spans_unchecked(&self) -> Result<&[u8]> {
        self.section("restart points", self.header.spans_at.get(), self.header.spans_len.get())
    }

    fn list(&self) -> Result<&[u8]> {
        self.section("list of entries", self.header.list_at.get(), self.header.list_len.get())
    }

    fn section(&self, what: &'static str, at: u64, len: u64) -> Result<&[u8]> {
        let range = || {
            let start = usize::try_from(at).ok().filter(|&start| start >= HEADER)?;
            Some(start..start.checked_add(usize::try_from(len).ok()?)?)
        };
        let found = range().and_then(|range| self.bytes.get(range));
        Ok(found.ok_or(Cause::Section(what, at, len, self.bytes.len() as u64))?)
    }
}

/// The restart points that an index holds, for who looked that they are there.
pub(super) struct SpansOf(pub(super) Arc<Layer>);

impl AsRef<[u8]> for SpansOf {
    fn as_ref(&self) -> &[u8] {
        self.0.spans().unwrap_or_default()
    }
}

/// The text of a field that zeros fill.
fn text(field: &[u8]) -> Result<String> {
    let end = field.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let text = field.get(..end).unwrap_or_default();
    match std::str::from_utf8(text) {
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err(Cause::Header("a digest that is no text").into()),
    }
}

#[cfg(test)]
mod tests;
