//! The bytes of a tar, in order, and how many of them have passed.

use std::io::{self, BufRead};

use super::cause::Cause;
use crate::error::{Error, Result, ResultExt};
use crate::oci::tar::header::BLOCK;

/// Bytes reserved for something whose length the tar claims; it grows as they really come.
const RESERVED: usize = 64 * 1024;

/// What a tar is read from.
#[derive(Debug)]
pub(super) struct Stream<R> {
    input: R,
    /// Bytes that have passed.
    at: u64,
}

impl<R: BufRead> Stream<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, at: 0 }
    }

    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// Where in the tar the next byte lies.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The bytes that are at hand; none at the end.
    fn fill(&mut self) -> Result<&[u8]> {
        loop {
            match self.input.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(told(error)).within(|| self.place()),
            }
        }
        // What was at hand a moment ago still is, so that this asks nobody.
        self.input.fill_buf().map_err(told)
    }

    fn place(&self) -> String {
        format!("cannot read the tar at {:#x}", self.at)
    }

    fn consume(&mut self, len: usize) {
        self.input.consume(len);
        self.at = self.at.saturating_add(len as u64);
    }

    /// Whether nothing is left.
    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        Ok(self.fill()?.is_empty())
    }

    /// Hands the next `left` bytes over and counts them down.
    pub(super) fn pass(
        &mut self,
        left: &mut u64,
        what: &'static str,
        into: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        while *left > 0 {
            let chunk = self.fill()?;
            if chunk.is_empty() {
                return Err(Cause::Cut { what, at: self.at }.into());
            }
            let len = usize::try_from(*left).map_or(chunk.len(), |left| left.min(chunk.len()));
            into(chunk.get(..len).unwrap_or_default())?;
            self.consume(len);
            *left -= len as u64;
        }
        Ok(())
    }

    pub(super) fn skip(&mut self, mut len: u64, what: &'static str) -> Result<()> {
        self.pass(&mut len, what, &mut |_| Ok(()))
    }

    /// The next `len` bytes, which the caller has found to be few enough to hold.
    pub(super) fn gather(&mut self, mut len: u64, what: &'static str) -> Result<Vec<u8>> {
        let reserved = usize::try_from(len).map_or(RESERVED, |len| len.min(RESERVED));
        let mut bytes = Vec::with_capacity(reserved);
        self.pass(&mut len, what, &mut |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The next block, or `None` at the end.
    pub(super) fn block(&mut self, what: &'static str) -> Result<Option<[u8; BLOCK]>> {
        if self.is_at_end()? {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let (mut filled, mut left) = (0, BLOCK as u64);
        self.pass(&mut left, what, &mut |chunk| {
            if let Some(part) = block.get_mut(filled..filled + chunk.len()) {
                part.copy_from_slice(chunk);
            }
            filled += chunk.len();
            Ok(())
        })?;
        Ok(Some(block))
    }

    /// Passes over all there is.
    pub(super) fn drain(&mut self) -> Result<()> {
        loop {
            let len = self.fill()?.len();
            if len == 0 {
                return Ok(());
            }
            self.consume(len);
        }
    }
}

/// An error of ours that came through a reader as one of its own keeps what it says.
fn told(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(Error::io)
}
