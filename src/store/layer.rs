//! A disk of a snapshot as a layer: "a native snapshot is just another layer".

use std::ops::Range;
use std::sync::Arc;

use super::Store;
use super::blobs::Page;
use super::id::{BlobKind, Id};
use super::lease::{Lease, Root};
use super::map::{FANOUT, Shape};
use super::record::{DiskRecord, Snapshot};
use crate::block::BlockSource;
use crate::chain::{EncodedUnit, Layer, ParentLocator, Place};
use crate::error::{Error, Kind, Result};

/// A disk of a snapshot. Nothing lies below it.
#[derive(Debug)]
pub struct SnapshotLayer {
    store: Arc<Store>,
    /// What messages call it: of several snapshots that are open none says of itself which it is.
    name: String,
    size: u64,
    root: Id,
    shape: Shape,
    /// Keeps it from being collected while it is read.
    _lease: Lease,
}

impl SnapshotLayer {
    /// The disk that `disk` tells of, which is one of those of `snapshot`.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if no map is that large, [`Kind::Refused`] if only what a trusted key signed is opened, and
    /// none has; see [`Store::trust`].
    pub fn new(store: Arc<Store>, snapshot: &Snapshot, disk: &DiskRecord) -> Result<Self> {
        store.trust(snapshot)?;
        let shape = Shape::new(disk.size, store.block_size().into())?;
        let root = Root { root: disk.root, size: disk.size };
        let lease = Lease::reading(&store, vec![root])?;
        let (record, size, root) = (&snapshot.record, disk.size, disk.root);
        let name = format!("{}@{}, {}", record.series, record.time, disk.name);
        Ok(Self { store, name, size, root, shape, _lease: lease })
    }

    /// What is wrong at some place of the disk.
    fn at(&self, error: Error, offset: u64) -> Error {
        error.within(format!("{} at {offset:#x}", self.name))
    }

    /// The map page of level 0 that tells of a block.
    fn page_of(&self, block: u64) -> Result<Arc<Page>> {
        let leaf = self.store.leaf(self.root, self.shape, block / FANOUT)?;
        self.store.map_page(leaf)
    }
}

impl Layer for SnapshotLayer {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn parent(&self) -> Option<&ParentLocator> {
        None
    }

    fn sources(&self) -> &[Arc<dyn BlockSource>] {
        &[]
    }

    fn map(&self, guest: Range<u64>, emit: &mut dyn FnMut(u64, Place)) -> Result<()> {
        let block_size = u64::from(self.store.block_size());
        let mut at = guest.start;
        while at < guest.end {
            let leaf = at / block_size / FANOUT;
            let leaf_end = (leaf + 1).saturating_mul(FANOUT * block_size).min(guest.end);
            let page = match self.page_of(leaf * FANOUT) {
                Ok(page) => page,
                // The rest of the disk may be whole.
                Err(error) if error.kind() == Kind::Corrupt => {
                    emit(leaf_end - at, Place::Damaged(self.at(error, at)));
                    at = leaf_end;
                    continue;
                }
                Err(error) => return Err(error),
            };
            while at < leaf_end {
                let block = at / block_size;
                let mut end = ((block + 1) * block_size).min(leaf_end);
                let place = match page.get(block % FANOUT).is_zero() {
                    true => {
                        // As far as they go on.
                        while end < leaf_end && page.get(end / block_size % FANOUT).is_zero() {
                            end = end.saturating_add(block_size).min(leaf_end);
                        }
                        Place::Zero
                    }
                    false => Place::Encoded {
                        unit: EncodedUnit {
                            host: block * block_size,
                            stored: self.store.block_size(),
                            decoded: self.store.block_size(),
                        },
                        within: (at % block_size) as u32,
                    },
                };
                emit(end - at, place);
                at = end;
            }
        }
        Ok(())
    }

    fn name(&self, unit: EncodedUnit) -> Result<Option<[u8; 32]>> {
        let block = unit.host / u64::from(self.store.block_size());
        Ok(Some(self.page_of(block)?.get(block % FANOUT).0))
    }

    fn decode(&self, unit: EncodedUnit, out: &mut [u8]) -> Result<()> {
        let block = unit.host / u64::from(self.store.block_size());
        let read = |out: &mut [u8]| {
            let id = self.page_of(block)?.get(block % FANOUT);
            if id.is_zero() {
                return Err(Error::new(Kind::Corrupt, "a block that is not stored"));
            }
            self.store.read_blob(BlobKind::Block, &id, out)
        };
        read(out).map_err(|error| self.at(error, unit.host))
    }
}
