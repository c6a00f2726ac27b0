//! Header extensions: the optional sections between the header and the backing file's name.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cause::Cause;
use super::header::Header;
use crate::block::BlockSource;
use crate::error::Result;
use crate::wire;

/// Names of header extensions.
pub(super) mod kind {
    pub(in super::super) const END: u32 = 0;
    pub(in super::super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(in super::super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(in super::super) const BITMAPS: u32 = 0x2385_2875;
    pub(in super::super) const DATA_FILE: u32 = 0x4441_5441;
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtensionHeader {
    kind: U32,
    len: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FeatureName {
    /// 0: incompatible, 1: compatible, 2: autoclear.
    set: u8,
    bit: u8,
    name: [u8; 46],
}

/// Where the bitmap directory is.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BitmapsExtension {
    pub nb_bitmaps: U32,
    pub reserved: U32,
    pub directory_size: U64,
    pub directory_offset: U64,
}

/// The extensions a reader needs.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub backing_format: Option<String>,
    /// Names of incompatible feature bits.
    pub feature_names: Vec<(u8, String)>,
    pub bitmaps: Option<BitmapsExtension>,
    pub data_file: Option<Vec<u8>>,
}

impl Extensions {
    /// How much of the extension area is read before it is known that there is more: images in
    /// the wild use a few hundred bytes of it.
    const FIRST_READ: u64 = 4096;

    /// Reads the extensions behind `header`. If they are damaged, what stands before the damage
    /// comes with the error, so that an unknown feature can still be named.
    pub(super) fn read(source: &dyn BlockSource, header: &Header) -> (Self, Result<()>) {
        let mut extensions = Self::default();
        let result = extensions.fill(source, header);
        (extensions, result)
    }

    fn fill(&mut self, source: &dyn BlockSource, header: &Header) -> Result<()> {
        let start = u64::from(header.header_length);
        let end = header.extensions_end().min(source.len());
        let mut area = Vec::new();
        let mut at = 0_u64;
        let total = end.saturating_sub(start);
        while total.saturating_sub(at) >= size_of::<ExtensionHeader>() as u64 {
            let offset = start + at;
            load(source, start, total, at + 8, &mut area)?;
            let Some(head) = wire::record::<ExtensionHeader>(&area, at as usize) else { break };
            let (kind, len) = (head.kind.get(), head.len.get());
            if kind == kind::END {
                break;
            }
            at += 8;
            let room = total - at;
            if u64::from(len) > room {
                return Err(Cause::ExtensionLength { kind, offset, len, room }.into());
            }
            load(source, start, total, at + u64::from(len), &mut area)?;
            if let Some(data) = area.get(at as usize..at as usize + len as usize) {
                self.take(kind, data)?;
            }
            at += u64::from(len).next_multiple_of(8);
        }
        Ok(())
    }

    fn take(&mut self, kind: u32, data: &[u8]) -> Result<()> {
        match kind {
            kind::BACKING_FORMAT => {
                self.backing_format = Some(String::from_utf8_lossy(data).into_owned());
            }
            kind::FEATURE_NAMES => {
                self.feature_names = wire::records::<FeatureName>(data)
                    .iter()
                    .filter(|entry| entry.set == 0 && entry.bit < 64)
                    .take(64)
                    .map(|entry| {
                        let name = entry.name.split(|&byte| byte == 0).next().unwrap_or_default();
                        (entry.bit, String::from_utf8_lossy(name).into_owned())
                    })
                    .collect();
            }
            kind::BITMAPS => {
                let record = wire::record::<BitmapsExtension>(data, 0)
                    .filter(|_| data.len() == size_of::<BitmapsExtension>())
                    .ok_or(Cause::ExtensionSize { kind, len: data.len() })?;
                self.bitmaps = Some(record.clone());
            }
            kind::DATA_FILE => self.data_file = Some(data.to_vec()),
            _ => {}
        }
        Ok(())
    }

    /// The name the image has for an incompatible feature bit.
    pub(super) fn feature_name(&self, bit: u8) -> Option<String> {
        let (_, name) = self.feature_names.iter().find(|(named, _)| *named == bit)?;
        (!name.is_empty()).then(|| name.clone())
    }
}

/// Sees to it that `area`, the extension area from `start` on, holds its first `needed` bytes.
/// It is at most a cluster long, so two reads do.
fn load(
    source: &dyn BlockSource,
    start: u64,
    total: u64,
    needed: u64,
    area: &mut Vec<u8>,
) -> Result<()> {
    if needed <= area.len() as u64 {
        return Ok(());
    }
    let len =
        if needed <= Extensions::FIRST_READ { total.min(Extensions::FIRST_READ) } else { total };
    area.resize(len as usize, 0);
    source.read_at(start, area)
}
