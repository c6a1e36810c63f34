//! Associated data: what a sealed record is bound to, as bytes.
//!
//! ```text
//! "sealmq/v1/rec" | store uuid 16 | record header bytes 0..8 | column family u8 | u16 key length | key
//! ```
//!
//! The store is named by its uuid, never by the machine, so that the same bytes hold on another node.

/// Longest RocksDB key in bytes; ours are opaque integers of at most 16.
pub const KEY_BYTES_MAX: usize = 32;

const LABEL: &[u8; 13] = b"sealmq/v1/rec";
const FIXED_BYTES: usize = LABEL.len() + 16 + 8 + 1 + 2;

/// Where a record stands: it opens there and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The column family's letter.
    pub family: u8,
    /// The whole RocksDB key, at most [`KEY_BYTES_MAX`] bytes.
    pub key: &'a [u8],
}

/// The associated data of one record, without an allocation.
pub struct Aad {
    bytes: [u8; FIXED_BYTES + KEY_BYTES_MAX],
    len: usize,
}

impl Aad {
    /// Puts the fields together; a key longer than [`KEY_BYTES_MAX`] is cut, yet its length is bound whole.
    pub fn new(store: &[u8; 16], header: &[u8; 8], place: Place<'_>) -> Aad {
        debug_assert!(place.key.len() <= KEY_BYTES_MAX);
        let key_len = u16::try_from(place.key.len()).unwrap_or(u16::MAX).to_be_bytes();
        let key = &place.key[..place.key.len().min(KEY_BYTES_MAX)];
        let mut bytes = [0; FIXED_BYTES + KEY_BYTES_MAX];
        // Ranges that the compiler knows: it makes them a few moves.
        bytes[..13].copy_from_slice(LABEL);
        bytes[13..29].copy_from_slice(store);
        bytes[29..37].copy_from_slice(header);
        bytes[37] = place.family;
        bytes[38..FIXED_BYTES].copy_from_slice(&key_len);
        bytes[FIXED_BYTES..][..key.len()].copy_from_slice(key);
        Aad { bytes, len: FIXED_BYTES + key.len() }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_laid_out_as_the_format_says() {
        let aad = Aad::new(&[0xAB; 16], &[1, 3, 0, 1, 0, 0, 0, 9], Place { family: b'q', key: &[5; 16] });
        let mut expected = b"sealmq/v1/rec".to_vec();
        expected.extend([0xAB; 16]);
        expected.extend([1, 3, 0, 1, 0, 0, 0, 9, b'q', 0, 16]);
        expected.extend([5; 16]);
        assert_eq!(aad.as_bytes(), expected);
    }
}
