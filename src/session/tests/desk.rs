//! What session tests share: a broker made of plain data, and a talk with a session in which what it says
//! is read as short lines such as `1 basic.ack 3 multiple`. No store, no tasks, no claims of its own.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use crate::amqp::field_table::{Table, TableWriter, Value};
use crate::amqp::frame::{self, Kind, PROTOCOL_HEADER};
use crate::amqp::method::Method;
use crate::amqp::properties::{ContentHeader, Properties};
use crate::amqp::reply_code::ReplyCode;
use crate::broker::credit::ChannelCredit;
use crate::broker::fault::{Fault, lossy};
use crate::broker::queue::{ConsumerId, ConsumerOptions, Entry, Queue, Rules, Sink};
use crate::session::port::{
    Barrier, BindingSpec, Broker, ConsumeSpec, Declared, ExchangeSpec, Got, LoginRefused, Mechanism, Outcome,
    Planned, Publish, QueueSpec, ReplyTo, RouteNumber, Settled, Share, Waiting,
};
use crate::session::{Identity, Peer, Session, Settings};

type Outbox = Rc<RefCell<VecDeque<Waiting<()>>>>;

/// A consumer's place in the desk's one outbox.
#[derive(Clone)]
struct Slot {
    key: u32,
    outbox: Outbox,
    credit: Option<Arc<ChannelCredit>>,
}

impl Sink<()> for Slot {
    fn take(&self, max: usize, mut next: impl FnMut() -> Option<Entry<()>>) -> usize {
        let mut taken = 0;
        while taken < max && self.credit.as_ref().is_none_or(|credit| credit.take()) {
            let Some(entry) = next() else { break };
            self.outbox.borrow_mut().push_back(Waiting::Delivery(self.key, entry));
            taken += 1;
        }
        taken
    }

    fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.outbox, &other.outbox)
    }
}

/// Queues and what was asked, for tests to look at.
#[derive(Default)]
pub struct Books {
    queues: HashMap<Vec<u8>, Queue<(), Slot>>,
    outbox: Outbox,
    /// what the session asked, in order
    pub log: Vec<String>,
    pub durable: u64,
    pub last_barrier: u64,
    pub has_failed: bool,
    pub may_impersonate: bool,
    names: u32,
    /// what else than the message each publish was
    pub published: Vec<String>,
    /// exchange and routing key by their numbers
    pub routes: HashMap<RouteNumber, [Vec<u8>; 2]>,
    /// of queues that have one
    pub timeouts_ms: HashMap<Vec<u8>, u64>,
    /// addresses that take replies
    pub replies: HashMap<Vec<u8>, ReplyTo>,
}

impl Books {
    fn next_barrier(&mut self) -> Barrier {
        self.last_barrier += 1;
        Barrier(self.last_barrier)
    }

    fn enqueue(&mut self, publish: Publish) -> Outcome {
        let name = publish.message.routing_key().to_vec();
        let names = [publish.message.exchange().to_vec(), name.clone()];
        let known = self.routes.entry(publish.route).or_insert_with(|| names.clone());
        assert_eq!(*known, names, "a number stands for one exchange and routing key");
        assert_eq!(publish.has_copies, publish.message.has_copies());
        let Publish { mandatory, persistent, priority, expiration_ms, .. } = publish;
        self.published.push(format!("{mandatory} {persistent} {priority} {expiration_ms:?}"));
        match publish.message.exchange() {
            b"" => {}
            other => return Outcome::Fault(Fault::no_exchange(other, "/")),
        }
        if name == b"full" {
            return Outcome::Refused;
        }
        let barrier = if publish.persistent { self.next_barrier() } else { Barrier(0) };
        if let Some(to) = self.replies.get(&name) {
            self.outbox.borrow_mut().push_back(Waiting::Reply(*to, publish.message));
            return Outcome::Routed(Barrier(0));
        }
        let Some(queue) = self.queues.get_mut(&name) else {
            return if publish.mandatory { Outcome::Unroutable } else { Outcome::Routed(Barrier(0)) };
        };
        let seq = queue.next_seq();
        let message = publish.message;
        queue.push(Entry::new(seq, message, ()));
        queue.assign(0, &mut Vec::new(), &mut Vec::new());
        Outcome::Routed(barrier)
    }

    /// Ready and unacknowledged messages of a queue.
    pub fn counts(&self, queue: &str) -> (usize, usize) {
        let counts = self.queues.get(queue.as_bytes()).map(Queue::counts).unwrap_or_default();
        (counts.ready, counts.unacked)
    }

