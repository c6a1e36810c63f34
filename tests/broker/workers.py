"""Clients that work until the broker dies, each a connection and a thread of its own. They write what they did, and
what the broker answered, into the model."""

import random
import threading

import pika

WINDOW = 100  # publishes that may wait for their confirms
HOLD_MAX = 12  # deliveries that the consumer keeps unacknowledged
FAN = ("fan-1", "fan-2", "fan-3")
ROUTES = {"small": ("", "small", ("small",)), "big": ("", "big", ("big",)), "fan": ("fan", "", FAN)}
DATA_QUEUES = ("small", "big", *FAN)


class Trigger:
    """Kills the broker at the n-th event of a kind, in the very callback that reports it."""

    def __init__(self, process, kind, count):
        self.process, self.kind, self.left = process, kind, count
        self.lock = threading.Lock()

    def event(self, kind):
        with self.lock:
            if kind != self.kind or self.left == 0:
                return
            self.left -= 1
            if self.left > 0:
                return
        self.process.kill()


class Worker(threading.Thread):
    """A thread around a pika.SelectConnection; ends with its connection."""

    def __init__(self, broker, model, trigger, seed):
        super().__init__(daemon=True)
        self.model, self.trigger, self.choice = model, trigger, random.Random(seed)
        self.parameters = broker.parameters()
        self.failure = None
        self.channels_left = 0

    def run(self):
        try:
            self.connection = pika.SelectConnection(
                self.parameters,
                on_open_callback=lambda connection: self.opened(),
                on_open_error_callback=lambda connection, _: connection.ioloop.stop(),
                on_close_callback=self.closed,
            )
            self.connection.ioloop.start()
        except (pika.exceptions.AMQPError, OSError):
            pass  # The broker died; whatever it owed is judged after its restart.
        except Exception as failure:
            self.failure = failure
            self.trigger.process.kill()

    def closed(self, connection, reason):
        # An orderly goodbye is 320; any other code is an error of the broker's or of this test's.
        if isinstance(reason, pika.exceptions.ConnectionClosedByBroker) and reason.reply_code != 320:
            self.failure = reason
        connection.ioloop.stop()

    def open_channel(self, then):
        def opened(channel):
            channel.add_on_close_callback(self.channel_closed)
            then(channel)

        self.connection.channel(on_open_callback=opened)

    def channel_closed(self, channel, reason):
        if isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            self.failure = reason

    def end(self, seconds):
        self.join(seconds)
        assert not self.is_alive(), f"{type(self).__name__} did not notice that the broker is gone"
        if self.failure:
            raise self.failure


class Publisher(Worker):
    """Publishes to every data queue, up to WINDOW ahead of the confirms."""

    def opened(self):
        self.pending = {}
        self.tag = 0
        self.open_channel(self.started)

    def started(self, channel):
        self.channel = channel
        channel.confirm_delivery(self.answered, callback=lambda _: self.fill())

    def fill(self):
        while len(self.pending) < WINDOW and self.channel.is_open:
            kind = self.choice.choices(["small", "fan", "big"], [10, 5, 1])[0]
            exchange, key, queues = ROUTES[kind]
            # The order of numbers is the order of publishing; this is the only thread that takes any.
            number = self.model.next_number()
            transient = self.choice.random() < 0.1
            body = self.model.body(number, self.model.size_bytes(number, kind))
            self.model.publish(queues, number, transient)
            self.tag += 1
            self.pending[self.tag] = (queues, number)
            self.channel.basic_publish(exchange, key, body, self.model.properties(number, kind, transient))

    def answered(self, frame):
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        tags = [t for t in self.pending if t <= tag] if multiple else [tag]
        for t in tags:
            queues, number = self.pending.pop(t)
            if isinstance(frame.method, pika.spec.Basic.Ack):
                self.model.confirm(queues, number)
                self.trigger.event("confirm")
        self.fill()


