//! What restart points cost and what they give: `cargo bench --bench span BLOB [SPAN_KIB...]`.
//!
//! BLOB is a compressed tar. For each distance of restart points: the time of a pass and how much
//! memory the process had at most by then, the size of what is kept, and random reads of 4 KiB by
//! one and by two threads through a cache of 16 MiB, then a read from start to end. Times behind a
//! stroke are of the processors, which hold on a machine that has other things to do as well.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a program to look at")]

use std::fs::File;
use std::io::{BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stratafs::block::{BlockSource, Cache, FileSource};
use stratafs::oci::span::{Options, Pass, Side, Unpacked, detect};

/// Seconds that the processors spent on this process, to a hundredth.
fn spent() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Reads a second, and for each second of a processor.
fn rate(threads: u64, source: &Unpacked) -> (f64, f64) {
    let (begun, spent_before, count) = (Instant::now(), spent(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begun.elapsed() < Duration::from_secs(3) {
                    let n = count.fetch_add(1, Ordering::Relaxed);
                    let at =
                        (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (source.len() - 4096)) & !4095;
                    source.read_at(at, &mut [0; 4096]).unwrap();
                }
            });
        }
    });
    let count = count.load(Ordering::Relaxed) as f64;
    (count / begun.elapsed().as_secs_f64(), count / (spent() - spent_before))
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(blob) = args.next() else { return println!("usage: span BLOB [SPAN_KIB...]") };
    let mut spans: Vec<u64> = args.map(|kib| kib.parse().unwrap()).collect();
    if spans.is_empty() {
        spans.push(Options::SPAN >> 10);
    }
    let mut head = [0; 6];
    File::open(&blob).unwrap().read_exact(&mut head).unwrap();
    let how = detect(&head);
    println!(
        "| span KiB | pass s | MB/s | peak MiB | points | kept KiB | of blob | 4 KiB reads/s | 2 threads | read all MB/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for kib in spans {
        let side = tempfile::tempfile().unwrap();
        let keep = Side { file: side.try_clone().unwrap(), max_len: 1 << 40 };
        let options = Options { span: kib << 10, side: Some(keep), ..Options::default() };
        let (begun, spent_before) = (Instant::now(), spent());
        let mut pass = Pass::new(File::open(&blob).unwrap(), how, options).unwrap();
        loop {
            let len = pass.fill_buf().unwrap().len();
            if len == 0 {
                break;
            }
            pass.consume(len);
        }
        let passed = pass.finish().unwrap();
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), spent() - spent_before);
        let peak = peak_mib();
        let kept = passed.spans.as_bytes().len() as f64;
        let source = Arc::new(FileSource::open(std::path::Path::new(&blob)).unwrap());
        let side = Arc::new(FileSource::new(side, "side".into()).unwrap());
        let points = passed.spans.count();
        let cache = Cache::new(16 << 20);
        let source = Unpacked::new(source, Some(side), passed.spans, cache).unwrap();
        let (one, two) = (rate(1, &source), rate(2, &source));
        let (begun, spent_before) = (Instant::now(), spent());
        let mut buf = vec![0; 1 << 20];
        let mut at = 0;
        while at < source.len() {
            let len = (source.len() - at).min(buf.len() as u64) as usize;
            source.read_at(at, &mut buf[..len]).unwrap();
            at += len as u64;
        }
        println!(
            "| {kib} | {seconds:.2} / {cpu:.2} | {:.0} | {peak} | {points} | {:.0} | {:.2} % | {:.0} / {:.0} | {:.0} | {:.0} / {:.0} |",
            passed.len as f64 / 1e6 / seconds,
            kept / 1024.0,
            100.0 * kept / passed.blob_len as f64,
            one.0,
            one.1,
            two.0,
            passed.len as f64 / 1e6 / begun.elapsed().as_secs_f64(),
            passed.len as f64 / 1e6 / (spent() - spent_before),
        );
    }
}
