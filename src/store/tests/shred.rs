//! Queues with keys of their own: what they hold is under these alone, and lost with them, whatever lies on the disk.

use super::super::keyring_file::{KeyringFile, queue_of};
use super::*;

const COMMON: QueueId = QueueId(2);

/// Declares the queue as the engine does: key and row in one batch.
fn declare(store: &Store, queue: QueueId) {
    let mut appender = store.appender();
    appender.own_key(queue, false);
    let place = appender.put_row(RowKind::Queue, RowId(queue.0), b"a queue".to_vec());
    drop(appender);
    wait(store, place);
}

/// A store with one such queue.
fn with_own_key() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    declare(&store, QUEUE);
    (dir, store)
}

/// Puts more small messages than one batch clears away, and gives the place of the last.
fn put_many(store: &Store) -> u64 {
    let many = 2 * crate::limits::PURGE_KEYS_MAX as u64;
    let place = put_range(store, QUEUE, 1..=many);
    wait(store, place);
    many
}

/// The keyring cannot be written while this is there.
fn block_keyring(dir: &Path) {
    fs::create_dir_all(dir.join("keyring.tmp/in the way")).unwrap();
}

fn free_keyring(dir: &Path) {
    fs::remove_dir_all(dir.join("keyring.tmp")).unwrap();
}

/// Puts a message into a queue with its own key: a large one stands apart.
fn put(store: &Store, queue: QueueId, seq: u64, text: &str) -> Option<Arc<SharedBody>> {
    let shared = (text.len() > 4096).then(|| store.own_body(&message(text)));
    let place = store.appender().put(queue, Seq(seq), &message(text), shared.as_ref(), meta(seq));
    wait(store, place);
    shared
}

fn delete_queue(store: &Store, queue: QueueId) {
    let mut appender = store.appender();
    appender.delete_row(RowKind::Queue, RowId(queue.0));
    let place = appender.drop_queue(queue, Vec::new());
    drop(appender);
    wait(store, place);
}

/// The ids of the queue's keys in the keyring on the disk.
fn keys_on_disk(dir: &Path, queue: QueueId) -> Vec<u32> {
    let file = KeyringFile::open(dir, &kek().into()).unwrap();
    let its = file.ring().keys.iter().filter(|entry| queue_of(entry) == Some(queue));
    its.map(|entry| entry.key_id).collect()
}

/// Under which key the record at a place is sealed.
fn key_of(store: &Store, family: Family, key: &Key) -> Option<u32> {
    let value = store.rocks.upgrade().unwrap().value(family, key).unwrap()?;
    Some(crate::seal::envelope::parse(&value).unwrap().0.key_id)
}

