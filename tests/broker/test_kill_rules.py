"""kill -9 at random moments while queues do things by themselves: dead letters, times to live, lengths, priorities,
transactions, delivery limits, alternate exchanges and bindings between exchanges.

What is confirmed is never in neither of the queues between which it moves; it may be in both, since dead letters are
given at least once. The clocks of times to live go on while the broker is down.

    SEED=word              repeats a run's choices (its threads still race), printed at the start of each run
    SEALMQ_KILL_ROUNDS=n   rounds of load, kill, restart and judgement; 10 unless told (100 with
                           SEALMQ_NIGHTLY=1), 2 to 4 seconds each
"""

import itertools
import os
import random
import time

import pika
from rule_workers import LANES, QUEUES, Book, Committer, Giver, Settler, declare_all
from workers import Trigger

ROUNDS = int(os.environ.get("SEALMQ_KILL_ROUNDS") or ("100" if os.environ.get("SEALMQ_NIGHTLY") else "10"))
LOAD_SECONDS_MAX = 1.2
STARTUP_SECONDS = 0.3
# How long a message may be between two queues.
ARRIVAL_SECONDS = 10
# How a round ends: at the n-th event of a kind, or after a time; the last is SIGTERM.
ENDINGS = {"confirm": 900, "commit": 40, "settle": 250, "time": None, "terminate": None}


def test_rules_of_queues_hold_over_kills(native):
    seed = os.environ.get("SEED") or f"{random.randrange(1 << 32):08x}"
    print(f"\nSEED={seed}, {ROUNDS} rounds")
    choice = random.Random(seed)
    broker = native()
    with broker.connect() as connection:
        declare_all(connection.channel())
    numbers = itertools.count(1)
    seen = dict.fromkeys(("confirmed", "judged", "transactions", "settled"), 0)
    for number in range(ROUNDS):
        ending = choice.choice(list(ENDINGS))
        count = choice.randint(1, ENDINGS[ending] or 1)
        restarts = choice.choice([0, 0, 1, 2])
        book = Book(seed, numbers)
        try:
            load(broker, book, choice, ending, count)
            for _ in range(restarts):
                start_and_kill(broker, choice)
            broker.start()
            judge(broker, book, seen)
        except BaseException:
            print(f"SEED={seed} round {number}: {ending} {count}, {restarts} kills at the start")
            raise
    print(f"{ROUNDS} rounds: {seen}")
    # A run that saw no traffic has shown nothing.
    assert seen["confirmed"] > 20 * ROUNDS and seen["transactions"] > ROUNDS // 2 and seen["settled"] > ROUNDS // 2


def load(broker, book, choice, ending, count):
    trigger = Trigger(broker.process, ending, count)
    workers = [kind(broker, book, trigger, choice.random()) for kind in (Giver, Settler, Committer)]
    for worker in workers:
        worker.start()
    timed = ending in ("time", "terminate")
    until = time.monotonic() + (choice.uniform(0.05, LOAD_SECONDS_MAX) if timed else LOAD_SECONDS_MAX)
    while time.monotonic() < until and broker.process.poll() is None:
        time.sleep(0.002)
    if ending == "terminate" and broker.process.poll() is None:
        broker.stop()
    else:
        broker.kill()
    for worker in workers:
        worker.end(20)


def start_and_kill(broker, choice):
    """Right after a start, what expired while the broker was down is dead-lettered: killed in the middle of it."""
    broker.spawn()
    until = time.monotonic() + choice.uniform(0, STARTUP_SECONDS)
    while time.monotonic() < until:
        time.sleep(0.002)
    broker.kill()


# ---- the judge


def judge(broker, book, seen):
    """Reads and empties every queue, and compares."""
    with broker.connect() as connection:
        channel = connection.channel()
        limits_hold(channel)
        channel.queue_purge("marks")
        # Before the clocks' queues are waited for, nothing of these may expire or move.
        found = {queue: drain(channel, queue) for queue in QUEUES if queue not in (*CLOCKED, "marks")}
        for queue in CLOCKED:
            wait_until_empty(channel, queue)
        # What has left the last of them may be on its way still, in neither queue for a moment; what is lost never
        # comes, however long the wait.
        until = time.monotonic() + ARRIVAL_SECONDS
        while True:
            for queue in CLOCKED_INTO:
                found[queue] += drain(channel, queue)
            if time.monotonic() > until or not (lost_of(book, CHAIN, found) or any(lost_of_fan(book, found).values())):
                break
            time.sleep(0.01)
    for messages in found.values():
        for message in messages:
            book.compare(message)
    seen["confirmed"] += sum(state == "confirmed" for lane in book.lanes.values() for state in lane.values())
    seen["judged"] += sum(map(len, found.values()))
    for lane in LANES:
        holds(book, lane, found)
    judge_chain(found)
    judge_order(found)
    judge_fan(book, found)
    seen["settled"] += judge_settled(book, found)
    seen["transactions"] += judge_transactions(book, found)


# Queues whose messages expire, and where these end.
CLOCKED = ("chain-1", "chain-2", "copy-2")
CLOCKED_INTO = ("chain-end", "copies")
CHAIN = next(lane for lane in LANES if lane.name == "chain")


