//! Sealing again what is under old data keys: all of it, while everything else goes on, whenever it is cut short; and
//! what was written twice is removed for good.

use std::collections::BTreeMap;

use super::super::committer::Committer;
use super::super::op::Op;
use super::behaviour::keys;
use super::*;
use crate::limits::{BODY_CHUNK_BYTES, RESEAL_RECORDS_MAX};

const OTHER: QueueId = QueueId(2);
const INLINE: u64 = 2 * RESEAL_RECORDS_MAX as u64 + 50;

/// What the two queues hold.
type Texts = BTreeMap<(QueueId, u64), String>;

/// Small messages, then some that stand apart: alone in several pieces, and shared by both queues.
fn fill(store: &Store) -> Texts {
    let mut texts = Texts::new();
    put_range(store, QUEUE, 1..=INLINE);
    texts.extend((1..=INLINE).map(|seq| ((QUEUE, seq), format!("message {seq}"))));
    for n in 1..=6u64 {
        let text = format!("body {n} ").repeat(3 * BODY_CHUNK_BYTES / 7);
        let alone = store.shared_body(&message(&text), 1);
        let both = store.shared_body(&message(&format!("shared {n}")), 2);
        let mut appender = store.appender();
        for (queue, seq, body) in
            [(QUEUE, INLINE + 2 * n, &alone), (QUEUE, INLINE + 2 * n + 1, &both), (OTHER, n, &both)]
        {
            appender.put(queue, Seq(seq), body.message(), Some(body), meta(seq));
        }
        texts.insert((QUEUE, INLINE + 2 * n), text);
        texts.insert((QUEUE, INLINE + 2 * n + 1), format!("shared {n}"));
        texts.insert((OTHER, n), format!("shared {n}"));
    }
    store.appender().count_deliveries(QUEUE, Seq(3), 9);
    store.probe().unwrap();
    texts
}

fn page(store: &Store, queue: QueueId) -> StoredPage {
    let (first, last) = (Seq(1), Seq(u64::MAX));
    store.page(&PageRequest { queue, first, last, len_max: usize::MAX, bytes_max: usize::MAX }).unwrap()
}

fn read(store: &Store) -> Texts {
    let mut texts = Texts::new();
    for queue in [QUEUE, OTHER] {
        let page = page(store, queue);
        assert_eq!(page.quarantined.len(), 0, "{:?}", page.quarantined);
        for entry in page.entries {
            let text = String::from_utf8(entry.message.body().to_vec()).unwrap();
            texts.insert((queue, entry.seq.0), text);
        }
    }
    texts
}

/// A store that was filled and opened again, so that all it holds is under an old key.
fn old(dir: &Path) -> (Arc<Store>, Texts) {
    let (store, _) = open(dir);
    let texts = fill(&store);
    (reopen(store).0, texts)
}

fn wait_for_the_end(store: &Store, mut meanwhile: impl FnMut()) -> KeyringFacts {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        meanwhile();
        let facts = store.keyring().unwrap();
        if !facts.reseal.is_running {
            return store.keyring().unwrap();
        }
        assert!(Instant::now() < limit, "{facts:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Deletes everything, as an engine does that was restarted, and gives the keys that the files hold then.
fn keys_after_all_was_deleted(store: Arc<Store>) -> usize {
    let dir = store.data_dir().to_path_buf();
    let mut pages = Vec::new();
    for queue in [QUEUE, OTHER] {
        pages.extend(page(&store, queue).entries.into_iter().map(|entry| (queue, entry)));
    }
    for (queue, entry) in &pages {
        store.appender().delete(*queue, entry.seq, 0, entry.shared.as_ref(), Position(0));
    }
    store.close().unwrap();
    drop(store);
    keys_after_compaction(&dir)
}

/// Entries and bodies: whatever a wrong removal would bring back is back by then.
fn keys_after_compaction(dir: &Path) -> usize {
    Rocks::open(&dir.join("db"), Tail::Whole).unwrap().carry_out_deletions().unwrap();
    keys(dir, Family::Entries).len() + keys(dir, Family::Bodies).len()
}

fn committer(dir: &Path) -> Committer {
    super::super::open::prepare(OpenOptions::new(dir, Mode::Sealed, Some(kek().into()))).unwrap().0
}

/// One commit with a step of the reseal in it, and what follows a commit.
fn step(committer: &mut Committer, mut ops: Vec<Op>) {
    committer.reseal.hurry();
    committer.core.charge(ops.iter().map(Op::charge).sum());
    committer.commit(&mut ops, false).unwrap();
    committer.tend_keys();
}

#[test]
fn everything_is_sealed_again_and_the_old_keys_go_while_readers_find_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, texts) = old(dir.path());
    let before = store.keyring().unwrap();
    assert_eq!((before.keys.len(), before.keys[0].records), (2, texts.len() as u64 + 12));
    let held: Vec<_> = page(&store, QUEUE).entries;
    store.reseal(None).unwrap();
    let facts = wait_for_the_end(&store, || assert_eq!(read(&store), texts));
    let ResealFacts { is_running, keys, resealed, left, unreadable } = facts.reseal;
    assert_eq!((is_running, keys, left, unreadable), (false, vec![], 0, 0));
    assert_eq!(resealed, before.keys[0].records);
    let ids: Vec<_> = facts.keys.iter().map(|key| (key.key_id, key.seals, key.records)).collect();
    assert_eq!(ids, [(before.keys[1].key_id, true, 0), (ids[1].0, false, resealed)]);
    assert_eq!(page(&store, QUEUE).entries[2].delivery_count, 9);
    // A crash, and then what was read before the reseal is deleted, and what comes after it as well.
    let image = crash_image(dir.path());
    let (copy, recovered) = open(image.path());
    assert!(recovered.quarantined.is_empty());
    assert_eq!(read(&copy), texts);
    assert_eq!(keys_after_all_was_deleted(copy), 0);
    for entry in &held {
        store.appender().delete(QUEUE, entry.seq, 0, entry.shared.as_ref(), Position(0));
    }
    assert_eq!(keys_after_all_was_deleted(store), 0);
    let (store, _) = open(dir.path());
    assert_eq!(store.keyring().unwrap().keys.len(), 1);
}

