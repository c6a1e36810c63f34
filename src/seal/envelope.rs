//! The sealed record as bytes: parse and build. No key is used here.
//!
//! ```text
//! 0 version 0x01 | 1 kind | 2 flags | 3 suite | 4 key id u32 | 8 nonce prefix 12 | 20 counter u64 | 28 text .. tag 16
//! ```

use super::xaes::{PREFIX_BYTES, TAG_BYTES, Tag};

/// Bytes before the ciphertext.
pub const HEADER_BYTES: usize = 28;
/// What sealing adds to a plaintext.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// The first byte of a sealed record.
pub const VERSION_SEALED: u8 = 1;
/// The first byte of a record that is not sealed; legal only in a plain-insecure store.
pub const VERSION_PLAIN: u8 = 0;
/// Flag: the plaintext is padded.
pub const FLAG_PADDED: u8 = 1;
/// Flag: the last (or only) chunk of a body.
pub const FLAG_LAST: u8 = 2;

const SUITE_XAES_256_GCM: u8 = 1;

/// What a record is; part of its associated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message body in one piece.
    Body = 1,
    /// One piece of a larger message body.
    BodyChunk = 2,
    /// A message's place in a queue, small bodies included.
    Entry = 3,
    /// A queue's counts.
    Manifest = 4,
    /// The store-wide counters of the last commit.
    Commit = 5,
    /// A vhost, exchange, queue, binding or policy.
    Topology = 6,
    /// A user or what a user may do.
    User = 7,
    /// How many entries a body has; reserved.
    Refcount = 8,
    /// How often an entry came back from a consumer.
    DeliveryCount = 9,
}

impl Kind {
    fn parse(byte: u8) -> Option<Kind> {
        use Kind::*;
        [Body, BodyChunk, Entry, Manifest, Commit, Topology, User, Refcount, DeliveryCount]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The facts in front of a ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the record is.
    pub kind: Kind,
    /// [`FLAG_PADDED`] and [`FLAG_LAST`].
    pub flags: u8,
    /// Which data key; 0 is the root key's K_meta.
    pub key_id: u32,
    /// Selects the sub-key.
    pub prefix: [u8; PREFIX_BYTES],
    /// The second half of the nonce.
    pub counter: u64,
}

/// Bytes that are no sealed record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer bytes than a header and a tag.
    #[error("{0} bytes are too few for a sealed record")]
    TooShort(usize),
    /// Version byte 0: the record was never sealed.
    #[error("a plain record where only sealed ones are legal")]
    Plain,
    /// A version that this program does not know.
    #[error("unknown record version {0}")]
    Version(u8),
    /// A kind that this program does not know.
    #[error("unknown record kind {0}")]
    Kind(u8),
    /// Flag bits that this program does not know.
    #[error("unknown record flags {0:#04x}")]
    Flags(u8),
    /// A cipher suite that this program does not know.
    #[error("unknown cipher suite {0}")]
    Suite(u8),
}

impl Header {
    /// The bytes before the nonce: version, kind, flags, suite, key id. All of it is authenticated.
    pub fn fixed(&self) -> [u8; 8] {
        let [a, b, c, d] = self.key_id.to_be_bytes();
        [VERSION_SEALED, self.kind as u8, self.flags, SUITE_XAES_256_GCM, a, b, c, d]
    }

    /// All 28 bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.fixed());
        bytes[8..8 + PREFIX_BYTES].copy_from_slice(&self.prefix);
        bytes[8 + PREFIX_BYTES..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}

/// Takes a record apart: its header, its ciphertext, its tag.
///
/// # Errors
/// For every byte string that [`Header::to_bytes`] could not have begun.
pub fn parse(record: &[u8]) -> Result<(Header, &[u8], Tag), Malformed> {
    let short = Malformed::TooShort(record.len());
    match record.first() {
        None => return Err(short),
        Some(&VERSION_PLAIN) => return Err(Malformed::Plain),
        Some(&VERSION_SEALED) => {}
        Some(&other) => return Err(Malformed::Version(other)),
    }
    let (head, rest) = record.split_first_chunk::<HEADER_BYTES>().ok_or(short)?;
    let (text, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(short)?;
    let [_, kind, flags, suite, id0, id1, id2, id3, nonce @ ..] = *head;
    let kind = Kind::parse(kind).ok_or(Malformed::Kind(kind))?;
    if flags & !(FLAG_PADDED | FLAG_LAST) != 0 {
        return Err(Malformed::Flags(flags));
    }
    if suite != SUITE_XAES_256_GCM {
        return Err(Malformed::Suite(suite));
    }
    let (prefix, counter) = nonce.split_first_chunk::<PREFIX_BYTES>().ok_or(short)?;
    let counter = counter.first_chunk::<8>().ok_or(short)?;
    let key_id = u32::from_be_bytes([id0, id1, id2, id3]);
    let header = Header { kind, flags, key_id, prefix: *prefix, counter: u64::from_be_bytes(*counter) };
    Ok((header, text, *tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Vec<u8> {
        let header = Header { kind: Kind::Entry, flags: 1, key_id: 7, prefix: [9; 12], counter: 5 };
        [header.to_bytes().as_slice(), b"text", &[0xEE; 16]].concat()
    }

    #[test]
    fn gives_back_what_it_was_built_from() {
        let bytes = record();
        let (header, text, tag) = parse(&bytes).unwrap();
        assert_eq!((header.kind, header.flags, header.key_id), (Kind::Entry, 1, 7));
        assert_eq!((header.prefix, header.counter, text, tag), ([9; 12], 5, &b"text"[..], [0xEE; 16]));
        assert_eq!(header.to_bytes(), bytes[..28]);
    }

    #[test]
    fn every_wrong_head_has_its_own_error() {
        let with = |at: usize, byte: u8| {
            let mut bytes = record();
            bytes[at] = byte;
            parse(&bytes).map(|_| ()).unwrap_err()
        };
        assert_eq!(with(0, 0), Malformed::Plain);
        assert_eq!(with(0, 2), Malformed::Version(2));
        assert_eq!(with(1, 0), Malformed::Kind(0));
        assert_eq!(with(1, 10), Malformed::Kind(10));
        assert_eq!(with(2, 4), Malformed::Flags(4));
        assert_eq!(with(3, 2), Malformed::Suite(2));
        for cut in 0..OVERHEAD_BYTES {
            assert_eq!(parse(&record()[..cut]).unwrap_err(), Malformed::TooShort(cut));
        }
    }
}
