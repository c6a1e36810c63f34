//! Backups made while the store serves, and stores opened from them.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::keyring_file::{COPIES, KeyringFile};
use super::super::layout::Family;
use super::super::rocks::Rocks;
use super::*;

/// Which record of which store was sealed under which key and nonce prefix.
fn prefixes(dir: &Path) -> BTreeSet<(u32, [u8; 12])> {
    let (rocks, mut found) = (Rocks::open(&dir.join("db"), Tail::Whole).unwrap(), BTreeSet::new());
    for family in [Family::Entries, Family::Bodies] {
        let mut visit = |_: &[u8], value: &[u8]| {
            let (header, ..) = crate::seal::envelope::parse(value).unwrap();
            found.insert((header.key_id, header.prefix));
            Ok(())
        };
        rocks.scan(family, &mut visit).unwrap();
    }
    found
}

fn copied(dir: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(dir, to.path()).unwrap();
    to
}

#[test]
fn a_backup_holds_all_that_was_durable_before_it_while_publishing_goes_on() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
        store.appender().put_row(RowKind::Queue, RowId(1), b"a queue".to_vec());
        let (stop, confirmed) = (AtomicBool::new(false), AtomicU64::new(0));
        let large = message(&"large ".repeat(50_000));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1.. {
                    let place = if number % 10 == 0 {
                        let shared = store.shared_body(&large, 1);
                        store.appender().put(QUEUE, Seq(number), &large, Some(&shared), meta(number))
                    } else {
                        put_range(&store, QUEUE, number..=number)
                    };
                    wait(&store, place);
                    confirmed.store(number, Ordering::Release);
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                }
            });
            for name in ["one", "two", "three"] {
                let reached = confirmed.load(Ordering::Acquire) + 30;
                while confirmed.load(Ordering::Acquire) < reached {
                    std::thread::yield_now();
                }
                let before = confirmed.load(Ordering::Acquire);
                let made = store.backup(&target.path().join(name)).unwrap();
                let after = confirmed.load(Ordering::Acquire) + 1;
                let restored = copied(&made.dir);
                let (copy, recovered) = try_open(restored.path(), mode, Some(kek())).unwrap();
                let found = seqs(&copy, &recovered, QUEUE);
                assert_eq!(
                    found,
                    (1..=found.len() as u64).collect::<Vec<_>>(),
                    "nothing in between is missing"
                );
                assert!((before..=after).contains(&(found.len() as u64)), "{before} {} {after}", found.len());
                assert_eq!((recovered.quarantined.len(), recovered.rows.len()), (0, 1));
                let bodies = recovered.queues.iter().flat_map(|queue| entries(&copy, queue));
                for entry in bodies.filter(|entry| entry.seq.0 % 10 == 0) {
                    assert_eq!(entry.message.body(), large.body());
                }
                copy.close().unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        let last = confirmed.load(Ordering::Acquire);
        let (store, recovered) = {
            store.close().unwrap();
            drop(store);
            try_open(dir.path(), mode, Some(kek())).unwrap()
        };
        assert_eq!(
            seqs(&store, &recovered, QUEUE),
            (1..=last).collect::<Vec<_>>(),
            "the store itself is what it was"
        );
    }
}