#[test]
fn what_a_queue_with_its_own_key_holds_is_under_that_key_alone() {
    let (dir, store) = with_own_key();
    let large = "large ".repeat(2000);
    put(&store, QUEUE, 1, "small");
    let own = put(&store, QUEUE, 2, &large).unwrap();
    let shared = store.shared_body(&message(&large), 1);
    let place = store.appender().put(COMMON, Seq(1), &message(&large), Some(&shared), meta(1));
    wait(&store, place);
    let [key] = keys_on_disk(dir.path(), QUEUE)[..] else { panic!("one key") };
    assert_eq!(key_of(&store, Family::Entries, &Key::entry(QUEUE, Seq(1))), Some(key));
    assert_eq!(key_of(&store, Family::Entries, &Key::entry(QUEUE, Seq(2))), Some(key));
    assert_eq!(key_of(&store, Family::Bodies, &Key::body(own.id(), 0)), Some(key));
    let common = key_of(&store, Family::Bodies, &Key::body(shared.id(), 0));
    assert!(common != Some(key) && common == key_of(&store, Family::Entries, &Key::entry(COMMON, Seq(1))));
    let facts = store.keyring().unwrap();
    let of_queue = facts.keys.iter().find(|fact| fact.queue == Some(QUEUE.0)).unwrap();
    assert_eq!((of_queue.key_id, of_queue.seals, of_queue.records), (key, true, 3));
    // It goes on after a restart, and after a crash.
    let image = crash_image(dir.path());
    for opened in [reopen(store), open(image.path())] {
        let (store, recovered) = opened;
        assert_eq!(seqs(&store, &recovered, QUEUE), [1, 2]);
        let found = recovered.queues.iter().find(|queue| queue.id == QUEUE).unwrap();
        let last = entries(&store, found).pop().unwrap();
        assert_eq!(last.message, message(&large));
        put(&store, QUEUE, 3, "after");
        assert_eq!(key_of(&store, Family::Entries, &Key::entry(QUEUE, Seq(3))), Some(key));
        assert_eq!(keys_on_disk(store.data_dir(), QUEUE), [key]);
        // All of it is gone when each message was acknowledged, and the key stays for those to come.
        store.appender().delete(QUEUE, Seq(2), 0, last.shared.as_ref(), Position(0));
        [1, 3].iter().for_each(|seq| store.appender().delete(QUEUE, Seq(*seq), 0, None, Position(0)));
        store.probe().unwrap();
        let facts = store.keyring().unwrap();
        let of_queue = facts.keys.iter().find(|fact| fact.queue == Some(QUEUE.0)).unwrap();
        assert_eq!((of_queue.key_id, of_queue.records), (key, 0));
    }
}

#[test]
fn the_key_is_destroyed_before_anybody_is_told_that_the_queue_is_deleted() {
    let (dir, store) = with_own_key();
    put(&store, QUEUE, 1, "secret");
    put(&store, COMMON, 1, "other");
    let before = crash_image(dir.path());
    delete_queue(&store, QUEUE);
    assert!(keys_on_disk(dir.path(), QUEUE).is_empty());
    // A database from before, with the keyring of now: the message is there and nobody can open it.
    for name in ["keyring", "keyring.mirror"] {
        fs::copy(dir.path().join(name), before.path().join(name)).unwrap();
    }
    assert_eq!(sealed_code(before.path()), "E_DEK_MISSING");
    let (store, recovered) = reopen(store);
    assert_eq!((seqs(&store, &recovered, QUEUE), seqs(&store, &recovered, COMMON)), (vec![], vec![1]));
}

#[test]
fn an_older_keyring_is_refused_after_a_key_was_destroyed() {
    let (dir, store) = with_own_key();
    put(&store, QUEUE, 1, "secret");
    let older = fs::read(dir.path().join("keyring")).unwrap();
    delete_queue(&store, QUEUE);
    // The commit that names the new generation follows by itself.
    store.probe().unwrap();
    let image = crash_image(dir.path());
    ["keyring", "keyring.mirror"].iter().for_each(|name| fs::write(image.path().join(name), &older).unwrap());
    assert_eq!(sealed_code(image.path()), "E_KEYRING_ROLLBACK");
}

#[test]
fn what_is_left_of_a_deleted_queue_looks_like_no_damage_after_a_crash() {
    // More than one batch clears away; the crash comes while entries and bodies still lie there without a key.
    let (dir, store) = with_own_key();
    let many = put_many(&store);
    let held = put(&store, QUEUE, many + 1, &"held ".repeat(2000)).unwrap();
    put(&store, COMMON, 1, "other");
    delete_queue(&store, QUEUE);
    assert!(keys_on_disk(dir.path(), QUEUE).is_empty());
    let image = crash_image(dir.path());
    let options = AuditOptions {
        dir: image.path().to_path_buf(),
        credential: Some(kek().into()),
        anchor: None,
        demands_anchor: true,
    };
    let audited = audit(options, &mut |_| {}).unwrap();
    assert!(audited.faults.is_empty() && audited.is_complete, "{:?}", audited.faults);
    let (opened, recovered) = open(image.path());
    assert_eq!((seqs(&opened, &recovered, QUEUE), seqs(&opened, &recovered, COMMON)), (vec![], vec![1]));
    assert!(recovered.quarantined.is_empty());
    opened.close().unwrap();
    drop(opened);
    let (opened, recovered) = open(image.path());
    assert!(recovered.clean && key_of(&opened, Family::Bodies, &Key::body(held.id(), 0)).is_none());
    // Where there was no crash, the body goes when the consumer that held it lets go.
    store.appender().delete(QUEUE, Seq(many + 1), 0, Some(&held), Position(0));
    store.probe().unwrap();
    assert_eq!(key_of(&store, Family::Bodies, &Key::body(held.id(), 0)), None);
}

