//! An audit changes nothing, names every fault with its place, and never finds sound what opening would refuse.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::super::fault::Fault;
use super::damage::{MESSAGES, change, copy_of, files_of, killed, newest_log, options, scatter, try_options};
use super::*;
use crate::broker::id::{BodyId, RowId};

fn audit_options(dir: &Path) -> AuditOptions {
    let credential = Some(kek().into());
    AuditOptions { dir: dir.to_path_buf(), credential, anchor: None, demands_anchor: true }
}

fn audited(dir: &Path) -> Audit {
    audit(audit_options(dir), &mut |_| {}).unwrap()
}

fn refused(options: AuditOptions) -> &'static str {
    audit(options, &mut |_| {}).unwrap_err().code()
}

/// What an audit must leave as it is: of each file and folder its name, content, times, mode and number.
#[derive(Debug, PartialEq, Eq)]
struct Footprint(BTreeMap<PathBuf, (Vec<u8>, [i64; 6])>);

fn footprint(dir: &Path) -> Footprint {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).chain([folder.clone()])
        {
            let facts = fs::symlink_metadata(&path).unwrap();
            let numbers = [
                facts.mtime(),
                facts.mtime_nsec(),
                facts.ctime(),
                facts.ctime_nsec(),
                facts.ino() as i64,
                facts.mode().into(),
            ];
            let content = if facts.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if facts.is_dir() && path != folder {
                folders.push(path.clone());
            }
            found.insert(path, (content, numbers));
        }
    }
    Footprint(found)
}

/// Of a store that was closed, of one that was killed with commits in its log, and of a torn log, in either mode.
#[test]
fn an_audit_changes_no_byte_no_time_and_no_name() {
    let torn = killed();
    let (log, _) = newest_log(torn.path());
    change(&log, |bytes| bytes.extend([1, 2, 3]));
    let plain = filled(Mode::PlainInsecure);
    for dir in [filled(Mode::Sealed), killed(), torn, plain] {
        let before = footprint(dir.path());
        let audit = audited(dir.path());
        assert!(audit.faults.is_empty() && audit.is_complete, "{:?}", audit.faults);
        assert_eq!(footprint(dir.path()), before);
        let names = before.0.keys().filter(|path| path.extension().is_some_and(|suffix| suffix == "log"));
        assert!(names.count() > 0, "there was a log that opening would have replayed");
    }
}

#[test]
fn a_sound_store_is_counted_to_the_last_record() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = filled(mode);
        let audit = audited(dir.path());
        assert_eq!((audit.faults, audit.fault_count, audit.is_complete), (vec![], 0, true));
        let counts = audit.counts;
        assert_eq!((counts.entries, counts.bodies, counts.rows, counts.manifests), (5, 1, 1, 2));
        assert_eq!(counts.records, 5 + 2 + 1 + 2 + 1, "a body in two pieces, and the commit row");
        let queues: Vec<_> = audit.queues.iter().map(|q| (q.queue.0, q.messages, q.next_seq)).collect();
        assert_eq!(queues, [(1, 4, 5), (2, 1, 2)]);
        assert_eq!(audit.rows[0].plaintext, b"orders");
        let commit = audit.commit.unwrap();
        assert!(commit.clean && audit.anchor.1 == commit.commit_seq, "{:?}", audit.notes);
        assert_eq!(audit.keyring.is_some(), mode == Mode::Sealed);
        assert_eq!(audit.store.len(), 36);
    }
    let audit = audited(killed().path());
    assert!(audit.faults.is_empty() && audit.notes.iter().any(|note| note.contains("not stopped in order")));
    assert_eq!(audit.counts.entries, MESSAGES);
}

#[test]
fn a_store_in_use_is_refused_and_one_that_is_audited_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=3));
    assert_eq!(refused(audit_options(dir.path())), "E_STORE_LOCKED");
    store.close().unwrap();
    drop(store);
    let mut tried = 0;
    let audit = audit(audit_options(dir.path()), &mut |_| {
        tried += 1;
        assert_eq!(sealed_code(dir.path()), "E_STORE_LOCKED");
    });
    assert!(audit.unwrap().faults.is_empty() && tried > 0);
    assert!(try_open(dir.path(), Mode::Sealed, Some(kek())).is_ok());
}

#[test]
fn without_the_right_key_or_without_a_store_there_is_no_verdict() {
    let dir = filled(Mode::Sealed);
    assert_eq!(refused(AuditOptions { credential: None, ..audit_options(dir.path()) }), "E_KEK_UNAVAILABLE");
    let other = Kek::take(&mut std::array::from_fn(|i| 200 - i as u8));
    let options = AuditOptions { credential: Some(other.into()), ..audit_options(dir.path()) };
    assert_eq!(refused(options), "E_KEK_WRONG");
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(refused(audit_options(empty.path())), "E_STORE_IO");
    assert_eq!(refused(audit_options(&empty.path().join("absent"))), "E_STORE_IO");
}

