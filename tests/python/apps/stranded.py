"""Requests that block, and imports that take long, until a test lets them go on: files in $GATES tell."""

import os
import time
from pathlib import Path

GATES = Path(os.environ["GATES"])


def wait_at(gate: str) -> None:
    """Says so in `gate`.begun, with the process's number, and waits until the test has made `gate`.open."""
    here = GATES / f"{gate}.here"
    here.write_text(str(os.getpid()))
    here.rename(GATES / f"{gate}.begun")
    while not (GATES / f"{gate}.open").exists():
        time.sleep(0.01)


if (GATES / "import").exists():
    wait_at("import")
(GATES / f"{os.getpid()}.up").touch()


def app(environ, start_response):
    body = environ["wsgi.input"].read()
    kind, _, gate = environ["PATH_INFO"][1:].partition("/")
    if kind == "block":
        wait_at(gate)
    elif kind == "once":
        with (GATES / "once.done").open("a") as book:
            book.write(f"{gate}\n")
    answer = f"{os.getpid()} {environ['REMOTE_ADDR']} {environ['PATH_INFO']} ".encode() + body
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
