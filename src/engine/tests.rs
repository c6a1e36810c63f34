//! The engine over a real store: what connections see of each other, and what a restart brings back.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::queue_cell::{QueueRef, Stored};
use super::*;
use crate::amqp::field_table::{Table, TableWriter, Value};
use crate::amqp::properties::Properties;
use crate::broker::credit::ChannelCredit;
use crate::broker::message::Message;
use crate::broker::queue::{ConsumerId, Entry};
use crate::limits::{INLINE_BODY_BYTES_MAX, OUTBOX_MESSAGES_MAX, PURGE_KEYS_MAX};
use crate::seal::Kek;
use crate::session::port::{
    Barrier, BindingSpec, Broker, ConsumeSpec, DestinationKind, ExchangeSpec, Outcome, Publish, QueueSpec,
    RouteNumber, Settled, Share, Waiting,
};
use crate::store::{Mode, OpenOptions, Store};

mod access;
mod crash_order;
mod delays;
mod letters;
mod paging;
mod replies;
mod routing;
mod shred;
mod spilling;
mod stored_rows;
mod timeouts;

/// A broker without a network.
struct House {
    engine: Arc<Engine>,
    store: Arc<Store>,
}

impl House {
    fn open(dir: &Path) -> House {
        House::open_as(OpenOptions::new(dir, Mode::PlainInsecure, None))
    }

    fn open_sealed(dir: &Path) -> House {
        let kek = Kek::take(&mut std::array::from_fn(|i| i as u8));
        House::open_as(OpenOptions::new(dir, Mode::Sealed, Some(kek.into())))
    }

    fn open_as(options: OpenOptions) -> House {
        let (store, recovered) = Store::open(options).unwrap();
        let engine = Engine::start(store.clone(), recovered, "/").unwrap();
        ensure_user(&engine, "me", &[], Some(&Permissions::all()));
        House { engine, store }
    }

    /// Ends in order.
    fn close(self) {
        self.engine.note_deliveries();
        self.store.close().unwrap();
    }

    fn client(&self) -> Seat {
        self.client_of("me")
    }

    fn client_of(&self, user: &str) -> Seat {
        let (mut client, outbox) = self.engine.connect();
        client.open(user.as_bytes(), b"/").unwrap();
        Seat { client, outbox, credit: Arc::default(), next_key: 0 }
    }

    fn queue(&self, name: &str) -> Option<QueueRef> {
        self.engine.topology.load().queue(name.as_bytes()).cloned()
    }
}

fn ensure_user(engine: &Engine, name: &str, tags: &[String], permissions: Option<&Permissions>) {
    engine.ensure_user(&UserSpec { name, password: b"secret", tags, permissions }).unwrap();
}

/// One connection without a session.
struct Seat {
    client: Client,
    outbox: Arc<Outbox>,
    credit: Arc<ChannelCredit>,
    next_key: u32,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

const DURABLE: QueueSpec<'static> = QueueSpec {
    name: b"",
    server_named: false,
    passive: false,
    durable: true,
    exclusive: false,
    auto_delete: false,
    arguments: Table::from_raw(b""),
};
const TRANSIENT: QueueSpec<'static> = QueueSpec { durable: false, ..DURABLE };
const EXCLUSIVE: QueueSpec<'static> = QueueSpec { exclusive: true, ..TRANSIENT };

fn publish(exchange: &str, key: &str, body: &[u8], persistent: bool) -> Publish {
    let mut properties = Vec::new();
    Properties::default().encode(&mut properties);
    publish_of(Message::new(exchange.as_bytes(), key.as_bytes(), &properties, &[body]), persistent)
}

fn publish_of(message: Message, persistent: bool) -> Publish {
    let names = [message.exchange(), message.routing_key()];
    let route = RouteNumber(foldhash::fast::FixedState::default().hash_one(names));
    let has_copies = message.has_copies();
    Publish {
        channel: 1,
        route,
        has_copies,
        mandatory: true,
        persistent,
        priority: 0,
        expiration_ms: None,
        message,
    }
}

