//! A disk that comes on standard input.

use std::fs::{File, read_link};
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::block::MemorySource;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::{self, Format};
use crate::store::Stream;

/// How often one that waits for more looks whether it is to stop.
const WAIT: Duration = Duration::from_millis(200);
/// Bytes that tell what it is.
const HEAD: u64 = 64 << 10;
/// What messages call it.
const NAME: &str = "standard input";

/// Standard input, which is asked again and again rather than waited for.
struct Input;

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let stdin = io::stdin();
        let mut polled = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        let wait = Timespec::try_from(WAIT).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&wait))? {
            0 => Err(ErrorKind::Interrupted.into()),
            _ => Ok(rustix::io::read(stdin, buf)?),
        }
    }
}

/// The file that standard input is, if it is one: it can be read anywhere.
pub(super) fn file() -> Option<PathBuf> {
    let path = read_link("/proc/self/fd/0").ok()?;
    let there = File::open(&path).and_then(|file| file.metadata()).ok()?;
    let kind = there.file_type();
    let is_seekable = kind.is_file() || std::os::unix::fs::FileTypeExt::is_block_device(&kind);
    is_seekable.then_some(path)
}

/// The raw disk that comes on standard input, of `format` if the user said so.
///
/// # Errors
/// [`Kind::Usage`] if it is a terminal, [`Kind::Unsupported`] if what comes is no raw disk, and the host's.
pub(super) fn disk(format: Option<Format>, stop: impl Fn() -> bool) -> Result<Stream> {
    if io::stdin().is_terminal() {
        let error = Error::new(Kind::Usage, "is a terminal").within(NAME);
        return Err(error.with_hint("send a disk there: ssh web01 cat /dev/vg/snap | strata …"));
    }
    let mut head = Vec::new();
    let mut part = [0; 4096];
    while (head.len() as u64) < HEAD && !stop() {
        match Input.read(&mut part) {
            Ok(0) => break,
            Ok(more) => head.extend_from_slice(part.get(..more).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).within(|| NAME),
        }
    }
    if head.is_empty() {
        let error = Error::new(Kind::Usage, "nothing came").within(NAME);
        return Err(error.with_hint("what was to send a disk there may have failed"));
    }
    let format = match format {
        Some(format) => format,
        None => image::probe(&MemorySource::new(head.clone())).within(|| NAME)?,
    };
    if format != Format::Raw {
        let message =
            format!("{format}: only a raw disk can be read from its beginning to its end");
        let error = Error::new(Kind::Unsupported, message).within(NAME);
        return Err(
            error.with_hint("write it to a file first, or send what strata convert REF - makes")
        );
    }
    Ok(Stream::new(Box::new(io::Cursor::new(head).chain(Input))))
}
