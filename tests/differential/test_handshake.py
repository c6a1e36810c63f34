"""From the protocol header to connection.open-ok: what is offered, what is taken, and how it is refused.

RabbitMQ ends most faults of the handshake by closing the socket after three seconds, without a word. SealMQ
ends them too, and says why wherever the peer has shown that it can read a method; `ended` takes either.
"""

import time

import amqp
import pytest

CAPABILITIES = [
    "authentication_failure_close",
    "basic.nack",
    "connection.blocked",
    "consumer_cancel_notify",
    "consumer_priorities",
    "direct_reply_to",
    "exchange_exchange_bindings",
    "per_consumer_qos",
    "publisher_confirms",
]


def ended(connection):
    """What the broker says before it ends the connection: code and text, or None when it says nothing."""
    try:
        method = connection.next(0)
    except amqp.Closed as closed:
        return closed.code, closed.text
    except amqp.Gone:
        return None
    pytest.fail(f"the broker went on with {method}")


def log_in(connection, mechanism, response, **options):
    connection.start()
    connection.start_ok(mechanism, response, **options)
    connection.tune()
    return connection.call(0, "connection.open", virtual_host="/")


def amqplain(broker, user=None, password=None):
    login = {"LOGIN": user or broker.user, "PASSWORD": password or broker.password}
    return amqp.encode_entries(login)


# ---- connection.start


def test_the_server_introduces_itself_as_rabbitmq_does(connect):
    start = connect.bare().start()
    assert (start.version_major, start.version_minor, start.locales) == (0, 9, "en_US")
    given = start.server_properties
    assert sorted(given) == ["capabilities", "cluster_name", "copyright", "information", "platform", "product", "version"]
    assert given["product"] == "RabbitMQ"
    major, minor, patch = map(int, given["version"].split("."))
    assert (major, minor, patch) >= (3, 10, 0)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_server_has_the_capability(connect, capability):
    assert connect.bare().start().server_properties["capabilities"][capability] is True


def test_the_server_has_no_other_capability(connect):
    assert sorted(connect.bare().start().server_properties["capabilities"]) == CAPABILITIES


@pytest.mark.parametrize("mechanism", ["PLAIN", "AMQPLAIN"])
def test_the_mechanism_is_offered(connect, mechanism):
    assert mechanism in connect.bare().start().mechanisms.split(" ")


# ---- the protocol header


def test_the_header_of_a_0_9_client_is_taken(connect):
    connection = connect.bare()
    connection.send_bytes(b"AMQP\x01\x01\x00\x09")
    connection.expect(0, "connection.start", version_major=0, version_minor=9)


def test_the_header_may_come_byte_by_byte(connect):
    connection = connect.bare()
    for byte in amqp.PROTOCOL_HEADER:
        connection.send_bytes(bytes([byte]))
    connection.expect(0, "connection.start")


@pytest.mark.parametrize(
    "header", [b"AMQP\x00\x00\x08\x00", b"AMQP\x00\x00\x09\x00", b"AMQP\x01\x01\x08\x00", b"AMQP\x02\x01\x00\x00", b"XXXXXXXX", b"GET / HT"]
)
def test_another_header_is_answered_with_the_right_one(connect, is_rabbitmq, header):
    """RabbitMQ 4 speaks AMQP 1.0 as well and answers most of them with that protocol's header."""
    connection = connect.bare()
    connection.send_bytes(header)
    right = [amqp.PROTOCOL_HEADER] + [b"AMQP\x03\x01\x00\x00"] * is_rabbitmq
    assert connection.read_to_end() in right


# ---- logins


def test_plain(connect, broker):
    log_in(connect.bare(), "PLAIN", f"\0{broker.user}\0{broker.password}")


def test_amqplain(connect, broker):
    log_in(connect.bare(), "AMQPLAIN", amqplain(broker))


def test_amqplain_with_the_password_first_and_more(connect, broker):
    login = amqp.encode_entries({"x": 1, "PASSWORD": broker.password, "LOGIN": broker.user})
    log_in(connect.bare(), "AMQPLAIN", login)


