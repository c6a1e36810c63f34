//! One change to the store, as it waits in the inbox (commit.rs) for the committer.

use std::sync::Arc;

use super::body::SharedBody;
use super::key_admin::KeyRequest;
use super::layout::RowKind;
use super::record::{DeliveryCount, EntryMeta};
use crate::broker::id::{QueueId, RowId, Seq};
use crate::broker::message::Message;

/// What a change takes in the inbox, message and rows apart, in bytes.
const SLOT_BYTES: usize = size_of::<Op>() + size_of::<usize>();

/// One change, waiting for its batch.
pub(super) enum Op {
    Put(Put),
    Delete {
        queue: QueueId,
        seq: Seq,
        /// Of the message.
        bytes: u32,
        shared: Option<Arc<SharedBody>>,
    },
    /// How often an entry came back from a consumer, and whether it has died.
    Count(DeliveryCount),
    /// An entry promised to a shared body was struck out or will never come.
    Settle(Arc<SharedBody>),
    /// Struck out.
    Nothing,
    PutRow {
        kind: RowKind,
        id: RowId,
        text: Vec<u8>,
    },
    DeleteRow {
        kind: RowKind,
        id: RowId,
    },
    DropQueue {
        queue: QueueId,
        bodies: Vec<(Seq, Arc<SharedBody>)>,
    },
    /// All entries between two places.
    PurgeRange {
        queue: QueueId,
        first: Seq,
        last: Seq,
        bytes: u64,
    },
    /// The queue gets a key of its own; `anew` replaces the one that it has.
    OwnKey {
        queue: QueueId,
        anew: bool,
    },
    /// Whatever was deleted without a tombstone gets one; the eraser's.
    Sweep,
    /// Nothing but a commit of its own; the health probe's.
    Touch,
    /// To be done with the keyring once the batch is on the disk.
    Keys(Arc<KeyRequest>),
}

pub(super) struct Put {
    pub(super) queue: QueueId,
    pub(super) seq: Seq,
    pub(super) message: Message,
    pub(super) shared: Option<Arc<SharedBody>>,
    pub(super) meta: EntryMeta,
}

impl Op {
    /// What it adds to the backlog, in bytes; a shared body's own bytes are counted by the body.
    pub(super) fn charge(&self) -> usize {
        let payload = match self {
            Op::Put(Put { message, shared: None, .. }) => message.size_bytes(),
            Op::PutRow { text, .. } => text.len(),
            Op::DropQueue { bodies, .. } => bodies.len() * size_of::<(Seq, Arc<SharedBody>)>(),
            _ => 0,
        };
        SLOT_BYTES + payload
    }

    /// Message and row bytes that it may add to a batch.
    pub(super) fn batch_bytes(&self) -> usize {
        match self {
            Op::Put(put) => put.message.size_bytes(),
            Op::PutRow { text, .. } => text.len(),
            _ => 0,
        }
    }
}