#[test]
fn two_stores_from_one_backup_share_no_data_key_and_no_nonce() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=10));
    let made = store.backup(&target.path().join("backup")).unwrap();
    assert_eq!(made.keyring_generation, 2);
    let before = prefixes(copied(&made.dir).path());
    assert!(!before.is_empty());
    // The store that goes on, and two that begin where the backup ends.
    let stores: Vec<_> = (0..2).map(|_| copied(&made.dir)).collect();
    let mut running = vec![store];
    running.extend(stores.iter().map(|dir| open(dir.path()).0));
    for store in &running {
        wait(store, put_range(store, QUEUE, 11..=20));
        let large = message(&"large ".repeat(50_000));
        let shared = store.shared_body(&large, 1);
        let place = store.appender().put(QUEUE, Seq(21), &large, Some(&shared), meta(1));
        wait(store, place);
    }
    running.iter().for_each(|store| store.close().unwrap());
    drop(running);
    let folders = [dir.path(), stores[0].path(), stores[1].path()];
    let new: Vec<BTreeSet<_>> =
        folders.iter().map(|dir| prefixes(dir).difference(&before).copied().collect()).collect();
    let keys = folders.map(|dir| KeyringFile::open(dir, &kek().into()).unwrap());
    let newest = |at: usize| keys[at].ring().keys.last().unwrap().key.wanted();
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert!(!new[one].is_empty() && new[one].is_disjoint(&new[other]));
        assert!(newest(one) != newest(other));
    }
    // None goes on under the key of the backup.
    let key = before.first().unwrap().0;
    assert!(new[1].iter().chain(&new[2]).all(|(id, _)| *id > key));
}

#[test]
fn refuses_a_folder_that_is_not_empty_or_not_apart_and_leaves_it_as_it_is() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = open(dir.path());
    let (full, file, link) =
        (target.path().join("full"), target.path().join("file"), target.path().join("link"));
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "x").unwrap();
    fs::write(&file, "x").unwrap();
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    for (place, reason) in [
        (full.clone(), "not empty"),
        (file, "no folder"),
        (link.clone(), "no folder"),
        (link.join("in"), "in the data directory"),
        (dir.path().join("in"), "in the data directory"),
        (dir.path().join("db/in"), "in the data directory"),
        (target.path().join("none/in"), "No such file"),
        ("relative".into(), "not absolute"),
        ("/".into(), "root"),
    ] {
        let error = store.backup(&place).unwrap_err();
        assert!(error.code() == "E_BACKUP_TARGET" && error.to_string().contains(reason), "{error}");
    }
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    assert!(!dir.path().join("in").exists());
    // An empty one is taken as it is.
    let empty = target.path().join("empty");
    fs::create_dir(&empty).unwrap();
    store.backup(&empty).unwrap();
    assert_eq!(store.backup(&empty).unwrap_err().code(), "E_BACKUP_TARGET");
    store.close().unwrap();
    assert_eq!(store.backup(&target.path().join("late")).unwrap_err().code(), "E_BACKUP_BUSY");
}

#[test]
fn a_backup_that_fails_leaves_nothing_behind() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=10));
    let empty = target.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for place in [target.path().join("new"), empty.clone()] {
        let spoil = || COPIES.iter().for_each(|name| fs::write(dir.path().join(name), "rot").unwrap());
        let kept: Vec<_> = COPIES.iter().map(|name| fs::read(dir.path().join(name)).unwrap()).collect();
        let error = store.backup_and(&place, spoil).unwrap_err();
        assert_eq!(error.code(), "E_KEYRING_CORRUPT");
        COPIES.iter().zip(kept).for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
    }
    assert!(!target.path().join("new").exists());
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    store.backup(&empty).unwrap();
}

#[test]
fn a_keyring_that_changes_meanwhile_is_copied_with_a_database_that_it_opens() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=10));
    let mut changes = 0;
    let mut change = |most: usize| {
        if changes < most {
            changes += 1;
            KeyringFile::open(dir.path(), &kek().into()).unwrap().next_data_key(1, |_| true).unwrap();
        }
    };
    let made = store.backup_and(&target.path().join("twice"), || change(2)).unwrap();
    assert_eq!(made.keyring_generation, 4);
    let (copy, recovered) = open(&made.dir);
    assert_eq!(seqs(&copy, &recovered, QUEUE).len(), 10);
    let error = store.backup_and(&target.path().join("always"), || change(100)).unwrap_err();
    assert_eq!(error.code(), "E_BACKUP_BUSY");
    assert!(!target.path().join("always").exists());
}

