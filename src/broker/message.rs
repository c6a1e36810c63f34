//! A published message as one allocation that every queue and consumer shares.
//!
//! The bytes are exactly what is sealed on disk (store.md section 6.5): routing facts, the property
//! block as the publisher sent it, the body. Nothing here interprets the properties.
//!
//! ```text
//! u8 flags | u8 length, exchange | u8 length, routing key | u32 length, properties (flags and list) | body
//! ```

use std::sync::Arc;

/// An immutable message; cloning it copies a pointer.
#[derive(Clone, PartialEq, Eq)]
pub struct Message(Arc<[u8]>);

/// Bytes that do not hold a message's three length-prefixed fields.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stored message: the {0} runs past the end")]
pub struct Malformed(&'static str);

/// The broker has written `x-death` into the headers; without it they are a client's own.
const DEAD_LETTERED: u8 = 1;

impl Message {
    /// Builds a message in one allocation; the body is given in pieces, as it came in frames.
    ///
    /// `exchange` and `routing_key` are AMQP short strings; what is longer than 255 bytes is cut.
    pub fn new(exchange: &[u8], routing_key: &[u8], properties: &[u8], body: &[&[u8]]) -> Message {
        Message::build(0, exchange, routing_key, properties, body)
    }

    /// A message whose headers tell of its deaths, in the broker's own words.
    pub fn dead_lettered(exchange: &[u8], routing_key: &[u8], properties: &[u8], body: &[u8]) -> Message {
        Message::build(DEAD_LETTERED, exchange, routing_key, properties, &[body])
    }

    /// The same message with other properties, such as a counted-up header.
    pub fn with_properties(&self, properties: &[u8]) -> Message {
        Message::build(self.0[0], self.exchange(), self.routing_key(), properties, &[self.body()])
    }

    fn build(flags: u8, exchange: &[u8], routing_key: &[u8], properties: &[u8], body: &[&[u8]]) -> Message {
        let exchange = &exchange[..exchange.len().min(255)];
        let routing_key = &routing_key[..routing_key.len().min(255)];
        let body_len: usize = body.iter().map(|piece| piece.len()).sum();
        let len = 2 + exchange.len() + 1 + routing_key.len() + 4 + properties.len() + body_len;
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
        }
        Message(bytes)
    }

    /// Takes back what [`Message::as_bytes`] gave, after checking that its fields fit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Message, Malformed> {
        let exchange = *bytes.get(1).ok_or(Malformed("exchange"))? as usize;
        let rest = bytes.get(2 + exchange..).ok_or(Malformed("exchange"))?;
        let key = *rest.first().ok_or(Malformed("routing key"))? as usize;
        let rest = rest.get(1 + key..).ok_or(Malformed("routing key"))?;
        let length = rest.first_chunk::<4>().ok_or(Malformed("properties"))?;
        let properties = u32::from_be_bytes(*length) as usize;
        rest.get(4..).and_then(|r| r.get(properties..)).ok_or(Malformed("properties"))?;
        Ok(Message(Arc::from(bytes)))
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
        self.0[0] & DEAD_LETTERED != 0
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
        &self.0[self.body_at()..]
    }

    /// Exchange, routing key, properties and body in one walk; the delivery path's way to read it.
    pub fn parts(&self) -> (&[u8], &[u8], &[u8], &[u8]) {
        let key = self.key_at();
        let properties = key + 1 + self.0[key] as usize;
        let length = self.u32_at(properties);
        let body = properties + 4 + length;
        let bytes = &self.0;
        (&bytes[2..key], &bytes[key + 1..properties], &bytes[properties + 4..body], &bytes[body..])
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
    fn refuses_every_truncation_of_its_fields() {
        let m = Message::new(b"x", b"key", &[0, 0], &[]);
        for cut in 0..m.size_bytes() {
            assert!(Message::from_bytes(&m.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }
}
