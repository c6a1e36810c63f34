//! What is written, before sealing: entries, bodies, manifests, the commit row, rows.
//!
//! A plain-insecure store holds the same bytes behind `0x00`, one line of JSON for the reader of a hex dump,
//! and a newline. Only the bytes behind the newline are read back, so the body stands there verbatim.

use std::ops::Range;
use std::sync::Arc;

use serde_json::json;

use super::layout::RowKind;
use super::presence::Sums;
use crate::broker::id::{BodyId, QueueId, RowId, Seq};
use crate::broker::letters::Died;
use crate::broker::message::{self, Message};
use crate::broker::queue::Death;
use crate::limits::BODY_CHUNK_BYTES;
use crate::seal::envelope::{FLAG_LAST, FLAG_PADDED, Kind};
use crate::seal::padding::Padding;
use crate::seal::xaes::Tag;

/// A plaintext that could not have been written by this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its content is not {0}")]
pub struct BadContent(&'static str);

/// Facts of an entry beside its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryMeta {
    /// When it was published, Unix milliseconds.
    pub enqueued_ms: u64,
    /// When it expires, Unix milliseconds; 0 for never.
    pub expires_ms: u64,
    /// 0 to 255.
    pub priority: u8,
    /// How often it was delivered when it was put.
    pub delivery_count: u16,
}

/// Something that becomes one record.
pub(super) trait Record {
    fn kind(&self) -> Kind;

    /// Envelope flags.
    fn flags(&self) -> u8 {
        0
    }

    /// Appends the plaintext.
    fn write(&self, padding: Padding, out: &mut Vec<u8>);

    /// What a plain-insecure store says about it, for human eyes.
    fn describe(&self) -> serde_json::Value;
}

/// By what an entry names a body that stands apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BodyRef {
    pub(super) id: BodyId,
    /// Bytes of the message, without padding.
    pub(super) bytes: u32,
    pub(super) chunks: u32,
    /// The tag of its last chunk; zeros in a plain store.
    pub(super) tag: Tag,
}

/// An entry to be written: 64 bytes, and a small message behind them.
pub(super) struct EntryRecord<'a> {
    pub(super) meta: EntryMeta,
    pub(super) content: Content<'a>,
}

/// Where an entry's message is.
#[derive(Debug)]
pub(super) enum Content<'a> {
    Inline(&'a Message),
    /// With how many entries the body was made for.
    Apart(BodyRef, u32),
}

const ENTRY_BYTES: usize = 64;
const ENTRY_INLINE: u8 = 1;
/// Where the tag of the body stands.
const ENTRY_TAG: std::ops::Range<usize> = 40..56;

impl Record for EntryRecord<'_> {
    fn kind(&self) -> Kind {
        Kind::Entry
    }

    fn flags(&self) -> u8 {
        match self.content {
            Content::Inline(_) => FLAG_PADDED,
            Content::Apart(..) => 0,
        }
    }

    fn write(&self, padding: Padding, out: &mut Vec<u8>) {
        let start = out.len();
        let (body, flags, promised) = match &self.content {
            Content::Inline(message) => {
                let bytes = message.size_bytes() as u32;
                (BodyRef { id: BodyId(0), bytes, chunks: 0, tag: [0; 16] }, ENTRY_INLINE, 0)
            }
            Content::Apart(body, promised) => (*body, 0, *promised),
        };
        out.extend_from_slice(&body.id.0.to_be_bytes());
        out.extend_from_slice(&self.meta.enqueued_ms.to_be_bytes());
        out.extend_from_slice(&self.meta.expires_ms.to_be_bytes());
        out.extend_from_slice(&body.bytes.to_be_bytes());
        out.extend_from_slice(&body.chunks.to_be_bytes());
        out.extend_from_slice(&[self.meta.priority, flags]);
        out.extend_from_slice(&self.meta.delivery_count.to_be_bytes());
        out.extend_from_slice(&promised.to_be_bytes());
        out.extend_from_slice(&body.tag);
        out.extend_from_slice(&[0; 8]);
        if let Content::Inline(message) = self.content {
            out.extend_from_slice(message.as_bytes());
            out.resize(start + padding.of(ENTRY_BYTES + message.size_bytes()), 0);
        }
    }

    fn describe(&self) -> serde_json::Value {
        match &self.content {
            Content::Inline(message) => describe_message("entry", message),
            Content::Apart(body, _) => {
                json!({"kind": "entry", "body_id": body.id.0, "body_bytes": body.bytes})
            }
        }
    }
}

