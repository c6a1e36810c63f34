//! From what the store gave back to a topology, queues and users. Everything that RAM holds of durable
//! things is rebuilt here, and nowhere else.

use std::collections::HashMap;
use std::sync::Arc;

use crate::amqp::field_table::Table;
use crate::broker::arguments::{ArgumentError, QueueArguments};
use crate::broker::equivalence::QueueProperties;
use crate::broker::id::{QueueId, RowId, Seq};
use crate::broker::name::Name;
use crate::broker::queue::{Entry, Queue, Rules};
use crate::broker::topology::{BindingRequest, Topology};
use crate::store::{Position, Recovered, RecoveredQueue, Row, RowKind, Store};

use super::access::{User, Users};
use super::delays::with_delay_queue;
use super::engine_core::EngineError;
use super::queue_cell::{QueueCell, QueueRef, Stored};
use super::rows::{BindingRow, ExchangeRow, QueueRow, UserRow};

pub(super) struct Rebuilt {
    pub topology: Topology<QueueRef>,
    pub users: Users,
}

pub(super) fn rebuild(store: &Store, recovered: Recovered) -> Result<Rebuilt, EngineError> {
    let mut contents: HashMap<QueueId, RecoveredQueue> =
        recovered.queues.into_iter().map(|queue| (queue.id, queue)).collect();
    let mut topology = Topology::new();
    let mut users: HashMap<String, User> = HashMap::new();
    // Rows come in the order of their kinds, and bindings lead between what stands before them.
    let mut bindings = Vec::new();
    for row in recovered.rows {
        let id = row.id;
        match row.kind {
            RowKind::Exchange => {
                let exchange = ExchangeRow::decode(&row.plaintext).and_then(|r| r.into_exchange(id));
                let exchange = exchange.map_err(|e| unreadable("exchange", &row, e))?;
                let found = contents.remove(&QueueId(id.0));
                let _ = topology.insert_exchange(Arc::new(with_delay_queue(exchange, id, found)));
            }
            RowKind::Queue => {
                let decoded = QueueRow::decode(&row.plaintext).map_err(|e| unreadable("queue", &row, e))?;
                let (name, properties) = decoded.into_parts();
                let found = contents.remove(&QueueId(id.0));
                let queue = queue(id, name, properties, found, recovered.clean)
                    .map_err(|e| unreadable("queue", &row, e.to_string()))?;
                if queue.has_own_key() {
                    // One that a version declared which did not know the argument has none.
                    store.appender().own_key(queue.id, false);
                }
                let _ = topology.insert_queue(queue.name.clone(), queue);
            }
            RowKind::Binding => bindings.push(row),
            RowKind::User => {
                let decoded = UserRow::decode(&row.plaintext).and_then(|r| r.into_user(id));
                users.extend([decoded.map_err(|e| unreadable("user", &row, e))?]);
            }
            RowKind::Vhost | RowKind::Policy | RowKind::Permission | RowKind::Parameter => {
                let reason = "this version has no such rows".to_owned();
                return Err(unreadable("topology", &row, reason));
            }
        }
    }
    for row in bindings {
        bind(&mut topology, &row)?;
    }
    drop_orphans(store, contents);
    Ok(Rebuilt { topology, users: Users::new(users)? })
}

fn queue(
    id: RowId,
    name: Name,
    properties: QueueProperties,
    found: Option<RecoveredQueue>,
    clean: bool,
) -> Result<QueueRef, ArgumentError> {
    // Arguments that this version does not take mean rules that it would not keep: a queue without its
    // limits and its dead letters is not the one that was declared.
    let arguments = QueueArguments::parse(Table::from_raw(&properties.arguments))?;
    let rules = Rules::of(&arguments);
    let contents = match found {
        None => Queue::new(rules),
        Some(found) => {
            let delivered_up_to = found.delivered_up_to;
            let mut dead = Vec::new();
            let entries = found.entries.into_iter().filter_map(|entry| {
                let died = entry.died.filter(|_| rules.keeps_letters);
                let entry = Entry {
                    seq: entry.seq,
                    // After a crash nobody knows what was on the wire, so everything may have been.
                    redelivered: !clean || entry.seq <= delivered_up_to,
                    delivery_count: entry.delivery_count,
                    priority: entry.meta.priority,
                    expires_ms: entry.meta.expires_ms,
                    message: entry.message,
                    durable: Stored::Yes { put_at: Position(0), shared: entry.shared },
                };
                match died {
                    None => Some(entry),
                    Some(died) => {
                        dead.push((entry, died));
                        None
                    }
                }
            });
            let entries = entries.collect();
            let mut contents = Queue::recovered(rules, entries, found.next_seq.max(Seq(1)));
            dead.sort_by_key(|(_, died)| died.at_ms);
            if let Some(letters) = contents.letters() {
                dead.into_iter().for_each(|(entry, died)| letters.recovered(entry, died));
            }
            contents
        }
    };
    Ok(QueueRef::new(QueueCell::new(QueueId(id.0), name, properties, None, contents)))
}

fn bind(topology: &mut Topology<QueueRef>, row: &Row) -> Result<(), EngineError> {
    let binding = BindingRow::decode(&row.plaintext).map_err(|e| unreadable("binding", row, e))?;
    let request = BindingRequest {
        source: &binding.source,
        destination: binding.destination(),
        routing_key: &binding.routing_key,
        arguments: Table::from_raw(&binding.arguments),
    };
    topology.bind(&request, Some(row.id)).map_err(|e| unreadable("binding", row, e.to_string()))?;
    Ok(())
}

/// Entries whose queue is gone: it was deleted while a consumer still held them.
fn drop_orphans(store: &Store, orphans: HashMap<QueueId, RecoveredQueue>) {
    for (id, queue) in orphans {
        let entries = queue.entries.into_iter().map(|e| (e.seq, e.shared, Position(0)));
        store.appender().drop_queue(id, entries.collect());
    }
}

fn unreadable(kind: &'static str, row: &Row, reason: String) -> EngineError {
    EngineError::Row { kind, id: row.id.0, reason }
}
