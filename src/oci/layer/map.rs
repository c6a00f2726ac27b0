//! The bytes of an index: mapped, or held in memory.

use std::fs::File;
use std::ops::Deref;

use crate::error::{Result, ResultExt};

/// Bytes that stay where they are.
#[derive(Debug)]
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Held(Vec<u8>),
}

impl Bytes {
    /// Maps a file that we wrote: it got its name when it was whole, and nobody changes it then.
    pub(super) fn map(file: &File) -> Result<Self> {
        #[expect(unsafe_code, reason = "the kernel cannot promise that a mapped file stays")]
        // SAFETY: only files of the cache folder are opened here, which only we can write to. Such a
        // file is replaced or removed as a whole and never cut or written again, so the bytes neither change nor go while mapped.
        let map = unsafe { memmap2::Mmap::map(file) }.within(|| "cannot be mapped")?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}
