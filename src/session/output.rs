//! What the session has written and its socket has not taken: frames, and the bodies that are large enough to be sent
//! from where they are. Nothing here knows sockets; whoever has one takes [`Output::pieces`] and says how many bytes
//! went.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use smallvec::SmallVec;

use crate::amqp::frame::{self, Delivery};
use crate::broker::message::Message;
use crate::limits::{BODY_APART_BYTES_MIN, OUTPUT_BYTES_HIGH};

/// More pieces than that are not given to the socket at once.
const PIECES_MAX: usize = 32;

/// Room for more bodies apart than that is not kept.
const APART_KEPT: usize = 1024;

/// Pieces of the output, in order.
pub type Pieces<'a> = SmallVec<[IoSlice<'a>; PIECES_MAX]>;

/// Bytes for the peer, in order.
#[derive(Default)]
pub struct Output {
    /// Everything but the bodies apart; the first `sent` bytes have gone.
    pub(super) frames: Vec<u8>,
    sent: usize,
    apart: VecDeque<Apart>,
    /// Bytes of `apart`.
    apart_bytes: usize,
}

/// Bytes of a message that stand between frames.
struct Apart {
    /// How many bytes of the frames come before.
    at: usize,
    message: Message,
    /// What of [`Message::as_bytes`] is still to go.
    bytes: Range<usize>,
}

impl Output {
    /// Bytes that are still to go.
    pub fn len(&self) -> usize {
        self.frames.len() - self.sent + self.apart_bytes
    }

