"""An application that looks at the handlers of signals, and changes them, in its requests."""

import asyncio
import ctypes
import json
import os
import signal
import time

from pep3333 import app as other

NUMBERS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGWINCH")


def name_of(handler):
    return getattr(handler, "__name__", None) or getattr(handler, "name", None)


def handlers():
    return {name: name_of(signal.getsignal(getattr(signal, name))) for name in NUMBERS}


def save_and_put_back():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        old = signal.signal(number, lambda *_: None)
        signal.signal(number, old)


def hold_the_interpreter():
    """In C code that no signal interrupts: a mutex that this thread has already."""
    mutex = ctypes.create_string_buffer(256)
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex)
    print("holds the interpreter", flush=True)
    lock(mutex)


def end_of_a_child(number, default):
    """How a child ends that sends itself a signal: its wait status."""
    child = os.fork()
    if child == 0:
        if default:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/asyncio":
        asyncio.run(asyncio.sleep(0))
    elif path == "/put_back":
        save_and_put_back()
    elif path == "/hold":
        hold_the_interpreter()
    elif path == "/children":
        body = json.dumps([end_of_a_child(signal.SIGTERM, default) for default in (False, True)]).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    elif path != "/handlers":
        return other(environ, start_response)
    body = json.dumps(handlers()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
