//! Writes AMQP's data types to the end of a buffer (AMQP 0-9-1 section 4.2.5). No framing here.

use super::field_table::Table;

/// Appends fields to a `Vec`; consecutive bits share an octet.
pub struct Writer<'o> {
    out: &'o mut Vec<u8>,
    bits_used: u8,
}

impl<'o> Writer<'o> {
    /// Appends to `out`.
    pub fn new(out: &'o mut Vec<u8>) -> Writer<'o> {
        Writer { out, bits_used: 0 }
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bits_used = 0;
        self.out.extend_from_slice(bytes);
    }

    /// An octet.
    pub fn u8(&mut self, v: u8) {
        self.raw(&[v]);
    }

    /// A short.
    pub fn u16(&mut self, v: u16) {
        self.raw(&v.to_be_bytes());
    }

    /// A long.
    pub fn u32(&mut self, v: u32) {
        self.raw(&v.to_be_bytes());
    }

    /// A longlong.
    pub fn u64(&mut self, v: u64) {
        self.raw(&v.to_be_bytes());
    }

    /// A bit; up to eight in a row share an octet, lowest first.
    pub fn bit(&mut self, v: bool) {
        if self.bits_used == 0 || self.bits_used == 8 {
            self.out.push(0);
            self.bits_used = 0;
        }
        if let (true, Some(last)) = (v, self.out.last_mut()) {
            *last |= 1 << self.bits_used;
        }
        self.bits_used += 1;
    }

    /// A short string; what is longer than 255 bytes is cut, for the wire has no room for it.
    pub fn short_str(&mut self, v: &[u8]) {
        let v = &v[..v.len().min(255)];
        self.u8(v.len() as u8);
        self.raw(v);
    }

    /// A long string.
    pub fn long_str(&mut self, v: &[u8]) {
        self.u32(v.len() as u32);
        self.raw(v);
    }

    /// A field table.
    pub fn table(&mut self, v: Table<'_>) {
        self.long_str(v.raw());
    }
}
