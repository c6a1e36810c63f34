//! Records that were sealed at their places, and are genuine, and still are not what was committed there: a crash, a
//! restored backup or an accepted older state give the same places out once more. Whoever kept the others must not
//! be able to put them in.

use super::damage::{anchored, code_of, copy_of, entry, in_quarantine, options, put_values, quarantined};
use super::damage::{read_row_of, seqs, try_options, values};
use super::*;
use crate::broker::id::BodyId;
use crate::broker::letters::Died;
use crate::broker::queue::Death;

const LARGE_BYTES: usize = 3 * crate::limits::BODY_CHUNK_BYTES;

/// Messages 1 and 2; then a copy of the directory; then one message 3, which stands apart, and 4 in the store, and
/// others at the same places in the copy.
fn two_futures() -> [tempfile::TempDir; 2] {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let place = put_range(&store, QUEUE, 1..=2);
    wait(&store, place);
    let image = crash_image(dir.path());
    let go_on = |store: Arc<Store>, text: &str| {
        let large = message(&text.repeat(LARGE_BYTES / text.len()));
        let shared = store.shared_body(&large, 1);
        let mut appender = store.appender();
        appender.put(QUEUE, Seq(3), &large, Some(&shared), meta(3));
        appender.put(QUEUE, Seq(4), &message(text), None, meta(4));
        drop(appender);
        store.close().unwrap();
    };
    go_on(store, "given up ");
    go_on(open(image.path()).0, "committed ");
    [dir, image]
}

fn body(chunk: u32) -> (Family, Key) {
    (Family::Bodies, Key::body(BodyId(1), chunk))
}

/// An entry's sum named its place only, so another message that was once sealed at that place passed for it.
#[test]
fn a_message_of_a_future_that_was_given_up_does_not_pass_for_the_one_at_its_place() {
    let [given_up, kept] = two_futures();
    put_values(kept.path(), &[entry(4)], values(given_up.path(), &[entry(4)]));
    let error = try_options(options(kept.path())).unwrap_err();
    assert_eq!(error.code(), "E_QUEUE_INTEGRITY");
    assert!(error.to_string().contains("1 missing (entry 4), 1 extra"), "{error}");
    for options in [in_quarantine(kept.path()), options(kept.path())] {
        let recovered = try_options(options).unwrap();
        assert_eq!(
            (seqs(&recovered, QUEUE), quarantined(&recovered)),
            (vec![1, 2, 3], vec![(4, "E_ENTRY_EXTRA")])
        );
    }
}

/// The entry names the tag of the last piece only.
#[test]
fn a_piece_of_a_body_that_was_given_up_does_not_pass_for_the_one_at_its_place() {
    for chunk in 0..3 {
        let [given_up, kept] = two_futures();
        put_values(kept.path(), &[body(chunk)], values(given_up.path(), &[body(chunk)]));
        let recovered = try_options(options(kept.path())).unwrap();
        assert_eq!(seqs(&recovered, QUEUE), [1, 2, 4], "piece {chunk}");
        assert_eq!(quarantined(&recovered), [(3, "E_BODY_SWAPPED")], "piece {chunk}");
    }
    let [given_up, kept] = two_futures();
    let whole: Vec<_> = (0..4).map(body).collect();
    put_values(kept.path(), &whole, values(given_up.path(), &whole));
    assert_eq!(quarantined(&try_options(options(kept.path())).unwrap()), [(3, "E_BODY_SWAPPED")]);
}

