//! The part of an audit that opens every record of the database and makes every sum anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::audit::{AuditCounts, Progress, QueueFacts};
use super::error::StoreError;
use super::fault::{Fault, Faults};
use super::layout::{Family, Key, MetaKey, parse_body, parse_entry, parse_meta};
use super::pieces::Pieces;
use super::presence::Kept;
use super::record::{BodyRef, CommitRow, Manifest, read_delivery_count, read_entry, read_manifest, read_row};
use super::recovered::{EXTRA, Row};
use super::recovery::Counts;
use super::remains::Heads;
use super::rocks::Rocks;
use super::sealing::{Facts, Opening, Unreadable, name_of};
use super::verify::{Examined, examine};
use crate::broker::id::{BodyId, QueueId, Seq};
use crate::limits::AUDIT_PROGRESS_RECORDS;
use crate::seal::envelope::{Kind, parse};
use crate::seal::record::NotOpened;

struct Body {
    fault: Option<Unreadable>,
    reference: BodyRef,
    entries: u64,
}

pub(super) struct Records<'a> {
    opening: &'a mut Opening,
    faults: &'a mut Faults,
    sums: Counts,
    dir: &'a Path,
    progress: &'a mut dyn FnMut(Progress),
    step: &'static str,
    text: Vec<u8>,
    counts: AuditCounts,
    rows: Vec<Row>,
    manifests: BTreeMap<QueueId, Manifest>,
    /// Queues that are gone and whose entries are being cleared away.
    dropping: BTreeSet<QueueId>,
    /// Ranges of entries that were purged and are being cleared away, by queue and last place: the first place.
    purging: BTreeMap<(QueueId, Seq), Seq>,
    heads: Heads,
    /// Deleted entries that have no tombstones yet.
    remaining: u64,
    bodies: HashMap<BodyId, Body>,
}

