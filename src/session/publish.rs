//! Publishes on their way to the broker in batches, and what its answers become on the wire: confirms,
//! returns, faults.

use crate::amqp::frame;
use crate::amqp::method::Method;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::message::Message;

use super::connection::Session;
use super::content::replace;
use super::port::{Barrier, Broker, Outcome, Publish, RouteNumber};

/// Class and method of basic.publish, as close methods report them.
pub(super) const PUBLISH_ID: (u16, u16) = (60, 40);

/// Publishes gathered before they are handed to the broker: past this one lock is held too long.
const BATCH_MESSAGES_MAX: usize = 128;
/// The same in bytes.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Whether two names are the same. Of empty ones no byte may be asked for: they may lie nowhere, and the comparison by
/// masked vectors that C libraries have would take a fault that nobody sees for each publish to the default exchange.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && (a.is_empty() || a == b)
}

/// Publishes of one connection until the broker has answered for them.
#[derive(Default)]
pub(super) struct Publishing {
    pub last_route: LastRoute,
    batch: Vec<Publish>,
    batch_bytes: usize,
    outcomes: Vec<Outcome>,
    /// while a batch is with the broker: each publish's channel, and the message if it is mandatory
    asked: Vec<(u16, Option<Message>)>,
}

/// The names of the publish that came last, on whatever channel: most have those of the one before.
#[derive(Default)]
pub(super) struct LastRoute {
    number: RouteNumber,
    exchange: Vec<u8>,
    routing_key: Vec<u8>,
}

impl LastRoute {
    /// The number of these names.
    pub fn number_of(&mut self, exchange: &[u8], routing_key: &[u8]) -> RouteNumber {
        if !is_same(&self.exchange, exchange) || !is_same(&self.routing_key, routing_key) {
            self.number.0 += 1;
            replace(&mut self.exchange, exchange);
            replace(&mut self.routing_key, routing_key);
        }
        self.number
    }
}

impl<B: Broker> Session<B> {
    /// Queues a publish; the broker gets them in batches.
    pub(super) fn enqueue(&mut self, publish: Publish) {
        let Publishing { batch, batch_bytes, .. } = &mut self.publishing;
        *batch_bytes += publish.message.size_bytes();
        batch.push(publish);
        if batch.len() >= BATCH_MESSAGES_MAX || *batch_bytes >= BATCH_BYTES_MAX {
            self.flush_publishes();
        }
    }

    /// With an alarm, a publisher is stopped before its message takes any room (connection.blocked).
    pub(super) fn block_if_alarmed(&mut self) {
        if let Some(reason) = self.alarm
            && !self.blocked
        {
            self.blocked = true;
            if self.capabilities.connection_blocked {
                let blocked = Method::ConnectionBlocked { reason: reason.as_bytes() };
                frame::write_method(&mut self.out.frames, 0, &blocked);
            }
        }
    }

    pub(super) fn flush_publishes(&mut self) {
        let Publishing { batch, batch_bytes, asked, outcomes, .. } = &mut self.publishing;
        if batch.is_empty() {
            return;
        }
        // The batch is gone afterwards; whom to answer and what to give back is needed still.
        let (mut asked, mut outcomes) = (std::mem::take(asked), std::mem::take(outcomes));
        asked.extend(batch.iter().map(|p| (p.channel, p.mandatory.then(|| p.message.clone()))));
        *batch_bytes = 0;
        self.broker.publish(batch, &mut outcomes);
        for ((channel, message), outcome) in asked.drain(..).zip(outcomes.drain(..)) {
            self.handle_outcome(channel, message, outcome);
        }
        self.publishing.outcomes = outcomes;
        self.publishing.asked = asked;
    }

    pub(super) fn handle_outcome(&mut self, number: u16, message: Option<Message>, outcome: Outcome) {
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
                    frame::write_method(&mut self.out.frames, number, &nack);
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
    pub(super) fn confirm_due(&mut self, kept: Barrier) {
        let mut confirming = std::mem::take(&mut self.confirming);
        confirming.retain(|number| {
            let Some(Some(channel)) = self.channels.get_mut(usize::from(*number)) else { return false };
            let Some(confirms) = channel.confirms.as_mut() else { return false };
            if let Some((delivery_tag, multiple)) = confirms.take_due(kept) {
                frame::write_method(
                    &mut self.out.frames,
                    *number,
                    &Method::BasicAck { delivery_tag, multiple },
                );
            }
            confirms.is_waiting()
        });
        self.confirming = confirming;
    }

    fn write_return(&mut self, number: u16, message: &Message) {
        let (exchange, routing_key, properties, _) = message.parts();
        let code = ReplyCode::NoRoute;
        let returned = Method::BasicReturn {
            reply_code: code.code(),
            reply_text: code.name().as_bytes(),
            exchange,
            routing_key,
        };
        frame::write_method(&mut self.out.frames, number, &returned);
        self.out.write_content(number, properties, message, self.frame_size_bytes_max);
    }
}
