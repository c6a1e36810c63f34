"""Who may do what: permissions on resources, access to the virtual host, user_id, update-secret.

The users come from the configuration of a SealMQ of the file's own, and from the management API of RabbitMQ
(`PEER_MANAGEMENT`, http://localhost:21673 unless it says otherwise), which loses them again at the end.
"""

import base64
import copy
import json
import os
import urllib.parse
import urllib.request

import amqp
import pytest
from native import Native

PASSWORD = "a-password-of-the-access-tests"
NOTHING, ALL, OWN = "^$", ".*", "-own-"

# user: configure, write, read; None is a user without any access to the virtual host.
USERS = {
    "diff-nobody": None,
    "diff-conf": (ALL, NOTHING, NOTHING),
    "diff-write": (NOTHING, ALL, NOTHING),
    "diff-read": (NOTHING, NOTHING, ALL),
    "diff-cw": (ALL, ALL, NOTHING),
    "diff-cr": (ALL, NOTHING, ALL),
    "diff-own": (OWN, OWN, OWN),
    "diff-default": (NOTHING, r"^amq\.default$", NOTHING),
    "diff-empty": ("", "", ""),
    "diff-for-others": (ALL, ALL, ALL),
}
TAGS = {"diff-for-others": "impersonator", "diff-nobody": "administrator"}


def as_configuration():
    lines = []
    for user, permissions in USERS.items():
        key = f"default_users.{user}"
        lines += [f"{key}.password = {PASSWORD}", f"{key}.tags = {TAGS.get(user, 'management')}"]
        lines += [f"{key}.vhost_pattern = {'^elsewhere$' if permissions is None else '^/$'}"]
        for right, pattern in zip(("configure", "write", "read"), permissions or (ALL, ALL, ALL)):
            lines.append(f"{key}.{right} = '{pattern}'")
    return "\n".join(lines) + "\n"


