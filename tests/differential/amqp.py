"""A small AMQP 0-9-1 client that shows every frame: what a library would hide is what these tests look at.

It sends what it is told, right or wrong, and gives back what came: methods by their name and fields, contents
with their property bytes as they were on the wire. It knows nothing of what a broker ought to do.
"""

import contextlib
import socket
import ssl
import struct
import time
from collections import deque
from urllib.parse import unquote, urlsplit

import canaries

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = b"\xce"
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
SECONDS_MAX = 15

# name, class, method, fields: B octet, H short, I long, Q long long, b bit, s short string, L long string, F table.
_TABLE = """
connection.start       10 10 version_major:B version_minor:B server_properties:F mechanisms:L locales:L
connection.start-ok    10 11 client_properties:F mechanism:s response:L locale:s
connection.secure      10 20 challenge:L
connection.secure-ok   10 21 response:L
connection.tune        10 30 channel_max:H frame_max:I heartbeat:H
connection.tune-ok     10 31 channel_max:H frame_max:I heartbeat:H
connection.open        10 40 virtual_host:s capabilities:s insist:b
connection.open-ok     10 41 known_hosts:s
connection.close       10 50 reply_code:H reply_text:s class_id:H method_id:H
connection.close-ok    10 51
connection.blocked     10 60 reason:s
connection.unblocked   10 61
connection.update-secret 10 70 new_secret:L reason:s
connection.update-secret-ok 10 71
channel.open           20 10 out_of_band:s
channel.open-ok        20 11 channel_id:L
channel.flow           20 20 active:b
channel.flow-ok        20 21 active:b
channel.close          20 40 reply_code:H reply_text:s class_id:H method_id:H
channel.close-ok       20 41
access.request         30 10 realm:s exclusive:b passive:b active:b write:b read:b
access.request-ok      30 11 ticket:H
exchange.declare       40 10 ticket:H exchange:s type:s passive:b durable:b auto_delete:b internal:b nowait:b arguments:F
exchange.declare-ok    40 11
exchange.delete        40 20 ticket:H exchange:s if_unused:b nowait:b
exchange.delete-ok     40 21
exchange.bind          40 30 ticket:H destination:s source:s routing_key:s nowait:b arguments:F
exchange.bind-ok       40 31
exchange.unbind        40 40 ticket:H destination:s source:s routing_key:s nowait:b arguments:F
exchange.unbind-ok     40 51
queue.declare          50 10 ticket:H queue:s passive:b durable:b exclusive:b auto_delete:b nowait:b arguments:F
queue.declare-ok       50 11 queue:s message_count:I consumer_count:I
queue.bind             50 20 ticket:H queue:s exchange:s routing_key:s nowait:b arguments:F
queue.bind-ok          50 21
queue.purge            50 30 ticket:H queue:s nowait:b
queue.purge-ok         50 31 message_count:I
queue.delete           50 40 ticket:H queue:s if_unused:b if_empty:b nowait:b
queue.delete-ok        50 41 message_count:I
queue.unbind           50 50 ticket:H queue:s exchange:s routing_key:s arguments:F
queue.unbind-ok        50 51
basic.qos              60 10 prefetch_size:I prefetch_count:H global:b
basic.qos-ok           60 11
basic.consume          60 20 ticket:H queue:s consumer_tag:s no_local:b no_ack:b exclusive:b nowait:b arguments:F
basic.consume-ok       60 21 consumer_tag:s
basic.cancel           60 30 consumer_tag:s nowait:b
basic.cancel-ok        60 31 consumer_tag:s
basic.publish          60 40 ticket:H exchange:s routing_key:s mandatory:b immediate:b
basic.return           60 50 reply_code:H reply_text:s exchange:s routing_key:s
basic.deliver          60 60 consumer_tag:s delivery_tag:Q redelivered:b exchange:s routing_key:s
basic.get              60 70 ticket:H queue:s no_ack:b
basic.get-ok           60 71 delivery_tag:Q redelivered:b exchange:s routing_key:s message_count:I
basic.get-empty        60 72 cluster_id:s
basic.ack              60 80 delivery_tag:Q multiple:b
basic.reject           60 90 delivery_tag:Q requeue:b
basic.recover-async    60 100 requeue:b
basic.recover          60 110 requeue:b
basic.recover-ok       60 111
basic.nack             60 120 delivery_tag:Q multiple:b requeue:b
confirm.select         85 10 nowait:b
confirm.select-ok      85 11
tx.select              90 10
tx.select-ok           90 11
tx.commit              90 20
tx.commit-ok           90 21
tx.rollback            90 30
tx.rollback-ok         90 31
"""

