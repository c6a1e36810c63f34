//! The session itself: which phase it is in, how frames reach their channel, how faults become close
//! methods, and when work that was gathered is handed to the broker.

use std::collections::VecDeque;

use slab::Slab;

use crate::amqp::frame::{self, Frame, Kind};
use crate::amqp::method::Method;
use crate::amqp::reader::DecodeError;
use crate::amqp::reply_code::{ReplyCode, Scope};
use crate::broker::fault::Fault;
use crate::broker::queue::{ConsumerId, Entry};

use super::basic::LateGet;
use super::channel::ChannelOf;
use super::handshake::{Capabilities, Peer, Settings};
use super::output::Output;
use super::port::{Barrier, Broker, Login, Waiting};
use super::publish::{PUBLISH_ID, Publishing};
use super::timeouts::{Deadlines, Timeout};

/// Where a connection stands. Only `Running` has channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// waiting for the protocol header
    Header,
    /// waiting for connection.start-ok
    StartOk,
    /// waiting for the check of the login
    Login,
    /// waiting for connection.tune-ok
    TuneOk,
    /// waiting for connection.open
    Open,
    /// open
    Running,
    /// a close was sent or answered; the other side's answer or the end of the socket comes next, and
    /// everything else is discarded
    Closing,
    /// nothing more to say; the socket may go once the output is flushed
    Closed,
}

/// A consumer, or basic.get on one queue: where deliveries of this session come from.
pub(super) struct Source<Q> {
    pub channel: u16,
    /// empty for basic.get
    pub tag: Vec<u8>,
    pub queue: Q,
    /// `None` for basic.get
    pub consumer: Option<ConsumerId>,
    pub no_ack: bool,
    /// how long its deliveries may wait for their acknowledgement
    pub timeout: Option<Timeout>,
    /// deliveries that wait for their acknowledgement; the slot stays while there are any
    pub outstanding: usize,
    /// acknowledgements are not gathered: publishes behind them depend on them
    pub settles_in_order: bool,
    /// the consumer is gone
    pub cancelled: bool,
}

/// A reply that waits until what it promises is kept. Nothing further of this connection is looked
/// at until then, so replies cannot change their order.
struct Held {
    barrier: Barrier,
    reply: Vec<u8>,
}

/// One client's conversation. See the module for the calling order.
pub struct Session<B: Broker> {
    pub(super) broker: B,
    pub(super) settings: Settings,
    pub(super) peer: Peer,
    pub(super) phase: Phase,
    pub(super) out: Output,
    pub(super) login: Option<Login>,
    pub(super) login_mechanism: &'static str,
    pub(super) user: Vec<u8>,
    /// the property `user_id` may name somebody else
    pub(super) may_impersonate: bool,
    pub(super) client_name: Option<String>,
    pub(super) capabilities: Capabilities,
    pub(super) bad_header: Option<&'static str>,
    pub(super) frame_size_bytes_max: u32,
    pub(super) channel_max: u16,
    pub(super) heartbeat_seconds: u16,
    pub(super) channels: Vec<Option<Box<ChannelOf<B>>>>,
    pub(super) sources: Slab<Source<B::Queue>>,
    pub(super) waiting: VecDeque<Waiting<B::Durable>>,
    pub(super) publishing: Publishing,
    /// acknowledged entries, all of `settled_source`
    pub(super) settled: Vec<Entry<B::Durable>>,
    pub(super) settled_source: u32,
    /// channels with publishes that wait for their confirm
    pub(super) confirming: Vec<u16>,
    /// bytes of bodies that were begun and not finished, of all channels
    pub(super) assembled_bytes: usize,
    /// consumers may go on that a channel's common limit has stopped
    pub(super) resume_due: bool,
    /// consumers of replies so far
    pub(super) reply_serial: u32,
    pub(super) deadlines: Deadlines,
    held: Option<Held>,
    pub(super) late_get: Option<LateGet>,
    pub(super) alarm: Option<&'static str>,
    pub(super) blocked: bool,
    /// frames were lost sight of: whatever comes is thrown away until the peer has read our close
    is_deaf: bool,
    close_reason: Option<String>,
}

