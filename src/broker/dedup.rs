//! Which messages are duplicates: by a header that the publisher fills, in an exchange within a cache of
//! latest values, in a queue among the messages that are in it. Arguments and headers are those of the
//! community plugin rabbitmq-message-deduplication and of LavinMQ. Who asks, and under which lock, is the
//! engine's business.

use std::borrow::Cow;
use std::collections::hash_map::{Entry as Slot, RandomState};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

use super::arguments::{ArgumentError, InvalidValue, boolean, integer, string};
use super::exchange::ExchangeKind;
use super::fault::Fault;
use super::id::Seq;
use crate::amqp::field_table::{Table, Value};
use crate::amqp::properties::Properties;
use crate::amqp::reply_code::ReplyCode;
use crate::limits::{DEDUPLICATION_KEYS_DEFAULT, DEDUPLICATION_KEYS_MAX};

const HEADER: &[u8] = b"x-deduplication-header";

/// A value of the header. Integers of all widths are alike, and so are the two types of strings. 128 bits
/// under a secret of this process, so that its room does not depend on its length, and so that nobody can
/// make two values meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u128);

/// Makes fingerprints; those of two makers have nothing to do with each other.
#[derive(Clone, Default)]
struct Maker([RandomState; 2]);

impl Maker {
    fn of(&self, value: Value<'_>) -> Fingerprint {
        let half = |state: &RandomState| {
            let mut hasher = state.build_hasher();
            write(&mut hasher, value);
            u128::from(hasher.finish())
        };
        let [high, low] = &self.0;
        Fingerprint(half(high) << 64 | half(low))
    }
}

fn write(hasher: &mut impl Hasher, value: Value<'_>) {
    let mut tagged = |tag: u8, bytes: &[u8]| {
        hasher.write_u8(tag);
        hasher.write(bytes);
    };
    if let Some(number) = integer(value) {
        return tagged(b'l', &number.to_be_bytes());
    }
    match value {
        Value::LongStr(bytes) | Value::Bytes(bytes) => tagged(b'S', bytes),
        Value::Bool(value) => tagged(b't', &[u8::from(value)]),
        Value::F32(value) => tagged(b'd', &f64::from(value).to_be_bytes()),
        Value::F64(value) => tagged(b'd', &value.to_be_bytes()),
        Value::Decimal(scale, value) => tagged(b'D', &[&[scale][..], &value.to_be_bytes()].concat()),
        Value::Timestamp(seconds) => tagged(b'T', &seconds.to_be_bytes()),
        Value::Table(table) => tagged(b'F', table.raw()),
        Value::Array(array) => tagged(b'A', array.raw()),
        // An integer was written above.
        Value::Void | Value::I8(_) | Value::U8(_) | Value::I16(_) | Value::U16(_) => tagged(b'V', &[]),
        Value::I32(_) | Value::U32(_) | Value::I64(_) => tagged(b'V', &[]),
    }
}

// ---- exchanges

/// What an exchange that drops duplicates was declared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeRules {
    /// `x-cache-size`: how many values are remembered
    keys_max: usize,
    /// `x-cache-ttl`: for how long, in milliseconds; without it until there is no room
    ttl_ms: Option<u64>,
    /// the header that tells duplicates
    header: Box<[u8]>,
}