impl Seat {
    fn declare(&mut self, name: &str, spec: QueueSpec<'_>) -> Barrier {
        self.client.declare_queue(&QueueSpec { name: name.as_bytes(), ..spec }).unwrap().barrier
    }

    fn exchange(&mut self, name: &str, kind: &str, durable: bool) {
        let spec = ExchangeSpec {
            name: name.as_bytes(),
            kind: kind.as_bytes(),
            passive: false,
            durable,
            auto_delete: false,
            internal: false,
            arguments: Table::default(),
        };
        self.client.declare_exchange(&spec).unwrap();
    }

    fn bind(&mut self, source: &str, queue: &str, key: &str) {
        self.client.bind(&binding(source, queue, key)).unwrap();
    }

    fn publish(&mut self, publishes: Vec<Publish>) -> Vec<Outcome> {
        let (mut batch, mut outcomes) = (publishes, Vec::new());
        self.client.publish(&mut batch, &mut outcomes);
        assert!(batch.is_empty());
        outcomes
    }

    /// Publishes to the queue of that name; the barrier.
    fn put(&mut self, queue: &str, body: &str, persistent: bool) -> Barrier {
        match self.publish(vec![publish("", queue, body.as_bytes(), persistent)]).pop() {
            Some(Outcome::Routed(barrier)) => barrier,
            other => panic!("not routed: {other:?}"),
        }
    }

    fn consume(&mut self, queue: &str, no_ack: bool) -> (QueueRef, ConsumerId, u32) {
        let key = self.next_key;
        self.next_key += 1;
        let spec = ConsumeSpec {
            queue: queue.as_bytes(),
            key,
            no_ack,
            exclusive: false,
            prefetch: 0,
            credit: &self.credit.clone(),
            arguments: Table::default(),
        };
        let (queue, id) = self.client.consume(&spec).unwrap();
        (queue, id, key)
    }

    /// What is in the outbox, and whether a queue waits for room in it.
    fn drain(&self) -> (VecDeque<Waiting<Stored>>, bool) {
        let mut waiting = VecDeque::new();
        let starved = self.outbox.drain_into(&mut waiting);
        (waiting, starved)
    }

    fn get(&mut self, queue: &str) -> Option<(QueueRef, Entry<Stored>)> {
        self.client.get(queue.as_bytes()).unwrap().map(|(queue, entry, _)| (queue, entry))
    }

    /// As a session does it: asks again when it is woken.
    fn get_late(&mut self, queue: &str) -> Option<(QueueRef, Entry<Stored>)> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            self.outbox.register(&waker);
            let got = self.get(queue);
            if got.is_some() || !self.client.waits_for(queue.as_bytes()) {
                return got;
            }
            std::thread::park_timeout(Duration::from_secs(60));
        }
    }

    /// Bodies that are ready, taken for good; `!` marks the redelivered.
    fn take_all(&mut self, queue: &str) -> Vec<String> {
        let mut bodies = Vec::new();
        while let Some((queue, entry)) = self.get_late(queue) {
            let mark = if entry.redelivered { "!" } else { "" };
            bodies.push(format!("{}{mark}", String::from_utf8_lossy(entry.message.body())));
            self.client.settle(&queue, None, &mut vec![entry]);
        }
        bodies
    }

    /// A transaction: routes each publish, then commits.
    fn commit(
        &mut self,
        publishes: Vec<Publish>,
        acknowledged: Vec<Settled<Client>>,
    ) -> (Vec<Outcome>, Barrier) {
        let planned = publishes.into_iter().map(|publish| self.client.plan(publish).unwrap()).collect();
        self.client.commit(planned, acknowledged).unwrap()
    }

    /// Sleeps until the outbox's waker is called and `done` holds; fails after a minute.
    fn wait_until(&self, what: &str, mut done: impl FnMut(&Seat) -> bool) {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            self.outbox.register(&waker);
            if done(self) {
                return;
            }
            assert!(Instant::now() < limit, "{what}: nobody woke us");
            std::thread::park_timeout(limit.saturating_duration_since(Instant::now()));
        }
    }

    fn wait_for(&self, barrier: Barrier) {
        self.wait_until("a commit", |seat| seat.client.kept() >= barrier);
    }
}

