//! A blob in a registry: streamed from start to end, or read by ranges.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use parking_lot::Mutex;
use ureq::http::Uri;

use super::cause::Cause;
use super::http::{Response, host, read_failed};
use super::patience::Patience;
use super::{Registry, Request};
use crate::block::{BlockSource, Extent, Origin, check_range};
use crate::error::{Result, ResultExt};
use crate::oci::blob::Blob;
use crate::oci::digest::Digest;
use crate::oci::manifest::Descriptor;

/// Small reads are made in pieces of this many bytes: about what a round trip costs anyway.
const PIECE: u64 = 64 << 10;
/// Pieces that are kept of one blob.
const KEPT: usize = 16;
/// Reads from this length on are made as they are, and nothing of them is kept.
const LARGE: u64 = 256 << 10;
/// A stream that got this far since it was cut begins its tries anew.
const PROGRESS: u64 = 64 << 10;

/// A blob that a registry has.
#[derive(Debug)]
pub(super) struct RemoteBlob {
    registry: Arc<Registry>,
    digest: Digest,
    len: u64,
    /// Where the registry last sent us for it. It may be signed, and run out.
    location: Mutex<Option<Uri>>,
}

impl RemoteBlob {
    pub(super) fn new(registry: Arc<Registry>, part: &Descriptor) -> Self {
        let (digest, len) = (part.digest.clone(), part.size);
        Self { registry, digest, len, location: Mutex::new(None) }
    }

    /// The same, for somebody who reads on its own.
    fn another(&self) -> Self {
        let (registry, digest) = (Arc::clone(&self.registry), self.digest.clone());
        let location = Mutex::new(self.location.lock().clone());
        Self { registry, digest, len: self.len, location }
    }

    /// Asks for the blob, or a range of it.
    fn request(&self, range: Option<&str>, patience: &mut Patience) -> Result<Response> {
        let direct = self.location.lock().clone();
        if let Some(url) = direct {
            let request = Request { url: url.clone(), accept: None, range };
            // Whatever goes wrong there, the registry knows better.
            match self.registry.get(&url, &request, None) {
                Ok(response) if matches!(response.status, 200 | 206) => return Ok(response),
                _ => *self.location.lock() = None,
            }
        }
        let url = self.registry.url(&format!("blobs/{}", self.digest), patience)?;
        let request = Request { url: url.clone(), accept: None, range };
        let response = self.registry.fetch(request, patience)?;
        if host(&response.url) != host(&url) {
            *self.location.lock() = Some(response.url.clone());
        }
        Ok(response)
    }

    /// Begins to read at `at`, which lies before the end.
    fn open_at(&self, at: u64, patience: &mut Patience) -> Result<Opened> {
        let range = (at > 0).then(|| format!("bytes={at}-"));
        let response = self.request(range.as_deref(), patience)?;
        let skip = match (response.status, at) {
            (206, 1..) => {
                self.check_answer(&response, at, self.len)?;
                0
            }
            // The whole, from the start, whatever was asked for.
            _ => {
                self.check_len(&response, self.len)?;
                at
            }
        };
        Ok(Opened { host: response.host(), body: response.body, skip })
    }

    fn check_len(&self, response: &Response, wanted: u64) -> Result<(), Cause> {
        match response.len {
            Some(found) if found != wanted => {
                Err(Cause::Length { host: response.host(), wanted, found })
            }
            _ => Ok(()),
        }
    }

    /// Whether a partial answer is of the bytes from `start` to before `end`.
    fn check_answer(&self, response: &Response, start: u64, end: u64) -> Result<(), Cause> {
        let wanted = format!("{start}-{}/{}", end - 1, self.len);
        let found = response.header("content-range").unwrap_or("no range");
        let told = found.strip_prefix("bytes ").unwrap_or(found).trim();
        let unknown = format!("{start}-{}/*", end - 1);
        if told != wanted && told != unknown {
            let found = found.chars().take(100).collect();
            return Err(Cause::Range { host: response.host(), wanted, found });
        }
        self.check_len(response, end - start)
    }

    /// Fills `buf` with the bytes at `start`, by one request if all goes well.
    fn read_range(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        let end = start + buf.len() as u64;
        let range = format!("bytes={start}-{}", end.saturating_sub(1));
        let mut patience = Patience::new(&self.registry.options.timing);
        loop {
            let mut response = self.request(Some(&range), &mut patience)?;
            let host = response.host();
            if response.status == 206 {
                self.check_answer(&response, start, end)?;
            } else if start == 0 && end == self.len {
                self.check_len(&response, self.len)?;
            } else {
                return Err(Cause::NoRanges { host }.into());
            }
            match fill(&mut response.body, buf, &host) {
                Ok(()) => return Ok(()),
                Err(cause) => patience.again(cause, None)?,
            }
        }
    }

    fn named(&self) -> String {
        format!("blob {}", self.digest)
    }
}

/// A body that is to be read from the byte `skip` on.
struct Opened {
    host: String,
    body: Box<dyn Read + Send>,
    skip: u64,
}

/// Fills `buf`, or says why that failed.
fn fill(body: &mut dyn Read, buf: &mut [u8], host: &str) -> Result<(), Cause> {
    let mut filled = 0;
    while filled < buf.len() {
        let missing = (buf.len() - filled) as u64;
        let rest = buf.get_mut(filled..).unwrap_or_default();
        match body.read(rest) {
            Ok(0) => return Err(Cause::Cut { host: host.into(), missing }),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_failed(host, &error, missing)),
        }
    }
    Ok(())
}

impl Blob for RemoteBlob {
    fn len(&self) -> u64 {
        self.len
    }

