//! What the rules of a queue cost for one message: push, assignment to a consumer, settlement, and on a long queue too.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;

use divan::Bencher;
use divan::counter::ItemsCount;
use sealmq::broker::message::Message;
use sealmq::broker::queue::{ConsumerOptions, Entry, Queue, Rules, Sink};

fn main() {
    divan::main();
}

/// Takes whatever comes.
#[derive(Clone, Default)]
struct Taker(Rc<RefCell<Vec<Entry<()>>>>);

impl Sink<()> for Taker {
    fn take(&self, max: usize, mut next: impl FnMut() -> Option<Entry<()>>) -> usize {
        let mut taken = self.0.borrow_mut();
        let before = taken.len();
        taken.extend((0..max).map_while(|_| next()));
        taken.len() - before
    }

    fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

fn message() -> Message {
    Message::new(b"", b"queue", &[0x10, 0, 2], &[&[7; 1024]])
}

fn push(queue: &mut Queue<(), Taker>, message: &Message) {
    let seq = queue.next_seq();
    queue.push(Entry::new(seq, message.clone(), ()));
}

/// A message built from its parts, as a publish is: the one copy of its body.
#[divan::bench(args = [100, 1024, 65_536])]
fn make_a_message(bencher: Bencher, body_bytes: usize) {
    let body = vec![7; body_bytes];
    bencher
        .counter(ItemsCount::new(1u32))
        .bench(|| Message::new(b"", black_box(b"queue"), &[0x10, 0, 2], &[black_box(&body)]));
}

/// In at the end and out at the head of a queue of this length.
#[divan::bench(args = [0, 1000, 1_000_000])]
fn push_and_get(bencher: Bencher, length: usize) {
    let (message, mut queue) = (message(), Queue::new(Rules::default()));
    (0..length).for_each(|_| push(&mut queue, &message));
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        push(&mut queue, &message);
        black_box(queue.get())
    });
}

/// Through a queue with this many consumers: pushed, assigned in the round, acknowledged, in groups of 64.
#[divan::bench(args = [1, 4, 100])]
fn push_assign_settle(bencher: Bencher, consumers: usize) {
    const GROUP: usize = 64;
    let (message, mut queue, taker) = (message(), Queue::new(Rules::default()), Taker::default());
    let options = ConsumerOptions { prefetch: 0, no_ack: false, exclusive: false, priority: 0 };
    for _ in 1..consumers {
        assert!(queue.add_consumer(Taker(Rc::clone(&taker.0)), options).is_ok());
    }
    let Ok(consumer) = queue.add_consumer(taker.clone(), options) else { return };
    let (mut dead, mut touched) = (Vec::new(), Vec::new());
    bencher.counter(ItemsCount::new(GROUP)).bench_local(|| {
        (0..GROUP).for_each(|_| push(&mut queue, &message));
        queue.assign(0, &mut dead, &mut touched);
        touched.clear();
        let mut taken = taker.0.borrow_mut();
        assert_eq!(taken.len(), GROUP);
        taken.clear();
        queue.settle(Some(consumer), GROUP);
    });
}

/// Sixty-four messages come back to their places at the head of a queue of this length.
#[divan::bench(args = [64, 100_000])]
fn give_back(bencher: Bencher, length: usize) {
    const GROUP: usize = 64;
    let (message, mut queue) = (message(), Queue::<(), Taker>::new(Rules::default()));
    (0..length).for_each(|_| push(&mut queue, &message));
    let mut dead = Vec::new();
    bencher.counter(ItemsCount::new(GROUP)).bench_local(|| {
        let taken: Vec<_> = (0..GROUP).map_while(|_| queue.get()).collect();
        queue.requeue(taken, &mut dead);
        assert!(dead.is_empty());
    });
}
