//! What AMQP on the wire costs: frames, methods and properties, read and written.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use sealmq::amqp::field_table::{TableWriter, Value};
use sealmq::amqp::frame::{self, Delivery};
use sealmq::amqp::method::Method;
use sealmq::amqp::properties::{ContentHeader, Properties};

const FRAME_BYTES_MAX: u32 = 131_072;
const BODIES: [usize; 3] = [100, 1024, 65_536];

fn main() {
    divan::main();
}

fn publish(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let method = Method::BasicPublish {
        ticket: 0,
        exchange: b"",
        routing_key: b"queue",
        mandatory: false,
        immediate: false,
    };
    frame::write_method(&mut out, 1, &method);
    let mut properties = Vec::new();
    Properties { delivery_mode: Some(2), ..Properties::default() }.encode(&mut properties);
    frame::write_content(&mut out, 1, &properties, body, FRAME_BYTES_MAX);
    out
}

/// The frames of one publish split, its method and content header read.
#[divan::bench(args = BODIES)]
fn decode_a_publish(bencher: Bencher, body_bytes: usize) {
    let bytes = publish(&vec![7; body_bytes]);
    bencher.counter(ItemsCount::new(1u32)).counter(BytesCount::new(bytes.len())).bench(|| {
        let mut rest = black_box(&bytes[..]);
        while let Ok(Some((frame, used))) = frame::parse(rest, FRAME_BYTES_MAX) {
            match frame.kind {
                frame::Kind::Method => drop(black_box(Method::decode(frame.payload))),
                frame::Kind::Header => drop(black_box(ContentHeader::decode(frame.payload))),
                frame::Kind::Body | frame::Kind::Heartbeat => {
                    black_box(frame.payload);
                }
            }
            rest = &rest[used..];
        }
    });
}

/// One delivery laid out behind others.
#[divan::bench(args = BODIES)]
fn encode_a_delivery(bencher: Bencher, body_bytes: usize) {
    let body = vec![7; body_bytes];
    let mut out = Vec::with_capacity(body_bytes + 1024);
    bencher.counter(ItemsCount::new(1u32)).counter(BytesCount::new(body_bytes)).bench_local(|| {
        out.clear();
        let delivery = Delivery {
            channel: 1,
            consumer_tag: b"amq.ctag-0123456789abcdef",
            delivery_tag: black_box(77),
            redelivered: false,
            exchange: b"",
            routing_key: b"queue",
            properties: &[0x10, 0, 2],
            body: &body,
        };
        frame::write_delivery(&mut out, &delivery, FRAME_BYTES_MAX);
        black_box(out.len())
    });
}

/// Properties as applications set them, with three headers.
fn block() -> Vec<u8> {
    let headers = TableWriter::new()
        .entry("trace", Value::LongStr(b"4bf92f3577b34da6a3ce929d0e0e4736"))
        .entry("attempt", Value::I32(3))
        .entry("urgent", Value::Bool(true));
    let properties = Properties {
        content_type: Some(b"application/json"),
        headers: Some(headers.as_table()),
        delivery_mode: Some(2),
        correlation_id: Some(b"0f8fad5b-d9cb-469f-a165-70867728950e"),
        timestamp: Some(1_800_000_000),
        ..Properties::default()
    };
    let mut out = Vec::new();
    properties.encode(&mut out);
    out
}

#[divan::bench]
fn decode_properties(bencher: Bencher) {
    let block = block();
    bencher.counter(ItemsCount::new(1u32)).bench(|| Properties::decode(black_box(&block)).is_ok());
}

#[divan::bench]
fn walk_the_headers(bencher: Bencher) {
    let block = block();
    bencher.counter(ItemsCount::new(1u32)).bench(|| {
        let headers = Properties::decode(black_box(&block)).ok().and_then(|properties| properties.headers);
        headers.map(|headers| headers.validate().is_ok())
    });
}

#[divan::bench]
fn encode_properties(bencher: Bencher) {
    let block = block();
    let properties = Properties::decode(&block).unwrap_or_default();
    let mut out = Vec::with_capacity(1024);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        out.clear();
        black_box(&properties).encode(&mut out);
        black_box(out.len())
    });
}
