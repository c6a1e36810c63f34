//! What the committer does about keys: a new data key when the old one has served its time, dropping those that
//! nothing needs any more, and what an operator asks for.
//!
//! A key is dropped after a commit, when all that freed it is on the disk: nothing in the ledger needs it, nothing
//! waits to be cleared away, and no body that was sealed with it in advance is still on its way into a batch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::committer::{Committer, now_ms, refused};
use super::error::{CommitFailure, SlotRefusal, StoreError};
use super::key_admin::{DataKeyFacts, KeyChange, KeyRequest, KeyringFacts, SlotFacts};
use super::key_use::KeyUse;
use super::keyring_file::{queue_of, seals};
use super::sealing::{Opening, Sealing};
use crate::limits::{DATA_KEY_HOURS_MAX, DATA_KEY_RECORDS_MAX, DATA_KEYS_ALARM};
use crate::seal::keyring::{KeyEntry, hex};
use crate::seal::record::{Key, Opener, Sealer};

/// A data key while it seals. Whoever holds one beside the inbox has sealed or will seal a body with it that is not
/// in a batch yet.
pub(super) struct Epoch {
    pub(super) key: Arc<Key>,
}

/// The committer's memory of its keys.
pub(super) struct KeyDuty {
    /// Records sealed under the current data key.
    pub(super) sealed: u64,
    pub(super) sealed_max: u64,
    since: Instant,
    pub(super) age_max: Duration,
    /// Former data keys, to see whether somebody still holds one.
    retired: Vec<Arc<Epoch>>,
    /// Some records cannot be read, so their keys are not known.
    keep_all: bool,
    /// What is to be done when the batch is on the disk.
    pub(super) requests: Vec<Arc<KeyRequest>>,
}

impl KeyDuty {
    pub(super) fn new(keep_all: bool) -> KeyDuty {
        KeyDuty {
            sealed: 0,
            sealed_max: DATA_KEY_RECORDS_MAX,
            since: Instant::now(),
            age_max: Duration::from_secs(DATA_KEY_HOURS_MAX * 3600),
            retired: Vec::new(),
            keep_all,
            requests: Vec::new(),
        }
    }

    /// No key goes because nothing seems to need it.
    pub(super) fn keeps_all(&self) -> bool {
        self.keep_all
    }

    fn holds(&self, key_id: u32) -> bool {
        self.retired.iter().any(|epoch| epoch.key.id == key_id && Arc::strong_count(epoch) > 1)
    }
}

impl Committer {
    /// A fresh nonce prefix for this commit, and a new data key when the old one has served its time.
    pub(super) fn renew_keys(&mut self) -> Result<(), CommitFailure> {
        let duty = &self.key_duty;
        let is_due = duty.sealed >= duty.sealed_max || duty.since.elapsed() >= duty.age_max;
        if is_due && self.keyring.is_some() {
            self.new_data_key().map_err(refused)?;
        }
        self.sealing.renew().map_err(refused)
    }

    pub(super) fn new_data_key(&mut self) -> Result<(), StoreError> {
        let (Some(file), Sealing::Sealed { data, .. }) = (&mut self.keyring, &mut self.sealing) else {
            return Err(SlotRefusal::NoKeyring.into());
        };
        let key = file.next_data_key(now_ms(), |_| true)?;
        **data = Sealer::new(Arc::clone(&key), file.ring().store).map_err(|e| file.system(e))?;
        tracing::info!(
            key_id = key.id,
            generation = file.ring().generation,
            "a new data key seals from now on"
        );
        let data_keys = file.ring().keys.iter().filter(|entry| queue_of(entry).is_none()).count();
        if data_keys > DATA_KEYS_ALARM {
            tracing::warn!(data_keys, "very old messages keep very old data keys");
        }
        self.ledger.key_use.seals_with(key.id);
        let former = self.core.data_key.swap(Some(Arc::new(Epoch { key })));
        self.key_duty.retired.extend(former);
        (self.key_duty.since, self.key_duty.sealed) = (Instant::now(), 0);
        self.read_with_all_keys();
        Ok(())
    }

