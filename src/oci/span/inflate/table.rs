//! Huffman codes as look-up tables.
//!
//! A table is indexed by the next bits of the stream. A code longer than the index leads to a
//! second table, behind the first. Each entry says all that is done with a symbol, so that the
//! loop looks up once and branches little.

/// One entry of a table.
///
/// | bits | of a literal, length or distance | of a second table |
/// |---|---|---|
/// | 0–7 | bits to drop: the code with its extra bits | those that index the first table |
/// | 8–11 | bits of the code | bits that index the second |
/// | 12–15 | what it is | what it is |
/// | 16–31 | the literal, or the base of the length or distance | where the second begins |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u32);

const LITERAL: u32 = 1 << 15;
const EXCEPTION: u32 = 1 << 14;
const SECOND: u32 = 1 << 13;
const END: u32 = 1 << 12;

impl Entry {
    /// What no code leads to.
    const INVALID: Self = Self(EXCEPTION);

    /// Bits to drop.
    pub(super) fn bits(self) -> u32 {
        self.0 & 0xff
    }

    pub(super) fn is_literal(self) -> bool {
        self.0 & LITERAL != 0
    }

    /// Neither a literal nor a length or distance.
    pub(super) fn is_exception(self) -> bool {
        self.0 & EXCEPTION != 0
    }

    pub(super) fn is_end(self) -> bool {
        self.0 & END != 0
    }

    /// Whether a second table has to be asked.
    pub(super) fn is_second(self) -> bool {
        self.0 & SECOND != 0
    }

    pub(super) fn literal(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The length or distance whose code and extra bits are the lowest of `bits`.
    pub(super) fn value(self, bits: u64) -> u32 {
        let extra = (bits & (1_u64.wrapping_shl(self.bits()) - 1)) >> (self.0 >> 8 & 15);
        (self.0 >> 16).wrapping_add(extra as u32)
    }

    /// The index of the entry that `bits` lead to in the second table.
    fn second(self, bits: u64) -> usize {
        let mask = (1 << (self.0 >> 8 & 15)) - 1;
        (self.0 >> 16) as usize + (bits >> self.bits() & mask) as usize
    }
}

/// What a symbol means, but for the bits of its code.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meaning {
    flags: u32,
    base: u16,
    extra: u8,
}

impl Meaning {
    const INVALID: Self = Self { flags: EXCEPTION, base: 0, extra: 0 };

    const fn literal(byte: u8) -> Self {
        Self { flags: LITERAL, base: byte as u16, extra: 0 }
    }

    const fn entry(self, code: u8) -> Entry {
        let bits = (code + self.extra) as u32;
        Entry((self.base as u32) << 16 | self.flags | (code as u32) << 8 | bits)
    }
}

/// Literals, the end of the block, and lengths (RFC 1951, 3.2.5).
pub(super) static LITERALS_AND_LENGTHS: [Meaning; 288] = {
    let mut all = [Meaning::INVALID; 288];
    let mut symbol = 0;
    while symbol < 256 {
        all[symbol] = Meaning::literal(symbol as u8);
        symbol += 1;
    }
    all[256] = Meaning { flags: EXCEPTION | END, base: 0, extra: 0 };
    let mut base = 3;
    symbol = 257;
    while symbol < 285 {
        let extra = if symbol < 265 { 0 } else { (symbol - 261) / 4 };
        all[symbol] = Meaning { flags: 0, base, extra: extra as u8 };
        base += 1 << extra;
        symbol += 1;
    }
    all[285] = Meaning { flags: 0, base: 258, extra: 0 };
    all
};

/// Distances.
pub(super) static DISTANCES: [Meaning; 32] = {
    let mut all = [Meaning::INVALID; 32];
    let mut base: u32 = 1;
    let mut symbol = 0;
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { (symbol - 2) / 2 };
        all[symbol] = Meaning { flags: 0, base: base as u16, extra: extra as u8 };
        base += 1 << extra;
        symbol += 1;
    }
    all
};

/// The lengths of code lengths.
pub(super) static CODE_LENGTHS: [Meaning; 19] = {
    let mut all = [Meaning::INVALID; 19];
    let mut symbol = 0;
    while symbol < 19 {
        all[symbol] = Meaning::literal(symbol as u8);
        symbol += 1;
    }
    all
};

/// A table whose first part is indexed by `BITS` bits; `SIZE` is a power of two that holds both.
#[derive(Clone)]
pub(super) struct Table<const BITS: u32, const SIZE: usize> {
    entries: Box<[Entry; SIZE]>,
}