#[test]
fn after_kill_9_at_each_step_all_is_there_and_can_be_removed_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (store, texts) = old(dir.path());
    store.close().unwrap();
    drop(store);
    let mut committer = committer(dir.path());
    committer.start_reseal(None).unwrap();
    let mut in_between = 0;
    loop {
        step(&mut committer, vec![Op::Touch]);
        let facts = committer.reseal_facts();
        in_between += u64::from(facts.resealed > 0 && facts.left > 0);
        let image = crash_image(dir.path());
        let (copy, recovered) = open(image.path());
        assert!(recovered.quarantined.is_empty());
        assert_eq!(read(&copy), texts);
        copy.reseal(None).unwrap();
        let facts = wait_for_the_end(&copy, || {});
        assert_eq!(facts.reseal.left, 0);
        assert_eq!(read(&copy), texts);
        assert_eq!(keys_after_all_was_deleted(copy), 0);
        if !committer.reseal_facts().is_running {
            break;
        }
    }
    assert!(in_between >= 2, "{in_between}");
}

#[test]
fn deletions_purges_and_drops_beside_it_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut texts) = old(dir.path());
    store.close().unwrap();
    drop(store);
    let mut committer = committer(dir.path());
    committer.start_reseal(None).unwrap();
    step(&mut committer, vec![]);
    let done = committer.reseal_facts().resealed;
    assert!((200..INLINE).contains(&done), "{done}");
    let delete = |seq| Op::Delete { queue: QUEUE, seq: Seq(seq), bytes: 0, shared: None };
    // Of those that were sealed again, and of those whose turn is in this very commit.
    let mut ops: Vec<Op> = (1..=50).chain(done + 1..=done + 50).map(delete).collect();
    let (first, last) = (Seq(101), Seq(done + 100));
    ops.push(Op::PurgeRange { queue: QUEUE, first, last, bytes: 0 });
    ops.push(Op::DropQueue { queue: OTHER, bodies: Vec::new() });
    step(&mut committer, ops);
    texts.retain(|(queue, seq), _| *queue == QUEUE && ((51..=100).contains(seq) || *seq > last.0));
    while committer.reseal_facts().is_running {
        step(&mut committer, vec![]);
    }
    let facts = committer.reseal_facts();
    assert_eq!((facts.left, facts.unreadable, facts.keys.len()), (0, 0, 0));
    drop(committer);
    let (store, _) = open(dir.path());
    assert_eq!(read(&store), texts);
    store.close().unwrap();
    drop(store);
    let bodies = 6 * 4 + 6;
    assert_eq!(keys_after_compaction(dir.path()), texts.len() + bodies);
    let (store, recovered) = open(dir.path());
    assert!(recovered.quarantined.is_empty());
    assert_eq!(keys_after_all_was_deleted(store), 0);
}

#[test]
fn what_was_sealed_again_and_is_dropped_does_not_come_back_after_a_crash_in_the_middle_of_that() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let last = crate::limits::PURGE_KEYS_MAX as u64 + 100;
    wait(&store, put_range(&store, QUEUE, 1..=last));
    let (store, _) = reopen(store);
    store.reseal(None).unwrap();
    wait_for_the_end(&store, || {});
    store.close().unwrap();
    drop(store);
    let mut committer = committer(dir.path());
    step(&mut committer, vec![Op::DropQueue { queue: QUEUE, bodies: Vec::new() }]);
    step(&mut committer, vec![]);
    assert_eq!(committer.purges.len(), 1, "the rest is still to be cleared away");
    drop(committer);
    for _ in 0..2 {
        let (store, recovered) = open(dir.path());
        assert_eq!((seqs(&store, &recovered, QUEUE).len(), recovered.quarantined.len()), (0, 0));
        store.close().unwrap();
        drop(store);
        assert_eq!(keys_after_compaction(dir.path()), 0);
    }
}

