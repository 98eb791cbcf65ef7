"""A server started as a user starts it, and a client that reads exact bytes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
APPS = HERE / "apps"

# Longest wait for anything, in seconds. It is never waited out when the server is right.
PATIENCE = 20.0

Address = tuple[str, int] | str


def wait_until(ready: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Ask `ready` until it says yes; fail with `what` when it never does."""
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience:.0f} s in vain: {what}")
        time.sleep(0.01)


def stop_process(pid: int) -> None:
    """SIGSTOP, and wait until every thread stands still: until then one may go on to accept."""
    os.kill(pid, signal.SIGSTOP)

    def stopped() -> bool:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    wait_until(stopped, f"{pid} is stopped")


def uring_missing() -> str | None:
    """Why io_uring cannot serve on this machine, found without asking the server."""
    numbers = re.findall(r"\d+", platform.release())
    if tuple(map(int, numbers[:2])) < (6, 1):
        return f"Linux {platform.release()} is older than 6.1"
    libc = ctypes.CDLL(None, use_errno=True)
    io_uring_setup = 425
    fd = libc.syscall(io_uring_setup, 2, ctypes.create_string_buffer(120))
    if fd < 0:
        return f"io_uring_setup: {errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno())}"
    os.close(fd)
    return None


def ipv6_missing() -> str | None:
    """Why nobody can be served over IPv6 on this machine."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        return f"no IPv6: {error}"
    return None


def spaces_missing() -> str | None:
    """Why processes cannot be given their own view of processes and mounts here."""
    if os.geteuid() != 0:
        return "only root can make namespaces"
    made = subprocess.run(
        ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "true"], capture_output=True
    )
    return f"namespaces cannot be made here: {made.stderr.decode()}" if made.returncode else None


def open_python_to_all() -> str:
    """Shell commands for a mount namespace of one's own in which every user may read this Python.

    A Python in root's home is out of everybody else's reach. There the closed directory is covered with an open one
    that holds nothing but the Python.
    """
    lines = ["set -e"]
    held: dict[Path, str] = {}
    for path in dict.fromkeys(Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)):
        closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & stat.S_IXOTH]
        if not closed:
            continue
        if closed[0] not in held:
            number = 9 - len(held)
            held[closed[0]] = f"/proc/self/fd/{number}"
            lines += [f"exec {number}<{closed[0]}", f"mount -t tmpfs -o mode=755 tmpfs {closed[0]}"]
        lines += [
            f"mkdir -p {path}",
            f"mount --no-canonicalize --bind {held[closed[0]]}/{path.relative_to(closed[0])} {path}",
        ]
    return "\n".join(lines)


# --- messages


def request(method: str, target: str, *fields: str, body: bytes = b"", version: str = "HTTP/1.1") -> bytes:
    """A well-formed request: Host, and Content-Length when there is a body."""
    lines = [f"{method} {target} {version}", "Host: localhost", *fields]
    if body and not any(field.lower().startswith("content-length:") for field in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(target: str, pieces: Sequence[bytes], *fields: str) -> bytes:
    """A POST with a chunked body, one chunk for each piece."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    lines = [f"POST {target} HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


class CutOff(AssertionError):
    """The connection ended inside a response; `head` and `body` are what came."""

    def __init__(self, head: bytes, body: bytes):
        super().__init__(f"the connection ended inside a response: {head!r} {body[:200]!r}")
        self.head = head
        self.body = body


@dataclass
class Response:
    version: str
    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes
    framing: str
    """How the end of the body was told: `none`, `length`, `chunked` or `close`."""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def field(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name} more than once: {self.fields}"
        return values[0] if values else None

    def json(self) -> dict:
        assert self.status == 200, self
        return json.loads(self.body)


class Client:
    """One connection. Reads responses by their framing, strictly, and never a byte too many."""

    status_line = re.compile(r"(HTTP/1\.[01]) (\d{3}) ?(.*)")

    def __init__(self, address: Address, timeout: float = PATIENCE, receive_buffer: int | None = None):
        family = socket.AF_UNIX
        if not isinstance(address, str):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        if family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.held = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes) -> Response:
        self.send(data)
        return self.read_response(head=data.startswith(b"HEAD "))

    def get(self, target: str, *fields: str) -> Response:
        return self.ask(request("GET", target, *fields))

    def read_response(self, head: bool = False) -> Response:
        text = self._read_past(b"\r\n\r\n")
        assert text.endswith(b"\r\n\r\n"), f"no whole response head: {text!r}"
        lines = text[:-4].decode("latin-1").split("\r\n")
        match = self.status_line.fullmatch(lines[0])
        assert match, f"not a status line: {lines[0]!r}"
        fields = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            assert colon and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name), f"not a field: {line!r}"
            fields.append((name, value.strip(" \t")))
        answer = Response(match[1], int(match[2]), match[3], fields, b"", "none")
        coding, length = answer.field("transfer-encoding"), answer.field("content-length")
        if head or answer.status in (204, 304) or answer.status < 200:
            return answer
        try:
            if coding is not None:
                assert coding == "chunked" and length is None, f"framing: {fields}"
                answer.framing = "chunked"
                self._read_chunks(answer)
            elif length is not None:
                answer.framing = "length"
                answer.body = self._read_exactly(int(length))
            else:
                answer.framing = "close"
                answer.body = self.read_to_end()
        except CutOff as cut:
            raise CutOff(text, answer.body + cut.body) from None
        return answer

    def read_to_end(self) -> bytes:
        """All bytes until the server closes."""
        while self._receive():
            pass
        data, self.held = self.held, b""
        return data

    def wait_for(self, text: bytes) -> None:
        """Receive until `text` is here; it stays to be read."""
        while text not in self.held:
            assert self._receive(), f"closed before {text!r}: {self.held[:200]!r}"

    def assert_closed(self) -> None:
        """The server closes without another byte; a reset counts."""
        with contextlib.suppress(ConnectionResetError):
            self._receive()
        assert self.held == b"", f"bytes nobody asked for: {self.held[:200]!r}"

    def _receive(self) -> bool:
        data = self.socket.recv(256 * 1024)
        self.held += data
        return bool(data)

    def _read_past(self, end: bytes) -> bytes:
        while end not in self.held:
            if not self._receive():
                break
        before, found, self.held = self.held.partition(end)
        return before + found

    def _read_exactly(self, count: int) -> bytes:
        pieces = [self.held[:count]]
        self.held = self.held[count:]
        left = count - len(pieces[0])
        while left:
            data = b""
            with contextlib.suppress(ConnectionResetError):
                data = self.socket.recv(min(left, 1 << 20))
            if not data:
                raise CutOff(b"", b"".join(pieces))
            pieces.append(data)
            left -= len(data)
        return b"".join(pieces)

    def _read_chunks(self, answer: Response) -> None:
        pieces: list[bytes] = []
        try:
            while True:
                line = self._read_past(b"\r\n")
                if not line.endswith(b"\r\n"):
                    raise CutOff(b"", line)
                assert re.fullmatch(rb"[0-9A-Fa-f]+\r\n", line), f"not a chunk size: {line!r}"
                size = int(line, 16)
                piece = self._read_exactly(size + 2)
                assert piece.endswith(b"\r\n"), f"chunk without its line end: {piece[-20:]!r}"
                if size == 0:
                    return
                pieces.append(piece[:-2])
        finally:
            answer.body = b"".join(pieces)


