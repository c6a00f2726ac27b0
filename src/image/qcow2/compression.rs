//! Compressed clusters.
//!
//! A cluster's descriptor says where its stream begins and how many sectors hold it, not where it
//! ends: there may be garbage behind it, and it is finished when it has filled a cluster, whether
//! or not it has an end marker. Each thread keeps one decompressor of each sort and one buffer, so
//! a decode allocates nothing.

use std::cell::RefCell;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use zstd::zstd_safe::{
    CCtx, DCtx, DParameter, InBuffer, OutBuffer, compress_bound, find_frame_compressed_size,
    get_error_name,
};

use super::cause::Cause;
use super::header::Compression;
use crate::block::BlockSource;
use crate::chain::EncodedUnit;
use crate::error::{Error, Kind, Result};

/// Largest zstd window that is allocated, as log2: a cluster is at most 2 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

struct Scratch {
    stored: Vec<u8>,
    deflate: Decompressor,
    /// Decodes what `deflate` does not accept; made when there is such a cluster.
    inflate: Option<Decompress>,
    zstd: Option<DCtx<'static>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        stored: Vec::new(),
        deflate: Decompressor::new(),
        inflate: None,
        zstd: None,
    });
}

/// Reads `unit` from `source` and decompresses it into `out`, all of it.
pub(super) fn decode(
    source: &dyn BlockSource,
    compression: Compression,
    unit: EncodedUnit,
    out: &mut [u8],
) -> Result<()> {
    SCRATCH.with_borrow_mut(|scratch| {
        // The last sector of the last cluster need not be there in full.
        let there = source.len().saturating_sub(unit.host).min(u64::from(unit.stored)) as usize;
        if scratch.stored.len() < there {
            scratch.stored.resize(there, 0);
        }
        source.read_at(unit.host, &mut scratch.stored[..there])?;
        let done = match compression {
            Compression::Deflate => scratch.inflate(there, out),
            Compression::Zstd => scratch.unzstd(there, out),
        };
        done.map_err(|why| Cause::Compressed { host: unit.host, why }.into())
    })
}

const SHORT: &str = "the data ends before the cluster is full";

impl Scratch {
    fn inflate(&mut self, there: usize, out: &mut [u8]) -> Result<(), &'static str> {
        let stored = &self.stored[..there];
        match self.deflate.deflate_decompress(stored, out) {
            Ok(len) if len == out.len() => return Ok(()),
            Ok(_) => return Err(SHORT),
            // No end marker, or more than a cluster of data: what fills the cluster counts.
            Err(_) => {}
        }
        let inflate = self.inflate.get_or_insert_with(|| Decompress::new(false));
        inflate.reset(false);
        loop {
            let (read, written) = (inflate.total_in() as usize, inflate.total_out() as usize);
            if written == out.len() {
                return Ok(());
            }
            inflate
                .decompress(&stored[read..], &mut out[written..], FlushDecompress::None)
                .map_err(|_| "not a deflate stream")?;
            if inflate.total_in() as usize == read && inflate.total_out() as usize == written {
                return Err(SHORT);
            }
        }
    }

    fn unzstd(&mut self, there: usize, out: &mut [u8]) -> Result<(), &'static str> {
        let stored = &self.stored[..there];
        let zstd = self.zstd.get_or_insert_with(|| {
            let mut context = DCtx::create();
            // Fails only for a value outside the library's range, which this one is not.
            let _ = context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG));
            context
        });
        // A single frame, the usual case, goes straight into `out`, which serves as its window.
        if let Ok(len) = find_frame_compressed_size(stored)
            && let Some(frame) = stored.get(..len)
            && zstd.decompress(out, frame) == Ok(out.len())
        {
            return Ok(());
        }
        let _ = zstd.reset(zstd::zstd_safe::ResetDirective::SessionOnly);
        let total = out.len();
        let mut output = OutBuffer::around(out);
        let mut input = InBuffer::around(stored);
        let mut left = 0;
        while output.pos() < total {
            let before = (input.pos(), output.pos());
            left =
                zstd.decompress_stream(&mut output, &mut input).map_err(|_| "not a zstd stream")?;
            if (input.pos(), output.pos()) == before {
                return Err(SHORT);
            }
        }
        // Unlike deflate, a zstd frame knows its end: data beyond the cluster means damage.
        if left == 0 { Ok(()) } else { Err("the data goes on when the cluster is full") }
    }
}

/// log2 of the window of a deflate stream: what QEMU decodes with, so that a larger one is not read.
const DEFLATE_WINDOW: u8 = 12;

/// How hard zstd tries: its own default, and QEMU's.
const ZSTD_LEVEL: i32 = 3;

struct Encoders {
    deflate: Compress,
    zstd: CCtx<'static>,
}

thread_local! {
    static ENCODERS: RefCell<Encoders> = RefCell::new(Encoders {
        deflate: Compress::new_with_window_bits(flate2::Compression::default(), false, DEFLATE_WINDOW),
        zstd: CCtx::create(),
    });
}

/// The compressed form of a cluster, or `None` if it saves too little to be worth decoding.
///
/// # Errors
/// [`Kind::Io`] if the library fails, which it does for want of memory.
pub fn compress(compression: Compression, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
    let failed = |why: &str| Error::new(Kind::Io, format!("compressing: {why}"));
    // Less than a sector saved is nothing saved.
    let most = cluster.len().saturating_sub(512);
    ENCODERS.with_borrow_mut(|Encoders { deflate, zstd }| match compression {
        Compression::Deflate => {
            let mut out = vec![0; most];
            deflate.reset();
            let status = deflate
                .compress(cluster, &mut out, FlushCompress::Finish)
                .map_err(|error| failed(&error.to_string()))?;
            out.truncate(deflate.total_out() as usize);
            Ok((status == Status::StreamEnd).then_some(out))
        }
        Compression::Zstd => {
            let mut out = vec![0; compress_bound(cluster.len())];
            let len = zstd
                .compress(&mut out[..], cluster, ZSTD_LEVEL)
                .map_err(|code| failed(get_error_name(code)))?;
            out.truncate(len);
            Ok((len <= most).then_some(out))
        }
    })
}
