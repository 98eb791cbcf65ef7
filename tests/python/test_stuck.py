"""Requests that take too long: what the log says of them, and what becomes of their workers and clients."""

from __future__ import annotations

import os
import re
import signal

import pytest

from harness import Server, request, wait_until
from test_processes import pid_that_answers

pytestmark = pytest.mark.ringhorn_only


def in_order(log: str, *wanted: str) -> None:
    """Each of these is in the log, behind the one before."""
    at = 0
    for text in wanted:
        found = re.compile(text).search(log, at)
        assert found, f"{text!r} is not in its place:\n{log}"
        at = found.end()


def ended(site: Server, worker: int) -> None:
    wait_until(lambda: worker not in site.children(), "the end of the worker")


# --- timeout


@pytest.mark.parametrize("way", ["sleep", "spin", "hold"])
def test_a_worker_whose_only_thread_is_stuck_is_replaced_and_the_log_says_where(serve, way):
    """In a system call, in Python, and in C code that never lets go of the interpreter."""
    site = serve("stuck", "--workers", "1", "--threads", "1", "--timeout", "1")
    worker = pid_that_answers(site)
    with site.client() as client:
        client.send(request("GET", f"/{way}?password=secret"))
        client.assert_closed()
    assert pid_that_answers(site) != worker
    function = {"hold": "hold_the_interpreter_in_here"}.get(way, f"{way}_in_here")
    in_order(
        site.log(),
        rf"\[{worker}\] \[ERROR\] timeout is over, and the only thread of this worker is stuck",
        rf"GET /{way} from 127\.0\.0\.1:\d+, \d+\.\d s",
        rf"stuck\.py.*{function}" if way != "hold" else function,
        rf"\[CRITICAL\] WORKER TIMEOUT \(pid:{worker}\)",
        rf"Worker \(pid:{worker}\) was sent SIGABRT!",
    )
    assert "password" not in site.log()


def test_one_stuck_thread_of_several_does_not_cost_the_worker(serve):
    """As gunicorn's gthread. Beyond `timeout` by the heartbeats that are looked at meanwhile."""
    site = serve("stuck", "--workers", "1", "--threads", "2", "--timeout", "1", "--slow-request", "3")
    worker = pid_that_answers(site)
    with site.client() as client:
        client.send(request("GET", "/wait"))
        wait_until(lambda: "Slow request: GET /wait" in site.log(), "three seconds")
        assert pid_that_answers(site) == worker
        assert site.get("/go_on").status == 200
        assert client.read_response().body == b"late"
    assert "WORKER TIMEOUT" not in site.log()


def test_a_stopped_worker_is_replaced_and_the_log_names_what_it_had_in_hand(serve):
    site = serve("stuck", "--workers", "1", "--threads", "2", "--timeout", "2", "--slow-request", "1.5")
    worker = pid_that_answers(site)
    with site.client() as client:
        client.send(request("GET", "/wait?password=secret"))
        wait_until(lambda: "Slow request: GET /wait" in site.log(), "the request is in hand for a while")
        os.kill(worker, signal.SIGSTOP)
        ended(site, worker)
    in_order(
        site.log(),
        rf"WORKER TIMEOUT \(pid:{worker}\)",
        rf"Worker \(pid:{worker}\) had in hand: GET /wait from 127\.0\.0\.1:\d+, \d\.\d s",
    )
    assert site.log().count("had in hand") == 1
    assert "password" not in site.log()


def test_worker_abort_and_worker_exit_are_called_on_a_timeout(serve, tmp_path):
    config = tmp_path / "hooks.py"
    config.write_text(
        "def worker_abort(worker): worker.log.info('abort of %s', worker.pid)\n"
        "def worker_exit(server, worker): worker.log.info('exit of %s', worker.pid)\n"
    )
    site = serve("stuck", "--workers", "1", "--threads", "1", "--timeout", "1", "--config", str(config))
    worker = pid_that_answers(site)
    with site.client() as client:
        client.send(request("GET", "/sleep"))
        client.assert_closed()
    ended(site, worker)
    wait_until(lambda: f"Worker (pid:{worker}) exited with code 1." in site.log(), "its end is logged")
    in_order(site.log(), "WORKER TIMEOUT", f"abort of {worker}", f"exit of {worker}", "exited with code 1")


