//! Channels: opening and closing, which method goes where, and how a publish is put together from its
//! method, header and body frames (AMQP 0-9-1 section 4.2.6). Sizes are checked before bytes are kept.

use std::collections::HashMap;
use std::sync::Arc;

use crate::amqp::frame;
use crate::amqp::method::Method;
use crate::amqp::properties::{ContentHeader, PERSISTENT, Properties};
use crate::amqp::reply_code::ReplyCode;
use crate::broker::credit::ChannelCredit;
use crate::broker::fault::{Fault, lossy};
use crate::broker::message::Message;

use super::confirm::Confirms;
use super::connection::Session;
use super::handshake::syntax_error;
use super::port::{Broker, Publish};
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
pub(super) struct Channel<D> {
    expect: Expect,
    content: Content,
    pub unacked: UnackedList<D>,
    /// present after confirm.select
    pub confirms: Option<Confirms>,
    pub credit: Arc<ChannelCredit>,
    /// basic.qos with global=false: for consumers that come later
    pub prefetch: u16,
    /// the queue declared last, which an empty queue name stands for
    pub last_queue: Vec<u8>,
    /// consumer tags, to the keys of the session's sources
    pub consumers: HashMap<Vec<u8>, u32>,
}

/// The publish that is being put together; its buffers are used again.
#[derive(Default)]
struct Content {
    exchange: Vec<u8>,
    routing_key: Vec<u8>,
    mandatory: bool,
    persistent: bool,
    priority: u8,
    properties: Vec<u8>,
    /// body frames before the last one
    body: Vec<u8>,
}

/// A body buffer that grew beyond this is given back instead of kept for the next publish.
const BODY_BUFFER_KEPT_BYTES: usize = 64 * 1024;

impl<D> Default for Channel<D> {
    fn default() -> Self {
        Channel {
            expect: Expect::Method,
            content: Content::default(),
            unacked: UnackedList::default(),
            confirms: None,
            credit: Arc::default(),
            prefetch: 0,
            last_queue: Vec::new(),
            consumers: HashMap::new(),
        }
    }
}

impl<B: Broker> Session<B> {
    /// The open channel of that number, or 504.
    pub(super) fn channel(&mut self, number: u16) -> Result<&mut Channel<B::Durable>, Fault> {
        match self.channels.get_mut(usize::from(number)) {
            Some(Some(channel)) => Ok(channel),
            Some(None) | None => Err(Fault::new(ReplyCode::ChannelError, "expected 'channel.open'")),
        }
    }

