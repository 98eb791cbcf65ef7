"""HTTP/1.1 as clients see it: connections, framing, garbage, large bodies."""

import hashlib
import os
import random
import re
import threading
from pathlib import Path

import pytest

from harness import Server, chunked, request, wait_until
from pep3333 import counted

MB = 1_000_000


@pytest.fixture(scope="module")
def site(serve_module) -> Server:
    return serve_module("pep3333:app", "--workers", "1", "--threads", "4")


def events(server: Server, key: str) -> list[str]:
    return server.get(f"/events/{key}").json()


# --- connections


def test_keep_alive_serves_many_requests_on_one_connection(site):
    with site.client() as client:
        ports = {client.get("/environ").json()["environ"]["REMOTE_PORT"] for _ in range(50)}
        assert ports == {str(client.socket.getsockname()[1])}


def test_connection_close_is_answered_and_done(site):
    with site.client() as client:
        answer = client.get("/plain", "Connection: close")
        assert (answer.status, answer.field("connection")) == (200, "close")
        client.assert_closed()


@pytest.mark.oracle_differs("gunicorn compares the whole field")
def test_close_is_found_in_a_list_of_options(site):
    with site.client() as client:
        assert client.get("/plain", "Connection: te, Close").status == 200
        client.assert_closed()


def test_http_1_0_closes_unless_asked_to_keep(site):
    with site.client() as client:
        assert client.ask(request("GET", "/plain", version="HTTP/1.0")).body == b"plain\n"
        client.assert_closed()
    with site.client() as client:
        for _ in range(2):
            answer = client.ask(request("GET", "/plain", "Connection: keep-alive", version="HTTP/1.0"))
            assert (answer.body, answer.field("connection")) == (b"plain\n", "keep-alive")


def test_pipelined_requests_are_answered_in_order(site):
    messages = [request("POST", "/echo", body=b"%d" % number) for number in range(40)]
    messages.insert(20, chunked("/input", [b"in ", b"between"], "X-Steps: read"))
    with site.client() as client:
        client.send(b"".join(messages))
        bodies = [client.read_response().body for _ in messages]
    assert bodies[20] == b'["aW4gYmV0d2Vlbg=="]'
    assert bodies[:20] + bodies[21:] == [b"%d" % number for number in range(40)]


def test_requests_in_one_byte_steps(site):
    message = request("POST", "/echo", body=b"hello") + request("GET", "/plain")
    with site.client() as client:
        for byte in message:
            client.send(bytes([byte]))
        assert client.read_response().body == b"hello"
        assert client.read_response().body == b"plain\n"


def test_requests_cut_at_every_place(site):
    """The same two messages, in two sends, cut after each of their bytes."""
    message = request("POST", "/echo", body=b"hi") + chunked("/input", [b"a", b"bc"], "X-Steps: read")
    with site.client() as client:
        for cut in range(1, len(message)):
            client.send(message[:cut])
            client.send(message[cut:])
            assert client.read_response().body == b"hi", f"cut at {cut}"
            assert client.read_response().body == b'["YWJj"]', f"cut at {cut}"


def test_a_half_closed_client_still_gets_its_answer(site):
    with site.client() as client:
        client.send(request("POST", "/echo", body=b"last words"))
        client.socket.shutdown(1)
        assert client.read_response().body == b"last words"
        client.assert_closed()


def test_many_connections_at_once(site):
    clients = [site.client() for _ in range(200)]
    try:
        for client in clients:
            client.send(request("GET", "/plain"))
        assert all(client.read_response().body == b"plain\n" for client in clients)
    finally:
        for client in clients:
            client.close()


def test_blocked_requests_do_not_stop_the_others(site):
    """Three of four threads wait; the fourth serves."""
    blocked = [site.client() for _ in range(3)]
    for number, client in enumerate(blocked):
        client.send(request("GET", f"/wait?key=blocked{number}-{os.getpid()}"))
    for number in range(3):
        wait_until(lambda n=number: events(site, f"blocked{n}-{os.getpid()}"), "the request has begun")
    for number, client in enumerate(blocked):
        assert site.get(f"/open/blocked{number}-{os.getpid()}").body == b"open"
        assert client.read_response().body == b"opened"
        client.close()


