"""What a restart keeps, what it drops, and what a start refuses; one promise a test."""

import shutil
import signal
import stat
import time

import pika
import pytest
from files import fingerprint, flip, largest, repair_checksums

KIB, MIB = 1024, 1024 * 1024
BODY_BYTES = [0, 1, 4095, 4096, 4097]
BODY_BYTES += [size + d for size in (64 * KIB, 256 * KIB) for d in (-1, 0, 1)] + [MIB, 16 * MIB]
PERSISTENT = pika.BasicProperties(delivery_mode=2)
EXIT_CONFIGURATION, EXIT_STORE = 78, 74


def body_of(size_bytes):
    return (b"%d bytes " % size_bytes * (size_bytes // 8 + 1))[:size_bytes]


def drain(channel, queue):
    """All of a queue by basic.get, unacknowledged."""
    found = []
    while (got := channel.basic_get(queue))[0]:
        found.append(got)
    return found


def bodies(broker, queue="q"):
    with broker.connect() as connection:
        return [body for _, _, body in drain(connection.channel(), queue)]


def fill(broker, messages=(b"one", b"two", b"three"), queue="q"):
    """Publishes to a durable queue; returns when all is on the disk."""
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, durable=True)
        for message in messages:
            channel.basic_publish("", queue, message, PERSISTENT)


def end(broker, how):
    broker.stop() if how == "SIGTERM" else broker.kill()


def restart(broker, how):
    end(broker, how)
    broker.start()


both_ends = pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
both_modes = pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])

# ---- an orderly end


def test_sigterm_says_320_and_keeps_everything_that_was_accepted(native):
    broker = native()
    connection = broker.connect()
    channel = connection.channel()
    channel.queue_declare("q", durable=True)
    wanted = [b"%d" % number for number in range(500)]
    for body in wanted:
        channel.basic_publish("", "q", body, PERSISTENT)
    # Its answer shows that the broker has read all of it; no confirm was asked for, so nothing waits for the disk.
    channel.basic_qos(prefetch_count=1)
    broker.process.send_signal(signal.SIGTERM)
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as closed:
        connection.process_data_events(30)
    assert closed.value.reply_code == 320
    assert closed.value.reply_text == "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"
    assert broker.process.wait(30) == 0
    broker.start()
    assert bodies(broker) == wanted


def test_a_client_that_does_not_answer_the_goodbye_cannot_hold_the_broker(native):
    broker = native()
    silent = broker.connect()  # nothing reads from it
    fill(broker)
    before = time.monotonic()
    broker.stop()
    assert time.monotonic() - before < 8
    assert silent.is_open
    broker.start()
    assert bodies(broker) == [b"one", b"two", b"three"]


def test_a_second_sigterm_ends_the_broker_at_once(native):
    broker = native()
    silent = broker.connect()  # the broker would wait for its goodbye
    fill(broker)
    broker.process.send_signal(signal.SIGTERM)
    wait_for_log(broker, "stopping")
    before = time.monotonic()
    broker.process.send_signal(signal.SIGTERM)
    assert broker.process.wait(30) == 0
    assert time.monotonic() - before < 3 and "second signal" in broker.logged()
    assert silent.is_open
    broker.start()
    assert bodies(broker) == [b"one", b"two", b"three"]


def wait_for_log(broker, words):
    until = time.monotonic() + 20
    while words not in broker.logged():
        assert time.monotonic() < until, f"no '{words}' in the log:\n{broker.logged()}"
        time.sleep(0.005)


# ---- what stays and what goes


@both_ends
def test_only_what_is_durable_comes_back(native, how):
    broker = native()
    channel = broker.connect().channel()
    channel.confirm_delivery()
    channel.exchange_declare("kept", durable=True)
    channel.exchange_declare("gone", durable=False)
    channel.queue_declare("kept", durable=True)
    channel.queue_declare("gone", durable=False)
    channel.queue_bind("kept", "kept", "kept")
    channel.queue_bind("gone", "kept", "gone")
    channel.queue_bind("kept", "gone", "gone")
    channel.queue_declare("exclusive", durable=True, exclusive=True)
    for queue in ("kept", "gone", "exclusive"):
        channel.basic_publish("", queue, b"persistent", PERSISTENT)
        channel.basic_publish("", queue, b"transient", pika.BasicProperties(delivery_mode=1))
        channel.basic_publish("", queue, b"neither", pika.BasicProperties())
    # The exclusive queue's connection is still there when the broker goes.
    restart(broker, how)
    assert [row["name"] for row in broker.ctl("list_queues")] == ["kept"]
    own = [row["name"] for row in broker.ctl("list_exchanges") if row["name"] and not row["name"].startswith("amq.")]
    assert own == ["kept"]
    bound = [(row["source_name"], row["destination_name"]) for row in broker.ctl("list_bindings")]
    assert sorted(bound) == [("", "kept"), ("kept", "kept")]
    assert bodies(broker, "kept") == [b"persistent"]


