//! What a message becomes when it dies: the headers `x-death`, `x-first-death-*`, `x-last-death-*`
//! exactly as RabbitMQ 4 writes them, and whether it has gone in a circle.

use crate::amqp::field_table::{Table, TableWriter, Value};
use crate::amqp::properties::Properties;

use super::message::Message;
use super::queue::Death;

/// One death: where, why, when, and what the queue says about dead letters.
#[derive(Clone, Copy, Debug)]
pub struct Demise<'a> {
    /// the queue it died in
    pub queue: &'a [u8],
    /// why
    pub death: Death,
    /// seconds since 1970
    pub at_seconds: u64,
    /// `x-dead-letter-exchange`
    pub exchange: &'a [u8],
    /// `x-dead-letter-routing-key`; without one the message keeps its own, CC's and BCC's included
    pub routing_key: Option<&'a [u8]>,
}

const X_DEATH: &str = "x-death";

/// The message to publish to the dead letter exchange. Its own expiration is taken off, so that it
/// does not die of it again.
pub fn dead_letter(message: &Message, demise: &Demise<'_>) -> Message {
    let old = Properties::decode(message.properties()).unwrap_or_default();
    let old_headers = old.headers.unwrap_or_default();
    // Deaths that a client wrote itself are not ours, so they are not counted on (RabbitMQ 4.0.1 notes).
    let deaths = if message.is_dead_lettered() { known_deaths(old_headers) } else { Vec::new() };
    let entry = death_entry(message, &old, &deaths, demise);
    let mut list = TableWriter::new().item(Value::Table(entry.as_table()));
    for death in deaths.iter().filter(|death| !is_same(**death, demise)) {
        list = list.item(Value::Table(*death));
    }
    let mut headers = TableWriter::new();
    for (name, value) in old_headers.iter().map_while(Result::ok) {
        if !is_ours(name) {
            headers = headers.raw_entry(name, value);
        }
    }
    headers = headers.entry(X_DEATH, Value::Array(list.as_array()));
    let reason = demise.death.as_str().as_bytes();
    let facts = |which: &str, headers: TableWriter| {
        headers
            .entry(&format!("x-{which}-death-exchange"), Value::LongStr(message.exchange()))
            .entry(&format!("x-{which}-death-queue"), Value::LongStr(demise.queue))
            .entry(&format!("x-{which}-death-reason"), Value::LongStr(reason))
    };
    headers = match message.is_dead_lettered() {
        false => facts("first", headers),
        true => first_death(old_headers, headers),
    };
    headers = facts("last", headers);
    let new = Properties { headers: Some(headers.as_table()), expiration: None, ..old };
    let mut block = Vec::new();
    new.encode(&mut block);
    message.dead_lettered(demise.exchange, demise.routing_key, &block)
}

/// Whether `queue` would get a message back that died there before, with no rejection on the way: such
/// a circle would never end, so RabbitMQ drops the message.
pub fn is_circle(message: &Message, queue: &[u8]) -> bool {
    if !message.is_dead_lettered() {
        return false;
    }
    let properties = Properties::decode(message.properties()).unwrap_or_default();
    let deaths = known_deaths(properties.headers.unwrap_or_default());
    let Some(last) = deaths.iter().position(|death| text(*death, b"queue") == Some(queue)) else {
        return false;
    };
    // The latest death stands first: the circle runs from there back to this queue.
    !deaths.iter().take(last + 1).any(|death| text(*death, b"reason") == Some(b"rejected"))
}

fn known_deaths(headers: Table<'_>) -> Vec<Table<'_>> {
    match headers.find(X_DEATH.as_bytes()) {
        Some(Value::Array(array)) => array
            .iter()
            .map_while(Result::ok)
            .filter_map(|item| if let Value::Table(table) = item { Some(table) } else { None })
            .collect(),
        Some(_) | None => Vec::new(),
    }
}

fn text<'a>(table: Table<'a>, name: &[u8]) -> Option<&'a [u8]> {
    match table.find(name) {
        Some(Value::LongStr(text)) => Some(text),
        Some(_) | None => None,
    }
}

fn is_same(death: Table<'_>, demise: &Demise<'_>) -> bool {
    text(death, b"queue") == Some(demise.queue)
        && text(death, b"reason") == Some(demise.death.as_str().as_bytes())
}

