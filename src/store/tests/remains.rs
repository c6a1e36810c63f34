//! What was deleted without a tombstone stays deleted, whatever comes between; and everything else stays.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::committer::Committer;
use super::super::op::{Op, Put};
use super::super::reader::Reader;
use super::erase::{WITHIN, assert_all_gone, found, open_within};
use super::*;
use crate::broker::id::BodyId;

const OTHER: QueueId = QueueId(2);
const NONE: [u64; 0] = [];

/// What was put until now is in tables, and the store knows it.
fn settle_in_tables(store: &Store) {
    let rocks = store.rocks.upgrade().unwrap();
    rocks.carry_out_deletions().unwrap();
    drop(rocks);
    store.probe().unwrap();
}

fn delete(store: &Store, queue: QueueId, seqs: impl IntoIterator<Item = u64>) {
    let mut appender = store.appender();
    seqs.into_iter().for_each(|seq| appender.delete(queue, Seq(seq), 0, None, Position(0)));
    drop(appender);
    store.probe().unwrap();
}

/// The places of which the database shows a record.
fn standing(rocks: &Rocks, queue: QueueId) -> Vec<u64> {
    let mut seqs = Vec::new();
    rocks
        .range(Family::Entries, &Key::entry(queue, Seq(0)), &Key::entry(queue, Seq(u64::MAX)), |key, _| {
            seqs.push(u64::from_be_bytes(key[8..].try_into().unwrap()));
            Ok(true)
        })
        .unwrap();
    seqs
}

fn shown(store: &Store, queue: QueueId) -> Vec<u64> {
    standing(&store.rocks.upgrade().unwrap(), queue)
}

fn list(seqs: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    seqs.collect()
}

/// All that a page shows of a queue.
fn paged(store: &Store, queue: QueueId) -> Vec<u64> {
    let (first, last) = (Seq(1), Seq(u64::MAX));
    let page =
        store.page(&PageRequest { queue, first, last, len_max: usize::MAX, bytes_max: usize::MAX }).unwrap();
    assert_eq!(page.quarantined, []);
    page.entries.iter().map(|entry| entry.seq.0).collect()
}

fn open_as(dir: &Path, mode: Mode) -> (Arc<Store>, Recovered) {
    try_open(dir, mode, (mode == Mode::Sealed).then(kek)).unwrap()
}

#[test]
fn what_stands_before_the_head_is_deleted_without_a_tombstone_and_stays_deleted() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open_as(dir.path(), mode);
        wait(&store, put_range(&store, QUEUE, 1..=100));
        settle_in_tables(&store);
        let before = store.core.deletions();
        delete(&store, QUEUE, 1..=50);
        assert_eq!(store.core.deletions() - before, 50);
        assert_eq!((shown(&store, QUEUE), paged(&store, QUEUE)), (list(1..=100), list(51..=100)));
        let image = crash_image(dir.path());
        let (again, recovered) = open_as(image.path(), mode);
        assert_eq!(seqs(&again, &recovered, QUEUE), list(51..=100));
        assert_eq!((recovered.quarantined.len(), recovered.queues[0].next_seq), (0, Seq(101)));
        assert_eq!((shown(&again, QUEUE), paged(&again, QUEUE)), (list(1..=100), list(51..=100)));
        // An orderly end leaves none.
        let (again, recovered) = match mode {
            Mode::Sealed => reopen(again),
            Mode::PlainInsecure => {
                again.close().unwrap();
                drop(again);
                open_as(image.path(), mode)
            }
        };
        assert_eq!((seqs(&again, &recovered, QUEUE), shown(&again, QUEUE)), (list(51..=100), list(51..=100)));
        delete(&again, QUEUE, 51..=100);
        let image = crash_image(image.path());
        assert_eq!(seqs_of(image.path(), mode, QUEUE), NONE);
    }
}

fn seqs_of(dir: &Path, mode: Mode, queue: QueueId) -> Vec<u64> {
    let (store, recovered) = open_as(dir, mode);
    assert_eq!((recovered.quarantined.len(), recovered.faults.len()), (0, 0));
    seqs(&store, &recovered, queue)
}

