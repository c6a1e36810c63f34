//! What of a level no store has and its window does not hold: transient messages. Such entries are *staged*, still in
//! memory and in their order, until they make a block; a block is then written, read back and let go of as a whole
//! (`store::spill`). Blocks may overlap in their places, for what came back from a consumer is staged late.

use std::collections::VecDeque;

use super::id::Seq;
use super::level::{Amount, merge};
use super::queue::Entry;

/// Entries of one queue that were written together, and are nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// its number, which no other block of this process has
    pub id: u64,
    /// the first entry's place
    pub first: Seq,
    /// the last entry's place; between them there may be entries of others
    pub last: Seq,
    /// how many entries
    pub count: u64,
    /// bytes of their bodies
    pub body_bytes: u64,
}

impl Block {
    pub(super) fn amount(&self) -> Amount {
        Amount { len: self.count as usize, bytes: self.body_bytes as usize }
    }
}

/// Blocks of a level, and what is to become some.
pub(super) struct Spilled<D> {
    /// by their first places
    blocks: VecDeque<Block>,
    /// no block reaches further, nor did any that was here
    upto: Seq,
    /// in order
    staged: VecDeque<Entry<D>>,
    /// of their bodies
    staged_bytes: usize,
}

impl<D> Default for Spilled<D> {
    fn default() -> Self {
        Spilled { blocks: VecDeque::new(), upto: Seq(0), staged: VecDeque::new(), staged_bytes: 0 }
    }
}

impl<D> Spilled<D> {
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.staged.is_empty()
    }

    /// What comes behind it comes behind all of this.
    pub fn last(&self) -> Seq {
        self.staged.back().map_or(self.upto, |entry| entry.seq.max(self.upto))
    }

    /// The block whose turn is first.
    pub fn block(&self) -> Option<&Block> {
        self.blocks.front()
    }

    /// The first of what is still in memory.
    pub fn front(&self) -> Option<&Entry<D>> {
        self.staged.front()
    }

    /// How many of those come before a place.
    pub fn count_before(&self, end: Option<Seq>) -> usize {
        end.map_or(self.staged.len(), |end| self.staged.partition_point(|entry| entry.seq < end))
    }

    /// Takes the first of those.
    pub fn pop(&mut self) -> Option<Entry<D>> {
        let entry = self.staged.pop_front()?;
        self.staged_bytes -= entry.message.body().len();
        Some(entry)
    }

    /// Adds an entry that comes behind all of those.
    pub fn stage(&mut self, entry: Entry<D>) {
        self.staged_bytes += entry.message.body().len();
        self.staged.push_back(entry);
    }

    /// Adds entries, in order, at their places.
    pub fn stage_between(&mut self, entries: Vec<Entry<D>>) {
        self.staged_bytes += entries.iter().map(|entry| entry.message.body().len()).sum::<usize>();
        merge(&mut self.staged, entries);
    }

    /// Whether there is enough for a block.
    pub fn has_enough(&self, len_min: usize, bytes_min: usize) -> bool {
        self.staged.len() >= len_min || (self.staged_bytes >= bytes_min && !self.staged.is_empty())
    }

    /// Makes the first entries a block: at most so many, and none after their messages have made up so many bytes.
    pub fn make_block(
        &mut self,
        id: u64,
        len_max: usize,
        bytes_max: usize,
    ) -> Option<(Block, Vec<Entry<D>>)> {
        let mut size_bytes = 0;
        let fits = |entry: &&Entry<D>| {
            let fits = size_bytes < bytes_max;
            size_bytes += entry.message.size_bytes();
            fits
        };
        let count = self.staged.iter().take(len_max).take_while(fits).count();
        let entries: Vec<Entry<D>> = self.staged.drain(..count).collect();
        let (first, last) = (entries.first()?.seq, entries.last()?.seq);
        let body_bytes = entries.iter().map(|entry| entry.message.body().len() as u64).sum();
        let block = Block { id, first, last, count: entries.len() as u64, body_bytes };
        self.staged_bytes -= body_bytes as usize;
        self.upto = self.upto.max(last);
        self.blocks.insert(self.blocks.partition_point(|other| other.first < first), block);
        Some((block, entries))
    }

    /// The blocks that are to be read next: none that begins behind `end`, and none after so many entries or bytes of
    /// bodies.
    pub fn next_blocks(&self, end: Option<Seq>, len_max: usize, bytes_max: usize) -> Vec<Block> {
        let mut sum = Amount::default();
        let is_next = |block: &&Block| {
            let is_next =
                sum.len < len_max && sum.bytes < bytes_max && end.is_none_or(|end| block.first < end);
            (sum.len, sum.bytes) = (sum.len + block.amount().len, sum.bytes + block.amount().bytes);
            is_next
        };
        self.blocks.iter().take_while(is_next).copied().collect()
    }

    /// Forgets those blocks that are here. Gives what was in them; `None` when none is: what could not be written came
    /// back by itself, what was given up went with all others.
    pub fn forget_blocks(&mut self, gone: &[Block]) -> Option<Amount> {
        let mut sum = None;
        for block in gone {
            let Some(at) = self.blocks.iter().position(|known| known.id == block.id) else { continue };
            self.blocks.remove(at);
            let Amount { len, bytes } = sum.unwrap_or_default();
            sum = Some(Amount { len: len + block.amount().len, bytes: bytes + block.amount().bytes });
        }
        sum
    }

    /// Gives all blocks up.
    pub fn take_blocks(&mut self) -> VecDeque<Block> {
        std::mem::take(&mut self.blocks)
    }
}
