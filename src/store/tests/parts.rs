//! Reading on several threads gives what reading on one gives, faults included.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::super::parts::{Division, Look, scan_in_parts};
use super::*;
use crate::broker::id::BodyId;
use crate::limits::{READ_PIECE_SEEN, READ_PIECES_AHEAD};

/// Tells keys, and at the end of each run of bodies its number.
struct Told {
    family: Family,
    last: Option<[u8; 8]>,
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Record(Vec<u8>, Vec<u8>),
    End([u8; 8]),
}

impl Look for Told {
    type Seen = Seen;

    fn look(&mut self, key: &[u8], value: &[u8], seen: &mut Vec<Seen>) {
        let first = *key.first_chunk().unwrap();
        if self.last.is_some_and(|last| last != first) {
            self.end(seen);
        }
        self.last = (self.family == Family::Bodies).then_some(first);
        seen.push(Seen::Record(key.to_vec(), value.to_vec()));
    }

    fn end(&mut self, seen: &mut Vec<Seen>) {
        seen.extend(self.last.take().map(Seen::End));
    }
}

fn read(rocks: &Rocks, family: Family, division: &Division) -> (Vec<Seen>, Option<String>) {
    let mut all = Vec::new();
    let scanned = scan_in_parts(
        rocks,
        family,
        division,
        || Told { family, last: None },
        |seen| {
            all.push(seen);
            Ok(())
        },
    );
    (all, scanned.err().map(|e| e.to_string()))
}

/// A database in three tables that overlap and a log: three queues' entries, and bodies of one to three pieces.
fn database(dir: &Path) -> Rocks {
    for table in 0..4u64 {
        let rocks = Rocks::open(dir, Tail::Whole).unwrap();
        let mut batch = rocks.batch(0).unwrap();
        for number in (table..2000).step_by(4) {
            let entry = Key::entry(QueueId(number % 3 + 1), Seq(number));
            batch.put(Family::Entries, &entry, &[number as u8; 100]);
            let pieces = 0..number as u32 % 3 + 1;
            pieces.for_each(|piece| batch.put(Family::Bodies, &Key::body(BodyId(number), piece), &[7; 100]));
        }
        rocks.write(batch).unwrap();
    }
    Rocks::open(dir, Tail::Whole).unwrap()
}

/// The same, damaged behind the first block of each table.
fn damaged_database(dir: &Path) -> Rocks {
    drop(database(dir));
    let mut tables: Vec<_> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    tables.retain(|path| path.extension().is_some_and(|suffix| suffix == "sst"));
    tables.sort();
    assert!(tables.len() >= 6, "{tables:?}");
    for path in &tables {
        let mut bytes = fs::read(path).unwrap();
        bytes[40_000] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    Rocks::open(dir, Tail::Whole).unwrap()
}

fn division(rocks: &Rocks, family: Family, threads: usize) -> Division {
    Division { cuts: rocks.cuts(family, 4096).unwrap(), threads }
}

#[test]
fn each_record_is_seen_once_in_order_whatever_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let rocks = database(dir.path());
    for (family, records, ends) in [(Family::Entries, 2000, 0), (Family::Bodies, 3999, 2000)] {
        let (alone, error) = read(&rocks, family, &Division { cuts: Vec::new(), threads: 1 });
        assert_eq!((alone.len(), error), (records + ends, None));
        for threads in 1..=5 {
            let division = division(&rocks, family, threads);
            assert!(division.cuts.len() > 20, "{}", division.cuts.len());
            // A body that was cut would end twice.
            let (seen, error) = read(&rocks, family, &division);
            assert!(seen == alone && error.is_none(), "{family:?} on {threads} threads");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn it_does_not_matter_where_a_family_is_cut(
        cuts in proptest::collection::btree_set(proptest::collection::vec(0..6u8, 1..17), 0..30),
        threads in 1..4usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let rocks = database(dir.path());
        let alone = read(&rocks, Family::Entries, &Division { cuts: Vec::new(), threads: 1 });
        let division = Division { cuts: cuts.into_iter().collect(), threads };
        prop_assert!(read(&rocks, Family::Entries, &division) == alone);
    }
}

/// With several threads it could depend on their speed which of two faults is told of, and what was seen before it.
#[test]
fn of_two_faults_the_first_in_order_is_told_whichever_thread_is_first() {
    let dir = tempfile::tempdir().unwrap();
    let rocks = damaged_database(dir.path());
    for family in [Family::Entries, Family::Bodies] {
        let told = |threads| read(&rocks, family, &division(&rocks, family, threads));
        let (seen, error) = told(1);
        let error = error.unwrap();
        assert!(!seen.is_empty() && error.contains(".sst") && error.contains("offset"), "{error}");
        for threads in (2..=5).flat_map(|threads| [threads; 5]) {
            let (seen_by_more, other) = told(threads);
            assert!(seen_by_more == seen && other.as_ref() == Some(&error), "{threads} threads: {other:?}");
        }
    }
}

#[test]
fn a_refusal_ends_the_reading_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let rocks = database(dir.path());
    for threads in 1..=3 {
        let mut left = 700;
        let refused = scan_in_parts(
            &rocks,
            Family::Entries,
            &division(&rocks, Family::Entries, threads),
            || Told { family: Family::Entries, last: None },
            |_| {
                left -= 1;
                if left == 0 { Err(StoreError::system(dir.path(), "enough")) } else { Ok(()) }
            },
        );
        assert_eq!((refused.unwrap_err().code(), left), ("E_SYSTEM", 0));
    }
}

/// Sees much in each record, and counts it.
struct Many<'a> {
    looked: &'a AtomicUsize,
}

