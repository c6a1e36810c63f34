//! Keys of a running store: data keys that come and go with what they seal, slots that come and go at an operator's
//! word, and both under kill -9.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;

use zeroize::Zeroizing;

use super::super::committer::Committer;
use super::super::keyring_file::KeyringFile;
use super::super::layout::{Family, Key};
use super::super::op::{Op, Put};
use super::*;
use crate::seal::Passphrase;

fn ids(facts: &KeyringFacts) -> Vec<u32> {
    facts.keys.iter().map(|key| key.key_id).collect()
}

fn records(facts: &KeyringFacts) -> Vec<u64> {
    facts.keys.iter().map(|key| key.records).collect()
}

/// The ids that stand on the disk.
fn ids_on_disk(dir: &Path) -> Vec<u32> {
    let file = KeyringFile::open(dir, &kek().into()).unwrap();
    file.ring().keys.iter().map(|key| key.key_id).collect()
}

fn delete(store: &Store, queue: QueueId, seq: u64, shared: Option<&Arc<SharedBody>>) {
    store.appender().delete(queue, Seq(seq), 0, shared, Position(0));
}

/// A commit behind all that was said so far.
fn settle(store: &Store) {
    store.probe().unwrap();
}

#[test]
fn a_new_data_key_seals_at_once_and_the_old_one_goes_with_its_last_record() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let place = put_range(&store, QUEUE, 1..=3);
    wait(&store, place);
    let first = ids(&store.keyring().unwrap());
    let facts = store.rotate_data_key().unwrap();
    assert_eq!((facts.keys.len(), records(&facts)), (2, vec![3, 0]));
    assert_eq!(facts.keys.iter().map(|key| key.seals).collect::<Vec<_>>(), [false, true]);
    assert!(facts.keys[0].retired_ms >= Some(facts.keys[0].created_ms) && facts.keys[1].retired_ms.is_none());
    let place = put_range(&store, QUEUE, 4..=5);
    wait(&store, place);
    (1..=2).for_each(|seq| delete(&store, QUEUE, seq, None));
    settle(&store);
    assert_eq!(records(&store.keyring().unwrap()), [1, 2]);
    // A crash now needs both keys.
    let image = crash_image(dir.path());
    let (image, recovered) = open(image.path());
    assert_eq!(seqs(&image, &recovered, QUEUE), [3, 4, 5]);
    drop(image);
    delete(&store, QUEUE, 3, None);
    settle(&store);
    let facts = store.keyring().unwrap();
    assert_eq!((ids(&facts) != first, records(&facts)), (true, vec![2]));
    assert_eq!(ids_on_disk(dir.path()), ids(&facts), "the old key is not on the disk any more");
    let (store, recovered) = reopen(store);
    assert_eq!(seqs(&store, &recovered, QUEUE), [4, 5]);
}

#[test]
fn bodies_dropped_queues_and_what_recovery_finds_are_counted_too() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let shared = store.shared_body(&message(&"body ".repeat(60_000)), 2);
    let mut appender = store.appender();
    appender.put(QUEUE, Seq(1), shared.message(), Some(&shared), meta(1));
    appender.put(QueueId(2), Seq(1), shared.message(), Some(&shared), meta(1));
    appender.put(QueueId(2), Seq(2), &message("inline"), None, meta(2));
    let place = appender.tail();
    drop((appender, shared));
    wait(&store, place);
    assert_eq!(records(&store.keyring().unwrap()), [4], "three entries and a body");
    let (store, recovered) = reopen(store);
    let facts = store.keyring().unwrap();
    assert_eq!(records(&facts), [4, 0]);
    let bodies: Vec<_> =
        recovered.queues.iter().map(|queue| entries(&store, queue)[0].shared.clone()).collect();
    let entries = vec![(Seq(1), bodies[1].clone(), Position(0)), (Seq(2), None, Position(0))];
    store.appender().drop_queue(QueueId(2), entries);
    settle(&store);
    assert_eq!(records(&store.keyring().unwrap()), [2, 0], "one entry and the body that it shares");
    delete(&store, QUEUE, 1, bodies[0].as_ref());
    settle(&store);
    settle(&store);
    let facts = store.keyring().unwrap();
    assert_eq!((records(&facts), ids(&facts)), (vec![0], ids_on_disk(dir.path())));
}