REFUSED = {
    "a wrong password": ("PLAIN", lambda b: f"\0{b.user}\0wrong"),
    "an empty password": ("PLAIN", lambda b: f"\0{b.user}\0"),
    "a password with a byte too many": ("PLAIN", lambda b: f"\0{b.user}\0{b.password}x"),
    "nobody": ("PLAIN", lambda b: f"\0nobody-of-that-name\0{b.password}"),
    "an empty user": ("PLAIN", lambda b: f"\0\0{b.password}"),
    "a user in capitals": ("PLAIN", lambda b: f"\0{b.user.upper()}\0{b.password}"),
    "a wrong password, AMQPLAIN": ("AMQPLAIN", lambda b: amqplain(b, password="wrong")),
    "nobody, AMQPLAIN": ("AMQPLAIN", lambda b: amqplain(b, user="nobody-of-that-name")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_login_is_told_to_who_can_take_it(connect, broker, fault_of, case):
    mechanism, response = REFUSED[case]
    connection = connect.bare()
    connection.start()
    connection.start_ok(mechanism, response(broker))
    text = (
        f"ACCESS_REFUSED - Login was refused using authentication mechanism {mechanism}. "
        "For details see the broker logfile."
    )
    assert fault_of(lambda: connection.next(0)) == ("connection", 403, text, "none")


@pytest.mark.parametrize("case", ["a wrong password", "nobody, AMQPLAIN"])
@pytest.mark.parametrize("capabilities", [{}, {"authentication_failure_close": False}])
def test_a_refused_login_ends_silently_for_who_cannot(connect, broker, case, capabilities):
    mechanism, response = REFUSED[case]
    connection = connect.bare()
    connection.start()
    connection.start_ok(mechanism, response(broker), capabilities=capabilities)
    assert connection.read_to_end() == b""


def test_a_refused_login_without_the_capability_is_kept_waiting(connect, broker):
    """Three seconds in RabbitMQ; what matters is that guessing is slow."""
    connection = connect.bare()
    connection.start()
    connection.start_ok(response=f"\0{broker.user}\0wrong", capabilities={})
    before = time.monotonic()
    connection.read_to_end()
    assert time.monotonic() - before > 1


MALFORMED = {
    "no NUL at all": ("PLAIN", lambda b: "nonsense"),
    "an empty PLAIN response": ("PLAIN", lambda b: ""),
    "one NUL": ("PLAIN", lambda b: f"\0{b.user}"),
    "a password with a NUL behind": ("PLAIN", lambda b: f"\0{b.user}\0{b.password}\0"),
    "no leading NUL": ("PLAIN", lambda b: f"{b.user}\0{b.password}"),
    "somebody else's authorisation": ("PLAIN", lambda b: f"other\0{b.user}\0{b.password}"),
    "AMQPLAIN without a password": ("AMQPLAIN", lambda b: amqp.encode_entries({"LOGIN": b.user})),
    "AMQPLAIN without a login": ("AMQPLAIN", lambda b: amqp.encode_entries({"PASSWORD": b.password})),
    "AMQPLAIN that is no table": ("AMQPLAIN", lambda b: b"\xff\xff"),
    "AMQPLAIN that is empty": ("AMQPLAIN", lambda b: ""),
    "a mechanism nobody knows": ("NOPE", lambda b: ""),
    "no mechanism": ("", lambda b: ""),
    "plain in small letters": ("plain", lambda b: f"\0{b.user}\0{b.password}"),
    "EXTERNAL without a certificate": ("EXTERNAL", lambda b: ""),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_login_ends_the_connection(connect, broker, case):
    mechanism, response = MALFORMED[case]
    connection = connect.bare()
    connection.start()
    connection.start_ok(mechanism, response(broker))
    assert ended(connection) is None


@pytest.fixture
def certificate(broker):
    """Only a SealMQ of our own: the peer asks for no client certificates."""
    if not broker.certificate:
        pytest.skip("no client certificate for this broker")
    return broker.certificate


def test_external_takes_the_user_from_the_client_certificate(connect, broker, certificate):
    connection = connect.bare(certificate)
    assert "EXTERNAL" in connection.start().mechanisms.split(" ")
    connection.start_ok("EXTERNAL", "")
    connection.tune()
    connection.call(0, "connection.open", virtual_host="/")
    ch = connection.channel()
    own = ch.declare()
    # The user is the certificate's: user_id is checked against it.
    ch.publish(own, "x", block=amqp.properties(user_id=broker.user))
    assert ch.drain(own) == ["x"]


def test_a_certificate_does_not_replace_a_password(connect, broker, certificate, fault_of):
    connection = connect.bare(certificate)
    connection.start()
    connection.start_ok(response=f"\0{broker.user}\0wrong")
    assert fault_of(lambda: connection.next(0))[1] == 403


def test_external_is_not_offered_without_a_certificate(connect):
    assert "EXTERNAL" not in connect.bare().start().mechanisms.split(" ")


# ---- client properties


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"capabilities": {}},
        {"capabilities": "not a table"},
        {"product": 5, "nothing": None, "list": [1, [2, {}]], "connection_name": "a name"},
        {"connection_name": "x" * 2000},
    ],
)
def test_odd_client_properties_are_taken(connect, properties):
    connection = connect.bare()
    connection.start()
    connection.start_ok(properties=properties)
    connection.tune()
    connection.call(0, "connection.open", virtual_host="/")


