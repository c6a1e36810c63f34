//! Damage, loss and manipulation of every file of a store. The oracle is always the same: refused with a code, or
//! everything that was confirmed is there, or what is not there is in quarantine; never silence, and never a hang.
//!
//! `SEALMQ_DAMAGE_SAMPLES` says how many places of each file are tried; a few unless told, 300 with `SEALMQ_NIGHTLY=1`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::channel;

use super::super::erase::ERASED_FILE;
use super::super::layout::RowKind;
use super::super::op::{Op, Put};
use super::super::record::{CommitRow, read_commit};
use super::super::sealing::{Opening, Sealing, seal_with};
use super::super::watchdog::watched;
use super::*;
use crate::seal::record::{Key as SealKey, Opener, Sealer};

pub(super) const MESSAGES: u64 = 12;
const SAMPLES: &str = "SEALMQ_DAMAGE_SAMPLES";
const HANG: &str = "SEALMQ_TEST_HANG_DIR";

fn samples(default: usize) -> usize {
    let told = std::env::var(SAMPLES).ok().and_then(|count| count.parse().ok());
    told.unwrap_or_else(|| nightly(default as u64, 300) as usize)
}

/// What was found, and what of it can be read.
#[derive(Debug)]
pub(super) struct Found {
    recovered: Recovered,
    served: BTreeMap<QueueId, Vec<u64>>,
    /// What turned out to be unreadable when it was read.
    lost: BTreeSet<u64>,
}

impl std::ops::Deref for Found {
    type Target = Recovered;

    fn deref(&self) -> &Recovered {
        &self.recovered
    }
}

pub(super) fn seqs(found: &Found, queue: QueueId) -> Vec<u64> {
    found.served.get(&queue).cloned().unwrap_or_default()
}

fn read_all(store: &Store, recovered: Recovered) -> Result<Found, StoreError> {
    let mut found = Found { recovered, served: BTreeMap::new(), lost: BTreeSet::new() };
    for queue in &found.recovered.queues {
        for Run { first, last, .. } in &queue.runs {
            let (first, last) = (*first, *last);
            let all =
                PageRequest { queue: queue.id, first, last, len_max: usize::MAX, bytes_max: usize::MAX };
            let page = store.page(&all)?;
            let seqs = page.entries.iter().map(|entry| entry.seq.0);
            found.served.entry(queue.id).or_default().extend(seqs);
            found.lost.extend(page.quarantined.iter().map(|entry| entry.seq.0));
        }
    }
    Ok(found)
}

/// Opens with a limit to the time, reads what is there, and closes again; gives what was found.
pub(super) fn try_options(options: OpenOptions) -> Result<Found, StoreError> {
    let (done, wait) = channel();
    std::thread::spawn(move || {
        let opened = Store::open(options);
        let _ = done.send(opened.and_then(|(store, recovered)| {
            let found = read_all(&store, recovered);
            store.close().unwrap();
            found
        }));
    });
    wait.recv_timeout(Duration::from_secs(120)).expect("opening hangs or panics")
}

pub(super) fn options(dir: &Path) -> OpenOptions {
    OpenOptions::new(dir, Mode::Sealed, Some(kek().into()))
}

pub(super) fn code_of(options: OpenOptions) -> &'static str {
    try_options(options).map_or_else(|e| e.code(), |_| "")
}

/// Commits one message at a time; every third is large and stands apart, in a blob file after the next start.
fn commit_each(store: &Store, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        let text = message(&format!("message {seq} ").repeat(if seq.is_multiple_of(3) { 1500 } else { 5 }));
        let shared = seq.is_multiple_of(3).then(|| store.shared_body(&text, 1));
        let place = store.appender().put(QUEUE, Seq(seq), &text, shared.as_ref(), meta(seq));
        wait(store, place);
    }
}

