//! Inflate (RFC 1951), for a decoder that can be put down and taken up at any symbol.
//!
//! Decoders in libraries can be entered where a block begins, and tell only there where they are.
//! This one tells the position of every back reference, and resumes in the middle of a block: a
//! block of a gigabyte has as many restart points as it needs, and the place for one may be
//! chosen where the stream hardly refers to what came before. What a restart point remembers is
//! the bit where the block's header begins (to read its codes again), the bit to go on at, and
//! those bytes of the last 32 KiB that will be referred to.
//!
//! No `unsafe`: the fast loop checks that input and output have room for one more turn, and the
//! compiler's own checks that are left cost little.

mod table;

use table::{CODE_LENGTHS, DISTANCES, LITERALS_AND_LENGTHS, Table};

pub(super) use table::Bad;

use super::cause::Cause;

/// The farthest that a match reaches back.
pub(super) const WINDOW: usize = 32 << 10;

/// Bytes behind the read position that [`Inflate::run`] wants to see before it reads on: a block
/// header is at most 17 + 19 × 3 + 320 × 14 bits long.
pub(super) const LOOKAHEAD: usize = 1024;

/// Room in the output for one turn of the loop: the literals and the match, and what the copy
/// writes beyond it.
const SLACK: usize = 4 + 258 + 32;

/// Output that a call can always make use of.
pub(super) const MIN_OUTPUT: usize = 2 * SLACK;

/// Why [`Inflate::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Fewer than [`LOOKAHEAD`] bytes are left.
    Input,
    /// Less than one turn of room is left.
    Output,
    /// The last block has ended: the read position is at the first byte behind it.
    End,
}

/// Is told of every back reference before it is copied.
pub(super) trait Observer {
    /// At `at` in the output, with the bit `bit` of the input, begins a match of `len` bytes
    /// `distance` back, in the block whose header is at bit `header`.
    fn matched(&mut self, header: u64, bit: u64, at: usize, distance: usize, len: usize);
}

/// Nobody wants to know.
impl Observer for () {
    #[inline(always)]
    fn matched(&mut self, _: u64, _: u64, _: usize, _: usize, _: usize) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Stored { left: u32 },
    Codes,
    Done,
}

/// A deflate stream under way.
pub(super) struct Inflate {
    state: State,
    last: bool,
    /// The bit where the header of this block begins.
    header: u64,
    literals: Box<Table<11, 4096>>,
    distances: Box<Table<8, 512>>,
    /// Fewer than 8 bits that were read and not used, and how many.
    bits: u64,
    count: u32,
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflate").field("state", &self.state).field("header", &self.header).finish()
    }
}

/// The bits of some bytes, lowest first.
struct Bits<'a> {
    input: &'a [u8],
    at: usize,
    bits: u64,
    count: u32,
}

impl Bits<'_> {
    /// Makes at least 56 bits ready. Behind the input there are zeros.
    #[inline(always)]
    fn refill(&mut self) {
        let word = match self.input.get(self.at..self.at + 8).and_then(|bytes| bytes.first_chunk())
        {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => self.last_word(),
        };
        self.bits |= word.wrapping_shl(self.count);
        self.at = self.at.wrapping_add(((63 ^ self.count) >> 3) as usize);
        self.count |= 56;
    }

    #[cold]
    fn last_word(&self) -> u64 {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(self.input.iter().skip(self.at)) {
            *to = *from;
        }
        u64::from_le_bytes(bytes)
    }

    /// The next `count` bits, at most 16, which must be ready.
    fn take(&mut self, count: u32) -> u32 {
        let value = self.bits & ((1 << count) - 1);
        self.drop(count);
        value as u32
    }

    #[inline(always)]
    fn drop(&mut self, count: u32) {
        self.bits = self.bits.wrapping_shr(count);
        self.count = self.count.wrapping_sub(count);
    }

    /// Gives back whole bytes that were not used.
    fn settle(&mut self) {
        self.at -= (self.count / 8) as usize;
        self.count %= 8;
        self.bits &= (1 << self.count) - 1;
    }

    /// The bit that comes next, counted from the start of the input.
    #[inline(always)]
    fn position(&self) -> u64 {
        (self.at as u64).wrapping_mul(8).wrapping_sub(u64::from(self.count))
    }
}

