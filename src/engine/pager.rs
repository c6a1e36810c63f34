//! Long queues: what is beyond a queue's window in memory is in the store only, and is read back before its turn
//! comes. The rules are `broker`'s (`level`); here is the thread that reads, so that neither a connection's task nor
//! a queue's lock ever waits for the disk.
//!
//! Whoever operates on a queue lets go of what the store has (`Contents::page_out`) and asks for the next page once
//! half of what was read ahead is gone. The thread reads it and puts it in as an operation like any other: heads expire,
//! consumers get theirs, and the next page is asked for. A page that was purged meanwhile is dropped.
//!
//! Paged are persistent messages in queues that are stored. The same thread does it for transient ones (`spiller`).
//! Persistent ones that came back from a consumer and all that delayed exchanges hold back stay in memory.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::broker::id::QueueId;
use crate::broker::queue::{Block, Entry, Page, PageRead, Rest, Run, Window};
use crate::limits::{
    PAGE_RETRY_MS, RESIDENT_BYTES_MAX, RESIDENT_BYTES_MIN, RESIDENT_MESSAGES_MAX, RESIDENT_MESSAGES_MIN,
    RESIDENT_TRANSIENT_TIMES,
};
use crate::store::{PageRequest, Position, Quarantined, RecoveredEntry, Store, StoreError, StoredPage};

use super::engine_core::{Engine, EngineError, now_ms};
use super::outbox::Outbox;
use super::queue_cell::{Contents, QueueCell, QueueRef, Stored};
use super::spiller::Spiller;

/// What the thread is to do.
pub(super) enum Wanted {
    /// read a page
    Page(QueueRef, Page),
    /// put what is beyond a window and in no store on the disk
    Spill(QueueRef),
    /// forget blocks of that, which nobody will read
    GiveUp(Vec<Block>),
    /// have all queues let go of what is beyond their windows
    Fit,
}

/// What the engine has of the thread.
pub(super) struct Pager {
    wanted: Sender<Wanted>,
    /// connections that wait for a queue's next page
    waiting: Mutex<Vec<(QueueId, Arc<Outbox>)>>,
    len_max: AtomicUsize,
    bytes_max: AtomicUsize,
    /// how short memory is: the windows are that many times halved
    pressure: AtomicU32,
    /// `disk_free_limit`
    disk_reserve_bytes: AtomicU64,
}

impl Pager {
    /// With what [`Engine::start_pager`] is to be given.
    pub fn new() -> (Pager, Receiver<Wanted>) {
        let (wanted, receiver) = channel();
        let (len_max, bytes_max) = (RESIDENT_MESSAGES_MAX.into(), RESIDENT_BYTES_MAX.into());
        let (waiting, pressure, disk_reserve_bytes) = Default::default();
        (Pager { wanted, waiting, len_max, bytes_max, pressure, disk_reserve_bytes }, receiver)
    }

    /// How much of each queue may be in memory of what the store has.
    pub fn window(&self) -> Window {
        let (len_max, bytes_max) = (self.len_max.load(Relaxed), self.bytes_max.load(Relaxed));
        let pressure = self.pressure.load(Relaxed);
        Window {
            len_max: (len_max >> pressure).max(len_max.min(RESIDENT_MESSAGES_MIN)),
            bytes_max: (bytes_max >> pressure).max(bytes_max.min(RESIDENT_BYTES_MIN)),
        }
    }

    /// How much of each queue may be in memory in all, before what no store has is spilled.
    pub fn window_in_all(&self) -> Window {
        let window = self.window();
        let times = if self.pressure.load(Relaxed) == 0 { RESIDENT_TRANSIENT_TIMES } else { 1 };
        let scaled = |limit: usize| limit.saturating_mul(times);
        Window { len_max: scaled(window.len_max), bytes_max: scaled(window.bytes_max) }
    }

    /// Has a page read, soon.
    pub fn read(&self, queue: &QueueRef, page: Page) {
        // The thread ends with the engine, so it is there.
        let _ = self.wanted.send(Wanted::Page(queue.clone(), page));
    }

    /// Has what a queue asks for written, soon.
    pub fn spill(&self, queue: &QueueRef) {
        let _ = self.wanted.send(Wanted::Spill(queue.clone()));
    }

    /// Has blocks forgotten that a queue has given up.
    pub fn give_up(&self, blocks: &[Block]) {
        if !blocks.is_empty() {
            let _ = self.wanted.send(Wanted::GiveUp(blocks.to_vec()));
        }
    }

    /// What spilling leaves free, and more.
    pub fn disk_reserve_bytes(&self) -> u64 {
        self.disk_reserve_bytes.load(Relaxed)
    }

    /// Wakes the connection when a page of the queue has been read.
    pub fn wait(&self, queue: QueueId, outbox: &Arc<Outbox>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((queue, outbox.clone()));
    }