#[test]
fn a_crash_between_the_deletion_and_the_destruction_is_made_good_by_the_next_start() {
    let (dir, store) = with_own_key();
    put_many(&store);
    let keyring = fs::read(dir.path().join("keyring")).unwrap();
    block_keyring(dir.path());
    delete_queue(&store, QUEUE);
    assert_eq!(fs::read(dir.path().join("keyring")).unwrap(), keyring);
    let image = crash_image(dir.path());
    free_keyring(image.path());
    let (opened, recovered) = open(image.path());
    assert_eq!((keys_on_disk(image.path(), QUEUE), seqs(&opened, &recovered, QUEUE)), (vec![], vec![]));
    // Without a crash, the next commit tries again.
    free_keyring(dir.path());
    store.probe().unwrap();
    store.probe().unwrap();
    assert!(keys_on_disk(dir.path(), QUEUE).is_empty());
}

/// A body that stood apart counted as a record that needs the key, so the next start kept the key of a queue that it
/// did not know any more, and nobody destroyed it later.
#[test]
fn the_start_after_a_crash_destroys_the_key_of_a_deleted_queue_whose_bodies_stand_apart() {
    let (dir, store) = with_own_key();
    let many = put_many(&store);
    let large = "large".repeat(2000);
    let bodies: Vec<_> = (many + 1..=many + 3).filter_map(|seq| put(&store, QUEUE, seq, &large)).collect();
    assert_eq!(bodies.len(), 3);
    block_keyring(dir.path());
    delete_queue(&store, QUEUE);
    let image = crash_image(dir.path());
    free_keyring(image.path());
    let (opened, recovered) = open(image.path());
    assert_eq!((keys_on_disk(image.path(), QUEUE), recovered.quarantined.len()), (vec![], 0));
    for _ in 0..5 {
        opened.probe().unwrap();
    }
    for body in bodies {
        assert_eq!(key_of(&opened, Family::Bodies, &Key::body(body.id(), 0)), None, "left behind");
    }
}

#[test]
fn a_purge_gives_a_new_key_and_the_old_one_goes_with_the_last_message_that_a_consumer_holds() {
    let (dir, store) = with_own_key();
    (1..=3).for_each(|seq| drop(put(&store, QUEUE, seq, "secret")));
    let first = keys_on_disk(dir.path(), QUEUE);
    let purge = |seqs: std::ops::RangeInclusive<u64>| {
        let mut appender = store.appender();
        appender.own_key(QUEUE, true);
        seqs.for_each(|seq| appender.delete(QUEUE, Seq(seq), 0, None, Position(0)));
        let place = appender.tail();
        drop(appender);
        wait(&store, place);
    };
    // A consumer holds the first one.
    purge(2..=3);
    let keys = keys_on_disk(dir.path(), QUEUE);
    assert_eq!((keys.len(), keys[0]), (2, first[0]));
    put(&store, QUEUE, 4, "new");
    assert_eq!(key_of(&store, Family::Entries, &Key::entry(QUEUE, Seq(4))), Some(keys[1]));
    let image = crash_image(dir.path());
    let (image, recovered) = open(image.path());
    assert_eq!(seqs(&image, &recovered, QUEUE), [1, 4]);
    drop(image);
    let place = {
        let mut appender = store.appender();
        appender.delete(QUEUE, Seq(1), 0, None, Position(0));
        appender.tail()
    };
    store.probe().unwrap();
    wait(&store, place);
    assert_eq!(keys_on_disk(dir.path(), QUEUE), keys[1..]);
    // Nobody holds any: it goes before the purge is confirmed.
    purge(4..=4);
    let last = keys_on_disk(dir.path(), QUEUE);
    assert!(last.len() == 1 && last != keys[1..]);
    put(&store, QUEUE, 5, "newer");
    let (store, recovered) = reopen(store);
    assert_eq!((seqs(&store, &recovered, QUEUE), keys_on_disk(dir.path(), QUEUE)), (vec![5], last));
}

