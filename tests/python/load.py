"""Clients that count every request that fails, while something happens to the server."""

from __future__ import annotations

import threading
from collections.abc import Callable

from harness import Client, Server, request, wait_until


class Load:
    """Threads that ask all the time: `new` on a connection for each request, `kept` on one as long as it lasts.

    A failure is anything but a whole answer: refused, reset, cut off, closed without an answer. A kept connection
    may end only after an answer that announces it.
    """

    def __init__(self, server: Server, new: int = 4, kept: int = 4, path: str = "/environ"):
        self.server = server
        self.address = server.address
        self.path = path
        self.failures: list[str] = []
        self.pids: set[int] = set()
        self.slowest = 0.0
        self._served = [0] * (new + kept)
        self._done = threading.Event()
        kinds: list[Callable[[int], None]] = [self._ask_anew] * new + [self._keep_asking] * kept
        self._threads = [threading.Thread(target=kind, args=(i,)) for i, kind in enumerate(kinds)]

    @property
    def served(self) -> int:
        return sum(self._served)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.stop()
        if kind is None:
            assert self.failures == [], (
                f"{len(self.failures)} of {self.served}: {self.failures[:5]}\n{self.server.log()}"
            )

    def go_on(self, count: int = 50) -> None:
        """Returns when so many more requests have been answered."""
        wanted = self.served + count
        wait_until(lambda: self.served >= wanted or self.failures, "the load goes on")

    def until_only(self, pids: set[int]) -> None:
        """Returns when the answers come from all of these processes, and from no other."""

        def seen() -> bool:
            self.pids.clear()
            self.go_on(40)
            return self.pids == pids or bool(self.failures)

        wait_until(seen, f"answers from {pids} only")

    def _ask(self, index: int, client: Client, close: bool) -> bool:
        """Asks once; returns whether the connection goes on."""
        client.send(request("GET", self.path, *(["Connection: close"] if close else [])))
        answer = client.read_response()
        assert answer.status == 200, answer
        self.pids.add(answer.json()["pid"])
        self._served[index] += 1
        return (answer.field("connection") or "keep-alive").lower() != "close"

    def _ask_anew(self, index: int) -> None:
        while not self._done.is_set():
            try:
                with Client(self.address) as client:
                    self._ask(index, client, close=True)
            except (AssertionError, OSError) as lost:
                self.failures.append(f"new: {lost!r}")

    def _keep_asking(self, index: int) -> None:
        while not self._done.is_set():
            try:
                with Client(self.address) as client:
                    while not self._done.is_set() and self._ask(index, client, close=False):
                        pass
            except (AssertionError, OSError) as lost:
                self.failures.append(f"kept: {lost!r}")
