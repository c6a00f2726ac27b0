//! Zstandard (RFC 8878): frames one after another.
//!
//! A frame can be entered where it begins and nowhere else. Streams of many small frames
//! (zstd:chunked, pzstd, the seekable format) are read as they are; a frame of more than a span is
//! kept in the side file.

use std::io::Read;

use zstd::zstd_safe::{
    DCtx, DParameter, InBuffer, OutBuffer, get_dict_id_from_frame, get_error_name,
};

use super::cause::Cause;
use super::input::Input;
use crate::error::{Error, Kind, Result};

const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184d_2a50..=0x184d_2a5f;
/// Magic numbers of the formats before the one that stayed.
const LEGACY: [(u32, &str); 7] = [
    (0xfd2f_b51e, "0.1"),
    (0xfd2f_b522, "0.2"),
    (0xfd2f_b523, "0.3"),
    (0xfd2f_b524, "0.4"),
    (0xfd2f_b525, "0.5"),
    (0xfd2f_b526, "0.6"),
    (0xfd2f_b527, "0.7"),
];

/// The largest window: what zstd(1) takes without being asked for more, 128 MiB.
const WINDOW_LOG: u32 = 27;

/// Whether a stream that begins so is of zstd, be it one that cannot be read.
pub(super) fn is_zstd(magic: u32) -> bool {
    magic == MAGIC
        || SKIPPABLE.contains(&magic)
        || LEGACY.iter().any(|(legacy, _)| *legacy == magic)
}

/// A zstd stream under way.
pub(super) struct Zstd {
    context: DCtx<'static>,
    /// Where the frame begins that is being decoded.
    frame: Option<u64>,
    any: bool,
}

impl std::fmt::Debug for Zstd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zstd").field("frame", &self.frame).finish_non_exhaustive()
    }
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// A frame with contents begins, at this offset.
    Begin(u64),
    /// Perhaps there is output.
    Output,
    /// A frame has ended.
    End,
    /// There is nothing more.
    Done,
}

impl Zstd {
    pub(super) fn new() -> Result<Self> {
        let mut context =
            DCtx::try_create().ok_or_else(|| Error::new(Kind::Io, "no memory for zstd"))?;
        let set = context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG));
        set.map_err(|code| Error::new(Kind::Io, get_error_name(code)))?;
        Ok(Self { context, frame: None, any: false })
    }

    /// Decodes into `output[*written..]`, at most one frame.
    pub(super) fn run<R: Read>(
        &mut self,
        input: &mut Input<R>,
        output: &mut [u8],
        written: &mut usize,
    ) -> Result<Turn> {
        let Some(frame) = self.frame else { return self.begin(input) };
        let ready = input.ready()?;
        let (mut from, mut to) = (InBuffer::around(ready), OutBuffer::around_pos(output, *written));
        let is_empty = ready.is_empty();
        let result = self.context.decompress_stream(&mut to, &mut from);
        let (read, now) = (from.pos(), to.pos());
        let stuck = is_empty && now == *written;
        *written = now;
        input.used(read);
        match result {
            Ok(0) => {
                self.frame = None;
                Ok(Turn::End)
            }
            Ok(_) if stuck => Err(Cause::Cut { offset: input.offset() }.into()),
            Ok(_) => Ok(Turn::Output),
            Err(code) => Err(match get_error_name(code) {
                "Frame requires too much memory for decoding" => {
                    Cause::ZstdWindow { offset: frame, limit: 1 << WINDOW_LOG }
                }
                message => Cause::Zstd { offset: frame, message },
            }
            .into()),
        }
    }

    fn begin<R: Read>(&mut self, input: &mut Input<R>) -> Result<Turn> {
        let offset = input.offset();
        let Some(magic) = input.peek()?.map(u32::from_le_bytes) else {
            return match input.ready()?.len() {
                0 if self.any => Ok(Turn::Done),
                0 => Err(Cause::Cut { offset }.into()),
                _ if self.any => Err(Cause::ZstdMagic { offset }.into()),
                left => Err(Cause::Cut { offset: offset + left as u64 }.into()),
            };
        };
        self.any = true;
        if SKIPPABLE.contains(&magic) {
            input.used(4);
            let mut len = [0; 4];
            for byte in &mut len {
                *byte = input.byte()?;
            }
            let mut left = u32::from_le_bytes(len) as usize;
            while left > 0 {
                let now = input.ready()?.len().min(left);
                if now == 0 {
                    return Err(Cause::Cut { offset: input.offset() }.into());
                }
                input.used(now);
                left -= now;
            }
            return Ok(Turn::End);
        }
        if let Some((_, version)) = LEGACY.iter().find(|(legacy, _)| *legacy == magic) {
            return Err(Cause::ZstdLegacy { offset, version }.into());
        }
        if magic != MAGIC {
            return Err(Cause::ZstdMagic { offset }.into());
        }
        // A frame's header is 18 bytes at most.
        input.ahead(18)?;
        if let Some(id) = get_dict_id_from_frame(input.ready()?) {
            return Err(Cause::ZstdDictionary { offset, id: id.get() }.into());
        }
        self.frame = Some(offset);
        Ok(Turn::Begin(offset))
    }
}
