//! The codec as a whole, over arbitrary values: what is written is read back, pieces make the same frames
//! as the whole, and another codec of the same protocol (amq-protocol, lapin's) reads and writes the same.
//!
//! Where the two codecs differ, and who is right (AMQP 0-9-1 section 4.2.5 unless another is named):
//!
//! | Bytes | Here | amq-protocol |
//! |---|---|---|
//! | short strings that are not UTF-8 | taken: they are octets | refused |
//! | a table that names a field twice, or not in order | kept as it is | the last one stays, ordered by name |
//! | the contents of a table or an array | read when asked for, so bad ones pass a method's decoding | read at once |
//! | nesting deeper than `TABLE_DEPTH_MAX` | refused by `validate` | taken |
//! | the tag `L` | `I64` (RabbitMQ's errata), written as `l` | the same, written as `l` as well |
//! | reserved arguments | kept | dropped, written as zero or empty; access.request-ok with ticket 1 |
//! | unused bits of a shared octet | ignored | ignored |
//! | a frame larger than the limit | refused from its header | waits for all of it; lapin looks at the size |
//! | `AMQP` where a frame's type stands | an unknown frame type | a protocol header |
//! | a heartbeat with a payload | a frame; the session refuses it | its payload is dropped |
//! | a continued flag word (bit 0) | refused, basic has no such properties | taken for the end of the flags |

use std::collections::BTreeMap;

use amq_protocol::frame::{AMQPFrame, gen_frame, parse_frame};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::field_table::{Array, Table, TableWriter, Value};
use super::frame::{self, Delivery, Frame, Kind};
use super::method::{Fields, Method};
use super::properties::{ContentHeader, Properties};
use super::reader::DecodeError;

/// A value with all that is in it.
#[derive(Clone, Debug, PartialEq)]
enum Tree {
    Bool(bool),
    I8(i8),
    U8(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
    F64(f64),
    Decimal(u8, u32),
    LongStr(Vec<u8>),
    Bytes(Vec<u8>),
    Timestamp(u64),
    Table(BTreeMap<String, Tree>),
    Array(Vec<Tree>),
    Void,
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Tree::Bool),
        any::<i8>().prop_map(Tree::I8),
        any::<u8>().prop_map(Tree::U8),
        any::<i16>().prop_map(Tree::I16),
        any::<u16>().prop_map(Tree::U16),
        any::<i32>().prop_map(Tree::I32),
        any::<u32>().prop_map(Tree::U32),
        any::<i64>().prop_map(Tree::I64),
        any::<f32>().prop_map(Tree::F32),
        any::<f64>().prop_map(Tree::F64),
        any::<(u8, u32)>().prop_map(|(scale, v)| Tree::Decimal(scale, v)),
        vec(any::<u8>(), 0..40).prop_map(Tree::LongStr),
        vec(any::<u8>(), 0..40).prop_map(Tree::Bytes),
        any::<u64>().prop_map(Tree::Timestamp),
        Just(Tree::Void),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            btree_map("[a-z]{0,5}", inner.clone(), 0..5).prop_map(Tree::Table),
            vec(inner, 0..5).prop_map(Tree::Array),
        ]
    })
}

fn entries() -> impl Strategy<Value = BTreeMap<String, Tree>> {
    btree_map("[a-z-]{0,9}", tree(), 0..6)
}

fn write(entries: &BTreeMap<String, Tree>) -> TableWriter {
    entries.iter().fold(TableWriter::new(), |table, (name, tree)| write_tree(table, Some(name), tree))
}

fn write_tree(to: TableWriter, name: Option<&str>, tree: &Tree) -> TableWriter {
    let inner = match tree {
        Tree::Table(entries) => write(entries),
        Tree::Array(items) => {
            items.iter().fold(TableWriter::new(), |array, item| write_tree(array, None, item))
        }
        _ => TableWriter::new(),
    };
    let value = match tree {
        Tree::Bool(v) => Value::Bool(*v),
        Tree::I8(v) => Value::I8(*v),
        Tree::U8(v) => Value::U8(*v),
        Tree::I16(v) => Value::I16(*v),
        Tree::U16(v) => Value::U16(*v),
        Tree::I32(v) => Value::I32(*v),
        Tree::U32(v) => Value::U32(*v),
        Tree::I64(v) => Value::I64(*v),
        Tree::F32(v) => Value::F32(*v),
        Tree::F64(v) => Value::F64(*v),
        Tree::Decimal(scale, v) => Value::Decimal(*scale, *v),
        Tree::LongStr(v) => Value::LongStr(v),
        Tree::Bytes(v) => Value::Bytes(v),
        Tree::Timestamp(v) => Value::Timestamp(*v),
        Tree::Table(_) => Value::Table(inner.as_table()),
        Tree::Array(_) => Value::Array(inner.as_array()),
        Tree::Void => Value::Void,
    };
    match name {
        Some(name) => to.entry(name, value),
        None => to.item(value),
    }
}