impl ExchangeRules {
    /// The rules of an exchange of type `x-message-deduplication`, or of any type with the argument
    /// `x-message-deduplication` = true; `None` for one that lets everything through.
    ///
    /// # Errors
    /// 406 for a value that the argument cannot have, in the plugin's words.
    pub fn of(kind: ExchangeKind, arguments: Table<'_>) -> Result<Option<ExchangeRules>, Fault> {
        let is_plugins = kind == ExchangeKind::Deduplication;
        let wanted = match arguments.find(b"x-message-deduplication") {
            None => is_plugins,
            Some(Value::Bool(wanted)) => wanted || is_plugins,
            Some(_) => return Err(refused("Invalid argument, 'x-message-deduplication' must be a boolean")),
        };
        if !wanted {
            return Ok(None);
        }
        let size = positive(arguments, "x-cache-size").map_err(|()| {
            refused("Missing or invalid argument, 'x-cache-size' must be an integer greater than 0")
        })?;
        if size.is_none() && is_plugins {
            let text = "Missing or invalid argument, 'x-cache-size' must be an integer greater than 0";
            return Err(refused(text));
        }
        let keys_max = match size.map(usize::try_from) {
            None => DEDUPLICATION_KEYS_DEFAULT,
            Some(Ok(size)) if size <= DEDUPLICATION_KEYS_MAX => size,
            Some(_) => {
                let text =
                    format!("Invalid argument, 'x-cache-size' must not be above {DEDUPLICATION_KEYS_MAX}");
                return Err(refused(text));
            }
        };
        let ttl_ms = positive(arguments, "x-cache-ttl")
            .map_err(|()| refused("Invalid argument, 'x-cache-ttl' must be an integer greater than 0"))?;
        match arguments.find(b"x-cache-persistence") {
            None | Some(Value::LongStr(b"memory" | b"disk")) => {}
            Some(_) => {
                let text = "Invalid argument, 'x-cache-persistence' must be either 'disk' or 'memory'";
                return Err(refused(text));
            }
        }
        let header = match arguments.find(HEADER) {
            None => HEADER,
            Some(Value::LongStr(name)) => name,
            Some(_) => {
                return Err(refused("Invalid argument, 'x-deduplication-header' must be a string"));
            }
        };
        Ok(Some(ExchangeRules { keys_max, ttl_ms, header: header.into() }))
    }
}

fn refused(text: impl Into<Cow<'static, str>>) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, text)
}

/// An integer above zero, or the digits of one: the plugin takes both.
fn positive(arguments: Table<'_>, key: &str) -> Result<Option<u64>, ()> {
    let number = match arguments.find(key.as_bytes()) {
        None => return Ok(None),
        Some(Value::LongStr(digits)) => std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()),
        Some(value) => integer(value).and_then(|number| u64::try_from(number).ok()),
    };
    number.filter(|number| *number > 0).map(Some).ok_or(())
}

/// The latest values that an exchange has seen.
pub struct Cache {
    maker: Maker,
    /// until when each counts, in milliseconds since 1970 (0: for ever), and its number in `order`
    seen: HashMap<Fingerprint, (u64, u64)>,
    /// in the order in which they came; those whose number is not that of `seen` are gone
    order: VecDeque<(Fingerprint, u64)>,
    next: u64,
}

impl Cache {
    /// An empty one.
    pub fn new() -> Cache {
        Cache { maker: Maker::default(), seen: HashMap::new(), order: VecDeque::new(), next: 0 }
    }

    /// Whether the message is a duplicate. If it is not, its value is remembered, and the oldest one makes
    /// room for it. A message without the header is never one.
    pub fn is_duplicate(&mut self, rules: &ExchangeRules, properties: &Properties<'_>, now_ms: u64) -> bool {
        let headers = properties.headers.unwrap_or_default();
        let Some(value) = headers.find(&rules.header) else { return false };
        let own = headers.find(b"x-cache-ttl").and_then(integer).and_then(|ttl| u64::try_from(ttl).ok());
        let until_ms = own.or(rules.ttl_ms).map_or(0, |ttl| now_ms.saturating_add(ttl).max(1));
        let fingerprint = self.maker.of(value);
        let number = self.next;
        match self.seen.entry(fingerprint) {
            Slot::Occupied(known) if known.get().0 == 0 || known.get().0 > now_ms => return true,
            Slot::Occupied(mut over) => *over.get_mut() = (until_ms, number),
            Slot::Vacant(free) => *free.insert((until_ms, number)) = (until_ms, number),
        }
        self.next += 1;
        self.order.push_back((fingerprint, number));
        self.make_room(rules.keys_max);
        false
    }

    fn make_room(&mut self, keys_max: usize) {
        while self.seen.len() > keys_max {
            let Some((fingerprint, number)) = self.order.pop_front() else { return };
            if self.seen.get(&fingerprint).is_some_and(|(_, current)| *current == number) {
                self.seen.remove(&fingerprint);
            }
        }
        // Values that come again after their time leave their old place behind.
        if self.order.len() > 2 * keys_max {
            let seen = &self.seen;
            self.order.retain(|(fingerprint, number)| {
                seen.get(fingerprint).is_some_and(|(_, current)| current == number)
            });
        }
    }
}

impl Default for Cache {
    fn default() -> Cache {
        Cache::new()
    }
}

