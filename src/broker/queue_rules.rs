//! What a queue does by itself, made of the arguments it was declared with; `queue` does it.

use super::arguments::{Overflow, QueueArguments};
use super::name::Name;
use super::queue_type::QueueType;
use super::ready::Priorities;
use super::round::SingleActive;

/// What a queue does by itself, from its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// `x-queue-type`
    pub queue_type: QueueType,
    /// `x-message-ttl`
    pub message_ttl_ms: Option<u64>,
    /// `x-max-length`: ready entries
    pub max_length: Option<u64>,
    /// `x-max-length-bytes`: bytes of ready bodies
    pub max_length_bytes: Option<u64>,
    /// `x-overflow`
    pub overflow: Overflow,
    /// `x-max-priority`
    pub priority_max: u8,
    /// `x-single-active-consumer`
    pub single_active: bool,
    /// how often an entry may come back
    pub delivery_limit: Option<u32>,
    /// the header by which a message is a duplicate of one that is in the queue
    pub deduplication_header: Option<Name>,
    /// none of it is in the store only
    pub is_resident: bool,
    /// dead letters stay until they are taken (`x-dead-letter-strategy` at-least-once)
    pub keeps_letters: bool,
}

/// RabbitMQ 4's limit for quorum queues that name none.
const QUORUM_DELIVERY_LIMIT: i64 = 20;

impl Rules {
    /// What the arguments of queue.declare mean.
    pub fn of(arguments: &QueueArguments) -> Rules {
        let limit = match (arguments.queue_type, arguments.delivery_limit) {
            (QueueType::Quorum, limit) => u32::try_from(limit.unwrap_or(QUORUM_DELIVERY_LIMIT)).ok(),
            (QueueType::Classic | QueueType::Stream, _) => None,
        };
        let overflow = match (arguments.queue_type, arguments.overflow) {
            // RabbitMQ takes this for a quorum queue, and does this with it.
            (QueueType::Quorum, Overflow::RejectPublishDlx) => Overflow::DropHead,
            (_, overflow) => overflow,
        };
        Rules {
            queue_type: arguments.queue_type,
            message_ttl_ms: arguments.message_ttl_ms,
            max_length: arguments.max_length,
            max_length_bytes: arguments.max_length_bytes,
            overflow,
            priority_max: arguments.max_priority.unwrap_or(0),
            single_active: arguments.single_active_consumer,
            delivery_limit: limit,
            deduplication_header: arguments.deduplication_header.clone(),
            // One that drops duplicates has to know what is in it, and one that destroys its key what to clear away.
            is_resident: arguments.shreds || arguments.deduplication_header.is_some(),
            keeps_letters: arguments.keeps_letters(),
        }
    }

    pub(super) fn priorities(&self) -> Priorities {
        match self.queue_type {
            QueueType::Quorum => Priorities::TwoToOne,
            QueueType::Classic | QueueType::Stream => Priorities::Strict(self.priority_max),
        }
    }

    pub(super) fn single_active(&self) -> SingleActive {
        match (self.single_active, self.queue_type) {
            (false, _) => SingleActive::No,
            (true, QueueType::Quorum) => SingleActive::Yields,
            (true, QueueType::Classic | QueueType::Stream) => SingleActive::Stays,
        }
    }

    /// When a message that comes now expires: the sooner of the queue's and its own time to live;
    /// 0 is never.
    pub fn expires_ms(&self, now_ms: u64, own_ttl_ms: Option<u64>) -> u64 {
        match (self.message_ttl_ms, own_ttl_ms) {
            (None, None) => 0,
            (Some(a), Some(b)) => now_ms.saturating_add(a.min(b)).max(1),
            (Some(ttl), None) | (None, Some(ttl)) => now_ms.saturating_add(ttl).max(1),
        }
    }
}
