//! Files with holes: the old GNU form in headers, and the three forms that GNU tar writes into
//! extended headers (GNU tar's manual, "Storing Sparse Files"). Solaris tells holes in
//! `SUN.holesdata` and stores them all the same: such a file is read as if it had none.

use std::io::BufRead;

use super::cause::{Cause, SparseFault};
use super::extended::{shown, size};
use super::number;
use super::stream::Stream;
use crate::error::Result;
use crate::oci::tar::Run;
use crate::oci::tar::header::{BLOCK, GnuTail, SparseBlock, SparsePiece};
use crate::wire::record;

/// Pieces a file may have: 24 MiB of runs.
const PIECES: usize = 1 << 20;

/// What the records of an extended header say about a sparse file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Pieces of data, each with its start and length.
    map: Vec<(u64, u64)>,
    /// The start of a piece whose length comes next.
    start: Option<u64>,
}

/// How the pieces of a member are told.
#[derive(Debug)]
pub(super) enum Form {
    /// There are no holes.
    Dense,
    /// By these pieces of a file of that size.
    Told { size: u64, map: Vec<(u64, u64)> },
    /// By numbers before the contents; the size of the file is this.
    Inline { size: u64 },
}

impl Records {
    /// Takes a record `GNU.sparse.*`.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let wrong = || Cause::Value(shown(key));
        let decimal = || number::decimal(value).ok_or_else(wrong);
        match key {
            b"GNU.sparse.major" => self.major = Some(decimal()?),
            b"GNU.sparse.minor" => self.minor = Some(decimal()?),
            b"GNU.sparse.name" if value.contains(&0) => {
                return Err(Cause::Nul("the name of a sparse file").into());
            }
            b"GNU.sparse.name" => self.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.size = Some(size(value).ok_or_else(wrong)?);
            }
            b"GNU.sparse.offset" => self.start = Some(decimal()?),
            b"GNU.sparse.numbytes" => {
                let start = self.start.take().ok_or_else(wrong)?;
                self.piece(start, decimal()?)?;
            }
            b"GNU.sparse.map" => {
                self.map.clear();
                let mut numbers = value.split(|&byte| byte == b',');
                while let Some(start) = numbers.next() {
                    let start = number::decimal(start).ok_or_else(wrong)?;
                    let len = numbers.next().and_then(number::decimal).ok_or_else(wrong)?;
                    self.piece(start, len)?;
                }
            }
            // The number of pieces, which they tell themselves.
            _ => {}
        }
        Ok(())
    }

    fn piece(&mut self, start: u64, len: u64) -> Result<()> {
        if self.map.len() >= PIECES {
            return Err(SparseFault::Pieces(PIECES).into());
        }
        self.map.push((start, len));
        Ok(())
    }

    /// The form they tell, and the file's own name, where the header's is made up.
    pub(super) fn form(self) -> Result<(Form, Option<Vec<u8>>)> {
        let form = match (self.major, self.minor.unwrap_or(0)) {
            (None, _) if self.size.is_none() && self.map.is_empty() => {
                return Ok((Form::Dense, None));
            }
            (None, _) | (Some(0), 0 | 1) => {
                Form::Told { size: self.size.ok_or(SparseFault::NoSize)?, map: self.map }
            }
            (Some(1), 0) => Form::Inline { size: self.size.ok_or(SparseFault::NoSize)? },
            (Some(major), minor) => return Err(Cause::SparseVersion(major, minor).into()),
        };
        Ok((form, self.name.filter(|name| !name.is_empty())))
    }
}

/// Pieces of a file made into runs, which lie in the tar one after the other.
#[derive(Debug)]
pub(super) struct Map {
    size: u64,
    /// Where the last piece ends.
    end: u64,
    /// Bytes of all pieces.
    mapped: u64,
    pieces: usize,
    /// Their places count from the first byte that is stored.
    runs: Vec<Run>,
}

