"""A WSGI application for test_wsgi.py and test_http.py: the first part of the path chooses what it does.

`app` is the application; `validated` is the same one inside wsgiref.validate. One process serves it,
so that what it remembers under a key (`?key=k`) can be asked for with /events/k.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import random
import sys
import threading
import time
from wsgiref.validate import validator

TEXT = [("Content-Type", "text/plain")]
PIECES = [b"alpha ", b"beta ", b"gamma\n"]

events: dict[str, list[str]] = {}
gates: dict[str, threading.Event] = {}
threads: dict[str, threading.Thread] = {}
lock = threading.Lock()


ROUTES = {}


def route(function):
    """Serves `function` under its name (`events_` as /events)."""
    ROUTES[function.__name__.rstrip("_")] = function
    return function


def remember(key, event):
    if key:
        with lock:
            events.setdefault(key, []).append(event)


def gate(key):
    with lock:
        return gates.setdefault(key, threading.Event())


class Tracked:
    """An iterable that remembers each call of its close()."""

    def __init__(self, pieces, key):
        self.pieces = iter(pieces)
        self.key = key

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.pieces)

    def close(self):
        remember(self.key, "close")


class Countless:
    """An iterable of the oldest kind: neither __len__ nor __iter__, only __getitem__."""

    def __getitem__(self, index):
        return PIECES[index]


def reply(start_response, body, status="200 OK", fields=()):
    start_response(status, [*TEXT, ("Content-Length", str(len(body))), *fields])
    return [body]


def reply_json(start_response, value):
    body = json.dumps(value).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


# --- the environ


@route
def environ_(environ, start_response, rest, key):
    """Every variable; what is not text is told by its type."""
    told = {name: value if isinstance(value, str) else repr(value) for name, value in environ.items()}
    types = {name: type(value).__name__ for name, value in environ.items()}
    wsgi = {
        "environ is a dict": type(environ) is dict,
        "input": all(
            hasattr(environ["wsgi.input"], n) for n in ("read", "readline", "readlines", "__iter__")
        ),
        "errors": all(hasattr(environ["wsgi.errors"], n) for n in ("write", "writelines", "flush")),
        "file_wrapper": callable(environ.get("wsgi.file_wrapper")),
    }
    return reply_json(start_response, {"environ": told, "types": types, "wsgi": wsgi, "pid": os.getpid()})


@route
def mutate(environ, start_response, rest, key):
    environ.clear()
    environ["HTTP_X_LEFT_BEHIND"] = "yes"
    return reply(start_response, b"mutated")


@route
def errors(environ, start_response, rest, key):
    environ["wsgi.errors"].write(f"errors.write {rest}\n")
    environ["wsgi.errors"].writelines([f"errors.writelines {rest} caf\xe9\n"])
    environ["wsgi.errors"].flush()
    return reply(start_response, b"written")


# --- the body of the request


@route
def input_(environ, start_response, rest, key):
    """Runs the reads that the header names, as in `read 5;readline;read`, and tells what each gave."""
    stream = environ["wsgi.input"]
    results = []
    for step in environ["HTTP_X_STEPS"].split(";"):
        name, *args = step.split()
        if name == "iterate":
            result = list(stream)
        elif name == "next":
            result = next(iter(stream), b"")
        else:
            result = getattr(stream, name)(*map(int, args))
        listed = result if isinstance(result, list) else [result]
        assert all(type(piece) is bytes for piece in listed), listed
        texts = [base64.b64encode(piece).decode() for piece in listed]
        results.append(texts if isinstance(result, list) else texts[0])
    return reply_json(start_response, results)


@route
def digest(environ, start_response, rest, key):
    """Reads the body in pieces of /digest/N bytes and answers its size and SHA-256."""
    told, size = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(int(rest or 65536)):
        told.update(piece)
        size += len(piece)
        remember(key, "piece")
    return reply_json(start_response, {"bytes": size, "sha256": told.hexdigest()})


@route
def unread(environ, start_response, rest, key):
    return reply(start_response, b"not read")


@route
def read_some(environ, start_response, rest, key):
    return reply(start_response, environ["wsgi.input"].read(int(rest)))


@route
def echo(environ, start_response, rest, key):
    return reply(start_response, environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))


@route
def shared_input(environ, start_response, rest, key):
    """Reads one byte while another thread waits for the end of a line. Answers what it read, and the line."""
    stream = environ["wsgi.input"]
    told = [stream.read(1)]
    reader = threading.Thread(target=lambda: told.append(stream.readline()))
    reader.start()
    time.sleep(0.1)  # until it waits: nothing tells that
    told[0] += stream.read(1)
    remember(key, "read")
    reader.join()
    return reply(start_response, b"|".join(told))


# --- shapes of the response


@route
def plain(environ, start_response, rest, key):
    return reply(start_response, b"plain\n")


@route
def one(environ, start_response, rest, key):
    start_response("200 OK", list(TEXT))
    return [b"one piece\n"]


@route
def shape(environ, start_response, rest, key):
    start_response("200 OK", list(TEXT))
    return {
        "list": lambda: list(PIECES),
        "tuple": lambda: tuple(PIECES),
        "generator": lambda: (piece for piece in PIECES),
        "iterator": lambda: iter(PIECES),
        "tracked": lambda: Tracked(PIECES, key),
        "getitem": Countless,
        "bytesio": lambda: io.BytesIO(b"".join(PIECES)),
        "with-empty": lambda: iter([b"", *PIECES[:1], b"", b"", *PIECES[1:], b""]),
        "empty-list": lambda: [],
        "empty-tuple": lambda: (),
        "empty-generator": lambda: iter(()),
        "empty-bytes": lambda: [b""],
        "map": lambda: map(bytes, PIECES),
    }[rest]()


@route
def sized_generator(environ, start_response, rest, key):
    start_response("200 OK", [*TEXT, ("Content-Length", "17")])
    return iter(PIECES)


@route
def lazy(environ, start_response, rest, key):
    start_response("200 OK", list(TEXT))
    yield b"lazy\n"


@route
def write(environ, start_response, rest, key):
    writer = start_response("200 OK", list(TEXT))
    writer(b"written ")
    writer(b"")
    writer(b"twice, ")
    return Tracked([b"then ", b"yielded\n"], key)


@route
def write_from_thread(environ, start_response, rest, key):
    """A thread is still inside write() when the application has returned; /write_late/KEY lets it write again."""
    writer = start_response("200 OK", list(TEXT))

    def work():
        writer(counted(0, 30_000_000))
        remember(key, "written")
        gate(key).wait(20)
        try:
            writer(b"late")
        except BaseException as error:
            remember(key, f"{type(error).__name__}: {error}")
        else:
            remember(key, "written late")

    thread = threading.Thread(target=work)
    threads[key] = thread
    thread.start()
    # Refused as soon as the thread has the reply.
    with contextlib.suppress(RuntimeError):
        while True:
            writer(b"")
    return Tracked([], key)


@route
def write_late(environ, start_response, rest, key):
    """Lets the thread of /write_from_thread?key=REST write once more, while another request is answered."""
    gate(rest).set()
    threads[rest].join(20)
    return reply(start_response, b"joined")


@route
def write_sized(environ, start_response, rest, key):
    writer = start_response("200 OK", [*TEXT, ("Content-Length", "15")])
    writer(b"written, ")
    writer(b"sized\n")
    return []


@route
def length(environ, start_response, rest, key):
    """/length/DECLARED/SENT/KIND: a body that may be shorter or longer than it says."""
    declared, sent, kind = rest.split("/")
    writer = start_response("200 OK", [*TEXT, ("Content-Length", declared)])
    body = (b"0123456789" * int(sent))[: int(sent)]
    if kind == "write":
        writer(body[:5])
        return Tracked([body[5:]], key)
    return Tracked([body] if kind == "one" else [body[:5], body[5:]], key)


@route
def status(environ, start_response, rest, key):
    """/status/204: the status with a body that some of them must not have."""
    start_response(f"{rest} Something", list(TEXT))
    return Tracked([b"must only be seen when a body is allowed"], key)


@route
def not_modified(environ, start_response, rest, key):
    start_response("304 Not Modified", [("ETag", '"a"'), ("Content-Length", "1234")])
    return []


@route
def big(environ, start_response, rest, key):
    """/big/BYTES/PIECE: a counted body in pieces of PIECE bytes."""
    total, piece = map(int, rest.split("/"))

    def pieces():
        for offset in range(0, total, piece):
            yield counted(offset, min(piece, total - offset))

    start_response("200 OK", [*TEXT, ("Content-Length", str(total))])
    return Tracked(pieces(), key)


# A prime length: no piece, page or buffer size divides it, so lost or moved bytes show.
BLOCK = random.Random(0).randbytes(999_983)


def counted(offset, count):
    """Bytes `offset` to `offset + count` of an endless text whose places all differ."""
    start = offset % len(BLOCK)
    return (BLOCK * ((start + count) // len(BLOCK) + 1))[start : start + count]


@route
def gated(environ, start_response, rest, key):
    """The first piece at once, the second when /open/KEY was asked for. /gated/N: with N more pieces before
    that one, the first of them by write()."""
    write = start_response("200 OK", list(TEXT))
    more = [b"piece %d\n" % number for number in range(int(rest or 0))]
    if more:
        write(more.pop(0))
    yield b"first\n"
    yield from more
    opened = gate(key).wait(20)
    yield b"second\n" if opened else b"never opened\n"


@route
def wait(environ, start_response, rest, key):
    """Answers when /open/KEY was asked for; /events/KEY tells that it has begun."""
    remember(key, "begun")
    opened = gate(key).wait(20)
    return reply(start_response, b"opened" if opened else b"never opened")


@route
def wait_and_digest(environ, start_response, rest, key):
    """Waits as /wait, and only then reads the body, as /digest."""
    remember(key, "begun")
    gate(key).wait(20)
    return digest(environ, start_response, rest, "")


@route
def until_exists(environ, start_response, rest, key):
    """Answers when the file that the body names exists; one beside it tells that this has begun."""
    path = environ["wsgi.input"].read().decode()
    open(path + ".begun", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return reply(start_response, b"it exists")


@route
def open_(environ, start_response, rest, key):
    gate(rest).set()
    return reply(start_response, b"open")


@route
def events_(environ, start_response, rest, key):
    with lock:
        return reply_json(start_response, events.get(rest, []))


@route
def file(environ, start_response, rest, key):
    """/file/KIND: wsgi.file_wrapper around a file, a part of one, or an object without a descriptor."""
    wrapper = environ["wsgi.file_wrapper"]
    fields = list(TEXT)
    if rest == "memory":
        source = io.BytesIO(b"".join(PIECES))
    else:
        source = open(__file__, "rb")
        if rest == "part":
            source.seek(100)
        if rest == "sized":
            fields.append(("Content-Length", str(os.path.getsize(__file__))))
    closing = source.close

    class Watched:
        def __getattr__(self, name):
            return getattr(source, name)

        def close(self):
            remember(key, "close")
            closing()

    start_response("200 OK", fields)
    return wrapper(Watched(), 4096)


@route
def download(environ, start_response, rest, key):
    """/download/PATH: the file, by wsgi.file_wrapper."""
    path = "/" + rest
    start_response("200 OK", [*TEXT, ("Content-Length", str(os.path.getsize(path)))])
    return environ["wsgi.file_wrapper"](open(path, "rb"), 65536)


# --- start_response


@route
def fields(environ, start_response, rest, key):
    many = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Latin", "caf\xe9"), ("X-Empty", "")]
    return reply(start_response, b"fields", fields=many)


@route
def bad_start(environ, start_response, rest, key):
    """A status or a header that must not reach the wire."""
    status, fields = {
        "status-bytes": (b"200 OK", TEXT),
        "status-number": (200, TEXT),
        "status-word": ("OK", TEXT),
        "status-short": ("20 OK", TEXT),
        "status-crlf": ("200 OK\r\nX-Injected: yes", TEXT),
        "name-crlf": ("200 OK", [("X-A: b\r\nX-Injected", "yes")]),
        "name-space": ("200 OK", [("X A", "b")]),
        "name-empty": ("200 OK", [("", "b")]),
        "name-bytes": ("200 OK", [(b"X-A", "b")]),
        "value-crlf": ("200 OK", [("X-A", "b\r\nX-Injected: yes")]),
        "value-lf": ("200 OK", [("X-A", "b\nX-Injected: yes")]),
        "value-nul": ("200 OK", [("X-A", "b\0c")]),
        "value-bytes": ("200 OK", [("X-A", b"b")]),
        "value-number": ("200 OK", [("X-A", 5)]),
        "value-not-latin-1": ("200 OK", [("X-A", "\u20ac")]),
        "pair-of-three": ("200 OK", [("X-A", "b", "c")]),
        "list-of-three": ("200 OK", [["X-A", "b", "c"]]),
        "name-not-latin-1": ("200 OK", [("X-\u20ac", "b")]),
        "name-long": ("200 OK", [("X " + "n" * 100_000, "b")]),
        "length-twice": ("200 OK", [("Content-Length", "1"), ("Content-Length", "2")]),
    }[rest]
    start_response(status, list(fields))
    return [b"must not be seen"]


@route
def swallowed_start(environ, start_response, rest, key):
    """As bad_start, by an application that goes on as if nothing had happened."""
    with contextlib.suppress(Exception):
        return bad_start(environ, start_response, rest, key)
    return [b"must not be seen"]


@route
def listed_fields(environ, start_response, rest, key):
    """Lists of two, which frameworks of one's own make; gunicorn unpacks them."""
    start_response("200 OK", [["X-Listed", "a"], ("X-Pair", "b"), *TEXT])
    return [b"listed\n"]


