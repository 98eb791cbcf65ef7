"""Idle keep-alive connections: bytes of the worker's memory for each.

python loadtest/idle.py [--connections 10000] [--io uring|epoll]
"""

from __future__ import annotations

import sys

from server import arguments, raise_descriptors, show, wait_until, worker

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: idle/1\r\nAccept: */*\r\n\r\n"
BYTES_EACH_MAX = 1024


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    options = parser.parse_args()
    count = options.connections
    raise_descriptors(count + 1000)
    with worker(options, "--keep-alive", "300", "--first-byte-timeout", "300") as site:
        # What the first requests allocate once is not the connections'.
        for _ in range(200):
            with site.connect() as client:
                ask(client)
        wait_until(lambda: site.sockets() < 10, "the warm-up is closed")
        before = site.memory()
        # Several source addresses, so that no range of ports runs out.
        clients = []
        for number in range(count):
            client = site.connect(source=f"127.0.0.{2 + number // 10_000}")
            ask(client)
            clients.append(client)
        site.wait_for_sockets(count)
        after = site.memory()
        met = show(
            "memory for each connection, PSS", (after.own - before.own) / count, "bytes", BYTES_EACH_MAX
        )
        show("memory for each connection, RSS", (after.resident - before.resident) / count, "bytes")
        for client in clients:
            ask(client)
        again = site.memory()
        show("the same after another request on each, PSS", (again.own - before.own) / count, "bytes")
        for client in clients:
            client.close()
        wait_until(lambda: site.sockets() < 10, "all are closed")
        show("left when all are closed, PSS", (site.memory().own - before.own) / count, "bytes")
    return 0 if met else 1


def ask(client) -> None:
    client.sendall(REQUEST)
    answer = client.recv(4096)
    assert answer.endswith(b"hello\n"), answer


if __name__ == "__main__":
    sys.exit(main())