/// The directory of a store that was killed: half of its messages in tables and blob files, half in the log.
pub(super) fn killed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let row = store.appender().put_row(RowKind::Queue, RowId(1), b"orders".to_vec());
    wait(&store, row);
    commit_each(&store, 1..=MESSAGES / 2);
    // Without this file the next start would rewrite all at once, and its log might be empty when it is looked at.
    while !dir.path().join(ERASED_FILE).exists() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let image = crash_image(dir.path());
    store.close().unwrap();
    // Recovery moves the content of the log to tables.
    let (store, _) = open(image.path());
    commit_each(&store, MESSAGES / 2 + 1..=MESSAGES);
    let image = crash_image(image.path());
    store.close().unwrap();
    image
}

pub(super) fn copy_of(image: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(image, dir.path()).unwrap();
    dir
}

/// Every file by its path below the store's directory.
pub(super) fn files_of(dir: &Path) -> Vec<PathBuf> {
    let all = all_bytes(dir).into_iter().map(|(path, _)| path.strip_prefix(dir).unwrap().to_path_buf());
    let mut all: Vec<PathBuf> =
        all.filter(|path| !path.ends_with("LOCK") && !path.ends_with("store.lock")).collect();
    all.sort();
    all
}

/// Gives the code of the refusal, or "" when nothing is lost.
fn judge(dir: &Path, what: &str) -> &'static str {
    let recovered = match try_options(options(dir)) {
        Err(e) => {
            assert!(e.code().starts_with("E_") && !e.remedy().is_empty(), "{what}: {e}");
            assert_ne!(
                e.code(),
                "E_OPEN_TIMEOUT",
                "{what}: the look at the logs must find what makes RocksDB hang"
            );
            return e.code();
        }
        Ok(recovered) => recovered,
    };
    let mut found: BTreeSet<u64> = seqs(&recovered, QUEUE).into_iter().collect();
    found.extend(recovered.quarantined.iter().map(|entry| entry.seq.0).chain(recovered.lost.iter().copied()));
    assert_eq!(found, (1..=MESSAGES).collect(), "{what}: lost without a word");
    assert_eq!(recovered.rows.len(), 1, "{what}: a row is lost without a word");
    ""
}

/// A number that looks random and is the same in each run.
pub(super) fn scatter(seed: u64) -> u64 {
    let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
}

/// The newest write-ahead log, and where its records begin.
pub(super) fn newest_log(dir: &Path) -> (PathBuf, Vec<usize>) {
    let logs =
        files_of(dir).into_iter().filter(|path| path.extension().is_some_and(|suffix| suffix == "log"));
    let path = dir.join(logs.max().unwrap());
    let bytes = fs::read(&path).unwrap();
    let (mut at, mut records) = (0, Vec::new());
    while at + 7 <= bytes.len() {
        let left = 32_768 - at % 32_768;
        if left < 7 {
            at += left;
            continue;
        }
        records.push(at);
        at += 7 + usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
    }
    (path, records)
}

pub(super) fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// RocksDB took a damaged length in the last records for an interrupted write, and of 27 flips lost a confirmed
/// message in 4 without a word; a damaged type made it hang.
#[test]
fn a_flip_in_a_header_of_the_last_records_is_refused_and_changes_nothing() {
    let image = killed();
    let (log, records) = newest_log(image.path());
    let masks: &[u8] = if samples(0) > 0 { &[1, 2, 4, 8, 16, 32, 64, 128] } else { &[0x01, 0x04, 0x80] };
    let mut codes = BTreeMap::new();
    for at in records.iter().rev().take(3).flat_map(|at| *at..at + 7) {
        for mask in masks {
            let dir = copy_of(image.path());
            change(&dir.path().join(log.strip_prefix(image.path()).unwrap()), |bytes| bytes[at] ^= mask);
            let before = all_bytes(&dir.path().join("db"));
            let code = judge(dir.path(), &format!("byte {at} ^ {mask:#x}"));
            assert!(["E_WAL_CORRUPT", "E_STORE_ROLLBACK"].contains(&code), "byte {at} ^ {mask:#x}: '{code}'");
            assert_eq!(
                all_bytes(&dir.path().join("db")),
                before,
                "byte {at} ^ {mask:#x}: files were changed"
            );
            *codes.entry(code).or_insert(0) += 1;
        }
    }
    assert_eq!(codes.len(), 2, "{codes:?}");
}

