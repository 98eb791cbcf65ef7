"""Applications that do what PEP 3333 forbids, and what nobody thought of. Each is one request."""

import asyncio
import sys
import warnings

TEXT = [("Content-Type", "text/plain")]
KINDS = {}


def kind(function):
    KINDS[function.__name__] = function
    return function


class Closing:
    """An iterable that can fail at each of its steps."""

    def __init__(self, pieces, closing=None):
        self.pieces = iter(pieces)
        self.closing = closing

    def __iter__(self):
        return self

    def __next__(self):
        piece = next(self.pieces)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def close(self):
        if self.closing:
            raise self.closing


def raising(name, error):
    def before(environ, start_response):
        raise error

    def after_start(environ, start_response):
        start_response("200 OK", TEXT)
        raise error

    def in_first(environ, start_response):
        start_response("200 OK", TEXT)
        return Closing([error])

    def midway(environ, start_response):
        start_response("200 OK", [*TEXT, ("Content-Length", "100")])
        return Closing([b"begun", error])

    def in_close(environ, start_response):
        start_response("200 OK", [*TEXT, ("Content-Length", "2")])
        return Closing([b"ok"], error)

    for function in (before, after_start, in_first, midway, in_close):
        KINDS[f"{name}_{function.__name__}"] = function


raising("exception", ValueError("hostile"))
raising("system_exit", SystemExit(3))
raising("keyboard_interrupt", KeyboardInterrupt())
raising("generator_exit", GeneratorExit())
raising("base_exception", BaseException("hostile"))
raising("stop_iteration", StopIteration())
raising("memory_error", MemoryError())
raising("recursion_error", RecursionError())
raising("cancelled", asyncio.CancelledError())
raising(
    "unprintable",
    type("Unprintable", (Exception,), {"__str__": lambda self: 1 / 0, "__repr__": lambda self: 1 / 0})(),
)


def starting(name, status, fields, body=(b"ok",)):
    def serve(environ, start_response):
        start_response(status, fields)
        return list(body)

    KINDS[name] = serve


for number, value in enumerate(
    ["a\r\nX-Injected: 1", "a\nX-Injected: 1", "a\rX-Injected: 1", "a\0b", "\r\n\r\n<p>", "snow \u2603"]
):
    starting(f"value_{number}", "200 OK", [("X-Value", value)])
for number, name in enumerate(["X\r\nX-Injected", "X Y", "X:", "", "X-\u2603", "X\0"]):
    starting(f"name_{number}", "200 OK", [(name, "1")])
for number, status in enumerate(
    [
        "200 OK\r\nX-Injected: 1",
        "200 OK\nX-Injected: 1",
        "",
        "OK",
        "99 Low",
        "1000 High",
        "2e2 OK",
        "-200 OK",
        "100 Continue",
        "101 Switching",
    ]
):
    starting(f"status_{number}", status, TEXT)
for number, (status, fields) in enumerate(
    [
        (200, TEXT),
        (None, TEXT),
        (b"200 OK", TEXT),
        ("200 OK", None),
        ("200 OK", 7),
        ("200 OK", ["ab"]),
        ("200 OK", [("a",)]),
    ]
):
    starting(f"type_{number}", status, fields)
for number, (status, fields) in enumerate(
    [
        ("200 OK", [("X", 1)]),
        ("200 OK", [(1, "X")]),
        ("200 OK", [("X", None)]),
        ("200 OK", [("X", b"1")]),
        ("200 OK", {"X": "1"}),
    ]
):
    starting(f"field_{number}", status, fields)
