//! Seekable decompression: a compressed blob becomes a source of its uncompressed bytes, read at
//! any place without decoding all that comes before.
//!
//! A [`Pass`] reads the blob once, from start to end. It gives the uncompressed bytes to whoever
//! wants them, checks what the format has to check, hashes both sides, and notes restart points
//! with a hash for each piece of what is between them: [`Spans`], which are small and are kept.
//! From then on [`Unpacked`] reads the blob at any place: it decodes from the restart point before,
//! and gives out nothing that does not match its hash.
//!
//! | | entered at | the pass needs |
//! |---|---|---|
//! | gzip | any symbol, with what is needed of the 32 KiB before | nothing |
//! | zstd | the start of a frame | a side file, for frames larger than a span |
//! | xz, bzip2 | | a side file |
//!
//! Blocks of xz are 8 MiB and more, and those of bzip2 slow to decode: what they hold is kept in
//! the side file, compressed anew, span by span.

mod cause;
mod entrance;
mod gzip;
mod inflate;
mod input;
mod pass;
mod spans;
mod spool;
mod unpacked;
mod zstd;

#[cfg(test)]
mod tests;

pub use super::compression::Compression;
pub use pass::{Options, Pass, Passed, Side};
pub use spans::Spans;
pub use unpacked::Unpacked;
pub(in crate::oci) use unpacked::inflate;

/// How something is compressed that begins so. What begins with no known magic is not: a tar has
/// its own elsewhere.
pub fn detect(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Bzip2,
        [a, b, c, d, ..] if zstd::is_zstd(u32::from_le_bytes([*a, *b, *c, *d])) => {
            Compression::Zstd
        }
        _ => Compression::None,
    }
}
