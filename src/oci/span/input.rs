//! The compressed bytes, a buffer at a time.

use std::io::{self, BufRead, Read};

use super::cause::Cause;
use super::spool::{Spool, told};
use crate::error::Result;

/// Bytes read at once in a pass.
pub(super) const READ: usize = 128 << 10;

/// A reader with room to look ahead, which knows where in the stream it is.
#[derive(Debug)]
pub(super) struct Input<R> {
    reader: R,
    buffer: Box<[u8]>,
    /// What is buffered and not used: it begins at `start`, which passes `end` when the user of
    /// it runs into the zeros behind the end of the stream.
    start: usize,
    end: usize,
    /// The offset in the stream of the first byte of `buffer`.
    base: u64,
    ended: bool,
    /// Who hashes what is read.
    digest: Option<Spool>,
}

impl<R: Read> Input<R> {
    /// Reads `reader`, which is at `base` of its stream, at most `read` bytes at once.
    pub(super) fn new(reader: R, base: u64, read: usize, digest: Option<Spool>) -> Self {
        let buffer = vec![0; read + 4096].into_boxed_slice();
        Self { reader, buffer, start: 0, end: 0, base, ended: false, digest }
    }

    /// Makes `wanted` bytes ready, at most 2,048: behind the end of the stream they are zeros.
    pub(super) fn ahead(&mut self, wanted: usize) -> Result<()> {
        while self.start + wanted > self.end && !self.ended {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.base += self.start as u64;
                (self.start, self.end) = (0, self.end - self.start);
            }
            // Room stays for the zeros.
            let room = self.buffer.len() - 2048;
            let got = loop {
                match self.reader.read(&mut self.buffer[self.end..room]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    got => break got.map_err(told)?,
                }
            };
            if let Some(digest) = &self.digest {
                digest.compressed(&self.buffer[self.end..self.end + got])?;
            }
            self.end += got;
            if got == 0 {
                self.ended = true;
                self.buffer[self.end..].fill(0);
            }
        }
        Ok(())
    }

    /// Where the next byte is in the stream.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.start as u64
    }

    /// The buffer with zeros behind it once the stream has ended, the offset of its first byte,
    /// and the index of the next byte in it.
    pub(super) fn window(&mut self) -> (u64, &[u8], &mut usize) {
        let len = if self.ended { self.buffer.len() } else { self.end };
        (self.base, &self.buffer[..len], &mut self.start)
    }

    /// Fails if more was used than there is.
    pub(super) fn check(&self) -> Result<(), Cause> {
        if self.start > self.end {
            return Err(Cause::Cut { offset: self.base + self.end as u64 });
        }
        Ok(())
    }

    /// Whether all bytes of the stream are in the buffer.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// The bytes that are ready; none at the end of the stream.
    pub(super) fn ready(&mut self) -> Result<&[u8]> {
        self.ahead(1)?;
        Ok(&self.buffer[self.start.min(self.end)..self.end])
    }

    /// The next bytes, `N` of them, which stay.
    pub(super) fn peek<const N: usize>(&mut self) -> Result<Option<[u8; N]>> {
        self.ahead(N)?;
        let ready = &self.buffer[self.start.min(self.end)..self.end];
        Ok(ready.first_chunk().copied())
    }

    /// The next byte.
    pub(super) fn byte(&mut self) -> Result<u8> {
        let [byte] = self.peek()?.ok_or(Cause::Cut { offset: self.offset() })?;
        self.start += 1;
        Ok(byte)
    }

    /// Goes past `count` of the bytes that are ready.
    pub(super) fn used(&mut self, count: usize) {
        self.start += count;
    }

    /// Reads on to the end of the stream: how many bytes that were.
    pub(super) fn drain(&mut self) -> Result<u64> {
        let begin = self.offset();
        loop {
            let ready = self.ready()?.len();
            if ready == 0 {
                return Ok(self.offset().saturating_sub(begin));
            }
            self.used(ready);
        }
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let len = ready.len().min(buf.len());
        buf[..len].copy_from_slice(&ready[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl<R: Read> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.ready().map_err(io::Error::other)
    }

    fn consume(&mut self, count: usize) {
        self.used(count);
    }
}