/// It was tried once, and then only when some other key had become free or at the next start.
#[test]
fn a_former_key_that_could_not_be_destroyed_goes_with_the_next_commit() {
    let (dir, store) = with_own_key();
    put(&store, QUEUE, 1, "held");
    let place = store.appender().own_key(QUEUE, true);
    wait(&store, place);
    let keys = keys_on_disk(dir.path(), QUEUE);
    block_keyring(dir.path());
    store.appender().delete(QUEUE, Seq(1), 0, None, Position(0));
    store.probe().unwrap();
    store.probe().unwrap();
    assert_eq!((keys.len(), keys_on_disk(dir.path(), QUEUE)), (2, keys.clone()));
    free_keyring(dir.path());
    store.probe().unwrap();
    store.probe().unwrap();
    assert_eq!(keys_on_disk(dir.path(), QUEUE), keys[1..]);
}

#[test]
fn a_queue_that_is_purged_while_consumers_hold_its_messages_has_a_bounded_number_of_keys() {
    let (dir, store) = with_own_key();
    for seq in 1..=crate::limits::QUEUE_KEYS_MAX as u64 + 5 {
        put(&store, QUEUE, seq, "held");
        let place = store.appender().own_key(QUEUE, true);
        wait(&store, place);
    }
    assert_eq!(keys_on_disk(dir.path(), QUEUE).len(), crate::limits::QUEUE_KEYS_MAX);
}

#[test]
fn a_put_that_comes_after_its_queue_is_gone_is_sealed_under_no_key_at_all() {
    // A transaction gives out a place, the queue is deleted, and the commit follows.
    let (_dir, store) = with_own_key();
    delete_queue(&store, QUEUE);
    let large = "late ".repeat(2000);
    let late = put(&store, QUEUE, 1, &large).unwrap();
    put(&store, QUEUE, 2, "late");
    assert_eq!(key_of(&store, Family::Entries, &Key::entry(QUEUE, Seq(1))), None);
    let stored = vec![(Seq(1), Some(Arc::clone(&late)), Position(0)), (Seq(2), None, Position(0))];
    let place = store.appender().drop_queue(QUEUE, stored);
    wait(&store, place);
    assert_eq!(key_of(&store, Family::Bodies, &Key::body(late.id(), 0)), None);
    assert_eq!(store.backlog_bytes(), 0);
    let (store, recovered) = reopen(store);
    assert!(seqs(&store, &recovered, QUEUE).is_empty());
}

#[test]
fn keys_of_queues_are_no_data_keys_that_come_and_go_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    (10..15).for_each(|id| declare(&store, QueueId(id)));
    for _ in 0..3 {
        store.rotate_data_key().unwrap();
    }
    let facts = store.keyring().unwrap();
    let own: Vec<_> = facts.keys.iter().filter_map(|key| key.queue.filter(|_| key.seals)).collect();
    assert_eq!(own, [10, 11, 12, 13, 14]);
    assert_eq!(facts.keys.iter().filter(|key| key.queue.is_none()).count(), 1);
    let (store, _) = reopen(store);
    assert_eq!(store.keyring().unwrap().keys.len(), 6);
    // A row that never came leaves a key, until the next start.
    let place = store.appender().own_key(QueueId(99), false);
    wait(&store, place);
    let (store, _) = reopen(store);
    assert_eq!(store.keyring().unwrap().keys.len(), 6);
}