#[test]
fn what_was_put_of_late_or_stands_behind_the_head_gets_its_tombstone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=100));
    settle_in_tables(&store);
    delete(&store, QUEUE, 10..=20);
    assert_eq!(shown(&store, QUEUE), [list(1..=9), list(21..=100)].concat());
    delete(&store, QUEUE, 1..=9);
    assert_eq!(shown(&store, QUEUE), [list(1..=9), list(21..=100)].concat());
    wait(&store, put_range(&store, OTHER, 1..=9));
    delete(&store, OTHER, 1..=5);
    assert_eq!(shown(&store, OTHER), list(6..=9));
    let image = crash_image(dir.path());
    let (again, recovered) = open(image.path());
    assert_eq!(seqs(&again, &recovered, QUEUE), list(21..=100));
    assert_eq!(seqs(&again, &recovered, OTHER), list(6..=9));
}

/// A transaction has its places before it is committed, and the queue's head may have passed them by then.
#[test]
fn a_put_behind_the_head_does_not_bring_back_what_remains_there() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=7));
    wait(&store, put_range(&store, QUEUE, 9..=20));
    settle_in_tables(&store);
    delete(&store, QUEUE, (1..=20).filter(|seq| *seq != 8));
    assert_eq!(shown(&store, QUEUE).len(), 19);
    wait(&store, put_range(&store, QUEUE, 8..=8));
    assert_eq!((shown(&store, QUEUE), paged(&store, QUEUE)), (list(1..=8), vec![8]));
    let image = crash_image(dir.path());
    assert_eq!(seqs_of(image.path(), Mode::Sealed, QUEUE), [8]);
    delete(&store, QUEUE, [8]);
    let image = crash_image(dir.path());
    assert_eq!(seqs_of(image.path(), Mode::Sealed, QUEUE), NONE);
}

#[test]
fn what_remains_of_a_queue_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=100));
    wait(&store, put_range(&store, OTHER, 1..=3));
    settle_in_tables(&store);
    // One whose entries are all gone, and one that has some.
    delete(&store, QUEUE, 1..=50);
    delete(&store, OTHER, 1..=3);
    let place = store.appender().drop_queue(QUEUE, vec![]);
    wait(&store, place);
    let image = crash_image(dir.path());
    assert_eq!(seqs_of(image.path(), Mode::Sealed, QUEUE), NONE);
    let place = store.appender().drop_queue(OTHER, vec![]);
    wait(&store, place);
    while !shown(&store, QUEUE).is_empty() {
        store.probe().unwrap();
    }
    assert_eq!(shown(&store, OTHER), NONE);
    let image = crash_image(dir.path());
    let (again, recovered) = open(image.path());
    assert!(recovered.queues.is_empty() && recovered.faults.is_empty());
    assert_eq!((shown(&again, QUEUE), shown(&again, OTHER)), (vec![], vec![]));
}

/// A key goes with its last live record, and what remains under it cannot be opened any more, and need not.
#[test]
fn what_remains_under_a_key_that_is_gone_is_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=10));
    store.rotate_data_key().unwrap();
    wait(&store, put_range(&store, QUEUE, 11..=20));
    settle_in_tables(&store);
    assert_eq!(store.keyring().unwrap().keys.len(), 2);
    delete(&store, QUEUE, 1..=10);
    assert_eq!((store.keyring().unwrap().keys.len(), shown(&store, QUEUE)), (1, list(1..=20)));
    let image = crash_image(dir.path());
    assert_eq!(seqs_of(image.path(), Mode::Sealed, QUEUE), list(11..=20));
    let (image, credential) = (crash_image(dir.path()), Some(kek().into()));
    let (dir, anchor) = (image.path().to_path_buf(), None);
    let audit = audit(AuditOptions { dir, credential, anchor, demands_anchor: true }, &mut |_| {}).unwrap();
    assert_eq!((audit.faults.len(), audit.counts.entries, audit.queues[0].messages), (0, 10, 10));
    assert!(audit.notes.iter().any(|note| note.starts_with("10 deleted messages")), "{:?}", audit.notes);
}

