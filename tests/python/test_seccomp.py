"""Where io_uring is forbidden, as in containers: the server finds out, says so, and serves all the same."""

import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness import APPS, Server, request, wait_until

LAUNCHER = [sys.executable, str(Path(harness.HERE, "without_io_uring.py"))]
SERVER = [*LAUNCHER, sys.executable, "-m", "ringhorn"]

pytestmark = pytest.mark.ringhorn_only


@pytest.fixture
def serve(tmp_path):
    with harness.serving(lambda *args, **options: Server(SERVER, args, log=tmp_path / "log", **options)) as s:
        yield s


def test_the_launcher_forbids_io_uring_to_the_command():
    code = "import harness; print(harness.uring_missing())"
    done = subprocess.run([*LAUNCHER, sys.executable, "-c", code], cwd=harness.HERE, capture_output=True)
    assert done.stdout.decode().strip() == "io_uring_setup: EPERM", done


def test_epoll_serves_by_itself_and_one_line_says_why(serve):
    site = serve("--workers", "2", "pep3333:app")
    with site.client() as client:
        for _ in range(3):
            assert client.ask(request("POST", "/echo", body=b"hello")).body == b"hello"
        assert len(client.get("/big/5000000/100000").body) == 5_000_000
    # The worker that tells it is not always the one that served.
    wait_until(lambda: "io_uring" in site.log(), "the first worker tells which backend it has")
    (line,) = [line for line in site.log().splitlines() if "io_uring" in line]
    assert "WARNING" in line
    assert "io_uring is not available (io_uring_setup: EPERM), serving with epoll" in line
    assert "kernel.io_uring_disabled=0" in line and "seccomp" in line, "the remedy"


def test_who_chose_epoll_is_not_told(serve):
    site = serve("--io", "epoll", "pep3333:app")
    assert site.get("/plain").status == 200
    assert "io_uring" not in site.log()


def test_who_demands_io_uring_gets_a_plain_error():
    command = [*SERVER, "--io", "uring", "--bind", "127.0.0.1:0", "-w", "2", "pep3333:app"]
    done = subprocess.run(command, cwd=APPS, capture_output=True, text=True, timeout=harness.PATIENCE)
    assert done.returncode == 3, "a worker that fails to boot, as with gunicorn"
    assert "io_uring is not available: io_uring_setup: EPERM" in done.stderr
    assert "from: --io on the command line" in done.stderr
    assert "hint: `sysctl kernel.io_uring_disabled=0`" in done.stderr
    assert "Traceback" not in done.stderr and "panicked" not in done.stderr
