"""Queues with rules, the clients that load them until the broker dies, and the book of what they did."""

import random
import threading
from dataclasses import dataclass, field

import pika
from workers import Worker

WINDOW = 60  # publishes that may wait for their confirms
LANE_MAX = 400  # messages of one lane in one round
BODY_BYTES = (0, 17, 300, 4096, 5000, 20000)


@dataclass(frozen=True)
class Lane:
    """One way of publishing, and the queues among which its messages move."""

    name: str
    exchange: str
    key: str
    queues: tuple


LANES = (
    Lane("chain", "", "chain-1", ("chain-end",)),
    Lane("limited", "", "limited", ("limited", "dropped")),
    Lane("refusing", "", "refusing", ("refusing",)),
    Lane("fan", "hub", "to-both", ("copy-1", "copies")),
    Lane("stray", "hub", "to-nobody", ("unrouted",)),
    Lane("ranks", "", "ranks", ("ranks",)),
    Lane("work", "", "work", ("work", "rejected")),
    Lane("tries", "", "tries", ("tries", "exhausted")),
)


def to(queue, **arguments):
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue} | {
        "x-" + name.replace("_", "-"): value for name, value in arguments.items()
    }


QUEUES = {
    "chain-1": to("chain-2", message_ttl=30),
    "chain-2": to("chain-end", message_ttl=60),
    "chain-end": {},
    "limited": to("dropped", max_length=20),
    "dropped": {},
    "refusing": {"x-max-length": 20, "x-overflow": "reject-publish"},
    "copy-1": to("copies", max_length=10),
    "copy-2": to("copies", message_ttl=40),
    "copies": {},
    "unrouted": {},
    "ranks": {"x-max-priority": 5},
    "work": to("rejected"),
    "rejected": {},
    "tries": to("exhausted", queue_type="quorum", delivery_limit=2),
    "exhausted": {},
    "tx-in": {},
    "tx-a": {},
    "tx-b": {"x-max-priority": 3},
    "marks": {},
}


def declare_all(channel):
    for queue, arguments in QUEUES.items():
        channel.queue_declare(queue, durable=True, arguments=arguments)
    channel.exchange_declare("spare", "fanout", durable=True)
    channel.exchange_declare("spokes", "fanout", durable=True)
    channel.exchange_declare("hub", "direct", durable=True, arguments={"alternate-exchange": "spare"})
    channel.exchange_bind("spokes", "hub", "to-both")
    for queue, exchange in (("copy-1", "spokes"), ("copy-2", "spokes"), ("unrouted", "spare")):
        channel.queue_bind(queue, exchange)


@dataclass
class Book:
    """What the clients of one round did. Each part has one writer."""

    seed: str
    numbers: object
    # lane -> number -> sent, confirmed or nacked
    lanes: dict = field(default_factory=lambda: {lane.name: {} for lane in LANES})
    # lane -> numbers that a client has acknowledged, perhaps without effect
    taken: dict = field(default_factory=lambda: {lane.name: set() for lane in LANES})
    # number -> acknowledged or rejected, in `work`, and on the disk before the crash
    settled: dict = field(default_factory=dict)
    # number of the message that it acknowledges -> begun or committed
    transactions: dict = field(default_factory=dict)
    # numbers of messages for transactions that were confirmed
    fed: set = field(default_factory=set)

    def body(self, number):
        choice = random.Random(f"{self.seed}/{number}")
        return choice.randbytes(choice.choice(BODY_BYTES))

    def compare(self, message):
        assert message.body == self.body(message.number), f"message {message.number} has another body"

    def properties(self, number, lane, **more):
        return pika.BasicProperties(delivery_mode=2, headers={"number": number, "lane": lane}, **more)


class Giver(Worker):
    """Publishes into every lane, up to WINDOW ahead of the confirms."""

    def opened(self):
        self.pending, self.tag = {}, 0
        self.open_channel(self.started)

    def started(self, channel):
        self.channel = channel
        channel.confirm_delivery(self.answered, callback=lambda _: self.fill())

    def fill(self):
        while len(self.pending) < WINDOW and self.channel.is_open:
            open_lanes = [lane for lane in LANES if len(self.model.lanes[lane.name]) < LANE_MAX]
            if not open_lanes:
                return
            lane = self.choice.choice(open_lanes)
            number = next(self.model.numbers)
            self.model.lanes[lane.name][number] = "sent"
            self.tag += 1
            self.pending[self.tag] = (lane.name, number)
            priority = self.choice.randrange(6) if lane.name == "ranks" else None
            properties = self.model.properties(number, lane.name, priority=priority)
            self.channel.basic_publish(lane.exchange, lane.key, self.model.body(number), properties)

    def answered(self, frame):
        tag, is_ack = frame.method.delivery_tag, isinstance(frame.method, pika.spec.Basic.Ack)
        for t in [t for t in self.pending if t <= tag] if frame.method.multiple else [tag]:
            lane, number = self.pending.pop(t)
            self.model.lanes[lane][number] = "confirmed" if is_ack else "nacked"
            self.trigger.event("confirm")
        self.fill()


