//! The failure table of SECURITY.md: each situation is refused or quarantined with its code, and what is
//! quarantined is still there afterwards.

use super::super::error::CommitFailure;
use super::super::keyring_file::KeyringFile;
use super::super::layout::{Family, Key};
use super::super::op::{Op, Put};
use super::*;

fn flip(dir: &Path, family: Family, key: Key, at: usize) {
    tamper(dir, |rocks, put| {
        let mut value = rocks.value(family, &key).unwrap().unwrap();
        value[at] ^= 1;
        put(family, &key, Some(value));
    });
}

fn quarantine(dir: &Path) -> Vec<(u64, u64, &'static str)> {
    let (_store, recovered) = open(dir);
    recovered.quarantined.iter().map(|q| (q.queue.0, q.seq.0, q.code)).collect()
}

#[test]
fn a_missing_or_wrong_key_is_refused() {
    let dir = filled(Mode::Sealed);
    assert_eq!(code(dir.path(), Mode::Sealed, None), "E_KEK_UNAVAILABLE");
    let wrong = Kek::take(&mut std::array::from_fn(|i| 200 - i as u8));
    let id: String = wrong.slot_id().iter().map(|b| format!("{b:02x}")).collect();
    let error = try_open(dir.path(), Mode::Sealed, Some(wrong)).unwrap_err();
    assert_eq!(error.code(), "E_KEK_WRONG");
    assert!(error.to_string().contains(&id), "{error}");
    open(dir.path());
}

#[test]
fn a_missing_keyring_is_refused_and_one_copy_is_enough() {
    let dir = filled(Mode::Sealed);
    fs::remove_file(dir.path().join("keyring")).unwrap();
    let (store, recovered) = open(dir.path());
    assert_eq!(seqs(&store, &recovered, QUEUE), [1, 2, 3, 4]);
    store.close().unwrap();
    assert!(dir.path().join("keyring").exists(), "the copy was mended");
    fs::remove_file(dir.path().join("keyring")).unwrap();
    fs::remove_file(dir.path().join("keyring.mirror")).unwrap();
    assert_eq!(sealed_code(dir.path()), "E_KEYRING_MISSING");
    assert_eq!(code(dir.path(), Mode::Sealed, None), "E_KEYRING_MISSING");
}

#[test]
fn a_damaged_keyring_is_mended_from_its_mirror_and_two_are_refused() {
    let dir = filled(Mode::Sealed);
    let rot = |name: &str| {
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        fs::write(path, bytes).unwrap();
    };
    rot("keyring");
    let (store, _) = open(dir.path());
    store.close().unwrap();
    drop(store);
    rot("keyring.mirror");
    drop(open(dir.path()));
    rot("keyring");
    rot("keyring.mirror");
    assert_eq!(sealed_code(dir.path()), "E_KEYRING_CORRUPT");
    assert!(sealed_code(dir.path()) == "E_KEYRING_CORRUPT", "refusing changes nothing");
}

#[test]
fn another_stores_keyring_and_an_older_one_are_refused() {
    let (dir, other) = (filled(Mode::Sealed), filled(Mode::Sealed));
    let old = fs::read(dir.path().join("keyring")).unwrap();
    drop(open(dir.path()));
    for name in ["keyring", "keyring.mirror"] {
        fs::write(dir.path().join(name), &old).unwrap();
    }
    assert_eq!(sealed_code(dir.path()), "E_KEYRING_ROLLBACK");
    for name in ["keyring", "keyring.mirror"] {
        fs::copy(other.path().join(name), dir.path().join(name)).unwrap();
    }
    assert_eq!(sealed_code(dir.path()), "E_KEYRING_CORRUPT");
}

#[test]
fn a_mode_that_is_not_the_stores_is_refused() {
    let (sealed, plain) = (filled(Mode::Sealed), filled(Mode::PlainInsecure));
    assert_eq!(code(sealed.path(), Mode::PlainInsecure, Some(kek())), "E_PLAIN_IN_SEALED");
    assert_eq!(sealed_code(plain.path()), "E_PLAIN_IN_SEALED");
    let text = fs::read_to_string(sealed.path().join(DESCRIPTOR_FILE)).unwrap();
    fs::write(sealed.path().join(DESCRIPTOR_FILE), text.replace("\"sealed\"", "\"plain-insecure\"")).unwrap();
    assert_eq!(code(sealed.path(), Mode::PlainInsecure, None), "E_PLAIN_IN_SEALED", "its records are sealed");
    fs::write(sealed.path().join(DESCRIPTOR_FILE), text.replace("created\": \"2", "created\": \"3")).unwrap();
    assert_eq!(sealed_code(sealed.path()), "E_DESCRIPTOR_CORRUPT");
}

