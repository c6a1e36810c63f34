//! From what the store gave back to a topology, queues and users. Everything that RAM holds of durable
//! things is rebuilt here, and nowhere else.

use std::collections::HashMap;
use std::sync::Arc;

use crate::amqp::field_table::Table;
use crate::broker::arguments::QueueArguments;
use crate::broker::id::{QueueId, Seq};
use crate::broker::queue::{Entry, Queue, Rules, Run};
use crate::broker::topology::{BindingRequest, Topology};
use crate::store::{PageRequest, Recovered, RecoveredQueue, Row, RowKind, Store};

use super::access::{User, Users};
use super::delays::with_delay_queue;
use super::engine_core::EngineError;
use super::pager::{entry_of, tell_of};
use super::queue_cell::{Contents, QueueCell, QueueRef, Stored};
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
                let all = |found: RecoveredQueue| {
                    Ok::<_, EngineError>((found.next_seq, all_of(store, found.id, &found.runs)?))
                };
                let found = found.map(all).transpose()?;
                let _ = topology.insert_exchange(Arc::new(with_delay_queue(exchange, id, found)));
            }
            RowKind::Queue => {
                let decoded = QueueRow::decode(&row.plaintext).map_err(|e| unreadable("queue", &row, e))?;
                let (name, properties) = decoded.into_parts();
                // Arguments that this version does not take mean rules that it would not keep: a queue without its
                // limits and its dead letters is not the one that was declared.
                let arguments = QueueArguments::parse(Table::from_raw(&properties.arguments));
                let rules = Rules::of(&arguments.map_err(|e| unreadable("queue", &row, e.to_string()))?);
                let contents = match contents.remove(&QueueId(id.0)) {
                    None => Queue::new(rules),
                    Some(found) => restored(store, rules, found, recovered.clean)?,
                };
                let queue = QueueCell::new(QueueId(id.0), name, properties, None, contents);
                let queue = QueueRef::new(queue);
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

fn restored(
    store: &Store,
    rules: Rules,
    found: RecoveredQueue,
    clean: bool,
) -> Result<Contents, EngineError> {
    let RecoveredQueue { id, next_seq, delivered_up_to, runs, mut letters } = found;
    let next_seq = next_seq.max(Seq(1));
    // After a crash nobody knows what was on the wire, so everything may have been.
    let redelivered_up_to = if clean { delivered_up_to } else { Seq(next_seq.0 - 1) };
    let mut contents = if !rules.is_resident {
        Queue::recovered(rules, runs, redelivered_up_to, next_seq)
    } else {
        let mut contents = Queue::recovered(rules, Vec::new(), redelivered_up_to, next_seq);
        all_of(store, id, &runs)?.into_iter().for_each(|entry| contents.restore(entry));
        contents
    };
    letters.sort_by_key(|(_, died)| died.at_ms);
    for (seq, died) in letters {
        let place = Run { first: seq, last: seq, count: 1, ..Run::default() };
        for entry in all_of(store, id, &[place])? {
            match contents.letters() {
                Some(letters) => letters.recovered(entry, died),
                None => contents.restore(entry),
            }
        }
    }
    Ok(contents)
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

/// All entries of runs, for a queue that is not paged.
fn all_of(store: &Store, queue: QueueId, runs: &[Run]) -> Result<Vec<Entry<Stored>>, EngineError> {
    let mut entries = Vec::new();
    for run in runs {
        let (first, last) = (run.first, run.last);
        let all = PageRequest { queue, first, last, len_max: usize::MAX, bytes_max: usize::MAX };
        let page = store.page(&all)?;
        tell_of(&page.quarantined);
        entries.extend(page.entries.into_iter().map(entry_of));
    }
    Ok(entries)
}

/// Entries whose queue is gone: it was deleted while a consumer still held them.
fn drop_orphans(store: &Store, orphans: HashMap<QueueId, RecoveredQueue>) {
    for queue in orphans.into_keys() {
        store.appender().drop_queue(queue, Vec::new());
    }
}

fn unreadable(kind: &'static str, row: &Row, reason: String) -> EngineError {
    EngineError::Row { kind, id: row.id.0, reason }
}
