//! When a promise is kept: by a commit, or by an acknowledgement that comes before it. What the committer might be too
//! quick for is in commit/tests.rs.

use super::*;

/// Longer than a commit waits for anything.
const LONG: Duration = Duration::from_secs(600);

fn put(store: &Store, seq: u64, patience: Option<Duration>) -> Position {
    let mut appender = store.appender();
    patience.into_iter().for_each(|patience| appender.may_wait(patience));
    appender.put(QUEUE, Seq(seq), &message("x"), None, meta(seq))
}

fn acknowledge(store: &Store, seq: u64, put_at: Position) {
    store.appender().acknowledge(QUEUE, Seq(seq), 0, None, put_at);
}

#[test]
fn what_is_not_acknowledged_in_time_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let first = put(&store, 1, Some(Duration::from_millis(20)));
    let second = put(&store, 2, Some(LONG));
    acknowledge(&store, 2, second);
    while store.durable() < first {
        std::thread::yield_now();
    }
    let (store, recovered) = reopen(store);
    assert_eq!(seqs(&store, &recovered, QUEUE), [1]);
}

#[test]
fn nobody_else_waits_with_the_patient() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    put(&store, 1, Some(LONG));
    let place = put(&store, 2, None);
    wait(&store, place);
    let place = put(&store, 3, Some(LONG));
    let mut appender = store.appender();
    appender.hurry(place);
    drop(appender);
    while store.durable() < place {
        std::thread::yield_now();
    }
}

#[test]
fn an_acknowledgement_that_is_still_to_be_written_holds_up_only_who_asks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let mut overtaken = 0;
    // The committer may write the acknowledgement at any moment.
    for round in 0..50 {
        let at = 4 * round;
        let first = put_range(&store, QUEUE, at + 1..=at + 2);
        wait(&store, first);
        acknowledge(&store, at + 1, first);
        let place = put(&store, at + 3, Some(LONG));
        acknowledge(&store, at + 3, place);
        overtaken += u64::from(store.kept() >= place && store.durable() < place);
        acknowledge(&store, at + 2, first);
        let mut appender = store.appender();
        appender.await_all();
        let all = appender.tail();
        drop(appender);
        let place = put(&store, at + 4, Some(LONG));
        acknowledge(&store, at + 4, place);
        while store.kept() < place {
            std::thread::yield_now();
        }
        assert!(store.durable() >= all, "round {round}");
    }
    assert!(overtaken > 0);
}

#[test]
fn a_store_that_has_failed_keeps_no_promise() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let place = put_range(&store, QUEUE, 1..=1);
    wait(&store, place);
    let mut appender = store.appender();
    appender.may_wait(LONG);
    let patient = appender.put(QUEUE, Seq(2), &message("x"), None, meta(2));
    // The same place twice would break what SingleDelete relies on.
    appender.put(QUEUE, Seq(1), &message("x"), None, meta(1));
    drop(appender);
    while store.failure().is_none() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    acknowledge(&store, 2, patient);
    assert!(store.kept() < patient);
    assert_eq!(put(&store, 3, Some(LONG)), Position::NEVER);
}

#[test]
fn it_is_known_how_long_ago_something_was_put() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let before = Instant::now();
    let place = put(&store, 1, Some(LONG));
    let age = store.appender().age(place).unwrap();
    assert!(age <= before.elapsed());
    assert_eq!(store.appender().age(Position(place.0 + 1)), None);
}

/// Whoever waited for acknowledgements relied on a message that happened to stand behind them, which was acknowledged
/// itself.
#[test]
fn who_waits_for_acknowledgements_relies_on_nothing_that_may_be_struck_out() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    for round in 0..50 {
        let at = 3 * round;
        let first = put_range(&store, QUEUE, at + 1..=at + 1);
        wait(&store, first);
        acknowledge(&store, at + 1, first);
        let acknowledged = store.appender().tail();
        let foreign = put(&store, at + 2, Some(LONG));
        store.appender().await_all();
        let own = put(&store, at + 3, Some(LONG));
        acknowledge(&store, at + 2, foreign);
        acknowledge(&store, at + 3, own);
        while store.kept() < own {
            std::thread::yield_now();
        }
        assert!(store.durable() >= acknowledged, "round {round}");
    }
}
