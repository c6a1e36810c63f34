//! Padding of bodies and topology rows before sealing, so that a length tells little. A padded text says its
//! true length itself, so it is read in the same way whatever it was padded by.
//!
//! Padme (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files", PETS 2019, section 4): a length
//! keeps only its leading bits, which costs at most 12 % and leaks O(log log length) bits.

/// Nothing padded is shorter than this, in bytes.
pub const PADDED_BYTES_MIN: usize = 64;

/// How much a length is hidden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// Not at all: sizes are true to the byte.
    None,
    /// Padme.
    #[default]
    Padme,
    /// Up to the next power of two, which costs up to as much again and tells the least.
    Pow2,
}

impl Padding {
    /// Reads the word of the configuration.
    pub fn parse(word: &str) -> Option<Padding> {
        [Padding::None, Padding::Padme, Padding::Pow2].into_iter().find(|padding| padding.name() == word)
    }

    /// The word of the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Padding::None => "none",
            Padding::Padme => "padme",
            Padding::Pow2 => "pow2",
        }
    }

    /// The padded size of `len` bytes.
    pub fn of(self, len: usize) -> usize {
        match self {
            Padding::None => len,
            Padding::Padme => padme(len),
            // A length without a next power of two is no length that memory can hold.
            Padding::Pow2 => len.max(PADDED_BYTES_MIN).checked_next_power_of_two().unwrap_or(len),
        }
    }
}

fn padme(len: usize) -> usize {
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

    #[test]
    fn each_word_of_the_configuration_is_one_way_to_pad() {
        for (word, padded) in [("none", 1025), ("padme", 1088), ("pow2", 2048)] {
            assert_eq!(Padding::parse(word).unwrap().of(1025), padded, "{word}");
        }
        assert_eq!(Padding::parse("zeros"), None);
        assert_eq!(Padding::default(), Padding::Padme);
        let powers = [0, 64, 65, 1 << 20, (1 << 20) + 1].map(|len| Padding::Pow2.of(len));
        assert_eq!(powers, [64, 64, 128, 1 << 20, 1 << 21]);
        assert_eq!(Padding::None.of(0), 0);
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
