//! A published message as one allocation that every queue and consumer shares.
//!
//! The bytes are exactly what is sealed on disk: routing facts, the property
//! block as the publisher sent it, the body. Nothing here interprets the properties.
//!
//! ```text
//! u8 flags | u8 length, exchange | u8 length, routing key | u32 length, properties (flags and list) | body
//! ```
//!
//! A message that was published with BCC ends with those keys, which nobody is told: an array, then its
//! u32 length.

use std::ops::Range;
use std::sync::Arc;

use super::routing_keys::RoutingKeys;
use crate::amqp::field_table::{Array, Value};
use crate::amqp::properties::Properties;

/// An immutable message; cloning it copies a pointer.
#[derive(Clone, PartialEq, Eq)]
pub struct Message(Arc<[u8]>);

/// Bytes that do not hold a message's three length-prefixed fields.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stored message: the {0} runs past the end")]
pub struct Malformed(&'static str);

/// The broker has written `x-death` into the headers; without it they are a client's own.
const DEAD_LETTERED: u8 = 1;
/// Its header CC names further routing keys.
const COPIED: u8 = 2;
/// It ends with further routing keys: what the header BCC named.
const BLIND_COPIED: u8 = 4;

/// What the headers CC and BCC of a publish were.
#[derive(Clone, Copy, Default)]
pub struct Copies<'a> {
    /// whether there is a header CC
    pub open: bool,
    /// the routing keys of BCC, which was taken off the headers
    pub blind: Array<'a>,
}

impl Copies<'_> {
    fn flags(self) -> u8 {
        let blind = if self.blind.raw().is_empty() { 0 } else { BLIND_COPIED };
        if self.open { blind | COPIED } else { blind }
    }
}

impl Message {
    /// Builds a message in one allocation; the body is given in pieces, as it came in frames.
    ///
    /// `exchange` and `routing_key` are AMQP short strings; what is longer than 255 bytes is cut.
    pub fn new(exchange: &[u8], routing_key: &[u8], properties: &[u8], body: &[&[u8]]) -> Message {
        Message::build(0, exchange, routing_key, properties, body, &[])
    }

    /// The same for a message that may go by further routing keys.
    pub fn with_copies(
        exchange: &[u8],
        routing_key: &[u8],
        properties: &[u8],
        body: &[&[u8]],
        copies: Copies<'_>,
    ) -> Message {
        Message::build(copies.flags(), exchange, routing_key, properties, body, copies.blind.raw())
    }

    /// This message after its death, published again: to that exchange, with headers that tell of its deaths
    /// in the broker's own words. Another routing key takes the place of all that it had.
    pub fn dead_lettered(&self, exchange: &[u8], routing_key: Option<&[u8]>, properties: &[u8]) -> Message {
        let body = &[self.body()];
        match routing_key {
            Some(key) => Message::build(DEAD_LETTERED, exchange, key, properties, body, &[]),
            None => {
                let flags = self.flags() | DEAD_LETTERED;
                Message::build(flags, exchange, self.routing_key(), properties, body, self.blind_copies())
            }
        }
    }

    /// The same message with other properties, such as a counted-up header.
    pub fn with_properties(&self, properties: &[u8]) -> Message {
        let (exchange, routing_key, _, body) = self.parts();
        Message::build(self.flags(), exchange, routing_key, properties, &[body], self.blind_copies())
    }

    fn build(
        flags: u8,
        exchange: &[u8],
        routing_key: &[u8],
        properties: &[u8],
        body: &[&[u8]],
        blind: &[u8],
    ) -> Message {
        let exchange = &exchange[..exchange.len().min(255)];
        let routing_key = &routing_key[..routing_key.len().min(255)];
        let body_len: usize = body.iter().map(|piece| piece.len()).sum();
        let trailer_len = if flags & BLIND_COPIED == 0 { 0 } else { blind.len() + 4 };
        let len = 2 + exchange.len() + 1 + routing_key.len() + 4 + properties.len() + body_len + trailer_len;
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
        if let Some(target) = Arc::get_mut(&mut bytes) {
            let mut at = 0;
            let mut put = |piece: &[u8]| {
                target[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            };
            put(&[flags, exchange.len() as u8]);
            put(exchange);
            put(&[routing_key.len() as u8]);
            put(routing_key);
            put(&(properties.len() as u32).to_be_bytes());
            put(properties);
            body.iter().for_each(|piece| put(piece));
            if trailer_len > 0 {
                put(blind);
                put(&(blind.len() as u32).to_be_bytes());
            }
        }
        Message(bytes)
    }

    /// Takes back what [`Message::as_bytes`] gave, after checking that its fields fit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Message, Malformed> {
        Message::body_bytes(bytes)?;
        Ok(Message(Arc::from(bytes)))
    }

