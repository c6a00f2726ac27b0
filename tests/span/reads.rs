//! Reads at any place of streams that no tool makes, or only sometimes.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use stratafs::block::{BlockSource, Home};
use stratafs::error::Kind;
use stratafs::oci::span::{Options, Spans};

use super::support::tool;
use super::{Rng, check, filter, pass, sample, unpacked};

/// Bits of a deflate stream, lowest first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    bits: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        self.bits |= u64::from(value) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.bits as u8);
            self.bits >>= 8;
            self.count -= 8;
        }
    }

    /// A code, whose highest bit comes first.
    fn code(&mut self, code: u32, count: u32) {
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    /// A literal, or the end of the block, or a length code, by the fixed codes.
    fn fixed(&mut self, symbol: u32) {
        match symbol {
            0..144 => self.code(0x30 + symbol, 8),
            144..256 => self.code(0x190 + symbol - 144, 9),
            256..280 => self.code(symbol - 256, 7),
            _ => self.code(0xc0 + symbol - 280, 8),
        }
    }

    fn align(&mut self) {
        self.put(0, self.count.wrapping_neg() % 8);
    }
}

/// A gzip member of these deflate bits.
fn member(mut bits: Bits, data: &[u8]) -> Vec<u8> {
    bits.align();
    let mut blob = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    blob.extend(bits.bytes);
    blob.extend(crc32fast::hash(data).to_le_bytes());
    blob.extend((data.len() as u32).to_le_bytes());
    blob
}

/// One block of fixed codes, however long: literals, and matches that reach as far as they can.
fn one_block(seed: u64, len: usize) -> (Vec<u8>, Vec<u8>) {
    let mut rng = Rng(seed);
    let (mut bits, mut data) = (Bits::default(), Vec::<u8>::new());
    bits.put(1, 1);
    bits.put(1, 2);
    while data.len() < len {
        if data.len() >= 32_768 && rng.below(3) == 0 {
            // The longest match, 258 bytes, from 32,768 or 24,577 bytes back.
            let far = if rng.below(2) == 0 { 32_768 } else { 24_577 };
            bits.fixed(285);
            bits.code(29, 5);
            bits.put(far - 24_577, 13);
            let from = data.len() - far as usize;
            data.extend_from_within(from..from + 258);
        } else if !data.is_empty() && rng.below(4) == 0 {
            // Three bytes from one to four back, over themselves.
            let far = (1 + rng.below(4) as u32).min(data.len() as u32);
            bits.fixed(257);
            bits.code(far - 1, 5);
            for _ in 0..3 {
                data.push(data[data.len() - far as usize]);
            }
        } else {
            let byte = rng.number() as u8;
            bits.fixed(u32::from(byte));
            data.push(byte);
        }
    }
    bits.fixed(256);
    let blob = member(bits, &data);
    (blob, data)
}

#[test]
fn one_giant_block() {
    let (blob, data) = one_block(1, 3_000_000);
    assert!(filter(tool("gzip", "gzip").arg("-dc"), &blob) == data, "gzip reads it, too");
    for span in [1 << 10, 20_000, 384 << 10] {
        let passed = check("giant", &blob, &data, span);
        // Where the windows would take more than the data, spans become longer.
        let enough = if span < 100_000 { 20 } else { data.len() as u64 / span };
        assert!(passed.spans.count() as u64 >= enough, "{} spans of {span}", passed.spans.count());
    }
}

#[test]
fn one_giant_block_of_literals() {
    let data = sample(2, 2_000_000);
    let mut bits = Bits::default();
    bits.put(1, 1);
    bits.put(1, 2);
    data.iter().for_each(|&byte| bits.fixed(u32::from(byte)));
    bits.fixed(256);
    let blob = member(bits, &data);
    for span in [1 << 10, 384 << 10] {
        let passed = check("literals", &blob, &data, span);
        assert!(passed.spans.count() > 4, "{} spans", passed.spans.count());
    }
}

#[test]
fn stored_blocks_and_empty_ones() {
    let data = sample(3, 1_500_000);
    let mut bits = Bits::default();
    let mut rng = Rng(5);
    let mut rest = &data[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(rng.below(65_536) as usize));
        bits.put(0, 1);
        bits.put(0, 2);
        bits.align();
        bits.put(now.len() as u32, 16);
        bits.put(!(now.len() as u32) & 0xffff, 16);
        now.iter().for_each(|&byte| bits.put(u32::from(byte), 8));
        // An empty block of fixed codes moves the next by ten bits.
        for _ in 0..rng.below(3) {
            bits.put(0, 1);
            bits.put(1, 2);
            bits.fixed(256);
        }
        rest = later;
    }
    bits.put(1, 1);
    bits.put(1, 2);
    bits.fixed(256);
    let blob = member(bits, &data);
    assert!(filter(tool("gzip", "gzip").arg("-dc"), &blob) == data, "gzip reads it, too");
    for span in [1 << 10, 30_000, 384 << 10] {
        check("stored", &blob, &data, span);
    }
}

