//! What comes back, what is never written, what is removed.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::super::layout::{Family, Key};
use super::super::rocks::{Rocks, Tail};
use super::*;
use crate::broker::letters::Died;
use crate::broker::queue::Death;
use crate::limits::{COMMITTER_SEAL_BYTES_MAX, PURGE_KEYS_MAX};

/// Keys that a closed store has in a family.
pub(super) fn keys(dir: &Path, family: Family) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let rocks = Rocks::open(&dir.join("db"), Tail::Whole).unwrap();
    rocks
        .scan(family, |key, _| {
            keys.push(key.to_vec());
            Ok(())
        })
        .unwrap();
    keys
}

#[test]
fn a_new_store_is_empty_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered) = open(&dir.path().join("not/there/yet"));
    assert!(recovered.created && recovered.rows.is_empty() && recovered.queues.is_empty());
    let (_store, recovered) = reopen(store);
    assert!(!recovered.created && recovered.clean);
}

#[test]
fn entries_come_back_in_order_with_all_their_facts() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
        put_range(&store, QUEUE, 1..=1000);
        store.appender().delivered_up_to(QUEUE, Seq(7));
        let mut appender = store.appender();
        for seq in [1, 2, 500] {
            appender.delete(QUEUE, Seq(seq), 0, None, Position(0));
        }
        drop(appender);
        let (store, recovered) = reopen(store);
        assert!(recovered.clean && recovered.quarantined.is_empty());
        let queue = &recovered.queues[0];
        assert_eq!((queue.id, queue.next_seq, queue.delivered_up_to), (QUEUE, Seq(1001), Seq(7)));
        let expected: Vec<u64> = (3..=1000).filter(|seq| *seq != 500).collect();
        assert_eq!(seqs(&store, &recovered, QUEUE), expected);
        for entry in entries(&store, queue) {
            assert_eq!(entry.message, message(&format!("message {}", entry.seq.0)));
            assert_eq!(entry.meta, meta(entry.seq.0));
            assert!(entry.shared.is_none());
        }
    }
}

#[test]
fn rows_come_back_as_last_written_and_numbers_are_not_reused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let ids: Vec<_> = (0..4).map(|_| store.next_row_id()).collect();
    let mut appender = store.appender();
    appender.put_row(RowKind::User, ids[0], b"guest".to_vec());
    appender.put_row(RowKind::Queue, ids[1], b"orders".to_vec());
    appender.put_row(RowKind::Queue, ids[1], b"orders, again".to_vec());
    appender.put_row(RowKind::Vhost, ids[2], vec![]);
    appender.put_row(RowKind::Binding, ids[3], b"gone".to_vec());
    appender.delete_row(RowKind::Binding, ids[3]);
    drop(appender);
    let (store, recovered) = reopen(store);
    let row = |kind, id, text: &[u8]| Row { kind, id, plaintext: text.to_vec() };
    let expected = [
        row(RowKind::Vhost, ids[2], b""),
        row(RowKind::Queue, ids[1], b"orders, again"),
        row(RowKind::User, ids[0], b"guest"),
    ];
    assert_eq!(recovered.rows, expected);
    assert!(store.next_row_id() > ids[3]);
}

#[test]
fn what_is_deleted_before_its_batch_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let before = store.stats();
    let mut appender = store.appender();
    let shared = store.shared_body(&message("shared"), 2);
    let one = appender.put(QUEUE, Seq(1), &message("one"), None, meta(1));
    let two = appender.put(QUEUE, Seq(2), shared.message(), Some(&shared), meta(1));
    appender.delete(QUEUE, Seq(1), 0, None, one);
    appender.delete(QUEUE, Seq(2), 0, Some(&shared), two);
    appender.release(&shared);
    let tail = appender.tail();
    drop(appender);
    wait(&store, tail);
    let after = store.stats();
    assert_eq!((after.elided, after.commits, after.records), (2, before.commits, before.records));
    assert_eq!(store.backlog_bytes(), 0);
    store.close().unwrap();
    drop(store);
    assert!(keys(dir.path(), Family::Entries).is_empty() && keys(dir.path(), Family::Bodies).is_empty());
}