    /// The same check without taking it back; gives the length of the body.
    pub fn body_bytes(bytes: &[u8]) -> Result<usize, Malformed> {
        let exchange = *bytes.get(1).ok_or(Malformed("exchange"))? as usize;
        let rest = bytes.get(2 + exchange..).ok_or(Malformed("exchange"))?;
        let key = *rest.first().ok_or(Malformed("routing key"))? as usize;
        let rest = rest.get(1 + key..).ok_or(Malformed("routing key"))?;
        let length = rest.first_chunk::<4>().ok_or(Malformed("properties"))?;
        let properties = u32::from_be_bytes(*length) as usize;
        let rest = rest.get(4..).and_then(|r| r.get(properties..)).ok_or(Malformed("properties"))?;
        if bytes[0] & BLIND_COPIED != 0 {
            let (rest, length) = rest.split_last_chunk::<4>().ok_or(Malformed("copies"))?;
            let length = u32::from_be_bytes(*length) as usize;
            return rest.len().checked_sub(length).ok_or(Malformed("copies"));
        }
        Ok(rest.len())
    }

    /// All of it, as it is sealed and stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Size in memory and on disk before padding, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.0.len()
    }

    /// Whether its `x-death` header is the broker's own.
    pub fn is_dead_lettered(&self) -> bool {
        self.flags() & DEAD_LETTERED != 0
    }

    /// Whether it has more routing keys than the one it was published with.
    pub fn has_copies(&self) -> bool {
        self.flags() & (COPIED | BLIND_COPIED) != 0
    }

    /// All its routing keys; `properties` are its own, decoded.
    pub fn routing_keys<'a>(&'a self, properties: &Properties<'a>) -> RoutingKeys<'a> {
        let open = match self.flags() & COPIED != 0 {
            true => properties.headers.and_then(|headers| headers.find(b"CC")),
            false => None,
        };
        let open = if let Some(Value::Array(keys)) = open { keys } else { Array::default() };
        RoutingKeys::new(self.routing_key(), open, Array::from_raw(self.blind_copies()))
    }

    /// The exchange it was published to; empty for the default exchange.
    pub fn exchange(&self) -> &[u8] {
        &self.0[2..self.key_at()]
    }

    /// The routing key it was published with.
    pub fn routing_key(&self) -> &[u8] {
        &self.0[self.key_at() + 1..self.properties_at()]
    }

    /// The property flags and list of its content header, as the publisher sent them.
    pub fn properties(&self) -> &[u8] {
        &self.0[self.properties_at() + 4..self.body_at()]
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.0[self.body_at()..self.body_end()]
    }

    /// Where in [`Message::as_bytes`] the body is.
    pub fn body_range(&self) -> Range<usize> {
        self.body_at()..self.body_end()
    }

    /// Exchange, routing key, properties and body in one walk; the delivery path's way to read it.
    pub fn parts(&self) -> (&[u8], &[u8], &[u8], &[u8]) {
        let key = self.key_at();
        let properties = key + 1 + self.0[key] as usize;
        let length = self.u32_at(properties);
        let body = properties + 4 + length;
        let bytes = &self.0;
        let body_end = self.body_end();
        (&bytes[2..key], &bytes[key + 1..properties], &bytes[properties + 4..body], &bytes[body..body_end])
    }

    fn flags(&self) -> u8 {
        self.0[0]
    }

    /// The items of what was the header BCC.
    fn blind_copies(&self) -> &[u8] {
        let trailer = &self.0[self.body_end()..];
        &trailer[..trailer.len().saturating_sub(4)]
    }

    fn body_end(&self) -> usize {
        let len = self.0.len();
        if self.flags() & BLIND_COPIED == 0 { len } else { len - 4 - self.u32_at(len - 4) }
    }

    fn key_at(&self) -> usize {
        2 + self.0[1] as usize
    }

    fn properties_at(&self) -> usize {
        let key = self.key_at();
        key + 1 + self.0[key] as usize
    }

    fn body_at(&self) -> usize {
        let at = self.properties_at();
        at + 4 + self.u32_at(at)
    }

    fn u32_at(&self, at: usize) -> usize {
        let b = &self.0[at..at + 4];
        u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize
    }
}

