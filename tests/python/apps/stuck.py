"""An application that gets stuck in ways that applications do."""

import re
import threading
import time

from pep3333 import app as other

go_on = threading.Event()


def sleep_in_here():
    time.sleep(600)


def spin_in_here():
    while True:
        pass


def hold_the_interpreter_in_here():
    re.match("(a+)+b", "a" * 60)


def wait_in_here():
    go_on.wait(600)


def stream(started):
    started("200 OK", [("Content-Type", "text/plain")])
    yield b"the beginning"
    wait_in_here()
    yield b"and the end"


def application(environ, start_response):
    path = environ["PATH_INFO"]
    ways = {
        "/sleep": sleep_in_here,
        "/spin": spin_in_here,
        "/hold": hold_the_interpreter_in_here,
        "/wait": wait_in_here,
    }
    if path in ways:
        ways[path]()
        start_response("200 OK", [])
        return [b"late"]
    if path == "/stream":
        return stream(start_response)
    if path == "/go_on":
        go_on.set()
        start_response("200 OK", [])
        return [b"going on"]
    return other(environ, start_response)
