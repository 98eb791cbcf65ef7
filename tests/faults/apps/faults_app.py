"""The application of the fault tests: the first part of the path chooses what it does.

`release.py`, which the tests write, imports it and says which version it is. What few routes need is imported
there: a worker without root's rights may not be able to read all of Python's library.
"""

import contextlib
import os
import sys
import threading
import time

FOLDER = os.environ["FAULTS_FOLDER"]
told = {"version": "?"}

TEXT = [("Content-Type", "text/plain")]

hog: list[int] = []
record = None


def note(file, text):
    """One line in a file of the test's folder, whole even when the process is killed behind it."""
    fd = os.open(os.path.join(FOLDER, file), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, text.encode() + b"\n")
    os.close(fd)


def answer(start_response, body, fields=TEXT):
    start_response("200 OK", [*fields, ("Content-Length", str(len(body)))])
    return [body]


def application(environ, start_response):
    name, _, rest = environ["PATH_INFO"].strip("/").partition("/")
    serve = ROUTES.get(name)
    if serve is None:
        start_response("404 Not Found", TEXT)
        return [b"no such route\n"]
    return serve(environ, start_response, rest)


def who(environ, start_response, rest):
    """Which process and which version."""
    return answer(start_response, b"%d %s\n" % (os.getpid(), told["version"].encode()))


def busy(environ, start_response, rest):
    """Takes milliseconds, and tells its begin to a file that outlives this process."""
    global record
    if record is None:
        record = os.open(os.path.join(FOLDER, "begun"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    id = environ["QUERY_STRING"].partition("id=")[2]
    os.write(record, b"%d %s\n" % (os.getpid(), id.encode()))
    time.sleep(float(rest or 2) / 1000)
    return who(environ, start_response, rest)


def gate(environ, start_response, rest):
    """Waits for a file; never longer than a minute."""
    path = os.path.join(FOLDER, rest)
    note(rest + ".begun", str(os.getpid()))
    end = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.005)
    return who(environ, start_response, rest)


def hold(environ, start_response, rest):
    """C code that keeps the interpreter's lock for so many seconds."""
    import ctypes

    note("hold.begun", str(os.getpid()))
    ctypes.PyDLL(None).sleep(int(rest))
    return who(environ, start_response, rest)


def crash(environ, start_response, rest):
    note("crash.begun", str(os.getpid()))
    if rest == "segfault":
        import ctypes

        ctypes.string_at(0)
    elif rest == "exit":
        os._exit(9)
    elif rest == "abort":
        os.abort()
    elif rest == "kill":
        os.kill(os.getpid(), 9)
    elif rest == "sys_exit_3":
        sys.exit(3)
    return who(environ, start_response, rest)


def upload(environ, start_response, rest):
    count = 0
    while piece := environ["wsgi.input"].read(64 * 1024):
        count += len(piece)
    return answer(start_response, b"%d\n" % count)


def body(environ, start_response, rest):
    """One answer of so many bytes."""
    return answer(start_response, b"x" * int(rest))


class Stream:
    """Pieces of 64 KiB, as many as wanted; notes that it was begun and that it was closed."""

    def __init__(self, count):
        self.left = count
        self.id = f"{os.getpid()}-{id(self)}-{time.monotonic_ns()}"
        note("streams", f"begun {self.id}")

    def __iter__(self):
        return self

    def __next__(self):
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return b"y" * 65536

    def close(self):
        note("streams", f"closed {self.id}")


def stream(environ, start_response, rest):
    start_response("200 OK", TEXT)
    return Stream(int(rest))


def varied(environ, start_response, rest):
    """Answers of many sizes and forms, to see whether anything of them stays."""
    number = int(rest)
    environ["wsgi.input"].read()
    fields = [*TEXT, ("X-Number", rest), ("Set-Cookie", f"a={number}")]
    if number % 3 == 0:
        start_response("200 OK", fields)
        return (b"z" * (number % 500) for _ in range(3))
    return answer(start_response, b"z" * (number * 37 % 20_000), fields)


def hog_descriptors(environ, start_response, rest):
    """Takes all descriptors that this process may have; `free` gives them back."""
    if rest == "free":
        while hog:
            os.close(hog.pop())
    else:
        with contextlib.suppress(OSError):
            while True:
                hog.append(os.open("/dev/null", os.O_RDONLY))
    return answer(start_response, b"%d\n" % len(hog))


def threads(environ, start_response, rest):
    return answer(start_response, b"%d\n" % threading.active_count())


def hostile(environ, start_response, rest):
    from hostile import KINDS

    return KINDS[rest](environ, start_response)


ROUTES = {
    "": who,
    "busy": busy,
    "gate": gate,
    "hold": hold,
    "crash": crash,
    "upload": upload,
    "body": body,
    "stream": stream,
    "varied": varied,
    "hog": hog_descriptors,
    "threads": threads,
    "hostile": hostile,
}