fn binding<'a>(source: &'a str, queue: &'a str, key: &'a str) -> BindingSpec<'a> {
    BindingSpec {
        source: source.as_bytes(),
        destination: queue.as_bytes(),
        kind: DestinationKind::Queue,
        routing_key: key.as_bytes(),
        arguments: Table::default(),
    }
}

fn text_of<T: std::fmt::Debug>(result: Result<T, crate::broker::fault::Fault>) -> String {
    result.unwrap_err().reply_text()
}

#[test]
fn a_fan_out_shares_one_body_in_memory_and_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    for queue in ["one", "two", "three"] {
        a.declare(queue, DURABLE);
        a.bind("amq.fanout", queue, "");
    }
    let outcomes = a.publish(vec![publish("amq.fanout", "", b"for all", true)]);
    let [Outcome::Routed(barrier)] = outcomes[..] else { panic!("{outcomes:?}") };
    a.wait_for(barrier);
    let first = a.get("one").unwrap().1;
    assert_eq!(first.message.as_bytes().as_ptr(), a.get("two").unwrap().1.message.as_bytes().as_ptr());
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    let shared: Vec<_> = ["one", "two", "three"]
        .map(|queue| match a.get(queue).unwrap().1.durable {
            Stored::Yes { shared: Some(shared), .. } => shared,
            other => panic!("{queue}: {other:?}"),
        })
        .into();
    assert!(shared[0].id() == shared[1].id() && shared[1].id() == shared[2].id());
}

#[test]
fn only_persistent_messages_in_durable_queues_touch_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("kept", DURABLE);
    a.declare("lost", TRANSIENT);
    a.declare("mine", QueueSpec { exclusive: true, ..DURABLE });
    for queue in ["kept", "lost", "mine"] {
        a.bind("amq.direct", queue, "all");
    }
    let large = "x".repeat(INLINE_BODY_BYTES_MAX + 1);
    assert_eq!(a.put("lost", "p", true), Barrier(0));
    assert_eq!(a.put("mine", "p", true), Barrier(0));
    assert_eq!(a.put("kept", "t", false), Barrier(0));
    assert!(a.put("kept", "p", true) > Barrier(0));
    a.put("kept", &large, true);
    let outcomes = a.publish(vec![
        publish("amq.direct", "all", b"transient", false),
        publish("amq.direct", "all", b"persistent", true),
    ]);
    assert_eq!(outcomes[0], Outcome::Routed(Barrier(0)));
    let Outcome::Routed(barrier) = outcomes[1] else { panic!("{outcomes:?}") };
    a.wait_for(barrier);
    assert_eq!(a.take_all("lost"), ["p", "transient", "persistent"]);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    assert_eq!(a.take_all("kept"), ["p", large.as_str(), "persistent"]);
    assert!(house.queue("lost").is_none() && house.queue("mine").is_none());
}