/// Why lengths are no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Bad {
    /// More codes than there are.
    Oversubscribed,
    /// Some bits lead nowhere.
    Incomplete,
}

impl<const BITS: u32, const SIZE: usize> Table<BITS, SIZE> {
    pub(super) fn new() -> Self {
        Self { entries: Box::new([Entry::INVALID; SIZE]) }
    }

    /// The entry that the lowest of `bits` lead to.
    #[inline(always)]
    pub(super) fn first(&self, bits: u64) -> Entry {
        self.entries[(bits & ((1 << BITS) - 1)) as usize & (SIZE - 1)]
    }

    /// The entry of the second table that `first` leads to.
    #[inline(always)]
    pub(super) fn second(&self, first: Entry, bits: u64) -> Entry {
        self.entries[first.second(bits) & (SIZE - 1)]
    }

    /// Makes the table of the code whose symbols have these lengths, 0 to 15; 0 has no code.
    ///
    /// As in zlib, a code may be incomplete only if it is one symbol of one bit, or, for distances
    /// (`may_be_empty`), nothing at all.
    pub(super) fn build(
        &mut self,
        lengths: &[u8],
        meanings: &[Meaning],
        may_be_single: bool,
    ) -> Result<(), Bad> {
        let mut count = [0_u16; 16];
        for &length in lengths {
            count[usize::from(length & 15)] += 1;
        }
        let longest = (1..16).rev().find(|&length| count[length] > 0).unwrap_or(0);
        count[0] = 0;
        let mut left = 1_i32;
        for &codes in &count[1..] {
            left = (left << 1) - i32::from(codes);
            if left < 0 {
                return Err(Bad::Oversubscribed);
            }
        }
        if left > 0 && !(may_be_single && longest <= 1) {
            return Err(Bad::Incomplete);
        }
        if left > 0 {
            self.entries[..1 << BITS].fill(Entry::INVALID);
        }
        let mut sorted = [0_u16; 288];
        let mut next = [0_u16; 17];
        for length in 1..16 {
            next[length + 1] = next[length] + count[length];
        }
        for (symbol, &length) in lengths.iter().enumerate() {
            if length > 0 {
                let at = &mut next[usize::from(length & 15)];
                sorted[usize::from(*at)] = symbol as u16;
                *at += 1;
            }
        }
        // Codes in order; `code` has its first bit lowest, as the stream has it.
        let mut symbols =
            sorted.iter().map(|&symbol| meanings[usize::from(symbol) % meanings.len()]);
        let mut code = 0_u32;
        let mut end = 1_usize << BITS;
        let mut prefix = u32::MAX;
        let (mut start, mut second_bits) = (0, 0);
        for length in 1..=longest as u32 {
            for done in 0..count[length as usize] {
                let Some(meaning) = symbols.next() else { break };
                let entry = meaning.entry(length as u8);
                if length <= BITS {
                    let mut at = code as usize;
                    while at < 1 << BITS {
                        self.entries[at & (SIZE - 1)] = entry;
                        at += 1 << length;
                    }
                } else {
                    let this = code & ((1 << BITS) - 1);
                    if this != prefix {
                        prefix = this;
                        start = end;
                        // As many bits as the codes of this prefix need: they come in order, so
                        // the table is full with the length at which no code is left.
                        second_bits = length - BITS;
                        let mut room =
                            (1_i32 << second_bits) - i32::from(count[length as usize] - done);
                        while room > 0 && second_bits + BITS < longest as u32 {
                            second_bits += 1;
                            room = (room << 1) - i32::from(count[(second_bits + BITS) as usize]);
                        }
                        end += 1 << second_bits;
                        let lead =
                            (start as u32) << 16 | EXCEPTION | SECOND | second_bits << 8 | BITS;
                        self.entries[this as usize & (SIZE - 1)] = Entry(lead);
                    }
                    let mut at = (code >> BITS) as usize;
                    while at < 1 << second_bits {
                        self.entries[(start + at) & (SIZE - 1)] = entry;
                        at += 1 << (length - BITS);
                    }
                }
                // The next code: add one to a number whose highest bit is the lowest.
                let mut bit = 1 << (length - 1);
                while code & bit != 0 {
                    code ^= bit;
                    bit >>= 1;
                }
                code |= bit;
            }
        }
        Ok(())
    }
}
