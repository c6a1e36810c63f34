//! Sealing again what stands under old data keys, so that those keys can go. The committer does a small part of it
//! with one commit after the other, and never waits for itself: clients are served meanwhile.
//!
//! * A record is opened and sealed once more as it is, at its place, under a key that seals nothing else. By that key it
//!   is known ever after that the place was written several times, and how it is to be removed (RocksDB's SingleDelete
//!   must not meet two Puts). Such a key never goes before its last record.
//! * A body and all entries that name it change in one batch, since these name it by its tag. One whose entries are not
//!   all there, in a transaction or a purge, has to wait for a later pass.
//! * Nothing else remembers a reseal: a crash leaves what was sealed again and what was not, and both are sound.
//! * What does not open stays as it is, and keeps its key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::committer::{Committer, now_ms, refused};
use super::error::{CommitFailure, SlotRefusal, StoreError};
use super::key_admin::ResealFacts;
use super::keyring_file::{queue_of, seals};
use super::layout::{Family, Key};
use super::record::{BodyRef, Entry, Record, name_body_by, read_entry};
use super::rocks::Batch;
use super::sealing::seal_with;
use crate::broker::id::{BodyId, QueueId, Seq};
use crate::limits::{
    DATA_KEY_RECORDS_MAX, RESEAL_BYTES_MAX, RESEAL_IDLE_PASSES_MAX, RESEAL_LOOK_SECONDS, RESEAL_LOOKS_MAX,
    RESEAL_PASS_MS, RESEAL_RECORDS_MAX, RESEAL_SHARED_MAX, RESEAL_STEP_MS,
};
use crate::seal::envelope::{FLAG_LAST, Kind, parse};
use crate::seal::keyring::KeyEntry;
use crate::seal::padding::Padding;
use crate::seal::record::Sealer;
use crate::seal::xaes::Tag;

/// What the committer knows of it.
pub(super) struct Reseal {
    /// Age of a key at which it begins by itself.
    after: Option<Duration>,
    /// When it is to be looked for such keys.
    look_at: Instant,
    job: Option<Job>,
    /// The work that is under way, or was the last.
    told: Told,
}

/// What an operator is told.
#[derive(Clone, Default)]
struct Told {
    /// The keys that are to go.
    keys: Vec<u32>,
    resealed: u64,
    /// Records that did not open in this pass.
    unreadable: u64,
}

struct Job {
    told: Told,
    /// Made with the first step.
    sealer: Option<Sealer>,
    /// Records that it sealed.
    sealed: u64,
    due: Instant,
    /// Queues of this pass that are still to be seen, the last one first.
    queues: Vec<QueueId>,
    /// The place in the last of them that comes next.
    next: Seq,
    /// Bodies of several entries, with those that were found.
    shared: BTreeMap<BodyId, Shared>,
    /// What was sealed again when this pass began.
    before: u64,
    idle_passes: u32,
}

struct Shared {
    body: BodyRef,
    promised: u32,
    entries: Vec<(QueueId, Seq)>,
}

/// What one step may still do.
struct Share {
    records: usize,
    bytes: usize,
    looks: usize,
}

impl Share {
    fn is_over(&self) -> bool {
        self.records == 0 || self.bytes == 0 || self.looks == 0
    }

    fn take(&mut self, bytes: usize) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A record's plaintext as it was read.
struct Verbatim {
    kind: Kind,
    flags: u8,
    tag: Tag,
    text: Vec<u8>,
}

impl Record for Verbatim {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn flags(&self) -> u8 {
        self.flags
    }

