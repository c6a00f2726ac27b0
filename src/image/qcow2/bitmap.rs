//! The bitmap directory: which dirty bitmaps an image carries. Their contents are of no use to a
//! reader of the disk and are not read.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::cause::{Cause, Fault};
use super::extension::BitmapsExtension;
use crate::block::BlockSource;
use crate::error::Result;
use crate::image::BitmapInfo;
use crate::wire;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    table_offset: U64,
    table_size: U32,
    flags: U32,
    kind: u8,
    granularity_bits: u8,
    name_size: U16,
    extra_data_size: U32,
}

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;

/// A directory larger than this is not listed: it would be thousands of bitmaps.
const MAX_DIRECTORY: u64 = 256 << 10;

/// Reads the directory; `consistent` is what the autoclear bit says.
pub(super) fn read_directory(
    source: &dyn BlockSource,
    extension: &BitmapsExtension,
    cluster_size: u64,
    consistent: bool,
) -> Result<Vec<BitmapInfo>> {
    let count = extension.nb_bitmaps.get();
    let (offset, len) = (extension.directory_offset.get(), extension.directory_size.get());
    if !(1..=65535).contains(&count) {
        return Err(Cause::BitmapCount(count).into());
    }
    if len > MAX_DIRECTORY {
        return Err(Cause::BitmapDirectorySize(len).into());
    }
    if offset & (cluster_size - 1) != 0 {
        return Err(Cause::Table("bitmap directory", Fault::Misaligned(offset)).into());
    }
    if offset.checked_add(len).is_none_or(|end| end > source.len()) {
        let fault = Fault::BeyondEnd(offset, source.len());
        return Err(Cause::Table("bitmap directory", fault).into());
    }
    let mut directory = vec![0; len as usize];
    source.read_at(offset, &mut directory)?;
    let mut bitmaps = Vec::new();
    let mut at = 0;
    for index in 0..count {
        let cut = || Cause::BitmapCut(index);
        let entry = wire::record::<Entry>(&directory, at).ok_or_else(cut)?;
        if entry.granularity_bits > 63 {
            let bits = entry.granularity_bits;
            return Err(Cause::BitmapGranularity { index, bits }.into());
        }
        // All three are far below 2^33, so the sum cannot wrap.
        let name_at =
            at as u64 + size_of::<Entry>() as u64 + u64::from(entry.extra_data_size.get());
        let name_end = name_at + u64::from(entry.name_size.get());
        if name_end > len {
            return Err(cut().into());
        }
        let name = directory.get(name_at as usize..name_end as usize).ok_or_else(cut)?;
        let flags = entry.flags.get();
        bitmaps.push(BitmapInfo {
            name: String::from_utf8_lossy(name).into_owned(),
            granularity: 1 << entry.granularity_bits,
            enabled: flags & AUTO != 0,
            consistent: consistent && flags & IN_USE == 0,
        });
        at = name_end.next_multiple_of(8) as usize;
    }
    Ok(bitmaps)
}
