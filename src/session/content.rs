//! A publish that is being put together from its method, header and body frames (AMQP 0-9-1 section 4.2.6). Which
//! frame is due is the channel's to know.

use crate::amqp::field_table::Array;
use crate::amqp::properties::Properties;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::{Fault, lossy};
use crate::broker::message::{Copies, Message};
use crate::broker::name::REPLY_TO;
use crate::broker::routing_keys::{CopyHeaders, encode_without_blind_copies};

use super::handshake::syntax_error;
use super::port::{Publish, RouteNumber};

/// One channel's publish; its short buffers are used again.
#[derive(Default)]
pub(super) struct Content {
    /// what `exchange` and `routing_key` are, once there was a publish
    route: Option<RouteNumber>,
    exchange: Vec<u8>,
    routing_key: Vec<u8>,
    mandatory: bool,
    properties: Vec<u8>,
    /// the properties are as the publisher sent them: the next publish with the same ones is the same in all that
    /// follows here, the body apart
    is_as_sent: bool,
    persistent: bool,
    priority: u8,
    expiration_ms: Option<u64>,
    /// whether it has a header CC
    copied: bool,
    /// the keys of its header BCC, which is not among its properties
    blind: Vec<u8>,
    /// body frames before the last one
    body: Vec<u8>,
}

impl Content {
    /// Takes basic.publish.
    pub fn begin(&mut self, route: RouteNumber, exchange: &[u8], routing_key: &[u8], mandatory: bool) {
        if self.route != Some(route) {
            replace(&mut self.exchange, exchange);
            replace(&mut self.routing_key, routing_key);
            self.route = Some(route);
        }
        self.mandatory = mandatory;
    }

    /// The exchange of a publish that comes to nothing.
    pub fn take_exchange(&mut self) -> Vec<u8> {
        self.route = None;
        std::mem::take(&mut self.exchange)
    }

    /// Takes the content header's properties. `replies` is the address that stands for the channel's consumer of
    /// replies; `user` is the only one whom the property `user_id` may name, without it, it may name anybody.
    pub fn take_properties(
        &mut self,
        sent: &[u8],
        replies: Option<&[u8]>,
        user: Option<&[u8]>,
    ) -> Result<(), Fault> {
        // Most publishers send the same ones all the time.
        if self.is_as_sent && self.properties == sent {
            return Ok(());
        }
        self.is_as_sent = false;
        let properties = Properties::decode(sent).map_err(syntax_error)?;
        // A table that nobody can read would stop every consumer that it is delivered to.
        let mut copies = CopyHeaders::default();
        let headers = properties.headers.unwrap_or_default();
        headers.validate_seeing(|name, value| copies.see(name, value)).map_err(syntax_error)?;
        let (open, blind) = copies.check()?;
        let reply_to = match (properties.reply_to, replies) {
            (Some(REPLY_TO), Some(address)) => Some(address),
            (Some(REPLY_TO), None) => {
                let text = "fast reply consumer does not exist";
                return Err(Fault::new(ReplyCode::PreconditionFailed, text));
            }
            (_, _) => None,
        };
        check_user_id(&properties, user)?;
        self.expiration_ms = properties.expiration.map(expiration).transpose()?;
        self.persistent = properties.is_persistent();
        self.priority = properties.priority.unwrap_or(0);
        self.copied = open.is_some();
        self.blind.clear();
        self.properties.clear();
        let changed = || Properties { reply_to: reply_to.or(properties.reply_to), ..properties };
        match (reply_to, blind) {
            (None, None) => {
                self.properties.extend_from_slice(sent);
                self.is_as_sent = true;
            }
            (Some(_), None) => changed().encode(&mut self.properties),
            (_, Some(keys)) => {
                self.blind.extend_from_slice(keys.raw());
                encode_without_blind_copies(&changed(), &mut self.properties);
            }
        }
        Ok(())
    }

    /// Takes a body frame that is not the last one.
    pub fn add_to_body(&mut self, piece: &[u8]) {
        self.body.extend_from_slice(piece);
    }

    /// Forgets the body; how many bytes it held.
    pub fn drop_body(&mut self) -> usize {
        // Kept for the next publish, thousands of channels would hold a buffer each.
        std::mem::take(&mut self.body).len()
    }

    /// The whole publish; `last` is its last body frame.
    pub fn publish(&self, channel: u16, last: &[u8]) -> Publish {
        let copies = Copies { open: self.copied, blind: Array::from_raw(&self.blind) };
        Publish {
            channel,
            route: self.route.unwrap_or_default(),
            has_copies: self.copied || !self.blind.is_empty(),
            mandatory: self.mandatory,
            persistent: self.persistent,
            priority: self.priority,
            expiration_ms: self.expiration_ms,
            message: Message::with_copies(
                &self.exchange,
                &self.routing_key,
                &self.properties,
                &[&self.body, last],
                copies,
            ),
        }
    }
}

/// Other bytes in a buffer that is kept.
pub(super) fn replace(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}

/// `user` is the only one whom the property `user_id` may name; without it, it may name anybody.
fn check_user_id(properties: &Properties<'_>, user: Option<&[u8]>) -> Result<(), Fault> {
    match (properties.user_id, user) {
        (Some(claimed), Some(user)) if claimed != user => {
            let (claimed, user) = (lossy(claimed), lossy(user));
            let text = format!("user_id property set to '{claimed}' but authenticated user was '{user}'");
            Err(Fault::new(ReplyCode::PreconditionFailed, text))
        }
        (_, _) => Ok(()),
    }
}

/// The property `expiration`: milliseconds as decimal text, at most ten years (RabbitMQ, ttl.md).
fn expiration(text: &[u8]) -> Result<u64, Fault> {
    const MS_MAX: i64 = 315_360_000_000;
    let is_negative = text.first() == Some(&b'-');
    let signless = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    let digits = signless.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(text).ok().and_then(|t| t.parse::<i64>().ok());
    let why = match (number, &signless[digits..]) {
        (Some(ms @ 0..=MS_MAX), _) => return Ok(ms.unsigned_abs()),
        (None, _) if digits == 0 => "no_integer".to_owned(),
        (None, rest @ [_, ..]) => format!("{{leftover_string,\"{}\"}}", lossy(rest)),
        // Without a number there were more digits than one has.
        _ if is_negative => format!("{{value_negative,{}}}", lossy(text)),
        _ => format!("{{value_too_large,{}}}", lossy(signless)),
    };
    let text = format!("invalid expiration '{}': {why}", lossy(text));
    Err(Fault::new(ReplyCode::PreconditionFailed, text))
}
