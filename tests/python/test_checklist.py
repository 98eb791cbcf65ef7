"""What people have in Procfiles, Dockerfiles and units: each line under gunicorn and under Ringhorn.

Only the word changes. Compared are what the application sees, the access lines, the lines of the error log that
people look for, exit codes, and the files that are left behind. Where the two differ, docs/compatibility.md says so.
"""

import ast
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gunicorn.config
import pytest

import harness
from harness import Client, request, wait_until

pytestmark = pytest.mark.ringhorn_only

SERVERS = ("gunicorn", "ringhorn")

APP = """
import json, os, sys, threading

with open(os.environ.get("IMPORTS", os.devnull), "a") as imports:
    imports.write(f"{os.getpid()}\\n")


def create_app(name="default", debug=None):
    def app(environ, start_response):
        body = environ["wsgi.input"].read()
        told = {k: v for k, v in environ.items() if isinstance(v, str)}
        told |= {k: v for k, v in environ.items() if k.startswith("wsgi.") and isinstance(v, (bool, tuple))}
        told["body"] = body.decode("latin-1")
        told["made"] = [name, debug]
        told["process"] = {
            "uid": os.geteuid(), "gid": os.getegid(), "cwd": os.getcwd(), "pid": os.getpid(),
            "environment": {k: os.environ.get(k) for k in ("DJANGO_SETTINGS_MODULE", "A", "FOO")},
            "path": [p for p in sys.path if p.startswith(os.environ.get("PROJECT", "?"))],
        }
        if environ["PATH_INFO"] == "/print":
            print("printed by the application", flush=True)
        if environ["PATH_INFO"] == "/fail":
            raise RuntimeError("on purpose")
        text = json.dumps(told).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
        return [text]
    return app


app = application = create_app()
"""

# What tells servers, processes and connections apart; and what docs/compatibility.md names.
OWN = {"SERVER_SOFTWARE", "SERVER_PORT", "REMOTE_PORT", "HTTP_HOST", "wsgi.multithread", "wsgi.multiprocess"}

# What scripts look for, in the order in which one process says it.
LINES = (
    r"Starting \w+ [\d.]+",
    r"Listening at: .*",
    r"Using worker: \w+",
    r"Booting worker with pid: \d+",
    r"Handling signal: \w+",
    r"Autorestarting worker after current request\.",
    r"Worker exiting \(pid: \d+\)",
    r"Shutting down: Master",
    r"Error handling request .*",
    r"WORKER TIMEOUT \(pid:\d+\)",
    r"Invalid request from ip=[^:]*:",
)


@dataclass
class Told:
    """What one server made of a command."""

    environs: list[dict] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    access: list[str] = field(default_factory=list)
    code: int | None = None
    files: set[str] = field(default_factory=set)


def kinds(log: str) -> list[str]:
    """The lines people look for, with their level, without what differs from run to run."""
    found = []
    for line in log.splitlines():
        match = re.match(r"\[[^]]+ [+-]\d{4}\] \[\d+\] \[(\w+)\] (.*)", line)
        for pattern in LINES:
            if match and re.fullmatch(f"{pattern}.*", match[2]):
                text = re.match(pattern, match[2])[0]
                text = re.sub(r"(?<=pid: )\d+|(?<=pid:)\d+|(?<=:)\d{2,}|\(\d+\)", "N", text)
                text = re.sub(r"(Starting|Using worker:) .*", r"\1", text)
                found.append(f"{match[1]} {text}")
    return found