    /// Takes what is ready, as it is stored.
    pub fn messages(&mut self, queue: &str) -> Vec<Vec<u8>> {
        let Some(queue) = self.queues.get_mut(queue.as_bytes()) else { return Vec::new() };
        queue.purge().entries.iter().map(|entry| entry.message.as_bytes().to_vec()).collect()
    }

    /// Takes what is ready, as `body` or `body!` when it is redelivered.
    pub fn drain(&mut self, queue: &str) -> Vec<String> {
        let Some(queue) = self.queues.get_mut(queue.as_bytes()) else { return Vec::new() };
        let entries = queue.purge().entries.into_iter();
        entries.map(|e| format!("{}{}", lossy(e.message.body()), mark(e.redelivered))).collect()
    }
}

fn mark(redelivered: bool) -> &'static str {
    if redelivered { "!" } else { "" }
}

/// The broker as plain data; tests keep a second handle to its books.
pub struct Desk(pub Rc<RefCell<Books>>);

impl Broker for Desk {
    type Queue = Vec<u8>;
    type Durable = ();

    fn vhost(&self) -> &str {
        "/"
    }

    fn open(&mut self, user: &[u8], vhost: &[u8]) -> Result<(), Fault> {
        self.0.borrow_mut().log.push(format!("open {}", lossy(user)));
        let refused = || Fault::new(ReplyCode::NotAllowed, format!("vhost {} not found", lossy(vhost)));
        (vhost == b"/").then_some(()).ok_or_else(refused)
    }

    fn may_impersonate(&self) -> bool {
        self.0.borrow().may_impersonate
    }

    fn kept(&self) -> Barrier {
        Barrier(self.0.borrow().durable)
    }

    fn has_failed(&self) -> bool {
        self.0.borrow().has_failed
    }

    fn publish(&mut self, batch: &mut Vec<Publish>, outcomes: &mut Vec<Outcome>) {
        let mut books = self.0.borrow_mut();
        books.log.push(format!("publish {}", batch.len()));
        let mut closed = Vec::new();
        for publish in batch.drain(..) {
            let channel = publish.channel;
            let outcome = if closed.contains(&channel) { Outcome::Skipped } else { books.enqueue(publish) };
            if let Outcome::Fault(_) = outcome {
                closed.push(channel);
            }
            outcomes.push(outcome);
        }
    }

    fn declare_exchange(&mut self, _: &ExchangeSpec<'_>) -> Result<Barrier, Fault> {
        Ok(self.0.borrow_mut().next_barrier())
    }

    fn delete_exchange(&mut self, name: &[u8], _: bool) -> Result<Barrier, Fault> {
        Err(Fault::no_exchange(name, "/"))
    }

    fn bind(&mut self, spec: &BindingSpec<'_>) -> Result<Barrier, Fault> {
        let mut books = self.0.borrow_mut();
        books.log.push(format!("bind {} {}", lossy(spec.destination), lossy(spec.routing_key)));
        Ok(Barrier(0))
    }

    fn unbind(&mut self, _: &BindingSpec<'_>) -> Result<Barrier, Fault> {
        Ok(Barrier(0))
    }

    fn declare_queue(&mut self, spec: &QueueSpec<'_>) -> Result<Declared, Fault> {
        let mut books = self.0.borrow_mut();
        if spec.passive && !books.queues.contains_key(spec.name) {
            return Err(Fault::no_queue(spec.name, "/"));
        }
        let barrier = if spec.durable { books.next_barrier() } else { Barrier(0) };
        let counts =
            books.queues.entry(spec.name.to_vec()).or_insert_with(|| Queue::new(Rules::default())).counts();
        let (message_count, consumer_count) = (counts.ready as u32, counts.consumers as u32);
        Ok(Declared { name: spec.name.to_vec(), message_count, consumer_count, barrier })
    }

    fn purge_queue(&mut self, name: &[u8]) -> Result<(u32, Barrier), Fault> {
        let mut books = self.0.borrow_mut();
        let queue = books.queues.get_mut(name).ok_or_else(|| Fault::no_queue(name, "/"))?;
        Ok((queue.purge().count() as u32, Barrier(0)))
    }