#[test]
fn a_flipped_bit_anywhere_is_refused_or_loses_nothing_in_silence() {
    let image = killed();
    let mut codes: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, name) in files_of(image.path()).into_iter().enumerate() {
        let len = fs::metadata(image.path().join(&name)).unwrap().len();
        for sample in 0..samples(5).min(len as usize) {
            let random = scatter((number * 1000 + sample) as u64);
            let (at, bit) = ((random % len) as usize, random >> 40 & 7);
            let dir = copy_of(image.path());
            change(&dir.path().join(&name), |bytes| bytes[at] ^= 1 << bit);
            *codes
                .entry(judge(dir.path(), &format!("{} byte {at} bit {bit}", name.display())))
                .or_default() += 1;
        }
    }
    for wanted in ["E_WAL_CORRUPT", "E_MANIFEST_CORRUPT", "E_DB_CORRUPT", "E_DESCRIPTOR_CORRUPT", ""] {
        assert!(codes.contains_key(wanted), "no flip led to '{wanted}': {codes:?}");
    }
}

#[test]
fn a_file_that_is_cut_or_gone_is_refused_or_loses_nothing_in_silence() {
    let image = killed();
    let mut codes: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, name) in files_of(image.path()).into_iter().enumerate() {
        let len = fs::metadata(image.path().join(&name)).unwrap().len();
        let dir = copy_of(image.path());
        fs::remove_file(dir.path().join(&name)).unwrap();
        *codes.entry(judge(dir.path(), &format!("{} gone", name.display()))).or_default() += 1;
        for sample in 0..samples(2) {
            let cut = if sample == 0 { 0 } else { scatter((number * 1000 + sample) as u64) % len };
            let dir = copy_of(image.path());
            change(&dir.path().join(&name), |bytes| bytes.truncate(cut as usize));
            let what = format!("{} cut to {cut} of {len} bytes", name.display());
            *codes.entry(judge(dir.path(), &what)).or_default() += 1;
        }
    }
    for wanted in ["E_STORE_ROLLBACK", "E_ANCHOR_MISSING", "E_ANCHOR_CORRUPT", "E_STORE_MISSING", ""] {
        assert!(codes.contains_key(wanted), "nothing led to '{wanted}': {codes:?}");
    }
}

#[test]
fn a_log_that_lost_its_last_commits_is_refused_wherever_it_ends() {
    let image = killed();
    let (log, records) = newest_log(image.path());
    let name = log.strip_prefix(image.path()).unwrap();
    for cut in records.iter().rev().take(3).flat_map(|at| [*at, at + 3, at + 20]) {
        let dir = copy_of(image.path());
        change(&dir.path().join(name), |bytes| bytes.truncate(cut));
        assert_eq!(judge(dir.path(), &format!("cut at {cut}")), "E_STORE_ROLLBACK");
    }
}

#[test]
fn an_interrupted_write_behind_the_last_commit_is_no_damage() {
    let image = killed();
    let (log, records) = newest_log(image.path());
    let name = log.strip_prefix(image.path()).unwrap();
    let bytes = fs::read(&log).unwrap();
    let last = &bytes[*records.last().unwrap()..];
    for tail in [&last[..3], &last[..7], &last[..20], &last[..last.len() - 1], &[0; 5000]] {
        let dir = copy_of(image.path());
        change(&dir.path().join(name), |bytes| bytes.extend_from_slice(tail));
        assert_eq!(judge(dir.path(), &format!("{} bytes more", tail.len())), "");
        assert_eq!(judge(dir.path(), "and once more"), "");
    }
}

