//! Layers that bring a table of contents: their files are known, and read, without fetching the
//! whole of them.
//!
//! A [`Claim`] is what the manifest of an image says of such a table, with its digest. [`learn`]
//! fetches the table, holds it against that digest and makes an ordinary index of the layer of it;
//! [`contents()`] then gives the contents of files, fetched chunk by chunk, each held against the
//! digest that the table has for it before a byte of it is given out.
//!
//! What is trusted is the manifest, and what it vouches for: the table tells names, attributes and
//! digests. Whether the tar itself would tell the same is not looked at, nor is the digest of the
//! layer, which is that of bytes never fetched. `docs/layer-index.md` says more.

mod cause;
mod collect;
mod contents;
mod estargz;
mod json;
pub(super) mod soci;
mod table;
mod zstd_chunked;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::Digest;
use super::blob::{Blob, read_whole};
use super::layer::{Facts, Layer, Learnt};
use super::manifest::Descriptor;
use crate::block::{BlockSource, Cache};
use crate::error::Result;
use cause::Cause;
use contents::Contents;
use table::{Packing, Table};
use zstd_chunked::Position;

/// Bytes of a table of contents at most, as it is stored and decompressed.
const MOST_PACKED: u64 = 128 << 20;
const MOST_PLAIN: u64 = 1 << 30;
/// The largest window of zstd, as its exponent: what zstd(1) takes unasked.
const WINDOW_LOG: u32 = 27;

/// What a manifest says of a layer's table of contents.
#[derive(Debug, Clone)]
pub struct Claim(Form);

#[derive(Debug, Clone)]
enum Form {
    Estargz(Digest),
    ZstdChunked(Digest, Position),
    /// A ztoc, which is a blob of its own.
    Soci(Descriptor, Arc<dyn Blob>),
}

impl Claim {
    /// What the annotations of a layer's descriptor say, if they tell of a table of contents.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if they contradict themselves or cannot be
    /// parsed, [`Kind::Unsupported`](crate::error::Kind::Unsupported) for digests that are not known.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let estargz = annotations.get(estargz::ANNOTATION);
        let either = |new, old| annotations.get(new).or_else(|| annotations.get(old));
        let checksum = either(zstd_chunked::CHECKSUM, zstd_chunked::OLD_CHECKSUM);
        let position = either(zstd_chunked::POSITION, zstd_chunked::OLD_POSITION);
        match (estargz, checksum, position) {
            // Images were converted from one to the other, and kept what they said before.
            (Some(_), Some(_), _) => Err(Cause::TwoTables.into()),
            (Some(digest), None, _) => Ok(Some(Self(Form::Estargz(digest.parse()?)))),
            (None, Some(digest), Some(position)) => {
                let position = Position::parse(position)?;
                Ok(Some(Self(Form::ZstdChunked(digest.parse()?, position))))
            }
            (None, _, _) => Ok(None),
        }
    }

    /// That the ztoc of a layer is the blob `bytes`, of that digest: somebody else vouches for it.
    pub fn ztoc(digest: Digest, bytes: Arc<dyn Blob>) -> Self {
        let (media_type, size) = (String::new(), bytes.len());
        let annotations = BTreeMap::new();
        let ztoc = Descriptor { media_type, digest, size, platform: None, annotations };
        Self(Form::Soci(ztoc, bytes))
    }

    /// What the table of contents is, for an index.
    fn learnt(&self) -> Learnt {
        match self.0 {
            Form::Estargz(_) => Learnt::Estargz,
            Form::ZstdChunked(..) => Learnt::ZstdChunked,
            Form::Soci(..) => Learnt::Soci,
        }
    }

    /// What the index that comes of it is called in a cache, beside that of the layer `blob`. The
    /// table's own digest is part of it: another image may claim another table of the same layer.
    pub fn key(&self, blob: &Digest) -> String {
        let table = match &self.0 {
            Form::Estargz(table) | Form::ZstdChunked(table, _) => table,
            Form::Soci(ztoc, _) => &ztoc.digest,
        };
        let (algorithm, hex) = (table.algorithm().name(), table.hex());
        format!("{}-{}-{algorithm}-{hex}", blob.algorithm().name(), blob.hex())
    }
}

/// Reads the table of contents of `blob`, whose digest is `digest`: the bytes of its index.
///
/// # Errors
/// [`Kind::Corrupt`](crate::error::Kind::Corrupt) and
/// [`Kind::Unsupported`](crate::error::Kind::Unsupported) if the table is none, another than the
/// manifest vouches for, or contradicts itself: the layer is to be read whole then. What reading the
/// blob returns.
pub fn learn(claim: &Claim, blob: &Arc<dyn BlockSource>, digest: &Digest) -> Result<Vec<u8>> {
    let facts = |tar_len| Facts {
        blob_digest: digest.to_string(),
        // That of bytes nobody has seen.
        diff_id: String::new(),
        blob_len: blob.len(),
        tar_len,
        learnt: claim.learnt(),
    };
    let (collect, packing) = match &claim.0 {
        Form::Estargz(named) => (estargz::collect(blob, named)?, Packing::Gzip),
        Form::ZstdChunked(named, position) => {
            (zstd_chunked::collect(blob, named, *position)?, Packing::Zstd)
        }
        Form::Soci(ztoc, bytes) => {
            let bytes = read_whole(&**bytes, ztoc, "ztoc", MOST_PACKED)?;
            let collected = soci::parse(&bytes, blob.len())?;
            let facts = facts(collected.len);
            return collected.builder.finish(&facts, &collected.spans.finish());
        }
    };
    let facts = facts(collect.table.len());
    let table = collect.table.finish(packing)?;
    collect.builder.finish(&facts, &table)
}

/// The contents of the files of `index`, which came of [`learn`], out of `blob`.
///
/// # Errors
/// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if the index is damaged or of another blob.
pub fn contents(
    index: &Arc<Layer>,
    blob: Arc<dyn BlockSource>,
    cache: &Arc<Cache>,
) -> Result<Arc<dyn BlockSource>> {
    index.spans()?;
    let table = super::layer::SpansOf(Arc::clone(index));
    if index.facts().learnt == Learnt::Soci {
        return Ok(Arc::new(soci::Spans::new(table, blob, cache)?));
    }
    let table = Table::from_bytes(table, blob.len())?;
    Ok(Arc::new(Contents::new(blob, table, Arc::clone(cache))))
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A range of a source, read from its start to its end.
struct Ranges<'a> {
    source: &'a Arc<dyn BlockSource>,
    range: Range<u64>,
}

impl<'a> Ranges<'a> {
    fn new(source: &'a Arc<dyn BlockSource>, range: Range<u64>) -> Self {
        Self { source, range }
    }
}

impl Read for Ranges<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.range.end.saturating_sub(self.range.start);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..len).unwrap_or_default();
        if len > 0 {
            self.source.read_at(self.range.start, buf).map_err(io::Error::other)?;
            self.range.start += len as u64;
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
