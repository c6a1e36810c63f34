//! From a directory to a running store: lock, descriptor, keyring, anchor, a look at the logs, database, recovery,
//! a new data key, the first commit, the thread. Nothing that is there is ever made anew.

use std::path::Path;
use std::sync::{Arc, Weak};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::anchor::{self, ANCHOR_FILE, Demand, Mark};
use super::commit::{Core, DeliveryMarks};
use super::committer::{Committer, now_ms};
use super::descriptor::{Descriptor, Mode};
use super::erase::Eraser;
use super::error::StoreError;
use super::files;
use super::key_duty::KeyDuty;
use super::keyring_file::{KeyringFile, queue_of, resealed, seals};
use super::ledger::Ledger;
use super::op::Op;
use super::preflight::{self, Findings};
use super::presence::Presence;
use super::recovered::Recovered;
use super::recovery::{Counts, OnProgress, Terms, judge, restore};
use super::reseal::Reseal;
use super::rocks::{Rocks, Tail};
use super::sealing::{Opening, Sealing};
use super::shred::QueueKeys;
use super::spill;
use super::watchdog::{self, watched};
use super::{OpenOptions, Padding, Store};
use crate::seal::Credential;
use crate::seal::key::{AnchorKey, RootKey, Secret};
use crate::seal::multiset::Multiset;
use crate::seal::nonce;
use crate::seal::record::{Key, Opener, Sealer};

pub(super) const LOCK_FILE: &str = "store.lock";
pub(super) const DATABASE_DIR: &str = "db";

/// What a directory turned out to be.
struct Identity {
    store: [u8; 16],
    keyring: Option<KeyringFile>,
}

pub(super) fn open(options: OpenOptions) -> Result<(Arc<Store>, Recovered), StoreError> {
    let (dir, mode, padding, within) =
        (options.dir.clone(), options.mode, options.padding, options.erase_within);
    let anchor = options.anchor.clone().unwrap_or_else(|| dir.join(ANCHOR_FILE));
    let (committer, recovered, store) = prepare(options)?;
    let (core, rocks) = (Arc::clone(&committer.core), Arc::downgrade(&committer.rocks));
    let database = committer.rocks.is_open();
    start(&dir, &core, committer)?;
    let eraser = Eraser::start(&dir, Weak::clone(&rocks), &core, within, recovered.created);
    let eraser = eraser.inspect_err(|_| {
        core.close();
        core.join();
    })?;
    warn_of_quarantine(&recovered);
    Ok((Arc::new(Store { core, rocks, database, dir, anchor, mode, store, padding, eraser }), recovered))
}

/// Everything but the first commit and the thread; gives the store's uuid as well.
pub(super) fn prepare(options: OpenOptions) -> Result<(Committer, Recovered, [u8; 16]), StoreError> {
    let OpenOptions { dir, mode, kek, padding, anchor, mut progress, .. } = options;
    let OpenOptions { accept_rollback, quarantine, reseal_after, .. } = options;
    // RocksDB makes its files with whatever the process permits.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    files::create_dir(&dir)?;
    let Some(lock) = files::lock(&dir, LOCK_FILE)? else {
        return Err(StoreError::Locked { dir });
    };
    let folder = spill::Folder::emptied(&dir, lock)?;
    let anchor = anchor.unwrap_or_else(|| dir.join(ANCHOR_FILE));
    let Identity { store, mut keyring } = identify(&dir, mode, kek, &anchor)?;
    let generation = keyring.as_ref().map(|file| file.ring().generation);
    let root = keyring.as_ref().map(|file| &file.ring().root);
    let key = root.map_or_else(AnchorKey::public, RootKey::anchor);
    let demand = Demand::read(anchor, &store, &key, accept_rollback)?;
    let terms = Terms { dir: &dir, demand: &demand, generation, quarantine };
    let mut opening = opening(keyring.as_ref().map(KeyringFile::keys), store);
    let rocks = Arc::new(database(&terms, &mut opening, || counts(keyring.as_ref()), &mut progress)?);
    let restored = restore(&terms, &rocks, &mut opening, counts(keyring.as_ref()), &mut progress)?;
    rocks.start_compactions()?;
    let wall_ms = now_ms();
    let found = restored.commit.commit_seq;
    let mark = Mark { commit_seq: found, generation: generation.unwrap_or_default(), wall_ms };
    let commit_seq = demand.go_on_from(found);
    let anchor = demand.start(store, key, mark)?;
    let (sealing, data_key, queue_keys) = match &mut keyring {
        None => (Sealing::Plain, None, QueueKeys::default()),
        Some(file) => {
            let key = file.next_data_key(wall_ms, |entry| restored.needs(entry))?;
            let queue_keys = QueueKeys::of(file).map_err(|e| StoreError::system(&dir, e))?;
            (sealing(&dir, file, &key, padding)?, Some(key), queue_keys)
        }
    };
    let Counts { mut ledger, presence } = restored.counts;
    ledger.key_use.seals_with(sealing.data_key_id());
    // What was found is in tables.
    ledger.begin_memory_table();
    let keep_all_keys = restored.keep_all_keys || !restored.recovered.quarantined.is_empty();
    let keys = keyring.as_ref().map(KeyringFile::keys).unwrap_or_default();
    let opening = self::opening(keyring.is_some().then(|| keys.clone()), store);
    let core = Arc::new(Core::new(restored.next_body, restored.next_row, data_key, keys));
    let committer = Committer {
        core,
        rocks,
        sealing,
        ledger,
        presence,
        anchor,
        bodies: restored.bodies,
        opening,
        keyring,
        purges: restored.purges.into(),
        delivered: DeliveryMarks::default(),
        commit_seq,
        key_duty: KeyDuty::new(keep_all_keys),
        queue_keys,
        reseal: Reseal::new(reseal_after),
        sweeper: restored.sweeper,
        told_generation: restored.commit.keyring_generation,
        value: Vec::new(),
        _folder: folder,
    };
    Ok((committer, restored.recovered, store))
}

