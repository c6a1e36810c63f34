//! What an audit finds wrong, each with its place: a queue and an entry, a body, or a file and an offset.

use std::collections::HashMap;
use std::path::PathBuf;

use super::error::StoreError;
use crate::broker::id::QueueId;
use crate::limits::AUDIT_FAULTS_MAX;

/// One thing that is wrong. Places that do not apply, or are not known, are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// A stable code, as in [`StoreError::code`] and [`super::Quarantined::code`].
    pub code: &'static str,
    /// The queue's id.
    pub queue: Option<u64>,
    /// The entry's place in the queue.
    pub seq: Option<u64>,
    /// The body's id.
    pub body: Option<u64>,
    /// The file.
    pub file: Option<PathBuf>,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub remedy: &'static str,
}

const OF_A_RECORD: &str = "restore the data directory from a backup; otherwise the broker keeps this message in quarantine and delivers the others";

impl Fault {
    /// The fault that would keep the store from being opened.
    pub(super) fn of(error: &StoreError) -> Fault {
        let fault = Fault {
            code: error.code(),
            reason: error.to_string(),
            remedy: error.remedy(),
            ..Fault::default()
        };
        let (file, offset) = match error {
            StoreError::LogCorrupt { path, offset, .. } => (Some(path.clone()), Some(*offset)),
            StoreError::AnchorCorrupt { path, .. } | StoreError::AnchorForeign { path } => {
                (Some(path.clone()), None)
            }
            StoreError::Descriptor { path, .. } => (Some(path.clone()), None),
            StoreError::Database { reason, .. } => place_in(reason),
            _ => (None, None),
        };
        Fault { file, offset, ..fault }
    }

    /// A copy of the keyring that is not usable, beside one that is.
    pub(super) fn of_keyring_copy(path: PathBuf, reason: &str) -> Fault {
        Fault {
            code: "E_KEYRING_COPY",
            reason: format!("one of the two copies of the keyring is not usable: {reason}"),
            remedy: "the next start of the broker makes it anew from the other copy; find out what changed it",
            file: Some(path),
            ..Fault::default()
        }
    }

    /// A message that cannot be read, or is no part of its queue.
    pub(super) fn of_entry(code: &'static str, queue: u64, seq: u64, reason: String) -> Fault {
        let (queue, seq) = (Some(queue), Some(seq));
        Fault { code, queue, seq, reason, remedy: OF_A_RECORD, ..Fault::default() }
    }

    /// A body that cannot be read.
    pub(super) fn of_body(code: &'static str, body: u64, reason: String) -> Fault {
        Fault { code, body: Some(body), reason, remedy: OF_A_RECORD, ..Fault::default() }
    }
}

/// RocksDB names a damaged block by its file and offset in the midst of its words.
fn place_in(words: &str) -> (Option<PathBuf>, Option<u64>) {
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
    if let Some((before, after)) = words.split_once(" offset ")
        && let Some((_, path)) = before.rsplit_once(" in ")
    {
        return (Some(PathBuf::from(path.trim())), number(after));
    }
    // As the search for damaged blob files says it.
    if let Some((before, after)) = words.split_once(" is damaged at byte ")
        && let Some((_, path)) = before.rsplit_once(": ")
    {
        return (Some(PathBuf::from(path.trim())), number(after));
    }
    (None, None)
}

/// Faults as they come: the first of them, and how many there are.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) list: Vec<Fault>,
    pub(super) count: u64,
    pub(super) by_queue: HashMap<QueueId, u64>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.count += 1;
        if let Some(queue) = fault.queue {
            *self.by_queue.entry(QueueId(queue)).or_default() += 1;
        }
        if self.list.len() < AUDIT_FAULTS_MAX {
            self.list.push(fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_found_in_rocksdbs_words() {
        let words = "Corruption: block checksum mismatch: stored(context removed) = 1, computed = 2, type = 4  in /d/db/000012.sst offset 4711 size 99";
        assert_eq!(place_in(words), (Some("/d/db/000012.sst".into()), Some(4711)));
        let words = "Corruption: Blob: /d/db/000013.blob is damaged at byte 30";
        assert_eq!(place_in(words), (Some("/d/db/000013.blob".into()), Some(30)));
        for words in ["", "IO error: no such file", " offset ", "in x offset y", " is damaged at byte "] {
            assert_eq!(place_in(words).1, None, "{words}");
        }
    }

    #[test]
    fn all_faults_are_counted_and_the_first_are_kept() {
        let mut faults = Faults::default();
        for seq in 0..AUDIT_FAULTS_MAX as u64 + 5 {
            faults.add(Fault::of_entry("E_RECORD_FORGED", 3, seq, String::new()));
        }
        assert_eq!((faults.list.len(), faults.count), (AUDIT_FAULTS_MAX, AUDIT_FAULTS_MAX as u64 + 5));
        assert_eq!(faults.by_queue[&QueueId(3)], faults.count);
    }
}
