//! Names in encrypted folders as they are shown without the key: the form the kernel uses, which
//! is printable, no longer than a name may be, and leads back to the entry.
//!
//! That is the unpadded base64url of two hash words, the stored name, and for what passes 149
//! bytes of it, its SHA-256. Kernel documentation, `filesystems/fscrypt.rst`, "no-key names".

use super::sha256::sha256;

/// Bytes of a stored name that are shown as they are.
const PLAIN: usize = 149;
/// Two hash words, the name's first part, a digest of its rest.
const MAX_RAW: usize = 8 + PLAIN + 32;
/// The longest shown name.
const MAX_SHOWN: usize = (MAX_RAW * 4).div_ceil(3);

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A shown name.
pub(super) struct Shown {
    bytes: [u8; MAX_SHOWN],
    len: usize,
}

impl Shown {
    /// The shown form of the name stored as `stored`, whose hash is `hash`.
    pub(super) fn new(hash: (u32, u32), stored: &[u8]) -> Self {
        let mut raw = [0; MAX_RAW];
        let (plain, rest) = stored.split_at(stored.len().min(PLAIN));
        raw[..4].copy_from_slice(&hash.0.to_le_bytes());
        raw[4..8].copy_from_slice(&hash.1.to_le_bytes());
        raw[8..8 + plain.len()].copy_from_slice(plain);
        let mut raw_len = 8 + plain.len();
        if !rest.is_empty() {
            raw[raw_len..].copy_from_slice(&sha256(rest));
            raw_len = MAX_RAW;
        }
        let mut shown = Self { bytes: [0; MAX_SHOWN], len: 0 };
        for group in raw[..raw_len].chunks(3) {
            let word = group.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte))
                << (8 * (3 - group.len()));
            for digit in 0..=group.len() {
                shown.bytes[shown.len] = DIGITS[(word >> (18 - 6 * digit)) as usize & 63];
                shown.len += 1;
            }
        }
        shown
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The stored name that `shown` stands for, or `None` if it stands for none, or for one too long
/// to be shown whole.
pub(super) fn stored(shown: &[u8]) -> Option<Vec<u8>> {
    let mut raw = Vec::with_capacity(MAX_RAW);
    for group in shown.chunks(4) {
        let mut word = 0;
        for &digit in group {
            word = word << 6 | DIGITS.iter().position(|&known| known == digit)? as u32;
        }
        word <<= 6 * (4 - group.len());
        raw.extend_from_slice(&word.to_be_bytes()[1..group.len()]);
    }
    (raw.len() > 8 && raw.len() <= 8 + PLAIN).then(|| raw.split_off(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_names_lead_back() {
        for len in 1..=PLAIN {
            let name: Vec<u8> = (0..len).map(|at| (at * 37) as u8).collect();
            let shown = Shown::new((0x1234_5678, 9), &name);
            assert_eq!(stored(shown.as_bytes()).unwrap(), name);
        }
        assert_eq!(Shown::new((0, 0), b"abc").as_bytes(), b"AAAAAAAAAABhYmM");
        assert_eq!(Shown::new((0, 0), &[1; 255]).as_bytes().len(), MAX_SHOWN);
        assert_eq!(stored(Shown::new((0, 0), &[1; 255]).as_bytes()), None);
        assert_eq!(stored(b"no.such"), None);
    }
}