#[test]
fn a_restart_brings_back_what_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    ensure_user(&house.engine, "alice", &["administrator".to_owned()], None);
    let mut a = house.client();
    let arguments = TableWriter::new().entry("x-max-priority", Value::I32(5));
    a.declare("q", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    a.declare("t", TRANSIENT);
    a.exchange("topics", "topic", true);
    a.exchange("passing", "topic", false);
    for (source, queue, key) in
        [("topics", "q", "a.*"), ("topics", "q", "gone"), ("topics", "t", "#"), ("passing", "q", "#")]
    {
        a.bind(source, queue, key);
    }
    a.client.unbind(&binding("topics", "q", "gone")).unwrap();
    let mut last = Barrier(0);
    for body in ["1", "2", "3", "4", "5"] {
        last = a.put("q", body, true);
    }
    a.wait_for(last);
    let (queue, first) = a.get("q").unwrap();
    a.client.settle(&queue, None, &mut vec![first]);
    a.get("q").unwrap();
    let before: Vec<_> =
        house.engine.binding_views().into_iter().filter(|b| b.source_name == "topics").collect();
    assert_eq!(before.len(), 2);
    drop(a);
    house.close();

    let house = House::open(dir.path());
    let mut a = house.client();
    let views = house.engine.queue_views();
    assert_eq!(views.len(), 1);
    assert_eq!((views[0].name.as_str(), views[0].durable, views[0].messages_ready), ("q", true, 4));
    assert_eq!(views[0].arguments.len(), 1);
    let bindings: Vec<_> =
        house.engine.binding_views().into_iter().filter(|b| b.source_name == "topics").collect();
    assert_eq!((bindings.len(), bindings[0].routing_key.as_str()), (1, "a.*"));
    assert!(!house.engine.exchange_views().iter().any(|exchange| exchange.name == "passing"));
    let users = house.engine.users().list();
    assert_eq!(users.first().unwrap(), &("alice".to_owned(), vec!["administrator".to_owned()]));
    assert_eq!(a.publish(vec![publish("topics", "a.b", b"6", true)]).len(), 1);
    assert_eq!(a.take_all("q"), ["2!", "3", "4", "5", "6"], "in order, and what was out is marked");
}

#[test]
fn exclusive_queues_are_their_clients_and_go_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut a, mut b) = (house.client(), house.client());
    a.declare("mine", EXCLUSIVE);
    let locked = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine' in vhost '/'";
    let spec = QueueSpec { name: b"mine", ..EXCLUSIVE };
    assert!(text_of(b.client.declare_queue(&spec)).starts_with(locked));
    assert!(text_of(b.client.declare_queue(&QueueSpec { passive: true, ..spec })).starts_with(locked));
    assert!(text_of(b.client.get(b"mine").map(|_| ())).starts_with(locked));
    assert!(text_of(b.client.delete_queue(b"mine", false, false)).starts_with(locked));
    assert!(text_of(b.client.bind(&binding("amq.fanout", "mine", ""))).starts_with(locked));
    b.put("mine", "anybody may publish", false);
    a.consume("mine", false);
    let in_use = text_of(a.client.delete_queue(b"mine", true, false));
    assert_eq!(in_use, "PRECONDITION_FAILED - queue 'mine' in vhost '/' in use");
    a.client.leave();
    assert!(house.queue("mine").is_none(), "a refused deletion does not make it stay for ever");
    b.declare("mine", EXCLUSIVE);
    a.client.leave();
    assert!(house.queue("mine").is_some(), "another one's by the same name");
    drop(b);
    assert!(house.queue("mine").is_none());
    assert_eq!(house.engine.connection_count(), 1);
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    for spec in [TRANSIENT, DURABLE, EXCLUSIVE] {
        a.declare("auto", QueueSpec { auto_delete: true, ..spec });
        a.put("auto", "x", true);
        let (first, second) = (a.consume("auto", false), a.consume("auto", false));
        let mut undelivered = Vec::new();
        a.client.cancel(&first.0, first.1, first.2, &mut undelivered);
        assert_eq!(undelivered.len(), 1);
        a.client.requeue(&first.0, &[Share { consumer: Some(first.1), count: 1 }], undelivered);
        assert!(house.queue("auto").is_some());
        let mut undelivered = Vec::new();
        a.client.cancel(&second.0, second.1, second.2, &mut undelivered);
        assert!(house.queue("auto").is_none());
        let count = undelivered.len();
        a.client.requeue(&second.0, &[Share { consumer: Some(second.1), count }], undelivered);
        assert!(a.client.exclusive.is_empty(), "nothing of it is kept");
    }
    drop(a);
    house.close();
    assert!(House::open(dir.path()).queue("auto").is_none());
}

