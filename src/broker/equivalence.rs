//! Whether a second declaration of a queue or an exchange means the same as the first, with RabbitMQ's
//! reply texts (checked against RabbitMQ 4.0). Whose exclusive queue it is
//! was checked before; a redeclaration's arguments are compared, not validated.

use super::arguments::{integer, queue_type};
use super::exchange::{ExchangeKind, ExchangeProperties};
use super::fault::Fault;
use super::name::Resource;
use super::queue_type::QueueType;
use super::term::{Plain, type_name};
use crate::amqp::field_table::{Table, Value};
use crate::amqp::reply_code::ReplyCode;
use std::sync::Arc;

/// What a client declares a queue to be; compared when it is declared again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueProperties {
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it goes with its last consumer.
    pub auto_delete: bool,
    /// The field table of the declaration, without its length.
    pub arguments: Arc<[u8]>,
}

/// The first difference between two declarations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("inequivalent arg '{argument}': received {received} but current is {current}")]
pub struct Inequivalent {
    argument: &'static str,
    received: String,
    current: String,
}

impl Inequivalent {
    /// What the client is answered; `resource` is what it declared again.
    pub fn fault(&self, resource: Resource<'_>) -> Fault {
        let Inequivalent { argument, received, current } = self;
        let text = format!(
            "inequivalent arg '{argument}' for {resource}: received {received} but current is {current}"
        );
        Fault::new(ReplyCode::PreconditionFailed, text)
    }
}

/// Compares a queue with a declaration of the same name, in RabbitMQ's order.
pub fn check_queue(current: &QueueProperties, received: &QueueProperties) -> Result<(), Inequivalent> {
    check_flag("durable", current.durable, received.durable)?;
    check_flag("auto_delete", current.auto_delete, received.auto_delete)?;
    let (current, received) = (Table::from_raw(&current.arguments), Table::from_raw(&received.arguments));
    let compared = queue_type(current).unwrap_or_default().arguments();
    compared
        .iter()
        .try_for_each(|key| check_argument(key, queue_argument(current, key), queue_argument(received, key)))
}

/// Compares an exchange with a declaration of the same name, in RabbitMQ's order.
pub fn check_exchange(
    current: &ExchangeProperties,
    received: &ExchangeProperties,
) -> Result<(), Inequivalent> {
    check_plain("type", &atom(current.kind), &atom(received.kind))?;
    check_flag("durable", current.durable, received.durable)?;
    check_flag("auto_delete", current.auto_delete, received.auto_delete)?;
    check_flag("internal", current.internal, received.internal)?;
    let key = "alternate-exchange";
    let (current, received) = (Table::from_raw(&current.arguments), Table::from_raw(&received.arguments));
    check_argument(key, current.find(key.as_bytes()), received.find(key.as_bytes()))
}

/// A type as RabbitMQ prints it: an Erlang atom, quoted where it is not a plain word.
fn atom(kind: ExchangeKind) -> String {
    let name = kind.as_str();
    if name.contains('-') { format!("'{name}'") } else { name.to_owned() }
}

/// An argument of a queue. A missing type is the default one, as RabbitMQ 4 writes it in, so that it
/// makes no difference whether a client spells the default out.
fn queue_argument<'a>(table: Table<'a>, key: &str) -> Option<Value<'a>> {
    let value = table.find(key.as_bytes());
    match value {
        None | Some(Value::LongStr(b"" | b"undefined")) if key == "x-queue-type" => {
            Some(Value::LongStr(QueueType::default().as_str().as_bytes()))
        }
        value => value,
    }
}

fn check_flag(argument: &'static str, current: bool, received: bool) -> Result<(), Inequivalent> {
    check_plain(argument, if current { "true" } else { "false" }, if received { "true" } else { "false" })
}

fn check_plain(argument: &'static str, current: &str, received: &str) -> Result<(), Inequivalent> {
    if current == received {
        return Ok(());
    }
    Err(Inequivalent { argument, received: format!("'{received}'"), current: format!("'{current}'") })
}

