//! Padding of bodies and topology rows before sealing, so that a length tells little (store.md 6.5).
//!
//! Padme (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files", PETS 2019, section 4): a length
//! keeps only its leading bits, which costs at most 12 % and leaks O(log log length) bits.

/// Nothing padded is shorter than this, in bytes.
pub const PADDED_BYTES_MIN: usize = 64;

/// The padded size of `len` bytes.
pub fn padme(len: usize) -> usize {
    if len <= PADDED_BYTES_MIN {
        return PADDED_BYTES_MIN;
    }
    let exponent = len.ilog2();
    let kept = exponent.ilog2() + 1;
    let mask = (1usize << exponent.saturating_sub(kept)) - 1;
    len.saturating_add(mask) & !mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_lengths() {
        let table =
            [(0, 64), (64, 64), (65, 72), (100, 104), (1024, 1024), (1025, 1088), (9_000_000, 9_175_040)];
        for (len, padded) in table {
            assert_eq!(padme(len), padded, "{len}");
        }
    }

    proptest! {
        #[test]
        fn never_shrinks_and_costs_at_most_an_eighth(len in 64usize..1 << 30) {
            let padded = padme(len);
            prop_assert!(padded >= len && padded - len <= len / 8);
            prop_assert_eq!(padme(padded), padded);
        }

        #[test]
        fn a_longer_text_is_never_padded_to_less(len in 0usize..1 << 20) {
            prop_assert!(padme(len) <= padme(len + 1));
        }
    }
}
