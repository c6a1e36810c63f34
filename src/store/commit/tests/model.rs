//! The inbox against a list of places that knows only what was appended, what became of it, and what is on the disk.
//! Time plays no part: what may wait is taken when a step says so, as if it had waited long enough. What must hold:
//!
//! * What is kept is never behind what is durable, neither goes back, and neither is beyond the last place.
//! * Durable is what is written or was acknowledged before it was; as soon as it is so and the committer is not writing.
//! * Kept is what is durable, or awaited by nobody, as soon. What gave way to something is not kept before that is written.
//! * What was promised after somebody asked to wait for all is not kept before all of that is durable.
//! * Whoever waits is woken once, when it is so, not under the lock; all are when the store fails, and in the end.
//! * The committer gets what was appended and not struck out, once and in order, and what one appender appended at once.
//! * It must commit now from the first change that may not wait until the inbox is empty.
//! * Nothing is left in the backlog when all is written.

use std::sync::Weak;
use std::task::Wake;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::*;
use super::{LONG, Size, message};
use crate::broker::id::{BodyId, RowId};
use crate::broker::message::Message;
use crate::store::body::{BodyCounts, Settled, SharedBody};
use crate::store::layout::RowKind;
use crate::store::op::Put;
use crate::store::record::EntryMeta;
use crate::store::sealing::Sealing;
use crate::store::tests::nightly;

/// What one appender does.
#[derive(Clone, Debug)]
enum Act {
    Put {
        queue: u8,
        size: Size,
    },
    Share {
        promised: u32,
        size: Size,
    },
    /// One of those that were promised to a shared body.
    PutShared {
        queue: u8,
        which: Index,
    },
    Release(Index),
    Acknowledge(Index),
    Delete(Index),
    /// Although its put is written all the same.
    DeleteAnyway(Index),
    Count(Index),
    PutRow,
    Touch,
    PurgeRange(u8),
    DropQueue(u8),
    Brisk(bool),
    AwaitAll,
    PlaceOfAll,
    Hurry(Index),
    Wake,
    WakeWhenKept(Index),
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        patient: bool,
        acts: Vec<Act>,
    },
    /// The committer takes a batch; when it has one, that is on the disk.
    Commit,
    /// It waits for more.
    Sleep,
    Fail,
    Close,
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![6 => Just(Size::Small), 1 => Just(Size::Large), 2 => Just(Size::Huge)]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..3u8, size()).prop_map(|(queue, size)| Act::Put { queue, size }),
        2 => (1..4u32, size()).prop_map(|(promised, size)| Act::Share { promised, size }),
        4 => (0..3u8, any::<Index>()).prop_map(|(queue, which)| Act::PutShared { queue, which }),
        1 => any::<Index>().prop_map(Act::Release),
        6 => any::<Index>().prop_map(Act::Acknowledge),
        3 => any::<Index>().prop_map(Act::Delete),
        1 => any::<Index>().prop_map(Act::DeleteAnyway),
        1 => any::<Index>().prop_map(Act::Count),
        1 => Just(Act::PutRow),
        1 => Just(Act::Touch),
        1 => (0..3u8).prop_map(Act::PurgeRange),
        1 => (0..3u8).prop_map(Act::DropQueue),
        1 => any::<bool>().prop_map(Act::Brisk),
        2 => Just(Act::AwaitAll),
        2 => Just(Act::PlaceOfAll),
        2 => any::<Index>().prop_map(Act::Hurry),
        2 => Just(Act::Wake),
        5 => any::<Index>().prop_map(Act::WakeWhenKept),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let append = (prop::bool::weighted(0.7), vec(act(), 1..5));
    prop_oneof![
        120 => append.prop_map(|(patient, acts)| Step::Append { patient, acts }),
        50 => Just(Step::Commit),
        10 => Just(Step::Sleep),
        1 => Just(Step::Fail),
        1 => Just(Step::Close),
    ]
}