def test_the_locale_is_not_looked_at(connect, broker):
    connection = connect.bare()
    connection.start()
    response = f"\0{broker.user}\0{broker.password}"
    connection.send(0, "connection.start-ok", client_properties={}, mechanism="PLAIN", response=response, locale="xx_YY")
    connection.tune()
    connection.call(0, "connection.open", virtual_host="/")


# ---- connection.tune


def test_the_tune_offered_has_rabbitmqs_defaults(connect):
    connection = connect.bare()
    connection.start()
    connection.start_ok()
    connection.expect(0, "connection.tune", channel_max=2047, frame_max=131072, heartbeat=60)


@pytest.mark.parametrize(
    "tuned",
    [
        {"frame_max": 131072},
        {"frame_max": 8192},
        {"frame_max": 4096},
        {"channel_max": 1},
        {"channel_max": 2047},
        {"heartbeat": 0},
        {"heartbeat": 1},
        {"heartbeat": 60},
        {"heartbeat": 65535},
    ],
    ids=str,
)
def test_the_tune_ok_is_taken(connect, name, tuned):
    """frame_max 4096 is what RabbitMQ took up to 4.0, and old clients ask for; 4.1 raised the minimum to 8192."""
    ch = connect(**tuned).channel()
    ch.declare(name)
    ch.publish(name, "x" * 20000)
    assert len(ch.get(name).body) == 20000


HIGHER = "NOT_ALLOWED - negotiated {} is higher than the maximum allowed value ({})"
LOWER = "NOT_ALLOWED - negotiated {} is lower than the minimum allowed value ({})"


@pytest.mark.parametrize(
    "tuned, text",
    [
        ({"frame_max": 131073}, HIGHER.format("frame_max = 131073", 131072)),
        ({"frame_max": 0}, HIGHER.format("frame_max = no limit", 131072)),
        ({"frame_max": 4095}, LOWER.format("frame_max = 4095", 4096)),
        ({"frame_max": 1}, LOWER.format("frame_max = 1", 4096)),
        ({"channel_max": 2048}, HIGHER.format("channel_max = 2048", 2047)),
        ({"channel_max": 65535}, HIGHER.format("channel_max = 65535", 2047)),
    ],
    ids=str,
)
def test_a_tune_ok_beyond_the_limits_ends_the_connection(connect, is_rabbitmq, tuned, text):
    """RabbitMQ puts the text into its log only; from SealMQ the client has it as well."""
    connection = connect.bare()
    connection.start()
    connection.start_ok()
    connection.tune(**tuned)
    connection.send(0, "connection.open", virtual_host="/")
    assert ended(connection) == (None if is_rabbitmq else (530, text))


def test_channel_max_0_means_what_was_offered(connect, is_rabbitmq):
    """RabbitMQ refuses it, as "no limit" where there is one; SealMQ takes it for the limit offered, which is what
    the clients that send it mean."""
    connection = connect.bare()
    connection.start()
    connection.start_ok()
    connection.tune(channel_max=0)
    connection.send(0, "connection.open", virtual_host="/")
    if is_rabbitmq:
        assert ended(connection) is None
        return
    connection.expect(0, "connection.open-ok")
    connection.channel(2047)
    with pytest.raises(amqp.Closed, match="530 NOT_ALLOWED"):
        connection.channel(2048)


