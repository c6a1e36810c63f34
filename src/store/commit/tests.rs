//! The inbox alone: there is no committer and no disk. A test takes a batch, and says that it was written.

mod model;

use std::sync::LazyLock;
use std::task::Wake;

use super::*;
use crate::broker::id::BodyId;
use crate::broker::message::Message;
use crate::store::body::SharedBody;
use crate::store::record::EntryMeta;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);

/// Two large ones fill a batch of what is acknowledged soon, two huge ones any.
#[derive(Clone, Copy, Debug)]
enum Size {
    Small,
    Large,
    Huge,
}

fn message(size: Size) -> Message {
    static MESSAGES: LazyLock<[Message; 3]> = LazyLock::new(|| {
        [1, COMMIT_LARGE_BYTES_MAX / 2, COMMIT_BYTES_MAX / 2]
            .map(|bytes| Message::new(b"", b"q", &[0, 0], &[&vec![1; bytes]]))
    });
    MESSAGES[size as usize].clone()
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn put(core: &Core, seq: u64, size: Size) -> Position {
    let mut appender = core.appender();
    appender.may_wait(LONG);
    appender.put(QueueId(1), Seq(seq), &message(size), None, EntryMeta::default())
}

/// The committer takes a batch: its last place, and how many changes are in it.
fn take(core: &Core) -> (u64, usize) {
    let (mut ops, mut delivered) = (Vec::new(), DeliveryMarks::default());
    let taken = core.take(&mut ops, &mut delivered, false, Some(Duration::ZERO));
    (taken.upto, ops.len())
}

fn acknowledge(core: &Core, seq: u64, put_at: Position) {
    core.appender().acknowledge(QueueId(1), Seq(seq), 0, None, put_at);
}

#[test]
fn what_is_acknowledged_in_time_needs_no_commit() {
    let (core, count) = (Core::new(0, 0, None, Vec::new()), Arc::new(Count(AtomicUsize::new(0))));
    let places = [1, 2, 3].map(|seq| put(&core, seq, Size::Small));
    core.appender().wake_when_kept(places[2], Waker::from(Arc::clone(&count)));
    acknowledge(&core, 2, places[1]);
    acknowledge(&core, 1, places[0]);
    assert_eq!((core.kept(), count.0.load(Ordering::Relaxed)), (places[1], 0), "the third is still to come");
    acknowledge(&core, 3, places[2]);
    assert_eq!((core.kept(), core.durable()), (places[2], places[2]));
    assert_eq!((count.0.load(Ordering::Relaxed), core.backlog_bytes()), (1, 0));
    assert_eq!(take(&core), (places[2].0, 0));
    core.appender().wake_when_kept(places[2], Waker::from(Arc::clone(&count)));
    assert_eq!(count.0.load(Ordering::Relaxed), 2, "at once");
}

#[test]
fn a_body_apart_that_is_acknowledged_in_time_is_no_part_of_the_backlog() {
    let core = Core::new(0, 0, None, Vec::new());
    let text = message(Size::Huge);
    let shared = Arc::new(SharedBody::new(BodyId(1), text.clone(), 1));
    core.charge(shared.charge());
    let place = core.appender().put(QueueId(1), Seq(1), &text, Some(&shared), EntryMeta::default());
    assert!(core.backlog_bytes() > text.size_bytes());
    core.appender().acknowledge(QueueId(1), Seq(1), 0, Some(&shared), place);
    assert_eq!((core.backlog_bytes(), core.kept()), (0, place));
}

/// A message that gave way to a newer one (`x-max-length`, a purge) counted as acknowledged: it was confirmed while
/// neither the newer one nor the removal was on the disk, and a kill in between lost both.
#[test]
fn what_gives_way_to_something_is_promised_with_that() {
    let core = Core::new(0, 0, None, Vec::new());
    let old = put(&core, 1, Size::Small);
    let new = put(&core, 2, Size::Small);
    core.appender().delete(QueueId(1), Seq(1), 0, None, old);
    assert!(core.kept() < old);
    let place = put(&core, 3, Size::Small);
    let dropped = core.appender().drop_queue(QueueId(1), vec![(Seq(2), None, new), (Seq(3), None, place)]);
    assert!(core.kept() < old);
    assert_eq!(take(&core), (dropped.0, 1));
    assert!(core.kept() < old);
    core.advance(dropped.0, &mut Vec::new());
    assert_eq!((core.kept(), core.durable()), (dropped, dropped));
}

/// What was dropped for a newer message was confirmed with the batch that it had stood in, although that was full before
/// the newer one: a kill in between lost both.
#[test]
fn what_gave_way_and_what_it_gave_way_to_are_in_one_batch() {
    for drops_queue in [false, true] {
        let core = Core::new(0, 0, None, Vec::new());
        let old = put(&core, 1, Size::Small);
        (2..=3).for_each(|seq| _ = put(&core, seq, Size::Huge));
        let new = put(&core, 4, Size::Small);
        match drops_queue {
            false => core.appender().delete(QueueId(1), Seq(1), 0, None, old),
            true => _ = core.appender().drop_queue(QueueId(1), vec![(Seq(1), None, old)]),
        }
        let after = put(&core, 5, Size::Small);
        let (upto, changes) = take(&core);
        assert_eq!((upto, changes), (after.0 - 1, if drops_queue { 4 } else { 3 }));
        assert!(core.kept() < old);
        core.advance(upto, &mut Vec::new());
        assert!(core.kept() >= new);
        assert_eq!(take(&core).0, after.0, "the rest is the next one");
    }
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