/// Not a test of its own: the process that hangs.
#[test]
#[ignore = "started by the watchdog's test"]
fn hanging() {
    let Some(dir) = std::env::var_os(HANG).map(PathBuf::from) else { return };
    let opened = watched(&dir, Duration::from_secs(2), "none was made", {
        let dir = dir.clone();
        move || Rocks::open(&dir, Tail::Whole)
    });
    println!("code: {}", opened.map_or_else(|e| e.code(), |_| "opened"));
}

/// A bit in a record's type makes RocksDB spin for ever (facebook/rocksdb#13333). The look at the logs refuses it
/// beforehand; should it ever miss one, the process must end all the same.
#[test]
fn a_database_that_makes_rocksdb_hang_is_refused_and_the_watchdog_ends_it_otherwise() {
    let image = killed();
    let (log, records) = newest_log(image.path());
    change(&log, |bytes| bytes[records[records.len() - 1] + 6] = 5);
    assert_eq!(judge(image.path(), "a recyclable type"), "E_WAL_CORRUPT");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::damage::hanging", "--ignored", "--nocapture", "--quiet"])
        .env(HANG, image.path().join("db"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("code: E_OPEN_TIMEOUT"), "{child:?}");
}

// ---- presence: records that are gone, back, or old

pub(super) fn values(dir: &Path, keys: &[(Family, Key)]) -> Vec<Option<Vec<u8>>> {
    let rocks = Rocks::open(&dir.join("db"), Tail::Whole).unwrap();
    keys.iter().map(|(family, key)| rocks.value(*family, key).unwrap()).collect()
}

pub(super) fn put_values(dir: &Path, keys: &[(Family, Key)], values: Vec<Option<Vec<u8>>>) {
    tamper(dir, |_, put| keys.iter().zip(values).for_each(|((family, key), value)| put(*family, key, value)));
}

pub(super) fn entry(seq: u64) -> (Family, Key) {
    (Family::Entries, Key::entry(QUEUE, Seq(seq)))
}

pub(super) fn in_quarantine(dir: &Path) -> OpenOptions {
    OpenOptions { quarantine: true, ..options(dir) }
}

pub(super) fn quarantined(recovered: &Recovered) -> Vec<(u64, &'static str)> {
    recovered.quarantined.iter().map(|entry| (entry.seq.0, entry.code)).collect()
}

#[test]
fn a_message_that_was_removed_is_missed_and_named_in_either_mode() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = filled(mode);
        put_values(dir.path(), &[entry(2)], vec![None]);
        let options = || OpenOptions::new(dir.path(), mode, Some(kek().into()));
        let error = try_options(options()).unwrap_err();
        assert_eq!(error.code(), "E_QUEUE_INTEGRITY");
        assert!(error.to_string().contains("queue 1: 1 missing (entry 2), 0 extra"), "{error}");
        let recovered = try_options(OpenOptions { quarantine: true, ..options() }).unwrap();
        assert_eq!(seqs(&recovered, QUEUE), [1, 3, 4], "what is there is served");
        let gone = QueueFault { queue: QUEUE, missing: 1, extra: 0, gone: Some(Seq(2)) };
        assert_eq!((&recovered.faults[..], &recovered.quarantined[..]), (&[gone][..], &[][..]));
        let recovered = try_options(options()).unwrap();
        assert!(recovered.faults.is_empty(), "what was accepted once is the state from then on");
    }
}

#[test]
fn an_emptied_queue_is_missed() {
    let dir = filled(Mode::Sealed);
    put_values(dir.path(), &[entry(1), entry(2), entry(3), entry(4)], vec![None; 4]);
    let error = try_options(options(dir.path())).unwrap_err();
    assert!(error.to_string().contains("queue 1: 4 missing"), "{error}");
    let dir = filled(Mode::Sealed);
    let all = [entry(1), entry(2), entry(3), entry(4), (Family::Meta, Key::manifest(QUEUE))];
    put_values(dir.path(), &all, vec![None; 5]);
    assert_eq!(code_of(options(dir.path())), "E_QUEUE_INTEGRITY", "its manifest is missed as well");
    assert!(
        try_options(in_quarantine(dir.path())).unwrap().faults.is_empty(),
        "it cannot be said whose it was"
    );
    assert_eq!(code_of(options(dir.path())), "");
}