def test_the_log_tells_what_graceful_timeout_cuts_off(serve):
    site = serve("stuck", "--workers", "1", "--threads", "2", "--graceful-timeout", "2")
    with site.client() as client:
        client.send(request("GET", "/wait"))
        wait_until(lambda: site.get("/plain").status == 200, "the worker serves")
        site.signal(signal.SIGTERM)
        assert site.wait() == 0
    in_order(
        site.log(),
        r"graceful_timeout is nearly over; requests in hand: 1",
        r"GET /wait from 127\.0\.0\.1",
        r"wait_in_here",
        r"Shutting down: Master",
    )


# --- slow_request


def test_a_slow_request_is_told_once_with_its_stack_and_id(serve):
    site = serve("stuck", "--workers", "1", "--threads", "3", "--slow-request", "0.3")
    with site.client() as client, site.client() as another:
        client.send(request("GET", "/wait?password=secret", "X-Request-Id: abc-17"))
        wait_until(lambda: "Slow request: GET /wait" in site.log(), "the first")
        another.send(request("POST", "/wait", body=b"x"))
        wait_until(lambda: "Slow request: POST /wait" in site.log(), "the second")
        assert site.get("/go_on").status == 200
        assert client.read_response().status == another.read_response().status == 200
    in_order(
        site.log(),
        r"\[WARNING\] Slow request: GET /wait from 127\.0\.0\.1:\d+, request id abc-17, \d+\.\d s\n  File .*stuck\.py",
        r"stuck\.py.*in application",
        r"stuck\.py.*in wait_in_here",
    )
    assert len(re.findall("Slow request: (GET|POST) /wait", site.log())) == 2
    assert "password" not in site.log()


def test_the_stack_of_a_request_that_holds_the_interpreter(serve):
    site = serve("stuck", "--workers", "1", "--threads", "2", "--slow-request", "0.3")
    with site.client() as client:
        client.send(request("GET", "/hold"))
        wait_until(lambda: "hold_the_interpreter_in_here" in site.log(), "its stack")
        in_order(
            site.log(), "Slow request: GET /hold", "Somebody holds the interpreter", "in _?compile|in match"
        )
        site.signal(signal.SIGQUIT)
        assert site.wait() == 0


# --- request_timeout


def test_a_request_that_takes_too_long_is_answered_503_and_the_others_are_unharmed(serve, tmp_path):
    access = tmp_path / "access.log"
    options = (
        "--workers",
        "1",
        "--threads",
        "2",
        "--request-timeout",
        "0.5",
        "--access-logfile",
        str(access),
    )
    site = serve("stuck", *options)
    worker = pid_that_answers(site)
    with site.client() as client:
        client.send(request("GET", "/wait?password=secret", "User-Agent: patient"))
        answer = client.read_response()
        assert (answer.status, answer.field("connection")) == (503, "close")
        assert answer.field("retry-after") is None, "it would be done twice"
        assert client.read_to_end() == b"", "and nothing behind it"
    wait_until(lambda: "Request timed out" in site.log(), "the log is told")
    # The late answer goes nowhere, and its thread comes back.
    assert site.get("/go_on").status == 200
    assert [site.get("/plain").status for _ in range(20)] == [200] * 20
    assert pid_that_answers(site) == worker
    in_order(
        site.log(),
        r"\[WARNING\] Request timed out: GET /wait from 127\.0\.0\.1:\d+, \d+\.\d s; its client got 503",
        r"wait_in_here",
    )
    assert "password" not in site.log()
    # Written by another thread, and in order: behind the line of a later request there is no more to come.
    assert site.get("/plain?last").status == 200
    wait_until(lambda: "/plain?last" in access.read_text(), "the access log is written")
    lines = [line for line in access.read_text().splitlines() if "/wait" in line]
    assert len(lines) == 1, lines
    assert '"GET /wait?password=secret HTTP/1.1" 503' in lines[0]
    assert lines[0].endswith('"patient"')


