//! The methods of AMQP 0-9-1 (sections 1.1 to 1.9) and RabbitMQ's extensions, as one table that gives
//! the enum, its decoding and its encoding. What a method means is no business of this file.

use super::field_table::Table;
use super::reader::{DecodeError, Reader};
use super::writer::Writer;

macro_rules! rust_type {
    ($lt:lifetime u8) => { u8 };
    ($lt:lifetime u16) => { u16 };
    ($lt:lifetime u32) => { u32 };
    ($lt:lifetime u64) => { u64 };
    ($lt:lifetime bit) => { bool };
    ($lt:lifetime short_str) => { &$lt [u8] };
    ($lt:lifetime long_str) => { &$lt [u8] };
    ($lt:lifetime table) => { Table<$lt> };
}

macro_rules! methods {
    ($($name:ident = $class:literal, $method:literal, $text:literal { $($field:ident: $kind:ident),* $(,)? })*) => {
        /// A method with its arguments, borrowed from the frame. Field names are the specification's;
        /// `ticket` is its reserved-1. Strings are bytes: AMQP promises no encoding.
        #[derive(Clone, Copy, PartialEq)]
        #[expect(missing_docs, reason = "variants and fields carry the specification's own names")]
        pub enum Method<'a> {
            $($name { $($field: rust_type!('a $kind)),* },)*
        }

        impl<'a> Method<'a> {
            /// Reads a method frame's payload; all of it must be used up.
            pub fn decode(payload: &'a [u8]) -> Result<Method<'a>, DecodeError> {
                let mut r = Reader::new(payload);
                let (class, method) = (r.u16()?, r.u16()?);
                let decoded = match (class, method) {
                    $(($class, $method) => Method::$name { $($field: r.$kind()?),* },)*
                    (class, method) => return Err(DecodeError::UnknownMethod(class, method)),
                };
                r.end()?;
                Ok(decoded)
            }

            /// Appends class, method and arguments: a method frame's payload.
            pub fn encode(&self, out: &mut Vec<u8>) {
                let mut w = Writer::new(out);
                match *self {
                    $(Method::$name { $($field),* } => {
                        w.u16($class);
                        w.u16($method);
                        $(w.$kind($field);)*
                    })*
                }
            }

            /// Every method there is, in the order of the table, with arguments that `fields` makes up.
            #[cfg(test)]
            pub(super) fn every(fields: &mut impl Fields<'a>) -> Vec<Method<'a>> {
                vec![$(Method::$name { $($field: fields.$kind(stringify!($field))),* },)*]
            }

            /// Class and method number, as close methods report them.
            pub fn id(&self) -> (u16, u16) {
                match self { $(Method::$name { .. } => ($class, $method),)* }
            }

            /// The name as the specification writes it, such as `queue.declare`.
            pub fn name(&self) -> &'static str {
                match self { $(Method::$name { .. } => $text,)* }
            }
        }
    };
}

methods! {
    ConnectionStart = 10, 10, "connection.start" {
        version_major: u8, version_minor: u8, server_properties: table, mechanisms: long_str, locales: long_str
    }
    ConnectionStartOk = 10, 11, "connection.start-ok" {
        client_properties: table, mechanism: short_str, response: long_str, locale: short_str
    }
    ConnectionSecure = 10, 20, "connection.secure" { challenge: long_str }
    ConnectionSecureOk = 10, 21, "connection.secure-ok" { response: long_str }
    ConnectionTune = 10, 30, "connection.tune" { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionTuneOk = 10, 31, "connection.tune-ok" { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionOpen = 10, 40, "connection.open" { virtual_host: short_str, capabilities: short_str, insist: bit }
    ConnectionOpenOk = 10, 41, "connection.open-ok" { known_hosts: short_str }
    ConnectionClose = 10, 50, "connection.close" {
        reply_code: u16, reply_text: short_str, class_id: u16, method_id: u16
    }
    ConnectionCloseOk = 10, 51, "connection.close-ok" {}
    ConnectionBlocked = 10, 60, "connection.blocked" { reason: short_str }
    ConnectionUnblocked = 10, 61, "connection.unblocked" {}
    ConnectionUpdateSecret = 10, 70, "connection.update-secret" { new_secret: long_str, reason: short_str }
    ConnectionUpdateSecretOk = 10, 71, "connection.update-secret-ok" {}

    ChannelOpen = 20, 10, "channel.open" { out_of_band: short_str }
    ChannelOpenOk = 20, 11, "channel.open-ok" { channel_id: long_str }
    ChannelFlow = 20, 20, "channel.flow" { active: bit }
    ChannelFlowOk = 20, 21, "channel.flow-ok" { active: bit }
    ChannelClose = 20, 40, "channel.close" {
        reply_code: u16, reply_text: short_str, class_id: u16, method_id: u16
    }
    ChannelCloseOk = 20, 41, "channel.close-ok" {}

    AccessRequest = 30, 10, "access.request" {
        realm: short_str, exclusive: bit, passive: bit, active: bit, write: bit, read: bit
    }
    AccessRequestOk = 30, 11, "access.request-ok" { ticket: u16 }

    ExchangeDeclare = 40, 10, "exchange.declare" {
        ticket: u16, exchange: short_str, kind: short_str, passive: bit, durable: bit, auto_delete: bit,
        internal: bit, no_wait: bit, arguments: table
    }
    ExchangeDeclareOk = 40, 11, "exchange.declare-ok" {}
    ExchangeDelete = 40, 20, "exchange.delete" { ticket: u16, exchange: short_str, if_unused: bit, no_wait: bit }
    ExchangeDeleteOk = 40, 21, "exchange.delete-ok" {}
    ExchangeBind = 40, 30, "exchange.bind" {
        ticket: u16, destination: short_str, source: short_str, routing_key: short_str, no_wait: bit,
        arguments: table
    }
    ExchangeBindOk = 40, 31, "exchange.bind-ok" {}
    ExchangeUnbind = 40, 40, "exchange.unbind" {
        ticket: u16, destination: short_str, source: short_str, routing_key: short_str, no_wait: bit,
        arguments: table
    }
    ExchangeUnbindOk = 40, 51, "exchange.unbind-ok" {}

    QueueDeclare = 50, 10, "queue.declare" {
        ticket: u16, queue: short_str, passive: bit, durable: bit, exclusive: bit, auto_delete: bit,
        no_wait: bit, arguments: table
    }
    QueueDeclareOk = 50, 11, "queue.declare-ok" { queue: short_str, message_count: u32, consumer_count: u32 }
    QueueBind = 50, 20, "queue.bind" {
        ticket: u16, queue: short_str, exchange: short_str, routing_key: short_str, no_wait: bit,
        arguments: table
    }
    QueueBindOk = 50, 21, "queue.bind-ok" {}
    QueuePurge = 50, 30, "queue.purge" { ticket: u16, queue: short_str, no_wait: bit }
    QueuePurgeOk = 50, 31, "queue.purge-ok" { message_count: u32 }
    QueueDelete = 50, 40, "queue.delete" {
        ticket: u16, queue: short_str, if_unused: bit, if_empty: bit, no_wait: bit
    }
    QueueDeleteOk = 50, 41, "queue.delete-ok" { message_count: u32 }
    QueueUnbind = 50, 50, "queue.unbind" {
        ticket: u16, queue: short_str, exchange: short_str, routing_key: short_str, arguments: table
    }
    QueueUnbindOk = 50, 51, "queue.unbind-ok" {}

    BasicQos = 60, 10, "basic.qos" { prefetch_size: u32, prefetch_count: u16, global: bit }
    BasicQosOk = 60, 11, "basic.qos-ok" {}
    BasicConsume = 60, 20, "basic.consume" {
        ticket: u16, queue: short_str, consumer_tag: short_str, no_local: bit, no_ack: bit, exclusive: bit,
        no_wait: bit, arguments: table
    }
    BasicConsumeOk = 60, 21, "basic.consume-ok" { consumer_tag: short_str }
    BasicCancel = 60, 30, "basic.cancel" { consumer_tag: short_str, no_wait: bit }
    BasicCancelOk = 60, 31, "basic.cancel-ok" { consumer_tag: short_str }
    BasicPublish = 60, 40, "basic.publish" {
        ticket: u16, exchange: short_str, routing_key: short_str, mandatory: bit, immediate: bit
    }
    BasicReturn = 60, 50, "basic.return" {
        reply_code: u16, reply_text: short_str, exchange: short_str, routing_key: short_str
    }
    BasicDeliver = 60, 60, "basic.deliver" {
        consumer_tag: short_str, delivery_tag: u64, redelivered: bit, exchange: short_str,
        routing_key: short_str
    }
    BasicGet = 60, 70, "basic.get" { ticket: u16, queue: short_str, no_ack: bit }
    BasicGetOk = 60, 71, "basic.get-ok" {
        delivery_tag: u64, redelivered: bit, exchange: short_str, routing_key: short_str, message_count: u32
    }
    BasicGetEmpty = 60, 72, "basic.get-empty" { cluster_id: short_str }
    BasicAck = 60, 80, "basic.ack" { delivery_tag: u64, multiple: bit }
    BasicReject = 60, 90, "basic.reject" { delivery_tag: u64, requeue: bit }
    BasicRecoverAsync = 60, 100, "basic.recover-async" { requeue: bit }
    BasicRecover = 60, 110, "basic.recover" { requeue: bit }
    BasicRecoverOk = 60, 111, "basic.recover-ok" {}
    BasicNack = 60, 120, "basic.nack" { delivery_tag: u64, multiple: bit, requeue: bit }

    ConfirmSelect = 85, 10, "confirm.select" { no_wait: bit }
    ConfirmSelectOk = 85, 11, "confirm.select-ok" {}

    TxSelect = 90, 10, "tx.select" {}
    TxSelectOk = 90, 11, "tx.select-ok" {}
    TxCommit = 90, 20, "tx.commit" {}
    TxCommitOk = 90, 21, "tx.commit-ok" {}
    TxRollback = 90, 30, "tx.rollback" {}
    TxRollbackOk = 90, 31, "tx.rollback-ok" {}
}

impl std::fmt::Debug for Method<'_> {
    /// The name only: arguments hold routing keys and passwords, which must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes up arguments, each by the specification's name of it.
#[cfg(test)]
pub(super) trait Fields<'a> {
    fn u8(&mut self, name: &str) -> u8;
    fn u16(&mut self, name: &str) -> u16;
    fn u32(&mut self, name: &str) -> u32;
    fn u64(&mut self, name: &str) -> u64;
    fn bit(&mut self, name: &str) -> bool;
    fn short_str(&mut self, name: &str) -> &'a [u8];
    fn long_str(&mut self, name: &str) -> &'a [u8];
    fn table(&mut self, name: &str) -> Table<'a>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::{TableWriter, Value};

    fn round_trip(method: Method<'_>) {
        let mut bytes = Vec::new();
        method.encode(&mut bytes);
        assert!(Method::decode(&bytes) == Ok(method), "{method:?}");
        bytes.push(0);
        assert!(Method::decode(&bytes) == Err(DecodeError::Trailing), "{method:?} with a byte too many");
        for cut in 0..bytes.len() - 1 {
            assert!(Method::decode(&bytes[..cut]).is_err(), "{method:?} cut at {cut}");
        }
    }

    #[test]
    fn methods_come_back_as_they_were_written() {
        let table = TableWriter::new().entry("x-max-length", Value::I32(5));
        round_trip(Method::ConnectionStartOk {
            client_properties: table.as_table(),
            mechanism: b"PLAIN",
            response: b"\0guest\0guest",
            locale: b"en_US",
        });
        round_trip(Method::QueueDeclare {
            ticket: 0,
            queue: b"q",
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: true,
            no_wait: true,
            arguments: table.as_table(),
        });
        round_trip(Method::BasicDeliver {
            consumer_tag: b"tag",
            delivery_tag: u64::MAX,
            redelivered: true,
            exchange: b"",
            routing_key: b"key",
        });
        round_trip(Method::BasicNack { delivery_tag: 7, multiple: true, requeue: false });
        round_trip(Method::ExchangeUnbindOk {});
    }

    #[test]
    fn bits_share_an_octet_lowest_first() {
        let mut bytes = Vec::new();
        Method::BasicNack { delivery_tag: 1, multiple: false, requeue: true }.encode(&mut bytes);
        assert_eq!(bytes, [0, 60, 0, 120, 0, 0, 0, 0, 0, 0, 0, 1, 0b10]);
    }

    #[test]
    fn names_an_unknown_method() {
        assert!(Method::decode(&[0, 60, 0, 99]) == Err(DecodeError::UnknownMethod(60, 99)));
    }
}
