//! What an open store keeps of its keys in memory, and what a closed one leaves: nothing.

use super::super::keyring_file::KeyringFile;
use super::*;
use crate::seal::tests::Wanted;
use crate::store::kek_from_file;

/// The keys of the store in a directory that is not open, masked.
fn keys(dir: &Path, kek: Kek) -> Vec<(&'static str, Wanted)> {
    let file = KeyringFile::open(dir, &kek.into()).unwrap();
    let mut keys = vec![("root key", file.ring().root.wanted())];
    keys.extend(file.ring().keys.iter().map(|entry| ("data key", entry.key.wanted())));
    keys
}

#[test]
fn a_closed_store_leaves_no_key_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (data, path) = (dir.path().join("data"), dir.path().join("kek"));
    // The key is made by another program, so that nothing of its making is in this one.
    let made = std::process::Command::new("sh")
        .args(["-c", r#"umask 077; head -c 32 /dev/urandom >"$1""#, "sh"])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    for round in 0..3 {
        let kek = kek_from_file(&path).unwrap();
        let wanted = kek.wanted();
        assert!(wanted.found() > 0, "the control: the KEK is in use and not found");
        let (store, recovered) = try_open(&data, Mode::Sealed, Some(kek)).unwrap();
        assert_eq!(seqs(&store, &recovered, QUEUE).len(), 10 * round);
        assert_eq!(wanted.found(), 0, "the KEK is not kept once the keyring is open");
        let first = 20 * round as u64 + 1;
        put_range(&store, QUEUE, first..=first + 9);
        let large = message(&"large ".repeat(50_000));
        let shared = store.shared_body(&large, 1);
        let place = store.appender().put(QueueId(2), Seq(first), &large, Some(&shared), meta(1));
        wait(&store, place);
        let used = keys(&data, kek_from_file(&path).unwrap());
        let newest = &used.last().unwrap().1;
        assert!(newest.found() > 0, "the control: a data key is in use and not found");
        store.backup(&dir.path().join(format!("backup-{round}"))).unwrap();
        store.close().unwrap();
        drop((store, recovered));
        for (name, key) in used.iter().chain([&("KEK", wanted)]) {
            assert_eq!(key.found(), 0, "{name} is left in memory (round {round})");
        }
    }
}
