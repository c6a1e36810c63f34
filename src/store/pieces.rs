//! A body that comes back from the store piece by piece: in order, whole, and in one message.

use super::record::{BodyRef, read_body};
use super::sealing::{Facts, Unreadable};
use crate::broker::id::BodyId;
use crate::broker::message::Message;
use crate::seal::envelope::FLAG_LAST;
use crate::seal::xaes::Tag;

/// A body while its pieces come in.
pub(super) struct Pieces {
    pub(super) id: BodyId,
    text: Vec<u8>,
    /// The piece that should come now.
    next: u32,
    tag: Tag,
    /// All pieces of a sound body have one key.
    pub(super) key_id: u32,
    is_whole: bool,
    /// The first thing that was wrong; it stays.
    fault: Option<Unreadable>,
}

impl Pieces {
    pub(super) fn new(id: BodyId) -> Pieces {
        Pieces { id, text: Vec::new(), next: 0, tag: Tag::default(), key_id: 0, is_whole: false, fault: None }
    }

    pub(super) fn add(&mut self, chunk: u32, opened: Result<Facts, Unreadable>, text: &[u8]) {
        let in_order = chunk == self.next && !self.is_whole;
        self.next = chunk.saturating_add(1);
        match opened {
            // A piece under another key is of a body that had this number before a crash or a restored backup.
            Ok(facts) if in_order && chunk > 0 && facts.key_id != self.key_id => {
                self.fault = self.fault.or(Some(Unreadable::BodySwapped));
            }
            Ok(facts) if in_order => {
                self.text.extend_from_slice(text);
                (self.tag, self.key_id) = (facts.tag, facts.key_id);
                self.is_whole = facts.flags & FLAG_LAST != 0;
            }
            Ok(_) => self.fault = self.fault.or(Some(Unreadable::BodyCut)),
            Err(e) => self.fault = self.fault.or(Some(e)),
        }
    }

    /// What it is, and by what an entry names it. A plain store's last piece does not say that it is the last.
    pub(super) fn finish(self, is_plain: bool) -> (Result<Message, Unreadable>, BodyRef) {
        let content = match self.fault {
            Some(fault) => Err(fault),
            None if self.next == 0 => Err(Unreadable::BodyMissing),
            None if self.is_whole || is_plain => read_body(&self.text).map_err(Unreadable::Content),
            None => Err(Unreadable::BodyCut),
        };
        let bytes = content.as_ref().map_or(0, |message| message.size_bytes() as u32);
        (content, BodyRef { id: self.id, bytes, chunks: self.next, tag: self.tag })
    }
}