impl Inflate {
    /// A decoder at the start of a stream.
    pub(super) fn new() -> Self {
        Self {
            state: State::Header,
            last: false,
            header: 0,
            literals: Box::new(Table::new()),
            distances: Box::new(Table::new()),
            bits: 0,
            count: 0,
        }
    }

    /// Goes to the start of another stream.
    pub(super) fn restart(&mut self) {
        (self.state, self.last, self.bits, self.count) = (State::Header, false, 0, 0);
    }

    /// The bit where the header of the block begins that the next symbol belongs to.
    pub(super) fn header(&self) -> u64 {
        self.header
    }

    /// Whether the next thing is the header of a block.
    pub(super) fn is_at_header(&self) -> bool {
        self.state == State::Header
    }

    /// Whether the stream has ended.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bits of the byte before the read position that are yet to be used.
    pub(super) fn bits_left(&self) -> u32 {
        self.count
    }

    /// Reads the header of the block at bit `header`, of which `input` are the bytes from
    /// `header / 8` on, and goes to bit `bit` of that block. The next input is from
    /// `bit.div_ceil(8)` on; `byte` is the one before that.
    pub(super) fn enter(
        &mut self,
        input: &[u8],
        header: u64,
        bit: u64,
        byte: u8,
    ) -> Result<(), Cause> {
        let mut bits = Bits { input, at: 0, bits: 0, count: 0 };
        bits.refill();
        bits.drop((header % 8) as u32);
        self.restart();
        self.header = header;
        if bit != header {
            self.read_header(&mut bits)?;
            bits.settle();
            if bits.at > input.len() {
                return Err(Cause::BadRestart);
            }
            let begin = (header / 8 * 8).saturating_add(bits.position());
            let skipped = bit.checked_sub(begin).ok_or(Cause::BadRestart)?;
            if let State::Stored { left } = &mut self.state {
                let bytes = u32::try_from(skipped / 8).ok().filter(|_| skipped % 8 == 0);
                *left = bytes.and_then(|bytes| left.checked_sub(bytes)).ok_or(Cause::BadRestart)?;
            }
        }
        self.count = (bit.wrapping_neg() % 8) as u32;
        self.bits = if self.count == 0 { 0 } else { u64::from(byte) >> (8 - self.count) };
        Ok(())
    }

    /// Decodes from `input[*read..]` to `output[*written..]`. Matches reach back into
    /// `output[floor..*written]`. `base` is the offset of `input` in the whole stream, in bytes.
    ///
    /// It comes back for more input while fewer than [`LOOKAHEAD`] bytes are left. At the end of
    /// the stream the caller adds as many zeros; that it was cut shows in `*read`, which is then
    /// in them.
    pub(super) fn run(
        &mut self,
        (base, input): (u64, &[u8]),
        read: &mut usize,
        output: &mut [u8],
        written: &mut usize,
        floor: usize,
        observer: &mut impl Observer,
    ) -> Result<Stop, Cause> {
        let mut bits = Bits { input, at: *read, bits: self.bits, count: self.count };
        let result = self.blocks(base, &mut bits, output, written, floor, observer);
        bits.settle();
        (*read, self.bits, self.count) = (bits.at, bits.bits, bits.count);
        result
    }

