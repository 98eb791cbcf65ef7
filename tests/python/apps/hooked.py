"""An application that its hooks, and the tests of hooks and config files, look at."""

import json
import logging
import os
import sys
import time

import recorder

recorder.note("import")


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/boom":
        raise ValueError("on purpose")
    if path == "/hold":
        # Until the test says so, on the thread that answers.
        recorder.note("held")
        while not os.path.exists(environ["QUERY_STRING"]):
            time.sleep(0.01)
    if path == "/log":
        logging.getLogger("gunicorn.error").warning("told by the application, with %d%%", 100)
    if path == "/mutate":
        environ["hooked.mine"] = "kept"
    body = json.dumps(
        {
            "pid": os.getpid(),
            "uid": os.getuid(),
            "cwd": os.getcwd(),
            "path": sys.path[:4],
            "environ": dict(os.environ),
            "config": sorted(vars(sys.modules["__config__"])) if "__config__" in sys.modules else None,
        }
    ).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("X-Hooked", "yes")])
    return [body]


def other(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"other\n"]
