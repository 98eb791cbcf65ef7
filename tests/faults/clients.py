"""Clients that tell apart how a request can fail, and the load that runs while something happens."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

Address = tuple[str, int]

# How a request can be lost. "closed" is the end of the connection without a byte of the answer, "truncated"
# its end within the answer; a reset counts as one of these two when the request has been sent.
LOSSES = ("refused", "reset", "closed", "truncated", "timed out", "wrong status")


class Lost(Exception):
    """A request without its answer; `kind` is one of LOSSES."""

    def __init__(self, kind: str, detail: object = ""):
        super().__init__(f"{kind} {detail}".strip())
        self.kind = kind


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def ends_connection(self) -> bool:
        return self.fields.get("connection", "").lower() == "close"


def message(target: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Connection:
    """One connection that reads answers by their framing, and never a byte too many."""

    def __init__(
        self, address: Address, timeout: float, receive_buffer: int | None = None, source: str | None = None
    ):
        self.socket = socket.socket()
        self.held = b""
        try:
            if receive_buffer is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                self.socket.bind((source, 0))
            self.socket.settimeout(timeout)
            self.socket.connect(address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError:
            self.socket.close()
            raise Lost("timed out", "connecting") from None
        except ConnectionRefusedError:
            self.socket.close()
            raise Lost("refused") from None
        except OSError as error:
            self.socket.close()
            raise Lost("reset", error) from None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        # An answer may be there although sending fails: the server refuses early and closes.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def get(self, target: str, *fields: str) -> Answer:
        self.send(message(target, *fields))
        return self.read()

    def read(self) -> Answer:
        """The next answer; Lost says why there is none."""
        while b"\r\n\r\n" not in self.held:
            if not self._receive():
                raise Lost("truncated" if self.held else "closed")
        head, _, self.held = self.held.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise Lost("wrong status", lines[0][:80])
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        answer = Answer(int(rest[:3]), fields, b"")
        if answer.status < 200 or answer.status in (204, 304):
            return answer
        if fields.get("transfer-encoding") == "chunked":
            answer.body = self._chunks()
        elif "content-length" in fields:
            answer.body = self._exactly(int(fields["content-length"]))
        else:
            while self._receive():
                pass
            answer.body, self.held = self.held, b""
        return answer

    def rest(self) -> bytes:
        """All bytes until the server closes; what a reset or the timeout leaves of them."""
        with contextlib.suppress(Lost):
            while self._receive():
                pass
        data, self.held = self.held, b""
        return data

    def _receive(self) -> bool:
        try:
            data = self.socket.recv(256 * 1024)
        except TimeoutError:
            raise Lost("timed out") from None
        except OSError:
            return False
        self.held += data
        return bool(data)

    def _exactly(self, count: int) -> bytes:
        pieces, have = [self.held], len(self.held)
        while have < count:
            self.held = b""
            if not self._receive():
                raise Lost("truncated", f"{have} of {count} bytes")
            pieces.append(self.held)
            have += len(self.held)
        data = b"".join(pieces)
        self.held = data[count:]
        return data[:count]

    def _chunks(self) -> bytes:
        pieces = []
        while True:
            while b"\r\n" not in self.held:
                if not self._receive():
                    raise Lost("truncated", "in a chunk size")
            line, _, self.held = self.held.partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            piece = self._exactly(size + 2)
            if size == 0:
                return b"".join(pieces)
            pieces.append(piece[:-2])


@dataclass
class Loss:
    kind: str
    detail: str
    client: str
    """`new`: a connection for each request. `kept`: one for as long as it lasts."""
    id: str


@dataclass
class Client:
    """What one client of the load has seen."""

    kind: str
    answers: int = 0
    latencies: list[float] = field(default_factory=list)
    asked_at: float | None = None


class Load:
    """Threads that ask all the time, and remember every answer that did not come.

    `new` clients open a connection for each request, `kept` ones keep theirs until an answer
    announces its end.
    """

    def __init__(
        self,
        address: Address,
        new: int = 6,
        kept: int = 6,
        path: str = "/",
        pause: float = 0.002,
        timeout: float = 10.0,
    ):
        self.address = address
        self.path = path
        self.pause = pause
        self.timeout = timeout
        self.losses: list[Loss] = []
        self.clients = [Client("new") for _ in range(new)] + [Client("kept") for _ in range(kept)]
        # What the latest answers said: their bodies.
        self.recent: deque[str] = deque(maxlen=40)
        self.bodies: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._done = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._ask_anew if client.kind == "new" else self._keep_asking, args=(client,)
            )
            for client in self.clients
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    # --- what has been seen

    @property
    def answered(self) -> int:
        return sum(client.answers for client in self.clients)

    @property
    def asked(self) -> int:
        return self.answered + len(self.losses)

    @property
    def lost(self) -> Counter[str]:
        return Counter(loss.kind for loss in self.losses)

    def percentile(self, share: float) -> float:
        """A latency in milliseconds; `share` 1.0 is the slowest."""
        times = sorted(time for client in self.clients for time in client.latencies)
        return times[min(len(times) - 1, int(len(times) * share))] * 1000 if times else float("nan")

    def go_on(self, count: int = 100, patience: float = 10.0) -> bool:
        """Waits for so many more answers; whether they came."""
        wanted = self.answered + count
        return wait(lambda: self.answered >= wanted, patience)

    def everyone_goes_on(self, count: int = 3, patience: float = 4.0) -> int:
        """Waits until each client has so many more answers; how many of them do not get there."""
        wanted = [client.answers + count for client in self.clients]

        def waiting() -> int:
            return sum(client.answers < goal for client, goal in zip(self.clients, wanted, strict=True))

        wait(lambda: waiting() == 0, patience)
        return waiting()

    def only(self, text: str) -> bool:
        """Whether the latest answers all have `text` as their last word."""
        answers = list(self.recent)
        return len(answers) == self.recent.maxlen and all(body.split()[-1:] == [text] for body in answers)

    # --- the threads

    def _ask(self, client: Client, connection: Connection, close: bool, id: str, begun: float) -> bool:
        """Asks once; whether the connection goes on."""
        fields = ["Connection: close"] if close else []
        answer = connection.get(f"{self.path}?id={id}", *fields)
        if answer.status != 200:
            raise Lost("wrong status", answer.status)
        client.latencies.append(time.perf_counter() - begun)
        client.answers += 1
        text = answer.body.decode("latin-1").strip()
        self.recent.append(text)
        self.bodies[text] += 1
        return not answer.ends_connection

    def _note(self, lost: Lost, client: Client, id: str) -> None:
        self.losses.append(Loss(lost.kind, str(lost), client.kind, id))
        # A server that is gone is not asked a million times.
        self._done.wait(0.02)

    def _ask_anew(self, client: Client) -> None:
        while not self._done.wait(self.pause):
            id, begun = str(next(self._numbers)), time.perf_counter()
            try:
                with Connection(self.address, self.timeout) as connection:
                    self._ask(client, connection, True, id, begun)
            except Lost as lost:
                self._note(lost, client, id)

    def _keep_asking(self, client: Client) -> None:
        id = ""
        while not self._done.is_set():
            try:
                id, begun = str(next(self._numbers)), time.perf_counter()
                with Connection(self.address, self.timeout) as connection:
                    while self._ask(client, connection, False, id, begun) and not self._done.wait(self.pause):
                        id, begun = str(next(self._numbers)), time.perf_counter()
            except Lost as lost:
                self._note(lost, client, id)
            # sync workers of gunicorn end every connection.
            self._done.wait(self.pause)


def wait(ready: Callable[[], object], patience: float) -> bool:
    """Asks `ready` until it says yes; whether it did."""
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def closed_by_peer(sock: socket.socket) -> bool:
    """Whether the other side has ended the connection, without reading a byte that is there."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
