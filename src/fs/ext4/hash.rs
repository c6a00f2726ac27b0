//! The hash functions of indexed folders: legacy, half MD4 and TEA, each over signed or unsigned
//! characters (the first filesystems were made on machines that disagreed about which it is).

/// Which function, and how it takes characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    function: Function,
    unsigned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Legacy,
    HalfMd4,
    Tea,
}

impl Version {
    /// From the number in the index or the superblock; `unsigned` is what the superblock says of
    /// the numbers that do not say it themselves. `None` for a function that is not known, or
    /// needs a key.
    pub(super) fn new(number: u8, unsigned: bool) -> Option<Self> {
        let function = match number % 3 {
            0 => Function::Legacy,
            1 => Function::HalfMd4,
            _ => Function::Tea,
        };
        match number {
            0..=2 => Some(Self { function, unsigned }),
            3..=5 => Some(Self { function, unsigned: true }),
            _ => None,
        }
    }
}

/// The hash that stands for "no more entries" in positions, and is therefore never given out.
const END: u32 = 0x7fff_ffff << 1;

/// The hash of `name`, its lowest bit clear, and the minor hash.
pub(super) fn hash(version: Version, seed: &[u32; 4], name: &[u8]) -> (u32, u32) {
    let mut state = *seed;
    let (hash, minor) = match version.function {
        Function::Legacy => (legacy(name, version.unsigned), 0),
        Function::HalfMd4 => {
            for from in (0..name.len()).step_by(32) {
                half_md4(&mut state, &words(&name[from..], version.unsigned));
            }
            (state[1], state[2])
        }
        Function::Tea => {
            for from in (0..name.len()).step_by(16) {
                tea(&mut state, words(&name[from..], version.unsigned));
            }
            (state[0], state[1])
        }
    };
    let hash = hash & !1;
    (if hash == END { END - 2 } else { hash }, minor)
}

fn char(byte: u8, unsigned: bool) -> u32 {
    if unsigned { u32::from(byte) } else { i32::from(byte.cast_signed()).cast_unsigned() }
}

/// The next words of a name, padded with its remaining length.
fn words<const N: usize>(name: &[u8], unsigned: bool) -> [u32; N] {
    let len = name.len() as u32;
    let pad = len | len << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; N];
    for (word, bytes) in words.iter_mut().zip(name.chunks(4)) {
        for &byte in bytes {
            *word = char(byte, unsigned).wrapping_add(*word << 8);
        }
    }
    words
}

fn legacy(name: &[u8], unsigned: bool) -> u32 {
    let (mut newer, mut older) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
    for &byte in name {
        let mut hash = older.wrapping_add(newer ^ char(byte, unsigned).wrapping_mul(7_152_373));
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7fff_ffff);
        }
        older = newer;
        newer = hash;
    }
    newer << 1
}

fn tea(state: &mut [u32; 4], key: [u32; 4]) {
    let [mut x, mut y] = [state[0], state[1]];
    let mut sum = 0_u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        let mix = |v: u32, a: u32, b: u32| {
            (v << 4).wrapping_add(a) ^ v.wrapping_add(sum) ^ (v >> 5).wrapping_add(b)
        };
        x = x.wrapping_add(mix(y, key[0], key[1]));
        y = y.wrapping_add(mix(x, key[2], key[3]));
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

/// Three rounds of eight steps: which word each takes, and how far it rotates.
type Round = (fn(u32, u32, u32) -> u32, u32, [usize; 8], [u32; 4]);

const ROUNDS: [Round; 3] = [
    (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
    (
        |x, y, z| (x & y).wrapping_add((x ^ y) & z),
        0x5a82_7999,
        [1, 3, 5, 7, 0, 2, 4, 6],
        [3, 5, 9, 13],
    ),
    (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
];

fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (step, &word) in order.iter().enumerate() {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(words[word]).wrapping_add(constant);
            // The four variables take turns.
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (state, part) in state.iter_mut().zip([a, b, c, d]) {
        *state = state.wrapping_add(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `debugfs -R "dx_hash -h FUNCTION NAME"` of e2fsprogs 1.47 prints them.
    #[test]
    fn hashes_are_those_of_e2fsprogs() {
        let seed = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        for (number, name, major, minor) in KNOWN {
            let version = Version::new(*number, false).unwrap();
            let (hash, small) = hash(version, &seed, name);
            assert_eq!((hash, small), (*major, *minor), "{number} {}", name.escape_ascii());
        }
        assert_eq!(Version::new(1, true), Version::new(4, false));
        assert_eq!(Version::new(6, false), None);
    }

    const LONG: &[u8] = b"a_name_that_is_longer_than_thirty-two_bytes_in_all";
    const KNOWN: &[(u8, &[u8], u32, u32)] = &[
        (0, b"abc", 0x75af_d992, 0),
        (0, LONG, 0xf094_0f72, 0),
        (0, b"caf\xc3\xa9", 0x96ca_5a2c, 0),
        (1, b"abc", 0xd196_a868, 0xc420_eb28),
        (1, LONG, 0xddb2_d090, 0xded4_1c6c),
        (1, b"caf\xc3\xa9", 0xfb9c_5e5c, 0x0573_e8b8),
        (2, b"abc", 0xb143_5ec4, 0x3f7e_aa0e),
        (2, LONG, 0xe2ee_517c, 0x1321_8949),
        (2, b"caf\xc3\xa9", 0x1058_42ea, 0xfb91_65ca),
    ];
}