@both_ends
def test_order_and_properties_are_kept(native, how):
    broker = native()
    wanted = []
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("q", durable=True)
        for number in range(60):
            headers = {"number": number, "nested": {"list": [1, "two", None, True, -(1 << 40)]}, "text": "\u00e9" * number}
            properties = pika.BasicProperties(
                "application/json", "utf-8", headers, 2, number % 10, f"c{number}", "answers", None, f"m{number}", number, "type",
                broker.environment["RABBITMQ_USER"], "app", "cluster",
            )  # fmt: skip
            body = b"x" * (number * 300)
            channel.basic_publish("", "q", body, properties)
            wanted.append((properties.__dict__, body))
    restart(broker, how)
    with broker.connect() as connection:
        found = [(properties.__dict__, body) for _, properties, body in drain(connection.channel(), "q")]
    assert found == wanted


def marks(broker):
    with broker.connect() as connection:
        return [method.redelivered for method, _, _ in drain(connection.channel(), "q")]


def test_after_a_clean_stop_exactly_what_was_delivered_is_marked_as_redelivered(native):
    broker = native()
    fill(broker)
    with broker.connect() as connection:
        channel = connection.channel()
        channel.basic_get("q")
        channel.basic_get("q")
    broker.stop()
    for _ in range(2):  # a second life that delivers nothing changes nothing
        broker.start()
        broker.stop()
    broker.start()
    assert marks(broker) == [True, True, False]


def test_after_a_crash_everything_may_have_been_delivered_and_stays_marked(native):
    broker = native()
    fill(broker)
    restart(broker, "kill -9")
    restart(broker, "SIGTERM")
    fill(broker, [b"new"])
    assert marks(broker) == [True, True, True, False]


@both_ends
@both_modes
def test_bodies_of_every_size_survive(native, how, mode):
    broker = native(at_rest=mode)
    wanted = [body_of(size) for size in BODY_BYTES]
    fill(broker, wanted)
    restart(broker, how)
    found = bodies(broker)
    assert [len(body) for body in found] == BODY_BYTES
    assert found == wanted


def test_one_byte_more_than_16_mib_is_refused_in_rabbitmqs_words(native):
    broker = native()
    fill(broker)
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            channel.basic_publish("", "q", bytes(16 * MIB + 1), PERSISTENT)
        assert refused.value.reply_code == 406
        text = "PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216"
        assert refused.value.reply_text == text
        assert connection.is_open
    restart(broker, "kill -9")
    assert bodies(broker) == [b"one", b"two", b"three"]


@both_ends
def test_bindings_and_arguments_survive(native, how):
    broker = native()
    arguments = {"x-note": "kept", "x-max-priority": 5, "x-table": {"deep": [1, 2, {"three": 3}]}}
    with broker.connect() as connection:
        channel = connection.channel()
        channel.exchange_declare("h", "headers", durable=True)
        channel.exchange_declare("t", "topic", durable=True, arguments={"alternate-exchange": "h"})
        channel.queue_declare("q", durable=True, arguments=arguments)
        channel.queue_bind("q", "h", "", {"x-match": "all", "colour": "red", "size": 3})
        channel.queue_bind("q", "t", "*.critical")
        channel.exchange_bind("h", "t", "to.headers")
    restart(broker, how)
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        # Declared as it was: nothing to say. Declared otherwise: refused.
        channel.queue_declare("q", durable=True, arguments=arguments)
        channel.exchange_declare("t", "topic", durable=True, arguments={"alternate-exchange": "h"})
        red = pika.BasicProperties(headers={"colour": "red", "size": 3})
        channel.basic_publish("t", "kernel.critical", b"by topic", mandatory=True)
        channel.basic_publish("h", "", b"by headers", red, mandatory=True)
        channel.basic_publish("t", "to.headers", b"from exchange to exchange", red, mandatory=True)
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("h", "", b"blue", pika.BasicProperties(headers={"colour": "blue"}), mandatory=True)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            channel.queue_declare("q", durable=True, arguments=arguments | {"x-max-priority": 6})
        assert refused.value.reply_code == 406
    assert bodies(broker) == [b"by topic", b"by headers", b"from exchange to exchange"]


