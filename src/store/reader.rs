//! Reading back what is in the store only. A reader has its own sight of the database and of the keys, so it needs
//! no lock; it reads what was durable before, and blocks on the disk: never on a connection's task.

use std::sync::{Arc, Weak};

use super::body::SharedBody;
use super::commit::Core;
use super::error::StoreError;
use super::layout::{Family, Key, MetaKey, parse_entry, parse_meta};
use super::pieces::Pieces;
use super::record::{BodyRef, EntryMeta, read_delivery_count, read_entry, read_manifest};
use super::recovered::{Quarantined, RecoveredEntry};
use super::rocks::Rocks;
use super::sealing::{Opening, Unreadable};
use crate::broker::id::{QueueId, Seq};
use crate::broker::message::Message;
use crate::seal::envelope::Kind;
use crate::seal::record::Opener;

/// What to read of a queue.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Which queue.
    pub queue: QueueId,
    /// The first place.
    pub first: Seq,
    /// The last place.
    pub last: Seq,
    /// Entries at most.
    pub len_max: usize,
    /// No further entry when their bodies have come to so many bytes.
    pub bytes_max: usize,
}

/// What was read.
#[derive(Debug)]
pub struct StoredPage {
    /// In order.
    pub entries: Vec<RecoveredEntry>,
    /// Entries that are there and cannot be read.
    pub quarantined: Vec<Quarantined>,
    /// Everything that was asked for, up to here, was read.
    pub upto: Seq,
}

/// How often an entry is read that does not fit its body: each time it may have been sealed again in between
/// (reseal.rs), which no entry is twice in a row.
const READS_MAX: usize = 3;

/// Reads entries of queues.
pub(super) struct Reader {
    core: Arc<Core>,
    store: [u8; 16],
    rocks: Arc<Rocks>,
    opening: Opening,
    text: Vec<u8>,
}

impl Reader {
    /// `None` when the store is closed.
    pub(super) fn new(
        core: &Arc<Core>,
        rocks: &Weak<Rocks>,
        store: [u8; 16],
        is_plain: bool,
    ) -> Option<Reader> {
        let opening = match is_plain {
            true => Opening::Plain,
            false => Opening::Sealed(Box::new(Opener::new(core.keys.load().to_vec(), store))),
        };
        Some(Reader { core: Arc::clone(core), store, rocks: rocks.upgrade()?, opening, text: Vec::new() })
    }

    pub(super) fn page(&mut self, wanted: &PageRequest) -> Result<StoredPage, StoreError> {
        let rocks = Arc::clone(&self.rocks);
        let mut page = StoredPage { entries: Vec::new(), quarantined: Vec::new(), upto: wanted.last };
        let (mut bytes, mut seen, mut head) = (0, None, None);
        let (from, to) = (Key::entry(wanted.queue, wanted.first), Key::entry(wanted.queue, wanted.last));
        rocks.range(Family::Entries, &from, &to, |key, value| {
            if page.entries.len() >= wanted.len_max || bytes >= wanted.bytes_max {
                page.upto = seen.unwrap_or(wanted.first);
                return Ok(false);
            }
            let Some((queue, seq)) = parse_entry(key) else { return Ok(true) };
            seen = Some(seq);
            // No older than what is read.
            let head = match head {
                Some(head) => head,
                None => *head.insert(self.head(queue)?),
            };
            if seq < head {
                return Ok(true);
            }
            match self.newest(queue, seq, key, value)? {
                Ok(entry) => {
                    bytes += entry.message.body().len();
                    page.entries.push(entry);
                }
                Err(e) => page.quarantined.push(Quarantined { queue, seq, code: e.code() }),
            }
            Ok(true)
        })?;
        self.counts(wanted.queue, &mut page.entries)?;
        Ok(page)
    }

