//! The arguments of an exchange: what each kind refuses when it is declared, in RabbitMQ's words, and
//! what it makes of them. Comparing two declarations is `equivalence`'s.

use super::arguments::exchange_name;
use super::delay::inner_kind;
use super::exchange::ExchangeKind;
use super::fault::{Fault, lossy};
use super::hash::Property;
use super::name::Resource;
use super::term::type_name;
use crate::amqp::field_table::{Table, Value};
use crate::amqp::reply_code::ReplyCode;

/// Checks the arguments of a new exchange.
///
/// # Errors
/// 406 for a value that the argument cannot have.
pub fn check(kind: ExchangeKind, arguments: Table<'_>, exchange: Resource<'_>) -> Result<(), Fault> {
    exchange_name(arguments, "alternate-exchange").map_err(|error| error.fault(exchange))?;
    match kind {
        ExchangeKind::ConsistentHash => check_hash(arguments, exchange),
        ExchangeKind::Direct | ExchangeKind::Fanout | ExchangeKind::Topic | ExchangeKind::Headers => Ok(()),
        ExchangeKind::ModulusHash | ExchangeKind::Random | ExchangeKind::LocalRandom => Ok(()),
        ExchangeKind::RecentHistory => Ok(()),
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

fn refused(text: String) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, text)
}
