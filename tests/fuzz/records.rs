//! What a store gives back: bytes of a disk that somebody may have changed, behind the seal or before it.

use std::sync::Arc;

use minicbor::Encoder;
use minicbor::encode::Error;
use sealmq::amqp::properties::Properties;
use sealmq::broker::id::RowId;
use sealmq::broker::message::Message;
use sealmq::engine::Engine;
use sealmq::seal::keyring::{Keyring, SealedKeyring};
use sealmq::seal::slot_key::{Cost, SlotKey};
use sealmq::seal::{Kek, envelope};
use sealmq::store::{Mode, OpenOptions, Recovered, Row, RowKind, Store, kek_from_text, read_as_each};
use tempfile::TempDir;

use crate::driver::{Target, fingerprint};
use crate::random::Random;
use crate::wire;

/// The first byte says what the others are.
pub struct Records {
    store: Arc<Store>,
    keyring: Vec<u8>,
    _dir: TempDir,
}

/// Kinds of input: message, envelope, keyring, plaintext, row.
const KINDS: usize = 5;

impl Records {
    pub fn new() -> Records {
        let dir = tempfile::tempdir().expect("a folder");
        let options = OpenOptions::new(dir.path().join("store"), Mode::PlainInsecure, None);
        let (store, _) = Store::open(options).expect("a new store");
        let key = SlotKey::new(kek().into(), Cost::DEFAULT).expect("a key");
        let keyring = Keyring::create(&key, [7; 16]).and_then(|keyring| keyring.encode()).expect("a keyring");
        Records { store, keyring, _dir: dir }
    }

    /// The engine starts with one row of each kind of these bytes, or says which one it cannot read.
    fn start(&self, text: &[u8]) -> u64 {
        let kinds = [RowKind::Exchange, RowKind::Queue, RowKind::Binding, RowKind::User, RowKind::Policy];
        let started = kinds.map(|kind| {
            let rows = vec![Row { kind, id: RowId(1), plaintext: text.to_vec() }];
            let recovered = Recovered {
                rows,
                queues: Vec::new(),
                clean: true,
                quarantined: Vec::new(),
                faults: Vec::new(),
                created: false,
            };
            match Engine::start(self.store.clone(), recovered, "/") {
                Ok(engine) => (engine.queue_views().len(), engine.exchange_views().len()),
                Err(error) => {
                    (usize::MAX, fingerprint(error.to_string().chars().take(60).collect::<String>()) as usize)
                }
            }
        });
        fingerprint(started)
    }
}

fn kek() -> Kek {
    kek_from_text("fuzz", &"0123456789abcdef".repeat(4)).expect("a key")
}

fn row(random: &mut Random) -> Result<Vec<u8>, Error<std::convert::Infallible>> {
    let table = wire::table(random, 2);
    let (arguments, name) = (table.as_table().raw(), random.bytes(10));
    let mut out = Encoder::new(Vec::new());
    match random.below(4) {
        0 => {
            let kind = random.pick(&["direct", "fanout", "topic", "headers", "x-nope"]);
            out.array(5)?.bytes(&name)?.str(kind)?.bool(false)?.bool(true)?.bytes(arguments)?;
        }
        1 => drop(out.array(3)?.bytes(&name)?.bool(true)?.bytes(arguments)?),
        2 => {
            let source = random.pick(&["amq.topic", "amq.headers", "x1", ""]).as_bytes();
            out.array(5)?
                .bytes(source)?
                .bytes(&name)?
                .bool(random.once_in(2))?
                .bytes(b"k")?
                .bytes(arguments)?;
        }
        _ => drop(out.array(3)?.str("me")?.str("$argon2id$")?.array(1)?.str("administrator")?),
    }
    Ok(out.into_writer())
}

fn message(random: &mut Random) -> Message {
    let (exchange, key, body) = (random.bytes(10), random.bytes(10), random.bytes(100));
    Message::new(&exchange, &key, &random.bytes(30), &[&body])
}

/// An entry with its message, a body, counters: by the layout, with odd numbers in it.
fn plaintext(random: &mut Random) -> Vec<u8> {
    let message = message(random);
    let mut out = Vec::new();
    match random.below(3) {
        0 => {
            (0..3).for_each(|_| out.extend_from_slice(&random.number().to_be_bytes()));
            let (bytes, chunks) = (message.size_bytes() as u32, random.number() as u32);
            out.extend_from_slice(&bytes.to_be_bytes());
            out.extend_from_slice(&chunks.to_be_bytes());
            out.extend_from_slice(&[random.number() as u8, u8::from(!random.once_in(3))]);
            out.resize(64, 0);
            out.extend_from_slice(message.as_bytes());
        }
        1 => {
            out.extend_from_slice(&(message.size_bytes() as u32).to_be_bytes());
            out.extend_from_slice(message.as_bytes());
            out.resize(out.len() + random.below(20), 0);
        }
        _ => {
            (0..10).for_each(|_| out.extend_from_slice(&random.number().to_be_bytes()));
            out.truncate(random.pick(&[80, 41]));
        }
    }
    out
}

impl Target for Records {
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let kind = random.below(KINDS);
        let mut input = vec![kind as u8];
        input.extend(match kind {
            0 => message(random).as_bytes().to_vec(),
            1 => {
                let mut record = vec![1, random.below(9) as u8, random.below(4) as u8, 1];
                record.resize(28 + 16 + random.below(40), 7);
                record
            }
            2 => self.keyring.clone(),
            3 => plaintext(random),
            _ => row(random).expect("a row is written"),
        });
        input
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let (kind, bytes) = input.split_first().unwrap_or((&0, b""));
        let kind = usize::from(*kind) % KINDS;
        let outcome = match kind {
            0 => fingerprint(Message::from_bytes(bytes).map_err(|e| e.to_string()).map(|message| {
                // Every part can be asked for, and together they are all of it.
                let (exchange, key, properties, body) = message.parts();
                assert_eq!((exchange, key), (message.exchange(), message.routing_key()));
                assert_eq!((properties, body), (message.properties(), message.body()));
                let parts = 7 + exchange.len() + key.len() + properties.len() + body.len();
                // What follows the body are the keys of BCC, where the flags say that there are any.
                assert!(parts == bytes.len() || (parts < bytes.len() && bytes[0] & 4 != 0));
                let keys = Properties::decode(properties).unwrap_or_default();
                assert!(message.routing_keys(&keys).iter().all(|key| key.len() <= bytes.len()));
                assert_eq!(message.with_properties(properties), message);
                [exchange, key, properties, body].map(|part| part.len().min(2))
            })),
            1 => fingerprint(envelope::parse(bytes).map_err(|e| e.to_string()).map(|(header, text, tag)| {
                assert_eq!([&header.to_bytes()[..], text, &tag[..]].concat(), bytes);
                header.fixed()[..4].to_vec()
            })),
            2 => {
                let changed = bytes != self.keyring;
                let kek = kek().into();
                let opened = SealedKeyring::parse(bytes.to_vec()).and_then(|sealed| sealed.unlock(&kek));
                assert!(opened.is_err() || !changed, "a changed keyring opens");
                fingerprint(opened.map(drop).map_err(|e| e.to_string()))
            }
            3 => fingerprint(read_as_each(bytes)),
            _ => self.start(bytes),
        };
        fingerprint((kind, outcome))
    }

    fn memory_bytes_max(&self, input: &[u8]) -> usize {
        256 * 1024 + 64 * input.len()
    }
}
