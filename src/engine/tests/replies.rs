//! Direct reply-to between connections: who is found, what is bounded, and that nothing of it is kept.

use super::*;
use crate::limits::REPLIES_BYTES_MAX;
use crate::session::port::{Declared, ReplyTo};

const TO: ReplyTo = ReplyTo { channel: 3, serial: 7 };

fn text(address: &[u8]) -> &str {
    std::str::from_utf8(address).unwrap()
}

fn replies(seat: &Seat) -> Vec<(ReplyTo, String)> {
    let of = |waiting| match waiting {
        Waiting::Reply(to, message) => (to, String::from_utf8_lossy(message.body()).into_owned()),
        other => panic!("{other:?}"),
    };
    seat.drain().0.into_iter().map(of).collect()
}

#[test]
fn a_reply_goes_to_its_consumer_and_never_to_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut asks, mut answers) = (house.client(), house.client());
    let address = asks.client.open_replies(TO).unwrap();
    let tail = house.store.appender().tail();
    let outcomes = answers.publish(vec![publish("", text(&address), b"42", true)]);
    assert_eq!(outcomes, [Outcome::Routed(Barrier(0))]);
    assert_eq!(replies(&asks), [(TO, "42".to_owned())]);
    assert_eq!(house.store.appender().tail(), tail, "nothing was appended");
}

#[test]
fn a_mandatory_reply_comes_back_once_its_consumer_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut asks, mut answers) = (house.client(), house.client());
    let address = asks.client.open_replies(TO).unwrap();
    let declare = |seat: &mut Seat| {
        seat.client.declare_queue(&QueueSpec { name: &address, passive: true, ..TRANSIENT })
    };
    let answer = Declared { name: address.clone(), message_count: 0, consumer_count: 1, barrier: Barrier(0) };
    assert_eq!(declare(&mut answers), Ok(answer));
    asks.client.close_replies(&address);
    let outcomes = answers.publish(vec![publish("", text(&address), b"late", false)]);
    assert_eq!(outcomes, [Outcome::Unroutable]);
    assert!(replies(&asks).is_empty());
    let expected = format!("NOT_FOUND - no queue '{}' in vhost '/'", text(&address));
    assert_eq!(text_of(declare(&mut answers)), expected);
    assert_eq!(house.engine.replies.len(), 0, "and nothing of it is left");
}

#[test]
fn a_requester_that_does_not_read_holds_no_more_replies_than_the_limit() {
    const REPLY_BYTES: usize = 64 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut asks, mut answers) = (house.client(), house.client());
    let address = asks.client.open_replies(TO).unwrap();
    let body = [7; REPLY_BYTES];
    let mut send = || answers.publish(vec![publish("", text(&address), &body, false)]).remove(0);
    let taken = std::iter::from_fn(|| Some(send())).take_while(|o| *o != Outcome::Unroutable).count();
    assert!(taken > 0 && taken <= REPLIES_BYTES_MAX / REPLY_BYTES + 1, "{taken}");
    assert_eq!(replies(&asks).len(), taken);
    assert_eq!(send(), Outcome::Routed(Barrier(0)), "once it has read there is room again");
}

#[test]
fn empty_replies_are_bounded_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut asks, mut answers) = (house.client(), house.client());
    let address = asks.client.open_replies(TO).unwrap();
    let most = REPLIES_BYTES_MAX / size_of::<Waiting<Stored>>();
    let batch = (0..=most).map(|_| publish("", text(&address), b"", false)).collect();
    let outcomes = answers.publish(batch);
    assert_eq!(outcomes.last(), Some(&Outcome::Unroutable));
}

#[test]
fn replies_keep_their_place_among_the_publishes_of_a_channel() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut asks, mut answers) = (house.client(), house.client());
    asks.declare("q", TRANSIENT);
    asks.consume("q", true);
    let address = asks.client.open_replies(TO).unwrap();
    let keys = ["q", text(&address), "q", "q", text(&address)];
    answers.publish(keys.iter().map(|key| publish("", key, key.as_bytes(), false)).collect());
    let (waiting, _) = asks.drain();
    let came = waiting.into_iter().map(|item| match item {
        Waiting::Delivery(_, entry) => entry.message,
        Waiting::Reply(_, message) => message,
        Waiting::Cancelled(key) => panic!("{key} was cancelled"),
    });
    assert!(came.map(|message| message.body().to_vec()).eq(keys.map(|key| key.as_bytes().to_vec())));
}

#[test]
fn a_commit_sends_the_replies_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (mut asks, mut answers) = (house.client(), house.client());
    let address = asks.client.open_replies(TO).unwrap();
    let publishes = vec![publish("", text(&address), b"42", true), publish("", "nowhere", b"", true)];
    let (outcomes, _) = answers.commit(publishes, Vec::new());
    assert_eq!(outcomes, [Outcome::Routed(Barrier(0)), Outcome::Unroutable]);
    assert_eq!(replies(&asks).len(), 1);
}

#[test]
fn addresses_differ_and_say_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut seat = house.client();
    let addresses: std::collections::HashSet<_> =
        (0..100).map(|_| seat.client.open_replies(TO).unwrap()).collect();
    assert_eq!(addresses.len(), 100);
    let lengths: Vec<_> = addresses.iter().map(Vec::len).collect();
    assert!(lengths.iter().all(|length| *length == "amq.rabbitmq.reply-to.".len() + 22));
}
