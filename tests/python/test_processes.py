"""The master and its workers: listeners, CPUs, rings, deaths and stops."""

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import APPS, Server, request, stop_process, wait_until


def listeners(port: int) -> int:
    """How many sockets listen on this port of 127.0.0.1."""
    here = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == here and row[3] == "0A" for row in rows)


def cpus_of(pid: int) -> set[str]:
    """The CPU lists of all threads of a process, as in {"0-3"} or {"1"}."""
    lists = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            lists.add(re.search(r"Cpus_allowed_list:\s+(\S+)", (task / "status").read_text())[1])
    return lists


def pinned(pid: int) -> bool:
    lists = cpus_of(pid)
    return len(lists) == 1 and lists.pop().isdigit()


def rings_of(pid: int) -> int:
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # one that has just been closed
            count += os.readlink(fd) == "anon_inode:[io_uring]"
    return count


def pid_that_answers(server: Server) -> int:
    return server.get("/environ").json()["pid"]


def begun(server: Server, name: str) -> Callable[[], object]:
    return lambda: server.get(f"/events/{name}").json()


@pytest.mark.ringhorn_only
def test_each_worker_has_its_listener_its_ring_and_its_cpu(serve, io):
    two = set(sorted(os.sched_getaffinity(0))[:2])
    site = serve("pep3333:app", "--workers", "2", cpus=two)
    workers = site.workers(2)
    assert listeners(site.port) == 2
    rings = 1 if io == "uring" else 0
    wait_until(lambda: [rings_of(pid) for pid in workers] == [rings] * 2, f"{rings} ring in each worker")
    assert rings_of(site.process.pid) == 0
    if len(two) == 2:
        wait_until(lambda: all(map(pinned, workers)), "each worker has one CPU")
        assert cpus_of(workers[0]) != cpus_of(workers[1])


@pytest.mark.ringhorn_only
def test_no_pin_leaves_the_workers_on_all_cpus(serve):
    count = len(os.sched_getaffinity(0))
    site = serve("pep3333:app", "--workers", str(count), "--no-pin")
    for pid in site.workers(count):
        assert cpus_of(pid) == cpus_of(site.process.pid)


@pytest.mark.ringhorn_only
@pytest.mark.parametrize("more", [-1, 1])
def test_fewer_or_more_workers_than_cpus_are_not_pinned(serve, more):
    """Fewer would leave CPUs to nobody: the application's threads and processes are to have them."""
    count = len(os.sched_getaffinity(0)) + more
    if count == 0:
        pytest.skip("there is one CPU")
    site = serve("pep3333:app", "--workers", str(count))
    for pid in site.workers(count):
        assert cpus_of(pid) == cpus_of(site.process.pid)


def test_both_workers_serve(serve):
    site = serve("pep3333:app", "--workers", "2")
    seen = set()
    wait_until(lambda: seen.add(pid_that_answers(site)) or len(seen) == 2, "an answer from each worker")
    assert seen == set(site.workers(2))


# --- deaths


def test_connections_that_wait_outlive_a_killed_worker(serve):
    """A stopped worker accepts nothing: its clients wait in the listen queue, which the master keeps open."""
    site = serve("pep3333:app", "--workers", "1", "--threads", "2")
    (worker,) = site.workers(1)
    stop_process(worker)
    clients = [site.client() for _ in range(30)]
    for client in clients:
        client.send(request("GET", "/environ"))
    os.kill(worker, signal.SIGKILL)
    for client in clients:
        assert client.read_response().json()["pid"] != worker
        client.close()


def test_a_worker_killed_under_load_is_replaced_and_nothing_queued_is_lost(serve):
    """Each of the eight clients may lose the request that the dead worker had in hand, and no more."""
    site = serve("pep3333:app", "--workers", "2", "--threads", "4")
    victim, survivor = site.workers(2)
    losses: list[str] = []
    served = [0]
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                answer = site.get("/plain", "Connection: close")
                assert (answer.status, answer.body) == (200, b"plain\n")
                served[0] += 1
            except (AssertionError, OSError) as lost:
                losses.append(repr(lost))

    clients = [threading.Thread(target=load) for _ in range(8)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: served[0] > 100, "load")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in site.children(), "the end of the victim")
        (replacement,) = set(site.workers(2)) - {survivor}
        wait_until(lambda: pid_that_answers(site) == replacement, "an answer from the replacement")
    finally:
        done.set()
        for client in clients:
            client.join()
    assert len(losses) <= len(clients), losses


@pytest.mark.parametrize(
    "code", [9, pytest.param(3, marks=pytest.mark.oracle_differs("it takes the code for a failed boot"))]
)
def test_an_application_that_ends_the_process_is_replaced(serve, tmp_path, code):
    (tmp_path / "quits.py").write_text(
        "import os\nfrom pep3333 import app\n"
        "def application(environ, start_response):\n"
        f"    if environ['PATH_INFO'] == '/quit': os._exit({code})\n"
        "    return app(environ, start_response)\n"
    )
    site = serve("quits", "--workers", "1", cwd=tmp_path, env={"PYTHONPATH": str(APPS)})
    worker = pid_that_answers(site)
    with site.client() as client:
        client.send(request("GET", "/quit"))
        client.assert_closed()
    assert pid_that_answers(site) != worker
    assert f"exited with code {code}" in site.log()


def test_workers_do_not_outlive_a_killed_master(serve):
    site = serve("pep3333:app", "--workers", "2")
    workers = site.workers(2)
    os.kill(site.process.pid, signal.SIGKILL)
    site.exit_code = -signal.SIGKILL
    assert site.wait() == site.exit_code
    wait_until(lambda: not any(alive(pid) for pid in workers), "the end of the workers")