#[test]
fn only_keys_of_the_age_are_replaced_and_by_themselves_when_they_are_so_old() {
    let dir = tempfile::tempdir().unwrap();
    let (store, texts) = old(dir.path());
    let day = Duration::from_secs(86_400);
    let ids = |facts: &KeyringFacts| facts.keys.iter().map(|key| key.key_id).collect::<Vec<_>>();
    let before = store.keyring().unwrap();
    let facts = store.reseal(Some(day)).unwrap();
    assert_eq!((ids(&facts), facts.reseal.resealed), (ids(&before), 0), "none is a day old");
    // The current one is older than no time at all, so another one takes its place first.
    store.reseal(Some(Duration::ZERO)).unwrap();
    let facts = wait_for_the_end(&store, || {});
    assert!(ids(&facts).iter().all(|id| !ids(&before).contains(id)), "{facts:?}");
    store.close().unwrap();
    drop(store);
    let options = |reseal_after| OpenOptions {
        reseal_after,
        ..OpenOptions::new(dir.path(), Mode::Sealed, Some(kek().into()))
    };
    for (after, is_due) in [(None, false), (Some(day), false), (Some(Duration::ZERO), true)] {
        let (store, _) = Store::open(options(after)).unwrap();
        let facts = wait_for_the_end(&store, || {});
        assert_eq!(facts.reseal.resealed > 0, is_due, "{after:?}");
        assert_eq!(read(&store), texts);
        store.close().unwrap();
    }
}

#[test]
fn a_body_waits_until_all_its_entries_are_there() {
    // One of two entries is not put yet, as in a transaction: it would name the body by its former tag.
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let both = store.shared_body(&message("of two queues"), 2);
    let place = store.appender().put(QUEUE, Seq(1), both.message(), Some(&both), meta(1));
    wait(&store, place);
    store.rotate_data_key().unwrap();
    store.reseal(None).unwrap();
    let facts = wait_for_the_end(&store, || {});
    assert_eq!((facts.reseal.left, facts.reseal.keys.len()), (2, 1), "said, and left as it is");
    let place = store.appender().put(OTHER, Seq(1), both.message(), Some(&both), meta(1));
    wait(&store, place);
    store.reseal(None).unwrap();
    assert_eq!(wait_for_the_end(&store, || {}).reseal.left, 0);
    let (store, recovered) = reopen(store);
    assert!(recovered.quarantined.is_empty());
    assert_eq!(read(&store).len(), 2);
    assert_eq!(keys_after_all_was_deleted(store), 0);
}

#[test]
fn what_cannot_be_read_stays_as_it_is_and_keeps_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let (store, texts) = old(dir.path());
    store.close().unwrap();
    drop(store);
    let mut committer = committer(dir.path());
    let rocks = Arc::clone(&committer.rocks);
    let key = Key::entry(QUEUE, Seq(7));
    let mut value = rocks.value(Family::Entries, &key).unwrap().unwrap();
    *value.last_mut().unwrap() ^= 1;
    let mut batch = rocks.batch(1000).unwrap();
    batch.put(Family::Entries, &key, &value);
    rocks.write(batch).unwrap();
    committer.start_reseal(None).unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    while committer.reseal_facts().is_running && Instant::now() < limit {
        step(&mut committer, vec![]);
    }
    let facts = committer.reseal_facts();
    assert_eq!((facts.is_running, facts.left, facts.unreadable, facts.keys.len()), (false, 1, 1, 1));
    assert_eq!(facts.resealed, texts.len() as u64 + 11);
    assert_eq!(rocks.value(Family::Entries, &key).unwrap(), Some(value));
}

#[test]
fn queues_with_keys_of_their_own_are_left_alone_and_a_plain_store_has_nothing_to_seal() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let mut appender = store.appender();
    appender.own_key(QUEUE, false);
    appender.put_row(RowKind::Queue, RowId(QUEUE.0), b"a queue".to_vec());
    drop(appender);
    let body = store.own_body(&message("apart"));
    let mut appender = store.appender();
    appender.put(QUEUE, Seq(1), &message("its own"), None, meta(1));
    appender.put(QUEUE, Seq(2), body.message(), Some(&body), meta(2));
    appender.put(OTHER, Seq(1), &message("of all"), None, meta(1));
    drop(appender);
    let before = store.rotate_data_key().unwrap();
    store.reseal(None).unwrap();
    let facts = wait_for_the_end(&store, || {});
    assert_eq!((facts.reseal.resealed, facts.reseal.left), (1, 0));
    let own = |facts: &KeyringFacts| facts.keys.iter().find(|key| key.queue.is_some()).cloned();
    assert_eq!(own(&facts), own(&before));
    assert_eq!(read(&store).len(), 3);
    let dir = tempfile::tempdir().unwrap();
    let (plain, _) = try_open(dir.path(), Mode::PlainInsecure, None).unwrap();
    assert_eq!(plain.reseal(None).unwrap_err().code(), "E_NO_KEYRING");
}
