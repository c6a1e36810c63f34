//! Transient messages beyond a queue's window, on the pager's thread: they are written in blocks that nobody waits
//! for, and read back like pages. A queue gives its entries away and has a block in their place at once; if the disk
//! does not take them they come back, and stay in memory as they would without a disk.

use crate::broker::queue::{Block, Page, PageRead, Spilling};
use crate::limits::{PAGE_RETRY_MS, SPILL_DISK_FREE_BYTES_MIN, SPILL_STEP_BYTES_MAX};
use crate::store::{NotSpilled, Spill, SpillLost};

use super::engine_core::{Engine, now_ms};
use super::queue_cell::{QueueRef, Stored};

/// What the thread has of it.
pub(super) struct Spiller {
    spill: Spill,
    last_block: u64,
    /// the disk took nothing the last time, which was said
    is_failing: bool,
    /// messages that could not be read back
    lost: u64,
    /// when it was last said that some cannot be read back now
    told_ms: u64,
}

impl Spiller {
    pub fn new(spill: Spill) -> Spiller {
        Spiller { spill, last_block: 0, is_failing: false, lost: 0, told_ms: 0 }
    }

    pub fn give_up(&mut self, blocks: &[Block]) {
        blocks.iter().for_each(|block| self.spill.give_up(block.id));
        self.spill.reclaim();
    }
}

impl Engine {
    /// Writes some of what a queue has too much of, and comes back for more after others had their turn.
    pub(super) fn spill_some(&self, spiller: &mut Spiller, queue: &QueueRef) {
        // A store that is closed has removed the files, and no more are to come.
        if self.is_stopping() {
            return;
        }
        // As the disk alarm counts it, and some room beyond that.
        let owed = self.store.unflushed_bytes().saturating_add(SPILL_DISK_FREE_BYTES_MIN);
        if !spiller.spill.has_free(self.pager.disk_reserve_bytes().saturating_add(owed)) {
            return self.keep_in_memory(spiller, queue, Vec::new(), "the disk is nearly full");
        }
        let Spiller { spill, last_block, .. } = spiller;
        let next_id = || {
            *last_block += 1;
            *last_block
        };
        let (window, in_all) = (self.pager.window(), self.pager.window_in_all());
        let mut made = queue.lock().spill(window, in_all, SPILL_STEP_BYTES_MAX, next_id);
        if made.is_empty() {
            return;
        }
        match spill.write(made.iter().map(|one| (one.block.id, one.entries.as_slice()))) {
            Ok(()) => {
                if std::mem::take(&mut spiller.is_failing) {
                    tracing::info!("transient messages go to the disk again");
                }
                self.pager.spill(queue);
            }
            Err(NotSpilled { written, error }) => {
                let back = made.split_off(written);
                self.keep_in_memory(spiller, queue, back, &error.to_string());
            }
        }
    }

    fn keep_in_memory(
        &self,
        spiller: &mut Spiller,
        queue: &QueueRef,
        back: Vec<Spilling<Stored>>,
        reason: &str,
    ) {
        queue.lock().unspill(back);
        self.timers.arm(queue, now_ms().saturating_add(PAGE_RETRY_MS));
        if !std::mem::replace(&mut spiller.is_failing, true) {
            tracing::warn!("transient messages stay in memory, whatever their number: {reason}");
        }
    }

    /// Reads blocks back: up to the first one that the disk does not give now, which is tried again.
    pub(super) fn read_blocks(&self, spiller: &mut Spiller, queue: &QueueRef, mut page: Page) {
        let now_ms = now_ms();
        let (mut entries, mut lost, mut failure, mut held_up) = (Vec::new(), 0, None, None);
        for (at, block) in page.blocks.iter().enumerate() {
            match spiller.spill.take::<Stored>(block.id, now_ms) {
                Ok(read) => entries.extend(read),
                // It could not be written and came back, or was given up: the queue knows.
                Err(SpillLost::Gone) => {}
                Err(error @ SpillLost::NotNow { .. }) => {
                    held_up = Some((at, error));
                    break;
                }
                Err(error) => {
                    lost += block.count;
                    failure = Some(error);
                }
            }
        }
        spiller.spill.reclaim();
        if let Some((at, error)) = held_up {
            page.blocks.truncate(at);
            if at == 0 {
                return self.read_later(spiller, queue, &error, now_ms);
            }
        }
        let read = PageRead { entries, lost, upto: page.last };
        let is_wanted = self.with_queue(queue, |contents, _| contents.page_in(&page, read));
        // What was purged meanwhile is not missed, nor what is gone because the store was closed.
        if let Some(error) = failure.filter(|_| is_wanted && !self.is_stopping()) {
            spiller.lost += lost;
            let (queue, code, in_all) = (queue.id.0, error.code(), spiller.lost);
            tracing::error!(queue, lost, in_all, code, "transient messages are lost: {error}");
        }
    }

    /// Leaves what the disk does not give where it is, for the next try.
    fn read_later(&self, spiller: &mut Spiller, queue: &QueueRef, error: &SpillLost, now_ms: u64) {
        queue.lock().page_failed();
        self.timers.arm(queue, now_ms.saturating_add(PAGE_RETRY_MS));
        // Every queue may be tried again sooner, for what else is due.
        let is_due = now_ms.abs_diff(spiller.told_ms) >= PAGE_RETRY_MS;
        if is_due && !self.is_stopping() {
            spiller.told_ms = now_ms;
            let (queue, code) = (queue.id.0, error.code());
            tracing::error!(
                queue,
                code,
                "transient messages cannot be read back, which is tried again: {error}"
            );
        }
    }
}
