//! A body that several entries share, or that is too large to stand in its entry. It is written with the
//! first of its entries that is not struck out, and removed by the commit that removes the last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

use super::key_duty::Epoch;
use super::layout::{Family, Key};
use super::record::{BodyChunk, BodyRef};
use super::sealing::{Sealing, seal_with, sealed_bytes};
use crate::broker::id::BodyId;
use crate::broker::message::Message;
use crate::seal::nonce::NoRandomness;
use crate::seal::padding::Padding;
use crate::seal::record::Sealer;
use crate::seal::xaes::{Tag, TooLong};

/// A message stored apart from its entries. There may be several values for one body: one that its publisher made,
/// and others that were read back with its entries.
pub struct SharedBody {
    id: BodyId,
    message: Message,
    promised: u32,
    /// Set when the body's records are in a batch.
    written: OnceLock<BodyRef>,
    /// Sealed on the publisher's thread, waiting for its batch; only large ones are.
    ready: Option<ArcSwapOption<SealedBody>>,
    /// Bytes that it adds to the backlog until it is written or nobody needs it.
    charge: AtomicUsize,
}

impl std::fmt::Debug for SharedBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedBody({}, {} bytes)", self.id.0, self.message.size_bytes())
    }
}

/// A body's records, made in advance.
struct SealedBody {
    values: Vec<Vec<u8>>,
    tag: Tag,
    /// Held until the records are written: the key must not be dropped meanwhile.
    epoch: Arc<Epoch>,
}

impl SharedBody {
    pub(super) fn new(id: BodyId, message: Message, promised: u32) -> SharedBody {
        let charge = AtomicUsize::new(message.size_bytes());
        SharedBody { id, message, promised, written: OnceLock::new(), ready: None, charge }
    }

    /// A body that was found in the store, and was made for `promised` entries.
    pub(super) fn stored(body: BodyRef, message: Message, promised: u32) -> SharedBody {
        let made = SharedBody::new(body.id, message, promised);
        made.charge.store(0, Relaxed);
        // The value is new, so the cell is empty.
        let _ = made.written.set(body);
        made
    }

    /// The message itself.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// How many entries it was made for.
    pub(super) fn promised(&self) -> u32 {
        self.promised
    }

    /// Its number in the store.
    pub fn id(&self) -> BodyId {
        self.id
    }

    /// Seals it now, on the caller's thread, under a sub-key of its own.
    pub(super) fn seal_now(
        &mut self,
        epoch: Arc<Epoch>,
        store: [u8; 16],
        padding: Padding,
    ) -> Result<(), SealFailed> {
        let sealer = Sealer::new(Arc::clone(&epoch.key), store)?;
        let (mut values, mut last, mut bytes) = (Vec::new(), Tag::default(), 0);
        for chunk in BodyChunk::all(&self.message, padding) {
            let mut value = Vec::with_capacity(sealed_bytes(chunk.size_bytes(padding)));
            let place = Key::body(self.id, chunk.index);
            last = seal_with(&sealer, padding, &chunk, Family::Bodies, &place, &mut value)?;
            bytes += value.len();
            values.push(value);
        }
        self.charge.fetch_add(bytes, Relaxed);
        self.ready = Some(ArcSwapOption::from_pointee(SealedBody { values, tag: last, epoch }));
        Ok(())
    }

    /// Nobody will write it.
    pub(super) fn drop_ready(&self) {
        self.take_ready();
    }

    /// What was sealed in advance and is not taken yet.
    fn take_ready(&self) -> Option<Arc<SealedBody>> {
        self.ready.as_ref().and_then(|ready| ready.swap(None))
    }

    /// Gives its records to `put` unless they are written already; returns by what an entry names it, and the data
    /// key of the records when it gave them now. `own` is the key of the queue that has the body for itself.
    pub(super) fn write_once(
        &self,
        sealing: &Sealing,
        own: Option<&Sealer>,
        value: &mut Vec<u8>,
        mut put: impl FnMut(&Key, &[u8]),
    ) -> Result<(BodyRef, Option<u32>), TooLong> {
        if let Some(body) = self.written.get() {
            return Ok((*body, None));
        }
        let mut key_id = own.map_or_else(|| sealing.data_key_id(), Sealer::key_id);
        let (mut chunks, mut tag) = (0, Tag::default());
        if let Some(ready) = self.take_ready().filter(|_| own.is_none()) {
            key_id = ready.epoch.key.id;
            for value in &ready.values {
                put(&Key::body(self.id, chunks), value);
                chunks += 1;
            }
            tag = ready.tag;
        } else {
            for chunk in BodyChunk::all(&self.message, sealing.padding()) {
                let key = Key::body(self.id, chunk.index);
                tag = sealing.seal_under(own, &chunk, Family::Bodies, &key, value)?;
                put(&key, value);
                chunks += 1;
            }
        }
        let bytes = self.message.size_bytes() as u32;
        let body = BodyRef { id: self.id, bytes, chunks, tag };
        Ok((*self.written.get_or_init(|| body), Some(key_id)))
    }