def test_an_answer_that_has_begun_is_cut_visibly(serve):
    site = serve("stuck", "--workers", "1", "--threads", "2", "--request-timeout", "0.5")
    with site.client() as client:
        client.send(request("GET", "/stream"))
        client.wait_for(b"the beginning")
        with pytest.raises(ConnectionResetError):
            client.read_to_end()
    wait_until(lambda: "Request timed out" in site.log(), "the log is told")
    assert site.get("/go_on").status == 200
    in_order(
        site.log(), r"Request timed out: GET /stream .*; its answer had begun, and the connection was reset"
    )


def test_an_application_that_reads_a_body_which_does_not_come_is_let_go(serve):
    """The read fails when the time is over; nobody waits for the client any more."""
    limits = ("--request-timeout", "0.5", "--body-timeout", "60", "--body-buffer", "1000")
    site = serve("stuck", "--workers", "1", "--threads", "2", *limits)
    with site.client() as client:
        client.send(request("POST", "/digest/100000", "Content-Length: 100000") + b"x" * 2000)
        assert client.read_response().status == 503
    with site.client() as client:
        assert client.get("/plain").status == 200
    wait_until(lambda: site.log().count("Request timed out: POST /digest") == 1, "the log is told")


def test_quick_requests_of_a_connection_are_told_from_a_slow_one(serve):
    site = serve("stuck", "--workers", "1", "--threads", "2", "--request-timeout", "0.5")
    with site.client() as client:
        for _ in range(10):
            assert client.get("/plain").status == 200
        client.send(request("HEAD", "/wait") + request("GET", "/plain"))
        assert client.read_response(head=True).status == 503
        client.assert_closed()
    assert site.get("/go_on").status == 200


def test_other_threads_take_the_place_of_those_that_are_stuck(serve):
    """Both threads hang, and requests are answered all the same; until those come back, there are two more."""
    site = serve("stuck", "--workers", "1", "--threads", "2", "--request-timeout", "1")
    worker = pid_that_answers(site)
    clients = [site.client() for _ in range(2)]
    for client in clients:
        client.send(request("GET", "/wait"))
    for client in clients:
        assert client.read_response().status == 503
        client.close()
    assert site.get("/plain").status == 200
    assert pid_that_answers(site) == worker
    assert site.get("/go_on").status == 200
    assert site.get("/plain").status == 200


def test_a_thread_that_does_not_come_back_costs_its_worker_when_another_one_serves(serve):
    options = ("--workers", "1", "--threads", "2", "--request-timeout", "0.5", "--graceful-timeout", "2")
    site = serve("stuck", *options)
    worker = pid_that_answers(site)
    with site.client() as client:
        client.send(request("GET", "/sleep"))
        assert client.read_response().status == 503
    site.workers(2)
    while worker in site.children():
        assert site.get("/plain").status == 200
    assert pid_that_answers(site) != worker
    in_order(
        site.log(),
        "Request timed out: GET /sleep",
        "has not come back: this worker is replaced",
        "Booting worker",
    )


def test_with_one_thread_the_next_request_is_not_run_beside_the_stuck_one(serve):
    """The application relies on it. Whoever waits behind is answered when his own time is over."""
    options = (
        "--workers",
        "1",
        "--threads",
        "1",
        "--request-timeout",
        "0.5",
        "--timeout",
        "60",
        "--graceful-timeout",
        "2",
    )
    site = serve("stuck", *options)
    with site.client() as stuck, site.client() as behind:
        stuck.send(request("GET", "/wait?key=one"))
        assert stuck.read_response().status == 503
        behind.send(request("GET", "/plain"))
        answer = behind.read_response()
        assert answer.status in (503, 200), "200 is the replacement's"
    wait_until(lambda: site.get("/plain").status == 200, "the replacement serves")
