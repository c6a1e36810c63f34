//! Delayed messages (exchange type `x-delayed-message`, wire-compatible with RabbitMQ's community plugin of
//! that name): how long a message waits, what waits in which order, what it looks like afterwards.
//!
//! The header `x-delay` says for how many milliseconds. A message that has waited carries it negated, so
//! consumers see that it did, and no exchange behind delays it again.

use std::collections::BTreeMap;

use crate::amqp::field_table::{Table, TableWriter, Value};
use crate::amqp::properties::Properties;
use crate::amqp::reply_code::ReplyCode;

use super::exchange::ExchangeKind;
use super::fault::{Fault, lossy};
use super::id::Seq;
use super::message::Message;
use super::queue::Entry;

const X_DELAY: &str = "x-delay";
const X_DELAYED_TYPE: &[u8] = b"x-delayed-type";

/// How long a message with these headers waits, in milliseconds; `None` is not at all.
///
/// As the plugin: an integer of any width, a float without its fraction, a string of decimal digits.
/// Zero, negative, or anything else is no delay. The plugin ends at 2^32-1 ms; here it is any `i64`.
pub fn delay_ms(headers: Option<Table<'_>>) -> Option<u64> {
    let ms = match headers?.find(X_DELAY.as_bytes())? {
        Value::I8(v) => v.into(),
        Value::U8(v) => v.into(),
        Value::I16(v) => v.into(),
        Value::U16(v) => v.into(),
        Value::I32(v) => v.into(),
        Value::U32(v) => v.into(),
        Value::I64(v) => v,
        // Saturates; NaN is 0.
        Value::F32(v) => v as i64,
        Value::F64(v) => v as i64,
        Value::LongStr(text) | Value::Bytes(text) => std::str::from_utf8(text).ok()?.parse().ok()?,
        Value::Bool(_)
        | Value::Decimal(..)
        | Value::Timestamp(_)
        | Value::Table(_)
        | Value::Array(_)
        | Value::Void => return None,
    };
    u64::try_from(ms).ok().filter(|ms| *ms > 0)
}

/// [`delay_ms`] of a message.
pub fn delay_of(message: &Message) -> Option<u64> {
    delay_ms(Properties::decode(message.properties()).ok()?.headers)
}

/// The message as it goes on when its time has come: its delay negated, as a long.
pub fn released(message: &Message) -> Message {
    let old = Properties::decode(message.properties()).unwrap_or_default();
    let Some(waited_ms) = delay_ms(old.headers) else { return message.clone() };
    let negated = Value::I64(i64::try_from(waited_ms).map_or(i64::MIN, |ms| -ms));
    let entries = old.headers.unwrap_or_default().iter().map_while(Result::ok);
    let headers = entries.fold(TableWriter::new(), |headers, (name, value)| {
        let value = if name == X_DELAY.as_bytes() { negated } else { value };
        headers.raw_entry(name, value)
    });
    let mut block = Vec::new();
    Properties { headers: Some(headers.as_table()), ..old }.encode(&mut block);
    message.with_properties(&block)
}

/// How a delayed exchange with these arguments routes: the argument `x-delayed-type`.
///
/// # Errors
/// 406 with the plugin's texts when it is missing, unknown, or the delayed type itself.
pub fn inner_kind(arguments: Table<'_>) -> Result<ExchangeKind, Fault> {
    let refuse = |text: String| Err(Fault::new(ReplyCode::PreconditionFailed, text));
    let Some(Value::LongStr(name) | Value::Bytes(name)) = arguments.find(X_DELAYED_TYPE) else {
        return refuse("Invalid argument, 'x-delayed-type' must be an existing exchange type".to_owned());
    };
    match ExchangeKind::parse(name) {
        Some(ExchangeKind::Delayed) => {
            refuse("Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'".to_owned())
        }
        Some(kind) => Ok(kind),
        None => refuse(format!("unknown exchange type '{}'", lossy(name))),
    }
}