# --- the server


class Server:
    """A server process with its log, from its start to its checked end."""

    def __init__(
        self,
        command: Sequence[str],
        args: Sequence[str],
        *,
        log: Path,
        cwd: Path = APPS,
        env: Mapping[str, str] | None = None,
        ready: str | None = "/",
        listening_in: Path | None = None,
        cpus: set[int] | None = None,
        binds: int = 0,
    ):
        # `listening_in` is the server's own log when its arguments send it to a file; `binds` is how many addresses
        # its config file names.
        self.log_path = listening_in or log
        # What it must end with; a test that kills the master says so here.
        self.exit_code = 0
        self.binds = binds or sum(arg.startswith(("-b", "--bind")) for arg in args)
        if self.binds == 0:
            self.binds = 1
            args = ["--bind", "127.0.0.1:0", *args]
        pinned = ["taskset", "--cpu-list", ",".join(map(str, cpus))] if cpus else []
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*pinned, *command, *args],
                cwd=cwd,
                env=clean_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(lambda: self._listening() or self.ended(), "the server says where it listens")
            assert not self.ended(), f"the server ended with {self.process.returncode}:\n{self.log()}"
            if ready is not None:
                self.get(ready, "Connection: close")
        except BaseException:
            self.kill()
            raise

    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""

    def ended(self) -> bool:
        return self.process.poll() is not None

    def _listening(self) -> bool:
        return len(self.addresses) >= self.binds

    @property
    def addresses(self) -> list[Address]:
        """Every address that the log tells, in its order."""
        found: list[Address] = []
        for line in re.findall(r"Listening at: (.*)", self.log()):
            for text in re.findall(r"unix:[^\s,]+|https?://[^\s,]+:\d+", line):
                if text.startswith("unix:"):
                    found.append(text.removeprefix("unix:"))
                else:
                    host, _, port = text.partition("://")[2].rpartition(":")
                    found.append((host.strip("[]"), int(port)))
        return found

    @property
    def address(self) -> Address:
        return self.addresses[0]

    @property
    def port(self) -> int:
        return self.address[1]

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def client(self, **options) -> Client:
        return Client(self.address, **options)

    def ask(self, data: bytes) -> Response:
        """One message on a connection of its own."""
        with self.client() as client:
            return client.ask(data)

    def get(self, target: str, *fields: str) -> Response:
        return self.ask(request("GET", target, *fields))

    def children(self) -> list[int]:
        """The process ids of the master's children."""
        pid = self.process.pid
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def workers(self, count: int) -> list[int]:
        """The process ids of the workers, once there are `count` of them."""
        wait_until(lambda: len(self.children()) == count, f"{count} workers")
        return self.children()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit code, once the server has ended by itself."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server does not end:\n{self.log()}") from None

    def kill(self) -> None:
        """End everything that belongs to this server, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop it as an operator does, and look at what it says at the end."""
        try:
            if not self.ended():
                self.signal(signal.SIGTERM)
            code = self.wait()
            assert code == self.exit_code, f"exit code {code}:\n{self.log()}"
            assert "panicked" not in self.log(), self.log()
        finally:
            self.kill()


def run_to_end(
    command: Sequence[str],
    *args: object,
    cwd: Path = APPS,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run a command that ends by itself; its exit code and all that it printed."""
    done = subprocess.run(
        [*command, *map(str, args)],
        cwd=cwd,
        env=clean_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert "panicked" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would configure a server by the way."""
    names = ("PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "SENDFILE", "SCRIPT_NAME")
    env = {k: v for k, v in os.environ.items() if k not in names and not k.endswith("_CMD_ARGS")}
    return env | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"} | dict(extra or {})


@contextlib.contextmanager
def serving(start: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """Hands out `start` and stops, with all checks, whatever it started."""
    with contextlib.ExitStack() as stack:

        def start_and_keep(*args: str, **options) -> Server:
            server = start(*args, **options)
            stack.callback(server.stop)
            return server

        yield start_and_keep
