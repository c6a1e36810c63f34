//! The inbox alone: there is no committer and no disk. A test takes a batch, and says that it was written.

use super::*;

/// The committer takes a batch: its last place, and how many changes are in it.
fn take(core: &Core) -> (u64, usize) {
    let (mut ops, mut delivered) = (Vec::new(), DeliveryMarks::default());
    let taken = core.take(&mut ops, &mut delivered, false, Some(Duration::ZERO));
    (taken.upto, ops.len())
}

/// A declare of what is there, and a purge, were answered while what was acknowledged or purged before was still being
/// written: a kill brought it back.
#[test]
fn who_waits_for_all_waits_for_what_is_being_written_too() {
    let core = Core::new(0, 0, None, Vec::new());
    core.appender().delete(QueueId(1), Seq(1), 0, None, Position(0));
    let (upto, _) = take(&core);
    assert_eq!(core.kept(), Position(upto), "nobody waits for that alone");
    let place = core.appender().place_of_all();
    core.appender().hurry(place);
    assert!(core.kept() < place);
    core.advance(upto, &mut Vec::new());
    assert!(core.kept() < place && core.lock().must_commit_now());
    assert_eq!(take(&core), (place.0, 0));
    core.advance(place.0, &mut Vec::new());
    assert_eq!((core.kept(), core.durable()), (place, place));
    assert_eq!(core.appender().place_of_all(), place, "there is nothing left to wait for");
}
