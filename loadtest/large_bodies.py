"""A large upload read in pieces, and a large streamed response: how much the worker's memory grows.

python loadtest/large_bodies.py [--mib 1024] [--io uring|epoll]
"""

from __future__ import annotations

import sys
import threading
import time

from server import Worker, arguments, show, worker

MIB = 1024 * 1024
GROWTH_MAX = 16 * MIB


class Peak:
    """The largest resident memory while it watches."""

    def __init__(self, site: Worker):
        self.site = site
        self.before = self.largest = site.memory().resident
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.done.wait(0.02):
            self.largest = max(self.largest, self.site.memory().resident)

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.largest = max(self.largest, self.site.memory().resident)

    @property
    def growth(self) -> int:
        return self.largest - self.before


def upload(site: Worker, count: int, chunked: bool) -> None:
    piece = bytes(MIB)
    with site.connect() as client:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % count
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n\r\n")
        for _ in range(count // MIB):
            client.sendall(b"%x\r\n%s\r\n" % (MIB, piece) if chunked else piece)
        if chunked:
            client.sendall(b"0\r\n\r\n")
        answer = client.recv(4096)
        assert answer.endswith(b"\r\n\r\n%d" % count), answer


def download(site: Worker, count: int, pause: float) -> None:
    """With a pause now and then, the client is the slower one."""
    buffer = bytearray(MIB)
    with site.connect() as client:
        client.sendall(b"GET /stream/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % count)
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        left = count - len(head.partition(b"\r\n\r\n")[2])
        rounds = 0
        while left:
            got = client.recv_into(buffer, min(left, len(buffer)))
            assert got, f"{left} bytes are missing"
            left -= got
            rounds += 1
            if pause and rounds % 100 == 0:
                time.sleep(pause)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    options = parser.parse_args()
    count = options.mib * MIB
    runs = {
        "upload with a length": lambda site: upload(site, count, chunked=False),
        "upload, chunked": lambda site: upload(site, count, chunked=True),
        "streamed response": lambda site: download(site, count, 0),
        "streamed response, client slower": lambda site: download(site, count, 0.01),
    }
    met = True
    for name, run in runs.items():
        with worker(options, "--threads", "4") as site:
            upload(site, MIB, chunked=False)
            download(site, MIB, 0)
            with Peak(site) as peak:
                begin = time.monotonic()
                run(site)
                seconds = time.monotonic() - begin
            met &= show(f"{name}: growth", peak.growth / MIB, "MiB", GROWTH_MAX / MIB)
            show(f"{name}: speed", options.mib / seconds, "MiB/s")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