@pytest.mark.oracle_differs("gthread gives each of them a thread")
def test_a_slow_sender_takes_no_thread(site):
    """More unfinished requests than threads, heads and bodies: the next one is served all the same."""
    slow = [site.client() for _ in range(16)]
    for number, client in enumerate(slow):
        whole = request("POST", "/echo", body=b"finished")
        client.send(whole[: 20 if number % 2 else -3])
    assert site.get("/plain").body == b"plain\n"
    for number, client in enumerate(slow):
        client.send(request("POST", "/echo", body=b"finished")[20 if number % 2 else -3 :])
        assert client.read_response().body == b"finished"
        client.close()


def test_expect_continue(site):
    with site.client() as client:
        client.send(request("POST", "/digest", "Expect: 100-continue", "Content-Length: 5"))
        assert client.read_response().status == 100
        client.send(b"hello")
        assert client.read_response().json()["bytes"] == 5
        assert client.get("/plain").status == 200


# --- refusals

GARBAGE = {
    "text": b"hello, is this thing on?\r\n\r\n",
    "zeros": b"\0" * 100,
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)),
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no-version": b"GET /\r\n\r\n",
    "bad-version": b"GET / HTTP/x.y\r\n\r\n",
    "bad-method": b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "space-before-colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "no-colon": b"GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n",
    "nul-in-value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "two-hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "folded": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "length-text": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ten\r\n\r\n",
    "length-sign": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
    "length-negative": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "two-lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "both-lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-not-last": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked-1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused_and_the_connection_closed(site, kind):
    """What follows on the connection is never read as a request, and the worker serves on."""
    pid = site.get("/environ").json()["pid"]
    with site.client() as client:
        client.send(GARBAGE[kind] + request("GET", f"/wait?key=smuggled-{kind}"))
        answer = client.read_response()
        assert answer.status in ((400, 505) if "version" in kind or kind == "http2" else (400,))
        assert answer.field("connection") == "close"
        client.assert_closed()
    assert events(site, f"smuggled-{kind}") == []
    assert site.get("/environ").json()["pid"] == pid


@pytest.mark.oracle_differs("gunicorn accepts it")
def test_http_1_1_without_host_is_refused(site):
    assert site.ask(b"GET /plain HTTP/1.1\r\n\r\n").status == 400


TOO_LARGE = pytest.param(b"f" * 17, marks=pytest.mark.oracle_differs("gunicorn waits for that many bytes"))


@pytest.mark.parametrize("size", [b"x", b"-5", b"+5", b"0x5", b"5 5", b"", TOO_LARGE])
def test_a_bad_chunk_size_is_never_guessed(site, size):
    with site.client() as client:
        client.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + size)
        client.send(b"\r\nhello\r\n0\r\n\r\n" + request("GET", "/wait?key=chunked-smuggled"))
        assert client.read_response().status in (400, 413)
        client.assert_closed()
    assert events(site, "chunked-smuggled") == []


def test_limits_of_the_head(site):
    assert site.ask(request("GET", "/" + "a" * 20_000)).status == 414
    assert site.ask(request("GET", "/plain", "X-Long: " + "a" * 20_000)).status == 431
    assert site.ask(request("GET", "/plain", *(f"X-{n}: a" for n in range(101)))).status == 431
    assert site.ask(request("GET", "/plain", *(f"X-{n}: a" for n in range(90)))).status == 200


def test_a_client_that_goes_away_harms_nobody(site):
    for message in (b"", b"GET", request("GET", "/plain")[:-2], request("POST", "/echo", body=b"12345")[:-2]):
        for end in ("close", "reset"):
            client = site.client()
            client.send(message)
            getattr(client, end)()
    with site.client() as client:
        client.send(request("GET", "/plain") * 100)
        client.reset()
    assert site.get("/plain").status == 200


