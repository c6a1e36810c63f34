//! Typed arguments of queues and consumers, parsed once and validated with RabbitMQ's reply texts
//! (checked against RabbitMQ 4.0). Acting on them is the queue's and the
//! engine's business; an argument that nobody knows is stored and ignored.

use super::dedup;
use super::fault::{Fault, lossy};
use super::name::{Name, Resource};
use super::queue_type::QueueType;
use super::term::type_name;
use crate::amqp::field_table::{Table, Value};
use crate::amqp::reader::DecodeError;
use crate::amqp::reply_code::ReplyCode;

/// Longest time to live or expiry in milliseconds: ten years, RabbitMQ's `MAX_EXPIRY_TIMER`.
const EXPIRY_MS_MAX: i64 = 315_360_000_000;

/// Highest value of `x-max-priority`.
const PRIORITY_MAX: i64 = 255;

/// What happens to a message for which a queue has no room, as `x-overflow` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The oldest message goes.
    #[default]
    DropHead,
    /// The publisher reads basic.nack.
    RejectPublish,
    /// As before, and the message is dead-lettered.
    RejectPublishDlx,
}

/// How sure dead-lettering is, as `x-dead-letter-strategy` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeadLetterStrategy {
    /// A message can be lost on its way.
    #[default]
    AtMostOnce,
    /// A message stays until its target has confirmed it.
    AtLeastOnce,
}

/// The arguments of a queue that the broker knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueArguments {
    /// `x-queue-type`
    pub queue_type: QueueType,
    /// `x-expires`: unused for so long, the queue deletes itself.
    pub expires_ms: Option<u64>,
    /// `x-message-ttl`: a message lives no longer in it.
    pub message_ttl_ms: Option<u64>,
    /// `x-dead-letter-exchange`
    pub dead_letter_exchange: Option<Name>,
    /// `x-dead-letter-routing-key`: `None` keeps the message's own keys.
    pub dead_letter_routing_key: Option<Name>,
    /// `x-dead-letter-strategy`
    pub dead_letter_strategy: DeadLetterStrategy,
    /// `x-max-length`: ready messages.
    pub max_length: Option<u64>,
    /// `x-max-length-bytes`: bytes of ready bodies.
    pub max_length_bytes: Option<u64>,
    /// `x-overflow`
    pub overflow: Overflow,
    /// `x-max-priority`
    pub max_priority: Option<u8>,
    /// `x-single-active-consumer`
    pub single_active_consumer: bool,
    /// `x-delivery-limit` of a quorum queue: -1 is none, `None` the default of 20.
    pub delivery_limit: Option<i64>,
    /// `x-max-age` of a stream, in seconds.
    pub max_age_seconds: Option<u64>,
    /// `x-consumer-timeout`: a delivery may wait so long for its acknowledgement, 0 for ever.
    pub consumer_timeout_ms: Option<u64>,
    /// The header by which it drops duplicates; `x-message-deduplication` and `x-deduplication-header`.
    pub deduplication_header: Option<Name>,
    /// `x-seal-shred`: what it stores is sealed under a key of its own, destroyed when it is deleted or purged.
    pub shreds: bool,
}