#[test]
fn a_message_that_came_back_is_told_and_never_delivered() {
    let dir = filled(Mode::Sealed);
    let old = values(dir.path(), &[entry(2), entry(4)]);
    let (store, recovered) = open(dir.path());
    let shared = entries(&store, &recovered.queues[0])[3].shared.clone();
    let mut appender = store.appender();
    appender.delete(QUEUE, Seq(2), 0, None, Position(0));
    appender.delete(QUEUE, Seq(4), 0, shared.as_ref(), Position(0));
    drop(appender);
    store.close().unwrap();
    drop(store);
    put_values(dir.path(), &[entry(2)], vec![old[0].clone()]);
    let error = try_options(options(dir.path())).unwrap_err();
    assert!(error.to_string().contains("queue 1: 0 missing, 1 extra"), "{error}");
    for options in [in_quarantine(dir.path()), options(dir.path()), options(dir.path())] {
        let recovered = try_options(options).unwrap();
        assert_eq!(seqs(&recovered, QUEUE), [1, 3]);
        assert_eq!(quarantined(&recovered), [(2, "E_ENTRY_EXTRA")], "remembered without the flag");
    }
    // One more, whose body is shared with another queue.
    put_values(dir.path(), &[entry(4)], vec![old[1].clone()]);
    assert_eq!(code_of(options(dir.path())), "E_QUEUE_INTEGRITY");
    let recovered = try_options(in_quarantine(dir.path())).unwrap();
    assert_eq!(seqs(&recovered, QUEUE), [1, 3]);
    assert_eq!(seqs(&recovered, QueueId(2)), [1]);
    assert_eq!(quarantined(&recovered), [(2, "E_ENTRY_EXTRA"), (4, "E_ENTRY_EXTRA")]);
    let (store, _) = open(dir.path());
    store.appender().drop_queue(QUEUE, vec![]);
    store.close().unwrap();
    drop(store);
    assert_eq!(
        values(dir.path(), &[entry(1), entry(2), entry(3), entry(4)]),
        vec![None; 4],
        "gone with its queue"
    );
    let recovered = try_options(options(dir.path())).unwrap();
    assert_eq!((seqs(&recovered, QueueId(2)), recovered.quarantined.len()), (vec![1], 0));
}

#[test]
fn a_copy_at_a_place_that_was_never_given_out_is_told() {
    let dir = filled(Mode::Sealed);
    let two = values(dir.path(), &[entry(2)]);
    put_values(dir.path(), &[entry(9)], two);
    assert_eq!(code_of(options(dir.path())), "E_QUEUE_INTEGRITY");
    let recovered = try_options(in_quarantine(dir.path())).unwrap();
    assert_eq!(
        (seqs(&recovered, QUEUE), quarantined(&recovered)),
        (vec![1, 2, 3, 4], vec![(9, "E_ENTRY_EXTRA")])
    );
}

#[test]
fn an_older_state_of_one_queue_is_refused_though_it_fits_its_own_manifest() {
    let dir = filled(Mode::Sealed);
    let queue = [entry(1), entry(2), entry(3), entry(4), (Family::Meta, Key::manifest(QUEUE))];
    let old = values(dir.path(), &queue);
    let (store, recovered) = open(dir.path());
    let shared = entries(&store, &recovered.queues[0])[3].shared.clone();
    let mut appender = store.appender();
    (1..=3).for_each(|seq| appender.delete(QUEUE, Seq(seq), 0, None, Position(0)));
    appender.delete(QUEUE, Seq(4), 0, shared.as_ref(), Position(0));
    drop(appender);
    store.close().unwrap();
    drop(store);
    put_values(dir.path(), &queue, old);
    let error = try_options(options(dir.path())).unwrap_err();
    assert_eq!(error.code(), "E_QUEUE_INTEGRITY");
    assert!(error.to_string().contains("older"), "{error}");
    assert_eq!(seqs(&try_options(in_quarantine(dir.path())).unwrap(), QUEUE), [1, 2, 3, 4]);
}

