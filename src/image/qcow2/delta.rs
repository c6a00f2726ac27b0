//! STUB: a qcow2 writer that holds its tables in memory; the real one takes its place.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use parking_lot::Mutex;

use crate::block::{BlockSink, BlockSource, Extent, Origin};
use crate::error::{Error, Kind, Result};

const CLUSTER: u64 = 128 << 10;
const SUB: u64 = CLUSTER / 32;
const PER_L2: u64 = CLUSTER / 16;

#[derive(Debug)]
pub struct NewDelta<'a> {
    pub size: u64,
    pub backing: Option<Backing<'a>>,
}

#[derive(Debug)]
pub struct Backing<'a> {
    pub name: &'a OsStr,
    pub format: &'a str,
}

#[derive(Debug)]
pub struct Delta {
    file: File,
    size: u64,
    backing: Option<(Vec<u8>, String)>,
    map: Mutex<(u64, BTreeMap<u64, (u64, u32, u32)>)>,
}

impl Delta {
    pub fn create(path: &Path, new: &NewDelta<'_>) -> Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(Error::io)?;
        let backing = new.backing.as_ref();
        let backing = backing.map(|b| (b.name.as_bytes().to_vec(), b.format.to_owned()));
        Ok(Self { file, size: new.size, backing, map: Mutex::new((1, BTreeMap::new())) })
    }

    pub fn close(self) -> Result<()> {
        self.flush()
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(Error::io)
    }
}

impl BlockSource for Delta {
    fn len(&self) -> u64 {
        self.size
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "STUB"))
    }
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { len: self.size - offset, hole: false })
    }
    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.size - offset))
    }
    fn whole_file(&self) -> Option<&File> {
        None
    }
}

impl BlockSink for Delta {
    fn write_at(&self, mut offset: u64, mut data: &[u8]) -> Result<()> {
        let mut map = self.map.lock();
        while !data.is_empty() {
            let (cluster, within) = (offset / CLUSTER, offset % CLUSTER);
            let len = ((CLUSTER - within) as usize).min(data.len());
            let end = within + len as u64;
            if within % SUB != 0 || (end % SUB != 0 && offset + (len as u64) < self.size) {
                return Err(Error::new(Kind::Unsupported, "STUB: unaligned"));
            }
            let next = map.0;
            let entry = map.1.entry(cluster).or_insert((0, 0, 0));
            if entry.0 == 0 {
                entry.0 = next;
            }
            for sub in within / SUB..end.div_ceil(SUB) {
                entry.1 |= 1 << sub;
                entry.2 &= !(1 << sub);
            }
            let host = entry.0;
            if host == next {
                map.0 += 1;
            }
            self.put(host * CLUSTER + within, &data[..len])?;
            offset += len as u64;
            data = &data[len..];
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let mut map = self.map.lock();
        let mut at = offset;
        while at < offset + len {
            let (cluster, sub) = (at / CLUSTER, at % CLUSTER / SUB);
            let entry = map.1.entry(cluster).or_insert((0, 0, 0));
            entry.2 |= 1 << sub;
            entry.1 &= !(1 << sub);
            at += SUB;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let map = self.map.lock();
        let mut next = map.0;
        let l1_entries = self.size.div_ceil(CLUSTER * PER_L2);
        let mut l1 = vec![0_u64; l1_entries as usize];
        let mut tables: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (&cluster, &(host, alloc, zero)) in &map.1 {
            let table = tables.entry(cluster / PER_L2).or_insert_with(|| vec![0; CLUSTER as usize]);
            let at = (cluster % PER_L2 * 16) as usize;
            let entry = if host == 0 { 0 } else { host * CLUSTER | 1 << 63 };
            table[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            let bitmap = u64::from(zero) << 32 | u64::from(alloc);
            table[at + 8..at + 16].copy_from_slice(&bitmap.to_be_bytes());
        }
        for (index, table) in &tables {
            l1[*index as usize] = next * CLUSTER | 1 << 63;
            self.put(next * CLUSTER, table)?;
            next += 1;
        }
        let l1_at = next;
        let l1: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.put(next * CLUSTER, &l1)?;
        next += (l1.len() as u64).div_ceil(CLUSTER).max(1);
        // 16-bit counts: a block counts for 65,536 clusters.
        let per_block = CLUSTER / 2;
        let table_at = next;
        next += 1;
        let blocks = (next + next.div_ceil(per_block) + 1).div_ceil(per_block);
        let first_block = next;
        next += blocks;
        let mut table = vec![0; CLUSTER as usize];
        for block in 0..blocks {
            let at = (block * 8) as usize;
            table[at..at + 8].copy_from_slice(&((first_block + block) * CLUSTER).to_be_bytes());
            let mut counts = vec![0; CLUSTER as usize];
            for n in 0..per_block {
                if block * per_block + n < next {
                    counts[(n * 2 + 1) as usize] = 1;
                }
            }
            self.put((first_block + block) * CLUSTER, &counts)?;
        }
        self.put(table_at * CLUSTER, &table)?;
        let mut header = vec![0; 104];
        let mut field =
            |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        field(0, b"QFI\xfb");
        field(4, &3_u32.to_be_bytes());
        field(20, &17_u32.to_be_bytes());
        field(24, &self.size.to_be_bytes());
        field(36, &(l1_entries as u32).to_be_bytes());
        field(40, &(l1_at * CLUSTER).to_be_bytes());
        field(48, &(table_at * CLUSTER).to_be_bytes());
        field(56, &1_u32.to_be_bytes());
        field(72, &(1_u64 << 4).to_be_bytes());
        field(96, &4_u32.to_be_bytes());
        field(100, &104_u32.to_be_bytes());
        if let Some((name, format)) = &self.backing {
            header.extend_from_slice(&0xe279_2aca_u32.to_be_bytes());
            header.extend_from_slice(&(format.len() as u32).to_be_bytes());
            header.extend_from_slice(format.as_bytes());
            header.resize(header.len().next_multiple_of(8), 0);
            header.extend_from_slice(&[0; 8]);
            let at = header.len() as u64;
            header[8..16].copy_from_slice(&at.to_be_bytes());
            header[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            header.extend_from_slice(name);
        }
        header.resize(CLUSTER as usize, 0);
        self.put(0, &header)?;
        self.file.set_len(next * CLUSTER).map_err(Error::io)?;
        self.file.sync_all().map_err(Error::io)
    }
}
