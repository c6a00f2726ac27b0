//! Damage at random: no panic, no wild memory, no run outside of what it may be.

use super::builder::*;
use crate::oci::tar::Reader;

/// Tars with one of everything, small.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let posix = Tar::default()
        .records(b'g', &[("comment", b"c"), ("uid", b"5")])
        .file(b"file", &[b'f'; 600])
        .records(
            b'x',
            &[
                ("path", &[b'p'; 150]),
                ("size", b"20"),
                ("mtime", b"-5.25"),
                ("SCHILY.xattr.user.a", b"value"),
                ("LIBARCHIVE.xattr.user.b", b"dmFsdWU="),
                ("SCHILY.acl.access", b"user::rwx,user:5:r--,group::r--,mask::r--,other::r--"),
            ],
        )
        .member(header(b'0', b"p", 0), &[b'x'; 20])
        .member(header(b'5', b"folder/", 0), b"")
        .member(header(b'1', b"link", 20), &[b'x'; 20])
        .member(header(b'3', b"device", 0), b"");
    let gnu = Tar::default()
        .member(gnu(b'L', b"././@LongLink", 120), &[b'l'; 120])
        .member(gnu(b'K', b"././@LongLink", 120), &[b'k'; 120])
        .member(gnu(b'2', b"link", 0), b"")
        .member(gnu(b'D', b"folder/", 10), &[0; 10])
        .member(gnu(b'V', b"volume", 0), b"");
    let mut sparse_header = super::builder::gnu(b'S', b"sparse", 600);
    {
        let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut sparse_header);
        bytes[386..][..24].copy_from_slice(b"00000000000\x0000000001000\0");
        bytes[410..][..24].copy_from_slice(b"00000010000\x0000000000020\0");
        bytes[482] = 1;
        bytes[483..][..12].copy_from_slice(b"00000100000\0");
    }
    let mut more = [0; 512];
    more[..24].copy_from_slice(b"00000020000\x0000000000110\0");
    let sparse = Tar::default()
        .member(sparse_header, &more)
        .bytes(&[b's'; 600])
        .records(b'x', &[("GNU.sparse.size", b"1000"), ("GNU.sparse.map", b"0,10,900,10")])
        .file(b"told", &[b't'; 20])
        .records(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"inline"),
                ("GNU.sparse.realsize", b"5000"),
            ],
        )
        .file(b"i", &Tar::default().bytes(b"2\n0\n10\n4000\n5\n").bytes(&[b'i'; 15]).0[..527]);
    vec![posix.end(), gnu.end(), sparse.end()]
}

/// Makes the checksums of all blocks right that look like headers.
fn seal(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}

#[test]
fn mutations() {
    let seeds = seeds();
    for seed in &seeds {
        assert!(read(seed).unwrap().len() >= 2);
    }
    let mut state = 0x2468_1357_9abc_def1_u64;
    let mut random = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % bound
    };
    let mutations = std::env::var("STRATA_MUTATIONS")
        .map_or(100_000, |number| number.parse().expect("STRATA_MUTATIONS: a number"));
    let mut whole = 0;
    for number in 0..mutations {
        let mut bytes = seeds[number % seeds.len()].clone();
        for _ in 0..1 + random(4) {
            let block = random(bytes.len() / 512) * 512;
            // A number or the type of a header, the records or the map behind it, or anywhere.
            let at = match random(4) {
                0 => block + 100 + random(60),
                1 => block + random(40),
                2 => block + 386 + random(110),
                _ => random(bytes.len()),
            };
            bytes[at] = match random(5) {
                0 => 0xff,
                1 => 0,
                2 => bytes[at] ^ 1 << random(8),
                3 => b"0123456789xgLKSD125VM\n=, "[random(25)],
                _ => random(256) as u8,
            };
        }
        match random(10) {
            0 => bytes.truncate(random(bytes.len())),
            1 => {
                let from = random(bytes.len() / 512) * 512;
                let block: Vec<u8> = bytes[from..from + 512].to_vec();
                let to = random(bytes.len() / 512) * 512;
                bytes[to..to + 512].copy_from_slice(&block);
            }
            _ => {}
        }
        if random(8) != 0 {
            seal(&mut bytes);
        }
        // As it is read whole, with its runs looked up.
        whole += usize::from(read(&bytes).is_ok());
        // As it is skipped through, which must find the same.
        let mut reader = Reader::new(bytes.as_slice());
        while let Ok(Some(entry)) = reader.next() {
            check(&entry);
        }
    }
    // Damage that is never read at all would prove nothing.
    assert!(mutations < 1000 || whole > mutations / 50, "{whole} of {mutations}");
}