impl<'a> Records<'a> {
    pub(super) fn new(
        opening: &'a mut Opening,
        faults: &'a mut Faults,
        sums: Counts,
        dir: &'a Path,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Records<'a> {
        Records {
            opening,
            faults,
            sums,
            dir,
            progress,
            step: "",
            text: Vec::new(),
            counts: AuditCounts::default(),
            rows: Vec::new(),
            manifests: BTreeMap::new(),
            dropping: BTreeSet::new(),
            purging: BTreeMap::new(),
            heads: Heads::default(),
            remaining: 0,
            bodies: HashMap::new(),
        }
    }

    /// Opens all records; whether the database gave all of them.
    pub(super) fn read(&mut self, rocks: &Rocks) -> bool {
        let meta = self.family(rocks, "rows and manifests", Family::Meta, |records, key, value| {
            records.meta(key, value);
        });
        self.heads = Heads::of(self.manifests.values(), self.purging.clone());
        let mut current: Option<Pieces> = None;
        let bodies = self.family(rocks, "bodies", Family::Bodies, |records, key, value| {
            records.body(&mut current, key, value);
        });
        if let Some(done) = current {
            self.finish_body(done);
        }
        let entries = self.family(rocks, "entries", Family::Entries, |records, key, value| {
            records.entry(key, value);
        });
        for (id, body) in self.bodies.iter().filter(|(_, body)| body.entries == 0) {
            // What a destroyed key had sealed is no loss; were it one, its entry would say so.
            if let Some(fault) = body.fault.filter(|fault| !is_without_key(*fault)) {
                self.faults.add(Fault::of_body(fault.code(), id.0, fault.to_string()));
            }
        }
        (self.progress)(Progress { step: "", records: self.counts.records, bytes: self.counts.bytes });
        meta && bodies && entries
    }

    fn family(
        &mut self,
        rocks: &Rocks,
        step: &'static str,
        family: Family,
        mut visit: impl FnMut(&mut Self, &[u8], &[u8]),
    ) -> bool {
        self.step = step;
        let before = self.counts.records;
        let scanned = rocks.scan(family, |key, value| {
            if self.counts.records.is_multiple_of(AUDIT_PROGRESS_RECORDS) {
                let (records, bytes) = (self.counts.records, self.counts.bytes);
                (self.progress)(Progress { step, records, bytes });
            }
            self.counts.records += 1;
            self.counts.bytes += (key.len() + value.len()) as u64;
            visit(self, key, value);
            Ok(())
        });
        if let Err(error) = scanned {
            let mut fault = Fault::of(&error);
            let read = self.counts.records - before;
            fault.reason = format!("{} ({step}: {read} were read before it, the rest was not)", fault.reason);
            self.faults.add(fault);
            return false;
        }
        true
    }

    fn open(
        &mut self,
        kinds: &[Kind],
        family: Family,
        key: &[u8],
        value: &[u8],
    ) -> Result<Facts, Unreadable> {
        self.opening.open(kinds, family, key, value, &mut self.text)
    }

    fn refuse(&mut self, record: &str, error: Unreadable) {
        self.faults.add(Fault::of(&error.refusal(self.dir, record)));
    }

    fn meta(&mut self, key: &[u8], value: &[u8]) {
        let Some(parsed) = parse_meta(key) else {
            return self.refuse("the default column family", Unreadable::ForeignKey);
        };
        match parsed {
            MetaKey::Commit => {}
            MetaKey::Manifest(queue) => {
                self.counts.manifests += 1;
                let opened = self.open(&[Kind::Manifest], Family::Meta, key, value);
                match opened.and_then(|facts| Ok((facts, read_manifest(&self.text)?))) {
                    Ok((facts, manifest)) => {
                        self.keep(Kept::Manifest, &Key::manifest(queue), facts, value);
                        if manifest.dropping {
                            self.dropping.insert(queue);
                        } else {
                            self.sums.ledger.recovered(&manifest);
                            self.manifests.insert(queue, manifest);
                        }
                    }
                    Err(e) => self.refuse_of_queue("the manifest", queue, None, e),
                }
            }
            MetaKey::Purging(queue, first) => {
                let opened = self.open(&[Kind::Manifest], Family::Meta, key, value);
                match opened.and_then(|facts| Ok((facts, read_manifest(&self.text)?))) {
                    Ok((facts, range)) => {
                        self.keep(Kept::Manifest, &Key::purging(queue, first), facts, value);
                        let last = Seq(range.next_seq.0.saturating_sub(1));
                        self.purging.insert((queue, last), first);
                    }
                    Err(e) => self.refuse_of_queue("the mark of a purge", queue, Some(first), e),
                }
            }
            MetaKey::DeliveryCount(queue, seq) => {
                let opened = self.open(&[Kind::DeliveryCount], Family::Meta, key, value);
                match opened
                    .and_then(|facts| read_delivery_count(&self.text).map(|_| facts).map_err(Into::into))
                {
                    Ok(facts) => self.keep(Kept::Count, &Key::delivery_count(queue, seq), facts, value),
                    Err(e) => self.refuse_of_queue("a delivery count", queue, Some(seq), e),
                }
            }
            MetaKey::Row(kind, id) => {
                self.counts.rows += 1;
                let opened = self.open(&[kind.sealed_as()], Family::Meta, key, value);
                match opened.and_then(|facts| Ok((facts, read_row(&self.text)?.to_vec()))) {
                    Ok((facts, plaintext)) => {
                        self.keep(Kept::Row, &Key::row(kind, id), facts, value);
                        self.rows.push(Row { kind, id, plaintext });
                    }
                    Err(e) => self.refuse(&format!("{} {}", kind.name(), id.0), e),
                }
            }
        }
    }

    fn refuse_of_queue(&mut self, record: &str, queue: QueueId, seq: Option<Seq>, error: Unreadable) {
        let refusal = error.refusal(self.dir, &format!("{record} of queue {}", queue.0));
        let fault = Fault::of(&refusal);
        self.faults.add(Fault { queue: Some(queue.0), seq: seq.map(|seq| seq.0), ..fault });
    }

    fn keep(&mut self, kept: Kept, key: &Key, facts: Facts, value: &[u8]) {
        let name = name_of(facts.tag, self.opening.is_plain(), key, value);
        self.sums.presence.put(kept, key, name);
    }

    fn body(&mut self, current: &mut Option<Pieces>, key: &[u8], value: &[u8]) {
        let Some((id, chunk)) = parse_body(key) else {
            return self.refuse("the column family of bodies", Unreadable::ForeignKey);
        };
        if let Some(done) = current.take_if(|pieces| pieces.id != id) {
            self.finish_body(done);
        }
        let opened = self.open(&[Kind::Body, Kind::BodyChunk], Family::Bodies, key, value);
        current.get_or_insert_with(|| Pieces::new(id)).add(chunk, opened, &self.text);
    }

    fn finish_body(&mut self, pieces: Pieces) {
        self.counts.bodies += 1;
        let (content, reference) = pieces.finish(self.opening.is_plain());
        self.bodies.insert(reference.id, Body { fault: content.err(), reference, entries: 0 });
    }

    fn entry(&mut self, key: &[u8], value: &[u8]) {
        let Some((queue, seq)) = parse_entry(key) else {
            return self.refuse("the column family of entries", Unreadable::ForeignKey);
        };
        if self.heads.is_dead(queue, seq) {
            self.remaining += 1;
            return;
        }
        self.counts.entries += 1;
        let is_leaving = self.dropping.contains(&queue) || self.is_purged(queue, seq);
        let opened = self.open(&[Kind::Entry], Family::Entries, key, value);
        let entry = opened.and_then(|facts| Ok((facts, read_entry(&self.text)?)));
        let found = entry.and_then(|(facts, entry)| match entry.content {
            Ok(message) => Ok((facts, message.size_bytes() as u32)),
            Err(reference) => self.claim(reference).map(|()| (facts, reference.bytes)),
        });
        // A queue's own key is destroyed before the queue is cleared away.
        let is_shredded = |e| self.dropping.contains(&queue) && is_without_key(e);
        if let Err(e) = found
            && !is_shredded(e)
        {
            let leaving = if is_leaving { " (it is being cleared away)" } else { "" };
            let fault = Fault::of_entry(e.code(), queue.0, seq.0, format!("{e}{leaving}"));
            self.faults.add(fault);
        }
        if is_leaving {
            return;
        }
        if self.manifests.get(&queue).is_some_and(|manifest| manifest.extra.contains(&seq)) {
            let reason = "it was put back or added; accepted by --quarantine, and never delivered";
            return self.faults.add(Fault::of_entry(EXTRA, queue.0, seq.0, reason.into()));
        }
        // A record that does not open still says under which key it was sealed, and by that it is counted.
        let key_id =
            if self.opening.is_plain() { 0 } else { parse(value).map_or(0, |(head, ..)| head.key_id) };
        let bytes = found.map_or(0, |(_, bytes)| bytes);
        if let Err(e) = self.sums.ledger.put(queue, seq, bytes, key_id) {
            self.faults.add(Fault::of_entry("E_METADATA_DAMAGED", queue.0, seq.0, e.to_string()));
        }
    }

    fn is_purged(&self, queue: QueueId, seq: Seq) -> bool {
        let range = self.purging.range((queue, seq)..).next();
        range.is_some_and(|((of, _), first)| *of == queue && *first <= seq)
    }

    /// Whether the body that an entry names is there, sound and the one that was meant.
    fn claim(&mut self, wanted: BodyRef) -> Result<(), Unreadable> {
        let body = self.bodies.get_mut(&wanted.id).ok_or(Unreadable::BodyMissing)?;
        body.entries += 1;
        match body.fault {
            Some(fault) => Err(fault),
            None if body.reference != wanted => Err(Unreadable::BodySwapped),
            None => Ok(()),
        }
    }

    /// Whether everything that was committed is there, and nothing else.
    pub(super) fn compare(&mut self, commit: Option<&CommitRow>) {
        let damaged = |record: String, reason: &str| StoreError::MetadataDamaged {
            dir: self.dir.to_path_buf(),
            record,
            reason: reason.into(),
        };
        let Some(commit) = commit else {
            if self.counts.records > 0 {
                let error = damaged("the commit row".into(), "it is missing, and the store is not empty");
                self.faults.add(Fault::of(&error));
            }
            return;
        };
        let Counts { ledger, presence } = &self.sums;
        let examined = match examine(commit, &self.manifests, ledger, presence.sums()) {
            Ok(examined) => examined,
            Err((record, reason)) => return self.faults.add(Fault::of(&damaged(record, reason))),
        };
        let Examined { faults, extras, manifests_differ } = examined;
        let refusal = |faults| StoreError::QueueIntegrity { dir: self.dir.to_path_buf(), faults };
        if manifests_differ && faults.is_empty() {
            self.faults.add(Fault::of(&refusal(Vec::new())));
        }
        for fault in faults {
            let (queue, seq) = (Some(fault.queue.0), fault.gone.map(|seq| seq.0));
            self.faults.add(Fault { queue, seq, ..Fault::of(&refusal(vec![fault])) });
        }
        for (queue, seq) in extras {
            let reason = "it was put back after its removal, or added";
            self.faults.add(Fault::of_entry(EXTRA, queue.0, seq.0, reason.into()));
        }
    }

    /// What there is.
    pub(super) fn into_facts(self, notes: &mut Vec<String>) -> (AuditCounts, Vec<QueueFacts>, Vec<Row>) {
        let ledger = &self.sums.ledger;
        let ids: BTreeSet<QueueId> = self.manifests.keys().copied().chain(ledger.queues()).collect();
        let queue = |queue: QueueId| {
            let found = ledger.manifest(queue);
            QueueFacts {
                queue,
                messages: found.live_count,
                bytes: found.live_bytes,
                head: found.head.0,
                next_seq: found.next_seq.0,
                faults: 0,
            }
        };
        if !self.dropping.is_empty() {
            let count = self.dropping.len();
            notes.push(format!("{count} deleted queues are still being cleared away"));
        }
        if self.remaining > 0 {
            notes
                .push(format!("{} deleted messages are still to be removed from the tables", self.remaining));
        }
        let is_orphan = |body: &&Body| body.entries == 0 && body.fault.is_none_or(is_without_key);
        let orphans = self.bodies.values().filter(is_orphan).count();
        if orphans > 0 {
            notes.push(format!("{orphans} bodies have no entry; the next start removes them"));
        }
        (self.counts, ids.into_iter().map(queue).collect(), self.rows)
    }
}

fn is_without_key(error: Unreadable) -> bool {
    matches!(error, Unreadable::NotOpened(NotOpened::UnknownKey(_)))
}