/// What somebody does to a store, and the first fault's code, queue and place that must be told.
type Case = (&'static str, fn(&Path), &'static str, Option<u64>, Option<u64>);

fn put(dir: &Path, family: Family, key: Key, make: impl FnOnce(Option<Vec<u8>>) -> Option<Vec<u8>>) {
    tamper(dir, |rocks, put| {
        let value = make(rocks.value(family, &key).unwrap());
        put(family, &key, value);
    });
}

fn flip(value: Option<Vec<u8>>) -> Option<Vec<u8>> {
    value.map(|mut value| {
        value[40] ^= 1;
        value
    })
}

const SECOND: fn() -> Key = || Key::entry(QUEUE, Seq(2));

const CASES: [Case; 16] = [
    (
        "a forged message",
        |dir| put(dir, Family::Entries, SECOND(), flip),
        "E_RECORD_FORGED",
        Some(1),
        Some(2),
    ),
    (
        "a message of rubbish",
        |dir| put(dir, Family::Entries, SECOND(), |_| Some(vec![9; 50])),
        "E_RECORD_DAMAGED",
        Some(1),
        Some(2),
    ),
    (
        "a plain message",
        |dir| put(dir, Family::Entries, SECOND(), |_| Some(vec![0; 50])),
        "E_PLAIN_IN_SEALED",
        Some(1),
        Some(2),
    ),
    (
        "a message under a key that is not there",
        |dir| {
            put(dir, Family::Entries, SECOND(), |value| {
                value.map(|mut value| {
                    value[7] = 99;
                    value
                })
            })
        },
        "E_DEK_MISSING",
        Some(1),
        Some(2),
    ),
    (
        "a message that is gone",
        |dir| put(dir, Family::Entries, SECOND(), |_| None),
        "E_QUEUE_INTEGRITY",
        Some(1),
        Some(2),
    ),
    (
        "a message too many",
        |dir| {
            tamper(dir, |rocks, put| {
                let value = rocks.value(Family::Entries, &SECOND()).unwrap();
                put(Family::Entries, &Key::entry(QUEUE, Seq(9)), value);
            });
        },
        "E_RECORD_FORGED",
        Some(1),
        Some(9),
    ),
    (
        "a forged body",
        |dir| put(dir, Family::Bodies, Key::body(BodyId(1), 0), flip),
        "E_RECORD_FORGED",
        Some(1),
        Some(4),
    ),
    (
        "a body that is gone",
        |dir| put(dir, Family::Bodies, Key::body(BodyId(1), 1), |_| None),
        "E_BODY_MISSING",
        Some(1),
        Some(4),
    ),
    (
        "a forged manifest",
        |dir| put(dir, Family::Meta, Key::manifest(QUEUE), flip),
        "E_METADATA_DAMAGED",
        Some(1),
        None,
    ),
    (
        "a manifest that is gone",
        |dir| put(dir, Family::Meta, Key::manifest(QueueId(2)), |_| None),
        "E_QUEUE_INTEGRITY",
        Some(2),
        None,
    ),
    (
        "a row that is gone",
        |dir| put(dir, Family::Meta, Key::row(RowKind::Queue, RowId(1)), |_| None),
        "E_METADATA_DAMAGED",
        None,
        None,
    ),
    (
        "a commit row that is gone",
        |dir| put(dir, Family::Meta, Key::commit(), |_| None),
        "E_STORE_ROLLBACK",
        None,
        None,
    ),
    (
        "an anchor that is gone",
        |dir| fs::remove_file(dir.join("anchor")).unwrap(),
        "E_ANCHOR_MISSING",
        None,
        None,
    ),
    (
        "a database that is gone",
        |dir| fs::remove_dir_all(dir.join("db")).unwrap(),
        "E_DB_MISSING",
        None,
        None,
    ),
    (
        "a descriptor that is gone",
        |dir| fs::remove_file(dir.join("SEALMQ_STORE")).unwrap(),
        "E_STORE_MISSING",
        None,
        None,
    ),
    (
        "a keyring that is gone",
        |dir| ["keyring", "keyring.mirror"].iter().for_each(|name| fs::remove_file(dir.join(name)).unwrap()),
        "E_KEYRING_MISSING",
        None,
        None,
    ),
];

#[test]
fn each_kind_of_damage_is_told_with_queue_and_place() {
    for (what, damage, code, queue, seq) in CASES {
        let dir = filled(Mode::Sealed);
        damage(dir.path());
        let before = footprint(dir.path());
        let faults = audited(dir.path()).faults;
        let first = faults.first().unwrap_or_else(|| panic!("{what}: found sound"));
        assert_eq!((first.code, first.queue, first.seq), (code, queue, seq), "{what}: {faults:?}");
        assert!(faults.iter().all(|fault| !fault.reason.is_empty() && !fault.remedy.is_empty()), "{what}");
        assert_eq!(footprint(dir.path()), before, "{what}");
    }
}