@route
def hop_by_hop(environ, start_response, rest, key):
    name, value = rest.split("/")
    start_response("200 OK", [*TEXT, (name, value)])
    return [b"hop by hop\n"]


@route
def never_started(environ, start_response, rest, key):
    return [b"start_response was never called"]


@route
def started_twice(environ, start_response, rest, key):
    start_response("200 OK", list(TEXT))
    start_response("201 Created", list(TEXT))
    return [b"must not be seen"]


@route
def exc_info(environ, start_response, rest, key):
    """/exc_info/early replaces what was said; /exc_info/late must find out that it is too late."""

    def run():
        start_response("200 OK", [*TEXT, ("X-First", "yes")])
        if rest == "late":
            yield b"first"
        try:
            raise ValueError("on purpose")
        except ValueError:
            try:
                start_response("503 Replaced", [*TEXT, ("X-Second", "yes")], sys.exc_info())
            except ValueError:
                remember(key, "raised again")
                raise
        yield b"replaced"

    return Tracked(run(), key)


# --- failures


@route
def fail(environ, start_response, rest, key):
    if rest == "exit":
        sys.exit(5)
    if rest == "before":
        raise RuntimeError("on purpose before start_response")
    start_response("200 OK", list(TEXT))
    if rest == "after":
        raise RuntimeError("on purpose after start_response")
    if rest == "text":
        return Tracked(["text, not bytes"], key)
    if rest == "none":
        return None

    def run():
        if rest == "middle":
            yield b"alpha "
            yield b"beta "
        if rest == "empty-first":
            yield b""
        raise RuntimeError(f"on purpose in the iteration: {rest}")

    return Tracked(run(), key)


class FailingClose(Tracked):
    def close(self):
        super().close()
        raise RuntimeError("on purpose in close()")


@route
def failing_close(environ, start_response, rest, key):
    start_response("200 OK", [*TEXT, ("Content-Length", "17")])
    return FailingClose(PIECES, key)


def app(environ, start_response):
    name, _, rest = environ["PATH_INFO"].lstrip("/").partition("/")
    key = environ["QUERY_STRING"].removeprefix("key=") if "key=" in environ["QUERY_STRING"] else ""
    if name not in ROUTES:
        return reply(start_response, b"no such route", "404 Not Found")
    return ROUTES[name](environ, start_response, rest, key)


def validated(environ, start_response):
    return validator(app)(environ, start_response)


def create_app(greeting, debug=None):
    """A factory, for `module:create_app('hello', debug=False)`."""

    def greet(environ, start_response):
        return reply(start_response, f"{greeting} debug={debug}".encode())

    return greet


not_callable = "just text"
nothing = None
