//! From a directory to a running store: lock, descriptor, keyring, database, recovery, a new data key, the
//! first commit, the thread. Nothing that is there is ever made anew.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::commit::{Core, DeliveryMarks, Op};
use super::committer::{Committer, now_ms};
use super::descriptor::{Descriptor, Mode};
use super::error::StoreError;
use super::files;
use super::keyring_file::KeyringFile;
use super::ledger::Ledger;
use super::recovery::{Recovered, restore};
use super::rocks::Rocks;
use super::sealing::{Opening, Sealing};
use super::{OpenOptions, Store};
use crate::seal::Kek;
use crate::seal::multiset::Multiset;
use crate::seal::nonce;
use crate::seal::record::{Key, Opener, Sealer};

const LOCK_FILE: &str = "store.lock";
const DATABASE_DIR: &str = "db";

/// What a directory turned out to be.
struct Identity {
    store: [u8; 16],
    keyring: Option<KeyringFile>,
}

pub(super) fn open(options: OpenOptions) -> Result<(Arc<Store>, Recovered), StoreError> {
    let (dir, mode) = (options.dir.clone(), options.mode);
    let (committer, recovered, store) = prepare(options)?;
    let core = Arc::clone(&committer.core);
    start(&dir, &core, committer)?;
    warn_of_quarantine(&recovered);
    Ok((Arc::new(Store { core, dir, mode, store }), recovered))
}

/// Everything but the first commit and the thread; gives the store's uuid as well.
pub(super) fn prepare(options: OpenOptions) -> Result<(Committer, Recovered, [u8; 16]), StoreError> {
    let OpenOptions { dir, mode, kek } = options;
    // RocksDB makes its files with whatever the process permits.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    files::create_dir(&dir)?;
    let Some(lock) = files::lock(&dir, LOCK_FILE)? else {
        return Err(StoreError::Locked { dir });
    };
    let Identity { store, mut keyring } = identify(&dir, mode, kek.as_ref())?;
    drop(kek);
    let database = dir.join(DATABASE_DIR);
    let generation = keyring.as_ref().map(|file| file.ring().generation);
    if let Some(generation) = generation.filter(|g| *g > 1 && !database.join("CURRENT").exists()) {
        return Err(StoreError::DatabaseMissing { dir, generation });
    }
    // Checking the log and the MANIFEST (store.md 6.6) belongs here, before RocksDB reads them.
    files::create_dir(&database)?;
    files::sync_dir(&dir)?;
    let rocks = Arc::new(Rocks::open(&database)?);
    let mut opening = match &keyring {
        None => Opening::Plain,
        Some(file) => Opening::Sealed(Box::new(Opener::new(file.keys(), store))),
    };
    let multiset = keyring.as_ref().map(|file| Multiset::new(&file.ring().root.multiset()));
    let restored = restore(&dir, &rocks, &mut opening, Ledger::new(multiset), generation)?;
    let (sealing, data_key) = match &mut keyring {
        None => (Sealing::Plain, None),
        Some(file) => {
            let key = file.next_data_key(now_ms(), |id| restored.uses(id))?;
            (sealing(&dir, file, &key)?, Some(key))
        }
    };
    let core = Arc::new(Core::new(restored.next_body, restored.next_row, data_key));
    let committer = Committer {
        core,
        rocks,
        sealing,
        ledger: restored.ledger,
        keyring,
        purges: restored.purges.into(),
        delivered: DeliveryMarks::default(),
        commit_seq: restored.commit.commit_seq,
        key_since: Instant::now(),
        key_records: 0,
        value: Vec::new(),
        _lock: lock,
    };
    Ok((committer, restored.recovered, store))
}

fn sealing(dir: &Path, file: &KeyringFile, data: &Arc<Key>) -> Result<Sealing, StoreError> {
    let (root, store) = (&file.ring().root, file.ring().store);
    let sealer = |key| Sealer::new(key, store).map(Box::new).map_err(|e| StoreError::system(dir, e));
    Ok(Sealing::Sealed { meta: sealer(Arc::new(Key::meta(root)))?, data: sealer(Arc::clone(data))? })
}

