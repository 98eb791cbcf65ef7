"""Paths with different kinds of work.

/fast; /sleep (blocked for 50 ms); /cpu1, /cpu and /burn (1, 2 and 500 ms of CPU in Python); /echo; /big (1 MiB in
pieces of 64 KiB); /file (100 MiB through wsgi.file_wrapper).
"""

import tempfile
import time

PIECE = b"x" * 65536
PIECES = 16
FILE_BYTES = 100 * 1024 * 1024
FILE = tempfile.NamedTemporaryFile()
FILE.truncate(FILE_BYTES)


def burn(seconds):
    """Takes CPU time, not time: threads that wait for the interpreter's lock meanwhile do not get done with it."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        for _ in range(200):
            pass


def pieces(file, count):
    """What an application does under a server without a file_wrapper."""
    with file:
        while piece := file.read(count):
            yield piece


def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = b"ok"
    if path == "/sleep":
        time.sleep(0.05)
    elif path == "/cpu":
        burn(0.002)
    elif path == "/cpu1":
        burn(0.001)
    elif path == "/burn":
        burn(0.5)
    elif path == "/echo":
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    elif path == "/big":
        start_response("200 OK", [("Content-Length", str(len(PIECE) * PIECES))])
        return (PIECE for _ in range(PIECES))
    elif path == "/file":
        start_response("200 OK", [("Content-Length", str(FILE_BYTES))])
        return environ.get("wsgi.file_wrapper", pieces)(open(FILE.name, "rb"), 65536)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
