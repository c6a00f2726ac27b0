//! Extended attributes: in the inode after its fields, in a block of their own, and large values
//! in inodes of their own. Kernel documentation, `ext4/attributes.rst`.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Ext4;
use super::acl;
use super::cause::Cause;
use super::checksum::crc32c;
use super::features::incompat;
use super::inode::{Inode, flag};
use super::map::Node;
use crate::error::Result;
use crate::wire;

/// What a block of attributes begins with.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockHeader {
    magic: U32,
    refcount: U32,
    blocks: U32,
    hash: U32,
    checksum: U32,
    reserved: [U32; 3],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    name_len: u8,
    name_index: u8,
    value_offset: U16,
    value_inode: U32,
    value_size: U32,
    hash: U32,
}

const MAGIC: u32 = 0xea02_0000;
const HEADER: usize = size_of::<BlockHeader>();
const RECORD: usize = size_of::<Record>();
const CHECKSUM: usize = 16;
/// The largest value the format allows in an inode of its own.
const MAX_VALUE: u32 = 16 << 20;

mod index {
    pub(super) const ACL_ACCESS: u8 = 2;
    pub(super) const ACL_DEFAULT: u8 = 3;
    pub(super) const SYSTEM: u8 = 7;
    pub(super) const RICHACL: u8 = 8;
}

/// The name, or its beginning, that a name index stands for; `None` for what is not shown:
/// inline data, encryption contexts, and what nobody knows.
fn prefix(name_index: u8) -> Option<&'static [u8]> {
    Some(match name_index {
        1 => b"user.",
        index::ACL_ACCESS => b"system.posix_acl_access",
        index::ACL_DEFAULT => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        index::RICHACL => b"system.richacl",
        10 => b"gnu.",
        _ => return None,
    })
}

/// An attribute as it is stored.
#[derive(Debug, Clone, Copy)]
struct Attribute<'a> {
    index: u8,
    name: &'a [u8],
    value: Value<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Here(&'a [u8]),
    InInode { inode: u32, size: u32 },
}

impl Attribute<'_> {
    fn full_name(&self) -> Option<Vec<u8>> {
        prefix(self.index).map(|prefix| [prefix, self.name].concat())
    }

    fn is_named(&self, full: &[u8]) -> bool {
        prefix(self.index)
            .and_then(|prefix| full.strip_prefix(prefix))
            .is_some_and(|name| name == self.name)
    }
}

/// A value, or where it still has to be read from.
enum Stored {
    Bytes(u8, Vec<u8>),
    InInode { inode: u32, size: u32 },
}

impl Stored {
    fn new(attribute: &Attribute<'_>) -> Self {
        match attribute.value {
            Value::Here(bytes) => Stored::Bytes(attribute.index, bytes.to_vec()),
            Value::InInode { inode, size } => Stored::InInode { inode, size },
        }
    }
}

/// Calls `each` with the attributes listed at `start` of `bytes`, whose value offsets count from
/// the beginning of `bytes`, until it returns `false`.
fn list<'a>(
    inode: u32,
    bytes: &'a [u8],
    start: usize,
    each: &mut dyn FnMut(Attribute<'a>) -> bool,
) -> Result<(), Cause> {
    let mut at = start;
    loop {
        let wrong = |what| Cause::AttributeEntry { inode, offset: at, what };
        let first: &U32 = wire::record(bytes, at).ok_or(wrong("the list does not end"))?;
        if first.get() == 0 {
            return Ok(());
        }
        let record: &Record = wire::record(bytes, at).ok_or(wrong("cut short"))?;
        let end = at + RECORD + usize::from(record.name_len);
        let name = bytes.get(at + RECORD..end).ok_or(wrong("its name passes the end"))?;
        let size = record.value_size.get();
        let value = match record.value_inode.get() {
            0 => {
                let from = usize::from(record.value_offset.get());
                let value = if size == 0 {
                    Some(&[][..])
                } else {
                    from.checked_add(size as usize).and_then(|end| bytes.get(from..end))
                };
                Value::Here(value.ok_or(wrong("its value passes the end"))?)
            }
            inode => Value::InInode { inode, size },
        };
        if !each(Attribute { index: record.name_index, name, value }) {
            return Ok(());
        }
        at = end.next_multiple_of(4);
    }
}

