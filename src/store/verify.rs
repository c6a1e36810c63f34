//! Whether the queues hold what was committed. Each manifest counts its queue's entries and sums them under a key;
//! the commit row sums the manifests and the rows. What recovery found must give the same numbers, else something was
//! removed, put back or exchanged behind RocksDB's back, or a part of the database is gone.

use std::collections::BTreeMap;

use super::error::{QueueFault, StoreError};
use super::ledger::Ledger;
use super::presence::Sums;
use super::record::{CommitRow, Manifest};
use crate::broker::id::{QueueId, Seq};
use crate::limits::MISSING_PLACES_TRIED_MAX;

/// What does not fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Examined {
    pub(super) faults: Vec<QueueFault>,
    /// Entries that are surely no part of their queues.
    pub(super) extras: Vec<(QueueId, Seq)>,
    /// The manifests are not those of the last commit.
    pub(super) manifests_differ: bool,
}

impl Examined {
    pub(super) fn is_sound(&self) -> bool {
        self.faults.is_empty() && !self.manifests_differ
    }
}

/// Compares what was found (`ledger`, `sums`) with what was committed. A commit row without sums is an older
/// version's, which did not sum manifests, rows, or the entries of a plain store.
///
/// # Errors
/// The record that is at fault, and why, when no queue but the topology or the commit row is.
pub(super) fn examine(
    commit: &CommitRow,
    manifests: &BTreeMap<QueueId, Manifest>,
    ledger: &Ledger,
    sums: Sums,
) -> Result<Examined, (String, &'static str)> {
    let newer = manifests.values().find(|manifest| manifest.commit_seq > commit.commit_seq);
    if let Some(manifest) = newer {
        let record = format!("the commit row, or the manifest of queue {}", manifest.queue.0);
        return Err((record, "the manifest is of a later commit"));
    }
    if commit.sums.is_some_and(|committed| committed.rows != sums.rows) {
        return Err(("the topology".into(), "rows were removed, put back or replaced by older ones"));
    }
    let manifests_differ = commit.sums.is_some_and(|committed| committed.manifests != sums.manifests);
    let mut examined = Examined { manifests_differ, ..Examined::default() };
    for (queue, manifest) in manifests {
        let found = ledger.manifest(*queue);
        let sums_agree = found.multiset == manifest.multiset
            || (commit.sums.is_none() && manifest.multiset == sum_of_an_older_version(ledger, *queue));
        if found.live_count == manifest.live_count && sums_agree && found.head >= manifest.head {
            continue;
        }
        let (fault, extras) = compare(manifest, ledger);
        examined.faults.push(fault);
        examined.extras.extend(extras.into_iter().map(|seq| (*queue, seq)));
    }
    for queue in ledger.queues().filter(|queue| !manifests.contains_key(queue)) {
        let extra = ledger.manifest(queue).live_count;
        examined.faults.push(QueueFault { queue, missing: 0, extra, gone: None });
    }
    examined.faults.sort_by_key(|fault| fault.queue);
    Ok(examined)
}

/// Without the entries' keys in it; in a plain store it was not kept at all.
fn sum_of_an_older_version(ledger: &Ledger, queue: QueueId) -> u128 {
    if !ledger.is_keyed() {
        return 0;
    }
    ledger.live(queue).fold(0, |sum, seq| sum.wrapping_add(ledger.term(queue, seq, 0)))
}

/// Says what it can about a queue that does not fit its manifest.
fn compare(manifest: &Manifest, ledger: &Ledger) -> (QueueFault, Vec<Seq>) {
    let queue = manifest.queue;
    let term = |seq: Seq| ledger.term(queue, seq, ledger.key_of(queue, seq));
    let belongs = |seq: &Seq| manifest.head <= *seq && *seq < manifest.next_seq;
    let (found, mut extras): (Vec<Seq>, Vec<Seq>) = ledger.live(queue).partition(belongs);
    let (count, sum) =
        (found.len() as u64, found.iter().fold(0u128, |sum, seq| sum.wrapping_add(term(*seq))));
    let (more, less) = (sum.wrapping_sub(manifest.multiset), manifest.multiset.wrapping_sub(sum));
    let mut fault = QueueFault {
        queue,
        missing: manifest.live_count.saturating_sub(count),
        extra: extras.len() as u64 + count.saturating_sub(manifest.live_count),
        gone: None,
    };
    let tries = usize::try_from(MISSING_PLACES_TRIED_MAX).unwrap_or(usize::MAX);
    if count == manifest.live_count && more != 0 {
        // One was exchanged for another, at least; maybe for what stood at the same place under another key.
        (fault.missing, fault.extra) = (fault.missing + 1, fault.extra + 1);
        let exchanged = |seq: &Seq, key| ledger.term(queue, *seq, key).wrapping_sub(term(*seq)) == less;
        let mut tried =
            ledger.key_use.ids().flat_map(|key| found.iter().map(move |seq| (*seq, key))).take(tries);
        fault.gone = tried.find(|(seq, key)| exchanged(seq, *key)).map(|(seq, _)| seq);
        extras.extend(fault.gone);
    }
    if count == manifest.live_count + 1 {
        extras.extend(found.iter().find(|seq| term(**seq) == more));
    }
    if count + 1 == manifest.live_count {
        let places = || (manifest.head.0..manifest.next_seq.0).map(Seq);
        let keys = ledger.key_use.ids().chain((!ledger.is_keyed()).then_some(0));
        let mut tried = keys.flat_map(|key| places().map(move |seq| (seq, key))).take(tries);
        let missed = |(seq, key): &(Seq, u32)| {
            ledger.term(queue, *seq, *key) == less && found.binary_search(seq).is_err()
        };
        fault.gone = tried.find(missed).map(|(seq, _)| seq);
    }
    (fault, extras)
}

