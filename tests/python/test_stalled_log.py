"""Nobody reads the server's standard error: lines are lost and counted, requests are not."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

import harness
from harness import APPS, Client, request, wait_until

pytestmark = pytest.mark.ringhorn_only


@pytest.fixture(params=["pipe", "socket", "fifo"])
def stalled(request, io, tmp_path):
    """A server whose error log leads into something that is read only when the test says so."""
    if request.param == "socket":
        import socket

        reading, writing = (end.detach() for end in socket.socketpair())
    elif request.param == "pipe":
        reading, writing = os.pipe()
    else:
        os.mkfifo(tmp_path / "fifo")
        reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        writing = os.open(tmp_path / "fifo", os.O_WRONLY)
        os.set_blocking(reading, True)
    address = str(tmp_path / "site")
    command = [sys.executable, "-m", "ringhorn", "--io", io, "-b", f"unix:{address}", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--threads", "4", "pep3333:app"],
        cwd=APPS,
        env=harness.clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=writing,
        start_new_session=True,
    )
    os.close(writing)

    def listens() -> bool:
        # The file is there a little earlier than the listener behind it.
        with contextlib.suppress(OSError):
            Client(address).close()
            return True
        return process.poll() is not None

    try:
        wait_until(listens, "the server listens")
        yield process, address, reading
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(reading)


def read_all(fd: int) -> str:
    pieces = []
    while piece := os.read(fd, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces).decode()


def test_requests_go_on_and_what_is_lost_is_counted(stalled):
    process, address, reading = stalled
    # Both ways into the log: a runner's tracebacks, and what the I/O thread refuses. 3 MB of them.
    filler = "x" * 5000
    count = 600
    for _ in range(count):
        with Client(address) as client:
            assert client.get(f"/fail/call?{filler}").status == 500
        with Client(address) as client:
            client.send(request("GET", "/", "two words: a"))
            assert client.read_response().status == 400
    with Client(address) as client:
        assert client.get("/plain").status == 200
    # The master is not held up either.
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTTIN)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    wait_until(lambda: len(open(children).read().split()) == 2, "a second worker")

    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(read_all(reading)))
    reader.start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(harness.PATIENCE) == 0
    reader.join()
    text = read[0]
    # gunicorn's lines, at the beginning and at the end of the server's life.
    for line in ("Listening at:", "Handling signal: usr1", "Handling signal: ttin", "Shutting down: Master"):
        assert line in text, line
    assert len(re.findall(r"Worker exiting \(pid: \d+\)", text)) == 2
    kept = text.count("Error handling request GET /fail/call?x") + text.count("Invalid request from ip=: ")
    lost = sum(map(int, re.findall(r"\[WARNING\] (\d+) lines of the error log are lost: ", text)))
    assert lost > 0
    assert kept + lost == 2 * count
    assert all(re.match(r"\[\d{4}-", line) for line in text.splitlines() if "] [" in line[:60])


def test_the_last_lines_are_there_when_somebody_reads(stalled):
    process, address, reading = stalled
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(read_all(reading)))
    reader.start()
    for _ in range(50):
        with Client(address) as client:
            assert client.get("/fail/call").status == 500
    process.send_signal(signal.SIGTERM)
    assert process.wait(harness.PATIENCE) == 0
    reader.join()
    assert read[0].count("Error handling request GET /fail/call") == 50
    assert "lost" not in read[0]
    assert read[0].rstrip().endswith("Shutting down: Master")
