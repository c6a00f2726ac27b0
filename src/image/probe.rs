//! What a file is, by its first bytes, and by its last for the one format that signs there.

use super::{Format, qcow2};
use crate::block::BlockSource;
use crate::error::{Error, Kind, Result};

/// What a file seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// A format that can be opened. [`Format::Raw`] is what is left when no signature is there.
    Known(Format),
    /// A format that is recognised and cannot be opened, by its name.
    Foreign(&'static str),
}

/// Signatures of image formats that cannot be opened yet: showing such a file as a raw disk would
/// be showing garbage.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "VMDK (VMware disk)"),
    (0, b"COWD", "VMDK (VMware COWD disk)"),
    (0, &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], "VMDK (VMware seSparse disk)"),
    (0, b"# Disk DescriptorFile", "VMDK (VMware disk descriptor)"),
    (0, b"vhdxfile", "VHDX (Hyper-V disk)"),
    (0, b"conectix", "VHD (Virtual PC disk)"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "VDI (VirtualBox disk)"),
    (0, b"QED\0", "QED (QEMU disk)"),
    (0, b"WithoutFreeSpace", "Parallels disk"),
    (0, b"WithouFreSpacExt", "Parallels disk"),
    (0, b"EVF\x09\x0d\x0a\xff\0", "EWF (EnCase image)"),
    (0, &[0x1f, 0x8b, 0x08], "gzip-compressed data"),
    (0, &[0xfd, b'7', b'z', b'X', b'Z', 0], "xz-compressed data"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "zstd-compressed data"),
    (0, b"BZh", "bzip2-compressed data"),
];

/// Says what `source` seems to be.
///
/// # Errors
/// The host's.
pub fn examine(source: &dyn BlockSource) -> Result<Probed> {
    let mut bytes = [0; 512];
    let head = &mut bytes[..source.len().min(512) as usize];
    source.read_at(0, head)?;
    if qcow2::probe(head) {
        return Ok(Probed::Known(Format::Qcow2));
    }
    // "QFI\xfb" with another version number is qcow2's business; version 1 is another format.
    for &(at, magic, name) in FOREIGN {
        let found = head.get(at..).is_some_and(|rest| rest.starts_with(magic));
        // "BZh" is text, too: the digit and the magic of the first block must follow.
        let sure =
            magic != b"BZh" || head.get(4..10) == Some(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59]);
        if found && sure {
            return Ok(Probed::Foreign(name));
        }
    }
    if let Some(at) = source.len().checked_sub(512) {
        let mut footer = [0; 8];
        source.read_at(at, &mut footer)?;
        if footer == *b"conectix" {
            return Ok(Probed::Foreign("VHD (Virtual PC disk, fixed)"));
        }
    }
    Ok(Probed::Known(Format::Raw))
}

/// The format of `source`, which the user named: what has no signature is raw.
///
/// # Errors
/// [`Kind::Unsupported`] for a format that is recognised and cannot be opened, or the host's.
pub fn probe(source: &dyn BlockSource) -> Result<Format> {
    match examine(source)? {
        Probed::Known(format) => Ok(format),
        Probed::Foreign(name) => Err(Error::new(Kind::Unsupported, name)
            .with_hint("if it is a raw disk all the same, say --format raw")),
    }
}