#[test]
fn a_deleted_queue_tells_its_consumers_and_gives_their_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut a, mut b) = (house.client(), house.client());
    a.declare("q", DURABLE);
    a.declare("other", TRANSIENT);
    a.credit.set_limit(2);
    let (_, _, key) = a.consume("q", false);
    let (_, _, second) = a.consume("q", false);
    let (other, other_id, other_key) = a.consume("other", false);
    for body in ["1", "2", "3"] {
        a.put("q", body, true);
    }
    a.put("other", "waits for room", false);
    let (deleted, barrier) = b.client.delete_queue(b"q", false, false).unwrap();
    assert_eq!(deleted, 1, "what was on its way is not counted");
    b.wait_for(barrier);
    let (waiting, _) = a.drain();
    let told: Vec<u32> = waiting
        .iter()
        .filter_map(|w| if let Waiting::Cancelled(key) = w { Some(*key) } else { None })
        .collect();
    assert_eq!((told, waiting.len()), (vec![key, second], 2));
    a.client.resume(&other, other_id);
    let entries = a.drain().0;
    assert!(matches!(entries.front(), Some(Waiting::Delivery(k, _)) if *k == other_key));
    drop((a, b));
    house.close();
    assert!(House::open(dir.path()).queue("q").is_none());
}

#[test]
fn a_publish_that_comes_to_a_queue_after_its_end_goes_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut a, mut b) = (house.client(), house.client());
    for queue in ["gone", "stays"] {
        a.declare(queue, DURABLE);
        a.bind("amq.fanout", queue, "");
    }
    a.put("gone", "1", true);
    let gone = house.queue("gone").unwrap();
    b.client.delete_queue(b"gone", false, false).unwrap();
    let outcomes = a.publish(vec![publish("", "gone", b"2", true)]);
    assert_eq!(outcomes, [Outcome::Unroutable]);
    // The moment between route and lock: the snapshot still had it.
    let mut late = vec![super::publish::incoming(publish("amq.fanout", "", b"3", true))];
    let stays = house.queue("stays").unwrap();
    house.engine.enqueue(&[gone.clone(), stays].into_iter().collect(), &mut late);
    assert_eq!(gone.counts().ready, 0);
    assert!(late[0].barrier.0 > 0 && !late[0].refused, "the other queue has it");
    a.client.barrier(late[0].barrier);
    a.wait_for(Barrier(late[0].barrier.0));
    assert_eq!(a.take_all("stays"), ["3"]);
    drop((a, b));
    house.close();
    assert_eq!(House::open(dir.path()).engine.totals().messages, 0);
}

#[test]
fn tells_what_cannot_be_routed_and_skips_what_follows_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("q", TRANSIENT);
    let mut quiet = publish("", "nobody", b"", false);
    quiet.mandatory = false;
    let mut elsewhere = publish("", "q", b"another channel", false);
    elsewhere.channel = 2;
    let outcomes = a.publish(vec![
        publish("", "q", b"1", false),
        publish("", "nobody", b"", false),
        quiet,
        publish("", "q", b"2", false),
        publish("amq.rabbitmq.trace", "q", b"", false),
        publish("", "q", b"skipped", false),
        elsewhere,
    ]);
    let texts: Vec<String> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Fault(fault) => fault.reply_text(),
            other => format!("{other:?}"),
        })
        .collect();
    let routed = "Routed(Barrier(0))";
    let internal = "ACCESS_REFUSED - cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'";
    assert_eq!(texts, [routed, "Unroutable", routed, routed, internal, "Skipped", routed]);
    assert_eq!(a.take_all("q"), ["1", "2", "another channel"]);
    let outcomes = a.publish(vec![publish("nope", "q", b"", false)]);
    let Outcome::Fault(fault) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(fault.reply_text(), "NOT_FOUND - no exchange 'nope' in vhost '/'");
}