#[test]
fn headers_with_everything_in_them() {
    let data = sample(4, 100_000);
    let plain = filter(tool("gzip", "gzip").args(["-n", "-c"]), &data);
    let mut head = vec![0x1f, 0x8b, 8, 0x1f, 1, 2, 3, 4, 0, 3];
    head.extend(60_000_u16.to_le_bytes());
    head.resize(head.len() + 60_000, b'e');
    head.extend([b'n'; 5_000]);
    head.push(0);
    head.extend(b"a comment\0");
    let crc = crc32fast::hash(&head) as u16;
    head.extend(crc.to_le_bytes());
    let blob = [&head[..], &plain[10..]].concat();
    assert!(filter(tool("gzip", "gzip").arg("-dc"), &blob) == data, "gzip reads it, too");
    let twice = [&blob[..], &blob].concat();
    check("headers", &twice, &[&data[..], &data].concat(), 20_000);
    // Its checksum is checked.
    let mut wrong = blob;
    wrong[20] ^= 1;
    assert_eq!(pass(&wrong, 1 << 20).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn any_read_of_any_stream() {
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]);
    let strategy = (
        any::<u64>(),
        0_usize..400_000,
        1_u64 << 10..100_000,
        1_u32..10,
        proptest::collection::vec((0_u64..400_000, 0_usize..100_000), 1..30),
    );
    TestRunner::new_with_rng(config, rng)
        .run(&strategy, |(seed, len, span, level, reads)| {
            let data = sample(seed, len);
            let compression = flate2::Compression::new(level);
            let mut encoder = flate2::read::GzEncoder::new(&data[..], compression);
            let mut blob = vec![];
            std::io::Read::read_to_end(&mut encoder, &mut blob).unwrap();
            let (out, passed, side) = pass(&blob, span).unwrap();
            prop_assert!(out == data);
            let source = unpacked(&blob, &passed.spans, side).unwrap();
            for (at, len) in reads {
                let at = at.min(data.len() as u64);
                let len = len.min(data.len() - at as usize);
                let mut buf = vec![0; len];
                source.read_at(at, &mut buf).unwrap();
                prop_assert!(buf == data[at as usize..at as usize + len]);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn many_threads_at_once() {
    let data = sample(12, 3_000_000);
    let blob = filter(&mut tool("gzip", "gzip"), &data);
    let (_, passed, side) = pass(&blob, 100_000).unwrap();
    let source = Arc::new(unpacked(&blob, &passed.spans, side).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (source, data) = (Arc::clone(&source), &data);
            scope.spawn(move || {
                let mut rng = Rng(thread);
                for _ in 0..300 {
                    let at = rng.below(data.len() as u64);
                    let len = rng.below(300_000).min(data.len() as u64 - at) as usize;
                    let mut buf = vec![0; len];
                    source.read_at(at, &mut buf).unwrap();
                    assert!(buf == data[at as usize..at as usize + len]);
                }
            });
        }
    });
}

#[test]
fn what_a_source_says() {
    let data = sample(13, 1_000_000);
    let blob = filter(&mut tool("gzip", "gzip"), &data);
    let (_, passed, side) = pass(&blob, 100_000).unwrap();
    let source = unpacked(&blob, &passed.spans, side).unwrap();
    assert_eq!(source.len(), 1_000_000);
    let past = source.read_at(999_999, &mut [0; 2]).unwrap_err();
    assert_eq!(past.kind(), Kind::OutOfBounds);
    source.read_at(1_000_000, &mut []).unwrap();
    let mut at = 0;
    while at < source.len() {
        let origin = source.origin_at(at).unwrap();
        assert!(origin.len > 0 && at + origin.len <= source.len());
        assert_eq!(origin.home, Home::Unknown, "memory is no file");
        at += origin.len;
    }
    assert!(!source.extent_at(5).unwrap().hole);
    assert!(source.whole_file().is_none());
}

#[test]
fn restart_points_are_small() {
    // Text, as most of a layer is not: it refers to what came before as much as anything.
    let mut rng = Rng(3);
    let words: Vec<String> = (0..20_000).map(|_| format!("{:x}", rng.below(1 << 40))).collect();
    let mut data = String::new();
    while data.len() < 8 << 20 {
        let skewed = rng.below(20_000).min(rng.below(20_000)).min(rng.below(20_000));
        data.push_str(&words[skewed as usize]);
        data.push(' ');
    }
    let blob = filter(&mut tool("gzip", "gzip"), data.as_bytes());
    let passed = check("text", &blob, data.as_bytes(), Options::SPAN);
    let raw = passed.spans.count() * 32_768;
    let kept = passed.spans.as_bytes().len();
    assert!(kept * 2 < raw, "{kept} bytes; whole windows would take {raw}");
    let again = Spans::from_bytes(passed.spans.as_bytes().to_vec()).unwrap();
    assert_eq!(again.as_bytes(), passed.spans.as_bytes());
}
