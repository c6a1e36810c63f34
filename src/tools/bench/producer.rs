//! One publishing connection. A message is a copy of bytes laid out once, with the time of sending written over the
//! beginning of its body; as many as may be sent go out in one write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client;
use super::error::{Error, Result};
use super::histogram::Histogram;
use super::link::{CHANNEL, Link, check_close, not_amqp};
use super::load::{Amount, BODY_BYTES_MIN, Load};
use super::pending::Pending;
use super::tally::Tally;
use crate::amqp::frame::{self, Kind, OVERHEAD_BYTES};
use crate::amqp::method::Method;
use crate::amqp::properties::{PERSISTENT, Properties};

/// More is not laid out while this much waits to be sent: larger writes gain nothing.
const BATCH_BYTES: usize = 64 * 1024;
/// A paced producer looks at the clock this often; tokio's timer is no finer.
pub const PACE: Duration = Duration::from_millis(1);
/// The filler of bodies: neither text nor zeros, so that what compresses gains little.
const FILLER: u64 = 0x9e37_79b9_7f4a_7c15;

/// One message to one queue, as it goes over the wire.
struct Template {
    bytes: Vec<u8>,
    /// Where the body begins.
    body_at: usize,
}

impl Template {
    fn new(load: &Load, exchange: &str, routing_key: &str, frame_bytes_max: u32) -> Template {
        let mut bytes = Vec::new();
        let publish = Method::BasicPublish {
            ticket: 0,
            exchange: exchange.as_bytes(),
            routing_key: routing_key.as_bytes(),
            mandatory: false,
            immediate: false,
        };
        frame::write_method(&mut bytes, CHANNEL, &publish);
        let delivery_mode = load.persistent.then_some(PERSISTENT);
        let mut properties = Vec::new();
        Properties { delivery_mode, ..Properties::default() }.encode(&mut properties);
        let words = (1u64..).flat_map(|at| at.wrapping_mul(FILLER).to_be_bytes());
        let body: Vec<u8> = words.take(load.body_bytes.max(BODY_BYTES_MIN)).collect();
        let head_at = bytes.len();
        frame::write_content(&mut bytes, CHANNEL, &properties, &body, frame_bytes_max);
        let head_bytes = frame::size_bytes_of(&bytes[head_at..]).unwrap_or_default();
        // Behind the content header's frame comes the first body frame, its head before the body.
        Template { body_at: head_at + head_bytes + OVERHEAD_BYTES - 1, bytes }
    }

    fn write(&self, out: &mut Vec<u8>, sent_us: u64) {
        let at = out.len() + self.body_at;
        out.extend_from_slice(&self.bytes);
        out[at..at + BODY_BYTES_MIN].copy_from_slice(&sent_us.to_be_bytes());
    }
}

/// A producer that is connected and ready.
pub struct Producer {
    link: Link,
    templates: Vec<Template>,
    /// Which queue is next.
    next: usize,
    amount: Amount,
    /// Messages a second; 0: no limit.
    rate: f64,
    window: usize,
    /// How far it may be ahead of the consumers.
    lead: Option<u64>,
    pending: Pending,
    sent: u64,
    waited: Histogram,
}

/// What a producer has done.
pub struct Published {
    /// Messages.
    pub count: u64,
    /// When the last one was confirmed, or known to have been read by the broker; microseconds from the start.
    pub end_us: u64,
    /// Time from publish to confirm, in microseconds.
    pub waited: Histogram,
}

impl Producer {
    /// `number` counts the producers from 0. Each begins with another queue.
    pub async fn prepare(mut link: Link, load: &Load, number: usize, names: &Names) -> Result<Producer> {
        if load.confirms > 0 {
            client::select_confirms(&mut link).await?;
        }
        let frame_bytes_max = link.frame_bytes_max();
        let exchange = names.exchange.as_deref().unwrap_or_default();
        let templates: Vec<Template> =
            names.keys.iter().map(|key| Template::new(load, exchange, key, frame_bytes_max)).collect();
        let producers = load.producers as u64;
        let amount = match load.amount {
            Amount::Count(count) => {
                Amount::Count(count / producers + u64::from((number as u64) < count % producers))
            }
            Amount::Time(time) => Amount::Time(time),
        };
        link.doing = "publishing";
        Ok(Producer {
            next: number % templates.len(),
            templates,
            amount,
            rate: load.rate as f64 / producers as f64,
            window: load.confirms,
            lead: load.lead(),
            pending: Pending::default(),
            sent: 0,
            waited: Histogram::default(),
            link,
        })
    }

    /// Publishes everything; returns when it is confirmed, or read by the broker where there are no confirms.
    pub async fn run(mut self, tally: Arc<Tally>) -> Result<Published> {
        let started = Instant::now();
        loop {
            self.read(&tally)?;
            let is_over = self.write(started.elapsed(), &tally);
            if is_over && self.pending.is_empty() && self.link.is_drained() {
                break;
            }
            // Between two paced messages there may be nothing to send and nothing to receive.
            let is_paced = self.rate > 0.0 || self.lead.is_some() || matches!(self.amount, Amount::Time(_));
            let must_look_again = !is_over && is_paced;
            if must_look_again {
                tokio::select! {
                    turned = self.link.turn() => turned?,
                    () = tokio::time::sleep(PACE) => {}
                }
            } else {
                self.link.turn().await?;
            }
        }
        if self.window == 0 {
            client::close_channel(&mut self.link).await?;
        }
        let published = Published { count: self.sent, end_us: tally.now_us(), waited: self.waited };
        client::close(self.link).await;
        Ok(published)
    }