    fn delete_queue(&mut self, name: &[u8], _: bool, _: bool) -> Result<(u32, Barrier), Fault> {
        let mut books = self.0.borrow_mut();
        let Some(mut queue) = books.queues.remove(name) else { return Ok((0, Barrier(0))) };
        let (left, sinks) = queue.delete();
        for sink in sinks {
            books.outbox.borrow_mut().push_back(Waiting::Cancelled(sink.key));
        }
        Ok((left.count() as u32, Barrier(0)))
    }

    fn consume(&mut self, spec: &ConsumeSpec<'_>) -> Result<(Vec<u8>, ConsumerId), Fault> {
        let mut books = self.0.borrow_mut();
        let credit = (!spec.no_ack).then(|| spec.credit.clone());
        let slot = Slot { key: spec.key, outbox: books.outbox.clone(), credit };
        let queue = books.queues.get_mut(spec.queue).ok_or_else(|| Fault::no_queue(spec.queue, "/"))?;
        let options = ConsumerOptions {
            prefetch: spec.prefetch,
            no_ack: spec.no_ack,
            exclusive: spec.exclusive,
            priority: 0,
        };
        let refused = |_| Fault::new(ReplyCode::AccessRefused, "in exclusive use");
        let id = queue.add_consumer(slot, options).map_err(refused)?;
        queue.assign(0, &mut Vec::new(), &mut Vec::new());
        Ok((spec.queue.to_vec(), id))
    }

    fn cancel(&mut self, queue: &Vec<u8>, id: ConsumerId, key: u32, undelivered: &mut Vec<Entry<()>>) {
        let mut books = self.0.borrow_mut();
        books.queues.get_mut(queue).into_iter().for_each(|queue| {
            queue.remove_consumer(id);
        });
        let waiting = std::mem::take(&mut *books.outbox.borrow_mut());
        for item in waiting {
            match item {
                Waiting::Delivery(k, entry) if k == key => undelivered.push(entry),
                Waiting::Cancelled(k) if k == key => {}
                other => books.outbox.borrow_mut().push_back(other),
            }
        }
    }

    fn delivery_timeout_ms(&self, queue: &Vec<u8>, arguments: Table<'_>) -> Option<u64> {
        match arguments.find(b"x-consumer-timeout") {
            Some(Value::I64(ms)) => u64::try_from(ms).ok(),
            _ => self.0.borrow().timeouts_ms.get(queue).copied(),
        }
    }

    fn open_replies(&mut self, to: ReplyTo) -> Result<Vec<u8>, Fault> {
        let address = self.unique_name("amq.rabbitmq.reply-to.")?;
        self.0.borrow_mut().replies.insert(address.clone(), to);
        Ok(address)
    }

    fn close_replies(&mut self, address: &[u8]) {
        self.0.borrow_mut().replies.remove(address);
    }

    fn get(&mut self, name: &[u8]) -> Result<Got<Self>, Fault> {
        let mut books = self.0.borrow_mut();
        let queue = books.queues.get_mut(name).ok_or_else(|| Fault::no_queue(name, "/"))?;
        let entry = queue.get();
        let left = queue.counts().ready as u32;
        Ok(entry.map(|entry| (name.to_vec(), entry, left)))
    }

    fn settle(&mut self, name: &Vec<u8>, consumer: Option<ConsumerId>, entries: &mut Vec<Entry<()>>) {
        let mut books = self.0.borrow_mut();
        books.log.push(format!("settle {} {}", lossy(name), entries.len()));
        if let Some(queue) = books.queues.get_mut(name) {
            queue.settle(consumer, entries.len());
            queue.assign(0, &mut Vec::new(), &mut Vec::new());
        }
        entries.clear();
    }

    fn reject(&mut self, name: &Vec<u8>, consumer: Option<ConsumerId>, mut entries: Vec<Entry<()>>) {
        self.settle(name, consumer, &mut entries);
    }

    fn check_exchange(&mut self, exchange: &[u8]) -> Result<(), Fault> {
        if exchange.is_empty() { Ok(()) } else { Err(Fault::no_exchange(exchange, "/")) }
    }

    fn plan(&mut self, publish: Publish) -> Result<Planned<Vec<u8>>, Fault> {
        self.check_exchange(publish.message.exchange())?;
        Ok(Planned { publish, queues: Some(Default::default()) })
    }

