//! The journal of ext3 and ext4 (jbd2), replayed into a list of newer copies of blocks. Kernel
//! documentation, `ext4/journal.rst`.
//!
//! A filesystem that was not put away in order has its latest changes in the journal only. The
//! log is read once from its start, transaction by transaction, up to the first that is not
//! complete; what a transaction revokes is dropped from what was collected before it.

mod log;
mod record;

use std::collections::BTreeMap;

use zerocopy::big_endian::U32;

use self::log::Log;
use self::record::{block_type, compat, incompat, tag_flag};
use super::Ext4;
use super::cause::Cause;
use super::checksum::{crc32_be, crc32c};
use super::replayed::Copy;
use crate::error::Result;
use crate::wire;

pub(super) use self::record::MAGIC;

/// Blocks replayed at most: 8 GiB of them at 4 KiB, and about 100 MiB of memory here.
const MAX_COPIES: usize = 2 << 20;

/// What a journal holds that its filesystem does not.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// By block of the filesystem.
    pub(super) copies: BTreeMap<u64, Copy>,
    /// Complete transactions read.
    pub(super) transactions: u64,
    pub(super) warnings: Vec<String>,
}

/// A block written by a transaction, as its tag tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    /// Where its copy is, in blocks of the filesystem.
    place: u64,
    sequence: u32,
    checksum: u32,
    escaped: bool,
}

/// What was read of a transaction so far.
#[derive(Debug, Default)]
struct Transaction {
    written: Vec<(u64, Written)>,
    revoked: Vec<u64>,
    /// Whether some block of it failed its checksum. It may then be what an earlier use of the
    /// log left there, which only the time in its commit block tells.
    doubtful: bool,
    /// The running checksum of journals that have one for whole transactions.
    crc: u32,
}

impl Transaction {
    fn new() -> Self {
        Self { crc: !0, ..Self::default() }
    }
}

/// How a commit block ends its transaction.
#[derive(Debug, PartialEq, Eq)]
enum Commit {
    Complete,
    /// It and what follows is from an earlier use of the log, or was never finished.
    End,
    Damaged(Cause),
}

/// Reads the journal of `ext4` and says what replaying it would write.
///
/// # Errors
/// A journal that cannot be read at all. Damage within the log is a warning, and ends it there.
pub(super) fn recover(ext4: &Ext4) -> Result<Recovered> {
    let log = Log::open(ext4)?;
    let mut reader = Reader {
        log: &log,
        collected: BTreeMap::new(),
        current: Transaction::new(),
        last_commit: 0,
        warnings: Vec::new(),
    };
    let mut recovered = Recovered::default();
    let end = if log.start == 0 {
        log.sequence
    } else {
        let end = reader.read()?;
        recovered.transactions = u64::from(end.wrapping_sub(log.sequence));
        end
    };
    let Reader { collected, warnings, .. } = reader;
    recovered.warnings = warnings;
    if log.has_fast_commits(end)? {
        recovered.warnings.push(
            "the journal holds fast commits after its last full one: not replayed, so that the \
             latest changes of single files are missing"
                .to_owned(),
        );
    }
    let mut damaged = 0_u64;
    let mut bytes = vec![0; ext4.sb.block_size as usize];
    for (block, written) in collected {
        let right = log.matches(&written, &mut bytes)?;
        damaged += u64::from(!right);
        let copy = Copy { place: written.place, escaped: written.escaped, damaged: !right };
        recovered.copies.insert(block, copy);
    }
    if damaged > 0 {
        recovered.warnings.push(format!(
            "the journal's copies of {damaged} blocks are damaged: those blocks cannot be read"
        ));
    }
    Ok(recovered)
}

