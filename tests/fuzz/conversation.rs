//! What clients say: conversations made of whole methods and contents, and changes to them that keep frames
//! whole more often than not.

use sealmq::amqp::frame::{self, Frame};
use sealmq::amqp::method::Method;
use sealmq::amqp::properties::Properties;

use crate::driver::INPUT_BYTES_MAX;
use crate::random::Random;
use crate::wire;

/// Small, so that bodies of several frames are short.
pub const FRAME_BYTES_MAX: u32 = 4096;

const QUEUES: &[&str] = &["q1", "q1", "q2", "q3", "d1", "d1", "d2", "", "amq.x"];
const EXCHANGES: &[&str] =
    &["", "", "x1", "x2", "x3", "amq.topic", "amq.direct", "amq.fanout", "amq.headers", "nope"];
const KEYS: &[&str] = &["q1", "q1", "q2", "q3", "d1", "d1", "d2", "a.b", "a.*", "#", "nope", ""];
const KINDS: &[&str] = &[
    "direct",
    "fanout",
    "topic",
    "headers",
    "x-nope",
    "x-consistent-hash",
    "x-modulus-hash",
    "x-random",
    "x-recent-history",
    "x-delayed-message",
];
const TAGS: &[&str] = &["t1", "t2", "t3", ""];

/// A conversation behind connection.open-ok, as bytes.
pub fn generate(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    let channels = 1 + random.below(3) as u16;
    for channel in 1..=channels {
        method(&mut out, channel, Method::ChannelOpen { out_of_band: b"" });
        match random.below(6) {
            0 | 1 => method(&mut out, channel, Method::ConfirmSelect { no_wait: random.once_in(2) }),
            2 => method(&mut out, channel, Method::TxSelect {}),
            _ => {}
        }
    }
    for name in ["q1", "d1"] {
        if !random.once_in(4) {
            declare_queue(&mut out, random, 1, name);
        }
    }
    for _ in 0..1 + random.below(40) {
        let channel = 1 + random.below(channels as usize) as u16;
        say(&mut out, random, channel);
    }
    out.truncate(INPUT_BYTES_MAX);
    out
}

fn method(out: &mut Vec<u8>, channel: u16, method: Method<'_>) {
    frame::write_method(out, channel, &method);
}

fn name<'n>(random: &mut Random, names: &[&'n str]) -> &'n [u8] {
    random.pick(names).as_bytes()
}

/// Does no damage most of the time: a fault ends a channel, and with it most of what comes after.
fn rarely(random: &mut Random) -> bool {
    random.once_in(12)
}

fn say(out: &mut Vec<u8>, random: &mut Random, channel: u16) {
    match random.below(18) {
        0..=4 => publish(out, random, channel),
        5 | 6 => consume(out, random, channel),
        7..=9 => answer(out, random, channel),
        10 | 11 => {
            let queue = name(random, QUEUES);
            method(out, channel, Method::BasicGet { ticket: 0, queue, no_ack: random.once_in(2) });
        }
        12 => {
            let queue = random.pick(QUEUES);
            declare_queue(out, random, channel, queue);
        }
        13 | 14 => topology(out, random, channel),
        15 => method(out, channel, pick_small(random)),
        16 => end(out, random, channel),
        _ => frame::write_heartbeat(out),
    }
}

fn declare_queue(out: &mut Vec<u8>, random: &mut Random, channel: u16, queue: &str) {
    let table = if random.once_in(2) { wire::table(random, 1) } else { Default::default() };
    let declare = Method::QueueDeclare {
        ticket: 0,
        queue: queue.as_bytes(),
        passive: rarely(random),
        durable: queue.starts_with('d'),
        exclusive: rarely(random),
        auto_delete: rarely(random),
        no_wait: rarely(random),
        arguments: table.as_table(),
    };
    method(out, channel, declare);
}

fn publish(out: &mut Vec<u8>, random: &mut Random, channel: u16) {
    let (exchange, routing_key) = (name(random, EXCHANGES), name(random, KEYS));
    let (mandatory, immediate) = (random.once_in(2), rarely(random) && rarely(random));
    method(out, channel, Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory, immediate });
    let headers = wire::table(random, 1);
    let properties = Properties {
        headers: random.once_in(3).then(|| headers.as_table()),
        delivery_mode: random.once_in(2).then_some(2),
        priority: random.once_in(3).then(|| random.u64() as u8),
        expiration: random.once_in(5).then_some(b"1"),
        reply_to: random.once_in(8).then_some(b"amq.rabbitmq.reply-to"),
        user_id: rarely(random).then_some(b"me"),
        ..Properties::default()
    };
    let mut block = Vec::new();
    properties.encode(&mut block);
    let body = match random.below(10) {
        0 => vec![b'z'; 1000 + random.below(9000)],
        1 => Vec::new(),
        _ => random.bytes(20),
    };
    frame::write_content(out, channel, &block, &body, FRAME_BYTES_MAX);
}

fn consume(out: &mut Vec<u8>, random: &mut Random, channel: u16) {
    let table = if random.once_in(4) { wire::table(random, 0) } else { Default::default() };
    let consume = Method::BasicConsume {
        ticket: 0,
        queue: name(random, QUEUES),
        consumer_tag: name(random, TAGS),
        no_local: false,
        no_ack: random.once_in(3),
        exclusive: rarely(random),
        no_wait: rarely(random),
        arguments: table.as_table(),
    };
    method(out, channel, consume);
}

