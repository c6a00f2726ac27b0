//! The input is zstd frames, then read by the restart points that a pass over them gave.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratafs::oci::span::Compression;
use stratafs_fuzz::pass_and_read;

fuzz_target!(|data: &[u8]| pass_and_read(data, Compression::Zstd));
