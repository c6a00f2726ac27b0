//! What a delta costs beside the file it is kept in: `cargo bench --bench delta [DIR]`.
//!
//! Each line is measured on a plain file and on a new delta, through the same calls.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a program to look at")]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stratafs::block::{BlockSink, BlockSource};
use stratafs::image::qcow2::{Delta, NewDelta};

const SIZE: u64 = 4 << 30;

trait Target: Sync {
    fn write(&self, at: u64, data: &[u8]);
    fn read(&self, at: u64, data: &mut [u8]);
    fn flush(&self);
}

impl Target for std::fs::File {
    fn write(&self, at: u64, data: &[u8]) {
        self.write_all_at(data, at).unwrap();
    }
    fn read(&self, at: u64, data: &mut [u8]) {
        self.read_exact_at(data, at).unwrap();
    }
    fn flush(&self) {
        self.sync_data().unwrap();
    }
}

impl Target for Delta {
    fn write(&self, at: u64, data: &[u8]) {
        self.write_at(at, data).unwrap();
    }
    fn read(&self, at: u64, data: &mut [u8]) {
        self.read_at(at, data).unwrap();
    }
    fn flush(&self) {
        BlockSink::flush(self).unwrap();
    }
}

/// Calls `step` with numbers from 0 on, from `threads` threads for two seconds: calls a second.
fn rate(threads: u64, step: impl Fn(u64) + Sync) -> f64 {
    let (begun, count) = (Instant::now(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begun.elapsed() < Duration::from_secs(2) {
                    step(count.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
    });
    count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

fn place(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 12 & (SIZE - 1) & !4095
}

fn measure(name: &str, target: &dyn Target) {
    let (small, large) = ([0x55; 4096], vec![0x66; 1 << 20]);
    let fresh = rate(1, |n| target.write(place(n), &small));
    target.flush();
    let begun = Instant::now();
    (0..1024).for_each(|n| target.write(n << 20, &large));
    let sequential = 1024.0 / begun.elapsed().as_secs_f64();
    target.flush();
    let inside = |n| place(n) & ((1 << 30) - 1);
    let over = rate(1, |n| target.write(inside(n), &small));
    let over4 = rate(4, |n| target.write(inside(n), &small));
    let read = rate(1, |n| target.read(inside(n), &mut [0; 4096]));
    let begun = Instant::now();
    (0..1024).for_each(|n| target.write(n << 20, &large));
    let again = 1024.0 / begun.elapsed().as_secs_f64();
    target.flush();
    let flushed = rate(1, |n| {
        target.write(inside(n), &small);
        target.flush();
    });
    let allocating = rate(1, |n| {
        target.write((2 << 30) + n % 8192 * (128 << 10), &small);
        target.flush();
    });
    println!(
        "{name:6} 4K fresh {fresh:8.0}/s  1M fresh {sequential:6.0}/s  4K over {over:8.0}/s  4 threads \
         {over4:8.0}/s  4K read {read:8.0}/s  1M over {again:6.0}/s  flushed over {flushed:6.0}/s  \
         flushed fresh {allocating:6.0}/s"
    );
}

fn main() {
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let dir = dir.unwrap_or_else(|| std::env::temp_dir().display().to_string());
    for _ in 0..2 {
        let plain = Path::new(&dir).join(format!("plain-{}.raw", std::process::id()));
        let file =
            std::fs::File::options().read(true).write(true).create_new(true).open(&plain).unwrap();
        file.set_len(SIZE).unwrap();
        measure("file", &file);
        std::fs::remove_file(&plain).unwrap();
        let path = Path::new(&dir).join(format!("delta-{}.qcow2", std::process::id()));
        Delta::create(&path, &NewDelta { size: SIZE, backing: None }).unwrap();
        let delta = Delta::open(&path, None, None).unwrap();
        measure("delta", &delta);
        let begun = Instant::now();
        drop(delta);
        let closed = begun.elapsed();
        let begun = Instant::now();
        let delta = Delta::open(&path, None, None).unwrap();
        println!("       closed in {closed:?}, opened in {:?}", begun.elapsed());
        drop(delta);
        std::fs::remove_file(&path).unwrap();
    }
}