#[test]
fn all_faults_are_told_and_not_the_first_alone() {
    let dir = filled(Mode::Sealed);
    tamper(dir.path(), |rocks, put| {
        for seq in [1, 3] {
            let key = Key::entry(QUEUE, Seq(seq));
            put(Family::Entries, &key, flip(rocks.value(Family::Entries, &key).unwrap()));
        }
        let manifest = Key::manifest(QueueId(2));
        put(Family::Meta, &manifest, flip(rocks.value(Family::Meta, &manifest).unwrap()));
    });
    fs::remove_file(dir.path().join("keyring.mirror")).unwrap();
    let audit = audited(dir.path());
    let told: Vec<_> = audit.faults.iter().map(|fault| (fault.code, fault.queue, fault.seq)).collect();
    let forged = |seq| ("E_RECORD_FORGED", Some(1), Some(seq));
    for wanted in
        [("E_KEYRING_COPY", None, None), ("E_METADATA_DAMAGED", Some(2), None), forged(1), forged(3)]
    {
        assert!(told.contains(&wanted), "{wanted:?} in {told:?}");
    }
    assert_eq!(audit.queues[0].faults, 2);
    assert_eq!(audit.faults[0].file, Some(dir.path().join("keyring.mirror")));
}

#[test]
fn rot_in_a_file_is_told_with_file_and_offset() {
    let image = killed();
    let (log, records) = newest_log(image.path());
    for (suffix, code) in [("log", "E_WAL_CORRUPT"), ("sst", "E_DB_CORRUPT"), ("blob", "E_DB_CORRUPT")] {
        let dir = copy_of(image.path());
        let found = match suffix {
            "log" => log.clone(),
            suffix => files_of(dir.path())
                .into_iter()
                .find(|path| path.extension().is_some_and(|found| found == suffix))
                .unwrap(),
        };
        let path = dir.path().join(found.strip_prefix(image.path()).unwrap_or(&found));
        let at = if suffix == "log" { records[2] + 9 } else { 60 };
        change(&path, |bytes| bytes[at] ^= 1);
        let audit = audited(dir.path());
        let named = |fault: &&Fault| fault.code == code && fault.file.as_deref() == Some(&path);
        let fault = audit.faults.iter().find(named);
        let fault = fault.unwrap_or_else(|| panic!("{suffix}: {:?}", audit.faults));
        assert!(fault.offset.is_some_and(|offset| offset <= at as u64), "{suffix}: {fault:?}");
        assert!(!audit.is_complete);
    }
}

/// One flip in each file, at places that look random: the audit and the broker must come to the same verdict.
#[test]
fn an_audit_finds_sound_what_opens_whole_and_nothing_else() {
    let image = killed();
    let (mut sound, mut faulty) = (0, 0);
    for (number, name) in files_of(image.path()).into_iter().enumerate() {
        let len = fs::metadata(image.path().join(&name)).unwrap().len();
        for sample in 0..4u64.min(len) {
            let random = scatter(number as u64 * 1000 + sample);
            let (at, bit) = ((random % len) as usize, random >> 40 & 7);
            let dir = copy_of(image.path());
            change(&dir.path().join(&name), |bytes| bytes[at] ^= 1 << bit);
            let audit = audited(dir.path());
            let opened = try_options(options(dir.path()));
            let is_whole = opened.as_ref().is_ok_and(|recovered| recovered.quarantined.is_empty());
            // What the broker mends in silence, an audit tells.
            let mended = audit.faults.iter().all(|fault| fault.code == "E_KEYRING_COPY");
            let what = format!("{} byte {at} bit {bit}: {:?}, {opened:?}", name.display(), audit.faults);
            assert_eq!(audit.faults.is_empty() || mended, is_whole, "{what}");
            if is_whole { sound += 1 } else { faulty += 1 }
        }
    }
    assert!(sound > 3 && faulty > 10, "{sound} sound, {faulty} faulty: too few to mean anything");
}

#[test]
fn a_copy_without_its_anchor_is_sound_if_that_is_said() {
    let dir = filled(Mode::Sealed);
    let elsewhere = tempfile::tempdir().unwrap();
    let anchor = elsewhere.path().join("anchor");
    fs::rename(dir.path().join("anchor"), &anchor).unwrap();
    assert_eq!(audited(dir.path()).faults[0].code, "E_ANCHOR_MISSING");
    let without = AuditOptions { demands_anchor: false, ..audit_options(dir.path()) };
    let audit_of = |options| audit(options, &mut |_| {}).unwrap();
    let found = audit_of(without);
    assert!(found.faults.is_empty() && found.notes.iter().any(|note| note.contains("newest state")));
    assert!(audit_of(AuditOptions { anchor: Some(anchor), ..audit_options(dir.path()) }).faults.is_empty());
}