BY_NAME, BY_ID = {}, {}
for _line in _TABLE.split("\n"):
    if _line:
        _name, _class, _method, *_fields = _line.split()
        _entry = (_name, int(_class), int(_method), [tuple(field.split(":")) for field in _fields])
        BY_NAME[_name] = BY_ID[_entry[1:3]] = _entry

WITH_CONTENT = ("basic.deliver", "basic.get-ok", "basic.return")


# ---- values


class Field:
    """A table's value with its type tag and its encoded bytes, for types that Python does not tell apart."""

    def __init__(self, tag, encoded):
        self.bytes = tag + encoded


def short(text):
    raw = text.encode() if isinstance(text, str) else text
    return bytes([len(raw)]) + raw


def long(text):
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def encode_value(value):
    if isinstance(value, Field):
        return value.bytes
    if isinstance(value, bool):
        return b"t" + bytes([value])
    if isinstance(value, int):
        return b"I" + struct.pack(">i", value) if -(1 << 31) <= value < 1 << 31 else b"l" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if value is None:
        return b"V"
    if isinstance(value, dict):
        return b"F" + long(encode_entries(value))
    if isinstance(value, list):
        return b"A" + long(b"".join(map(encode_value, value)))
    return b"S" + long(value)


def encode_entries(entries):
    """A table's bytes without its length; bytes are taken as they are."""
    if isinstance(entries, bytes):
        return entries
    return b"".join(short(name) + encode_value(value) for name, value in entries.items())


class Reader:
    def __init__(self, data):
        self.data, self.at, self.bit_at = data, 0, None

    def take(self, count):
        assert self.at + count <= len(self.data), "the broker's frame ends inside a field"
        self.bit_at = None
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form):
        return struct.unpack(">" + form, self.take(struct.calcsize(form)))[0]

    def bit(self):
        if self.bit_at in (None, 8):
            self.bits, self.bit_at = self.number("B"), 0
        self.bit_at += 1
        return bool(self.bits >> (self.bit_at - 1) & 1)

    def short(self):
        return self.take(self.number("B"))

    def long(self):
        return self.take(self.number("I"))

    def value(self):
        tag = self.take(1)
        numbers = {b"b": "b", b"B": "B", b"s": "h", b"u": "H", b"I": "i", b"i": "I", b"l": "q", b"L": "q", b"f": "f"}
        numbers |= {b"d": "d", b"T": "Q"}
        if tag in numbers:
            return self.number(numbers[tag])
        if tag == b"t":
            return bool(self.number("B"))
        if tag in (b"S", b"x"):
            return self.long().decode(errors="replace")
        if tag == b"F":
            return decode_entries(self.long())
        if tag == b"A":
            items, inner = [], Reader(self.long())
            while inner.at < len(inner.data):
                items.append(inner.value())
            return items
        if tag == b"V":
            return None
        raise AssertionError(f"the broker sent a table with the type {tag}")


def decode_entries(data):
    entries, reader = {}, Reader(data)
    while reader.at < len(data):
        name = reader.short().decode()
        entries[name] = reader.value()
    return entries


def encode_method(name, **given):
    """Class, method and arguments; what is not given is empty, 0 or false."""
    _, class_id, method_id, fields = BY_NAME[name]
    canaries.remember_method(name, given)
    out, bits, count = struct.pack(">HH", class_id, method_id), 0, 0
    for field, kind in fields:
        value = given.pop(field, None)
        if kind == "b":
            bits, count = bits | bool(value) << count, count + 1
            continue
        if count:
            out, bits, count = out + bytes([bits]), 0, 0
        if kind == "s":
            out += short(value or "")
        elif kind == "L":
            out += long(value or "")
        elif kind == "F":
            out += long(encode_entries(value or {}))
        else:
            out += struct.pack(">" + kind, value or 0)
    assert not given, f"{name} has no {given}"
    return out + bytes([bits]) if count else out