starting(
    "length_too_small",
    "200 OK",
    [("Content-Length", "2")],
    [b"ok", b"HTTP/1.1 200 OK\r\nX-Injected: 1\r\n\r\n"],
)
starting(
    "length_too_small_at_once",
    "200 OK",
    [("Content-Length", "2")],
    [b"okHTTP/1.1 200 OK\r\nX-Injected: 1\r\n\r\n"],
)
starting("length_too_large", "200 OK", [("Content-Length", "200")], [b"ok"])
starting("length_negative", "200 OK", [("Content-Length", "-1")])
starting("length_not_a_number", "200 OK", [("Content-Length", "two")])
starting("length_huge", "200 OK", [("Content-Length", "9" * 40)])
starting("length_twice", "200 OK", [("Content-Length", "2"), ("Content-Length", "3")])
starting(
    "own_chunks",
    "200 OK",
    [("Transfer-Encoding", "chunked")],
    [b"0\r\n\r\nHTTP/1.1 200 OK\r\nX-Injected: 1\r\n\r\n"],
)
starting("own_upgrade", "200 OK", [("Connection", "upgrade"), ("Upgrade", "websocket")])
starting("body_of_204", "204 No Content", [], [b"HTTP/1.1 200 OK\r\nX-Injected: 1\r\n\r\n"])
starting("body_of_304", "304 Not Modified", [], [b"HTTP/1.1 200 OK\r\nX-Injected: 1\r\n\r\n"])
starting("text_body", "200 OK", TEXT, ["text"])
starting("number_body", "200 OK", TEXT, [1, 2])
starting("none_body", "200 OK", TEXT, [None])
starting("many_fields", "200 OK", [("X-Many", "v" * 100)] * 20_000)
starting("large_field", "200 OK", [("X-Large", "v" * 3_000_000)])


@kind
def never_starts(environ, start_response):
    return [b"ok"]


@kind
def starts_in_the_iteration(environ, start_response):
    yield b""
    start_response("200 OK", TEXT)
    yield b"ok"


@kind
def starts_twice(environ, start_response):
    start_response("200 OK", TEXT)
    start_response("404 Not Found", TEXT)
    return [b"ok"]


@kind
def starts_again_after_the_head(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"begun"
    try:
        raise ValueError("hostile")
    except ValueError:
        start_response("500 Oops", TEXT, sys.exc_info())
    yield b"more"


@kind
def returns_none(environ, start_response):
    start_response("200 OK", TEXT)


@kind
def returns_a_number(environ, start_response):
    start_response("200 OK", TEXT)
    return 7


@kind
def returns_bytes(environ, start_response):
    start_response("200 OK", TEXT)
    return b"ok"


@kind
def returns_text(environ, start_response):
    start_response("200 OK", TEXT)
    return "ok"


@kind
def calls_with_nothing(environ, start_response):
    start_response()
    return [b"ok"]


@kind
def recurses(environ, start_response):
    return recurses(environ, start_response)


@kind
def empties_the_environ(environ, start_response):
    environ.clear()
    start_response("200 OK", TEXT)
    return [b"ok"]


@kind
def spoils_the_environ(environ, start_response):
    for name in list(environ):
        environ[name] = object()
    start_response("200 OK", TEXT)
    return [b"ok"]


@kind
def closes_the_input(environ, start_response):
    environ["wsgi.input"].close()
    start_response("200 OK", TEXT)
    return [b"ok"]


@kind
def closes_the_errors(environ, start_response):
    environ["wsgi.errors"].close()
    start_response("200 OK", TEXT)
    return [b"ok"]


@kind
def writes_and_returns(environ, start_response):
    write = start_response("200 OK", [("Content-Length", "2")])
    write(b"ok")
    write(b"HTTP/1.1 200 OK\r\nX-Injected: 1\r\n\r\n")
    return [b"HTTP/1.1 200 OK\r\nX-Injected: 1\r\n\r\n"]


@kind
def warns(environ, start_response):
    warnings.warn("hostile", stacklevel=1)
    start_response("200 OK", TEXT)
    return [b"ok"]


@kind
def closes_standard_output(environ, start_response):
    sys.stdout.close()
    sys.stdout = None
    start_response("200 OK", TEXT)
    return [b"ok"]
