//! Channels: opening and closing, which method goes where, and which frame of a publish is due (AMQP 0-9-1 section
//! 4.2.6). Sizes are checked before bytes are kept.

use std::collections::HashMap;
use std::sync::Arc;

use crate::amqp::frame;
use crate::amqp::method::Method;
use crate::amqp::properties::ContentHeader;
use crate::amqp::reply_code::{ReplyCode, Scope};
use crate::broker::credit::ChannelCredit;
use crate::broker::fault::Fault;
use crate::limits::ASSEMBLED_BYTES_MAX;

use super::confirm::Confirms;
use super::connection::Session;
use super::content::Content;
use super::port::Broker;
use super::publish::PUBLISH_ID;
use super::replies::ReplyConsumer;
use super::transaction::Transaction;
use super::unacked::UnackedList;

/// What a channel waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// a method
    Method,
    /// the content header of a publish
    Header,
    /// so many more bytes of its body
    Body(u64),
    /// channel.close-ok; everything else is discarded
    CloseOk,
}

/// One open channel.
pub(super) struct Channel<Q, D> {
    expect: Expect,
    content: Content,
    pub unacked: UnackedList<D>,
    /// present after confirm.select
    pub confirms: Option<Confirms>,
    /// present after tx.select
    pub transaction: Option<Transaction<Q, D>>,
    pub credit: Arc<ChannelCredit>,
    /// basic.qos with global=false: for consumers that come later
    pub prefetch: u16,
    /// the queue declared last, which an empty queue name stands for
    pub last_queue: Vec<u8>,
    /// consumer tags, to the keys of the session's sources
    pub consumers: HashMap<Vec<u8>, u32>,
    /// takes replies (direct reply-to)
    pub replies: Option<Box<ReplyConsumer>>,
}

/// A session's channel.
pub(super) type ChannelOf<B> = Channel<<B as Broker>::Queue, <B as Broker>::Durable>;

impl<Q, D> Default for Channel<Q, D> {
    fn default() -> Self {
        Channel {
            expect: Expect::Method,
            content: Content::default(),
            unacked: UnackedList::default(),
            confirms: None,
            transaction: None,
            credit: Arc::default(),
            prefetch: 0,
            last_queue: Vec::new(),
            consumers: HashMap::new(),
            replies: None,
        }
    }
}

impl<Q, D> Channel<Q, D> {
    /// Forgets the body that is being put together, if there is one; how many bytes it held.
    pub fn drop_content(&mut self) -> usize {
        self.expect = Expect::Method;
        // Kept for the next publish, thousands of channels would hold a buffer each.
        self.content.drop_body()
    }
}

impl<B: Broker> Session<B> {
    /// The open channel of that number, or 504.
    pub(super) fn channel(&mut self, number: u16) -> Result<&mut ChannelOf<B>, Fault> {
        match self.channels.get_mut(usize::from(number)) {
            Some(Some(channel)) => Ok(channel),
            Some(None) | None => Err(Fault::new(ReplyCode::ChannelError, "expected 'channel.open'")),
        }
    }

    pub(super) fn handle_channel_method(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        // Acknowledgements are gathered like publishes; everything else comes after what was gathered,
        // and that may close the channel or the connection.
        if !matches!(method, Method::BasicPublish { .. } | Method::BasicAck { .. }) {
            self.flush();
            if !self.is_open() {
                return Ok(());
            }
        }
        if let Method::ChannelOpen { .. } = method {
            return self.open_channel(number);
        }
        let channel = self.channel(number)?;
        match channel.expect {
            Expect::Method => {}
            Expect::CloseOk => {
                match method {
                    Method::ChannelCloseOk {} => self.forget_channel(number),
                    // Both sides closed at once: ours is still to be answered.
                    Method::ChannelClose { .. } => {
                        frame::write_method(&mut self.out.frames, number, &Method::ChannelCloseOk {});
                    }
                    _ => {}
                }
                return Ok(());
            }
            Expect::Header => {
                let text = "expected content header for class 60, got non content header frame instead";
                return Err(Fault::new(ReplyCode::UnexpectedFrame, text));
            }
            Expect::Body(_) => {
                let text = "expected content body, got non content body frame instead";
                return Err(Fault::new(ReplyCode::UnexpectedFrame, text));
            }
        }
        if let Method::BasicPublish { exchange, routing_key, mandatory, immediate, .. } = method {
            // A confirm tells that what the client did before is durable too, so what it acknowledged goes
            // ahead. Without confirms nobody can tell, and larger batches are worth more.
            if channel.confirms.is_some() && !self.settled.is_empty() {
                self.flush();
            }
            let route = self.publishing.last_route.number_of(exchange, routing_key);
            let channel = self.channel(number)?;
            // Handing over may have closed the channel.
            if channel.expect != Expect::Method {
                return Ok(());
            }
            if immediate {
                return Err(Fault::new(ReplyCode::NotImplemented, "immediate=true"));
            }
            channel.content.begin(route, exchange, routing_key, mandatory);
            channel.expect = Expect::Header;
            self.block_if_alarmed();
            return Ok(());
        }
        if let Method::BasicAck { delivery_tag, multiple } = method {
            return self.ack(number, delivery_tag, multiple);
        }
        self.handle_synchronous(number, method)
    }

