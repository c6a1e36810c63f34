//! What sealing a record costs, and opening it, by the length of its plaintext.

use std::hint::black_box;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use sealmq::seal::context::Place;
use sealmq::seal::envelope::{HEADER_BYTES, Kind};
use sealmq::seal::key::Dek;
use sealmq::seal::record::{Key, Opener, Sealer};

const STORE: [u8; 16] = [3; 16];
const PLACE: Place<'_> = Place { family: b'q', key: &[1; 16] };
const LENGTHS: [usize; 5] = [100, 512, 1024, 8192, 65_536];

fn main() {
    divan::main();
}

fn key() -> Arc<Key> {
    let Ok(dek) = Dek::generate() else { panic!("the kernel gives no random bytes") };
    Arc::new(Key::data(1, &dek))
}

fn sealer(key: &Arc<Key>) -> Sealer {
    Sealer::new(Arc::clone(key), STORE).unwrap_or_else(|error| panic!("{error}"))
}

/// The plaintext is copied behind the header and sealed in place, as the committer does it.
#[divan::bench(args = LENGTHS)]
fn seal(bencher: Bencher, bytes: usize) {
    let (sealer, text) = (sealer(&key()), vec![7; bytes]);
    let mut record = Vec::with_capacity(bytes + 64);
    bencher.counter(ItemsCount::new(1u32)).counter(BytesCount::new(bytes)).bench_local(|| {
        record.clear();
        record.resize(HEADER_BYTES, 0);
        record.extend_from_slice(&text);
        assert!(sealer.seal(Kind::Entry, 0, PLACE, &mut record).is_ok());
        black_box(record.len())
    });
}

/// Neighbours of one commit: the sub-key is the last one's.
#[divan::bench(args = LENGTHS)]
fn open(bencher: Bencher, bytes: usize) {
    let key = key();
    let mut record = vec![0; HEADER_BYTES + bytes];
    assert!(sealer(&key).seal(Kind::Entry, 0, PLACE, &mut record).is_ok());
    let (mut opener, mut text) = (Opener::new(vec![key], STORE), Vec::with_capacity(bytes));
    bencher.counter(ItemsCount::new(1u32)).counter(BytesCount::new(bytes)).bench_local(|| {
        assert!(opener.open(&[Kind::Entry], PLACE, black_box(&record), &mut text).is_ok());
    });
}

/// A fresh sub-key, once for each commit.
#[divan::bench]
fn renew(bencher: Bencher) {
    let mut sealer = sealer(&key());
    bencher.bench_local(|| assert!(sealer.renew().is_ok()));
}
