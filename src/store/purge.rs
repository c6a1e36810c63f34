//! What is gone and still lies in the database: cleared away a step per batch, by the committer.

use std::collections::VecDeque;
use std::sync::Arc;

use super::body::SharedBody;
use super::committer::{Committer, refused};
use super::error::CommitFailure;
use super::layout::{Family, Key};
use super::ledger::Dropped;
use super::live::LiveSet;
use super::record::{Entry, read_entry};
use super::rocks::{Batch, Puts};
use crate::broker::id::{BodyId, QueueId, Seq};
use crate::seal::envelope::Kind;

/// Entries and bodies of a queue that is gone, cleared away a step per batch.
#[derive(Default)]
pub(super) struct Purge {
    pub(super) queue: QueueId,
    pub(super) seqs: LiveSet,
    /// Entries that are no part of the queue: what they name is not theirs.
    pub(super) extra: Vec<Seq>,
    /// Bodies of some of the queue's own, in order.
    pub(super) shared: VecDeque<(Seq, Arc<SharedBody>)>,
    /// The others may have bodies as well, which only the records name.
    pub(super) reads: bool,
    /// How often some of the entries may have been written.
    pub(super) puts: Puts,
    /// What goes with the last step: the mark that says what is to be cleared away.
    pub(super) mark: Option<Key>,
    /// Delivery counts of entries that are gone.
    pub(super) counts: VecDeque<(QueueId, Seq)>,
    /// Bodies that no entry names.
    pub(super) orphans: VecDeque<(BodyId, u32)>,
}

impl Purge {
    /// What was dropped of a queue; the mark says so until it is cleared away.
    pub(super) fn of(queue: QueueId, dropped: Dropped, mark: Key) -> Purge {
        let counts = dropped.counted.into_iter().map(|seq| (queue, seq)).collect();
        Purge {
            queue,
            seqs: dropped.seqs,
            extra: dropped.extra,
            counts,
            reads: dropped.has_bodies,
            puts: dropped.puts,
            mark: Some(mark),
            ..Purge::default()
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.seqs.len() as usize + self.extra.len() + self.counts.len() + self.orphans.len()
    }
}

impl Committer {
    /// An entry that nobody holds is cleared away: its body is named by its record. One that cannot be read leaves
    /// its body behind.
    pub(super) fn settle_unread(
        &mut self,
        queue: QueueId,
        seq: Seq,
        batch: &mut Batch<'_>,
    ) -> Result<(), CommitFailure> {
        let key = Key::entry(queue, seq);
        let value = self.rocks.value(Family::Entries, &key).map_err(refused)?.unwrap_or_default();
        let mut text = Vec::new();
        let opened = self.opening.open(&[Kind::Entry], Family::Entries, key.as_bytes(), &value, &mut text);
        let entry = opened.and_then(|_| Ok(read_entry(&text)?));
        if let Ok(Entry { content: Err(body), promised, .. }) = entry {
            let settled = self.bodies.settle_stored(body, promised);
            self.remove(settled, batch);
        }
        Ok(())
    }
}