#[test]
fn a_key_stays_while_a_body_that_it_sealed_is_on_its_way() {
    // A large body is sealed by the publisher under the key of the moment. The key was rotated, nothing on the disk
    // needed the old one, and it was dropped: then the body came, under a key that no keyring held.
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let large = message(&"body ".repeat(60_000));
    let [written, given_up] = [1, 1].map(|entries| store.shared_body(&large, entries));
    let old = ids(&store.keyring().unwrap());
    store.rotate_data_key().unwrap();
    settle(&store);
    assert_eq!(ids(&store.keyring().unwrap())[..1], old, "it has no record, and it is needed");
    let place = store.appender().put(QUEUE, Seq(1), &large, Some(&written), meta(1));
    wait(&store, place);
    store.appender().release(&given_up);
    settle(&store);
    let facts = store.keyring().unwrap();
    assert_eq!((ids(&facts)[0], records(&facts)), (old[0], vec![1, 1]), "body and entry have different keys");
    let image = crash_image(dir.path());
    let (copy, recovered) = open(image.path());
    assert_eq!(entries(&copy, &recovered.queues[0])[0].message, large);
    store.appender().delete(QUEUE, Seq(1), 0, Some(&written), place);
    settle(&store);
    settle(&store);
    assert_eq!(store.keyring().unwrap().keys.len(), 1);
}

/// A committer that is driven by hand.
fn committer(dir: &Path) -> Committer {
    let kek = Some(kek().into());
    super::super::open::prepare(OpenOptions::new(dir, Mode::Sealed, kek)).unwrap().0
}

fn commit(committer: &mut Committer, op: Op) {
    committer.core.charge(op.charge());
    committer.commit(&mut vec![op], false).unwrap();
}

fn put(seq: u64) -> Op {
    Op::Put(Put { queue: QUEUE, seq: Seq(seq), message: message("m"), shared: None, meta: meta(seq) })
}

fn key_of(committer: &Committer, seq: u64) -> u32 {
    let value = committer.rocks.value(Family::Entries, &Key::entry(QUEUE, Seq(seq))).unwrap().unwrap();
    crate::seal::envelope::parse(&value).unwrap().0.key_id
}

#[test]
fn a_data_key_is_replaced_by_age_and_by_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut committer = committer(dir.path());
    commit(&mut committer, put(1));
    let first = key_of(&committer, 1);
    // Each commit seals its entry, a manifest and the commit row.
    committer.key_duty.sealed_max = committer.key_duty.sealed + 1;
    commit(&mut committer, put(2));
    commit(&mut committer, put(3));
    committer.key_duty.sealed_max = u64::MAX;
    committer.key_duty.age_max = Duration::ZERO;
    commit(&mut committer, put(4));
    committer.key_duty.age_max = Duration::MAX;
    commit(&mut committer, put(5));
    let keys: Vec<u32> = (1..=5).map(|seq| key_of(&committer, seq) - first).collect();
    assert_eq!(keys, [0, 0, 1, 2, 2]);
    drop(committer);
    let (store, recovered) = open(dir.path());
    assert_eq!(seqs(&store, &recovered, QUEUE), [1, 2, 3, 4, 5]);
}

#[test]
fn a_data_key_outlives_the_acknowledgement_until_that_is_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut committer = committer(dir.path());
    commit(&mut committer, put(1));
    let old = key_of(&committer, 1);
    committer.key_duty.age_max = Duration::ZERO;
    commit(&mut committer, put(2));
    committer.key_duty.age_max = Duration::MAX;
    committer.tend_keys();
    assert!(ids_on_disk(dir.path()).contains(&old), "a record needs it");
    commit(&mut committer, Op::Delete { queue: QUEUE, seq: Seq(1), bytes: 0, shared: None });
    assert!(ids_on_disk(dir.path()).contains(&old), "dropped after the commit, never within it");
    committer.tend_keys();
    assert!(!ids_on_disk(dir.path()).contains(&old));
}

#[test]
fn nothing_is_dropped_while_the_rest_of_a_queue_is_being_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut committer = committer(dir.path());
    let many = crate::limits::PURGE_KEYS_MAX as u64 + 1;
    let mut ops: Vec<Op> = (1..=many).map(put).collect();
    committer.core.charge(ops.iter().map(Op::charge).sum());
    committer.commit(&mut ops, false).unwrap();
    let old = key_of(&committer, 1);
    committer.key_duty.age_max = Duration::ZERO;
    commit(&mut committer, Op::Touch);
    committer.key_duty.age_max = Duration::MAX;
    commit(&mut committer, Op::DropQueue { queue: QUEUE, bodies: Vec::new() });
    committer.tend_keys();
    assert!(ids_on_disk(dir.path()).contains(&old), "an entry is left in the database");
    let image = crash_image(dir.path());
    drop(open(image.path()));
    (0..2).for_each(|_| commit(&mut committer, Op::Touch));
    committer.tend_keys();
    assert!(!ids_on_disk(dir.path()).contains(&old));
}