#[test]
fn a_backup_is_its_owners_alone_and_no_store_before_it_is_complete() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=10));
    let place = target.path().join("backup");
    let cut_short = || assert!(place.join("db").exists() && !place.join(DESCRIPTOR_FILE).exists());
    let made = store.backup_and(&place, cut_short).unwrap();
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
    let mut bytes = 0;
    for (file, content) in all_bytes(&place) {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", file.display());
        let name = file.file_name().unwrap();
        bytes += if name == BACKUP_FILE || name == DESCRIPTOR_FILE { 0 } else { content.len() as u64 };
    }
    assert_eq!(made.bytes, bytes);
    fs::remove_file(place.join(DESCRIPTOR_FILE)).unwrap();
    let refused = try_open(&place, Mode::Sealed, Some(kek())).err().unwrap();
    assert_eq!(refused.code(), "E_STORE_MISSING");
}

/// Two contents of the keyring could have one generation, after a write that had failed half way. A backup that began
/// between the two took the one without the newest data key, for it compared generations.
#[test]
fn a_backup_opens_even_if_a_keyring_that_is_not_in_use_lies_there_when_it_begins() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = open(dir.path());
    wait(&store, put_range(&store, QUEUE, 1..=3));
    fs::create_dir_all(dir.path().join("keyring.mirror.tmp/in the way")).unwrap();
    assert_eq!(store.rotate_data_key().unwrap_err().code(), "E_STORE_IO");
    fs::remove_dir_all(dir.path().join("keyring.mirror.tmp")).unwrap();
    let rotate = || {
        if store.keyring().unwrap().keys.len() == 1 {
            store.rotate_data_key().unwrap();
            wait(&store, put_range(&store, QUEUE, 4..=6));
        }
    };
    let made = store.backup_and(&target.path().join("backup"), rotate).unwrap();
    let (copy, recovered) = open(&made.dir);
    assert_eq!(seqs(&copy, &recovered, QUEUE), [1, 2, 3, 4, 5, 6]);
}

/// The anchor was looked for in the data directory only, so the backup of a store with its anchor elsewhere had none, and
/// was refused wherever it was put.
#[test]
fn a_backup_has_the_anchor_wherever_the_store_has_it() {
    let (dir, target, elsewhere) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let anchor = Some(elsewhere.path().join("the anchor"));
    let options = |dir: &Path| OpenOptions {
        anchor: anchor.clone(),
        ..OpenOptions::new(dir, Mode::Sealed, Some(kek().into()))
    };
    let (store, _) = Store::open(options(dir.path())).unwrap();
    wait(&store, put_range(&store, QUEUE, 1..=3));
    let made = store.backup(&target.path().join("backup")).unwrap();
    wait(&store, put_range(&store, QUEUE, 4..=4));
    store.close().unwrap();
    drop(store);
    // Beside the anchor that outlived it, it is what it is: older.
    let refused = Store::open(options(copied(&made.dir).path())).map(drop).unwrap_err();
    assert_eq!(refused.code(), "E_STORE_ROLLBACK");
    let (copy, recovered) = open(&made.dir);
    assert_eq!(seqs(&copy, &recovered, QUEUE), [1, 2, 3]);
}

/// Whoever owned the folder, or one above it, could put a link in its place meanwhile: the broker then wrote where the link
/// led, and when it failed removed all that was there.
#[test]
fn refuses_a_folder_that_others_can_exchange() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = open(dir.path());
    let shared = target.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::create_dir(shared.join("in")).unwrap();
    let refused = |place: &Path| {
        let error = store.backup(place).unwrap_err();
        assert_eq!(error.code(), "E_BACKUP_TARGET");
        error.to_string()
    };
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    for place in [shared.join("new"), shared.join("in/new"), shared.join("in")] {
        assert!(refused(&place).contains("may rename what is in"), "{}", place.display());
    }
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    store.backup(&shared.join("sticky")).unwrap();
    // Only root can give a folder away.
    if rustix::process::geteuid().is_root() {
        fs::create_dir(shared.join("theirs")).unwrap();
        std::os::unix::fs::chown(shared.join("theirs"), Some(65_533), None).unwrap();
        assert!(refused(&shared.join("theirs")).contains("it belongs to user 65533"));
        assert!(refused(&shared.join("theirs/new")).contains("user 65533"));
    }
}