    fn commit(
        &mut self,
        publishes: Vec<Planned<Vec<u8>>>,
        acknowledged: Vec<Settled<Self>>,
    ) -> Result<(Vec<Outcome>, Barrier), Fault> {
        let publishes = publishes.into_iter().map(|planned| planned.publish);
        let outcomes = publishes.map(|p| self.0.borrow_mut().enqueue(p)).collect();
        for Settled { queue, consumer, entry } in acknowledged {
            self.settle(&queue, consumer, &mut vec![entry]);
        }
        Ok((outcomes, self.0.borrow_mut().next_barrier()))
    }

    fn requeue(&mut self, name: &Vec<u8>, shares: &[Share], entries: Vec<Entry<()>>) {
        let mut books = self.0.borrow_mut();
        assert_eq!(shares.iter().map(|share| share.count).sum::<usize>(), entries.len());
        books.log.push(format!("requeue {} {}", lossy(name), entries.len()));
        if let Some(queue) = books.queues.get_mut(name) {
            shares.iter().for_each(|share| queue.settle(share.consumer, share.count));
            queue.requeue(entries, &mut Vec::new());
            queue.assign(0, &mut Vec::new(), &mut Vec::new());
        }
    }

    fn counts_deliveries(&self, name: &Vec<u8>) -> bool {
        self.0.borrow().queues.get(name).is_some_and(|queue| queue.rules().queue_type.counts_deliveries())
    }

    fn settles_in_order(&self, name: &Vec<u8>) -> bool {
        self.0.borrow().queues.get(name).is_some_and(|queue| queue.rules().deduplication_header.is_some())
    }

    fn resume(&mut self, name: &Vec<u8>, consumer: ConsumerId) {
        let mut books = self.0.borrow_mut();
        if let Some(queue) = books.queues.get_mut(name) {
            queue.resume(consumer);
            queue.assign(0, &mut Vec::new(), &mut Vec::new());
        }
    }

    fn unique_name(&mut self, prefix: &str) -> Result<Vec<u8>, Fault> {
        let mut books = self.0.borrow_mut();
        books.names += 1;
        Ok(format!("{prefix}{}", books.names).into_bytes())
    }

    fn leave(&mut self) {
        let mut books = self.0.borrow_mut();
        if books.log.last().is_none_or(|last| last != "leave") {
            books.log.push("leave".to_owned());
        }
    }
}

/// A client at a session.
pub struct Talk {
    pub session: Session<Desk>,
    pub books: Rc<RefCell<Books>>,
    /// written by the client and not yet sent
    pub input: Vec<u8>,
}

pub const FRAME_BYTES_MAX: u32 = 4096;

pub fn settings() -> Settings {
    Settings {
        identity: Identity {
            product: "RabbitMQ".to_owned(),
            version: "4.0.5".to_owned(),
            cluster_name: "test".to_owned(),
        },
        mechanisms: vec![Mechanism::Plain, Mechanism::AmqPlain, Mechanism::External],
        frame_size_bytes_max: FRAME_BYTES_MAX,
        initial_frame_size_bytes_max: 8192,
        channel_max: 10,
        heartbeat_seconds: 60,
        message_bytes_max: 1000,
        delivery_timeout_ms: 0,
    }
}

impl Talk {
    /// At the first byte.
    pub fn begin_with(settings: Settings, peer: Peer) -> Talk {
        let books = Rc::new(RefCell::new(Books::default()));
        Talk { session: Session::new(Desk(books.clone()), settings, peer), books, input: Vec::new() }
    }

    /// Logged in, with channel 1 open and the queue `q`; what was said until then is read.
    pub fn open() -> Talk {
        Talk::open_with(&["consumer_cancel_notify", "connection.blocked", "authentication_failure_close"])
    }

    pub fn open_with(capabilities: &[&str]) -> Talk {
        Talk::open_as(settings(), Peer::default(), capabilities)
    }

    pub fn open_as(settings: Settings, peer: Peer, capabilities: &[&str]) -> Talk {
        Talk::begin_with(settings, peer).opened(capabilities)
    }

    /// From the first byte to channel 1.
    pub fn opened(self, capabilities: &[&str]) -> Talk {
        let mut talk = self;
        talk.input.extend_from_slice(PROTOCOL_HEADER);
        talk.start_ok(capabilities).send();
        assert!(talk.session.take_login().is_some());
        talk.session.handle_login(Ok(()));
        let open = Method::ConnectionOpen { virtual_host: b"/", capabilities: b"", insist: false };
        talk.tune_ok().method(0, open);
        talk.method(1, Method::ChannelOpen { out_of_band: b"" }).declare(1, "q").send();
        let said = talk.said();
        assert_eq!(said.last().unwrap(), "1 queue.declare-ok q 0", "{said:?}");
        talk
    }