/// A user that was removed, a permission that was taken away: whoever puts such a row back must not get in.
#[test]
fn a_row_that_is_gone_back_or_old_is_refused_even_with_quarantine() {
    let row = [(Family::Meta, Key::row(RowKind::Queue, RowId(1)))];
    let dir = filled(Mode::Sealed);
    put_values(dir.path(), &row, vec![None]);
    assert_eq!(code_of(in_quarantine(dir.path())), "E_METADATA_DAMAGED");
    for change in [true, false] {
        let dir = filled(Mode::Sealed);
        let old = values(dir.path(), &row);
        let (store, _) = open(dir.path());
        if change {
            store.appender().put_row(RowKind::Queue, RowId(1), b"invoices".to_vec());
        } else {
            store.appender().delete_row(RowKind::Queue, RowId(1));
        }
        store.close().unwrap();
        drop(store);
        assert_eq!(code_of(options(dir.path())), "", "what the store itself did is no fault");
        put_values(dir.path(), &row, old);
        assert_eq!(code_of(in_quarantine(dir.path())), "E_METADATA_DAMAGED");
    }
}

#[test]
fn an_older_commit_row_is_refused() {
    let dir = filled(Mode::Sealed);
    let commit = [(Family::Meta, Key::commit())];
    let old = values(dir.path(), &commit);
    let (store, _) = open(dir.path());
    put_range(&store, QUEUE, 5..=5);
    store.close().unwrap();
    drop(store);
    put_values(dir.path(), &commit, old);
    assert_eq!(code_of(options(dir.path())), "E_STORE_ROLLBACK");
    let accepted = read_row_of(dir.path()).commit_seq;
    let options = OpenOptions { accept_rollback: Some(accepted), quarantine: true, ..options(dir.path()) };
    assert_eq!(code_of(options), "E_METADATA_DAMAGED", "a manifest is of a later commit");
}

/// A transaction's put may come after its queue was dropped; the engine then drops the queue once more. A crash on
/// the way must not look as if somebody had added or removed entries.
#[test]
fn a_put_that_came_after_its_queue_was_dropped_is_no_fault_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let last = 2 * crate::limits::PURGE_KEYS_MAX as u64 + 10;
    put_range(&store, QUEUE, 1..=last);
    store.close().unwrap();
    drop(store);
    let (mut committer, ..) = super::super::open::prepare(options(dir.path())).unwrap();
    let (message, shared) = (message("late"), None);
    let put = Put { queue: QUEUE, seq: Seq(last + 1), message, shared, meta: meta(1) };
    let mut ops = vec![Op::DropQueue { queue: QUEUE, bodies: Vec::new() }, Op::Put(put)];
    committer.core.charge(ops.iter().map(Op::charge).sum());
    let mut steps = 0;
    loop {
        committer.commit(&mut ops, false).unwrap();
        steps += 1;
        let image = crash_image(dir.path());
        let recovered = try_options(options(image.path())).unwrap();
        let late = if committer.purges.is_empty() { vec![last + 1] } else { Vec::new() };
        assert_eq!(seqs(&recovered, QUEUE), late, "step {steps}");
        assert_eq!(code_of(options(image.path())), "");
        if committer.purges.is_empty() {
            break;
        }
    }
    assert!(steps > 2);
    let mut again = vec![Op::DropQueue { queue: QUEUE, bodies: Vec::new() }];
    committer.core.charge(again.iter().map(Op::charge).sum());
    committer.commit(&mut again, false).unwrap();
    drop(committer);
    let recovered = try_options(options(dir.path())).unwrap();
    assert!(recovered.queues.is_empty() && recovered.faults.is_empty());
}

