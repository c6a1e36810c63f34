//! The types of queues, and which arguments each of them takes (the lists are
//! those of RabbitMQ 4.0, and `x-seal-shred`, which only SealMQ has). What the arguments mean is said in `arguments`.

use std::fmt;

/// What a queue promises, as `x-queue-type` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QueueType {
    /// The default.
    #[default]
    Classic,
    /// Replicated in RabbitMQ: durable, neither exclusive nor auto-delete.
    Quorum,
    /// A log that is read without being consumed; same shape as a quorum queue.
    Stream,
}

impl fmt::Display for QueueType {
    /// RabbitMQ's module of that type, as its texts name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QueueType::Classic => "rabbit_classic_queue",
            QueueType::Quorum => "rabbit_quorum_queue",
            QueueType::Stream => "rabbit_stream_queue",
        })
    }
}

impl QueueType {
    /// All of them.
    pub const ALL: [QueueType; 3] = [QueueType::Classic, QueueType::Quorum, QueueType::Stream];

    /// The type of that name; `undefined` and the empty name are the default, as in RabbitMQ.
    pub fn parse(name: &[u8]) -> Option<QueueType> {
        match name {
            b"" | b"undefined" | b"classic" => Some(QueueType::Classic),
            b"quorum" => Some(QueueType::Quorum),
            b"stream" => Some(QueueType::Stream),
            _ => None,
        }
    }

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
            QueueType::Stream => "stream",
        }
    }

    /// Whether deliveries that come back are counted, and the next one told (`x-delivery-count`).
    pub fn counts_deliveries(self) -> bool {
        match self {
            QueueType::Quorum => true,
            QueueType::Classic | QueueType::Stream => false,
        }
    }

    /// The arguments that it takes, in the order in which RabbitMQ compares them.
    pub(super) fn arguments(self) -> &'static [&'static str] {
        match self {
            QueueType::Classic => CLASSIC,
            QueueType::Quorum => QUORUM,
            QueueType::Stream => STREAM,
        }
    }
}

const CLASSIC: &[&str] = &[
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-queue-version",
    "x-single-active-consumer",
    "x-queue-type",
    "x-queue-master-locator",
    "x-queue-leader-locator",
    "x-seal-shred",
];

const QUORUM: &[&str] = &[
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-expires",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-overflow",
    "x-single-active-consumer",
    "x-queue-type",
    "x-quorum-initial-group-size",
    "x-delivery-limit",
    "x-message-ttl",
    "x-queue-leader-locator",
    "x-seal-shred",
];

const STREAM: &[&str] = &[
    "x-max-length-bytes",
    "x-queue-type",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-initial-cluster-size",
    "x-queue-leader-locator",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_types_by_their_wire_names() {
        for queue_type in QueueType::ALL {
            assert_eq!(QueueType::parse(queue_type.as_str().as_bytes()), Some(queue_type));
        }
        assert_eq!(QueueType::parse(b""), Some(QueueType::default()));
        assert_eq!(QueueType::parse(b"rabbit_classic_queue"), None);
    }
}