    pub fn refuse_login(&mut self) {
        assert!(self.session.take_login().is_some());
        self.session.handle_login(Err(LoginRefused));
    }

    // ---- what the client writes; nothing is sent before `send`

    pub fn method(&mut self, channel: u16, method: Method<'_>) -> &mut Talk {
        frame::write_method(&mut self.input, channel, &method);
        self
    }

    pub fn start_ok(&mut self, capabilities: &[&str]) -> &mut Talk {
        let can = capabilities.iter().fold(TableWriter::new(), |t, name| t.entry(name, Value::Bool(true)));
        let properties = TableWriter::new().entry("capabilities", Value::Table(can.as_table()));
        self.method(
            0,
            Method::ConnectionStartOk {
                client_properties: properties.as_table(),
                mechanism: b"PLAIN",
                response: b"\0me\0secret",
                locale: b"en_US",
            },
        )
    }

    pub fn tune_ok(&mut self) -> &mut Talk {
        self.method(
            0,
            Method::ConnectionTuneOk { channel_max: 10, frame_max: FRAME_BYTES_MAX, heartbeat: 60 },
        )
    }

    pub fn declare(&mut self, channel: u16, queue: &str) -> &mut Talk {
        self.declare_as(channel, queue, false)
    }

    pub fn declare_as(&mut self, channel: u16, queue: &str, durable: bool) -> &mut Talk {
        self.method(
            channel,
            Method::QueueDeclare {
                ticket: 0,
                queue: queue.as_bytes(),
                passive: false,
                durable,
                exclusive: false,
                auto_delete: false,
                no_wait: false,
                arguments: Table::default(),
            },
        )
    }

