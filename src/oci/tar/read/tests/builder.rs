//! Tars made by hand, and what the reader makes of them.

use std::io::Read;

use zerocopy::{FromZeros, IntoBytes};

use super::super::cause::Cause;
use crate::error::{Error, Kind, Result};
use crate::oci::tar::header::{BLOCK, Header, octal, put};
use crate::oci::tar::{Entry, Reader};

/// A header of POSIX of a file or whatever `flag` says, owned by 1:2, of second 3.
pub(super) fn header(flag: u8, name: &[u8], size: u64) -> Header {
    let mut header = Header::new(flag);
    assert!(put(&mut header.name, name));
    octal(&mut header.mode, 0o644);
    octal(&mut header.uid, 1);
    octal(&mut header.gid, 2);
    octal(&mut header.mtime, 3);
    assert!(octal(&mut header.size, size));
    header
}

/// The same of GNU tar.
pub(super) fn gnu(flag: u8, name: &[u8], size: u64) -> Header {
    let mut header = header(flag, name, size);
    header.magic = *b"ustar ";
    header.version = *b" \0";
    header
}

/// The same of Seventh Edition Unix.
pub(super) fn v7(flag: u8, name: &[u8], size: u64) -> Header {
    let mut header = header(flag, name, size);
    header.magic.zero();
    header.version.zero();
    header
}

/// A tar in the making.
#[derive(Default, Clone)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    /// Any bytes, filled up to whole blocks.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// A header, whose checksum is made right, and what follows it.
    pub(super) fn member(self, mut header: Header, contents: &[u8]) -> Self {
        header.sum();
        self.bytes(header.as_bytes()).bytes(contents)
    }

    /// A regular file.
    pub(super) fn file(self, name: &[u8], contents: &[u8]) -> Self {
        self.member(header(b'0', name, contents.len() as u64), contents)
    }

    /// An extended header of these records.
    pub(super) fn records(self, flag: u8, records: &[(&str, &[u8])]) -> Self {
        let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.member(header(flag, b"records", text.len() as u64), &text)
    }

    /// The two blocks of zeros.
    pub(super) fn end(self) -> Vec<u8> {
        self.bytes(&[0; 2 * BLOCK]).0
    }
}

pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (rest + 1..).find(|len| rest + len.to_string().len() == *len).unwrap();
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// The members of a tar, each with its stored bytes, which lie where its runs say.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(bytes);
    let mut members = vec![];
    while let Some(entry) = reader.next()? {
        let mut stored = vec![];
        reader.contents(&mut |chunk| {
            stored.extend_from_slice(chunk);
            Ok(())
        })?;
        reader.contents(&mut |_| panic!("contents come once"))?;
        check(&entry);
        let runs = entry.runs.iter();
        let placed: Vec<u8> = runs
            .flat_map(|run| &bytes[run.place as usize..][..run.len as usize])
            .copied()
            .collect();
        assert!(placed == stored, "the runs of {:?} are not its bytes", entry.path);
        members.push((entry, stored));
    }
    assert_eq!(reader.next().unwrap(), None, "the end remains the end");
    let mut rest = vec![];
    reader.into_inner().read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{} bytes are not read", rest.len());
    Ok(members)
}

/// What holds for every entry, whatever it was made of.
pub(super) fn check(entry: &Entry) {
    let mut end = 0;
    for run in &entry.runs {
        assert!(run.len > 0 && run.at >= end, "{entry:?}");
        end = run.at.checked_add(run.len).unwrap();
        assert!(run.place.checked_add(run.len).is_some(), "{entry:?}");
    }
    assert!(end <= entry.size, "{entry:?}");
    assert!(entry.mode <= 0o7777 && entry.modified.nanos < 1_000_000_000, "{entry:?}");
}

/// The only member of a tar.
#[track_caller]
pub(super) fn only(tar: Tar) -> Entry {
    let mut members = read(&tar.end()).unwrap();
    assert_eq!(members.len(), 1, "{members:?}");
    members.pop().unwrap().0
}

/// The names of the members.
#[track_caller]
pub(super) fn names(bytes: &[u8]) -> Vec<String> {
    let members = read(bytes).unwrap();
    members.iter().map(|(entry, _)| entry.path.escape_ascii().to_string()).collect()
}

/// Why a tar that is damaged cannot be read.
#[track_caller]
pub(super) fn cause(bytes: &[u8]) -> Cause {
    let error = read(bytes).unwrap_err();
    told(&error, Kind::Corrupt)
}

/// Why a tar cannot be read though it is not damaged.
#[track_caller]
pub(super) fn unsupported(bytes: &[u8]) -> Cause {
    let error = read(bytes).unwrap_err();
    told(&error, Kind::Unsupported)
}

#[track_caller]
fn told(error: &Error, kind: Kind) -> Cause {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error.cause::<Cause>().unwrap_or_else(|| panic!("{error}")).clone()
}