@pytest.mark.oracle_differs("its workers look for their master between two requests")
@pytest.mark.parametrize("deed", ["time.sleep(600)", "while True: pass", "re.match('(a+)+b', 'a' * 60)"])
def test_busy_workers_do_not_outlive_a_killed_master_and_the_port_is_free(serve, tmp_path, deed):
    """In a system call, in Python, and in C code that has the interpreter lock."""
    begun = tmp_path / "begun"
    (tmp_path / "busy.py").write_text(
        "import re, time\nfrom pep3333 import app\n"
        "def application(environ, start_response):\n"
        "    if environ['PATH_INFO'] == '/busy':\n"
        f"        open({str(begun)!r}, 'w').close()\n"
        f"        {deed}\n"
        "    return app(environ, start_response)\n"
    )
    site = serve("busy", "--workers", "1", "--threads", "1", cwd=tmp_path, env={"PYTHONPATH": str(APPS)})
    (worker,) = site.workers(1)
    with site.client() as client:
        client.send(request("GET", "/busy"))
        wait_until(begun.exists, "the request has begun")
        os.kill(site.process.pid, signal.SIGKILL)
        site.exit_code = -signal.SIGKILL
        assert site.wait() == site.exit_code
        wait_until(lambda: not alive(worker), "the end of the worker")
        # The kernel takes a ring apart a moment after its process.
        wait_until(lambda: can_bind(site.address), "the port is free")


def can_bind(address: tuple[str, int]) -> bool:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(address)
        except OSError:
            return False
        return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- stops


def test_term_finishes_the_request_in_hand(serve, tmp_path):
    """The answer comes whole after TERM, with the close announced, and the server leaves with 0."""
    site = serve("pep3333:app", "--workers", "2", "--threads", "2", "--graceful-timeout", "60")
    go = tmp_path / "go"
    with site.client() as client:
        client.send(request("POST", "/until_exists", body=str(go).encode()))
        wait_until(lambda: go.with_suffix(".begun").exists(), "the request has begun")
        site.signal(signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in site.log(), "the signal is handled")
        go.touch()
        answer = client.read_response()
        assert (answer.status, answer.body) == (200, b"it exists")
        client.assert_closed()
    assert site.wait() == 0


def test_term_does_not_wait_for_idle_connections(serve):
    site = serve("pep3333:app", "--workers", "1", "--graceful-timeout", "60", "--keep-alive", "60")
    with site.client() as idle, site.client() as silent:
        assert idle.get("/plain").status == 200
        site.signal(signal.SIGTERM)
        assert site.wait() == 0
        assert idle.read_to_end() == b""
        silent.assert_closed()


def test_a_request_that_never_ends_is_cut_off_when_the_grace_is_over(serve):
    site = serve("pep3333:app", "--workers", "1", "--threads", "2", "--graceful-timeout", "1")
    with site.client() as client:
        client.send(request("GET", "/wait?key=never"))
        wait_until(begun(site, "never"), "the request has begun")
        site.signal(signal.SIGTERM)
        assert site.wait() == 0
        # Cut either way: the end of the stream or a reset, and never an answer.
        with contextlib.suppress(ConnectionResetError):
            assert client.read_to_end() == b""


@pytest.mark.oracle_differs("gthread joins its threads")
@pytest.mark.parametrize("name", ["SIGQUIT", "SIGINT"])
def test_quit_and_int_do_not_wait_for_requests(serve, name):
    site = serve("pep3333:app", "--workers", "1", "--threads", "2", "--graceful-timeout", "60")
    with site.client() as client:
        client.send(request("GET", "/wait?key=never"))
        wait_until(begun(site, "never"), "the request has begun")
        site.signal(getattr(signal, name))
        assert site.wait(patience=10) == 0, "it waits for the request, which waits for 20 s"


def test_the_log_tells_a_life_in_gunicorns_words(serve):
    site = serve("pep3333:app", "--workers", "1")
    (worker,) = site.workers(1)
    site.stop()
    pid = site.process.pid
    stamp = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] "
    for line in (
        rf"{stamp}\[{pid}\] \[INFO\] Starting \w+ \d",
        rf"{stamp}\[{pid}\] \[INFO\] Listening at: http://127\.0\.0\.1:\d+ \({pid}\)",
        rf"{stamp}\[{worker}\] \[INFO\] Booting worker with pid: {worker}",
        rf"{stamp}\[{pid}\] \[INFO\] Handling signal: term",
        rf"{stamp}\[{worker}\] \[INFO\] Worker exiting \(pid: {worker}\)",
        rf"{stamp}\[{pid}\] \[INFO\] Shutting down: Master",
    ):
        assert re.search(line, site.log()), f"{line} not in:\n{site.log()}"


@pytest.mark.ringhorn_only
def test_the_log_tells_the_io_backend(serve, io):
    named = {"uring": "io_uring", "epoll": "epoll"}[io]
    assert named in serve("pep3333:app", "--workers", "1").log()


def test_signals_are_for_the_main_thread_alone(serve, tmp_path):
    """A signal that another thread took would leave the main thread in its wait, and a handler in Python unheard."""
    options = ("--workers", "1", "--threads", "4", "--access-logfile", str(tmp_path / "access.log"))
    site = serve("pep3333:app", *options)
    (worker,) = site.workers(1)
    wanted = sum(
        1 << (number - 1) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)
    )

    def masks() -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for task in Path(f"/proc/{worker}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            if int(task.name) != worker and status["Name"].startswith("ringhorn"):
                found.setdefault(status["Name"], []).append(int(status["SigBlk"], 16))
        return found

    wait_until(lambda: "ringhorn-log" in masks(), "the access log's thread")
    wait_until(
        lambda: all(mask & wanted == wanted for each in masks().values() for mask in each), "all block them"
    )