fn check_argument(
    argument: &'static str,
    current: Option<Value<'_>>,
    received: Option<Value<'_>>,
) -> Result<(), Inequivalent> {
    let full = |value: Option<Value<'_>>| match value {
        None => "none".to_owned(),
        Some(value) => format!("the value '{}' of type '{}'", Plain(value), type_name(value)),
    };
    // Where both have a value, RabbitMQ shows one without any like one that is missing.
    let brief = |value: Value<'_>| match value {
        Value::Void => "none".to_owned(),
        value => format!("'{}'", Plain(value)),
    };
    match (current, received) {
        (None, None) => Ok(()),
        (Some(current), Some(received)) if is_same(current, received) => Ok(()),
        (Some(current), Some(received)) => {
            Err(Inequivalent { argument, received: brief(received), current: brief(current) })
        }
        (current, received) => {
            Err(Inequivalent { argument, received: full(received), current: full(current) })
        }
    }
}

/// Equal values of different widths, or of the two types of strings, are the same; a timestamp is a number.
fn is_same(a: Value<'_>, b: Value<'_>) -> bool {
    let number = |value| match value {
        Value::Timestamp(seconds) => i64::try_from(seconds).ok(),
        value => integer(value),
    };
    match (a, b) {
        (Value::LongStr(a) | Value::Bytes(a), Value::LongStr(b) | Value::Bytes(b)) => a == b,
        (Value::F32(a), Value::F64(b)) | (Value::F64(b), Value::F32(a)) => f64::from(a) == b,
        (a, b) => a == b || number(a).is_some_and(|value| number(b) == Some(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::TableWriter;

    type Entries<'a> = &'a [(&'a str, Value<'a>)];

    fn arguments(entries: Entries<'_>) -> Arc<[u8]> {
        let table = entries.iter().fold(TableWriter::new(), |table, (name, value)| table.entry(name, *value));
        table.as_table().raw().into()
    }

    fn queue(entries: Entries<'_>) -> QueueProperties {
        QueueProperties { durable: true, auto_delete: false, arguments: arguments(entries) }
    }

    const fn text(text: &'static str) -> Value<'static> {
        Value::LongStr(text.as_bytes())
    }

    fn refusal(result: Result<(), Inequivalent>, resource: Resource<'_>) -> String {
        let text = result.unwrap_err().fault(resource).reply_text();
        text.strip_prefix("PRECONDITION_FAILED - inequivalent arg ").unwrap().to_owned()
    }

    #[test]
    fn differing_flags_read_as_in_rabbitmq() {
        let q = Resource::queue(b"t", "/");
        let current = queue(&[]);
        let received = QueueProperties { durable: false, auto_delete: true, ..current.clone() };
        assert_eq!(
            refusal(check_queue(&current, &received), q),
            "'durable' for queue 't' in vhost '/': received 'false' but current is 'true'"
        );
        let received = QueueProperties { durable: true, ..received };
        assert_eq!(
            refusal(check_queue(&current, &received), q),
            "'auto_delete' for queue 't' in vhost '/': received 'true' but current is 'false'"
        );
    }

    /// RabbitMQ 4.0 answered each of these.
    #[test]
    fn differing_arguments_read_as_in_rabbitmq() {
        let ttl = |value| ("x-message-ttl", value);
        let list = TableWriter::new().item(Value::I32(1));
        let cases: &[(Entries<'_>, Entries<'_>, &str)] = &[
            (
                &[],
                &[ttl(Value::I32(60000))],
                "'x-message-ttl' Q: received the value '60000' of type 'signedint' but current is none",
            ),
            (
                &[ttl(Value::I32(60000))],
                &[],
                "'x-message-ttl' Q: received none but current is the value '60000' of type 'signedint'",
            ),
            (
                &[ttl(Value::I32(60000))],
                &[ttl(Value::I32(5000))],
                "'x-message-ttl' Q: received '5000' but current is '60000'",
            ),
            (
                &[ttl(Value::I32(60000))],
                &[ttl(text("60000"))],
                "'x-message-ttl' Q: received '60000' but current is '60000'",
            ),
            (
                &[],
                &[ttl(Value::Void)],
                "'x-message-ttl' Q: received the value 'undefined' of type 'void' but current is none",
            ),
            (
                &[],
                &[("x-max-length", Value::Array(list.as_array()))],
                "'x-max-length' Q: received the value '[{signedint,1}]' of type 'array' but current is none",
            ),
            (
                &[],
                &[("x-queue-type", text("quorum"))],
                "'x-queue-type' Q: received 'quorum' but current is 'classic'",
            ),
            (
                &[("x-queue-type", text("quorum"))],
                &[],
                "'x-queue-type' Q: received 'classic' but current is 'quorum'",
            ),
            (
                &[("x-max-length", Value::U8(1)), ttl(Value::I32(1))],
                &[],
                "'x-message-ttl' Q: received none but current is the value '1' of type 'signedint'",
            ),
        ];
        for (current, received, expected) in cases {
            let result = check_queue(&queue(current), &queue(received));
            let expected = expected.replace('Q', "for queue 't' in vhost '/'");
            assert_eq!(refusal(result, Resource::queue(b"t", "/")), expected);
        }
    }

    #[test]
    fn equal_values_and_unknown_arguments_make_no_difference() {
        let pairs: &[(Entries<'_>, Entries<'_>)] = &[
            (&[("x-message-ttl", Value::I32(5))], &[("x-message-ttl", Value::I64(5))]),
            (&[("x-dead-letter-exchange", text("a"))], &[("x-dead-letter-exchange", Value::Bytes(b"a"))]),
            (&[], &[("x-queue-type", text("classic"))]),
            (&[], &[("x-unknown", Value::U8(1))]),
            (&[], &[("x-delivery-limit", Value::U8(1))]),
        ];
        for (a, b) in pairs {
            assert_eq!(check_queue(&queue(a), &queue(b)), Ok(()));
            assert_eq!(check_queue(&queue(b), &queue(a)), Ok(()));
        }
    }

    #[test]
    fn differing_exchanges_read_as_in_rabbitmq() {
        let current = ExchangeProperties {
            kind: ExchangeKind::Direct,
            durable: false,
            auto_delete: false,
            internal: false,
            arguments: arguments(&[("alternate-exchange", text("b")), ("foo", text("x"))]),
        };
        let changed = |change: fn(&mut ExchangeProperties)| {
            let mut received = current.clone();
            change(&mut received);
            refusal(check_exchange(&current, &received), Resource::exchange(b"x", "/"))
        };
        let x = "for exchange 'x' in vhost '/'";
        let flag = |name| format!("'{name}' {x}: received 'true' but current is 'false'");
        assert_eq!(
            changed(|p| p.kind = ExchangeKind::Fanout),
            format!("'type' {x}: received 'fanout' but current is 'direct'")
        );
        assert_eq!(
            changed(|p| p.kind = ExchangeKind::LocalRandom),
            format!("'type' {x}: received ''x-local-random'' but current is 'direct'")
        );
        assert_eq!(changed(|p| p.durable = true), flag("durable"));
        assert_eq!(changed(|p| p.auto_delete = true), flag("auto_delete"));
        assert_eq!(changed(|p| p.internal = true), flag("internal"));
        assert_eq!(
            changed(|p| p.arguments = arguments(&[("alternate-exchange", text("a"))])),
            format!("'alternate-exchange' {x}: received 'a' but current is 'b'")
        );
        let mut same = current.clone();
        same.arguments = arguments(&[("alternate-exchange", text("b"))]);
        assert_eq!(check_exchange(&current, &same), Ok(()));
    }
}
