//! The basic class but for publishing: consumers, deliveries, acknowledgements, and what the broker's
//! answers to publishes become on the wire.

use std::collections::VecDeque;

use crate::amqp::field_table::Table;
use crate::amqp::frame::{self, Delivery};
use crate::amqp::method::Method;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::{Fault, lossy};
use crate::broker::message::Message;
use crate::broker::queue::Entry;

use super::channel::unexpected;
use super::connection::{Session, Source};
use super::handshake::syntax_error;
use super::port::{Barrier, Broker, ConsumeSpec, Outcome, Waiting};
use super::unacked::Unacked;

const PUBLISH_ID: (u16, u16) = (60, 40);

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
                if let Some(key) = self.channel(number)?.consumers.remove(consumer_tag) {
                    self.cancel_source(key);
                }
                if !no_wait {
                    frame::write_method(&mut self.out, number, &Method::BasicCancelOk { consumer_tag });
                }
                Ok(())
            }
            Method::BasicCancelOk { .. } => Ok(()),
            Method::BasicGet { queue, no_ack, .. } => self.get(number, queue, no_ack),
            Method::BasicReject { delivery_tag, requeue } => {
                self.reject(number, delivery_tag, false, requeue)
            }
            Method::BasicNack { delivery_tag, multiple, requeue } => {
                self.reject(number, delivery_tag, multiple, requeue)
            }
            Method::BasicRecover { requeue } => {
                self.recover(number, requeue)?;
                frame::write_method(&mut self.out, number, &Method::BasicRecoverOk {});
                Ok(())
            }
            Method::BasicRecoverAsync { requeue } => self.recover(number, requeue),
            other => Err(unexpected(&other)),
        }
    }

    fn qos(&mut self, number: u16, size: u32, count: u16, global: bool) -> Result<(), Fault> {
        if size != 0 {
            return Err(Fault::new(ReplyCode::NotImplemented, format!("prefetch_size!=0 ({size})")));
        }
        let channel = self.channel(number)?;
        if global {
            channel.credit.set_limit(count);
            self.resume_channel(number);
        } else {
            channel.prefetch = count;
        }
        frame::write_method(&mut self.out, number, &Method::BasicQosOk {});
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
        let channel = self.channel(number)?;
        if channel.consumers.contains_key(&tag) {
            let text = format!("attempt to reuse consumer tag '{}'", lossy(&tag));
            return Err(Fault::new(ReplyCode::NotAllowed, text));
        }
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
        slot.insert(Source {
            channel: number,
            tag: tag.clone(),
            queue,
            consumer: Some(consumer),
            no_ack: flags.no_ack,
            outstanding: 0,
            cancelled: false,
        });
        if !flags.no_wait {
            frame::write_method(&mut self.out, number, &Method::BasicConsumeOk { consumer_tag: &tag });
        }
        self.channel(number)?.consumers.insert(tag, key);
        Ok(())
    }

    fn get(&mut self, number: u16, queue: &[u8], no_ack: bool) -> Result<(), Fault> {
        let queue = self.queue_name(number, queue)?;
        let Some((queue, entry, message_count)) = self.broker.get(&queue)? else {
            frame::write_method(&mut self.out, number, &Method::BasicGetEmpty { cluster_id: b"" });
            return Ok(());
        };
        let key = self.get_source(number, queue);
        let delivery_tag = self.channel(number)?.unacked.next_tag();
        let (exchange, routing_key, properties, body) = entry.message.parts();
        let ok = Method::BasicGetOk {
            delivery_tag,
            redelivered: entry.redelivered,
            exchange,
            routing_key,
            message_count,
        };
        frame::write_method(&mut self.out, number, &ok);
        frame::write_content(&mut self.out, number, properties, body, self.frame_size_bytes_max);
        self.delivered(key, delivery_tag, entry, no_ack);
        Ok(())
    }

    /// The source of basic.get on that queue and channel.
    fn get_source(&mut self, number: u16, queue: B::Queue) -> u32 {
        let same = |s: &Source<B::Queue>| s.channel == number && s.consumer.is_none() && s.queue == queue;
        let known = self.sources.iter().find(|(_, s)| same(s)).map(|(key, _)| key);
        let key = known.unwrap_or_else(|| {
            self.sources.insert(Source {
                channel: number,
                tag: Vec::new(),
                queue,
                consumer: None,
                no_ack: false,
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
                None => break,
            }
        }
        self.flush_settled();
    }

    fn deliver(&mut self, key: u32, entry: Entry<B::Durable>) {
        let Some(source) = self.sources.get(key as usize) else { return };
        let Some(Some(channel)) = self.channels.get_mut(usize::from(source.channel)) else { return };
        let delivery_tag = channel.unacked.next_tag();
        let (exchange, routing_key, properties, body) = entry.message.parts();
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
        frame::write_delivery(&mut self.out, &delivery, self.frame_size_bytes_max);
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
        if let Some(Some(channel)) = self.channels.get_mut(usize::from(source.channel)) {
            channel.unacked.push(Unacked { tag, source: key, entry });
        }
    }

    /// The queue is gone: the client is told if it can be (RabbitMQ's consumer cancel notification).
    fn cancelled_by_broker(&mut self, key: u32) {
        let Some(source) = self.sources.get_mut(key as usize) else { return };
        source.cancelled = true;
        let (number, tag, idle) = (source.channel, source.tag.clone(), source.outstanding == 0);
        if let Ok(channel) = self.channel(number) {
            channel.consumers.remove(&tag);
        }
        if idle {
            self.sources.try_remove(key as usize);
        }
        if self.capabilities.consumer_cancel_notify {
            let cancel = Method::BasicCancel { consumer_tag: &tag, no_wait: true };
            frame::write_method(&mut self.out, number, &cancel);
        }
    }

    /// Ends a consumer from this side; what was on its way goes back untouched.
    pub(super) fn cancel_source(&mut self, key: u32) {
        self.flush_settled();
        let Some(source) = self.sources.get_mut(key as usize) else { return };
        source.cancelled = true;
        let (queue, consumer, idle) = (source.queue.clone(), source.consumer, source.outstanding == 0);
        if let Some(consumer) = consumer {
            self.broker.cancel(&queue, consumer, key);
        }
        let (mine, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|w| matches!(w, Waiting::Delivery(k, _) | Waiting::Cancelled(k) if *k == key));
        self.waiting = others;
        let entries: Vec<_> = mine
            .into_iter()
            .filter_map(|w| match w {
                Waiting::Delivery(_, entry) => Some(entry),
                Waiting::Cancelled(_) => None,
            })
            .collect();
        if !entries.is_empty() {
            self.broker.requeue(&queue, consumer, entries);
        }
        if idle {
            self.sources.try_remove(key as usize);
        }
    }

    // ---- acknowledgements

    pub(super) fn ack(&mut self, number: u16, tag: u64, multiple: bool) -> Result<(), Fault> {
        if multiple {
            for unacked in self.take_up_to(number, tag)? {
                self.settle_unacked(unacked);
            }
        } else {
            let taken = self.channel(number)?.unacked.take(tag).ok_or_else(|| unknown_tag(tag))?;
            self.settle_unacked(taken);
        }
        let channel = self.channel(number)?;
        if channel.credit.is_limited() {
            self.flush_settled();
            self.resume_channel(number);
        }
        Ok(())
    }

    fn reject(&mut self, number: u16, tag: u64, multiple: bool, requeue: bool) -> Result<(), Fault> {
        let taken = if multiple {
            self.take_up_to(number, tag)?
        } else {
            vec![self.channel(number)?.unacked.take(tag).ok_or_else(|| unknown_tag(tag))?]
        };
        if requeue {
            self.give_back(taken);
        } else {
            taken.into_iter().for_each(|unacked| self.settle_unacked(unacked));
            self.flush_settled();
        }
        if self.channel(number)?.credit.is_limited() {
            self.resume_channel(number);
        }
        Ok(())
    }

    fn recover(&mut self, number: u16, requeue: bool) -> Result<(), Fault> {
        if !requeue {
            return Err(Fault::new(ReplyCode::NotImplemented, "requeue=false"));
        }
        let taken = self.take_up_to(number, 0)?;
        self.give_back(taken);
        self.resume_channel(number);
        Ok(())
    }

    fn take_up_to(&mut self, number: u16, tag: u64) -> Result<Vec<Unacked<B::Durable>>, Fault> {
        self.channel(number)?.unacked.take_up_to(tag).ok_or_else(|| unknown_tag(tag))
    }

    fn settle_unacked(&mut self, unacked: Unacked<B::Durable>) {
        let key = unacked.source;
        self.credit_back(key, 1);
        self.settle_later(key, unacked.entry);
        self.less_outstanding(key, 1);
    }

    /// Gathers settled entries of one source; another source's come in a batch of their own.
    fn settle_later(&mut self, key: u32, entry: Entry<B::Durable>) {
        if self.settled_source != key {
            self.flush_settled();
            self.settled_source = key;
        }
        self.settled.push(entry);
    }

    pub(super) fn flush_settled(&mut self) {
        if self.settled.is_empty() {
            return;
        }
        let key = self.settled_source as usize;
        if let Some(source) = self.sources.get(key) {
            self.broker.settle(&source.queue, source.consumer, &mut self.settled);
        }
        self.settled.clear();
        self.drop_idle(key);
    }

    /// Puts deliveries back into their queues, in order, as redelivered.
    pub(super) fn give_back(&mut self, taken: Vec<Unacked<B::Durable>>) {
        self.flush_settled();
        let mut rest = taken.into_iter().peekable();
        while let Some(first) = rest.next() {
            let key = first.source;
            let mut entries = vec![returned(first.entry)];
            while let Some(next) = rest.next_if(|u| u.source == key) {
                entries.push(returned(next.entry));
            }
            let count = entries.len();
            self.credit_back(key, count as u32);
            if let Some(source) = self.sources.get(key as usize) {
                self.broker.requeue(&source.queue, source.consumer, entries);
            }
            self.less_outstanding(key, count);
            self.drop_idle(key as usize);
        }
    }

    fn credit_back(&mut self, key: u32, count: u32) {
        let Some(source) = self.sources.get(key as usize) else { return };
        if let (Some(_), Some(Some(channel))) =
            (source.consumer, self.channels.get(usize::from(source.channel)))
        {
            channel.credit.give_back(count);
        }
    }

    fn less_outstanding(&mut self, key: u32, count: usize) {
        if let Some(source) = self.sources.get_mut(key as usize) {
            source.outstanding = source.outstanding.saturating_sub(count);
        }
    }

    fn drop_idle(&mut self, key: usize) {
        if self.sources.get(key).is_some_and(|s| s.cancelled && s.outstanding == 0) {
            self.sources.remove(key);
        }
    }

    /// Room came back to a channel's common limit, or to the outbox: its consumers may go on.
    fn resume_channel(&mut self, number: u16) {
        self.resume_where(|source| source.channel == number);
    }

    /// The outbox has room again.
    pub fn resume_all(&mut self) {
        self.resume_where(|_| true);
    }

    fn resume_where(&mut self, wanted: impl Fn(&Source<B::Queue>) -> bool) {
        for (_, source) in &self.sources {
            if let (Some(consumer), false, true) = (source.consumer, source.cancelled, wanted(source)) {
                self.broker.resume(&source.queue, consumer);
            }
        }
    }

    // ---- what became of publishes

    pub(super) fn flush_publishes(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        // The batch is gone afterwards; whom to answer and what to give back is needed still.
        let mut asked = std::mem::take(&mut self.asked);
        asked.extend(self.batch.iter().map(|p| (p.channel, p.mandatory.then(|| p.message.clone()))));
        self.batch_bytes = 0;
        let mut outcomes = std::mem::take(&mut self.outcomes);
        self.broker.publish(&mut self.batch, &mut outcomes);
        for ((channel, message), outcome) in asked.drain(..).zip(outcomes.drain(..)) {
            self.handle_outcome(channel, message, outcome);
        }
        self.outcomes = outcomes;
        self.asked = asked;
    }

    fn handle_outcome(&mut self, number: u16, message: Option<Message>, outcome: Outcome) {
        match outcome {
            Outcome::Routed(barrier) => self.confirm_later(number, barrier),
            Outcome::Unroutable => {
                if let Some(message) = message {
                    self.write_return(number, &message);
                }
                self.confirm_later(number, Barrier(0));
            }
            Outcome::Refused => {
                let confirms = self.channel(number).ok().and_then(|c| c.confirms.as_mut());
                if let Some(tag) = confirms.map(|c| c.next_tag()) {
                    let nack = Method::BasicNack { delivery_tag: tag, multiple: false, requeue: false };
                    frame::write_method(&mut self.out, number, &nack);
                }
            }
            Outcome::Fault(fault) => self.handle_fault(number, &fault, PUBLISH_ID),
            Outcome::Skipped => {}
        }
    }

    fn confirm_later(&mut self, number: u16, barrier: Barrier) {
        let Some(Some(channel)) = self.channels.get_mut(usize::from(number)) else { return };
        let Some(confirms) = channel.confirms.as_mut() else { return };
        let tag = confirms.next_tag();
        confirms.expect(tag, barrier);
        if self.confirming.last() != Some(&number) && !self.confirming.contains(&number) {
            self.confirming.push(number);
        }
    }

    /// Acknowledges every publish whose barrier is reached, cumulatively.
    pub(super) fn confirm_due(&mut self, durable: Barrier) {
        let mut confirming = std::mem::take(&mut self.confirming);
        confirming.retain(|number| {
            let Some(Some(channel)) = self.channels.get_mut(usize::from(*number)) else { return false };
            let Some(confirms) = channel.confirms.as_mut() else { return false };
            if let Some((delivery_tag, multiple)) = confirms.take_due(durable) {
                frame::write_method(&mut self.out, *number, &Method::BasicAck { delivery_tag, multiple });
            }
            confirms.is_waiting()
        });
        self.confirming = confirming;
    }

    fn write_return(&mut self, number: u16, message: &Message) {
        let (exchange, routing_key, properties, body) = message.parts();
        let code = ReplyCode::NoRoute;
        let returned = Method::BasicReturn {
            reply_code: code.code(),
            reply_text: code.name().as_bytes(),
            exchange,
            routing_key,
        };
        frame::write_method(&mut self.out, number, &returned);
        frame::write_content(&mut self.out, number, properties, body, self.frame_size_bytes_max);
    }
}

/// The flags of basic.consume.
#[derive(Clone, Copy)]
struct ConsumeFlags {
    no_ack: bool,
    exclusive: bool,
    no_wait: bool,
}

fn returned<D>(entry: Entry<D>) -> Entry<D> {
    Entry { redelivered: true, delivery_count: entry.delivery_count.saturating_add(1), ..entry }
}

fn unknown_tag(tag: u64) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format!("unknown delivery tag {tag}"))
}