impl Examined {
    /// The error that this is, unless nothing is wrong.
    pub(super) fn refuse(&self, dir: &std::path::Path) -> Result<(), StoreError> {
        if self.is_sound() {
            return Ok(());
        }
        Err(StoreError::QueueIntegrity { dir: dir.to_path_buf(), faults: self.faults.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::multiset::Multiset;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const QUEUE: QueueId = QueueId(4);

    fn manifest(seqs: &BTreeSet<u64>, next_seq: u64) -> Manifest {
        let multiset = Multiset::public();
        Manifest {
            queue: QUEUE,
            head: Seq(seqs.first().copied().unwrap_or(next_seq)),
            next_seq: Seq(next_seq),
            live_count: seqs.len() as u64,
            multiset: seqs.iter().fold(0, |sum, seq| sum.wrapping_add(multiset.term(QUEUE.0, *seq, 1))),
            ..Manifest::default()
        }
    }

    fn ledger(seqs: &BTreeSet<u64>) -> Ledger {
        let mut ledger = Ledger::new(Multiset::public(), true);
        seqs.iter().for_each(|seq| ledger.put(QUEUE, Seq(*seq), 1, 1).unwrap());
        ledger
    }

    fn examined(committed: &BTreeSet<u64>, found: &BTreeSet<u64>) -> Examined {
        let manifests = BTreeMap::from([(QUEUE, manifest(committed, 100))]);
        let commit = CommitRow { sums: Some(Sums::default()), ..CommitRow::default() };
        let mut ledger = ledger(found);
        ledger.recovered(&manifests[&QUEUE]);
        examine(&commit, &manifests, &ledger, Sums::default()).unwrap()
    }

    proptest! {
        #[test]
        fn exactly_the_committed_set_is_sound_and_every_loss_is_counted(
            committed in proptest::collection::btree_set(1..100u64, 0..20),
            found in proptest::collection::btree_set(1..120u64, 0..20),
        ) {
            let verdict = examined(&committed, &found);
            prop_assert_eq!(verdict.is_sound(), committed == found);
            if let [fault] = verdict.faults[..] {
                let missing = committed.difference(&found).count() as u64;
                let extra = found.difference(&committed).count() as u64;
                prop_assert!(fault.missing <= missing && fault.extra <= extra);
                prop_assert!(fault.missing + fault.extra > 0);
                if missing == 0 || extra == 0 {
                    prop_assert_eq!((fault.missing, fault.extra), (missing, extra));
                }
                prop_assert!(fault.gone.is_none_or(|seq| committed.contains(&seq.0) && !found.contains(&seq.0)));
            }
            prop_assert!(verdict.extras.iter().all(|(_, seq)| !committed.contains(&seq.0)));
        }
    }

    #[test]
    fn the_one_that_is_gone_and_the_one_that_is_back_are_told() {
        let committed = BTreeSet::from([10, 12, 13, 40]);
        let mut found = committed.clone();
        found.remove(&13);
        assert_eq!(examined(&committed, &found).faults[0].gone, Some(Seq(13)));
        let mut found = committed.clone();
        found.insert(11);
        assert_eq!(examined(&committed, &found).extras, [(QUEUE, Seq(11))]);
        found.extend([3, 100]);
        assert_eq!(examined(&committed, &found).extras, [3, 100, 11].map(|seq| (QUEUE, Seq(seq))));
    }

    #[test]
    fn an_exchanged_entry_is_one_missing_and_one_extra() {
        let verdict = examined(&BTreeSet::from([1, 2, 3]), &BTreeSet::from([1, 2, 4]));
        assert_eq!(verdict.faults, [QueueFault { queue: QUEUE, missing: 1, extra: 1, gone: None }]);
    }

    #[test]
    fn entries_without_a_manifest_and_sums_that_differ_are_faults() {
        let commit =
            CommitRow { sums: Some(Sums { rows: 0, manifests: 5 }), commit_seq: 3, ..CommitRow::default() };
        let (none, ledger) = (BTreeMap::new(), ledger(&BTreeSet::from([1, 2])));
        let verdict = examine(&commit, &none, &ledger, Sums::default()).unwrap();
        assert!(verdict.manifests_differ);
        assert_eq!(verdict.faults, [QueueFault { queue: QUEUE, missing: 0, extra: 2, gone: None }]);
        let rows = Sums { rows: 1, manifests: 5 };
        assert!(examine(&commit, &none, &ledger, rows).is_err());
        let later = Manifest { commit_seq: 4, ..manifest(&BTreeSet::from([1, 2]), 3) };
        assert!(examine(&commit, &BTreeMap::from([(QUEUE, later)]), &ledger, Sums::default()).is_err());
    }
}
