"""Deadlines and limits, as clients meet them. Deadlines are fractions of a second here, and the tests
wait for the close that must come, never for time to pass."""

import contextlib
import os
import resource
import select
import signal
import time
from pathlib import Path

import pytest

from harness import CutOff, Server, chunked, request, stop_process, wait_until
from pep3333 import counted

pytestmark = pytest.mark.ringhorn_only

MB = 1_000_000
SHORT = "0.2"
ONE = ("--workers", "1", "--threads", "1")


def wait_for_hangup(client) -> None:
    """The connection is gone for good, although this client has not read what was sent to it."""
    poll = select.poll()
    poll.register(client.socket, 0)
    seen = poll.poll(20_000)
    assert seen and seen[0][1] & (select.POLLHUP | select.POLLERR), "the server holds the connection"


def sockets_of(pid: int) -> int:
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(fd).startswith("socket:")
    return count


# --- limits of the head


@pytest.mark.parametrize(
    ("option", "at_most", "message", "status"),
    [
        # The line without its CRLF: `GET / HTTP/1.1` has 14 bytes.
        ("--limit-request-line", 100, lambda n: request("GET", "/" + "a" * (n - 14)), 414),
        # The field with its CRLF: `X: ` and CRLF are 5 bytes.
        ("--limit-request-field_size", 100, lambda n: request("GET", "/", "X: " + "a" * (n - 5)), 431),
        # Host is one of them.
        ("--limit-request-fields", 10, lambda n: request("GET", "/", *(["X: a"] * (n - 1))), 431),
    ],
)
def test_heads_up_to_the_limit_and_one_more(serve, option, at_most, message, status):
    site = serve("pep3333:app", *ONE, option, str(at_most), ready=None)
    assert site.ask(message(at_most)).status == 404, "served: there is no such route"
    with site.client() as client:
        client.send(message(at_most + 1))
        assert client.read_response().status == status
        client.assert_closed()


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"])
def test_an_endless_head_is_refused_before_it_ends(serve, begin):
    site = serve("pep3333:app", *ONE)
    with site.client() as client:
        client.send(begin)
        more = b"X: a\r\n" * 200_000 if begin.endswith(b"\n") else b"a" * 100_000
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(more)
        assert client.read_response().status in (414, 431)


# --- limit_request_body


def refused_413(site: Server, message: bytes, key: str) -> None:
    with site.client() as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(message)
        answer = client.read_response()
        assert (answer.status, answer.field("connection")) == (413, "close")
        client.assert_closed()
    assert site.get(f"/events/{key}").json() == []


def test_bodies_up_to_the_limit_and_one_more(serve):
    site = serve("pep3333:app", *ONE, "--limit-request-body", "1000")
    body = b"x" * 1000
    assert site.ask(request("POST", "/digest", body=body)).json()["bytes"] == 1000
    assert site.ask(chunked("/digest", [body[:600], body[600:]])).json()["bytes"] == 1000
    refused_413(site, request("POST", "/digest?key=sized", body=body + b"x"), "sized")
    refused_413(site, chunked("/digest?key=chunked", [body, b"x"]), "chunked")


def test_a_declared_body_is_refused_before_it_is_sent(serve):
    site = serve("pep3333:app", *ONE, "--limit-request-body", "1000")
    for field in ("X-A: b", "Expect: 100-continue"):
        with site.client() as client:
            client.send(request("POST", "/digest", "Content-Length: 1001", field))
            assert client.read_response().status == 413, "and no 100 Continue before it"