/// A count is a record beside its entry that no sum covered: without it, or with an older one, a dead letter came
/// alive, and a delivery limit began anew.
#[test]
fn a_delivery_count_or_a_dead_letters_mark_that_is_gone_back_or_old_is_refused() {
    for mode in [Mode::Sealed, Mode::PlainInsecure] {
        let options = |dir: &Path| OpenOptions::new(dir, mode, Some(kek().into()));
        let count = [(Family::Meta, Key::delivery_count(QUEUE, Seq(2)))];
        let dir = filled(mode);
        let session = |work: &dyn Fn(&mut Appender<'_>)| {
            let (store, _) = Store::open(options(dir.path())).unwrap();
            work(&mut store.appender());
            store.close().unwrap();
            drop(store);
            values(dir.path(), &count).remove(0)
        };
        let none = session(&|_| {});
        let first = session(&|appender| appender.count_deliveries(QUEUE, Seq(2), 8));
        let died = Died { death: Death::Rejected, at_ms: 5 };
        let second = session(&|appender| appender.mark_dead(QUEUE, Seq(2), 9, died));
        assert!(none.is_none() && first.is_some() && first != second);
        for (what, value) in [("gone", none), ("older", first)] {
            let image = copy_of(dir.path());
            put_values(image.path(), &count, vec![value]);
            let error = try_options(options(image.path())).unwrap_err();
            assert_eq!(error.code(), "E_QUEUE_INTEGRITY", "{what}");
            assert!(error.to_string().contains("delivery counts"), "{what}: {error}");
            let accepted = OpenOptions { quarantine: true, ..options(image.path()) };
            assert_eq!(seqs(&try_options(accepted).unwrap(), QUEUE), [1, 2, 3, 4], "{what}");
            assert_eq!(
                code_of(options(image.path())),
                "",
                "{what}: what was accepted is the state from then on"
            );
        }
        let after = session(&|appender| appender.delete(QUEUE, Seq(2), 0, None, Position(0)));
        assert_eq!((after, code_of(options(dir.path()))), (None, ""), "it goes with its entry");
        put_values(dir.path(), &count, vec![second]);
        assert_eq!(code_of(options(dir.path())), "E_QUEUE_INTEGRITY", "back without its entry");
    }
}

/// An older state that was accepted went on with the numbers of the newer one, which so came to lie ahead of the
/// anchor, as a store may.
#[test]
fn the_newer_directory_does_not_come_back_once_the_older_one_was_accepted() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let anchor = elsewhere.path().join("anchor");
    let work = |dir: &Path, seqs, accept_rollback| {
        let options = OpenOptions { accept_rollback, ..anchored(dir, &anchor) };
        let (store, _) = Store::open(options).unwrap();
        for seq in seqs {
            let place = put_range(&store, QUEUE, seq..=seq);
            wait(&store, place);
        }
        store.close().unwrap();
    };
    work(dir.path(), 1..=2, None);
    let old = copy_of(dir.path());
    work(dir.path(), 3..=4, None);
    let found = read_row_of(old.path()).commit_seq;
    work(old.path(), 3..=9, Some(found));
    assert_eq!(code_of(anchored(old.path(), &anchor)), "");
    assert_eq!(code_of(anchored(dir.path(), &anchor)), "E_STORE_ROLLBACK");
    // The same where the anchor is lost for good.
    std::fs::remove_file(&anchor).unwrap();
    let older = copy_of(old.path());
    work(old.path(), 10..=20, Some(read_row_of(old.path()).commit_seq));
    assert_eq!(code_of(anchored(older.path(), &anchor)), "E_STORE_ROLLBACK");
}

#[test]
fn messages_whose_data_key_is_lost_are_quarantined_on_demand_and_the_others_served() {
    let dir = tempfile::tempdir().unwrap();
    for seqs in [1..=2, 3..=4] {
        let (store, _) = open(dir.path());
        put_range(&store, QUEUE, seqs);
        store.close().unwrap();
    }
    let mut file = super::super::keyring_file::KeyringFile::open(dir.path(), &kek().into()).unwrap();
    file.next_data_key(1, |entry| entry.key_id != 2).unwrap();
    drop(file);
    assert_eq!(code_of(options(dir.path())), "E_DEK_MISSING");
    for _ in 0..2 {
        let recovered = try_options(in_quarantine(dir.path())).unwrap();
        assert_eq!(seqs(&recovered, QUEUE), [3, 4]);
        assert_eq!(quarantined(&recovered), [(1, "E_DEK_MISSING"), (2, "E_DEK_MISSING")]);
    }
    assert_eq!(
        code_of(options(dir.path())),
        "E_DEK_MISSING",
        "what cannot be read stays, and is not forgotten"
    );
}
