//! Names for what lies on a volume, also where no reader for it exists: a message that says "xfs"
//! helps more than one that says "nothing known".

use crate::block::BlockSource;
use crate::error::Result;

/// A signature: the name, where it is, and the bytes there.
type Signature = (&'static str, u64, &'static [u8]);

const SIGNATURES: &[Signature] = &[
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("xfs", 0, b"XFSB"),
    ("squashfs", 0, b"hsqs"),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("bitlocker", 3, b"-FVE-FS-"),
    ("vfat", 54, b"FAT12   "),
    ("vfat", 54, b"FAT16   "),
    ("vfat", 82, b"FAT32   "),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("swap", 4086, b"SWAPSPACE2"),
    ("swap", 65_526, b"SWAPSPACE2"),
    ("iso9660", 0x8001, b"CD001"),
    ("udf", 0x8001, b"BEA01"),
    ("ext4", 1024 + 56, &[0x53, 0xef]),
];

/// The customary name of what lies on `source` by its signature alone, or `None`. A name here
/// does not mean that [`open`](super::open) can read it.
///
/// # Errors
/// The host's.
pub fn identify(source: &dyn BlockSource) -> Result<Option<&'static str>> {
    let at = |offset: u64, magic: &[u8]| -> Result<bool> {
        let mut bytes = [0; 16];
        let bytes = &mut bytes[..magic.len()];
        if offset + magic.len() as u64 > source.len() {
            return Ok(false);
        }
        source.read_at(offset, bytes)?;
        Ok(bytes == magic)
    };
    // The label may stand in any of the first four sectors.
    for sector in 0..4 {
        if at(sector * 512, b"LABELONE")? && at(sector * 512 + 24, b"LVM2 001")? {
            return Ok(Some("LVM2"));
        }
    }
    for &(name, offset, magic) in SIGNATURES {
        if at(offset, magic)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemorySource;

    #[test]
    fn signatures_are_found_where_they_belong() {
        let named = |offset: usize, magic: &[u8]| {
            let mut bytes = vec![0; 0x3_0000];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            identify(&MemorySource::new(bytes)).unwrap()
        };
        for &(name, offset, magic) in SIGNATURES {
            assert_eq!(named(offset as usize, magic), Some(name));
        }
        assert_eq!(named(512, b"LABELONE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0LVM2 001"), Some("LVM2"));
        assert_eq!(named(2, b"NTFS    "), None);
        assert_eq!(identify(&MemorySource::new(vec![0; 100])).unwrap(), None);
    }
}