/// Entries that wait for their time, [`Entry::expires_ms`]; in order of that, then of their places.
pub(super) struct Delayed<D> {
    by_due: BTreeMap<(u64, Seq), Entry<D>>,
    bytes: usize,
}

impl<D> Default for Delayed<D> {
    fn default() -> Self {
        Delayed { by_due: BTreeMap::new(), bytes: 0 }
    }
}

impl<D> Delayed<D> {
    pub fn len(&self) -> usize {
        self.by_due.len()
    }

    /// Bytes of the bodies in it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the first one's time comes, in milliseconds since 1970.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.by_due.first_key_value().map(|((due_ms, _), _)| *due_ms)
    }

    pub fn insert(&mut self, entry: Entry<D>) {
        self.bytes += entry.message.body().len();
        self.by_due.insert((entry.expires_ms, entry.seq), entry);
    }

    /// Takes what is due, in order: at most so many entries, and none after their messages have made up so
    /// many bytes.
    pub fn take_due(&mut self, now_ms: u64, count_max: usize, bytes_max: usize) -> Vec<Entry<D>> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < count_max
            && bytes < bytes_max
            && self.next_due_ms().is_some_and(|due_ms| due_ms <= now_ms)
            && let Some((_, entry)) = self.by_due.pop_first()
        {
            bytes += entry.message.size_bytes();
            self.bytes -= entry.message.body().len();
            taken.push(entry);
        }
        taken
    }

    pub fn take_all(&mut self) -> Vec<Entry<D>> {
        self.bytes = 0;
        std::mem::take(&mut self.by_due).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_headers(headers: &TableWriter) -> Message {
        let properties =
            Properties { headers: Some(headers.as_table()), priority: Some(3), ..Properties::default() };
        let mut block = Vec::new();
        properties.encode(&mut block);
        Message::new(b"ex", b"key", &block, &[b"body"])
    }

    fn delay(value: Value<'_>) -> Option<u64> {
        delay_of(&with_headers(&TableWriter::new().entry(X_DELAY, value)))
    }

    #[test]
    fn a_delay_may_be_any_number_or_a_text_of_digits() {
        for value in [
            Value::I8(7),
            Value::U8(7),
            Value::I16(7),
            Value::U16(7),
            Value::I32(7),
            Value::U32(7),
            Value::I64(7),
            Value::F32(7.9),
            Value::F64(7.9),
            Value::LongStr(b"7"),
            Value::Bytes(b"+7"),
        ] {
            assert_eq!(delay(value), Some(7), "{value:?}");
        }
        assert_eq!(delay(Value::I64(i64::MAX)), Some(i64::MAX as u64));
        assert_eq!(delay(Value::F64(f64::INFINITY)), Some(i64::MAX as u64));
    }

    #[test]
    fn what_is_not_a_positive_number_is_no_delay() {
        for value in [
            Value::I32(0),
            Value::I8(-1),
            Value::I64(i64::MIN),
            Value::F64(0.9),
            Value::F64(f64::NAN),
            Value::F32(f32::NEG_INFINITY),
            Value::LongStr(b""),
            Value::LongStr(b" 7"),
            Value::LongStr(b"7s"),
            Value::LongStr(b"-7"),
            Value::LongStr(b"\xff"),
            Value::LongStr(b"99999999999999999999"),
            Value::Bool(true),
            Value::Timestamp(7),
            Value::Decimal(0, 7),
            Value::Void,
        ] {
            assert_eq!(delay(value), None, "{value:?}");
        }
        assert_eq!(delay_ms(None), None);
        assert_eq!(delay_of(&with_headers(&TableWriter::new().entry("x-delays", Value::I32(7)))), None);
    }

    #[test]
    fn a_released_message_carries_its_delay_negated_and_everything_else_as_it_was() {
        let headers = TableWriter::new()
            .entry("before", Value::Bool(true))
            .entry(X_DELAY, Value::LongStr(b"5000"))
            .entry("behind", Value::I16(1));
        let released = released(&with_headers(&headers));
        let expected = TableWriter::new()
            .entry("before", Value::Bool(true))
            .entry(X_DELAY, Value::I64(-5000))
            .entry("behind", Value::I16(1));
        assert_eq!(released, with_headers(&expected));
        assert_eq!(delay_of(&released), None, "and waits no second time");
        let longest = with_headers(&TableWriter::new().entry(X_DELAY, Value::I64(i64::MAX)));
        assert_eq!(delay_of(&super::released(&longest)), None);
    }

    #[test]
    fn a_message_that_was_not_delayed_is_released_as_it_is() {
        let plain = Message::new(b"", b"q", &[0, 0], &[]);
        assert_eq!(released(&plain), plain);
        let negative = with_headers(&TableWriter::new().entry(X_DELAY, Value::I32(-3)));
        assert_eq!(released(&negative), negative);
    }

    #[test]
    fn the_inner_type_must_exist_and_not_be_the_delayed_one() {
        let of = |value| {
            let arguments = TableWriter::new().entry("x-delayed-type", value);
            inner_kind(arguments.as_table()).map_err(|fault| fault.reply_text())
        };
        assert_eq!(of(Value::LongStr(b"topic")), Ok(ExchangeKind::Topic));
        let text = |text: &str| Err(format!("PRECONDITION_FAILED - {text}"));
        let must = "Invalid argument, 'x-delayed-type' must be an existing exchange type";
        assert_eq!(of(Value::I32(1)), text(must));
        assert_eq!(inner_kind(Table::default()).map_err(|fault| fault.reply_text()), text(must));
        assert_eq!(of(Value::LongStr(b"x-nope")), text("unknown exchange type 'x-nope'"));
        let itself = "Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'";
        assert_eq!(of(Value::LongStr(b"x-delayed-message")), text(itself));
    }

    fn entry(seq: u64, due_ms: u64) -> Entry<()> {
        let message = Message::new(b"", b"", &[0, 0], &[b"x"]);
        Entry { expires_ms: due_ms, ..Entry::new(Seq(seq), message, ()) }
    }

    proptest! {
        #[test]
        fn what_is_due_comes_by_time_and_then_by_place(due_ms in proptest::collection::vec(0u64..20, 0..60), now_ms in 0u64..20) {
            let mut delayed = Delayed::default();
            for (seq, due_ms) in due_ms.iter().enumerate() {
                delayed.insert(entry(seq as u64, *due_ms));
            }
            let mut expected: Vec<_> = due_ms.iter().enumerate().map(|(seq, due_ms)| (*due_ms, seq as u64)).collect();
            expected.sort_unstable();
            let late = expected.split_off(expected.partition_point(|(due_ms, _)| *due_ms <= now_ms));
            let order = |entries: Vec<Entry<()>>| entries.iter().map(|e| (e.expires_ms, e.seq.0)).collect::<Vec<_>>();
            let mut taken = Vec::new();
            loop {
                let step = delayed.take_due(now_ms, 7, usize::MAX);
                prop_assert!(step.len() <= 7);
                if step.is_empty() {
                    break;
                }
                taken.extend(step);
            }
            prop_assert_eq!(order(taken), expected);
            prop_assert_eq!(delayed.next_due_ms(), late.first().map(|(due_ms, _)| *due_ms));
            prop_assert_eq!((delayed.len(), delayed.bytes()), (late.len(), late.len()));
            prop_assert_eq!(order(delayed.take_all()), late);
        }
    }

    #[test]
    fn a_step_ends_with_the_entry_that_makes_it_large() {
        let mut delayed = Delayed::default();
        (0..5).for_each(|seq| delayed.insert(entry(seq, 1)));
        let two = 2 * entry(0, 1).message.size_bytes();
        assert_eq!(delayed.take_due(1, 100, two).len(), 2);
        assert_eq!(delayed.take_due(1, 100, 1).len(), 1, "one in any case");
    }
}