impl Map {
    /// Of a file of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        Self { size, end: 0, mapped: 0, pieces: 0, runs: Vec::new() }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn piece(&mut self, start: u64, len: u64) -> Result<()> {
        self.pieces += 1;
        if self.pieces > PIECES {
            return Err(SparseFault::Pieces(PIECES).into());
        }
        if start < self.end {
            return Err(SparseFault::Backwards(start).into());
        }
        let end = start.saturating_add(len);
        if end > self.size {
            return Err(SparseFault::BeyondEnd { end, size: self.size }.into());
        }
        match self.runs.last_mut() {
            // An empty piece only says where the file ends.
            _ if len == 0 => {}
            Some(last) if last.at.checked_add(last.len) == Some(start) => last.len += len,
            _ => self.runs.push(Run { at: start, len, place: self.mapped }),
        }
        self.end = end;
        // Pieces lie apart and within the file.
        self.mapped += len;
        Ok(())
    }

    /// The runs, and how many of the `stored` bytes from `place` on they are. GNU tar passes over what
    /// is left; without any piece there is more wrong than that.
    pub(super) fn runs(mut self, place: u64, stored: u64) -> Result<(Vec<Run>, u64)> {
        let mapped = self.mapped;
        if mapped > stored || mapped == 0 && stored > 0 {
            return Err(SparseFault::Data { mapped, stored }.into());
        }
        for run in &mut self.runs {
            run.place = run.place.checked_add(place).ok_or(Cause::Number("size"))?;
        }
        Ok((self.runs, mapped))
    }
}

/// The pieces in the header of an old GNU sparse file and in the blocks that follow it.
pub(super) fn old_gnu<R: BufRead>(tail: &GnuTail, stream: &mut Stream<R>) -> Result<Map> {
    let size = number::field(&tail.realsize).and_then(|size| u64::try_from(size).ok());
    let mut map = Map::new(size.ok_or(Cause::Number("realsize"))?);
    old_pieces(&tail.sparse, &mut map)?;
    let mut more = tail.isextended != 0;
    while more {
        let at = stream.at();
        let what = "the map of a sparse file";
        let block = stream.block(what)?.ok_or(Cause::Cut { what, at })?;
        // A block is as long as the record.
        let Some(block) = record::<SparseBlock>(&block, 0) else { break };
        old_pieces(&block.sparse, &mut map)?;
        more = block.isextended != 0;
    }
    Ok(map)
}

/// Takes pieces up to the first that is not there.
fn old_pieces(pieces: &[SparsePiece], map: &mut Map) -> Result<()> {
    let number = |field: &[u8]| {
        let number = number::field(field).and_then(|number| u64::try_from(number).ok());
        number.ok_or(SparseFault::Malformed)
    };
    for piece in pieces {
        if piece.offset[0] == 0 || piece.numbytes[0] == 0 {
            break;
        }
        map.piece(number(&piece.offset)?, number(&piece.numbytes)?)?;
    }
    Ok(())
}

/// The pieces told before the contents (form 1.0): their number, then the start and length of each, a
/// line for every number, up to the end of a block. Takes what they fill from `stored`.
pub(super) fn inline<R: BufRead>(
    size: u64,
    stored: &mut u64,
    stream: &mut Stream<R>,
) -> Result<Map> {
    let mut map = Map::new(size);
    let (mut line, mut start) = (Vec::new(), None);
    // Numbers that are to come, once their number is known.
    let mut missing: Option<u64> = None;
    while missing != Some(0) {
        *stored = stored.checked_sub(BLOCK as u64).ok_or(SparseFault::Cut)?;
        let at = stream.at();
        let what = "the map of a sparse file";
        let block = stream.block(what)?.ok_or(Cause::Cut { what, at })?;
        for byte in block {
            if byte != b'\n' {
                // No number has more digits.
                if line.len() >= 20 {
                    return Err(SparseFault::Malformed.into());
                }
                line.push(byte);
                continue;
            }
            let number = number::decimal(&line).ok_or(SparseFault::Malformed)?;
            line.clear();
            let left = match missing {
                None if number > PIECES as u64 => return Err(SparseFault::Pieces(PIECES).into()),
                None => number * 2,
                Some(left) => {
                    match start.take() {
                        None => start = Some(number),
                        Some(start) => map.piece(start, number)?,
                    }
                    left - 1
                }
            };
            missing = Some(left);
            if left == 0 {
                break;
            }
        }
    }
    Ok(map)
}
