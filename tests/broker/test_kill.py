"""kill -9 at random moments: what the broker confirmed is there, what it committed as acknowledged is gone.

    SEED=word              repeats a run's choices (its threads still race), printed at the start of each run
    SEALMQ_KILL_ROUNDS=n   rounds of load, kill, restart and judgement; 30 unless told (300 with
                           SEALMQ_NIGHTLY=1), 1 to 2 seconds each
"""

import os
import random
import time

import pika
from model import Model
from workers import DATA_QUEUES, FAN, Consumer, Declarer, Publisher, Trigger

ROUNDS = int(os.environ.get("SEALMQ_KILL_ROUNDS") or ("300" if os.environ.get("SEALMQ_NIGHTLY") else "30"))
# What the judge leaves in a queue for the next round.
KEPT_MAX = 60
LOAD_SECONDS_MAX = 1.5
STARTUP_SECONDS = 0.15

# How a round ends: at the n-th event of a kind, or after a time; the last is SIGTERM, whose promises are no smaller.
ENDINGS = {"confirm": 1500, "acknowledge": 300, "barrier": 60, "declare": 120, "time": None, "terminate": None}


def test_nothing_confirmed_is_lost_and_nothing_settled_comes_back(native):
    seed = os.environ.get("SEED") or f"{random.randrange(1 << 32):08x}"
    print(f"\nSEED={seed}, {ROUNDS} rounds")
    choice = random.Random(seed)
    broker, model = native(start=False), Model(seed)
    create_under_fire(broker, choice)
    declare_all(broker, model)
    seen = {"judged": 0, "committed": 0}
    for number in range(ROUNDS):
        ending = choice.choice(list(ENDINGS))
        count = choice.randint(1, ENDINGS[ending] or 1)
        restarts = choice.choice([0, 0, 0, 1, 1, 2, 3])
        where = f"SEED={seed} round {number}: {ending} {count}, {restarts} starts in vain"
        try:
            load(broker, model, choice, ending, count)
            for _ in range(restarts):
                start_in_vain(broker, choice)
            seen["committed"] += sum(m.committed for owed in model.queues.values() for m in owed.values())
            broker.start()
            seen["judged"] += judge(broker, model, choice)
        except BaseException:
            print(where)
            raise
    print(f"{ROUNDS} rounds: {seen['judged']} messages judged, {seen['committed']} acknowledgements had to stay")
    # A run that saw no traffic has shown nothing.
    assert seen["judged"] > 20 * ROUNDS and seen["committed"] > ROUNDS


def create_under_fire(broker, choice):
    """The first start of all is cut short a few times: a store half made must be finished, not refused."""
    for _ in range(6):
        broker.spawn()
        time.sleep(choice.uniform(0, STARTUP_SECONDS))
        broker.kill()
    broker.start()


def start_in_vain(broker, choice):
    """A start that ends before anybody has connected: mostly by kill -9 half way, sometimes in good order."""
    if choice.random() < 0.3:
        broker.start()
        broker.stop()
    else:
        broker.spawn()
        time.sleep(choice.uniform(0, STARTUP_SECONDS))
        broker.kill()


def declare_all(broker, model):
    with broker.connect() as connection:
        channel = connection.channel()
        channel.exchange_declare("fan", "fanout", durable=True)
        for queue in (*DATA_QUEUES, "marks"):
            channel.queue_declare(queue, durable=True)
            model.declared["queue", queue] = True
        for queue in FAN:
            channel.queue_bind(queue, "fan", "")
            model.declared["binding", "fan", queue, ""] = True
    model.declared["exchange", "fan"] = True


