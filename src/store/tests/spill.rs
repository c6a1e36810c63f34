//! Transient messages on the disk: what is written comes back once, nobody else can read it, and nothing of it stays.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::broker::queue::Entry;
use crate::limits::SPILL_SEGMENT_BYTES_MAX;
use crate::seal::envelope::{HEADER_BYTES, OVERHEAD_BYTES};

const CANARY: &str = "SPILL-CANARY";

fn entry(seq: u64, body: &[u8]) -> Entry<()> {
    let message = Message::new(b"an.exchange", b"a.routing.key", &[0, 0], &[body]);
    let (redelivered, delivery_count) = (seq.is_multiple_of(2), seq as u32);
    let entry = Entry { redelivered, delivery_count, ..Entry::new(Seq(seq), message, ()) };
    Entry { priority: 3, expires_ms: seq << 40, ..entry }
}

fn block(first: u64, count: u64) -> Vec<Entry<()>> {
    (first..first + count).map(|seq| entry(seq, format!("{CANARY} {seq}").as_bytes())).collect()
}

fn write(spill: &mut Spill, id: u64, entries: &[Entry<()>]) {
    spill.write([(id, entries)]).unwrap();
}

fn files(store: &Store) -> Vec<PathBuf> {
    let listing = fs::read_dir(store.data_dir().join(SPILL_DIR));
    listing.into_iter().flatten().map(|found| found.unwrap().path()).collect()
}

fn assert_same(found: &[Entry<()>], wanted: &[Entry<()>]) {
    let facts = |entry: &Entry<()>| {
        let Entry { seq, redelivered, delivery_count, priority, expires_ms, message, .. } = entry.clone();
        (seq, redelivered, delivery_count, priority, expires_ms, message)
    };
    assert!(found.iter().map(facts).eq(wanted.iter().map(facts)), "{found:?} {wanted:?}");
}

fn plain(dir: &Path) -> Arc<Store> {
    try_open(dir, Mode::PlainInsecure, None).unwrap().0
}

#[test]
fn a_block_comes_back_as_it_was_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let mut spill = store.spill().unwrap();
    let large = [entry(100, &[7; 300_000])];
    let (a, b) = (block(1, 64), block(65, 1));
    spill.write([(1, &a[..]), (2, &large[..]), (3, &b[..])]).unwrap();
    assert_same(&spill.take(2, 0).unwrap(), &large);
    assert_same(&spill.take(1, 0).unwrap(), &a);
    assert_same(&spill.take(3, 0).unwrap(), &b);
    let gone = spill.take::<()>(3, 0).unwrap_err();
    assert!(matches!(gone, SpillLost::Gone), "{gone}");
    spill.reclaim();
    assert_eq!(files(&store), Vec::<PathBuf>::new(), "nothing stays on the disk");
}

#[test]
fn its_files_are_private_and_show_nothing_in_a_plain_store_either() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = try_open(dir.path(), mode, (mode == Mode::Sealed).then(kek)).unwrap();
        let mut spill = store.spill().unwrap();
        write(&mut spill, 1, &block(1, 64));
        let [file] = &files(&store)[..] else { panic!("one file") };
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let content = fs::read(file).unwrap();
        for word in [CANARY, "exchange", "routing"] {
            assert!(!content.windows(word.len()).any(|at| at == word.as_bytes()), "{word}");
        }
        assert_same(&spill.take(1, 0).unwrap(), &block(1, 64));
    }
}

#[test]
fn sizes_are_padded_as_bodies_are() {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions::new(dir.path(), Mode::Sealed, Some(kek().into()));
    let (store, _) = Store::open(OpenOptions { padding: Padding::Pow2, ..options }).unwrap();
    let mut spill = store.spill().unwrap();
    write(&mut spill, 1, &[entry(1, &[1; 3000])]);
    write(&mut spill, 2, &[entry(2, &[2; 3900])]);
    let [file] = &files(&store)[..] else { panic!("one file") };
    assert_eq!(fs::metadata(file).unwrap().len(), 2 * (4096 + OVERHEAD_BYTES as u64));
    assert_same(&spill.take(2, 0).unwrap(), &[entry(2, &[2; 3900])]);
}

#[test]
fn a_changed_or_moved_block_is_lost_and_no_other_is() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let mut spill = store.spill().unwrap();
    (1..=5).for_each(|id| write(&mut spill, id, &block(10 * id, 4)));
    let [file] = &files(&store)[..] else { panic!("one file") };
    let mut content = fs::read(file).unwrap();
    let len = content.len() / 5;
    content[len / 2] ^= 1;
    // Two that are whole, each at the other's place.
    let (one, other) = content.split_at_mut(2 * len);
    one[len..].swap_with_slice(&mut other[..len]);
    fs::write(file, &content).unwrap();
    for id in 1..=3 {
        let lost = spill.take::<()>(id, 0).unwrap_err();
        assert_eq!(lost.code(), "E_RECORD_FORGED", "{id}: {lost}");
    }
    assert_same(&spill.take(4, 0).unwrap(), &block(40, 4));
}

