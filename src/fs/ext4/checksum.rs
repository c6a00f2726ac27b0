//! The two checksums of the format: CRC-32C without the final inversion, and CRC-16/ANSI.

use crc::{CRC_16_MODBUS, CRC_32_MPEG_2, Crc, Table};

/// CRC-32C carried on from `seed` over `bytes`, not inverted at the end: the seed of the next.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

static CRC16: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&CRC_16_MODBUS);

/// The CRC-16 of group descriptors from before `metadata_csum`, over the concatenated `parts`.
pub(super) fn crc16(parts: &[&[u8]]) -> u16 {
    let mut digest = CRC16.digest();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}

static CRC32_BE: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_MPEG_2);

/// The big-endian CRC-32 over whole transactions of a journal with the `checksum` feature.
pub(super) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32_BE.digest_with_initial(seed);
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(crc32c(!0, b"123456789"), !0xe306_9283);
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), !0xe306_9283);
        assert_eq!(crc16(&[b"1234", b"56789"]), 0x4b37);
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_e6e7);
        assert_eq!(crc32_be(crc32_be(!0, b"1234"), b"56789"), 0x0376_e6e7);
    }
}