#[test]
fn a_shared_body_is_stored_once_and_goes_with_its_last_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    for (number, size) in [(1, 10), (2, COMMITTER_SEAL_BYTES_MAX + 1), (3, 600_000)] {
        let shared = store.shared_body(&message(&"x".repeat(size)), 4);
        let mut appender = store.appender();
        for queue in 1..=3 {
            appender.put(QueueId(queue), Seq(number), shared.message(), Some(&shared), meta(queue));
        }
        appender.release(&shared);
    }
    let (store, recovered) = reopen(store);
    let read = |queue: &RecoveredQueue| {
        let id = queue.id;
        entries(&store, queue).into_iter().map(move |entry| (id, entry)).collect::<Vec<_>>()
    };
    let mut found: Vec<_> = recovered.queues.iter().flat_map(read).collect();
    assert_eq!(found.len(), 9);
    for (queue, entry) in &found {
        let shared = entry.shared.as_ref().unwrap();
        assert_eq!((shared.message(), entry.meta), (&entry.message, meta(queue.0)));
        assert_eq!(
            entry.message.body().len(),
            [10, COMMITTER_SEAL_BYTES_MAX + 1, 600_000][entry.seq.0 as usize - 1]
        );
    }
    // All but one entry of each go; then the rest.
    let last = found.split_off(6);
    for (part, bodies_left) in [(found, 1 + 2 + 3), (last, 0)] {
        let (store, _) = {
            let mut appender = store.appender();
            for (queue, entry) in &part {
                appender.delete(*queue, entry.seq, 0, entry.shared.as_ref(), Position(0));
            }
            let tail = appender.tail();
            drop(appender);
            wait(&store, tail);
            (&store, ())
        };
        let image = crash_image(store.data_dir());
        assert_eq!(keys(image.path(), Family::Bodies).len(), bodies_left);
    }
    assert_eq!(store.backlog_bytes(), 0);
}

#[test]
fn a_body_whose_entries_a_crash_prevented_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let shared = store.shared_body(&message(&"x".repeat(5000)), 2);
    let place = store.appender().put(QUEUE, Seq(1), shared.message(), Some(&shared), meta(1));
    wait(&store, place);
    let mut appender = store.appender();
    appender.delete(QUEUE, Seq(1), 0, Some(&shared), place);
    let tail = appender.tail();
    drop(appender);
    wait(&store, tail);
    let image = crash_image(dir.path());
    assert_eq!(keys(image.path(), Family::Bodies).len(), 1, "its second entry may still come");
    let (store, recovered) = open(image.path());
    assert!(!recovered.clean && recovered.queues[0].runs.is_empty());
    store.close().unwrap();
    drop(store);
    assert!(keys(image.path(), Family::Bodies).is_empty());
}

#[test]
fn an_appender_is_one_batch_however_long_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let before = store.stats().commits;
    let place = put_range(&store, QUEUE, 1..=5000);
    wait(&store, place);
    assert_eq!(store.stats().commits, before + 1);
}

#[test]
fn a_delivery_count_comes_back_with_its_entry_and_goes_with_it() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
        put_range(&store, QUEUE, 1..=4);
        let mut appender = store.appender();
        for (seq, count) in [(2, 4), (2, 70_000), (3, 5), (9, 1)] {
            appender.count_deliveries(QUEUE, Seq(seq), count);
        }
        drop(appender);
        let (store, recovered) = reopen(store);
        let counts = |store: &Store, recovered: &Recovered| -> Vec<u32> {
            entries(store, &recovered.queues[0]).iter().map(|entry| entry.delivery_count).collect()
        };
        assert_eq!(counts(&store, &recovered), [3, 70_000, 5, 3], "3 is what they were put with");
        store.appender().delete(QUEUE, Seq(2), 0, None, Position(0));
        let (store, recovered) = reopen(store);
        assert_eq!(counts(&store, &recovered), [3, 5, 3]);
        store.close().unwrap();
        drop(store);
        let counted = |dir: &Path| keys(dir, Family::Meta).iter().filter(|key| key.len() == 17).count();
        assert_eq!(counted(dir.path()), 1);
        let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
        store.appender().drop_queue(QUEUE, Vec::new());
        store.close().unwrap();
        drop(store);
        assert_eq!(counted(dir.path()), 0, "the queue takes it along");
    }
}

