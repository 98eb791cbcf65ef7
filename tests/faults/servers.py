"""The servers that the scenarios run against: how each is started, and what can be asked of its processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .clients import Answer, Connection, Lost, message, wait

APPS = Path(__file__).resolve().parent / "apps"
ROOT = APPS.parent.parent.parent

KINDS = ("ringhorn", "ringhorn-demo", "gunicorn-sync", "gunicorn-gthread", "granian")

# Seconds that a server may take to answer its first request.
BOOT = 20.0


class NotOffered(Exception):
    """The server does not have what the scenario is about; the text says what."""


class NotStarted(Exception):
    """The server did not come up; the text is its log."""


@dataclass
class Kind:
    """A server and how it is called."""

    name: str
    io: str | None = None
    command: list[str] = field(default_factory=list)

    @property
    def is_ringhorn(self) -> bool:
        return self.name.startswith("ringhorn")

    @property
    def is_native(self) -> bool:
        """Serves no Python application, but has paths of its own for most of what one is asked for."""
        return self.name == "ringhorn-demo"

    @property
    def is_gunicorn(self) -> bool:
        return self.name.startswith("gunicorn")

    @property
    def label(self) -> str:
        return f"{self.name} ({self.io})" if self.io else self.name

    def arguments(self, port: int, settings: Settings) -> list[str]:
        if self.name == "granian":
            return self._granian(port, settings)
        args = ["--bind", f"127.0.0.1:{port}"] if settings.bind else []
        args += ["--workers", str(settings.workers)]
        if self.is_ringhorn:
            args += ["--io", self.io or "auto"]
            if not self.is_native:
                args += ["--threads", str(settings.threads)]
        else:
            args += ["--no-control-socket", "-k", self.name.removeprefix("gunicorn-")]
            if self.name == "gunicorn-gthread":
                args += ["--threads", str(settings.threads)]
        for option, value in (
            ("--timeout", settings.timeout),
            ("--graceful-timeout", settings.graceful_timeout),
            ("--max-requests", settings.max_requests),
            ("--pid", settings.pidfile),
            ("--access-logfile", settings.access_log),
            ("--error-logfile", settings.error_log),
            ("--user", settings.user),
            ("--group", settings.group),
            ("--worker-connections", settings.connections),
        ):
            if value is not None:
                args += [option, str(value)]
        return [*args, *settings.more.get("ringhorn" if self.is_ringhorn else "gunicorn", ())]

    def _granian(self, port: int, settings: Settings) -> list[str]:
        args = ["--interface", "wsgi", "--http", "1", "--port", str(port), "--workers", str(settings.workers)]
        # With its defaults a crashed worker ends the server.
        args += ["--blocking-threads", str(settings.threads), "--respawn-failed-workers"]
        if settings.graceful_timeout is not None:
            args += ["--workers-kill-timeout", str(int(settings.graceful_timeout))]
        if settings.pidfile:
            args += ["--pid-file", str(settings.pidfile)]
        if settings.access_log:
            args += ["--access-log"]
        for name in ("max_requests", "user", "error_log"):
            if getattr(settings, name) is not None:
                raise NotOffered(f"no setting like {name}")
        if settings.access_log not in (None, "-"):
            raise NotOffered("no access log in a file of its own")
        return [*args, *settings.more.get("granian", ())]


@dataclass
class Settings:
    """What the scenarios set, in gunicorn's words; None is the server's default."""

    workers: int = 2
    threads: int = 4
    timeout: float | None = None
    graceful_timeout: float | None = None
    max_requests: int | None = None
    pidfile: Path | None = None
    access_log: str | None = None
    error_log: str | None = None
    user: str | None = None
    group: str | None = None
    connections: int | None = None
    bind: bool = True
    more: dict[str, list[str]] = field(default_factory=dict)
    """Arguments of one kind of server only: `ringhorn`, `gunicorn` or `granian`."""


def free_port() -> int:
    """Below the range that the kernel gives to clients, so that none of them takes it meanwhile."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def write_release(folder: Path, version: str, before: str = "") -> None:
    """The module that servers load: it notes each import in a file, runs `before`, and tells its version."""
    aside = folder / "release.aside"
    aside.write_text(
        "import os\n"
        f"with open({str(folder / 'imports')!r}, 'a') as imports:\n"
        f"    imports.write('%d {version}\\n' % os.getpid())\n"
        f"{before}\n"
        "from faults_app import application, told\n"
        f"told['version'] = {version!r}\n"
    )
    # At once, because a worker may be reading it.
    aside.replace(folder / "release.py")


