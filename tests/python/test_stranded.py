"""No stranded clients: whoever comes to a worker that cannot serve is served by another one.

No test measures time: each asks for answers that come while the reason to wait still stands.
"""

import itertools
import os
import signal
import socket
from pathlib import Path

import pytest

from harness import Client, Server, chunked, request, stop_process, wait_until
from load import Load
from metrics import Scrape
from test_lifecycle import upgraded

pytestmark = pytest.mark.ringhorn_only


class Site:
    """Two workers of one thread each, and the gates of `apps/stranded.py`."""

    def __init__(self, serve, gates: Path, *args: str, workers: int = 2, **options):
        self.gates = gates
        self.server: Server = serve(
            "stranded:app",
            "--workers",
            str(workers),
            "--threads",
            "1",
            *args,
            env={"GATES": str(gates)},
            **options,
        )
        self.pids = self.server.workers(workers)
        # One that boots is helped, too: the first answer does not say that all are there.
        wait_until(lambda: all((gates / f"{pid}.up").exists() for pid in self.pids), "all workers are up")

    def client_of(self, pid: int) -> Client:
        """A kept-alive connection that lives in this worker."""
        found: list[Client] = []

        def comes() -> bool:
            client = self.server.client()
            if pid_of(client.get("/")) == pid:
                found.append(client)
            else:
                client.close()
            return bool(found)

        wait_until(comes, f"a connection in {pid}")
        return found[0]

    def clients_of_each(self, count: int) -> dict[int, list[Client]]:
        """So many kept-alive connections in each worker."""
        return {pid: [self.client_of(pid) for _ in range(count)] for pid in self.pids}

    def block(self, client: Client, gate: str = "gate") -> tuple[int, int]:
        """The worker that this request blocks, and the other one.

        On a busy machine the request may itself have been handed over: that is not known before.
        """
        begun = self.gates / f"{gate}.begun"
        client.send(request("GET", f"/block/{gate}"))
        wait_until(begun.exists, f"{gate} is reached")
        blocked = int(begun.read_text())
        others = [pid for pid in self.pids if pid != blocked]
        return blocked, (others or [blocked])[0]

    def release(self, gate: str = "gate") -> None:
        (self.gates / f"{gate}.open").touch()


class Ledger(Load):
    """A load whose every request is another one, of which the application writes down that it has done it."""

    def __init__(self, here: Site):
        super().__init__(here.server)
        self.book = here.gates / "once.done"
        self.answered: list[int] = []
        self._numbers = itertools.count()

    def _ask(self, index: int, client: Client, close: bool) -> bool:
        number = next(self._numbers)
        fields = ["Connection: close"] if close else []
        client.send(request("POST", f"/once/{number}", *fields, body=b"of %d" % number))
        answer = client.read_response()
        assert answer.body.split(b" ", 2)[2] == b"/once/%d of %d" % (number, number), answer
        self.pids.add(pid_of(answer))
        self.answered.append(number)
        self._served[index] += 1
        return (answer.field("connection") or "keep-alive").lower() != "close"

    def check(self) -> None:
        """What was answered was done, and nothing twice. Nothing was lost: the load's end has looked."""
        assert sorted(map(int, self.book.read_text().split())) == sorted(self.answered)


def pid_of(answer) -> int:
    assert answer.status == 200, answer
    return int(answer.body.split()[0])


@pytest.fixture
def site(serve, tmp_path):
    def start(*args: str, **options) -> Site:
        return Site(serve, tmp_path, *args, **options)

    yield start
    for gate in tmp_path.glob("*.begun"):
        gate.with_suffix(".open").touch()


def test_clients_of_a_blocked_worker_are_served_by_the_other(site):
    here = site()
    clients = here.clients_of_each(10)
    blocker = here.server.client()
    blocked, other = here.block(blocker)
    residents = clients[blocked]
    # Connections that live there, and again: they have moved.
    for _ in range(3):
        assert {pid_of(client.get("/")) for client in residents} == {other}
    # And new ones, half of which the kernel leads there.
    for _ in range(40):
        assert pid_of(here.server.get("/")) == other
    here.release()
    assert pid_of(blocker.read_response()) == blocked
    wait_until(lambda: pid_of(here.server.get("/")) == blocked, "the worker takes on clients again")
    assert all(pid_of(client.get("/")) in here.pids for client in residents)


