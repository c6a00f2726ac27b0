//! The block that each member of a tar begins with: POSIX.1-2017, `pax`, "ustar Interchange
//! Format".

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a block. Everything in a tar begins at a multiple.
pub(super) const BLOCK: usize = 512;

/// What a member is.
pub(super) mod typeflag {
    pub(in super::super) const FILE: u8 = b'0';
    pub(in super::super) const HARD_LINK: u8 = b'1';
    pub(in super::super) const SYMLINK: u8 = b'2';
    pub(in super::super) const CHAR_DEVICE: u8 = b'3';
    pub(in super::super) const BLOCK_DEVICE: u8 = b'4';
    pub(in super::super) const FOLDER: u8 = b'5';
    pub(in super::super) const FIFO: u8 = b'6';
    /// Records about the member that comes next.
    pub(in super::super) const EXTENDED: u8 = b'x';
}

/// The header block. Numbers are octal digits that end in a zero byte; text ends in one unless it
/// fills its field.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) name: [u8; 100],
    pub(super) mode: [u8; 8],
    pub(super) uid: [u8; 8],
    pub(super) gid: [u8; 8],
    pub(super) size: [u8; 12],
    pub(super) mtime: [u8; 12],
    pub(super) chksum: [u8; 8],
    pub(super) typeflag: u8,
    pub(super) linkname: [u8; 100],
    pub(super) magic: [u8; 6],
    pub(super) version: [u8; 2],
    pub(super) uname: [u8; 32],
    pub(super) gname: [u8; 32],
    pub(super) devmajor: [u8; 8],
    pub(super) devminor: [u8; 8],
    pub(super) prefix: [u8; 155],
    pub(super) unused: [u8; 12],
}

const _: () = assert!(size_of::<Header>() == BLOCK);

impl Header {
    pub(super) fn new(typeflag: u8) -> Self {
        let mut header = Self::new_zeroed();
        header.typeflag = typeflag;
        header.magic = *b"ustar\0";
        header.version = *b"00";
        header
    }

    /// The sum of all bytes, those of the sum itself taken for spaces.
    pub(super) fn sum(&mut self) {
        self.chksum = [b' '; 8];
        let sum: u64 = self.as_bytes().iter().map(|&byte| u64::from(byte)).sum();
        // Six digits, a zero byte, a space: at most 512 * 255, which fits.
        let _ = octal(&mut self.chksum[..7], sum);
    }
}

/// Writes `value` as octal digits and a zero byte. Whether it fits.
pub(super) fn octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len().saturating_sub(1);
    let text = format!("{value:0digits$o}");
    match field.split_at_mut_checked(digits) {
        Some((number, end)) if text.len() == digits => {
            number.copy_from_slice(text.as_bytes());
            end.fill(0);
            true
        }
        _ => false,
    }
}

/// Writes as much of `text` as fits. Whether it all does.
pub(super) fn put(field: &mut [u8], text: &[u8]) -> bool {
    let len = text.len().min(field.len());
    let (head, tail) = field.split_at_mut(len);
    head.copy_from_slice(text.get(..len).unwrap_or_default());
    tail.fill(0);
    len == text.len()
}
