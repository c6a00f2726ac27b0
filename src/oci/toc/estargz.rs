//! eStargz: a gzip of one member for each file and a table of contents as the last file
//! (containerd/stargz-snapshotter, `docs/estargz.md`).

use std::io::{self, BufReader, Read};
use std::sync::Arc;

use flate2::bufread::GzDecoder;

use super::cause::Cause;
use super::collect::Collect;
use super::json;
use super::{MOST_PACKED, MOST_PLAIN, Ranges};
use crate::block::BlockSource;
use crate::error::{Error, Result};
use crate::oci::tar::{self, Run};
use crate::oci::{Algorithm, Digest, Hasher};

/// Where the descriptor of a layer has the digest of the table of contents.
pub(super) const ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";
/// What the table of contents is called in the tar.
const NAME: &[u8] = b"stargz.index.json";
/// The footer: an empty member of gzip with 22 bytes in its extra field, in a subfield or, of old,
/// without one.
const FOOTER: usize = 51;
const OLD_FOOTER: usize = 47;
/// Bytes of a piece that the table of contents, as a file, is read in.
const PIECE: usize = 4 << 20;

/// What the footer says: where the table of contents begins and the footer itself does.
pub(super) fn footer(blob: &dyn BlockSource) -> Result<std::ops::Range<u64>> {
    let mut last = [0; FOOTER];
    let start = blob.len().checked_sub(FOOTER as u64).ok_or(Cause::Footer)?;
    blob.read_at(start, &mut last)?;
    Ok(parse(&last, blob.len())?)
}

fn parse(last: &[u8; FOOTER], len: u64) -> Result<std::ops::Range<u64>, Cause> {
    const MAGIC: [u8; 4] = [0x1f, 0x8b, 8, 4];
    let new = last.strip_prefix(&MAGIC).and_then(|it| it.get(6..)).and_then(|it| {
        let it = it.strip_prefix(&[26, 0, b'S', b'G', 22, 0])?;
        Some((it.get(..22)?, FOOTER))
    });
    let old = || {
        let it = last.get(FOOTER - OLD_FOOTER..)?.strip_prefix(&MAGIC)?;
        Some((it.get(6..)?.strip_prefix(&[22, 0])?.get(..22)?, OLD_FOOTER))
    };
    let (field, size) = new.or_else(old).ok_or(Cause::Footer)?;
    let (digits, word) = field.split_at(16);
    let digits = std::str::from_utf8(digits).ok().filter(|it| !it.starts_with('+'));
    let at = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let at = at.filter(|_| word == b"STARGZ").ok_or(Cause::Footer)?;
    let end = len - size as u64;
    if at >= end {
        return Err(Cause::Place { at, len: 0, end });
    }
    Ok(at..end)
}

/// Reads the table of contents, which has the digest `named`.
pub(super) fn collect(blob: &Arc<dyn BlockSource>, named: &Digest) -> Result<Collect> {
    let stored = footer(&**blob)?;
    let len = stored.end - stored.start;
    if len > MOST_PACKED {
        return Err(Cause::TooLong { len, most: MOST_PACKED }.into());
    }
    let packed = BufReader::with_capacity(1 << 20, Ranges::new(blob, stored.clone()));
    let mut plain = GzDecoder::new(packed);
    let mut header = [0; 512];
    plain.read_exact(&mut header).map_err(unpacking)?;
    let mut entry = member(&header)?;
    let mut collect = Collect::new(stored.start)?;
    let mut json = Hashed::new(plain, entry.size, named.algorithm());
    json::entries(&mut json, &mut |raw| collect.take(raw))?;
    collect.finish_file()?;
    let (found, pieces) = json.finish()?;
    if found != *named {
        return Err(Cause::Digest { named: named.clone(), found }.into());
    }
    // The tar has it as a file like others, and whoever unpacks the layer has it, too.
    let place = collect.table.len();
    let mut skip = header.len() as u64;
    for (len, digest) in pieces {
        collect.table.add_apart(stored.clone(), skip, len, digest)?;
        skip += len;
    }
    entry.runs = vec![Run { at: 0, len: entry.size, place }];
    collect.builder.add(entry)?;
    Ok(collect)
}

/// The entry of the table of contents in the tar.
fn member(header: &[u8; 512]) -> Result<tar::Entry> {
    let rest = io::repeat(0).take(MOST_PLAIN + 512);
    let mut reader = tar::Reader::new(BufReader::new(header.as_slice().chain(rest)));
    let entry = reader.next().ok().flatten().filter(|entry| entry.path == NAME);
    let entry = entry.ok_or(Cause::Member)?;
    match entry.size {
        0 => Err(Cause::Member.into()),
        len if len > MOST_PLAIN => Err(Cause::TooLong { len, most: MOST_PLAIN }.into()),
        _ if entry.kind != tar::EntryKind::File || entry.runs.len() != 1 => {
            Err(Cause::Member.into())
        }
        _ => Ok(entry),
    }
}

/// What goes wrong while the table of contents is decompressed: the registry's failures stay what they are.
pub(super) fn unpacking(error: io::Error) -> Error {
    match error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        true => Error::io(error),
        false => Cause::Decompress(error.to_string()).into(),
    }
}

/// The length and digest of a piece.
type Piece = (u64, [u8; 32]);

/// The JSON, whose digest and whose pieces' are made as it is read.
struct Hashed<R> {
    input: R,
    len: u64,
    left: u64,
    whole: Hasher,
    piece: Vec<u8>,
    pieces: Vec<Piece>,
}

impl<R: Read> Hashed<R> {
    fn new(input: R, len: u64, algorithm: Algorithm) -> Self {
        let (whole, piece) = (Hasher::new(algorithm), vec![]);
        Self { input, len, left: len, whole, piece, pieces: vec![] }
    }

    fn end_piece(&mut self) {
        if !self.piece.is_empty() {
            self.pieces.push((self.piece.len() as u64, super::hash(&self.piece)));
            self.piece.clear();
        }
    }

    /// The digest of the whole, and its pieces.
    fn finish(mut self) -> Result<(Digest, Vec<Piece>)> {
        if self.left > 0 {
            let found = self.len - self.left;
            return Err(Cause::Length { named: self.len, found }.into());
        }
        self.end_piece();
        Ok((self.whole.finish(), self.pieces))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min((PIECE - self.piece.len()) as u64);
        let len = usize::try_from(most).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..len).unwrap_or_default();
        let read = self.input.read(buf).map_err(|error| io::Error::other(unpacking(error)))?;
        let bytes = buf.get(..read).unwrap_or_default();
        self.left -= read as u64;
        self.whole.update(bytes);
        self.piece.extend_from_slice(bytes);
        if self.piece.len() == PIECE {
            self.end_piece();
        }
        Ok(read)
    }
}

#[cfg(test)]
pub(super) fn parse_footer(last: &[u8; FOOTER], len: u64) -> Result<std::ops::Range<u64>, Cause> {
    parse(last, len)
}
