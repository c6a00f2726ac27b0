//! The header as it is rewritten: its fixed part lies in one sector, so that a write of it is seen
//! after a crash in full or not at all.

use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::header::{Fixed, Version3, incompatible};
use crate::block::Storage;
use crate::error::Result;

/// Bytes 0 to 103.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    pub fixed: Fixed,
    pub version3: Version3,
}

impl Head {
    pub(super) fn read(storage: &dyn Storage) -> Result<Self> {
        let mut head = Self::new_zeroed();
        storage.read_at(0, head.as_mut_bytes())?;
        Ok(head)
    }

    pub(super) fn write(&self, storage: &dyn Storage) -> Result<()> {
        storage.write_at(0, self.as_bytes())
    }

    /// Whether the refcounts in the file may be wrong.
    pub(super) fn is_dirty(&self) -> bool {
        self.version3.incompatible_features.get() & incompatible::DIRTY != 0
    }

    pub(super) fn set_dirty(&mut self, dirty: bool) {
        let bits = self.version3.incompatible_features.get();
        let bits = if dirty { bits | incompatible::DIRTY } else { bits & !incompatible::DIRTY };
        self.version3.incompatible_features = U64::new(bits);
    }
}