    fn handle_synchronous(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        match method.id().0 {
            20 => self.handle_channel_class(number, method),
            30 => self.handle_access_class(number, method),
            40 => self.handle_exchange_class(number, method),
            50 => self.handle_queue_class(number, method),
            60 => self.handle_basic_class(number, method),
            85 => self.handle_confirm_class(number, method),
            90 => self.handle_tx_class(number, method),
            _ => Err(unexpected()),
        }
    }

    fn handle_channel_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        match method {
            Method::ChannelClose { .. } => {
                self.release_channels([number]);
                frame::write_method(&mut self.out.frames, number, &Method::ChannelCloseOk {});
                self.forget_channel(number);
                Ok(())
            }
            Method::ChannelFlow { active: true } => {
                frame::write_method(&mut self.out.frames, number, &Method::ChannelFlowOk { active: true });
                Ok(())
            }
            Method::ChannelFlow { active: false } => {
                Err(Fault::new(ReplyCode::NotImplemented, "active=false"))
            }
            _ => Err(unexpected()),
        }
    }

    /// Tickets are AMQP 0-8's; clients that still ask get 1, as from RabbitMQ, and nothing checks it.
    fn handle_access_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        let Method::AccessRequest { .. } = method else { return Err(unexpected()) };
        frame::write_method(&mut self.out.frames, number, &Method::AccessRequestOk { ticket: 1 });
        Ok(())
    }

    fn handle_confirm_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        let Method::ConfirmSelect { no_wait } = method else { return Err(unexpected()) };
        let channel = self.channel(number)?;
        if channel.transaction.is_some() {
            let text = "cannot switch from tx to confirm mode";
            return Err(Fault::new(ReplyCode::PreconditionFailed, text));
        }
        channel.confirms.get_or_insert_default();
        if !no_wait {
            frame::write_method(&mut self.out.frames, number, &Method::ConfirmSelectOk {});
        }
        Ok(())
    }

    fn open_channel(&mut self, number: u16) -> Result<(), Fault> {
        let limit = self.channel_max;
        if limit != 0 && number > limit {
            let open = self.channels.iter().flatten().count();
            let text = format!(
                "number of channels opened ({open}) has reached the negotiated channel_max ({limit})"
            );
            return Err(Fault::in_numbers(ReplyCode::NotAllowed, text));
        }
        let index = usize::from(number);
        if self.channels.len() <= index {
            self.channels.resize_with(index + 1, || None);
        }
        match self.channels.get_mut(index) {
            Some(slot @ None) => *slot = Some(Box::default()),
            // Still closing: RabbitMQ too insists on close-ok first.
            Some(Some(_)) | None => {
                return Err(Fault::new(ReplyCode::ChannelError, "second 'channel.open' seen"));
            }
        }
        frame::write_method(&mut self.out.frames, number, &Method::ChannelOpenOk { channel_id: b"" });
        Ok(())
    }

    /// Closes a channel from this side, unless that has been done.
    pub(super) fn close_channel(&mut self, number: u16, fault: &Fault, (class_id, method_id): (u16, u16)) {
        if self.channel(number).map_or(true, |channel| channel.expect == Expect::CloseOk) {
            return;
        }
        self.release_channels([number]);
        let text = fault.reply_text();
        let close = Method::ChannelClose {
            reply_code: fault.code().code(),
            reply_text: text.as_bytes(),
            class_id,
            method_id,
        };
        frame::write_method(&mut self.out.frames, number, &close);
        if let Ok(channel) = self.channel(number) {
            *channel = Channel::default();
            channel.expect = Expect::CloseOk;
        }
    }

    fn forget_channel(&mut self, number: u16) {
        self.confirming.retain(|other| *other != number);
        if let Some(slot) = self.channels.get_mut(usize::from(number)) {
            *slot = None;
        }
    }

    /// Whether a publish has begun on that channel and is not whole yet.
    pub(super) fn is_in_content(&self, number: u16) -> bool {
        let Some(Some(channel)) = self.channels.get(usize::from(number)) else { return false };
        matches!(channel.expect, Expect::Header | Expect::Body(_))
    }

    pub(super) fn handle_content_header(&mut self, number: u16, payload: &[u8]) -> Result<(), Fault> {
        let max = self.settings.message_bytes_max;
        let user = std::mem::take(&mut self.user);
        let claimable = (!self.may_impersonate).then_some(user.as_slice());
        let result = self.channel_in_content(number).and_then(|ch| begin_body(ch, payload, max, claimable));
        self.user = user;
        if let Err(fault) = &result
            && fault.scope() == Scope::Channel
        {
            // RabbitMQ looks at the exchange before the properties, and of two faults the first is told.
            let exchange = self.channel(number)?.content.take_exchange();
            self.broker.check_exchange(&exchange)?;
        }
        // A body of no bytes has no body frame.
        if result? { self.finish_publish(number, &[]) } else { Ok(()) }
    }

    /// The channel that content came on; where none is open a method was due, not content.
    fn channel_in_content(&mut self, number: u16) -> Result<&mut ChannelOf<B>, Fault> {
        self.channel(number).map_err(|_| expected_method())
    }

    pub(super) fn handle_content_body(&mut self, number: u16, payload: &[u8]) -> Result<(), Fault> {
        let channel = self.channel_in_content(number)?;
        let left = match channel.expect {
            Expect::Body(left) => left,
            Expect::CloseOk => return Ok(()),
            Expect::Method => return Err(expected_method()),
            Expect::Header => {
                let text = "expected content header for class 60, got non content header frame instead";
                return Err(Fault::new(ReplyCode::UnexpectedFrame, text));
            }
        };
        let left = left.checked_sub(payload.len() as u64).ok_or_else(|| {
            Fault::new(ReplyCode::FrameError, "the body is longer than its content header says")
        })?;
        if left == 0 {
            return self.finish_publish(number, payload);
        }
        channel.content.add_to_body(payload);
        channel.expect = Expect::Body(left);
        self.assembled_bytes += payload.len();
        let max = ASSEMBLED_BYTES_MAX.max(self.settings.message_bytes_max as usize);
        if self.assembled_bytes > max {
            let text = format!("unfinished messages of all channels take more than {max} bytes");
            return Err(Fault::new(ReplyCode::ResourceError, text));
        }
        Ok(())
    }

    fn finish_publish(&mut self, number: u16, last: &[u8]) -> Result<(), Fault> {
        let channel = self.channel(number)?;
        let publish = channel.content.publish(number, last);
        let assembled = channel.drop_content();
        let within_transaction = channel.transaction.is_some();
        self.assembled_bytes -= assembled;
        if !within_transaction {
            self.enqueue(publish);
            return Ok(());
        }
        let planned = self.broker.plan(publish);
        let gathered = planned.and_then(|planned| match &mut self.channel(number)?.transaction {
            Some(transaction) => transaction.publish(planned),
            None => Ok(()),
        });
        if let Err(fault) = gathered {
            // The content is whole by now, so it has to be said what it was the content of.
            self.handle_fault(number, &fault, PUBLISH_ID);
        }
        Ok(())
    }
}

