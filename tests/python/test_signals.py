"""Applications that ask for a worker's signal handlers, call them from their own, put them back, or replace them.

`graceful_timeout` is longer than any test waits: a worker that does not hear of its end fails the test.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import APPS, Client, Server, request, wait_until
from test_processes import pid_that_answers

GUNICORNS = {
    "SIGTERM": "handle_exit",
    "SIGINT": "handle_quit",
    "SIGQUIT": "handle_quit",
    "SIGUSR1": "handle_usr1",
    "SIGWINCH": "handle_winch",
}

PUT_BACK = "import handlers; handlers.save_and_put_back()"

CHAIN = """
def chain(number):
    old = signal.getsignal(number)
    def handler(number, frame):
        print("cleanup", flush=True)
        if callable(old):
            old(number, frame)
    signal.signal(number, handler)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
    chain(number)
"""

EXIT = "import sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"

Start = Callable[..., Server]


@pytest.fixture
def site(serve, tmp_path) -> Start:
    """Starts a worker whose application runs `before` when it is imported."""

    def start(before: str = "", *args: str, **others) -> Server:
        text = f"import signal\n{before}\nfrom handlers import app as application\n"
        (tmp_path / "handled.py").write_text(text)
        options = ("--workers", "1", "--graceful-timeout", "60", *args)
        return serve("handled", *options, cwd=tmp_path, env={"PYTHONPATH": str(APPS)}, **others)

    return start


@contextlib.contextmanager
def in_hand(server: Server, directory: Path) -> Iterator[tuple[Client, Path]]:
    """A request that is answered when the file exists."""
    go = directory / "go"
    with server.client() as client:
        client.send(request("POST", "/until_exists", body=str(go).encode()))
        wait_until(lambda: go.with_suffix(".begun").exists(), "the request has begun")
        yield client, go


def gone(server: Server, worker: int) -> None:
    """The worker leaves, by itself, and another one takes its place."""
    wait_until(lambda: worker not in server.children(), "the end of the worker")
    assert pid_that_answers(server) != worker
    assert "was sent SIG" not in server.log()


def test_python_sees_the_handlers_that_gunicorns_workers_have(site):
    assert site().get("/handlers").json() == GUNICORNS


def test_handlers_of_a_preloaded_application_are_the_masters(site):
    """As in gunicorn, whose master and workers set theirs after the import."""
    server = site(CHAIN, "--preload")
    assert server.get("/handlers").json() == GUNICORNS
    (worker,) = server.workers(1)
    os.kill(worker, signal.SIGTERM)
    gone(server, worker)


@pytest.mark.parametrize("put_back", ["at import", "in a request"])
def test_after_handlers_were_put_back_term_lets_the_request_end(site, tmp_path, put_back):
    server = site(PUT_BACK if put_back == "at import" else "", "--threads", "1")
    (worker,) = server.workers(1)
    if put_back == "in a request":
        assert server.get("/put_back").json() == GUNICORNS
    with in_hand(server, tmp_path) as (client, go):
        os.kill(worker, signal.SIGTERM)
        go.touch()
        assert client.read_response().status == 200
    gone(server, worker)


@pytest.mark.ringhorn_only
@pytest.mark.parametrize("before", ["", PUT_BACK])
def test_a_quick_stop_needs_no_python(site, before):
    """The only thread that runs handlers never comes back from C code, with the interpreter in its hands."""
    server = site(before, "--threads", "1", "--timeout", "0")
    (worker,) = server.workers(1)
    with server.client() as client:
        client.send(request("GET", "/hold"))
        wait_until(lambda: "holds" in server.log(), "the request has begun")
        os.kill(worker, signal.SIGQUIT)
        gone(server, worker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_handler_that_calls_the_one_before_it(site, number):
    server = site(CHAIN)
    (worker,) = server.workers(1)
    os.kill(worker, number)
    gone(server, worker)
    assert server.log().count("cleanup") == 1


def test_a_chain_lets_the_request_end_and_is_reloaded(site, tmp_path):
    server = site(CHAIN, "--threads", "1")
    (worker,) = server.workers(1)
    with in_hand(server, tmp_path) as (client, go):
        os.kill(worker, signal.SIGTERM)
        go.touch()
        assert client.read_response().status == 200
    gone(server, worker)
    (worker,) = server.workers(1)
    server.signal(signal.SIGHUP)
    gone(server, worker)


def test_a_handler_that_exits_ends_the_worker(site):
    server = site(EXIT)
    (worker,) = server.workers(1)
    os.kill(worker, signal.SIGTERM)
    gone(server, worker)
    assert "SystemExit" not in server.log()


@pytest.mark.parametrize("before", [EXIT, CHAIN])
def test_max_requests_needs_no_handler(site, before):
    """Workers were sent TERM, and a request in hand was answered 500 when the handler exited."""
    server = site(before, "--max-requests", "3", "--threads", "1")
    for _ in range(4):
        pid = pid_that_answers(server)
        wait_until(lambda pid=pid: pid_that_answers(server) != pid, "another worker")
    assert "cleanup" not in server.log()


@pytest.mark.oracle_differs("gunicorn's threads do not notice, its sync worker stays until it is killed")
@pytest.mark.parametrize(
    "before",
    [
        EXIT,
        "class Handler:\n    def __call__(self, *_):\n        raise SystemExit\nsignal.signal(15, Handler())",
    ],
)
def test_a_handler_that_exits_in_the_midst_of_a_request(site, tmp_path, before):
    server = site(before, "--threads", "1")
    (worker,) = server.workers(1)
    with in_hand(server, tmp_path) as (client, _):
        os.kill(worker, signal.SIGTERM)
        assert client.read_response().status == 500
    gone(server, worker)


@pytest.mark.ringhorn_only
def test_a_handler_that_exits_ends_no_request_of_another_thread(site, tmp_path):
    """The main thread was in the request, and it was answered 500."""
    server = site(EXIT, "--threads", "2")
    (worker,) = server.workers(1)
    with in_hand(server, tmp_path) as (client, go):
        with server.client() as idle:
            os.kill(worker, signal.SIGTERM)
            # The worker has heard of it: whoever is idle is let go.
            idle.assert_closed()
        go.touch()
        assert client.read_response().status == 200
    gone(server, worker)


def test_a_handler_that_exits_while_the_worker_loads(site, tmp_path):
    """It was taken for an application that cannot be loaded."""
    loads = tmp_path / "loads"
    server = site(
        f"{EXIT}\nimport pathlib, time\npathlib.Path({str(loads)!r}).touch()\nwhile True: time.sleep(0.01)",
        ready=None,
    )
    wait_until(loads.exists, "the import has begun")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "ERROR" not in server.log()


@pytest.mark.ringhorn_only
def test_a_handler_that_exits_in_a_hook(site, tmp_path):
    hook = "import os\ndef post_request(worker, req):\n    os.kill(os.getpid(), 15)\n"
    (tmp_path / "conf.py").write_text(hook)
    server = site(EXIT, "--threads", "1", "--config", "conf.py")
    first = pid_that_answers(server)
    wait_until(lambda: pid_that_answers(server) != first, "another worker")


def test_asyncio_in_a_request_leaves_the_handler_of_int_alone(site):
    server = site("", "--threads", "1")
    (worker,) = server.workers(1)
    for _ in range(2):
        assert server.get("/asyncio").json() == GUNICORNS
    os.kill(worker, signal.SIGINT)
    gone(server, worker)


def test_an_interrupt_of_pythons_own_handler_ends_the_worker(site):
    server = site("signal.signal(signal.SIGINT, signal.default_int_handler)")
    (worker,) = server.workers(1)
    os.kill(worker, signal.SIGINT)
    gone(server, worker)


@pytest.mark.oracle_differs("gunicorn's worker ends with it")
def test_any_other_exception_of_a_handler_is_logged(site):
    server = site("def fail(*_):\n    raise LookupError('on purpose')\nsignal.signal(signal.SIGUSR1, fail)")
    (worker,) = server.workers(1)
    os.kill(worker, signal.SIGUSR1)
    wait_until(lambda: "LookupError: on purpose" in server.log(), "the log line")
    assert pid_that_answers(server) == worker


def test_worker_int_is_called_when_handlers_were_put_back(site, tmp_path):
    (tmp_path / "conf.py").write_text("def worker_int(worker):\n    print('interrupted', flush=True)\n")
    server = site(PUT_BACK, "--config", "conf.py")
    (worker,) = server.workers(1)
    os.kill(worker, signal.SIGINT)
    gone(server, worker)
    assert "interrupted" in server.log()


def test_a_child_of_the_application_may_have_its_own_and_tells_the_worker_nothing(site):
    server = site("", "--threads", "1")
    (worker,) = server.workers(1)
    assert server.get("/children").json() == [7, -signal.SIGTERM]
    assert pid_that_answers(server) == worker


def test_a_handler_that_python_does_not_know_of_stays(site):
    server = site("import faulthandler\nfaulthandler.register(signal.SIGUSR1)")
    (worker,) = server.workers(1)
    os.kill(worker, signal.SIGUSR1)
    wait_until(lambda: "most recent call first" in server.log(), "the stack of a thread")
    assert pid_that_answers(server) == worker