// ---- the anchor

/// The commit row of a closed store.
pub(super) fn read_row_of(dir: &Path) -> CommitRow {
    let keyring = super::super::keyring_file::KeyringFile::open(dir, &kek().into()).unwrap();
    let mut opening = Opening::Sealed(Box::new(Opener::new(keyring.keys(), keyring.ring().store)));
    let value = values(dir, &[(Family::Meta, Key::commit())]).remove(0).unwrap();
    let (kinds, mut text) = ([crate::seal::envelope::Kind::Commit], Vec::new());
    opening.open(&kinds, Family::Meta, Key::commit().as_bytes(), &value, &mut text).unwrap();
    read_commit(&text).unwrap()
}

pub(super) fn anchored(dir: &Path, anchor: &Path) -> OpenOptions {
    OpenOptions { anchor: Some(anchor.to_path_buf()), ..options(dir) }
}

#[test]
fn a_directory_that_was_put_back_is_refused_while_its_anchor_lies_elsewhere() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let anchor = elsewhere.path().join("anchor");
    let work = |seqs| {
        let (store, _) = Store::open(anchored(dir.path(), &anchor)).unwrap();
        put_range(&store, QUEUE, seqs);
        store.close().unwrap();
    };
    work(1..=2);
    let old = copy_of(dir.path());
    work(3..=4);
    let newest = read_row_of(dir.path()).commit_seq;
    assert_eq!(code_of(anchored(old.path(), &anchor)), "E_STORE_ROLLBACK");
    let found = read_row_of(old.path()).commit_seq;
    for wrong in [0, found - 1, found + 1, newest] {
        let accepted = OpenOptions { accept_rollback: Some(wrong), ..anchored(old.path(), &anchor) };
        assert_eq!(code_of(accepted), "E_STORE_ROLLBACK", "accepting {wrong} is not accepting {found}");
    }
    let accepted = OpenOptions { accept_rollback: Some(found), ..anchored(old.path(), &anchor) };
    assert_eq!(seqs(&try_options(accepted).unwrap(), QUEUE), [1, 2]);
    assert_eq!(code_of(anchored(old.path(), &anchor)), "", "accepted once is enough");
    // Within the directory the anchor goes back with it: nobody can tell.
    let (store, _) = open(old.path().join("inside").as_path());
    put_range(&store, QUEUE, 1..=1);
    let inside = crash_image(store.data_dir());
    store.close().unwrap();
    assert_eq!(code_of(options(inside.path())), "");
}

#[test]
fn an_anchor_that_is_gone_is_not_made_anew_and_one_that_moved_is_found_by_its_name() {
    let dir = filled(Mode::Sealed);
    let (inside, saved) = (dir.path().join("anchor"), fs::read(dir.path().join("anchor")).unwrap());
    assert_eq!(fs::metadata(&inside).unwrap().len(), 4608);
    fs::remove_file(&inside).unwrap();
    let error = try_options(options(dir.path())).unwrap_err();
    assert_eq!(error.code(), "E_ANCHOR_MISSING");
    assert!(error.to_string().contains(inside.to_str().unwrap()), "{error}");
    assert!(!inside.exists());
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("anchor");
    fs::write(&moved, saved).unwrap();
    assert_eq!(code_of(anchored(dir.path(), &moved)), "");
    let error = try_options(options(dir.path())).unwrap_err();
    assert!(error.to_string().contains(moved.to_str().unwrap()), "it says where it was last: {error}");
    let last = read_row_of(dir.path()).commit_seq;
    let accepted = OpenOptions { accept_rollback: Some(last), ..options(dir.path()) };
    assert_eq!(code_of(accepted), "");
    assert_eq!(code_of(options(dir.path())), "");
}