impl<B: Broker> Session<B> {
    /// A session at its first byte.
    pub fn new(broker: B, settings: Settings, peer: Peer) -> Session<B> {
        Session {
            frame_size_bytes_max: settings.initial_frame_size_bytes_max,
            channel_max: settings.channel_max,
            heartbeat_seconds: settings.heartbeat_seconds,
            broker,
            settings,
            peer,
            phase: Phase::Header,
            out: Output::default(),
            login: None,
            login_mechanism: "",
            user: Vec::new(),
            may_impersonate: false,
            client_name: None,
            capabilities: Capabilities::default(),
            bad_header: None,
            channels: Vec::new(),
            sources: Slab::new(),
            waiting: VecDeque::new(),
            publishing: Publishing::default(),
            settled: Vec::new(),
            settled_source: 0,
            confirming: Vec::new(),
            assembled_bytes: 0,
            resume_due: false,
            reply_serial: 0,
            deadlines: Deadlines::default(),
            held: None,
            late_get: None,
            alarm: None,
            blocked: false,
            is_deaf: false,
            close_reason: None,
        }
    }

    // ---- in

    /// Reads as many whole frames as `bytes` holds; returns how many bytes were used up. Stops early
    /// while [`Session::is_paused`], and when the output holds `output_bytes_max`: a peer that asks
    /// and does not read what it is answered must not fill the memory.
    pub fn handle_bytes(&mut self, bytes: &[u8], output_bytes_max: usize) -> usize {
        if self.is_deaf {
            return bytes.len();
        }
        let mut at = 0;
        while !self.is_paused() && at < bytes.len() && self.out.len() < output_bytes_max {
            let rest = bytes.get(at..).unwrap_or_default();
            if self.phase == Phase::Header {
                let Some(used) = self.handle_header(rest) else { break };
                at += used;
                continue;
            }
            match frame::parse(rest, self.frame_size_bytes_max) {
                Ok(Some((frame, used))) => {
                    at += used;
                    self.handle_frame(frame);
                }
                Ok(None) => break,
                Err(error) => {
                    let fault = Fault::in_numbers(ReplyCode::FrameError, error.to_string());
                    self.close_connection(&fault, (0, 0));
                    // What follows cannot be told apart into frames any more. It is read all the same:
                    // closing the socket on a peer that still sends would take our close from it.
                    self.is_deaf = true;
                    at = bytes.len();
                }
            }
        }
        self.flush();
        at
    }

    /// Promises may be kept up to a further place of the commit order, or the store has failed.
    pub fn handle_kept(&mut self) {
        if self.broker.has_failed() {
            self.close_connection(&Fault::store_failed(), (0, 0));
            return;
        }
        let kept = self.broker.kept();
        if self.held.as_ref().is_some_and(|held| held.barrier <= kept)
            && let Some(held) = self.held.take()
        {
            self.out.frames.extend_from_slice(&held.reply);
        }
        self.confirm_due(kept);
        self.retry_get();
    }

    /// An alarm was raised (its reason) or all are over. Publishers are blocked at their next publish.
    pub fn handle_alarm(&mut self, alarm: Option<&'static str>) {
        self.alarm = alarm;
        if alarm.is_none() && self.blocked {
            self.blocked = false;
            if self.capabilities.connection_blocked && self.phase == Phase::Running {
                frame::write_method(&mut self.out.frames, 0, &Method::ConnectionUnblocked {});
            }
        }
    }

    /// The broker stops: connection.close 320 with RabbitMQ's text.
    pub fn shut_down(&mut self) {
        match self.phase {
            Phase::Running => {
                let text = "broker forced connection closure with reason 'shutdown'";
                self.close_connection(&Fault::new(ReplyCode::ConnectionForced, text), (0, 0));
            }
            Phase::Closing | Phase::Closed => {}
            Phase::Header | Phase::StartOk | Phase::Login | Phase::TuneOk | Phase::Open => {
                self.phase = Phase::Closed;
            }
        }
    }

    /// Writes a heartbeat frame.
    pub fn heartbeat(&mut self) {
        if self.phase == Phase::Running {
            frame::write_heartbeat(&mut self.out.frames);
        }
    }

    // ---- out

    /// What is to go to the peer; the caller takes from the front what it has sent.
    pub fn output(&mut self) -> &mut Output {
        &mut self.out
    }

    /// A login to check, once; answer with [`Session::handle_login`].
    pub fn take_login(&mut self) -> Option<Login> {
        self.login.take()
    }

