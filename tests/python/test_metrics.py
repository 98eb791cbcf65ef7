"""--metrics-bind, --health-path and --ready-path: true numbers, whatever happens to workers and runners."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading

import pytest

import metrics
from harness import APPS, PATIENCE, ROOT, Client, Server, request, run_to_end, stop_process, wait_until
from metrics import Scrape, wait_for

pytestmark = pytest.mark.ringhorn_only

METRICS = ("--metrics-bind", "127.0.0.1:0")
PATHS = ("--health-path", "/healthz", "--ready-path", "/readyz")


@pytest.fixture
def site(serve):
    """Two workers, and nothing asked so far."""
    return serve("pep3333:app", "-w", "2", *METRICS, *PATHS, ready=None)


def observer(server: Server) -> Client:
    return Client(metrics.address(server))


class CountingSocket(socket.socket):
    """Counts the bytes on the wire."""

    sent = received = 0

    def sendall(self, data, *flags):
        super().sendall(data, *flags)
        self.sent += len(data)

    def recv(self, size, *flags):
        data = super().recv(size, *flags)
        self.received += len(data)
        return data


class Tally:
    """A client that counts its connections and every byte on the wire."""

    def __init__(self, server: Server):
        self.server = server
        self.connections = self.sent = self.received = 0

    def ask(self, *messages: bytes) -> list[int]:
        self.connections += 1
        with Client(self.server.address) as client:
            counting = CountingSocket(fileno=client.socket.detach())
            counting.settimeout(PATIENCE)
            client.socket = counting
            statuses = [client.ask(message).status for message in messages]
        self.sent += counting.sent
        self.received += counting.received
        return statuses


def test_counts_are_exact(site):
    tally = Tally(site)
    get, post = request("GET", "/one"), request("POST", "/digest", body=b"x" * 1000)
    for _ in range(25):
        assert tally.ask(get, post, request("HEAD", "/one"), get) == [200] * 4
    for status in (302, 404, 404, 503, 200):
        tally.ask(request("GET", f"/status/{status}"))
    tally.ask(request("DELETE", "/one"), request("MKCOL", "/one"), request("PROPFIND", "/one"))
    assert tally.ask(b"GET /one HTTP/1.1\r\n\r\n") == [400], "no Host"

    total = "ringhorn_requests_total"
    scrape = wait_for(site, total, 108)
    assert scrape.sum(total, method="GET", status="2xx") == 51
    assert scrape.sum(total, method="GET", status="3xx") == 1
    assert scrape.sum(total, method="GET", status="4xx") == 2
    assert scrape.sum(total, method="GET", status="5xx") == 1
    assert scrape.sum(total, method="POST", status="2xx") == 25
    assert scrape.sum(total, method="HEAD", status="2xx") == 25
    assert scrape.sum(total, method="DELETE", status="2xx") == 1
    assert scrape.sum(total, method="other", status="2xx") == 2
    assert scrape.sum("ringhorn_refused_requests_total", status="4xx") == 1
    assert scrape.sum("ringhorn_accepted_connections_total") == tally.connections
    for name in ("queue_wait", "application", "request"):
        assert scrape.sum(f"ringhorn_{name}_seconds_count") == 108
        assert scrape.sum(f"ringhorn_{name}_seconds_bucket", le="+Inf") == 108
    assert scrape.sum("ringhorn_queue_wait_seconds_sum") <= scrape.sum("ringhorn_request_seconds_sum")
    wait_for(site, "ringhorn_workers", 2, state="ready")
    assert scrape.sum("ringhorn_worker_forks_total") == 2

    # The last turn of a worker may not be over when its client is.
    wait_for(site, "ringhorn_connections", 0)
    scrape = wait_for(site, "ringhorn_received_bytes_total", tally.sent)
    assert scrape.sum("ringhorn_sent_bytes_total") == tally.received
    assert scrape.sum("ringhorn_requests_in_flight") == scrape.sum("ringhorn_queue_depth") == 0


def test_large_answers_are_counted_whichever_thread_sends_them(site):
    tally = Tally(site)
    with Client(site.address, receive_buffer=4096) as client:
        client.send(request("GET", "/big/3000000/500000", "Connection: close"))
        # The runner finds the socket full, and the I/O thread sends the rest.
        received = len(client.read_to_end())
    assert received > 3_000_000
    scrape = wait_for(site, "ringhorn_sent_bytes_total", received)
    assert tally.ask(request("GET", "/file/plain")) == [200]
    wait_for(site, "ringhorn_sent_bytes_total", received + tally.received)
    assert scrape.sum("ringhorn_requests_total") == 1


def test_what_waits_and_what_blocks_is_shown(serve, tmp_path):
    site = serve("pep3333:app", "-w", "1", "--threads", "2", *METRICS, *PATHS, ready=None)
    clients = [site.client() for _ in range(5)]
    for client in clients:
        client.send(request("GET", "/wait?key=metrics"))
    wait_for(site, "ringhorn_requests_in_flight", 5)
    scrape = wait_for(site, "ringhorn_runners_blocked", 2)
    assert scrape.sum("ringhorn_queue_depth") == 3
    assert scrape.sum("ringhorn_runners") == scrape.sum("ringhorn_runners_awake") == 2
    assert scrape.sum("ringhorn_connections") == 5
    # Every runner is blocked, and the server tells that it lives: here and there, again and again.
    with site.client() as client, observer(site) as watcher:
        for _ in range(3):
            assert client.get("/healthz").body == b"ok\n"
            assert client.get("/readyz").status == 200
            assert watcher.get("/healthz").status == watcher.get("/readyz?from=prometheus").status == 200
    # The reading goes on while the only worker leaves, and after it has been replaced.
    (old,) = site.workers(1)
    os.kill(old, signal.SIGTERM)
    scrape = wait_for(site, "ringhorn_workers", 1, state="draining")
    assert scrape.sum("ringhorn_requests_in_flight") == 5
    with observer(site) as watcher:
        assert watcher.get("/readyz").status == 503
    for client in clients:
        client.reset()
    os.kill(old, signal.SIGQUIT)
    scrape = wait_for(site, "ringhorn_workers", 1, state="ready")
    assert scrape.sum("ringhorn_accepted_connections_total") == 6
    assert scrape.sum("ringhorn_requests_in_flight") == scrape.sum("ringhorn_connections") == 0


def test_counts_survive_recycling_and_kills(serve):
    site = serve("pep3333:app", "-w", "2", "--max-requests", "10", *METRICS, ready=None)
    old = set(site.workers(2))
    # One that boots is helped by the other, which would answer all.
    wait_for(site, "ringhorn_workers", 2, state="ready")
    tally = Tally(site)
    for _ in range(100):
        assert tally.ask(request("GET", "/one", "Connection: close")) == [200]
    scrape = wait_for(site, "ringhorn_requests_total", 100, method="GET", status="2xx")
    assert scrape.sum("ringhorn_accepted_connections_total") == 100
    wait_until(lambda: not old & set(site.children()), "both workers are replaced")
    wait_until(
        lambda: Scrape(site).sum("ringhorn_worker_exits_total", reason="recycle") >= 2,
        "the exits are counted",
    )
    wait_until(lambda: Scrape(site).sum("ringhorn_workers", state="draining") == 0, "nobody leaves any more")
    for round in range(1, 4):
        (pid, *_) = site.workers(2)
        os.kill(pid, signal.SIGKILL)
        wait_for(site, "ringhorn_worker_exits_total", round, reason="signal")
        wait_for(site, "ringhorn_workers", 2, state="ready")
        assert tally.ask(request("GET", "/one")) == [200]
        wait_for(site, "ringhorn_requests_total", 100 + round, status="2xx")
        # The runner counts an answer, and says afterwards that it has nothing more in hand.
        scrape = wait_for(site, "ringhorn_requests_in_flight", 0)
    assert {sample.labels["worker"] for sample in scrape.families["ringhorn_connections"].samples} == {
        "0",
        "1",
    }
    assert scrape.sum("ringhorn_accepted_connections_total") == 103


def test_worker_ends_are_counted_by_their_reason(serve, tmp_path):
    (tmp_path / "ends.py").write_text(
        "import os, pep3333\n"
        "def application(environ, start):\n"
        "    if environ['PATH_INFO'] == '/exit': os._exit(7)\n"
        "    return pep3333.app(environ, start)\n"
    )
    env = {"PYTHONPATH": str(APPS)}
    site = serve("ends", "-w", "2", "--timeout", "2", *METRICS, cwd=tmp_path, env=env, ready=None)
    wait_for(site, "ringhorn_workers", 2, state="ready")
    with site.client() as client:
        client.send(request("GET", "/exit"))
        wait_for(site, "ringhorn_worker_exits_total", 1, reason="exit")
    wait_for(site, "ringhorn_workers", 2, state="ready")
    site.signal(signal.SIGTTOU)
    wait_for(site, "ringhorn_worker_exits_total", 1, reason="scale")
    # One that hangs: the other worker has to be there to tell of it.
    site.signal(signal.SIGTTIN)
    wait_for(site, "ringhorn_workers", 2, state="ready")
    os.kill(site.workers(2)[0], signal.SIGSTOP)
    wait_for(site, "ringhorn_worker_exits_total", 1, reason="timeout")
    scrape = wait_for(site, "ringhorn_workers", 2, state="ready")
    assert scrape.sum("ringhorn_worker_exits_total") == 3
    assert scrape.sum("ringhorn_worker_forks_total") == 5


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix:{}/s"])
def test_a_silent_worker_is_seen(serve, tmp_path, bind):
    """And scrapes are answered: of those who wait for a connection, the kernel may wake the one that hangs."""
    site = serve("pep3333:app", "-w", "2", "-b", bind.format(tmp_path), *METRICS, ready=None)
    wait_for(site, "ringhorn_workers", 2, state="ready")
    (pid, _) = site.workers(2)
    stop_process(pid)
    try:
        silence = "ringhorn_worker_silence_seconds"

        def silent() -> list[str]:
            return [slot for slot in "01" if Scrape(site).sum(silence, worker=slot) > 2]

        wait_until(lambda: len(silent()) == 1, "the silence of one worker")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: silent() == [], "its next sign of life")


def test_connections_that_move_are_counted(serve):
    """A worker whose only thread is taken gives what waits to the other one."""
    site = serve("pep3333:app", "-w", "2", "--threads", "1", *METRICS, ready=None)
    wait_for(site, "ringhorn_workers", 2, state="ready")
    clients = [site.client() for _ in range(16)]
    for client in clients:
        assert client.get("/one").status == 200
    name = "ringhorn_handed_over_connections_total"
    # None, unless the kernel made a request wait.
    before = Scrape(site)
    clients[0].send(request("GET", "/wait?key=moved"))
    wait_for(site, "ringhorn_requests_in_flight", 1)
    for client in clients[1:]:
        assert client.get("/one").status == 200
    scrape = wait_for(site, "ringhorn_requests_total", 31)
    # As many as were with the worker that is busy, which is the kernel's choice; a request may cross once only.
    (busy,) = [slot for slot in "01" if scrape.sum("ringhorn_requests_in_flight", worker=slot) == 1]
    moved = scrape.sum(name, worker=busy) - before.sum(name, worker=busy)
    assert 0 < moved <= 15 and scrape.sum(name) - before.sum(name) == moved
    assert scrape.sum("ringhorn_accepted_connections_total") == 16
    for client in clients:
        client.reset()
    site.signal(signal.SIGINT)
    site.wait()


def test_waiting_for_the_interpreter_is_counted(serve, tmp_path):
    """One thread computes, and whoever is woken waits until Python takes the interpreter from it."""
    (tmp_path / "spin.py").write_text(
        "import pep3333, threading\n"
        "stop = threading.Event()\n"
        "def application(environ, start):\n"
        "    if environ['PATH_INFO'] == '/spin':\n"
        "        while not stop.is_set(): pass\n"
        "    elif environ['PATH_INFO'] == '/stop': stop.set()\n"
        "    environ['PATH_INFO'] = '/one'\n"
        "    return pep3333.app(environ, start)\n"
    )
    options = ("-w", "1", "--threads", "2", *METRICS)
    site = serve("spin", *options, cwd=tmp_path, env={"PYTHONPATH": str(APPS)}, ready=None)
    with site.client() as busy, site.client() as quick:
        busy.send(request("GET", "/spin"))
        wait_for(site, "ringhorn_requests_in_flight", 1)
        for _ in range(20):
            assert quick.get("/one").status == 200
        # Each but the first is for a runner that was parked. Python's interval is 5 ms.
        scrape = wait_for(site, "ringhorn_requests_total", 20)
        assert quick.get("/stop").status == busy.read_response().status == 200
    assert scrape.sum("ringhorn_interpreter_wait_seconds_total") > 0.02


def test_a_reload_is_scraped_without_a_gap_and_counts_go_on(serve):
    site = serve("pep3333:app", "-w", "2", *METRICS, *PATHS, ready=None)
    site.ask(request("GET", "/one"))
    wait_for(site, "ringhorn_requests_total", 1, method="GET", status="2xx")
    done, failures = threading.Event(), []

    def watch():
        while not done.is_set():
            for path in ("/metrics", "/readyz"):
                try:
                    with observer(site) as client:
                        if client.get(path).status != 200:
                            failures.append(path)
                except (OSError, AssertionError) as error:
                    failures.append(repr(error))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for round in range(1, 4):
            old = set(site.workers(2))
            site.signal(signal.SIGHUP)
            wait_until(lambda old=old: not old & set(site.children()), "new workers")
            wait_for(site, "ringhorn_worker_exits_total", 2 * round, reason="reload")
    finally:
        done.set()
        watcher.join()
    assert failures == []
    scrape = Scrape(site)
    assert scrape.sum("ringhorn_requests_total") == 1
    assert scrape.sum("ringhorn_reloads_total") == 3


def test_readiness_ends_with_term_while_requests_are_finished(serve):
    site = serve("pep3333:app", "-w", "1", *METRICS, *PATHS, ready=None)
    with site.client() as kept, site.client() as busy, observer(site) as watcher:
        assert kept.get("/readyz").status == 200
        busy.send(request("GET", "/wait?key=drain"))
        wait_for(site, "ringhorn_requests_in_flight", 1)
        site.signal(signal.SIGTERM)
        # On a connection that was there, and on new ones to the metrics address.
        wait_until(lambda: Scrape(site).sum("ringhorn_stopping") == 1, "the stop is announced")
        answer = watcher.get("/readyz")
        assert (answer.status, answer.body) == (503, b"not ready\n")
        wait_for(site, "ringhorn_workers", 1, state="draining")
        with observer(site) as late:
            answer = late.get("/healthz")
            assert (answer.status, answer.field("connection")) == (200, "close")
        assert Scrape(site).sum("ringhorn_requests_in_flight") == 1
        site.process.send_signal(signal.SIGINT)


def test_a_request_behind_a_health_page_is_forgiven_as_any_other(serve):
    site = serve("pep3333:app", "-w", "1", *PATHS, "--permit-obsolete-folding")
    with site.client() as client:
        client.send(request("GET", "/healthz") + request("GET", "/plain", "X-Folded: a\r\n b"))
        assert [client.read_response().status for _ in range(2)] == [200, 200]


def test_health_paths_are_matched_exactly(site):
    with site.client() as client:
        answer = client.get("/healthz?verbose=1")
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert answer.field("cache-control") == "no-store"
        answer = client.ask(request("HEAD", "/readyz"))
        assert (answer.status, answer.field("content-length"), answer.body) == (200, "6", b"")
        # Everything else is the application's, which knows no such page.
        for target in (
            "/healthz/",
            "/Healthz",
            "//healthz",
            "/health%7A",
            "/healthzz",
            "/metrics",
            "/a/../healthz",
        ):
            assert client.get(target).status == 404, target
        assert client.ask(request("POST", "/healthz", body=b"x")).status == 404
        assert client.ask(request("GET", "/healthz", body=b"x")).status == 404
    # Such requests are no requests of the application.
    scrape = wait_for(site, "ringhorn_requests_total", 9)
    assert scrape.sum("ringhorn_accepted_connections_total") == 1


def test_health_answers_keep_their_place_among_pipelined_requests(site):
    with site.client() as client:
        count = 30
        message = request("GET", "/one") + request("GET", "/healthz") + request("HEAD", "/readyz")
        client.send(message * count + request("GET", "/healthz", "Connection: close"))
        for _ in range(count):
            assert client.read_response().status == 200
            assert client.read_response().body == b"ok\n"
            assert client.read_response(head=True).field("content-length") == "6"
        assert client.read_response().field("connection") == "close"
        client.assert_closed()


def test_a_client_that_asks_and_does_not_read_is_held_up(site):
    """Its answers must not fill the memory: the connection is not read on before they are sent."""
    with Client(site.address, receive_buffer=4096) as client:
        client.socket.settimeout(1)
        count, piece = 0, request("GET", "/healthz") * 100
        with pytest.raises(TimeoutError):
            while count < 1_000_000:
                client.socket.send(piece)
                count += 100
        client.socket.settimeout(20)
        for _ in range(100):
            assert client.read_response().body == b"ok\n"


def test_the_metrics_address_has_only_what_it_has(site):
    with observer(site) as client:
        assert client.get("/one").status == 404
        assert client.get("/").body == b"The metrics are at /metrics.\n"
        answer = client.ask(request("HEAD", "/metrics"))
        assert answer.status == 200 and int(answer.field("content-length")) > 1000
        assert client.ask(request("POST", "/metrics")).status == 405
        answer = client.ask(request("POST", "/metrics", body=b"x" * 100))
        assert (answer.status, answer.field("connection")) == (405, "close")
    with observer(site) as client:
        assert client.ask(b"GET /metrics HTTP/1.0\r\n\r\n").status == 200
        client.assert_closed()
    with observer(site) as client:
        client.send(b"GET /\0 HTTP/1.1\r\n\r\n")
        assert client.read_response().status == 400
    with observer(site) as client:
        client.send(b"PUT /" + b"a" * 100_000)
        assert client.read_response().status == 414
    # Nobody who watches is counted among those who are watched.
    scrape = Scrape(site)
    assert scrape.sum("ringhorn_accepted_connections_total") == 0
    assert scrape.sum("ringhorn_received_bytes_total") == scrape.sum("ringhorn_sent_bytes_total") == 0
    assert scrape.sum("ringhorn_refused_requests_total") == 0


def test_a_server_without_room_can_be_looked_at(serve):
    site = serve("pep3333:app", "-w", "1", "--worker-connections", "2", *METRICS, ready=None)
    with site.client() as one, site.client() as two:
        assert one.get("/one").status == two.get("/one").status == 200
        assert Scrape(site).sum("ringhorn_connections") == 2
        # A crowd that only watches does not take the room of others, and has a bound.
        crowd = [observer(site) for _ in range(80)]
        closed = [client for client in crowd if not answered(client)]
        assert 0 < len(closed) <= 80 - 64
        assert one.get("/one").status == 200
        for client in crowd:
            client.close()
    wait_for(site, "ringhorn_connections", 0)


def answered(client: Client) -> bool:
    try:
        return client.get("/metrics").status == 200
    except (OSError, AssertionError):
        return False


def test_metrics_may_be_on_a_unix_socket(serve, tmp_path):
    path = tmp_path / "metrics.sock"
    site = serve("pep3333:app", "-w", "2", "--metrics-bind", f"unix:{path}", ready=None)
    assert metrics.address(site) == str(path)
    site.ask(request("GET", "/one"))
    wait_for(site, "ringhorn_requests_total", 1)
    site.stop()
    assert not path.exists()


def test_an_upgrade_keeps_the_metrics_address(serve, tmp_path):
    pidfile = tmp_path / "pid"
    site = serve("pep3333:app", "-w", "1", "--pid", str(pidfile), *METRICS, ready=None)
    where = metrics.address(site)
    site.signal(signal.SIGUSR2)
    second = tmp_path / "pid.2"
    wait_until(second.exists, "the second master")
    new = int(second.read_text())
    wait_until(lambda: site.log().count("Metrics at: ") == 2, "its metrics")
    assert metrics.address(site) == where
    wait_until(lambda: "Booting worker" in site.log().partition(f"[{new}]")[2], "its worker")
    site.signal(signal.SIGTERM)
    site.wait()
    try:
        with Client(where) as client:
            answer = client.get("/metrics")
        assert answer.status == 200 and b'ringhorn_workers{state="ready"} 1' in answer.body
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not pidfile.exists(), "the end of the new master")


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--health-path", "healthz", "/healthz"),
        ("--ready-path", "/ready?x", "without a query"),
        ("--metrics-bind", "http://127.0.0.1:1", "without http://"),
    ],
)
def test_wrong_settings_are_named(io, option, value, reason):
    code, output = run_to_end([sys.executable, "-m", "ringhorn"], option, value, "pep3333:app")
    assert code == 1 and reason in output and option.strip("-").replace("-", "_") in output, output


def test_an_address_in_use_ends_the_start(serve, io, tmp_path):
    site = serve("pep3333:app", *METRICS)
    host, port = metrics.address(site)
    code, output = run_to_end(
        [sys.executable, "-m", "ringhorn"],
        "-b",
        "127.0.0.1:0",
        "--metrics-bind",
        f"{host}:{port}",
        "pep3333:app",
    )
    assert code == 1 and "already in use" in output.lower() and "--metrics-bind" in output, output


def test_every_metric_of_dashboard_and_docs_exists_and_all_are_documented(site):
    """A panel that is empty for ever looks like a quiet server."""
    scrape = Scrape(site)
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in scrape.families.values()
    }
    series = {sample.name for family in scrape.families.values() for sample in family.samples} | families
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = set(re.findall(r"ringhorn_\w+", " ".join(expressions)))
    assert used and used <= series, used - series
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in used}
    assert families - shown == {"ringhorn_info"}, "a number that no panel shows"
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in dashboard["panels"]}) == len(places)
    text = (ROOT / "docs/observability.md").read_text()
    told = set(re.findall(r"ringhorn_\w+", text))
    assert told <= series, told - series
    rows = set(re.findall(r"^\| `(ringhorn_\w+)`", text, re.MULTILINE))
    assert rows == families


# --- logs for machines


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_access_log_as_json(serve, tmp_path):
    log = tmp_path / "access.log"
    options = ("-w", "1", "--access-logfile", str(log), "--access-logformat", "json")
    site = serve("pep3333:app", *options, ready=None)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    environ = site.get(
        "/environ?a=b%22c", f"traceparent: {parent}", 'User-Agent: "x"\\', "Referer: \t\xe9"
    ).json()["environ"]
    assert environ["HTTP_TRACEPARENT"] == parent
    site.get("/status/404", "Authorization: Basic YWxpY2U6c2VjcmV0")
    # The lines of requests that are refused come from another thread.
    wait_until(lambda: len(lines(log)) == 2, "two lines")
    site.ask(b"GET / HTTP/1.1\r\n\r\n")
    wait_until(lambda: len(lines(log)) == 3, "three lines")
    first, second, refused = lines(log)
    assert (first["method"], first["target"], first["path"]) == ("GET", "/environ?a=b%22c", "/environ")
    assert (first["query"], first["status"], first["protocol"]) == ("a=b%22c", 200, "HTTP/1.1")
    assert (first["remote_addr"], first["user"], first["user_agent"]) == ("127.0.0.1", None, '"x"\\')
    assert first["traceparent"] == parent and first["request_id"] is None and first["referer"] == "\xe9"
    assert first["queue_us"] + first["application_us"] <= first["duration_us"] + 1
    assert first["body_bytes"] > 0 and first["pid"] in site.children()
    assert (second["status"], second["user"]) == (404, "alice")
    assert (refused["status"], refused["queue_us"]) == (400, None)


def test_json_needs_the_servers_own_log(io):
    code, output = run_to_end(
        [sys.executable, "-m", "ringhorn"], "--access-logformat", "json", "--log-syslog", "pep3333:app"
    )
    assert code == 1 and "JSON formatter" in output, output


def test_every_request_has_an_id(serve, tmp_path):
    log = tmp_path / "access.log"
    site = serve(
        "pep3333:app",
        *("-w", "1", "--request-id-header", "X-Request-ID", "--access-logfile", str(log)),
        *("--access-logformat", "%({x-request-id}i)s %(s)s"),
        ready=None,
    )
    with site.client() as client:
        answer = client.get("/environ")
        made = answer.field("x-request-id")
        assert re.fullmatch("[0-9a-f]{32}", made) and answer.json()["environ"]["HTTP_X_REQUEST_ID"] == made
        answer = client.get("/environ", "x-request-id: abc-123")
        assert answer.field("x-request-id") == answer.json()["environ"]["HTTP_X_REQUEST_ID"] == "abc-123"
        # What should not get into logs and other systems does not.
        for odd in ("a b", "a" * 200, "<script>", "a\r\nX-Request-ID: b"):
            answer = client.get("/environ", f"X-Request-ID: {odd}")
            assert re.fullmatch("[0-9a-f]{32}", answer.field("x-request-id")), odd
            assert answer.json()["environ"]["HTTP_X_REQUEST_ID"] == answer.field("x-request-id")
        # With a body, too.
        answer = client.ask(request("POST", "/digest", "X-Request-ID: with-body", body=b"x" * 5000))
        assert answer.field("x-request-id") == "with-body"
    # An error page of the server has it, because that is when it is looked for.
    answer = site.get("/never_started", "X-Request-ID: fails")
    assert (answer.status, answer.field("x-request-id")) == (500, "fails")
    wait_until(lambda: "fails 500" in log.read_text(), "the line of the failure")
    assert log.read_text().splitlines()[:2] == [f"{made} 200", "abc-123 200"]


def test_the_id_is_in_the_json_line(serve, tmp_path):
    log = tmp_path / "access.log"
    options = (
        *("-w", "1"),
        "--request-id-header",
        "X-Request-ID",
        "--access-logfile",
        str(log),
        "--access-logformat",
        "json",
    )
    site = serve("pep3333:app", *options, ready=None)
    made = site.get("/one").field("x-request-id")
    assert site.get("/one", "X-Request-ID: given-1").field("x-request-id") == "given-1"
    wait_until(lambda: len(lines(log)) == 2, "two lines")
    assert [line["request_id"] for line in lines(log)] == [made, "given-1"]


def test_without_the_setting_ids_are_the_applications_business(serve):
    site = serve("pep3333:app", ready=None)
    answer = site.get("/environ", "X-Request-ID: a b")
    assert answer.field("x-request-id") is None and answer.json()["environ"]["HTTP_X_REQUEST_ID"] == "a b"
    assert "HTTP_X_REQUEST_ID" not in site.get("/environ").json()["environ"]