    /// Whether everything has gone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The front of what is still to go, in some dozens of pieces at most.
    pub fn pieces<'a>(&'a self) -> Pieces<'a> {
        let mut pieces = Pieces::new();
        let mut add = |piece: Option<&'a [u8]>| {
            pieces.extend(piece.filter(|piece| !piece.is_empty()).map(IoSlice::new));
            pieces.len() < PIECES_MAX
        };
        let mut from = self.sent;
        for Apart { at, message, bytes } in &self.apart {
            if !add(self.frames.get(from..*at)) || !add(message.as_bytes().get(bytes.clone())) {
                return pieces;
            }
            from = *at;
        }
        add(self.frames.get(from..));
        pieces
    }

    /// So many bytes of the front have gone.
    pub fn advance(&mut self, mut n: usize) {
        while n > 0 {
            let next = self.apart.front().map_or(self.frames.len(), |apart| apart.at);
            let of_frames = n.min(next - self.sent);
            self.sent += of_frames;
            n -= of_frames;
            let Some(apart) = self.apart.front_mut().filter(|apart| apart.at == self.sent) else { return };
            let of_body = n.min(apart.bytes.len());
            apart.bytes.start += of_body;
            self.apart_bytes -= of_body;
            n -= of_body;
            if apart.bytes.is_empty() {
                self.apart.pop_front();
            }
        }
    }

    /// Gives back the memory of what has gone. Moving the rest costs no more than sending what is dropped did.
    pub fn forget_sent(&mut self) {
        if self.is_empty() {
            self.frames.clear();
            if self.frames.capacity() > 2 * OUTPUT_BYTES_HIGH {
                self.frames = Vec::new();
            }
            if self.apart.capacity() > APART_KEPT {
                self.apart = VecDeque::new();
            }
        } else if self.sent >= self.frames.len() - self.sent {
            self.frames.drain(..self.sent);
            self.apart.iter_mut().for_each(|apart| apart.at -= self.sent);
        } else {
            return;
        }
        self.sent = 0;
    }

    /// What it holds in all, sent or not; a message counts for each piece of its body.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.frames.len() + self.apart.iter().map(|apart| apart.message.size_bytes()).sum::<usize>()
    }

    /// Takes all that is still to go.
    pub fn take(&mut self) -> Vec<u8> {
        let mut taken = Vec::with_capacity(self.len());
        while !self.is_empty() {
            let before = taken.len();
            self.pieces().iter().for_each(|piece| taken.extend_from_slice(piece));
            self.advance(taken.len() - before);
        }
        self.forget_sent();
        taken
    }

    /// Appends a basic.deliver with its content; `delivery.body` is the message's.
    pub(super) fn write_delivery(
        &mut self,
        delivery: &Delivery<'_>,
        message: &Message,
        frame_bytes_max: u32,
    ) {
        if delivery.body.len() < BODY_APART_BYTES_MIN {
            return frame::write_delivery(&mut self.frames, delivery, frame_bytes_max);
        }
        frame::write_deliver(&mut self.frames, delivery);
        self.write_apart(delivery.channel, delivery.properties, message, frame_bytes_max);
    }

    /// Appends a content header with these properties, and the message's body in frames of at most `frame_bytes_max`.
    pub(super) fn write_content(
        &mut self,
        channel: u16,
        properties: &[u8],
        message: &Message,
        frame_bytes_max: u32,
    ) {
        let body = message.body();
        if body.len() < BODY_APART_BYTES_MIN {
            return frame::write_content(&mut self.frames, channel, properties, body, frame_bytes_max);
        }
        self.write_apart(channel, properties, message, frame_bytes_max);
    }

    fn write_apart(&mut self, channel: u16, properties: &[u8], message: &Message, frame_bytes_max: u32) {
        let body = message.body_range();
        frame::write_content_header(&mut self.frames, channel, properties, body.len());
        for bytes in frame::body_pieces(body, frame_bytes_max) {
            frame::write_body_start(&mut self.frames, channel, bytes.len());
            self.apart_bytes += bytes.len();
            self.apart.push_back(Apart { at: self.frames.len(), message: message.clone(), bytes });
            frame::write_body_end(&mut self.frames);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same, written by `frame` into one piece of memory.
    fn whole(bodies: &[usize], frame_bytes_max: u32) -> (Output, Vec<u8>) {
        let (mut output, mut expected) = (Output::default(), Vec::new());
        for (tag, len) in bodies.iter().enumerate() {
            let body: Vec<u8> = (0..*len).map(|at| (at * 7 + tag) as u8).collect();
            let message = Message::new(b"e", b"k", &[0, 0], &[&body]);
            let (exchange, routing_key, properties, body) = message.parts();
            let delivery_tag = tag as u64;
            let (channel, consumer_tag, redelivered) = (3, &b"t"[..], tag % 2 == 0);
            let delivery = Delivery {
                channel,
                consumer_tag,
                delivery_tag,
                redelivered,
                exchange,
                routing_key,
                properties,
                body,
            };
            frame::write_delivery(&mut expected, &delivery, frame_bytes_max);
            output.write_delivery(&delivery, &message, frame_bytes_max);
            frame::write_content(&mut expected, channel, properties, body, frame_bytes_max);
            output.write_content(channel, properties, &message, frame_bytes_max);
        }
        (output, expected)
    }

    proptest! {
        #[test]
        fn bodies_apart_go_out_as_those_in_the_frames_do_however_little_the_socket_takes(
            bodies in proptest::collection::vec(prop_oneof![0usize..10, 4000usize..20_000], 0..30),
            frame_bytes_max in prop_oneof![Just(4096u32), Just(5000), Just(131_072)],
            steps in proptest::collection::vec((1usize..9000, any::<bool>()), 1..50),
        ) {
            let (mut output, expected) = whole(&bodies, frame_bytes_max);
            prop_assert_eq!(output.len(), expected.len());
            let mut sent = Vec::new();
            for (room, forgets) in steps.iter().cycle() {
                let offered: Vec<u8> = output.pieces().iter().flat_map(|piece| piece.to_vec()).collect();
                prop_assert_eq!(offered.is_empty(), output.is_empty());
                if output.is_empty() {
                    break;
                }
                let n = offered.len().min(*room);
                sent.extend_from_slice(offered.get(..n).unwrap_or_default());
                output.advance(n);
                prop_assert_eq!(output.len(), expected.len() - sent.len());
                if *forgets {
                    output.forget_sent();
                }
            }
            prop_assert_eq!(sent, expected);
        }

        #[test]
        fn taking_all_leaves_nothing(bodies in proptest::collection::vec(0usize..9000, 0..20), n in 0usize..9000) {
            let (mut output, expected) = whole(&bodies, 4096);
            let n = n.min(output.pieces().iter().map(|piece| piece.len()).sum());
            output.advance(n);
            prop_assert_eq!(output.take(), expected.get(n..).unwrap_or_default());
            prop_assert!(output.is_empty() && output.held_bytes() == 0);
        }
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let message = Message::new(b"", b"q", &[0, 0], &[&[7; BODY_APART_BYTES_MIN]]);
        let mut output = Output::default();
        output.write_content(1, &[0, 0], &message, 131_072);
        let pieces = output.pieces();
        assert!(pieces.iter().any(|piece| piece.as_ptr() == message.body().as_ptr()));
    }
}
