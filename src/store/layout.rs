//! Column families, keys and row kinds. RocksDB keys are opaque integers only.
//!
//! ```text
//! default ("d")  0x01 0u64 commit row | 0x02 queue u64 manifest | 0x03 queue u64, seq u64 delivery count
//!                row kind u8, row id u64
//! q              queue u64 | seq u64          an entry
//! b              body u64  | chunk u32        a body, or a piece of one
//! ```

use crate::broker::id::{BodyId, QueueId, RowId, Seq};
use crate::seal::context::Place;
use crate::seal::envelope::Kind;

/// A column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Rows, manifests and the commit row.
    Meta,
    /// Queue entries.
    Entries,
    /// Bodies that stand apart from their entries.
    Bodies,
}

impl Family {
    pub(super) const ALL: [Family; 3] = [Family::Meta, Family::Entries, Family::Bodies];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Family::Meta => "default",
            Family::Entries => "q",
            Family::Bodies => "b",
        }
    }

    /// Keys that begin with the same bytes, so many, belong to one thing.
    pub(super) const fn whole_bytes(self) -> usize {
        match self {
            Family::Meta => 1,
            Family::Entries => 16,
            Family::Bodies => 8,
        }
    }

    pub(super) fn place(self, key: &[u8]) -> Place<'_> {
        let family = match self {
            Family::Meta => b'd',
            Family::Entries => b'q',
            Family::Bodies => b'b',
        };
        Place { family, key }
    }
}

/// What a row of the topology is. The number is the first byte of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum RowKind {
    /// A virtual host.
    Vhost = 0x10,
    /// An exchange.
    Exchange = 0x11,
    /// A durable queue.
    Queue = 0x12,
    /// A binding.
    Binding = 0x13,
    /// A user with the hash of its password.
    User = 0x14,
    /// A policy.
    Policy = 0x15,
    /// What a user may do in a virtual host.
    Permission = 0x16,
    /// A runtime parameter.
    Parameter = 0x17,
}

impl RowKind {
    /// The kinds in the order in which they are recovered: what others refer to comes first.
    pub const ALL: [RowKind; 8] = [
        RowKind::Vhost,
        RowKind::Exchange,
        RowKind::Queue,
        RowKind::Binding,
        RowKind::User,
        RowKind::Policy,
        RowKind::Permission,
        RowKind::Parameter,
    ];

    pub(super) fn sealed_as(self) -> Kind {
        match self {
            RowKind::User | RowKind::Permission => Kind::User,
            _ => Kind::Topology,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            RowKind::Vhost => "vhost",
            RowKind::Exchange => "exchange",
            RowKind::Queue => "queue",
            RowKind::Binding => "binding",
            RowKind::User => "user",
            RowKind::Policy => "policy",
            RowKind::Permission => "permission",
            RowKind::Parameter => "parameter",
        }
    }
}

const COMMIT: u8 = 0x01;
const MANIFEST: u8 = 0x02;
const DELIVERY_COUNT: u8 = 0x03;
const PURGING: u8 = 0x04;

const KEY_BYTES_MAX: usize = 17;

/// A RocksDB key without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    bytes: [u8; KEY_BYTES_MAX],
    len: usize,
}

impl Key {
    pub(super) fn entry(queue: QueueId, seq: Seq) -> Key {
        Key::new((u128::from(queue.0) << 64) | u128::from(seq.0), 16)
    }

    pub(super) fn body(id: BodyId, chunk: u32) -> Key {
        Key::new((u128::from(id.0) << 64) | (u128::from(chunk) << 32), 12)
    }

    pub(super) fn commit() -> Key {
        Key::meta(COMMIT, 0)
    }

    pub(super) fn manifest(queue: QueueId) -> Key {
        Key::meta(MANIFEST, queue.0)
    }

    pub(super) fn delivery_count(queue: QueueId, seq: Seq) -> Key {
        Key::beside_entry(DELIVERY_COUNT, queue, seq)
    }

    /// Of a range of entries that are being cleared away, by its first place.
    pub(super) fn purging(queue: QueueId, first: Seq) -> Key {
        Key::beside_entry(PURGING, queue, first)
    }

    fn beside_entry(kind: u8, queue: QueueId, seq: Seq) -> Key {
        let Key { bytes: entry, len } = Key::entry(queue, seq);
        let mut key = Key { bytes: [kind; KEY_BYTES_MAX], len: len + 1 };
        key.bytes.iter_mut().skip(1).zip(entry).for_each(|(byte, of_entry)| *byte = of_entry);
        key
    }

