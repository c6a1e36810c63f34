//! The arguments of an exchange: what each kind refuses when it is declared, in RabbitMQ's words, and
//! what it makes of them. Comparing two declarations is `equivalence`'s.

use super::arguments::{exchange_name, integer};
use super::dedup::ExchangeRules;
use super::delay::inner_kind;
use super::exchange::ExchangeKind;
use super::fault::{Fault, lossy};
use super::hash::Property;
use super::name::Resource;
use super::term::{Term, type_name};
use crate::amqp::field_table::{Table, Value};
use crate::amqp::reply_code::ReplyCode;
use crate::limits::HISTORY_MESSAGES_MAX;

/// Checks the arguments of a new exchange.
///
/// # Errors
/// 406 for a value that the argument cannot have.
pub fn check(kind: ExchangeKind, arguments: Table<'_>, exchange: Resource<'_>) -> Result<(), Fault> {
    exchange_name(arguments, "alternate-exchange").map_err(|error| error.fault(exchange))?;
    ExchangeRules::of(kind, arguments)?;
    match kind {
        ExchangeKind::ConsistentHash => check_hash(arguments, exchange),
        ExchangeKind::Direct | ExchangeKind::Fanout | ExchangeKind::Topic | ExchangeKind::Headers => Ok(()),
        ExchangeKind::ModulusHash | ExchangeKind::Random | ExchangeKind::LocalRandom => Ok(()),
        ExchangeKind::RecentHistory => check_length(arguments),
        ExchangeKind::Deduplication => Ok(()),
        ExchangeKind::Delayed => check(inner_kind(arguments)?, arguments, exchange),
    }
}

/// RabbitMQ ends the connection with 541 when one of the two is no string; that is a fault of its own.
fn check_hash(arguments: Table<'_>, exchange: Resource<'_>) -> Result<(), Fault> {
    let text = |key: &'static str| match arguments.find(key.as_bytes()) {
        None => Ok(None),
        Some(Value::LongStr(text)) => Ok(Some(text)),
        Some(other) => {
            let found = type_name(other);
            Err(refused(format!("invalid arg '{key}' for {exchange}: {{unacceptable_type,{found}}}")))
        }
    };
    match (text("hash-header")?, text("hash-property")?) {
        (Some(_), Some(_)) => Err(refused("hash-header and hash-property are mutually exclusive".to_owned())),
        (None, Some(name)) if Property::parse(name).is_none() => {
            Err(refused(format!("Unsupported property: {}", lossy(name))))
        }
        (Some(_), None) | (None, Some(_) | None) => Ok(()),
    }
}

const HISTORY_LENGTH: &[u8] = b"x-recent-history-length";

/// RabbitMQ has no upper bound; each message of a history takes memory.
fn check_length(arguments: Table<'_>) -> Result<(), Fault> {
    let Some(value) = arguments.find(HISTORY_LENGTH) else { return Ok(()) };
    let what = match length(value) {
        Some(1..=HISTORY_MESSAGES_MAX) => return Ok(()),
        Some(length) if length > 0 => format!("not be greater than {HISTORY_MESSAGES_MAX}"),
        Some(_) | None => "be a positive integer".to_owned(),
    };
    Err(refused(format!("Invalid argument {}, 'x-recent-history-length' must {what}", Term(value))))
}

/// RabbitMQ takes these types of integers and no other.
fn length(value: Value<'_>) -> Option<i64> {
    match value {
        Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) => integer(value),
        _ => None,
    }
}

/// How many messages an exchange of type x-recent-history keeps; RabbitMQ's default is 20.
pub fn history_length(arguments: Table<'_>) -> usize {
    let length = arguments.find(HISTORY_LENGTH).and_then(length);
    let length = length.filter(|length| (1..=HISTORY_MESSAGES_MAX).contains(length));
    length.and_then(|length| usize::try_from(length).ok()).unwrap_or(20)
}

fn refused(text: String) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, text)
}
