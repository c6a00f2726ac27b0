//! Every tool at every level.

use std::process::Command;

use stratafs::error::Kind;
use stratafs::oci::span::{Compression, Options, detect};

use super::support::tool;
use super::{check, filter, hex, pass, pass_with, sample, sha256};

const SPANS: [u64; 3] = [1 << 10, 50_000, 384 << 10];

fn command(program: &str, package: &str, args: &str) -> Command {
    let mut command = tool(program, package);
    command.args(args.split_whitespace());
    command
}

fn all(program: &str, package: &str, args: &[&str], how: Compression) {
    let data = sample(7, 900_000);
    let digest = sha256(&data);
    for args in args {
        let blob = filter(&mut command(program, package, args), &data);
        assert_eq!(detect(&blob), how);
        for span in SPANS {
            let passed = check(&format!("{program} {args}"), &blob, &data, span);
            assert_eq!(hex(&passed.diff_id), digest);
            assert_eq!(hex(&passed.blob), sha256(&blob));
            assert_eq!(passed.trailing, 0);
        }
    }
    for data in [&b""[..], b"x"] {
        let blob = filter(&mut command(program, package, args[0]), data);
        check(&format!("{program}, {} bytes", data.len()), &blob, data, 1 << 20);
    }
}

#[test]
fn gzip() {
    let levels: Vec<_> = (1..10).map(|level| format!("-{level} -n")).collect();
    let levels: Vec<_> = levels.iter().map(String::as_str).collect();
    all("gzip", "gzip", &levels, Compression::Gzip);
}

#[test]
fn pigz() {
    let args = ["-0", "-1", "-6", "-9", "-p4 -b128", "-i -b128", "-11 -I1"];
    all("pigz", "pigz", &args, Compression::Gzip);
}

#[test]
fn bgzip() {
    all("bgzip", "tabix", &["-c", "-c -l 0", "-c -l 9"], Compression::Gzip);
}

#[test]
fn zstd() {
    let args = ["-1", "-3", "-12", "-19", "--fast=5", "-3 --long=27", "-3 --no-check", "-T2 -B64K"];
    all("zstd", "zstd", &args, Compression::Zstd);
}

#[test]
fn pzstd() {
    let args = ["-p2", "-1 -p4", "-p1"];
    all("pzstd", "zstd", &args, Compression::Zstd);
}

#[test]
fn xz() {
    let args = [
        "-0",
        "-6",
        "-9",
        "-6 --check=none",
        "-6 --check=crc32",
        "-6 --check=sha256",
        "-3 --block-size=65536",
        "-T2 -1 --block-size=100000",
        "--x86 --lzma2=preset=3",
    ];
    all("xz", "xz-utils", &args, Compression::Xz);
}

#[test]
fn pixz() {
    all("pixz", "pixz", &["-t -1", "-t -6"], Compression::Xz);
}

#[test]
fn bzip2() {
    all("bzip2", "bzip2", &["-1", "-6", "-9"], Compression::Bzip2);
    all("lbzip2", "lbzip2", &["-1 -n2", "-9 -n2"], Compression::Bzip2);
}

#[test]
fn many_streams_are_one() {
    let (a, b) = (sample(3, 200_000), sample(4, 300_000));
    let data = [&a[..], &b, &a].concat();
    for (program, package) in
        [("gzip", "gzip"), ("zstd", "zstd"), ("xz", "xz-utils"), ("bzip2", "bzip2")]
    {
        let one = |data: &[u8]| filter(&mut command(program, package, "-c"), data);
        // With nothing in some of them.
        let blob = [one(b""), one(&a), one(b""), one(b""), one(&b), one(&a), one(b"")].concat();
        for span in SPANS {
            check(program, &blob, &data, span);
        }
    }
}