/// What is seen of one record.
const MANY: usize = 1000;

impl Look for Many<'_> {
    type Seen = (Seq, usize);

    fn look(&mut self, key: &[u8], _value: &[u8], seen: &mut Vec<(Seq, usize)>) {
        let seq = Seq(u64::from_be_bytes(*key.last_chunk().unwrap()));
        seen.extend((0..MANY).map(|index| (seq, index)));
        self.looked.fetch_add(MANY, Ordering::SeqCst);
    }
}

/// Most that so many threads may have seen that was not taken yet: full lanes, what each thread has in its hand and the
/// piece that is being taken. The last record of a piece may be more than fits.
fn most_ahead(threads: usize) -> usize {
    (threads * (READ_PIECES_AHEAD + 1) + 1) * (READ_PIECE_SEEN + MANY)
}

/// Reads the entries, and gives the records that were seen as a whole, in order, the error, and how far the threads
/// were ahead at most. `left` is how much is taken before it is refused.
fn read_many(rocks: &Rocks, division: &Division, left: usize) -> (Vec<Seq>, Option<String>, usize) {
    let looked = AtomicUsize::new(0);
    let (mut all, mut taken, mut ahead) = (Vec::new(), 0, 0);
    let make = || Many { looked: &looked };
    let scanned = scan_in_parts(rocks, Family::Entries, division, make, |(seq, index)| {
        ahead = ahead.max(looked.load(Ordering::SeqCst) - taken);
        assert_eq!(index, taken % MANY);
        taken += 1;
        all.extend((index == MANY - 1).then_some(seq));
        if taken == left { Err(StoreError::system(rocks.path(), "enough")) } else { Ok(()) }
    });
    // All threads have ended.
    (all, scanned.err().map(|e| e.to_string()), ahead.max(looked.into_inner() - taken))
}

/// Three queues' entries in six parts, each of which is more than all lanes together may hold.
fn large_parts() -> Vec<Vec<u8>> {
    let cuts = [(1, 1000), (2, 0), (2, 1000), (3, 0), (3, 1000)];
    cuts.map(|(queue, seq)| Key::entry(QueueId(queue), Seq(seq)).as_bytes().to_vec()).into()
}

/// A table of several queues' small messages is one part however large it is: what was seen of it was kept as a whole,
/// several times for each thread.
#[test]
fn threads_are_no_further_ahead_than_their_pieces_however_large_the_parts() {
    let dir = tempfile::tempdir().unwrap();
    let rocks = database(dir.path());
    let (alone, error, _) = read_many(&rocks, &Division { cuts: Vec::new(), threads: 1 }, usize::MAX);
    assert_eq!((alone.len(), error), (2000, None));
    for threads in [2, 3] {
        assert!(333 * MANY > most_ahead(threads));
        let division = Division { cuts: large_parts(), threads };
        let (seen, error, ahead) = read_many(&rocks, &division, usize::MAX);
        assert!(seen == alone && error.is_none(), "{threads} threads: {error:?}");
        assert!(ahead <= most_ahead(threads), "{ahead} ahead on {threads} threads");
    }
}

/// Threads whose lanes are full are told as well that nobody listens any more.
#[test]
fn an_error_in_the_middle_of_a_part_ends_all_threads() {
    let dir = tempfile::tempdir().unwrap();
    let rocks = damaged_database(dir.path());
    let alone = read_many(&rocks, &Division { cuts: Vec::new(), threads: 1 }, usize::MAX);
    assert!(!alone.0.is_empty() && alone.1.as_ref().unwrap().contains(".sst"), "{:?}", alone.1);
    for threads in [2, 3] {
        let (seen, error, _) = read_many(&rocks, &Division { cuts: large_parts(), threads }, usize::MAX);
        assert!(seen == alone.0 && error == alone.1, "{threads} threads: {error:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let rocks = database(dir.path());
    for threads in [2, 3] {
        // In the second part, from the middle of a piece.
        let (seen, error, ahead) =
            read_many(&rocks, &Division { cuts: large_parts(), threads }, 400 * MANY + 1);
        assert!(seen.len() == 400 && error.unwrap().contains("enough"));
        assert!(ahead <= most_ahead(threads), "{ahead} ahead on {threads} threads");
    }
}
