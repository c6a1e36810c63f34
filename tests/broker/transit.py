"""What a broker sees of Vault's transit engine (HTTP API, secret/transit): an HTTPS server of our own with keys in memory.

Its sealing is no AES, as the standard library has none; what crosses the wire is as documented: base64 in, `vault:v1:` and
base64 out, associated data authenticated, errors as a list of sentences.
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import ssl
import threading


class Transit:
    """Serves on 127.0.0.1 until closed. `misbehave`, if set, answers a request instead: it gets the request's handler."""

    def __init__(self, port, certificate, key):
        self.token, self.keys, self.requests, self.misbehave = "s.token-of-this-run", {"transit/sealmq": os.urandom(32)}, [], None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request, address):
                # The handshake belongs to the thread of the connection: a client that hangs up must not end the server.
                try:
                    request = context.wrap_socket(request, server_side=True)
                except OSError:
                    return
                super().finish_request(request, address)

            def handle_error(self, *_):
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server = Server(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.requests.append((handler.path, handler.headers, body))
        if self.misbehave:
            return self.misbehave(handler)
        if handler.headers["X-Vault-Token"] != self.token:
            return say(handler, 403, {"errors": ["permission denied"]})
        parts = handler.path.split("/")
        verb, key = parts[-2], self.keys.get("/".join([*parts[2:-2], parts[-1]]))
        if parts[1] != "v1" or verb not in ("encrypt", "decrypt") or parts[2] != "transit":
            return say(handler, 404, {"errors": [f"no handler for route '{handler.path}'"]})
        if key is None:
            return say(handler, 400, {"errors": ["encryption key not found"]})
        asked = json.loads(body)
        context = base64.b64decode(asked["associated_data"], validate=True)
        if verb == "encrypt":
            return say(handler, 200, {"request_id": "x", "data": {"ciphertext": seal(key, base64.b64decode(asked["plaintext"], validate=True), context), "key_version": 1}})
        plain = unseal(key, asked["ciphertext"], context)
        if plain is None:
            return say(handler, 400, {"errors": ["cipher: message authentication failed"]})
        return say(handler, 200, {"data": {"plaintext": base64.b64encode(plain).decode()}, "warnings": None})


def say(handler, status, content, headers=()):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in [("Content-Type", "application/json"), ("Content-Length", str(len(content))), *headers]:
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def stream(key, nonce):
    return hmac.digest(key, b"stream" + nonce, "sha256")


def tag(key, nonce, context, sealed):
    return hmac.digest(key, b"tag" + nonce + hashlib.sha256(context).digest() + sealed, "sha256")[:16]


def seal(key, plain, context):
    assert len(plain) == 32
    nonce = os.urandom(12)
    sealed = bytes(a ^ b for a, b in zip(plain, stream(key, nonce), strict=True))
    return "vault:v1:" + base64.b64encode(nonce + sealed + tag(key, nonce, context, sealed)).decode()


def unseal(key, text, context):
    sealed = base64.b64decode(text.removeprefix("vault:v1:"), validate=True)
    nonce, sealed, found = sealed[:12], sealed[12:44], sealed[44:]
    if found != tag(key, nonce, context, sealed):
        return None
    return bytes(a ^ b for a, b in zip(sealed, stream(key, nonce), strict=True))