fn other_key(first: u8) -> Kek {
    Kek::take(&mut std::array::from_fn(|i| first.wrapping_add(i as u8)))
}

#[test]
fn a_running_store_gets_a_new_key_and_loses_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let place = put_range(&store, QUEUE, 1..=3);
    wait(&store, place);
    let facts = store.add_slot(other_key(77).into()).unwrap();
    assert_eq!(
        facts.slots.iter().map(|slot| (slot.kind, slot.is_in_use)).collect::<Vec<_>>(),
        [("key", true), ("key", false)]
    );
    let old = facts.slots[0].id.clone();
    assert_eq!(store.remove_slot(&old, false).unwrap_err().code(), "E_SLOT_IN_USE");
    let before = fs::read(dir.path().join("keyring")).unwrap();
    assert_eq!(store.remove_slot(&old[..8], true).unwrap().slots.len(), 1);
    // Whoever puts the keyring back that the old key opens is found out, even when nothing was written since.
    let image = crash_image(dir.path());
    ["keyring", "keyring.mirror"]
        .iter()
        .for_each(|name| fs::write(image.path().join(name), &before).unwrap());
    let rolled_back = try_open(image.path(), Mode::Sealed, Some(kek())).unwrap_err();
    assert_eq!(rolled_back.code(), "E_KEYRING_ROLLBACK");
    // Serving goes on with the keys that it has.
    let place = put_range(&store, QUEUE, 4..=4);
    wait(&store, place);
    store.close().unwrap();
    assert_eq!(store.keyring().unwrap_err().code(), "E_SYSTEM", "closed");
    drop(store);
    assert_eq!(try_open(dir.path(), Mode::Sealed, Some(kek())).unwrap_err().code(), "E_KEK_WRONG");
    let (store, recovered) = try_open(dir.path(), Mode::Sealed, Some(other_key(77))).unwrap();
    assert_eq!(seqs(&store, &recovered, QUEUE), [1, 2, 3, 4]);
}

#[test]
fn a_passphrase_makes_a_store_and_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let opened = |text: &str| {
        let passphrase = Passphrase::take(Zeroizing::new(text.as_bytes().to_vec())).unwrap();
        let kek = Some(Credential::Passphrase(passphrase));
        Store::open(OpenOptions::new(dir.path(), Mode::Sealed, kek))
    };
    let (store, _) = opened("correct horse battery").unwrap();
    let facts = store.keyring().unwrap();
    let cost = facts.slots[0].cost.unwrap();
    assert_eq!(
        (facts.slots[0].kind, cost.memory_kib, cost.passes, cost.lanes),
        ("passphrase", 256 * 1024, 3, 1)
    );
    store.close().unwrap();
    drop(store);
    assert_eq!(opened("wrong horse battery").unwrap_err().code(), "E_KEK_WRONG");
    assert_eq!(try_open(dir.path(), Mode::Sealed, Some(kek())).unwrap_err().code(), "E_KEK_WRONG");
    drop(opened("correct horse battery").unwrap());
}

#[test]
fn a_plain_store_has_no_keyring_to_look_at() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = try_open(dir.path(), Mode::PlainInsecure, None).unwrap();
    let code = |result: Result<KeyringFacts, StoreError>| result.unwrap_err().code();
    assert_eq!(code(store.keyring()), "E_NO_KEYRING");
    assert_eq!(code(store.rotate_data_key()), "E_NO_KEYRING");
    assert_eq!(code(store.add_slot(kek().into())), "E_NO_KEYRING");
    assert_eq!(code(store.remove_slot("00", true)), "E_NO_KEYRING");
}

