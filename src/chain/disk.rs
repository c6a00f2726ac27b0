//! The chain as a disk: resolved regions out of the cache, one `pread` per coalesced run.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use super::region::{Placed, Region, Target};
use super::{EncodedUnit, Layer};
use crate::block::{BlockSource, Cache, Extent, Home, Key, Origin, Owner, Unit, check_range};
use crate::error::{Error, Kind, Result};

/// Layers stacked into one disk, top first.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Placed>,
    /// The sources of all layers, one list.
    sources: Vec<Arc<dyn BlockSource>>,
    size: u64,
    cache: Arc<Cache>,
    /// Where this chain's resolved regions are in the cache, by region number.
    regions: Owner,
    /// Where each layer's decoded units are in the cache, by host offset.
    units: Vec<Owner>,
}

/// What some layers hold at a place, whatever lies below them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Zeros that are stored nowhere.
    Zeros,
    /// Anything else; it may be damaged.
    Data,
}

impl Chain {
    /// Bytes of guest disk resolved together.
    const REGION: u64 = 32 << 20;

    /// Encoded units in one read from which on they are shared out among the processors. Waking
    /// them costs about as much as one decode.
    const SHARED_OUT: usize = 4;

    /// Layers a chain can have; `policy` sets the bound users meet.
    pub const MAX_LAYERS: usize = u16::MAX as usize;

    /// Stacks `layers`, top first. The disk is as large as the top one says.
    ///
    /// # Errors
    /// [`Kind::Refused`] for no layer or more than [`Chain::MAX_LAYERS`].
    pub fn new(layers: Vec<Arc<dyn Layer>>, cache: Arc<Cache>) -> Result<Self> {
        let Some(top) = layers.first() else {
            return Err(Error::new(Kind::Refused, "a chain without a layer"));
        };
        if layers.len() > Self::MAX_LAYERS {
            return Err(Error::new(Kind::Refused, format!("a chain of {} layers", layers.len())));
        }
        let size = top.virtual_size();
        let mut sources = Vec::new();
        let mut placed = Vec::with_capacity(layers.len());
        for layer in layers {
            let first_source = sources.len() as u32;
            sources.extend(layer.sources().iter().cloned());
            placed.push(Placed { layer, first_source });
        }
        let regions = cache.owner();
        let units = placed.iter().map(|_| cache.owner()).collect();
        Ok(Self { layers: placed, sources, size, cache, regions, units })
    }

    /// The disk without its top `layers` layers.
    ///
    /// # Errors
    /// [`Kind::Refused`] if none is left.
    pub fn below(&self, layers: usize) -> Result<Self> {
        let left = self.layers.iter().skip(layers).map(|placed| Arc::clone(&placed.layer));
        Self::new(left.collect(), Arc::clone(&self.cache))
    }

    /// The host files of each layer, top first; none of one that does not lie in files as they are.
    pub fn files(&self) -> impl Iterator<Item = Option<Vec<&File>>> {
        self.layers.iter().map(|placed| {
            let files = placed.layer.sources().iter().map(|source| source.whole_file());
            files.collect::<Option<Vec<_>>>()
        })
    }

    /// Whether any of its bytes lie in the host file of that identity, as
    /// [`FileSource::identity`](crate::block::FileSource::identity) has it.
    pub fn lies_in(&self, identity: (u64, u64)) -> bool {
        self.sources.iter().filter(|source| source.len() > 0).any(|source| {
            let home = source.origin_at(0).map(|origin| origin.home);
            matches!(home, Ok(Home::Stored { file, .. }) if file == identity)
        })
    }

    fn region(&self, number: u64) -> Result<Arc<Region>> {
        self.cache.get_or_load(Key(self.regions, number), || {
            let start = number * Self::REGION;
            Region::resolve(&self.layers, start..(start + Self::REGION).min(self.size))
        })
    }

    /// Calls `emit` with what the top `layers` layers hold by themselves, in order: each run that
    /// hides what lies below them, and whether it is data or zeros. Nothing is read but their
    /// tables.
    ///
    /// # Errors
    /// Those of reading the tables, and of `emit`.
    pub fn held(
        &self,
        layers: usize,
        emit: &mut dyn FnMut(Range<u64>, Held) -> Result<()>,
    ) -> Result<()> {
        let layers = self.layers.get(..layers).unwrap_or(&self.layers);
        let mut start = 0;
        while start < self.size {
            let end = start.saturating_add(Self::REGION).min(self.size);
            let region = Region::resolve_within(layers, start..end)?;
            for segment in &region.segments {
                let run = start + u64::from(segment.start)..start + u64::from(segment.end);
                let held = match segment.target {
                    Target::Zero => Held::Zeros,
                    Target::Raw { .. } | Target::Encoded { .. } | Target::Damaged(_) => Held::Data,
                };
                emit(run, held)?;
            }
            start = end;
        }
        Ok(())
    }

