//! How large everything is in one image.

use super::super::header::Header;

/// Sizes and shifts. A *slice* is a piece of an L2 table: what is read, kept and written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub cluster_bits: u32,
    /// Whether L2 entries are 128 bits wide, with 32 subclusters.
    pub extended: bool,
}

impl Geometry {
    /// Bytes of a slice, where a table is not smaller: 32 MiB of disk at the default shape.
    const SLICE: u64 = 4096;

    pub(super) fn of(header: &Header) -> Self {
        Self { cluster_bits: header.cluster_bits, extended: header.extended_l2() }
    }

    pub(super) fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// The part of `offset` within its cluster.
    pub(super) fn within(self, offset: u64) -> u64 {
        offset & (self.cluster() - 1)
    }

    /// log2 of the bytes of a subcluster; a cluster without any is its own.
    pub(super) fn subcluster_bits(self) -> u32 {
        if self.extended { self.cluster_bits - 5 } else { self.cluster_bits }
    }

    pub(super) fn subcluster(self) -> u64 {
        1 << self.subcluster_bits()
    }

    /// One bit for each subcluster of a cluster.
    pub(super) fn all_subclusters(self) -> u32 {
        if self.extended { u32::MAX } else { 1 }
    }

    /// Which subcluster of its cluster `guest` lies in.
    pub(super) fn subcluster_of(self, guest: u64) -> u32 {
        (self.within(guest) >> self.subcluster_bits()) as u32
    }

    /// The bits of the subclusters that `start..end` touches, within the one cluster it lies in.
    pub(super) fn mask(self, start: u64, end: u64) -> u32 {
        if start >= end {
            return 0;
        }
        let (first, last) = (self.subcluster_of(start), self.subcluster_of(end - 1));
        (u32::MAX >> (31 - (last - first))) << first
    }

    pub(super) fn entry_bytes(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    pub(super) fn slice_bytes(self) -> u64 {
        self.cluster().min(Self::SLICE)
    }

    pub(super) fn slice_entries(self) -> usize {
        (self.slice_bytes() / self.entry_bytes()) as usize
    }

    pub(super) fn slices_per_table(self) -> u64 {
        self.cluster() / self.slice_bytes()
    }

    /// Guest bytes of one slice.
    pub(super) fn slice_span(self) -> u64 {
        (self.slice_entries() as u64) << self.cluster_bits
    }

    /// Guest bytes of one L2 table.
    pub(super) fn table_span(self) -> u64 {
        (self.cluster() / self.entry_bytes()) << self.cluster_bits
    }

    /// Which slice holds `guest`.
    pub(super) fn slice_of(self, guest: u64) -> u64 {
        guest / self.slice_span()
    }

    /// Which L2 table holds `guest`.
    pub(super) fn table_of(self, guest: u64) -> usize {
        (guest / self.table_span()) as usize
    }

    /// Index in its slice of the cluster that holds `guest`.
    pub(super) fn entry_of(self, guest: u64) -> usize {
        (guest >> self.cluster_bits) as usize & (self.slice_entries() - 1)
    }

    /// Where the slice that holds `guest` ends.
    pub(super) fn slice_end(self, guest: u64) -> u64 {
        (self.slice_of(guest) + 1) * self.slice_span()
    }

    /// Where the cluster that holds `guest` ends.
    pub(super) fn cluster_end(self, guest: u64) -> u64 {
        (guest | (self.cluster() - 1)) + 1
    }
}
