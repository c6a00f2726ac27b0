//! How a layer or tarball is compressed, told by its type or its first bytes.

use std::io::Read;

use flate2::read::MultiGzDecoder;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, of one member or many.
    Gzip,
    /// RFC 8878, of one frame or many.
    Zstd,
    /// The `.xz` file format. No layer is of it, tarballs are.
    Xz,
    /// bzip2. No layer is of it, tarballs are.
    Bzip2,
}

impl Compression {
    /// Its name, which is also that of the program.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Xz => "xz",
            Compression::Bzip2 => "bzip2",
        }
    }

    /// The first `len` bytes of what is compressed here, or as many as there are; none for what is
    /// not decompressed here. `bytes` may be cut short.
    pub fn first(self, bytes: &[u8], len: usize) -> Vec<u8> {
        let mut first = vec![];
        let limit = len as u64;
        // An error after some bytes leaves those: that is all that is asked for.
        let _ = match self {
            Compression::None => bytes.take(limit).read_to_end(&mut first),
            Compression::Gzip => MultiGzDecoder::new(bytes).take(limit).read_to_end(&mut first),
            Compression::Zstd => {
                zstd::stream::read::Decoder::with_buffer(bytes).and_then(|mut decoder| {
                    decoder.window_log_max(27)?;
                    decoder.take(limit).read_to_end(&mut first)
                })
            }
            Compression::Xz | Compression::Bzip2 => Ok(0),
        };
        first
    }
}