    pub(super) fn handle_channel_method(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        if let Method::ChannelOpen { .. } = method {
            return self.open_channel(number);
        }
        let channel = self.channel(number)?;
        match channel.expect {
            Expect::Method => {}
            Expect::CloseOk => {
                match method {
                    Method::ChannelCloseOk {} => self.forget_channel(number),
                    Method::ChannelClose { .. } => {
                        frame::write_method(&mut self.out, number, &Method::ChannelCloseOk {});
                        self.forget_channel(number);
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
            let channel = self.channel(number)?;
            // Handing over may have closed the channel.
            if channel.expect != Expect::Method {
                return Ok(());
            }
            return begin_publish(channel, exchange, routing_key, mandatory, immediate);
        }
        // Acknowledgements are gathered like publishes; everything else comes after what was gathered.
        match method {
            Method::BasicAck { delivery_tag, multiple } => return self.ack(number, delivery_tag, multiple),
            _ => self.flush(),
        }
        // Handing over may have closed the channel.
        if self.channel(number).map_or(true, |c| c.expect != Expect::Method) {
            return Ok(());
        }
        self.handle_synchronous(number, method)
    }

    fn handle_synchronous(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        match method.id().0 {
            20 => self.handle_channel_class(number, method),
            40 => self.handle_exchange_class(number, method),
            50 => self.handle_queue_class(number, method),
            60 => self.handle_basic_class(number, method),
            85 => self.handle_confirm_class(number, method),
            _ => Err(Fault::new(ReplyCode::NotImplemented, format!("{} is not implemented", method.name()))),
        }
    }

    fn handle_channel_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        match method {
            Method::ChannelClose { .. } => {
                self.release_channel(number);
                frame::write_method(&mut self.out, number, &Method::ChannelCloseOk {});
                self.forget_channel(number);
                Ok(())
            }
            Method::ChannelFlow { active: true } => {
                frame::write_method(&mut self.out, number, &Method::ChannelFlowOk { active: true });
                Ok(())
            }
            Method::ChannelFlow { active: false } => {
                Err(Fault::new(ReplyCode::NotImplemented, "active=false"))
            }
            Method::ChannelFlowOk { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn handle_confirm_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        let Method::ConfirmSelect { no_wait } = method else { return Err(unexpected(&method)) };
        self.channel(number)?.confirms.get_or_insert_default();
        if !no_wait {
            frame::write_method(&mut self.out, number, &Method::ConfirmSelectOk {});
        }
        Ok(())
    }

    fn open_channel(&mut self, number: u16) -> Result<(), Fault> {
        let limit = self.channel_max;
        if limit != 0 && number > limit {
            let open = self.channels.iter().flatten().count() + 1;
            let text = format!(
                "number of channels opened ({open}) has reached the negotiated channel_max ({limit})"
            );
            return Err(Fault::new(ReplyCode::NotAllowed, text));
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
        frame::write_method(&mut self.out, number, &Method::ChannelOpenOk { channel_id: b"" });
        Ok(())
    }

    pub(super) fn close_channel(&mut self, number: u16, fault: &Fault, (class_id, method_id): (u16, u16)) {
        self.release_channel(number);
        let text = fault.reply_text();
        let close = Method::ChannelClose {
            reply_code: fault.code().code(),
            reply_text: text.as_bytes(),
            class_id,
            method_id,
        };
        frame::write_method(&mut self.out, number, &close);
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

    pub(super) fn handle_content_header(&mut self, number: u16, payload: &[u8]) -> Result<(), Fault> {
        let max = self.settings.message_bytes_max;
        let user = std::mem::take(&mut self.user);
        let result = self.channel(number).and_then(|channel| begin_body(channel, payload, max, &user));
        self.user = user;
        // A body of no bytes has no body frame.
        if result? { self.finish_publish(number, &[]) } else { Ok(()) }
    }

    pub(super) fn handle_content_body(&mut self, number: u16, payload: &[u8]) -> Result<(), Fault> {
        let channel = self.channel(number)?;
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
        channel.content.body.extend_from_slice(payload);
        channel.expect = Expect::Body(left);
        Ok(())
    }

    fn finish_publish(&mut self, number: u16, last: &[u8]) -> Result<(), Fault> {
        let channel = self.channel(number)?;
        let content = &mut channel.content;
        let publish = Publish {
            channel: number,
            mandatory: content.mandatory,
            persistent: content.persistent,
            priority: content.priority,
            message: Message::new(
                &content.exchange,
                &content.routing_key,
                &content.properties,
                &[&content.body, last],
            ),
        };
        content.body.clear();
        if content.body.capacity() > BODY_BUFFER_KEPT_BYTES {
            content.body = Vec::new();
        }
        channel.expect = Expect::Method;
        self.enqueue(publish);
        Ok(())
    }

    /// Gives back what a channel holds of queues: its consumers, what waits for them, and what they
    /// have not acknowledged.
    pub(super) fn release_channel(&mut self, number: u16) {
        let Ok(channel) = self.channel(number) else { return };
        let unacked = channel.unacked.take_up_to(0).unwrap_or_default();
        let consumers: Vec<u32> = channel.consumers.drain().map(|(_, key)| key).collect();
        self.flush_settled();
        for key in consumers {
            self.cancel_source(key);
        }
        self.give_back(unacked);
    }
}

fn begin_publish<D>(
    channel: &mut Channel<D>,
    exchange: &[u8],
    routing_key: &[u8],
    mandatory: bool,
    immediate: bool,
) -> Result<(), Fault> {
    if immediate {
        return Err(Fault::new(ReplyCode::NotImplemented, "immediate=true"));
    }
    let content = &mut channel.content;
    content.exchange.clear();
    content.exchange.extend_from_slice(exchange);
    content.routing_key.clear();
    content.routing_key.extend_from_slice(routing_key);
    content.mandatory = mandatory;
    channel.expect = Expect::Header;
    Ok(())
}

/// Takes the content header; true when no body frame follows.
fn begin_body<D>(channel: &mut Channel<D>, payload: &[u8], max: u64, user: &[u8]) -> Result<bool, Fault> {
    match channel.expect {
        Expect::Header => {}
        Expect::CloseOk => return Ok(false),
        Expect::Method => return Err(expected_method()),
        Expect::Body(_) => {
            let text = "expected content body, got non content body frame instead";
            return Err(Fault::new(ReplyCode::UnexpectedFrame, text));
        }
    }
    let header = ContentHeader::decode(payload).map_err(syntax_error)?;
    if header.class_id != 60 {
        let text =
            format!("expected content header for class 60, got one for class {} instead", header.class_id);
        return Err(Fault::new(ReplyCode::UnexpectedFrame, text));
    }
    if header.body_size > max {
        let text = format!("message size {} is larger than configured max size {max}", header.body_size);
        return Err(Fault::new(ReplyCode::PreconditionFailed, text));
    }
    let properties = Properties::decode(header.properties).map_err(syntax_error)?;
    if let Some(claimed) = properties.user_id
        && claimed != user
    {
        let text = format!(
            "user_id property set to '{}' but authenticated user was '{}'",
            lossy(claimed),
            lossy(user)
        );
        return Err(Fault::new(ReplyCode::PreconditionFailed, text));
    }
    let content = &mut channel.content;
    content.persistent = properties.delivery_mode == Some(PERSISTENT);
    content.priority = properties.priority.unwrap_or(0);
    content.properties.clear();
    content.properties.extend_from_slice(header.properties);
    channel.expect = Expect::Body(header.body_size);
    Ok(header.body_size == 0)
}

fn expected_method() -> Fault {
    Fault::new(ReplyCode::UnexpectedFrame, "expected method frame, got non method frame instead")
}

/// 503 for a method that a client does not send, or not here.
pub(super) fn unexpected(method: &Method<'_>) -> Fault {
    Fault::new(ReplyCode::CommandInvalid, format!("'{}' is not expected here", method.name()))
}
