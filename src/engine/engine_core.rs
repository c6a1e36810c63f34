//! What there is once: the topology snapshot, the store, the users, the connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use slab::Slab;

use crate::broker::hash::mix;
use crate::broker::topology::Topology;
use crate::limits::INBOX_BYTES_MAX;
use crate::store::{Position, Recovered, Store, StoreError};

use super::access::{UserSpec, Users};
use super::alarm::{Alarm, AlarmState};
use super::client::Client;
use super::duplicates::Duplicates;
use super::outbox::Outbox;
use super::pager::Pager;
use super::queue_cell::QueueRef;
use super::recover;
use super::replies::Replies;
use super::timers::Timers;

/// What keeps the engine from starting.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A row that opened under its key but cannot be read: written by a newer version, or a defect.
    #[error(
        "the store's {kind} row {id} cannot be read: {reason}; it was written by another version of SealMQ"
    )]
    Row {
        /// what the row is
        kind: &'static str,
        /// its number
        id: u64,
        /// what is wrong
        reason: String,
    },
    /// A user's password could not be hashed or a user not be stored.
    #[error("user '{user}': {reason}")]
    User {
        /// the user's name
        user: String,
        /// what is wrong
        reason: String,
    },
    /// Messages could not be read.
    #[error("{code}: {0} ({remedy})", code = .0.code(), remedy = .0.remedy())]
    Store(#[from] StoreError),
    /// A thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(String),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes: {0}")]
    Random(String),
}

/// The broker behind all connections.
pub struct Engine {
    /// the name of the one virtual host of this version
    pub(super) vhost: String,
    pub(super) topology: ArcSwap<Topology<QueueRef>>,
    /// held by whoever changes the topology, from reading it to swapping the new one in
    write: Mutex<()>,
    pub(super) store: Arc<Store>,
    pub(super) users: Users,
    connections: Mutex<Slab<Arc<Outbox>>>,
    next_connection: AtomicU64,
    /// see [`Engine::draw`]
    draws: AtomicU64,
    alarm: AlarmState,
    pub(super) timers: Timers,
    pub(super) pager: Pager,
    pub(super) replies: Replies,
    pub(super) duplicates: Duplicates,
    stopping: AtomicBool,
}

impl Engine {
    /// Rebuilds queues, exchanges, bindings and users from what the store gave back; they are all in the
    /// virtual host of that name.
    ///
    /// # Errors
    /// [`EngineError::Row`] for a row that cannot be understood; nothing is dropped silently.
    pub fn start(store: Arc<Store>, recovered: Recovered, vhost: &str) -> Result<Arc<Engine>, EngineError> {
        let rebuilt = recover::rebuild(&store, recovered)?;
        let (pager, wanted) = Pager::new();
        let engine = Arc::new(Engine {
            vhost: vhost.to_owned(),
            topology: ArcSwap::from_pointee(rebuilt.topology),
            write: Mutex::new(()),
            store,
            users: rebuilt.users,
            connections: Mutex::new(Slab::new()),
            next_connection: AtomicU64::new(1),
            // Not the same sequence after each restart.
            draws: AtomicU64::new(now_ms()),
            alarm: AlarmState::default(),
            timers: Timers::default(),
            pager,
            replies: Replies::default(),
            duplicates: Duplicates::default(),
            stopping: AtomicBool::new(false),
        });
        engine.start_pager(wanted)?;
        // Times to live went on while the broker was down.
        let now_ms = now_ms();
        let topology = engine.topology.load();
        let delay_queues = topology.exchanges().filter_map(|exchange| exchange.delay_queue());
        for queue in topology.queues().map(|(_, queue)| queue).chain(delay_queues) {
            engine.open_window(queue);
            engine.timers.arm(queue, now_ms);
        }
        drop(topology);
        Ok(engine)
    }

    /// The broker as a new connection sees it, and where its deliveries will wait.
    pub fn connect(self: &Arc<Engine>) -> (Client, Arc<Outbox>) {
        let outbox = Arc::new(Outbox::default());
        let slot = self.connections().insert(outbox.clone());
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        (Client::new(self.clone(), outbox.clone(), slot, id), outbox)
    }

    pub(super) fn disconnect(&self, slot: usize) {
        self.connections().try_remove(slot);
    }

    /// How many connections there are.
    pub fn connection_count(&self) -> usize {
        self.connections().len()
    }

    /// The users who may log in.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Creates the user, or makes the existing one as the specification says (configuration is the only
    /// source of users in this version, so what it says holds).
    ///
    /// # Errors
    /// [`EngineError::User`] when the password cannot be hashed or a permission is no regular expression.
    pub fn ensure_user(&self, spec: &UserSpec<'_>) -> Result<(), EngineError> {
        self.users.ensure(&self.store, &self.vhost, spec)
    }

    /// The store, for probes and statistics.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The present alarm, for connections to block their publishers.
    pub fn alarm(&self) -> Option<&'static str> {
        self.alarm.reason()
    }

    /// Raises or ends alarms; connections are woken when that changes anything.
    pub fn set_alarm(&self, alarm: Alarm) {
        if self.alarm.set(alarm) {
            self.wake_all();
        }
    }

    /// Whether so much waits for the committer that publishers must stop reading.
    pub fn is_congested(&self) -> bool {
        self.store.backlog_bytes() > INBOX_BYTES_MAX
    }

    /// Wakes `waker` once when what waits for the committer now is on the disk: who stops reading because
    /// of [`Engine::is_congested`] looks again then.
    pub fn wake_after_commit(&self, waker: &Waker) {
        self.store.appender().wake(waker.clone());
    }

    /// Has every connection say goodbye; nothing new is to be accepted from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Whether [`Engine::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Tells the store how far each queue was delivered, for a clean end; the store is closed after.
    pub fn note_deliveries(&self) {
        let topology = self.topology.load();
        for (_, queue) in topology.queues().filter(|(_, queue)| queue.is_stored()) {
            let furthest = queue.lock().taken_up_to();
            self.store.appender().delivered_up_to(queue.id, furthest);
        }
    }

    /// A number for a choice by chance: spread evenly, not secret.
    pub(super) fn draw(&self) -> u64 {
        mix(self.draws.fetch_add(DRAW_STEP, Ordering::Relaxed))
    }

    fn wake_all(&self) {
        let outboxes: Vec<_> = self.connections().iter().map(|(_, outbox)| outbox.clone()).collect();
        outboxes.iter().for_each(|outbox| outbox.wake_task());
    }

    fn connections(&self) -> MutexGuard<'_, Slab<Arc<Outbox>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to wait for before saying that something stored is there, or gone, although this caller changed
    /// nothing: whoever did may still be waiting for the commit.
    pub(super) fn as_found(&self, is_stored: bool) -> Position {
        if is_stored { self.store.appender().place_of_all() } else { Position(0) }
    }

    /// Changes the topology: `change` works on a copy and appends its rows to the store meanwhile, so
    /// that the order of rows is the order of changes; on success the copy becomes the snapshot.
    pub(super) fn change<T, E>(
        &self,
        change: impl FnOnce(&mut Topology<QueueRef>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _only_one = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Topology::clone(&self.topology.load());
        let done = change(&mut next)?;
        self.topology.store(Arc::new(next));
        Ok(done)
    }
}

/// Between two draws; odd, so that the sequence has the full period, and SplitMix64's own.
pub(super) const DRAW_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The later of two places in the commit order.
pub(super) fn later(a: Position, b: Position) -> Position {
    a.max(b)
}
