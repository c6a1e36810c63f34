//! Queues with keys of their own (`x-seal-shred`): what they hold is sealed under a key that nothing else is, and
//! that is destroyed when the queue is deleted or purged. What is left of it on the disk then, in this store or in a
//! copy of its database, is never readable again: not with the KEK and the keyring as it is now.
//!
//! * The key is in the keyring before the queue's row is in the database.
//! * It is destroyed after the commit that drops the queue, and before anybody is told of that. Records that are not
//!   cleared away by then stay unreadable; recovery knows them by their queue's manifest.
//! * A purge makes a new key. The former one goes at once, or, if consumers hold messages that it sealed, with
//!   the last of these.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::committer::{Committer, now_ms, refused};
use super::error::CommitFailure;
use super::keyring_file::{KeyringFile, queue_of, seals};
use crate::broker::id::QueueId;
use crate::limits::{GONE_QUEUES_MAX, QUEUE_KEYS_MAX};
use crate::seal::nonce::NoRandomness;
use crate::seal::record::{Key, Sealer};

/// The keys of single queues, in the committer's hands.
#[derive(Default)]
pub(super) struct QueueKeys {
    live: HashMap<QueueId, OwnKey, foldhash::fast::RandomState>,
    /// Dropped, the oldest first; their keys are destroyed or will be.
    gone: VecDeque<QueueId>,
    gone_set: HashSet<QueueId, foldhash::fast::RandomState>,
    /// Dropped by a commit, and their keys are still in the keyring.
    doomed: Vec<QueueId>,
    /// Some queue has a former key.
    has_former: bool,
    /// Former keys that nothing needs could not be destroyed.
    is_owed: bool,
}

struct OwnKey {
    sealer: Sealer,
    /// The commit for which the sealer's prefix was drawn.
    renewed_for: u64,
}

/// Under which key a queue's records are sealed.
pub(super) enum Under<'a> {
    /// The key of all.
    Common,
    Own(&'a Sealer),
    /// The queue is gone, and its key with it.
    Nothing,
}

impl QueueKeys {
    /// Takes over what the keyring holds.
    pub(super) fn of(file: &KeyringFile) -> Result<QueueKeys, NoRandomness> {
        let mut keys = QueueKeys::default();
        for entry in &file.ring().keys {
            let Some(queue) = queue_of(entry) else { continue };
            if seals(entry) {
                keys.put(queue, Arc::new(Key::data(entry.key_id, &entry.key)), file.ring().store)?;
            } else {
                keys.has_former = true;
            }
        }
        Ok(keys)
    }

    fn put(&mut self, queue: QueueId, key: Arc<Key>, store: [u8; 16]) -> Result<(), NoRandomness> {
        let own = OwnKey { sealer: Sealer::new(key, store)?, renewed_for: u64::MAX };
        self.has_former |= self.live.insert(queue, own).is_some();
        Ok(())
    }

    /// What seals a queue's records in the commit after `commit_seq`, with a prefix of that commit's own.
    pub(super) fn under(&mut self, queue: QueueId, commit_seq: u64) -> Result<Under<'_>, NoRandomness> {
        if self.live.is_empty() && self.gone.is_empty() {
            return Ok(Under::Common);
        }
        match self.live.get_mut(&queue) {
            Some(own) => {
                if own.renewed_for != commit_seq {
                    own.sealer.renew()?;
                    own.renewed_for = commit_seq;
                }
                Ok(Under::Own(&own.sealer))
            }
            None if self.gone_set.contains(&queue) => Ok(Under::Nothing),
            None => Ok(Under::Common),
        }
    }

    /// The queue is dropped with the commit that is being made.
    /// Whether it had a key of its own.
    pub(super) fn drop_queue(&mut self, queue: QueueId) -> bool {
        if self.live.remove(&queue).is_none() {
            return false;
        }
        self.doomed.push(queue);
        self.gone_set.insert(queue);
        self.gone.push_back(queue);
        if self.gone.len() > GONE_QUEUES_MAX
            && let Some(oldest) = self.gone.pop_front()
        {
            self.gone_set.remove(&oldest);
        }
        true
    }

    /// Whether the queue had a key of its own and is gone.
    pub(super) fn is_gone(&self, queue: QueueId) -> bool {
        self.gone_set.contains(&queue)
    }
}

impl Committer {
    /// Gives a queue a key of its own, synced to the disk; with `anew` also one that has a key.
    pub(super) fn own_key(&mut self, queue: QueueId, anew: bool) -> Result<(), CommitFailure> {
        let Some(file) = &mut self.keyring else { return Ok(()) };
        if self.queue_keys.live.contains_key(&queue) != anew {
            // It has one already; or it was deleted while it was being purged.
            return Ok(());
        }
        let is_its = |entry: &&crate::seal::keyring::KeyEntry| queue_of(entry) == Some(queue);
        if file.ring().keys.iter().filter(is_its).count() >= QUEUE_KEYS_MAX {
            let queue = queue.0;
            tracing::warn!(queue, "consumers hold messages from before many purges; its key is not replaced");
            return Ok(());
        }
        if anew && self.key_duty.keeps_all() {
            let queue = queue.0;
            tracing::warn!(queue, "messages are in quarantine; the queue's former key is kept");
        }
        let former: Vec<u32> = file.ring().keys.iter().filter(is_its).map(|entry| entry.key_id).collect();
        let key = file.next_queue_key(queue, now_ms()).map_err(refused)?;
        let (queue_id, key_id, generation) = (queue.0, key.id, file.ring().generation);
        tracing::info!(queue = queue_id, key_id, generation, "a queue has a new key of its own");
        self.ledger.key_use.own(key_id, true);
        former.into_iter().for_each(|key| self.ledger.key_use.own(key, false));
        self.queue_keys.put(queue, key, file.ring().store).map_err(refused)?;
        self.read_with_all_keys();
        Ok(())
    }

    /// After a commit, and before anybody is told of it: destroys the keys of queues that it dropped, and former ones
    /// that no live record needs.
    pub(super) fn destroy_queue_keys(&mut self) {
        let keys = &mut self.queue_keys;
        let may_be_free =
            keys.has_former && (keys.is_owed || self.ledger.key_use.is_idle()) && !self.key_duty.keeps_all();
        let is_due = !keys.doomed.is_empty() || may_be_free;
        let Some(file) = self.keyring.as_mut().filter(|_| is_due) else { return };
        let (key_use, purges) = (&self.ledger.key_use, &self.purges);
        let may_go = |queue| !self.key_duty.keeps_all() && !purges.iter().any(|purge| purge.queue == queue);
        let destroyed = file.drop_keys(|entry| match queue_of(entry) {
            None => true,
            Some(queue) if keys.doomed.contains(&queue) => false,
            Some(queue) => seals(entry) || key_use.count(entry.key_id) > 0 || !may_go(queue),
        });
        match destroyed {
            Ok(destroyed) => {
                keys.doomed.clear();
                keys.is_owed = false;
                keys.has_former =
                    file.ring().keys.iter().any(|entry| queue_of(entry).is_some() && !seals(entry));
                let generation = file.ring().generation;
                self.ledger.key_use.forget(&destroyed);
                if !destroyed.is_empty() {
                    self.read_with_all_keys();
                    tracing::info!(?destroyed, generation, "keys of queues are destroyed");
                }
            }
            // Tried again after the next commit, and by the next start.
            Err(e) => {
                keys.is_owed = true;
                tracing::error!(code = e.code(), "keys of queues cannot be destroyed: {e}");
            }
        }
    }
}
