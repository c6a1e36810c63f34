//! Direct reply-to: which connection takes what is published to an address. Neither a queue nor a row: an
//! address lives in memory for as long as its consumer, and a reply is never stored.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use crate::amqp::properties::Properties;
use crate::broker::fault::Fault;
use crate::broker::message::Message;
use crate::broker::name::{REPLY_TO, reply_token};
use crate::session::port::{Barrier, Declared, ReplyTo};

use super::client::Client;
use super::outbox::Outbox;

/// base64url of 16 random bytes: all that an address says is that somebody has it.
type Token = [u8; 22];

/// The consumers of replies of all connections; at most one for each of their channels.
#[derive(Default)]
pub(super) struct Replies(RwLock<HashMap<Token, (Arc<Outbox>, ReplyTo)>>);

impl Replies {
    fn open(&self, address: &[u8], outbox: &Arc<Outbox>, to: ReplyTo) {
        if let Some(token) = token_of(address) {
            let mut consumers = self.0.write().unwrap_or_else(PoisonError::into_inner);
            consumers.insert(token, (outbox.clone(), to));
        }
    }

    fn close(&self, address: &[u8]) {
        if let Some(token) = token_of(address) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&token);
        }
    }

    fn find(&self, address: &[u8]) -> Option<(Arc<Outbox>, ReplyTo)> {
        let token = token_of(address)?;
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&token).cloned()
    }

    /// Hands a message of the default exchange to the consumers whose addresses are among its keys; false when
    /// there is none, or when too many replies wait for them already.
    pub fn send(&self, message: &Message) -> bool {
        if !message.exchange().is_empty() {
            return false;
        }
        if !message.has_copies() {
            return self.deliver(message.routing_key(), message);
        }
        let properties = Properties::decode(message.properties()).unwrap_or_default();
        let keys = message.routing_keys(&properties);
        let addresses: HashSet<&[u8]> = keys.iter().filter(|key| reply_token(key).is_some()).collect();
        addresses.iter().filter(|address| self.deliver(address, message)).count() > 0
    }

    fn deliver(&self, address: &[u8], message: &Message) -> bool {
        self.find(address).is_some_and(|(outbox, to)| outbox.reply(to, message.clone()))
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.read().unwrap().len()
    }
}

fn token_of(address: &[u8]) -> Option<Token> {
    reply_token(address)?.try_into().ok()
}

impl Client {
    pub(super) fn open_address(&self, address: &[u8], to: ReplyTo) {
        self.engine.replies.open(address, &self.outbox, to);
    }

    pub(super) fn close_address(&self, address: &[u8]) {
        self.engine.replies.close(address);
    }

    /// queue.declare of the name or of an address, passive or not: who is asked to answer can find out whether
    /// anybody still waits. `None` for the names of queues.
    pub(super) fn declare_replies(&self, name: &[u8]) -> Option<Result<Declared, Fault>> {
        let is_there = match reply_token(name) {
            Some(_) => self.engine.replies.find(name).is_some(),
            None if name == REPLY_TO => true,
            None => return None,
        };
        Some(match is_there {
            true => {
                Ok(Declared { name: name.to_vec(), message_count: 0, consumer_count: 1, barrier: Barrier(0) })
            }
            false => Err(Fault::no_queue(name, &self.engine.vhost)),
        })
    }
}
