"""Slow clients of three kinds at once, and what a healthy client notices of them.

    python loadtest/slow_clients.py [--each 1000] [--io uring|epoll]

`head` clients send a request head byte by byte, `body` clients a request body, `reader` clients take a
download byte by byte. Then all of them fall silent, and each must be closed at its deadline.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import time

from server import Worker, arguments, raise_descriptors, show, worker

HEADER_TIMEOUT = 20.0
OTHER_TIMEOUT = 5.0
# A client is closed with the tick of the wheel after its deadline, and this script looks now and then.
LATE_MAX = 1.0
BYTES_EACH_MAX = 32 * 1024
P99_FACTOR_MAX = 2.0
REQUESTS = 3000
HELLO = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def healthy(host: str, port: int, count: int) -> None:
    """Run as a process of its own: one connection, one request after the other."""
    client = socket.create_connection((host, port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        client.sendall(HELLO)
        answer = client.recv(4096)
        times.append(time.perf_counter() - begin)
        assert answer.endswith(b"hello\n"), answer
    times.sort()
    print(json.dumps({"p50": times[count // 2] * 1e6, "p99": times[count * 99 // 100] * 1e6}))


class Healthy:
    def __init__(self, site: Worker):
        host, port = site.address
        command = [sys.executable, __file__, "--healthy", host, str(port), str(REQUESTS)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def running(self) -> bool:
        return self.process.poll() is None

    def result(self) -> dict[str, float]:
        out, _ = self.process.communicate(timeout=120)
        return json.loads(out)


KINDS = {
    "head": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", None),
    "body": (
        b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000,
        None,
    ),
    "reader": (b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n", 4096),
}


def drip(kind: str, client: socket.socket) -> None:
    """One byte on; an error is found when the end is waited for."""
    with contextlib.suppress(OSError):
        if kind == "reader":
            client.recv(1, socket.MSG_DONTWAIT)
        else:
            client.send(b"x", socket.MSG_DONTWAIT)


def wait_for_ends(clients: dict[int, tuple[str, socket.socket]], patience: float) -> dict[str, list[float]]:
    """When the server closed each of them, as seconds of the monotonic clock."""
    ends: dict[str, list[float]] = {kind: [] for kind in KINDS}
    poll = select.poll()
    for fd, (kind, _) in clients.items():
        # A reader still has bytes to read: only the end of the connection counts.
        poll.register(fd, select.POLLIN if kind != "reader" else select.POLLRDHUP)
    waiting = set(clients)
    give_up = time.monotonic() + patience
    while waiting and time.monotonic() < give_up:
        for fd, _ in poll.poll(200):
            kind, client = clients[fd]
            ends[kind].append(time.monotonic())
            poll.unregister(fd)
            waiting.discard(fd)
            client.close()
    return ends


def measure(options) -> bool:
    settings = [
        *("--header-timeout", str(HEADER_TIMEOUT)),
        *("--body-timeout", str(OTHER_TIMEOUT)),
        *("--response-timeout", str(OTHER_TIMEOUT)),
        *("--linger-timeout", "1", "--threads", str(options.threads)),
    ]
    met = True
    with worker(options, *settings) as site:
        Healthy(site).result()
        calm = Healthy(site).result()
        before = site.memory()
        clients: dict[int, tuple[str, socket.socket]] = {}
        for kind, (first, receive_buffer) in KINDS.items():
            for _ in range(options.each):
                client = site.connect(receive_buffer)
                client.sendall(first)
                clients[client.fileno()] = (kind, client)
        site.wait_for_sockets(len(clients))
        begun = time.monotonic()
        test = Healthy(site)
        largest = site.memory().own
        while test.running():
            round_begun = time.monotonic()
            for kind, client in clients.values():
                drip(kind, client)
            largest = max(largest, site.memory().own)
            time.sleep(max(0.0, 0.5 - (time.monotonic() - round_begun)))
        disturbed = test.result()
        silent = time.monotonic()

        print(f"{options.each} slow clients of each kind: {', '.join(KINDS)}; threads: {options.threads}")
        for name in ("p50", "p99"):
            show(f"healthy client alone, {name}", calm[name], "us")
        show("healthy client among them, p50", disturbed["p50"], "us")
        met &= show("healthy client among them, p99", disturbed["p99"], "us", calm["p99"] * P99_FACTOR_MAX)
        each = (largest - before.own) / len(clients)
        met &= show("memory for each slow client, PSS", each, "bytes", BYTES_EACH_MAX)

        ends = wait_for_ends(clients, HEADER_TIMEOUT + 10)
        for kind, times in ends.items():
            # The deadline of a head is counted from its first byte, the others from the last progress.
            since, timeout = (begun, HEADER_TIMEOUT) if kind == "head" else (silent, OTHER_TIMEOUT)
            if len(times) < options.each:
                print(f"{kind} clients: {options.each - len(times)} were never closed: MISSED")
                met = False
            if times:
                last = max(times) - since
                met &= show(f"{kind} clients closed after, the last", last, "s", timeout + LATE_MAX)
        after = Healthy(site).result()
        show("healthy client afterwards, p99", after["p99"], "us")
    return met


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--each", type=int, default=1000, help="slow clients of each kind")
    parser.add_argument("--threads", type=int, default=64, help="runner threads, at most")
    parser.add_argument("--healthy", nargs=3, help="used by this script itself")
    options = parser.parse_args()
    if options.healthy:
        host, port, count = options.healthy
        healthy(host, int(port), int(count))
        return 0
    raise_descriptors(3 * options.each + 1000)
    return 0 if measure(options) else 1


if __name__ == "__main__":
    sys.exit(main())