    /// Where the queue begins by now: what stands before it was deleted.
    fn head(&mut self, queue: QueueId) -> Result<Seq, StoreError> {
        let key = Key::manifest(queue);
        let Some(value) = self.rocks.value(Family::Meta, &key)? else { return Ok(Seq(0)) };
        let opened =
            self.opening.open(&[Kind::Manifest], Family::Meta, key.as_bytes(), &value, &mut self.text);
        let manifest = opened.and_then(|_| Ok(read_manifest(&self.text)?));
        let refused =
            |e: Unreadable| e.refusal(self.rocks.path(), &format!("the manifest of queue {}", queue.0));
        manifest.map(|manifest| manifest.head).map_err(refused)
    }

    /// An entry, if need be as it is by now: `value` and the keys are of one moment, and its body is of a later one.
    fn newest(
        &mut self,
        queue: QueueId,
        seq: Seq,
        key: &[u8],
        value: &[u8],
    ) -> Result<Result<RecoveredEntry, Unreadable>, StoreError> {
        let mut entry = self.entry(seq, key, value)?;
        for _ in 1..READS_MAX {
            if entry.is_ok() || self.opening.is_plain() {
                break;
            }
            self.opening = Opening::Sealed(Box::new(Opener::new(self.core.keys.load().to_vec(), self.store)));
            let Some(value) = self.rocks.value(Family::Entries, &Key::entry(queue, seq))? else { break };
            entry = self.entry(seq, key, &value)?;
        }
        Ok(entry)
    }

    fn entry(
        &mut self,
        seq: Seq,
        key: &[u8],
        value: &[u8],
    ) -> Result<Result<RecoveredEntry, Unreadable>, StoreError> {
        let opened = self.opening.open(&[Kind::Entry], Family::Entries, key, value, &mut self.text);
        let entry = match opened.and_then(|_| Ok(read_entry(&self.text)?)) {
            Ok(entry) => entry,
            Err(e) => return Ok(Err(e)),
        };
        let (message, shared) = match entry.content {
            Ok(message) => (message, None),
            Err(reference) => match self.body(reference)? {
                Ok(message) => {
                    let shared = SharedBody::stored(reference, message.clone(), entry.promised);
                    (message, Some(Arc::new(shared)))
                }
                Err(e) => return Ok(Err(e)),
            },
        };
        let EntryMeta { delivery_count, .. } = entry.meta;
        Ok(Ok(RecoveredEntry {
            seq,
            message,
            shared,
            meta: entry.meta,
            delivery_count: delivery_count.into(),
            died: None,
        }))
    }

    fn body(&mut self, wanted: BodyRef) -> Result<Result<Message, Unreadable>, StoreError> {
        let mut pieces = Pieces::new(wanted.id);
        for chunk in 0..wanted.chunks {
            let key = Key::body(wanted.id, chunk);
            let Some(value) = self.rocks.value(Family::Bodies, &key)? else {
                return Ok(Err(Unreadable::BodyMissing));
            };
            let kinds = &[Kind::Body, Kind::BodyChunk];
            let opened = self.opening.open(kinds, Family::Bodies, key.as_bytes(), &value, &mut self.text);
            pieces.add(chunk, opened, &self.text);
        }
        let (content, found) = pieces.finish(self.opening.is_plain());
        Ok(match content {
            Ok(_) if found != wanted => Err(Unreadable::BodySwapped),
            content => content,
        })
    }

    /// How often entries came back, which stands beside them.
    fn counts(&mut self, queue: QueueId, entries: &mut [RecoveredEntry]) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let (from, to) = (Key::delivery_count(queue, first.seq), Key::delivery_count(queue, last.seq));
        let rocks = Arc::clone(&self.rocks);
        rocks.range(Family::Meta, &from, &to, |key, value| {
            let Some(MetaKey::DeliveryCount(_, seq)) = parse_meta(key) else { return Ok(true) };
            let opened = self.opening.open(&[Kind::DeliveryCount], Family::Meta, key, value, &mut self.text);
            let count = opened.and_then(|_| Ok(read_delivery_count(&self.text)?));
            let at = entries.binary_search_by_key(&seq, |entry| entry.seq);
            // One that does not open is no reason to lose the message.
            if let (Ok((count, died)), Some(entry)) = (count, at.ok().and_then(|at| entries.get_mut(at))) {
                (entry.delivery_count, entry.died) = (entry.delivery_count.max(count), died);
            }
            Ok(true)
        })
    }
}
