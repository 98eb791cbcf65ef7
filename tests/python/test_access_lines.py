"""One access line for each request, answered, refused or cut: the same ones as gunicorn's."""

import os
import re
import subprocess
import sys

import pytest

import harness
from harness import ROOT, Server, chunked, request, wait_until
from test_oracle import CASES, DIFFERENCES, LIMITS, outcome

pytestmark = pytest.mark.ringhorn_only

FORMAT = ["--access-logformat", "%(h)s|%(s)s|%(r)s|%(m)s|%(q)s|"]
GUNICORN = [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "4", "--no-control-socket"]

# gunicorn writes no line for these, and Ringhorn does: the rule is that a request whose line and fields could be read
# has one. Both have one for every other request that was refused later than that.
UNTOLD = {"expect-other", "schemes-disagree", "unknown-coding", "empty-coding", "chunk-cut"}


class Site:
    """A server whose access lines are asked for case by case."""

    def __init__(self, server: Server, path):
        self.server, self.path, self.seen, self.count = server, path, 0, 0

    def lines(self, send) -> list[str]:
        """The lines that `send(server)` makes. Requests behind it show that all are written."""
        send(self.server)
        self.count += 1
        marker = f"/marker-{self.count}"
        # Two: the first may be read together with what was sent, and before its end.
        for path in (f"{marker}a", f"{marker}b"):
            assert self.server.get(path).status == 200
            wait_until(lambda path=path: f"|GET {path} " in self.path.read_text(errors="replace"), path)
        lines = self.path.read_text(errors="replace").splitlines()
        new, self.seen = lines[self.seen :], len(lines)
        return [line for line in new if marker not in line]


@pytest.fixture(scope="module", params=["own", "python"])
def ours(request, serve_module, tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "access.log"
    args = ["-w", "1", "--threads", "1", "--access-logfile", str(path), *FORMAT, *LIMITS]
    if request.param == "python":
        args += ["--logger-class", "mylogger.Mine"]
        module = tmp_path_factory.mktemp("module")
        (module / "mylogger.py").write_text(
            "from gunicorn.glogging import Logger\nclass Mine(Logger): pass\n"
        )
        args += ["--pythonpath", str(module)]
    site = Site(serve_module("oracle:app", *args, ready="/ready"), path)
    wait_until(lambda: "/ready" in path.read_text(), "the first line")
    site.seen = 1
    return site


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gunicorn")
    path = directory / "access.log"
    with harness.serving(
        lambda *args: Server(GUNICORN, args, log=directory / "log", ready="/ready")
    ) as start:
        site = Site(start("--access-logfile", str(path), *FORMAT, *LIMITS, "oracle:app"), path)
        wait_until(lambda: "/ready" in path.read_text(), "the first line")
        site.seen = 1
        yield site


def test_the_same_requests_have_the_same_lines(ours, theirs):
    found = {}
    for name, data in CASES.items():
        mine = ours.lines(lambda server, data=data: outcome(server, data))
        other = theirs.lines(lambda server, data=data: outcome(server, data))
        # The server's own log doubles a backslash that is not one of an escape.
        mine = [line.replace("\\\\", "\\") for line in mine]
        if name in UNTOLD:
            assert (len(mine), len(other)) == (1, 0), (name, mine, other)
        elif name in DIFFERENCES:
            # Served by the one and refused by the other, or with other variables.
            assert len(mine) == len(outcome(ours.server, data)), (name, mine)
            ours.lines(lambda server: None)
        elif mine != other:
            found[name] = (mine, other)
    assert found == {}


def test_the_rule_is_documented():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    assert "`test_the_same_requests_have_the_same_lines`" in text


def statuses(lines: list[str]) -> list[str]:
    return [line.split("|")[1] for line in lines]


def send_and_leave(data: bytes, reset: bool = False):
    def send(server: Server) -> None:
        client = server.client()
        client.send(data)
        if reset:
            # Until it is read, a reset would take it away.
            wait_until(lambda: unread(server) == 0, "the server has read it")
            client.reset()
        else:
            client.close()

    return send


def unread(server: Server) -> int:
    """Bytes that wait in the receive queues of the server's connections."""
    count = 0
    for line in open("/proc/net/tcp"):
        fields = line.split()
        if fields[1].endswith(f":{server.port:04X}") and fields[3] == "01":
            count += int(fields[4].partition(":")[2], 16)
    return count


def test_requests_that_are_cut_have_a_line(ours):
    upload = request("POST", "/upload", "Content-Length: 1000", body=b"x" * 10)
    for reset in (False, True):
        assert statuses(ours.lines(send_and_leave(upload, reset))) == ["400"], f"reset: {reset}"
    begun = chunked("/chunks", [b"x" * 10])[:-7]
    assert statuses(ours.lines(send_and_leave(begun))) == ["400"]
    # Nobody knows what a head that did not come would have asked for; gunicorn says nothing of it either.
    assert ours.lines(send_and_leave(b"GET /cut HTTP/1.1\r\nHost: a\r\n")) == []


def test_a_client_that_leaves_before_its_answer_has_a_line(ours):
    lines = ours.lines(send_and_leave(request("GET", "/gone"), reset=True))
    # Before or after a thread took it, which is a matter of microseconds.
    assert statuses(lines) in (["200"], ["400"])


def test_a_body_that_times_out_has_a_line(serve, tmp_path):
    path = tmp_path / "access.log"
    args = ["-w", "1", "--threads", "1", "--body-timeout", "0.2", "--access-logfile", str(path), *FORMAT]
    site = Site(serve("oracle:app", *args, ready=None), path)

    def stall(server: Server) -> None:
        with server.client() as client:
            client.send(request("POST", "/slow", "Content-Length: 5"))
            assert client.read_response().status == 408

    assert statuses(site.lines(stall)) == ["408"]


def test_refusals_are_told_of_in_gunicorns_words(ours, theirs):
    """What programs that ban addresses look for."""
    for site in (ours, theirs):
        site.lines(lambda server: outcome(server, b"NONSENSE\r\n\r\n"))
        pattern = r"\[WARNING\] Invalid request from ip=127\.0\.0\.1: "
        wait_until(lambda site=site, pattern=pattern: re.search(pattern, site.server.log()), "the warning")


@pytest.mark.ringhorn_only
def test_a_fifo_is_opened_once_and_its_reader_has_every_line(serve, tmp_path):
    """Its reader takes the end of the first who writes for the end of the log."""
    fifo, out = tmp_path / "fifo", tmp_path / "out"
    os.mkfifo(fifo)
    with out.open("wb") as taken, subprocess.Popen(["cat", str(fifo)], stdout=taken) as reader:
        try:
            server = serve("pep3333:app", "--workers", "1", "--access-logfile", str(fifo))
            assert server.get("/plain").status == 200
            wait_until(lambda: b"GET /plain " in out.read_bytes(), "the line")
        finally:
            reader.kill()
