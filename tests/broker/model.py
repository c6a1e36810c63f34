"""What a broker owes its clients after a crash: every publish, delivery and acknowledgement of a run, and the judge
of what a restarted broker holds.

Threads write while a round runs; each keeps to its own queues or its own records, so plain data is enough.
"""

import datetime
import random
from dataclasses import dataclass, field

import pika


@dataclass
class Message:
    """One message in one queue."""

    confirmed: bool = False
    transient: bool = False
    delivered: bool = False
    acknowledged: bool = False
    # The acknowledgement was on the disk before the crash.
    committed: bool = False


@dataclass
class Model:
    """`queues[name][number]`; numbers rise in the order of publishing, and a queue has one publisher at a time."""

    seed: str
    queues: dict[str, dict[int, Message]] = field(default_factory=dict)
    # Declared things by name; True once the broker has said ok, False while nobody knows.
    declared: dict[tuple, bool] = field(default_factory=dict)
    # Deleted with an ok: must not come back.
    deleted: set[tuple] = field(default_factory=set)
    last_number: int = 0

    def next_number(self):
        self.last_number += 1
        return self.last_number

    def publish(self, queues, number, transient=False):
        for queue in queues:
            self.queues.setdefault(queue, {})[number] = Message(transient=transient)

    def confirm(self, queues, number):
        for queue in queues:
            self.queues[queue][number].confirmed = True

    # ---- what a message is made of: a function of the seed and its number

    def body(self, number, size_bytes):
        return random.Random(f"{self.seed}/body/{number}").randbytes(size_bytes)

    def size_bytes(self, number, kind):
        choice = random.Random(f"{self.seed}/size/{number}")
        if kind == "big":
            return int(5 * 1024 * 60 ** choice.random())  # 5 to 300 KiB, small ones more often
        if kind == "fan":
            return choice.choice([0, 1, 100, 3000, 4096, 5000, 20000])
        return choice.choice([0, 1, 17, 200, 1000, 4096])

    def properties(self, number, kind, transient):
        choice = random.Random(f"{self.seed}/properties/{number}")
        headers = {
            "number": number,
            "kind": kind,
            "negative": -choice.randrange(1 << 40),
            "flag": choice.random() < 0.5,
            "nothing": None,
            "text": "caf\u00e9 " * choice.randrange(20),
            "list": [1, "two", {"three": 3}],
            "table": {"deep": {"deeper": choice.randrange(1000)}},
            "when": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
        }
        return pika.BasicProperties(
            content_type="application/octet-stream",
            content_encoding="identity",
            headers=headers,
            delivery_mode=1 if transient else 2,
            priority=choice.randrange(10),
            correlation_id=f"c-{number}",
            reply_to="answers",
            message_id=str(number),
            timestamp=1700000000 + number,
            type="kill-test",
            app_id="tests/broker",
        )

    # ---- the judge

    def judge(self, queue, found):
        """Compares what a queue holds after a restart, as (method, properties, body), with what it owes."""
        owed = self.queues.setdefault(queue, {})
        numbers = [properties.headers["number"] for _, properties, _ in found]
        assert len(set(numbers)) == len(numbers), f"{queue}: twice: {repeated(numbers)}"
        assert numbers == sorted(numbers), f"{queue}: out of order: {numbers}"
        unexplained = [n for n in numbers if n not in owed]
        assert not unexplained, f"{queue}: never published, or gone before: {unexplained}"
        present = set(numbers)
        lost = [n for n, m in owed.items() if m.confirmed and not m.transient and not m.acknowledged and n not in present]
        assert not lost, f"{queue}: confirmed, not acknowledged, and lost: {lost}"
        returned = [n for n in numbers if owed[n].committed]
        assert not returned, f"{queue}: acknowledged, committed, and back: {returned}"
        transient = [n for n in numbers if owed[n].transient]
        assert not transient, f"{queue}: transient messages survived: {transient}"
        unmarked = [n for (method, _, _), n in zip(found, numbers) if owed[n].delivered and not method.redelivered]
        assert not unmarked, f"{queue}: delivered before, but not marked as redelivered: {unmarked}"
        for _, properties, body in found:
            self.compare(queue, properties, body)
        # What is there now is on the disk and has been delivered to the judge; what is not will not come back.
        self.queues[queue] = {n: Message(confirmed=True, delivered=True) for n in numbers}
        return numbers

    def compare(self, queue, properties, body):
        number, kind = properties.headers["number"], properties.headers["kind"]
        wanted = self.properties(number, kind, transient=False)
        assert properties.__dict__ == wanted.__dict__, f"{queue}: message {number} has other properties"
        wanted = self.body(number, self.size_bytes(number, kind))
        assert body == wanted, f"{queue}: message {number} has another body ({len(body)} of {len(wanted)} bytes)"

    def judge_declared(self, present):
        """`present` is all that the restarted broker has, with names as in `declared`."""
        missing = [thing for thing, is_sure in self.declared.items() if is_sure and thing not in present]
        assert not missing, f"declared with an ok, and lost: {missing}"
        returned = self.deleted & present
        assert not returned, f"deleted with an ok, and back: {returned}"
        unexplained = present - set(self.declared)
        assert not unexplained, f"never declared, or not to survive: {unexplained}"
        self.declared = dict.fromkeys(present, True)


def repeated(numbers):
    return sorted({n for n in numbers if numbers.count(n) > 1})
