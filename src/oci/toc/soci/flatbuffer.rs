//! Reading FlatBuffers, as far as a ztoc needs it: tables, vectors, strings. Every place in the
//! buffer is a claim.

use super::super::cause::Cause;

/// Bytes of a buffer, and what may still be read of it: honest ones share nothing.
#[derive(Debug)]
pub(super) struct Buffer<'a> {
    bytes: &'a [u8],
    left: std::cell::Cell<usize>,
}

/// A table: fields that may be missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    buffer: &'a Buffer<'a>,
    at: usize,
    /// Where the places of its fields are, and the bytes they take.
    fields: (usize, usize),
}

impl<'a> Buffer<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, left: std::cell::Cell::new(bytes.len()) }
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Cause> {
        let bytes = self.bytes.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.copied().ok_or(Cause::FlatBuffer(at))
    }

    fn u32(&self, at: usize) -> Result<usize, Cause> {
        Ok(u32::from_le_bytes(self.array(at)?) as usize)
    }

    /// Where the offset at `at` leads.
    fn follow(&self, at: usize) -> Result<usize, Cause> {
        at.checked_add(self.u32(at)?).ok_or(Cause::FlatBuffer(at))
    }

    fn spend(&self, at: usize, len: usize) -> Result<(), Cause> {
        let left = self.left.get().checked_sub(len).ok_or(Cause::FlatBuffer(at))?;
        self.left.set(left);
        Ok(())
    }

    /// The table that all begins with.
    pub(super) fn root(&'a self) -> Result<Table<'a>, Cause> {
        self.table(self.follow(0)?)
    }

    fn table(&'a self, at: usize) -> Result<Table<'a>, Cause> {
        let back = i64::from(i32::from_le_bytes(self.array(at)?));
        let fields = i64::try_from(at).ok().and_then(|at| at.checked_sub(back));
        let fields = fields.and_then(|fields| usize::try_from(fields).ok());
        let fields = fields.ok_or(Cause::FlatBuffer(at))?;
        let len = usize::from(u16::from_le_bytes(self.array(fields)?));
        self.spend(at, 4)?;
        Ok(Table { buffer: self, at, fields: (fields, len) })
    }

    /// The length of the vector at `at`, and where its items begin.
    fn vector(&self, at: usize, item: usize) -> Result<(usize, usize), Cause> {
        let len = self.u32(at)?;
        let size = len.checked_mul(item).ok_or(Cause::FlatBuffer(at))?;
        self.spend(at, size.saturating_add(4))?;
        match at.checked_add(4).and_then(|start| start.checked_add(size)) {
            Some(end) if end <= self.bytes.len() => Ok((len, at + 4)),
            _ => Err(Cause::FlatBuffer(at)),
        }
    }

    fn slice(&'a self, at: usize) -> Result<&'a [u8], Cause> {
        let (len, start) = self.vector(at, 1)?;
        self.bytes.get(start..start + len).ok_or(Cause::FlatBuffer(at))
    }
}

impl<'a> Table<'a> {
    /// Where the field of this number is, unless it is left out.
    fn field(&self, number: usize) -> Result<Option<usize>, Cause> {
        let (fields, len) = self.fields;
        let at = 4 + 2 * number;
        if at + 2 > len {
            return Ok(None);
        }
        match u16::from_le_bytes(self.buffer.array(fields + at)?) {
            0 => Ok(None),
            offset => Ok(Some(self.at + usize::from(offset))),
        }
    }

    fn number<const N: usize>(&self, number: usize) -> Result<[u8; N], Cause> {
        self.field(number)?.map_or(Ok([0; N]), |at| self.buffer.array(at))
    }

    pub(super) fn i8(&self, number: usize, default: i8) -> Result<i8, Cause> {
        self.field(number)?.map_or(Ok(default), |at| Ok(i8::from_le_bytes(self.buffer.array(at)?)))
    }

    pub(super) fn i32(&self, number: usize) -> Result<i32, Cause> {
        Ok(i32::from_le_bytes(self.number(number)?))
    }

    pub(super) fn u32(&self, number: usize) -> Result<u32, Cause> {
        Ok(u32::from_le_bytes(self.number(number)?))
    }

    pub(super) fn i64(&self, number: usize) -> Result<i64, Cause> {
        Ok(i64::from_le_bytes(self.number(number)?))
    }

    /// A string, or a vector of bytes.
    pub(super) fn bytes(&self, number: usize) -> Result<&'a [u8], Cause> {
        match self.field(number)? {
            Some(at) => self.buffer.slice(self.buffer.follow(at)?),
            None => Ok(&[]),
        }
    }

    pub(super) fn table(&self, number: usize) -> Result<Option<Table<'a>>, Cause> {
        let Some(at) = self.field(number)? else { return Ok(None) };
        self.buffer.table(self.buffer.follow(at)?).map(Some)
    }

    /// Where the offsets of a vector of tables or strings are.
    fn places(&self, number: usize) -> Result<impl Iterator<Item = usize> + use<'a>, Cause> {
        let (len, start) = match self.field(number)? {
            Some(at) => self.buffer.vector(self.buffer.follow(at)?, 4)?,
            None => (0, 0),
        };
        Ok((0..len).map(move |nth| start + 4 * nth))
    }

    pub(super) fn tables(
        &self,
        number: usize,
    ) -> Result<impl Iterator<Item = Result<Table<'a>, Cause>> + use<'a>, Cause> {
        let buffer = self.buffer;
        Ok(self.places(number)?.map(move |at| buffer.table(buffer.follow(at)?)))
    }

    pub(super) fn strings(
        &self,
        number: usize,
    ) -> Result<impl Iterator<Item = Result<&'a [u8], Cause>> + use<'a>, Cause> {
        let buffer = self.buffer;
        Ok(self.places(number)?.map(move |at| buffer.slice(buffer.follow(at)?)))
    }
}