fn read(table: Table<'_>) -> Result<BTreeMap<String, Tree>, DecodeError> {
    table
        .iter()
        .map(|entry| {
            let (name, value) = entry?;
            Ok((String::from_utf8_lossy(name).into_owned(), read_value(value)?))
        })
        .collect()
}

fn read_array(array: Array<'_>) -> Result<Vec<Tree>, DecodeError> {
    array.iter().map(|item| read_value(item?)).collect()
}

fn read_value(value: Value<'_>) -> Result<Tree, DecodeError> {
    Ok(match value {
        Value::Bool(v) => Tree::Bool(v),
        Value::I8(v) => Tree::I8(v),
        Value::U8(v) => Tree::U8(v),
        Value::I16(v) => Tree::I16(v),
        Value::U16(v) => Tree::U16(v),
        Value::I32(v) => Tree::I32(v),
        Value::U32(v) => Tree::U32(v),
        Value::I64(v) => Tree::I64(v),
        Value::F32(v) => Tree::F32(v),
        Value::F64(v) => Tree::F64(v),
        Value::Decimal(scale, v) => Tree::Decimal(scale, v),
        Value::LongStr(v) => Tree::LongStr(v.to_vec()),
        Value::Bytes(v) => Tree::Bytes(v.to_vec()),
        Value::Timestamp(v) => Tree::Timestamp(v),
        Value::Table(v) => Tree::Table(read(v)?),
        Value::Array(v) => Tree::Array(read_array(v)?),
        Value::Void => Tree::Void,
    })
}

/// Numbers, strings and tables to make arguments of, taken in turn.
#[derive(Clone, Debug)]
struct Pool {
    numbers: Vec<u64>,
    strings: Vec<Vec<u8>>,
    tables: Vec<Vec<u8>>,
}

fn pool(string: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Pool> {
    let table = entries().prop_map(|entries| write(&entries).as_table().raw().to_vec());
    (vec(any::<u64>(), 1..20), vec(string, 1..6), vec(table, 1..4))
        .prop_map(|(numbers, strings, tables)| Pool { numbers, strings, tables })
}

struct Turns<'a> {
    pool: &'a Pool,
    at: usize,
    /// arguments that the specification reserves are left empty
    spare_reserved: bool,
}

/// Arguments that the other codec does not keep, most of them without a meaning in 0-9-1, by the names that `method.rs` gives them.
const RESERVED: &[&str] = &[
    "ticket",
    "out_of_band",
    "channel_id",
    "known_hosts",
    "capabilities",
    "insist",
    "cluster_id",
    "prefetch_size",
];

impl<'a> Turns<'a> {
    fn number(&mut self, name: &str) -> u64 {
        self.at += 1;
        let is_spared = self.spare_reserved && RESERVED.contains(&name);
        if is_spared { 0 } else { self.pool.numbers[self.at % self.pool.numbers.len()] }
    }

    fn string(&mut self, name: &str) -> &'a [u8] {
        self.at += 1;
        let is_spared = self.spare_reserved && RESERVED.contains(&name);
        if is_spared { b"" } else { &self.pool.strings[self.at % self.pool.strings.len()] }
    }
}