    /// Wakes those who wait for a page of the queue, or for what becomes of it.
    pub fn wake(&self, queue: QueueId) {
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
            Stored::No => Rest::Nowhere,
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

/// What cannot be read back is never passed over in silence.
pub(super) fn tell_of(quarantined: &[Quarantined]) {
    for lost in quarantined {
        let (queue, seq, code) = (lost.queue.0, lost.seq.0, lost.code);
        tracing::error!(queue, seq, code, "a message cannot be read; it is kept and will not be delivered");
    }
}

fn request(queue: &QueueCell, page: &Page) -> PageRequest {
    let &Page { first, last, len_max, bytes_max, .. } = page;
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
        let entries = read.entries.into_iter().map(entry_of).collect();
        let lost = read.quarantined.len() as u64;
        let is_wanted = contents.page_in(page, PageRead { entries, lost, upto: read.upto });
        // What is purged while it is read may be there in part only.
        if is_wanted {
            tell_of(&read.quarantined);
        }
    }
}

impl Engine {
    /// Starts the thread; it ends with the engine.
    pub(super) fn start_pager(self: &Arc<Engine>, wanted: Receiver<Wanted>) -> Result<(), EngineError> {
        let engine = Arc::downgrade(self);
        let mut spiller = Spiller::new(self.store.spill()?);
        let thread = std::thread::Builder::new().name("sealmq-pager".into());
        let started = thread.spawn(move || read_pages(&engine, &wanted, &mut spiller));
        started.map(drop).map_err(|e| EngineError::Thread(e.to_string()))
    }

    /// How much of each queue stays in memory when there is more: so many messages, and bytes of bodies.
    pub fn set_window(&self, len_max: usize, bytes_max: usize) {
        self.pager.len_max.store(len_max, Relaxed);
        self.pager.bytes_max.store(bytes_max, Relaxed);
        self.fit();
    }

    /// Has transient messages stay in memory when so many bytes, or little more, are free on the disk.
    pub fn set_disk_reserve(&self, bytes: u64) {
        self.pager.disk_reserve_bytes.store(bytes, Relaxed);
    }

    /// Has windows shrink while memory becomes short, so that there may be many of them, and grow again: `used_bytes`
    /// are held against the watermark of the memory alarm (0 is none).
    pub fn fit_into(&self, used_bytes: Option<u64>, bytes_max: u64) {
        let Some(used_bytes) = used_bytes.filter(|_| bytes_max > 0) else { return };
        let before = self.pager.pressure.load(Relaxed);
        let pressure = pressure(used_bytes, bytes_max, before);
        self.pager.pressure.store(pressure, Relaxed);
        if pressure != before {
            tracing::debug!(pressure, "how much of each queue is in memory has changed");
        }
        if pressure > before {
            // The thread ends with the engine, so it is there.
            let _ = self.pager.wanted.send(Wanted::Fit);
        }
    }

    fn fit(&self) {
        let topology = self.topology.load_full();
        topology.queues().for_each(|(_, queue)| self.with_queue(queue, |_, _| ()));
    }

    /// Reads the beginning of what a queue has, before anybody can ask for it.
    pub(super) fn open_window(&self, queue: &QueueRef) {
        let next = || queue.lock().next_page(OPENING);
        while let Some(page) = next() {
            match self.store.page(&request(queue, &page)) {
                Ok(read) => queue.take_page(&mut queue.lock(), &page, read),
                // The clock's task has it tried again.
                Err(_) => return queue.lock().page_failed(),
            }
        }
    }

    fn read_page(&self, queue: &QueueRef, page: &Page) {
        match self.store.page(&request(queue, page)) {
            Ok(read) => self.with_queue(queue, |contents, _| queue.take_page(contents, page, read)),
            // The store is closed before the engine ends.
            Err(StoreError::Stopped { .. }) if self.is_stopping() => {}
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
    }
}

/// What is read of each queue at the start: enough for the first consumers, and little where queues are many.
const OPENING: Window = Window { len_max: 128, bytes_max: 128 * 1024 };

fn read_pages(engine: &Weak<Engine>, wanted: &Receiver<Wanted>, spiller: &mut Spiller) {
    while let Ok(wanted) = wanted.recv() {
        let Some(engine) = engine.upgrade() else { return };
        match wanted {
            Wanted::Page(queue, page) => {
                match page.blocks.is_empty() {
                    true => engine.read_page(&queue, &page),
                    false => engine.read_blocks(spiller, &queue, page),
                }
                engine.pager.wake(queue.id);
            }
            Wanted::Spill(queue) => engine.spill_some(spiller, &queue),
            Wanted::GiveUp(blocks) => spiller.give_up(&blocks),
            Wanted::Fit => engine.fit(),
        }
    }
}

/// How often the windows are to be halved: not at all below half of the watermark, and each step back only when there
/// is clearly more room.
fn pressure(used_bytes: u64, bytes_max: u64, before: u32) -> u32 {
    let at = |percent: u64| match used_bytes.saturating_mul(100) / bytes_max.max(1) {
        used if used < percent => 0,
        used if used < percent + 15 => 2,
        used if used < percent + 30 => 4,
        _ => 6,
    };
    let (rising, falling) = (at(50), at(40));
    if rising > before { rising } else { falling.min(before) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_in_steps_while_memory_fills_and_grow_later_than_they_shrank() {
        let mut before = 0;
        let steps = [10, 49, 50, 64, 66, 79, 81, 200, 71, 69, 56, 54, 45, 41, 39];
        let seen: Vec<u32> = steps
            .iter()
            .map(|used| {
                before = pressure(*used, 100, before);
                before
            })
            .collect();
        assert_eq!(seen, [0, 0, 2, 2, 4, 4, 6, 6, 6, 4, 4, 2, 2, 2, 0]);
    }
}
