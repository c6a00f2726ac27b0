//! Layers made into one disk.
//!
//! A [`Layer`] is one image file of a chain: it says where the bytes of a guest range are, and
//! moves none of them itself. A [`Chain`] stacks layers, top first, and is a
//! [`BlockSource`]: it resolves a region of the disk through all layers
//! once, keeps the answer in the shared cache, and from then on a read there costs one look-up,
//! whether the chain has one layer or five hundred.

mod disk;
mod region;

use std::ffi::OsString;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::block::BlockSource;
use crate::error::{Error, Result};

pub use disk::{Chain, Held};

/// One image file of a chain.
pub trait Layer: Send + Sync + Debug {
    /// The size of the disk this layer describes, in bytes.
    fn virtual_size(&self) -> u64;

    /// The layer below, as the image names it; nothing is opened by that.
    fn parent(&self) -> Option<&ParentLocator>;

    /// What [`Place::Raw`] refers to by index. Fixed once the layer is open.
    fn sources(&self) -> &[Arc<dyn BlockSource>];

    /// Says where each byte of `guest` is: calls `emit` with consecutive pieces, in order, that
    /// together are exactly as long as `guest`, which lies within the virtual size.
    ///
    /// A piece that cannot be told because the image is damaged there is [`Place::Damaged`]; its
    /// neighbours stay readable.
    ///
    /// # Errors
    /// The host's, while reading the image's tables: nothing about the range is remembered then.
    fn map(&self, guest: Range<u64>, emit: &mut dyn FnMut(u64, Place)) -> Result<()>;

    /// A name for what `unit` decodes to, if it has one: what has the same name is the same bytes.
    ///
    /// # Errors
    /// The host's, while reading the image's tables.
    fn name(&self, _unit: EncodedUnit) -> Result<Option<[u8; 32]>> {
        Ok(None)
    }

    /// Fetches `unit` and decodes it into `out`, which is `unit.decoded` bytes long. Called with
    /// no lock held, from several threads.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it does not decode to that many bytes, or
    /// the host's.
    fn decode(&self, unit: EncodedUnit, out: &mut [u8]) -> Result<()>;
}

/// Where a run of guest bytes is.
#[derive(Debug)]
pub enum Place {
    /// As they are, at `offset` of [`Layer::sources`]`[source]`, the whole run in one piece.
    Raw {
        /// Index into the layer's sources.
        source: usize,
        /// Host offset of the first byte, in bytes.
        offset: u64,
    },
    /// Inside `unit`, decoded, from byte `within` on.
    Encoded {
        /// The unit they are stored in.
        unit: EncodedUnit,
        /// Offset of the first byte in the decoded unit.
        within: u32,
    },
    /// Zeros, whatever lies below.
    Zero,
    /// Not in this layer: ask the one below. Below the last one they are zeros.
    Absent,
    /// Lost: the image contradicts itself here.
    Damaged(Error),
}

/// What a layer stores encoded, as one piece: a compressed cluster, grain or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedUnit {
    /// Where it is stored, in bytes; no two units of a layer have the same.
    pub host: u64,
    /// Bytes it takes there, at most.
    pub stored: u32,
    /// Bytes it decodes to.
    pub decoded: u32,
}

/// How an image names the layer below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLocator {
    /// The name as it stands in the image: bytes, which need not be UTF-8.
    pub name: OsString,
    /// The format the image says the parent has, if it says one.
    pub format: Option<String>,
}

#[cfg(test)]
mod tests;
