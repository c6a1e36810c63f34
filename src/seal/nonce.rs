//! The one place where random bytes and nonces are made.
//!
//! A record's 24-byte XAES nonce is `prefix(12) | 0000 | counter(8)`. The prefix is fresh from the kernel
//! for every commit, and the counter goes up from a block of the process's that no other prefix has. Either
//! alone would do; both together survive a bad random source as well as a RAM image that runs twice. Such an
//! image may be taken between two seals under one prefix: both runs go on with the same numbers then, so what
//! is sealed between two draws must be settled at the first, down to the clock (the committer sees to that).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The kernel gave no random bytes; nothing can be sealed without them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel gave no random bytes ({0}); check that getrandom(2) is permitted")]
pub struct NoRandomness(String);

/// `N` bytes from getrandom(2).
///
/// # Errors
/// When the kernel refuses.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// Fills a place of the caller's from getrandom(2), so that a key is never anywhere else.
pub(super) fn fill(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    getrandom::fill(bytes).map_err(|e| NoRandomness(e.to_string()))
}

/// How many counters a prefix has to itself: more than one commit holds records, and 2^42 prefixes are not drawn in a
/// process's life.
const BLOCK: u64 = 1 << 22;

/// The counters of one prefix, from a block that is given out once in a process's life. They do not depend on what
/// other threads seal.
pub(super) struct Counters(AtomicU64);

impl Counters {
    pub(super) fn new() -> Counters {
        static BLOCKS: AtomicU64 = AtomicU64::new(1);
        Counters(AtomicU64::new(BLOCKS.fetch_add(BLOCK, Relaxed)))
    }

    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }
}

/// The last 12 of the 24 nonce bytes: what the sub-key's AES-GCM takes.
pub(super) fn gcm_nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    let (_, low) = nonce.split_at_mut(4);
    low.copy_from_slice(&counter.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_never_repeat_across_threads_and_rise_by_one_whatever_the_others_do() {
        let take = || {
            let counters = Counters::new();
            let taken: Vec<u64> = (0..1000).map(|_| counters.next()).collect();
            assert!(taken.windows(2).all(|pair| pair[1] == pair[0] + 1));
            taken
        };
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(take)).collect();
        let mut all: Vec<u64> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4000);
    }

    #[test]
    fn the_counter_fills_the_low_eight_bytes() {
        assert_eq!(gcm_nonce(0x0102_0304_0506_0708), [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