    /// Takes what it adds to the backlog; later calls give 0.
    pub(super) fn take_charge(&self) -> usize {
        self.charge.swap(0, Relaxed)
    }

    pub(super) fn charge(&self) -> usize {
        self.charge.load(Relaxed)
    }
}

/// How many entries of a body are left, of those that are settled in part. Only the committer counts.
#[derive(Default)]
pub(super) struct BodyCounts(HashMap<BodyId, u32, foldhash::fast::RandomState>);

impl BodyCounts {
    /// A body that was found with other than the entries that it was made for.
    pub(super) fn restore(&mut self, id: BodyId, entries: u32) {
        self.0.insert(id, entries);
    }

    /// How many entries of a body that was made for `promised` are left.
    pub(super) fn left(&self, id: BodyId, promised: u32) -> u32 {
        self.0.get(&id).copied().unwrap_or(promised)
    }

    /// One entry less. Gives what must be removed from the store when it was the last.
    pub(super) fn settle(&mut self, body: &SharedBody) -> Settled {
        if !self.is_last(body.id, body.promised) {
            return Settled::Needed;
        }
        body.take_ready();
        body.written.get().map_or(Settled::NeverWritten, |body| Settled::Remove(*body))
    }

    /// As [`BodyCounts::settle`], for a body that is named by its entry only.
    pub(super) fn settle_stored(&mut self, body: BodyRef, promised: u32) -> Settled {
        if self.is_last(body.id, promised) { Settled::Remove(body) } else { Settled::Needed }
    }

    fn is_last(&mut self, id: BodyId, promised: u32) -> bool {
        if promised == 1 {
            return true;
        }
        let left = self.0.entry(id).or_insert(promised);
        *left = left.saturating_sub(1);
        let is_last = *left == 0;
        if is_last {
            self.0.remove(&id);
        }
        is_last
    }
}

/// What [`BodyCounts::settle`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Other entries need it.
    Needed,
    /// No entry needs it, and it is in the store.
    Remove(BodyRef),
    /// No entry needs it, and it never was in the store.
    NeverWritten,
}

/// A body could not be sealed in advance; the committer will find out why.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealFailed {
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(promised: u32) -> SharedBody {
        SharedBody::new(BodyId(7), Message::new(b"", b"q", &[], &[&[1; 300_000]]), promised)
    }

    #[test]
    fn is_written_once_and_removed_with_its_last_entry() {
        let body = body(2);
        let (mut value, mut keys) = (Vec::new(), Vec::new());
        let (first, key) =
            body.write_once(&Sealing::Plain, None, &mut value, |key, _| keys.push(*key)).unwrap();
        let again = body.write_once(&Sealing::Plain, None, &mut value, |_, _| unreachable!()).unwrap();
        assert_eq!((again, key, first.chunks), ((first, None), Some(0), 2));
        assert_eq!(keys, [Key::body(BodyId(7), 0), Key::body(BodyId(7), 1)]);
        // Another queue has read it back meanwhile.
        let again = SharedBody::stored(first, body.message().clone(), 2);
        let mut counts = BodyCounts::default();
        assert_eq!(counts.settle(&again), Settled::Needed);
        assert_eq!(counts.settle(&body), Settled::Remove(first));
        assert!(counts.0.is_empty());
    }

    #[test]
    fn a_body_whose_entries_were_all_struck_out_is_never_written() {
        let body = body(2);
        let mut counts = BodyCounts::default();
        assert_eq!(counts.settle(&body), Settled::Needed);
        assert_eq!(counts.settle(&body), Settled::NeverWritten);
    }

    #[test]
    fn a_body_found_with_fewer_entries_goes_with_the_last_of_these() {
        let stored = BodyRef { id: BodyId(7), bytes: 1, chunks: 1, tag: Tag::default() };
        let mut counts = BodyCounts::default();
        counts.restore(BodyId(7), 2);
        assert_eq!(counts.settle_stored(stored, 5), Settled::Needed);
        assert_eq!(counts.settle_stored(stored, 5), Settled::Remove(stored));
        assert_eq!(counts.settle_stored(stored, 1), Settled::Remove(stored), "its only one");
    }
}
