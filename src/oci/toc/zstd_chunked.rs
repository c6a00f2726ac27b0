//! zstd:chunked: zstd frames for each chunk of a file, and a table of contents in a frame that
//! others skip (containers/storage, `pkg/chunked`; there is no specification besides the program).

use std::io::{BufReader, Read};
use std::sync::Arc;

use super::cause::Cause;
use super::collect::Collect;
use super::estargz::unpacking;
use super::json;
use super::{MOST_PACKED, MOST_PLAIN, Ranges, WINDOW_LOG};
use crate::block::BlockSource;
use crate::error::{Error, Result};
use crate::oci::Digest;

/// Where the descriptor of a layer has the digest of the table of contents, as it is stored, and its
/// place: offset, length, length decompressed, and type. Of old they were called otherwise.
pub(super) const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
pub(super) const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
pub(super) const OLD_CHECKSUM: &str = "io.containers.zstd-chunked.manifest-checksum";
pub(super) const OLD_POSITION: &str = "io.containers.zstd-chunked.manifest-position";
/// The one type of a table of contents there is.
const TYPE: u64 = 1;

/// Where a table of contents is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) at: u64,
    pub(super) packed: u64,
    pub(super) plain: u64,
}

impl Position {
    pub(super) fn parse(value: &str) -> Result<Self, Cause> {
        let bad = || {
            let value = value.chars().take(200).collect();
            Cause::Annotation { name: POSITION, value }
        };
        let numbers: Option<Vec<u64>> = value.split(':').map(|it| it.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[at, packed, plain, TYPE]) => Ok(Self { at, packed, plain }),
            _ => Err(bad()),
        }
    }
}

/// Reads the table of contents, which has the digest `named`.
pub(super) fn collect(
    blob: &Arc<dyn BlockSource>,
    named: &Digest,
    position: Position,
) -> Result<Collect> {
    let Position { at, packed: len, plain } = position;
    let end = at.checked_add(len).filter(|&end| end <= blob.len());
    let end = end.ok_or(Cause::Place { at, len, end: blob.len() })?;
    for (len, most) in [(len, MOST_PACKED), (plain, MOST_PLAIN)] {
        if len > most {
            return Err(Cause::TooLong { len, most }.into());
        }
    }
    let mut packed = vec![];
    Ranges::new(blob, at..end).read_to_end(&mut packed).map_err(Error::io)?;
    let found = Digest::of(named.algorithm(), &packed);
    if found != *named {
        return Err(Cause::Digest { named: named.clone(), found }.into());
    }
    let mut plain_json = zstd::stream::read::Decoder::with_buffer(&*packed).map_err(unpacking)?;
    plain_json.window_log_max(WINDOW_LOG).map_err(unpacking)?;
    let mut collect = Collect::new(at)?;
    let json = BufReader::new(plain_json).take(plain);
    let mut json = Unpacking(json);
    json::entries(&mut json, &mut |raw| collect.take(raw))?;
    if json.0.limit() > 0 {
        let found = plain - json.0.limit();
        return Err(Cause::Length { named: plain, found }.into());
    }
    collect.finish_file()?;
    Ok(collect)
}

struct Unpacking<R>(R);

impl<R: Read> Read for Unpacking<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf).map_err(|error| std::io::Error::other(unpacking(error)))
    }
}
