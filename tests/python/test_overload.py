"""More requests than threads: who is turned away, how, and that the application never sees them."""

from __future__ import annotations

import select
import socket

import pytest

from harness import PATIENCE, Server, request, wait_until

pytestmark = pytest.mark.ringhorn_only


@pytest.fixture
def busy(serve, tmp_path):
    """A server whose only thread has a request until the test lets it go on, with a log of what was answered."""
    access = tmp_path / "access.log"
    held = []

    def start(*options: str) -> tuple[Server, object]:
        site = serve(
            "pep3333:app",
            "--workers",
            "1",
            "--threads",
            "1",
            "--access-logfile",
            str(access),
            "--timeout",
            "60",
            *options,
        )
        client = site.client()
        go = tmp_path / "go"
        client.send(request("POST", "/until_exists", body=str(go).encode()))
        wait_until(lambda: go.with_suffix(".begun").exists(), "the thread has a request")
        held.append(client)

        def let_go() -> None:
            go.touch()
            assert client.read_response().body == b"it exists"

        return site, let_go

    yield start
    for client in held:
        client.close()


def lines(path, text):
    return [line for line in path.read_text().splitlines() if text in line]


def turned_away(client, site) -> None:
    answer = client.read_response()
    assert (answer.status, answer.field("connection")) == (503, "close")
    assert int(answer.field("retry-after")) >= 1
    client.assert_closed()


def test_who_waits_too_long_gets_503_and_never_reaches_the_application(busy, tmp_path):
    site, let_go = busy("--queue-timeout", "1")
    with site.client() as one, site.client() as two:
        for client in (one, two):
            client.send(request("POST", "/digest?key=late", "User-Agent: waits", body=b"x" * 1000))
        turned_away(one, site)
        turned_away(two, site)
    let_go()
    assert site.get("/events/late").json() == []
    assert site.get("/plain").status == 200
    wait_until(lambda: len(lines(tmp_path / "access.log", "key=late")) == 2, "two access lines")
    for line in lines(tmp_path / "access.log", "key=late"):
        assert '"POST /digest?key=late HTTP/1.1" 503' in line and line.endswith('"waits"')
    assert site.log().count("the queue for threads is too slow") == 1, "one line for a burst"


def test_who_finds_the_queue_full_gets_503_and_the_others_their_answers(busy):
    site, let_go = busy("--queue-max", "2")
    clients = [site.client() for _ in range(2)]
    for client in clients:
        client.send(request("GET", "/plain"))
        # In its order: the queue is what this is about.
        assert not client.held
    with site.client() as third:
        # It may overtake one of them, on another connection; then that one is turned away.
        third.send(request("GET", "/plain"))
        wait_until(lambda: "the queue for threads is full" in site.log(), "somebody is turned away")
        let_go()
        answers = [client.read_response().status for client in [*clients, third]]
        assert sorted(answers) == [200, 200, 503]
    for client in clients:
        client.close()
    assert site.get("/plain").status == 200


def test_a_queue_that_is_full_of_idle_threads_is_none(serve):
    """Threads that are free count: nobody is turned away who could be served."""
    site = serve("pep3333:app", "--workers", "1", "--threads", "8", "--queue-max", "1")
    clients = [site.client() for _ in range(6)]
    for _ in range(50):
        for client in clients:
            client.send(request("GET", "/plain"))
        assert [client.read_response().status for client in clients] == [200] * 6
    for client in clients:
        client.close()


def test_a_client_that_has_reset_its_connection_is_dropped_from_the_queue(busy):
    site, let_go = busy("--log-level", "debug", "--queue-max", "2")
    clients = {site.client(): name for name in ("one", "two", "three")}
    for client, name in clients.items():
        client.send(request("POST", f"/digest?key={name}", body=b"x" * 100))
    # One of them is turned away, so the two others are in the queue.
    readable, _, _ = select.select([client.socket for client in clients], [], [], PATIENCE)
    (refused,) = [client for client in clients if client.socket in readable]
    assert refused.read_response().status == 503
    gone, behind = [client for client in clients if client is not refused]
    gone.reset()
    wait_until(lambda: "because their clients have gone: 1" in site.log(), "it is dropped")
    let_go()
    assert behind.read_response().status == 200
    assert site.get(f"/events/{clients[gone]}").json() == []
    assert site.get("/plain").status == 200
    for client in (refused, behind):
        client.close()


def test_a_client_that_only_stops_to_send_gets_its_answer(busy):
    """Half a close is not gone: who sends no more may still want to read."""
    site, let_go = busy()
    with site.client() as half:
        half.send(request("GET", "/plain"))
        half.socket.shutdown(socket.SHUT_WR)
        let_go()
        assert half.read_response().status == 200
