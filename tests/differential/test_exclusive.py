"""Exclusive queues: what their declaration is compared by."""


def test_an_exclusive_queue_is_transient_whatever_was_asked(channel, name):
    """amqplib's assertQueue sets durable by default: mixed with a client that does not, it was refused with 406."""
    channel.call("queue.declare", queue=name, exclusive=True, durable=True)
    channel.call("queue.declare", queue=name, exclusive=True, durable=False)
    channel.call("queue.declare", queue=name, exclusive=True, durable=True)
