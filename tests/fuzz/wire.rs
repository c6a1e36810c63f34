//! Bytes as a peer sends them: frames, field tables, content headers.

use sealmq::amqp::field_table::{Array, Table, TableWriter, Value};
use sealmq::amqp::frame::{self, FrameError};
use sealmq::amqp::method::Method;
use sealmq::amqp::properties::{ContentHeader, Properties};
use sealmq::broker::arguments::{ConsumerArguments, QueueArguments};
use sealmq::broker::dead_letter::{Demise, dead_letter, is_circle};
use sealmq::broker::exchange::ordered;
use sealmq::broker::headers::{Headers, Pattern};
use sealmq::broker::message::Message;
use sealmq::broker::queue::Death;
use sealmq::broker::queue_type::QueueType;
use sealmq::broker::term::{Plain, Term};
use sealmq::limits::TABLE_DEPTH_MAX;

use crate::conversation;
use crate::driver::{Target, fingerprint};
use crate::random::Random;

const FRAME_BYTES_MAX: u32 = 4096;

/// A stream of frames.
pub struct Frames;

/// What was read from a stream: each frame's kind, channel and payload, how far, and why it ended.
type Read = (Vec<(u8, u16, Vec<u8>)>, usize, Option<FrameError>);

impl Frames {
    fn read(bytes: &[u8]) -> Read {
        let (mut frames, mut at) = (Vec::new(), 0);
        loop {
            match frame::parse(&bytes[at..], FRAME_BYTES_MAX) {
                Ok(Some((frame, used))) => {
                    assert_eq!(frame::size_bytes_of(&bytes[at..]), Some(used));
                    frames.push((frame.kind as u8, frame.channel, frame.payload.to_vec()));
                    at += used;
                }
                Ok(None) => return (frames, at, None),
                Err(error) => return (frames, at, Some(error)),
            }
        }
    }

    /// As a socket would give it.
    fn read_in_pieces(bytes: &[u8]) -> Read {
        let mut pieces = Random::new(fingerprint(bytes));
        let (mut buffer, mut all, mut at, mut given) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            let (frames, used, error) = Frames::read(&buffer);
            all.extend(frames);
            buffer.drain(..used);
            at += used;
            if error.is_some() || given == bytes.len() {
                return (all, at, error);
            }
            let next = bytes.len().min(given + 1 + pieces.below(300));
            buffer.extend_from_slice(&bytes[given..next]);
            given = next;
        }
    }
}

impl Target for Frames {
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        conversation::generate(random)
    }

    fn mutate(&mut self, random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
        conversation::mutate(random, input, other);
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let whole = Frames::read(input);
        assert!(whole == Frames::read_in_pieces(input), "pieces make other frames than the whole");
        let (frames, _, error) = &whole;
        let mut shape = Vec::new();
        for (kind, _, payload) in frames {
            shape.push(u16::from(*kind));
            match Method::decode(payload) {
                Ok(method) => {
                    let mut again = Vec::new();
                    method.encode(&mut again);
                    assert!(Method::decode(&again) == Ok(method), "{method:?} does not come back");
                    shape.extend([method.id().0, method.id().1]);
                }
                Err(error) => shape.push(fingerprint(error.to_string()) as u16),
            }
        }
        shape.truncate(8);
        fingerprint((shape, error.map(|e| std::mem::discriminant(&e))))
    }

    fn memory_bytes_max(&self, input: &[u8]) -> usize {
        // The copies that the comparison itself makes; a frame of no payload is a vector of 40 bytes.
        16 * 1024 + 32 * input.len()
    }
}

