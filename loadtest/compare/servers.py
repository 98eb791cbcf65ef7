"""The servers that are compared, and how each is started with what its authors recommend for one process."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

APPS = Path(__file__).resolve().parent.parent / "apps"

# What --install takes. pyuwsgi is uWSGI as a wheel. bjoern needs libev's headers to build, FastWSGI libuv's.
PACKAGES = [
    "gunicorn",
    "granian",
    "bjoern",
    "fastwsgi",
    "fastpysgi",
    "pyuwsgi",
    "waitress",
    "django",
    "flask",
    "falcon",
]


@dataclass(frozen=True)
class Kind:
    """A server that can be started: {bin} the venv's commands, {port}, {app}, {module} and {name}, {tmp}."""

    title: str
    command: str
    # The package whose version is told; None for what is no package.
    package: str | None = None
    # CPUs of the server, when they are not those of the command line.
    cpus: str | None = None


KINDS = {
    "ringhorn": Kind("Ringhorn, io_uring", "{bin}/ringhorn -b 127.0.0.1:{port} -w 1 {app}", "ringhorn"),
    "ringhorn-epoll": Kind(
        "Ringhorn, epoll", "{bin}/ringhorn --io epoll -b 127.0.0.1:{port} -w 1 {app}", "ringhorn"
    ),
    "bjoern": Kind(
        "bjoern",
        "{bin}/python -c 'import bjoern, {module}; bjoern.run({module}.{name}, \"127.0.0.1\", {port})'",
        "bjoern",
    ),
    "fastwsgi": Kind(
        "FastWSGI",
        "{bin}/python -c 'import fastwsgi, {module}; fastwsgi.server.loglevel = 0; "
        'fastwsgi.run(wsgi_app={module}.{name}, host="127.0.0.1", port={port})\'',
        "fastwsgi",
    ),
    "fastpysgi": Kind(
        "fastpysgi",
        "{bin}/python -c 'import fastpysgi, {module}; fastpysgi.server.loglevel = 0; "
        'fastpysgi.run({module}.{name}, host="127.0.0.1", port={port})\'',
        "fastpysgi",
    ),
    "granian": Kind(
        "granian",
        "{bin}/granian --interface wsgi --host 127.0.0.1 --port {port} --workers 1 --no-ws {app}",
        "granian",
    ),
    # With its HTTP router: a socket of the worker itself (--http11-socket) serves as many connections as there are
    # threads, and lets the others wait.
    "uwsgi": Kind(
        "uWSGI, --http, 4 threads",
        "{bin}/{uwsgi} --http 127.0.0.1:{port} --http-keepalive --master --processes 1 --threads 4 --listen 1024 "
        "--disable-logging --die-on-term --need-app --lazy-apps --wsgi {module}:{name}",
        "pyuwsgi",
    ),
    "gthread": Kind(
        "gunicorn gthread, 4 threads",
        "{bin}/gunicorn --no-control-socket -b 127.0.0.1:{port} -k gthread --threads 4 {app}",
        "gunicorn",
    ),
    "sync": Kind("gunicorn sync", "{bin}/gunicorn --no-control-socket -b 127.0.0.1:{port} {app}", "gunicorn"),
    "waitress": Kind(
        "waitress", "{bin}/waitress-serve --listen=127.0.0.1:{port} --threads=4 {app}", "waitress"
    ),
    "ringhorn-1-thread": Kind(
        "Ringhorn, --threads 1", "{bin}/ringhorn -b 127.0.0.1:{port} -w 1 --threads 1 {app}", "ringhorn"
    ),
    "ringhorn-16-threads": Kind(
        "Ringhorn, --threads 16", "{bin}/ringhorn -b 127.0.0.1:{port} -w 1 --threads 16 {app}", "ringhorn"
    ),
    "ringhorn-2-workers": Kind(
        "Ringhorn, 2 workers on 2 CPUs",
        "{bin}/ringhorn -b 127.0.0.1:{port} -w 2 {app}",
        "ringhorn",
        cpus="{server_cpu},{load_cpu}",
    ),
    "gthread-64": Kind(
        "gunicorn gthread, 64 threads",
        "{bin}/gunicorn --no-control-socket -b 127.0.0.1:{port} -k gthread --threads 64 {app}",
        "gunicorn",
    ),
    "nginx": Kind("nginx, return 200", "nginx -c {tmp}/nginx-{port}.conf"),
    "floor": Kind("epoll, recv and send, no parsing", "{floor} 127.0.0.1:{port}"),
    "ringhorn-native": Kind("Ringhorn, native service", "{native}/ringhorn-demo -b 127.0.0.1:{port} -w 1"),
    "ringhorn-axum": Kind(
        "axum on Ringhorn", "{native_peers}/peer-ringhorn-axum --bind 127.0.0.1:{port} --workers 1"
    ),
    "axum": Kind("axum on hyper and tokio", "{native_peers}/peer-axum 127.0.0.1:{port}"),
    "ntex": Kind("ntex", "{native_peers}/peer-ntex 127.0.0.1:{port}"),
    "may": Kind("may_minihttp", "{native_peers}/peer-may 127.0.0.1:{port}"),
}

