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
}

impl Spiller {
    pub fn new(spill: Spill) -> Spiller {
        Spiller { spill, last_block: 0, is_failing: false, lost: 0 }
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
        let mut made = queue.lock().spill(self.pager.window(), SPILL_STEP_BYTES_MAX, next_id);
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

    /// Reads blocks back, each for the only time.
    pub(super) fn read_blocks(&self, spiller: &mut Spiller, queue: &QueueRef, page: &Page) {
        let (mut entries, mut lost, mut failure) = (Vec::new(), 0, None);
        for block in &page.blocks {
            match spiller.spill.take::<Stored>(block.id) {
                Ok(read) => entries.extend(read),
                // It could not be written and came back, or was given up: the queue knows.
                Err(SpillLost::Gone) => {}
                Err(error) => {
                    lost += block.count;
                    failure = Some(error);
                }
            }
        }
        spiller.spill.reclaim();
        let read = PageRead { entries, lost, upto: page.last };
        let is_wanted = self.with_queue(queue, |contents, _| contents.page_in(page, read));
        // What was purged meanwhile is not missed, nor what is gone because the store was closed.
        if let Some(error) = failure.filter(|_| is_wanted && !self.is_stopping()) {
            spiller.lost += lost;
            let (queue, code, in_all) = (queue.id.0, error.code(), spiller.lost);
            tracing::error!(queue, lost, in_all, code, "transient messages are lost: {error}");
        }
    }
}