fn describe_message(kind: &str, message: &Message) -> serde_json::Value {
    json!({
        "kind": kind,
        "exchange": String::from_utf8_lossy(message.exchange()),
        "routing_key": String::from_utf8_lossy(message.routing_key()),
        "properties": String::from_utf8_lossy(message.properties()),
        "body_bytes": message.body().len(),
    })
}

/// An entry read back.
#[derive(Debug)]
pub(super) struct Entry<M = Message> {
    pub(super) meta: EntryMeta,
    /// The message itself (or what is wanted of it), or by what its body is found.
    pub(super) content: Result<M, BodyRef>,
    /// How many entries the body was made for; 0 where an older version did not say.
    pub(super) promised: u32,
}

/// Reads an entry back.
pub(super) fn read_entry(text: &[u8]) -> Result<Entry, BadContent> {
    read_entry_as(text, Message::from_bytes)
}

/// Reads an entry of whose message only `read` is wanted.
pub(super) fn read_entry_as<M>(
    text: &[u8],
    read: impl FnOnce(&[u8]) -> Result<M, message::Malformed>,
) -> Result<Entry<M>, BadContent> {
    let bad = BadContent("an entry");
    let mut cursor = Cursor(text, bad);
    let id = BodyId(cursor.u64()?);
    let (enqueued_ms, expires_ms) = (cursor.u64()?, cursor.u64()?);
    let (bytes, chunks) = (cursor.u32()?, cursor.u32()?);
    let [priority, flags] = cursor.array()?;
    let delivery_count = u16::from_be_bytes(cursor.array()?);
    let promised = cursor.u32()?;
    let tag = cursor.array()?;
    let _reserved: [u8; 8] = cursor.array()?;
    let meta = EntryMeta { enqueued_ms, expires_ms, priority, delivery_count };
    let content = match flags {
        ENTRY_INLINE => {
            let message = cursor.0.get(..bytes as usize).ok_or(bad)?;
            Ok(read(message).map_err(|_| bad)?)
        }
        0 if chunks > 0 => Err(BodyRef { id, bytes, chunks, tag }),
        _ => return Err(bad),
    };
    Ok(Entry { meta, content, promised })
}

/// Lets an entry's plaintext name its body by another tag.
pub(super) fn name_body_by(text: &mut [u8], tag: Tag) {
    if let Some(place) = text.get_mut(ENTRY_TAG) {
        place.copy_from_slice(&tag);
    }
}

/// One piece of a body: `u32 length, message, zeros` cut at every [`BODY_CHUNK_BYTES`].
pub(super) struct BodyChunk<'a> {
    pub(super) message: &'a Message,
    pub(super) index: u32,
    pub(super) count: u32,
}

impl<'a> BodyChunk<'a> {
    /// All pieces of a body, in order.
    pub(super) fn all(message: &'a Message, padding: Padding) -> impl Iterator<Item = BodyChunk<'a>> {
        let count = padding.of(4 + message.size_bytes()).div_ceil(BODY_CHUNK_BYTES).max(1) as u32;
        (0..count).map(move |index| BodyChunk { message, index, count })
    }

    /// From where to where it goes, in bytes of the padded text.
    fn range(&self, padding: Padding) -> Range<usize> {
        let from = self.index as usize * BODY_CHUNK_BYTES;
        from..padding.of(4 + self.message.size_bytes()).min(from + BODY_CHUNK_BYTES)
    }

    /// Size of its plaintext.
    pub(super) fn size_bytes(&self, padding: Padding) -> usize {
        self.range(padding).len()
    }
}

impl Record for BodyChunk<'_> {
    fn kind(&self) -> Kind {
        if self.count == 1 { Kind::Body } else { Kind::BodyChunk }
    }

    fn flags(&self) -> u8 {
        FLAG_PADDED | if self.index + 1 == self.count { FLAG_LAST } else { 0 }
    }

    fn write(&self, padding: Padding, out: &mut Vec<u8>) {
        let bytes = self.message.as_bytes();
        let Range { start: from, end: to } = self.range(padding);
        let target = out.len() + (to - from);
        let from_message = if self.index == 0 {
            out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            0
        } else {
            from - 4
        };
        let piece = bytes.get(from_message..(to - 4).min(bytes.len())).unwrap_or_default();
        out.extend_from_slice(piece);
        out.resize(target, 0);
    }