    fn blocks(
        &mut self,
        base: u64,
        bits: &mut Bits<'_>,
        output: &mut [u8],
        written: &mut usize,
        floor: usize,
        observer: &mut impl Observer,
    ) -> Result<Stop, Cause> {
        loop {
            if bits.at + LOOKAHEAD > bits.input.len() {
                return Ok(Stop::Input);
            }
            match self.state {
                State::Header => {
                    self.header = (base * 8).wrapping_add(bits.position());
                    bits.refill();
                    self.read_header(bits)?;
                    bits.settle();
                }
                State::Stored { left } => {
                    let room = output.len().saturating_sub(*written + SLACK);
                    let ready = bits.input.len() - LOOKAHEAD - bits.at + 1;
                    let len = (left as usize).min(room).min(ready);
                    if len == 0 && left > 0 {
                        return Ok(Stop::Output);
                    }
                    output[*written..*written + len]
                        .copy_from_slice(&bits.input[bits.at..bits.at + len]);
                    *written += len;
                    bits.at += len;
                    let left = left - len as u32;
                    self.state = if left > 0 { State::Stored { left } } else { self.after_block() };
                }
                State::Codes => {
                    let stop = self.codes(base, bits, output, written, floor, observer)?;
                    bits.settle();
                    match stop {
                        Stop::End => self.state = self.after_block(),
                        Stop::Output => return Ok(Stop::Output),
                        Stop::Input => {}
                    }
                }
                State::Done => {
                    bits.settle();
                    bits.drop(bits.count);
                    return Ok(Stop::End);
                }
            }
        }
    }

    fn after_block(&self) -> State {
        if self.last { State::Done } else { State::Header }
    }