    fn write(&self, _: Padding, out: &mut Vec<u8>) {
        // It is padded already.
        out.extend_from_slice(&self.text);
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

impl Reseal {
    pub(super) fn new(after: Option<Duration>) -> Reseal {
        Reseal { after, look_at: Instant::now(), job: None, told: Told::default() }
    }

    /// How long the committer can wait for something else.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let look = self.after.is_some().then_some(self.look_at);
        let due = self.job.as_ref().map(|job| job.due).into_iter().chain(look).min();
        due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// The next commit has a step of it.
    #[cfg(test)]
    pub(super) fn hurry(&mut self) {
        self.job.iter_mut().for_each(|job| job.due = Instant::now());
    }

    /// Whether more may be sealed under the key.
    pub(super) fn uses(&self, key: u32) -> bool {
        let sealer = self.job.as_ref().and_then(|job| job.sealer.as_ref());
        sealer.is_some_and(|sealer| sealer.key_id() == key)
    }
}

impl Committer {
    /// Begins to seal again what is under keys that are older than `older_than`; without it, older than the current
    /// one. Work that is under way is replaced.
    pub(super) fn start_reseal(&mut self, older_than: Option<Duration>) -> Result<(), StoreError> {
        let made_before = older_than.map(|age| now_ms().saturating_sub(age.as_millis() as u64));
        let is_old = |entry: &KeyEntry| made_before.is_none_or(|before| entry.created_ms <= before);
        let ring = || self.keyring.as_ref().map(|file| file.ring()).ok_or(SlotRefusal::NoKeyring);
        let is_current = |entry: &KeyEntry| queue_of(entry).is_none() && seals(entry);
        if made_before.is_some() && ring()?.keys.iter().any(|entry| is_current(entry) && is_old(entry)) {
            self.new_data_key()?;
        }
        let ring = self.keyring.as_ref().map(|file| file.ring()).ok_or(SlotRefusal::NoKeyring)?;
        let old =
            ring.keys.iter().filter(|entry| queue_of(entry).is_none() && !seals(entry) && is_old(entry));
        let keys: Vec<u32> = old.map(|entry| entry.key_id).collect();
        self.begin_reseal(keys);
        Ok(())
    }

    fn begin_reseal(&mut self, keys: Vec<u32>) {
        tracing::info!(?keys, "what is under old data keys is sealed again");
        let told = Told { keys, ..Told::default() };
        self.reseal.told = told.clone();
        let mut job = Job {
            told,
            sealer: None,
            sealed: 0,
            due: Instant::now(),
            queues: Vec::new(),
            next: Seq(0),
            shared: BTreeMap::new(),
            before: 0,
            idle_passes: 0,
        };
        self.begin_pass(&mut job);
        // The key of work that is replaced may be free.
        self.ledger.key_use.look_again();
        self.reseal.job = Some(job);
    }

    fn begin_pass(&self, job: &mut Job) {
        let keys = &job.told.keys;
        job.queues = self.ledger.queues().filter(|queue| self.ledger.may_be_under(*queue, keys)).collect();
        job.queues.sort_unstable_by(|a, b| b.cmp(a));
        job.next = Seq(0);
        job.told.unreadable = 0;
        job.before = job.told.resealed;
    }

    /// What is left of it, as an operator sees it.
    pub(super) fn reseal_facts(&self) -> ResealFacts {
        let told = self.reseal.job.as_ref().map_or(&self.reseal.told, |job| &job.told);
        ResealFacts {
            is_running: self.reseal.job.is_some(),
            keys: told.keys.iter().copied().filter(|key| self.is_in_ring(*key)).collect(),
            resealed: told.resealed,
            left: self.left_under(&told.keys),
            unreadable: told.unreadable,
        }
    }

    fn is_in_ring(&self, key: u32) -> bool {
        self.keyring.as_ref().is_some_and(|file| file.ring().keys.iter().any(|entry| entry.key_id == key))
    }

    fn left_under(&self, keys: &[u32]) -> u64 {
        keys.iter().map(|key| self.ledger.key_use.count(*key)).sum()
    }

    /// Whether the next batch is to have a part of it.
    pub(super) fn reseal_is_due(&mut self) -> bool {
        self.look_for_old_keys();
        self.reseal.job.as_ref().is_some_and(|job| job.due <= Instant::now())
    }

    /// The part of it that goes with the batch that is being made; behind everything else in it.
    pub(super) fn reseal_step(&mut self, batch: &mut Batch<'_>) -> Result<(), CommitFailure> {
        let Some(mut job) = self.reseal.job.take() else { return Ok(()) };
        job.due = Instant::now() + Duration::from_millis(RESEAL_STEP_MS);
        match &mut job.sealer {
            Some(sealer) if job.sealed < DATA_KEY_RECORDS_MAX => sealer.renew().map_err(refused)?,
            _ if self.left_under(&job.told.keys) == 0 => {}
            _ => match self.reseal_key() {
                Ok(sealer) => (job.sealer, job.sealed) = (sealer, 0),
                Err(e) => {
                    tracing::error!(code = e.code(), "nothing is sealed again: {e}");
                    return Ok(());
                }
            },
        }
        let mut share =
            Share { records: RESEAL_RECORDS_MAX, bytes: RESEAL_BYTES_MAX, looks: RESEAL_LOOKS_MAX };
        let is_over = self.reseal_share(&mut job, &mut share, batch)?;
        self.reseal.told = job.told.clone();
        if !is_over {
            self.reseal.job = Some(job);
            return Ok(());
        }
        let Told { resealed, unreadable, .. } = job.told;
        let left = self.left_under(&job.told.keys);
        if left > 0 {
            tracing::warn!(
                resealed,
                left,
                unreadable,
                "not everything could be sealed again; the rest keeps its keys"
            );
        } else {
            tracing::info!(resealed, "everything under old data keys was sealed again");
        }
        self.ledger.key_use.look_again();
        Ok(())
    }

    /// Begins by itself when a key is old enough.
    fn look_for_old_keys(&mut self) {
        let Some(after) = self.reseal.after.filter(|_| self.reseal.look_at <= Instant::now()) else { return };
        self.reseal.look_at = Instant::now() + Duration::from_secs(RESEAL_LOOK_SECONDS);
        let Some(file) = self.keyring.as_ref().filter(|_| self.reseal.job.is_none()) else { return };
        let made_before = now_ms().saturating_sub(after.as_millis() as u64);
        let is_old = |entry: &&KeyEntry| {
            let is_common = queue_of(entry).is_none() && !seals(entry);
            is_common && entry.created_ms <= made_before && self.ledger.key_use.count(entry.key_id) > 0
        };
        let keys: Vec<u32> = file.ring().keys.iter().filter(is_old).map(|entry| entry.key_id).collect();
        if !keys.is_empty() {
            self.begin_reseal(keys);
        }
    }

    /// Whether the job has come to its end.
    fn reseal_share(
        &mut self,
        job: &mut Job,
        share: &mut Share,
        batch: &mut Batch<'_>,
    ) -> Result<bool, CommitFailure> {
        while !share.is_over() {
            if self.left_under(&job.told.keys) == 0 {
                return Ok(true);
            }
            if let Some((queue, seq)) = self.next_to_read(job, share) {
                self.reseal_entry(job, (queue, seq), share, batch)?;
            } else if !job.queues.is_empty() {
                // Only looked at for now.
                return Ok(false);
            } else if let Some((_, Shared { body, promised, entries })) = job.shared.pop_first() {
                share.looks = share.looks.saturating_sub(entries.len());
                let live = |(queue, seq): &(QueueId, Seq)| self.ledger.is_live(*queue, *seq);
                let entries: Vec<_> = entries.into_iter().filter(live).collect();
                // One that is not here names the body all the same.
                if !entries.is_empty() && self.bodies.left(body.id, promised) as usize == entries.len() {
                    self.reseal_body(job, body, &entries, share, batch)?;
                }
            } else {
                let is_idle = job.before == job.told.resealed;
                job.idle_passes = if is_idle { job.idle_passes + 1 } else { 0 };
                if job.idle_passes >= RESEAL_IDLE_PASSES_MAX {
                    return Ok(true);
                }
                self.begin_pass(job);
                job.due = Instant::now() + Duration::from_millis(RESEAL_PASS_MS);
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// The next live entry that may be under an old key, or have its body there.
    fn next_to_read(&self, job: &mut Job, share: &mut Share) -> Option<(QueueId, Seq)> {
        while share.looks > 0 {
            let queue = *job.queues.last()?;
            share.looks -= 1;
            let Some((seq, key)) = self.ledger.next_live(queue, job.next) else {
                job.queues.pop();
                job.next = Seq(0);
                continue;
            };
            job.next = Seq(seq.0.saturating_add(1));
            let may_have = self.ledger.has_bodies(queue) && !self.ledger.key_use.is_own(key);
            if may_have || job.told.keys.contains(&key) {
                return Some((queue, seq));
            }
        }
        None
    }

    fn reseal_entry(
        &mut self,
        job: &mut Job,
        place: (QueueId, Seq),
        share: &mut Share,
        batch: &mut Batch<'_>,
    ) -> Result<(), CommitFailure> {
        let Some((record, entry)) = self.read_for_reseal(place, share) else {
            job.told.unreadable += 1;
            return Ok(());
        };
        let is_old = |key: u32| job.told.keys.contains(&key);
        match entry {
            Entry { content: Err(body), promised, .. } if is_old(self.ledger.key_use.body_key(body.id)) => {
                if self.bodies.left(body.id, promised) == 1 {
                    return self.reseal_body(job, body, &[place], share, batch);
                }
                if job.shared.len() < RESEAL_SHARED_MAX || job.shared.contains_key(&body.id) {
                    let shared = || Shared { body, promised, entries: Vec::new() };
                    job.shared.entry(body.id).or_insert_with(shared).entries.push(place);
                }
                Ok(())
            }
            _ if is_old(self.ledger.key_of(place.0, place.1)) => self.write_entry(job, place, &record, batch),
            _ => Ok(()),
        }
    }

    /// Seals a body and the entries that name it, which are all that there are.
    fn reseal_body(
        &mut self,
        job: &mut Job,
        body: BodyRef,
        entries: &[(QueueId, Seq)],
        share: &mut Share,
        batch: &mut Batch<'_>,
    ) -> Result<(), CommitFailure> {
        let names_it = |entry: &Entry| matches!(&entry.content, Err(named) if *named == body);
        let read = entries.iter().map(|place| {
            self.read_for_reseal(*place, share).filter(|(_, entry)| names_it(entry)).map(|(record, _)| record)
        });
        let (Some(mut records), Some(pieces)) =
            (read.collect::<Option<Vec<_>>>(), self.read_pieces(&body, share))
        else {
            job.told.unreadable += 1;
            return Ok(());
        };
        let (mut tag, mut chunk) = (body.tag, 0);
        for piece in &pieces {
            let key = Key::body(body.id, chunk);
            tag = self.write_again(job, piece, Family::Bodies, &key, batch)?;
            chunk += 1;
        }
        for (place, record) in entries.iter().zip(&mut records) {
            name_body_by(&mut record.text, tag);
            self.write_entry(job, *place, record, batch)?;
        }
        if let Some(sealer) = &job.sealer {
            self.ledger.key_use.rekey_body(body.id, sealer.key_id());
            job.told.resealed += 1;
        }
        Ok(())
    }

    fn write_entry(
        &mut self,
        job: &mut Job,
        (queue, seq): (QueueId, Seq),
        record: &Verbatim,
        batch: &mut Batch<'_>,
    ) -> Result<(), CommitFailure> {
        self.write_again(job, record, Family::Entries, &Key::entry(queue, seq), batch)?;
        if let Some(sealer) = &job.sealer {
            self.ledger.rekey(queue, seq, sealer.key_id());
            job.told.resealed += 1;
        }
        Ok(())
    }

    /// Puts a record in its own place, under the job's key.
    fn write_again(
        &mut self,
        job: &mut Job,
        record: &Verbatim,
        family: Family,
        key: &Key,
        batch: &mut Batch<'_>,
    ) -> Result<Tag, CommitFailure> {
        let Some(sealer) = &job.sealer else { return Err(refused(SlotRefusal::NoKeyring)) };
        self.value.clear();
        let tag = seal_with(sealer, Padding::None, record, family, key, &mut self.value).map_err(refused)?;
        batch.replace(family, key, &self.value);
        job.sealed += 1;
        Ok(tag)
    }

    /// A key for what is sealed again, which is on the disk.
    fn reseal_key(&mut self) -> Result<Option<Sealer>, StoreError> {
        let Some(file) = &mut self.keyring else { return Ok(None) };
        let key = file.next_reseal_key(now_ms())?;
        let sealer = Sealer::new(Arc::clone(&key), file.ring().store).map_err(|e| file.system(e))?;
        tracing::info!(key_id = key.id, "a new data key is for what is sealed again");
        self.ledger.key_use.reseals(key.id);
        self.read_with_all_keys();
        Ok(Some(sealer))
    }

    fn read_for_reseal(
        &mut self,
        (queue, seq): (QueueId, Seq),
        share: &mut Share,
    ) -> Option<(Verbatim, Entry)> {
        let key = Key::entry(queue, seq);
        let record = self.read_again(&[Kind::Entry], Family::Entries, &key, share)?;
        let entry = read_entry(&record.text);
        entry
            .inspect_err(|e| tracing::warn!(queue = queue.0, seq = seq.0, "it is not sealed again: {e}"))
            .ok()
            .map(|entry| (record, entry))
    }

    /// All of a body, if it is the one that is named.
    fn read_pieces(&mut self, body: &BodyRef, share: &mut Share) -> Option<Vec<Verbatim>> {
        let kinds = &[Kind::Body, Kind::BodyChunk];
        let read = (0..body.chunks)
            .map(|chunk| self.read_again(kinds, Family::Bodies, &Key::body(body.id, chunk), share));
        let pieces = read.collect::<Option<Vec<_>>>()?;
        let (last, others) = pieces.split_last()?;
        let is_whole = last.flags & FLAG_LAST != 0 && others.iter().all(|piece| piece.flags & FLAG_LAST == 0);
        if !is_whole || last.tag != body.tag {
            tracing::warn!(
                body = body.id.0,
                "it is not sealed again: it is not the one that its entry names"
            );
            return None;
        }
        Some(pieces)
    }

    fn read_again(
        &mut self,
        kinds: &[Kind],
        family: Family,
        key: &Key,
        share: &mut Share,
    ) -> Option<Verbatim> {
        let value = self.rocks.value(family, key);
        let value =
            value.inspect_err(|e| tracing::warn!(code = e.code(), "it is not sealed again: {e}")).ok()??;
        share.take(value.len());
        let mut text = Vec::new();
        let opened = self.opening.open(kinds, family, key.as_bytes(), &value, &mut text);
        let facts =
            opened.inspect_err(|e| tracing::warn!(code = e.code(), "it is not sealed again: {e}")).ok()?;
        let (header, ..) = parse(&value).ok()?;
        Some(Verbatim { kind: header.kind, flags: facts.flags, tag: facts.tag, text })
    }
}
