//! Direct reply-to (RabbitMQ, direct-reply-to.md): a channel takes replies at an address that stands in
//! `reply_to` of what it publishes. There is no queue: a reply goes straight to it, or nowhere.

use crate::amqp::frame::{self, Delivery};
use crate::amqp::method::Method;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::Fault;
use crate::broker::message::Message;

use super::basic::ConsumeFlags;
use super::connection::Session;
use super::port::{Broker, ReplyTo};

/// The one consumer of replies that a channel may have.
pub(super) struct ReplyConsumer {
    pub tag: Vec<u8>,
    /// `amq.rabbitmq.reply-to.` and a token
    pub address: Vec<u8>,
    /// replies to an earlier one may still be on their way
    serial: u32,
}

impl<B: Broker> Session<B> {
    pub(super) fn consume_replies(
        &mut self,
        number: u16,
        tag: Vec<u8>,
        flags: ConsumeFlags,
    ) -> Result<(), Fault> {
        let refuse = |text: &'static str| Err(Fault::new(ReplyCode::PreconditionFailed, text));
        if !flags.no_ack {
            return refuse("reply consumer cannot acknowledge");
        }
        if self.channel(number)?.replies.is_some() {
            return refuse("reply consumer already set");
        }
        self.reply_serial = self.reply_serial.wrapping_add(1);
        let serial = self.reply_serial;
        let address = self.broker.open_replies(ReplyTo { channel: number, serial })?;
        if !flags.no_wait {
            frame::write_method(&mut self.out.frames, number, &Method::BasicConsumeOk { consumer_tag: &tag });
        }
        self.channel(number)?.replies = Some(Box::new(ReplyConsumer { tag, address, serial }));
        Ok(())
    }

    /// Ends the channel's consumer of replies if it has that tag.
    pub(super) fn cancel_replies(&mut self, number: u16, tag: &[u8]) {
        if let Ok(channel) = self.channel(number)
            && let Some(ended) = channel.replies.take_if(|replies| replies.tag == tag)
        {
            self.broker.close_replies(&ended.address);
        }
    }

    /// Ends it whatever its tag is.
    pub(super) fn end_replies(&mut self, number: u16) {
        if let Ok(channel) = self.channel(number)
            && let Some(ended) = channel.replies.take()
        {
            self.broker.close_replies(&ended.address);
        }
    }

    pub(super) fn deliver_reply(&mut self, to: ReplyTo, message: &Message) {
        let Some(Some(channel)) = self.channels.get_mut(usize::from(to.channel)) else { return };
        let Some(consumer) = channel.replies.as_ref().filter(|c| c.serial == to.serial) else { return };
        let (exchange, routing_key, properties, body) = message.parts();
        let delivery = Delivery {
            channel: to.channel,
            consumer_tag: &consumer.tag,
            delivery_tag: channel.unacked.next_tag(),
            redelivered: false,
            exchange,
            routing_key,
            properties,
            body,
        };
        self.out.write_delivery(&delivery, message, self.frame_size_bytes_max);
    }
}
