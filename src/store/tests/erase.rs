//! What was deleted leaves the disk in time, from every file.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

pub(super) const WITHIN: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn open_within(dir: &Path, mode: Mode, within: Duration) -> (Arc<Store>, Recovered) {
    let kek = (mode == Mode::Sealed).then(|| kek().into());
    Store::open(OpenOptions { erase_within: within, ..OpenOptions::new(dir, mode, kek) }).unwrap()
}

/// In which files a part of a record's own bytes is found.
pub(super) fn found(dir: &Path, values: &[Vec<u8>]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, bytes) in all_bytes(&dir.join("db")) {
        for (at, value) in values.iter().enumerate() {
            // The message's last words; blocks of a log may cut it anywhere, so two places are tried.
            let parts = [24, 60].map(|from_end| &value[value.len() - from_end..][..24]);
            if parts.iter().any(|part| memchr::memmem::find(&bytes, part).is_some()) {
                found.push(format!("{at} {}", path.extension().unwrap_or_default().display()));
            }
        }
    }
    found
}

/// Waits for the thread, and then for RocksDB, which removes files when it likes to.
pub(super) fn assert_all_gone(store: &Store, values: &[Vec<u8>]) {
    assert!(store.eraser.wait_for_a_round(LIMIT));
    let until = Instant::now() + LIMIT;
    loop {
        let left = found(store.data_dir(), values);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{:?}: {left:?}", store.mode());
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn what_was_acknowledged_leaves_logs_tables_and_blob_files_in_time() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = tempfile::tempdir().unwrap();
        // In its entry, in the table of bodies, in a blob file, in two blob files.
        let sizes = [100, 3000, 20_000, 400_000];
        // Another broker's time is a day: then nothing is removed yet.
        let (store, _) = open_within(dir.path(), mode, Duration::from_secs(86_400));
        let text = |n: usize| message(&format!("{n} says ").repeat(sizes[n % 4] / 7));
        let mut values = Vec::new();
        let mut keys = Vec::new();
        let mut put = |store: &Store, n: usize| {
            let message = text(n);
            let shared = (!n.is_multiple_of(4)).then(|| store.shared_body(&message, 1));
            let place =
                store.appender().put(QUEUE, Seq(n as u64 + 1), &message, shared.as_ref(), meta(n as u64));
            wait(store, place);
            let (family, key) = match &shared {
                None => (Family::Entries, Key::entry(QUEUE, Seq(n as u64 + 1))),
                Some(shared) => (Family::Bodies, Key::body(shared.id(), 0)),
            };
            keys.push((family, key));
            values.push(store.rocks.upgrade().unwrap().value(family, &key).unwrap().unwrap());
            shared
        };
        let first: Vec<_> = (0..4).map(|n| put(&store, n)).collect();
        // The first four go to tables and blob files, the others stay in the log.
        store.rocks.upgrade().unwrap().carry_out_deletions().unwrap();
        let second: Vec<_> = (4..8).map(|n| put(&store, n)).collect();
        for n in 0..8 {
            assert!(found(dir.path(), &values).iter().any(|at| at.starts_with(&format!("{n} "))), "{n}");
        }
        // All but the last two are acknowledged.
        for (n, shared) in first.iter().chain(&second).enumerate().take(6) {
            store.appender().delete(QUEUE, Seq(n as u64 + 1), 0, shared.as_ref(), Position(0));
        }
        store.probe().unwrap();
        assert!(found(dir.path(), &values[..6]).len() >= 6, "nothing goes by itself");
        store.close().unwrap();
        drop((store, first, second));
        let (store, recovered) = open_within(dir.path(), mode, WITHIN);
        assert_eq!(seqs(&store, &recovered, QUEUE), [7, 8]);
        assert_all_gone(&store, &values[..6]);
        for n in 6..8 {
            assert!(!found(dir.path(), &values[n..=n]).is_empty(), "{n} is live");
            let (family, key) = &keys[n];
            assert_eq!(store.rocks.upgrade().unwrap().value(*family, key).unwrap().unwrap(), values[n]);
        }
        // Acknowledged while it serves.
        for entry in entries(&store, recovered.queues.iter().find(|queue| queue.id == QUEUE).unwrap()) {
            store.appender().delete(QUEUE, entry.seq, 0, entry.shared.as_ref(), Position(0));
        }
        store.probe().unwrap();
        assert_all_gone(&store, &values);
        store.close().unwrap();
        drop(store);
        let (store, recovered) = open_within(dir.path(), mode, WITHIN);
        assert!(seqs(&store, &recovered, QUEUE).is_empty());
    }
}

#[test]
fn a_store_is_closed_at_once_while_files_are_being_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let (store, _) = open_within(dir.path(), Mode::Sealed, Duration::from_millis(2));
        let place = put_range(&store, QUEUE, round * 200 + 1..=round * 200 + 200);
        wait(&store, place);
        let mut appender = store.appender();
        (1..100).for_each(|n| appender.delete(QUEUE, Seq(round * 200 + n), 0, None, Position(0)));
        drop(appender);
        store.close().unwrap();
        drop(store);
    }
    let (store, recovered) = open(dir.path());
    assert_eq!(seqs(&store, &recovered, QUEUE).len(), 5 * 101);
    assert_eq!(store.core.counters.deletions.load(Relaxed), 0);
}
