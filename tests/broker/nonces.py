"""Which nonces a store's write-ahead logs hold: every record that was sealed since they were begun, those too that
were replaced or deleted since."""

from collections import namedtuple

from files import BLOCK_BYTES, HEADER_BYTES

Sealed = namedtuple("Sealed", "key_id prefix counter value")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
# Tags of RocksDB's write batch; each pair is the one without a column family's number and the one with.
DELETIONS, PUTS = {0x0: 0x4, 0x7: 0x8}, {0x1: 0x5}


def commits(log, start=0):
    """The write batches of a log from a commit at `start` on, up to where it is cut short."""
    at, pieces = start, b""
    while at + HEADER_BYTES <= len(log):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        piece = log[at + HEADER_BYTES : at + HEADER_BYTES + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(piece) < length:
            return
        pieces = piece if kind in (FULL, FIRST) else pieces + piece
        if kind in (FULL, LAST):
            yield pieces
        at += HEADER_BYTES + length


def puts(batch):
    """The keys and values that a write batch puts."""
    at = 12  # a sequence number and a count

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = batch[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def text():
        nonlocal at
        length = number()
        at += length
        return batch[at - length : at]

    while at < len(batch):
        tag = batch[at]
        at += 1
        assert tag in {*DELETIONS, *DELETIONS.values(), *PUTS, *PUTS.values()}, f"tag {tag:#x} of a write batch"
        if tag in {*DELETIONS.values(), *PUTS.values()}:
            number()
        key = text()
        if tag in {*PUTS, *PUTS.values()}:
            yield key, text()


def sealed(log, start=0):
    """Every sealed record of a log."""
    found = []
    for batch in commits(log, start):
        for _, value in puts(batch):
            assert value[0] == 1 and len(value) >= 44, "a record that is not sealed"
            key_id, counter = int.from_bytes(value[4:8], "big"), int.from_bytes(value[20:28], "big")
            found.append(Sealed(key_id, value[8:20], counter, value))
    return found


def of_store(data):
    """Every sealed record of a store's logs."""
    return [record for log in sorted((data / "db").glob("*.log")) for record in sealed(log.read_bytes())]


def assert_no_nonce_has_two_texts(records):
    seen = {}
    for record in records:
        nonce = (record.key_id, record.prefix, record.counter)
        assert seen.setdefault(nonce, record.value) == record.value, f"a nonce was used twice: {nonce}"
    return len(seen)