#[test]
fn a_damaged_slot_is_made_good_and_a_damaged_anchor_is_refused_until_it_is_accepted() {
    let dir = filled(Mode::Sealed);
    let anchor = dir.path().join("anchor");
    for slot in [0, 4096] {
        change(&anchor, |bytes| bytes[slot + 100] ^= 1);
        assert_eq!(code_of(options(dir.path())), "");
    }
    change(&anchor, |bytes| (bytes[30], bytes[4126]) = (!bytes[30], !bytes[4126]));
    assert_eq!(code_of(options(dir.path())), "E_ANCHOR_CORRUPT");
    let last = read_row_of(dir.path()).commit_seq;
    let accepted = OpenOptions { accept_rollback: Some(last), ..options(dir.path()) };
    assert_eq!(code_of(accepted), "");
    assert_eq!(code_of(options(dir.path())), "");
}

#[test]
fn another_stores_anchor_is_refused_and_no_store_is_made_beside_one() {
    let (dir, other) = (filled(Mode::Sealed), filled(Mode::Sealed));
    fs::copy(other.path().join("anchor"), dir.path().join("anchor")).unwrap();
    assert_eq!(code_of(options(dir.path())), "E_ANCHOR_FOREIGN");
    let empty = tempfile::tempdir().unwrap();
    let anchor = other.path().join("anchor");
    assert_eq!(code_of(anchored(empty.path(), &anchor)), "E_ANCHOR_FOREIGN");
    assert_eq!(files_of(empty.path()), Vec::<PathBuf>::new(), "nothing was made");
    assert_eq!(code_of(anchored(other.path(), &anchor)), "");
}

#[test]
fn a_database_that_was_emptied_with_its_anchor_is_not_taken_for_a_new_store() {
    let dir = filled(Mode::Sealed);
    fs::remove_file(dir.path().join("anchor")).unwrap();
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    assert_eq!(code_of(options(dir.path())), "E_DB_MISSING");
    fs::create_dir(dir.path().join("db")).unwrap();
    drop(Rocks::open(&dir.path().join("db"), Tail::Whole).unwrap());
    assert_eq!(code_of(options(dir.path())), "E_ANCHOR_MISSING");
    let plain = filled(Mode::PlainInsecure);
    fs::remove_dir_all(plain.path().join("db")).unwrap();
    assert_eq!(code_of(OpenOptions::new(plain.path(), Mode::PlainInsecure, None)), "E_DB_MISSING");
}

/// Before there were anchors and sums, the commit row ended with `clean`, and a plain store's sums were 0.
#[test]
fn a_store_of_an_older_version_gets_its_anchor_and_its_sums() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let dir = filled(mode);
        let key = Key::commit();
        let row = CommitRow { commit_seq: 100, body_id_next: 9, row_id_next: 9, ..CommitRow::default() };
        let mut value = Vec::new();
        if mode == Mode::Sealed {
            let keyring = super::super::keyring_file::KeyringFile::open(dir.path(), &kek().into()).unwrap();
            let meta = Arc::new(SealKey::meta(&keyring.ring().root));
            let sealer = Sealer::new(meta, keyring.ring().store).unwrap();
            seal_with(&sealer, Padding::Padme, &row, Family::Meta, &key, &mut value).unwrap();
        } else {
            Sealing::Plain.seal(&row, Family::Meta, &key, &mut value).unwrap();
        }
        put_values(dir.path(), &[(Family::Meta, key)], vec![Some(value)]);
        fs::remove_file(dir.path().join("anchor")).unwrap();
        let options = || OpenOptions::new(dir.path(), mode, Some(kek().into()));
        assert_eq!(seqs(&try_options(options()).unwrap(), QUEUE), [1, 2, 3, 4]);
        assert!(dir.path().join("anchor").exists());
        put_values(dir.path(), &[entry(2)], vec![None]);
        assert_eq!(code_of(options()), "E_QUEUE_INTEGRITY");
    }
}