class Settler(Worker):
    """Acknowledges, rejects and gives back what it gets; now and then a confirm shows that this is on the disk."""

    def opened(self):
        self.fresh, self.before_mark, self.tag = {}, {}, 0
        self.open_channel(self.started)

    def started(self, channel):
        self.marks = channel
        channel.confirm_delivery(self.answered, callback=lambda _: self.open_channel(self.consume))

    def consume(self, channel):
        channel.basic_qos(prefetch_count=15)
        for queue in ("work", "refusing", "tries"):
            channel.basic_consume(queue, lambda *delivery, queue=queue: self.delivered(queue, *delivery))

    def delivered(self, queue, channel, method, properties, body):
        number, what = properties.headers["number"], self.choice.random()
        if queue == "tries":
            # Most of it is given back until it is too often.
            if what < 0.85:
                return channel.basic_nack(method.delivery_tag, requeue=True)
        elif what < 0.3:
            return channel.basic_nack(method.delivery_tag, requeue=True)
        elif what < 0.6 and queue == "work":
            channel.basic_reject(method.delivery_tag, requeue=False)
            return self.settled(number, "rejected")
        self.model.taken[queue].add(number)
        channel.basic_ack(method.delivery_tag)
        if queue == "work":
            self.settled(number, "acknowledged")

    def settled(self, number, fate):
        self.fresh[number] = fate
        self.trigger.event("settle")
        if len(self.fresh) >= 10:
            self.tag += 1
            self.before_mark[self.tag], self.fresh = self.fresh, {}
            properties = pika.BasicProperties(delivery_mode=2)
            self.marks.basic_publish("", "marks", b"", properties)

    def answered(self, frame):
        tag = frame.method.delivery_tag
        for t in [t for t in self.before_mark if t <= tag] if frame.method.multiple else [tag]:
            self.model.settled |= self.before_mark.pop(t)


class Committer(threading.Thread):
    """Transactions: each takes one message and publishes three for it, to each of two queues."""

    def __init__(self, broker, book, trigger, seed):
        super().__init__(daemon=True)
        self.broker, self.book, self.trigger, self.choice = broker, book, trigger, random.Random(seed)
        self.failure = None

    def run(self):
        try:
            self.work()
        except pika.exceptions.ChannelClosedByBroker as failure:
            self.failure = failure
            self.trigger.process.kill()
        except pika.exceptions.ConnectionClosedByBroker as goodbye:
            self.failure = None if goodbye.reply_code == 320 else goodbye
        except (pika.exceptions.AMQPError, OSError):
            pass  # The broker died.

    def work(self):
        connection = self.broker.connect()
        feed, sure, channel = (connection.channel() for _ in range(3))
        sure.confirm_delivery()
        channel.tx_select()
        while True:
            number = next(self.book.numbers)
            properties = self.book.properties(number, "tx")
            # Not always confirmed when it is acknowledged: the transaction may overtake its batch.
            is_sure = self.choice.random() < 0.5
            (sure if is_sure else feed).basic_publish("", "tx-in", self.book.body(number), properties)
            if is_sure:
                self.book.fed.add(number)
            method = None
            while method is None:
                method, properties, _ = channel.basic_get("tx-in")
            number = properties.headers["number"]
            channel.basic_ack(method.delivery_tag)
            for queue in ("tx-a", "tx-b"):
                for _ in range(3):
                    more = self.book.properties(number, "tx", priority=self.choice.randrange(4))
                    channel.basic_publish("", queue, self.book.body(number), more)
            if self.choice.random() < 0.2:
                channel.tx_rollback()
                channel.basic_nack(method.delivery_tag, requeue=True)
                channel.tx_commit()
                continue
            self.book.transactions[number] = "begun"
            channel.tx_commit()
            self.book.transactions[number] = "committed"
            self.trigger.event("commit")

    def end(self, seconds):
        self.join(seconds)
        assert not self.is_alive(), "a committer did not notice that the broker is gone"
        if self.failure:
            raise self.failure