#[test]
fn a_remembered_route_ends_with_any_change_of_the_topology() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut a, mut b) = (house.client(), house.client());
    a.declare("q", TRANSIENT);
    a.declare("r", TRANSIENT);
    let go = |a: &mut Seat, body: &str| a.publish(vec![publish("amq.direct", "k", body.as_bytes(), false)]);
    assert_eq!(go(&mut a, "lost"), [Outcome::Unroutable]);
    b.bind("amq.direct", "q", "k");
    go(&mut a, "1");
    b.bind("amq.direct", "r", "k");
    go(&mut a, "2");
    b.client.unbind(&binding("amq.direct", "q", "k")).unwrap();
    go(&mut a, "3");
    b.client.delete_queue(b"r", false, false).unwrap();
    assert_eq!(go(&mut a, "lost"), [Outcome::Unroutable]);
    b.declare("r", TRANSIENT);
    assert_eq!(go(&mut a, "lost"), [Outcome::Unroutable], "the new one is not bound");
    assert_eq!(a.put("r", "4", false), Barrier(0));
    assert_eq!((a.take_all("q"), a.take_all("r")), (vec!["1".into(), "2".into()], vec!["4".to_owned()]));
}

#[test]
fn a_full_outbox_leaves_the_rest_in_the_queue_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("q", TRANSIENT);
    let (queue, id, _) = a.consume("q", false);
    let count = 3 * OUTBOX_MESSAGES_MAX;
    a.publish((0..count).map(|n| publish("", "q", n.to_string().as_bytes(), false)).collect());
    let mut got = Vec::new();
    for _ in 0..3 {
        let (waiting, starved) = a.drain();
        assert!(waiting.len() <= OUTBOX_MESSAGES_MAX);
        got.extend(waiting);
        if starved {
            a.client.resume(&queue, id);
        }
    }
    let expected: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    let bodies = got.iter().map(|w| match w {
        Waiting::Delivery(_, entry) => String::from_utf8_lossy(entry.message.body()).into_owned(),
        Waiting::Cancelled(_) | Waiting::Reply(..) => String::new(),
    });
    assert_eq!(bodies.collect::<Vec<_>>(), expected);
}

#[test]
fn a_purge_of_more_than_one_batch_is_whole_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("q", DURABLE);
    let count = PURGE_KEYS_MAX + 100;
    let outcomes = a.publish((0..count).map(|_| publish("", "q", b"x", true)).collect());
    let Some(Outcome::Routed(last)) = outcomes.last() else { panic!("nothing was routed") };
    a.wait_for(*last);
    let held = a.get("q").unwrap().1;
    let (purged, barrier) = a.client.purge_queue(b"q").unwrap();
    assert_eq!(purged as usize, count - 1);
    a.wait_for(barrier);
    assert_eq!(house.queue("q").unwrap().counts().unacked, 1, "what is out stays out");
    drop((a, held));
    house.close();
    assert_eq!(House::open(dir.path()).client().take_all("q"), ["x!"]);
}

#[test]
fn who_waits_for_the_backlog_is_woken_by_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("q", DURABLE);
    for _ in 0..20 {
        a.publish(vec![publish("", "q", &vec![7; 1024 * 1024], true)]);
    }
    // Another connection than the publisher's: no barrier of its own wakes it.
    let b = house.client();
    b.wait_until("an empty backlog", |b| {
        let is_done = house.store.backlog_bytes() == 0;
        if !is_done {
            house.engine.wake_after_commit(&Waker::from(b.outbox.clone()));
        }
        is_done
    });
}