class Method:
    """A method that came: `name`, `channel`, and its fields as attributes; with content `properties` and `body`."""

    def __init__(self, channel, payload):
        ids = struct.unpack(">HH", payload[:4])
        assert ids in BY_ID, f"the broker sent an unknown method {ids}"
        self.name, _, _, fields = BY_ID[ids]
        self.channel, self.fields, self.properties, self.body = channel, {}, b"", b""
        reader = Reader(payload[4:])
        for field, kind in fields:
            if kind == "b":
                value = reader.bit()
            elif kind == "s":
                value = reader.short().decode(errors="replace")
            elif kind == "L":
                value = reader.long().decode(errors="replace")
            elif kind == "F":
                value = decode_entries(reader.long())
            else:
                value = reader.number(kind)
            self.fields[field] = value
        assert reader.at == len(reader.data), f"bytes are left over behind {self.name}"

    def __getattr__(self, field):
        try:
            return self.__dict__["fields"][field]
        except KeyError:
            raise AttributeError(f"{self.name} has no {field}") from None

    def __repr__(self):
        body = f" body={self.body[:32]!r}" if self.name in WITH_CONTENT else ""
        return f"<{self.name} on {self.channel} {self.fields}{body}>"


class Closed(Exception):
    """The broker closed the channel or the connection."""

    def __init__(self, method):
        self.scope = method.name.split(".")[0]
        self.code, self.text = method.reply_code, method.reply_text
        ids = (method.class_id, method.method_id)
        self.cause = BY_ID[ids][0] if ids in BY_ID else ("none" if ids == (0, 0) else f"{ids[0]}.{ids[1]}")
        super().__init__(f"{self.scope} {self.code} {self.text} ({self.cause})")


class Gone(Exception):
    """The broker ended the connection without a close method."""


# ---- properties

PROPERTY_NAMES = (
    "content_type content_encoding headers delivery_mode priority correlation_id reply_to expiration "
    "message_id timestamp type user_id app_id cluster_id"
).split()


def properties(**given):
    """Property flags and list, as a content header carries them."""
    canaries.remember_content(given, b"")
    flags, out = 0, b""
    for place, name in enumerate(PROPERTY_NAMES):
        if name not in given:
            continue
        flags |= 1 << (15 - place)
        value = given.pop(name)
        if name == "headers":
            out += long(encode_entries(value))
        elif name in ("delivery_mode", "priority"):
            out += bytes([value])
        elif name == "timestamp":
            out += struct.pack(">Q", value)
        else:
            out += short(value)
    assert not given, f"no such property: {given}"
    return struct.pack(">H", flags) + out


def headers_of(block):
    """The headers table of a property block whose first property they are."""
    assert struct.unpack(">H", block[:2])[0] & 0xE000 == 0x2000, "headers are not the first property"
    return decode_entries(Reader(block[2:]).long())


# ---- frames


def frame(kind, channel, payload, end=END):
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + end


def content_header(channel, size, block=b"\x00\x00", class_id=60, weight=0):
    return frame(HEADER, channel, struct.pack(">HHQ", class_id, weight, size) + block)


class Broker:
    """Where a broker is, and who may log in."""

    def __init__(self, url, ca=None, certificate=None, is_strict=True):
        self.is_strict = is_strict
        parts = urlsplit(url)
        self.tls = parts.scheme == "amqps"
        self.host, self.port = parts.hostname, parts.port or (5671 if self.tls else 5672)
        self.user, self.password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        self.ca, self.certificate = ca, certificate

    def context(self, certificate=None):
        context = ssl.create_default_context(cafile=self.ca)
        if not self.is_strict:
            # A peer's own CA may lack what Python 3.13 insists on; that is not what is compared here.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if certificate:
            context.load_cert_chain(*certificate)
        return context

    def socket(self, certificate=None):
        plain = socket.create_connection((self.host, self.port), SECONDS_MAX)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context(certificate).wrap_socket(plain, server_hostname=self.host) if self.tls else plain


CAPABILITIES = {
    "publisher_confirms": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}


