"""Starts the server that a script of loadtest/ measures, with one worker, and reads the worker's memory."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

APPS = Path(__file__).resolve().parent / "apps"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What all scripts have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--io", choices=["auto", "uring", "epoll"], default="auto", help="I/O backend")
    parser.add_argument(
        "--command", default=f"{sys.executable} -m ringhorn", help="the server's command, without arguments"
    )
    return parser


@dataclass
class Memory:
    """Of one process, in bytes."""

    resident: int
    """RSS."""
    own: int
    """PSS: pages that are shared with other processes count by their share."""


@dataclass
class Worker:
    pid: int
    address: tuple[str, int]

    def connect(self, receive_buffer: int | None = None, source: str = "127.0.0.1") -> socket.socket:
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.bind((source, 0))
        client.settimeout(60)
        client.connect(self.address)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def memory(self) -> Memory:
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        size = {name: int(kib) * 1024 for name, kib in re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.M)}
        return Memory(resident=size["Rss"], own=size["Pss"])

    def sockets(self) -> int:
        count = 0
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += os.readlink(fd).startswith("socket:")
        return count

    def wait_for_sockets(self, count: int) -> None:
        wait_until(lambda: self.sockets() >= count, f"the worker has {count} sockets")


def wait_until(ready, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.01)


def raise_descriptors(wanted: int) -> None:
    """For this process and the server that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < wanted:
            sys.exit(f"needs {wanted} open files, and may have {hard}: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


@contextlib.contextmanager
def worker(options: argparse.Namespace, *settings: str) -> Iterator[Worker]:
    """One worker that serves apps/bodies.py."""
    command = [*shlex.split(options.command), "--io", options.io, "--bind", "127.0.0.1:0", "--workers", "1"]
    with tempfile.NamedTemporaryFile("r") as log:
        process = subprocess.Popen(
            [*command, *settings, "--error-logfile", log.name, "bodies:app"], cwd=APPS, start_new_session=True
        )
        try:
            address = None

            def listening() -> bool:
                nonlocal address
                address = re.search(r"Listening at: http://([\d.]+):(\d+)", Path(log.name).read_text())
                return bool(address) or process.poll() is not None

            wait_until(listening, "the server listens")
            if address is None:
                sys.exit(f"the server ended:\n{Path(log.name).read_text()}")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            wait_until(lambda: children.read_text().split(), "the worker is there")
            site = Worker(int(children.read_text().split()[0]), (address[1], int(address[2])))
            backend = re.compile(r"I/O backend: (\S+)|serving with (\w+)")
            wait_until(lambda: backend.search(Path(log.name).read_text()), "it tells its backend")
            found = backend.search(Path(log.name).read_text())
            print(f"backend: {found[1] or found[2]}")
            yield site
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def show(name: str, value: float, unit: str, mark: float | None = None) -> bool:
    """Prints one number, with its mark if it has one. Returns whether it is met."""
    met = mark is None or value <= mark
    told = "" if mark is None else f"   (at most {mark:g}{'' if met else ': MISSED'})"
    print(f"{name:<52} {value:>10.2f} {unit}{told}")
    return met