def management(broker, method, path, body=None):
    url = os.environ.get("PEER_MANAGEMENT", "http://localhost:21673") + "/api/" + path
    login = base64.b64encode(f"{broker.user}:{broker.password}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=15).close()


@pytest.fixture(scope="module")
def house(broker, is_rabbitmq, request, tmp_path_factory):
    """A broker that knows the users."""
    if not is_rabbitmq:
        if request.config.getoption("--broker"):
            pytest.skip("a SealMQ that is given does not know the users of these tests")
        native = Native(tmp_path_factory.mktemp("access"), settings=as_configuration())
        settings = native.environment
        login = f"{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASS']}"
        yield amqp.Broker(f"amqps://{login}@localhost:{native.tls_port}", native.certs / "certs" / "ca_certificate.pem")
        native.stop()
        return
    for user, permissions in USERS.items():
        management(broker, "PUT", f"users/{user}", {"password": PASSWORD, "tags": TAGS.get(user, "management")})
        if permissions is not None:
            rights = dict(zip(("configure", "write", "read"), permissions))
            management(broker, "PUT", f"permissions/%2F/{user}", rights)
    yield broker
    for user in USERS:
        management(broker, "DELETE", "users/" + urllib.parse.quote(user))


@pytest.fixture
def log_in(house):
    """Opens a connection of one of the users; the administrator's without a name."""
    made = []

    def log_in(user=None, vhost="/"):
        who = copy.copy(house)
        if user:
            who.user, who.password = user, PASSWORD
        made.append(amqp.Connection(who))
        return made[-1].open(vhost)

    yield log_in
    for connection in made:
        connection.drop()


@pytest.fixture
def things(log_in, name):
    """Queues and exchanges of the administrator's, some of them with `-own-` in their names."""
    ch = log_in().channel()
    for middle in ("", "-own-"):
        ch.call("queue.declare", queue=f"{name}{middle}q", durable=True)
        ch.call("exchange.declare", exchange=f"{name}{middle}x", type="topic")
    yield name
    for middle in ("", "-own-"):
        for suffix in ("q", "new-q"):
            ch.call("queue.delete", queue=f"{name}{middle}{suffix}")
        for suffix in ("x", "new-x"):
            ch.call("exchange.delete", exchange=f"{name}{middle}{suffix}")


def refused(right, kind, thing, user):
    return f"ACCESS_REFUSED - {right} access to {kind} '{thing}' in vhost '/' refused for user '{user}'"


# What is done, by whom, and the right, kind and resource that is refused ({n} is the case's own prefix). A call is
# (method, arguments); of several the last is the one that is refused.
def declare_queue(suffix="new-q", **arguments):
    return "queue.declare", {"queue": "{n}" + suffix, "durable": True, "arguments": arguments}


def declare_exchange(suffix="new-x", **arguments):
    return "exchange.declare", {"exchange": "{n}" + suffix, "type": "topic", "arguments": arguments}


def bind(queue, exchange, method="queue.bind"):
    return method, {"queue": "{n}" + queue, "exchange": "{n}" + exchange if exchange else ""}


def bind_exchange(destination, source, method="exchange.bind"):
    return method, {"destination": "{n}" + destination, "source": "{n}" + source}


DEAD_LETTERED = {"x-dead-letter-exchange": "{n}x"}
WITH_ALTERNATE = {"alternate-exchange": "{n}x"}
REFUSED = {
    "declare a queue": (declare_queue(), "diff-write", ("configure", "queue", "{n}new-q")),
    "declare a queue that is there": (declare_queue("q"), "diff-read", ("configure", "queue", "{n}q")),
    "declare a queue, its name not one's own": (declare_queue(), "diff-own", ("configure", "queue", "{n}new-q")),
    "declare a queue without any right": (declare_queue(), "diff-empty", ("configure", "queue", "{n}new-q")),
    "declare a queue that is there with other arguments": (
        declare_queue("q", **{"x-max-length": 1}), "diff-read", ("configure", "queue", "{n}q")),
    "declare a queue with dead letters, unread": (
        declare_queue(**DEAD_LETTERED), "diff-cw", ("read", "queue", "{n}new-q")),
    "declare a queue with dead letters, unwritten": (
        declare_queue(**DEAD_LETTERED), "diff-cr", ("write", "exchange", "{n}x")),
    "declare a queue with dead letters to the default exchange": (
        declare_queue(**{"x-dead-letter-exchange": ""}), "diff-cr", ("write", "exchange", "amq.default")),
    "declare a queue with dead letters to nowhere": (
        declare_queue(**{"x-dead-letter-exchange": "{n}nowhere"}), "diff-cr", ("write", "exchange", "{n}nowhere")),
    "delete a queue": (("queue.delete", {"queue": "{n}q"}), "diff-write", ("configure", "queue", "{n}q")),
    "delete a queue that is not there": (
        ("queue.delete", {"queue": "{n}none"}), "diff-read", ("configure", "queue", "{n}none")),
    "purge": (("queue.purge", {"queue": "{n}q"}), "diff-cw", ("read", "queue", "{n}q")),
    "purge a queue that is not there": (("queue.purge", {"queue": "{n}none"}), "diff-cw", ("read", "queue", "{n}none")),
    "get": (("basic.get", {"queue": "{n}q"}), "diff-cw", ("read", "queue", "{n}q")),
    "get from a queue that is not there": (("basic.get", {"queue": "{n}none"}), "diff-cw", ("read", "queue", "{n}none")),
    "consume": (("basic.consume", {"queue": "{n}q"}), "diff-cw", ("read", "queue", "{n}q")),
    "consume from a queue that is not there": (
        ("basic.consume", {"queue": "{n}none"}), "diff-cw", ("read", "queue", "{n}none")),
    "bind, the queue unwritten": (bind("q", "x"), "diff-cr", ("write", "queue", "{n}q")),
    "bind, the exchange unread": (bind("q", "x"), "diff-cw", ("read", "exchange", "{n}x")),
    "bind, nothing of it": (bind("q", "x"), "diff-conf", ("write", "queue", "{n}q")),
    "bind one's own queue to another's exchange": (bind("-own-q", "x"), "diff-own", ("read", "exchange", "{n}x")),
    "bind what is not there": (bind("none", "nowhere"), "diff-read", ("write", "queue", "{n}none")),
    "bind to what is not there": (bind("q", "nowhere"), "diff-write", ("read", "exchange", "{n}nowhere")),
    "unbind, the queue unwritten": (bind("q", "x", "queue.unbind"), "diff-cr", ("write", "queue", "{n}q")),
    "unbind, the exchange unread": (bind("q", "x", "queue.unbind"), "diff-cw", ("read", "exchange", "{n}x")),
    "bind to the default exchange, unwritten": (bind("q", ""), "diff-read", ("write", "queue", "{n}q")),
    "bind exchanges, the destination unwritten": (
        bind_exchange("x", "-own-x"), "diff-cr", ("write", "exchange", "{n}x")),
    "bind exchanges, the source unread": (
        bind_exchange("x", "-own-x"), "diff-cw", ("read", "exchange", "{n}-own-x")),
    "unbind exchanges, the destination unwritten": (
        bind_exchange("x", "-own-x", "exchange.unbind"), "diff-cr", ("write", "exchange", "{n}x")),
    "unbind exchanges, the source unread": (
        bind_exchange("x", "-own-x", "exchange.unbind"), "diff-cw", ("read", "exchange", "{n}-own-x")),
    "declare an exchange": (declare_exchange(), "diff-write", ("configure", "exchange", "{n}new-x")),
    "declare an exchange that is there": (declare_exchange("x"), "diff-read", ("configure", "exchange", "{n}x")),
    "declare an exchange of a reserved name": (
        ("exchange.declare", {"exchange": "amq.direct", "type": "direct", "durable": True}),
        "diff-read", ("configure", "exchange", "amq.direct")),
    "declare an exchange with an alternate, unread": (
        declare_exchange(**WITH_ALTERNATE), "diff-cw", ("read", "exchange", "{n}new-x")),
    "declare an exchange with an alternate, unwritten": (
        declare_exchange(**WITH_ALTERNATE), "diff-cr", ("write", "exchange", "{n}x")),
    "delete an exchange": (("exchange.delete", {"exchange": "{n}x"}), "diff-read", ("configure", "exchange", "{n}x")),
    "delete an exchange that is not there": (
        ("exchange.delete", {"exchange": "{n}none"}), "diff-read", ("configure", "exchange", "{n}none")),
}


def filled_in(value, name):
    if isinstance(value, dict):
        return {key: filled_in(inner, name) for key, inner in value.items()}
    return value.replace("{n}", name) if isinstance(value, str) else value


@pytest.mark.parametrize("case", REFUSED)
def test_without_the_right_it_is_refused(log_in, things, fault_of, case):
    (method, arguments), user, (right, kind, thing) = REFUSED[case]
    ch = log_in(user).channel()
    got = fault_of(lambda: ch.call(method, **filled_in(arguments, things)))
    assert got == ("channel", 403, refused(right, kind, thing.replace("{n}", things), user), method)


ALLOWED = {
    "declare a queue": (declare_queue(), "diff-conf"),
    "declare a queue that is there": (declare_queue("q"), "diff-conf"),
    "declare a queue with dead letters that is there": (declare_queue("-own-q"), "diff-own"),
    "declare a queue of one's own": (declare_queue("-own-new-q"), "diff-own"),
    "declare a queue with one's own dead letters": (
        declare_queue("-own-new-q", **{"x-dead-letter-exchange": "{n}-own-x"}), "diff-own"),
    "delete a queue": (("queue.delete", {"queue": "{n}q"}), "diff-conf"),
    "purge": (("queue.purge", {"queue": "{n}q"}), "diff-read"),
    "get": (("basic.get", {"queue": "{n}q"}), "diff-read"),
    "consume": (("basic.consume", {"queue": "{n}q"}), "diff-read"),
    "bind one's own": (bind("-own-q", "-own-x"), "diff-own"),
    "unbind one's own": (bind("-own-q", "-own-x", "queue.unbind"), "diff-own"),
    "bind one's own exchanges": (bind_exchange("-own-x", "-own-x"), "diff-own"),
    "declare an exchange": (declare_exchange(), "diff-conf"),
    "declare an exchange with an alternate of one's own": (
        declare_exchange("-own-new-x", **{"alternate-exchange": "{n}-own-x"}), "diff-own"),
    "delete an exchange": (("exchange.delete", {"exchange": "{n}x"}), "diff-conf"),
    "look at a queue, with one right of three": (("queue.declare", {"queue": "{n}q", "passive": True}), "diff-write"),
    "look at an exchange, with one right of three": (
        ("exchange.declare", {"exchange": "{n}x", "passive": True}), "diff-read"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_with_the_right_it_is_done(log_in, things, case):
    (method, arguments), user = ALLOWED[case]
    log_in(user).channel().call(method, **filled_in(arguments, things))


WITHOUT_RIGHTS_AND_WRONG = {
    "a reserved queue name comes before the right": (
        ("queue.declare", {"queue": "amq.mine"}), "diff-empty",
        "queue name 'amq.mine' contains reserved prefix 'amq.*'"),
    "a reserved exchange name comes after the right": (
        ("exchange.declare", {"exchange": "amq.mine", "type": "direct"}), "diff-empty",
        "configure access to exchange 'amq.mine' in vhost '/' refused for user 'diff-empty'"),
    "the default exchange is declared by nobody": (
        ("exchange.declare", {"exchange": "", "type": "direct"}), "diff-empty",
        "operation not permitted on the default exchange"),
    "the default exchange is deleted by nobody": (
        ("exchange.delete", {"exchange": ""}), "diff-empty", "operation not permitted on the default exchange"),
    "a system exchange is deleted by nobody": (
        ("exchange.delete", {"exchange": "amq.direct"}), "diff-empty",
        "deletion of system exchange 'amq.direct' in vhost '/' not allowed"),
    "the default exchange as source comes before reading it": (
        bind("q", ""), "diff-write", "operation not permitted on the default exchange"),
}


@pytest.mark.parametrize("case", WITHOUT_RIGHTS_AND_WRONG)
def test_of_two_reasons_it_is_refused_for_rabbitmqs(log_in, things, fault_of, case):
    (method, arguments), user, text = WITHOUT_RIGHTS_AND_WRONG[case]
    ch = log_in(user).channel()
    got = fault_of(lambda: ch.call(method, **filled_in(arguments, things)))
    assert got == ("channel", 403, "ACCESS_REFUSED - " + text, method)


def test_an_exchange_type_that_nobody_knows_comes_before_the_right(log_in, things, fault_of):
    ch = log_in("diff-empty").channel()
    declare = lambda: ch.call("exchange.declare", exchange=things + "new-x", type="no-such-type")  # noqa: E731
    assert fault_of(declare)[1:3] == (406, "PRECONDITION_FAILED - unknown exchange type 'no-such-type'")


@pytest.mark.parametrize("kind", ["queue", "exchange"])
def test_without_any_right_to_it_not_even_its_presence_is_told(log_in, things, fault_of, is_rabbitmq, kind):
    """RabbitMQ up to 4.2 answers a passive declare of anybody's; since CVE-2026-57221 one right of three is asked for."""
    if is_rabbitmq:
        pytest.skip("this RabbitMQ does not check passive declares")
    ch = log_in("diff-own").channel()
    thing = f"{things}{kind[0] if kind == 'queue' else 'x'}"
    got = fault_of(lambda: ch.call(f"{kind}.declare", **{kind: thing}, passive=True))
    assert got == ("channel", 403, refused("configure", kind, thing, "diff-own"), f"{kind}.declare")


def test_a_queue_named_by_the_broker_needs_the_right_too(log_in, fault_of):
    scope, code, text, _ = fault_of(lambda: log_in("diff-own").channel().declare())
    assert (scope, code) == ("channel", 403)
    assert text.startswith("ACCESS_REFUSED - configure access to queue 'amq.gen-")
    assert log_in("diff-conf").channel().declare().startswith("amq.gen-")


# ---- publishing


def publish_and_wait(ch, key, exchange="", **more):
    """The fault of a publish comes by itself; what follows on the channel is not heard after it."""
    ch.publish(key, "x", exchange=exchange, **more)
    ch.call("basic.qos")


@pytest.mark.parametrize(
    "user, exchange, asked",
    [
        ("diff-conf", "{n}x", "{n}x"),
        ("diff-read", "", "amq.default"),
        ("diff-own", "", "amq.default"),
        ("diff-own", "{n}x", "{n}x"),
        ("diff-default", "{n}-own-x", "{n}-own-x"),
        ("diff-read", "{n}nowhere", "{n}nowhere"),
        ("diff-empty", "amq.topic", "amq.topic"),
    ],
)
def test_a_publish_needs_the_right_to_write_to_the_exchange(log_in, things, fault_of, user, exchange, asked):
    ch = log_in(user).channel()
    got = fault_of(lambda: publish_and_wait(ch, "k", exchange.replace("{n}", things)))
    text = refused("write", "exchange", asked.replace("{n}", things), user)
    assert got == ("channel", 403, text, "basic.publish")


@pytest.mark.parametrize("user, exchange", [("diff-own", "{n}-own-x"), ("diff-default", ""), ("diff-write", "{n}x")])
def test_with_the_right_a_publish_arrives(log_in, things, user, exchange):
    exchange = exchange.replace("{n}", things)
    admin = log_in().channel()
    if exchange:
        admin.call("queue.bind", queue=things + "q", exchange=exchange, routing_key="#")
    ch = log_in(user).channel()
    ch.call("confirm.select")
    for number in range(3):
        ch.publish(things + "q", str(number), exchange=exchange)
    confirmed = 0
    while confirmed < 3:
        ack = ch.expect("basic.ack")
        confirmed = ack.delivery_tag if ack.multiple else confirmed + 1
    assert admin.drain(things + "q") == ["0", "1", "2"]


def test_one_refused_publish_does_not_spoil_the_next_right_one(log_in, things, fault_of):
    """The right to write is remembered for the exchange that was asked for, not for the connection."""
    connection = log_in("diff-own")
    ch, other = connection.channel(1), connection.channel(2)
    publish_and_wait(ch, "k", things + "-own-x")
    assert fault_of(lambda: publish_and_wait(other, "k", things + "x"))[1] == 403
    publish_and_wait(ch, "k", things + "-own-x")
    again = connection.channel(2)
    assert fault_of(lambda: publish_and_wait(again, "k", things + "x"))[1] == 403


def test_within_a_transaction_a_publish_is_refused_at_once(log_in, things, fault_of):
    ch = log_in("diff-own").channel()
    ch.call("tx.select")
    publish_and_wait(ch, "k", things + "-own-x")
    got = fault_of(lambda: publish_and_wait(ch, "k", things + "x"))
    assert got == ("channel", 403, refused("write", "exchange", things + "x", "diff-own"), "basic.publish")


def test_dead_letters_go_where_their_queue_says_whoever_rejects(log_in, things):
    """The right to write to the dead letter exchange is asked for at the declaration, and never after."""
    admin = log_in().channel()
    name, target = things + "new-q", things + "q"
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": target}
    admin.call("queue.declare", queue=name, durable=True, arguments=arguments)
    admin.publish(name, "x")
    admin.expect_counts(name, 1, 0)
    reader = log_in("diff-read").channel()
    reader.send("basic.reject", delivery_tag=reader.get(name, no_ack=False).delivery_tag, requeue=False)
    admin.expect_counts(target, 1, 0)


# ---- the virtual host


def test_a_user_without_permissions_does_not_enter_the_virtual_host(log_in, fault_of):
    """Whatever the user's tags are."""
    text = "NOT_ALLOWED - access to vhost '/' refused for user 'diff-nobody'"
    assert fault_of(lambda: log_in("diff-nobody")) == ("connection", 530, text, "connection.open")


def test_a_virtual_host_that_is_not_there_comes_first(log_in, fault_of):
    text = "NOT_ALLOWED - vhost nope not found"
    assert fault_of(lambda: log_in("diff-nobody", "nope")) == ("connection", 530, text, "connection.open")


def test_a_user_with_empty_permissions_enters_and_may_do_nothing(log_in, things, fault_of):
    assert fault_of(lambda: log_in("diff-empty").channel().get(things + "q"))[1] == 403


# ---- user_id


def test_nobody_publishes_in_the_name_of_another(log_in, things, fault_of):
    ch = log_in("diff-write").channel()
    block = amqp.properties(user_id="somebody-else")
    got = fault_of(lambda: publish_and_wait(ch, things + "q", block=block))
    text = "PRECONDITION_FAILED - user_id property set to 'somebody-else' but authenticated user was 'diff-write'"
    assert got == ("channel", 406, text, "basic.publish")


@pytest.mark.parametrize("user, claimed", [("diff-write", "diff-write"), ("diff-for-others", "somebody-else")])
def test_ones_own_name_and_for_an_impersonator_any_other_is_taken(log_in, things, user, claimed):
    block = amqp.properties(user_id=claimed)
    publish_and_wait(log_in(user).channel(), things + "q", block=block)
    got = log_in().channel().get(things + "q")
    assert got.properties == block


# ---- connection.update-secret


@pytest.mark.parametrize("secret", [PASSWORD, "another-secret", ""])
def test_update_secret_is_answered_and_changes_nothing_for_a_password_user(log_in, things, secret):
    """A password is not checked again: only backends with tokens have something to renew."""
    connection = log_in("diff-own")
    ch = connection.channel()
    connection.call(0, "connection.update-secret", new_secret=secret, reason="because")
    publish_and_wait(ch, "k", things + "-own-x")
    log_in("diff-own")


def test_update_secret_grants_nothing(log_in, things, fault_of):
    connection = log_in("diff-own")
    connection.call(0, "connection.update-secret", new_secret=PASSWORD, reason="")
    ch = connection.channel()
    assert fault_of(lambda: publish_and_wait(ch, "k", things + "x"))[1] == 403