impl<'a> Fields<'a> for Turns<'a> {
    fn u8(&mut self, name: &str) -> u8 {
        self.number(name) as u8
    }

    fn u16(&mut self, name: &str) -> u16 {
        self.number(name) as u16
    }

    fn u32(&mut self, name: &str) -> u32 {
        self.number(name) as u32
    }

    fn u64(&mut self, name: &str) -> u64 {
        self.number(name)
    }

    fn bit(&mut self, name: &str) -> bool {
        self.number(name) & 1 == 1
    }

    fn short_str(&mut self, name: &str) -> &'a [u8] {
        self.string(name)
    }

    fn long_str(&mut self, name: &str) -> &'a [u8] {
        self.string(name)
    }

    fn table(&mut self, _: &str) -> Table<'a> {
        self.at += 1;
        Table::from_raw(&self.pool.tables[self.at % self.pool.tables.len()])
    }
}

fn methods(pool: &Pool, spare_reserved: bool) -> Vec<Method<'_>> {
    Method::every(&mut Turns { pool, at: 0, spare_reserved })
}

/// All frames at the front of `bytes`, and how many bytes they are.
fn frames(bytes: &[u8]) -> (Vec<Frame<'_>>, usize) {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Ok(Some((frame, used))) = frame::parse(&bytes[at..], u32::MAX) {
        all.push(frame);
        at += used;
    }
    (all, at)
}

