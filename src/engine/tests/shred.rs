//! Queues with keys of their own: what is sealed under them, when they change, and who may have one.

use super::super::queues::no_own_key;
use super::*;
use crate::limits::SHRED_QUEUES_MAX;

fn arguments(shreds: bool) -> TableWriter {
    TableWriter::new().entry("x-seal-shred", Value::Bool(shreds))
}

impl Seat {
    fn declare_shredding(&mut self, name: &str) {
        let arguments = arguments(true);
        let barrier = self.declare(name, QueueSpec { arguments: arguments.as_table(), ..DURABLE });
        self.wait_for(barrier);
    }
}

impl House {
    /// A queue's keys: id, whether it seals, how many records need it.
    fn keys_of(&self, queue: &str) -> Vec<(u32, bool, u64)> {
        let id = self.queue(queue).unwrap().id.0;
        let keys = self.store.keyring().unwrap().keys.into_iter();
        keys.filter(|key| key.queue == Some(id)).map(|key| (key.key_id, key.seals, key.records)).collect()
    }

    fn records(&self, queue: &str) -> u64 {
        self.keys_of(queue).iter().map(|(_, _, records)| records).sum()
    }

    fn common_records(&self) -> u64 {
        let keys = self.store.keyring().unwrap().keys.into_iter();
        keys.filter(|key| key.queue.is_none()).map(|key| key.records).sum()
    }
}

#[test]
fn a_body_that_goes_to_such_a_queue_and_to_others_is_sealed_for_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open_sealed(dir.path());
    let mut a = house.client();
    for queue in ["own", "owner"] {
        a.declare_shredding(queue);
        a.bind("amq.fanout", queue, "");
    }
    for queue in ["one", "two"] {
        a.declare(queue, DURABLE);
        a.bind("amq.fanout", queue, "");
    }
    let large = "x".repeat(INLINE_BODY_BYTES_MAX + 1);
    let bodies = ["small", large.as_str()];
    let outcomes = a.publish(bodies.map(|body| publish("amq.fanout", "", body.as_bytes(), true)).into());
    let Outcome::Routed(barrier) = outcomes[1] else { panic!("{outcomes:?}") };
    a.wait_for(barrier);
    // The small one is in its entry, the large one beside it; the others share two bodies.
    assert_eq!((house.records("own"), house.records("owner"), house.common_records()), (3, 3, 4 + 2));
    // In a transaction as well.
    let planned = bodies.map(|body| publish("amq.fanout", "", body.as_bytes(), true)).into();
    let (_, barrier) = a.commit(planned, Vec::new());
    a.wait_for(barrier);
    assert_eq!((house.records("own"), house.records("owner"), house.common_records()), (6, 6, 12));
    drop(a);
    house.close();
    let house = House::open_sealed(dir.path());
    let mut a = house.client();
    let all = [bodies, bodies].concat();
    assert_eq!((house.records("own"), house.common_records()), (6, 12));
    for queue in ["own", "one"] {
        assert_eq!(a.take_all(queue), all, "{queue}");
    }
    a.client.delete_queue(b"owner", false, false).unwrap();
    assert_eq!(a.take_all("two"), all);
    house.store.probe().unwrap();
    assert_eq!((house.records("own"), house.common_records()), (0, 0));
}

#[test]
fn what_comes_after_a_purge_is_under_the_new_key() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open_sealed(dir.path());
    let mut a = house.client();
    a.declare_shredding("q");
    let count = PURGE_KEYS_MAX + 3;
    let publishes = (0..count).map(|n| publish("", "q", n.to_string().as_bytes(), true)).collect();
    a.publish(publishes);
    let (queue, held) = a.get("q").unwrap();
    let (purged, barrier) = a.client.purge_queue(b"q").unwrap();
    assert_eq!(purged as usize, count - 1);
    a.wait_for(barrier);
    let [(old, false, 1), (new, true, 0)] = house.keys_of("q")[..] else {
        panic!("{:?}", house.keys_of("q"))
    };
    let barrier = a.put("q", "after", true);
    a.wait_for(barrier);
    assert_eq!(house.keys_of("q"), [(old, false, 1), (new, true, 1)]);
    // What the consumer held comes back, and goes.
    a.client.requeue(&queue, &[], vec![held]);
    assert_eq!(a.take_all("q"), ["0", "after"]);
    house.store.probe().unwrap();
    assert_eq!(house.keys_of("q"), [(new, true, 0)]);
    // Also when there is nothing to purge: what was acknowledged lies on the disk under the key.
    let (purged, barrier) = a.client.purge_queue(b"q").unwrap();
    a.wait_for(barrier);
    let keys = house.keys_of("q");
    assert!(purged == 0 && keys.len() == 1 && keys[0].0 > new);
}

