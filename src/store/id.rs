//! What blocks, pages and objects are called: by the hash of their bytes.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cause::Cause;

/// Bytes of an id.
pub(super) const ID: usize = 32;

/// The hash of a block, a page or an object; zeros stand for zeros.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Id(pub [u8; ID]);

impl Id {
    /// What stands for a block, or a page of blocks, of zeros.
    pub const ZERO: Self = Self([0; ID]);

    /// The id of a whole object.
    pub fn of_object(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// Whether it stands for zeros.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// Its first eight bytes, as a number that orders as ids do.
    pub(super) fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl Ord for Id {
    /// As their bytes are ordered. Nearly always the first eight are enough, and many millions are compared.
    fn cmp(&self, other: &Self) -> Ordering {
        self.prefix().cmp(&other.prefix()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What a blob of a pack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum BlobKind {
    /// A block of a disk.
    Block,
    /// A page of a map.
    Page,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = Cause;

    fn from_str(text: &str) -> Result<Self, Cause> {
        let mut id = [0; ID];
        let digits = text.as_bytes();
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        if digits.len() != 2 * ID {
            return Err(Cause::Id(text.to_owned()));
        }
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            match pair {
                &[high, low] if let (Some(high), Some(low)) = (digit(high), digit(low)) => {
                    *byte = high << 4 | low;
                }
                _ => return Err(Cause::Id(text.to_owned())),
            }
        }
        Ok(Self(id))
    }
}

impl serde::Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