/// What the other codec writes for a frame.
fn written_by_other(frame: &AMQPFrame) -> Vec<u8> {
    let mut buffer = vec![0; 64 * 1024];
    let left = gen_frame(frame)(buffer.as_mut_slice().into()).expect("it fits").write.len();
    buffer.truncate(buffer.len() - left);
    buffer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn tables_come_back_as_they_were_written(entries in entries()) {
        let table = write(&entries);
        prop_assert_eq!(table.as_table().validate(), Ok(()));
        prop_assert_eq!(read(table.as_table()), Ok(entries));
    }

    #[test]
    fn every_method_comes_back_with_any_arguments(pool in pool(vec(any::<u8>(), 0..=255))) {
        for method in methods(&pool, false) {
            let mut bytes = Vec::new();
            method.encode(&mut bytes);
            prop_assert!(Method::decode(&bytes) == Ok(method), "{method:?}");
            prop_assert!(Method::decode(&bytes[..bytes.len() - 1]).is_err(), "{method:?} cut");
            bytes.push(0);
            prop_assert!(Method::decode(&bytes) == Err(DecodeError::Trailing), "{method:?} with more");
        }
    }

    #[test]
    fn pieces_make_the_same_frames_as_the_whole(
        pool in pool(vec(any::<u8>(), 0..=255)),
        body in vec(any::<u8>(), 0..3000),
        cuts in vec(1usize..700, 1..20),
    ) {
        let mut whole = Vec::new();
        for (at, method) in methods(&pool, false).iter().enumerate() {
            frame::write_method(&mut whole, at as u16, method);
        }
        frame::write_content(&mut whole, 9, &[0, 0], &body, 4096);
        frame::write_heartbeat(&mut whole);
        let (expected, used) = frames(&whole);
        prop_assert_eq!(used, whole.len());
        let expected: Vec<_> = expected.iter().map(|f| (f.kind, f.channel, f.payload.to_vec())).collect();
        let (mut buffer, mut got, mut rest) = (Vec::new(), Vec::new(), &whole[..]);
        for cut in cuts.iter().cycle() {
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            buffer.extend_from_slice(piece);
            rest = behind;
            let (all, used) = frames(&buffer);
            got.extend(all.iter().map(|f| (f.kind, f.channel, f.payload.to_vec())));
            buffer.drain(..used);
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert!(got == expected);
    }

    #[test]
    fn a_delivery_is_what_its_method_and_content_would_be(
        tags in any::<(u16, u64, bool)>(),
        texts in vec(vec(any::<u8>(), 0..=255), 3),
        body in vec(any::<u8>(), 0..9000),
        limit in 9u32..5000,
    ) {
        let (channel, delivery_tag, redelivered) = tags;
        let (consumer_tag, exchange, routing_key) = (&texts[0][..], &texts[1][..], &texts[2][..]);
        let properties = &[0, 0][..];
        let mut by_hand = Vec::new();
        let delivery = Delivery {
            channel, consumer_tag, delivery_tag, redelivered, exchange, routing_key, properties, body: &body,
        };
        frame::write_delivery(&mut by_hand, &delivery, limit);
        let mut plainly = Vec::new();
        let method = Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key };
        frame::write_method(&mut plainly, channel, &method);
        frame::write_content(&mut plainly, channel, properties, &body, limit);
        prop_assert!(by_hand == plainly);
        let bodies: Vec<u8> = frames(&by_hand).0.iter().filter(|f| f.kind == Kind::Body)
            .inspect(|f| assert!(f.payload.len() + frame::OVERHEAD_BYTES <= limit as usize))
            .flat_map(|f| f.payload).copied().collect();
        prop_assert_eq!(bodies, body);
    }

    #[test]
    fn another_codec_reads_what_this_one_writes_and_the_other_way_round(
        pool in pool("[ -~]{0,60}".prop_map(String::into_bytes)),
    ) {
        for method in methods(&pool, true) {
            let mut ours = Vec::new();
            frame::write_method(&mut ours, 7, &method);
            let (rest, theirs) = parse_frame(&ours[..]).map_err(|e| {
                TestCaseError::fail(format!("{method:?} is not read: {e}"))
            })?;
            prop_assert!(rest.is_empty());
            let back = written_by_other(&theirs);
            // A known difference: its ticket is always written as 1.
            if let Method::AccessRequestOk { .. } = method {
                continue;
            }
            let Ok(Some((frame, used))) = frame::parse(&back, u32::MAX) else {
                return Err(TestCaseError::fail(format!("{method:?} does not come back as a frame")));
            };
            prop_assert_eq!((frame.kind, frame.channel, used), (Kind::Method, 7, back.len()));
            prop_assert!(Method::decode(frame.payload) == Ok(method), "{method:?}: {theirs:?}");
        }
    }

    #[test]
    fn another_codec_reads_the_same_properties(
        headers in prop::option::of(entries()),
        texts in vec(prop::option::of("[ -~]{0,30}"), 10),
        numbers in any::<(Option<u8>, Option<u8>, Option<u64>, u64)>(),
    ) {
        let headers = headers.map(|entries| write(&entries));
        let text = |at: usize| texts[at].as_ref().map(String::as_bytes);
        let properties = Properties {
            content_type: text(0),
            content_encoding: text(1),
            headers: headers.as_ref().map(TableWriter::as_table),
            delivery_mode: numbers.0,
            priority: numbers.1,
            correlation_id: text(2),
            reply_to: text(3),
            expiration: text(4),
            message_id: text(5),
            timestamp: numbers.2,
            kind: text(6),
            user_id: text(7),
            app_id: text(8),
            cluster_id: text(9),
        };
        let mut payload = vec![0, 60, 0, 0];
        payload.extend_from_slice(&numbers.3.to_be_bytes());
        properties.encode(&mut payload);
        let mut ours = vec![2, 0, 1];
        ours.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        ours.extend_from_slice(&payload);
        ours.push(0xCE);
        let (_, theirs) = parse_frame(&ours[..]).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let back = written_by_other(&theirs);
        let header = match frame::parse(&back, u32::MAX) {
            Ok(Some((frame, _))) => ContentHeader::decode(frame.payload).expect("a content header"),
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert_eq!((header.class_id, header.body_size), (60, numbers.3));
        prop_assert!(Properties::decode(header.properties) == Ok(properties));
    }

    /// Neither may crash; and where both take the bytes of a method, they take them for the same one.
    #[test]
    fn any_bytes_are_taken_alike_or_for_a_known_reason(
        pool in pool("[ -~]{0,20}".prop_map(String::into_bytes)),
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let all = methods(&pool, true);
        let mut bytes = Vec::new();
        frame::write_method(&mut bytes, 7, which.get(&all));
        let payload = 7..bytes.len() - 1;
        for (at, value) in changes {
            bytes[at.index(payload.len()) + payload.start] = value;
        }
        let Ok(Some((frame, _))) = frame::parse(&bytes, u32::MAX) else {
            return Err(TestCaseError::fail("the frame itself was not touched"));
        };
        let (ours, theirs) = (Method::decode(frame.payload), parse_frame(&bytes[..]));
        match (&ours, &theirs) {
            (Ok(method), Ok((_, other))) => {
                let back = written_by_other(other);
                let again = frame::parse(&back, u32::MAX).expect("a frame").expect("a whole one").0;
                let again = Method::decode(again.payload).expect("what the other codec writes is read");
                prop_assert_eq!(again.id(), method.id());
            }
            // It reads tables at once and wants UTF-8; both are in the table above.
            (Ok(_), Err(_)) | (Err(_), Err(_)) => {}
            (Err(why), Ok((_, other))) => {
                return Err(TestCaseError::fail(format!("refused here ({why}), read there: {other:?}")));
            }
        }
    }

    #[test]
    fn noise_crashes_neither_codec(bytes in vec(any::<u8>(), 0..300)) {
        let _ = (frames(&bytes), parse_frame(&bytes[..]), Method::decode(&bytes));
        let _ = (Table::from_raw(&bytes).validate(), read_array(Array::from_raw(&bytes)));
        let _ = (ContentHeader::decode(&bytes), Properties::decode(&bytes));
    }
}

/// What the other codec makes of a frame with that payload.
fn other(kind: u8, channel: u8, payload: &[u8]) -> Result<AMQPFrame, String> {
    let mut bytes = vec![kind, 0, channel];
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.push(0xCE);
    parse_frame(&bytes[..]).map(|(_, frame)| frame).map_err(|e| e.to_string())
}

/// Both codecs on connection.start-ok with these client properties.
fn start_ok(table: &[u8]) -> (bool, Result<AMQPFrame, String>) {
    let client_properties = Table::from_raw(table);
    let mut payload = Vec::new();
    Method::ConnectionStartOk { client_properties, mechanism: b"PLAIN", response: b"", locale: b"" }
        .encode(&mut payload);
    let ours = matches!(Method::decode(&payload), Ok(Method::ConnectionStartOk { client_properties: t, .. })
        if t.raw() == table);
    (ours, other(1, 0, &payload))
}

/// The table at the head of this file, row by row: when one of them is no longer so, it is to be changed.
#[test]
fn the_codecs_differ_as_is_written_above() {
    let mut method = Vec::new();
    Method::QueueDeleteOk { message_count: 1 }.encode(&mut method);
    assert!(other(1, 1, &method).is_ok());
    method.clear();
    Method::BasicConsumeOk { consumer_tag: b"\xff" }.encode(&mut method);
    assert!(Method::decode(&method).is_ok() && other(1, 1, &method).is_err(), "not UTF-8");

    let (kept, twice) = start_ok(b"\x01bt\x01\x01at\x01\x01bt\0");
    let back = written_by_other(&twice.unwrap());
    let (_, ordered) = start_ok(b"\x01at\x01\x01bt\0");
    assert!(kept && back == written_by_other(&ordered.unwrap()), "named twice, out of order");

    let (kept, broken) = start_ok(b"\x01aU");
    assert!(kept && broken.is_err(), "a table that cannot be read");

    let mut nested = TableWriter::new();
    for _ in 0..20 {
        nested = TableWriter::new().entry("t", Value::Table(nested.as_table()));
    }
    let (_, deep) = start_ok(nested.as_table().raw());
    assert!(deep.is_ok() && nested.as_table().validate() == Err(DecodeError::TooDeep));

    let long = b"\x01aL\0\0\0\0\0\0\0\x01";
    assert_eq!(Table::from_raw(long).find(b"a"), Some(Value::I64(1)));
    let back = written_by_other(&start_ok(long).1.unwrap());
    assert!(back.windows(3).any(|w| w == b"\x01al"), "L comes back as l");

    assert!(frame::parse(b"AMQP\0\0\x09\x01", 4096).is_err());
    assert!(matches!(parse_frame(&b"AMQP\0\0\x09\x01"[..]), Ok((_, AMQPFrame::ProtocolHeader(_)))));

    assert_eq!(other(8, 0, b"x"), Ok(AMQPFrame::Heartbeat));
    assert!(frame::parse(b"\x08\0\0\0\0\0\x01x\xCE", 4096).unwrap().unwrap().0.payload == b"x");

    let continued = [&[0, 60, 0, 0][..], &[0; 8], &[0, 1]].concat();
    assert!(other(2, 1, &continued).is_ok() && Properties::decode(&continued[12..]).is_err());

    method.clear();
    Method::AccessRequestOk { ticket: 5 }.encode(&mut method);
    let back = written_by_other(&other(1, 1, &method).unwrap());
    assert_eq!(Method::decode(&back[7..back.len() - 1]), Ok(Method::AccessRequestOk { ticket: 1 }));
}