/// The one pass over the log.
struct Reader<'a> {
    log: &'a Log<'a>,
    collected: BTreeMap<u64, Written>,
    current: Transaction,
    last_commit: u64,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// Reads the log from its start; returns the number after that of its last transaction.
    fn read(&mut self) -> Result<u32> {
        let log = self.log;
        let mut sequence = log.sequence;
        let mut at = log.start;
        let mut left = log.last - log.first;
        let mut block = vec![0; log.block_size()];
        while left > 0 {
            log.read(at, &mut block)?;
            let Some(header) = wire::record::<record::Header>(&block, 0) else { break };
            if header.magic.get() != MAGIC || header.sequence.get() != sequence {
                break;
            }
            let mut used = 1;
            match header.block_type.get() {
                block_type::DESCRIPTOR => {
                    self.current.doubtful |= !log.tail_matches(&block);
                    let tagged = self.descriptor(at, sequence, &block)?;
                    used += tagged;
                    if used > left {
                        break;
                    }
                    if log.compat & compat::CHECKSUM != 0 {
                        self.sum(at, tagged, &block)?;
                    }
                }
                block_type::REVOKE => {
                    self.current.doubtful |= !log.tail_matches(&block);
                    self.revoke(at, sequence, &block)?;
                }
                block_type::COMMIT => match self.commit(at, sequence, &block) {
                    Commit::Complete => {
                        self.apply()?;
                        sequence = sequence.wrapping_add(1);
                    }
                    Commit::End => break,
                    Commit::Damaged(cause) => {
                        self.warnings.push(format!("{cause}: replayed up to there"));
                        break;
                    }
                },
                _ => break,
            }
            left -= used;
            at = log.after(at, used);
        }
        Ok(sequence)
    }

    /// Takes the tags of a descriptor block; returns how many there are. The blocks they are
    /// about follow it in the log.
    fn descriptor(&mut self, at: u64, sequence: u32, block: &[u8]) -> Result<u64> {
        let log = self.log;
        let mut count = 0;
        for tag in log.tags(block) {
            count += 1;
            if self.current.written.len() >= MAX_COPIES {
                return Err(Cause::JournalTooLarge(MAX_COPIES).into());
            }
            let place = log.place(log.after(at, count))?;
            let written = Written {
                place,
                sequence,
                checksum: tag.checksum,
                escaped: tag.flags & tag_flag::ESCAPED != 0,
            };
            if tag.block < log.blocks() {
                self.current.written.push((tag.block, written));
            } else {
                self.current.doubtful = true;
            }
        }
        Ok(count)
    }

    /// Carries the checksum of the whole transaction on over a descriptor and its blocks.
    fn sum(&mut self, at: u64, tagged: u64, block: &[u8]) -> Result<()> {
        self.current.crc = crc32_be(self.current.crc, block);
        let mut data = vec![0; block.len()];
        for next in 1..=tagged {
            self.log.read(self.log.after(at, next), &mut data)?;
            self.current.crc = crc32_be(self.current.crc, &data);
        }
        Ok(())
    }

    fn revoke(&mut self, at: u64, sequence: u32, block: &[u8]) -> Result<()> {
        let Some(revoked) = self.log.revoked(block) else {
            let what = "its revoke records pass its end";
            self.warnings.push(Cause::JournalBlock { block: at, sequence, what }.to_string());
            self.current.doubtful = true;
            return Ok(());
        };
        if self.current.revoked.len() >= MAX_COPIES {
            return Err(Cause::JournalTooLarge(MAX_COPIES).into());
        }
        self.current.revoked.extend(revoked);
        Ok(())
    }

    /// Judges a commit block as the kernel does.
    fn commit(&mut self, at: u64, sequence: u32, block: &[u8]) -> Commit {
        let log = self.log;
        let Some(commit) = wire::record::<record::Commit>(block, 0) else { return Commit::End };
        let time = commit.seconds.get();
        let damaged = |what| {
            if time < self.last_commit {
                Commit::End
            } else {
                Commit::Damaged(Cause::JournalBlock { block: at, sequence, what })
            }
        };
        if self.current.doubtful {
            return damaged("the transaction's checksums do not match");
        }
        let right = if log.compat & compat::CHECKSUM != 0 {
            let stored = commit.checksum[0].get();
            let sum = (commit.checksum_type, commit.checksum_size);
            let unused = sum == (0, 0) && stored == 0;
            unused || (sum == (record::CRC32, 4) && stored == self.current.crc)
        } else {
            log.commit_matches(block)
        };
        if !right {
            return damaged("the commit's checksum does not match");
        }
        self.last_commit = time;
        Commit::Complete
    }

    /// Adds a complete transaction to what is collected.
    fn apply(&mut self) -> Result<()> {
        let Transaction { written, revoked, .. } =
            std::mem::replace(&mut self.current, Transaction::new());
        self.collected.extend(written);
        for block in revoked {
            self.collected.remove(&block);
        }
        if self.collected.len() > MAX_COPIES {
            return Err(Cause::JournalTooLarge(MAX_COPIES).into());
        }
        Ok(())
    }
}

impl Log<'_> {
    /// Whether the log's copy of a block is what its tag says.
    fn matches(&self, written: &Written, bytes: &mut [u8]) -> Result<bool> {
        if !self.has_checksums() {
            return Ok(true);
        }
        self.read_place(written.place, bytes)?;
        let mut crc = crc32c(self.seed, &U32::new(written.sequence).to_bytes());
        crc = crc32c(crc, bytes);
        let mask = if self.incompat & incompat::CSUM_V3 != 0 { u32::MAX } else { 0xffff };
        Ok(crc & mask == written.checksum)
    }
}

#[cfg(test)]
mod tests;