/// What the committer gets of a change; bodies by their numbers.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Put(QueueId, Seq, Option<u64>),
    Delete(QueueId, Seq, Option<u64>),
    Settle(u64),
    Count(QueueId, Seq),
    PutRow(RowId),
    Touch,
    PurgeRange(QueueId),
    DropQueue(QueueId, Vec<(Seq, u64)>),
}

impl Seen {
    fn of(op: &Op) -> Seen {
        match op {
            Op::Put(Put { queue, seq, shared, .. }) => Seen::Put(*queue, *seq, number(shared.as_ref())),
            Op::Delete { queue, seq, shared, .. } => Seen::Delete(*queue, *seq, number(shared.as_ref())),
            Op::Settle(body) => Seen::Settle(body.id().0),
            Op::Count(count) => Seen::Count(count.queue, count.seq),
            Op::PutRow { id, .. } => Seen::PutRow(*id),
            Op::Touch => Seen::Touch,
            Op::PurgeRange { queue, .. } => Seen::PurgeRange(*queue),
            Op::DropQueue { queue, bodies } => {
                Seen::DropQueue(*queue, bodies.iter().map(|(seq, body)| (*seq, body.id().0)).collect())
            }
            Op::Nothing | Op::DeleteRow { .. } | Op::OwnKey { .. } | Op::Keys(_) | Op::Sweep => {
                unreachable!()
            }
        }
    }
}

fn number(body: Option<&Arc<SharedBody>>) -> Option<u64> {
    body.map(|body| body.id().0)
}

/// What a promise at a place, or behind it, waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Waits {
    /// For its batch.
    Batch,
    /// For the batch of that place: it gave way to something that stands there or before.
    GaveWay(usize),
    /// Not at all: an acknowledgement, or a count.
    Never,
    /// Not at all any more: a put that was acknowledged.
    Acknowledged,
}

/// One place in the commit order.
struct Place {
    appender: usize,
    /// `None` when there is nothing to be written.
    seen: Option<Seen>,
    waits: Waits,
}

/// An entry that nobody has deleted.
struct Entry {
    queue: QueueId,
    seq: Seq,
    shared: Option<Arc<SharedBody>>,
    put_at: Position,
}

/// Somebody who waits.
struct Waiter {
    place: usize,
    /// For what is durable; else for a promise.
    all: bool,
    bell: Arc<Bell>,
}

struct Bell {
    core: Weak<Core>,
    rings: AtomicUsize,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let core = self.core.upgrade().unwrap();
        assert!(core.inbox.try_lock().is_ok(), "nobody is woken under the lock");
        self.rings.fetch_add(1, Ordering::Relaxed);
    }
}

struct Model {
    core: Arc<Core>,
    places: Vec<Place>,
    live: Vec<Entry>,
    queues: [QueueId; 3],
    /// Numbers of entries, bodies and queues.
    next: u64,
    /// Entries that are promised to bodies.
    owed: Vec<Arc<SharedBody>>,
    waiters: Vec<Waiter>,
    /// A promise at the first place waits for all up to the second, acknowledgements too.
    fences: Vec<(usize, usize)>,
    appenders: usize,
    /// What the committer has.
    batch: Option<Vec<Op>>,
    bodies: BodyCounts,
    taken: usize,
    written: usize,
    /// Places that the inbox no longer holds.
    passed: usize,
    durable: usize,
    kept: usize,
    urgent: bool,
    closed: bool,
    /// Something was refused, so a body is owed an entry for ever.
    refused: bool,
    failed: bool,
}

impl Model {
    fn new() -> Model {
        Model {
            core: Arc::new(Core::new(0, 0, None, Vec::new())),
            places: Vec::new(),
            live: Vec::new(),
            queues: [1, 2, 3].map(QueueId),
            next: 4,
            owed: Vec::new(),
            waiters: Vec::new(),
            fences: Vec::new(),
            appenders: 0,
            batch: None,
            bodies: BodyCounts::default(),
            taken: 0,
            written: 0,
            passed: 0,
            durable: 0,
            kept: 0,
            urgent: false,
            closed: false,
            refused: false,
            failed: false,
        }
    }

