//! The basic class: its methods, consumers and deliveries. Not here: publishes (publish.rs) and what
//! goes back to queues (settle.rs).

use std::collections::VecDeque;

use crate::amqp::field_table::{Table, Value};
use crate::amqp::frame::{self, Delivery};
use crate::amqp::method::Method;
use crate::amqp::properties::Properties;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::{Fault, lossy};
use crate::broker::name::REPLY_TO;
use crate::broker::queue::Entry;

use super::channel::unexpected;
use super::connection::{Session, Source};
use super::handshake::syntax_error;
use super::port::{Broker, ConsumeSpec, Waiting};
use super::timeouts::Timeout;
use super::unacked::Unacked;

/// Class and method of basic.get, for the fault of one that came late.
const BASIC_GET: (u16, u16) = (60, 70);

impl<B: Broker> Session<B> {
    pub(super) fn handle_basic_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        match method {
            Method::BasicQos { prefetch_size, prefetch_count, global } => {
                self.qos(number, prefetch_size, prefetch_count, global)
            }
            Method::BasicConsume { queue, consumer_tag, no_ack, exclusive, no_wait, arguments, .. } => {
                let flags = ConsumeFlags { no_ack, exclusive, no_wait };
                self.consume(number, queue, consumer_tag, flags, arguments)
            }
            Method::BasicCancel { consumer_tag, no_wait } => {
                // An unknown tag is answered all the same, as RabbitMQ does.
                self.cancel_replies(number, consumer_tag);
                if let Some(key) = self.channel(number)?.consumers.remove(consumer_tag) {
                    self.cancel_consumer(key);
                }
                if !no_wait {
                    frame::write_method(
                        &mut self.out.frames,
                        number,
                        &Method::BasicCancelOk { consumer_tag },
                    );
                }
                Ok(())
            }
            Method::BasicGet { queue, no_ack, .. } => self.get(number, queue, no_ack),
            Method::BasicReject { delivery_tag, requeue } => {
                self.reject(number, delivery_tag, false, requeue)
            }
            Method::BasicNack { delivery_tag, multiple, requeue } => {
                self.reject(number, delivery_tag, multiple, requeue)
            }
            Method::BasicRecover { requeue } => {
                self.recover(number, requeue)?;
                frame::write_method(&mut self.out.frames, number, &Method::BasicRecoverOk {});
                Ok(())
            }
            Method::BasicRecoverAsync { requeue } => self.recover(number, requeue),
            _ => Err(unexpected()),
        }
    }

    fn qos(&mut self, number: u16, size: u32, count: u16, global: bool) -> Result<(), Fault> {
        if size != 0 {
            return Err(Fault::in_numbers(ReplyCode::NotImplemented, format!("prefetch_size!=0 ({size})")));
        }
        let channel = self.channel(number)?;
        if global {
            channel.credit.set_limit(count);
            self.resume_due = true;
        } else {
            channel.prefetch = count;
        }
        frame::write_method(&mut self.out.frames, number, &Method::BasicQosOk {});
        Ok(())
    }

    fn consume(
        &mut self,
        number: u16,
        queue: &[u8],
        tag: &[u8],
        flags: ConsumeFlags,
        arguments: Table<'_>,
    ) -> Result<(), Fault> {
        arguments.validate().map_err(syntax_error)?;
        let queue = self.queue_name(number, queue)?;
        let tag = if tag.is_empty() { self.broker.unique_name("amq.ctag-")? } else { tag.to_vec() };
        let takes_replies = queue == REPLY_TO;
        let channel = self.channel(number)?;
        let of_replies = channel.replies.as_ref().is_some_and(|replies| replies.tag == tag);
        if channel.consumers.contains_key(&tag) || (of_replies && !takes_replies) {
            let text = format!("attempt to reuse consumer tag '{}'", lossy(&tag));
            return Err(Fault::new(ReplyCode::NotAllowed, text));
        }
        if takes_replies {
            return self.consume_replies(number, tag, flags);
        }
        let channel = self.channel(number)?;
        let (prefetch, credit) = (channel.prefetch, channel.credit.clone());
        let slot = self.sources.vacant_entry();
        let key = slot.key() as u32;
        let spec = ConsumeSpec {
            queue: &queue,
            key,
            no_ack: flags.no_ack,
            exclusive: flags.exclusive,
            prefetch,
            credit: &credit,
            arguments,
        };
        let (queue, consumer) = self.broker.consume(&spec)?;
        let timeout_ms = self.broker.delivery_timeout_ms(&queue, arguments);
        let timeout = Timeout::of(timeout_ms.unwrap_or(self.settings.delivery_timeout_ms));
        slot.insert(Source {
            channel: number,
            tag: tag.clone(),
            settles_in_order: self.broker.settles_in_order(&queue),
            queue,
            consumer: Some(consumer),
            no_ack: flags.no_ack,
            timeout: timeout.filter(|_| !flags.no_ack),
            outstanding: 0,
            cancelled: false,
        });
        if !flags.no_wait {
            frame::write_method(&mut self.out.frames, number, &Method::BasicConsumeOk { consumer_tag: &tag });
        }
        self.channel(number)?.consumers.insert(tag, key);
        Ok(())
    }

    fn get(&mut self, number: u16, queue: &[u8], no_ack: bool) -> Result<(), Fault> {
        let queue = self.queue_name(number, queue)?;
        self.get_from(LateGet { number, queue, no_ack })
    }

    /// A basic.get whose message had to be read back first: perhaps it is there now.
    pub(super) fn retry_get(&mut self) {
        let Some(late) = self.late_get.take().filter(|late| self.channel(late.number).is_ok()) else {
            return;
        };
        let number = late.number;
        if let Err(fault) = self.get_from(late) {
            self.handle_fault(number, &fault, BASIC_GET);
        }
    }

    fn get_from(&mut self, asked: LateGet) -> Result<(), Fault> {
        let (number, no_ack) = (asked.number, asked.no_ack);
        let Some((queue, entry, message_count)) = self.broker.get(&asked.queue)? else {
            if self.broker.waits_for(&asked.queue) {
                self.late_get = Some(asked);
                return Ok(());
            }
            frame::write_method(&mut self.out.frames, number, &Method::BasicGetEmpty { cluster_id: b"" });
            return Ok(());
        };
        let key = self.get_source(number, queue);
        let delivery_tag = self.channel(number)?.unacked.next_tag();
        let (exchange, routing_key, properties, _) = entry.message.parts();
        let counted = counted(&entry, properties);
        let properties = counted.as_deref().unwrap_or(properties);
        let ok = Method::BasicGetOk {
            delivery_tag,
            redelivered: entry.redelivered,
            exchange,
            routing_key,
            message_count,
        };
        frame::write_method(&mut self.out.frames, number, &ok);
        self.out.write_content(number, properties, &entry.message, self.frame_size_bytes_max);
        self.delivered(key, delivery_tag, entry, no_ack);
        Ok(())
    }

    /// The source of basic.get on that queue and channel.
    fn get_source(&mut self, number: u16, queue: B::Queue) -> u32 {
        let same = |s: &Source<B::Queue>| s.channel == number && s.consumer.is_none() && s.queue == queue;
        let known = self.sources.iter().find(|(_, s)| same(s)).map(|(key, _)| key);
        let key = known.unwrap_or_else(|| {
            let timeout_ms = self.broker.delivery_timeout_ms(&queue, Table::default());
            let timeout = Timeout::of(timeout_ms.unwrap_or(self.settings.delivery_timeout_ms));
            self.sources.insert(Source {
                channel: number,
                tag: Vec::new(),
                settles_in_order: self.broker.settles_in_order(&queue),
                queue,
                consumer: None,
                no_ack: false,
                timeout,
                outstanding: 0,
                // It goes as soon as nothing of it is outstanding.
                cancelled: true,
            })
        });
        key as u32
    }

    // ---- deliveries

    /// Where deliveries and cancellations wait to be encoded; the caller fills it from the outbox when
    /// it is empty.
    pub fn waiting(&mut self) -> &mut VecDeque<Waiting<B::Durable>> {
        &mut self.waiting
    }

    /// Encodes what waits until the output holds `output_bytes_max`.
    pub fn handle_deliveries(&mut self, output_bytes_max: usize) {
        while self.out.len() < output_bytes_max {
            match self.waiting.pop_front() {
                Some(Waiting::Delivery(key, entry)) => self.deliver(key, entry),
                Some(Waiting::Cancelled(key)) => self.cancelled_by_broker(key),
                Some(Waiting::Reply(to, message)) => self.deliver_reply(to, &message),
                None => break,
            }
        }
        self.flush_settled();
        self.resume_if_due();
    }

    fn deliver(&mut self, key: u32, entry: Entry<B::Durable>) {
        let Some(source) = self.sources.get(key as usize) else { return };
        let Some(Some(channel)) = self.channels.get_mut(usize::from(source.channel)) else { return };
        let delivery_tag = channel.unacked.next_tag();
        let (exchange, routing_key, properties, body) = entry.message.parts();
        let counted = counted(&entry, properties);
        let properties = counted.as_deref().unwrap_or(properties);
        let delivery = Delivery {
            channel: source.channel,
            consumer_tag: &source.tag,
            delivery_tag,
            redelivered: entry.redelivered,
            exchange,
            routing_key,
            properties,
            body,
        };
        self.out.write_delivery(&delivery, &entry.message, self.frame_size_bytes_max);
        let no_ack = source.no_ack;
        self.delivered(key, delivery_tag, entry, no_ack);
    }

    fn delivered(&mut self, key: u32, tag: u64, entry: Entry<B::Durable>, no_ack: bool) {
        if no_ack {
            self.settle_later(key, entry);
            return;
        }
        let Some(source) = self.sources.get_mut(key as usize) else { return };
        source.outstanding += 1;
        let delivered_at = self.deadlines.delivered(source.timeout);
        if let Some(Some(channel)) = self.channels.get_mut(usize::from(source.channel)) {
            channel.unacked.push(Unacked { tag, source: key, delivered_at, entry });
        }
    }

    /// The queue is gone: the client is told if it can be (RabbitMQ's consumer cancel notification).
    fn cancelled_by_broker(&mut self, key: u32) {
        // What it was delivered without acknowledgement is settled while its place is still its own.
        self.flush_settled();
        let Some(source) = self.sources.get_mut(key as usize) else { return };
        source.cancelled = true;
        let (number, tag, idle) = (source.channel, source.tag.clone(), source.outstanding == 0);
        if let Ok(channel) = self.channel(number) {
            channel.consumers.remove(&tag);
            let is_limited = channel.credit.is_limited();
            // What was on its way to it has given its room back.
            self.resume_due |= is_limited;
        }
        if idle {
            self.sources.try_remove(key as usize);
        }
        if self.capabilities.consumer_cancel_notify {
            let cancel = Method::BasicCancel { consumer_tag: &tag, no_wait: true };
            frame::write_method(&mut self.out.frames, number, &cancel);
        }
    }
}

/// The properties of a message that came back to a queue that counts, with the count in its headers: made
/// for each delivery, so that what is stored and shared stays as it was published.
fn counted<D>(entry: &Entry<D>, properties: &[u8]) -> Option<Vec<u8>> {
    if entry.delivery_count == 0 {
        return None;
    }
    let count = Value::I64(entry.delivery_count.into());
    Properties::with_header(properties, "x-delivery-count", count).ok()
}

/// A basic.get; no further input is looked at while it waits for its message, so that answers keep their order.
pub(super) struct LateGet {
    number: u16,
    queue: Vec<u8>,
    no_ack: bool,
}

/// The flags of basic.consume.
#[derive(Clone, Copy)]
pub(super) struct ConsumeFlags {
    pub no_ack: bool,
    exclusive: bool,
    pub no_wait: bool,
}