/// An entry that cannot be read is live: the head does not pass it, and nothing of it goes.
#[test]
fn an_entry_in_quarantine_keeps_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=9));
    store.close().unwrap();
    drop(store);
    tamper(dir.path(), |rocks, put| {
        let mut value = rocks.value(Family::Entries, &Key::entry(QUEUE, Seq(2))).unwrap().unwrap();
        value[60] ^= 1;
        put(Family::Entries, &Key::entry(QUEUE, Seq(2)), Some(value));
    });
    let (store, recovered) = open(dir.path());
    assert_eq!(recovered.quarantined.len(), 1);
    settle_in_tables(&store);
    delete(&store, QUEUE, [1, 3, 4, 5]);
    assert_eq!(shown(&store, QUEUE), [1, 2, 6, 7, 8, 9]);
    let image = crash_image(dir.path());
    let (again, recovered) = open(image.path());
    assert_eq!(recovered.quarantined.iter().map(|entry| entry.seq.0).collect::<Vec<_>>(), [2]);
    assert_eq!(seqs(&again, &recovered, QUEUE), [6, 7, 8, 9]);
    let (again, recovered) = reopen(again);
    assert_eq!((recovered.quarantined.len(), shown(&again, QUEUE)), (1, vec![2, 6, 7, 8, 9]));
}

/// A message that is put back after it was acknowledged, with all its bytes, is not delivered again.
#[test]
fn a_message_that_is_put_back_before_the_head_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=9));
    let key = Key::entry(QUEUE, Seq(2));
    let value = store.rocks.upgrade().unwrap().value(Family::Entries, &key).unwrap();
    delete(&store, QUEUE, 1..=3);
    store.close().unwrap();
    drop(store);
    tamper(dir.path(), |_, put| put(Family::Entries, &key, value.clone()));
    let (store, recovered) = open(dir.path());
    assert_eq!((seqs(&store, &recovered, QUEUE), recovered.quarantined.len()), (list(4..=9), 0));
    assert_eq!((shown(&store, QUEUE)[0], paged(&store, QUEUE)), (2, list(4..=9)));
    let (store, _) = reopen(store);
    assert_eq!(shown(&store, QUEUE), list(4..=9));
}

/// Neither a table nor a log holds any of it when the time is over, after a kill and while the broker serves.
#[test]
fn what_remains_leaves_the_disk_in_time() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open_within(dir.path(), mode, Duration::from_secs(86_400));
        let text = |seq: u64| message(&format!("{seq} says ").repeat(15));
        let mut appender = store.appender();
        for seq in 1..=40 {
            appender.put(QUEUE, Seq(seq), &text(seq), None, meta(seq));
        }
        drop(appender);
        store.probe().unwrap();
        settle_in_tables(&store);
        let value = |seq| {
            store.rocks.upgrade().unwrap().value(Family::Entries, &Key::entry(QUEUE, Seq(seq))).unwrap()
        };
        let values: Vec<_> = (1..=40).map(|seq| value(seq).unwrap()).collect();
        delete(&store, QUEUE, 1..=20);
        let image = crash_image(dir.path());
        assert_eq!(found(image.path(), &values).len(), 40, "deleted, and still there");
        let (again, recovered) = open_within(image.path(), mode, WITHIN);
        assert_eq!(seqs(&again, &recovered, QUEUE), list(21..=40));
        assert_all_gone(&again, &values[..20]);
        assert_eq!(found(image.path(), &values[20..]).len(), 20);
        delete(&again, QUEUE, 21..=30);
        assert_all_gone(&again, &values[..30]);
        assert_eq!((shown(&again, QUEUE), paged(&again, QUEUE)), (list(31..=40), list(31..=40)));
        assert_eq!(found(image.path(), &values[30..]).len(), 10);
    }
}

/// Tables that hold nothing else are dropped while the others stay, whole queues' among them.
#[test]
fn tables_of_what_remains_are_dropped_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions::new(dir.path(), Mode::Sealed, Some(kek().into()));
    let (mut committer, ..) = super::super::open::prepare(options).unwrap();
    let work = |committer: &mut Committer, mut ops: Vec<Op>| {
        committer.core.charge(ops.iter().map(Op::charge).sum());
        committer.commit(&mut ops, false).unwrap();
        committer.reclaim();
    };
    let put = |queue, seq| {
        Op::Put(Put { queue, seq: Seq(seq), message: message("text"), shared: None, meta: meta(seq) })
    };
    let rocks = Arc::clone(&committer.rocks);
    for (queue, seqs) in [(QUEUE, 1..=50), (QUEUE, 51..=100), (OTHER, 1..=50)] {
        work(&mut committer, seqs.map(|seq| put(queue, seq)).collect());
        rocks.carry_out_deletions().unwrap();
        rocks.begin_flush_of(Family::Entries);
    }
    // Each full compaction makes one table of all; the last puts are in one of their own.
    work(&mut committer, (101..=150).map(|seq| put(QUEUE, seq)).collect());
    let remove = |seq| Op::Delete { queue: QUEUE, seq: Seq(seq), bytes: 0, shared: None };
    work(&mut committer, (1..=120).map(remove).collect());
    committer.sweeper.hurry(vec![QUEUE, OTHER]);
    work(&mut committer, vec![Op::Touch]);
    let left = standing(&rocks, QUEUE);
    assert!(left.ends_with(&list(121..=150)), "{left:?}");
    assert_eq!(standing(&rocks, OTHER), list(1..=50));
    drop((committer, rocks));
    assert_eq!(seqs_of(dir.path(), Mode::Sealed, QUEUE), list(121..=150));
    assert_eq!(seqs_of(dir.path(), Mode::Sealed, OTHER), list(1..=50));
}

