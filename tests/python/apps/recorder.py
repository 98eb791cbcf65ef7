"""Notes what happened, one line each, in the file that RECORD names."""

import os


def note(*words):
    path = os.environ.get("RECORD")
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
        os.close(fd)


def post_request(worker, req, environ):
    note("post_request", req.path, environ.get("hooked.mine"))


def not_a_hook():
    """Takes no argument, as no hook does."""
