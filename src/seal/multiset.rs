//! A keyed sum over a set, such as the entries of a queue: adding and removing members in any order gives
//! the same sum for the same set, and without the key nobody can make another set with that sum.

use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::{Aes256, Block};

use super::key::Secret;
use super::locked::Locked;

/// AES-256 as a pseudo-random function from (queue, place, data key) to 128 bits.
pub struct Multiset(Locked<Aes256>);

impl Multiset {
    /// Sets the key up.
    pub fn new(key: &Secret<32>) -> Multiset {
        Multiset(Locked::new(|| Aes256::new(key.expose().into())))
    }

    /// A sum under a key that everybody knows, for a plain store: it finds accidents, not people.
    pub fn public() -> Multiset {
        Multiset::new(&Secret::take(&mut [0; 32]))
    }

    /// What a member that is named by 16 bytes adds to a sum modulo 2^128.
    pub fn term_of(&self, name: &[u8; 16]) -> u128 {
        let mut block = *name;
        self.0.encrypt_block((&mut block).into());
        u128::from_be_bytes(block)
    }

    /// What one entry adds to (or, when it goes, takes from) its queue's sum modulo 2^128.
    pub fn term(&self, queue: u64, seq: u64, key_id: u32) -> u128 {
        self.term_of(&entry_name(queue, seq, key_id))
    }

    /// What members do to a sum modulo 2^128, all together: setting the key up for one block costs more than the block.
    pub fn change(&self, change: &Change) -> u128 {
        let mut blocks = [Block::default(); CHANGE_LEN_MAX];
        let (blocks, _) = blocks.split_at_mut(change.names.len().min(CHANGE_LEN_MAX));
        blocks.iter_mut().zip(&change.names).for_each(|(block, name)| *block = (*name).into());
        self.0.encrypt_blocks(blocks);
        let terms = blocks.iter().map(|block| u128::from_be_bytes((*block).into()));
        terms.zip(0..).fold(0, |sum: u128, (term, at)| match change.gone >> at & 1 {
            0 => sum.wrapping_add(term),
            _ => sum.wrapping_sub(term),
        })
    }
}

/// How many members [`Multiset::change`] takes at once: as many blocks as go through the widest instructions together.
pub const CHANGE_LEN_MAX: usize = u64::BITS as usize;

/// Members that come to a set, and that go.
#[derive(Default)]
pub struct Change {
    names: Vec<[u8; 16]>,
    /// a bit for each: it goes
    gone: u64,
}

impl Change {
    /// Adds a member; to be called only while it is not full.
    pub fn add(&mut self, name: [u8; 16], goes: bool) {
        debug_assert!(!self.is_full());
        self.gone |= u64::from(goes) << (self.names.len() % CHANGE_LEN_MAX);
        self.names.push(name);
    }

    /// Whether it holds [`CHANGE_LEN_MAX`] members.
    pub fn is_full(&self) -> bool {
        self.names.len() >= CHANGE_LEN_MAX
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Makes it hold none.
    pub fn clear(&mut self) {
        self.names.clear();
        self.gone = 0;
    }
}

/// The name of an entry in its queue's sum. A place alone would not name a record: after a crash or a restored backup
/// it is given out anew, and is sealed under a newer key then. Three numbers fit into one block because queues are
/// numbered from 1 and never reach 2^32.
pub fn entry_name(queue: u64, seq: u64, key_id: u32) -> [u8; 16] {
    (((u128::from(queue) << 64) | u128::from(seq)) ^ (u128::from(key_id) << 96)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_one_aes_block() {
        // FIPS 197 appendix C.3: key 00..1f, plaintext 00112233445566778899aabbccddeeff.
        let key = Secret::take(&mut std::array::from_fn(|i| i as u8));
        let multiset = Multiset::new(&key);
        let term = multiset.term(0x4455_6677, 0x8899_aabb_ccdd_eeff, 0x0011_2233);
        assert_eq!(term, 0x8ea2_b7ca_5167_45bf_eafc_4990_4b49_6089);
        assert_ne!(term, multiset.term(0x4455_6677, 0x8899_aabb_ccdd_eeff, 0x0011_2234));
    }

    #[test]
    fn a_change_is_the_sum_of_its_terms() {
        let multiset = Multiset::new(&Secret::take(&mut [7; 32]));
        let (mut change, mut sum) = (Change::default(), 0u128);
        for seq in 0..CHANGE_LEN_MAX as u64 {
            assert!(!change.is_full() && multiset.change(&change) == sum, "{seq}");
            change.add(entry_name(1, seq, 2), seq % 3 == 0);
            let term = multiset.term(1, seq, 2);
            sum = if seq % 3 == 0 { sum.wrapping_sub(term) } else { sum.wrapping_add(term) };
        }
        assert!(change.is_full() && multiset.change(&change) == sum);
        change.clear();
        assert!(change.is_empty() && multiset.change(&change) == 0);
    }
}