def test_a_user_stays_when_the_configuration_no_longer_names_it(native):
    broker = native(settings="default_users.second.password = the-second-password\n")
    broker.stop()
    broker.configure("sealed")
    broker.start()
    credentials = pika.PlainCredentials("second", "the-second-password")
    broker.connect(credentials=credentials).close()
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        broker.connect(credentials=pika.PlainCredentials("second", "another-password"))


# ---- what a start refuses


def refusal(broker, code, status, **options):
    """Starts the broker, which must refuse with that code and say what to do; returns what it said."""
    started = broker.attempt(**options)
    last = started.stderr.strip().splitlines()[-1] if started.stderr.strip() else ""
    assert (started.returncode, last.split(": ")[:2]) == (status, ["sealmq", code]), started.stderr
    return last


def kek(broker):
    return broker.folder / "secrets" / "at_rest_kek"


def write_kek(broker, text, mode=0o400):
    kek(broker).unlink()
    kek(broker).write_text(text)
    kek(broker).chmod(mode)


def other_mode(broker):
    text = (broker.folder / "sealmq.conf").read_text()
    mode, other = ("sealed", "plain-insecure") if "at_rest.mode = sealed" in text else ("plain-insecure", "sealed")
    return text.replace(f"at_rest.mode = {mode}", f"at_rest.mode = {other}") + key_setting(broker)


def key_setting(broker):
    return f"at_rest.kek.file = {kek(broker)}\n"


def remove(*names):
    def sabotage(broker):
        for name in names:
            path = broker.data / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return sabotage


def damage(*names, at=None):
    return lambda broker: [flip(broker.data / name, at) for name in names]


def swap_mode(broker):
    (broker.folder / "sealmq.conf").write_text(other_mode(broker))


