//! What is done with each record by itself, on one of several threads: it is opened, and of what it holds the little is
//! kept that the rest of recovery needs.

use super::super::layout::{Family, parse_body, parse_entry};
use super::super::parts::Look;
use super::super::pieces::Pieces;
use super::super::record::{BodyRef, Entry, read_entry_as};
use super::super::remains::Heads;
use super::super::sealing::{Opening, Unreadable};
use crate::broker::id::{QueueId, Seq};
use crate::broker::message::Message;
use crate::seal::envelope::{Kind, parse};

/// Sizes of a message, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measure {
    pub(super) body_bytes: u32,
    pub(super) size_bytes: u32,
}

/// What was seen in a family of entries.
pub(super) enum Seen {
    /// A key that is no entry's.
    Foreign,
    /// An entry before its queue's head, which nobody opens; how much it takes.
    Dead {
        queue: QueueId,
        seq: Seq,
        bytes: u64,
    },
    Entry(SeenEntry),
}

/// An entry that was looked at.
pub(super) struct SeenEntry {
    pub(super) queue: QueueId,
    pub(super) seq: Seq,
    /// The data key that its record names, 0 in a plain store; `None` when it is no record.
    pub(super) key: Option<u32>,
    pub(super) entry: Result<Entry<Measure>, Unreadable>,
}

/// What was seen of a family of bodies.
pub(super) enum SeenBody {
    /// A key that is no body's.
    Foreign,
    /// A piece: the data key that it names, as an entry's, and why it did not open.
    Piece(Option<u32>, Option<Unreadable>),
    /// A body whose last piece has come.
    Body {
        fault: Option<Unreadable>,
        reference: BodyRef,
        key_id: u32,
        /// Of the body proper, which the message is more than.
        body_bytes: u64,
    },
}

/// Looks at entries.
pub(super) struct Entries<'a> {
    opening: Opening,
    text: Vec<u8>,
    heads: &'a Heads,
}

impl Entries<'_> {
    pub(super) fn new(opening: Opening, heads: &Heads) -> Entries<'_> {
        Entries { opening, text: Vec::new(), heads }
    }

    pub(super) fn entry(&mut self, key: &[u8], value: &[u8]) -> Seen {
        let Some((queue, seq)) = parse_entry(key) else { return Seen::Foreign };
        if self.heads.is_dead(queue, seq) {
            return Seen::Dead { queue, seq, bytes: (key.len() + value.len()) as u64 };
        }
        let opened = self.opening.open(&[Kind::Entry], Family::Entries, key, value, &mut self.text);
        let entry = opened.and_then(|_| Ok(read_entry_as(&self.text, measure)?));
        Seen::Entry(SeenEntry { queue, seq, key: key_named(&self.opening, value), entry })
    }
}

fn measure(message: &[u8]) -> Result<Measure, crate::broker::message::Malformed> {
    let body_bytes = Message::body_bytes(message)? as u32;
    Ok(Measure { body_bytes, size_bytes: message.len() as u32 })
}

/// Which data key a record needs, whether it opened or not.
fn key_named(opening: &Opening, value: &[u8]) -> Option<u32> {
    if opening.is_plain() { Some(0) } else { parse(value).ok().map(|(header, ..)| header.key_id) }
}

impl Look for Entries<'_> {
    type Seen = Seen;

    fn look(&mut self, key: &[u8], value: &[u8], seen: &mut Vec<Self::Seen>) {
        seen.push(self.entry(key, value));
    }
}

/// Looks at bodies, which come in pieces.
pub(super) struct Bodies {
    opening: Opening,
    text: Vec<u8>,
    current: Option<Pieces>,
}

impl Bodies {
    pub(super) fn new(opening: Opening) -> Bodies {
        Bodies { opening, text: Vec::new(), current: None }
    }
}

impl Look for Bodies {
    type Seen = SeenBody;

    fn look(&mut self, key: &[u8], value: &[u8], seen: &mut Vec<SeenBody>) {
        let Some((id, chunk)) = parse_body(key) else { return seen.push(SeenBody::Foreign) };
        if self.current.as_ref().is_some_and(|pieces| pieces.id != id) {
            self.end(seen);
        }
        let kinds = &[Kind::Body, Kind::BodyChunk];
        let opened = self.opening.open(kinds, Family::Bodies, key, value, &mut self.text);
        seen.push(SeenBody::Piece(key_named(&self.opening, value), opened.err()));
        self.current.get_or_insert_with(|| Pieces::new(id)).add(chunk, opened, &self.text);
    }

    fn end(&mut self, seen: &mut Vec<SeenBody>) {
        let Some(pieces) = self.current.take() else { return };
        let key_id = pieces.key_id;
        let (content, reference) = pieces.finish(self.opening.is_plain());
        let body_bytes = content.as_ref().map_or(0, |message| message.body().len() as u64);
        seen.push(SeenBody::Body { fault: content.err(), reference, key_id, body_bytes });
    }
}
