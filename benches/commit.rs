//! What it costs to make a batch of messages durable: sealed, written and synced, then removed again.
//!
//! The store lies in cargo's folder for temporary files, below the build folder; SEALMQ_BENCH_DIR names another disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use sealmq::broker::id::{QueueId, Seq};
use sealmq::broker::message::Message;
use sealmq::seal::{Credential, Kek};
use sealmq::store::{EntryMeta, Mode, OpenOptions, Position, Store};

const QUEUE: QueueId = QueueId(1);

fn main() {
    divan::main();
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait(store: &Store, place: Position) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    while store.durable() < place {
        store.appender().wake(waker.clone());
        thread::park();
        assert!(store.failure().is_none(), "the store has failed");
    }
}

fn commit(bencher: Bencher, mode: Mode, messages: u64, body_bytes: usize) {
    let folder =
        std::env::var_os("SEALMQ_BENCH_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let folder = tempfile::tempdir_in(folder).unwrap_or_else(|error| panic!("{error}"));
    let kek = (mode == Mode::Sealed).then(|| Kek::generate().unwrap_or_else(|error| panic!("{error}")));
    let options = OpenOptions::new(folder.path().join("data"), mode, kek.map(Credential::Key));
    let (store, _) = Store::open(options).unwrap_or_else(|error| panic!("{error}"));
    let message = Message::new(b"", b"queue", &[0x10, 0, 2], &[&vec![7; body_bytes]]);
    let meta = EntryMeta { enqueued_ms: 1, expires_ms: 0, priority: 0, delivery_count: 0 };
    let mut next = 1;
    let bytes = messages * body_bytes as u64;
    bencher.counter(ItemsCount::new(messages)).counter(BytesCount::new(bytes)).bench_local(|| {
        let mut appender = store.appender();
        let mut place = Position(0);
        for seq in next..next + messages {
            place = appender.put(QUEUE, Seq(seq), &message, None, meta);
            // What the batch before has put is acknowledged meanwhile, so that the store stays small.
            if let Some(earlier) = seq.checked_sub(messages).filter(|earlier| *earlier > 0) {
                appender.delete(QUEUE, Seq(earlier), message.size_bytes(), None, Position(0));
            }
        }
        drop(appender);
        next += messages;
        wait(&store, place);
    });
    assert!(store.close().is_ok());
}

const BATCHES: [(u64, usize); 5] = [(1, 1024), (64, 1024), (1000, 100), (1000, 1024), (10, 65_536)];

/// Messages in a batch, bytes in a body.
#[divan::bench(args = BATCHES, sample_size = 4, sample_count = 25)]
fn sealed(bencher: Bencher, (messages, body_bytes): (u64, usize)) {
    commit(bencher, Mode::Sealed, messages, body_bytes);
}

/// The same without sealing, for comparison.
#[divan::bench(args = BATCHES, sample_size = 4, sample_count = 25)]
fn plain_insecure(bencher: Bencher, (messages, body_bytes): (u64, usize)) {
    commit(bencher, Mode::PlainInsecure, messages, body_bytes);
}