impl Ext4 {
    /// Lists the attributes in the inode itself.
    fn body_attributes(
        &self,
        inode: &Inode,
        each: &mut dyn FnMut(Attribute<'_>) -> bool,
    ) -> Result<()> {
        self.inode_bytes(inode.number, |bytes| {
            let Some(body) = bytes.get(inode.body..).filter(|body| body.len() > 4) else {
                return Ok(());
            };
            // Without the magic there are none: the room was never used.
            if wire::record::<U32>(body, 0).is_none_or(|magic| magic.get() != MAGIC) {
                return Ok(());
            }
            list(inode.number, &body[4..], 0, each)
        })?
        .map_err(Into::into)
    }

    /// Lists the attributes in the inode's block of them.
    fn block_attributes(
        &self,
        inode: &Inode,
        each: &mut dyn FnMut(Attribute<'_>) -> bool,
    ) -> Result<()> {
        let block = inode.attribute_block;
        if block == 0 {
            return Ok(());
        }
        let number = inode.number;
        if !self.sb.holds(block, 1) {
            return Err(Cause::BlockRange { inode: number, block, len: 1 }.into());
        }
        self.block("attribute block", block, |bytes| {
            let wrong = |what| Cause::AttributeBlock { inode: number, block, what };
            let header: &BlockHeader = wire::record(bytes, 0).ok_or(wrong("cut short"))?;
            if header.magic.get() != MAGIC || header.blocks.get() != 1 {
                return Err(wrong("its header"));
            }
            if self.sb.has_metadata_checksums() {
                let mut crc = crc32c(self.sb.checksum_seed, &block.to_le_bytes());
                crc = crc32c(crc, &bytes[..CHECKSUM]);
                crc = crc32c(crc, &[0; 4]);
                crc = crc32c(crc, &bytes[CHECKSUM + 4..]);
                if crc != header.checksum.get() {
                    return Err(wrong("its checksum"));
                }
            }
            list(number, bytes, HEADER, each)
        })?
        .map_err(Into::into)
    }

    /// The full names of the attributes of `inode`.
    pub(super) fn attribute_names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let mut each = |attribute: Attribute<'_>| {
            names.extend(attribute.full_name());
            true
        };
        self.body_attributes(inode, &mut each)?;
        self.block_attributes(inode, &mut each)?;
        Ok(names)
    }

    /// The value of the attribute of this full name; access control lists in the kernel's form.
    pub(super) fn attribute(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        let mut each = |attribute: Attribute<'_>| {
            if attribute.is_named(name) {
                found = Some(Stored::new(&attribute));
            }
            !attribute.is_named(name)
        };
        self.body_attributes(inode, &mut each)?;
        if found.is_none() {
            let mut each = |attribute: Attribute<'_>| {
                if attribute.is_named(name) {
                    found = Some(Stored::new(&attribute));
                }
                !attribute.is_named(name)
            };
            self.block_attributes(inode, &mut each)?;
        }
        match found {
            None => Ok(None),
            Some(Stored::Bytes(index::ACL_ACCESS | index::ACL_DEFAULT, bytes)) => {
                Ok(Some(acl::to_kernel(inode.number, &bytes)?))
            }
            Some(Stored::Bytes(_, bytes)) => Ok(Some(bytes)),
            Some(Stored::InInode { inode: value, size }) => {
                self.value_in_inode(inode, value, size).map(Some)
            }
        }
    }

    /// The value that the inode `value` holds for the inode `owner`.
    fn value_in_inode(&self, owner: &Inode, value: u32, size: u32) -> Result<Vec<u8>> {
        let wrong = |what| Cause::AttributeInode { inode: owner.number, value, what };
        if !self.sb.features.has_incompat(incompat::EA_INODE) {
            return Err(wrong("the filesystem has no such feature").into());
        }
        let inode = self.any_inode(value)?;
        if !inode.has(flag::EA_INODE) || inode.attr.size != u64::from(size) || size > MAX_VALUE {
            return Err(wrong("no value of that size").into());
        }
        // Lustre servers wrote such inodes first, and kept their owner where now a hash is.
        let lustre = inode.value_owner == owner.number && inode.generation == owner.generation;
        let expected = inode.value_hash;
        let node = Node::resolve(self, inode)?;
        let mut bytes = vec![0; size as usize];
        self.read_contents(&node, 0, &mut bytes)?;
        if !lustre && crc32c(self.sb.checksum_seed, &bytes) != expected {
            return Err(wrong("its hash").into());
        }
        Ok(bytes)
    }

    /// The contents of a file or folder that lie in the inode: what `i_block` holds, and what is
    /// continued in a hidden attribute.
    pub(super) fn inline_data(&self, inode: &Inode) -> Result<Vec<u8>> {
        let wrong = Cause::InlineData { inode: inode.number };
        if !self.sb.features.has_incompat(incompat::INLINE_DATA) {
            return Err(wrong.into());
        }
        let mut bytes = inode.block.to_vec();
        let mut continued = false;
        self.body_attributes(inode, &mut |attribute| {
            if attribute.index == index::SYSTEM
                && attribute.name == b"data"
                && let Value::Here(value) = attribute.value
            {
                bytes.extend_from_slice(value);
                continued = true;
            }
            !continued
        })?;
        if !continued {
            return Err(wrong.into());
        }
        let size = usize::try_from(inode.attr.size).unwrap_or(usize::MAX);
        bytes.truncate(size);
        Ok(bytes)
    }
}