class Consumer(Worker):
    """Acknowledges, rejects and keeps what it gets; now and then makes sure that its acknowledgements are durable,
    by a confirmed publish or by the declaration of a durable queue after them."""

    def opened(self):
        self.held = {}  # delivery tag -> (queue, number), in order
        self.seen = set()
        self.acknowledged = []  # since the last barrier
        self.barriers = {}  # publish tag of a marker -> acknowledgements before it
        self.tag = 0
        self.open_channel(self.started)

    def started(self, channel):
        self.marks = channel
        channel.confirm_delivery(self.answered, callback=lambda _: self.open_channel(self.consume))

    def consume(self, channel):
        self.channel = channel
        # Everything that was ever here in an earlier life of the broker may have been delivered.
        self.old = {queue: set(self.model.queues.get(queue, ())) for queue in DATA_QUEUES}
        channel.basic_qos(prefetch_count=30)
        for queue in ("small", "big", "fan-1", "fan-2"):
            channel.basic_consume(queue, lambda *delivery, queue=queue: self.delivered(queue, *delivery))

    def delivered(self, queue, channel, method, properties, body):
        number = properties.headers["number"]
        message = self.model.queues[queue][number]
        if (queue, number) in self.seen:
            assert method.redelivered, f"{queue}: {number} came back without the mark"
        elif message.transient or not message.delivered:
            assert not method.redelivered, f"{queue}: {number} comes for the first time and is marked"
        message.delivered = True
        self.seen.add((queue, number))
        self.held[method.delivery_tag] = (queue, number)
        if len(self.held) > HOLD_MAX:
            self.settle()

    def settle(self):
        tag = self.choice.choice(list(self.held)[:HOLD_MAX])
        what = self.choice.random()
        if what < 0.15:
            del self.held[tag]
            self.channel.basic_nack(tag, requeue=True)
        elif what < 0.25:
            self.channel.basic_reject(tag, requeue=False)
            self.acknowledge([tag])
        elif what < 0.4:
            tags = [t for t in self.held if t <= tag]
            self.channel.basic_ack(tag, multiple=True)
            self.acknowledge(tags)
        else:
            self.channel.basic_ack(tag)
            self.acknowledge([tag])
        if self.acknowledged and self.choice.random() < 0.2:
            self.barrier()

    def acknowledge(self, tags):
        for tag in tags:
            queue, number = self.held.pop(tag)
            self.model.queues[queue][number].acknowledged = True
            self.acknowledged.append((queue, number))
        self.trigger.event("acknowledge")

    def barrier(self):
        before, self.acknowledged = self.acknowledged, []
        if self.choice.random() < 0.2:
            name = f"barrier-{self.choice.randrange(1 << 40):x}"
            self.model.declared["queue", name] = False
            self.marks.queue_declare(name, durable=True, callback=lambda _: self.durable(before, name))
            return
        self.tag += 1
        self.barriers[self.tag] = before
        self.marks.basic_publish("", "marks", b"", pika.BasicProperties(delivery_mode=2))

    def durable(self, before, name=None):
        if name:
            self.model.declared["queue", name] = True
        for queue, number in before:
            self.model.queues[queue][number].committed = True
        self.trigger.event("barrier")

    def answered(self, frame):
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        for t in [t for t in self.barriers if t <= tag] if multiple else [tag]:
            self.durable(self.barriers.pop(t))


class Declarer(threading.Thread):
    """Declares and deletes durable things one after another. Two of them race for the same names."""

    def __init__(self, broker, model, trigger, seed, prefix):
        super().__init__(daemon=True)
        self.broker, self.model, self.trigger = broker, model, trigger
        self.prefix, self.choice = prefix, random.Random(seed)
        self.failure = None

    def run(self):
        try:
            channel = self.broker.connect().channel()
            for step in range(1000):
                # Both take the same steps, so most of these names are declared twice at the same moment.
                self.declare(channel, f"{self.prefix}-{step}")
        except (pika.exceptions.ChannelClosedByBroker, AssertionError) as failure:
            self.failure = failure
            self.trigger.process.kill()
        except pika.exceptions.ConnectionClosedByBroker as goodbye:
            self.failure = None if goodbye.reply_code == 320 else goodbye
        except (pika.exceptions.AMQPError, OSError):
            pass  # The broker died.

    def declare(self, channel, name):
        self.sure(("exchange", name), lambda: channel.exchange_declare(name, "topic", durable=True))
        self.sure(("queue", name), lambda: channel.queue_declare(name, durable=True, arguments={"x-note": name}))
        self.sure(("binding", name, name, "a.#"), lambda: channel.queue_bind(name, name, "a.#", {"x": [1, name]}))
        # Neither of these is to survive.
        channel.queue_declare(f"{name}-transient-{id(self)}", durable=False)
        channel.queue_declare("", exclusive=True, durable=True)
        own = f"{name}-{id(self)}"
        self.sure(("queue", own), lambda: channel.queue_declare(own, durable=True))
        if self.choice.random() < 0.7:
            self.model.declared["queue", own] = False
            channel.queue_delete(own)
            self.model.declared.pop(("queue", own))
            self.model.deleted.add(("queue", own))
            self.trigger.event("declare")

    def sure(self, thing, declare):
        # The other one may have got its ok already.
        self.model.declared.setdefault(thing, False)
        declare()
        self.model.declared[thing] = True
        self.trigger.event("declare")

    def end(self, seconds):
        self.join(seconds)
        assert not self.is_alive(), "a declarer did not notice that the broker is gone"
        if self.failure:
            raise self.failure