#[test]
fn a_store_that_cannot_write_its_keyring_says_so_and_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let before = store.keyring().unwrap();
    fs::create_dir_all(dir.path().join("keyring.tmp/in the way")).unwrap();
    assert_eq!(store.add_slot(other_key(9).into()).unwrap_err().code(), "E_STORE_IO");
    assert_eq!(store.rotate_data_key().unwrap_err().code(), "E_STORE_IO");
    assert_eq!(store.keyring().unwrap(), before);
    let place = put_range(&store, QUEUE, 1..=2);
    wait(&store, place);
    fs::remove_dir_all(dir.path().join("keyring.tmp")).unwrap();
    assert_eq!(store.rotate_data_key().unwrap().keys.len(), 2);
    let (store, recovered) = reopen(store);
    assert_eq!(seqs(&store, &recovered, QUEUE), [1, 2]);
}

// ---- kill -9 inside the keyring's writes

const DIR: &str = "SEALMQ_TEST_KEYS_DIR";

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
}

/// Not a test of its own: the process that is killed. It adds and removes keys, rotates data keys, and puts messages
/// under them. `+ n` and `- n`: key n may open from now on, or not; `? n`: it is about to be removed; `= seq`: a
/// message is durable.
#[test]
#[ignore = "started by the test below"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (store, recovered) = open(Path::new(&dir));
    let first = recovered.queues.first().map_or(1, |queue| queue.next_seq.0);
    let mut live: Vec<u64> = seqs(&store, &recovered, QUEUE);
    for seq in first.. {
        let number = 1 + (seq % 5) as u8;
        let id: String = crate::seal::keyring::hex(&other_key(40 * number).slot_id());
        let has = store.keyring().unwrap().slots.iter().any(|slot| slot.id == id);
        if has {
            say(&format!("? {number}"));
            store.remove_slot(&id, false).unwrap();
            say(&format!("- {number}"));
        } else {
            say(&format!("! {number}"));
            store.add_slot(other_key(40 * number).into()).unwrap();
            say(&format!("+ {number}"));
        }
        store.rotate_data_key().unwrap();
        let place = put_range(&store, QUEUE, seq..=seq);
        wait(&store, place);
        say(&format!("= {seq}"));
        live.push(seq);
        if live.len() > 3 {
            let gone = live.remove(0);
            say(&format!("x {gone}"));
            delete(&store, QUEUE, gone, None);
        }
    }
}

#[test]
fn every_reopen_finds_the_keys_that_were_promised_after_kill_9_inside_keyring_writes() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let (mut may_open, mut must_open) =
        (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    let (mut durable, mut gone) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    let mut heard_in_all = 0;
    for round in 0..nightly(12, 200) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::keys::child", "--ignored", "--nocapture", "--quiet"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (lines, said) = sync_channel(1_000_000);
        let stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| lines.send(line).unwrap());
        });
        let mut hear = |line: String| {
            let Some((sign, number)) = line.split_once(' ') else { return };
            let Ok(number) = number.parse::<u64>() else { return };
            heard_in_all += 1;
            match sign {
                "!" => drop(may_open.insert(number)),
                "+" => drop(must_open.insert(number)),
                "?" => drop(must_open.remove(&number)),
                "-" => drop(may_open.remove(&number)),
                "=" => drop(durable.insert(number)),
                "x" => drop((durable.remove(&number), gone.insert(number))),
                _ => {}
            }
        };
        for _ in 0..4 + (round * 7) % 23 {
            hear(said.recv().expect("the child runs until it is killed"));
        }
        // Somewhere in the next few writes: they take a few hundred microseconds each.
        std::thread::park_timeout(Duration::from_micros((round * 137) % 2000));
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        said.try_iter().for_each(&mut hear);
        for number in 1..=5u64 {
            let opens = KeyringFile::open(dir.path(), &other_key(40 * number as u8).into()).is_ok();
            assert!(opens || !must_open.contains(&number), "round {round}: key {number} was promised");
            assert!(!opens || may_open.contains(&number), "round {round}: key {number} was removed");
            // What was on its way is decided now.
            (if opens { may_open.insert(number) } else { may_open.remove(&number) });
            (if opens { must_open.insert(number) } else { must_open.remove(&number) });
        }
        let (store, recovered) = open(dir.path());
        let found = seqs(&store, &recovered, QUEUE);
        assert!(recovered.quarantined.is_empty());
        let lost: Vec<_> = durable.iter().filter(|seq| !found.contains(seq)).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        assert_eq!(store.keyring().unwrap().slots.len(), 1 + must_open.len());
        store.close().unwrap();
    }
    assert!(heard_in_all > 100, "{heard_in_all} reports are too few to mean anything");
}
