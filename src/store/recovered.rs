//! What a store held when it was opened, as the engine gets it.

use std::sync::Arc;

use super::body::SharedBody;
use super::error::QueueFault;
use super::layout::RowKind;
use super::record::EntryMeta;
use crate::broker::id::{QueueId, RowId, Seq};
use crate::broker::letters::Died;
use crate::broker::message::Message;
use crate::broker::queue::Run;

/// All that a store held when it was opened.
#[derive(Debug)]
pub struct Recovered {
    /// The topology, in the order of [`RowKind::ALL`].
    pub rows: Vec<Row>,
    /// Durable queues that ever held an entry, by id.
    pub queues: Vec<RecoveredQueue>,
    /// The store was closed in order; `false` after a crash.
    pub clean: bool,
    /// Entries that cannot be read, or do not belong where they stand.
    pub quarantined: Vec<Quarantined>,
    /// Queues that do not hold what was committed; empty unless the store was opened with `quarantine`.
    pub faults: Vec<QueueFault>,
    /// The store is new.
    pub created: bool,
}

/// A row of the topology.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is.
    pub kind: RowKind,
    /// Its number.
    pub id: RowId,
    /// What the engine wrote.
    pub plaintext: Vec<u8>,
}

/// A queue's content.
#[derive(Debug)]
pub struct RecoveredQueue {
    /// Which queue.
    pub id: QueueId,
    /// The next place to be given out.
    pub next_seq: Seq,
    /// Entries up to here may have been delivered before.
    pub delivered_up_to: Seq,
    /// What is ready, in order; to be read back with [`super::Store::page`].
    pub runs: Vec<Run>,
    /// Dead letters that the queue keeps, in no run.
    pub letters: Vec<(Seq, Died)>,
}

/// A message in its place, read back.
#[derive(Debug)]
pub struct RecoveredEntry {
    /// Its place in the queue.
    pub seq: Seq,
    /// The message.
    pub message: Message,
    /// The body that it shares, to be given to [`super::Appender::delete`].
    pub shared: Option<Arc<SharedBody>>,
    /// Its other facts.
    pub meta: EntryMeta,
    /// How often it came back from a consumer.
    pub delivery_count: u32,
    /// It is a dead letter that its queue keeps.
    pub died: Option<Died>,
}

/// An entry that cannot be read, or is no part of its queue: it stays in the store, is not delivered, and goes
/// with its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Its queue.
    pub queue: QueueId,
    /// Its place.
    pub seq: Seq,
    /// A stable code: `E_RECORD_FORGED`, `E_RECORD_DAMAGED`, `E_BODY_MISSING`, `E_BODY_SWAPPED`,
    /// `E_ENTRY_EXTRA`.
    pub code: &'static str,
}

/// The code of an entry that is no part of its queue.
pub(super) const EXTRA: &str = "E_ENTRY_EXTRA";