#[test]
fn a_death_comes_back_with_its_entry_and_goes_with_it() {
    let deaths = [Death::Rejected, Death::Expired, Death::MaxLen, Death::DeliveryLimit];
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
        put_range(&store, QUEUE, 1..=5);
        let died =
            |seq: u64| deaths.get(seq as usize - 1).map(|death| Died { death: *death, at_ms: 70_000 + seq });
        let mut appender = store.appender();
        appender.count_deliveries(QUEUE, Seq(2), 8);
        for seq in 1..=4 {
            appender.mark_dead(QUEUE, Seq(seq), 7, died(seq).unwrap());
        }
        drop(appender);
        store.appender().delete(QUEUE, Seq(1), 0, None, Position(0));
        let (store, recovered) = reopen(store);
        assert_eq!(seqs(&store, &recovered, QUEUE), [5], "dead letters are in no run");
        let letters = &recovered.queues[0].letters;
        assert_eq!(letters[..], [2, 3, 4].map(|seq| (Seq(seq), died(seq).unwrap())));
        let read = |(seq, _): &(Seq, Died)| {
            let page = PageRequest { queue: QUEUE, first: *seq, last: *seq, len_max: 9, bytes_max: 9 };
            store.page(&page).unwrap().entries
        };
        let found: Vec<_> =
            letters.iter().flat_map(read).map(|e| (e.seq.0, e.delivery_count, e.died)).collect();
        assert_eq!(found, [(2, 7, died(2)), (3, 7, died(3)), (4, 7, died(4))]);
    }
}

#[test]
fn a_dropped_queue_does_not_come_back_even_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let count = 2 * PURGE_KEYS_MAX as u64 + 100;
    put_range(&store, QUEUE, 1..=count);
    put_range(&store, QueueId(2), 1..=10);
    let shared = store.shared_body(&message("shared"), 2);
    let mut appender = store.appender();
    appender.put(QUEUE, Seq(count + 1), shared.message(), Some(&shared), meta(1));
    appender.put(QueueId(2), Seq(11), shared.message(), Some(&shared), meta(1));
    let place = appender.tail();
    drop(appender);
    wait(&store, place);
    let mut appender = store.appender();
    let dropped = appender.drop_queue(QUEUE, vec![(Seq(count + 1), Some(shared), Position(0))]);
    drop(appender);
    wait(&store, dropped);
    // The clearing may be anywhere between its first step and its last.
    let image = crash_image(dir.path());
    for (store, recovered) in [open(image.path()), reopen(store)] {
        assert_eq!(recovered.queues.len(), 1);
        assert_eq!(seqs(&store, &recovered, QueueId(2)), (1..=11).collect::<Vec<_>>());
        store.close().unwrap();
        let dir = store.data_dir().to_path_buf();
        drop(store);
        assert_eq!(keys(&dir, Family::Entries).len(), 11);
        assert_eq!(keys(&dir, Family::Bodies).len(), 1);
        assert!(!keys(&dir, Family::Meta).contains(&Key::manifest(QUEUE).as_bytes().to_vec()));
    }
}

/// A consumer may hold an entry of a queue that is gone; its copy of the body is in memory, and settling it late
/// does not count twice.
#[test]
fn a_body_of_a_dropped_queue_goes_although_a_consumer_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let text = message("shared by two queues");
    let body = store.shared_body(&text, 2);
    let mut appender = store.appender();
    let held = appender.put(QUEUE, Seq(1), &text, Some(&body), meta(1));
    let other = appender.put(QueueId(2), Seq(1), &text, Some(&body), meta(1));
    drop(appender);
    wait(&store, other);
    let dropped = store.appender().drop_queue(QUEUE, Vec::new());
    wait(&store, dropped);
    store.appender().delete(QUEUE, Seq(1), 0, Some(&body), held);
    store.appender().delivered_up_to(QUEUE, Seq(1));
    store.appender().delete(QueueId(2), Seq(1), 0, Some(&body), other);
    store.close().unwrap();
    drop(store);
    assert!(keys(dir.path(), Family::Bodies).is_empty());
}

