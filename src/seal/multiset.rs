//! A keyed sum over a set, such as the entries of a queue: adding and removing members in any order gives
//! the same sum for the same set, and without the key nobody can make another set with that sum.

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};

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

    /// What one entry adds to (or, when it goes, takes from) its queue's sum modulo 2^128. A place alone would not
    /// name a record: after a crash or a restored backup it is given out anew, and is sealed under a newer key then.
    /// Three numbers fit into one block because queues are numbered from 1 and never reach 2^32.
    pub fn term(&self, queue: u64, seq: u64, key_id: u32) -> u128 {
        let name = ((u128::from(queue) << 64) | u128::from(seq)) ^ (u128::from(key_id) << 96);
        self.term_of(&name.to_be_bytes())
    }
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
}
