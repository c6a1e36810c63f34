//! Reading on several threads gives what reading on one gives, faults included.

use proptest::prelude::*;

use super::super::parts::{Division, Look, scan_in_parts};
use super::*;
use crate::broker::id::BodyId;

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
    drop(database(dir.path()));
    let mut tables: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).collect();
    tables.retain(|path| path.extension().is_some_and(|suffix| suffix == "sst"));
    tables.sort();
    assert!(tables.len() >= 6, "{tables:?}");
    for path in &tables {
        let mut bytes = fs::read(path).unwrap();
        // In the second of the table's blocks.
        bytes[20_000] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let rocks = Rocks::open(dir.path(), Tail::Whole).unwrap();
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