#[test]
fn a_part_of_a_store_is_not_taken_for_a_new_one() {
    let dir = filled(Mode::Sealed);
    fs::rename(dir.path().join(DESCRIPTOR_FILE), dir.path().join("away")).unwrap();
    assert_eq!(sealed_code(dir.path()), "E_STORE_MISSING");
    fs::rename(dir.path().join("db"), dir.path().join("db-away")).unwrap();
    assert_eq!(sealed_code(dir.path()), "E_STORE_MISSING");
    fs::rename(dir.path().join("away"), dir.path().join(DESCRIPTOR_FILE)).unwrap();
    assert_eq!(sealed_code(dir.path()), "E_DB_MISSING");
    fs::rename(dir.path().join("db-away"), dir.path().join("db")).unwrap();
    drop(open(dir.path()));
}

#[test]
fn a_creation_that_was_cut_short_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    drop(KeyringFile::create(dir.path(), kek().into(), [9; 16]).unwrap());
    let (_store, recovered) = open(dir.path());
    assert!(recovered.created);
    let text = fs::read_to_string(dir.path().join(DESCRIPTOR_FILE)).unwrap();
    assert!(text.contains("09090909-0909"), "the keyring that was there is used: {text}");
}

#[test]
fn a_second_broker_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    assert_eq!(sealed_code(dir.path()), "E_STORE_LOCKED");
    drop(store);
    drop(open(dir.path()));
}

#[test]
fn a_plain_record_in_a_sealed_store_is_refused_wherever_it_stands() {
    let places = [
        (Family::Entries, Key::entry(QUEUE, Seq(2))),
        (Family::Bodies, Key::body(crate::broker::id::BodyId(1), 0)),
        (Family::Meta, Key::row(RowKind::Queue, RowId(1))),
        (Family::Meta, Key::commit()),
    ];
    for (family, key) in places {
        let dir = filled(Mode::Sealed);
        tamper(dir.path(), |_, put| put(family, &key, Some(b"\0{}\nplain".to_vec())));
        assert_eq!(sealed_code(dir.path()), "E_PLAIN_IN_SEALED", "{family:?}");
    }
    let dir = filled(Mode::PlainInsecure);
    tamper(dir.path(), |_, put| put(Family::Entries, &Key::entry(QUEUE, Seq(2)), Some(vec![1; 80])));
    assert_eq!(code(dir.path(), Mode::PlainInsecure, None), "E_PLAIN_IN_SEALED");
}

#[test]
fn damaged_metadata_is_refused_and_named() {
    let places = [Key::row(RowKind::Queue, RowId(1)), Key::manifest(QUEUE), Key::commit()];
    for key in places {
        let dir = filled(Mode::Sealed);
        flip(dir.path(), Family::Meta, key, 40);
        assert_eq!(sealed_code(dir.path()), "E_METADATA_DAMAGED", "{key:?}");
    }
    let dir = filled(Mode::Sealed);
    tamper(dir.path(), |_, put| put(Family::Meta, &Key::commit(), None));
    assert_eq!(sealed_code(dir.path()), "E_STORE_ROLLBACK", "a commit row that is gone");
}

#[test]
fn a_damaged_entry_goes_into_quarantine_and_stays_there() {
    let dir = filled(Mode::Sealed);
    flip(dir.path(), Family::Entries, Key::entry(QUEUE, Seq(2)), 100);
    for _ in 0..2 {
        assert_eq!(quarantine(dir.path()), [(1, 2, "E_RECORD_FORGED")]);
    }
    let (store, recovered) = open(dir.path());
    assert_eq!(seqs(&store, &recovered, QUEUE), [1, 3, 4]);
    store.appender().drop_queue(QUEUE, vec![]);
    let (_store, recovered) = reopen(store);
    assert!(recovered.quarantined.is_empty(), "it goes with its queue");
}