/// A random table; every key of arguments and headers that means something is likely.
pub fn table(random: &mut Random, depth: usize) -> TableWriter {
    const NAMES: &[&str] = &[
        "x-match",
        "x-queue-type",
        "x-expires",
        "x-message-ttl",
        "x-max-length",
        "x-max-length-bytes",
        "x-overflow",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-max-priority",
        "x-single-active-consumer",
        "x-delivery-limit",
        "x-max-age",
        "x-queue-mode",
        "x-priority",
        "x-stream-offset",
        "x-death",
        "count",
        "reason",
        "queue",
        "exchange",
        "routing-keys",
        "alternate-exchange",
        "x-delayed-type",
        "x-delay",
        "x-first-death-reason",
        "CC",
        "BCC",
        "a",
        "b",
        "",
    ];
    let mut table = TableWriter::new();
    for _ in 0..random.below(6) {
        let name = random.pick(NAMES);
        table = with_value(random, depth, |value| table.entry(name, value));
    }
    table
}

fn array(random: &mut Random, depth: usize) -> TableWriter {
    let mut array = TableWriter::new();
    for _ in 0..random.below(5) {
        array = with_value(random, depth, |value| array.item(value));
    }
    array
}

fn with_value<T>(random: &mut Random, depth: usize, then: impl FnOnce(Value<'_>) -> T) -> T {
    const WORDS: &[&str] = &[
        "all",
        "any",
        "any-with-x",
        "quorum",
        "stream",
        "classic",
        "reject-publish",
        "reject-publish-dlx",
        "drop-head",
        "topic",
        "fanout",
        "rejected",
        "expired",
        "maxlen",
        "x1",
        "q1",
        "1h",
        "7D",
        "first",
        "lazy",
        "",
    ];
    let number = random.number();
    match random.below(19) {
        0 => then(Value::Bool(number & 1 == 1)),
        1 => then(Value::I8(number as i8)),
        2 => then(Value::U8(number as u8)),
        3 => then(Value::I16(number as i16)),
        4 => then(Value::U16(number as u16)),
        5 | 6 => then(Value::I32(number as i32)),
        7 => then(Value::U32(number as u32)),
        8 | 9 => then(Value::I64(number as i64)),
        10 => then(Value::F32(f32::from_bits(number as u32))),
        11 => then(Value::F64(f64::from_bits(number))),
        12 => then(Value::Decimal(number as u8, number as u32)),
        13 => then(Value::Timestamp(number)),
        14 => then(Value::Void),
        15 => then(Value::Bytes(&random.bytes(20))),
        16 if depth > 0 => then(Value::Table(table(random, depth - 1).as_table())),
        17 if depth > 0 => then(Value::Array(array(random, depth - 1).as_array())),
        _ => then(Value::LongStr(random.pick(WORDS).as_bytes())),
    }
}

/// Tables around tables, more than are allowed or just as many.
fn nest(random: &mut Random, mut inner: TableWriter) -> TableWriter {
    for _ in 0..TABLE_DEPTH_MAX - 3 + random.below(6) {
        inner = match random.once_in(2) {
            true => TableWriter::new().entry("t", Value::Table(inner.as_table())),
            false => TableWriter::new().entry("t", Value::Array(inner.as_array())),
        };
    }
    inner
}

/// A field table in all its uses.
pub struct Tables;

impl Target for Tables {
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let table = table(random, 3);
        let table = if random.once_in(20) { nest(random, table) } else { table };
        table.as_table().raw().to_vec()
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let table = Table::from_raw(input);
        let valid = table.validate();
        let length = |text: String| text.len().min(1 << 20);
        let texts = [Value::Table(table), Value::Array(Array::from_raw(input))]
            .map(|value| length(Term(value).to_string()) + length(Plain(value).to_string()));
        let sorted = ordered(table);
        assert_eq!(sorted.is_ok(), valid.is_ok(), "what can be read can be ordered");
        if let Ok(sorted) = &sorted {
            assert_eq!(sorted.len(), input.len(), "ordering loses nothing");
            let again = ordered(Table::from_raw(sorted));
            assert_eq!(again.as_ref(), Ok(sorted), "what is in order stays so");
            let count = |table: Table<'_>| table.iter().count();
            assert_eq!(count(table), count(Table::from_raw(sorted)));
        }
        let queue = QueueArguments::parse(table).map_err(|e| e.to_string());
        let consumer = QueueType::ALL.map(|kind| ConsumerArguments::parse(table, kind).is_ok());
        let pattern = Pattern::compile(table);
        let matched = pattern.as_ref().map(|pattern| {
            let headers = Headers::read(Some(table));
            (pattern.matches(&headers), pattern.matches(&Headers::read(None)))
        });
        let types: Vec<_> =
            table.iter().map_while(Result::ok).map(|(_, v)| std::mem::discriminant(&v)).take(3).collect();
        let said = queue.as_ref().err().map(|text| text.chars().take(24).collect::<String>());
        fingerprint((types, valid.is_ok(), said, consumer, matched.map_err(|_| ()), texts[0] > 200))
    }

    fn memory_bytes_max(&self, input: &[u8]) -> usize {
        // The longest text that bytes become: an empty array's item of one byte prints as `{void,undefined},`.
        16 * 1024 + 128 * input.len()
    }
}

