//! Long queues: what is beyond a queue's window in memory is in the store only, and is read back before its turn
//! comes. The rules are `broker`'s (`level`); here is the thread that reads, so that neither a connection's task nor
//! a queue's lock ever waits for the disk.
//!
//! Whoever operates on a queue lets go of what the store has (`Contents::page_out`) and asks for the next page once
//! half of the window is gone. The thread reads it and puts it in as an operation like any other: heads expire,
//! consumers get theirs, and the next page is asked for. A page that was purged meanwhile is dropped.
//!
//! Paged are persistent messages in queues that are stored. Transient ones, those that came back from a consumer,
//! and those of delayed exchanges stay in memory.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::broker::id::QueueId;
use crate::broker::queue::{Entry, Page, PageRead, Rest, Run, Window};
use crate::limits::{PAGE_RETRY_MS, RESIDENT_BYTES_MAX, RESIDENT_MESSAGES_MAX};
use crate::store::{PageRequest, Position, RecoveredEntry, Store, StoredPage};

use super::engine_core::{Engine, EngineError, now_ms};
use super::outbox::Outbox;
use super::queue_cell::{Contents, QueueCell, QueueRef, Stored};

/// A page that is to be read.
pub(super) type Wanted = (QueueRef, Page);

/// What the engine has of the thread.
pub(super) struct Pager {
    wanted: Sender<Wanted>,
    /// connections that wait for a queue's next page
    waiting: Mutex<Vec<(QueueId, Arc<Outbox>)>>,
    len_max: AtomicUsize,
    bytes_max: AtomicUsize,
}

impl Pager {
    /// With what [`Engine::start_pager`] is to be given.
    pub fn new() -> (Pager, Receiver<Wanted>) {
        let (wanted, receiver) = channel();
        let (len_max, bytes_max) = (RESIDENT_MESSAGES_MAX.into(), RESIDENT_BYTES_MAX.into());
        (Pager { wanted, waiting: Mutex::default(), len_max, bytes_max }, receiver)
    }

    /// How much of each queue may be in memory.
    pub fn window(&self) -> Window {
        Window { len_max: self.len_max.load(Relaxed), bytes_max: self.bytes_max.load(Relaxed) }
    }

    /// Has a page read, soon.
    pub fn read(&self, queue: &QueueRef, page: Page) {
        // The thread ends with the engine, so it is there.
        let _ = self.wanted.send((queue.clone(), page));
    }

    /// Wakes the connection when a page of the queue has been read.
    pub fn wait(&self, queue: QueueId, outbox: &Arc<Outbox>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((queue, outbox.clone()));
    }

    fn wake(&self, queue: QueueId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let woken: Vec<_> = waiting.extract_if(.., |(of, _)| *of == queue).collect();
        drop(waiting);
        woken.iter().for_each(|(_, outbox)| outbox.wake_task());
    }
}

impl Stored {
    /// Where the entry's copy in the store is.
    pub(super) fn rest(&self, store: &Store) -> Rest {
        match self {
            Stored::No => Rest::Never,
            Stored::Yes { put_at, .. } if *put_at <= store.durable() => Rest::There,
            Stored::Yes { .. } => Rest::NotYet,
        }
    }
}

/// What was read back, as an entry of its queue.
pub(super) fn entry_of(found: RecoveredEntry) -> Entry<Stored> {
    let durable = Stored::Yes { put_at: Position(0), shared: found.shared };
    Entry {
        delivery_count: found.delivery_count,
        priority: found.meta.priority,
        expires_ms: found.meta.expires_ms,
        ..Entry::new(found.seq, found.message, durable)
    }
}

fn request(queue: &QueueCell, page: &Page) -> PageRequest {
    let Page { first, last, len_max, bytes_max, .. } = *page;
    PageRequest { queue: queue.id, first, last, len_max, bytes_max }
}

impl QueueCell {
    /// Has the store forget what was in the store only.
    pub(super) fn purge_stored(&self, runs: &[Run], store: &Store) {
        for run in runs {
            store.appender().purge_range(self.id, run.first, run.last, run.size_bytes);
        }
    }

    fn take_page(&self, contents: &mut Contents, page: &Page, read: StoredPage) {
        for lost in &read.quarantined {
            let (queue, seq, code) = (lost.queue.0, lost.seq.0, lost.code);
            tracing::error!(
                queue,
                seq,
                code,
                "a message cannot be read; it is kept and will not be delivered"
            );
        }
        let entries = read.entries.into_iter().map(entry_of).collect();
        let lost = read.quarantined.len() as u64;
        contents.page_in(page, PageRead { entries, lost, upto: read.upto });
    }
}

impl Engine {
    /// Starts the thread; it ends with the engine.
    pub(super) fn start_pager(self: &Arc<Engine>, wanted: Receiver<Wanted>) -> Result<(), EngineError> {
        let engine = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("sealmq-pager".into());
        let started = thread.spawn(move || read_pages(&engine, &wanted));
        started.map(drop).map_err(|e| EngineError::Thread(e.to_string()))
    }

    /// How much of each queue stays in memory when there is more: so many messages, and bytes of bodies.
    pub fn set_window(&self, len_max: usize, bytes_max: usize) {
        self.pager.len_max.store(len_max, Relaxed);
        self.pager.bytes_max.store(bytes_max, Relaxed);
        let topology = self.topology.load();
        topology.queues().for_each(|(_, queue)| self.with_queue(queue, |_, _| ()));
    }

    /// Reads the beginning of what a queue has, before anybody can ask for it.
    pub(super) fn open_window(&self, queue: &QueueRef) {
        let next = || queue.lock().next_page(OPENING);
        while let Some(page) = next() {
            match self.store.page(&request(queue, &page)) {
                Ok(read) => queue.take_page(&mut queue.lock(), &page, read),
                // Whoever uses the queue has it tried again.
                Err(_) => return queue.lock().page_failed(),
            }
        }
    }

    fn read_page(&self, queue: &QueueRef, page: &Page) {
        match self.store.page(&request(queue, page)) {
            Ok(read) => self.with_queue(queue, |contents, _| queue.take_page(contents, page, read)),
            Err(error) => {
                let (id, code) = (queue.id.0, error.code());
                tracing::error!(
                    queue = id,
                    code,
                    "messages cannot be read back, which is tried again: {error}"
                );
                queue.lock().page_failed();
                self.timers.arm(queue, now_ms().saturating_add(PAGE_RETRY_MS));
            }
        }
        self.pager.wake(queue.id);
    }
}

/// What is read of each queue at the start: enough for the first consumers, and little where queues are many.
const OPENING: Window = Window { len_max: 128, bytes_max: 128 * 1024 };

fn read_pages(engine: &Weak<Engine>, wanted: &Receiver<Wanted>) {
    while let Ok((queue, page)) = wanted.recv() {
        let Some(engine) = engine.upgrade() else { return };
        engine.read_page(&queue, &page);
    }
}
