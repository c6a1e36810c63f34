//! Frames (AMQP 0-9-1 section 4.2.3): header, size check, payload, end octet. The size is checked
//! against the limit as soon as the seven header bytes are there, before anything waits for the rest.

use std::ops::Range;

use super::method::Method;
use super::writer::Writer;

/// Bytes around a payload: type, channel, size, end octet.
pub const OVERHEAD_BYTES: usize = 8;

/// What a 0-9-1 client opens with.
pub const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";

const END: u8 = 0xCE;

/// The four frame types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 1: a method
    Method,
    /// 2: a content header
    Header,
    /// 3: a piece of a body
    Body,
    /// 8: a heartbeat
    Heartbeat,
}

/// One whole frame, borrowed from the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// its type
    pub kind: Kind,
    /// 0 for the connection itself
    pub channel: u16,
    /// what stands between header and end octet
    pub payload: &'a [u8],
}

/// Why the bytes are no frame. The connection cannot go on: 501 FRAME_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type that is none of 1, 2, 3, 8.
    #[error("unknown frame type {0}")]
    UnknownKind(u8),
    /// Larger than was negotiated (before authentication: than the initial limit).
    #[error("frame of {size} bytes is larger than the {limit} allowed")]
    TooLarge {
        /// declared payload bytes
        size: u32,
        /// the limit in bytes, framing included
        limit: u32,
    },
    /// The octet behind the payload is not 0xCE.
    #[error("frame does not end with 0xCE")]
    BadEnd,
}

/// The frame at the front of `bytes` and how many bytes it takes; `None` when it is not whole yet.
///
/// `frame_size_bytes_max` counts the framing in. RabbitMQ lets payloads run 8 bytes over; so do we.
pub fn parse(bytes: &[u8], frame_size_bytes_max: u32) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some(header) = bytes.first_chunk::<7>() else { return Ok(None) };
    let [kind, c0, c1, s0, s1, s2, s3] = *header;
    let kind = match kind {
        1 => Kind::Method,
        2 => Kind::Header,
        3 => Kind::Body,
        8 => Kind::Heartbeat,
        other => return Err(FrameError::UnknownKind(other)),
    };
    let size = u32::from_be_bytes([s0, s1, s2, s3]);
    if size > frame_size_bytes_max {
        return Err(FrameError::TooLarge { size, limit: frame_size_bytes_max });
    }
    let end = 7 + size as usize;
    match (bytes.get(7..end), bytes.get(end)) {
        (Some(payload), Some(&END)) => {
            let channel = u16::from_be_bytes([c0, c1]);
            Ok(Some((Frame { kind, channel, payload }, end + 1)))
        }
        (Some(_), Some(_)) => Err(FrameError::BadEnd),
        (_, _) => Ok(None),
    }
}

/// How many bytes the frame at the front of `bytes` needs in all; the header's bytes must be there.
pub fn size_bytes_of(bytes: &[u8]) -> Option<usize> {
    let [_, _, _, s0, s1, s2, s3] = *bytes.first_chunk::<7>()?;
    Some(u32::from_be_bytes([s0, s1, s2, s3]) as usize + OVERHEAD_BYTES)
}

/// Appends a method frame.
pub fn write_method(out: &mut Vec<u8>, channel: u16, method: &Method<'_>) {
    let at = open(out, 1, channel);
    method.encode(out);
    close(out, at);
}

/// Appends a content header and the body in frames of at most `frame_size_bytes_max` bytes.
///
/// `properties` are the flags and the list as the publisher sent them; the class is always basic (60).
pub fn write_content(
    out: &mut Vec<u8>,
    channel: u16,
    properties: &[u8],
    body: &[u8],
    frame_size_bytes_max: u32,
) {
    let frames = 1 + body.len() / piece_bytes_max(frame_size_bytes_max);
    out.reserve(20 + properties.len() + body.len() + OVERHEAD_BYTES * frames);
    write_content_header(out, channel, properties, body.len());
    for piece in body_pieces(0..body.len(), frame_size_bytes_max) {
        write_body_start(out, channel, piece.len());
        out.extend_from_slice(body.get(piece).unwrap_or_default());
        write_body_end(out);
    }
}

/// Appends the header of a content whose body has so many bytes.
pub fn write_content_header(out: &mut Vec<u8>, channel: u16, properties: &[u8], body_bytes: usize) {
    let at = open(out, 2, channel);
    out.extend_from_slice(&[0, 60, 0, 0]);
    out.extend_from_slice(&(body_bytes as u64).to_be_bytes());
    out.extend_from_slice(properties);
    close(out, at);
}

/// Where to cut a body, so that each piece fits into a frame.
pub fn body_pieces(body: Range<usize>, frame_size_bytes_max: u32) -> impl Iterator<Item = Range<usize>> {
    let piece = piece_bytes_max(frame_size_bytes_max);
    body.clone().step_by(piece).map(move |from| from..body.end.min(from.saturating_add(piece)))
}