/// Why the arguments or the properties of a declaration are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// A value that the argument cannot have.
    #[error("invalid arg '{0}': {1}")]
    Value(&'static str, InvalidValue),
    /// A name of an exchange that is not a string; RabbitMQ words this one differently.
    #[error("invalid type '{1}' for arg '{0}'")]
    Type(&'static str, &'static str),
    /// An argument that only another type of queue takes.
    #[error("invalid arg '{0}' for a queue of type {1}")]
    NotOfType(&'static str, QueueType),
    /// A property of the declaration that the type of queue cannot have.
    #[error("invalid property '{0}'")]
    Property(&'static str),
    /// Only classic queues may be named by the server.
    #[error("cannot name a queue of type {0}")]
    ServerNamed(QueueType),
    /// The arguments are not a field table.
    #[error("the arguments cannot be read: {0}")]
    Undecodable(#[from] DecodeError),
}

/// What is wrong with a value; displays as the Erlang term that RabbitMQ shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// Less than zero.
    #[error("{{value_negative,{0}}}")]
    Negative(i64),
    /// Zero.
    #[error("{{value_zero,0}}")]
    Zero,
    /// A time beyond ten years.
    #[error("{{value_too_large,{0}}}")]
    TooLarge(i64),
    /// A priority beyond 255.
    #[error("{{max_value_exceeded,{0}}}")]
    MaxExceeded(i64),
    /// Not a string, or not a bool: its type.
    #[error("{{unacceptable_type,{0}}}")]
    UnacceptableType(&'static str),
    /// Not an integer: its type.
    #[error("\"expected integer, got {0}\"")]
    ExpectedInteger(&'static str),
    /// Not one of the words that the argument knows: an Erlang atom.
    #[error("{0}")]
    Unknown(&'static str),
    /// Not one of the words that the argument knows: a sentence.
    #[error("\"unsupported queue {0} '{1}'\"")]
    Unsupported(&'static str, String),
}

impl ArgumentError {
    /// What the client is answered; `resource` is what it declared or consumed from.
    pub fn fault(&self, resource: Resource<'_>) -> Fault {
        let text = match self {
            ArgumentError::Value(key, reason) => format!("invalid arg '{key}' for {resource}: {reason}"),
            ArgumentError::Type(key, name) => format!("invalid type '{name}' for arg '{key}' in {resource}"),
            ArgumentError::NotOfType(key, kind) => {
                format!("invalid arg '{key}' for {resource} of queue type {kind}")
            }
            ArgumentError::Property(name) => format!("invalid property '{name}' for {resource}"),
            ArgumentError::ServerNamed(kind) => {
                format!("Cannot declare a server-named queue for type {kind}")
            }
            ArgumentError::Undecodable(error) => {
                return Fault::new(ReplyCode::SyntaxError, error.to_string());
            }
        };
        Fault::new(ReplyCode::PreconditionFailed, text)
    }
}

/// The flags of queue.declare that not every type of queue can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueShape {
    /// Whether the client left the name to the server.
    pub server_named: bool,
    /// Whether it survives a restart.
    pub durable: bool,
    /// Whether it belongs to its connection.
    pub exclusive: bool,
    /// Whether it goes with its last consumer.
    pub auto_delete: bool,
}

impl QueueShape {
    /// Refuses what a queue of that type cannot be.
    pub fn check(self, queue_type: QueueType) -> Result<(), ArgumentError> {
        if queue_type == QueueType::Classic {
            return Ok(());
        }
        for (wrong, error) in [
            (self.server_named, ArgumentError::ServerNamed(queue_type)),
            (self.auto_delete, ArgumentError::Property("auto-delete")),
            (self.exclusive, ArgumentError::Property("exclusive-owner")),
            (!self.durable, ArgumentError::Property("non-durable")),
        ] {
            if wrong {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The type that a declaration asks for; without the argument, or with an empty one, the default.
pub fn queue_type(arguments: Table<'_>) -> Result<QueueType, ArgumentError> {
    const KEY: &str = "x-queue-type";
    let Some(name) = string(arguments, KEY)? else { return Ok(QueueType::default()) };
    let unsupported = || InvalidValue::Unsupported("type", lossy(name).into_owned());
    QueueType::parse(name).ok_or_else(|| ArgumentError::Value(KEY, unsupported()))
}

impl QueueArguments {
    /// Parses the arguments of queue.declare, or says why RabbitMQ would refuse them. The first fault
    /// in RabbitMQ's own order is the one that is reported.
    pub fn parse(arguments: Table<'_>) -> Result<QueueArguments, ArgumentError> {
        arguments.validate()?;
        exchange_name(arguments, "x-dead-letter-exchange")?;
        let queue_type = queue_type(arguments)?;
        let taken = |key: &'static str| queue_type.arguments().contains(&key);
        // An argument of another type is looked at last, and only for being there.
        let table = |key| if taken(key) { arguments } else { Table::default() };
        let of = |key, read: Read| read(table(key), key);
        let expires_ms = of("x-expires", expiry_above_zero)?;
        let message_ttl_ms = of("x-message-ttl", expiry)?;
        let dead_letter_exchange = exchange_name(table(DLX), DLX)?.map(Name::from);
        let dead_letter_routing_key = dead_letter_key(table("x-dead-letter-routing-key"))?.map(Name::from);
        let dead_letter_strategy = strategy(table("x-dead-letter-strategy"))?;
        let max_length = of("x-max-length", count)?;
        let max_length_bytes = of("x-max-length-bytes", count)?;
        of("x-max-in-memory-length", count)?;
        of("x-max-in-memory-bytes", count)?;
        let max_priority = priority(table("x-max-priority"))?;
        let overflow = overflow(table("x-overflow"))?;
        queue_mode(table("x-queue-mode"))?;
        queue_version(table("x-queue-version"))?;
        let single_active_consumer = boolean(table("x-single-active-consumer"), "x-single-active-consumer")?;
        of("x-quorum-initial-group-size", count_above_zero)?;
        let max_age_seconds = max_age(table("x-max-age"))?;
        of("x-stream-max-segment-size-bytes", count)?;
        of("x-initial-cluster-size", count_above_zero)?;
        leader_locator(table("x-queue-leader-locator"))?;
        // In RabbitMQ 4.0 it is on no type's list: any type takes it, and a second declaration may differ in it.
        let consumer_timeout_ms = expiry(arguments, "x-consumer-timeout")?;
        let deduplication_header = dedup::queue_header(arguments)?.map(Name::from);
        let shreds = boolean(table(SHRED), SHRED)?;
        if let Some(key) = first_foreign(arguments, queue_type) {
            return Err(ArgumentError::NotOfType(key, queue_type));
        }
        Ok(QueueArguments {
            queue_type,
            expires_ms,
            message_ttl_ms,
            dead_letter_exchange,
            dead_letter_routing_key,
            dead_letter_strategy,
            max_length,
            max_length_bytes,
            overflow,
            max_priority,
            single_active_consumer,
            // RabbitMQ 4.0 validates nothing here; what is no integer means the default.
            delivery_limit: table("x-delivery-limit").find(b"x-delivery-limit").and_then(integer),
            max_age_seconds,
            consumer_timeout_ms,
            deduplication_header,
            shreds,
        })
    }
}

impl QueueArguments {
    /// Whether a dead letter stays with the queue until every target has taken it. RabbitMQ does what it is
    /// asked for only where the queue refuses publishes instead of dropping its head.
    pub fn keeps_letters(&self) -> bool {
        self.dead_letter_strategy == DeadLetterStrategy::AtLeastOnce
            && self.overflow == Overflow::RejectPublish
            && self.queue_type == QueueType::Quorum
            && self.dead_letter_exchange.is_some()
    }
}

const DLX: &str = "x-dead-letter-exchange";
const SHRED: &str = "x-seal-shred";

type Read = fn(Table<'_>, &'static str) -> Result<Option<u64>, ArgumentError>;

/// The alphabetically first argument that another type takes and this one does not.
fn first_foreign(arguments: Table<'_>, queue_type: QueueType) -> Option<&'static str> {
    let known = QueueType::ALL.iter().flat_map(|other| other.arguments()).copied();
    let foreign = known.filter(|key| !queue_type.arguments().contains(key));
    foreign.filter(|key| arguments.find(key.as_bytes()).is_some()).min()
}

/// The value of an integer of any width; timestamps are none, as in RabbitMQ.
pub(super) fn integer(value: Value<'_>) -> Option<i64> {
    match value {
        Value::I8(v) => Some(v.into()),
        Value::U8(v) => Some(v.into()),
        Value::I16(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::I32(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::I64(v) => Some(v),
        Value::Bool(_) | Value::F32(_) | Value::F64(_) | Value::Decimal(..) | Value::Timestamp(_) => None,
        Value::LongStr(_) | Value::Bytes(_) | Value::Table(_) | Value::Array(_) | Value::Void => None,
    }
}

fn int(table: Table<'_>, key: &'static str) -> Result<Option<i64>, ArgumentError> {
    let Some(value) = table.find(key.as_bytes()) else { return Ok(None) };
    let wrong = || ArgumentError::Value(key, InvalidValue::ExpectedInteger(type_name(value)));
    integer(value).ok_or_else(wrong).map(Some)
}

fn count(table: Table<'_>, key: &'static str) -> Result<Option<u64>, ArgumentError> {
    let Some(value) = int(table, key)? else { return Ok(None) };
    let negative = |_| ArgumentError::Value(key, InvalidValue::Negative(value));
    u64::try_from(value).map_err(negative).map(Some)
}

fn above_zero(value: Option<u64>, key: &'static str) -> Result<Option<u64>, ArgumentError> {
    match value {
        Some(0) => Err(ArgumentError::Value(key, InvalidValue::Zero)),
        value => Ok(value),
    }
}

fn count_above_zero(table: Table<'_>, key: &'static str) -> Result<Option<u64>, ArgumentError> {
    above_zero(count(table, key)?, key)
}

fn expiry(table: Table<'_>, key: &'static str) -> Result<Option<u64>, ArgumentError> {
    match int(table, key)? {
        Some(ms) if ms > EXPIRY_MS_MAX => Err(ArgumentError::Value(key, InvalidValue::TooLarge(ms))),
        _ => count(table, key),
    }
}

fn expiry_above_zero(table: Table<'_>, key: &'static str) -> Result<Option<u64>, ArgumentError> {
    above_zero(expiry(table, key)?, key)
}

pub(super) fn string<'a>(table: Table<'a>, key: &'static str) -> Result<Option<&'a [u8]>, ArgumentError> {
    match table.find(key.as_bytes()) {
        None => Ok(None),
        Some(Value::LongStr(text)) => Ok(Some(text)),
        Some(other) => Err(ArgumentError::Value(key, InvalidValue::UnacceptableType(type_name(other)))),
    }
}

pub(super) fn boolean(table: Table<'_>, key: &'static str) -> Result<bool, ArgumentError> {
    match table.find(key.as_bytes()) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(value),
        Some(other) => Err(ArgumentError::Value(key, InvalidValue::UnacceptableType(type_name(other)))),
    }
}

/// The exchange that an argument names, such as `alternate-exchange` of an exchange.
pub fn exchange_name<'a>(table: Table<'a>, key: &'static str) -> Result<Option<&'a [u8]>, ArgumentError> {
    match table.find(key.as_bytes()) {
        None => Ok(None),
        Some(Value::LongStr(name)) => Ok(Some(name)),
        Some(other) => Err(ArgumentError::Type(key, type_name(other))),
    }
}

fn dead_letter_key(table: Table<'_>) -> Result<Option<&[u8]>, ArgumentError> {
    const KEY: &str = "x-dead-letter-routing-key";
    let key = string(table, KEY)?;
    if key.is_some() && table.find(DLX.as_bytes()).is_none() {
        return Err(ArgumentError::Value(KEY, InvalidValue::Unknown("routing_key_but_no_dlx_defined")));
    }
    Ok(key)
}

fn strategy(table: Table<'_>) -> Result<DeadLetterStrategy, ArgumentError> {
    const KEY: &str = "x-dead-letter-strategy";
    match string(table, KEY)? {
        None | Some(b"at-most-once") => Ok(DeadLetterStrategy::AtMostOnce),
        Some(b"at-least-once") => Ok(DeadLetterStrategy::AtLeastOnce),
        Some(_) => Err(ArgumentError::Value(KEY, InvalidValue::Unknown("invalid_dlx_strategy"))),
    }
}

fn priority(table: Table<'_>) -> Result<Option<u8>, ArgumentError> {
    const KEY: &str = "x-max-priority";
    let Some(value) = int(table, KEY)? else { return Ok(None) };
    match u8::try_from(value) {
        Ok(value) => Ok(Some(value)),
        Err(_) if value > PRIORITY_MAX => Err(ArgumentError::Value(KEY, InvalidValue::MaxExceeded(value))),
        Err(_) => Err(ArgumentError::Value(KEY, InvalidValue::Negative(value))),
    }
}

fn overflow(table: Table<'_>) -> Result<Overflow, ArgumentError> {
    const KEY: &str = "x-overflow";
    match string(table, KEY)? {
        None | Some(b"drop-head") => Ok(Overflow::DropHead),
        Some(b"reject-publish") => Ok(Overflow::RejectPublish),
        Some(b"reject-publish-dlx") => Ok(Overflow::RejectPublishDlx),
        Some(_) => Err(ArgumentError::Value(KEY, InvalidValue::Unknown("invalid_overflow"))),
    }
}

fn queue_mode(table: Table<'_>) -> Result<(), ArgumentError> {
    const KEY: &str = "x-queue-mode";
    match string(table, KEY)? {
        None | Some(b"default" | b"lazy") => Ok(()),
        Some(other) => {
            Err(ArgumentError::Value(KEY, InvalidValue::Unsupported("mode", lossy(other).into_owned())))
        }
    }
}

fn queue_version(table: Table<'_>) -> Result<(), ArgumentError> {
    const KEY: &str = "x-queue-version";
    match count(table, KEY)? {
        None | Some(1 | 2) => Ok(()),
        Some(other) => {
            Err(ArgumentError::Value(KEY, InvalidValue::Unsupported("version", other.to_string())))
        }
    }
}

/// A number and one of `Y M D h m s`; years have 365 days and months 30, as in RabbitMQ.
fn max_age(table: Table<'_>) -> Result<Option<u64>, ArgumentError> {
    const KEY: &str = "x-max-age";
    let Some(text) = string(table, KEY)? else { return Ok(None) };
    let wrong = || ArgumentError::Value(KEY, InvalidValue::Unknown("invalid_max_age"));
    let (unit, digits) = text.split_last().ok_or_else(wrong)?;
    let unit_seconds: u64 = match unit {
        b'Y' => 365 * 86_400,
        b'M' => 30 * 86_400,
        b'D' => 86_400,
        b'h' => 3_600,
        b'm' => 60,
        b's' => 1,
        _ => return Err(wrong()),
    };
    let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits);
    let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
    let seconds = number.filter(|number| *number > 0).and_then(|number| number.checked_mul(unit_seconds));
    seconds.ok_or_else(wrong).map(Some)
}

fn leader_locator(table: Table<'_>) -> Result<(), ArgumentError> {
    const KEY: &str = "x-queue-leader-locator";
    match string(table, KEY)? {
        None | Some(b"client-local" | b"balanced" | b"random" | b"least-leaders" | b"min-masters") => Ok(()),
        Some(_) => Err(ArgumentError::Value(KEY, InvalidValue::Unknown("invalid_queue_locator_arg"))),
    }
}

/// The arguments of basic.consume that the broker knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumerArguments {
    /// `x-priority`: higher ones are served first; may be negative.
    pub priority: i64,
    /// `x-consumer-timeout`: a delivery may wait so long for its acknowledgement, 0 for ever.
    pub timeout_ms: Option<u64>,
}

impl ConsumerArguments {
    /// Parses the arguments of basic.consume on a queue of that type.
    pub fn parse(arguments: Table<'_>, queue_type: QueueType) -> Result<ConsumerArguments, ArgumentError> {
        arguments.validate()?;
        let foreign: &[&'static str] = match queue_type {
            QueueType::Classic | QueueType::Quorum => {
                &["x-stream-filter", "x-stream-match-unfiltered", "x-stream-offset"]
            }
            QueueType::Stream => &["x-priority"],
        };
        let priority = match queue_type {
            QueueType::Classic | QueueType::Quorum => int(arguments, "x-priority")?.unwrap_or(0),
            QueueType::Stream => 0,
        };
        let timeout_ms = expiry(arguments, "x-consumer-timeout")?;
        match foreign.iter().find(|key| arguments.find(key.as_bytes()).is_some()) {
            Some(key) => Err(ArgumentError::NotOfType(key, queue_type)),
            None => Ok(ConsumerArguments { priority, timeout_ms }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::TableWriter;

    fn table(entries: &[(&str, Value<'_>)]) -> TableWriter {
        entries.iter().fold(TableWriter::new(), |table, (name, value)| table.entry(name, *value))
    }

    const fn text(text: &'static str) -> Value<'static> {
        Value::LongStr(text.as_bytes())
    }

    const QUORUM_TYPE: (&str, Value<'static>) = ("x-queue-type", text("quorum"));
    const STREAM_TYPE: (&str, Value<'static>) = ("x-queue-type", text("stream"));

    /// What follows `invalid arg ` in the text; RabbitMQ 4.0 answered each of these.
    #[test]
    fn refuses_what_rabbitmq_4_0_refused_with_its_text() {
        let q = "for queue 't' in vhost '/'";
        let cases: &[(&[(&str, Value<'_>)], &str)] = &[
            (&[("x-message-ttl", Value::I8(-1))], "'x-message-ttl' Q: {value_negative,-1}"),
            (&[("x-message-ttl", text("5"))], "'x-message-ttl' Q: \"expected integer, got longstr\""),
            (&[("x-message-ttl", Value::Void)], "'x-message-ttl' Q: \"expected integer, got void\""),
            (
                &[("x-message-ttl", Value::I64(315_360_000_001))],
                "'x-message-ttl' Q: {value_too_large,315360000001}",
            ),
            (&[("x-expires", Value::I32(0))], "'x-expires' Q: {value_zero,0}"),
            (&[("x-expires", Value::I32(-5))], "'x-expires' Q: {value_negative,-5}"),
            (
                &[("x-message-ttl", Value::I8(-1)), ("x-expires", Value::U8(0))],
                "'x-expires' Q: {value_zero,0}",
            ),
            (&[("x-max-length", Value::I32(-2))], "'x-max-length' Q: {value_negative,-2}"),
            (&[("x-max-priority", Value::I32(256))], "'x-max-priority' Q: {max_value_exceeded,256}"),
            (&[("x-max-priority", Value::I32(-1))], "'x-max-priority' Q: {value_negative,-1}"),
            (&[("x-overflow", text("foo"))], "'x-overflow' Q: invalid_overflow"),
            (&[("x-overflow", Value::I32(5))], "'x-overflow' Q: {unacceptable_type,signedint}"),
            (
                &[("x-dead-letter-routing-key", text("k"))],
                "'x-dead-letter-routing-key' Q: routing_key_but_no_dlx_defined",
            ),
            (&[("x-queue-type", text("foo"))], "'x-queue-type' Q: \"unsupported queue type 'foo'\""),
            (&[("x-queue-type", Value::I32(5))], "'x-queue-type' Q: {unacceptable_type,signedint}"),
            (&[("x-queue-mode", text("foo"))], "'x-queue-mode' Q: \"unsupported queue mode 'foo'\""),
            (&[("x-queue-version", Value::I32(3))], "'x-queue-version' Q: \"unsupported queue version '3'\""),
            (
                &[("x-single-active-consumer", text("yes"))],
                "'x-single-active-consumer' Q: {unacceptable_type,longstr}",
            ),
            (
                &[QUORUM_TYPE, ("x-max-priority", Value::I32(-1))],
                "'x-max-priority' Q of queue type rabbit_quorum_queue",
            ),
            (
                &[("x-max-age", text("5D")), ("x-delivery-limit", Value::U8(3))],
                "'x-delivery-limit' Q of queue type rabbit_classic_queue",
            ),
            (&[STREAM_TYPE, ("x-expires", Value::U8(5))], "'x-expires' Q of queue type rabbit_stream_queue"),
            (&[STREAM_TYPE, ("x-max-age", text("5X"))], "'x-max-age' Q: invalid_max_age"),
            (&[STREAM_TYPE, ("x-max-age", text("0D"))], "'x-max-age' Q: invalid_max_age"),
            (
                &[("x-queue-leader-locator", text("foo"))],
                "'x-queue-leader-locator' Q: invalid_queue_locator_arg",
            ),
            (
                &[QUORUM_TYPE, ("x-quorum-initial-group-size", Value::U8(0))],
                "'x-quorum-initial-group-size' Q: {value_zero,0}",
            ),
            (
                &[QUORUM_TYPE, ("x-dead-letter-strategy", text("foo"))],
                "'x-dead-letter-strategy' Q: invalid_dlx_strategy",
            ),
        ];
        for (arguments, expected) in cases {
            let error = QueueArguments::parse(table(arguments).as_table()).unwrap_err();
            let expected = format!("PRECONDITION_FAILED - invalid arg {}", expected.replace('Q', q));
            assert_eq!(error.fault(Resource::queue(b"t", "/")).reply_text(), expected);
        }
    }

    #[test]
    fn a_dead_letter_exchange_of_another_type_has_a_text_of_its_own() {
        let written = table(&[("x-dead-letter-exchange", Value::I32(5)), ("x-queue-type", text("foo"))]);
        let error = QueueArguments::parse(written.as_table()).unwrap_err();
        let text = error.fault(Resource::queue(b"t", "/")).reply_text();
        assert_eq!(
            text,
            "PRECONDITION_FAILED - invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 't' in vhost '/'"
        );
    }

    #[test]
    fn keeps_what_it_was_given() {
        let written = table(&[
            ("x-message-ttl", Value::I32(60_000)),
            ("x-expires", Value::I64(1_800_000)),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text("dead")),
            ("x-max-length", Value::U16(10)),
            ("x-max-length-bytes", Value::U32(0)),
            ("x-max-priority", Value::U8(10)),
            ("x-overflow", text("reject-publish")),
            ("x-single-active-consumer", Value::Bool(true)),
            ("x-unknown", Value::Void),
        ]);
        let expected = QueueArguments {
            expires_ms: Some(1_800_000),
            message_ttl_ms: Some(60_000),
            dead_letter_exchange: Some(Name::from(*b"")),
            dead_letter_routing_key: Some(Name::from(*b"dead")),
            max_length: Some(10),
            max_length_bytes: Some(0),
            overflow: Overflow::RejectPublish,
            max_priority: Some(10),
            single_active_consumer: true,
            ..QueueArguments::default()
        };
        assert_eq!(QueueArguments::parse(written.as_table()), Ok(expected));
        let quorum = table(&[QUORUM_TYPE, ("x-delivery-limit", Value::I32(-1))]);
        let quorum = QueueArguments::parse(quorum.as_table()).unwrap();
        assert_eq!((quorum.queue_type, quorum.delivery_limit), (QueueType::Quorum, Some(-1)));
        let stream = table(&[STREAM_TYPE, ("x-max-age", text("2h"))]);
        assert_eq!(QueueArguments::parse(stream.as_table()).unwrap().max_age_seconds, Some(7200));
        assert_eq!(QueueArguments::parse(Table::default()), Ok(QueueArguments::default()));
    }

    #[test]
    fn a_quorum_queue_has_one_shape() {
        let good = QueueShape { server_named: false, durable: true, exclusive: false, auto_delete: false };
        assert_eq!(good.check(QueueType::Quorum), Ok(()));
        for (shape, text) in [
            (
                QueueShape { durable: false, ..good },
                "invalid property 'non-durable' for queue 't' in vhost '/'",
            ),
            (
                QueueShape { exclusive: true, durable: false, ..good },
                "invalid property 'exclusive-owner' for queue 't' in vhost '/'",
            ),
            (
                QueueShape { auto_delete: true, exclusive: true, durable: false, ..good },
                "invalid property 'auto-delete' for queue 't' in vhost '/'",
            ),
            (
                QueueShape { server_named: true, ..good },
                "Cannot declare a server-named queue for type rabbit_quorum_queue",
            ),
        ] {
            let fault = shape.check(QueueType::Quorum).unwrap_err().fault(Resource::queue(b"t", "/"));
            assert_eq!(fault.reply_text(), format!("PRECONDITION_FAILED - {text}"));
            assert_eq!(shape.check(QueueType::Classic), Ok(()));
        }
    }

    #[test]
    fn a_key_of_its_own_is_asked_for_with_a_bool() {
        for queue_type in [&[][..], &[QUORUM_TYPE]] {
            let parsed = |value| {
                let arguments = table(&[queue_type, &[("x-seal-shred", value)]].concat());
                let parsed = QueueArguments::parse(arguments.as_table()).map(|arguments| arguments.shreds);
                parsed.map_err(|error| error.fault(Resource::queue(b"t", "/")).reply_text())
            };
            assert_eq!((parsed(Value::Bool(true)), parsed(Value::Bool(false))), (Ok(true), Ok(false)));
            let refused = "PRECONDITION_FAILED - invalid arg 'x-seal-shred' for queue 't' in vhost '/': \
                           {unacceptable_type,longstr}";
            assert_eq!(parsed(text("true")), Err(refused.to_owned()));
        }
        assert!(!QueueArguments::parse(Table::default()).unwrap().shreds);
    }

    #[test]
    fn an_acknowledgement_timeout_is_milliseconds_for_queues_and_consumers() {
        for queue_type in [&[][..], &[QUORUM_TYPE]] {
            let of = |value| table(&[queue_type, &[("x-consumer-timeout", value)]].concat());
            let parsed = |value| {
                let arguments = of(value);
                let queue = QueueArguments::parse(arguments.as_table()).map(|a| a.consumer_timeout_ms);
                let kind = super::queue_type(arguments.as_table()).unwrap();
                let consumer = ConsumerArguments::parse(arguments.as_table(), kind).map(|a| a.timeout_ms);
                assert_eq!(queue, consumer);
                queue.map_err(|error| error.fault(Resource::queue(b"t", "/")).reply_text())
            };
            assert_eq!(parsed(Value::I64(1_800_000)), Ok(Some(1_800_000)));
            assert_eq!(parsed(Value::U8(0)), Ok(Some(0)));
            for (value, reason) in [
                (Value::I32(-1), "{value_negative,-1}"),
                (text("abc"), "\"expected integer, got longstr\""),
                (Value::I64(EXPIRY_MS_MAX + 1), "{value_too_large,315360000001}"),
            ] {
                let prefix =
                    "PRECONDITION_FAILED - invalid arg 'x-consumer-timeout' for queue 't' in vhost '/'";
                assert_eq!(parsed(value), Err(format!("{prefix}: {reason}")));
            }
        }
        assert_eq!(QueueArguments::parse(Table::default()).unwrap().consumer_timeout_ms, None);
    }

    #[test]
    fn a_consumer_s_priority_is_an_integer() {
        let parse = |entries: &[_]| ConsumerArguments::parse(table(entries).as_table(), QueueType::Classic);
        let of_priority = |priority| Ok(ConsumerArguments { priority, timeout_ms: None });
        assert_eq!(parse(&[("x-priority", Value::I32(-5))]), of_priority(-5));
        assert_eq!(parse(&[("x-credit", Value::Void)]), of_priority(0));
        let text_of = |error: ArgumentError| error.fault(Resource::queue(b"t", "/")).reply_text();
        assert_eq!(
            text_of(parse(&[("x-priority", text("a"))]).unwrap_err()),
            "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 't' in vhost '/': \"expected integer, got longstr\""
        );
        assert_eq!(
            text_of(parse(&[("x-stream-offset", text("first"))]).unwrap_err()),
            "PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue 't' in vhost '/' of queue type rabbit_classic_queue"
        );
    }
}
