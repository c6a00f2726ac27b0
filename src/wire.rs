//! Checked reading of on-disk structures.
//!
//! Every number in an image is a claim. What is here turns a claim into a value or into nothing:
//! a typed view of bytes that are really there, and a budget for work whose amount the image
//! chooses. Layouts themselves are declared once, beside their parser, as `zerocopy` records with
//! explicit endianness.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::error::{Error, Kind, Result};

/// The record of type `T` at `offset` of `bytes`, or `None` if it does not fit.
pub fn record<T>(bytes: &[u8], offset: usize) -> Option<&T>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    T::ref_from_prefix(bytes.get(offset..)?).ok().map(|(record, _)| record)
}

/// The records of type `T` that fill `bytes`; a remainder shorter than one record is left out.
pub fn records<T>(bytes: &[u8]) -> &[T]
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let whole = bytes.len() - bytes.len() % size_of::<T>().max(1);
    <[T]>::ref_from_bytes(&bytes[..whole]).unwrap_or(&[])
}

/// A bound on work or memory whose amount an image claims: entries walked, bytes of tables held,
/// links followed. Spending past the bound is an error that names what was being counted.
#[derive(Debug)]
pub struct Budget {
    what: &'static str,
    total: u64,
    left: u64,
}

impl Budget {
    /// A budget of `total` of `what` (a plural noun, for the message).
    pub const fn new(what: &'static str, total: u64) -> Self {
        Self { what, total, left: total }
    }

    /// Takes `amount` out of the budget.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] once the budget is spent: an honest image does not get there.
    pub fn spend(&mut self, amount: u64) -> Result<()> {
        match self.left.checked_sub(amount) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                Err(Error::new(Kind::Corrupt, format!("more than {} {}", self.total, self.what)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::big_endian::U32;

    #[test]
    fn a_record_must_fit() {
        let bytes = [0, 0, 0, 1, 0, 0, 0, 2, 9];
        assert_eq!(record::<U32>(&bytes, 4).unwrap().get(), 2);
        assert!(record::<U32>(&bytes, 6).is_none());
        assert!(record::<U32>(&bytes, usize::MAX).is_none());
        assert_eq!(records::<U32>(&bytes).len(), 2);
    }

    #[test]
    fn a_budget_ends() {
        let mut budget = Budget::new("tables", 3);
        budget.spend(2).unwrap();
        assert_eq!(budget.spend(2).unwrap_err().to_string(), "more than 3 tables (corrupt image)");
        budget.spend(1).unwrap();
    }
}
