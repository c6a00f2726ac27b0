//! The blocks that each member of a tar begins with: POSIX.1-2017, `pax`, "ustar Interchange
//! Format"; GNU tar's manual, "Basic Tar Format" and "Old GNU Format".

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
    /// A file that was to lie in one piece on its disk.
    pub(in super::super) const CONTIGUOUS: u8 = b'7';
    /// Records about the member that comes next.
    pub(in super::super) const EXTENDED: u8 = b'x';
    /// The same as Solaris wrote it before POSIX had it.
    pub(in super::super) const SOLARIS_EXTENDED: u8 = b'X';
    /// Records about all members that come.
    pub(in super::super) const GLOBAL: u8 = b'g';
    /// GNU: the name of the member that comes next.
    pub(in super::super) const LONG_NAME: u8 = b'L';
    /// GNU: the link target of the member that comes next.
    pub(in super::super) const LONG_LINK: u8 = b'K';
    /// GNU: a file with holes.
    pub(in super::super) const SPARSE: u8 = b'S';
    /// GNU: a folder, with a list of what was in it.
    pub(in super::super) const DUMPED_FOLDER: u8 = b'D';
    /// GNU: the rest of a file that another volume begins.
    pub(in super::super) const CONTINUED: u8 = b'M';
    /// GNU, long ago: names too long for their headers.
    pub(in super::super) const OLD_LONG_NAMES: u8 = b'N';
    /// GNU: a name for the whole tar.
    pub(in super::super) const VOLUME: u8 = b'V';
    /// Solaris: an access control list of the member that comes next.
    pub(in super::super) const SOLARIS_ACL: u8 = b'A';
    /// Solaris: an extended attribute file of a member.
    pub(in super::super) const SOLARIS_ATTRIBUTE: u8 = b'E';
    /// star: an inode without its contents.
    pub(in super::super) const INODE: u8 = b'I';
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

/// Where [`Header::prefix`] begins, and what else is in its place.
pub(super) const PREFIX: usize = 345;

/// What GNU tar has from [`PREFIX`] on.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct GnuTail {
    pub(super) atime: [u8; 12],
    pub(super) ctime: [u8; 12],
    pub(super) offset: [u8; 12],
    pub(super) longnames: [u8; 4],
    pub(super) unused: u8,
    pub(super) sparse: [SparsePiece; 4],
    /// Whether a [`SparseBlock`] follows.
    pub(super) isextended: u8,
    pub(super) realsize: [u8; 12],
    pub(super) pad: [u8; 17],
}

/// More pieces of a file with holes.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SparseBlock {
    pub(super) sparse: [SparsePiece; 21],
    /// Whether another follows.
    pub(super) isextended: u8,
    pub(super) pad: [u8; 7],
}

/// A piece of a file that is no hole.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SparsePiece {
    pub(super) offset: [u8; 12],
    pub(super) numbytes: [u8; 12],
}

const _: () = assert!(PREFIX + size_of::<GnuTail>() == BLOCK);
const _: () = assert!(size_of::<SparseBlock>() == BLOCK);

/// What the fields of a header mean beyond those that all dialects share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Seventh Edition Unix: no more fields.
    V7,
    /// POSIX, and extended headers.
    Ustar,
    /// As POSIX, with a shorter prefix and times after it.
    Star,
    /// No prefix; [`GnuTail`].
    Gnu,
}

impl Header {
    pub(super) fn new(typeflag: u8) -> Self {
        let mut header = Self::new_zeroed();
        header.typeflag = typeflag;
        header.magic = *b"ustar\0";
        header.version = *b"00";
        header
    }

    /// Which dialect it speaks. A version other than the one a dialect should have is overlooked, as all
    /// readers do.
    pub(super) fn dialect(&self) -> Dialect {
        match self.magic {
            [b'u', b's', b't', b'a', b'r', b' '] => Dialect::Gnu,
            // The name of star, at the very end.
            [b'u', b's', b't', b'a', b'r', _] if self.unused.ends_with(b"tar\0") => Dialect::Star,
            [b'u', b's', b't', b'a', b'r', _] => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    /// The sums of all bytes, those of the sum itself taken for spaces: as POSIX says, and as some
    /// old programs have it, who took bytes for signed.
    pub(super) fn sums(&self) -> (i64, i64) {
        let bytes = self.as_bytes();
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| i64::from(byte)).sum::<i64>();
        let high = |bytes: &[u8]| bytes.iter().map(|&byte| i64::from(byte >> 7)).sum::<i64>();
        let unsigned = sum(bytes) - sum(&self.chksum) + 8 * i64::from(b' ');
        (unsigned, unsigned - 256 * (high(bytes) - high(&self.chksum)))
    }

    /// Writes the sum of all bytes, those of the sum itself taken for spaces.
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
