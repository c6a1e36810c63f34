"""What clients have sent in this process of tests: contents, names, keys, arguments, secrets. None of it may stand in a
broker's log, at whatever level; native.py searches each log when its broker ends.

A broker's users are in its log on purpose, and so is the name that a connection gives itself.
"""

import base64
import re

# Enough of a text to know it again; shorter ones, and single words, stand in the log's own sentences.
TEXT_BYTES_MAX, TEXT_BYTES_MIN = 48, 8
# Some suites send millions of messages, each different.
TEXTS_MAX = 200_000
# How names begin that suites make up in other processes, and what every broker of a test is given.
ALWAYS = [b"diff-", b"interop-", b"lab-0-", b"a-password-for-this-run"]

sent = {}


def plain(text):
    """Numbers do not matter: so lines of a log, and messages that are only numbered, become few."""
    return re.sub(rb"\d+", b"0", text)


def remember(value):
    """A text, or texts in a table or a list; keys of arguments are a protocol's words."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            remember(item)
        return
    if isinstance(value, str):
        value = value.encode(errors="replace")
    if isinstance(value, bytes) and len(sent) < TEXTS_MAX:
        text = value[:TEXT_BYTES_MAX]
        is_word = re.fullmatch(rb"[A-Za-z]+", text)
        if not is_word and len(plain(text)) >= TEXT_BYTES_MIN and len(re.findall(rb"[A-Za-z]", text)) >= 5:
            sent.setdefault(plain(text), text)


def remember_method(name, fields):
    """The fields of a method, by their names."""
    if name.lower().endswith(("start-ok", "startok")):
        # The user's name may be logged; the secret stands behind it.
        response = fields.get("response") or ""
        raw = response.encode() if isinstance(response, str) else response
        remember(re.findall(rb"[\x20-\x7e]*", raw.rpartition(b"\0")[2])[-2:])
    else:
        remember([value for field, value in fields.items() if field != "mechanism"])


def remember_content(properties, body):
    remember([value for name, value in properties.items() if name != "user_id"])
    remember(body)


def watch_pika():
    """From now on everything that pika sends is remembered."""
    from pika.connection import Connection

    send = Connection._send_method
    if getattr(send, "is_watched", False):
        return

    def watched(self, channel_number, method, content=None):
        remember_method(method.NAME, vars(method))
        if content:
            remember_content(vars(content[0]), content[1])
        return send(self, channel_number, method, content)

    watched.is_watched = True
    Connection._send_method = watched


def decoded(log):
    """What stands in a log as a debugger shows bytes, as hex or as base64."""
    for found in set(re.findall(rb"\d{1,3}(?:, ?\d{1,3}){7,}", log)):
        yield bytes(int(number) & 0xFF for number in found.split(b","))
    for found in set(re.findall(rb"[0-9a-fA-F]{16,}", log)):
        yield bytes.fromhex(found[: len(found) // 2 * 2].decode())
    for found in set(re.findall(rb"[A-Za-z0-9+/]{12,}", log)):
        yield base64.b64decode(found[: len(found) // 4 * 4])


def leaks(log):
    """What was sent and stands in a log."""
    without = re.sub(rb'^\S+Z +|\b(user|name)=("[^"]*"|\S+)', b"", log, flags=re.MULTILINE)
    words = b"\n".join({plain(line) for line in without.splitlines()})
    hidden = b"\n".join(plain(text) for text in decoded(without))
    texts = sent | {always: always for always in ALWAYS}
    # What is logged as bytes may be cut short.
    return [text for known, text in texts.items() if known in words or known[:12] in hidden]