    fn source(&self) -> Result<Arc<dyn BlockSource>> {
        Ok(Arc::new(RemoteSource { blob: self.another(), kept: Mutex::default() }))
    }

    fn stream(&self) -> Result<Box<dyn Read + Send>> {
        let patience = Patience::new(&self.registry.options.timing);
        let mut stream = Stream { blob: self.another(), at: 0, opened: None, patience, since: 0 };
        if self.len > 0 {
            // What can be told at once is told here.
            stream.open().within(|| self.named())?;
        }
        Ok(Box::new(stream))
    }
}

/// A blob read from start to end; a connection that is cut is taken up where it ended.
struct Stream {
    blob: RemoteBlob,
    at: u64,
    opened: Option<Opened>,
    patience: Patience,
    /// Where the last failure was.
    since: u64,
}

impl Stream {
    fn open(&mut self) -> Result<&mut Opened> {
        let opened = self.blob.open_at(self.at, &mut self.patience)?;
        Ok(self.opened.insert(opened))
    }

    fn next(&mut self, buf: &mut [u8]) -> Result<usize> {
        let left = self.blob.len - self.at;
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..want).filter(|buf| !buf.is_empty()) else {
            return self.end();
        };
        loop {
            let opened = match &mut self.opened {
                Some(opened) => opened,
                None => self.open()?,
            };
            match opened.read(buf, left) {
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(cause) => {
                    self.opened = None;
                    if self.at - self.since >= PROGRESS {
                        self.patience = Patience::new(&self.blob.registry.options.timing);
                    }
                    self.since = self.at;
                    self.patience.again(cause, None)?;
                }
            }
        }
    }

    /// At the end nothing more may come: a body without a length could be too long.
    fn end(&mut self) -> Result<usize> {
        if self.at < self.blob.len {
            return Ok(0);
        }
        if let Some(mut opened) = self.opened.take() {
            let mut one = [0];
            if matches!(opened.body.read(&mut one), Ok(1..)) {
                let (host, wanted) = (opened.host, self.blob.len);
                return Err(Cause::Length { host, wanted, found: wanted + 1 }.into());
            }
        }
        Ok(0)
    }
}

impl Opened {
    /// Reads on; `left` is what the reader still lacks, for the message.
    fn read(&mut self, buf: &mut [u8], left: u64) -> Result<usize, Cause> {
        let cut = |missing| Cause::Cut { host: self.host.clone(), missing };
        while self.skip > 0 {
            let mut scratch = [0; 16 << 10];
            let len = usize::try_from(self.skip).unwrap_or(usize::MAX).min(scratch.len());
            match self.body.read(scratch.get_mut(..len).unwrap_or_default()) {
                Ok(0) => return Err(cut(self.skip)),
                Ok(read) => self.skip -= read as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_failed(&self.host, &error, self.skip)),
            }
        }
        loop {
            return match self.body.read(buf) {
                Ok(0) => Err(cut(left)),
                Ok(read) => Ok(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(read_failed(&self.host, &error, left)),
            };
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let named = self.blob.named();
        self.next(buf).within(|| named).map_err(io::Error::other)
    }
}

/// A blob read by ranges.
#[derive(Debug)]
struct RemoteSource {
    blob: RemoteBlob,
    /// Pieces read lately, the oldest first.
    kept: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl RemoteSource {
    fn kept(&self, number: u64) -> Option<Arc<[u8]>> {
        let kept = self.kept.lock();
        kept.iter().find(|(of, _)| *of == number).map(|(_, piece)| Arc::clone(piece))
    }

    /// The pieces from `first` to `last`, those that are not kept read by one request.
    fn pieces(&self, first: u64, last: u64) -> Result<Vec<Arc<[u8]>>> {
        let mut pieces: Vec<_> = (first..=last).map(|number| self.kept(number)).collect();
        let missing = |piece: &Option<Arc<[u8]>>| piece.is_none();
        if let (Some(from), Some(to)) =
            (pieces.iter().position(missing), pieces.iter().rposition(missing))
        {
            let start = (first + from as u64) * PIECE;
            let end = ((first + to as u64 + 1) * PIECE).min(self.blob.len);
            let mut bytes = vec![0; (end - start) as usize];
            self.blob.read_range(start, &mut bytes)?;
            let mut kept = self.kept.lock();
            for (index, bytes) in bytes.chunks(PIECE as usize).enumerate() {
                let (number, piece) = (first + (from + index) as u64, Arc::<[u8]>::from(bytes));
                kept.retain(|(of, _)| *of != number);
                kept.push_back((number, Arc::clone(&piece)));
                if kept.len() > KEPT {
                    kept.pop_front();
                }
                if let Some(slot) = pieces.get_mut(from + index) {
                    *slot = Some(piece);
                }
            }
        }
        Ok(pieces.into_iter().flatten().collect())
    }
}

impl BlockSource for RemoteSource {
    fn len(&self) -> u64 {
        self.blob.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.blob.len)?;
        if buf.is_empty() {
            return Ok(());
        }
        if buf.len() as u64 >= LARGE {
            return self.blob.read_range(offset, buf).within(|| self.blob.named());
        }
        let end = offset + buf.len() as u64;
        let (first, last) = (offset / PIECE, (end - 1) / PIECE);
        let pieces = self.pieces(first, last).within(|| self.blob.named())?;
        let bytes =
            pieces.iter().flat_map(|piece| piece.iter()).skip((offset - first * PIECE) as usize);
        for (to, &from) in buf.iter_mut().zip(bytes) {
            *to = from;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { len: self.blob.len.saturating_sub(offset).max(1), hole: false })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.blob.len.saturating_sub(offset).max(1)))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
