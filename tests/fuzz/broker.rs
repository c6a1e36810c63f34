//! A whole broker without sockets: sessions over the engine over a store, fed with what a peer might send.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use sealmq::amqp::field_table::{TableWriter, Value};
use sealmq::amqp::frame::{self, Kind, PROTOCOL_HEADER};
use sealmq::amqp::method::Method;
use sealmq::amqp::properties::ContentHeader;
use sealmq::engine::view::QueueView;
use sealmq::engine::{Client, Engine, Outbox, Permissions, UserSpec};
use sealmq::limits::{CONSUMER_TIMEOUT_MS_DEFAULT, OUTPUT_BYTES_HIGH};
use sealmq::session::port::{Broker, LoginRefused, Mechanism};
use sealmq::session::{Identity, Peer, Session, Settings};
use sealmq::store::{Mode, OpenOptions, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::conversation::{self, FRAME_BYTES_MAX};
use crate::driver::{Target, fingerprint};
use crate::random::Random;

/// Largest body, in bytes.
const MESSAGE_BYTES_MAX: u64 = 64 * 1024;
/// Inputs after which the store is closed and opened again, as a restart does.
const INPUTS_PER_LIFE: usize = 2000;
/// What a session waits for is durable long before.
const STUCK: Duration = Duration::from_secs(20);

/// An engine over a store of its own, in memory where the machine has a file system there.
struct House {
    engine: Arc<Engine>,
    store: Arc<Store>,
    /// times to live and expiries
    clock: Runtime,
    dir: TempDir,
}

impl House {
    fn new() -> House {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let house = House::open(dir);
        let all = Permissions::all();
        let me = UserSpec { name: "me", password: b"secret", tags: &[], permissions: Some(&all) };
        house.engine.ensure_user(&me).expect("a user");
        house
    }

    fn open(dir: TempDir) -> House {
        let options = OpenOptions::new(dir.path().join("store"), Mode::PlainInsecure, None);
        let (store, recovered) = Store::open(options).expect("a store that this program wrote opens");
        assert!(recovered.quarantined.is_empty(), "entries cannot be read back");
        let engine = Engine::start(store.clone(), recovered, "/").expect("what was stored is understood");
        let clock = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
        let clock = clock.expect("a thread");
        clock.spawn(engine.clone().keep_time());
        House { engine, store, clock, dir }
    }

    /// Stops in order and starts again: durable queues are there with what was persistent.
    fn restart(self) -> House {
        let durable = |engine: &Engine| -> Vec<_> {
            let lasts = |queue: &QueueView| {
                queue.durable && !queue.exclusive && queue.arguments.iter().all(|a| a.name != "x-expires")
            };
            engine.queue_views().into_iter().filter(lasts).map(|queue| queue.name).collect()
        };
        let House { engine, store, clock, dir } = self;
        drop(clock);
        let before = durable(&engine);
        engine.note_deliveries();
        store.close().expect("the store closes");
        drop((engine, store));
        let house = House::open(dir);
        assert_eq!(durable(&house.engine), before, "durable queues over a restart");
        house
    }

    /// Takes away what an input has left; false when something has a name that cannot be shown.
    fn clear(&self) -> bool {
        let (mut client, _) = self.engine.connect();
        client.open(b"me", b"/").expect("the user is there");
        for queue in self.engine.queue_views() {
            let _ = client.delete_queue(queue.name.as_bytes(), false, false);
        }
        for exchange in self.engine.exchange_views() {
            if !exchange.name.is_empty() && !exchange.name.starts_with("amq.") {
                let _ = client.delete_exchange(exchange.name.as_bytes(), false);
            }
        }
        drop(client);
        self.engine.queue_views().is_empty() && self.engine.connection_count() == 0
    }
}

fn settings() -> Settings {
    let identity = ["RabbitMQ", "4.0.5", "fuzz"].map(str::to_owned);
    let [product, version, cluster_name] = identity;
    Settings {
        identity: Identity { product, version, cluster_name },
        mechanisms: vec![Mechanism::Plain, Mechanism::AmqPlain, Mechanism::External],
        frame_size_bytes_max: FRAME_BYTES_MAX,
        initial_frame_size_bytes_max: 8192,
        channel_max: 4,
        heartbeat_seconds: 60,
        message_bytes_max: MESSAGE_BYTES_MAX,
        delivery_timeout_ms: CONSUMER_TIMEOUT_MS_DEFAULT,
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// One connection, driven as `net` drives it.
struct Line {
    session: Session<Client>,
    outbox: Arc<Outbox>,
    listener: Listener,
}

impl Line {
    fn new(house: &House, peer: Peer) -> Line {
        let (client, outbox) = house.engine.connect();
        outbox.register(&Waker::from(Arc::new(Unpark(std::thread::current()))));
        Line { session: Session::new(client, settings(), peer), outbox, listener: Listener::default() }
    }

    /// Says all of `bytes` in pieces and hears every answer; `login` is the answer to a login.
    fn say(&mut self, bytes: &[u8], login: Result<(), LoginRefused>) {
        let mut pieces = Random::new(fingerprint(bytes));
        let (mut at, mut given) = (0, 0);
        let mut waits_since = None;
        loop {
            self.outbox.register(&Waker::from(Arc::new(Unpark(std::thread::current()))));
            self.session.handle_kept();
            let paused = self.session.is_paused();
            let used =
                if paused { 0 } else { self.session.handle_bytes(&bytes[at..given], OUTPUT_BYTES_HIGH) };
            at += used;
            if self.session.take_login().is_some() {
                self.session.handle_login(login);
            }
            self.deliver();
            let heard = self.hear();
            if self.session.is_closed() {
                return;
            }
            if self.session.is_paused() {
                // A reply waits for the disk; nothing else pauses a session here.
                let since = *waits_since.get_or_insert_with(Instant::now);
                assert!(since.elapsed() < STUCK, "what a reply waits for does not become durable");
                std::thread::park_timeout(STUCK);
                continue;
            }
            waits_since = None;
            if used == 0 && heard == 0 && !paused {
                if given == bytes.len() {
                    return;
                }
                given = bytes.len().min(given + 1 + pieces.below(2000));
            }
        }
    }

    fn deliver(&mut self) {
        loop {
            if self.session.waiting().is_empty() && self.outbox.drain_into(self.session.waiting()) {
                self.session.resume_all();
            }
            if self.session.waiting().is_empty() || self.session.output().len() >= OUTPUT_BYTES_HIGH {
                return;
            }
            self.session.handle_deliveries(OUTPUT_BYTES_HIGH);
        }
    }

    /// Reads what the session has written; how many bytes.
    fn hear(&mut self) -> usize {
        let limit = self.session.frame_size_bytes_max();
        let output = self.session.output().take();
        self.listener.hear(&output, limit);
        output.len()
    }
}

/// A client's ear: everything that it hears must be whole, in order and make sense.
#[derive(Default)]
struct Listener {
    /// content that has begun, with its channel and the bytes that are missing; `None` before its header
    content: Option<(u16, Option<u64>)>,
    channels: [Heard; 8],
    /// methods and codes, once each
    said: BTreeSet<(u16, u16, u16)>,
}

/// What a channel has heard since it was opened.
#[derive(Default)]
struct Heard {
    delivery_tag: u64,
    confirmed: BTreeSet<u64>,
}

impl Listener {
    fn hear(&mut self, mut rest: &[u8], frame_size_bytes_max: u32) {
        rest = rest.strip_prefix(PROTOCOL_HEADER).unwrap_or(rest);
        while !rest.is_empty() {
            let parsed = frame::parse(rest, u32::MAX).expect("a frame").expect("a whole frame");
            let (frame, used) = parsed;
            assert!(used <= frame_size_bytes_max.max(FRAME_BYTES_MAX) as usize, "a frame of {used} bytes");
            rest = &rest[used..];
            match frame.kind {
                Kind::Heartbeat => {}
                Kind::Method => {
                    assert!(self.content.is_none(), "a method amid a content");
                    let method = Method::decode(frame.payload).expect("a method");
                    self.method(frame.channel, method);
                }
                Kind::Header => {
                    assert_eq!(self.content, Some((frame.channel, None)), "a content header out of place");
                    let header = ContentHeader::decode(frame.payload).expect("a content header");
                    let left = Some((frame.channel, Some(header.body_size)));
                    self.content = if header.body_size == 0 { None } else { left };
                }
                Kind::Body => {
                    let Some((channel, Some(left))) = self.content else { panic!("a body out of place") };
                    let left = left.checked_sub(frame.payload.len() as u64).expect("no more than was said");
                    assert!(channel == frame.channel && !frame.payload.is_empty());
                    self.content = if left == 0 { None } else { Some((channel, Some(left))) };
                }
            }
        }
    }

    fn method(&mut self, number: u16, method: Method<'_>) {
        let (class, id) = method.id();
        let code = match method {
            // Texts name what was asked for; how they begin says what was wrong.
            Method::ChannelClose { reply_text, method_id, .. }
            | Method::ConnectionClose { reply_text, method_id, .. } => {
                fingerprint((reply_text.get(..32).unwrap_or(reply_text), method_id)) as u16
            }
            Method::BasicReturn { reply_code, .. } => reply_code,
            Method::QueueDeclareOk { message_count, .. } => message_count.min(3) as u16,
            _ => 0,
        };
        self.said.insert((class, id, code));
        let channel = &mut self.channels[usize::from(number)];
        match method {
            Method::ChannelOpenOk { .. } => *channel = Heard::default(),
            Method::BasicDeliver { delivery_tag, .. } | Method::BasicGetOk { delivery_tag, .. } => {
                channel.delivery_tag += 1;
                assert_eq!(delivery_tag, channel.delivery_tag, "delivery tags rise by one");
                self.content = Some((number, None));
            }
            Method::BasicReturn { .. } => self.content = Some((number, None)),
            Method::BasicAck { delivery_tag, multiple }
            | Method::BasicNack { delivery_tag, multiple, .. } => {
                let from = if multiple { 1 } else { delivery_tag };
                let is_new = channel.confirmed.insert(delivery_tag);
                assert!(is_new && delivery_tag > 0, "publish {delivery_tag} is answered twice");
                channel.confirmed.extend(from..delivery_tag);
            }
            _ => {}
        }
    }
}

/// A broker that lasts for many inputs.
struct Lives {
    house: Option<House>,
    inputs: usize,
}

impl Lives {
    fn new() -> Lives {
        Lives { house: Some(House::new()), inputs: 0 }
    }

    /// Lets `with` use the broker, then looks at what is left of it.
    fn live<T>(&mut self, with: impl FnOnce(&House) -> T) -> T {
        let house = self.house.as_ref().expect("it is there between inputs");
        let done = with(house);
        assert!(house.store.failure().is_none(), "a peer has stopped the store");
        for queue in house.engine.queue_views() {
            assert!(!queue.exclusive, "{} outlives its connection", queue.name);
            assert_eq!((queue.messages_unacknowledged, queue.consumers), (0, 0), "{}", queue.name);
        }
        done
    }

    /// Clears away what an input has left, or begins a new life.
    fn go_on(&mut self) {
        let house = self.house.take().expect("it is there between inputs");
        self.inputs += 1;
        let house = if self.inputs.is_multiple_of(INPUTS_PER_LIFE) { house.restart() } else { house };
        self.house = Some(if house.clear() { house } else { House::new() });
    }
}

fn start_ok(mechanism: &[u8], response: &[u8]) -> Vec<u8> {
    let capabilities = ["consumer_cancel_notify", "connection.blocked", "authentication_failure_close"]
        .iter()
        .fold(TableWriter::new(), |table, name| table.entry(name, Value::Bool(true)));
    let properties = TableWriter::new().entry("capabilities", Value::Table(capabilities.as_table()));
    let mut out = Vec::new();
    let client_properties = properties.as_table();
    let start_ok = Method::ConnectionStartOk { client_properties, mechanism, response, locale: b"en_US" };
    frame::write_method(&mut out, 0, &start_ok);
    out
}

fn opening() -> Vec<u8> {
    let mut out = PROTOCOL_HEADER.to_vec();
    out.extend(start_ok(b"PLAIN", b"\0me\0secret"));
    let tune = Method::ConnectionTuneOk { channel_max: 4, frame_max: FRAME_BYTES_MAX, heartbeat: 60 };
    frame::write_method(&mut out, 0, &tune);
    let open = Method::ConnectionOpen { virtual_host: b"/", capabilities: b"", insist: false };
    frame::write_method(&mut out, 0, &open);
    out
}

/// Memory of a broker at work beyond what one input asks for: the outbox, the committer's batch, queues'
/// and connections' first buffers.
const BROKER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A conversation after the handshake.
pub struct Conversation(Lives);

impl Conversation {
    pub fn new() -> Conversation {
        Conversation(Lives::new())
    }
}

impl Target for Conversation {
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        conversation::generate(random)
    }

    fn mutate(&mut self, random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
        conversation::mutate(random, input, other);
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        self.0.live(|house| {
            let mut line = Line::new(house, Peer { is_loopback: true, certificate_name: None });
            line.say(&opening(), Ok(()));
            assert!(line.session.is_open());
            line.say(input, Ok(()));
            line.session.release_everything();
            line.hear();
            fingerprint(&line.listener.said)
        })
    }

    fn clean_up(&mut self) {
        self.0.go_on();
    }

    fn memory_bytes_max(&self, input: &[u8]) -> usize {
        BROKER_BYTES_MAX + 64 * input.len()
    }
}

/// A connection from its first byte; the first byte of the input says whether logins are right.
pub struct Handshake(Lives);

impl Handshake {
    pub fn new() -> Handshake {
        Handshake(Lives::new())
    }
}

impl Target for Handshake {
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut input = vec![random.u64() as u8];
        input.extend_from_slice(match random.below(8) {
            0 => b"AMQP\x01\x01\x00\x09",
            1 => b"AMQP\x03\x01\x00\x00",
            _ => PROTOCOL_HEADER,
        });
        let login = TableWriter::new()
            .entry("LOGIN", Value::LongStr(b"me"))
            .entry("PASSWORD", Value::LongStr(b"secret"));
        let (mechanism, response) = match random.below(6) {
            0 => (&b"AMQPLAIN"[..], login.as_table().raw()),
            1 => (&b"EXTERNAL"[..], &b""[..]),
            2 => (&b"SCRAM"[..], &b"n,,n=me"[..]),
            _ => (&b"PLAIN"[..], &b"\0me\0secret"[..]),
        };
        input.extend(start_ok(mechanism, response));
        let numbers = [(); 3].map(|()| random.number());
        let tune = match random.once_in(2) {
            true => (4, FRAME_BYTES_MAX, 60),
            false => (numbers[0] as u16, numbers[1] as u32, numbers[2] as u16),
        };
        let tune = Method::ConnectionTuneOk { channel_max: tune.0, frame_max: tune.1, heartbeat: tune.2 };
        frame::write_method(&mut input, 0, &tune);
        let virtual_host = random.pick(&["/", "/", "/", "nope", ""]).as_bytes();
        let open = Method::ConnectionOpen { virtual_host, capabilities: b"", insist: false };
        frame::write_method(&mut input, 0, &open);
        frame::write_method(&mut input, 1, &Method::ChannelOpen { out_of_band: b"" });
        input
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let (flags, bytes) = input.split_first().unwrap_or((&0, b""));
        let certificate_name = (flags & 2 != 0).then(|| "me".to_owned());
        let login = if flags & 1 == 0 { Ok(()) } else { Err(LoginRefused) };
        self.0.live(|house| {
            let mut line = Line::new(house, Peer { is_loopback: flags & 4 != 0, certificate_name });
            line.say(bytes, login);
            line.session.release_everything();
            line.hear();
            fingerprint((&line.listener.said, line.session.is_open(), line.session.bad_header()))
        })
    }

    fn clean_up(&mut self) {
        self.0.go_on();
    }

    fn memory_bytes_max(&self, input: &[u8]) -> usize {
        BROKER_BYTES_MAX + 64 * input.len()
    }
}
