//! Journals made by hand, on the small image of the parent's tests.

use super::super::inode::flag;
use super::super::tests::Image;
use super::super::{Cause, features};
use super::record::{compat, incompat};
use super::*;
use crate::error::Kind;
use crate::tree::{FileTree, NodeId};

const BLOCK: usize = 1024;
const JOURNAL: u32 = 8;
/// Where the journal is, and how many blocks it has.
const START: usize = 60;
const LEN: usize = 60;
/// The contents of inode 12 are in these two blocks.
const FIRST: u64 = 20;
const SECOND: u64 = 21;

/// A journal that is being written.
struct Writer {
    image: Image,
    compat: u32,
    incompat: u32,
    at: usize,
    sequence: u32,
    time: u64,
    crc: u32,
}

impl Writer {
    fn new(compat: u32, incompat: u32) -> Self {
        Self::starting(compat, incompat, 1, 7)
    }

    /// A log that begins at its block `start` with transaction `sequence`.
    fn starting(compat: u32, incompat: u32, start: usize, sequence: u32) -> Self {
        let mut image = Image::new();
        image.superblock32(0x5c, features::compat::HAS_JOURNAL);
        image.superblock32(0x60, features::incompat::FILETYPE | features::incompat::RECOVER);
        image.superblock32(0xe0, JOURNAL);
        image.inode(JOURNAL, 0o100_600, 1, (LEN * BLOCK) as u32, 0);
        let inode = Image::inode_at(JOURNAL);
        image.put32(inode + 0x20, flag::EXTENTS);
        image.put(inode + 0x28, &[0x0a, 0xf3, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        image.put(inode + 0x34, &[0, 0, 0, 0, LEN as u8, 0, 0, 0, START as u8, 0, 0, 0]);
        let mut writer = Self { image, compat, incompat, at: start, sequence, time: 1000, crc: !0 };
        writer.superblock(&[
            (0x0, MAGIC),
            (0x4, 4),
            (0xc, BLOCK as u32),
            (0x10, LEN as u32),
            (0x14, 1),
            (0x18, sequence),
            (0x1c, start as u32),
            (0x24, compat),
            (0x28, incompat),
            (0x50, 4 << 24),
        ]);
        writer
    }

    /// Sets words of the journal's superblock, and its checksum.
    fn superblock(&mut self, words: &[(usize, u32)]) {
        let base = START * BLOCK;
        for &(at, word) in words {
            self.image.put(base + at, &word.to_be_bytes());
        }
        self.image.put(base + 0xfc, &[0; 4]);
        let crc = crc32c(!0, &self.image.0[base..base + BLOCK]);
        self.image.put(base + 0xfc, &crc.to_be_bytes());
    }

    fn checked(&self) -> bool {
        self.incompat & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0
    }

    fn seed() -> u32 {
        crc32c(!0, &[0; 16])
    }

    fn header(&self, kind: u32) -> Vec<u8> {
        [MAGIC, kind, self.sequence].iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// Puts a block at the end of the log.
    fn append(&mut self, block: &[u8]) -> usize {
        let at = (START + self.at) * BLOCK;
        self.image.put(at, block);
        self.at = if self.at + 1 == LEN { 1 } else { self.at + 1 };
        at
    }

    /// Fills a block up and seals it with the checksum at its end.
    fn sealed(&self, mut block: Vec<u8>) -> Vec<u8> {
        block.resize(BLOCK, 0);
        if self.checked() {
            let crc = crc32c(Self::seed(), &block);
            block[BLOCK - 4..].copy_from_slice(&crc.to_be_bytes());
        }
        block
    }

    /// Writes a descriptor and the new contents of blocks; returns where the first copy is.
    fn write(&mut self, blocks: &[(u64, Vec<u8>)]) -> usize {
        let mut descriptor = self.header(block_type::DESCRIPTOR);
        let mut copies = Vec::new();
        for (number, (block, contents)) in blocks.iter().enumerate() {
            let mut copy = contents.clone();
            let mut flags = if number > 0 { tag_flag::SAME_UUID } else { 0 };
            if copy[..4] == MAGIC.to_be_bytes() {
                flags |= tag_flag::ESCAPED;
                copy[..4].fill(0);
            }
            if number + 1 == blocks.len() {
                flags |= tag_flag::LAST;
            }
            let crc = crc32c(crc32c(Self::seed(), &self.sequence.to_be_bytes()), &copy);
            let (lo, hi) = (*block as u32, (*block >> 32) as u32);
            if self.incompat & incompat::CSUM_V3 != 0 {
                for word in [lo, flags, hi, crc] {
                    descriptor.extend_from_slice(&word.to_be_bytes());
                }
            } else {
                descriptor.extend_from_slice(&lo.to_be_bytes());
                let crc = if self.checked() { crc as u16 } else { 0 };
                descriptor.extend_from_slice(&crc.to_be_bytes());
                descriptor.extend_from_slice(&(flags as u16).to_be_bytes());
                if self.incompat & incompat::BIT64 != 0 {
                    descriptor.extend_from_slice(&hi.to_be_bytes());
                }
                if self.incompat & incompat::CSUM_V2 != 0 {
                    descriptor.extend_from_slice(&[0; 2]);
                }
            }
            if number == 0 {
                descriptor.extend_from_slice(&[0; 16]);
            }
            copies.push(copy);
        }
        let descriptor = self.sealed(descriptor);
        self.crc = crc32_be(self.crc, &descriptor);
        self.append(&descriptor);
        let mut first = 0;
        for copy in &copies {
            self.crc = crc32_be(self.crc, copy);
            let at = self.append(copy);
            first = if first == 0 { at } else { first };
        }
        first
    }

    fn revoke(&mut self, blocks: &[u64]) {
        let mut block = self.header(block_type::REVOKE);
        let wide = self.incompat & incompat::BIT64 != 0;
        let used = 16 + blocks.len() * if wide { 8 } else { 4 };
        block.extend_from_slice(&(used as u32).to_be_bytes());
        for number in blocks {
            let bytes = number.to_be_bytes();
            block.extend_from_slice(if wide { &bytes } else { &bytes[4..] });
        }
        let block = self.sealed(block);
        self.append(&block);
    }

    /// Ends the transaction; returns where its commit block is.
    fn commit(&mut self) -> usize {
        let mut block = self.header(block_type::COMMIT);
        block.resize(BLOCK, 0);
        block[0x30..0x38].copy_from_slice(&self.time.to_be_bytes());
        if self.compat & compat::CHECKSUM != 0 {
            block[0xc] = 1;
            block[0xd] = 4;
            block[0x10..0x14].copy_from_slice(&self.crc.to_be_bytes());
        } else if self.checked() {
            let crc = crc32c(Self::seed(), &block);
            block[0x10..0x14].copy_from_slice(&crc.to_be_bytes());
        }
        let at = self.append(&block);
        self.sequence = self.sequence.wrapping_add(1);
        self.time += 1;
        self.crc = !0;
        at
    }

    fn recover(&self) -> Result<Recovered> {
        let source = crate::block::MemorySource::new(self.image.0.clone());
        let cache = crate::block::Cache::new(0);
        recover(&Ext4::new(std::sync::Arc::new(source), &cache).unwrap())
    }

    /// The contents of the file after replay, and the warnings.
    fn shown(&self) -> (Vec<u8>, Vec<String>) {
        let (ext4, warnings) = self.image.open().unwrap();
        let mut bytes = vec![0; 2 * BLOCK];
        assert_eq!(ext4.read_at(NodeId(12), 0, &mut bytes).unwrap(), 2 * BLOCK);
        (bytes, warnings)
    }
}

fn of(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK]
}

fn magic() -> Vec<u8> {
    let mut block = of(9);
    block[..4].copy_from_slice(&MAGIC.to_be_bytes());
    block
}

const FORMATS: [(u32, u32); 8] = [
    (0, 0),
    (0, incompat::BIT64),
    (compat::CHECKSUM, 0),
    (compat::CHECKSUM, incompat::BIT64 | incompat::ASYNC_COMMIT),
    (0, incompat::CSUM_V2),
    (0, incompat::CSUM_V2 | incompat::BIT64),
    (0, incompat::CSUM_V3),
    (0, incompat::CSUM_V3 | incompat::BIT64 | incompat::ASYNC_COMMIT),
];

#[test]
fn complete_transactions_are_replayed_in_every_format() {
    for (compat, incompat) in FORMATS {
        let mut journal = Writer::new(compat, incompat | incompat::REVOKE);
        journal.write(&[(FIRST, of(1)), (SECOND, magic())]);
        journal.commit();
        journal.write(&[(FIRST, of(2))]);
        journal.commit();
        // Never finished.
        journal.write(&[(FIRST, of(3)), (SECOND, of(3))]);
        let (bytes, warnings) = journal.shown();
        assert_eq!(warnings, Vec::<String>::new(), "{compat} {incompat:#x}");
        assert_eq!(bytes, [of(2), magic()].concat(), "{compat} {incompat:#x}");
        assert_eq!(journal.recover().unwrap().transactions, 2);
    }
}

#[test]
fn what_is_revoked_is_not_replayed_unless_written_again() {
    for (compat, incompat) in FORMATS {
        let mut journal = Writer::new(compat, incompat | incompat::REVOKE);
        journal.write(&[(FIRST, of(1)), (SECOND, of(1))]);
        journal.commit();
        journal.revoke(&[FIRST, 1 << 20]);
        journal.commit();
        assert_eq!(journal.shown().0, [of(0xf1), of(1)].concat(), "{compat} {incompat:#x}");
        journal.write(&[(FIRST, of(4))]);
        journal.commit();
        assert_eq!(journal.shown().0, [of(4), of(1)].concat());
        // In the transaction that writes it, too.
        journal.write(&[(SECOND, of(5))]);
        journal.revoke(&[SECOND]);
        journal.commit();
        assert_eq!(journal.shown().0, [of(4), of(0xf1)].concat());
        // One that was never finished revokes nothing.
        journal.revoke(&[FIRST]);
        assert_eq!(journal.shown().0, [of(4), of(0xf1)].concat());
    }
}

#[test]
fn the_log_goes_round_and_so_do_its_numbers() {
    for (compat, incompat) in FORMATS {
        let mut journal = Writer::starting(compat, incompat, LEN - 4, u32::MAX - 1);
        for byte in 1..=5 {
            journal.write(&[(FIRST, of(byte)), (SECOND, of(byte + 100))]);
            journal.commit();
        }
        let (bytes, warnings) = journal.shown();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(bytes, [of(5), of(105)].concat(), "{compat} {incompat:#x}");
        assert_eq!(journal.recover().unwrap().transactions, 5);
    }
}

#[test]
fn a_damaged_copy_hides_its_block_and_no_other() {
    for features in [incompat::CSUM_V2, incompat::CSUM_V3 | incompat::BIT64] {
        let mut journal = Writer::new(0, features);
        let at = journal.write(&[(FIRST, of(1)), (SECOND, of(2))]);
        journal.commit();
        journal.image.0[at + 100] ^= 1;
        let (ext4, warnings) = journal.image.open().unwrap();
        assert!(warnings[0].contains("copies of 1 blocks are damaged"), "{warnings:?}");
        let mut bytes = of(0);
        let error = ext4.read_at(NodeId(12), 0, &mut bytes).unwrap_err();
        assert_eq!(error.cause(), Some(&Cause::JournalCopy(FIRST)));
        ext4.read_at(NodeId(12), BLOCK as u64, &mut bytes).unwrap();
        assert_eq!(bytes, of(2));
    }
}

#[test]
fn a_damaged_transaction_ends_the_log() {
    for (compat, incompat) in FORMATS.into_iter().skip(2) {
        let mut journal = Writer::new(compat, incompat);
        journal.write(&[(FIRST, of(1))]);
        journal.commit();
        journal.write(&[(FIRST, of(2))]);
        let at = journal.commit();
        let before = journal.image.clone();
        // The time, which its checksum covers; of whole transactions' sums, the sum.
        journal.image.0[at + if compat == 0 { 0x37 } else { 0x13 }] ^= 4;
        let (bytes, warnings) = journal.shown();
        assert_eq!(bytes[..BLOCK], of(1));
        assert!(warnings[0].contains("transaction 8"), "{warnings:?}");
        // What is older than the transaction before it was left there by an earlier use.
        journal.image = before;
        journal.image.0[at + 0x10] ^= 1;
        journal.image.0[at + 0x36..at + 0x38].fill(0);
        let (bytes, warnings) = journal.shown();
        assert_eq!((&bytes[..BLOCK], warnings), (&of(1)[..], vec![]), "{compat} {incompat:#x}");
    }
}

#[test]
fn a_damaged_descriptor_ends_the_log() {
    let mut journal = Writer::new(0, incompat::CSUM_V3);
    let at = journal.write(&[(FIRST, of(1))]);
    journal.commit();
    journal.image.0[at - BLOCK + 500] ^= 1;
    let (bytes, warnings) = journal.shown();
    assert_eq!(bytes[..BLOCK], of(0xf1));
    let line = "transaction 7: the transaction's checksums do not match: replayed up to there";
    assert!(warnings[0].ends_with(line), "{warnings:?}");
}

#[test]
fn fast_commits_are_noted() {
    let mut journal = Writer::new(0, incompat::FAST_COMMIT);
    journal.superblock(&[(0x54, 10)]);
    journal.write(&[(FIRST, of(1))]);
    journal.commit();
    assert_eq!(journal.shown().1, Vec::<String>::new());
    let area = (START + LEN - 10) * BLOCK;
    journal.image.put(area, &[9, 0, 8, 0, 0, 0, 0, 0, 8, 0, 0, 0]);
    let (bytes, warnings) = journal.shown();
    assert_eq!(bytes[..BLOCK], of(1));
    assert!(warnings[0].contains("fast commits"), "{warnings:?}");
}

#[test]
fn a_clean_journal_has_nothing_to_replay() {
    let mut journal = Writer::new(0, 0);
    journal.write(&[(FIRST, of(1))]);
    journal.commit();
    journal.superblock(&[(0x1c, 0)]);
    assert_eq!(journal.shown().0[..BLOCK], of(0xf1));
}

#[test]
fn journals_that_cannot_be() {
    let fails = |change: &dyn Fn(&mut Writer)| {
        let mut journal = Writer::new(0, incompat::CSUM_V3);
        journal.write(&[(FIRST, of(1))]);
        journal.commit();
        change(&mut journal);
        // What cannot be replayed is said, and the rest is shown.
        let (bytes, warnings) = journal.shown();
        assert_eq!(bytes[..BLOCK], of(0xf1));
        assert!(warnings[0].contains("cannot be replayed"), "{warnings:?}");
        journal.recover().unwrap_err().cause::<Cause>().unwrap().clone()
    };
    let word = |at, word| fails(&|journal| journal.superblock(&[(at, word)]));
    let wrong = Cause::JournalSuperblock;
    assert_eq!(word(0x0, 0), wrong("its magic number"));
    assert_eq!(word(0x4, 1), wrong("its block type"));
    assert_eq!(word(0xc, 4096), wrong("its block size is not the filesystem's"));
    assert_eq!(word(0xc, 0), wrong("its block size is not the filesystem's"));
    for len in [LEN as u32 + 1, u32::MAX] {
        assert_eq!(word(0x10, len), wrong("it is longer than its file"));
    }
    for first in [0, LEN as u32, u32::MAX] {
        assert_eq!(word(0x14, first), wrong("its first block lies beyond its last"));
    }
    assert_eq!(word(0x10, 0), wrong("its first block lies beyond its last"));
    for start in [LEN as u32, u32::MAX] {
        assert_eq!(word(0x1c, start), wrong("its log starts outside of it"));
    }
    assert_eq!(word(0x28, 0x40), Cause::JournalFeature("I0x40".into()));
    assert_eq!(word(0x50, 0), wrong("its checksum type"));
    let cause = fails(&|journal| journal.image.0[START * BLOCK + 0x200] ^= 1);
    assert!(matches!(cause, Cause::JournalChecksum { .. }));
    let cause = fails(&|journal| journal.image.inode(JOURNAL, 0o040_755, 1, 1024, 0));
    assert_eq!(cause, Cause::JournalInode(JOURNAL));
    let cause = fails(&|journal| journal.image.put(Image::inode_at(JOURNAL), &[0; 128]));
    assert_eq!(cause, Cause::InodeFree(JOURNAL));
    let cause = fails(&|journal| journal.image.superblock32(0xe0, 1000));
    assert_eq!(cause, Cause::InodeNumber(1000));
    let cause = fails(&|journal| {
        let len = Image::inode_at(JOURNAL) + 0x38;
        journal.image.put16(len, 2);
    });
    assert_eq!(cause, Cause::JournalHole(2));
}

#[test]
fn a_lost_journal_is_found_by_its_copy_in_the_superblock() {
    let mut journal = Writer::new(0, 0);
    journal.write(&[(FIRST, of(1))]);
    journal.commit();
    let inode = Image::inode_at(JOURNAL);
    let map = journal.image.0[inode + 0x28..inode + 0x64].to_vec();
    journal.image.put(0x400 + 0x10c, &map);
    journal.image.superblock32(0x10c + 64, (LEN * BLOCK) as u32);
    journal.image.put(0x400 + 0xfd, &[1]);
    journal.image.put(inode, &[0; 128]);
    let (bytes, warnings) = journal.shown();
    assert_eq!((&bytes[..BLOCK], warnings), (&of(1)[..], vec![]));
}

#[test]
fn a_log_that_never_ends_is_left() {
    // Every block of the log is the same one, and it is always part of the same transaction.
    for kind in [block_type::DESCRIPTOR, block_type::REVOKE] {
        let mut journal = Writer::new(0, 0);
        for at in 1..LEN {
            let mut block = journal.header(kind);
            block.resize(BLOCK, 0xff);
            block[12..16].copy_from_slice(&16_u32.to_be_bytes());
            journal.image.put((START + at) * BLOCK, &block);
        }
        let recovered = journal.recover().unwrap();
        assert_eq!((recovered.transactions, recovered.copies.len()), (0, 0));
    }
    // Tags that fill their block, and lead around the log and beyond.
    let mut journal = Writer::new(0, 0);
    let mut block = journal.header(block_type::DESCRIPTOR);
    block.resize(BLOCK, 2);
    journal.append(&block);
    assert_eq!(journal.recover().unwrap().transactions, 0);
}

#[test]
fn a_block_that_was_never_the_filesystems_is_not_written() {
    let mut journal = Writer::new(0, incompat::BIT64);
    journal.write(&[(1 << 40, of(1))]);
    journal.commit();
    let recovered = journal.recover().unwrap();
    assert_eq!((recovered.transactions, recovered.copies.len()), (0, 0));
    assert_eq!(recovered.warnings.len(), 1);
}

#[test]
fn an_external_journal_is_said_to_be_elsewhere() {
    let mut journal = Writer::new(0, 0);
    journal.image.superblock32(0xe0, 0);
    journal.image.superblock32(0xe4, 0x801);
    let (_, warnings) = journal.image.open().unwrap();
    assert!(warnings[0].contains("on another device"), "{warnings:?}");
    // A read of the journal that fails is no damage: it may succeed the next time.
    let source = crate::block::MemorySource::new(Writer::new(0, 0).image.0);
    let fault = crate::block::FaultSource::new(std::sync::Arc::new(source), |_, offset, _| {
        (offset >= (START * BLOCK) as u64).then_some(crate::block::Fault::Errno(libc::EIO))
    });
    let opened = Ext4::open(std::sync::Arc::new(fault), &crate::block::Cache::new(0));
    assert_eq!(opened.err().unwrap().kind(), Kind::Io);
}