NGINX = """daemon off; master_process off; pid {tmp}/nginx-{port}.pid; error_log {tmp}/nginx-{port}.log;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {tmp}; proxy_temp_path {tmp};
  fastcgi_temp_path {tmp}; uwsgi_temp_path {tmp}; scgi_temp_path {tmp};
  server {{ listen 127.0.0.1:{port}; location / {{ default_type text/plain; return 200 "Hello, World!"; }} }} }}
"""


@dataclass
class Place:
    """Where things are found and run."""

    bin: Path
    # What cargo built of this project, and the native peers.
    native: Path
    native_peers: Path
    tmp: Path
    server_cpu: str
    load_cpu: str


@dataclass
class Server:
    """One server of one workload."""

    name: str
    kind: Kind
    port: int
    process: subprocess.Popen | None = None
    # Why it is not measured.
    missing: str = ""
    rounds: list[dict] = field(default_factory=list)
    memory: dict = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return not self.missing

    def start(self, app: str, place: Place, probe: str) -> None:
        """Starts it and waits until it answers `probe` (a path). What goes wrong is noted in `missing`."""
        module, _, name = app.partition(":")
        uwsgi = next((name for name in ("uwsgi", "pyuwsgi") if (place.bin / name).exists()), "uwsgi")
        words = shlex.split(
            self.kind.command.format(
                bin=place.bin,
                port=self.port,
                app=app,
                module=module,
                name=name,
                tmp=place.tmp,
                uwsgi=uwsgi,
                native=place.native,
                native_peers=place.native_peers,
                floor=next(iter(benches(place.native)), place.native / "floor"),
            )
        )
        program = words[0] if "/" in words[0] else shutil.which(words[0])
        if not program or not Path(program).exists():
            self.missing = f"{Path(words[0]).name} is not there"
            return
        (place.tmp / f"nginx-{self.port}.conf").write_text(NGINX.format(tmp=place.tmp, port=self.port))
        cpus = (self.kind.cpus or "{server_cpu}").format(server_cpu=place.server_cpu, load_cpu=place.load_cpu)
        log = place.tmp / f"{self.name}-{self.port}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GUNICORN")}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                ["taskset", "-c", cpus, *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=APPS,
                env={**environment, "PYTHONPATH": str(APPS), "PYTHONDONTWRITEBYTECODE": "1"},
            )
        status = 0
        until = time.monotonic() + 20
        while time.monotonic() < until and self.process.poll() is None:
            try:
                status = ask(self.port, probe)
            except OSError:
                time.sleep(0.05)
                continue
            if status == 200:
                return
            break
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it says nothing"]
        why = (
            f"answers {probe} with {status}"
            if status
            else f"does not start: {without_folders(last[0])[:100]}"
        )
        self.missing = why
        self.stop()

    def stop(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            pids = tree(self.process.pid)
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                for pid in pids:
                    try:
                        os.kill(pid, 9)
                    except OSError:
                        pass
                self.process.wait()
        self.process = None

    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds, tree(self.process.pid)))


def benches(native: Path) -> list[Path]:
    """The programs of the bench `floor`, the newest first: cargo puts a hash behind the name."""
    found = [file for file in native.glob("deps/floor-*") if not file.suffix]
    return sorted(found, key=lambda file: -file.stat().st_mtime)


def without_folders(text: str) -> str:
    """The text goes into documents, where this machine's folders mean nothing, and into a table."""
    return re.sub(r"/\S*/", "", text).replace("|", "/")


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def ask(port: int, path: str) -> int:
    """The status of the answer to a GET; OSError while there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = client.makefile("rb")
        line = answer.readline()
        if not line:
            raise ConnectionError("no answer")
        length = None
        while (field := answer.readline().strip()) != b"":
            name, _, value = field.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        # To the end, so that the server is not left with half an answer. Not all close when they are asked to.
        while length != 0 and (piece := answer.read(min(length or 1 << 20, 1 << 20))):
            length = length and length - len(piece)
    return int(line.split()[1])


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                todo += map(int, children.read_text().split())
            except OSError:
                pass
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, to the nanosecond: /proc/PID/stat has ticks only."""
    try:
        # How clock_getcpuclockid(3) names the clock of a process.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def memory(pid: int) -> dict:
    """Resident memory of the tree in MiB. PSS counts what processes share once; RSS in each of them."""
    kib = {"Rss": 0, "Pss": 0}
    for each in tree(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in kib:
                kib[name] += int(value.split()[0])
    return {name.lower(): amount / 1024 for name, amount in kib.items()}
