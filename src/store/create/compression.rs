//! Compression of what is stored.

use std::ops::RangeInclusive;

use zstd::zstd_safe::{CCtx, CParameter, compress_bound, get_error_name};

use crate::error::{Error, Kind, Result};

/// Levels at which zstd looks matches up in two tables, one of short and one of long ones (`dfast`). The tables it would take for a
/// block are larger than what a core has near it; these compress a disk in 0.82 of the time, to 1.003 of the size.
const TWO_TABLES: RangeInclusive<i32> = 3..=4;
/// Entries of the table of short matches, as a power of two.
const SHORT_MATCHES: u32 = 14;
/// Of the table of long ones.
const LONG_MATCHES: u32 = 15;

/// What a thread compresses with.
pub(super) struct Compression {
    context: CCtx<'static>,
    /// What the context is set to.
    level: Option<i32>,
    out: Vec<u8>,
}

impl Compression {
    pub(super) fn new() -> Self {
        Self { context: CCtx::create(), level: None, out: Vec::new() }
    }

    /// One zstd frame of `plain`.
    ///
    /// # Errors
    /// What zstd says, which is not expected to happen.
    pub(super) fn compress(&mut self, plain: &[u8], level: i32) -> Result<&[u8]> {
        let failed = |code| Error::new(Kind::Io, format!("zstd: {}", get_error_name(code)));
        if self.level != Some(level) {
            let mut set = |parameter| self.context.set_parameter(parameter).map_err(failed);
            set(CParameter::CompressionLevel(level))?;
            if TWO_TABLES.contains(&level) {
                set(CParameter::ChainLog(SHORT_MATCHES))?;
                set(CParameter::HashLog(LONG_MATCHES))?;
            }
            self.level = Some(level);
        }
        self.out.resize(compress_bound(plain.len()), 0);
        let len = self.context.compress2(&mut self.out[..], plain).map_err(failed)?;
        Ok(self.out.get(..len).unwrap_or_default())
    }
}