/// `keys` is `None` for a plain store.
fn opening(keys: Option<Vec<Arc<Key>>>, store: [u8; 16]) -> Opening {
    keys.map_or(Opening::Plain, |keys| Opening::Sealed(Box::new(Opener::new(keys, store))))
}

pub(super) fn counts(keyring: Option<&KeyringFile>) -> Counts {
    let root = keyring.map(|file| &file.ring().root);
    let sum = |key: Option<Secret<32>>| key.map_or_else(Multiset::public, |key| Multiset::new(&key));
    let mut ledger = Ledger::new(sum(root.map(RootKey::multiset)), root.is_some());
    for entry in keyring.iter().flat_map(|file| &file.ring().keys) {
        if queue_of(entry).is_some() {
            ledger.key_use.own(entry.key_id, seals(entry));
        } else if resealed(entry) {
            ledger.key_use.reseals(entry.key_id);
        }
    }
    Counts { ledger, presence: Presence::new(sum(root.map(RootKey::state))) }
}

/// Opens the database after a look at its logs. One that was cut short is first opened for reading only: if
/// something that was promised is gone, its files stay as they are.
fn database(
    terms: &Terms<'_>,
    opening: &mut Opening,
    counts: impl FnOnce() -> Counts,
    progress: &mut OnProgress,
) -> Result<Rocks, StoreError> {
    let path = terms.dir.join(DATABASE_DIR);
    let findings = match preflight::check(&path)? {
        Some(findings) => findings,
        None => {
            let evidence = match (terms.generation, terms.demand.commit_seq()) {
                (Some(generation), _) if generation > 1 => format!("its keyring has generation {generation}"),
                (_, commit_seq) if commit_seq > 0 => format!("its anchor tells of commit {commit_seq}"),
                _ => String::new(),
            };
            if !evidence.is_empty() {
                return Err(StoreError::DatabaseMissing { dir: terms.dir.to_path_buf(), evidence });
            }
            files::create_dir(&path)?;
            files::sync_dir(terms.dir)?;
            Findings::default()
        }
    };
    let (limit, said) = (watchdog::limit(findings.bytes), findings.to_string());
    let tail = if findings.is_torn() { Tail::Torn } else { Tail::Whole };
    // A store whose creation was cut short has nothing to lose, and may lack column families.
    if tail == Tail::Torn && !terms.is_new() {
        tracing::info!("an interrupted write: {said}");
        let torn = path.clone();
        let rocks = watched(&path, limit, &said, move || Rocks::look(&torn, Tail::Torn))?;
        if findings.is_deep {
            restore(terms, &rocks, opening, counts(), progress)?;
        } else {
            judge(terms, &rocks, opening)?;
        }
    }
    let opened = path.clone();
    watched(&path, limit, &said, move || Rocks::open(&opened, tail))
}

fn sealing(dir: &Path, file: &KeyringFile, data: &Arc<Key>, padding: Padding) -> Result<Sealing, StoreError> {
    let (root, store) = (&file.ring().root, file.ring().store);
    let sealer = |key| Sealer::new(key, store).map(Box::new).map_err(|e| StoreError::system(dir, e));
    let (meta, data) = (sealer(Arc::new(Key::meta(root)))?, sealer(Arc::clone(data))?);
    Ok(Sealing::Sealed { meta, data, padding })
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
fn identify(dir: &Path, mode: Mode, kek: Option<Credential>, anchor: &Path) -> Result<Identity, StoreError> {
    let Some(descriptor) = Descriptor::read(dir)? else {
        // An anchor outlives its store, when somebody takes that away as a whole.
        if anchor::exists(anchor) && !dir.join(DATABASE_DIR).exists() && !KeyringFile::exists(dir) {
            return Err(StoreError::AnchorForeign { path: anchor.to_path_buf() });
        }
        return create(dir, mode, kek);
    };
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
    let file = KeyringFile::open(dir, &needed(dir, kek)?)?;
    if file.ring().store != store {
        let detail = "it belongs to another store".into();
        return Err(StoreError::KeyringCorrupt { dir: dir.to_path_buf(), detail });
    }
    descriptor.verify(dir, &file.ring().root)?;
    Ok(Identity { store, keyring: Some(file) })
}

/// A new store, in an order that a crash cannot spoil: keyring, descriptor, database. A keyring of generation
/// 1 alone is a creation that was cut short, since the first start goes on to generation 2.
fn create(dir: &Path, mode: Mode, kek: Option<Credential>) -> Result<Identity, StoreError> {
    let missing = |what| StoreError::StoreMissing { dir: dir.to_path_buf(), what };
    if dir.join(DATABASE_DIR).exists() {
        return Err(missing("a database"));
    }
    let has_keyring = KeyringFile::exists(dir);
    let keyring = match mode {
        Mode::PlainInsecure if has_keyring => return Err(missing("a keyring")),
        Mode::PlainInsecure => None,
        Mode::Sealed if has_keyring => {
            let file = KeyringFile::open(dir, &needed(dir, kek)?)?;
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

fn needed(dir: &Path, kek: Option<Credential>) -> Result<Credential, StoreError> {
    kek.ok_or_else(|| StoreError::KekMissing { dir: dir.to_path_buf() })
}
