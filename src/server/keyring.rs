//! The keyring of the running broker for its operator: from what was asked to the store and back to a picture.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::engine::view::{DataKeyView, KeyringChange, KeyringRefused, KeyringView, ResealView, SlotView};
use crate::seal::Credential;
use crate::store::{KeyringFacts, ResealFacts, Store, StoreError, kek_from_file};

/// Does what was asked. Blocks: a passphrase takes a second, and each change is synced to the disk.
pub(super) fn change(store: &Store, change: KeyringChange) -> Result<KeyringView, KeyringRefused> {
    let changed = match change {
        KeyringChange::None => store.keyring(),
        // Read by the broker, so that a key which it could not read at its next start is refused now.
        KeyringChange::AddKey(path) => kek_from_file(&path).and_then(|kek| store.add_slot(kek.into())),
        KeyringChange::AddPassphrase(passphrase) => store.add_slot(Credential::Passphrase(passphrase)),
        KeyringChange::AddService(service) => store.add_slot(Credential::Service(service)),
        KeyringChange::RemoveSlot { slot, in_use_too } => store.remove_slot(&slot, in_use_too),
        KeyringChange::NewDataKey => store.rotate_data_key(),
        KeyringChange::Reseal { older_than } => store.reseal(older_than),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    changed.map(|facts| picture(facts, now)).map_err(refused)
}

fn refused(error: StoreError) -> KeyringRefused {
    KeyringRefused { code: error.code(), message: format!("{}: {error} ({})", error.code(), error.remedy()) }
}

fn picture(facts: KeyringFacts, now_ms: u64) -> KeyringView {
    let slots = facts.slots.into_iter().map(|slot| SlotView {
        id: slot.id,
        kind: slot.kind.to_owned(),
        state: if slot.is_active { "active" } else { "read-only" }.to_owned(),
        in_use: slot.is_in_use,
        cost: slot.cost.map(|cost| format!("m={},t={},p={}", cost.memory_kib, cost.passes, cost.lanes)),
    });
    let data_keys = facts.keys.into_iter().map(|key| DataKeyView {
        id: key.key_id,
        queue: key.queue,
        state: if key.seals { "seals" } else { "opens" }.to_owned(),
        created_ms: key.created_ms,
        age_seconds: now_ms.saturating_sub(key.created_ms) / 1000,
        retired_ms: key.retired_ms,
        records: key.records,
    });
    let ResealFacts { is_running, keys, resealed, left, unreadable } = facts.reseal;
    let state = if is_running { "running" } else { "idle" }.to_owned();
    KeyringView {
        store: facts.store,
        generation: facts.generation,
        slots: slots.collect(),
        data_keys: data_keys.collect(),
        reseal: ResealView { state, keys, resealed, left, unreadable },
    }
}