    /// Whoever reads back knows of the keys that there are now, and of no others.
    pub(super) fn read_with_all_keys(&mut self) {
        let Some(file) = &self.keyring else { return };
        let keys = file.keys();
        self.opening = Opening::Sealed(Box::new(Opener::new(keys.clone(), file.ring().store)));
        self.core.keys.store(Arc::new(keys));
    }

    /// After each commit: answers operators, and drops the data keys that the commit has freed.
    pub(super) fn tend_keys(&mut self) {
        for request in std::mem::take(&mut self.key_duty.requests) {
            let answer = self.change_keys(&request.change);
            request.give(answer);
        }
        if self.purges.is_empty() && !self.key_duty.keep_all && self.ledger.key_use.take_idle() {
            self.drop_data_keys();
        }
    }

    fn drop_data_keys(&mut self) {
        let Some(file) = &mut self.keyring else { return };
        let (key_use, duty, reseal) = (&mut self.ledger.key_use, &mut self.key_duty, &self.reseal);
        // Queues' own keys have their own rules (shred.rs).
        let is_free = |entry: &KeyEntry, key_use: &KeyUse| {
            let is_common = !seals(entry) && queue_of(entry).is_none();
            is_common && key_use.count(entry.key_id) == 0 && !reseal.uses(entry.key_id)
        };
        if file.ring().keys.iter().any(|entry| is_free(entry, key_use) && duty.holds(entry.key_id)) {
            // Somebody will put the body into a batch, or give it up; both end in a commit.
            key_use.look_again();
        }
        match file.drop_keys(|entry| !is_free(entry, key_use) || duty.holds(entry.key_id)) {
            Ok(dropped) if dropped.is_empty() => {}
            Ok(dropped) => {
                tracing::info!(?dropped, "data keys that no record needs are dropped");
                duty.retired.retain(|epoch| !dropped.contains(&epoch.key.id));
                key_use.forget(&dropped);
                self.read_with_all_keys();
            }
            // They stay until another one becomes free.
            Err(e) => {
                tracing::warn!(code = e.code(), "data keys that no record needs cannot be dropped: {e}")
            }
        }
    }

    fn change_keys(&mut self, change: &KeyChange) -> Result<KeyringFacts, StoreError> {
        let Some(file) = &mut self.keyring else { return Err(SlotRefusal::NoKeyring.into()) };
        match change {
            KeyChange::None => {}
            KeyChange::AddSlot(key) => {
                file.add_slot(key)?;
                let (slot, generation) = (hex(&key.slot_id()), file.ring().generation);
                tracing::info!(slot, generation, "keyring: a slot was added");
            }
            KeyChange::RemoveSlot { id, in_use_too } => {
                let slot = file.remove_slot(id, *in_use_too)?;
                tracing::info!(slot, generation = file.ring().generation, "keyring: a slot was removed");
            }
            KeyChange::NewDataKey => self.new_data_key()?,
            KeyChange::Reseal { older_than } => self.start_reseal(*older_than)?,
        }
        self.keyring_facts()
    }

    fn keyring_facts(&self) -> Result<KeyringFacts, StoreError> {
        let Some(ring) = self.keyring.as_ref().map(|file| file.ring()) else {
            return Err(SlotRefusal::NoKeyring.into());
        };
        let slot = |slot: &crate::seal::keyring::Slot| SlotFacts {
            id: hex(&slot.id()),
            kind: slot.kind().name(),
            is_active: slot.is_active(),
            is_in_use: slot.id() == ring.opened_by,
            cost: slot.cost(),
        };
        let key = |entry: &crate::seal::keyring::KeyEntry| DataKeyFacts {
            key_id: entry.key_id,
            queue: queue_of(entry).map(|queue| queue.0),
            seals: seals(entry),
            created_ms: entry.created_ms,
            retired_ms: Some(entry.retired_ms).filter(|at| *at > 0),
            records: self.ledger.key_use.count(entry.key_id),
        };
        Ok(KeyringFacts {
            store: hex(&ring.store),
            generation: ring.generation,
            slots: ring.slots.iter().map(slot).collect(),
            keys: ring.keys.iter().map(key).collect(),
            reseal: self.reseal_facts(),
        })
    }
}