def test_a_chunked_body_that_outgrows_the_limit_while_it_is_read(serve):
    """The application has begun to read; its read fails, and the client is told why."""
    limits = ("--body-buffer", "1000", "--limit-request-body", "100000")
    site = serve("pep3333:app", "-w", "1", "--threads", "2", *limits)
    with site.client() as client:
        client.send(b"POST /digest/1000?key=grows HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"c350\r\n" + b"x" * 50_000 + b"\r\n")
        wait_until(lambda: site.get("/events/grows").json(), "the application has read a piece")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(b"c351\r\n" + b"x" * 50_001 + b"\r\n0\r\n\r\n")
        assert client.read_response().status == 413
        client.assert_closed()
    assert site.get("/plain").status == 200


# --- deadlines of reading


@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_connection_that_says_nothing_is_closed(serve, threads):
    site = serve("pep3333:app", "-w", "1", "--threads", threads, "--first-byte-timeout", SHORT)
    with site.client() as client:
        client.assert_closed()


@pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX"])
def test_a_head_that_does_not_end_is_answered_408(serve, part):
    site = serve("pep3333:app", *ONE, "--header-timeout", SHORT)
    with site.client() as client:
        client.send(part)
        answer = client.read_response()
        assert (answer.status, answer.field("connection")) == (408, "close")
        client.assert_closed()


def test_a_head_that_drips_is_closed_all_the_same(serve):
    """Bytes do not move the deadline of a head (slowloris)."""
    site = serve("pep3333:app", *ONE, "--header-timeout", SHORT)
    with site.client() as client:
        client.send(b"GET / HTTP/1.1\r\nX: ")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not select.select([client.socket], [], [], 0.02)[0]:
                client.send(b"a")
        assert client.read_response().status == 408


def test_the_next_head_of_a_connection_has_its_deadline_too(serve):
    site = serve("pep3333:app", *ONE, "--header-timeout", SHORT)
    with site.client() as client:
        assert client.get("/plain").status == 200
        client.send(b"GET /pl")
        assert client.read_response().status == 408


@pytest.mark.parametrize("buffer", ["1000000", "10"])
@pytest.mark.parametrize("framing", ["sized", "chunked"])
def test_a_body_that_does_not_go_on(serve, buffer, framing):
    """Before the application is called, and while it reads."""
    site = serve("pep3333:app", *ONE, "--body-timeout", SHORT, "--body-buffer", buffer)
    message = request("POST", "/digest", body=b"x" * 200)
    if framing == "chunked":
        message = chunked("/digest", [b"x" * 200])
    with site.client() as client:
        client.send(message[:-20])
        assert client.read_response().status == 408
        client.assert_closed()
    assert site.get("/plain").status == 200, "the only thread is free again"


def test_the_wait_for_100_continue_is_not_the_clients(serve):
    """The application takes longer than the deadline before it asks for the body."""
    site = serve("pep3333:app", "-w", "1", "--threads", "4", "--body-timeout", "1", "--body-buffer", "10")
    with site.client() as client, site.client() as other:
        fields = ("Expect: 100-continue", "Content-Length: 100")
        client.send(request("POST", "/wait_and_digest?key=c", *fields))
        wait_until(lambda: site.get("/events/c").json(), "the application is called")
        # Another body's deadline, begun later, runs out first.
        other.send(request("POST", "/digest", "Content-Length: 100") + b"x")
        assert other.read_response().status == 408
        site.get("/open/c")
        assert client.read_response().status == 100
        client.send(b"x" * 100)
        assert client.read_response().json()["bytes"] == 100


# --- keep-alive


def test_an_idle_connection_is_closed(serve):
    site = serve("pep3333:app", *ONE, "--keep-alive", "1")
    with site.client() as client:
        for _ in range(3):
            assert client.get("/plain").status == 200
        client.assert_closed()


@pytest.mark.parametrize("target", [f"/big/{5 * MB}/100000", f"/big/{5 * MB}/{5 * MB}", "/file/sized"])
def test_an_idle_connection_is_closed_after_a_large_answer_too(serve, target):
    site = serve("pep3333:app", *ONE, "--keep-alive", SHORT)
    with site.client(receive_buffer=65_536) as client:
        assert client.get(target).status == 200
        client.assert_closed()


@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_request_that_came_in_time_is_answered_by_a_worker_that_stood_still(serve, threads):
    """Its clock was over when it went on (SIGSTOP, the freezer), and the connection was closed unread."""
    site = serve("pep3333:app", "--workers", "1", "--threads", threads, "--keep-alive", "1")
    (worker,) = site.workers(1)
    with site.client() as client:
        assert client.get("/plain").status == 200
        stop_process(worker)
        client.send(request("GET", "/plain"))
        over = time.monotonic() + 2
        wait_until(lambda: time.monotonic() > over, "the connection's time is over")
        os.kill(worker, signal.SIGCONT)
        assert client.read_response().status == 200


def test_no_keep_alive_is_announced(serve):
    site = serve("pep3333:app", *ONE, "--keep-alive", "0")
    with site.client() as client:
        assert client.get("/plain").field("connection") == "close"
        client.assert_closed()


def test_a_slow_application_is_not_an_idle_connection(serve):
    site = serve("pep3333:app", "-w", "1", "--threads", "4", "--keep-alive", SHORT)
    with site.client() as client, site.client() as idle:
        idle.get("/plain")
        client.send(request("GET", "/wait?key=slow"))
        idle.assert_closed()
        site.get("/open/slow")
        assert client.read_response().body == b"opened"


def test_the_end_of_a_connection_waits_for_the_client_for_a_bounded_time(serve):
    """Closed on our side, and the client neither closes nor reads on: nothing of it stays in the worker."""
    site = serve("pep3333:app", *ONE, "--linger-timeout", SHORT)
    (worker,) = site.workers(1)
    before = sockets_of(worker)
    clients = [site.client() for _ in range(10)]
    for client in clients:
        assert client.get("/plain", "Connection: close").status == 200
        client.assert_closed()
    wait_until(lambda: sockets_of(worker) <= before, "the sockets are closed")
    for client in clients:
        client.close()


# --- slow readers


@pytest.mark.parametrize("target", [f"/big/{50 * MB}/100000", f"/big/{50 * MB}/{50 * MB}"])
def test_a_client_that_does_not_read_is_dropped(serve, target):
    """A generator and one large piece. The only thread waits for the client, but not longer than allowed."""
    site = serve("pep3333:app", *ONE, "--response-timeout", SHORT)
    with site.client(receive_buffer=4096) as client:
        client.send(request("GET", target))
        wait_for_hangup(client)
    assert site.get("/plain").status == 200


def test_a_client_that_reads_slowly_but_reads_gets_all(serve):
    site = serve("pep3333:app", *ONE, "--response-timeout", "1")
    with site.client(receive_buffer=65_536) as client:
        client.send(request("GET", f"/big/{20 * MB}/100000"))
        answer = client.read_response()
        assert answer.body == counted(0, 20 * MB)


@pytest.mark.parametrize("target", ["/big/200000/1000", "/big/4000000/4000000", "/download"])
def test_a_slow_reader_does_not_hold_the_only_thread(serve, target, tmp_path):
    """Pieces that fit the connection's bound, a large answer that is complete, and files of any size."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(50 * MB)
    site = serve("pep3333:app", *ONE)
    slow = [site.client(receive_buffer=4096) for _ in range(10)]
    for client in slow:
        client.send(request("GET", target + (str(large) if target == "/download" else "")))
    assert site.get("/plain").status == 200
    size = 50 * MB if target == "/download" else int(target.split("/")[2])
    assert len(slow[0].read_response().body) == size
    for client in slow:
        client.close()


def test_a_body_that_nobody_reads_costs_the_connection_when_it_is_large(serve):
    site = serve("pep3333:app", *ONE)
    with site.client() as client:
        client.send(request("POST", "/unread", "Content-Length: 50000000") + b"x" * 2_000_000)
        assert client.read_response().body == b"not read"
        client.assert_closed()
    with site.client() as client:
        assert client.ask(request("POST", "/unread", body=b"x" * 50_000)).body == b"not read"
        assert client.get("/plain").status == 200


# --- how many


def test_connections_above_the_limit_wait_and_are_served_later(serve):
    site = serve("pep3333:app", *ONE, "--worker-connections", "2", ready=None)
    first, second = site.client(), site.client()
    assert first.get("/plain").status == second.get("/plain").status == 200
    third = site.client()
    third.send(request("GET", "/plain"))
    for _ in range(20):
        assert first.get("/plain").status == 200
    assert select.select([third.socket], [], [], 0)[0] == [], "it waits in the kernel's queue"
    first.close()
    assert third.read_response().status == 200
    second.close()
    third.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_worker_out_of_descriptors_pauses_and_recovers(serve):
    site = serve("pep3333:app", *ONE, "--keep-alive", "3")
    (first,) = site.workers(1)
    used = max(int(fd.name) for fd in Path(f"/proc/{first}/fd").iterdir()) + 1
    # The next worker of the slot inherits the limit; one that runs has its accepts armed with the old one.
    resource.prlimit(site.process.pid, resource.RLIMIT_NOFILE, (used + 12, used + 12))
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: site.children() not in ([], [first]), "another worker")
    (worker,) = site.children()
    kept = site.client()
    assert kept.get("/plain").status == 200
    clients = [site.client() for _ in range(30)]
    wait_until(lambda: "cannot accept" in site.log(), "the server says so")

    # While it cannot accept, the others are served, and it does not spin: the idle connection is closed after
    # three seconds, of which the worker has used a small part.
    before = cpu_seconds(worker)
    assert kept.get("/plain").status == 200
    kept.assert_closed()
    assert cpu_seconds(worker) - before < 0.5
    assert site.log().count("cannot accept") == 1, "one line, not one for each attempt"

    for client in clients[:25]:
        client.close()
    for client in clients[25:]:
        assert client.get("/plain").status == 200
        client.close()
    assert site.get("/plain").status == 200


def test_an_answer_that_is_cut_looks_cut(serve):
    """The server drops a slow reader: what it got must not pass for the whole."""
    site = serve("pep3333:app", *ONE, "--response-timeout", SHORT)
    with site.client(receive_buffer=4096) as client:
        client.send(request("GET", f"/big/{50 * MB}/100000"))
        wait_for_hangup(client)
        with pytest.raises((CutOff, ConnectionResetError, AssertionError)):
            client.read_response()