/// Takes the content header; true when no body frame follows.
fn begin_body<Q, D>(
    ch: &mut Channel<Q, D>,
    payload: &[u8],
    max: u64,
    user: Option<&[u8]>,
) -> Result<bool, Fault> {
    match ch.expect {
        Expect::Header => {}
        Expect::CloseOk => return Ok(false),
        Expect::Method => return Err(expected_method()),
        Expect::Body(_) => {
            let text = "expected content body, got non content body frame instead";
            return Err(Fault::new(ReplyCode::UnexpectedFrame, text));
        }
    }
    let header = ContentHeader::decode(payload).map_err(|e| {
        Fault::in_numbers(ReplyCode::FrameError, format!("cannot decode the content header: {e}"))
    })?;
    if header.weight != 0 {
        return Err(Fault::new(ReplyCode::UnexpectedFrame, "the weight of a content header must be 0"));
    }
    if header.class_id != 60 {
        let text =
            format!("expected content header for class 60, got one for class {} instead", header.class_id);
        return Err(Fault::in_numbers(ReplyCode::UnexpectedFrame, text));
    }
    if header.body_size > max {
        let text = format!("message size {} is larger than configured max size {max}", header.body_size);
        return Err(Fault::new(ReplyCode::PreconditionFailed, text));
    }
    let replies = ch.replies.as_ref().map(|consumer| consumer.address.as_slice());
    ch.content.take_properties(header.properties, replies, user)?;
    ch.expect = Expect::Body(header.body_size);
    Ok(header.body_size == 0)
}

fn expected_method() -> Fault {
    Fault::new(ReplyCode::UnexpectedFrame, "expected method frame, got non method frame instead")
}

/// 503, in RabbitMQ's words, for a method that a client does not send, or not on a channel.
pub(super) fn unexpected() -> Fault {
    Fault::new(ReplyCode::CommandInvalid, "unimplemented method")
}
