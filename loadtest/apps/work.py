"""Paths with different kinds of work: /fast, /sleep (50 ms blocked), /cpu (2 ms of Python), /echo, /big (1 MiB)."""

import time

PIECES = [b"x" * 65536] * 16


def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = b"ok"
    if path == "/sleep":
        time.sleep(0.05)
    elif path == "/cpu":
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
    elif path == "/echo":
        body = environ["wsgi.input"].read()
    elif path == "/big":
        start_response("200 OK", [("Content-Length", str(65536 * len(PIECES)))])
        return PIECES
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