    fn describe(&self) -> serde_json::Value {
        match self.index {
            0 => describe_message("body", self.message),
            index => json!({"kind": "body_chunk", "chunk": index, "chunks": self.count}),
        }
    }
}

/// Reads a body back from its pieces, one behind the other.
pub(super) fn read_body(text: &[u8]) -> Result<Message, BadContent> {
    let bad = BadContent("a body");
    Message::from_bytes(strip(text, bad)?).map_err(|_| bad)
}

fn strip(text: &[u8], bad: BadContent) -> Result<&[u8], BadContent> {
    let (len, rest) = text.split_first_chunk().ok_or(bad)?;
    rest.get(..u32::from_be_bytes(*len) as usize).ok_or(bad)
}

/// A queue's counts, rewritten by each commit that touches the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) queue: QueueId,
    pub(super) next_seq: Seq,
    /// No live entry stands before it. What is found there was deleted, and has no tombstone (remains.rs).
    pub(super) head: Seq,
    pub(super) live_count: u64,
    pub(super) live_bytes: u64,
    /// Sum over the live entries, under a key that everybody knows in a plain store.
    pub(super) multiset: u128,
    pub(super) commit_seq: u64,
    pub(super) delivered_up_to: Seq,
    /// The queue is gone; its entries are being cleared away.
    pub(super) dropping: bool,
    /// Entries in quarantine that are no part of the queue and not counted.
    pub(super) extra: Vec<Seq>,
}

impl Record for Manifest {
    fn kind(&self) -> Kind {
        Kind::Manifest
    }

    fn write(&self, _: Padding, out: &mut Vec<u8>) {
        for number in [self.queue.0, self.next_seq.0, self.head.0, self.live_count, self.live_bytes] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.multiset.to_be_bytes());
        let rest = [self.commit_seq, self.delivered_up_to.0, u64::from(self.dropping)];
        for number in rest.into_iter().chain(self.extra.iter().map(|seq| seq.0)) {
            out.extend_from_slice(&number.to_be_bytes());
        }
    }

    fn describe(&self) -> serde_json::Value {
        json!({"kind": "manifest", "queue_id": self.queue.0, "messages": self.live_count})
    }
}

/// Reads a manifest back.
pub(super) fn read_manifest(text: &[u8]) -> Result<Manifest, BadContent> {
    let mut cursor = Cursor(text, BadContent("a manifest"));
    let mut manifest = Manifest {
        queue: QueueId(cursor.u64()?),
        next_seq: Seq(cursor.u64()?),
        head: Seq(cursor.u64()?),
        live_count: cursor.u64()?,
        live_bytes: cursor.u64()?,
        multiset: u128::from_be_bytes(cursor.array()?),
        commit_seq: cursor.u64()?,
        delivered_up_to: Seq(cursor.u64()?),
        dropping: cursor.u64()? != 0,
        extra: Vec::new(),
    };
    while !cursor.0.is_empty() {
        manifest.extra.push(Seq(cursor.u64()?));
    }
    Ok(manifest)
}

/// How often an entry came back, and of what it died if it is a dead letter that its queue keeps; beside the
/// entry, because that is written once only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeliveryCount {
    pub(super) queue: QueueId,
    pub(super) seq: Seq,
    pub(super) count: u32,
    pub(super) died: Option<Died>,
}

/// What stands for a death in a record; never used again for another.
const DEATHS: [(Death, u8); 4] =
    [(Death::Rejected, 1), (Death::Expired, 2), (Death::MaxLen, 3), (Death::DeliveryLimit, 4)];

impl Record for DeliveryCount {
    fn kind(&self) -> Kind {
        Kind::DeliveryCount
    }

    fn write(&self, _: Padding, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_be_bytes());
        if let Some(Died { death, at_ms }) = self.died {
            out.extend(DEATHS.iter().filter(|(known, _)| *known == death).map(|(_, byte)| *byte));
            out.extend_from_slice(&at_ms.to_be_bytes());
        }
    }

    fn describe(&self) -> serde_json::Value {
        json!({"kind": "delivery_count", "queue_id": self.queue.0, "seq": self.seq.0, "count": self.count})
    }
}