    fn step(&mut self, step: Step) {
        let core = Arc::clone(&self.core);
        match step {
            Step::Append { patient, acts } => {
                let mut appender = core.appender();
                if patient {
                    appender.may_wait(LONG);
                }
                acts.into_iter().for_each(|act| self.act(&mut appender, act));
                drop(appender);
                self.appenders += 1;
            }
            Step::Commit => self.commit(),
            Step::Sleep if self.batch.is_none() && !self.failed => {
                let is_empty = self.passed == self.places.len();
                core.lock().committer =
                    if is_empty { Committer::Idle } else { Committer::Dozes(Instant::now() + LONG) };
            }
            Step::Fail if !self.failed => {
                core.fail(CommitFailure::Unknown("a step".into()));
                (self.failed, self.closed) = (true, true);
                self.taken = self.places.len();
                self.passed = self.taken;
            }
            Step::Close => {
                core.close();
                self.closed = true;
            }
            Step::Sleep | Step::Fail => {}
        }
        self.check();
    }

    fn commit(&mut self) {
        let core = Arc::clone(&self.core);
        if self.failed {
            return;
        }
        if let Some(ops) = self.batch.take() {
            self.write(&ops);
            self.written = self.taken;
            let mut woken = Vec::new();
            core.advance(self.taken as u64, &mut woken);
            assert!(woken.is_empty());
            return;
        }
        let (mut ops, mut delivered) = (Vec::new(), DeliveryMarks::default());
        let taken = core.take(&mut ops, &mut delivered, false, Some(Duration::ZERO));
        assert_eq!(taken.ended, self.closed && self.passed == self.places.len());
        let upto = usize::try_from(taken.upto).unwrap();
        let seen: Vec<Seen> = ops.iter().map(Seen::of).collect();
        let expected: Vec<Seen> =
            self.places[self.taken..upto].iter().filter_map(|place| place.seen.clone()).collect();
        assert_eq!(seen, expected, "what was appended and not struck out, once and in order");
        if upto < self.places.len() {
            let bytes: usize = ops.iter().map(Op::batch_bytes).sum();
            assert!(bytes >= COMMIT_LARGE_BYTES_MAX, "only a full batch leaves something");
            assert_ne!(self.places[upto - 1].appender, self.places[upto].appender, "one appender, one batch");
        }
        self.check_size(&self.places[self.taken..upto], &ops);
        self.urgent = upto < self.places.len();
        (self.taken, self.passed) = (upto, upto);
        self.batch = Some(ops);
    }

    /// A full batch ends, unless something in it gave way to what comes after.
    fn check_size(&self, batch: &[Place], ops: &[Op]) {
        let gave_way = batch.iter().position(|place| matches!(place.waits, Waits::GaveWay(_)));
        let end = gave_way.unwrap_or(batch.len().saturating_sub(1));
        let Some(last) = batch.get(end) else { return };
        let written = batch[..end].iter().filter(|place| place.seen.is_some());
        let before = written.zip(ops).filter(|(place, _)| place.appender != last.appender);
        let bytes: usize = before.map(|(_, op)| op.batch_bytes()).sum();
        assert!(bytes < COMMIT_BYTES_MAX);
    }

    /// What the committer owes to the backlog and to the bodies.
    fn write(&mut self, ops: &[Op]) {
        let mut charge = 0;
        for op in ops {
            charge += op.charge();
            match op {
                Op::Put(Put { shared: Some(body), .. }) => {
                    body.write_once(&Sealing::Plain, None, &mut Vec::new(), |_, _| {}).unwrap();
                    charge += body.take_charge();
                }
                Op::Settle(body) | Op::Delete { shared: Some(body), .. } => charge += self.settle(body),
                Op::DropQueue { bodies, .. } => {
                    charge += bodies.iter().map(|(_, body)| self.settle(body)).sum::<usize>();
                }
                _ => {}
            }
        }
        self.core.discharge(charge);
    }