class Connection:
    """One connection. `open` goes through the whole handshake; the steps can be taken one by one as well."""

    def __init__(self, broker, certificate=None):
        self.broker = broker
        self.socket = broker.socket(certificate)
        self.buffer = b""
        self.ready = deque()
        self.partial = {}  # channel: [method, bytes missing or None]
        self.frame_max = 131072
        self.body_frames = []
        self.heartbeats = 0
        self.declared = set()

    # -- raw

    def send_bytes(self, data):
        self.socket.sendall(data)

    def send(self, channel, method, **arguments):
        self.send_bytes(frame(METHOD, channel, encode_method(method, **arguments)))
        if method in ("queue.declare", "exchange.declare"):
            kind = method.split(".")[0]
            self.declared.add((kind, arguments.get(kind, "")))

    def read_frame(self, seconds=SECONDS_MAX):
        """Type, channel, payload of the next frame; raises Gone at the end of the connection."""
        while True:
            if len(self.buffer) >= 7:
                kind, channel, size = struct.unpack(">BHI", self.buffer[:7])
                if len(self.buffer) >= size + 8:
                    payload, end = self.buffer[7 : 7 + size], self.buffer[7 + size : 8 + size]
                    assert end == END, f"the broker's frame ends with {end}"
                    self.buffer = self.buffer[8 + size :]
                    return kind, channel, payload
            self.read_more(seconds)

    def read_more(self, seconds):
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            raise
        except OSError as error:
            raise Gone(str(error)) from None
        if not data:
            raise Gone("end of the connection")
        self.buffer += data

    def read_to_end(self):
        """Everything until the broker closes the socket."""
        with contextlib.suppress(Gone):
            while True:
                self.read_more(SECONDS_MAX)
        return self.buffer

    # -- methods

    def receive(self, seconds=SECONDS_MAX):
        """The next method, whole with its content; heartbeats are only counted."""
        while True:
            kind, channel, payload = self.read_frame(seconds)
            if kind == HEARTBEAT:
                self.heartbeats += 1
                continue
            if kind == METHOD:
                method = Method(channel, payload)
                if method.name not in WITH_CONTENT:
                    return method
                assert channel not in self.partial, "a method in the middle of a content"
                self.partial[channel] = [method, None]
                continue
            method, missing = self.partial[channel]
            if kind == HEADER:
                class_id, weight, missing = struct.unpack(">HHQ", payload[:12])
                assert (class_id, weight) == (60, 0)
                method.properties = payload[12:]
            else:
                method.body += payload
                missing -= len(payload)
                self.body_frames.append(len(payload))
            self.partial[channel] = [method, missing]
            if missing == 0:
                del self.partial[channel]
                return method

    def next(self, channel, seconds=SECONDS_MAX):
        """The next method on that channel; what comes on others meanwhile is kept for them.

        A close is answered and raised as Closed."""
        for method in self.ready:
            if method.channel == channel:
                self.ready.remove(method)
                return self.judged(method)
        while True:
            method = self.receive(seconds)
            if method.channel in (channel, 0):
                return self.judged(method)
            self.ready.append(method)

    def judged(self, method):
        if method.name in ("connection.close", "channel.close"):
            with contextlib.suppress(OSError):
                self.send(method.channel, method.name + "-ok")
            raise Closed(method)
        return method

    def expect(self, channel, name, **fields):
        """The next method on that channel must be this one, with these fields."""
        method = self.next(channel)
        assert method.name == name, f"{name} expected, got {method}"
        for field, value in fields.items():
            got = getattr(method, field)
            assert got == value, f"{name}.{field}: {value!r} expected, got {got!r}"
        return method

    def call(self, channel, name, **arguments):
        """Sends a method and takes the next one on that channel, which must be its answer."""
        self.send(channel, name, **arguments)
        answer = self.next(channel)
        right = [name + "-ok"] + ["basic.get-empty"] * (name == "basic.get")
        assert answer.name in right, f"{name} was answered with {answer}"
        return answer

    # -- the handshake

    def start(self):
        self.send_bytes(PROTOCOL_HEADER)
        return self.expect(0, "connection.start")

    def start_ok(self, mechanism="PLAIN", response=None, capabilities=CAPABILITIES, properties=None):
        if response is None:
            response = f"\0{self.broker.user}\0{self.broker.password}"
        given = {"capabilities": capabilities} if properties is None else properties
        self.send(0, "connection.start-ok", client_properties=given, mechanism=mechanism, response=response, locale="en_US")

    def tune(self, channel_max=None, frame_max=None, heartbeat=30):
        """With heartbeats unless a case says otherwise: RabbitMQ sometimes misses that a TLS client is gone, and
        would keep its exclusive queues for ever."""
        offered = self.expect(0, "connection.tune")
        channel_max = offered.channel_max if channel_max is None else channel_max
        frame_max = offered.frame_max if frame_max is None else frame_max
        self.send(0, "connection.tune-ok", channel_max=channel_max, frame_max=frame_max, heartbeat=heartbeat)
        self.frame_max = frame_max or 1 << 31
        return offered

    def open(self, vhost="/", capabilities=CAPABILITIES, **tuned):
        self.start()
        self.start_ok(capabilities=capabilities)
        self.tune(**tuned)
        self.call(0, "connection.open", virtual_host=vhost)
        return self

    def channel(self, number=1):
        self.call(number, "channel.open")
        return Channel(self, number)

    def close(self):
        """connection.close and close-ok; what else comes on the way is dropped."""
        self.send(0, "connection.close", reply_code=200, reply_text="done")
        while self.next(0).name != "connection.close-ok":
            pass
        self.socket.close()

    def drop(self):
        """The socket goes without a word."""
        self.socket.close()


