"""sealmq-bench against a broker of our own, over TLS and without, and against RabbitMQ where one is up: what it reports
adds up, what it draws can be read, and it leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import time
import xml.etree.ElementTree
from pathlib import Path

import pytest

SECONDS_MAX = 120
PEER = "amqps://guest:guest@localhost:21671"
PEER_CA = Path(os.environ.get("PEERS_HOME", Path.home() / ".cache/peers")) / "trixie/etc/rabbitmq/tls/ca.crt"


def peer_is_up():
    try:
        with socket.create_connection(("127.0.0.1", 21671), 1):
            return PEER_CA.exists()
    except OSError:
        return False


class Site:
    """A broker's URL without a scheme's worth of options, and how to run the tool against it."""

    def __init__(self, url, ca, native=None):
        self.url, self.ca, self.native = url, ca, native

    def command(self, *options, url=None):
        tool = Path(os.environ["SEALMQ_BIN"]) / "sealmq-bench"
        return [tool, "--quiet", "--ca", self.ca, *options, url or f"A broker={self.url}"]

    def bench(self, *options, url=None):
        """What the tool did: exit status, standard output, standard error."""
        run = subprocess.run(self.command(*options, url=url), capture_output=True, text=True, timeout=SECONDS_MAX)
        return run.returncode, run.stdout, run.stderr

    def figures(self, *options):
        """The figures of one run, from the JSON."""
        status, out, err = self.bench("--json", "-", *options)
        assert (status, err) == (0, "")
        broker = json.loads(out)["loads"][0]["brokers"][0]
        assert broker["name"] == "A broker"
        return broker["runs"][-1]


def site_of(native):
    settings = native.environment
    scheme = "amqps" if settings["TLS_ENABLE"] == "1" else "amqp"
    login = f"{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASS']}"
    url = f"{scheme}://{login}@localhost:{settings['RABBITMQ_PORT']}"
    return Site(url, native.certs / "certs" / "ca_certificate.pem", native)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    from native import Native

    native = Native(tmp_path_factory.mktemp("broker"))
    yield site_of(native)
    assert native.ctl("list_queues") == [], "queues of the tool are left"
    exchanges = [exchange for exchange in native.ctl("list_exchanges") if "sealmq-bench" in str(exchange)]
    assert exchanges == [], "exchanges of the tool are left"
    native.stop()


@pytest.fixture(params=["sealmq", "rabbitmq"])
def site(request, own):
    if request.param == "sealmq":
        return own
    if not peer_is_up():
        pytest.skip("RabbitMQ is not up at 127.0.0.1:21671")
    return Site(PEER, PEER_CA)


@pytest.mark.parametrize(
    "options, published, copies",
    [
        ("--count 300", 300, 1),
        ("--count 300 --transient --confirms 0 --size 100", 300, 1),
        ("--count 300 --transient --confirms 0 --ack-every 0 --size 8", 300, 1),
        ("--count 301 --producers 3 --consumers 4 --queues 2 --confirms 7", 301, 1),
        ("--count 50 --producers 2 --consumers 2 --queues 5", 50, 1),
        ("--count 60 --queues 3 --consumers 3 --fanout", 60, 3),
        ("--count 200 --backlog --prefetch 0 --ack-every 50", 200, 1),
        ("--count 40 --rate 400 --ack-every 1 --prefetch 1", 40, 1),
        ("--count 20 --size 300000 --confirms 3", 20, 1),
        ("--count 100 --queue-type quorum --argument x-max-length=100000", 100, 1),
        ("--count 100 --transient --durable --prefix another.prefix", 100, 1),
        ("--count 100 --consumers 0", 100, 0),
    ],
)
def test_every_message_is_published_confirmed_and_delivered_once(site, options, published, copies):
    figures = site.figures("--warmup", "0", *options.split())
    assert figures["published"] == published
    assert figures["delivered"] == published * copies
    assert (figures["confirm_us"] is None) == ("--confirms 0" in options)
    assert (figures["latency_us"] is None) == ("--backlog" in options or copies == 0)
    for latency in filter(None, (figures["confirm_us"], figures["latency_us"])):
        assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]
        assert latency["max"] <= figures["total_s"] * 1e6 + 1
    assert figures["publish_per_s"] == pytest.approx(published / figures["publish_s"], rel=0.01)
    if "--rate" in options:
        assert figures["publish_s"] >= 39 / 400, "forty at four hundred a second"


def test_a_run_may_last_so_long_instead(site):
    figures = site.figures("--duration", "0.3", "--warmup", "0.1", "--size", "64")
    assert figures["published"] == figures["delivered"] > 0
    assert figures["publish_s"] >= 0.3


def test_a_crowd_around_the_traffic_changes_nothing_but_what_it_took(site):
    crowd = "--idle-connections 20 --idle-queues 30 --bindings 40"
    figures = site.figures("--count", "300", "--queues", "2", *crowd.split())
    assert figures["published"] == figures["delivered"] == 300
    assert min(figures["connect_s"], figures["declare_s"], figures["bind_s"]) > 0
    alone = site.figures("--count", "300")
    assert [alone[key] for key in ("connect_s", "declare_s", "bind_s")] == [None] * 3


def test_the_classroom_has_a_readable_picture_for_each_size(own, tmp_path):
    other = own.url.replace("localhost", "127.0.0.1")
    options = ["--preset", "classroom", "--count", "200", "--repeat", "2"]
    outputs = ["--plot", tmp_path / "p.svg", "--json", tmp_path / "p.json"]
    broker = str(own.native.process.pid)
    status, out, err = own.bench(*options, *outputs, "--cpu-of", broker, "--cpu-of", broker, f"<&>={other}")
    assert (status, err) == (0, "")
    assert "A broker" in out and "medians of 2 runs" in out and "s/M" in out
    assert {path.name for path in tmp_path.iterdir()} == {"p.json", "p-100.svg", "p-512.svg", "p-1024.svg"}
    for path in tmp_path.glob("*.svg"):
        texts = list(xml.etree.ElementTree.parse(path).getroot().itertext())
        assert any(text.startswith("<&> (") and text.endswith(", TLS 1.3)") for text in texts), texts
        for wanted in ("Publish rate", "Delivery rate", "Total time", "Delivery p50", "Delivery p99", "Broker's CPU"):
            assert any(text.startswith(wanted) for text in texts), wanted
    report = json.loads((tmp_path / "p.json").read_text())
    assert [load["settings"]["body_bytes"] for load in report["loads"]] == [100, 512, 1024]
    for load in report["loads"]:
        assert [len(broker["runs"]) for broker in load["brokers"]] == [2, 2]
        assert all(broker["tls"] == "TLS 1.3" for broker in load["brokers"])
    password = own.native.environment["RABBITMQ_PASS"]
    assert password not in (tmp_path / "p.json").read_text() + out


def test_a_queue_is_held_as_deep_as_asked(site):
    figures = site.figures("--count", "500", "--depth", "300", "--prefetch", "20", "--ack-every", "7", "--warmup", "0")
    assert figures["published"] == 500 and figures["latency_us"] is None
    assert 500 <= figures["delivered"] <= 500 + 150 + 2 * 20, "at most half a depth ahead, and what was prefetched"


def test_curves_show_what_a_crowd_costs(own, tmp_path):
    outputs = ["--plot", tmp_path / "p.svg", "--json", tmp_path / "p.json"]
    small = ["--count", "100", "--most", "100", "--repeat", "2"]
    status, out, err = own.bench("--preset", "scale", *small, *outputs, "--cpu-of", str(own.native.process.pid))
    assert (status, err) == (0, "")
    assert "100 queues declared and bound" in out and "at most 10 s" in out
    curves = {curve["name"]: curve["points"] for curve in json.loads((tmp_path / "p.json").read_text())["curves"]}
    crowds = ["idle_queues", "idle_bindings", "bindings", "idle_connections"]
    assert set(curves) == {"depth", *crowds}
    assert [point["x"] for point in curves["depth"]] == [100, 1000, 3000, 10_000]
    for name in crowds:
        assert [point["x"] for point in curves[name]] == [0, 1, 10, 100]
        assert [point["load"]["settings"][name] for point in curves[name]] == [0, 1, 10, 100]
    runs = [run for points in curves.values() for point in points for run in point["load"]["brokers"][0]["runs"]]
    assert len(runs) == 5 * 4 * 2
    assert all(run["delivered"] >= run["published"] >= 100 for run in runs)
    texts = list(xml.etree.ElementTree.parse(tmp_path / "p.svg").getroot().itertext())
    for wanted in ("Idle connections", "Messages in the queue, held as deep", "10 000"):
        assert wanted in texts, wanted


def test_plain_amqp_needs_no_authority(native):
    site = site_of(native(tls="0", at_rest="plain-insecure"))
    figures = site.figures("--count", "100", "--warmup", "0")
    assert figures["delivered"] == 100


def test_a_password_file_stands_for_a_password_in_the_url(own, tmp_path):
    (tmp_path / "password").write_text(own.native.environment["RABBITMQ_PASS"] + "\n")
    url = own.url.replace(":" + own.native.environment["RABBITMQ_PASS"], "")
    status, _, err = own.bench("--count", "10", "--password-file", tmp_path / "password", url=url)
    assert (status, err) == (0, "")


def test_what_goes_wrong_is_said_in_one_line(own, tmp_path):
    stranger = tmp_path / "ssl"
    init = [own.native.binaries / "sealmq-init", "--certs", stranger, "--secrets", tmp_path / "secrets"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    password = own.native.environment["RABBITMQ_PASS"]
    cases = [
        (["--ca", tmp_path / "none.pem"], own.url, "none.pem"),
        ([], own.url.replace(password, "wrong"), "refused the log-in of croupier-of-this-run"),
        ([], own.url + "/nowhere", "opening the virtual host"),
        ([], own.url.replace("amqps:", "amqp:"), "wants amqps://"),
        (["--queue-type", "nonsense"], own.url, "declaring a queue"),
        (["--argument", "x-max-length=1", "--argument", "x-overflow=reject-publish", "--consumers", "0"], own.url, "basic.nack"),
        (["--timeout", "1", "--rate", "1"], own.url, "outlasted its 1 s"),
    ]
    for options, url, wanted in cases:
        status, out, err = own.bench("--count", "100", "--warmup", "0", *options, url=url)
        assert (status, out, err.count("\n")) == (1, "", 1), (options, status, out, err)
        assert wanted in err and password not in err, err
    own_ca, own.ca = own.ca, stranger / "certs" / "ca_certificate.pem"
    status, _, err = own.bench("--count", "1")
    own.ca = own_ca
    assert status == 1 and "is not trusted" in err and "--ca FILE" in err, err


def test_ctrl_c_deletes_the_queues(own):
    tool = subprocess.Popen(own.command("--duration", "100", "--warmup", "0"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + SECONDS_MAX
    while not own.native.ctl("list_queues"):
        assert time.monotonic() < deadline and tool.poll() is None
        time.sleep(0.02)
    tool.send_signal(signal.SIGINT)
    _, err = tool.communicate(timeout=SECONDS_MAX)
    assert tool.returncode == 1 and "interrupted" in err, err
    assert own.native.ctl("list_queues") == []
