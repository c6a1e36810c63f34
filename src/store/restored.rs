//! What the committer starts with after a recovery, and which keys are still needed then.

use std::collections::HashSet;

use super::body::BodyCounts;
use super::keyring_file::{queue_of, seals};
use super::purge::Purge;
use super::record::CommitRow;
use super::recovered::Recovered;
use super::recovery::Counts;
use super::sweep::Sweeper;
use crate::seal::keyring::KeyEntry;

/// A recovered store, but for its files.
pub(super) struct Restored {
    pub(super) recovered: Recovered,
    pub(super) counts: Counts,
    pub(super) bodies: BodyCounts,
    pub(super) purges: Vec<Purge>,
    pub(super) commit: CommitRow,
    pub(super) next_body: u64,
    pub(super) next_row: u64,
    /// Keys that records name, some of which may be left of what is gone.
    pub(super) used_keys: HashSet<u32>,
    /// Queues that are declared.
    pub(super) queue_rows: HashSet<u64>,
    /// Knows what was deleted without tombstones.
    pub(super) sweeper: Sweeper,
    /// A record does not tell its key, so none can be dropped.
    pub(super) keep_all_keys: bool,
}

impl Restored {
    /// Whether a key may still be needed. A queue's own key is for as long as the queue is there, and then goes at
    /// once, whatever is left of its records: a crash came before it was destroyed.
    pub(super) fn needs(&self, entry: &KeyEntry) -> bool {
        let Some(queue) = queue_of(entry) else {
            return self.keep_all_keys || self.used_keys.contains(&entry.key_id);
        };
        let is_there =
            self.queue_rows.contains(&queue.0) || self.counts.ledger.manifest(queue).live_count > 0;
        let is_used = || self.keep_all_keys || self.counts.ledger.key_use.count(entry.key_id) > 0;
        is_there && (seals(entry) || is_used())
    }
}