// ---- queues

/// The header by which a queue tells duplicates, when its arguments ask for that.
pub fn queue_header(arguments: Table<'_>) -> Result<Option<&[u8]>, ArgumentError> {
    let wanted = boolean(arguments, "x-message-deduplication")?;
    let header = string(arguments, "x-deduplication-header")?;
    match (wanted, header) {
        (false, _) => Ok(None),
        (true, Some(b"")) => {
            let nameless = InvalidValue::Unknown("no_header");
            Err(ArgumentError::Value("x-deduplication-header", nameless))
        }
        (true, header) => Ok(Some(header.unwrap_or(HEADER))),
    }
}

/// The values of the messages that are in one queue, delivered and unacknowledged ones included; each with
/// the place of its message.
pub(super) struct Present {
    header: Box<[u8]>,
    maker: Maker,
    places: HashMap<Fingerprint, Seq>,
}

impl Present {
    pub fn new(header: &[u8]) -> Present {
        Present { header: header.into(), maker: Maker::default(), places: HashMap::new() }
    }

    /// Whether a message with such properties is like one that is in the queue.
    pub fn has(&self, properties: &[u8]) -> bool {
        self.fingerprint(properties).is_some_and(|fingerprint| self.places.contains_key(&fingerprint))
    }

    /// A message has got that place. Of several that are alike the first one counts.
    pub fn remember(&mut self, properties: &[u8], seq: Seq) {
        if let Some(fingerprint) = self.fingerprint(properties) {
            self.places.entry(fingerprint).or_insert(seq);
        }
    }

    /// The message in that place has left the queue.
    pub fn forget(&mut self, properties: &[u8], seq: Seq) {
        if let Some(fingerprint) = self.fingerprint(properties)
            && self.places.get(&fingerprint) == Some(&seq)
        {
            self.places.remove(&fingerprint);
        }
    }