/// Commits once, which takes the mark of an orderly end away and shows that the disk can be written.
fn start(dir: &Path, core: &Arc<Core>, mut committer: Committer) -> Result<(), StoreError> {
    let mut first = vec![Op::Touch];
    core.charge(first.iter().map(Op::charge).sum());
    let stopped = |failure| StoreError::Stopped { dir: dir.to_path_buf(), failure };
    committer.commit(&mut first, false).map_err(stopped)?;
    let thread = std::thread::Builder::new().name("sealmq-commit".into()).spawn(|| committer.run());
    core.keep_thread(thread.map_err(|e| StoreError::system(dir, e))?);
    Ok(())
}

fn warn_of_quarantine(recovered: &Recovered) {
    for entry in &recovered.quarantined {
        let (queue, seq, code) = (entry.queue.0, entry.seq.0, entry.code);
        tracing::error!(queue, seq, code, "a message cannot be read; it is kept and will not be delivered");
    }
}

/// Says which store this is, and makes a new one where there is none.
fn identify(dir: &Path, mode: Mode, kek: Option<&Kek>) -> Result<Identity, StoreError> {
    let Some(descriptor) = Descriptor::read(dir)? else { return create(dir, mode, kek) };
    if descriptor.mode != mode {
        return Err(StoreError::PlainInSealed {
            dir: dir.to_path_buf(),
            what: "the modes differ".into(),
            found: descriptor.mode.name(),
            wanted: mode.name(),
        });
    }
    let store = descriptor.store(dir)?;
    if mode == Mode::PlainInsecure {
        return Ok(Identity { store, keyring: None });
    }
    if !KeyringFile::exists(dir) {
        return Err(StoreError::KeyringMissing { dir: dir.to_path_buf() });
    }
    let file = KeyringFile::open(dir, needed(dir, kek)?)?;
    if file.ring().store != store {
        let detail = "it belongs to another store".into();
        return Err(StoreError::KeyringCorrupt { dir: dir.to_path_buf(), detail });
    }
    descriptor.verify(dir, &file.ring().root)?;
    Ok(Identity { store, keyring: Some(file) })
}

/// A new store, in an order that a crash cannot spoil: keyring, descriptor, database. A keyring of generation
/// 1 alone is a creation that was cut short, since the first start goes on to generation 2.
fn create(dir: &Path, mode: Mode, kek: Option<&Kek>) -> Result<Identity, StoreError> {
    let missing = |what| StoreError::StoreMissing { dir: dir.to_path_buf(), what };
    if dir.join(DATABASE_DIR).exists() {
        return Err(missing("a database"));
    }
    let has_keyring = KeyringFile::exists(dir);
    let keyring = match mode {
        Mode::PlainInsecure if has_keyring => return Err(missing("a keyring")),
        Mode::PlainInsecure => None,
        Mode::Sealed if has_keyring => {
            let file = KeyringFile::open(dir, needed(dir, kek)?)?;
            if file.ring().generation > 1 {
                return Err(missing("a keyring that was in use"));
            }
            Some(file)
        }
        Mode::Sealed => {
            let store = nonce::random().map_err(|e| StoreError::system(dir, e))?;
            Some(KeyringFile::create(dir, needed(dir, kek)?, store)?)
        }
    };
    let store = match &keyring {
        Some(file) => file.ring().store,
        None => nonce::random().map_err(|e| StoreError::system(dir, e))?,
    };
    let created = OffsetDateTime::now_utc().format(&Rfc3339).map_err(|e| StoreError::system(dir, e))?;
    let root = keyring.as_ref().map(|file| &file.ring().root);
    Descriptor::new(mode, &store, created, root).write(dir)?;
    Ok(Identity { store, keyring })
}

fn needed<'a>(dir: &Path, kek: Option<&'a Kek>) -> Result<&'a Kek, StoreError> {
    kek.ok_or_else(|| StoreError::KekMissing { dir: dir.to_path_buf() })
}