impl std::fmt::Debug for Message {
    /// The size only: routing keys, headers and bodies must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Message({} bytes)", self.size_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::TableWriter;

    #[test]
    fn gives_back_what_it_was_built_from() {
        let m = Message::new(b"amq.topic", b"a.b", &[0x80, 0, 1, b'x'], &[b"he", b"llo"]);
        assert_eq!((m.exchange(), m.routing_key()), (&b"amq.topic"[..], &b"a.b"[..]));
        assert_eq!((m.properties(), m.body()), (&[0x80, 0, 1, b'x'][..], &b"hello"[..]));
        assert_eq!(m.parts(), (m.exchange(), m.routing_key(), m.properties(), m.body()));
        assert_eq!(Message::from_bytes(m.as_bytes()), Ok(m));
    }

    #[test]
    fn an_empty_message_is_a_message() {
        let m = Message::new(b"", b"", &[], &[]);
        assert_eq!(m.as_bytes().len(), 7);
        assert_eq!(m.body(), b"");
    }

    #[test]
    fn blind_copies_are_no_part_of_the_body() {
        let keys = TableWriter::new().item(Value::LongStr(b"secret"));
        let copies = Copies { open: false, blind: keys.as_array() };
        let m = Message::with_copies(b"x", b"key", &[0, 0], &[b"body"], copies);
        assert_eq!((m.body(), m.parts().3), (&b"body"[..], &b"body"[..]));
        for m in [m.clone(), m.with_properties(&[0, 0]), m.dead_lettered(b"dlx", None, &[0, 0])] {
            let again = Message::from_bytes(m.as_bytes()).unwrap();
            let keys = again.routing_keys(&Properties::default());
            assert!(again.has_copies() && keys.iter().eq([&b"key"[..], b"secret"]));
            assert!(keys.open().eq([&b"key"[..]]), "nobody is told");
            assert_eq!(again.body(), b"body");
        }
        let other = m.dead_lettered(b"dlx", Some(b"other"), &[0, 0]);
        assert!(!other.has_copies() && other.body() == b"body" && other.routing_key() == b"other");
    }

    #[test]
    fn refuses_copies_that_are_longer_than_what_follows_the_properties() {
        let keys = TableWriter::new().item(Value::LongStr(b"k"));
        let copies = Copies { open: true, blind: keys.as_array() };
        let m = Message::with_copies(b"x", b"", &[0, 0], &[b"y"], copies);
        let mut bytes = m.as_bytes().to_vec();
        let (last, length) = (bytes.len() - 1, keys.as_array().raw().len() as u8);
        assert_eq!(Message::from_bytes(&bytes), Ok(m));
        // The body's one byte can be taken for a key, the properties cannot.
        for (length, fits) in [(length + 1, true), (length + 2, false), (255, false)] {
            bytes[last] = length;
            assert_eq!(Message::from_bytes(&bytes).is_ok(), fits, "{length}");
        }
        assert!(Message::from_bytes(&bytes[..last - 4 - keys.as_array().raw().len()]).is_err());
    }

    #[test]
    fn refuses_every_truncation_of_its_fields() {
        let m = Message::new(b"x", b"key", &[0, 0], &[]);
        for cut in 0..m.size_bytes() {
            assert!(Message::from_bytes(&m.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }
}