/// Reads a delivery count back, and of what the entry died; which one it is stands in the key.
pub(super) fn read_delivery_count(text: &[u8]) -> Result<(u32, Option<Died>), BadContent> {
    let bad = BadContent("a delivery count");
    let mut cursor = Cursor(text, bad);
    let count = cursor.u32()?;
    if cursor.0.is_empty() {
        return Ok((count, None));
    }
    let [byte] = cursor.array()?;
    let (death, _) = *DEATHS.iter().find(|(_, known)| *known == byte).ok_or(bad)?;
    let at_ms = cursor.u64()?;
    cursor.must_be_empty()?;
    Ok((count, Some(Died { death, at_ms })))
}

/// The store-wide counters, written by every commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CommitRow {
    pub(super) commit_seq: u64,
    pub(super) wall_ms: u64,
    pub(super) body_id_next: u64,
    pub(super) keyring_generation: u64,
    pub(super) row_id_next: u64,
    /// The last commit before an orderly end.
    pub(super) clean: bool,
    /// What rows and manifests there are; `None` in a row of a version that did not say so.
    pub(super) sums: Option<Sums>,
    /// Where the anchor lies; `None` in a row of a version without anchors.
    pub(super) anchor: Option<Arc<[u8]>>,
}

impl Record for CommitRow {
    fn kind(&self) -> Kind {
        Kind::Commit
    }

    fn write(&self, _: Padding, out: &mut Vec<u8>) {
        let numbers =
            [self.commit_seq, self.wall_ms, self.body_id_next, self.keyring_generation, self.row_id_next];
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
        out.push(u8::from(self.clean));
        if let (Some(sums), Some(anchor)) = (self.sums, &self.anchor) {
            out.extend_from_slice(&sums.rows.to_be_bytes());
            out.extend_from_slice(&sums.manifests.to_be_bytes());
            out.extend_from_slice(anchor);
        }
    }

    fn describe(&self) -> serde_json::Value {
        json!({"kind": "commit", "commit_seq": self.commit_seq})
    }
}

/// Reads the commit row back.
pub(super) fn read_commit(text: &[u8]) -> Result<CommitRow, BadContent> {
    let mut cursor = Cursor(text, BadContent("a commit row"));
    let mut row = CommitRow {
        commit_seq: cursor.u64()?,
        wall_ms: cursor.u64()?,
        body_id_next: cursor.u64()?,
        keyring_generation: cursor.u64()?,
        row_id_next: cursor.u64()?,
        clean: cursor.array::<1>()? == [1],
        sums: None,
        anchor: None,
    };
    if !cursor.0.is_empty() {
        let (rows, manifests) = (cursor.array()?, cursor.array()?);
        let sums = Sums { rows: u128::from_be_bytes(rows), manifests: u128::from_be_bytes(manifests) };
        (row.sums, row.anchor) = (Some(sums), Some(cursor.0.into()));
    }
    Ok(row)
}

/// A row of the topology; its text is the engine's.
pub(super) struct RowRecord<'a> {
    pub(super) kind: RowKind,
    pub(super) id: RowId,
    pub(super) text: &'a [u8],
}

impl Record for RowRecord<'_> {
    fn kind(&self) -> Kind {
        self.kind.sealed_as()
    }

    fn flags(&self) -> u8 {
        FLAG_PADDED
    }

    fn write(&self, padding: Padding, out: &mut Vec<u8>) {
        let target = out.len() + padding.of(4 + self.text.len());
        out.extend_from_slice(&(self.text.len() as u32).to_be_bytes());
        out.extend_from_slice(self.text);
        out.resize(target, 0);
    }

    fn describe(&self) -> serde_json::Value {
        json!({"kind": self.kind.name(), "id": self.id.0})
    }
}

/// Reads a row's text back.
pub(super) fn read_row(text: &[u8]) -> Result<&[u8], BadContent> {
    strip(text, BadContent("a row"))
}

