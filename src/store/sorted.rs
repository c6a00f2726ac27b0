//! Ids in order, however many there are: what does not fit memory waits in files without names.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use zerocopy::{FromZeros, IntoBytes};

use super::id::{ID, Id};
use crate::error::{Result, ResultExt};

/// Ids that are held in memory while they are gathered: 32 MiB.
const HELD: usize = 1 << 20;
/// Ids that are read at once of each file.
const READ: usize = 1 << 10;
/// So many files are made into one: few are open, and what is in several of them is kept once.
const ALIKE: usize = 16;

/// Ids being gathered, in any order.
#[derive(Debug)]
pub(super) struct Gathering {
    held: Vec<Id>,
    most: usize,
    /// Those that were made of `ALIKE` of the ones before each.
    tiers: Vec<Vec<Run>>,
}

/// Ids in order, in a file.
#[derive(Debug)]
struct Run {
    file: File,
    len: u64,
}

impl Gathering {
    pub(super) fn new() -> Self {
        Self::holding(HELD)
    }

    /// One that holds `most` ids in memory.
    pub(super) fn holding(most: usize) -> Self {
        Self { held: Vec::new(), most, tiers: Vec::new() }
    }

    pub(super) fn add(&mut self, id: Id) -> Result<()> {
        if self.held.len() >= self.most {
            // The same ones come again and again.
            self.held.sort_unstable();
            self.held.dedup();
            if self.held.len() > self.most / 2 {
                self.spill()?;
            }
        }
        self.held.push(id);
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let mut ids = self.held.iter();
        let mut run = write(&mut || Ok(ids.next().copied()))?;
        self.held.clear();
        for tier in 0.. {
            if tier == self.tiers.len() {
                self.tiers.push(Vec::new());
            }
            let Some(runs) = self.tiers.get_mut(tier) else { break };
            runs.push(run);
            if runs.len() < ALIKE {
                break;
            }
            let runs = std::mem::take(runs);
            let mut ids = Iter::new(&runs, &[])?;
            run = write(&mut || ids.next())?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Sorted {
        self.held.sort_unstable();
        self.held.dedup();
        Sorted { held: self.held, runs: self.tiers.into_iter().flatten().collect() }
    }
}

/// Ids that come in order, in a file.
fn write(next: &mut dyn FnMut() -> Result<Option<Id>>) -> Result<Run> {
    let named = || "a temporary file";
    let mut out = BufWriter::with_capacity(READ * ID, tempfile::tempfile().within(named)?);
    let mut len = 0;
    while let Some(id) = next()? {
        out.write_all(&id.0).within(named)?;
        len += 1;
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).within(named)?;
    Ok(Run { file, len })
}

/// Different ids, in order.
#[derive(Debug)]
pub(super) struct Sorted {
    held: Vec<Id>,
    runs: Vec<Run>,
}

impl Sorted {
    /// Goes through them, each once; as often as one likes.
    ///
    /// # Errors
    /// Those of reading a temporary file; also later.
    pub(super) fn iter(&self) -> Result<Iter<'_>> {
        Iter::new(&self.runs, &self.held)
    }
}

impl Sorted {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.runs.is_empty()
    }

    /// Whether `id` is one of them.
    ///
    /// # Errors
    /// Those of reading a temporary file.
    pub(super) fn contains(&self, id: &Id) -> Result<bool> {
        if self.held.binary_search(id).is_ok() {
            return Ok(true);
        }
        for run in &self.runs {
            if run.contains(id).within(|| "a temporary file")? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Run {
    fn contains(&self, id: &Id) -> io::Result<bool> {
        let (mut from, mut to) = (0, self.len);
        let mut found = Id::ZERO;
        while from < to {
            let middle = from + (to - from) / 2;
            self.file.read_exact_at(found.as_mut_bytes(), middle * ID as u64)?;
            match found.cmp(id) {
                Ordering::Equal => return Ok(true),
                Ordering::Less => from = middle + 1,
                Ordering::Greater => to = middle,
            }
        }
        Ok(false)
    }
}

#[derive(Debug)]
struct Reader<'a> {
    run: &'a Run,
    /// The first id that was not read yet.
    next: u64,
    ids: Vec<Id>,
    at: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<Option<Id>> {
        if self.at == self.ids.len() {
            let len = (self.run.len - self.next).min(READ as u64);
            self.ids.resize(len as usize, Id::new_zeroed());
            let read = self.run.file.read_exact_at(self.ids.as_mut_bytes(), self.next * ID as u64);
            read.within(|| "a temporary file")?;
            (self.next, self.at) = (self.next + len, 0);
        }
        let id = self.ids.get(self.at).copied();
        self.at += 1;
        Ok(id)
    }
}

/// See [`Sorted::iter`].
#[derive(Debug)]
pub(super) struct Iter<'a> {
    heads: BinaryHeap<Reverse<(Id, usize)>>,
    readers: Vec<Reader<'a>>,
    held: &'a [Id],
}

impl<'a> Iter<'a> {
    fn new(runs: &'a [Run], held: &'a [Id]) -> Result<Self> {
        let readers = Vec::with_capacity(runs.len());
        let mut iter = Self { heads: BinaryHeap::new(), readers, held };
        for run in runs {
            let mut reader = Reader { run, next: 0, ids: vec![], at: 0 };
            if let Some(id) = reader.next()? {
                iter.heads.push(Reverse((id, iter.readers.len())));
            }
            iter.readers.push(reader);
        }
        Ok(iter)
    }

    /// The next one, larger than the one before.
    pub(super) fn next(&mut self) -> Result<Option<Id>> {
        let spilled = self.heads.peek().map(|Reverse((id, _))| *id);
        let Some(id) = spilled.into_iter().chain(self.held.first().copied()).min() else {
            return Ok(None);
        };
        if self.held.first() == Some(&id) {
            self.held = self.held.get(1..).unwrap_or_default();
        }
        while let Some(mut head) = self.heads.peek_mut() {
            let Reverse((first, number)) = *head;
            if first != id {
                break;
            }
            match self.readers.get_mut(number).map(Reader::next).transpose()?.flatten() {
                Some(next) => *head = Reverse((next, number)),
                None => drop(PeekMut::pop(head)),
            }
        }
        Ok(Some(id))
    }
}
