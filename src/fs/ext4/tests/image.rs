//! A small image made by hand, sound until a test changes it.

use std::sync::Arc;

use super::super::inode::flag;
use super::super::*;
use crate::block::MemorySource;

pub(in crate::fs::ext4) const BLOCK: usize = 1024;
pub(in crate::fs::ext4) const BLOCKS: usize = 128;
pub(in crate::fs::ext4) const SUPERBLOCK: usize = BLOCK;
pub(in crate::fs::ext4) const DESCRIPTOR: usize = 2 * BLOCK;
pub(in crate::fs::ext4) const INODE_TABLE: usize = 5;
pub(in crate::fs::ext4) const INODES: usize = 64;
pub(in crate::fs::ext4) const ROOT_BLOCK: usize = 14;
/// A regular file, a folder, a symbolic link, and an inode that is free.
pub(in crate::fs::ext4) const FILE: u32 = 12;
pub(in crate::fs::ext4) const FOLDER: u32 = 13;
pub(in crate::fs::ext4) const LINK: u32 = 14;
pub(in crate::fs::ext4) const FREE: u32 = 20;
pub(in crate::fs::ext4) const FOLDER_BLOCK: usize = 15;
pub(in crate::fs::ext4) const FILE_BLOCK: usize = 20;
/// Blocks that nothing uses.
pub(in crate::fs::ext4) const SPARE: usize = 40;

/// An ext2 filesystem of 128 blocks of 1 KiB, with one group and 64 inodes of 128 bytes.
#[derive(Clone)]
pub(in crate::fs::ext4) struct Image(pub(in crate::fs::ext4) Vec<u8>);

impl Image {
    pub(in crate::fs::ext4) fn new() -> Self {
        let mut image = Self(vec![0; BLOCKS * BLOCK]);
        let superblock: [(usize, u32); 9] = [
            (0x00, INODES as u32),
            (0x04, BLOCKS as u32),
            (0x14, 1),
            (0x20, 8192),
            (0x24, 8192),
            (0x28, INODES as u32),
            (0x4c, 1),
            (0x54, 11),
            (0x60, incompat::FILETYPE),
        ];
        for (at, value) in superblock {
            image.superblock32(at, value);
        }
        image.put16(SUPERBLOCK + 0x38, superblock::MAGIC);
        image.put16(SUPERBLOCK + 0x3a, 1);
        image.put16(SUPERBLOCK + 0x58, 128);
        image.put32(DESCRIPTOR + 8, INODE_TABLE as u32);
        image.inode(2, 0o040_755, 3, BLOCK as u32, ROOT_BLOCK as u32);
        image.inode(FILE, 0o100_644, 1, 2 * BLOCK as u32, FILE_BLOCK as u32);
        image.put32(Self::inode_at(FILE) + 0x28 + 4, FILE_BLOCK as u32 + 1);
        image.inode(FOLDER, 0o040_755, 2, BLOCK as u32, FOLDER_BLOCK as u32);
        image.inode(LINK, 0o120_777, 1, 6, 0);
        image.put(Self::inode_at(LINK) + 0x28, b"target");
        let root = ROOT_BLOCK * BLOCK;
        image.entry(root, 2, 12, b".");
        image.entry(root + 12, 2, 12, b"..");
        image.entry(root + 24, FILE, 16, b"file");
        image.entry(root + 40, FOLDER, 16, b"folder");
        image.entry(root + 56, LINK, 968, b"link");
        let folder = FOLDER_BLOCK * BLOCK;
        image.entry(folder, FOLDER, 12, b".");
        image.entry(folder + 12, 2, 12, b"..");
        image.entry(folder + 24, FILE, 1000, b"again");
        image.0[FILE_BLOCK * BLOCK..(FILE_BLOCK + 2) * BLOCK].fill(0xf1);
        image
    }

    pub(in crate::fs::ext4) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(in crate::fs::ext4) fn put16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    pub(in crate::fs::ext4) fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(in crate::fs::ext4) fn superblock32(&mut self, at: usize, value: u32) {
        self.put32(SUPERBLOCK + at, value);
    }

    pub(in crate::fs::ext4) fn inode_at(number: u32) -> usize {
        INODE_TABLE * BLOCK + (number as usize - 1) * 128
    }

    pub(in crate::fs::ext4) fn inode(
        &mut self,
        number: u32,
        mode: u16,
        links: u16,
        size: u32,
        block: u32,
    ) {
        let at = Self::inode_at(number);
        self.put16(at, mode);
        self.put32(at + 4, size);
        self.put16(at + 0x1a, links);
        self.put32(at + 0x28, block);
    }

    pub(in crate::fs::ext4) fn entry(&mut self, at: usize, inode: u32, len: u16, name: &[u8]) {
        self.put32(at, inode);
        self.put16(at + 4, len);
        self.0[at + 6] = name.len() as u8;
        self.put(at + 8, name);
    }

    /// Gives an inode an extent tree whose root is `node`.
    pub(in crate::fs::ext4) fn extents(&mut self, number: u32, node: &[u8]) {
        let at = Self::inode_at(number);
        self.put32(at + 0x20, flag::EXTENTS);
        self.put(at + 0x28, &[0; 60]);
        self.put(at + 0x28, node);
    }

    pub(in crate::fs::ext4) fn open(&self) -> Result<(Ext4, Vec<String>)> {
        Ext4::open(Arc::new(MemorySource::new(self.0.clone())), &Cache::new(0))
    }
}

pub(in crate::fs::ext4) fn node(entries: u16, max: u16, depth: u16) -> Vec<u8> {
    [0xf30a, entries, max, depth, 0, 0].iter().flat_map(|half: &u16| half.to_le_bytes()).collect()
}

pub(in crate::fs::ext4) fn extent(logical: u32, len: u16, physical: u32) -> Vec<u8> {
    [&logical.to_le_bytes()[..], &len.to_le_bytes(), &[0; 2], &physical.to_le_bytes()].concat()
}

pub(in crate::fs::ext4) fn index(logical: u32, block: u32) -> Vec<u8> {
    [&logical.to_le_bytes()[..], &block.to_le_bytes(), &[0; 4]].concat()
}