def load(broker, model, choice, ending, count):
    trigger = Trigger(broker.process, ending, count)
    prefix = f"thing-{choice.randrange(1 << 40):x}"
    workers = [
        Publisher(broker, model, trigger, choice.random()),
        Consumer(broker, model, trigger, choice.random()),
        Declarer(broker, model, trigger, choice.random(), prefix),
        Declarer(broker, model, trigger, choice.random(), prefix),
    ]
    for worker in workers:
        worker.start()
    # What waits for an event gives up after a time; the others are meant to end at theirs.
    after = LOAD_SECONDS_MAX if ending not in ("time", "terminate") else choice.uniform(0, LOAD_SECONDS_MAX)
    until = time.monotonic() + after
    while time.monotonic() < until and broker.process.poll() is None:
        time.sleep(0.002)
    if ending == "terminate" and broker.process.poll() is None:
        broker.stop()
    else:
        broker.kill()
    for worker in workers:
        worker.end(20)


def judge(broker, model, choice):
    """Reads everything, compares, and settles a part of it for good. Returns how many messages it saw."""
    model.judge_declared(present(broker))
    total = 0
    connection = broker.connect()
    for queue in DATA_QUEUES:
        channel = connection.channel()  # of its own: what is acknowledged with "multiple" is this queue's
        found = drain(channel, queue)
        total += len(model.judge(queue, found))
        settle_some(model, choice, channel, queue, found)
    channel = connection.channel()
    channel.queue_purge("marks")
    # Everything up to here is on the disk when this is confirmed.
    channel.confirm_delivery()
    channel.basic_publish("", "marks", b"", pika.BasicProperties(delivery_mode=2))
    for owed in model.queues.values():
        for message in owed.values():
            message.committed = message.acknowledged
    if choice.random() < 0.5:
        delete_some(model, choice, channel)
    connection.close()
    return total


def present(broker):
    """What is declared, but for what every broker has, and bindings to the default exchange."""
    things = {("queue", row["name"]) for row in broker.ctl("list_queues")}
    things |= {("exchange", row["name"]) for row in broker.ctl("list_exchanges")}
    for row in broker.ctl("list_bindings"):
        things.add(("binding", row["source_name"], row["destination_name"], row["routing_key"]))
    own = {t for t in things if t[0] == "exchange" and (not t[1] or t[1].startswith("amq."))}
    return things - own - {t for t in things if t[0] == "binding" and not t[1]}


def drain(channel, queue):
    """All of a queue, unacknowledged."""
    count = channel.queue_declare(queue, passive=True).method.message_count
    found = []
    tag = channel.basic_consume(queue, lambda _, method, properties, body: found.append((method, properties, body)))
    until = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < until, f"{queue} counts {count} messages and gave {len(found)}"
        channel.connection.process_data_events(1)
    # What comes after the last one would have been sent before cancel-ok.
    channel.basic_cancel(tag)
    assert len(found) == count, f"{queue} counted {count} messages and gave {len(found)}"
    return found


def settle_some(model, choice, channel, queue, found):
    """Leaves at most KEPT_MAX: acknowledges from the front or here and there; the rest goes back in some way."""
    owed = model.queues[queue]
    rest = list(found)
    cut = max(0, len(rest) - KEPT_MAX)
    if cut and choice.random() < 0.5:
        channel.basic_ack(rest[cut - 1][0].delivery_tag, multiple=True)
        gone, rest = rest[:cut], rest[cut:]
    else:
        gone = choice.sample(rest, max(cut, len(rest) // 4))
        for method, _, _ in gone:
            channel.basic_ack(method.delivery_tag)
        rest = [message for message in rest if message not in gone]
    for _, properties, _ in gone:
        owed[properties.headers["number"]].acknowledged = True
    if rest and choice.random() < 0.5:
        channel.basic_nack(rest[-1][0].delivery_tag, multiple=True, requeue=True)
    # Otherwise they go back when the connection ends.


def delete_some(model, choice, channel):
    """Keeps the number of declared things small, and deletes queues that hold messages."""
    for thing in [t for t in model.declared if t[0] == "queue" and t[1].startswith(("thing", "barrier"))]:
        if choice.random() < 0.8:
            channel.basic_publish("", thing[1], b"x" * 10000, pika.BasicProperties(delivery_mode=2))
            channel.queue_delete(thing[1])
            gone = {t for t in model.declared if t == thing or (t[0] == "binding" and t[2] == thing[1])}
            for t in gone:
                del model.declared[t]
            model.deleted |= gone
