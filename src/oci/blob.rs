//! The bytes of a part of an image, wherever they lie.

use std::fmt::Debug;
use std::io::{self, Read};
use std::sync::Arc;

use super::cause::Cause;
use super::manifest::Descriptor;
use crate::block::BlockSource;
use crate::error::{Error, Result, ResultExt};

/// Bytes of a known length: a layer as it is stored, compressed or not.
///
/// What comes out of it is not held against a digest: whoever reads all of it does that.
#[expect(clippy::len_without_is_empty, reason = "a blob of no bytes is no case of its own")]
pub trait Blob: Send + Sync + Debug {
    /// The length in bytes.
    fn len(&self) -> u64;

    /// The bytes, to be read anywhere.
    ///
    /// # Errors
    /// The host's or the registry's. [`crate::error::Kind::Unsupported`] if the registry serves
    /// it only from start to end.
    fn source(&self) -> Result<Arc<dyn BlockSource>>;

    /// The bytes from the first to the last, for one pass over them. Errors of its reads hold an
    /// [`Error`], which [`Error::io`] gives back. Exactly [`Blob::len`] bytes come before the end.
    ///
    /// # Errors
    /// The host's or the registry's.
    fn stream(&self) -> Result<Box<dyn Read + Send>>;
}

/// A blob that is a file, or a window of one.
#[derive(Debug)]
pub(super) struct LocalBlob(pub(super) Arc<dyn BlockSource>);

impl Blob for LocalBlob {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn source(&self) -> Result<Arc<dyn BlockSource>> {
        Ok(Arc::clone(&self.0))
    }

    fn stream(&self) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(SourceReader { source: Arc::clone(&self.0), at: 0 }))
    }
}

/// Reads a source from its start to its end.
#[derive(Debug)]
pub(super) struct SourceReader {
    pub(super) source: Arc<dyn BlockSource>,
    pub(super) at: u64,
}

impl Read for SourceReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len().saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..len).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        self.source.read_at(self.at, buf).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// The whole of a small blob, held against its descriptor; `what` it is is for messages.
pub(super) fn read_whole(
    blob: &dyn Blob,
    descriptor: &Descriptor,
    what: &'static str,
    most: u64,
) -> Result<Vec<u8>> {
    check_size(what, descriptor, blob.len())?;
    let bytes = read_at_most(blob, what, most)?;
    descriptor.digest.check(what, &bytes)?;
    Ok(bytes)
}

/// The whole of a small blob.
pub(super) fn read_at_most(blob: &dyn Blob, what: &'static str, most: u64) -> Result<Vec<u8>> {
    if blob.len() > most {
        return Err(Cause::TooLarge { what, len: blob.len(), most }.into());
    }
    let mut bytes = vec![];
    blob.stream()?.take(most).read_to_end(&mut bytes).map_err(Error::io).within(|| what)?;
    Ok(bytes)
}

/// Whether what is there is as long as its descriptor says.
pub(super) fn check_size(what: &'static str, descriptor: &Descriptor, found: u64) -> Result<()> {
    if found == descriptor.size {
        return Ok(());
    }
    let digest = descriptor.digest.clone();
    Err(Cause::Size { what, digest, named: descriptor.size, found }.into())
}