#[test]
fn a_deleted_queue_s_key_is_gone_when_the_deletion_is_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open_sealed(dir.path());
    let mut a = house.client();
    a.declare_shredding("q");
    let barrier = a.put("q", "m", true);
    a.wait_for(barrier);
    a.get("q").unwrap();
    let before = house.store.keyring().unwrap();
    let (_, barrier) = a.client.delete_queue(b"q", false, false).unwrap();
    a.wait_for(barrier);
    let after = house.store.keyring().unwrap();
    assert!(before.keys.iter().any(|key| key.queue.is_some()));
    assert!(after.keys.iter().all(|key| key.queue.is_none()) && after.generation > before.generation);
    // One of the same name has another.
    a.declare_shredding("q");
    assert_eq!(house.keys_of("q").len(), 1);
    drop(a);
    house.close();
    let house = House::open_sealed(dir.path());
    assert!(house.client().get("q").is_none());
}

#[test]
fn such_a_queue_is_declared_again_as_it_was_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open_sealed(dir.path());
    let mut a = house.client();
    a.declare_shredding("q");
    let before = house.keys_of("q");
    a.declare_shredding("q");
    let other = arguments(false);
    let text = |spec| {
        let mut a = house.client();
        text_of(a.client.declare_queue(&QueueSpec { name: b"q", ..spec }))
    };
    assert_eq!(
        text(QueueSpec { arguments: other.as_table(), ..DURABLE }),
        "PRECONDITION_FAILED - inequivalent arg 'x-seal-shred' for queue 'q' in vhost '/': received 'false' but \
         current is 'true'"
    );
    assert_eq!(
        text(DURABLE),
        "PRECONDITION_FAILED - inequivalent arg 'x-seal-shred' for queue 'q' in vhost '/': received none but \
         current is the value 'true' of type 'bool'"
    );
    assert_eq!(house.keys_of("q"), before);
}

#[test]
fn queues_with_keys_of_their_own_are_bounded_in_number_and_none_is_in_a_plain_store() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open_sealed(dir.path());
    let mut a = house.client();
    let shredding = arguments(true);
    let stored = QueueSpec { arguments: shredding.as_table(), ..DURABLE };
    // Nothing of these is ever on the disk.
    a.declare("transient", QueueSpec { arguments: shredding.as_table(), ..TRANSIENT });
    a.declare("exclusive", QueueSpec { arguments: shredding.as_table(), ..EXCLUSIVE });
    assert_eq!(house.store.keyring().unwrap().keys.len(), 1);
    let full = "1024 queues have keys of their own, which is the limit";
    assert_eq!(no_own_key(Mode::Sealed, SHRED_QUEUES_MAX).as_deref(), Some(full));
    assert_eq!(no_own_key(Mode::Sealed, SHRED_QUEUES_MAX - 1), None);
    let barrier = a.declare("over", stored);
    a.wait_for(barrier);
    let barrier = a.put("over", "m", true);
    a.wait_for(barrier);
    drop(a);
    house.close();
    let house = House::open_sealed(dir.path());
    assert_eq!(house.records("over"), 1);

    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    let refused = text_of(a.client.declare_queue(&QueueSpec { name: b"q", ..stored }));
    assert_eq!(
        refused,
        "PRECONDITION_FAILED - invalid arg 'x-seal-shred' for queue 'q' in vhost '/': the store is not sealed, so \
         there is no key to destroy"
    );
}