#[test]
fn manifests_hold_the_count_and_the_keyed_sum_of_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let place = put_range(&store, QUEUE, 1..=50);
    wait(&store, place);
    let mut appender = store.appender();
    (1..=20).for_each(|seq| appender.delete(QUEUE, Seq(seq), 0, None, Position(0)));
    drop(appender);
    store.close().unwrap();
    drop(store);
    let file = super::super::keyring_file::KeyringFile::open(dir.path(), &kek().into()).unwrap();
    let mut opener = crate::seal::record::Opener::new(file.keys(), file.ring().store);
    let rocks = Rocks::open(&dir.path().join("db"), Tail::Whole).unwrap();
    let (key, mut text) = (Key::manifest(QUEUE), Vec::new());
    let value = rocks.value(Family::Meta, &key).unwrap().unwrap();
    let kinds = &[crate::seal::envelope::Kind::Manifest];
    opener.open(kinds, Family::Meta.place(key.as_bytes()), &value, &mut text).unwrap();
    let manifest = super::super::record::read_manifest(&text).unwrap();
    let multiset = crate::seal::multiset::Multiset::new(&file.ring().root.multiset());
    let sum = (21..=50).fold(0u128, |sum, seq| sum.wrapping_add(multiset.term(1, seq, 2)));
    assert_eq!((manifest.live_count, manifest.multiset, manifest.head), (30, sum, Seq(21)));
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_waker_is_woken_once_and_at_once_when_there_is_nothing_to_wait_for() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let count = Arc::new(Count(AtomicUsize::new(0)));
    store.appender().wake(Waker::from(Arc::clone(&count)));
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    let mut appender = store.appender();
    appender.put(QUEUE, Seq(1), &message("x"), None, meta(1));
    appender.wake(Waker::from(Arc::clone(&count)));
    assert_eq!(count.0.load(Ordering::SeqCst), 1, "it is not durable yet");
    let tail = appender.tail();
    drop(appender);
    wait(&store, tail);
    store.close().unwrap();
    assert_eq!(count.0.load(Ordering::SeqCst), 2);
}

#[test]
fn an_acknowledgement_alone_reaches_the_disk_without_anybody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let place = put_range(&store, QUEUE, 1..=2);
    wait(&store, place);
    let before = store.stats().commits;
    let mut appender = store.appender();
    appender.delete(QUEUE, Seq(1), 0, None, place);
    let tail = appender.tail();
    drop(appender);
    let limit = Instant::now() + Duration::from_secs(60);
    while store.durable() < tail {
        assert!(Instant::now() < limit);
        std::thread::yield_now();
    }
    assert_eq!(store.stats().commits, before + 1);
}

#[test]
fn the_probe_commits_and_a_closed_store_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let before = store.stats().commits;
    store.probe().unwrap();
    assert_eq!(store.stats().commits, before + 1);
    store.close().unwrap();
    store.close().unwrap();
    assert_eq!(put_range(&store, QUEUE, 1..=1), store.durable(), "nothing was accepted");
    assert_eq!(store.appender().put_row(RowKind::Vhost, RowId(1), vec![]), Position::NEVER);
    assert!(store.probe().is_err());
}

#[test]
fn many_threads_put_and_delete_and_the_rest_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let threads: Vec<_> = (1..=4u64)
        .map(|queue| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let queue = QueueId(queue);
                let mut places = Vec::new();
                for seq in 1..=2000u64 {
                    let shared = seq.is_multiple_of(50).then(|| store.shared_body(&message("big one"), 1));
                    let text = shared
                        .as_ref()
                        .map_or_else(|| message(&format!("message {seq}")), |s| s.message().clone());
                    places.push((
                        shared.clone(),
                        store.appender().put(queue, Seq(seq), &text, shared.as_ref(), meta(seq)),
                    ));
                    if seq > 10 && !(seq - 10).is_multiple_of(7) {
                        let (shared, place) = &places[seq as usize - 11];
                        store.appender().delete(queue, Seq(seq - 10), 0, shared.as_ref(), *place);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let (store, recovered) = reopen(store);
    for queue in 1..=4 {
        let expected: Vec<u64> = (1..=2000).filter(|seq| seq % 7 == 0 || *seq > 1990).collect();
        assert_eq!(seqs(&store, &recovered, QueueId(queue)), expected);
    }
    assert_eq!(store.failure(), None);
    store.close().unwrap();
    drop(store);
    // 1990 is not a multiple of 7; what is left of the shared ones is each 350th, and 2000.
    assert_eq!(keys(dir.path(), Family::Bodies).len(), 4 * (5 + 1));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    FanOut,
    Delete(u8, u8),
    Drop(u8),
    Sync,
    Crash,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u8..4).prop_map(Step::Put),
        3 => Just(Step::FanOut),
        6 => (1u8..4, any::<u8>()).prop_map(|(queue, at)| Step::Delete(queue, at)),
        1 => (1u8..4).prop_map(Step::Drop),
        3 => Just(Step::Sync),
        1 => Just(Step::Crash),
        1 => Just(Step::Close),
    ]
}

