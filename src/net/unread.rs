//! What was read and is not yet used, in a buffer that the thread lends: a connection without anything unread holds
//! none, so ten thousand idle ones are cheap, and a busy one gets memory that is warm.

use std::cell::RefCell;

use crate::limits::FRAME_SIZE_BYTES_DEFAULT;

/// Bytes of a lent buffer: the largest frame that is usual, and the beginning of the next.
pub(super) const LENT_BYTES: usize = FRAME_SIZE_BYTES_DEFAULT as usize + 32 * 1024;
/// Buffers that wait in one thread; a connection needs two at a time.
const SPARES_MAX: usize = 4;

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn lend() -> Vec<u8> {
    SPARES.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; LENT_BYTES])
}

fn give_back(buffer: Vec<u8>) {
    SPARES.with_borrow_mut(|spares| {
        if buffer.len() == LENT_BYTES && spares.len() < SPARES_MAX {
            spares.push(buffer);
        }
    });
}

/// Bytes read and not yet used: `bytes[from..to]`.
#[derive(Default)]
pub(super) struct Unread {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl Unread {
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.from == self.to
    }

    pub(super) fn use_up(&mut self, n: usize) {
        self.from += n;
        if self.from >= self.to {
            (self.from, self.to) = (0, 0);
        }
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.to += n;
    }

    /// Room behind what is unread, which must be less than `wanted`: for `wanted` bytes in all, or more.
    pub(super) fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.bytes.len() < self.from + wanted {
            self.make_room(wanted);
        }
        self.bytes.get_mut(self.to..).unwrap_or_default()
    }

    fn make_room(&mut self, wanted: usize) {
        let unread = self.from..self.to;
        let len = unread.len();
        if self.bytes.len() >= wanted {
            self.bytes.copy_within(unread, 0);
        } else {
            // Who has not shown yet who it is gets no more than it needs.
            let is_small = wanted <= LENT_BYTES / 16;
            let mut larger = if is_small || wanted > LENT_BYTES { vec![0; wanted] } else { lend() };
            if let (Some(target), Some(source)) = (larger.get_mut(..len), self.bytes.get(unread)) {
                target.copy_from_slice(source);
            }
            give_back(std::mem::replace(&mut self.bytes, larger));
        }
        (self.from, self.to) = (0, len);
    }

    /// Gives the buffer back when nothing is in it.
    pub(super) fn rest(&mut self) {
        if self.is_empty() && !self.bytes.is_empty() {
            give_back(std::mem::take(&mut self.bytes));
            (self.from, self.to) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(unread: &mut Unread, wanted: usize, text: &[u8]) {
        unread.room(wanted)[..text.len()].copy_from_slice(text);
        unread.filled(text.len());
    }

    #[test]
    fn what_is_unread_stays_whole_wherever_it_moves() {
        let mut unread = Unread::default();
        let sent: Vec<u8> = (0..4 * LENT_BYTES).map(|at| (at % 251) as u8).collect();
        let (mut got, mut put) = (0, 0);
        // Grows from a small buffer to a lent one to one of its own, and moves within each.
        for wanted in [64, 64, 512, 20_000, 20_000, LENT_BYTES, 20_000, LENT_BYTES + 1, LENT_BYTES + 1] {
            let room = unread.room(wanted).len();
            assert!(room >= wanted - unread.bytes().len(), "{wanted}");
            let n = room.min(wanted - unread.bytes().len());
            fill(&mut unread, wanted, &sent[put..put + n]);
            put += n;
            assert!(unread.bytes() == &sent[got..put], "{wanted}");
            let used = unread.bytes().len() - 7;
            unread.use_up(used);
            got += used;
        }
        assert_eq!(unread.bytes(), &sent[got..put]);
    }

    #[test]
    fn who_has_nothing_unread_holds_no_buffer_and_the_next_gets_the_same_one() {
        let (mut one, mut other) = (Unread::default(), Unread::default());
        fill(&mut one, LENT_BYTES, b"abc");
        let lent = one.bytes().as_ptr();
        one.rest();
        assert_eq!(one.bytes(), b"abc", "it is still to be used");
        one.use_up(3);
        one.rest();
        assert_eq!(one.bytes.capacity(), 0);
        fill(&mut other, LENT_BYTES, b"d");
        assert_eq!((other.bytes().as_ptr(), other.bytes()), (lent, &b"d"[..]));
    }

    #[test]
    fn a_small_wish_gets_a_small_buffer() {
        let mut unread = Unread::default();
        assert_eq!(unread.room(4096).len(), 4096);
    }
}