    /// Lays out what may be sent now; says whether nothing more will be.
    fn write(&mut self, elapsed: Duration, tally: &Tally) -> bool {
        let left = match self.amount {
            Amount::Count(count) => count - self.sent,
            Amount::Time(time) if elapsed >= time => 0,
            Amount::Time(_) => u64::MAX,
        };
        if left == 0 || self.link.backlog_bytes() >= BATCH_BYTES {
            return left == 0;
        }
        let due = match self.rate {
            rate if rate > 0.0 => ((elapsed.as_secs_f64() * rate) as u64 + 1).saturating_sub(self.sent),
            _ => u64::MAX,
        };
        let allowed = match self.window {
            0 => u64::MAX,
            window => window.saturating_sub(self.pending.len()) as u64,
        };
        let ahead = tally.published().saturating_sub(tally.delivered());
        let allowed = allowed.min(self.lead.map_or(u64::MAX, |lead| lead.saturating_sub(ahead)));
        let now_us = tally.now_us();
        let mut count = 0;
        while count < left.min(due).min(allowed) && self.link.backlog_bytes() < BATCH_BYTES {
            self.templates[self.next].write(&mut self.link.out, now_us);
            self.next = if self.next + 1 == self.templates.len() { 0 } else { self.next + 1 };
            if self.window > 0 {
                self.pending.push(now_us);
            }
            count += 1;
        }
        self.sent += count;
        tally.add_published(count);
        count == left
    }

    fn read(&mut self, tally: &Tally) -> Result<()> {
        let Producer { link, pending, waited, .. } = self;
        let (before, now_us) = (waited.count(), tally.now_us());
        let Link { inbox, address, doing, .. } = link;
        while let Some(frame) = inbox.next_frame().map_err(|problem| not_amqp(address, problem))? {
            if frame.kind != Kind::Method {
                continue;
            }
            let method =
                Method::decode(frame.payload).map_err(|error| not_amqp(address, error.to_string()))?;
            match method {
                Method::BasicAck { delivery_tag, multiple } => {
                    pending.confirm(delivery_tag, multiple, |sent_us| waited.record(now_us - sent_us));
                }
                Method::BasicNack { .. } => return Err(Error::Nacked { address: address.to_string() }),
                Method::ConnectionBlocked { .. } => tally.note_blocked(),
                other => check_close(&other, address, doing)?,
            }
        }
        tally.add_confirmed(waited.count() - before);
        Ok(())
    }
}

/// The names of a run's queues, and of its exchange where there is one.
pub struct Names {
    /// Queues.
    pub queues: Vec<String>,
    /// The exchange that is published to, if it is not the default one.
    pub exchange: Option<String>,
    /// What is published with, in turn.
    pub keys: Vec<String>,
    /// What each queue is bound to the exchange with.
    pub binding_keys: Vec<String>,
    /// Queues that have no part in the traffic.
    pub idle_queues: Vec<String>,
    /// The exchange that these are bound to.
    pub idle_exchange: String,
}

#[cfg(test)]
mod tests {
    use super::super::arguments::tests::load;
    use super::*;
    use crate::amqp::properties::ContentHeader;

    fn frames(mut bytes: &[u8], frame_bytes_max: u32) -> Vec<(Kind, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((frame, used)) = frame::parse(bytes, frame_bytes_max).unwrap() {
            assert!(used <= frame_bytes_max as usize);
            found.push((frame.kind, frame.payload.to_vec()));
            bytes = &bytes[used..];
        }
        assert!(bytes.is_empty());
        found
    }

    #[test]
    fn a_message_is_what_amqp_says_with_the_time_in_front_of_its_body() {
        for body_bytes in [8, 100, 4088, 4089, 20_000] {
            let load = Load { body_bytes, ..load("") };
            let mut out = b"before".to_vec();
            Template::new(&load, "", "queue", 4096).write(&mut out, 0x0102_0304_0506_0708);
            let frames = frames(&out[6..], 4096);
            let method = Method::decode(&frames[0].1).unwrap();
            assert!(matches!(method, Method::BasicPublish { exchange: b"", routing_key: b"queue", .. }));
            let header = ContentHeader::decode(&frames[1].1).unwrap();
            assert_eq!((header.class_id, header.body_size), (60, body_bytes as u64));
            assert!(Properties::decode(header.properties).unwrap().is_persistent());
            let body: Vec<u8> = frames[2..].iter().flat_map(|(_, piece)| piece.clone()).collect();
            assert_eq!((body.len(), &body[..8]), (body_bytes, &[1, 2, 3, 4, 5, 6, 7, 8][..]));
        }
    }

    #[test]
    fn a_transient_message_has_no_delivery_mode() {
        let template = Template::new(&Load { persistent: false, ..load("") }, "x", "", 4096);
        let frames = frames(&template.bytes, 4096);
        let header = ContentHeader::decode(&frames[1].1).unwrap();
        assert!(Properties::decode(header.properties).unwrap() == Properties::default());
    }
}
