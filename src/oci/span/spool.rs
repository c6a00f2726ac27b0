//! What a pass gives to other threads: bytes to hash, and spans to keep.
//!
//! Uncompressed bytes wait here until it is known in which span they are: a restart point is
//! chosen among the places of a zone, and only once the decoder is a window past the zone. Then
//! one thread hashes both sides and each piece of a span, and another packs the spans that cannot
//! be entered otherwise.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::cause::Cause;
use crate::error::{Error, Kind, Result};

/// Messages on the way to a thread: with 128 KiB each, a MiB.
const QUEUE: usize = 8;

/// Level of the spans in the side file: what is fastest without being much larger.
const SIDE_LEVEL: i32 = 1;

/// A hash of a piece of a span: BLAKE3, cut off. It tells damage, and another blob in the place of
/// the one that was indexed; that the blob is the right one its SHA-256 says.
pub(super) type Hash = [u8; 8];

/// The hash of `piece`.
pub(super) fn hash(piece: &[u8]) -> Hash {
    blake3::hash(piece).as_bytes().first_chunk().copied().unwrap_or_default()
}

#[derive(Debug, Clone)]
enum Message {
    Compressed(Arc<[u8]>),
    Plain(Arc<[u8]>),
    /// At this offset a span begins, to be kept or not. Comes before the bytes there.
    Cut {
        at: u64,
        keep: bool,
    },
}

/// The way to the threads.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    digest: SyncSender<Message>,
}

impl Spool {
    /// Hashes bytes of the compressed side.
    pub(super) fn compressed(&self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.digest.send(Message::Compressed(bytes.into())).map_err(|_| gone())
    }
}

/// A thread has ended early. Why is found when it is joined.
fn gone() -> Error {
    Error::new(Kind::Io, "a thread of the pass has ended")
}

/// What the thread that hashes found.
#[derive(Debug)]
pub(super) struct Digests {
    pub(super) compressed: [u8; 32],
    pub(super) plain: [u8; 32],
    /// Of each piece of each span.
    pub(super) hashes: Vec<Hash>,
}

/// Where the spans that were kept are in the side file: offset and length.
pub(super) type Kept = Vec<(u64, u64)>;

/// Uncompressed bytes that wait, and the threads behind.
#[derive(Debug)]
pub(super) struct Lag {
    spool: Spool,
    digest: JoinHandle<Digests>,
    pack: Option<(SyncSender<Message>, JoinHandle<Result<Kept>>)>,
    chunks: VecDeque<Arc<[u8]>>,
    /// The offset of the first byte that waits.
    base: u64,
    /// The offset of the first byte that is yet to come.
    end: u64,
}

impl Lag {
    /// Starts the threads. Spans are hashed in pieces of `piece` bytes, and kept in `side`.
    pub(super) fn new(piece: usize, same: bool, side: Option<(File, u64)>) -> Result<Self> {
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let (send, receive) = sync_channel(QUEUE);
        let digest =
            thread("digest").spawn(move || digest(&receive, piece, same)).map_err(Error::io)?;
        let pack = match side {
            Some((file, limit)) => {
                let (send, receive) = sync_channel(QUEUE);
                let pack = move || pack(&receive, &file, limit);
                Some((send, thread("pack").spawn(pack).map_err(Error::io)?))
            }
            None => None,
        };
        let spool = Spool { digest: send };
        Ok(Self { spool, digest, pack, chunks: VecDeque::new(), base: 0, end: 0 })
    }

    /// The way for compressed bytes.
    pub(super) fn spool(&self) -> Spool {
        self.spool.clone()
    }

    /// Whether spans can be kept.
    pub(super) fn keeps(&self) -> bool {
        self.pack.is_some()
    }

    /// Bytes that came so far.
    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.end += bytes.len() as u64;
            self.chunks.push_back(bytes.into());
        }
    }

    /// Says that a span begins at `at`, which still waits.
    pub(super) fn cut(&mut self, at: u64, keep: bool) -> Result<()> {
        self.send(&Message::Cut { at, keep })
    }

    fn send(&mut self, message: &Message) -> Result<()> {
        if let Some((pack, _)) = &self.pack
            && pack.send(message.clone()).is_err()
        {
            // It ended because it could not write: say that rather than anything else.
            if let Some((pack, thread)) = self.pack.take() {
                drop(pack);
                return Err(thread.join().map_err(|_| gone())?.err().unwrap_or_else(gone));
            }
        }
        self.spool.digest.send(message.clone()).map_err(|_| gone())
    }

    /// Passes on what lies before `to`, in whole chunks: no span will begin there any more.
    pub(super) fn release(&mut self, to: u64) -> Result<()> {
        while let Some(chunk) = self.chunks.front()
            && self.base + chunk.len() as u64 <= to
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.base += chunk.len() as u64;
            self.send(&Message::Plain(chunk))?;
        }
        Ok(())
    }

    /// Adds the bytes at `at`, which wait, to `into`.
    pub(super) fn copy(&self, at: u64, len: usize, into: &mut Vec<u8>) {
        let (mut skip, mut left) = (at.saturating_sub(self.base) as usize, len);
        for chunk in &self.chunks {
            let piece = chunk.get(skip..).unwrap_or_default();
            let piece = &piece[..piece.len().min(left)];
            into.extend_from_slice(piece);
            left -= piece.len();
            skip = skip.saturating_sub(chunk.len());
            if left == 0 {
                return;
            }
        }
    }

    /// Waits for the threads.
    pub(super) fn finish(mut self) -> Result<(Digests, Kept)> {
        self.release(self.end)?;
        drop(self.spool);
        let kept = match self.pack.take() {
            Some((send, thread)) => {
                drop(send);
                thread.join().map_err(|_| gone())??
            }
            None => vec![],
        };
        Ok((self.digest.join().map_err(|_| gone())?, kept))
    }
}