fn answer(out: &mut Vec<u8>, random: &mut Random, channel: u16) {
    let (delivery_tag, multiple, requeue) = (random.below(9) as u64, random.once_in(3), random.once_in(2));
    let answer = match random.below(4) {
        0 | 1 => Method::BasicAck { delivery_tag, multiple },
        2 => Method::BasicNack { delivery_tag, multiple, requeue },
        _ => Method::BasicReject { delivery_tag, requeue },
    };
    method(out, channel, answer);
}

fn topology(out: &mut Vec<u8>, random: &mut Random, channel: u16) {
    let table = if random.once_in(3) { wire::table(random, 1) } else { Default::default() };
    let (ticket, arguments, no_wait) = (0, table.as_table(), rarely(random));
    let (exchange, other) = (name(random, EXCHANGES), name(random, EXCHANGES));
    let (queue, routing_key) = (name(random, QUEUES), name(random, KEYS));
    let said = match random.below(9) {
        0..=2 => Method::ExchangeDeclare {
            ticket,
            exchange,
            kind: name(random, KINDS),
            passive: rarely(random),
            durable: random.once_in(2),
            auto_delete: random.once_in(3),
            internal: rarely(random),
            no_wait,
            arguments,
        },
        3 | 4 => Method::QueueBind { ticket, queue, exchange, routing_key, no_wait, arguments },
        5 => Method::QueueUnbind { ticket, queue, exchange, routing_key, arguments },
        6 => Method::ExchangeBind {
            ticket,
            destination: other,
            source: exchange,
            routing_key,
            no_wait,
            arguments,
        },
        7 => Method::ExchangeUnbind {
            ticket,
            destination: other,
            source: exchange,
            routing_key,
            no_wait,
            arguments,
        },
        _ => Method::ExchangeDelete { ticket, exchange, if_unused: random.once_in(2), no_wait },
    };
    method(out, channel, said);
}

fn pick_small(random: &mut Random) -> Method<'static> {
    let requeue = !rarely(random);
    match random.below(10) {
        0 | 1 => Method::BasicQos {
            prefetch_size: 0,
            prefetch_count: random.below(4) as u16,
            global: random.once_in(2),
        },
        2 => Method::BasicRecover { requeue },
        3 => Method::BasicRecoverAsync { requeue },
        4 => Method::TxCommit {},
        5 => Method::TxRollback {},
        6 => Method::ConfirmSelect { no_wait: false },
        7 => Method::ChannelFlow { active: requeue },
        8 => Method::BasicCancel { consumer_tag: random.pick(TAGS).as_bytes(), no_wait: !requeue },
        _ => Method::QueuePurge { ticket: 0, queue: random.pick(QUEUES).as_bytes(), no_wait: !requeue },
    }
}

fn end(out: &mut Vec<u8>, random: &mut Random, channel: u16) {
    let (if_unused, if_empty, no_wait) = (random.once_in(3), random.once_in(3), rarely(random));
    match random.below(8) {
        0..=3 => {
            let queue = name(random, QUEUES);
            method(out, channel, Method::QueueDelete { ticket: 0, queue, if_unused, if_empty, no_wait });
        }
        4 | 5 => {
            let close = Method::ChannelClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 };
            method(out, channel, close);
            method(out, channel, Method::ChannelOpen { out_of_band: b"" });
        }
        6 => {
            // As after a fault of ours.
            method(out, channel, Method::ChannelCloseOk {});
            method(out, channel, Method::ChannelOpen { out_of_band: b"" });
        }
        _ => {
            let close =
                Method::ConnectionClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 };
            method(out, 0, close);
        }
    }
}

/// Changes whole frames or their insides; now and then bytes without a thought for frames.
pub fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    if random.once_in(5) {
        return random.mutate(input, other, INPUT_BYTES_MAX);
    }
    let (mut frames, others) = (split(input), split(other));
    for _ in 0..=random.below(4) {
        let at = random.below(frames.len() + 1);
        match random.below(7) {
            0 if at < frames.len() => drop(frames.remove(at)),
            1 if at < frames.len() => frames.insert(random.below(frames.len()), frames[at].clone()),
            2 if at < frames.len() => {
                let with = random.below(frames.len());
                frames.swap(at, with);
            }
            3 if at < frames.len() => frames[at].1 = random.below(4) as u16,
            4 if at < frames.len() => random.mutate(&mut frames[at].2, b"", FRAME_BYTES_MAX as usize),
            5 if !others.is_empty() => {
                let from = random.below(others.len());
                let to = others.len().min(from + 1 + random.below(5));
                frames.splice(at..at, others[from..to].iter().cloned()).for_each(drop);
            }
            _ => {
                let mut said = Vec::new();
                let channel = 1 + random.below(3) as u16;
                say(&mut said, random, channel);
                frames.splice(at..at, split(&said)).for_each(drop);
            }
        }
    }
    input.clear();
    frames.iter().for_each(|(kind, channel, payload)| write(input, *kind, *channel, payload));
    input.truncate(INPUT_BYTES_MAX);
}

/// The whole frames at the front: kind, channel, payload.
fn split(bytes: &[u8]) -> Vec<(u8, u16, Vec<u8>)> {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Ok(Some((Frame { channel, payload, .. }, used))) = frame::parse(&bytes[at..], FRAME_BYTES_MAX) {
        all.push((bytes[at], channel, payload.to_vec()));
        at += used;
    }
    all
}

fn write(out: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out.push(0xCE);
}