    fn fingerprint(&self, properties: &[u8]) -> Option<Fingerprint> {
        let headers = Properties::decode(properties).ok()?.headers?;
        headers.find(&self.header).map(|value| self.maker.of(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::TableWriter;

    fn block(headers: &TableWriter) -> Vec<u8> {
        let mut out = Vec::new();
        Properties { headers: Some(headers.as_table()), ..Properties::default() }.encode(&mut out);
        out
    }

    fn keyed(value: Value<'_>) -> TableWriter {
        TableWriter::new().entry("x-deduplication-header", value)
    }

    fn rules(arguments: &TableWriter) -> ExchangeRules {
        ExchangeRules::of(ExchangeKind::Deduplication, arguments.as_table()).unwrap().unwrap()
    }

    fn ask(cache: &mut Cache, rules: &ExchangeRules, headers: &TableWriter, now_ms: u64) -> bool {
        let properties = Properties { headers: Some(headers.as_table()), ..Properties::default() };
        cache.is_duplicate(rules, &properties, now_ms)
    }

    fn size(size: i32) -> TableWriter {
        TableWriter::new().entry("x-cache-size", Value::I32(size))
    }

    #[test]
    fn equal_values_are_duplicates_whatever_their_width() {
        let (mut cache, rules) = (Cache::new(), rules(&size(100)));
        let list = TableWriter::new().item(Value::I32(1));
        let values = [
            Value::I32(1),
            Value::LongStr(b"1"),
            Value::Bool(true),
            Value::F64(1.0),
            Value::Timestamp(1),
            Value::Decimal(0, 1),
            Value::Array(list.as_array()),
            Value::Void,
            Value::LongStr(b""),
        ];
        for value in values {
            assert!(!ask(&mut cache, &rules, &keyed(value), 0), "{value:?}");
        }
        for value in values.into_iter().chain([Value::I64(1), Value::U8(1), Value::Bytes(b"1")]) {
            assert!(ask(&mut cache, &rules, &keyed(value), 0), "{value:?}");
        }
        let without = TableWriter::new().entry("other", Value::I32(1));
        assert!(!ask(&mut cache, &rules, &without, 0) && !ask(&mut cache, &rules, &without, 0));
    }

    #[test]
    fn the_oldest_value_makes_room() {
        let (mut cache, rules) = (Cache::new(), rules(&size(2)));
        let mut ask = |n| ask(&mut cache, &rules, &keyed(Value::I32(n)), 0);
        assert_eq!([1, 2, 1, 3, 2, 1].map(&mut ask), [false, false, true, false, true, false]);
    }

    #[test]
    fn a_value_counts_for_its_time_and_a_messages_own_time_goes_first() {
        let mut cache = Cache::new();
        let rules = rules(&size(10).entry("x-cache-ttl", Value::LongStr(b"100")));
        let own = |ttl| keyed(Value::I32(2)).entry("x-cache-ttl", Value::I32(ttl));
        assert!(!ask(&mut cache, &rules, &keyed(Value::I32(1)), 1_000));
        assert!(!ask(&mut cache, &rules, &own(10), 1_000));
        assert!(ask(&mut cache, &rules, &own(10), 1_009) && !ask(&mut cache, &rules, &own(500), 1_010));
        assert!(ask(&mut cache, &rules, &keyed(Value::I32(1)), 1_099));
        assert!(!ask(&mut cache, &rules, &keyed(Value::I32(1)), 1_100));
        assert!(ask(&mut cache, &rules, &own(1), 1_509) && !ask(&mut cache, &rules, &own(1), 1_510));
    }

    #[test]
    fn a_value_that_comes_again_and_again_takes_the_room_of_one() {
        let (mut cache, rules) = (Cache::new(), rules(&size(3)));
        let headers = keyed(Value::I32(1)).entry("x-cache-ttl", Value::I32(1));
        assert!((0..1_000).all(|now| !ask(&mut cache, &rules, &headers, 10 * now)));
        assert!(cache.seen.len() == 1 && cache.order.len() <= 6);
    }

    #[test]
    fn arguments_are_refused_in_the_plugins_words() {
        let of = |kind, arguments: TableWriter| ExchangeRules::of(kind, arguments.as_table());
        let text = |arguments| of(ExchangeKind::Deduplication, arguments).unwrap_err().reply_text();
        let size_text = "PRECONDITION_FAILED - Missing or invalid argument, 'x-cache-size' must be an integer \
                         greater than 0";
        let sizes = [Value::I32(0), Value::I32(-1), Value::LongStr(b"x"), Value::Bool(true)];
        for arguments in
            sizes.map(|v| TableWriter::new().entry("x-cache-size", v)).into_iter().chain([TableWriter::new()])
        {
            assert_eq!(text(arguments), size_text);
        }
        assert!(text(size(1).entry("x-cache-ttl", Value::I32(0))).contains("'x-cache-ttl'"));
        assert!(text(size(1).entry("x-cache-persistence", Value::LongStr(b"tape"))).contains("'disk'"));
        let large = Value::I64(DEDUPLICATION_KEYS_MAX as i64 + 1);
        assert!(text(TableWriter::new().entry("x-cache-size", large)).contains("1000000"));
    }

    #[test]
    fn any_exchange_may_drop_duplicates_if_it_is_asked_to() {
        let of = |arguments: &TableWriter| ExchangeRules::of(ExchangeKind::Topic, arguments.as_table());
        assert_eq!(of(&size(5)), Ok(None));
        let on = |value| TableWriter::new().entry("x-message-deduplication", value);
        assert_eq!(of(&on(Value::Bool(false))), Ok(None));
        let rules = of(&on(Value::Bool(true)).entry("x-deduplication-header", Value::LongStr(b"mine")));
        let header = b"mine"[..].into();
        let expected = ExchangeRules { keys_max: DEDUPLICATION_KEYS_DEFAULT, ttl_ms: None, header };
        assert_eq!(rules, Ok(Some(expected)));
        assert!(of(&on(Value::I32(1))).is_err());
    }

    #[test]
    fn a_queue_knows_a_value_until_its_message_has_left() {
        let mut present = Present::new(HEADER);
        let (one, none) = (block(&keyed(Value::I32(1))), block(&TableWriter::new()));
        for (properties, seq) in [(&one, 1), (&none, 2), (&one, 3), (&Vec::new(), 4)] {
            present.remember(properties, Seq(seq));
        }
        assert!(present.has(&one) && !present.has(&none) && !present.has(&[]));
        present.forget(&one, Seq(3));
        assert!(present.has(&one), "the first one is still there");
        present.forget(&one, Seq(1));
        assert!(!present.has(&one) && present.places.is_empty());
    }
}