def test_seeded_garbage_leaves_the_worker_serving(site):
    """Valid messages with a few bytes changed, dropped or doubled; the seed is in the failure."""
    pid = site.get("/environ").json()["pid"]
    whole = request("POST", "/echo", "X-A: b", body=b"12345") + chunked("/digest", [b"abc", b"d"])
    for seed in range(300):
        rng = random.Random(seed)
        message = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(message))
            kind = rng.randrange(3)
            if kind == 0:
                message[at] = rng.randrange(256)
            elif kind == 1:
                del message[at]
            else:
                message[at:at] = message[at : at + rng.randint(1, 9)]
        with site.client() as client:
            try:
                client.send(bytes(message))
                client.socket.shutdown(1)
                client.read_to_end()
            except (BrokenPipeError, ConnectionResetError):
                pass
            except TimeoutError:
                raise AssertionError(
                    f"seed {seed}: neither answered nor closed: {bytes(message)!r}"
                ) from None
    assert site.get("/environ").json()["pid"] == pid


# --- large bodies


@pytest.mark.parametrize("size", [5 * MB, 50 * MB])
@pytest.mark.parametrize("framing", ["sized", "chunked"])
def test_large_uploads(site, size, framing):
    body = counted(0, size)
    with site.client() as client:
        if framing == "sized":
            client.send(request("POST", "/digest", f"Content-Length: {size}"))
            client.send(body)
        else:
            client.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, size, 100_000):
                piece = body[at : at + 100_000]
                client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        assert client.read_response().json() == {"bytes": size, "sha256": hashlib.sha256(body).hexdigest()}
        assert client.get("/plain").body == b"plain\n"


@pytest.mark.parametrize("size", [5 * MB, 50 * MB])
@pytest.mark.parametrize("piece", [1_000, 100_000, 50 * MB])
def test_large_responses(site, size, piece):
    if size // piece > 10_000:
        size = 10_000 * piece
    with site.client() as client:
        answer = client.get(f"/big/{size}/{piece}")
        assert len(answer.body) == size
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(counted(0, size)).digest()
        assert client.get("/plain").body == b"plain\n"


def test_upload_and_download_at_once(site):
    """A client that sends its second request while it still reads the first answer."""
    with site.client() as client:
        client.send(request("GET", f"/big/{5 * MB}/65536"))
        body = counted(0, 5 * MB)
        sender = threading.Thread(target=client.send, args=(request("POST", "/digest", body=body),))
        sender.start()
        assert client.read_response().body == body
        assert client.read_response().json()["bytes"] == 5 * MB
        sender.join()


@pytest.mark.ringhorn_only
@pytest.mark.parametrize("way", ["up", "down", "slowly down"])
def test_a_streamed_body_does_not_sit_in_memory(serve, way):
    """50 MB in either direction with a peer that is slower; resident memory stays under half of it."""
    site = serve("pep3333:app", "--workers", "1", "--threads", "2")
    (worker,) = site.workers(1)
    site.get("/big/1000000/65536")
    before = resident_peak(worker)
    with site.client(receive_buffer=4096 if way == "slowly down" else 65536) as client:
        if way == "up":
            client.send(request("POST", "/digest/65536", f"Content-Length: {50 * MB}"))
            piece = bytes(MB)
            for _ in range(50):
                client.send(piece)
            assert client.read_response().json()["bytes"] == 50 * MB
        else:
            assert len(client.get(f"/big/{50 * MB}/65536").body) == 50 * MB
    assert resident_peak(worker) - before < 25 * MB


def resident_peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.oracle_differs("gunicorn gives the application a short body")
def test_an_upload_that_ends_early_is_not_taken_for_whole(site):
    with site.client() as client:
        client.send(request("POST", "/digest?key=cut", "Content-Length: 100000") + b"x" * 50_000)
        client.socket.shutdown(1)
        assert b" 200 " not in client.read_to_end()
    assert site.get("/plain").status == 200