    /// Fills the buffers of `pieces`, on several processors if there are enough of them to pay for
    /// it.
    fn read_units(&self, mut pieces: Vec<Encoded<'_>>) -> Result<()> {
        if pieces.len() >= Self::SHARED_OUT {
            pieces.par_iter_mut().try_for_each(|piece| self.read_unit(piece))
        } else {
            pieces.iter_mut().try_for_each(|piece| self.read_unit(piece))
        }
    }

    fn read_unit(&self, piece: &mut Encoded<'_>) -> Result<()> {
        let Encoded { layer, unit, within, buf } = piece;
        let key = Key(self.units[usize::from(*layer)], unit.host);
        let layer = &self.layers[usize::from(*layer)].layer;
        // A whole unit goes straight to the reader: whoever reads on sequentially does not come
        // back for it, and the copy would cost as much as a cheap decode.
        if *within == 0 && buf.len() == unit.decoded as usize {
            return match self.cache.get::<Unit>(key) {
                Some(decoded) => copy_within(&decoded, 0, buf),
                None => layer.decode(*unit, buf),
            };
        }
        let decoded = self.cache.get_or_load(key, || {
            let mut out = vec![0; unit.decoded as usize].into_boxed_slice();
            layer.decode(*unit, &mut out)?;
            Ok(Unit(out))
        })?;
        copy_within(&decoded, *within, buf)
    }
}

/// A piece of a read that lies in an encoded unit.
struct Encoded<'a> {
    layer: u16,
    unit: EncodedUnit,
    /// Where the piece begins in the decoded unit.
    within: usize,
    buf: &'a mut [u8],
}

fn copy_within(decoded: &Unit, within: usize, buf: &mut [u8]) -> Result<()> {
    match decoded.0.get(within..within + buf.len()) {
        Some(bytes) => {
            buf.copy_from_slice(bytes);
            Ok(())
        }
        // Two units of different lengths claim one host offset.
        None => Err(Error::new(Kind::Corrupt, "overlapping encoded units")),
    }
}

impl BlockSource for Chain {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.size)?;
        let mut encoded = Vec::new();
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let region = self.region(at / Self::REGION)?;
            let mut inside = (at % Self::REGION) as u32;
            for segment in &region.segments[region.find(inside)..] {
                let len = rest.len().min((segment.end - inside) as usize);
                let (piece, tail) = rest.split_at_mut(len);
                let skip = inside - segment.start;
                match segment.target {
                    Target::Raw { source, host } => {
                        self.sources[source as usize].read_at(host + u64::from(skip), piece)?;
                    }
                    Target::Encoded { layer, unit, within } => {
                        let within = within as usize + skip as usize;
                        encoded.push(Encoded { layer, unit, within, buf: piece });
                    }
                    Target::Zero => piece.fill(0),
                    Target::Damaged(index) => return Err(region.damage[index as usize].again()),
                }
                rest = tail;
                at += len as u64;
                inside = segment.end;
                if rest.is_empty() {
                    break;
                }
            }
        }
        self.read_units(encoded)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let region = self.region(offset / Self::REGION)?;
        let inside = (offset % Self::REGION) as u32;
        let segment = &region.segments[region.find(inside)];
        let len = u64::from(segment.end - inside);
        match segment.target {
            Target::Zero => Ok(Extent { len, hole: true }),
            Target::Raw { source, host } => {
                let host = host + u64::from(inside - segment.start);
                let extent = self.sources[source as usize].extent_at(host)?;
                Ok(Extent { len: extent.len.min(len), ..extent })
            }
            Target::Encoded { .. } | Target::Damaged(_) => Ok(Extent { len, hole: false }),
        }
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        let region = self.region(offset / Self::REGION)?;
        let inside = (offset % Self::REGION) as u32;
        let segment = &region.segments[region.find(inside)];
        let len = u64::from(segment.end - inside);
        let skip = inside - segment.start;
        match segment.target {
            Target::Zero => Ok(Origin { len, home: Home::Zeros }),
            Target::Raw { source, host } => {
                let origin = self.sources[source as usize].origin_at(host + u64::from(skip))?;
                Ok(Origin { len: origin.len.min(len), ..origin })
            }
            Target::Encoded { layer, unit, within } => {
                let placed = &self.layers[usize::from(layer)];
                if let Some(name) = placed.layer.name(unit)? {
                    let home = Home::Named { name, within: within + skip };
                    return Ok(Origin { len, home });
                }
                // A layer is known by its first source: its image.
                let first = placed.first_source as usize;
                let image = self.sources.get(first).map(|image| image.origin_at(0)).transpose()?;
                let home = match image.map(|origin| origin.home) {
                    Some(Home::Stored { file, offset: 0 }) => {
                        Home::Encoded { file, unit: unit.host, within: within + skip }
                    }
                    _ => Home::Unknown,
                };
                Ok(Origin { len, home })
            }
            Target::Damaged(_) => Ok(Origin::unknown(len)),
        }
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
