//! Basic's content header and its properties (AMQP 0-9-1 section 4.2.6), borrowed. The broker keeps the
//! block as the publisher sent it and reads it only to decide; `Properties::encode` is for the few
//! messages whose headers the broker itself changes.

use super::field_table::{Table, TableWriter, Value};
use super::reader::{DecodeError, Reader};
use super::writer::Writer;

/// A content header frame's payload.
#[derive(Clone, Copy, Debug)]
pub struct ContentHeader<'a> {
    /// 60 for basic, the only class with content
    pub class_id: u16,
    /// must be 0 (section 4.2.6.1)
    pub weight: u16,
    /// the body's length in bytes, in all its frames together
    pub body_size: u64,
    /// property flags and list
    pub properties: &'a [u8],
}

impl<'a> ContentHeader<'a> {
    /// Reads a content header frame's payload; the properties are not looked into.
    pub fn decode(payload: &'a [u8]) -> Result<ContentHeader<'a>, DecodeError> {
        let mut r = Reader::new(payload);
        let class_id = r.u16()?;
        let weight = r.u16()?;
        let body_size = r.u64()?;
        Ok(ContentHeader { class_id, weight, body_size, properties: r.rest() })
    }
}

macro_rules! properties {
    ($($(#[$doc:meta])* $name:ident: $kind:ident -> $ty:ty = $bit:literal;)*) => {
        /// Basic's properties, each absent or borrowed from the block.
        #[derive(Clone, Copy, Default, PartialEq)]
        pub struct Properties<'a> { $($(#[$doc])* pub $name: Option<$ty>,)* }

        impl<'a> Properties<'a> {
            /// Reads flags and list; all bytes must be used up.
            pub fn decode(block: &'a [u8]) -> Result<Properties<'a>, DecodeError> {
                let mut r = Reader::new(block);
                let flags = r.u16()?;
                // Bit 0 would announce a second flag word; basic has 14 properties, so none exists.
                if flags & 1 != 0 {
                    return Err(DecodeError::Trailing);
                }
                let mut p = Properties::default();
                $(if flags & (1 << $bit) != 0 { p.$name = Some(r.$kind()?); })*
                r.end()?;
                Ok(p)
            }

            /// Appends flags and list.
            pub fn encode(&self, out: &mut Vec<u8>) {
                let mut flags = 0u16;
                $(if self.$name.is_some() { flags |= 1 << $bit; })*
                let mut w = Writer::new(out);
                w.u16(flags);
                $(if let Some(v) = self.$name { w.$kind(v); })*
            }
        }
    };
}

properties! {
    /// MIME type
    content_type: short_str -> &'a [u8] = 15;
    /// MIME encoding
    content_encoding: short_str -> &'a [u8] = 14;
    /// application headers; the headers exchange and dead-lettering read them
    headers: table -> Table<'a> = 13;
    /// 2 is persistent; anything else transient
    delivery_mode: u8 -> u8 = 12;
    /// 0 to 255, larger first
    priority: u8 -> u8 = 11;
    /// set by the application
    correlation_id: short_str -> &'a [u8] = 10;
    /// where replies go; `amq.rabbitmq.reply-to` is rewritten by the broker
    reply_to: short_str -> &'a [u8] = 9;
    /// time to live in milliseconds, as decimal text
    expiration: short_str -> &'a [u8] = 8;
    /// set by the application
    message_id: short_str -> &'a [u8] = 7;
    /// seconds since 1970
    timestamp: u64 -> u64 = 6;
    /// set by the application
    kind: short_str -> &'a [u8] = 5;
    /// must be the connection's user, RabbitMQ checks it
    user_id: short_str -> &'a [u8] = 4;
    /// set by the application
    app_id: short_str -> &'a [u8] = 3;
    /// deprecated and never looked at, yet clients get it back
    cluster_id: short_str -> &'a [u8] = 2;
}

impl Properties<'_> {
    /// A block with one header more, at the end of the table; an earlier one of that name makes room.
    pub fn with_header(block: &[u8], name: &str, value: Value<'_>) -> Result<Vec<u8>, DecodeError> {
        let properties = Properties::decode(block)?;
        let mut headers = TableWriter::new();
        for entry in properties.headers.unwrap_or_default().iter() {
            let (other, value) = entry?;
            if other != name.as_bytes() {
                headers = headers.raw_entry(other, value);
            }
        }
        headers = headers.entry(name, value);
        let mut out = Vec::with_capacity(block.len() + name.len() + 16);
        Properties { headers: Some(headers.as_table()), ..properties }.encode(&mut out);
        Ok(out)
    }

    /// Whether it survives a restart in a durable queue.
    pub fn is_persistent(&self) -> bool {
        self.delivery_mode == Some(PERSISTENT)
    }

    /// `expiration` in milliseconds; `None` when it is absent or not a number.
    pub fn expiration_ms(&self) -> Option<u64> {
        let ms: i64 = std::str::from_utf8(self.expiration?).ok()?.parse().ok()?;
        u64::try_from(ms).ok()
    }
}

/// The value of delivery_mode that makes a message survive a restart in a durable queue.
pub const PERSISTENT: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::{TableWriter, Value};

    #[test]
    fn properties_come_back_as_they_were_written() {
        let headers = TableWriter::new().entry("x", Value::Bool(true));
        let p = Properties {
            content_type: Some(b"application/json"),
            headers: Some(headers.as_table()),
            delivery_mode: Some(PERSISTENT),
            timestamp: Some(12),
            app_id: Some(b"app"),
            ..Properties::default()
        };
        let mut block = Vec::new();
        p.encode(&mut block);
        assert!(Properties::decode(&block) == Ok(p));
        for cut in 0..block.len() {
            assert!(Properties::decode(&block[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn reads_the_flags_in_the_specifications_order() {
        let block = [0b1001_0000, 0, 1, b'a', 2];
        let p = Properties::decode(&block).unwrap();
        assert_eq!((p.content_type, p.delivery_mode), (Some(&b"a"[..]), Some(2)));
    }

    #[test]
    fn a_header_is_added_or_replaced_and_the_rest_stays() {
        let count = |block: &[u8], n| Properties::with_header(block, "n", Value::I64(n)).unwrap();
        let bare = count(&[0x90, 0, 1, b'a', 2], 1);
        let p = Properties::decode(&bare).unwrap();
        assert_eq!((p.content_type, p.delivery_mode), (Some(&b"a"[..]), Some(2)));
        let headers = TableWriter::new().entry("n", Value::I32(7)).entry("x", Value::Bool(true));
        let mut block = Vec::new();
        Properties { headers: Some(headers.as_table()), ..p }.encode(&mut block);
        let block = count(&block, 2);
        let expected = TableWriter::new().entry("x", Value::Bool(true)).entry("n", Value::I64(2));
        assert_eq!(Properties::decode(&block).unwrap().headers, Some(expected.as_table()));
        assert!(Properties::with_header(&[0x20, 0, 0], "n", Value::Void).is_err());
    }

    /// It was skipped when properties were read, so a dead letter and every other message whose headers
    /// the broker changes had lost it.
    #[test]
    fn the_deprecated_cluster_id_stays() {
        let block = [0, 0b100, 1, b'c'];
        let mut out = Vec::new();
        Properties::decode(&block).unwrap().encode(&mut out);
        assert_eq!(out, block);
    }

    #[test]
    fn a_second_flag_word_is_refused() {
        assert!(Properties::decode(&[0, 1, 0, 0]).is_err());
    }

    #[test]
    fn a_content_header_gives_the_body_size() {
        let h = ContentHeader::decode(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x10, 0, 2]).unwrap();
        assert_eq!((h.class_id, h.body_size, h.properties), (60, 256, &[0x10, 0, 2][..]));
    }
}