/// The entry of this death: a new one, or the earlier one of the same queue and reason counted up.
fn death_entry(
    message: &Message,
    properties: &Properties<'_>,
    deaths: &[Table<'_>],
    demise: &Demise<'_>,
) -> TableWriter {
    let earlier = deaths.iter().find(|death| is_same(**death, demise));
    if let Some(earlier) = earlier {
        let mut entry = TableWriter::new();
        for (name, value) in earlier.iter().map_while(Result::ok) {
            let value = match (name, value) {
                (b"count", Value::I64(count)) => Value::I64(count.saturating_add(1)),
                (_, value) => value,
            };
            entry = entry.raw_entry(name, value);
        }
        return entry;
    }
    let keys = message.routing_keys(properties);
    let keys = keys.open().fold(TableWriter::new(), |keys, key| keys.item(Value::LongStr(key)));
    let expiration = properties.expiration.map(Value::LongStr);
    let entry = TableWriter::new();
    let entry = expiration.into_iter().fold(entry, |entry, value| entry.entry("original-expiration", value));
    entry
        .entry("count", Value::I64(1))
        .entry("reason", Value::LongStr(demise.death.as_str().as_bytes()))
        .entry("queue", Value::LongStr(demise.queue))
        .entry("time", Value::Timestamp(demise.at_seconds))
        .entry("exchange", Value::LongStr(message.exchange()))
        .entry("routing-keys", Value::Array(keys.as_array()))
}

/// The first death's headers stay as they are.
fn first_death(old: Table<'_>, headers: TableWriter) -> TableWriter {
    let first = old.iter().map_while(Result::ok).filter(|(name, _)| name.starts_with(b"x-first-death-"));
    first.fold(headers, |headers, (name, value)| headers.raw_entry(name, value))
}

/// Headers that tell of deaths; they come last, in RabbitMQ's order.
fn is_ours(name: &[u8]) -> bool {
    name == X_DEATH.as_bytes() || name.starts_with(b"x-first-death-") || name.starts_with(b"x-last-death-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(expiration: Option<&[u8]>) -> Message {
        let headers = TableWriter::new().entry("app", Value::LongStr(b"kept"));
        let properties =
            Properties { headers: Some(headers.as_table()), expiration, ..Properties::default() };
        let mut block = Vec::new();
        properties.encode(&mut block);
        Message::new(b"ex", b"key", &block, &[b"body"])
    }

    fn die(message: &Message, queue: &'static str, death: Death) -> Message {
        let demise = Demise {
            queue: queue.as_bytes(),
            death,
            at_seconds: 1_700_000_000,
            exchange: b"dlx",
            routing_key: Some(b"dead"),
        };
        dead_letter(message, &demise)
    }

    fn header<T>(message: &Message, read: impl FnOnce(Table<'_>) -> T) -> T {
        let properties = Properties::decode(message.properties()).unwrap();
        assert_eq!(properties.expiration, None, "it must not die of its own expiration again");
        read(properties.headers.unwrap())
    }

    fn counts(message: &Message) -> Vec<(String, String, i64)> {
        header(message, |headers| {
            let show = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap()).into_owned();
            let count = |death: Table<'_>| match death.find(b"count") {
                Some(Value::I64(count)) => count,
                other => panic!("{other:?}"),
            };
            known_deaths(headers)
                .iter()
                .map(|d| (show(text(*d, b"queue")), show(text(*d, b"reason")), count(*d)))
                .collect()
        })
    }

    #[test]
    fn a_death_is_written_as_rabbitmq_writes_it() {
        let dead = die(&published(Some(b"60000")), "q", Death::Expired);
        assert_eq!(
            (dead.exchange(), dead.routing_key(), dead.body()),
            (&b"dlx"[..], &b"dead"[..], &b"body"[..])
        );
        header(&dead, |headers| {
            let death = known_deaths(headers)[0];
            assert_eq!(death.find(b"count"), Some(Value::I64(1)));
            assert_eq!(death.find(b"time"), Some(Value::Timestamp(1_700_000_000)));
            assert_eq!(text(death, b"exchange"), Some(&b"ex"[..]));
            assert_eq!(text(death, b"original-expiration"), Some(&b"60000"[..]));
            let Some(Value::Array(keys)) = death.find(b"routing-keys") else { panic!("no routing keys") };
            assert_eq!(keys.iter().next(), Some(Ok(Value::LongStr(b"key"))));
            assert_eq!(text(headers, b"app"), Some(&b"kept"[..]));
            for name in ["x-first-death-queue", "x-last-death-queue"] {
                assert_eq!(text(headers, name.as_bytes()), Some(&b"q"[..]), "{name}");
            }
        });
    }

    #[test]
    fn the_same_death_again_is_counted_and_moves_to_the_front() {
        let mut message = published(None);
        for queue in ["a", "b", "a"] {
            message = die(&message, queue, Death::Rejected);
        }
        let is = |q: &str, n| (q.to_owned(), "rejected".to_owned(), n);
        assert_eq!(counts(&message), [is("a", 2), is("b", 1)]);
        header(&message, |headers| {
            assert_eq!(text(headers, b"x-first-death-queue"), Some(&b"a"[..]));
            assert_eq!(text(headers, b"x-first-death-exchange"), Some(&b"ex"[..]));
            assert_eq!(text(headers, b"x-last-death-exchange"), Some(&b"dlx"[..]));
        });
    }

    #[test]
    fn deaths_that_a_client_claims_are_not_counted_on() {
        let claim = TableWriter::new().entry("queue", Value::LongStr(b"q")).entry("count", Value::I64(9));
        let list = TableWriter::new().item(Value::Table(claim.as_table()));
        let headers = TableWriter::new().entry(X_DEATH, Value::Array(list.as_array()));
        let properties = Properties { headers: Some(headers.as_table()), ..Properties::default() };
        let mut block = Vec::new();
        properties.encode(&mut block);
        let message = Message::new(b"", b"q", &block, &[]);
        assert!(!is_circle(&message, b"q"));
        assert_eq!(counts(&die(&message, "q", Death::MaxLen)), [("q".into(), "maxlen".into(), 1)]);
    }

    #[test]
    fn a_circle_without_a_rejection_is_one() {
        let expired = die(&published(None), "q", Death::Expired);
        assert!(is_circle(&expired, b"q") && !is_circle(&expired, b"other"));
        let further = die(&expired, "r", Death::MaxLen);
        assert!(is_circle(&further, b"q"));
        let rejected = die(&expired, "r", Death::Rejected);
        assert!(!is_circle(&rejected, b"q"), "a consumer has seen it on the way");
    }
}