fn piece_bytes_max(frame_size_bytes_max: u32) -> usize {
    (frame_size_bytes_max as usize).saturating_sub(OVERHEAD_BYTES).max(1)
}

/// Appends what stands before a piece of a body that has so many bytes; the piece and [`write_body_end`] must follow.
pub fn write_body_start(out: &mut Vec<u8>, channel: u16, piece_bytes: usize) {
    let at = open(out, 3, channel);
    set_size(out, at, piece_bytes);
}

/// Appends what stands behind a piece of a body.
pub fn write_body_end(out: &mut Vec<u8>) {
    out.push(END);
}

/// Appends a heartbeat frame (channel 0, empty).
pub fn write_heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(&[8, 0, 0, 0, 0, 0, 0, END]);
}

fn open(out: &mut Vec<u8>, kind: u8, channel: u16) -> usize {
    let at = out.len();
    let [c0, c1] = channel.to_be_bytes();
    out.extend_from_slice(&[kind, c0, c1, 0, 0, 0, 0]);
    at
}

fn close(out: &mut Vec<u8>, at: usize) {
    let size = out.len() - at - 7;
    set_size(out, at, size);
    out.push(END);
}

fn set_size(out: &mut [u8], at: usize, size: usize) {
    out[at + 3..at + 7].copy_from_slice(&(size as u32).to_be_bytes());
}

/// Appends one basic.deliver with its content: the busiest thing a broker writes, so it is laid out by
/// hand instead of through [`Method`].
pub fn write_delivery(out: &mut Vec<u8>, delivery: &Delivery<'_>, frame_size_bytes_max: u32) {
    write_deliver(out, delivery);
    write_content(out, delivery.channel, delivery.properties, delivery.body, frame_size_bytes_max);
}

/// Appends the method alone; its content must follow.
pub fn write_deliver(out: &mut Vec<u8>, delivery: &Delivery<'_>) {
    let at = open(out, 1, delivery.channel);
    let mut w = Writer::new(out);
    w.raw(&[0, 60, 0, 60]);
    w.short_str(delivery.consumer_tag);
    w.u64(delivery.delivery_tag);
    w.bit(delivery.redelivered);
    w.short_str(delivery.exchange);
    w.short_str(delivery.routing_key);
    close(out, at);
}

/// What [`write_delivery`] puts on the wire.
pub struct Delivery<'a> {
    /// the consumer's channel
    pub channel: u16,
    /// the consumer's tag
    pub consumer_tag: &'a [u8],
    /// rises by one with each delivery on the channel
    pub delivery_tag: u64,
    /// whether the message may have been delivered before
    pub redelivered: bool,
    /// the exchange it was published to
    pub exchange: &'a [u8],
    /// the routing key it was published with
    pub routing_key: &'a [u8],
    /// property flags and list
    pub properties: &'a [u8],
    /// the body
    pub body: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_whole_frame() {
        let mut out = Vec::new();
        write_content(&mut out, 7, &[0, 0], b"hello", 4096);
        for cut in 0..22 {
            assert_eq!(parse(&out[..cut], 4096), Ok(None), "cut at {cut}");
        }
        let (header, used) = parse(&out, 4096).unwrap().unwrap();
        assert_eq!((header.kind, header.channel, header.payload.len()), (Kind::Header, 7, 14));
        let (body, rest) = parse(&out[used..], 4096).unwrap().unwrap();
        assert_eq!((body.kind, body.payload, used + rest), (Kind::Body, &b"hello"[..], out.len()));
    }

    #[test]
    fn rejects_a_frame_larger_than_negotiated_from_its_header_alone() {
        let bytes = [3, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF];
        assert_eq!(parse(&bytes, 4096), Err(FrameError::TooLarge { size: u32::MAX, limit: 4096 }));
    }

    #[test]
    fn rejects_a_wrong_end_octet_and_an_unknown_type() {
        assert_eq!(parse(&[8, 0, 0, 0, 0, 0, 0, 0xCD], 4096), Err(FrameError::BadEnd));
        assert_eq!(parse(b"GET / HTTP/1.1", 4096), Err(FrameError::UnknownKind(b'G')));
    }

    #[test]
    fn splits_a_body_at_the_negotiated_frame_size() {
        let mut out = Vec::new();
        write_content(&mut out, 1, &[0, 0], &[5; 10_000], 4096);
        let (mut at, mut body) = (0, Vec::new());
        while at < out.len() {
            let (frame, used) = parse(&out[at..], 4096).unwrap().unwrap();
            assert!(used <= 4096);
            if frame.kind == Kind::Body {
                body.extend_from_slice(frame.payload);
            }
            at += used;
        }
        assert_eq!(body, vec![5; 10_000]);
    }

    #[test]
    fn an_empty_body_has_no_body_frame() {
        let mut out = Vec::new();
        write_content(&mut out, 1, &[0, 0], &[], 4096);
        let (_, used) = parse(&out, 4096).unwrap().unwrap();
        assert_eq!(used, out.len());
    }
}