class Run:
    """A server started with a command line of the check list, in a directory of its own."""

    def __init__(self, name: str, root: Path, args: list[str], env: dict[str, str], inside: list[str]):
        self.name = name
        self.project, self.out = root / "project", root / "out"
        self.env = harness.clean_environment({"PROJECT": str(self.project), **env})
        self.command = [*inside, sys.executable, "-m", name, *args]
        self.unlogged = {path.name for path in self.project.iterdir()}
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.project,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.told = Told()

    def text(self) -> str:
        logs = [self.out, *self.project.glob("*.log")]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def addresses(self) -> list[harness.Address]:
        return harness.Server.addresses.fget(self)

    # For `addresses`.
    def log(self) -> str:
        return self.text()

    def wait(self, binds: int = 1, workers: int | None = None) -> None:
        wait_until(lambda: len(self.addresses()) >= binds or self.ended(), "the server listens")
        assert not self.ended(), self.text()
        if workers is not None:
            wait_until(lambda: self.text().count("Booting worker") == workers, f"{workers} workers")

    def ended(self) -> bool:
        return self.process.poll() is not None

    def ask(self, data: bytes | None = None, at: int = 0) -> harness.Response:
        address = self.addresses()[at]
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        if isinstance(address, tuple):
            address = (everywhere.get(address[0], address[0]), address[1])
        if isinstance(address, str):
            address = str(self.project / address)
        with Client(address) as client:
            answer = client.ask(data or request("GET", "/environ?a=b", "X-Asked: for"))
        if answer.status == 200:
            self.told.environs.append(json.loads(answer.body))
        return answer

    def term(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def finish(self) -> Told:
        try:
            self.told.code = self.process.wait(harness.PATIENCE)
        finally:
            self.kill()
        text = self.text()
        self.told.lines = kinds(text)
        self.told.files = {path.name for path in self.project.rglob("*")} - self.unlogged - {"__pycache__"}
        return self.told

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def both(tmp_path, io) -> Iterator[Callable]:
    """Runs one command under both servers, with `ask` between the start and TERM."""
    runs: list[Run] = []

    def run(
        args: list[str],
        ask: Callable[[Run], None] = Run.ask,
        *,
        env: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        bind: bool = True,
        workers: int | None = 1,
        binds: int = 1,
        stop: bool = True,
        inside: list[str] | None = None,
    ) -> tuple[Told, Told]:
        told = []
        for name in SERVERS:
            root = tmp_path / name / str(len(runs))
            project = root / "project"
            (project / "mysite").mkdir(parents=True)
            (project / "app.py").write_text(APP)
            (project / "mysite" / "__init__.py").touch()
            (project / "mysite" / "wsgi.py").write_text("from app import application\n")
            for path, text in (files or {}).items():
                (project / path).parent.mkdir(parents=True, exist_ok=True)
                (project / path).write_text(text)
            own = ["--io", io] if name == "ringhorn" else ["--no-control-socket"]
            listen = ["-b", "127.0.0.1:0"] if bind else []
            # gunicorn has one worker by default, and one thread; who says a number says it to both.
            count = ["-w", "1"] if workers == 1 and "-w" not in args and bind else []
            server = Run(name, root, [*own, *listen, *count, *args], env or {}, inside or [])
            runs.append(server)
            if stop:
                server.wait(binds, workers)
                ask(server)
                server.term()
            told.append(server.finish())
        return told[0], told[1]

    yield run
    for server in runs:
        server.kill()


def visible(environ: dict) -> dict:
    environ = {name: value for name, value in environ.items() if name not in OWN}
    environ["process"] = environ["process"] | {
        "pid": None,
        "cwd": None,
        "path": len(environ["process"]["path"]),
    }
    return environ


def assert_same(theirs: Told, ours: Told, *, lines: bool = True) -> None:
    assert ours.code == theirs.code == 0
    assert [visible(e) for e in ours.environs] == [visible(e) for e in theirs.environs]
    if lines:
        # Of several processes each says its lines in order, and none waits for another.
        assert sorted(ours.lines) == sorted(theirs.lines)
        assert ours.lines[-1] == theirs.lines[-1] == "INFO Shutting down: Master"
    assert ours.files == theirs.files


# --- command lines

LOGGED = ["--error-logfile", "-", "--log-level", "info"]

COMMANDS = {
    "1 the application": (["app:app"], {}),
    "2 a module": (["mysite.wsgi"], {}),
    "3 a factory": (["app:create_app()"], {}),
    "3 a factory with arguments": (["app:create_app('prod', debug=False)"], {}),
    "4 workers": (["-w", "2", "app:app"], {"workers": 2}),
    "4 any address": (["-b", ":0", "-w", "1", "app:app"], {"bind": False}),
    "4 two addresses": (["-b", "127.0.0.1:0", "app:app"], {"binds": 2}),
    "4 two different addresses": (
        ["-b", "127.0.0.2:0", "-b", "127.0.0.1:0", "-w", "1", "app:app"],
        {"bind": False, "binds": 2},
    ),
    "4 a file and an address": (
        ["-b", "unix:app.sock", "-b", "127.0.0.1:0", "-w", "1", "app:app"],
        {"bind": False, "binds": 2},
    ),
    "5 Heroku": (
        ["mysite.wsgi", "--log-file", "-"],
        {"env": {"PORT": "0", "WEB_CONCURRENCY": "2"}, "bind": False, "workers": 2},
    ),
    "7 threads in a container": (
        ["-k", "gthread", "--threads", "8", "--workers", "2", "--worker-tmp-dir", "/dev/shm", "--log-file=-"]
        + ["app:app"],
        {"workers": 2},
    ),
    "8 threads": (["--threads", "4", "app:app"], {}),
    "8 sync": (["-k", "sync", "app:app"], {}),
    "11 times": (["--timeout", "120", "--graceful-timeout", "30", "--keep-alive", "75", "app:app"], {}),
    "11 no timeout": (["--timeout", "0", "app:app"], {}),
    "14 reload": (
        ["--reload", "--reload-extra-file", "templates/x.html", "app:app"],
        {"files": {"templates/x.html": "x"}},
    ),
    "17 proxies": (
        ["--forwarded-allow-ips=*", "--proxy-allow-from=*", "--proxy-protocol", "auto", "app:app"],
        {},
    ),
    "17 a bare switch": (["--proxy-protocol", "--preload", "app:app"], {}),
    "22 limits": (
        ["--limit-request-line", "8190", "--limit-request-field_size", "16380"]
        + ["--limit-request-fields", "200", "app:app"],
        {},
    ),
    "25 switches": (
        # Not --reuse-port: gunicorn then does not say where it listens.
        ["--no-control-socket", "--no-sendfile", "--backlog", "4096", "app:app"],
        {},
    ),
    "26 in the environment": (
        ["app:app"],
        {
            "env": {"GUNICORN_CMD_ARGS": "--bind=127.0.0.1:0 --workers=2 -e FOO=bar"},
            "bind": False,
            "workers": 2,
        },
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_does_the_same(both, name):
    args, options = COMMANDS[name]

    def ask(server: Run) -> None:
        for at in range(options.get("binds", 1)):
            server.ask(at=at)
        server.ask(request("POST", "/post%20it?x=%41", "Content-Type: text/plain", body=b"hello"))
        assert server.ask(request("GET", "/fail")).status == 500
        assert server.ask(b"NONSENSE\r\n\r\n").status == 400

    theirs, ours = both(args, ask, **options)
    assert_same(theirs, ours)
    assert any("Error handling request" in line for line in ours.lines)


def test_4_every_address_of_both_families(both):
    """`[::]` also serves clients that come over IPv4. They have the address that they have anywhere else."""
    missing = harness.ipv6_missing()
    if missing:
        pytest.skip(missing)

    def ask(server: Run) -> None:
        server.ask(request("GET", "/six"))
        with Client(("127.0.0.1", server.addresses()[0][1])) as client:
            server.told.environs.append(client.get("/four").json())
        pattern = r'(\S+) - - \[[^]]+\] "GET /(six|four)'
        wait_until(lambda: len(re.findall(pattern, server.text())) == 2, "two access lines")
        server.told.access = re.findall(pattern, server.text())

    theirs, ours = both(["-b", "[::]:0", "-w", "1", "--access-logfile", "-", "app:app"], ask, bind=False)
    assert [environ.pop("REMOTE_ADDR") for environ in theirs.environs] == ["::1", "::ffff:127.0.0.1"]
    assert [environ.pop("REMOTE_ADDR") for environ in ours.environs] == ["::1", "127.0.0.1"]
    assert_same(theirs, ours)
    assert theirs.access == [("::1", "six"), ("::ffff:127.0.0.1", "four")]
    assert ours.access == [("::1", "six"), ("127.0.0.1", "four")]


def open_to_all(path: Path) -> None:
    """pytest's directories are their owner's alone."""
    for directory in [path, *list(path.parents)[:2]]:
        directory.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_6_a_unix_socket_and_another_user(both, tmp_path):
    """The file's mode and owner, and who runs the application."""
    open_to_all(tmp_path)
    seen = {}

    def ask(server: Run) -> None:
        server.ask()
        stat = os.stat(server.project / server.addresses()[0])
        seen.setdefault("socket", []).append((oct(stat.st_mode), stat.st_uid, stat.st_gid))

    # Preloaded, since not everybody may read the Python that runs these tests. gunicorn's worker seeds `random`,
    # which imports more of it the first time.
    args = ["--bind", "unix:app.sock", "--umask", "007", "--user", "nobody", "--group", "nogroup", "-w", "1"]
    args += ["--preload", "--config", "early.py", "app:app"]
    theirs, ours = both(
        args, ask, bind=False, workers=None, files={"early.py": "import random; random.seed(b'')"}
    )
    assert_same(theirs, ours, lines=False)
    assert seen["socket"][0] == seen["socket"][1]
    assert ours.environs[0]["process"]["uid"] == 65534
    assert "app.sock" not in ours.files


@pytest.mark.parametrize(
    "args",
    [
        ["-k", "gevent", "--worker-connections", "1000", "app:app"],
        ["-k", "uvicorn.workers.UvicornWorker", "main:app"],
        ["-k", "uvicorn_worker.UvicornWorker", "main:app"],
    ],
)
def test_9_and_10_workers_of_others_end_the_start(both, args):
    """gunicorn lacks the package here, Ringhorn the worker: exit code 1, and the log says what to do."""
    theirs, ours = both(args, stop=False)
    assert (theirs.code, ours.code) == (1, 1)


def test_12_max_requests(both):
    def ask(server: Run) -> None:
        pids = set()
        end = time.monotonic() + harness.PATIENCE
        while len(pids) < 3 and time.monotonic() < end:
            with contextlib.suppress(OSError, AssertionError):
                server.ask(request("GET", "/", "Connection: close"))
                pids.add(server.told.environs.pop()["process"]["pid"])
        assert len(pids) >= 3

    args = ["--max-requests", "5", "--max-requests-jitter", "2", "--threads", "2", "app:app"]
    theirs, ours = both(args, ask)
    assert (theirs.code, ours.code) == (0, 0)
    wanted = "INFO Autorestarting worker after current request."
    assert wanted in theirs.lines
    assert wanted in ours.lines


def test_13_preload_imports_once_in_the_master(both, tmp_path):
    imports = tmp_path / "imports"
    seen = []

    def ask(server: Run) -> None:
        server.ask()
        seen.append([int(line) for line in imports.read_text().split()] == [server.process.pid])
        imports.unlink()

    theirs, ours = both(["--preload", "-w", "2", "app:app"], ask, workers=2, env={"IMPORTS": str(imports)})
    assert_same(theirs, ours)
    assert seen == [True, True]


def test_14_reload_as_another_user(both, tmp_path):
    """Started by root, served by nobody, who loads the application and loads it again when it has changed."""
    missing = harness.spaces_missing()
    if missing:
        pytest.skip(missing)
    open_to_all(tmp_path)

    def ask(server: Run) -> None:
        server.ask()
        if server.name == "ringhorn":
            pid = server.process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            titles = [Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") for pid in (pid, *children)]
            assert titles == [b"ringhorn: master [app:app]", b"ringhorn: worker [app:app]"]
        # Another length, so that the change shows whatever the clock of the file system is worth. And again, because
        # gunicorn takes what it finds at its first look for the unchanged file, and that look may come late.
        written = 0.0

        def changed() -> bool:
            nonlocal written
            if time.monotonic() - written > 3:
                written = time.monotonic()
                (server.project / "app.py").write_text(APP.replace('name="default"', 'name="changed since"'))
            with contextlib.suppress(OSError, AssertionError):
                server.ask(request("GET", "/changed", "Connection: close"))
            return server.told.environs[-1]["made"][0] == "changed since"

        wait_until(changed, "the changed application answers")
        server.told.environs = [server.told.environs[0], server.told.environs[-1]]

    inside = ["unshare", "--mount", "sh", "-c", harness.open_python_to_all() + '\nexec "$@"', "sh"]
    args = ["--reload", "--user", "nobody", "--group", "nogroup", "-w", "1", "app:app"]
    theirs, ours = both(args, ask, inside=inside, workers=None)
    assert_same(theirs, ours, lines=False)
    assert [environ["process"]["uid"] for environ in ours.environs] == [65534, 65534]


def test_15_logs_to_the_terminal(both):
    def ask(server: Run) -> None:
        server.ask(request("GET", "/print?x", "User-Agent: me", "Referer: there"))
        wait_until(lambda: "printed by the application" in server.text(), "what the application prints")
        pattern = r'127\.0\.0\.1 - - \[[^]]+\] "GET /print\?x HTTP/1\.1" 200 \d+ "there" "me"'
        wait_until(lambda: re.search(pattern, server.text()), "the access line")

    args = ["--access-logfile", "-", "--error-logfile", "-", "--log-level", "debug", "--capture-output"]
    theirs, ours = both([*args, "app:app"], ask)
    assert_same(theirs, ours, lines=False)


@pytest.mark.parametrize("more", ["", " %({raw_uri}e)s %({wsgi.url_scheme}e)s %({none}e)s"])
def test_16_a_format_of_ones_own(both, more):
    form = (
        '%(h)s "%(r)s" %(s)s %({x-forwarded-for}i)s %({content-type}o)s %(m)s %(U)s %(q)s %(H)s %(u)s' + more
    )

    def ask(server: Run) -> None:
        server.ask(request("GET", "/a%20b?c=d", "X-Forwarded-For: 1.2.3.4", "Authorization: Basic YTpi"))
        server.ask(request("POST", "/post", body=b"x"))
        pattern = r'127\.0\.0\.1 "(GET|POST) .*'
        wait_until(lambda: len(list(re.finditer(pattern, server.text()))) == 2, "two lines")
        server.told.access = [match[0] for match in re.finditer(pattern, server.text())]

    theirs, ours = both(["--access-logformat", form, "--access-logfile", "-", "app:app"], ask)
    assert_same(theirs, ours)
    assert ours.access == theirs.access


@pytest.mark.parametrize(
    ("args", "files"),
    [
        (["--certfile", "c.pem", "--keyfile", "k.pem", "app:app"], {"c.pem": "", "k.pem": ""}),
        (["app:app"], {"gunicorn.conf.py": "def ssl_context(config, default): return default()\n"}),
    ],
)
def test_18_and_35_tls_is_refused_by_name(tmp_path, io, args, files):
    for path, text in {"app.py": APP, **files}.items():
        (tmp_path / path).write_text(text)
    code, text = harness.run_to_end([sys.executable, "-m", "ringhorn", "--io", io], *args, cwd=tmp_path)
    assert code == 1
    assert re.search(r"^error: (certfile|ssl_context) ", text, re.MULTILINE)
    assert "hint:" in text


def test_19_where_code_and_environment_come_from(both, tmp_path):
    service = tmp_path / "service"
    for name in ("lib", "more"):
        (service / name).mkdir(parents=True)
    (service / "p").mkdir()
    (service / "p" / "__init__.py").touch()
    (service / "p" / "wsgi.py").write_text(APP)
    args = ["--chdir", str(service), "--pythonpath", f"{service}/lib,{service}/more"]
    args += ["-e", "DJANGO_SETTINGS_MODULE=p.settings", "-e", "A=B", "p.wsgi"]
    theirs, ours = both(args, env={"PROJECT": str(service)})
    assert_same(theirs, ours)
    found = [told.environs[0]["process"] for told in (theirs, ours)]
    assert found[0]["cwd"] == found[1]["cwd"] == str(service)
    assert found[0]["path"] == found[1]["path"]
    assert found[1]["environment"] == {"DJANGO_SETTINGS_MODULE": "p.settings", "A": "B", "FOO": None}


def test_20_in_the_background(both):
    """The command returns at once with 0; the pidfile names the master, and TERM to it leaves nothing behind."""

    def gone(pid: int) -> bool:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        return True

    left = []
    for_both = ["--pid", "app.pid", "--daemon", "--name", "myapp", "--error-logfile", "err.log", "app:app"]

    def background(server: Run) -> None:
        assert server.process.wait(harness.PATIENCE) == 0
        wait_until(lambda: len(server.addresses()) == 1, "it listens")
        server.ask()
        pid = int((server.project / "app.pid").read_text())
        assert (server.project / "app.pid").read_bytes() == b"%d\n" % pid
        assert oct((server.project / "app.pid").stat().st_mode)[-3:] == "644"
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: gone(pid), "it ends")
        left.append({path.name for path in server.project.iterdir()} - server.unlogged - {"__pycache__"})

    # `Run.wait` would take the end of the command for the end of the server.
    original = Run.wait
    Run.wait = lambda self, *args, **kwargs: None
    try:
        theirs, ours = both(for_both, background)
    finally:
        Run.wait = original
    assert left == [{"err.log"}, {"err.log"}]
    assert (theirs.code, ours.code) == (0, 0)
    assert sorted(ours.lines) == sorted(theirs.lines)


def test_21_statsd(both):
    """The names, types and tags of the metrics of one request; values differ."""
    found = []

    def metrics(received: list[bytes]) -> set[str]:
        lines = [line for data in received for line in data.decode().splitlines()]
        return {re.sub(r":[\d.]+\|", ":N|", line) for line in lines}

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(harness.PATIENCE)

        def ask(server: Run) -> None:
            server.ask()
            received: list[bytes] = []
            wanted = {"duration", "requests:", "status.200", "workers", "backlog"}
            while not all(any(name.encode() in data for data in received) for name in wanted):
                received.append(statsd.recv(4096))
            found.append(metrics(received))

        host = f"127.0.0.1:{statsd.getsockname()[1]}"
        args = ["--statsd-host", host, "--statsd-prefix", "svc", "--dogstatsd-tags", "env:prod"]
        theirs, ours = both([*args, "--enable-backlog-metric", "app:app"], ask)
    assert_same(theirs, ours, lines=False)
    assert found[0] == found[1]


INI = """
[loggers]
keys=root, gunicorn.error, gunicorn.access
[handlers]
keys=console
[formatters]
keys=short
[logger_root]
level=INFO
handlers=console
[logger_gunicorn.error]
level=INFO
handlers=console
propagate=0
qualname=gunicorn.error
[logger_gunicorn.access]
level=INFO
handlers=console
propagate=0
qualname=gunicorn.access
[handler_console]
class=StreamHandler
formatter=short
args=(sys.stdout, )
[formatter_short]
format=SHORT %(name)s %(levelname)s %(message)s
"""

JSON = {
    "version": 1,
    "formatters": {"short": {"format": "SHORT %(name)s %(levelname)s %(message)s"}},
    "handlers": {
        "out": {"class": "logging.StreamHandler", "formatter": "short", "stream": "ext://sys.stdout"}
    },
    "loggers": {
        name: {"level": "INFO", "handlers": ["out"], "propagate": False}
        for name in ("gunicorn.error", "gunicorn.access")
    },
    "root": {"level": "INFO", "handlers": []},
}


@pytest.mark.parametrize("form", ["ini", "json"])
def test_23_logs_configured_in_a_file(both, form):
    def short(server: Run) -> list[str]:
        lines = [line for line in server.text().splitlines() if line.startswith("SHORT")]
        lines = [re.sub(r"\d\d+|\S+ uring|epoll", "N", line) for line in lines]
        return [line for line in lines if re.search("Listening|Booting|gunicorn.access", line)]

    def ask(server: Run) -> None:
        server.ask(request("GET", "/logged", "User-Agent: me"))
        wait_until(lambda: "SHORT gunicorn.access INFO 127.0.0.1" in server.text(), "the access line")
        server.told.access = sorted(set(short(server)))

    option = ["--log-config", "logging.conf"] if form == "ini" else ["--log-config-json", "logging.json"]
    files = {"logging.conf": INI, "logging.json": json.dumps(JSON)}
    theirs, ours = both([*option, "app:app"], ask, files=files)
    assert_same(theirs, ours, lines=False)
    assert len(ours.access) == 3
    assert [re.sub("[Nn]", "", line)[:40] for line in ours.access] == [
        re.sub("[Nn]", "", line)[:40] for line in theirs.access
    ]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--check-config", "app:app"], 0),
        (["--check-config", "nothing:app"], 1),
        (["--check-config", "app:missing"], 1),
        (["--print-config", "app:app"], 0),
        (["--version"], 0),
        (["-h"], 0),
        ([], 1),
        (["--no-such-option", "app:app"], 2),
        (["-w", "two", "app:app"], 2),
        (["-c", "missing.py", "app:app"], 1),
        (["--chdir", "/missing", "app:app"], 1),
        (["nothing:app"], 3),
        (["app:missing"], 4),
        (["app:create_app("], 4),
        (["app:APP"], 4),
        (["--preload", "nothing:app"], 1),
        (["--pid", "/missing/dir/pid", "app:app"], 1),
        (["--user", "nobody-of-this-name", "app:app"], 1),
    ],
)
def test_24_exit_codes(both, args, code):
    theirs, ours = both(args, stop=False, bind=False, workers=None)
    assert theirs.code == code
    assert ours.code == code
    assert ours.files == theirs.files


def test_24_the_version_is_where_scripts_look_for_it(io):
    """A word, and the number in parentheses, on standard output."""
    told = [harness.run_to_end([sys.executable, "-m", name], "--version") for name in SERVERS]
    for (code, text), name in zip(told, SERVERS, strict=True):
        assert code == 0
        assert re.fullmatch(rf"{name} \(version \d+\.\d+\.\d+\S*\)\n", text)


def test_all_defaults_are_gunicorns_but_for_those_that_are_documented(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    code, text = harness.run_to_end(
        [sys.executable, "-m", "ringhorn"], "--print-config", "app:app", cwd=tmp_path
    )
    assert code == 0, text
    found = re.findall(r"^(\w+) += (.*?) +# default", text, re.MULTILINE)
    ours = {name: ast.literal_eval(value) for name, value in found}
    theirs = {name: setting.get() for name, setting in gunicorn.config.Config().settings.items()}
    # Where nobody chose, gunicorn fills in what is so anyway, or what nobody reads.
    filled_in = {"chdir", "config", "group", "logger_class", "ssl_version", "user"}
    other = {
        name
        for name, value in ours.items()
        if name in theirs and not callable(theirs[name]) and value != theirs[name]
    } - filled_in
    page = (harness.ROOT / "docs" / "compatibility.md").read_text()
    documented = page.partition("Seven have another default:")[2].partition("(")[0]
    assert len(other) == 7
    assert other == set(re.findall(r"`(\w+)`", documented))


# --- config files

CONF = """
import multiprocessing
bind = "127.0.0.1:0"
wsgi_app = "app:app"
workers = multiprocessing.cpu_count() * 0 + 2
raw_env = ["A=B", "FOO=bar"]
keyfile = None
certfile = None
worker_tmp_dir = None
tmp_upload_dir = None
umask = 0
user = None
group = None
errorlog = "-"
accesslog = None
proc_name = None
my_own_name = 5
"""


@pytest.mark.parametrize(
    ("args", "place"),
    [
        ([], "gunicorn.conf.py"),
        (["-c", "settings/g.py"], "settings/g.py"),
        (["-c", "file:settings/g.py"], "settings/g.py"),
        (["-c", "python:settings.g"], "settings/g.py"),
    ],
)
def test_27_28_and_34_a_config_file_alone(both, args, place):
    files = {place: CONF, "settings/__init__.py": ""}
    theirs, ours = both(args, bind=False, workers=2, files=files)
    assert_same(theirs, ours)
    assert ours.environs[0]["process"]["environment"] == {
        "DJANGO_SETTINGS_MODULE": None,
        "A": "B",
        "FOO": "bar",
    }


HOOKS = """
import os
bind = "127.0.0.1:0"
workers = 1
threads = 2
wsgi_app = "app:app"

def note(text):
    with open("hooks.txt", "a") as file:
        file.write(text + "\\n")

def when_ready(server): server.log.info("Server is ready. Spawning workers"); note("when_ready")
def pre_fork(server, worker): note(f"pre_fork {worker.age}")
def post_fork(server, worker): server.log.info("Worker spawned (pid: %s)", worker.pid); note("post_fork")
def post_worker_init(worker): note("post_worker_init")
def pre_request(worker, req):
    worker.log.debug("%s %s", req.method, req.path)
    req.number = req.req_number
    note(f"pre_request {req.method} {req.path} {req.req_number}")
def post_request(worker, req, environ, resp):
    note(f"post_request {req.number} {resp.status} {environ['PATH_INFO']}")
def child_exit(server, worker): note(f"child_exit {worker.age} {isinstance(worker.pid, int)}")
def worker_exit(server, worker): note(f"worker_exit {worker.nr}")
def on_exit(server): note("on_exit")
"""


def test_29_30_and_31_hooks(both):
    hooks = []

    def ask(server: Run) -> None:
        noted = server.project / "hooks.txt"
        with Client(server.addresses()[0]) as client:
            for number, target in enumerate(("/first", "/second"), 1):
                server.told.environs.append(client.get(target).json())
                # The client has its answer before the hook runs, and another thread may take what it asks next.
                wait_until(
                    lambda wanted=f"post_request {number}": wanted in noted.read_text(), "post_request"
                )
        server.term()
        server.process.wait(harness.PATIENCE)
        assert "[INFO] Server is ready. Spawning workers" in server.text()
        assert re.search(r"\[INFO\] Worker spawned \(pid: \d+\)", server.text())
        hooks.append((server.project / "hooks.txt").read_text().splitlines())

    theirs, ours = both([], ask, bind=False, workers=1, files={"gunicorn.conf.py": HOOKS})
    assert_same(theirs, ours)
    assert hooks[1] == hooks[0]
    assert hooks[1][-1] == "on_exit"


# --- what runs it


def test_39_behind_a_proxy_at_a_unix_socket(both):
    """What nginx sends by default, and with connections kept; whoever can write to the file is trusted."""
    line = r'(.*) - - \[[^]]+\] ("(?:GET|POST) /(?:old|kept).*)'

    def ask(server: Run) -> None:
        told = ("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "X-Real-IP: 192.0.2.1")
        old = request("GET", "/old", *told, "Connection: close", version="HTTP/1.0")
        server.ask(old.replace(b"Host: localhost", b"Host: shop.example:8443"))
        wait_until(lambda: re.search(line, server.text()), "its access line")
        with Client(str(server.project / "app.sock")) as client:
            for _ in range(2):
                server.told.environs.append(client.ask(request("POST", "/kept", *told, body=b"a=b")).json())
        wait_until(lambda: len(re.findall(line, server.text())) == 3, "three access lines")
        server.told.access = re.findall(line, server.text())

    args = ["--bind", "unix:app.sock", "--access-logfile", "-", "--threads", "2", "-w", "1", "app:app"]
    theirs, ours = both(args, ask, bind=False)
    assert_same(theirs, ours)
    for environ, other in zip(ours.environs, theirs.environs, strict=True):
        assert environ["wsgi.url_scheme"] == "https"
        assert environ["SERVER_PORT"] == other["SERVER_PORT"]
    assert {host for host, _ in theirs.access} == {""}
    assert {host for host, _ in ours.access} == {"-"}
    # The length of the body is that of the application's answer, which has the server's name in it.
    shown = [[re.sub(r' \d+ (?=")', " ", rest) for _, rest in told.access] for told in (theirs, ours)]
    assert shown[1] == shown[0]


ORPHANS = """
import errno, json, os, subprocess

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    # The shell ends at once, and what it started becomes a child of process 1.
    subprocess.run(["sh", "-c", "sleep 0.1 >/dev/null 2>&1 &"], check=True)
    try:
        open("written", "w").close()
        error = None
    except OSError as failure:
        error = errno.errorcode[failure.errno]
    told = {"error": error, "uid": os.getuid(), "length": len(body), "parent": os.getppid()}
    start_response("200 OK", [])
    return [json.dumps(told).encode()]
"""


@pytest.mark.parametrize("user", ["root", "nobody"])
@pytest.mark.parametrize("name", SERVERS)
def test_36_as_process_1_of_a_container(io, tmp_path, name, user):
    """As the first process, with nothing to write to but /dev/shm: orphans are reaped, TERM ends it with 0."""
    missing = harness.spaces_missing()
    if missing:
        pytest.skip(missing)
    open_to_all(tmp_path)
    project = tmp_path / "project"
    project.mkdir(mode=0o777)
    project.chmod(0o777)
    (project / "app.py").write_text(ORPHANS)
    own = ["--io", io] if name == "ringhorn" else ["--no-control-socket"]
    command = [sys.executable, "-m", name, *own, "--bind", "127.0.0.1:0", "-w", "1"]
    command += ["--worker-tmp-dir", "/dev/shm", "app:app"]
    if user != "root":
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    closed = f"""{harness.open_python_to_all()}
        mount --bind {project} {project}
        mount -o remount,ro,bind {project}
        mount -o remount,ro,bind /
        cd {project}
        exec "$@"
    """
    log = tmp_path / "log"
    spaces = [
        "unshare",
        "--pid",
        "--mount",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        closed,
        "sh",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*spaces, *command],
            cwd=project,
            env=harness.clean_environment({"HOME": "/nonexistent"}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def children(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    try:
        wait_until(lambda: "Booting worker" in log.read_text() or process.poll() is not None, "it serves")
        assert process.poll() is None, log.read_text()
        port = re.search(r"Listening at: \S+:(\d+) \(1\)", log.read_text())
        assert port, log.read_text()
        master = children(process.pid)[0]
        with Client(("127.0.0.1", int(port[1]))) as client:
            told = client.ask(request("POST", "/", body=b"x" * 3_000_000)).json()
        assert told == {
            "error": "EROFS",
            "uid": 0 if user == "root" else 65534,
            "length": 3_000_000,
            "parent": 1,
        }
        wait_until(lambda: len(children(master)) == 1, "the orphan is reaped, and the worker is left")
        os.kill(master, signal.SIGTERM)
        assert process.wait(harness.PATIENCE) == 0
        assert "Shutting down: Master" in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
