//! One L2 entry in one form, whether it has 64 or 128 bits in the file.

use zerocopy::big_endian::U64;

use super::super::cause::Cause;
use super::super::layer::{COMPRESSED, COPIED, OFFSET_MASK, ZERO};
use super::geometry::Geometry;
use crate::chain::EncodedUnit;
use crate::wire;

/// What an L2 entry says of its cluster. A cluster without subclusters has one: bit 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The host offset with [`COPIED`], or the descriptor of a compressed cluster.
    pub descriptor: u64,
    /// The subclusters whose bytes are at the host offset.
    pub allocated: u32,
    /// The subclusters that read as zeros whatever lies below.
    pub zero: u32,
}

/// Where a run of guest bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// From this host offset on.
    Host(u64),
    Zero,
    Absent,
    Encoded {
        unit: EncodedUnit,
        within: u64,
    },
}

impl Entry {
    /// The cluster at `host`, which nobody else refers to, with these subclusters in it.
    pub(super) fn new(host: u64, allocated: u32, zero: u32) -> Self {
        Self { descriptor: host | COPIED, allocated, zero }
    }

    pub(super) fn decode(descriptor: u64, bitmap: u64, geometry: Geometry) -> Self {
        if descriptor & COMPRESSED != 0 {
            return Self { descriptor, allocated: 0, zero: 0 };
        }
        let kept = descriptor & (OFFSET_MASK | COPIED);
        if geometry.extended {
            return Self {
                descriptor: kept,
                allocated: bitmap as u32,
                zero: (bitmap >> 32) as u32,
            };
        }
        let zero = descriptor & ZERO != 0;
        let allocated = !zero && descriptor & OFFSET_MASK != 0;
        Self { descriptor: kept, allocated: allocated.into(), zero: zero.into() }
    }

    /// Puts the entry as it is in the file at the end of `out`.
    pub(super) fn encode(self, geometry: Geometry, out: &mut Vec<u8>) {
        let zero = if !geometry.extended && self.zero != 0 { ZERO } else { 0 };
        out.extend((self.descriptor | zero).to_be_bytes());
        if geometry.extended {
            out.extend((u64::from(self.zero) << 32 | u64::from(self.allocated)).to_be_bytes());
        }
    }

    /// All entries in `bytes`, a whole slice.
    pub(super) fn decode_all(bytes: &[u8], geometry: Geometry) -> Box<[Self]> {
        let words = wire::records::<U64>(bytes);
        if geometry.extended {
            let pairs = words.chunks_exact(2);
            pairs.map(|pair| Self::decode(pair[0].get(), pair[1].get(), geometry)).collect()
        } else {
            words.iter().map(|word| Self::decode(word.get(), 0, geometry)).collect()
        }
    }

    pub(super) fn is_compressed(self) -> bool {
        self.descriptor & COMPRESSED != 0
    }

    /// The host cluster it refers to, unless that is none or a compressed one.
    pub(super) fn host(self) -> Option<u64> {
        let host = self.descriptor & OFFSET_MASK;
        (host != 0 && !self.is_compressed()).then_some(host)
    }

    /// The host cluster, if nobody else refers to it, so that it may be written.
    pub(super) fn own_host(self) -> Option<u64> {
        self.host().filter(|_| self.descriptor & COPIED != 0)
    }

    /// Whether nothing that is stored counts.
    pub(super) fn is_empty(self) -> bool {
        self.allocated == 0 && !self.is_compressed()
    }

    /// The compressed cluster it refers to.
    pub(super) fn unit(self, geometry: Geometry) -> EncodedUnit {
        let shift = 62 - (geometry.cluster_bits - 8);
        let host = self.descriptor & ((1 << shift) - 1);
        let more_sectors = (self.descriptor & (COMPRESSED - 1)) >> shift;
        let stored = (more_sectors + 1) * 512 - (host & 511);
        EncodedUnit { host, stored: stored as u32, decoded: geometry.cluster() as u32 }
    }

    /// The bytes of the file it refers to.
    pub(super) fn reference(self, geometry: Geometry) -> Option<(u64, u64)> {
        if self.is_compressed() {
            let unit = self.unit(geometry);
            return Some((unit.host, u64::from(unit.stored)));
        }
        self.host().map(|host| (host, geometry.cluster()))
    }

    /// What is wrong with the entry for the cluster at `guest`, in a file that ends at `end`.
    pub(super) fn check(self, guest: u64, end: u64, geometry: Geometry) -> Result<(), Cause> {
        if self.is_compressed() {
            let host = self.unit(geometry).host;
            let there = host < end;
            return if there { Ok(()) } else { Err(Cause::ClusterBeyondEnd { guest, host }) };
        }
        let unplaced = self.allocated != 0 && self.host().is_none();
        if self.allocated & self.zero != 0 || unplaced {
            let bitmap = u64::from(self.zero) << 32 | u64::from(self.allocated);
            return Err(Cause::Subclusters { guest, bitmap });
        }
        match self.host() {
            Some(host) if geometry.within(host) != 0 => {
                Err(Cause::ClusterMisaligned { guest, host })
            }
            Some(host) if host >= end => Err(Cause::ClusterBeyondEnd { guest, host }),
            _ => Ok(()),
        }
    }

    /// Where `guest`, which lies in this entry's cluster, is, and how far the same goes on.
    pub(super) fn place(self, guest: u64, geometry: Geometry) -> (Place, u64) {
        let within = geometry.within(guest);
        if self.is_compressed() {
            let place = Place::Encoded { unit: self.unit(geometry), within };
            return (place, geometry.cluster() - within);
        }
        let first = geometry.subcluster_of(guest);
        let (bits, place) = if self.allocated >> first & 1 == 1 {
            (self.allocated, Place::Host((self.descriptor & OFFSET_MASK) + within))
        } else if self.zero >> first & 1 == 1 {
            (self.zero, Place::Zero)
        } else {
            (!(self.allocated | self.zero) & geometry.all_subclusters(), Place::Absent)
        };
        let count = u64::from((bits >> first).trailing_ones());
        let end = (u64::from(first) + count) << geometry.subcluster_bits();
        (place, end - within)
    }
}

/// Where `guest` is by the entries of its slice, and how far before `end` the same goes on. With
/// `own`, a cluster that somebody else refers to ends the run, so that a run of length 0 is none.
pub(super) fn run(
    entries: &[Entry],
    guest: u64,
    end: u64,
    own: bool,
    geometry: Geometry,
) -> (Place, u64) {
    let mut run = (Place::Absent, 0);
    let mut at = guest;
    while at < end {
        let Some(&entry) = entries.get(geometry.entry_of(at)) else { break };
        let (place, len) = entry.place(at, geometry);
        if own && matches!(place, Place::Host(_)) && entry.own_host().is_none() {
            break;
        }
        let goes_on = match (run.0, place) {
            _ if run.1 == 0 => true,
            (Place::Host(from), Place::Host(to)) => from + run.1 == to,
            (Place::Zero, Place::Zero) | (Place::Absent, Place::Absent) => true,
            _ => false,
        };
        if !goes_on {
            break;
        }
        if run.1 == 0 {
            run.0 = place;
        }
        let len = len.min(end - at);
        run.1 += len;
        at += len;
    }
    run
}
