//! Raw images: the disk as it is, byte for byte.

use std::ops::Range;
use std::sync::Arc;

use crate::block::BlockSource;
use crate::chain::{EncodedUnit, Layer, ParentLocator, Place};
use crate::error::{Error, Kind, Result};

/// A source as a layer: the bottom of a chain.
#[derive(Debug)]
pub struct Raw([Arc<dyn BlockSource>; 1]);

impl Raw {
    /// The layer whose disk is `source`.
    pub fn new(source: Arc<dyn BlockSource>) -> Self {
        Self([source])
    }
}

impl Layer for Raw {
    fn virtual_size(&self) -> u64 {
        self.0[0].len()
    }

    fn parent(&self) -> Option<&ParentLocator> {
        None
    }

    fn sources(&self) -> &[Arc<dyn BlockSource>] {
        &self.0
    }

    fn map(&self, guest: Range<u64>, emit: &mut dyn FnMut(u64, Place)) -> Result<()> {
        emit(guest.end - guest.start, Place::Raw { source: 0, offset: guest.start });
        Ok(())
    }

    fn decode(&self, _: EncodedUnit, _: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::Corrupt, "a raw image has no encoded units"))
    }
}
