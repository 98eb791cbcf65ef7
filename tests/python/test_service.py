"""Service managers and the background: socket activation, sd_notify, -D, and Python's own signal handlers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness import APPS, Client, clean_environment, wait_until
from test_processes import alive

pytestmark = pytest.mark.ringhorn_only


class Manager:
    """The socket that systemd listens on for news of a service."""

    def __init__(self, path: Path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.news: list[str] = []

    def heard(self, text: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.news.append(self.socket.recv(4096).decode())
        return any(text in item.split("\n") for item in self.news)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: self.heard(text), f"{text} among {self.news}")


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


def gated(directory: Path) -> tuple[Path, dict[str, str]]:
    """An application whose import ends when the file exists."""
    go = directory / "go"
    (directory / "gated.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "from pep3333 import app as application\n"
    )
    return go, {"PYTHONPATH": str(APPS)}


def test_ready_is_said_when_all_workers_serve_and_not_before(serve, tmp_path, manager):
    """gunicorn says it before it has a worker."""
    go, env = gated(tmp_path)
    env["NOTIFY_SOCKET"] = str(manager.path)
    site = serve("gated", "--workers", "2", cwd=tmp_path, env=env, ready=None)
    site.workers(2)
    assert not manager.heard("READY=1")
    go.touch()
    manager.wait_for("READY=1")
    manager.news.clear()
    site.signal(signal.SIGHUP)
    manager.wait_for("RELOADING=1")
    assert any(line.startswith("MONOTONIC_USEC=") for item in manager.news for line in item.split("\n"))
    manager.wait_for("READY=1")
    site.signal(signal.SIGTERM)
    manager.wait_for("STOPPING=1")


def test_a_reload_that_is_dropped_is_ready_again(serve, tmp_path, manager):
    (tmp_path / "breaks.py").write_text("from pep3333 import app as application\n")
    env = {"PYTHONPATH": str(APPS), "NOTIFY_SOCKET": str(manager.path)}
    site = serve("breaks", "--workers", "2", cwd=tmp_path, env=env)
    manager.wait_for("READY=1")
    manager.news.clear()
    (tmp_path / "breaks.py").write_text("raise RuntimeError\n")
    site.signal(signal.SIGHUP)
    manager.wait_for("RELOADING=1")
    manager.wait_for("READY=1")


def test_the_watchdog_is_petted(serve, manager):
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000"}
    serve("pep3333:app", "--workers", "1", env=env)
    wait_until(lambda: manager.heard("") or manager.news.count("WATCHDOG=1") >= 3, "three signs of life")


def test_an_abstract_notify_socket(serve, tmp_path):
    name = f"ringhorn-test-{os.getpid()}"
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind("\0" + name)
        manager.settimeout(harness.PATIENCE)
        serve("pep3333:app", "--workers", "1", env={"NOTIFY_SOCKET": "@" + name})
        assert manager.recv(4096).startswith(b"READY=1")


def test_an_upgrade_names_the_new_main_process(serve, tmp_path, manager):
    pidfile = tmp_path / "pid"
    env = {"NOTIFY_SOCKET": str(manager.path)}
    site = serve("pep3333:app", "--workers", "1", "--pid", str(pidfile), env=env)
    site.signal(signal.SIGUSR2)
    second = tmp_path / "pid.2"
    wait_until(second.exists, "the second pidfile")
    new = int(second.read_text())
    wait_until(lambda: site.log().count("Booting worker") == 2, "its worker")
    site.signal(signal.SIGTERM)
    manager.wait_for(f"MAINPID={new}")
    assert not manager.heard("STOPPING=1")
    assert site.wait() == 0
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: not alive(new), "its end")


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_socket_activation(tmp_path, io, family):
    """LISTEN_FDS from 3 on in place of --bind; a unix socket's file is the manager's and stays."""
    path = tmp_path / "app.sock"
    if family == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        address = str(path)
    # The variables name the process itself, so they are set between fork and exec, as systemd does.
    start = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'ringhorn', *sys.argv[2:]])\n"
    )
    command = [
        sys.executable,
        "-c",
        start,
        str(listener.fileno()),
        "--io",
        io,
        "--workers",
        "2",
        "pep3333:app",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=APPS, env=clean_environment(), pass_fds=[listener.fileno()], stdout=log, stderr=log
        )
    try:
        # Whoever connects before the server is there waits in the manager's queue.
        with Client(address) as client:
            environ = client.get("/environ").json()
        assert "LISTEN_FDS" not in environ.get("os_environ", {})
        process.send_signal(signal.SIGTERM)
        assert process.wait(harness.PATIENCE) == 0, (tmp_path / "log").read_text()
        assert family == "tcp" or path.exists()
    finally:
        process.kill()
        process.wait()
        listener.close()


def test_daemon(tmp_path, io):
    """-D: the command returns, the server lives on in a session of its own, and WINCH rests it."""
    pidfile, log = tmp_path / "pid", tmp_path / "log"
    command = [sys.executable, "-m", "ringhorn", "--io", io, "-D", "--workers", "1", "--bind", "127.0.0.1:0"]
    command += ["--pid", str(pidfile), "--error-logfile", str(log), "pep3333:app"]
    subprocess.run(command, cwd=APPS, env=clean_environment(), check=True, timeout=harness.PATIENCE)
    wait_until(lambda: pidfile.exists() and "Listening at" in log.read_text(), "the daemon")
    pid = int(pidfile.read_text())
    try:
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        port = int(log.read_text().partition("http://127.0.0.1:")[2].split()[0])
        with Client(("127.0.0.1", port)) as client:
            assert client.get("/plain", "Connection: close").status == 200
        children = Path(f"/proc/{pid}/task/{pid}/children")
        os.kill(pid, signal.SIGWINCH)
        wait_until(lambda: not children.read_text(), "no workers after WINCH")
        os.kill(pid, signal.SIGHUP)
        with Client(("127.0.0.1", port)) as client:
            assert client.get("/plain").status == 200
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), "its end")
    assert not pidfile.exists()


def test_python_signal_handlers_run_while_nothing_is_asked(serve, tmp_path):
    """Many times, because a signal may come just before the main thread goes to sleep."""
    (tmp_path / "counts.py").write_text(
        "import signal\nfrom pep3333 import app as application\ncount = 0\n"
        "def handle(*_):\n    global count\n    count += 1\n    print('handled', count, flush=True)\n"
        "signal.signal(signal.SIGUSR2, handle)\n"
    )
    site = serve("counts", "--workers", "1", cwd=tmp_path, env={"PYTHONPATH": str(APPS)})
    (worker,) = site.workers(1)
    for count in range(1, 21):
        site.get("/plain", "Connection: close")
        os.kill(worker, signal.SIGUSR2)
        wait_until(lambda n=count: f"handled {n}\n" in site.log(), f"handler call {count}")
