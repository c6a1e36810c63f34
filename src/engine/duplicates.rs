//! What exchanges that drop duplicates remember. In memory only: after a restart they have seen nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::amqp::properties::Properties;
use crate::broker::dedup::{Cache, ExchangeRules};

/// One cache for each exchange that was ever asked. An exchange is known by its rules' address, which all
/// copies of it in snapshots of the topology share, and which a later exchange of the same name has not.
#[derive(Default)]
pub(super) struct Duplicates(RwLock<HashMap<usize, Arc<Seen>>>);

struct Seen {
    rules: Arc<ExchangeRules>,
    cache: Mutex<Cache>,
}

impl Duplicates {
    /// Whether the exchange has seen the message's value, and remembers it if not.
    pub fn has_seen(&self, rules: &Arc<ExchangeRules>, properties: &Properties<'_>, now_ms: u64) -> bool {
        let key = Arc::as_ptr(rules).addr();
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let seen = known.unwrap_or_else(|| self.add(key, rules));
        let mut cache = seen.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.is_duplicate(rules, properties, now_ms)
    }

    fn add(&self, key: usize, rules: &Arc<ExchangeRules>) -> Arc<Seen> {
        // Also those that went without anybody deleting them.
        self.forget_deleted();
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Seen { rules: rules.clone(), cache: Mutex::default() });
        all.entry(key).or_insert_with(new).clone()
    }

    /// Drops what exchanges had seen that are gone.
    pub fn forget_deleted(&self) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Held here alone: no snapshot of the topology has the exchange any more.
        all.retain(|_, seen| Arc::strong_count(&seen.rules) > 1);
    }
}
