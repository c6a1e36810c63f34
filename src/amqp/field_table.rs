//! Field tables and arrays (AMQP 0-9-1 section 4.2.5.5, with RabbitMQ's type tags), read lazily from
//! the bytes the peer sent and never copied. Nesting is bounded by `limits::TABLE_DEPTH_MAX`.

use super::reader::{DecodeError, Reader};
use crate::limits::TABLE_DEPTH_MAX;

/// A table's bytes without their length; entries are decoded as they are asked for.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Table<'a>(&'a [u8]);

/// An array's bytes without their length.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Array<'a>(&'a [u8]);

/// One value. Tags as RabbitMQ reads them, which differ from the specification's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `t`
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l` and `L`
    I64(i64),
    /// `f`
    F32(f32),
    /// `d`
    F64(f64),
    /// `D`: scale, then the unscaled value
    Decimal(u8, u32),
    /// `S`: bytes, mostly UTF-8
    LongStr(&'a [u8]),
    /// `x`
    Bytes(&'a [u8]),
    /// `T`: seconds since 1970
    Timestamp(u64),
    /// `F`
    Table(Table<'a>),
    /// `A`
    Array(Array<'a>),
    /// `V`
    Void,
}

impl<'a> Table<'a> {
    /// Wraps a table's bytes, its 32-bit length left out.
    pub const fn from_raw(raw: &'a [u8]) -> Table<'a> {
        Table(raw)
    }

    /// The bytes, without the length.
    pub fn raw(self) -> &'a [u8] {
        self.0
    }

    /// Whether it has no entry.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Its entries in the order they were written; ends after the first error.
    pub fn iter(self) -> TableIter<'a> {
        TableIter { reader: Reader::new(self.0), failed: false }
    }

    /// The first value of that name, if the table can be read up to it.
    pub fn find(self, name: &[u8]) -> Option<Value<'a>> {
        self.iter().map_while(Result::ok).find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// Reads all of it, nested values included.
    pub fn validate(self) -> Result<(), DecodeError> {
        self.validate_seeing(|_, _| ())
    }

    /// The same, and shows each entry on the way, so that who looks for some names needs no second walk.
    pub fn validate_seeing(self, mut see: impl FnMut(&'a [u8], Value<'a>)) -> Result<(), DecodeError> {
        self.iter().try_for_each(|entry| {
            let (name, value) = entry?;
            see(name, value);
            validate_value(value, 0)
        })
    }
}

fn validate_table(table: Table<'_>, depth: usize) -> Result<(), DecodeError> {
    if depth >= TABLE_DEPTH_MAX {
        return Err(DecodeError::TooDeep);
    }
    table.iter().try_for_each(|entry| validate_value(entry?.1, depth))
}

fn validate_value(value: Value<'_>, depth: usize) -> Result<(), DecodeError> {
    match value {
        Value::Table(table) => validate_table(table, depth + 1),
        Value::Array(_) if depth + 1 >= TABLE_DEPTH_MAX => Err(DecodeError::TooDeep),
        Value::Array(array) => array.iter().try_for_each(|item| validate_value(item?, depth + 1)),
        Value::Bool(_) | Value::I8(_) | Value::U8(_) | Value::I16(_) | Value::U16(_) => Ok(()),
        Value::I32(_) | Value::U32(_) | Value::I64(_) | Value::F32(_) | Value::F64(_) => Ok(()),
        Value::Decimal(..) | Value::LongStr(_) | Value::Bytes(_) | Value::Timestamp(_) | Value::Void => {
            Ok(())
        }
    }
}

impl std::fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Lengths only: tables hold header values, which must not reach a log.
        write!(f, "Table({} bytes)", self.0.len())
    }
}

impl std::fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({} bytes)", self.0.len())
    }
}

/// Iterates over a table's entries.
pub struct TableIter<'a> {
    reader: Reader<'a>,
    failed: bool,
}

impl<'a> Iterator for TableIter<'a> {
    type Item = Result<(&'a [u8], Value<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.is_empty() {
            return None;
        }
        let entry = self.reader.short_str().and_then(|key| Ok((key, value(&mut self.reader)?)));
        self.failed = entry.is_err();
        Some(entry)
    }
}

impl<'a> Array<'a> {
    /// Wraps an array's bytes, its 32-bit length left out.
    pub fn from_raw(raw: &'a [u8]) -> Array<'a> {
        Array(raw)
    }

    /// The bytes, without the length.
    pub fn raw(self) -> &'a [u8] {
        self.0
    }

    /// Its items; ends after the first error.
    pub fn iter(self) -> ArrayIter<'a> {
        ArrayIter { reader: Reader::new(self.0), failed: false }
    }
}

/// Iterates over an array's items.
pub struct ArrayIter<'a> {
    reader: Reader<'a>,
    failed: bool,
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Result<Value<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.is_empty() {
            return None;
        }
        let item = value(&mut self.reader);
        self.failed = item.is_err();
        Some(item)
    }
}

fn value<'a>(r: &mut Reader<'a>) -> Result<Value<'a>, DecodeError> {
    Ok(match r.u8()? {
        b't' => Value::Bool(r.u8()? != 0),
        b'b' => Value::I8(r.u8()? as i8),
        b'B' => Value::U8(r.u8()?),
        b's' => Value::I16(r.u16()? as i16),
        b'u' => Value::U16(r.u16()?),
        b'I' => Value::I32(r.u32()? as i32),
        b'i' => Value::U32(r.u32()?),
        b'l' | b'L' => Value::I64(r.u64()? as i64),
        b'f' => Value::F32(f32::from_bits(r.u32()?)),
        b'd' => Value::F64(f64::from_bits(r.u64()?)),
        b'D' => Value::Decimal(r.u8()?, r.u32()?),
        b'S' => Value::LongStr(r.long_str()?),
        b'x' => Value::Bytes(r.long_str()?),
        b'T' => Value::Timestamp(r.u64()?),
        b'F' => Value::Table(Table(r.long_str()?)),
        b'A' => Value::Array(Array(r.long_str()?)),
        b'V' => Value::Void,
        tag => return Err(DecodeError::UnknownType(tag)),
    })
}

/// Builds a table or an array, entry by entry.
#[derive(Default, Clone, Debug)]
pub struct TableWriter(Vec<u8>);

impl TableWriter {
    /// An empty table.
    pub fn new() -> TableWriter {
        TableWriter::default()
    }

    /// Adds an entry; a name longer than 255 bytes is cut.
    pub fn entry(self, name: &str, value: Value<'_>) -> TableWriter {
        self.raw_entry(name.as_bytes(), value)
    }

    /// The same for a name that need not be UTF-8, as names of clients.
    pub fn raw_entry(mut self, name: &[u8], value: Value<'_>) -> TableWriter {
        let name = &name[..name.len().min(255)];
        self.0.push(name.len() as u8);
        self.0.extend_from_slice(name);
        self.item(value)
    }

    /// Adds a value without a name, as arrays hold them.
    pub fn item(mut self, value: Value<'_>) -> TableWriter {
        write_value(&mut self.0, value);
        self
    }

    /// What was built, as a table.
    pub fn as_table(&self) -> Table<'_> {
        Table(&self.0)
    }

    /// What was built, as an array.
    pub fn as_array(&self) -> Array<'_> {
        Array(&self.0)
    }
}

fn write_value(out: &mut Vec<u8>, value: Value<'_>) {
    let mut tagged = |tag: u8, bytes: &[u8]| {
        out.push(tag);
        out.extend_from_slice(bytes);
    };
    match value {
        Value::Bool(v) => tagged(b't', &[v as u8]),
        Value::I8(v) => tagged(b'b', &v.to_be_bytes()),
        Value::U8(v) => tagged(b'B', &[v]),
        Value::I16(v) => tagged(b's', &v.to_be_bytes()),
        Value::U16(v) => tagged(b'u', &v.to_be_bytes()),
        Value::I32(v) => tagged(b'I', &v.to_be_bytes()),
        Value::U32(v) => tagged(b'i', &v.to_be_bytes()),
        Value::I64(v) => tagged(b'l', &v.to_be_bytes()),
        Value::F32(v) => tagged(b'f', &v.to_be_bytes()),
        Value::F64(v) => tagged(b'd', &v.to_be_bytes()),
        Value::Decimal(scale, v) => {
            tagged(b'D', &[scale]);
            out.extend_from_slice(&v.to_be_bytes());
        }
        Value::Timestamp(v) => tagged(b'T', &v.to_be_bytes()),
        Value::Void => tagged(b'V', &[]),
        Value::LongStr(v) => long(out, b'S', v),
        Value::Bytes(v) => long(out, b'x', v),
        Value::Table(v) => long(out, b'F', v.0),
        Value::Array(v) => long(out, b'A', v.0),
    }
}

fn long(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_comes_back_as_it_was_written() {
        let inner = TableWriter::new().entry("k", Value::LongStr(b"v"));
        let list = TableWriter::new().item(Value::I32(-1)).item(Value::Void);
        let values = [
            Value::Bool(true),
            Value::I8(-3),
            Value::U8(200),
            Value::I16(-300),
            Value::U16(60000),
            Value::I32(i32::MIN),
            Value::U32(u32::MAX),
            Value::I64(i64::MIN),
            Value::F32(1.5),
            Value::F64(-2.5),
            Value::Decimal(2, 12345),
            Value::LongStr(b"text"),
            Value::Bytes(&[0, 255]),
            Value::Timestamp(1_700_000_000),
            Value::Table(inner.as_table()),
            Value::Array(list.as_array()),
            Value::Void,
        ];
        let written = values.iter().fold(TableWriter::new(), |w, v| w.entry("name", *v));
        let read: Vec<Value> = written.as_table().iter().map(|e| e.unwrap().1).collect();
        assert_eq!(read, values);
        assert_eq!(written.as_table().validate(), Ok(()));
    }

    #[test]
    fn refuses_nesting_beyond_the_limit() {
        let mut table = TableWriter::new();
        for _ in 0..TABLE_DEPTH_MAX - 1 {
            table = TableWriter::new().entry("t", Value::Table(table.as_table()));
        }
        assert_eq!(table.as_table().validate(), Ok(()));
        let deeper = TableWriter::new().entry("t", Value::Table(table.as_table()));
        assert_eq!(deeper.as_table().validate(), Err(DecodeError::TooDeep));
    }

    #[test]
    fn names_the_type_it_does_not_know() {
        assert_eq!(Table::from_raw(b"\x01aU\0").validate(), Err(DecodeError::UnknownType(b'U')));
    }

    #[test]
    fn an_error_ends_the_iteration() {
        assert_eq!(Table::from_raw(b"\x01aI\0").iter().count(), 1);
    }
}
