//! Seekable decompression beside the tools that compress: what a pass gives is what was put in,
//! and so is every read at any place.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod damage;
mod reads;
mod tools;

use std::io::{BufRead, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use stratafs::block::{BlockSource, Cache, FileSource, MemorySource};
use stratafs::error::{Error, Result};
use stratafs::oci::span::{Options, Pass, Passed, Side, Spans, Unpacked, detect};

/// Numbers that look random, from a seed.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit.max(1)
    }
}

/// Bytes as files have them: text of few words, copies from near and far, runs, and noise.
pub(crate) fn sample(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut data: Vec<u8> = Vec::with_capacity(len + 70_000);
    while data.len() < len {
        match rng.below(10) {
            0 => {
                for _ in 0..rng.below(6_000) {
                    data.push(rng.number() as u8);
                }
            }
            1 => data.resize(data.len() + rng.below(5_000) as usize, rng.number() as u8),
            2..5 if !data.is_empty() => {
                // At times exactly as far as a match may reach, or just beyond.
                let far = [32_768, 32_767, 32_769, 1 + rng.below(40_000)][rng.below(4) as usize];
                let from = data.len().saturating_sub(far as usize);
                let end = (from + rng.below(3_000) as usize).min(data.len());
                data.extend_from_within(from..end);
            }
            _ => {
                for _ in 0..rng.below(400) {
                    let word = rng.below(300);
                    data.extend(format!("{:x}{} ", word * 7919, word % 13).bytes());
                }
            }
        }
    }
    data.truncate(len);
    data
}

/// What a tool makes of `data` between its standard input and output.
#[track_caller]
pub(crate) fn filter(command: &mut Command, data: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(data).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{command:?}: {}", output.status);
    output.stdout
}

/// A pass over `blob`: what came out, and what is known then; with the side file.
pub(crate) fn pass(blob: &[u8], span: u64) -> Result<(Vec<u8>, Passed, std::fs::File)> {
    let side = tempfile::tempfile().unwrap();
    let keep = Side { file: side.try_clone().unwrap(), max_len: 1 << 30 };
    let options = Options { span, max_len: 1 << 30, side: Some(keep), ..Options::default() };
    let (data, passed) = pass_with(blob, options)?;
    Ok((data, passed, side))
}

pub(crate) fn pass_with(blob: &[u8], options: Options) -> Result<(Vec<u8>, Passed)> {
    let mut pass = Pass::new(blob, detect(blob), options)?;
    let mut data = vec![];
    loop {
        let ready = pass.fill_buf().map_err(|error| error.downcast::<Error>().unwrap())?;
        if ready.is_empty() {
            return Ok((data, pass.finish()?));
        }
        // Not all at once.
        let now = ready.len().min(70_001);
        data.extend_from_slice(&ready[..now]);
        pass.consume(now);
    }
}

/// The source over `blob`, by restart points that went through a file.
pub(crate) fn unpacked(blob: &[u8], spans: &Spans, side: std::fs::File) -> Result<Unpacked> {
    let spans = Spans::from_bytes(spans.as_bytes().to_vec())?;
    let side = Arc::new(FileSource::new(side, "side".into())?);
    Unpacked::new(
        Arc::new(MemorySource::new(blob.to_vec())),
        Some(side),
        spans,
        Cache::new(1 << 24),
    )
}

/// Passes over `blob` and reads it at random places: all must be `data`.
#[track_caller]
pub(crate) fn check(name: &str, blob: &[u8], data: &[u8], span: u64) -> Passed {
    let (out, passed, side) = pass(blob, span).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(out == data, "{name}: {} bytes came out, {} went in", out.len(), data.len());
    assert_eq!(passed.len, data.len() as u64, "{name}");
    assert_eq!(passed.blob_len, blob.len() as u64, "{name}");
    let source = unpacked(blob, &passed.spans, side).unwrap();
    let mut rng = Rng(span ^ data.len() as u64);
    let mut buf = vec![];
    for round in 0..60 {
        let len = match round % 4 {
            0 => rng.below(10),
            1 => rng.below(5_000),
            2 => rng.below(70_000),
            _ => rng.below(400_000),
        };
        let at = rng.below(data.len() as u64 + 1);
        let len = len.min(data.len() as u64 - at) as usize;
        buf.clear();
        buf.resize(len, 0xa5);
        source
            .read_at(at, &mut buf)
            .unwrap_or_else(|error| panic!("{name}, span {span}: {len} at {at}: {error}"));
        assert!(buf == data[at as usize..at as usize + len], "{name}, span {span}: {len} at {at}");
    }
    let mut whole = vec![0; data.len()];
    source.read_at(0, &mut whole).unwrap();
    assert!(whole == data, "{name}, span {span}: all at once");
    passed
}

/// SHA-256 by someone else.
pub(crate) fn sha256(data: &[u8]) -> String {
    let out = filter(&mut support::tool("sha256sum", "coreutils"), data);
    String::from_utf8(out).unwrap().split_whitespace().next().unwrap().to_owned()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_not_compressed() {
    let data = sample(1, 300_000);
    let passed = check("plain", &data, &data, 10_000);
    assert_eq!(hex(&passed.blob), sha256(&data));
    assert_eq!(passed.blob, passed.diff_id);
    check("plain", b"", b"", 10_000);
}

#[test]
fn reads_as_a_stream_too() {
    let data = sample(2, 500_000);
    let blob = filter(&mut support::tool("gzip", "gzip"), &data);
    let mut pass = Pass::new(&blob[..], detect(&blob), Options::default()).unwrap();
    let mut half = vec![0; 250_000];
    pass.read_exact(&mut half).unwrap();
    assert!(half == data[..250_000]);
    // The rest need not be read by anybody.
    let passed = pass.finish().unwrap();
    assert_eq!(hex(&passed.diff_id), sha256(&data));
    assert_eq!(hex(&passed.blob), sha256(&blob));
}