def test_what_was_received_goes_along(site):
    """Bodies of every framing, and requests behind the first; each byte once and in order."""
    # With an id that the server adds to each request: it must not go along.
    here = site("--request-id-header=X-Request-ID")
    body = bytes(range(256)) * 40
    pieces = [body[:5000], body[5000:5001], body[5001:]]
    messages = [
        request("POST", "/length", body=body),
        chunked("/chunked", pieces),
        chunked("/empty", []),
        request("POST", "/one", body=body) + chunked("/two", pieces) + request("GET", "/three"),
        request("POST", "/expects", "Expect: 100-continue", body=b"at once"),
        request("GET", "/four") * 4,
    ]
    expected = [
        [("/length", body)],
        [("/chunked", body)],
        [("/empty", b"")],
        [("/one", body), ("/two", body), ("/three", b"")],
        [("/expects", b"at once")],
        [("/four", b"")] * 4,
    ]
    residents = here.clients_of_each(len(messages))
    blocked, other = here.block(here.server.client())
    clients = residents[blocked]
    for client, message in zip(clients, messages, strict=True):
        client.send(message)
    for client, owed in zip(clients, expected, strict=True):
        for path, sent in owed:
            answer = client.read_response()
            assert answer.status == 200
            assert answer.body == f"{other} 127.0.0.1 {path} ".encode() + sent


def test_a_client_that_has_half_closed_gets_its_answer(site):
    here = site()
    clients = here.clients_of_each(1)
    blocked, other = here.block(here.server.client())
    (client,) = clients[blocked]
    client.send(request("GET", "/last"))
    client.socket.shutdown(socket.SHUT_WR)
    assert pid_of(client.read_response()) == other
    client.assert_closed()


def test_a_body_too_large_to_go_along_stays_and_is_answered(site):
    here = site()
    clients = here.clients_of_each(1)
    blocked, _ = here.block(here.server.client())
    (client,) = clients[blocked]
    body = b"x" * 1_000_000
    client.send(request("POST", "/large", body=body))
    assert here.server.get("/").status == 200
    here.release()
    answer = client.read_response()
    assert (pid_of(answer), answer.body.split(b" ", 3)[3]) == (blocked, body)


def test_when_all_are_blocked_clients_wait_and_are_answered(site):
    here = site()
    blockers = [here.server.client() for _ in here.pids]
    blocked = [here.block(blocker, str(gate))[0] for gate, blocker in enumerate(blockers)]
    assert sorted(blocked) == here.pids
    clients = [here.server.client() for _ in range(150)]
    for client in clients:
        client.send(request("GET", "/"))
    # One becomes free: everybody is served, by it alone.
    here.release("0")
    assert {pid_of(client.read_response()) for client in clients} == {blocked[0]}
    here.release("1")
    assert [pid_of(blocker.read_response()) for blocker in blockers] == blocked


def test_a_single_worker_answers_everybody_when_it_is_free(site):
    here = site(workers=1)
    blocker = here.server.client()
    here.block(blocker)
    clients = [here.server.client() for _ in range(200)]
    for client in clients:
        client.send(request("GET", "/"))
    here.release()
    assert {pid_of(client.read_response()) for client in [blocker, *clients]} == set(here.pids)


def test_new_clients_of_a_stopped_worker_are_served(site):
    here = site()
    stopped, other = here.pids
    stop_process(stopped)
    try:
        clients = [here.server.client() for _ in range(60)]
        for client in clients:
            client.send(request("GET", "/"))
        # One that it had accepted before it stopped would wait with it; there is none.
        assert {pid_of(client.read_response()) for client in clients} == {other}
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_until(lambda: pid_of(here.server.get("/")) == stopped, "the worker takes on clients again")


def test_nobody_waits_for_the_import_of_a_killed_workers_successor(site):
    here = site()
    killed, other = here.pids
    (here.gates / "import").touch()
    os.kill(killed, signal.SIGKILL)
    wait_until((here.gates / "import.begun").exists, "the successor imports")
    clients = [here.server.client() for _ in range(60)]
    for client in clients:
        assert pid_of(client.get("/")) == other
    here.release("import")
    (successor,) = set(here.server.workers(2)) - {other}
    wait_until(lambda: pid_of(here.server.get("/")) == successor, "the successor serves")


