//! The one clock of all queues: which is to be looked at when. Deadlines of clients may lie years ahead;
//! nobody ever sleeps longer than [`SLEEP_MS_MAX`], so no timer can overflow.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::engine_core::{Engine, now_ms};
use super::queue_cell::QueueRef;

/// The longest sleep in milliseconds.
const SLEEP_MS_MAX: u64 = 60_000;

/// Queues by their next deadline.
#[derive(Default)]
pub(super) struct Timers {
    /// by time, then by queue id
    due: Mutex<BTreeMap<(u64, u64), QueueRef>>,
    /// an earlier deadline than all before has come
    sooner: Notify,
}

impl Timers {
    /// Has `queue` looked at no later than `at_ms`.
    pub fn arm(&self, queue: &QueueRef, at_ms: u64) {
        let is_soon_enough = |armed: u64| (armed != 0 && armed <= at_ms) || armed == u64::MAX;
        if is_soon_enough(queue.due_ms.load(Ordering::Acquire)) {
            return;
        }
        let mut due = self.lock();
        let before = due.first_key_value().map(|((first, _), _)| *first);
        let armed = queue.due_ms.load(Ordering::Acquire);
        if is_soon_enough(armed) {
            return;
        }
        queue.due_ms.store(at_ms, Ordering::Release);
        if armed != 0 {
            due.remove(&(armed, queue.id.0));
        }
        due.insert((at_ms, queue.id.0), queue.clone());
        drop(due);
        if before.is_none_or(|first| at_ms < first) {
            self.sooner.notify_one();
        }
    }

    /// Forgets a queue that is gone: its deadline may be years ahead.
    pub fn disarm(&self, queue: &QueueRef) {
        let mut due = self.lock();
        let armed = queue.due_ms.swap(u64::MAX, Ordering::AcqRel);
        due.remove(&(armed, queue.id.0));
    }

    /// Takes out what is due, and says how long until the next.
    fn take_due(&self, now_ms: u64) -> (Vec<QueueRef>, u64) {
        let mut due = self.lock();
        let later = due.split_off(&(now_ms.saturating_add(1), 0));
        let taken: Vec<QueueRef> = std::mem::replace(&mut *due, later).into_values().collect();
        taken.iter().for_each(|queue| queue.due_ms.store(0, Ordering::Release));
        let next = due.first_key_value().map(|((at_ms, _), _)| at_ms.saturating_sub(now_ms));
        (taken, next.unwrap_or(SLEEP_MS_MAX).min(SLEEP_MS_MAX))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), QueueRef>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Looks at queues when their time has come, for as long as the broker runs.
    pub async fn keep_time(self: Arc<Engine>) {
        loop {
            let (due, sleep_ms) = self.timers.take_due(now_ms());
            for queue in &due {
                self.run_due(queue);
                // Ten thousand queues that are due at once leave room for connections in between.
                tokio::task::yield_now().await;
            }
            if due.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(sleep_ms)) => {}
                    () = self.timers.sooner.notified() => {}
                }
            }
        }
    }
}
