//! Sizes on the disk under each padding, and stores that were written under several.

use super::super::layout::Family;
use super::super::rocks::Rocks;
use super::*;

/// Header and tag of a sealed record, and the fixed part of an entry, in bytes.
const SEALED_BYTES: usize = 28 + 16;
const ENTRY_BYTES: usize = 64;

fn sizes(dir: &Path, family: Family) -> Vec<usize> {
    let rocks = Rocks::open(&dir.join("db"), Tail::Whole).unwrap();
    let mut sizes = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        // Of the default family only topology rows are padded.
        let is_padded = family != Family::Meta || key[0] >= 0x10;
        sizes.extend(is_padded.then_some(value.len()));
        Ok(())
    };
    rocks.scan(family, &mut visit).unwrap();
    sizes
}

fn open_with(dir: &Path, padding: Padding) -> (Arc<Store>, Recovered) {
    let options = OpenOptions { padding, ..OpenOptions::new(dir, Mode::Sealed, Some(kek().into())) };
    Store::open(options).unwrap()
}

/// Rows, inline messages, and bodies apart: sealed by the committer and on the caller's thread.
fn fill(store: &Store, first: u64) -> Vec<Message> {
    let texts = [1usize, 500, 20_000, 300_000];
    let messages: Vec<Message> = texts.iter().map(|len| message(&"x".repeat(*len))).collect();
    for (seq, message) in (first..).zip(&messages) {
        let shared = (message.size_bytes() > 4096).then(|| store.shared_body(message, 1));
        store.appender().put(QUEUE, Seq(seq), message, shared.as_ref(), meta(seq));
    }
    let place = store.appender().put_row(RowKind::Queue, RowId(first), vec![b'r'; 100]);
    wait(store, place);
    messages
}

#[test]
fn sizes_on_the_disk_are_those_of_the_padding() {
    for padding in [Padding::None, Padding::Padme, Padding::Pow2] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open_with(dir.path(), padding);
        let messages = fill(&store, 1);
        store.close().unwrap();
        drop(store);
        let sealed = |len: usize| padding.of(len) + SEALED_BYTES;
        assert_eq!(sizes(dir.path(), Family::Meta), [sealed(4 + 100)], "{padding:?}");
        let inline = |message: &Message| sealed(ENTRY_BYTES + message.size_bytes());
        let apart = ENTRY_BYTES + SEALED_BYTES;
        let entries = [inline(&messages[0]), inline(&messages[1]), apart, apart];
        assert_eq!(sizes(dir.path(), Family::Entries), entries, "{padding:?}");
        let mut bodies = vec![sealed(4 + messages[2].size_bytes())];
        let mut rest = padding.of(4 + messages[3].size_bytes());
        while rest > 0 {
            let chunk = rest.min(crate::limits::BODY_CHUNK_BYTES);
            bodies.push(chunk + SEALED_BYTES);
            rest -= chunk;
        }
        assert_eq!(sizes(dir.path(), Family::Bodies), bodies, "{padding:?}");
    }
}

#[test]
fn a_store_is_read_whatever_each_part_of_it_was_padded_by() {
    let (dir, mut expected) = (tempfile::tempdir().unwrap(), Vec::new());
    for (first, padding) in
        [(1, Padding::Pow2), (11, Padding::None), (21, Padding::Padme), (31, Padding::None)]
    {
        let (store, recovered) = open_with(dir.path(), padding);
        let found: Vec<Message> = recovered
            .queues
            .iter()
            .flat_map(|queue| entries(&store, queue))
            .map(|entry| entry.message.clone())
            .collect();
        assert_eq!(found, expected);
        assert!(recovered.rows.iter().all(|row| row.plaintext == [b'r'; 100]));
        expected.extend(fill(&store, first));
        store.close().unwrap();
    }
}