class Site:
    """A server that is running, with its folder, where the application's release lies."""

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        settings: Settings,
        *,
        env: dict[str, str] | None = None,
        port: int | None = None,
        descriptors: int | None = None,
        before_exec: Callable[[], None] | None = None,
        wait_for_answer: bool = True,
        stdout: int | None = None,
    ):
        self.kind = kind
        self.folder = folder
        self.settings = settings
        self.port = port or free_port()
        self.address = ("127.0.0.1", self.port)
        self.log_path = folder / f"{self.port}.log"
        if not (folder / "release.py").exists():
            self.release("first")

        def prepare() -> None:
            if descriptors:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
            if before_exec:
                before_exec()

        command = [*kind.command, *kind.arguments(self.port, settings)]
        if not kind.is_native:
            command.append("release:application")
        with self.log_path.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=self._environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=out,
                start_new_session=True,
                preexec_fn=prepare,
            )
        self.pid = self.process.pid
        if wait_for_answer:
            try:
                # All of them: a worker that boots later would be taken for a replacement.
                up = wait(lambda: self.ended() or self._up(), BOOT)
                if not up or self.ended():
                    raise NotStarted(f"{shlex.join(command)}\n{self.log()}")
            except BaseException:
                self.kill()
                raise

    def _environment(self, extra: dict[str, str] | None) -> dict[str, str]:
        names = ("PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "SENDFILE", "SCRIPT_NAME", "PYTHONPATH")
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in names and not name.endswith("_CMD_ARGS") and not name.startswith("GRANIAN_")
        }
        paths = os.pathsep.join([str(self.folder), str(APPS)])
        return env | {
            "PYTHONPATH": paths,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "FAULTS_FOLDER": str(self.folder),
            "RINGHORN_DEMO_STATIC": str(self.folder),
            **(extra or {}),
        }

    def _up(self) -> bool:
        if self.boots() < self.settings.workers:
            return False
        with contextlib.suppress(Lost):
            return self.get("/").status == 200
        return False

    # --- the application

    def release(self, version: str, before: str = "") -> None:
        """Puts another version of the application there; `before` runs when it is imported."""
        write_release(self.folder, version, before)

    def imports(self, version: str | None = None) -> list[str]:
        """The processes that began to import the application, or this version of it."""
        with contextlib.suppress(FileNotFoundError):
            lines = [line.split() for line in (self.folder / "imports").read_text().splitlines()]
            return [line[0] for line in lines if version is None or line[1:] == [version]]
        return []

    def boots(self) -> int:
        """How many workers have begun to boot."""
        return self.log().count("Booting worker") if self.kind.is_native else len(self.imports())

    def target(self, path: str) -> str:
        """What a native server has in the place of the application's `path`."""
        if not self.kind.is_native:
            return path
        name, _, rest = path.strip("/").partition("/")
        if name in ("body", "stream"):
            size = int(rest) * (65536 if name == "stream" else 1)
            file = self.folder / f"{size}.bin"
            if not file.exists():
                file.write_bytes(b"x" * size)
            return f"/static/{file.name}"
        return {"upload": "/echo", "varied": "/json", "busy": "/plaintext"}.get(name, path)

    def gate(self, name: str) -> Gate:
        """A request for /gate/NAME waits in the application until this gate is opened."""
        return Gate(self.folder / name)

    # --- clients

    def connect(self, timeout: float = 10.0, **options) -> Connection:
        return Connection(self.address, timeout, **options)

    def get(self, target: str, timeout: float = 10.0) -> Answer:
        with self.connect(timeout) as connection:
            return connection.get(target, "Connection: close")

    def get_kept(self, target: str) -> Answer:
        """Asks without announcing the end of the connection."""
        with self.connect() as connection:
            return connection.get(target)

    def post(self, target: str, body: bytes, timeout: float = 30.0) -> Answer:
        with self.connect(timeout) as connection:
            connection.send(message(target, "Connection: close", method="POST", body=body))
            return connection.read()

    # --- processes

    def ended(self) -> bool:
        return self.process.poll() is not None

    def log(self) -> str:
        paths = [self.log_path]
        if self.settings.error_log not in (None, "-"):
            paths.append(Path(self.settings.error_log))
        return "".join(path.read_text(errors="replace") for path in paths if path.is_file())

    def workers(self, master: int | None = None) -> list[int]:
        """The worker processes. Zombies are none, nor is what multiprocessing keeps beside granian's."""
        found = []
        for pid in children(master or self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if alive(pid) and b"resource_tracker" not in line:
                    found.append(pid)
        return found

    def signal(self, number: int) -> None:
        if not self.ended():
            self.process.send_signal(number)

    def end(self, patience: float) -> int | None:
        """The exit code, once the server has ended by itself; None when it does not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(patience)
        return None

    def kill(self) -> None:
        """Ends everything that belongs to this server, whatever state it is in."""
        left = [self.pid, *children(self.pid)]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in left[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    # --- resources

    def resident(self) -> int:
        """RSS of all workers, in bytes."""
        return sum(int(status_of(pid).get("VmRSS", "0 kB").split()[0]) * 1024 for pid in self.workers())

    def peak(self) -> int:
        """The largest that each worker was since `forget_peak`, summed, in bytes."""
        return sum(int(status_of(pid).get("VmHWM", "0 kB").split()[0]) * 1024 for pid in self.workers())

    def forget_peak(self) -> None:
        for pid in self.workers():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def descriptors(self) -> int:
        count = 0
        for pid in self.workers():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                count += len(os.listdir(f"/proc/{pid}/fd"))
        return count

    def cpu(self) -> float:
        """Seconds of CPU that the master and the workers have used."""
        ticks = 0
        for pid in [self.pid, *self.workers()]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def cpu_share(self, seconds: float) -> float:
        """CPUs in use over the next `seconds`."""
        before = self.cpu()
        time.sleep(seconds)
        return (self.cpu() - before) / seconds


class Gate:
    """A file that the application waits for."""

    def __init__(self, path: Path):
        self.path = path

    def begun(self) -> int:
        """How many requests have come to the gate."""
        with contextlib.suppress(FileNotFoundError):
            return len(self.path.with_suffix(".begun").read_text().split())
        return 0

    def pids(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            return list(map(int, self.path.with_suffix(".begun").read_text().split()))
        return []

    def open(self) -> None:
        self.path.touch()


def find(name: str, io: str | None, peers: Path | None, command: str | None = None) -> Kind:
    """The server of this name. Others than Ringhorn are looked for in `peers`, a folder with programs."""
    if name == "ringhorn-demo":
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        built = [path for path in (target / "release" / name, target / "quick" / name) if path.exists()]
        if not built:
            raise NotOffered(f"build it: cargo build --release --bin {name}")
        return Kind(name, io or "auto", [str(built[0])])
    if name == "ringhorn":
        return Kind(
            name, io or "auto", shlex.split(command) if command else [sys.executable, "-m", "ringhorn"]
        )
    program = "gunicorn" if name.startswith("gunicorn") else name
    place = (peers or Path(sys.executable).parent) / program
    if not place.exists():
        raise NotOffered(f"{program} is not in {place.parent}: name its folder with --peers")
    return Kind(name, None, [str(place)])


def uring_missing() -> bool:
    """Whether io_uring cannot serve on this machine: the kernel is too old, or forbids it."""
    if tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 1):
        return True
    io_uring_setup = 425
    fd = ctypes.CDLL(None).syscall(io_uring_setup, 2, ctypes.create_string_buffer(120))
    if fd >= 0:
        os.close(fd)
    return fd < 0


def version_of(kind: Kind) -> str:
    done = subprocess.run([*kind.command, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+\S*", done.stdout + done.stderr)
    return found[0] if found else "?"
