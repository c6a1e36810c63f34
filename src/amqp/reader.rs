//! A bounded cursor: the only code that indexes a peer's bytes. Running past the end is an error, and
//! so is what is left over where nothing may be.

use super::field_table::Table;

/// Why bytes of a peer could not be read; the session answers 502 SYNTAX_ERROR or 501 FRAME_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("it ends inside a field")]
    Truncated,
    /// Bytes are left over behind the last field.
    #[error("bytes are left over behind the last field")]
    Trailing,
    /// A field table holds a type that RabbitMQ does not know either.
    #[error("a field table holds a value of unknown type {0}")]
    UnknownType(u8),
    /// Tables are nested deeper than `limits::TABLE_DEPTH_MAX`.
    #[error("field tables are nested too deeply")]
    TooDeep,
    /// No method has this class and method number.
    #[error("class {0} has no method {1}")]
    UnknownMethod(u16, u16),
}

/// Reads AMQP's data types from a slice, front to back (AMQP 0-9-1 section 4.2.5).
pub struct Reader<'a> {
    rest: &'a [u8],
    bits: u8,
    bits_left: u8,
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, bits: 0, bits_left: 0 }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        self.bits_left = 0;
        let (head, rest) = self.rest.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.bits_left = 0;
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// An octet.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// A short, big-endian.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// A long, big-endian.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// A longlong, big-endian; timestamps as well.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// One bit; up to eight in a row share an octet, lowest first.
    pub fn bit(&mut self) -> Result<bool, DecodeError> {
        if self.bits_left == 0 {
            self.bits = self.u8()?;
            self.bits_left = 8;
        }
        let bit = self.bits & 1 == 1;
        self.bits >>= 1;
        self.bits_left -= 1;
        Ok(bit)
    }

    /// A short string: at most 255 bytes, whatever they are.
    pub fn short_str(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = self.u8()? as usize;
        self.take(n)
    }

    /// A long string: bytes with a 32-bit length.
    pub fn long_str(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = self.u32()? as usize;
        self.take(n)
    }

    /// A field table, not yet looked into.
    pub fn table(&mut self) -> Result<Table<'a>, DecodeError> {
        Ok(Table::from_raw(self.long_str()?))
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Fails when something is left.
    pub fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}
