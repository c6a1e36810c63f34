"""What every lab client shares: how to reach the broker, from the environment that the labs use.

    RABBITMQ_BROKER     host name, default broker (it must stand in the server's certificate)
    RABBITMQ_USER       RABBITMQ_PASS
    RABBITMQ_QUEUE      queue of the pattern
    RABBITMQ_EXCHANGE   exchange of the pattern, where one is declared
    TLS_ENABLE          1 (default) AMQPS on 5671, 0 plain AMQP on 5672
    RABBITMQ_PORT       when it is neither of these
    RABBITMQ_SSL_DIR    folder with certs/ and private/, default /etc/rabbitmq/ssl
"""

import os
import ssl
import sys
from pathlib import Path

import pika


def setting(name, default=None):
    value = os.environ.get(name, default)
    if value is None:
        sys.exit(f"{name} is not set; see tests/lab/lab.py for the environment of a lab client")
    return value


def tls_enabled():
    return os.environ.get("TLS_ENABLE", "1") == "1"


def tls_options(host):
    """Python's default context: the CA is verified, and so is the host name. Nothing is relaxed."""
    folder = Path(os.environ.get("RABBITMQ_SSL_DIR", "/etc/rabbitmq/ssl"))
    context = ssl.create_default_context(cafile=folder / "certs" / "ca_certificate.pem")
    certificate = folder / "certs" / "client_certificate.pem"
    key = folder / "private" / "client_key.pem"
    if certificate.exists() and os.access(key, os.R_OK):
        context.load_cert_chain(certificate, key)
    return pika.SSLOptions(context, server_hostname=host)


def parameters():
    host = os.environ.get("RABBITMQ_BROKER", "broker")
    tls = tls_enabled()
    return pika.ConnectionParameters(
        host=host,
        port=int(os.environ.get("RABBITMQ_PORT", "5671" if tls else "5672")),
        credentials=pika.PlainCredentials(setting("RABBITMQ_USER"), setting("RABBITMQ_PASS")),
        ssl_options=tls_options(host) if tls else None,
        heartbeat=30,
        blocked_connection_timeout=30,
        connection_attempts=3,
        retry_delay=1,
    )


def connect():
    return pika.BlockingConnection(parameters())


def say(*words):
    """One line for whoever reads the log, at once: the driver waits for it."""
    print(*words, flush=True)


def consume_until_interrupted(channel):
    say("ready")
    try:
        channel.start_consuming()
    except KeyboardInterrupt:
        channel.stop_consuming()
        channel.connection.close()