/// A content header's payload.
pub struct ContentHeaders;

impl Target for ContentHeaders {
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let headers = table(random, 3);
        let texts: Vec<Vec<u8>> = (0..9).map(|_| random.bytes(8)).collect();
        let mut text = |at: usize| (!random.once_in(2)).then_some(&texts[at][..]);
        let properties = Properties {
            content_type: text(0),
            content_encoding: text(1),
            headers: text(2).map(|_| headers.as_table()),
            delivery_mode: text(3).map(|t| t.len() as u8),
            priority: text(3).map(|t| t.len() as u8),
            correlation_id: text(4),
            reply_to: text(5),
            expiration: text(6).map(|_| &b"1000"[..]),
            message_id: text(6),
            timestamp: text(7).map(|t| t.len() as u64),
            kind: text(7),
            user_id: text(8),
            app_id: text(8),
            cluster_id: text(8),
        };
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, random.u64() as u8];
        properties.encode(&mut payload);
        payload
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let Ok(header) = ContentHeader::decode(input) else { return 0 };
        let properties = match Properties::decode(header.properties) {
            Ok(properties) => properties,
            Err(error) => return fingerprint(error.to_string()),
        };
        let mut block = Vec::new();
        properties.encode(&mut block);
        // A float that is no number is not equal to itself, but its bytes are.
        let mut again = Vec::new();
        Properties::decode(&block).expect("it comes back").encode(&mut again);
        assert_eq!(block, again);
        let headers = properties.headers.unwrap_or_default();
        if headers.validate().is_err() {
            return 1;
        }
        let first = Message::new(b"x", b"k", header.properties, &[b"body"]);
        let demise =
            |queue, death| Demise { queue, death, at_seconds: 7, exchange: b"dlx", routing_key: None };
        // A client's own x-death is not counted on, ours is; and both can be read by everybody.
        let own = first.dead_lettered(b"x", None, header.properties);
        let mut circles = Vec::new();
        for message in [first, own] {
            let dead = dead_letter(&message, &demise(b"q1", Death::Expired));
            let dead = dead_letter(&dead, &demise(b"q2", Death::MaxLen));
            let read = Properties::decode(dead.properties()).expect("a dead letter's properties");
            read.headers.expect("it has headers").validate().expect("they can be read");
            assert_eq!((dead.body(), read.expiration), (&b"body"[..], None));
            assert!(dead.routing_keys(&read).iter().all(|key| key.len() <= input.len().max(1)));
            assert!(is_circle(&dead, b"q1"), "it died there of its age, and nobody rejected it since");
            circles.push((is_circle(&message, b"q1"), is_circle(&message, b"")));
        }
        let flags: Vec<u8> = block.iter().take(2).copied().collect();
        fingerprint((flags, headers.iter().count().min(4), circles))
    }

    fn memory_bytes_max(&self, input: &[u8]) -> usize {
        16 * 1024 + 64 * input.len()
    }
}