BOTH_COPIES = ("keyring", "keyring.mirror")
# What was done to a store at rest: the mode it has, the sabotage, the code, the exit status, a word of the remedy.
REFUSALS = {
    "another key": ("sealed", lambda b: write_kek(b, "0123456789abcdef" * 4), "E_KEK_WRONG", EXIT_STORE, "backup"),
    "no key": ("sealed", lambda b: kek(b).unlink(), "E_KEK_UNAVAILABLE", EXIT_CONFIGURATION, "put the old key back"),
    "half a key": ("sealed", lambda b: write_kek(b, "0123"), "E_KEK_UNAVAILABLE", EXIT_CONFIGURATION, "64 hex digits"),
    "a key that others may read": (
        "sealed",
        lambda b: kek(b).chmod(0o444),
        "E_KEK_UNAVAILABLE",
        EXIT_CONFIGURATION,
        "chmod 0400",
    ),
    "no keyring": ("sealed", remove(*BOTH_COPIES), "E_KEYRING_MISSING", EXIT_STORE, "restore"),
    "two damaged keyrings": ("sealed", damage(*BOTH_COPIES), "E_KEYRING_CORRUPT", EXIT_STORE, "restore"),
    "a plain store opened as sealed": ("plain-insecure", swap_mode, "E_PLAIN_IN_SEALED", EXIT_STORE, "at_rest.mode"),
    "a sealed store opened as plain": ("sealed", swap_mode, "E_PLAIN_IN_SEALED", EXIT_STORE, "at_rest.mode"),
    "no descriptor": ("sealed", remove("SEALMQ_STORE"), "E_STORE_MISSING", EXIT_STORE, "restore"),
    "a damaged descriptor": ("sealed", damage("SEALMQ_STORE"), "E_DESCRIPTOR_CORRUPT", EXIT_STORE, "restore"),
    "no database": ("sealed", remove("db"), "E_DB_MISSING", EXIT_STORE, "restore"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_store_that_does_not_fit_is_refused_and_left_as_it_is(native, what):
    mode, sabotage, code, status, remedy = REFUSALS[what]
    broker = native(at_rest=mode)
    fill(broker)
    broker.stop()
    shutil.copytree(broker.data, broker.folder / "saved")
    saved_secrets, saved_settings = kek(broker).read_text(), (broker.folder / "sealmq.conf").read_text()
    sabotage(broker)
    before = fingerprint(broker.folder)
    said = refusal(broker, code, status)
    assert remedy in said
    assert saved_secrets.strip() not in said
    assert fingerprint(broker.folder) == before, "a refused start has changed something"
    # The remedy works: what was taken away is put back, and every message is there.
    shutil.rmtree(broker.data)
    shutil.copytree(broker.folder / "saved", broker.data)
    kek(broker).unlink(missing_ok=True)
    kek(broker).write_text(saved_secrets)
    kek(broker).chmod(0o400)
    (broker.folder / "sealmq.conf").write_text(saved_settings)
    broker.start()
    assert bodies(broker) == [b"one", b"two", b"three"]


def test_without_a_key_no_store_is_created(native):
    broker = native(start=False)
    kek(broker).unlink()
    refusal(broker, "E_KEK_UNAVAILABLE", EXIT_CONFIGURATION)
    assert not broker.data.exists()


def test_an_old_keyring_is_refused(native):
    broker = native()
    old = {name: (broker.data / name).read_bytes() for name in BOTH_COPIES}
    fill(broker)
    restart(broker, "SIGTERM")
    broker.stop()
    for name, content in old.items():
        (broker.data / name).write_bytes(content)
    refusal(broker, "E_KEYRING_ROLLBACK", EXIT_STORE)


@pytest.mark.parametrize("name", BOTH_COPIES)
@pytest.mark.parametrize("fault", ["damaged", "missing"])
def test_one_sound_copy_of_the_keyring_is_enough_and_mends_the_other(native, name, fault):
    broker = native()
    fill(broker)
    broker.stop()
    other = BOTH_COPIES[1 - BOTH_COPIES.index(name)]
    (damage if fault == "damaged" else remove)(name)(broker)
    broker.start()
    assert bodies(broker) == [b"one", b"two", b"three"]
    assert f"unusable and will be written anew: {name}:" in broker.logged()
    broker.stop()
    remove(other)(broker)
    broker.start()
    assert bodies(broker) == [b"one", b"two", b"three"]


def test_a_second_broker_on_the_same_directory_is_refused_and_the_first_serves_on(native):
    first, second = native(), native(start=False)
    fill(first)
    text = (second.folder / "sealmq.conf").read_text().replace(str(second.data), str(first.data))
    (second.folder / "sealmq.conf").write_text(text + key_setting(first))
    before = fingerprint(first.data)
    said = refusal(second, "E_STORE_LOCKED", EXIT_STORE)
    assert "stop the other broker" in said
    assert fingerprint(first.data) == before
    fill(first, [b"four"])
    assert bodies(first) == [b"one", b"two", b"three", b"four"]


def test_the_files_of_a_store_are_its_owners_alone(native):
    broker = native()
    fill(broker, [b"x" * MIB])
    restart(broker, "kill -9")
    for path in [broker.data, *broker.data.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:04o}"


# ---- damage inside the database: refused or put into quarantine, never passed over

LARGE = body_of(300 * KIB)


def filled_on_disk(native, mode, where):
    """A stopped broker whose large body lies in the write-ahead log, or in the files behind it."""
    broker = native(at_rest=mode)
    fill(broker, [b"first", LARGE, b"last"])
    broker.kill()
    if where == ".blob":
        restart(broker, "kill -9")  # recovery moves the log's content on
        broker.kill()
    return broker, largest(broker.data / "db", where)


@both_modes
@pytest.mark.parametrize(("where", "code"), [(".log", "E_WAL_CORRUPT"), (".blob", "E_DB_CORRUPT")])
def test_a_flipped_bit_in_a_body_refuses_the_start(native, mode, where, code):
    broker, path = filled_on_disk(native, mode, where)
    assert path.stat().st_size > len(LARGE)
    flip(path, None)
    said = refusal(broker, code, EXIT_STORE)
    assert "backup" in said and f"{path} is damaged at byte" in said
    flip(path, None)
    broker.start()
    assert bodies(broker) == [b"first", LARGE, b"last"]


def test_a_flipped_bit_in_a_table_refuses_the_start(native):
    broker = native()
    fill(broker, [b"message %d" % number for number in range(300)])
    broker.kill()
    restart(broker, "kill -9")
    broker.kill()
    flip(largest(broker.data / "db", ".sst"), None)
    refusal(broker, "E_DB_CORRUPT", EXIT_STORE)


def test_a_body_that_was_changed_with_its_checksums_is_put_into_quarantine(native):
    """The database's checksums keep nobody out; the seal does. The others are delivered, and the loss is told."""
    broker, path = filled_on_disk(native, "sealed", ".log")
    flip(path, None)
    assert repair_checksums(path) == 1
    for _ in range(2):  # it is kept, not cleared away
        broker.start()
        assert bodies(broker) == [b"first", b"last"]
        assert broker.logged().rstrip() and "E_RECORD_FORGED" in broker.logged()
        assert "quarantined=1" in broker.logged().rsplit("store open", 1)[1]
        broker.kill()