/// Hashes what comes. If both sides are the `same`, only one of them comes.
fn digest(messages: &Receiver<Message>, piece: usize, same: bool) -> Digests {
    let (mut compressed, mut plain) = (Sha256::new(), Sha256::new());
    let mut hashes = vec![];
    let mut pieces = Pieces { piece, partial: vec![], hashes: &mut hashes };
    let (mut at, mut cuts) = (0, VecDeque::new());
    for message in messages {
        match message {
            Message::Compressed(bytes) if !same => compressed.update(&bytes),
            Message::Compressed(_) => {}
            Message::Cut { at, .. } => cuts.push_back(at),
            Message::Plain(bytes) => {
                plain.update(&bytes);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let until = cuts.front().map_or(u64::MAX, |cut| cut - at);
                    let now = rest.len().min(usize::try_from(until).unwrap_or(usize::MAX));
                    let (these, others) = rest.split_at(now);
                    pieces.add(these);
                    at += now as u64;
                    rest = others;
                    if cuts.front() == Some(&at) {
                        cuts.pop_front();
                        pieces.end();
                    }
                }
            }
        }
    }
    pieces.end();
    let plain = plain.finalize().into();
    Digests { compressed: if same { plain } else { compressed.finalize().into() }, plain, hashes }
}

/// Cuts a span into pieces and hashes each.
struct Pieces<'a> {
    piece: usize,
    partial: Vec<u8>,
    hashes: &'a mut Vec<Hash>,
}

impl Pieces<'_> {
    fn add(&mut self, mut bytes: &[u8]) {
        if !self.partial.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(self.piece - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if self.partial.len() == self.piece {
                self.end();
            }
        }
        let whole = bytes.chunks_exact(self.piece);
        self.partial.extend_from_slice(whole.remainder());
        self.hashes.extend(whole.map(hash));
    }

    fn end(&mut self) {
        if !self.partial.is_empty() {
            self.hashes.push(hash(&self.partial));
            self.partial.clear();
        }
    }
}

/// Writes spans that are to be kept to `file`, each as a zstd frame, `limit` bytes at most.
fn pack(messages: &Receiver<Message>, file: &File, limit: u64) -> Result<Kept> {
    let mut compressor = zstd::bulk::Compressor::new(SIDE_LEVEL).map_err(Error::io)?;
    let (mut kept, mut end) = (vec![], 0);
    let mut write = |span: &mut Vec<u8>| -> Result<()> {
        if !span.is_empty() {
            let frame = compressor.compress(span).map_err(Error::io)?;
            let len = frame.len() as u64;
            if len > limit - end {
                return Err(Cause::SideFull { limit }.into());
            }
            file.write_all_at(&frame, end).map_err(Error::io)?;
            kept.push((end, len));
            end += len;
            span.clear();
        }
        Ok(())
    };
    let (mut at, mut cuts, mut keeping, mut span) = (0, VecDeque::new(), false, vec![]);
    for message in messages {
        match message {
            Message::Compressed(_) => {}
            Message::Cut { at, keep } => cuts.push_back((at, keep)),
            Message::Plain(bytes) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    if let Some(&(cut, keep)) = cuts.front()
                        && cut == at
                    {
                        cuts.pop_front();
                        write(&mut span)?;
                        keeping = keep;
                    }
                    let until = cuts.front().map_or(u64::MAX, |(cut, _)| cut - at);
                    let now = rest.len().min(usize::try_from(until).unwrap_or(usize::MAX));
                    let (these, others) = rest.split_at(now);
                    if keeping {
                        span.extend_from_slice(these);
                    }
                    at += now as u64;
                    rest = others;
                }
            }
        }
    }
    write(&mut span)?;
    Ok(kept)
}

/// An I/O error, or the error of ours that it carries.
pub(super) fn told(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(Error::io)
}
