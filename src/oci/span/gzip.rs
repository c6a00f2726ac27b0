//! Gzip (RFC 1952): members one after another, each a deflate stream with a header and a trailer.
//!
//! As with gzip(1), what follows the last member and is not a member is ignored, be it zeros or
//! anything else.

use std::io::Read;

use crc32fast::Hasher;

use super::cause::Cause;
use super::inflate::{Inflate, LOOKAHEAD, Observer, Stop};
use super::input::Input;
use crate::error::Result;

pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];

const HEADER_CRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Body,
    Trailer,
    End,
}

/// A gzip stream under way.
#[derive(Debug)]
pub(super) struct Gzip {
    place: Place,
    first: bool,
    inflate: Inflate,
    /// CRC and length of the member so far, if they are to be checked.
    check: Option<(Hasher, u32)>,
}

/// A place in a gzip stream where decoding can be taken up: within deflate, at bit `bit`, in the
/// block whose header is at bit `header`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entrance {
    pub(super) header: u64,
    pub(super) bit: u64,
}

impl Gzip {
    /// A stream from its start, whose checksums are verified.
    pub(super) fn new() -> Self {
        let check = Some((Hasher::new(), 0));
        Self { place: Place::Header, first: true, inflate: Inflate::new(), check }
    }

    /// A stream taken up by `inflate`, whose checksums are not verified.
    pub(super) fn resume(inflate: Inflate) -> Self {
        Self { place: Place::Body, first: false, inflate, check: None }
    }

    /// Decodes into `output[*written..]` for as long as there is room for a turn; what comes out
    /// before `*written` reaches back at most to `*floor`, which the start of a member moves.
    /// Returns whether there may be more.
    pub(super) fn run<R: Read>(
        &mut self,
        input: &mut Input<R>,
        output: &mut [u8],
        written: &mut usize,
        floor: &mut usize,
        observer: &mut impl Observer,
    ) -> Result<bool> {
        match self.place {
            Place::Header => {
                if input.peek()? != Some(MAGIC) {
                    if self.first {
                        return Err(Cause::GzipMagic { offset: input.offset() }.into());
                    }
                    self.place = Place::End;
                    return Ok(false);
                }
                read_header(input)?;
                self.first = false;
                self.inflate.restart();
                *floor = *written;
                self.place = Place::Body;
            }
            Place::Body => {
                input.ahead(LOOKAHEAD)?;
                let begin = *written;
                let (base, bytes, read) = input.window();
                let stop =
                    self.inflate.run((base, bytes), read, output, written, *floor, observer)?;
                input.check()?;
                if let (Some((crc, len)), Some(new)) =
                    (&mut self.check, output.get(begin..*written))
                {
                    crc.update(new);
                    *len = len.wrapping_add(new.len() as u32);
                }
                match stop {
                    Stop::End => self.place = Place::Trailer,
                    Stop::Input if input.is_ended() => {
                        return Err(Cause::Cut { offset: input.offset() }.into());
                    }
                    Stop::Input | Stop::Output => {}
                }
            }
            Place::Trailer => {
                let offset = input.offset();
                let mut fields = [0; 8];
                for byte in &mut fields {
                    *byte = input.byte()?;
                }
                let [a, b, c, d, e, f, g, h] = fields;
                let (expected_crc, expected) =
                    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
                if let Some((crc, len)) = &mut self.check {
                    let (crc, found) = (std::mem::take(crc).finalize(), std::mem::take(len));
                    if crc != expected_crc {
                        let expected = expected_crc;
                        return Err(Cause::GzipCrc { offset, found: crc, expected }.into());
                    }
                    if found != expected {
                        return Err(Cause::GzipLength { offset, found, expected }.into());
                    }
                }
                self.place = Place::Header;
            }
            Place::End => return Ok(false),
        }
        Ok(true)
    }

    /// Where decoding could be taken up now, if it could be.
    pub(super) fn place<R: Read>(&self, input: &Input<R>) -> Option<Entrance> {
        let bit = input.offset() * 8 - u64::from(self.inflate.bits_left());
        match self.place {
            Place::Body if self.inflate.is_at_header() => Some(Entrance { header: bit, bit }),
            Place::Body if !self.inflate.is_done() => {
                Some(Entrance { header: self.inflate.header(), bit })
            }
            _ => None,
        }
    }
}

/// Goes past the header of a member.
fn read_header<R: Read>(input: &mut Input<R>) -> Result<()> {
    let offset = input.offset();
    let mut crc = Hasher::new();
    let mut byte = || -> Result<u8> {
        let byte = input.byte()?;
        crc.update(&[byte]);
        Ok(byte)
    };
    // The magic has been seen.
    byte()?;
    byte()?;
    let (method, flags) = (byte()?, byte()?);
    if method != 8 {
        return Err(Cause::GzipMethod { offset, method }.into());
    }
    if flags & RESERVED != 0 {
        return Err(Cause::GzipFlags { offset, flags }.into());
    }
    // Time, level, system.
    for _ in 0..6 {
        byte()?;
    }
    if flags & EXTRA != 0 {
        let len = u16::from_le_bytes([byte()?, byte()?]);
        for _ in 0..len {
            byte()?;
        }
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            while byte()? != 0 {}
        }
    }
    if flags & HEADER_CRC != 0 {
        let found = crc.finalize() as u16;
        let expected = u16::from_le_bytes([input.byte()?, input.byte()?]);
        if found != expected {
            return Err(Cause::GzipHeaderCrc { offset }.into());
        }
    }
    Ok(())
}