def limits_hold(channel):
    for queue in ("limited", "refusing", "copy-1"):
        count = channel.queue_declare(queue, passive=True).method.message_count
        # What was out with consumers comes back on top of what a refusing queue took in its place.
        assert count <= (40 if queue == "refusing" else 20), f"{queue} holds {count}"


def holds(book, lane, found):
    """Confirmed and in none of the lane's queues is lost; what was nacked, or never published, is in none."""
    lost = lost_of(book, lane, found)
    assert not lost, f"{lane.name}: confirmed and in none of {lane.queues}: {sorted(lost)}"
    published = book.lanes[lane.name]
    wrong = {n for n in present_in(lane, found) if published.get(n) in (None, "nacked")}
    assert not wrong, f"{lane.name}: refused or never published, and there: {sorted(wrong)}"


def present_in(lane, found):
    return {number for queue in lane.queues for number in numbers_of(found[queue], lane.name)}


def lost_of(book, lane, found):
    confirmed = {n for n, state in book.lanes[lane.name].items() if state == "confirmed"}
    return confirmed - present_in(lane, found) - book.taken[lane.name]


def judge_chain(found):
    for message in found["chain-end"]:
        deaths = [(death["queue"], death["reason"]) for death in message.headers["x-death"]]
        assert deaths == [("chain-2", "expired"), ("chain-1", "expired")], deaths
        assert message.headers["x-first-death-queue"] == "chain-1" and message.headers["x-last-death-queue"] == "chain-2"
        assert all(death["count"] == 1 for death in message.headers["x-death"]), message.headers["x-death"]


def judge_order(found):
    """In the order of publishing, counting each message where it comes first."""
    for queue in ("chain-end", "limited", "dropped", "refusing", "unrouted"):
        first = list(dict.fromkeys(numbers_of(found[queue])))
        assert first == sorted(first), f"{queue}: out of order: {first}"
    ranks = [(-message.priority, message.number) for message in found["ranks"]]
    assert ranks == sorted(ranks), f"ranks: out of order: {ranks}"


def judge_fan(book, found):
    """Each copy of a shared body goes its own way: neither may be lost with the other."""
    for queue, lost in lost_of_fan(book, found).items():
        assert not lost, f"{queue}: confirmed, and neither there nor dead-lettered: {sorted(lost)}"


def lost_of_fan(book, found):
    confirmed = {n for n, state in book.lanes["fan"].items() if state == "confirmed"}
    lost = {}
    for queue, rest in (("copy-1", numbers_of(found["copy-1"])), ("copy-2", [])):
        ended = [m.number for m in found["copies"] if m.headers["x-first-death-queue"] == queue]
        lost[queue] = confirmed - set(ended) - set(rest)
    return lost


def judge_settled(book, found):
    """What was settled before a confirm stays settled."""
    work, rejected = set(numbers_of(found["work"])), found["rejected"]
    dead = {message.number for message in rejected}
    for number, fate in book.settled.items():
        assert number not in work, f"work: {fate}, committed, and back: {number}"
        assert (number in dead) == (fate == "rejected"), f"rejected: {number} was {fate}"
    for message in rejected:
        deaths = [(death["queue"], death["reason"], death["count"]) for death in message.headers["x-death"]]
        assert deaths == [("work", "rejected", 1)], deaths
    for message in found["exhausted"]:
        assert message.headers["x-death"][0]["reason"] == "delivery_limit", message.headers
    return len(book.settled)


def judge_transactions(book, found):
    """A commit is there whole or not at all: the message that it acknowledged is gone exactly if what it published
    is there, in both queues."""
    left = set(numbers_of(found["tx-in"]))
    done = [numbers_of(found[queue]) for queue in ("tx-a", "tx-b")]
    unexplained = set(done[0] + done[1]) - set(book.transactions)
    assert not unexplained, f"published by transactions that were rolled back: {sorted(unexplained)}"
    for number, state in book.transactions.items():
        published = [numbers.count(number) for numbers in done]
        assert published in ([0, 0], [3, 3]), f"transaction {number} ({state}) is half there: {published}"
        happened = published == [3, 3]
        assert happened or state == "begun", f"transaction {number}: committed, and nothing is there"
        assert not (happened and number in left), f"transaction {number}: there, but what it acknowledged is back"
        lost = not happened and number not in left and number in book.fed
        assert not lost, f"transaction {number} has not happened, and what it would have acknowledged is gone"
    lost = book.fed - left - set(book.transactions)
    assert not lost, f"tx-in: confirmed and lost: {sorted(lost)}"
    return len(book.transactions)


# ---- reading


class Found:
    def __init__(self, properties, body):
        self.headers, self.priority, self.body = properties.headers, properties.priority, body
        self.number, self.lane = self.headers["number"], self.headers["lane"]


def numbers_of(messages, lane=None):
    return [message.number for message in messages if lane in (None, message.lane)]


def drain(channel, queue):
    """All of a queue, for good. Not by a consumer: what the clock moves into the queue while pika cancels one without
    acknowledgements, pika drops without a word (with RabbitMQ too), and that looked like a loss of the broker's."""
    found = []
    while True:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return found
        found.append(Found(properties, body))


def wait_until_empty(channel, queue):
    until = time.monotonic() + 30
    while channel.queue_declare(queue, passive=True).method.message_count:
        assert time.monotonic() < until, f"{queue} does not expire"
        time.sleep(0.01)
