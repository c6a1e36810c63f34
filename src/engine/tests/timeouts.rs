//! Acknowledgement timeouts: which of the places that may name one counts, and what is refused.

use super::*;

fn with_timeout(ms: i64) -> TableWriter {
    TableWriter::new().entry("x-consumer-timeout", Value::I64(ms))
}

#[test]
fn the_consumers_timeout_goes_before_the_queues_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut house = House::open(dir.path());
    let mut a = house.client();
    let arguments = with_timeout(5000);
    let barrier = a.declare("q", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    a.declare("plain", DURABLE);
    a.wait_for(barrier);
    for _ in 0..2 {
        let (queue, plain) = (house.queue("q").unwrap(), house.queue("plain").unwrap());
        let of = |queue, arguments: &TableWriter| a.client.delivery_timeout_ms(queue, arguments.as_table());
        assert_eq!(of(&queue, &TableWriter::new()), Some(5000));
        assert_eq!(of(&queue, &with_timeout(60_000)), Some(60_000), "it may be longer");
        assert_eq!(of(&queue, &with_timeout(0)), Some(0), "and there may be none");
        assert_eq!(of(&plain, &with_timeout(7)), Some(7));
        assert_eq!(of(&plain, &TableWriter::new()), None);
        drop(a);
        house.close();
        house = House::open(dir.path());
        a = house.client();
    }
}

#[test]
fn a_consumer_with_a_wrong_timeout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("q", TRANSIENT);
    let credit = a.credit.clone();
    let arguments = with_timeout(-1);
    let spec = ConsumeSpec {
        queue: b"q",
        key: 0,
        no_ack: false,
        exclusive: false,
        prefetch: 0,
        credit: &credit,
        arguments: arguments.as_table(),
    };
    let text = "PRECONDITION_FAILED - invalid arg 'x-consumer-timeout' for queue 'q' in vhost '/': {value_negative,-1}";
    assert_eq!(text_of(a.client.consume(&spec).map(drop)), text);
}
