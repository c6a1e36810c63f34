//! The side of a queue that the pager sees: what it lets go of, what is to be read back, what the store gave back.

use super::*;

/// What [`Queue::purge`] and [`Queue::delete`] give up.
#[derive(Debug)]
pub struct Left<D> {
    /// what was in memory, in order
    pub entries: Vec<Entry<D>>,
    /// what was in the store only
    pub runs: Vec<Run>,
}

impl<D> Left<D> {
    /// How many entries these are.
    pub fn count(&self) -> usize {
        self.entries.len() + self.runs.iter().map(|run| run.count as usize).sum::<usize>()
    }
}

impl<D, S: Sink<D>> Queue<D, S> {
    /// Adds an entry that the store gave back whole, to its place.
    pub fn restore(&mut self, mut entry: Entry<D>) {
        entry.redelivered |= entry.seq <= self.redelivered_up_to;
        if entry.redelivered {
            self.taken_up_to = entry.seq.max(self.taken_up_to);
        }
        self.remember(&entry.message, entry.seq);
        self.has_expiry |= entry.expires_ms > 0;
        self.ready.put_back(vec![entry]);
    }

    /// Lets go of what is beyond the window and in the store. To be called after entries were added; costs next to
    /// nothing in a queue that is within its window.
    pub fn page_out(&mut self, window: Window, rest: impl Fn(&Entry<D>) -> Rest) {
        if !self.rules.is_resident {
            self.ready.page_out(window, rest);
        }
    }

    /// Whether something is ready and the one whose turn it is must be read back first.
    pub fn is_starved(&mut self) -> bool {
        !self.ready.is_empty() && self.ready.reachable() == 0
    }

    /// What is to be read back now, if anything; [`Queue::page_in`] or [`Queue::page_failed`] must follow, and only
    /// one page is read at a time.
    pub fn next_page(&mut self, window: Window) -> Option<Page> {
        if self.ready.paged_len() == 0 || self.is_reading {
            return None;
        }
        let page = self.ready.next_page(window);
        self.is_reading = page.is_some();
        page
    }

    /// Takes what was read of a page, unless it was purged meanwhile.
    pub fn page_in(&mut self, page: &Page, mut read: PageRead<D>) {
        self.is_reading = false;
        for entry in &mut read.entries {
            entry.redelivered |= entry.seq <= self.redelivered_up_to;
            self.has_expiry |= entry.expires_ms > 0;
        }
        self.ready.page_in(page, read);
    }

    /// A page could not be read; it is asked for again.
    pub fn page_failed(&mut self) {
        self.is_reading = false;
    }
}