/// A broker that had no descriptor left for a moment gave up messages that were sound.
#[test]
fn a_block_that_the_disk_does_not_give_is_kept_for_ten_tries_a_second_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let mut spill = store.spill().unwrap();
    (1..=2).for_each(|id| write(&mut spill, id, &block(10 * id, 4)));
    let [file] = &files(&store)[..] else { panic!("one file") };
    let content = fs::read(file).unwrap();
    fs::write(file, "").unwrap();
    let refused = |spill: &mut Spill, now_ms| spill.take::<()>(1, now_ms).unwrap_err();
    for now_ms in (0..9000).step_by(10) {
        let error = refused(&mut spill, now_ms);
        assert!(matches!(error, SpillLost::NotNow { .. }), "{now_ms}: {error}");
        assert_eq!(error.code(), "E_STORE_IO");
    }
    spill.reclaim();
    let error = refused(&mut spill, 9000);
    assert!(matches!(error, SpillLost::Io { .. }) && error.code() == "E_STORE_IO", "{error}");
    assert!(matches!(refused(&mut spill, 10_000), SpillLost::Gone));
    assert!(matches!(spill.take::<()>(2, 0).unwrap_err(), SpillLost::NotNow { .. }));
    fs::write(file, content).unwrap();
    assert_same(&spill.take(2, 0).unwrap(), &block(20, 4));
    spill.reclaim();
    assert_eq!(files(&store), Vec::<PathBuf>::new());
}

#[test]
fn no_two_records_share_a_nonce() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let mut spill = store.spill().unwrap();
    let entries = block(1, 2);
    for step in 0..50 {
        spill.write((1..=4).map(|at| (4 * step + at, &entries[..]))).unwrap();
    }
    let [file] = &files(&store)[..] else { panic!("one file") };
    let content = fs::read(file).unwrap();
    let records: Vec<&[u8]> = content.chunks(content.len() / 200).collect();
    let nonces: std::collections::HashSet<&[u8]> = records.iter().map(|r| &r[8..HEADER_BYTES]).collect();
    let prefixes: std::collections::HashSet<&[u8]> = records.iter().map(|r| &r[8..20]).collect();
    assert_eq!((records.len(), nonces.len(), prefixes.len()), (200, 200, 50));
}

#[test]
fn files_are_bounded_and_go_with_their_last_block() {
    let dir = tempfile::tempdir().unwrap();
    let store = plain(dir.path());
    let mut spill = store.spill().unwrap();
    let entries = [entry(1, &vec![1; 1 << 20])];
    (1..=40).for_each(|id| write(&mut spill, id, &entries));
    let found = files(&store);
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|file| fs::metadata(file).unwrap().len() <= SPILL_SEGMENT_BYTES_MAX));
    let on_disk = || files(&store).iter().map(|file| fs::metadata(file).unwrap().blocks() * 512).sum::<u64>();
    let before = on_disk();
    // One block of each file is left, and nothing else of it is on the disk any more.
    (1..=40).filter(|id| id % 15 != 1).for_each(|id| drop(spill.take::<()>(id, 0).unwrap()));
    spill.reclaim();
    assert!(files(&store).len() == 3 && on_disk() < before / 10, "{} of {before} bytes", on_disk());
    for left in [1, 16] {
        assert_same(&spill.take(left, 0).unwrap(), &entries);
    }
    spill.give_up(31);
    spill.reclaim();
    assert_eq!(files(&store), Vec::<PathBuf>::new());
    write(&mut spill, 41, &entries);
    assert_same(&spill.take(41, 0).unwrap(), &entries);
}

#[test]
fn a_disk_that_takes_nothing_is_said_and_what_was_written_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let mut spill = store.spill().unwrap();
    let in_the_way = dir.path().join(SPILL_DIR);
    fs::write(&in_the_way, "no folder").unwrap();
    let entries = block(1, 3);
    let failed = spill.write([(1, &entries[..])]).unwrap_err();
    assert_eq!((failed.written, failed.error.code()), (0, "E_STORE_IO"));
    fs::remove_file(&in_the_way).unwrap();
    spill.write([(2, &entries[..])]).unwrap();
    assert_same(&spill.take(2, 0).unwrap(), &entries);
    assert!(spill.has_free(1) && !spill.has_free(u64::MAX));
}

#[test]
fn what_a_crash_left_is_gone_after_the_next_start_and_nobody_elses_file() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let folder = dir.path().join(SPILL_DIR);
    fs::create_dir(&folder).unwrap();
    for name in ["0123456789abcdef", "ffffffffffffffff", "0123456789ABCDEF", "notes", "0123456789abcde"] {
        fs::write(folder.join(name), "x").unwrap();
    }
    let (store, _) = open(dir.path());
    let mut left: Vec<_> = files(&store).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    left.sort();
    assert_eq!(left, ["0123456789ABCDEF", "0123456789abcde", "notes"]);
    let mut spill = store.spill().unwrap();
    write(&mut spill, 1, &block(1, 3));
    assert_eq!(files(&store).len(), 4);
    store.close().unwrap();
    assert_eq!(files(&store).len(), 3, "an orderly end leaves nothing either");
}

#[test]
fn a_folder_that_is_none_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("0123456789abcdef"), "x").unwrap();
    let data = dir.path().join("data");
    drop(plain(&data));
    symlink(&elsewhere, data.join(SPILL_DIR)).unwrap();
    let refused = try_open(&data, Mode::PlainInsecure, None).map(drop).unwrap_err();
    assert_eq!(refused.code(), "E_STORE_IO");
    assert!(elsewhere.join("0123456789abcdef").exists());
    fs::remove_file(data.join(SPILL_DIR)).unwrap();
    drop(plain(&data));
}
