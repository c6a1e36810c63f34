//! Rows that a store gives back and this version cannot keep its word on.

use super::*;
use crate::broker::equivalence::QueueProperties;
use crate::broker::id::QueueId;
use crate::broker::name::Name;
use crate::engine::queue_cell::{Contents, QueueCell};
use crate::engine::rows::QueueRow;
use crate::store::RowKind;

/// A stored queue whose arguments were refused by the parser (which had become stricter) came back without
/// any: no limits, no dead letters, and nobody was told.
#[test]
fn a_queue_whose_arguments_are_no_longer_taken_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let arguments = TableWriter::new().entry("x-message-ttl", Value::I64(-1));
    let properties =
        QueueProperties { durable: true, auto_delete: false, arguments: arguments.as_table().raw().into() };
    let id = house.store.next_row_id();
    let contents = Contents::new(Default::default());
    let cell = QueueCell::new(QueueId(id.0), Name::from(&b"q"[..]), properties, None, contents);
    house.store.appender().put_row(RowKind::Queue, id, QueueRow::of(&cell).encode());
    house.close();

    let options = OpenOptions::new(dir.path(), Mode::PlainInsecure, None);
    let (store, recovered) = Store::open(options).unwrap();
    let refused = Engine::start(store, recovered, "/").map(drop).unwrap_err().to_string();
    assert!(refused.contains("queue row") && refused.contains("x-message-ttl"), "{refused}");
}