    pub(super) fn row(kind: RowKind, id: RowId) -> Key {
        Key::meta(kind as u8, id.0)
    }

    fn meta(kind: u8, id: u64) -> Key {
        Key::new((u128::from(kind) << 120) | (u128::from(id) << 56), 9)
    }

    fn new(number: u128, len: usize) -> Key {
        let mut bytes = [0; KEY_BYTES_MAX];
        bytes[..16].copy_from_slice(&number.to_be_bytes());
        Key { bytes, len }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A key of the default column family, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetaKey {
    Commit,
    Manifest(QueueId),
    DeliveryCount(QueueId, Seq),
    Purging(QueueId, Seq),
    Row(RowKind, RowId),
}

/// Takes a key of the default column family apart; `None` is a key that this program never writes.
pub(super) fn parse_meta(key: &[u8]) -> Option<MetaKey> {
    let (kind, id) = key.split_first()?;
    match *kind {
        DELIVERY_COUNT => return parse_entry(id).map(|(queue, seq)| MetaKey::DeliveryCount(queue, seq)),
        PURGING => return parse_entry(id).map(|(queue, seq)| MetaKey::Purging(queue, seq)),
        _ => {}
    }
    let id = u64::from_be_bytes(id.try_into().ok()?);
    match *kind {
        COMMIT if id == 0 => Some(MetaKey::Commit),
        MANIFEST => Some(MetaKey::Manifest(QueueId(id))),
        kind => {
            let kind = RowKind::ALL.into_iter().find(|known| *known as u8 == kind)?;
            Some(MetaKey::Row(kind, RowId(id)))
        }
    }
}

/// Takes an entry's key apart.
pub(super) fn parse_entry(key: &[u8]) -> Option<(QueueId, Seq)> {
    let (queue, seq) = key.split_first_chunk::<8>()?;
    let seq: [u8; 8] = seq.try_into().ok()?;
    Some((QueueId(u64::from_be_bytes(*queue)), Seq(u64::from_be_bytes(seq))))
}

/// Takes a body's key apart.
pub(super) fn parse_body(key: &[u8]) -> Option<(BodyId, u32)> {
    let (id, chunk) = key.split_first_chunk::<8>()?;
    let chunk: [u8; 4] = chunk.try_into().ok()?;
    Some((BodyId(u64::from_be_bytes(*id)), u32::from_be_bytes(chunk)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_laid_out_as_the_format_says() {
        assert_eq!(
            Key::entry(QueueId(1), Seq(2)).as_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
        );
        assert_eq!(Key::body(BodyId(3), 4).as_bytes(), [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4]);
        assert_eq!(Key::row(RowKind::User, RowId(5)).as_bytes(), [0x14, 0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(Key::commit().as_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn keys_come_apart_as_they_were_put_together(a: u64, b: u64, c: u32) {
            prop_assert_eq!(parse_entry(Key::entry(QueueId(a), Seq(b)).as_bytes()), Some((QueueId(a), Seq(b))));
            prop_assert_eq!(parse_body(Key::body(BodyId(a), c).as_bytes()), Some((BodyId(a), c)));
            prop_assert_eq!(parse_meta(Key::manifest(QueueId(a)).as_bytes()), Some(MetaKey::Manifest(QueueId(a))));
            let count = Key::delivery_count(QueueId(a), Seq(b));
            prop_assert_eq!(parse_meta(count.as_bytes()), Some(MetaKey::DeliveryCount(QueueId(a), Seq(b))));
            let purging = Key::purging(QueueId(a), Seq(b));
            prop_assert_eq!(parse_meta(purging.as_bytes()), Some(MetaKey::Purging(QueueId(a), Seq(b))));
            for kind in RowKind::ALL {
                let key = Key::row(kind, RowId(b));
                prop_assert_eq!(parse_meta(key.as_bytes()), Some(MetaKey::Row(kind, RowId(b))));
            }
        }

        #[test]
        fn entries_sort_by_queue_and_then_by_place(a: (u64, u64), b: (u64, u64)) {
            let key = |(queue, seq)| Key::entry(QueueId(queue), Seq(seq)).bytes;
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
        }

        #[test]
        fn foreign_keys_are_refused(key in proptest::collection::vec(any::<u8>(), 0..20)) {
            prop_assert!(key.len() == 16 || parse_entry(&key).is_none());
            prop_assert!(key.len() == 12 || parse_body(&key).is_none());
            prop_assert!([9, 17].contains(&key.len()) || parse_meta(&key).is_none());
        }
    }
}