class Channel:
    """One channel of a connection, for what tests say most often."""

    def __init__(self, connection, number):
        self.connection, self.number = connection, number

    def send(self, method, **arguments):
        self.connection.send(self.number, method, **arguments)

    def call(self, method, **arguments):
        return self.connection.call(self.number, method, **arguments)

    def expect(self, name, **fields):
        return self.connection.expect(self.number, name, **fields)

    def next(self):
        return self.connection.next(self.number)

    def publish(self, routing_key, body=b"", exchange="", block=b"\x00\x00", **flags):
        """Method, header and body in as many frames as the negotiated size asks for, in one write."""
        body = body.encode() if isinstance(body, str) else body
        canaries.remember(body)
        size = self.connection.frame_max - 8
        method = encode_method("basic.publish", exchange=exchange, routing_key=routing_key, **flags)
        frames = [frame(METHOD, self.number, method), content_header(self.number, len(body), block)]
        frames += [frame(BODY, self.number, body[at : at + size]) for at in range(0, len(body), size)]
        self.connection.send_bytes(b"".join(frames))

    def declare(self, queue="", **flags):
        """The name of a new queue; exclusive if nothing else is asked for."""
        return self.call("queue.declare", queue=queue, **(flags or {"exclusive": True})).queue

    def consume(self, queue="", **arguments):
        return self.call("basic.consume", queue=queue, **arguments).consumer_tag

    def deliveries(self, count):
        return [self.expect("basic.deliver") for _ in range(count)]

    def bodies(self, count):
        return [delivery.body.decode() for delivery in self.deliveries(count)]

    def get(self, queue, no_ack=True):
        """The next message, or None."""
        answer = self.call("basic.get", queue=queue, no_ack=no_ack)
        return None if answer.name == "basic.get-empty" else answer

    def drain(self, queue):
        """The bodies of all that is ready, taken for good."""
        bodies = []
        while (message := self.get(queue)) is not None:
            bodies.append(message.body.decode())
        return bodies

    def counts(self, queue):
        """Ready messages and consumers, by a passive declare. In RabbitMQ it may overtake publishes and
        acknowledgements of the same channel: see `expect_counts`."""
        answer = self.call("queue.declare", queue=queue, passive=True)
        return answer.message_count, answer.consumer_count

    def expect_counts(self, queue, ready, consumers, seconds=SECONDS_MAX):
        """Waits until the queue counts so much. One message too many delivered and it never does."""
        deadline = time.monotonic() + seconds
        while (counts := self.counts(queue)) != (ready, consumers):
            assert time.monotonic() < deadline, f"{queue}: {(ready, consumers)} expected, got {counts}"
            time.sleep(0.01)
