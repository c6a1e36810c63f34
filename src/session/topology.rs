//! The exchange and queue classes: arguments are checked and handed to the broker, replies wait for
//! their barrier. The rules themselves live in `broker` and `engine`. As in RabbitMQ, what declares,
//! deletes, binds or unbinds takes names without their line breaks; what only uses a queue does not.

use crate::amqp::field_table::Table;
use crate::amqp::method::Method;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::Fault;
use crate::broker::name::without_line_breaks;

use super::channel::unexpected;
use super::connection::Session;
use super::handshake::syntax_error;
use super::port::{BindingSpec, Broker, DestinationKind, ExchangeSpec, QueueSpec};

impl<B: Broker> Session<B> {
    pub(super) fn handle_exchange_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        match method {
            Method::ExchangeDeclare {
                exchange,
                kind,
                passive,
                durable,
                auto_delete,
                internal,
                no_wait,
                arguments,
                ..
            } => {
                let arguments = checked(arguments)?;
                let name = without_line_breaks(exchange);
                let spec =
                    ExchangeSpec { name: &name, kind, passive, durable, auto_delete, internal, arguments };
                let barrier = self.broker.declare_exchange(&spec)?;
                let reply = Method::ExchangeDeclareOk {};
                self.reply_at(barrier, number, (!no_wait).then_some(&reply));
                Ok(())
            }
            Method::ExchangeDelete { exchange, if_unused, no_wait, .. } => {
                let barrier = self.broker.delete_exchange(&without_line_breaks(exchange), if_unused)?;
                let reply = Method::ExchangeDeleteOk {};
                self.reply_at(barrier, number, (!no_wait).then_some(&reply));
                Ok(())
            }
            Method::ExchangeBind { destination, source, routing_key, no_wait, arguments, .. } => {
                let arguments = checked(arguments)?;
                let spec = BindingSpec {
                    source: &without_line_breaks(source),
                    destination: &without_line_breaks(destination),
                    kind: DestinationKind::Exchange,
                    routing_key,
                    arguments,
                };
                let barrier = self.broker.bind(&spec)?;
                let reply = Method::ExchangeBindOk {};
                self.reply_at(barrier, number, (!no_wait).then_some(&reply));
                Ok(())
            }
            Method::ExchangeUnbind { destination, source, routing_key, no_wait, arguments, .. } => {
                let arguments = checked(arguments)?;
                let spec = BindingSpec {
                    source: &without_line_breaks(source),
                    destination: &without_line_breaks(destination),
                    kind: DestinationKind::Exchange,
                    routing_key,
                    arguments,
                };
                let barrier = self.broker.unbind(&spec)?;
                let reply = Method::ExchangeUnbindOk {};
                self.reply_at(barrier, number, (!no_wait).then_some(&reply));
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    pub(super) fn handle_queue_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        match method {
            Method::QueueDeclare { .. } => self.declare_queue(number, method),
            Method::QueueBind { queue, exchange, routing_key, no_wait, arguments, .. } => {
                self.bind_queue(number, (queue, exchange, routing_key), no_wait, arguments)
            }
            Method::QueueUnbind { queue, exchange, routing_key, arguments, .. } => {
                let queue = self.queue_name(number, queue)?;
                let spec = BindingSpec {
                    source: &without_line_breaks(exchange),
                    destination: &without_line_breaks(&queue),
                    kind: DestinationKind::Queue,
                    routing_key,
                    arguments: checked(arguments)?,
                };
                let barrier = self.broker.unbind(&spec)?;
                self.reply_at(barrier, number, Some(&Method::QueueUnbindOk {}));
                Ok(())
            }
            Method::QueuePurge { queue, no_wait, .. } => {
                let queue = self.queue_name(number, queue)?;
                let (message_count, barrier) = self.broker.purge_queue(&queue)?;
                let reply = Method::QueuePurgeOk { message_count };
                self.reply_at(barrier, number, (!no_wait).then_some(&reply));
                Ok(())
            }
            Method::QueueDelete { queue, if_unused, if_empty, no_wait, .. } => {
                let queue = without_line_breaks(&self.queue_name(number, queue)?);
                let (message_count, barrier) = self.broker.delete_queue(&queue, if_unused, if_empty)?;
                let reply = Method::QueueDeleteOk { message_count };
                self.reply_at(barrier, number, (!no_wait).then_some(&reply));
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    fn declare_queue(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        let Method::QueueDeclare {
            queue, passive, durable, exclusive, auto_delete, no_wait, arguments, ..
        } = method
        else {
            return Err(unexpected());
        };
        let name = without_line_breaks(queue);
        // An empty name asks for a fresh one; passively it is a name like any other, of no queue.
        let server_named = name.is_empty() && !passive;
        let name = if server_named { self.broker.unique_name("amq.gen-")? } else { name.to_vec() };
        let arguments = checked(arguments)?;
        let spec =
            QueueSpec { name: &name, server_named, passive, durable, exclusive, auto_delete, arguments };
        let declared = self.broker.declare_queue(&spec)?;
        let reply = Method::QueueDeclareOk {
            queue: &declared.name,
            message_count: declared.message_count,
            consumer_count: declared.consumer_count,
        };
        self.reply_at(declared.barrier, number, (!no_wait).then_some(&reply));
        self.channel(number)?.last_queue = name;
        Ok(())
    }

    fn bind_queue(
        &mut self,
        number: u16,
        (queue, exchange, routing_key): (&[u8], &[u8], &[u8]),
        no_wait: bool,
        arguments: Table<'_>,
    ) -> Result<(), Fault> {
        let name = self.queue_name(number, queue)?;
        // AMQP 0-9-1 1.7.2.3.4: with both names empty the queue's name is the key as well.
        let routing_key = if queue.is_empty() && routing_key.is_empty() { &name } else { routing_key };
        let spec = BindingSpec {
            source: &without_line_breaks(exchange),
            destination: &without_line_breaks(&name),
            kind: DestinationKind::Queue,
            routing_key,
            arguments: checked(arguments)?,
        };
        let barrier = self.broker.bind(&spec)?;
        let reply = Method::QueueBindOk {};
        self.reply_at(barrier, number, (!no_wait).then_some(&reply));
        Ok(())
    }

    /// An empty name stands for the queue that the channel declared last.
    pub(super) fn queue_name(&mut self, number: u16, name: &[u8]) -> Result<Vec<u8>, Fault> {
        if !name.is_empty() {
            return Ok(name.to_vec());
        }
        let last = &self.channel(number)?.last_queue;
        if last.is_empty() {
            return Err(Fault::new(ReplyCode::NotFound, "no previously declared queue"));
        }
        Ok(last.clone())
    }
}

fn checked(arguments: Table<'_>) -> Result<Table<'_>, Fault> {
    arguments.validate().map_err(syntax_error)?;
    Ok(arguments)
}