#[test]
fn a_damaged_body_quarantines_each_entry_that_names_it() {
    for (chunk, at) in [(0, 5000), (1, 100)] {
        let dir = filled(Mode::Sealed);
        flip(dir.path(), Family::Bodies, Key::body(crate::broker::id::BodyId(1), chunk), at);
        assert_eq!(quarantine(dir.path()), [(1, 4, "E_RECORD_FORGED"), (2, 1, "E_RECORD_FORGED")]);
    }
}

#[test]
fn a_body_that_is_missing_or_cut_quarantines_its_entries() {
    for gone in [vec![0, 1], vec![1], vec![0]] {
        let dir = filled(Mode::Sealed);
        tamper(dir.path(), |_, put| {
            gone.iter().for_each(|chunk| {
                put(Family::Bodies, &Key::body(crate::broker::id::BodyId(1), *chunk), None)
            });
        });
        let codes: Vec<_> = quarantine(dir.path()).into_iter().map(|(.., code)| code).collect();
        assert_eq!(codes, ["E_BODY_MISSING"; 2], "{gone:?}");
    }
}

#[test]
fn a_record_opens_at_its_own_place_only() {
    let dir = filled(Mode::Sealed);
    let (two, three) = (Key::entry(QUEUE, Seq(2)), Key::entry(QUEUE, Seq(3)));
    tamper(dir.path(), |rocks, put| {
        let value = |key| rocks.value(Family::Entries, key).unwrap();
        put(Family::Entries, &two, value(&three));
        put(Family::Entries, &three, value(&two));
    });
    assert_eq!(quarantine(dir.path()), [2, 3].map(|seq| (1, seq, "E_RECORD_FORGED")));
}

#[test]
fn a_record_of_another_store_under_the_same_key_does_not_open() {
    let (dir, other) = (filled(Mode::Sealed), filled(Mode::Sealed));
    let key = Key::entry(QUEUE, Seq(2));
    let mut foreign = None;
    tamper(other.path(), |rocks, _| foreign = rocks.value(Family::Entries, &key).unwrap());
    tamper(dir.path(), |_, put| put(Family::Entries, &key, foreign));
    assert_eq!(quarantine(dir.path()), [(1, 2, "E_RECORD_FORGED")]);
}

#[test]
fn missing_data_keys_are_refused_with_their_count() {
    let dir = filled(Mode::Sealed);
    // Three entries and one apart are sealed under key 2; K_meta's records open without it.
    let mut file = KeyringFile::open(dir.path(), &kek().into()).unwrap();
    file.next_data_key(1, |_| false).unwrap();
    drop(file);
    let error = try_open(dir.path(), Mode::Sealed, Some(kek())).unwrap_err();
    let StoreError::DataKeyMissing { count, key_id, .. } = error else { panic!("{error}") };
    assert_eq!((count, key_id), (3 + 2, 2), "inline entries, and entries apart");
}

#[test]
fn data_keys_that_nothing_needs_are_dropped_by_the_next_start() {
    let dir = filled(Mode::Sealed);
    for _ in 0..5 {
        drop(open(dir.path()));
    }
    let ids: Vec<u32> = KeyringFile::open(dir.path(), &kek().into())
        .unwrap()
        .ring()
        .keys
        .iter()
        .map(|key| key.key_id)
        .collect();
    assert_eq!(ids, [2, 7], "the one of the entries, and the last start's");
}

#[test]
fn a_refused_commit_stops_the_store_and_tells_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let place = put_range(&store, QUEUE, 1..=1);
    wait(&store, place);
    // The same place twice would break what SingleDelete relies on.
    let again = store.appender().put(QUEUE, Seq(1), &message("again"), None, meta(1));
    let mut appender = store.appender();
    appender.wake(Waker::from(Arc::new(Unpark(std::thread::current()))));
    drop(appender);
    while store.failure().is_none() {
        std::thread::park_timeout(Duration::from_secs(1));
    }
    assert!(matches!(store.failure(), Some(CommitFailure::Refused(reason)) if reason.contains("twice")));
    assert!(store.durable() < again);
    assert_eq!(store.appender().put(QUEUE, Seq(2), &message("later"), None, meta(1)), Position::NEVER);
    assert_eq!(store.probe().unwrap_err().code(), "E_COMMIT_FAILED");
    assert_eq!(store.close().unwrap_err().code(), "E_COMMIT_FAILED");
    drop(store);
    let (store, recovered) = open(dir.path());
    assert_eq!(seqs(&store, &recovered, QUEUE), [1]);
    assert!(!recovered.clean);
}

