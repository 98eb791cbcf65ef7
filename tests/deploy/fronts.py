"""Front ends, started from the very files in deploy/ with other paths and ports, and clients that count."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import PATIENCE, ROOT, Client, wait_until

DEPLOY = ROOT / "deploy"
HOST = "shop.example"

# Through each front end. The short form is what CI has time for.
REQUESTS = 10_000 if os.environ.get("RINGHORN_DEPLOY_FULL") else 2_000


def need(program: str) -> str:
    """The path of a program; the test is skipped without it."""
    # Debian keeps some of them where not every user looks.
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def edited(name: str, *changes: tuple[str, str]) -> str:
    """The text of a file in deploy/ with these changes; each must find its place exactly once."""
    # Comments may show the same words.
    lines = (DEPLOY / name).read_text().splitlines()
    for old, new in changes:
        places = [i for i, line in enumerate(lines) if old in line and not line.lstrip().startswith("#")]
        assert len(places) == 1, f"{old!r} in {name}: lines {places}"
        lines[places[0]] = lines[places[0]].replace(old, new)
    return "\n".join(lines) + "\n"


def certificate(directory: Path) -> tuple[Path, Path]:
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
        + ["-keyout", str(key), "-out", str(cert)],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return cert, key


class Front:
    """A front end: its process, its port, and connections to it."""

    def __init__(self, command: list[str], directory: Path, port: int, authority: Path | None):
        self.port = port
        self.authority = authority
        self.log = directory / "front.log"
        env = os.environ | {
            "HOME": str(directory),
            "XDG_DATA_HOME": str(directory),
            "XDG_CONFIG_HOME": str(directory),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self.listens, f"{command[0]} listens:\n{self.log.read_text()}")
        except BaseException:
            self.stop()
            raise

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def client(self) -> Client:
        client = Client(("127.0.0.1", self.port))
        if self.authority is not None:
            context = ssl.create_default_context(cafile=self.authority)
            client.socket = context.wrap_socket(client.socket, server_hostname=HOST)
        return client

    def ask(self, target: str, *fields: str) -> dict:
        with self.client() as client:
            return client.ask(message("GET", target, *fields)).json()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def message(method: str, target: str, *fields: str, body: bytes = b"") -> bytes:
    head = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", *fields]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


@contextlib.contextmanager
def running(front: Front) -> Iterator[Front]:
    try:
        yield front
    finally:
        front.stop()


def nginx(directory: Path, upstream: object) -> Front:
    program = need("nginx")
    port, (cert, key) = free_port(), certificate(directory)
    server = f"unix:{upstream}" if isinstance(upstream, str) else f"127.0.0.1:{upstream[1]}"
    site = edited(
        "nginx.conf",
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("server 127.0.0.1:8000", f"server {server}"),
        ("/etc/ssl/shop/cert.pem", str(cert)),
        ("/etc/ssl/shop/key.pem", str(key)),
    )
    (directory / "site.conf").write_text(site)
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {directory}/{name};\n" for name in paths)
    # What Debian's own nginx.conf says around such a file. Its directory belongs to this user.
    user = "user root;\n" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(
        f"{user}daemon off;\npid {directory}/nginx.pid;\nerror_log stderr;\nworker_processes 2;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}include {directory}/site.conf;\n}}\n"
    )
    command = [program, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]
    return Front(command, directory, port, cert)


def caddy(directory: Path, upstream: object) -> Front:
    program = need("caddy")
    port, (cert, key) = free_port(), certificate(directory)
    server = f"unix/{upstream}" if isinstance(upstream, str) else f"127.0.0.1:{upstream[1]}"
    site = edited(
        "Caddyfile",
        (f"{HOST} {{", f"https://{HOST}:{port} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}"),
        ("127.0.0.1:8000", server),
    )
    # No port for redirects and none for administration, which other tests would want as well.
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
    file = directory / "Caddyfile"
    file.write_text(options + site)
    return Front([program, "run", "--config", str(file), "--adapter", "caddyfile"], directory, port, cert)


def haproxy(directory: Path, *upstreams: object) -> Front:
    program = need("haproxy")
    port, (cert, key) = free_port(), certificate(directory)
    both = directory / "both.pem"
    both.write_text(cert.read_text() + key.read_text())
    # With one server the second line goes away.
    places = ["127.0.0.1:8001", "127.0.0.1:8002"]
    changes = [
        (f"server app{i + 1} {place}", f"server app{i + 1} {haproxy_address(upstream)}")
        for i, (place, upstream) in enumerate(zip(places, upstreams, strict=False))
    ]
    changes += [
        (f"server app{i + 1} {place}", "# none") for i, place in enumerate(places) if i >= len(upstreams)
    ]
    text = edited(
        "haproxy.cfg",
        ("bind :443 ssl crt /etc/haproxy/shop.pem", f"bind 127.0.0.1:{port} ssl crt {both}"),
        *changes,
    )
    file = directory / "haproxy.cfg"
    file.write_text(text)
    return Front([program, "-db", "-f", str(file)], directory, port, cert)


def haproxy_tcp(directory: Path, upstream: object) -> Front:
    program, port = need("haproxy"), free_port()
    text = edited(
        "haproxy-tcp.cfg",
        ("bind :80", f"bind 127.0.0.1:{port}"),
        ("127.0.0.1:8000", haproxy_address(upstream)),
    )
    file = directory / "haproxy.cfg"
    file.write_text(text)
    return Front([program, "-db", "-f", str(file)], directory, port, None)


def haproxy_address(upstream: object) -> str:
    return f"unix@{upstream}" if isinstance(upstream, str) else f"127.0.0.1:{upstream[1]}"


class Visitors:
    """Threads that ask through a front end, on kept connections; every tenth request is an upload.

    Anything but the right answer is a failure. A connection may end only after an answer that announces it.
    """

    def __init__(self, front: Front, count: int | None, threads: int = 8):
        self.front = front
        self.left = count
        self.answered = 0
        self.failures: list[str] = []
        self.done = threading.Event()
        self.lock = threading.Lock()
        self.counts = [0] * threads
        self.threads = [threading.Thread(target=self.visit, args=(i,)) for i in range(threads)]

    def __enter__(self) -> Visitors:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()

    def join(self) -> None:
        for thread in self.threads:
            thread.join()

    def until(self, count: int) -> None:
        end = time.monotonic() + 6 * PATIENCE
        while self.answered < count and not self.failures:
            assert time.monotonic() < end, f"{self.answered} of {count}"
            self.done.wait(0.01)
        self.check()

    def check(self) -> None:
        assert not self.failures, f"{len(self.failures)} of {self.answered}: {self.failures[:5]}"

    def next(self) -> bool:
        with self.lock:
            if self.done.is_set() or self.left == 0:
                return False
            self.left = None if self.left is None else self.left - 1
            return True

    def visit(self, index: int) -> None:
        number = 0
        client = None
        while self.next():
            number += 1
            self.counts[index] = number
            try:
                client = client or self.front.client()
                upload = number % 10 == 0
                client.send(
                    message("POST", "/echo", body=b"hello" * 100) if upload else message("GET", "/plain")
                )
                answer = client.read_response()
                assert answer.status == 200, answer
                assert not upload or answer.body == b"hello" * 100
                with self.lock:
                    self.answered += 1
                if (answer.field("connection") or "").lower() == "close":
                    client.close()
                    client = None
            except (AssertionError, OSError) as lost:
                self.failures.append(repr(lost))
                client = None
        if client is not None:
            client.close()
