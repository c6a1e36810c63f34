"""The broker as a client sees it: its address, its user, its CA."""

import ssl
from urllib.parse import unquote, urlsplit


class Broker:
    """Where a broker listens with TLS, who may come in, and the CA that vouches for it."""

    def __init__(self, url, ca):
        parts = urlsplit(url)
        self.url, self.ca = url, str(ca)
        self.host, self.port = parts.hostname, parts.port
        self.user, self.password = unquote(parts.username), unquote(parts.password)

    def context(self, ca=None):
        """Verifies the certificate and the host name."""
        return ssl.create_default_context(cafile=ca or self.ca)


class Restartable(Broker):
    """A broker of a case's own that comes back with what it had stored."""

    def __init__(self, native):
        super().__init__(*address_of(native))
        self.stop, self.start = native.stop, native.start

    def restart(self):
        self.stop()
        self.start()


def address_of(native):
    settings = native.environment
    url = f"amqps://{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASS']}@localhost:{settings['RABBITMQ_PORT']}"
    return url, native.certs / "certs" / "ca_certificate.pem"