#[test]
fn every_flipped_byte_of_the_small_files_is_refused_or_harmless() {
    let dir = filled(Mode::Sealed);
    for name in [DESCRIPTOR_FILE, "keyring"] {
        let sound = fs::read(dir.path().join(name)).unwrap();
        for at in (0..sound.len()).step_by(if sound.len() > 1000 { 211 } else { 7 }) {
            let image = crash_image(dir.path());
            let mut bytes = sound.clone();
            bytes[at] ^= 0x04;
            fs::write(image.path().join(name), bytes).unwrap();
            match try_open(image.path(), Mode::Sealed, Some(kek())) {
                Ok((store, recovered)) => {
                    assert_eq!(seqs(&store, &recovered, QUEUE), [1, 2, 3, 4], "{name} {at}")
                }
                Err(e) => assert!(e.code().starts_with("E_"), "{e}"),
            }
        }
    }
}

/// A transaction put into a queue that had just been dropped, so it was dropped once more. What the first drop left was
/// cleared away together with the mark, which the second one still needed: a crash then made its entries look like
/// such as nobody had put.
#[test]
fn a_queue_that_is_dropped_twice_looks_like_no_damage_wherever_a_crash_comes() {
    let many = crate::limits::PURGE_KEYS_MAX as u64;
    for late in [0, 1, many + 1] {
        let dir = filled(Mode::Sealed);
        let options = OpenOptions::new(dir.path(), Mode::Sealed, Some(kek().into()));
        let (mut committer, ..) = super::super::open::prepare(options).unwrap();
        let (queue, drop_queue) = (QueueId(77), || Op::DropQueue { queue: QueueId(77), bodies: Vec::new() });
        let put = |seq| {
            let (message, shared) = (message("x"), None);
            Op::Put(Put { queue, seq: Seq(seq), message, shared, meta: meta(seq) })
        };
        let struck = Op::Delete { queue, seq: Seq(many + 1), bytes: 1, shared: None };
        let ends: Vec<Vec<Op>> = vec![
            (1..=many).map(put).collect(),
            // With nothing left the second drop finds a manifest and no entries.
            [drop_queue(), put(many + 1), struck].into_iter().collect(),
            (many + 2..many + 2 + late).map(put).chain([drop_queue()]).collect(),
            vec![Op::Touch],
            vec![Op::Touch],
            vec![Op::Touch],
        ];
        for (step, mut ops) in ends.into_iter().enumerate() {
            ops.iter().for_each(|op| committer.core.charge(op.charge()));
            committer.commit(&mut ops, false).unwrap();
            let image = crash_image(dir.path());
            let opened = try_open(image.path(), Mode::Sealed, Some(kek())).map(drop);
            assert!(opened.is_ok(), "{late} late, step {step}: {:?}", opened.err());
        }
    }
}

#[test]
fn a_data_key_that_has_served_its_time_is_replaced_before_the_next_record() {
    let dir = filled(Mode::Sealed);
    let options = OpenOptions::new(dir.path(), Mode::Sealed, Some(kek().into()));
    let (mut committer, ..) = super::super::open::prepare(options).unwrap();
    let put = |seq| {
        let (message, shared) = (message(&format!("message {seq}")), None);
        Op::Put(Put { queue: QUEUE, seq: Seq(seq), message, shared, meta: meta(seq) })
    };
    let key_of = |committer: &super::super::committer::Committer, seq| {
        let value = committer.rocks.value(Family::Entries, &Key::entry(QUEUE, Seq(seq))).unwrap().unwrap();
        crate::seal::envelope::parse(&value).unwrap().0.key_id
    };
    for (seq, records, key) in [(5, 0, 3), (6, crate::limits::DATA_KEY_RECORDS_MAX, 4), (7, 0, 4)] {
        committer.key_duty.sealed += records;
        let mut ops = vec![put(seq)];
        committer.core.charge(ops[0].charge());
        committer.commit(&mut ops, false).unwrap();
        assert_eq!(key_of(&committer, seq), key);
    }
    assert_eq!(committer.core.data_key.load_full().unwrap().key.id, 4, "bodies sealed elsewhere use it too");
    drop(committer);
    let (store, recovered) = open(dir.path());
    assert_eq!(seqs(&store, &recovered, QUEUE), (1..=7).collect::<Vec<_>>());
}
