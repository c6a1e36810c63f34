//! Pictures of queues, exchanges and bindings for management: domain types turned into plain views.

use crate::amqp::field_table::{Table, Value};
use crate::broker::fault::lossy;
use crate::broker::name::ResourceKind;
use crate::broker::topology::ListedBinding;

use super::engine_core::Engine;
use super::queue_cell::QueueRef;
use super::view::{ArgumentValue, ArgumentView, BindingView, ExchangeView, QueueView};

/// Sums over all queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// queues
    pub queues: u64,
    /// ready and unacknowledged messages
    pub messages: u64,
    /// consumers
    pub consumers: u64,
}

impl Engine {
    /// The virtual host's name.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Sums over all queues.
    pub fn totals(&self) -> Totals {
        let topology = self.topology.load();
        topology.queues().map(|(_, queue)| queue.counts()).fold(Totals::default(), |sum, c| Totals {
            queues: sum.queues + 1,
            messages: sum.messages + (c.ready + c.unacked + c.letters) as u64,
            consumers: sum.consumers + c.consumers as u64,
        })
    }

    /// All queues, by name.
    pub fn queue_views(&self) -> Vec<QueueView> {
        let topology = self.topology.load();
        let mut views: Vec<_> = topology.queues().map(|(_, queue)| queue_view(queue)).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// All exchanges, by name.
    pub fn exchange_views(&self) -> Vec<ExchangeView> {
        let topology = self.topology.load();
        let mut views: Vec<_> = topology
            .exchanges()
            .map(|exchange| ExchangeView {
                name: lossy(&exchange.name).into_owned(),
                kind: exchange.properties.kind.as_str().to_owned(),
                durable: exchange.properties.durable,
                auto_delete: exchange.properties.auto_delete,
                internal: exchange.properties.internal,
                messages_delayed: exchange.delay_queue().map(|queue| queue.counts().delayed as u64),
                arguments: arguments(&exchange.properties.arguments),
            })
            .collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// All bindings, each queue's implicit one to the default exchange included.
    pub fn binding_views(&self) -> Vec<BindingView> {
        let topology = self.topology.load();
        let mut views: Vec<_> = topology.bindings().map(binding_view).collect();
        views.sort_by(|a, b| {
            (&a.source_name, &a.destination_name, &a.routing_key).cmp(&(
                &b.source_name,
                &b.destination_name,
                &b.routing_key,
            ))
        });
        views
    }
}

fn queue_view(queue: &QueueRef) -> QueueView {
    let counts = queue.counts();
    QueueView {
        name: lossy(&queue.name).into_owned(),
        durable: queue.properties.durable,
        auto_delete: queue.properties.auto_delete,
        exclusive: queue.owner.is_some(),
        arguments: arguments(&queue.properties.arguments),
        messages_ready: counts.ready as u64,
        messages_unacknowledged: counts.unacked as u64,
        messages: (counts.ready + counts.unacked + counts.letters) as u64,
        consumers: counts.consumers as u64,
        state: "running".to_owned(),
        kind: queue.kind().as_str().to_owned(),
        memory_bytes: counts.ready_bytes as u64,
    }
}

fn binding_view(binding: ListedBinding<'_>) -> BindingView {
    let kind = match binding.destination_kind {
        ResourceKind::Queue => "queue",
        ResourceKind::Exchange => "exchange",
    };
    BindingView {
        source_name: lossy(binding.source).into_owned(),
        source_kind: "exchange".to_owned(),
        destination_name: lossy(binding.destination).into_owned(),
        destination_kind: kind.to_owned(),
        routing_key: lossy(binding.routing_key).into_owned(),
        arguments: arguments(binding.arguments),
    }
}

fn arguments(raw: &[u8]) -> Vec<ArgumentView> {
    let entries = Table::from_raw(raw).iter().map_while(Result::ok);
    entries
        .map(|(name, value)| {
            let (kind, value) = argument(value);
            ArgumentView { name: lossy(name).into_owned(), kind: kind.to_owned(), value }
        })
        .collect()
}

fn argument(value: Value<'_>) -> (&'static str, ArgumentValue) {
    let integer = |v: i64| ArgumentValue::Integer(v);
    match value {
        Value::Bool(v) => ("bool", ArgumentValue::Flag(v)),
        Value::I8(v) => ("byte", integer(v.into())),
        Value::U8(v) => ("unsignedbyte", integer(v.into())),
        Value::I16(v) => ("short", integer(v.into())),
        Value::U16(v) => ("unsignedshort", integer(v.into())),
        Value::I32(v) => ("signedint", integer(v.into())),
        Value::U32(v) => ("unsignedint", integer(v.into())),
        Value::I64(v) => ("long", integer(v)),
        Value::Timestamp(v) => ("timestamp", integer(i64::try_from(v).unwrap_or(i64::MAX))),
        Value::F32(v) => ("float", ArgumentValue::Number(v.into())),
        Value::F64(v) => ("double", ArgumentValue::Number(v)),
        Value::Decimal(scale, v) => ("decimal", ArgumentValue::Text(format!("{v}e-{scale}"))),
        Value::LongStr(v) => ("longstr", ArgumentValue::Text(lossy(v).into_owned())),
        Value::Bytes(v) => ("binary", ArgumentValue::Text(format!("{} bytes", v.len()))),
        Value::Table(v) => ("table", ArgumentValue::Text(format!("{} bytes", v.raw().len()))),
        Value::Array(v) => ("array", ArgumentValue::Text(format!("{} bytes", v.raw().len()))),
        Value::Void => ("void", ArgumentValue::Text(String::new())),
    }
}