#[test]
fn small_zstd_frames_are_read_from_the_blob() {
    let data = sample(5, 2_000_000);
    let mut blob = vec![];
    for (index, piece) in data.chunks(30_000).enumerate() {
        blob.extend(filter(&mut command("zstd", "zstd", "-c"), piece));
        if index % 3 == 0 {
            // Skippable, as the tables of zstd:chunked and of the seekable format are.
            blob.extend(0x184d_2a5e_u32.to_le_bytes());
            blob.extend(1_000_u32.to_le_bytes());
            blob.resize(blob.len() + 1_000, 7);
        }
    }
    let options = Options { span: 100_000, ..Options::default() };
    let (out, passed) = pass_with(&blob, options).unwrap();
    assert!(out == data);
    assert_eq!(passed.spans.side_len(), 0);
    assert!(passed.spans.count() >= 20, "{} spans", passed.spans.count());
    check("frames", &blob, &data, 100_000);
}

#[test]
fn a_large_zstd_frame_needs_a_side_file() {
    let data = sample(6, 12_000_000);
    let blob = filter(&mut command("zstd", "zstd", "-c"), &data);
    let passed = check("one frame", &blob, &data, 384 << 10);
    assert!(passed.spans.side_len() > 0);
    let refused = pass_with(&blob, Options::default()).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsupported);
    // Small and large ones in turn.
    let small = filter(&mut command("zstd", "zstd", "-c"), &data[..100_000]);
    let mixed = [&small[..], &small, &blob, &small].concat();
    let plain = [&data[..100_000], &data[..100_000], &data, &data[..100_000]].concat();
    let passed = check("mixed", &mixed, &plain, 384 << 10);
    assert!(passed.spans.side_len() > 0);
}

#[test]
fn a_side_file_is_bounded() {
    let data = sample(8, 3_000_000);
    let blob = filter(&mut command("xz", "xz-utils", "-1"), &data);
    let file = tempfile::tempfile().unwrap();
    let side = Some(stratafs::oci::span::Side { file: file.try_clone().unwrap(), max_len: 5_000 });
    let error = pass_with(&blob, Options { side, ..Options::default() }).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert_eq!(error.hint(), Some("--layer-cache-size sets how much may be kept"));
    assert!(file.metadata().unwrap().len() <= 5_000);
}

#[test]
fn a_window_that_zstd_itself_refuses() {
    let data = sample(9, 100_000);
    let blob = filter(&mut command("zstd", "zstd", "-c --ultra -22 --long=28"), &data);
    let error = pass(&blob, 1 << 20).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &blob).unwrap();
    let theirs = command("zstd", "zstd", "-dcq").arg(file.path()).output().unwrap();
    assert!(!theirs.status.success(), "zstd takes it");
}

#[test]
fn a_bomb_is_cut_off() {
    let zeros = vec![0; 20 << 20];
    for (program, package) in
        [("gzip", "gzip"), ("zstd", "zstd"), ("xz", "xz-utils"), ("bzip2", "bzip2")]
    {
        let blob = filter(&mut command(program, package, "-9c"), &zeros);
        let side =
            stratafs::oci::span::Side { file: tempfile::tempfile().unwrap(), max_len: 1 << 30 };
        let options = Options { max_len: 1 << 20, side: Some(side), ..Options::default() };
        let error = pass_with(&blob, options).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{program}: {error}");
        check(program, &blob, &zeros, 384 << 10);
    }
}

#[test]
fn what_follows_is_ignored_where_the_tool_ignores_it() {
    let data = sample(10, 50_000);
    for (program, package) in [("gzip", "gzip"), ("bzip2", "bzip2")] {
        let blob = filter(&mut command(program, package, "-c"), &data);
        for tail in [&b"garbage"[..], &[0; 4_000], &[0x1f], b"B"] {
            let longer = [&blob, tail].concat();
            let passed = check(program, &longer, &data, 1 << 20);
            assert_eq!(passed.trailing, tail.len() as u64);
            assert_eq!(hex(&passed.blob), sha256(&longer));
        }
    }
    for (program, package) in [("zstd", "zstd"), ("xz", "xz-utils")] {
        let blob = filter(&mut command(program, package, "-c"), &data);
        let error = pass(&[&blob, &b"garbage"[..]].concat(), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{program}");
    }
    // Padding of xz streams, in fours.
    let blob = filter(&mut command("xz", "xz-utils", "-c"), &data);
    check("xz padding", &[&blob, &[0; 8][..]].concat(), &data, 1 << 20);
}
