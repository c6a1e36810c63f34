//! Tests of the store as a whole, through its public door and a real RocksDB; what they share stands here.

mod audit;
mod backup;
mod behaviour;
mod bench;
mod crash;
mod damage;
mod erase;
mod failures;
mod keys;
mod leaks;
mod memory;
mod padding;
mod paging;
mod parts;
mod promises;
mod remains;
mod replay;
mod reseal;
mod shred;
mod spill;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layout::{Family, Key};
use super::rocks::{Rocks, Tail};
use super::*;
use crate::broker::id::{QueueId, Seq};
use crate::broker::queue::Run;
use crate::seal::Kek;

pub(super) const QUEUE: QueueId = QueueId(1);

/// How much is tried: little, or with `SEALMQ_NIGHTLY` in the environment much.
pub(super) fn nightly(usual: u64, nightly: u64) -> u64 {
    if std::env::var_os("SEALMQ_NIGHTLY").is_some() { nightly } else { usual }
}

pub(super) fn kek() -> Kek {
    Kek::take(&mut std::array::from_fn(|i| i as u8))
}

pub(super) fn try_open(
    dir: &Path,
    mode: Mode,
    kek: Option<Kek>,
) -> Result<(Arc<Store>, Recovered), StoreError> {
    Store::open(OpenOptions::new(dir, mode, kek.map(Credential::Key)))
}

pub(super) fn open(dir: &Path) -> (Arc<Store>, Recovered) {
    try_open(dir, Mode::Sealed, Some(kek())).unwrap()
}

pub(super) fn reopen(store: Arc<Store>) -> (Arc<Store>, Recovered) {
    let (dir, mode) = (store.data_dir().to_path_buf(), store.mode());
    store.close().unwrap();
    drop(store);
    try_open(&dir, mode, Some(kek())).unwrap()
}

pub(super) fn message(text: &str) -> Message {
    Message::new(b"amq.topic", b"a.routing.key", &[0, 0], &[text.as_bytes()])
}

pub(super) fn meta(number: u64) -> EntryMeta {
    EntryMeta { enqueued_ms: number, expires_ms: 2 * number, priority: number as u8, delivery_count: 3 }
}

/// Puts small messages named by their numbers, in one appender.
pub(super) fn put_range(store: &Store, queue: QueueId, seqs: std::ops::RangeInclusive<u64>) -> Position {
    let mut appender = store.appender();
    for seq in seqs {
        appender.put(queue, Seq(seq), &message(&format!("message {seq}")), None, meta(seq));
    }
    appender.tail()
}

/// Waits until `place` is on the disk, woken by the store itself.
pub(super) fn wait(store: &Store, place: Position) {
    let limit = Instant::now() + Duration::from_secs(60);
    while store.durable() < place {
        assert_eq!(store.failure(), None);
        assert!(Instant::now() < limit, "not durable within a minute");
        store.appender().wake(Waker::from(Arc::new(Unpark(std::thread::current()))));
        if store.durable() < place {
            std::thread::park_timeout(Duration::from_secs(1));
        }
    }
}

/// All that was recovered of a queue, read back.
pub(super) fn entries(store: &Store, queue: &RecoveredQueue) -> Vec<RecoveredEntry> {
    let read = |run: &Run| {
        let Run { first, last, .. } = *run;
        let page = PageRequest { queue: queue.id, first, last, len_max: usize::MAX, bytes_max: usize::MAX };
        let page = store.page(&page).unwrap();
        assert_eq!((page.entries.len() as u64, page.quarantined.len()), (run.count, 0));
        let bodies: usize = page.entries.iter().map(|entry| entry.message.body().len()).sum();
        assert_eq!(bodies as u64, run.body_bytes);
        page.entries
    };
    queue.runs.iter().flat_map(read).collect()
}

pub(super) fn seqs(store: &Store, recovered: &Recovered, queue: QueueId) -> Vec<u64> {
    let found = recovered.queues.iter().filter(|q| q.id == queue);
    found.flat_map(|q| entries(store, q)).map(|entry| entry.seq.0).collect()
}

/// A copy of the directory as a crash at this moment would leave it.
pub(super) fn crash_image(dir: &Path) -> tempfile::TempDir {
    loop {
        let (image, before) = (tempfile::tempdir().unwrap(), sizes(dir));
        let copied = copy(dir, image.path());
        // RocksDB replaces files in the background; a copy across such a change is no moment's state.
        if copied.is_ok() && before.is_some() && before == sizes(dir) {
            return image;
        }
    }
}

fn sizes(dir: &Path) -> Option<std::collections::BTreeMap<std::path::PathBuf, u64>> {
    let mut sizes = std::collections::BTreeMap::new();
    for entry in fs::read_dir(dir).ok()? {
        let entry = entry.ok()?;
        if entry.file_type().ok()?.is_dir() {
            sizes.extend(self::sizes(&entry.path())?);
        } else {
            sizes.insert(entry.path(), entry.metadata().ok()?.len());
        }
    }
    Some(sizes)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// All bytes of all files below a folder.
pub(super) fn all_bytes(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(all_bytes(&path))
        } else if let Ok(bytes) = fs::read(&path) {
            // RocksDB may have removed it meanwhile.
            files.push((path, bytes))
        }
    }
    files
}

pub(super) fn code(dir: &Path, mode: Mode, kek: Option<Kek>) -> &'static str {
    let error = try_open(dir, mode, kek).map(|_| ()).unwrap_err();
    assert!(!error.to_string().is_empty() && !error.remedy().is_empty());
    error.code()
}

pub(super) fn sealed_code(dir: &Path) -> &'static str {
    code(dir, Mode::Sealed, Some(kek()))
}

/// A closed store with a row, three inline entries and a body that two queues share.
pub(super) fn filled(mode: Mode) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
    put_range(&store, QUEUE, 1..=3);
    let shared = store.shared_body(&message(&"body ".repeat(60_000)), 2);
    let mut appender = store.appender();
    appender.put(QUEUE, Seq(4), shared.message(), Some(&shared), meta(4));
    appender.put(QueueId(2), Seq(1), shared.message(), Some(&shared), meta(5));
    appender.put_row(RowKind::Queue, RowId(1), b"orders".to_vec());
    drop(appender);
    store.close().unwrap();
    dir
}

/// Changes records as somebody could who can write to the disk and knows RocksDB.
pub(super) fn tamper(dir: &Path, change: impl FnOnce(&Rocks, &mut dyn FnMut(Family, &Key, Option<Vec<u8>>))) {
    let rocks = Rocks::open(&dir.join("db"), Tail::Whole).unwrap();
    let mut batch = rocks.batch(0).unwrap();
    change(&rocks, &mut |family, key, value| match value {
        Some(value) => batch.put(family, key, &value),
        None => batch.delete(family, key),
    });
    rocks.write(batch).unwrap();
}
