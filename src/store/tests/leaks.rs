//! What a copy of the directory shows: nothing of a sealed store, everything of a plain one.

use std::os::unix::fs::PermissionsExt;

use super::super::rocks::{Rocks, Tail};
use super::*;

const DIE: &str = r#"{"data": {"message": "Rolling 3", "outcome": 3}, "version": "1.0.0"}"#;
const NEEDLES: [&str; 6] =
    [DIE, "canary-exchange", "canary.key", "canary-header", "canary-queue", "canary-user"];

fn fill(store: &Store) {
    let properties = b"\x90\x00\x10application/json\x00\x00\x00\x00canary-header";
    let message = Message::new(b"canary-exchange", b"canary.key", properties, &[DIE.as_bytes()]);
    let shared = store.shared_body(&message, 2);
    let mut appender = store.appender();
    appender.put_row(RowKind::Queue, RowId(1), b"canary-queue".to_vec());
    appender.put_row(RowKind::User, RowId(2), b"canary-user".to_vec());
    appender.put(QUEUE, Seq(1), &message, None, meta(1));
    appender.put(QUEUE, Seq(2), &message, Some(&shared), meta(1));
    appender.put(QueueId(2), Seq(1), &message, Some(&shared), meta(1));
}

fn count(dir: &Path, needle: &str) -> usize {
    let files = all_bytes(dir);
    let windows = |bytes: &[u8]| bytes.windows(needle.len()).filter(|w| *w == needle.as_bytes()).count();
    files.iter().map(|(_, bytes)| windows(bytes)).sum()
}

#[test]
fn a_plain_store_shows_every_body_verbatim_and_a_sealed_one_nothing() {
    for (mode, found) in [(Mode::PlainInsecure, true), (Mode::Sealed, false)] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
        fill(&store);
        // Once from the log, once more from what recovery has flushed.
        for _ in 0..2 {
            let (store, recovered) = try_open(crash_image(dir.path()).path(), mode, Some(kek())).unwrap();
            assert!(recovered.queues.len() <= 2);
            drop(store);
        }
        let (store, recovered) = reopen(store);
        assert_eq!(recovered.queues.len(), 2);
        assert!(
            recovered
                .queues
                .iter()
                .flat_map(|q| entries(&store, q))
                .all(|e| e.message.body() == DIE.as_bytes())
        );
        store.close().unwrap();
        for needle in NEEDLES {
            assert_eq!(count(dir.path(), needle) > 0, found, "{needle} in a {} store", mode.name());
        }
        if found {
            assert!(count(dir.path(), DIE) >= 2, "inline, and once for two entries");
            assert!(count(dir.path(), r#""routing_key":"canary.key""#) >= 2, "the JSON line in front");
        }
    }
}

#[test]
fn neither_host_name_nor_path_is_written_and_only_the_owner_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("canary-path");
    let (store, _) = open(&path);
    fill(&store);
    let (store, _) = reopen(store);
    store.close().unwrap();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(count(&path, "canary-path"), 0);
    assert!(host.trim().len() < 4 || count(&path, host.trim()) == 0);
    assert!(all_bytes(&path).iter().all(|(path, _)| path.file_name().unwrap() != "LOG"));
    for (file, _) in all_bytes(&path) {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", file.display());
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn one_message_many_times_gives_no_block_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let message = message(&"the same text again and again ".repeat(10));
    let mut appender = store.appender();
    for seq in 1..=1000 {
        appender.put(QUEUE, Seq(seq), &message, None, meta(1));
    }
    drop(appender);
    store.close().unwrap();
    drop(store);
    let rocks = Rocks::open(&dir.path().join("db"), Tail::Whole).unwrap();
    let mut blocks = std::collections::HashSet::new();
    rocks
        .scan(super::super::layout::Family::Entries, |_, value| {
            let fresh = value[28..].chunks_exact(16).all(|block| blocks.insert(block.to_vec()));
            assert!(fresh, "two equal blocks of ciphertext");
            Ok(())
        })
        .unwrap();
    assert!(blocks.len() > 20_000);
}