/// What the engine would hold: entries with what is needed to delete them.
type Held = Vec<(Seq, Message, Option<Arc<SharedBody>>, Position)>;

fn held(store: &Store, recovered: &Recovered) -> [Held; 4] {
    let mut queues: [Held; 4] = Default::default();
    for queue in &recovered.queues {
        let entries = entries(store, queue).into_iter();
        // What was dropped has another number since.
        queues[queue.id.0 as usize % 4].extend(entries.map(|e| (e.seq, e.message, e.shared, Position(0))));
    }
    queues
}

fn facts(queues: &[Held; 4]) -> Vec<Vec<(Seq, Message)>> {
    queues
        .iter()
        .map(|held| held.iter().map(|(seq, message, ..)| (*seq, message.clone())).collect())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_store_holds_what_a_model_holds(steps in proptest::collection::vec(step(), 1..80)) {
        let mut dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path());
        let (mut queues, mut next): ([Held; 4], u64) = (Default::default(), 1);
        // As in the engine, a queue's number is never used again.
        let mut ids = [0, 1, 2, 3].map(QueueId);
        for step in steps {
            let mut appender = store.appender();
            match step {
                Step::Put(queue) => {
                    let message = message(&format!("{next}"));
                    let place = appender.put(ids[queue as usize], Seq(next), &message, None, meta(1));
                    queues[queue as usize].push((Seq(next), message, None, place));
                    next += 1;
                }
                Step::FanOut => {
                    let shared = store.shared_body(&message(&next.to_string().repeat(3000)), 3);
                    for (queue, held) in queues.iter_mut().enumerate().skip(1) {
                        let place = appender.put(ids[queue], Seq(next), shared.message(), Some(&shared), meta(1));
                        held.push((Seq(next), shared.message().clone(), Some(Arc::clone(&shared)), place));
                    }
                    next += 1;
                }
                Step::Delete(queue, at) => {
                    let held = &mut queues[queue as usize];
                    if !held.is_empty() {
                        let (seq, _, shared, place) = held.remove(at as usize % held.len());
                        appender.delete(ids[queue as usize], seq, 0, shared.as_ref(), place);
                    }
                }
                Step::Drop(queue) => {
                    let entries = queues[queue as usize].drain(..).map(|(seq, _, shared, place)| (seq, shared, place));
                    appender.drop_queue(ids[queue as usize], entries.collect());
                    ids[queue as usize].0 += 4;
                }
                Step::Sync | Step::Crash | Step::Close => {
                    let tail = appender.tail();
                    drop(appender);
                    wait(&store, tail);
                    let recovered = match step {
                        Step::Sync => continue,
                        Step::Close => {
                            let (reopened, recovered) = reopen(store);
                            store = reopened;
                            recovered
                        }
                        _ => {
                            let image = crash_image(dir.path());
                            let (opened, recovered) = open(image.path());
                            (store, dir) = (opened, image);
                            recovered
                        }
                    };
                    prop_assert!(recovered.quarantined.is_empty());
                    let found = held(&store, &recovered);
                    prop_assert_eq!(facts(&found), facts(&queues));
                    queues = found;
                    continue;
                }
            }
            drop(appender);
        }
        let (store, recovered) = reopen(store);
        prop_assert_eq!(facts(&held(&store, &recovered)), facts(&queues));
        let bodies: std::collections::HashSet<_> =
            queues.iter().flatten().filter_map(|(.., shared, _)| shared.as_ref().map(|s| s.id())).collect();
        store.close().unwrap();
        drop(store);
        prop_assert_eq!(keys(dir.path(), Family::Bodies).len(), bodies.len());
    }
}