/// What is purged is cleared away after a start, and with it the bodies that it names; what had been deleted before has
/// no part in that, though it stands there: its body would be given back twice, and the body's key with it too early.
#[test]
fn a_purge_that_a_start_takes_up_is_not_of_what_was_deleted_before() {
    for at_once in [false, true] {
        let mut bench = Bench::new(0);
        bench.step(Step::PutApart(10, false));
        bench.step(Step::BeginTable);
        if at_once {
            bench.step(Step::DeleteAt(0, 4));
            bench.step(Step::Purge(0, 0, 0));
        } else {
            bench.step(Step::Delete(0, 5));
            bench.commit(false);
            bench.step(Step::Purge(0, 0, 0));
        }
        bench.step(Step::PutApart(2, true));
        bench.commit(false);
        assert!(!bench.committer().purges.is_empty());
        bench.open();
        bench.assert_bodies();
        bench.step(Step::Crash);
        bench.assert_bodies();
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many messages, in their entries.
    Put(usize, u64),
    /// Messages that stand apart, for both queues, or for one.
    PutApart(u64, bool),
    /// A place is given out, as to a transaction.
    Reserve(usize),
    /// What was given out last is put.
    PutReserved,
    /// So many from the head.
    Delete(usize, usize),
    /// One somewhere.
    DeleteAt(usize, usize),
    /// Everything but so many at the head and the tail.
    Purge(usize, usize, usize),
    /// The queue goes; whether its bodies are told.
    Drop(usize, bool),
    BeginTable,
    Compact,
    Sweep,
    Reclaim,
    Commit,
    Crash,
    End,
}

fn step() -> impl Strategy<Value = Step> {
    let queue = || 0..2usize;
    prop_oneof![
        8 => (queue(), 1..12u64).prop_map(|(queue, count)| Step::Put(queue, count)),
        4 => (1..4u64, any::<bool>()).prop_map(|(count, both)| Step::PutApart(count, both)),
        2 => queue().prop_map(Step::Reserve),
        2 => Just(Step::PutReserved),
        8 => (queue(), 1..15usize).prop_map(|(queue, count)| Step::Delete(queue, count)),
        4 => (queue(), 0..20usize).prop_map(|(queue, at)| Step::DeleteAt(queue, at)),
        2 => (queue(), 0..5usize, 0..5usize).prop_map(|(queue, head, tail)| Step::Purge(queue, head, tail)),
        1 => (queue(), any::<bool>()).prop_map(|(queue, told)| Step::Drop(queue, told)),
        8 => Just(Step::BeginTable),
        2 => Just(Step::Compact),
        2 => Just(Step::Sweep),
        4 => Just(Step::Reclaim),
        4 => Just(Step::Commit),
        3 => Just(Step::Crash),
        1 => Just(Step::End),
    ]
}

/// A message, and its body if that stands apart.
type Held = (String, Option<Arc<SharedBody>>);

/// A store without its thread, and what it must hold.
struct Bench {
    dir: tempfile::TempDir,
    committer: Option<Committer>,
    store: [u8; 16],
    queues: [QueueId; 2],
    next: BTreeMap<QueueId, u64>,
    live: BTreeMap<(QueueId, u64), Held>,
    reserved: Vec<(QueueId, u64)>,
    ops: Vec<Op>,
    next_text: u64,
    /// From so many bytes on a queue is long.
    long_bytes_min: u64,
}

impl Bench {
    fn new(long_bytes_min: u64) -> Bench {
        let mut bench = Bench {
            dir: tempfile::tempdir().unwrap(),
            committer: None,
            store: [0; 16],
            queues: [QUEUE, OTHER],
            next: BTreeMap::new(),
            live: BTreeMap::new(),
            reserved: Vec::new(),
            ops: Vec::new(),
            next_text: 0,
            long_bytes_min,
        };
        bench.open();
        bench
    }

    fn committer(&mut self) -> &mut Committer {
        self.committer.as_mut().unwrap()
    }

    fn commit(&mut self, clean: bool) {
        let mut ops = std::mem::take(&mut self.ops);
        let committer = self.committer();
        committer.core.charge(ops.iter().map(Op::charge).sum());
        committer.commit(&mut ops, clean).unwrap();
        committer.destroy_queue_keys();
        committer.reclaim();
        committer.tend_keys();
    }

    fn end_purges(&mut self) {
        self.commit(false);
        while !self.committer().purges.is_empty() {
            self.commit(false);
        }
    }

    fn place(&mut self, queue: QueueId) -> u64 {
        let next = self.next.entry(queue).or_insert(1);
        *next += 1;
        *next - 1
    }

    fn put(&mut self, queue: QueueId, seq: u64, shared: Option<Arc<SharedBody>>) {
        self.next_text += 1;
        let message = match &shared {
            Some(shared) => shared.message().clone(),
            None => message(&format!("text {}", self.next_text)),
        };
        let text = String::from_utf8(message.body().to_vec()).unwrap();
        self.live.insert((queue, seq), (text, shared.clone()));
        self.ops.push(Op::Put(Put { queue, seq: Seq(seq), message, shared, meta: meta(0) }));
    }

    fn delete(&mut self, queue: QueueId, seq: u64) {
        let Some((text, shared)) = self.live.remove(&(queue, seq)) else { return };
        self.ops.push(Op::Delete { queue, seq: Seq(seq), bytes: text.len() as u32, shared });
    }

    fn of(&self, queue: QueueId) -> Vec<u64> {
        self.live.range((queue, 0)..=(queue, u64::MAX)).map(|((_, seq), _)| *seq).collect()
    }

    fn open(&mut self) {
        self.committer = None;
        self.ops.clear();
        let options = OpenOptions::new(self.dir.path(), Mode::Sealed, Some(kek().into()));
        let (committer, recovered, store) = super::super::open::prepare(options).unwrap();
        assert_eq!((recovered.quarantined.len(), recovered.faults.len()), (0, 0));
        self.store = store;
        let mut reader =
            Reader::new(&committer.core, &Arc::downgrade(&committer.rocks), store, false).unwrap();
        let mut found = BTreeMap::new();
        for queue in &recovered.queues {
            for run in &queue.runs {
                let (first, last) = (run.first, run.last);
                let (len_max, bytes_max) = (usize::MAX, usize::MAX);
                let page = PageRequest { queue: queue.id, first, last, len_max, bytes_max };
                let page = reader.page(&page).unwrap();
                assert_eq!((page.quarantined.len(), page.entries.len() as u64), (0, run.count));
                for entry in page.entries {
                    let text = String::from_utf8(entry.message.body().to_vec()).unwrap();
                    found.insert((queue.id, entry.seq.0), (text, entry.shared));
                }
            }
        }
        let texts = |live: &BTreeMap<(QueueId, u64), Held>| -> BTreeMap<(QueueId, u64), String> {
            live.iter().map(|(place, (text, _))| (*place, text.clone())).collect()
        };
        assert_eq!(texts(&found), texts(&self.live));
        self.live = found;
        self.committer = Some(committer);
        self.committer().ledger.long_queue_bytes_min = self.long_bytes_min;
        self.ops.push(Op::Touch);
        self.commit(false);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put(queue, count) => {
                let queue = self.queues[queue];
                for _ in 0..count {
                    let seq = self.place(queue);
                    self.put(queue, seq, None);
                }
            }
            Step::PutApart(count, both) => {
                for _ in 0..count {
                    let queues = if both { self.queues.to_vec() } else { vec![self.queues[0]] };
                    let core = Arc::clone(&self.committer().core);
                    let id = BodyId(core.next_body.fetch_add(1, Relaxed));
                    let text = message(&format!("apart {} ", id.0).repeat(30));
                    let shared = Arc::new(SharedBody::new(id, text, queues.len() as u32));
                    core.charge(shared.charge());
                    for queue in queues {
                        let seq = self.place(queue);
                        self.put(queue, seq, Some(Arc::clone(&shared)));
                    }
                }
            }
            Step::Reserve(queue) => {
                let queue = self.queues[queue];
                let seq = self.place(queue);
                self.reserved.push((queue, seq));
            }
            Step::PutReserved => {
                // What is put into the range of a purge that is under way is that purge's.
                self.end_purges();
                if let Some((queue, seq)) = self.reserved.pop() {
                    self.put(queue, seq, None);
                }
            }
            Step::Delete(queue, count) => {
                let queue = self.queues[queue];
                self.of(queue).into_iter().take(count).for_each(|seq| self.delete(queue, seq));
            }
            Step::DeleteAt(queue, at) => {
                let queue = self.queues[queue];
                self.of(queue).get(at).into_iter().for_each(|seq| self.delete(queue, *seq));
            }
            Step::Purge(queue, head, tail) => {
                let queue = self.queues[queue];
                let seqs = self.of(queue);
                let Some(seqs) = seqs.get(head..seqs.len().saturating_sub(tail)) else { return };
                let (Some(first), Some(last)) = (seqs.first(), seqs.last()) else { return };
                // Also from before the head, which nothing asks for.
                let first = if head == 0 { 0 } else { *first };
                self.ops.push(Op::PurgeRange { queue, first: Seq(first), last: Seq(*last), bytes: 0 });
                seqs.iter().for_each(|seq| drop(self.live.remove(&(queue, *seq))));
            }
            Step::Drop(at, told) => {
                let queue = self.queues[at];
                let gone = self.of(queue).into_iter();
                let gone = gone.filter_map(|seq| Some((Seq(seq), self.live.remove(&(queue, seq))?.1?)));
                let bodies: Vec<_> = gone.collect();
                self.live.retain(|(of, _), _| *of != queue);
                self.reserved.retain(|(of, _)| *of != queue);
                self.ops.push(Op::DropQueue { queue, bodies: if told { bodies } else { Vec::new() } });
                self.queues[at] = QueueId(queue.0 + 2);
            }
            Step::BeginTable => {
                self.commit(false);
                self.committer().rocks.begin_flush_of(Family::Entries);
                self.ops.push(Op::Touch);
                self.commit(false);
            }
            Step::Compact => self.committer().rocks.carry_out_deletions().unwrap(),
            Step::Sweep => self.ops.push(Op::Sweep),
            Step::Reclaim => {
                let queues = self.queues.to_vec();
                self.committer().sweeper.hurry(queues);
                self.commit(false);
            }
            Step::Commit => self.assert_bodies(),
            Step::Crash => {
                self.commit(false);
                self.open();
            }
            Step::End => {
                self.end_purges();
                self.commit(true);
                for queue in self.queues {
                    let rocks = Arc::clone(&self.committer().rocks);
                    assert_eq!(standing(&rocks, queue), self.of(queue));
                }
                self.open();
            }
        }
    }

    /// Whether exactly the bodies are there that are named, and as many records are counted as there are.
    fn assert_bodies(&mut self) {
        self.end_purges();
        let mut found = BTreeSet::new();
        let rocks = Arc::clone(&self.committer().rocks);
        rocks
            .scan(Family::Bodies, |key, _| {
                found.insert(u64::from_be_bytes(key[..8].try_into().unwrap()));
                Ok(())
            })
            .unwrap();
        let named = self.live.values().filter_map(|(_, shared)| Some(shared.as_ref()?.id().0));
        assert_eq!(found, named.collect());
        // A key that is released too often goes too early.
        let key_use = &self.committer.as_ref().unwrap().ledger.key_use;
        let records: u64 = key_use.ids().map(|key| key_use.count(key)).sum();
        assert_eq!(records, (self.live.len() + found.len()) as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(nightly(24, 2000) as u32))]

    #[test]
    fn the_store_holds_what_was_put_and_not_deleted_and_nothing_else(
        steps in proptest::collection::vec(step(), 1..60),
        // Always, now and then, seldom.
        long_bytes_min in prop_oneof![2 => Just(0), 2 => Just(150), 1 => Just(400)],
    ) {
        let mut bench = Bench::new(long_bytes_min);
        steps.into_iter().for_each(|step| bench.step(step));
        bench.step(Step::Crash);
        bench.assert_bodies();
        bench.step(Step::End);
        bench.assert_bodies();
    }
}