    fn settle(&mut self, body: &SharedBody) -> usize {
        match self.bodies.settle(body) {
            Settled::NeverWritten => body.take_charge(),
            Settled::Needed | Settled::Remove(_) => 0,
        }
    }

    fn act(&mut self, appender: &mut Appender<'_>, act: Act) {
        match act {
            Act::Put { queue, size } => self.put(appender, queue, message(size), None),
            Act::Share { promised, size } => {
                let message = message(size);
                let body = Arc::new(SharedBody::new(BodyId(self.fresh()), message, promised));
                self.core.charge(body.charge());
                self.owed.extend((0..promised).map(|_| Arc::clone(&body)));
            }
            Act::PutShared { queue, which } => {
                if let Some(body) = pick(&mut self.owed, which) {
                    self.put(appender, queue, body.message().clone(), Some(body));
                }
            }
            Act::Release(which) => {
                if let Some(body) = pick(&mut self.owed, which) {
                    appender.release(&body);
                    self.push(Seen::Settle(body.id().0), Waits::Never);
                }
            }
            Act::Acknowledge(which) => self.delete(appender, which, Waits::Acknowledged),
            Act::Delete(which) => self.delete(appender, which, Waits::GaveWay(self.places.len())),
            Act::DeleteAnyway(which) => self.delete(appender, which, Waits::Never),
            Act::Count(which) => {
                if let Some((queue, seq)) = peek(&self.live, which).map(|entry| (entry.queue, entry.seq)) {
                    appender.count_deliveries(queue, seq, 1);
                    self.push(Seen::Count(queue, seq), Waits::Never);
                }
            }
            Act::PutRow => {
                let id = RowId(self.fresh());
                appender.put_row(RowKind::Queue, id, b"row".to_vec());
                self.push(Seen::PutRow(id), Waits::Batch);
            }
            Act::Touch => {
                appender.touch();
                self.push(Seen::Touch, Waits::Batch);
            }
            Act::PurgeRange(queue) => {
                let queue = self.queues[usize::from(queue)];
                appender.purge_range(queue, Seq(1), Seq(2), 1);
                self.push(Seen::PurgeRange(queue), Waits::Batch);
            }
            Act::DropQueue(queue) => self.drop_queue(appender, queue),
            Act::Brisk(is_brisk) => appender.expect_acknowledgements(is_brisk),
            Act::AwaitAll => {
                let all = self.places.len();
                self.await_all(appender);
                self.fences.push((self.places.len() + 1, all));
            }
            Act::PlaceOfAll => {
                let all = self.places.len();
                let place = appender.place_of_all();
                self.see_wall(appender);
                self.fences.push((usize::try_from(place.0).unwrap(), all));
            }
            Act::Hurry(which) => {
                let place = which.index(self.places.len() + 1);
                appender.hurry(Position(place as u64));
                self.urgent |= self.passed < self.places.len() && self.core.kept().0 < place as u64;
            }
            Act::Wake => {
                let bell = self.wait(self.places.len(), true);
                self.urgent |=
                    !self.failed && self.passed < self.places.len() && self.core.durable() < appender.tail();
                appender.wake(bell);
            }
            Act::WakeWhenKept(which) => {
                let place = which.index(self.places.len() + 1);
                appender.wake_when_kept(Position(place as u64), self.wait(place, false));
            }
        }
        assert_eq!(appender.tail(), Position(self.places.len() as u64));
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn wait(&mut self, place: usize, all: bool) -> Waker {
        let bell = Arc::new(Bell { core: Arc::downgrade(&self.core), rings: AtomicUsize::new(0) });
        self.waiters.push(Waiter { place, all, bell: Arc::clone(&bell) });
        Waker::from(bell)
    }

    /// A change was appended.
    fn push(&mut self, seen: Seen, waits: Waits) {
        if self.closed {
            self.refused = true;
            return;
        }
        self.urgent |= waits == Waits::Batch && !matches!(seen, Seen::Put(..));
        self.places.push(Place { appender: self.appenders, seen: Some(seen), waits });
    }

    fn put(
        &mut self,
        appender: &mut Appender<'_>,
        queue: u8,
        message: Message,
        shared: Option<Arc<SharedBody>>,
    ) {
        let (queue, seq) = (self.queues[usize::from(queue)], Seq(self.fresh()));
        let put_at = appender.put(queue, seq, &message, shared.as_ref(), EntryMeta::default());
        self.push(Seen::Put(queue, seq, number(shared.as_ref())), Waits::Batch);
        if self.closed {
            assert_eq!(put_at, Position::NEVER);
        } else {
            self.urgent |= !appender.is_patient();
            self.live.push(Entry { queue, seq, shared, put_at });
        }
    }

    fn delete(&mut self, appender: &mut Appender<'_>, which: Index, waits: Waits) {
        let Some(Entry { queue, seq, shared, put_at }) = pick(&mut self.live, which) else { return };
        let shared = shared.as_ref();
        let is_struck = waits != Waits::Never && self.strike_out(put_at, shared, waits);
        match waits {
            Waits::Acknowledged => appender.acknowledge(queue, seq, 1, shared, put_at),
            Waits::GaveWay(_) => appender.delete(queue, seq, 1, shared, put_at),
            Waits::Never | Waits::Batch => appender.delete(queue, seq, 1, shared, Position(0)),
        }
        if !is_struck {
            self.push(Seen::Delete(queue, seq, number(shared)), Waits::Never);
        }
    }

    /// False when the committer has it.
    fn strike_out(&mut self, put_at: Position, shared: Option<&Arc<SharedBody>>, waits: Waits) -> bool {
        let at = usize::try_from(put_at.0).unwrap();
        if at <= self.taken {
            return false;
        }
        let place = &mut self.places[at - 1];
        // Other entries of its body are to know.
        let left = shared.filter(|body| body.promised() > 1);
        (place.seen, place.waits) = (left.map(|body| Seen::Settle(body.id().0)), waits);
        true
    }

    fn drop_queue(&mut self, appender: &mut Appender<'_>, queue: u8) {
        // The store is closed when all queues are as they will be.
        if self.closed {
            return;
        }
        let fresh = QueueId(self.fresh());
        let queue = std::mem::replace(&mut self.queues[usize::from(queue)], fresh);
        let (dropped, live) = self.live.drain(..).partition(|entry| entry.queue == queue);
        self.live = live;
        let dropped: Vec<Entry> = dropped;
        let (mut entries, mut bodies) = (Vec::new(), Vec::new());
        for Entry { seq, shared, put_at, .. } in dropped {
            if !self.strike_out(put_at, shared.as_ref(), Waits::GaveWay(self.places.len() + 1)) {
                bodies.extend(number(shared.as_ref()).map(|body| (seq, body)));
            }
            entries.push((seq, shared, put_at));
        }
        appender.drop_queue(queue, entries);
        self.push(Seen::DropQueue(queue, bodies), Waits::Batch);
    }

    fn await_all(&mut self, appender: &mut Appender<'_>) {
        let has_any = self.places[self.taken..].iter().any(|place| place.waits == Waits::Never);
        assert_eq!(appender.await_all(), has_any);
        self.see_wall(appender);
    }

    fn see_wall(&mut self, appender: &Appender<'_>) {
        if appender.tail().0 > self.places.len() as u64 {
            self.places.push(Place { appender: self.appenders, seen: None, waits: Waits::Batch });
        }
    }

    /// What holds after each step.
    fn check(&mut self) {
        let place = |position: Position| usize::try_from(position.0).unwrap();
        let (durable, kept) = (place(self.core.durable()), place(self.core.kept()));
        if self.failed {
            assert_eq!((durable, kept), (self.durable, self.kept), "nothing is promised any more");
            assert!(self.waiters.iter().all(|waiter| waiter.rings() == 1), "all are told");
            return;
        }
        assert!(self.durable <= durable && self.kept <= kept, "neither goes back");
        assert!(durable <= kept && kept <= self.places.len());
        (self.durable, self.kept) = (durable, kept);
        let (may_be_durable, may_be_kept) = (self.durable_up_to(), self.kept_up_to());
        assert!(durable <= may_be_durable && kept <= may_be_kept, "not too early");
        if self.batch.is_none() {
            assert_eq!((durable, kept), (may_be_durable, may_be_kept), "not too late");
            self.passed = durable;
        }
        self.urgent &= self.passed < self.places.len();
        assert_eq!(self.core.lock().must_commit_now(), self.urgent || self.closed);
        for waiter in &self.waiters {
            let is_due = waiter.place <= if waiter.all { durable } else { kept };
            assert_eq!(waiter.rings(), usize::from(is_due), "woken once, and when it is so");
        }
        let settled = self.up_to(|at, place| at <= self.written || place.waits == Waits::Acknowledged);
        for (promise, all) in &self.fences {
            assert!(kept < *promise || settled >= *all, "whoever waits for all waits for acknowledgements");
        }
        let is_empty = self.batch.is_none() && self.passed == self.places.len();
        if is_empty && self.owed.is_empty() && !self.refused {
            assert_eq!(self.core.backlog_bytes(), 0);
        }
    }

    fn durable_up_to(&self) -> usize {
        let is_struck = |place: &Place| place.seen.is_none() && place.waits == Waits::Acknowledged;
        self.up_to(|at, place| at <= self.written || is_struck(place))
    }

    fn kept_up_to(&self) -> usize {
        self.up_to(|at, place| match place.waits {
            Waits::Batch => at <= self.written,
            Waits::GaveWay(until) => until <= self.written,
            Waits::Never | Waits::Acknowledged => true,
        })
    }

    /// The last place of those at the front for which it is so.
    fn up_to(&self, is_so: impl Fn(usize, &Place) -> bool) -> usize {
        self.places.iter().zip(1..).take_while(|(place, at)| is_so(*at, place)).count()
    }

    /// Nobody waits for ever.
    fn finish(mut self) {
        self.appenders += 1;
        if !self.closed {
            let mut appender = self.core.appender();
            let owed = std::mem::take(&mut self.owed);
            owed.iter().for_each(|body| appender.release(body));
            drop(appender);
            for body in owed {
                self.push(Seen::Settle(body.id().0), Waits::Never);
            }
        }
        while !self.failed && (self.batch.is_some() || self.passed < self.places.len()) {
            self.step(Step::Commit);
        }
        assert!(self.waiters.iter().all(|waiter| waiter.rings() == 1));
        self.step(Step::Close);
        self.step(Step::Commit);
        self.step(Step::Commit);
    }
}

impl Waiter {
    fn rings(&self) -> usize {
        self.bell.rings.load(Ordering::Relaxed)
    }
}

fn peek<T>(from: &[T], which: Index) -> Option<&T> {
    (!from.is_empty()).then(|| which.get(from))
}

fn pick<T>(from: &mut Vec<T>, which: Index) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(which.index(from.len())))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(nightly(1000, 50_000) as u32))]

    #[test]
    fn promises_are_kept_neither_too_early_nor_too_late(steps in vec(step(), 1..60)) {
        let mut model = Model::new();
        steps.into_iter().for_each(|step| model.step(step));
        model.finish();
    }
}