/// Two publish, two consume and now and then give back, cancel and come again, and one deletes what
/// others consume from: each message is settled once.
#[test]
fn every_message_is_delivered_however_consumers_come_and_go() {
    const EACH: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    house.client().declare("q", DURABLE);
    let settled = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for who in 0..2 {
            let mut seat = house.client();
            scope.spawn(move || {
                for n in (0..EACH).step_by(10) {
                    let body = |n: usize| format!("{who} {n}");
                    let batch = (n..n + 10).map(|n| publish("", "q", body(n).as_bytes(), n % 3 == 0));
                    seat.publish(batch.collect());
                }
            });
        }
        for _ in 0..2 {
            let (mut seat, settled) = (house.client(), &settled);
            scope.spawn(move || consume_with_changes(&mut seat, settled, 2 * EACH));
        }
        let mut seat = house.client();
        scope.spawn(move || {
            for _ in 0..200 {
                seat.declare("aside", TRANSIENT);
                seat.put("aside", "dropped", false);
                seat.client.delete_queue(b"aside", false, false).unwrap();
            }
        });
    });
    let mut settled = settled.into_inner().unwrap();
    assert_eq!(settled.len(), 2 * EACH);
    settled.sort();
    settled.dedup();
    assert_eq!(settled.len(), 2 * EACH, "none twice");
    assert_eq!(house.engine.totals().messages, 0);
    house.close();
    assert_eq!(House::open(dir.path()).engine.totals().messages, 0);
}

fn consume_with_changes(seat: &mut Seat, settled: &std::sync::Mutex<Vec<String>>, all: usize) {
    let mut turn = 0;
    let limit = Instant::now() + Duration::from_secs(100);
    while settled.lock().unwrap().len() < all {
        assert!(Instant::now() < limit, "{} of {all}", settled.lock().unwrap().len());
        turn += 1;
        let (queue, id, key) = seat.consume("q", false);
        for round in 0..5 {
            let (waiting, starved) = seat.drain();
            if starved {
                seat.client.resume(&queue, id);
            }
            let mut entries: Vec<_> = waiting
                .into_iter()
                .filter_map(|w| if let Waiting::Delivery(k, entry) = w { Some((k, entry)) } else { None })
                .map(|(k, entry)| {
                    assert_eq!(k, key, "the entry of a consumer that is gone");
                    entry
                })
                .collect();
            let back = entries.split_off(entries.len() - entries.len() / 3);
            let share = Share { consumer: Some(id), count: back.len() };
            if (turn + round) % 2 == 0 && !back.is_empty() {
                seat.client.requeue(&queue, &[share], back);
            } else {
                entries.extend(back);
            }
            let bodies = entries.iter().map(|e| String::from_utf8_lossy(e.message.body()).into_owned());
            settled.lock().unwrap().extend(bodies);
            if !entries.is_empty() {
                seat.client.settle(&queue, Some(id), &mut entries);
            }
            std::thread::yield_now();
        }
        let mut undelivered = Vec::new();
        seat.client.cancel(&queue, id, key, &mut undelivered);
        if !undelivered.is_empty() {
            let share = Share { consumer: Some(id), count: undelivered.len() };
            seat.client.requeue(&queue, &[share], undelivered);
        }
        // Keys are used again, as a session does.
        seat.next_key = key;
    }
}

#[test]
fn a_rejection_after_the_queues_end_is_no_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("dead", DURABLE);
    let arguments = TableWriter::new()
        .entry("x-dead-letter-exchange", Value::LongStr(b""))
        .entry("x-dead-letter-routing-key", Value::LongStr(b"dead"));
    a.declare("q", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    for body in ["1", "2"] {
        a.put("q", body, true);
    }
    let mut take = || a.client.get(b"q").unwrap().unwrap();
    let ((queue, first, _), (_, second, _)) = (take(), take());
    a.client.reject(&queue, None, vec![first]);
    assert_eq!(house.queue("dead").unwrap().counts().ready, 1, "while it is there");
    a.client.delete_queue(b"q", false, false).unwrap();
    a.client.reject(&queue, None, vec![second]);
    assert_eq!(house.queue("dead").unwrap().counts().ready, 1);
}