    /// Reads a block's header, of which 56 bits are ready.
    fn read_header(&mut self, bits: &mut Bits<'_>) -> Result<(), Cause> {
        self.last = bits.take(1) == 1;
        self.state = match bits.take(2) {
            0 => {
                bits.settle();
                bits.drop(bits.count);
                bits.refill();
                let (len, inverse) = (bits.take(16), bits.take(16));
                bits.settle();
                if len ^ inverse != 0xffff {
                    return Err(Cause::StoredLength { len: len as u16, inverse: inverse as u16 });
                }
                State::Stored { left: len }
            }
            1 => {
                let mut lengths = [8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                self.build(&lengths, &[5; 32])?;
                State::Codes
            }
            2 => {
                self.read_codes(bits)?;
                State::Codes
            }
            _ => return Err(Cause::BlockType),
        };
        Ok(())
    }

    /// Reads the codes of a block with its own (RFC 1951, 3.2.7).
    fn read_codes(&mut self, bits: &mut Bits<'_>) -> Result<(), Cause> {
        const ORDER: [usize; 19] =
            [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let (literals, distances) = (bits.take(5) as usize + 257, bits.take(5) as usize + 1);
        if literals > 286 || distances > 30 {
            return Err(Cause::TooManyCodes);
        }
        let used = bits.take(4) as usize + 4;
        let mut lengths = [0; 19];
        for &symbol in &ORDER[..used] {
            bits.refill();
            lengths[symbol] = bits.take(3) as u8;
        }
        let mut code = Table::<7, 128>::new();
        code.build(&lengths, &CODE_LENGTHS, false)
            .map_err(|bad| Cause::code("code lengths", bad))?;
        let mut lengths = [0_u8; 286 + 30];
        let total = literals + distances;
        let mut at = 0;
        while at < total {
            bits.refill();
            let entry = code.first(bits.bits);
            bits.drop(entry.bits());
            let (length, repeat) = match entry.literal() {
                length @ ..16 => (length, 1),
                16 if at == 0 => return Err(Cause::RepeatOfNothing),
                16 => (lengths[at - 1], 3 + bits.take(2) as usize),
                17 => (0, 3 + bits.take(3) as usize),
                _ => (0, 11 + bits.take(7) as usize),
            };
            let Some(run) = lengths[..total].get_mut(at..at + repeat) else {
                return Err(Cause::TooManyCodes);
            };
            run.fill(length);
            at += repeat;
        }
        if lengths[256] == 0 {
            return Err(Cause::NoEndOfBlock);
        }
        self.build(&lengths[..literals], &lengths[literals..total])
    }

    fn build(&mut self, literals: &[u8], distances: &[u8]) -> Result<(), Cause> {
        let bad = |what| move |bad| Cause::code(what, bad);
        self.literals.build(literals, &LITERALS_AND_LENGTHS, true).map_err(bad("literals"))?;
        self.distances.build(distances, &DISTANCES, true).map_err(bad("distances"))
    }

    /// Decodes symbols to the end of the block, of the output, or of what input is ready.
    fn codes(
        &self,
        base: u64,
        bits: &mut Bits<'_>,
        output: &mut [u8],
        written: &mut usize,
        floor: usize,
        observer: &mut impl Observer,
    ) -> Result<Stop, Cause> {
        let (literals, distances) = (&*self.literals, &*self.distances);
        let mut at = *written;
        let input_end = bits.input.len() - LOOKAHEAD;
        let output_end = output.len().saturating_sub(SLACK);
        let mut b = Bits { input: bits.input, at: bits.at, bits: bits.bits, count: bits.count };
        let stop = loop {
            if b.at > input_end {
                break Stop::Input;
            }
            if at >= output_end {
                break Stop::Output;
            }
            b.refill();
            let mut entry = literals.first(b.bits);
            if entry.is_literal() {
                b.drop(entry.bits());
                output[at] = entry.literal();
                at += 1;
                entry = literals.first(b.bits);
                if entry.is_literal() {
                    b.drop(entry.bits());
                    output[at] = entry.literal();
                    at += 1;
                    entry = literals.first(b.bits);
                    if entry.is_literal() {
                        b.drop(entry.bits());
                        output[at] = entry.literal();
                        at += 1;
                        continue;
                    }
                }
                // A match may take 48 bits.
                b.refill();
            }
            if entry.is_exception() {
                if entry.is_second() {
                    entry = literals.second(entry, b.bits);
                    if entry.is_literal() {
                        b.drop(entry.bits());
                        output[at] = entry.literal();
                        at += 1;
                        continue;
                    }
                }
                if entry.is_exception() {
                    if entry.is_end() {
                        b.drop(entry.bits());
                        break Stop::End;
                    }
                    return Err(Cause::InvalidCode("literals"));
                }
            }
            let bit = (base * 8).wrapping_add(b.position());
            let len = entry.value(b.bits) as usize;
            b.drop(entry.bits());
            let mut entry = distances.first(b.bits);
            if entry.is_exception() {
                if entry.is_second() {
                    entry = distances.second(entry, b.bits);
                }
                if entry.is_exception() {
                    return Err(Cause::InvalidCode("distances"));
                }
            }
            let distance = entry.value(b.bits) as usize;
            b.drop(entry.bits());
            if distance > at - floor {
                return Err(Cause::DistanceTooFar { distance });
            }
            observer.matched(self.header, bit, at, distance, len);
            copy_match(output, at, distance, len);
            at += len;
        };
        *written = at;
        (bits.at, bits.bits, bits.count) = (b.at, b.bits, b.count);
        Ok(stop)
    }
}

/// Copies `len` bytes from `distance` back to `at`; may write up to 32 bytes beyond.
#[inline(always)]
fn copy_match(output: &mut [u8], at: usize, distance: usize, len: usize) {
    if distance >= 16 {
        let (mut from, mut to, end) = (at - distance, at, at + len);
        loop {
            let Some(&piece) =
                output.get(from..from + 16).and_then(|piece| piece.first_chunk::<16>())
            else {
                return;
            };
            let Some(place) = output.get_mut(to..to + 16) else { return };
            place.copy_from_slice(&piece);
            from += 16;
            to += 16;
            if to >= end {
                return;
            }
        }
    } else if distance == 1 {
        let byte = output[at - 1];
        output[at..at + len].fill(byte);
    } else {
        copy_near(output, at, distance, len);
    }
}

/// Copies a match that overlaps itself within 16 bytes.
#[inline(never)]
fn copy_near(output: &mut [u8], at: usize, distance: usize, len: usize) {
    // The pattern repeated as often as fits into 16 bytes, and copied on in steps of whole patterns.
    let Some(area) = output.get_mut(at - distance..at + len) else { return };
    let (pattern, rest) = area.split_at_mut(distance);
    for chunk in rest.chunks_mut(distance) {
        chunk.copy_from_slice(&pattern[..chunk.len()]);
    }
}