def test_a_unix_socket_is_left_to_those_who_are_free(site, tmp_path):
    path = str(tmp_path / "site.sock")
    here = site("--bind", f"unix:{path}")
    # The kernel may give all of them to one worker.
    clients = [here.server.client() for _ in range(8)]
    assert {pid_of(client.get("/")) for client in clients} <= set(here.pids)
    _, other = here.block(here.server.client())
    assert {pid_of(client.get("/")) for client in clients} == {other}
    for _ in range(40):
        assert pid_of(here.server.get("/")) == other


def test_what_a_proxy_header_said_goes_along(site):
    here = site("--proxy-protocol=auto")
    header = b"PROXY TCP4 192.0.2.7 192.0.2.9 5000 80\r\n"
    clients: dict[int, list[Client]] = {pid: [] for pid in here.pids}
    while not all(clients.values()):
        client = here.server.client()
        client.send(header)
        clients[pid_of(client.get("/"))].append(client)
    blocked, other = here.block(here.server.client())
    for client in clients[blocked]:
        assert client.get("/who").body == f"{other} 192.0.2.7 /who ".encode()


def test_new_connections_even_out(site):
    """One worker alone has taken a hundred; those that come when it has company go there."""
    here = site()
    first, second = here.pids
    stop_process(second)
    held = [here.server.client() for _ in range(100)]
    try:
        assert {pid_of(client.get("/")) for client in held} == {first}
    finally:
        os.kill(second, signal.SIGCONT)

    def newcomer() -> int:
        with here.server.client() as client:
            return pid_of(client.get("/"))

    # By chance half of them would be the first one's. Its look at the other may be half a second old.
    wait_until(lambda: [newcomer() for _ in range(16)] == [second] * 16, "new ones go where there are few")
    # But for those whose request the kernel made wait: it goes where there is a thread for it.
    assert [pid_of(client.get("/")) for client in held].count(first) > 80


def test_a_connection_that_moves_counts_once(site):
    here = site("--metrics-bind=127.0.0.1:0")
    clients = here.clients_of_each(5)
    name = "ringhorn_accepted_connections_total"
    before = Scrape(here.server).sum(name)
    blocked, other = here.block(clients[here.pids[0]].pop())
    assert {pid_of(client.get("/")) for client in clients[blocked]} == {other}
    assert Scrape(here.server).sum(name) == before


def test_a_reload_beside_a_blocked_worker_loses_nothing_and_does_nothing_twice(site):
    here = site()
    blocker = here.server.client()
    blocked, _ = here.block(blocker)
    with Ledger(here) as load:
        here.server.signal(signal.SIGHUP)

        def successors() -> set[int]:
            return set(here.server.children()) - set(here.pids)

        wait_until(lambda: len(successors()) == 2, "two new workers")
        new = successors()
        load.until_only(new)
        here.release()
        assert pid_of(blocker.read_response()) == blocked
        wait_until(lambda: set(here.server.children()) == new, "the end of the old workers")
        load.until_only(new)
    load.check()


def test_scaling_beside_a_blocked_worker_loses_nothing_and_does_nothing_twice(site):
    here = site()
    blocker = here.server.client()
    blocked, _ = here.block(blocker)
    with Ledger(here) as load:
        here.server.signal(signal.SIGTTIN)
        everybody = set(here.server.workers(3))
        load.until_only(everybody - {blocked})
        here.release()
        assert pid_of(blocker.read_response()) == blocked
        load.until_only(everybody)
        # The newest leaves.
        here.server.signal(signal.SIGTTOU)
        load.until_only(set(here.server.workers(2)))
    load.check()


def test_an_upgrade_beside_a_blocked_worker_loses_nothing_and_does_nothing_twice(site, tmp_path):
    """The new master's workers know nothing of the old ones: who waits in the blocked worker is answered by it."""
    pidfile = tmp_path / "pid"
    here = site("--pid", str(pidfile))
    blocker = here.server.client()
    blocked, other = here.block(blocker)
    with Ledger(here) as load, upgraded(here.server, pidfile) as new:
        load.go_on()
        here.server.signal(signal.SIGTERM)
        wait_until(lambda: other not in here.server.children(), "the end of the other worker")
        here.release()
        assert pid_of(blocker.read_response()) == blocked
        assert here.server.wait() == 0
        load.until_only(set(new.children()))
        # The load ends before the last master does.
        load.stop()
    load.check()
