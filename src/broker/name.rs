//! Names of queues, exchanges and routing keys: bytes, as AMQP short strings are. Here is what may be
//! in a name and how one is shown to people; whether a name is taken is the topology's business.

use super::fault::lossy;
use std::fmt;
use std::sync::Arc;

/// A name or a routing key, at most 255 bytes (AMQP 0-9-1 section 4.2.5.3); cloning copies a pointer.
pub type Name = Arc<[u8]>;

/// Names that begin with this belong to the broker; only the broker declares them (AMQP 0-9-1 section 3.1.3.1).
pub const RESERVED_PREFIX: &[u8] = b"amq.";

/// Not a queue: consuming from it makes a channel take replies (RabbitMQ, direct-reply-to.md).
pub const REPLY_TO: &[u8] = b"amq.rabbitmq.reply-to";

/// What follows the prefix in an address for replies; `None` for every other name.
pub fn reply_token(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(REPLY_TO)?.strip_prefix(b".")
}

/// Whether a client is refused (403) when it declares something new of this name.
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(RESERVED_PREFIX)
}

/// The name without its carriage returns and line feeds, as RabbitMQ takes it from a declare or a bind:
/// a name must not be able to forge a line of a log.
pub fn without_line_breaks(name: &[u8]) -> Name {
    name.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect()
}

/// What a [`Resource`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResourceKind {
    /// A queue.
    Queue,
    /// An exchange.
    Exchange,
}

/// A queue or an exchange as reply texts name it: `queue 'q' in vhost '/'`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    /// Queue or exchange.
    pub kind: ResourceKind,
    /// Its name.
    pub name: &'a [u8],
    /// The virtual host it is in.
    pub vhost: &'a str,
}

impl<'a> Resource<'a> {
    /// The queue `name`.
    pub fn queue(name: &'a [u8], vhost: &'a str) -> Resource<'a> {
        Resource { kind: ResourceKind::Queue, name, vhost }
    }

    /// The exchange `name`.
    pub fn exchange(name: &'a [u8], vhost: &'a str) -> Resource<'a> {
        Resource { kind: ResourceKind::Exchange, name, vhost }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ResourceKind::Queue => "queue",
            ResourceKind::Exchange => "exchange",
        })
    }
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} '{}' in vhost '{}'", self.kind, lossy(self.name), self.vhost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserves_the_broker_s_prefix_only_at_the_front() {
        assert!(is_reserved(b"amq.gen-x") && is_reserved(b"amq."));
        assert!(!is_reserved(b"amq") && !is_reserved(b"my.amq.x") && !is_reserved(b""));
    }

    #[test]
    fn an_address_for_replies_is_the_name_a_dot_and_a_token() {
        assert_eq!(reply_token(b"amq.rabbitmq.reply-to.x"), Some(&b"x"[..]));
        assert!(reply_token(REPLY_TO).is_none() && reply_token(b"amq.rabbitmq.reply-tox").is_none());
    }

    #[test]
    fn drops_line_breaks_and_nothing_else() {
        assert_eq!(&*without_line_breaks(b"a\r\nb\tc\n"), b"ab\tc");
    }

    #[test]
    fn names_a_resource_as_rabbitmq_does() {
        assert_eq!(Resource::queue(b"q", "/").to_string(), "queue 'q' in vhost '/'");
        assert_eq!(Resource::exchange(b"\xff", "v").to_string(), "exchange '\u{fffd}' in vhost 'v'");
    }
}