    pub fn begin_publish(&mut self, channel: u16, exchange: &str, key: &str, mandatory: bool) -> &mut Talk {
        let (exchange, routing_key) = (exchange.as_bytes(), key.as_bytes());
        self.method(
            channel,
            Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory, immediate: false },
        )
    }

    /// A transient publish to the queue of that name.
    pub fn publish(&mut self, channel: u16, key: &str, body: &str) -> &mut Talk {
        self.begin_publish(channel, "", key, false).content(channel, Properties::default(), body)
    }

    pub fn publish_persistent(&mut self, channel: u16, key: &str, body: &str) -> &mut Talk {
        let persistent = Properties { delivery_mode: Some(2), ..Properties::default() };
        self.begin_publish(channel, "", key, false).content(channel, persistent, body)
    }

    pub fn content(&mut self, channel: u16, properties: Properties<'_>, body: &str) -> &mut Talk {
        let mut block = Vec::new();
        properties.encode(&mut block);
        self.block(channel, &block, body)
    }

    /// The same for properties that are encoded already.
    pub fn block(&mut self, channel: u16, properties: &[u8], body: &str) -> &mut Talk {
        frame::write_content(&mut self.input, channel, properties, body.as_bytes(), FRAME_BYTES_MAX);
        self
    }

    /// A content header frame alone.
    pub fn header(&mut self, channel: u16, class_id: u16, body_size: u64) -> &mut Talk {
        let mut payload = Vec::new();
        payload.extend_from_slice(&class_id.to_be_bytes());
        payload.extend_from_slice(&[0, 0]);
        payload.extend_from_slice(&body_size.to_be_bytes());
        payload.extend_from_slice(&[0, 0]);
        self.frame(2, channel, &payload)
    }

    pub fn body(&mut self, channel: u16, piece: &[u8]) -> &mut Talk {
        self.frame(3, channel, piece)
    }

    pub fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> &mut Talk {
        self.input.push(kind);
        self.input.extend_from_slice(&channel.to_be_bytes());
        self.input.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        self.input.extend_from_slice(payload);
        self.input.push(0xCE);
        self
    }

    pub fn consume(&mut self, channel: u16, queue: &str, tag: &str, no_ack: bool) -> &mut Talk {
        self.method(
            channel,
            Method::BasicConsume {
                ticket: 0,
                queue: queue.as_bytes(),
                consumer_tag: tag.as_bytes(),
                no_local: false,
                no_ack,
                exclusive: false,
                no_wait: false,
                arguments: Table::default(),
            },
        )
    }

    pub fn get(&mut self, channel: u16, queue: &str, no_ack: bool) -> &mut Talk {
        self.method(channel, Method::BasicGet { ticket: 0, queue: queue.as_bytes(), no_ack })
    }

    pub fn ack(&mut self, channel: u16, delivery_tag: u64) -> &mut Talk {
        self.method(channel, Method::BasicAck { delivery_tag, multiple: false })
    }

    pub fn channel_close(&mut self, channel: u16) -> &mut Talk {
        let close = Method::ChannelClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 };
        self.method(channel, close)
    }

    pub fn times(&mut self, count: usize, write: impl Fn(&mut Talk) -> &mut Talk) -> &mut Talk {
        for _ in 0..count {
            write(self);
        }
        self
    }

    // ---- what passes between them

    /// Sends what was written, as far as the session takes it.
    pub fn send(&mut self) -> &mut Talk {
        let used = self.session.handle_bytes(&self.input, usize::MAX);
        self.input.drain(..used);
        self
    }

    /// Moves what queues have assigned to the wire.
    pub fn deliver(&mut self) -> &mut Talk {
        let outbox = self.books.borrow().outbox.clone();
        while !outbox.borrow().is_empty() {
            self.session.waiting().append(&mut outbox.borrow_mut());
            self.session.handle_deliveries(usize::MAX);
        }
        self
    }

    /// What came from the outbox is with the session, and no byte of it is encoded.
    pub fn take_from_outbox(&mut self) -> &mut Talk {
        let outbox = self.books.borrow().outbox.clone();
        self.session.waiting().append(&mut outbox.borrow_mut());
        self
    }

    pub fn commit(&mut self, durable: u64) -> &mut Talk {
        self.books.borrow_mut().durable = durable;
        self.session.handle_kept();
        self
    }

    /// What the session has said since, one line for each method, with the body of its content.
    pub fn said(&mut self) -> Vec<String> {
        let output = self.session.output().take();
        let mut rest = output.strip_prefix(PROTOCOL_HEADER).unwrap_or(&output);
        let mut lines: Vec<String> = Vec::new();
        if rest.len() < output.len() {
            lines.push("header".to_owned());
        }
        while !rest.is_empty() {
            let (frame, used) = frame::parse(rest, u32::MAX - 8).unwrap().unwrap();
            rest = &rest[used..];
            match frame.kind {
                Kind::Method => {
                    lines.push(format!(
                        "{} {}",
                        frame.channel,
                        described(Method::decode(frame.payload).unwrap())
                    ));
                }
                Kind::Header => {
                    let header = ContentHeader::decode(frame.payload).unwrap();
                    lines.last_mut().unwrap().push_str(if header.body_size == 0 { " (empty)" } else { " " });
                }
                Kind::Body => lines.last_mut().unwrap().push_str(&lossy(frame.payload)),
                Kind::Heartbeat => lines.push("heartbeat".to_owned()),
            }
        }
        lines
    }

    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.books.borrow_mut().log)
    }
}

fn described(method: Method<'_>) -> String {
    let name = method.name();
    match method {
        Method::BasicAck { delivery_tag, multiple } => {
            format!("{name} {delivery_tag}{}", if multiple { " multiple" } else { "" })
        }
        Method::BasicNack { delivery_tag, .. } => format!("{name} {delivery_tag}"),
        Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, .. } => {
            format!("{name} {} {delivery_tag}{}", lossy(consumer_tag), mark(redelivered))
        }
        Method::BasicGetOk { delivery_tag, redelivered, message_count, .. } => {
            format!("{name} {delivery_tag}{} of {message_count} more", mark(redelivered))
        }
        Method::BasicReturn { reply_code, reply_text, .. } => {
            format!("{name} {reply_code} {}", lossy(reply_text))
        }
        Method::BasicConsumeOk { consumer_tag }
        | Method::BasicCancelOk { consumer_tag }
        | Method::BasicCancel { consumer_tag, .. } => format!("{name} {}", lossy(consumer_tag)),
        Method::QueueDeclareOk { queue, message_count, .. } => {
            format!("{name} {} {message_count}", lossy(queue))
        }
        Method::ConnectionBlocked { reason } => format!("{name} {}", lossy(reason)),
        Method::ChannelClose { reply_code, reply_text, class_id, method_id }
        | Method::ConnectionClose { reply_code, reply_text, class_id, method_id } => {
            format!("{name} {reply_code} {} ({class_id}, {method_id})", lossy(reply_text))
        }
        _ => name.to_owned(),
    }
}