# ---- connection.open


def test_the_default_virtual_host_opens(connect):
    connect("/")


@pytest.mark.parametrize("vhost", ["nope", "", "//", "/ ", "x" * 200])
def test_another_virtual_host_is_not_found(connect, fault_of, vhost):
    text = f"NOT_ALLOWED - vhost {vhost} not found"
    assert fault_of(lambda: connect(vhost)) == ("connection", 530, text, "connection.open")


# ---- out of order


def before_start_ok(connection):
    connection.start()


def before_tune_ok(connection):
    connection.start()
    connection.start_ok()
    connection.expect(0, "connection.tune")


def before_open(connection):
    connection.start()
    connection.start_ok()
    connection.tune()


OUT_OF_ORDER = {
    "tune-ok for start-ok": (before_start_ok, 0, "connection.tune-ok"),
    "open for start-ok": (before_start_ok, 0, "connection.open"),
    "channel.open for start-ok": (before_start_ok, 1, "channel.open"),
    "open for tune-ok": (before_tune_ok, 0, "connection.open"),
    "start-ok twice": (before_tune_ok, 0, "connection.start-ok"),
    "tune-ok twice": (before_open, 0, "connection.tune-ok"),
    "start-ok after tune-ok": (before_open, 0, "connection.start-ok"),
}


@pytest.mark.parametrize("case", OUT_OF_ORDER)
def test_a_method_out_of_order_ends_the_connection(connect, case):
    before, channel, method = OUT_OF_ORDER[case]
    connection = connect.bare()
    before(connection)
    connection.send(channel, method)
    ended(connection)


@pytest.mark.parametrize(
    "channel, method, code", [(1, "channel.open", 505), (1, "basic.qos", 505), (0, "queue.declare", 504), (0, "channel.open", 504)]
)
def test_a_method_that_needs_an_open_connection(connect, channel, method, code):
    connection = connect.bare()
    before_open(connection)
    connection.send(channel, method)
    assert ended(connection)[0] == code


def test_content_before_connection_open(connect):
    connection = connect.bare()
    before_open(connection)
    connection.send_bytes(amqp.content_header(1, 4))
    assert ended(connection)[0] == 505


def test_heartbeats_during_the_handshake_are_taken(connect):
    heartbeat = amqp.frame(amqp.HEARTBEAT, 0, b"")
    connection = connect.bare()
    connection.start()
    connection.send_bytes(heartbeat)
    connection.start_ok()
    connection.send_bytes(heartbeat)
    connection.tune()
    connection.send_bytes(heartbeat)
    connection.call(0, "connection.open", virtual_host="/")


def test_a_frame_too_large_for_before_the_login_ends_the_connection(connect):
    """RabbitMQ up to 4.0 takes 4096 bytes before the login, later ones and SealMQ 8192."""
    connection = connect.bare()
    connection.start()
    connection.start_ok(properties={"x": "y" * 9000})
    assert ended(connection) is None


def test_the_frames_of_a_handshake_may_come_in_pieces(connect, broker):
    connection = connect.bare()
    connection.start()
    response = f"\0{broker.user}\0{broker.password}"
    method = amqp.encode_method(
        "connection.start-ok", client_properties={}, mechanism="PLAIN", response=response, locale="en_US"
    )
    for byte in amqp.frame(amqp.METHOD, 0, method):
        connection.send_bytes(bytes([byte]))
    connection.tune()
    connection.call(0, "connection.open", virtual_host="/")


# ---- connection.close


@pytest.mark.parametrize("code", [0, 200, 320, 541, 65535])
def test_close_is_answered_whatever_the_code(connect, code):
    connection = connect()
    connection.send(0, "connection.close", reply_code=code, reply_text="x" * 255, class_id=60, method_id=40)
    connection.expect(0, "connection.close-ok")


def test_after_a_fault_nothing_is_heard_but_close_ok(connect, name):
    connection = connect()
    connection.channel()
    connection.send(1, "channel.open")
    connection.send(1, "queue.declare", queue=name, durable=True)
    with pytest.raises(amqp.Closed, match="504"):
        connection.next(1)
    assert connection.read_to_end() == b""
    with pytest.raises(amqp.Closed, match="404"):
        connect().channel().counts(name)
