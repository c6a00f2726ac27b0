//! Compressing what is written.

use std::io::{self, Write};

use flate2::write::GzEncoder;

use crate::error::{Error, Kind, Result};
use crate::oci::Compression;

/// Compresses what it is given: the same bytes always to the same.
pub struct Encoder<W: Write>(Inner<W>);

enum Inner<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Compresses to `out`, which is written in large pieces.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for what no layer is compressed with.
    pub fn new(out: W, compression: Compression) -> Result<Self> {
        Ok(Self(match compression {
            Compression::None => Inner::Plain(out),
            // Without a time or a name in its header.
            Compression::Gzip => Inner::Gzip(GzEncoder::new(out, flate2::Compression::default())),
            Compression::Zstd => Inner::Zstd(zstd::Encoder::new(out, 0).map_err(Error::io)?),
            Compression::Xz | Compression::Bzip2 => {
                let message = format!("a layer compressed with {}", compression.name());
                return Err(Error::new(Kind::Unsupported, message));
            }
        }))
    }

    /// Ends it, and gives back what it was written to.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(self) -> Result<W> {
        match self.0 {
            Inner::Plain(out) => Ok(out),
            Inner::Gzip(out) => out.finish().map_err(Error::io),
            Inner::Zstd(out) => out.finish().map_err(Error::io),
        }
    }
}

impl<W: Write> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.0 {
            Inner::Plain(_) => Compression::None,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        };
        f.debug_tuple("Encoder").field(&name).finish()
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Plain(out) => out.write(bytes),
            Inner::Gzip(out) => out.write(bytes),
            Inner::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::Plain(out) => out.flush(),
            Inner::Gzip(out) => out.flush(),
            Inner::Zstd(out) => out.flush(),
        }
    }
}