/// Takes numbers off the front of a plaintext.
struct Cursor<'a>(&'a [u8], BadContent);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadContent> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(self.1)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u64(&mut self) -> Result<u64, BadContent> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, BadContent> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn must_be_empty(&self) -> Result<(), BadContent> {
        if self.0.is_empty() { Ok(()) } else { Err(self.1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(record: &impl Record, padding: Padding) -> Vec<u8> {
        let mut out = vec![0xFF; 3];
        record.write(padding, &mut out);
        out.split_off(3)
    }

    fn message(body: usize) -> Message {
        let body: Vec<u8> = (0..body).map(|i| i as u8).collect();
        Message::new(b"amq.direct", b"key", &[0, 0], &[&body])
    }

    const PADDINGS: [Padding; 3] = [Padding::None, Padding::Padme, Padding::Pow2];
    const META: EntryMeta = EntryMeta { enqueued_ms: 1, expires_ms: 2, priority: 3, delivery_count: 4 };

    #[test]
    fn an_inline_entry_comes_back_and_hides_its_length() {
        for body in [0, 1, 100, 4096] {
            let message = message(body);
            let record = EntryRecord { meta: META, content: Content::Inline(&message) };
            for padding in PADDINGS {
                let text = text(&record, padding);
                assert_eq!(text.len(), padding.of(ENTRY_BYTES + message.size_bytes()));
                let entry = read_entry(&text).unwrap();
                assert_eq!((entry.meta, entry.content.unwrap()), (META, message.clone()));
            }
        }
    }

    #[test]
    fn an_entry_apart_is_64_bytes_and_names_its_body() {
        let body = BodyRef { id: BodyId(9), bytes: 70_000, chunks: 2, tag: [7; 16] };
        let text = text(&EntryRecord { meta: META, content: Content::Apart(body, 3) }, Padding::Padme);
        assert_eq!(text.len(), 64);
        assert_eq!(read_entry(&text).unwrap().content.unwrap_err(), body);
        for cut in 0..64 {
            assert!(read_entry(&text[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_body_comes_back_from_its_pieces() {
        let edge = BODY_CHUNK_BYTES - 4 - 20;
        for body in [0, 100, edge - 1, edge, edge + 1, 2 * BODY_CHUNK_BYTES, 700_000] {
            let message = message(body);
            for padding in PADDINGS {
                let chunks: Vec<_> = BodyChunk::all(&message, padding).collect();
                let mut whole = Vec::new();
                for (i, chunk) in chunks.iter().enumerate() {
                    let piece = text(chunk, padding);
                    assert!(piece.len() <= BODY_CHUNK_BYTES);
                    assert!(i + 1 == chunks.len() || piece.len() == BODY_CHUNK_BYTES);
                    assert_eq!(chunk.flags() & FLAG_LAST != 0, i + 1 == chunks.len());
                    whole.extend(piece);
                }
                assert_eq!(read_body(&whole), Ok(message.clone()), "{body} {padding:?}");
            }
        }
    }

    #[test]
    fn a_row_comes_back() {
        for len in [0usize, 1, 59, 60, 61, 5000] {
            let row = vec![b'r'; len];
            let record = RowRecord { kind: RowKind::Queue, id: RowId(1), text: &row };
            for padding in PADDINGS {
                let text = text(&record, padding);
                assert_eq!(text.len(), padding.of(4 + len));
                assert_eq!(read_row(&text), Ok(&row[..]));
            }
        }
    }

    proptest! {
        #[test]
        fn counters_come_back(a: u64, b: u64, c: u64, d: u64, e: u128, flag: bool) {
            let manifest = Manifest {
                queue: QueueId(a),
                next_seq: Seq(b),
                head: Seq(c),
                live_count: d,
                live_bytes: a,
                multiset: e,
                commit_seq: b,
                delivered_up_to: Seq(c),
                dropping: flag,
                extra: vec![Seq(d); (a % 3) as usize],
            };
            prop_assert_eq!(read_manifest(&text(&manifest, Padding::Padme)), Ok(manifest));
            let commit = CommitRow {
                commit_seq: a,
                wall_ms: b,
                body_id_next: c,
                keyring_generation: d,
                row_id_next: a,
                clean: flag,
                sums: flag.then_some(Sums { rows: e, manifests: u128::from(b) }),
                anchor: flag.then(|| b"/var/lib/anchor"[..].into()),
            };
            prop_assert_eq!(read_commit(&text(&commit, Padding::Padme)), Ok(commit));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (read_entry(&bytes), read_body(&bytes), read_manifest(&bytes));
            let _ = (read_commit(&bytes), read_row(&bytes));
        }
    }
}