    /// Whether a reply waits for a commit, or for its message.
    pub(super) fn is_holding_a_reply(&self) -> bool {
        self.held.is_some() || self.late_get.is_some()
    }

    /// Whether further input must wait: for a commit, a login, a late basic.get, or the end of an alarm.
    pub fn is_paused(&self) -> bool {
        self.is_holding_a_reply() || self.blocked || matches!(self.phase, Phase::Login | Phase::Closed)
    }

    /// Whether the socket may be closed once the output is flushed.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether close-ok is awaited.
    pub fn is_closing(&self) -> bool {
        self.phase == Phase::Closing
    }

    /// Whether connection.open-ok was sent.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Running
    }

    /// The largest frame the peer may send now, in bytes.
    pub fn frame_size_bytes_max(&self) -> u32 {
        self.frame_size_bytes_max
    }

    /// The negotiated heartbeat interval in seconds; 0 is none.
    pub fn heartbeat_seconds(&self) -> u16 {
        self.heartbeat_seconds
    }

    /// The user who logged in, or tried to.
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// What the client calls its connection.
    pub fn client_name(&self) -> Option<&str> {
        self.client_name.as_deref()
    }

    /// What came in place of the protocol header, when that ended the connection.
    pub fn bad_header(&self) -> Option<&'static str> {
        self.bad_header
    }

    /// Why we sent a connection.close, in words that may be logged.
    pub fn close_reason(&self) -> Option<&str> {
        self.close_reason.as_deref()
    }

    /// The broker's side.
    pub fn broker(&mut self) -> &mut B {
        &mut self.broker
    }

    // ---- frames

    fn handle_frame(&mut self, frame: Frame<'_>) {
        if self.phase == Phase::Closing {
            self.handle_while_closing(frame);
            return;
        }
        if let Err(fault) = self.dispatch(frame) {
            let id = match frame.kind {
                // What breaks into a publish is a fault of the publish, as RabbitMQ has it.
                _ if self.is_in_content(frame.channel) => PUBLISH_ID,
                Kind::Method => frame.payload.first_chunk::<4>().map_or((0, 0), method_id),
                Kind::Header | Kind::Body | Kind::Heartbeat => (0, 0),
            };
            self.handle_fault(frame.channel, &fault, id);
        }
    }

    fn dispatch(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        match (frame.kind, frame.channel) {
            (Kind::Heartbeat, 0) if frame.payload.is_empty() => Ok(()),
            (Kind::Heartbeat, 0) => Err(Fault::new(ReplyCode::FrameError, "a heartbeat with a payload")),
            (Kind::Heartbeat, _) => {
                Err(Fault::new(ReplyCode::UnexpectedFrame, "heartbeat on a channel other than 0"))
            }
            (Kind::Method, 0) => {
                let method = Method::decode(frame.payload).map_err(undecodable)?;
                self.flush();
                match self.phase {
                    Phase::Running => self.handle_connection_method(method),
                    _ => self.handle_handshake_method(method),
                }
            }
            (_, _) if self.phase != Phase::Running => {
                let text = "no channel may be used before connection.open";
                Err(Fault::new(ReplyCode::UnexpectedFrame, text))
            }
            (Kind::Header | Kind::Body, 0) => {
                Err(Fault::new(ReplyCode::UnexpectedFrame, "content on channel 0"))
            }
            (Kind::Method, channel) => {
                let method = Method::decode(frame.payload).map_err(undecodable)?;
                self.handle_channel_method(channel, method)
            }
            (Kind::Header, channel) => self.handle_content_header(channel, frame.payload),
            (Kind::Body, channel) => self.handle_content_body(channel, frame.payload),
        }
    }

    fn handle_connection_method(&mut self, method: Method<'_>) -> Result<(), Fault> {
        match method {
            Method::ConnectionClose { .. } => {
                self.release_everything();
                frame::write_method(&mut self.out.frames, 0, &Method::ConnectionCloseOk {});
                // The client closes the socket. Until then its other threads may say goodbye as well
                // (amqp091-go's do), and each is answered.
                self.phase = Phase::Closing;
                Ok(())
            }
            // Only a backend with tokens has something to renew; RabbitMQ's own takes any secret for an
            // answer, too. The password counts at the next login.
            Method::ConnectionUpdateSecret { .. } => {
                frame::write_method(&mut self.out.frames, 0, &Method::ConnectionUpdateSecretOk {});
                Ok(())
            }
            _ => Err(unexpected_in_state("running")),
        }
    }

    fn handle_while_closing(&mut self, frame: Frame<'_>) {
        if frame.kind != Kind::Method || frame.channel != 0 {
            return;
        }
        match Method::decode(frame.payload) {
            Ok(Method::ConnectionCloseOk {}) => self.phase = Phase::Closed,
            Ok(Method::ConnectionClose { .. }) => {
                frame::write_method(&mut self.out.frames, 0, &Method::ConnectionCloseOk {});
            }
            Ok(_) | Err(_) => {}
        }
    }

    // ---- faults and closing

    pub(super) fn handle_fault(&mut self, channel: u16, fault: &Fault, method: (u16, u16)) {
        // What came before counts still; if it was a fault itself, that one is told and not this.
        self.flush();
        match fault.scope() {
            Scope::Channel if channel != 0 => self.close_channel(channel, fault, method),
            Scope::Channel | Scope::Connection => self.close_connection(fault, method),
        }
    }

    pub(super) fn close_connection(&mut self, fault: &Fault, (class_id, method_id): (u16, u16)) {
        if matches!(self.phase, Phase::Closing | Phase::Closed) {
            return;
        }
        let text = fault.reply_text();
        // Before start-ok the peer has shown nothing that could read a method.
        let can_read = !matches!(self.phase, Phase::Header | Phase::StartOk);
        self.release_everything();
        // Handing over what was gathered may have been a fault itself, and closed us already.
        if self.phase == Phase::Closing {
            return;
        }
        let close = Method::ConnectionClose {
            reply_code: fault.code().code(),
            reply_text: text.as_bytes(),
            class_id,
            method_id,
        };
        if can_read {
            frame::write_method(&mut self.out.frames, 0, &close);
        }
        self.phase = if can_read { Phase::Closing } else { Phase::Closed };
        self.close_reason = Some(fault.log_text());
    }

    /// Gives back what the session holds of queues: at a close from either side, or when the socket
    /// is gone. What was published and acknowledged before stays so.
    pub fn release_everything(&mut self) {
        self.flush();
        let open = self.channels.iter().enumerate().filter(|(_, channel)| channel.is_some());
        let open: Vec<u16> = open.map(|(number, _)| number as u16).collect();
        self.release_channels(open);
        self.channels.clear();
        self.confirming.clear();
        self.held = None;
        self.blocked = false;
        // RabbitMQ, too, takes exclusive queues away before its goodbye: who connects next may use
        // their names.
        self.broker.leave();
    }

    // ---- the broker

    /// Hands everything that was gathered to the broker: publishes first, so that a reply is stored
    /// before the request that it answers is acknowledged.
    pub(super) fn flush(&mut self) {
        self.flush_publishes();
        self.flush_settled();
        self.resume_if_due();
        if !self.confirming.is_empty() {
            let kept = self.broker.kept();
            self.confirm_due(kept);
        }
    }

    /// Writes a reply once `barrier` is reached; until then the session is paused.
    pub(super) fn reply_at(&mut self, barrier: Barrier, channel: u16, reply: Option<&Method<'_>>) {
        let Some(reply) = reply else { return };
        if barrier <= self.broker.kept() {
            frame::write_method(&mut self.out.frames, channel, reply);
        } else {
            let mut bytes = Vec::new();
            frame::write_method(&mut bytes, channel, reply);
            self.held = Some(Held { barrier, reply: bytes });
        }
    }
}

fn method_id(bytes: &[u8; 4]) -> (u16, u16) {
    let [a, b, c, d] = *bytes;
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

fn undecodable(error: DecodeError) -> Fault {
    match error {
        DecodeError::UnknownMethod(..) => Fault::in_numbers(ReplyCode::NotImplemented, error.to_string()),
        _ => Fault::in_numbers(ReplyCode::FrameError, format!("cannot decode the method: {error}")),
    }
}

/// 504, in RabbitMQ's words, for a method that channel 0 does not take now.
pub(super) fn unexpected_in_state(state: &str) -> Fault {
    Fault::in_numbers(ReplyCode::ChannelError, format!("unexpected method in connection state {state}"))
}

impl<B: Broker> Drop for Session<B> {
    /// However a connection ends, queues get back what it held.
    fn drop(&mut self) {
        self.release_everything();
    }
}
