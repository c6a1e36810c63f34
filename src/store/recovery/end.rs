//! What a scan comes to once all has been seen: whether it is what was committed, what is still to be cleared away,
//! and the queues.

use super::super::rocks::Puts;
use super::*;

impl Scan<'_> {
    pub(super) fn finish(mut self, rocks: &Rocks, commit: Option<CommitRow>) -> Result<Restored, StoreError> {
        let is_empty = self.rows.is_empty()
            && self.manifests.is_empty()
            && self.dropping.is_empty()
            && self.bodies.is_empty()
            && self.queues.is_empty()
            && self.quarantined.is_empty();
        if commit.is_none() && !is_empty {
            let reason = "it is missing, and the store is not empty";
            return Err(self.damaged("the commit row".into(), reason.into()));
        }
        let created = commit.is_none();
        let commit = commit.unwrap_or_default();
        let faults = self.verify(rocks, &commit)?;
        // A quarantined entry may name a body that now looks like nobody's.
        let next_body = self.bodies.keys().map(|id| id.0 + 1).fold(commit.body_id_next.max(1), u64::max);
        let ids = self.rows.iter().map(|row| row.id.0);
        let queue_ids =
            self.manifests.keys().chain(self.queues.keys()).chain(self.dropping.keys()).map(|id| id.0);
        let next_row = ids.chain(queue_ids).map(|id| id + 1).fold(commit.row_id_next.max(1), u64::max);
        let purges = self.purges();
        // What recovery found is what the manifests say; they need no rewriting.
        self.counts.ledger.take_touched(commit.commit_seq, |_| {});
        faults.iter().for_each(|fault| self.counts.ledger.rewrite(fault.queue));
        if commit.sums.is_none() {
            self.counts.ledger.touch_all();
        }
        // What nobody can read is not deleted either, and pins its key.
        let kept = self.bodies.values().filter(|body| body.entries > 0 || !self.quarantined.is_empty());
        let kept = kept.map(|body| (body.reference.id, body.key_id));
        self.counts.ledger.key_use.add_bodies(kept);
        let (used_keys, keep_all_keys) = (std::mem::take(&mut self.used_keys), self.keep_all_keys);
        let rows = std::mem::take(&mut self.rows);
        let queue_rows = rows.iter().filter(|row| row.kind == RowKind::Queue).map(|row| row.id.0).collect();
        let quarantined = std::mem::take(&mut self.quarantined);
        let queues = self.take_queues(&quarantined);
        let recovered = Recovered { rows, queues, clean: commit.clean, quarantined, faults, created };
        let (counts, bodies, sweeper) = (self.counts, self.body_counts, self.sweeper);
        Ok(Restored {
            recovered,
            counts,
            bodies,
            purges,
            commit,
            next_body,
            next_row,
            used_keys,
            queue_rows,
            sweeper,
            keep_all_keys,
        })
    }

    /// Whether everything that was committed is there, and nothing else; what is not, unless it is refused.
    fn verify(&mut self, rocks: &Rocks, commit: &CommitRow) -> Result<Vec<QueueFault>, StoreError> {
        let Counts { ledger, presence } = &self.counts;
        let examined = examine(commit, &self.manifests, ledger, presence.sums());
        let examined = examined.map_err(|(record, reason)| self.damaged(record, reason.into()))?;
        if let Err(error) = examined.refuse(self.terms.dir) {
            if !self.terms.quarantine {
                return Err(error);
            }
            tracing::error!(code = error.code(), "accepted by --quarantine: {error}");
        }
        let Examined { faults, extras, .. } = examined;
        let heads = self.heads();
        let mut by_queue: BTreeMap<QueueId, BTreeSet<Seq>> = BTreeMap::new();
        for (queue, seq) in extras {
            by_queue.entry(queue).or_default().insert(seq);
        }
        for (queue, extras) in by_queue {
            self.quarantined.retain(|entry| entry.queue != queue || !extras.contains(&entry.seq));
            let bad: BTreeSet<Seq> =
                self.quarantined.iter().filter(|e| e.queue == queue).map(|entry| entry.seq).collect();
            self.queues.insert(queue, Found::default());
            let all = (Key::entry(queue, Seq(0)), Key::entry(queue, Seq(u64::MAX)));
            let mut look = Entries::new(self.opening.another(), &heads);
            rocks.range(Family::Entries, &all.0, &all.1, |key, value| {
                if let Seen::Entry(seen) = look.entry(key, value) {
                    self.without(&extras, &bad, seen);
                }
                Ok(true)
            })?;
        }
        Ok(faults)
    }

    /// Looks at an entry once more, now that it is known which are no part of the queue.
    fn without(&mut self, extras: &BTreeSet<Seq>, bad: &BTreeSet<Seq>, seen: SeenEntry) {
        let SeenEntry { queue, seq, entry, .. } = seen;
        let entry = entry.ok();
        let run = entry.as_ref().and_then(|entry| self.run(seq, entry).ok());
        if !extras.contains(&seq) {
            let is_ready = !bad.contains(&seq) && self.going(queue, seq).is_none();
            return self.found(queue, seq, run.filter(|_| is_ready));
        }
        self.counts.ledger.exclude(queue, seq, run.map_or(0, |run| run.size_bytes as u32));
        self.quarantined.push(Quarantined { queue, seq, code: EXTRA });
        self.found(queue, seq, None);
        if let Some(Entry { content: Err(reference), .. }) = entry
            && let Some(body) = self.bodies.get_mut(&reference.id).filter(|body| body.reference == reference)
        {
            body.entries = body.entries.saturating_sub(1);
        }
    }

    /// What a crash left to be cleared away: the rest of dropped queues, and bodies without entries.
    fn purges(&mut self) -> Vec<Purge> {
        let dropping = std::mem::take(&mut self.dropping).into_iter();
        let mut purges: Vec<Purge> =
            dropping.map(|(queue, going)| purge(queue, going, Key::manifest(queue))).collect();
        let purging = std::mem::take(&mut self.purging).into_iter();
        purges.extend(
            purging.map(|((queue, _), (first, going))| purge(queue, going, Key::purging(queue, first))),
        );
        let (delivered, ledger) = (&self.delivered, &mut self.counts.ledger);
        let gone = delivered.keys().copied().filter(|(queue, seq)| !ledger.count(*queue, *seq));
        let purge = Purge { counts: gone.collect(), ..Purge::default() };
        purges.extend((!purge.counts.is_empty()).then_some(purge));
        if self.quarantined.is_empty() {
            let orphans = self.bodies.values().filter(|body| body.entries == 0);
            let keys =
                orphans.flat_map(|body| (0..body.reference.chunks).map(|chunk| (body.reference.id, chunk)));
            let purge = Purge { orphans: keys.collect(), ..Purge::default() };
            purges.extend((!purge.orphans.is_empty()).then_some(purge));
        }
        purges
    }

    fn take_queues(&mut self, quarantined: &[Quarantined]) -> Vec<RecoveredQueue> {
        let mut found = std::mem::take(&mut self.queues);
        let known = self.manifests.keys().copied().chain(quarantined.iter().map(|entry| entry.queue));
        for queue in known {
            found.entry(queue).or_default();
        }
        for (id, body) in self.bodies.drain().filter(|(_, body)| body.entries > 0) {
            if body.entries != body.promised {
                self.body_counts.restore(id, body.entries);
            }
        }
        let queue = |(id, Found { runs, letters, .. }): (QueueId, Found)| {
            let manifest = self.counts.ledger.manifest(id);
            let next_seq = manifest.next_seq.max(Seq(1));
            RecoveredQueue { id, next_seq, delivered_up_to: manifest.delivered_up_to, runs, letters }
        };
        found.into_iter().map(queue).collect()
    }
}

fn purge(queue: QueueId, going: Going, mark: Key) -> Purge {
    let Going { seqs, extra, reads } = going;
    // Under which keys they are was not noted.
    let puts = Puts::Several;
    Purge { queue, seqs, extra, reads, puts, mark: Some(mark), ..Purge::default() }
}
