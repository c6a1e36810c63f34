//! Reading back what is in the store only, and purging it unread.

use super::super::layout::{Family, Key};
use super::behaviour::keys;
use super::*;
use crate::limits::PURGE_KEYS_MAX;

const ALL: PageRequest = PageRequest {
    queue: QUEUE,
    first: Seq(1),
    last: Seq(u64::MAX),
    len_max: usize::MAX,
    bytes_max: usize::MAX,
};

fn places(page: &StoredPage) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.seq.0).collect()
}

/// Twenty entries of which every third has its body apart, shared with another queue.
fn fill(store: &Store) -> Position {
    let mut last = Position(0);
    for seq in 1..=20u64 {
        let text = message(&format!("message {seq}"));
        let shared = seq.is_multiple_of(3).then(|| store.shared_body(&text, 2));
        let mut appender = store.appender();
        appender.put(QUEUE, Seq(seq), &text, shared.as_ref(), meta(seq));
        if let Some(shared) = &shared {
            appender.put(QueueId(2), Seq(seq), &text, Some(shared), meta(seq));
        }
        last = appender.tail();
    }
    last
}

#[test]
fn a_page_has_the_entries_between_two_places_with_all_their_facts() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
        wait(&store, fill(&store));
        let mut appender = store.appender();
        appender.count_deliveries(QUEUE, Seq(7), 9);
        appender.delete(QUEUE, Seq(5), 0, None, Position(0));
        let tail = appender.tail();
        drop(appender);
        wait(&store, tail);
        let page = store.page(&PageRequest { first: Seq(3), last: Seq(9), ..ALL }).unwrap();
        assert_eq!((places(&page), page.upto, page.quarantined.len()), (vec![3, 4, 6, 7, 8, 9], Seq(9), 0));
        for entry in &page.entries {
            assert_eq!(entry.message, message(&format!("message {}", entry.seq.0)));
            assert_eq!((entry.meta, entry.shared.is_some()), (meta(entry.seq.0), entry.seq.0 % 3 == 0));
            assert_eq!(entry.delivery_count, if entry.seq == Seq(7) { 9 } else { 3 });
        }
    }
}

#[test]
fn a_page_ends_at_its_bounds_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, fill(&store));
    let page = store.page(&PageRequest { len_max: 4, ..ALL }).unwrap();
    assert_eq!((places(&page), page.upto), (vec![1, 2, 3, 4], Seq(4)));
    let body = page.entries[0].message.body().len();
    let page = store.page(&PageRequest { bytes_max: 2 * body, ..ALL }).unwrap();
    assert_eq!((places(&page), page.upto), (vec![1, 2], Seq(2)));
    let page = store.page(&PageRequest { first: Seq(19), len_max: 2, ..ALL }).unwrap();
    assert_eq!((places(&page), page.upto), (vec![19, 20], ALL.last), "there is no more");
    store.close().unwrap();
    assert_eq!(store.page(&ALL).unwrap_err().code(), "E_COMMIT_FAILED");
}

#[test]
fn what_is_damaged_is_in_the_pages_quarantine_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, fill(&store));
    store.close().unwrap();
    drop(store);
    let rocks = super::super::rocks::Rocks::open(&dir.path().join("db"), Tail::Whole).unwrap();
    let (entry, body) = (Key::entry(QUEUE, Seq(2)), Key::body(crate::broker::id::BodyId(1), 0));
    let mut batch = rocks.batch(0).unwrap();
    for (family, key) in [(Family::Entries, entry), (Family::Bodies, body)] {
        let mut value = rocks.value(family, &key).unwrap().unwrap();
        value[40] ^= 1;
        batch.put(family, &key, &value);
    }
    rocks.write(batch).unwrap();
    drop(rocks);
    let (store, _) = open(dir.path());
    let page = store.page(&PageRequest { last: Seq(4), ..ALL }).unwrap();
    assert_eq!(places(&page), [1, 4]);
    let codes: Vec<_> = page.quarantined.iter().map(|lost| (lost.seq.0, lost.code)).collect();
    assert_eq!(codes, [(2, "E_RECORD_FORGED"), (3, "E_RECORD_FORGED")]);
}

/// A body read back by two queues is counted once: it goes with the last of its entries, and not before.
#[test]
fn a_body_that_was_read_back_goes_with_its_last_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, fill(&store));
    let bodies = |queue| {
        let page = store.page(&PageRequest { queue, ..ALL }).unwrap();
        page.entries.into_iter().filter_map(|entry| Some((entry.seq, entry.shared?))).collect::<Vec<_>>()
    };
    let read = [QUEUE, QueueId(2)].map(|queue| (queue, bodies(queue)));
    for ((queue, bodies), left) in read.into_iter().zip([6, 0]) {
        let mut appender = store.appender();
        bodies.iter().for_each(|(seq, body)| appender.delete(queue, *seq, 0, Some(body), Position(0)));
        let tail = appender.tail();
        drop(appender);
        wait(&store, tail);
        assert_eq!(keys(crash_image(dir.path()).path(), Family::Bodies).len(), left);
    }
}

/// What is not cleared away yet when the store is opened again once lay within a run, and came back with it.
#[test]
fn a_purged_range_does_not_come_back_even_after_a_crash_and_takes_its_bodies_along() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    fill(&store);
    let count = 2 * PURGE_KEYS_MAX as u64 + 100;
    wait(&store, put_range(&store, QUEUE, 21..=count));
    let purged = store.appender().purge_range(QUEUE, Seq(3), Seq(count - 1), 0);
    wait(&store, purged);
    let image = crash_image(dir.path());
    for (store, recovered) in [open(image.path()), reopen(store)] {
        assert_eq!(seqs(&store, &recovered, QUEUE), [1, 2, count]);
        assert_eq!(seqs(&store, &recovered, QueueId(2)), [3, 6, 9, 12, 15, 18]);
        store.close().unwrap();
        let dir = store.data_dir().to_path_buf();
        drop(store);
        assert_eq!((keys(&dir, Family::Entries).len(), keys(&dir, Family::Bodies).len()), (3 + 6, 6));
        let left = keys(&dir, Family::Meta);
        assert!(!left.contains(&Key::purging(QUEUE, Seq(3)).as_bytes().to_vec()), "the mark is gone, too");
        let (store, _) = open(&dir);
        // With the other queue's entries their bodies go.
        let dropped = store.appender().drop_queue(QueueId(2), Vec::new());
        wait(&store, dropped);
        store.close().unwrap();
        drop(store);
        assert!(keys(&dir, Family::Bodies).is_empty());
    }
}

/// The directory was said to be free while a page was still being read, and opening it again was refused.
#[test]
fn closing_waits_for_who_is_reading() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, fill(&store));
    let mut reader =
        super::super::reader::Reader::new(&store.core, &store.rocks, store.store, false).unwrap();
    let rocks = Weak::clone(&store.rocks);
    let reading = std::thread::spawn(move || {
        // Until the committer has ended, which is a moment before closing did.
        while rocks.strong_count() > 1 {
            std::thread::yield_now();
        }
        (0..200).for_each(|_| assert_eq!(reader.page(&ALL).unwrap().entries.len(), 20));
    });
    store.close().unwrap();
    assert_eq!(store.rocks.strong_count(), 0);
    let (store, recovered) = open(dir.path());
    assert_eq!(seqs(&store, &recovered, QUEUE).len(), 20);
    reading.join().unwrap();
}
