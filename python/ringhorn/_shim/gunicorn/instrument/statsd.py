"""gunicorn.instrument.statsd: what a `logger_class` with metrics of its own derives from.

Without such a class the server sends gunicorn's metrics itself, and nothing of this is used.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import socket
from typing import Any

from ringhorn._logger import Logger


class Statsd(Logger):
    """A logger that sends gunicorn's metrics, and those that somebody puts in a message's `extra`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        prefix = cfg.statsd_prefix.rstrip(".")
        self.prefix = f"{prefix}." if prefix else ""
        self.dogstatsd_tags = cfg.dogstatsd_tags
        self.sock: socket.socket | None = None
        # A server that is away costs metrics and nothing else.
        with contextlib.suppress(OSError):
            self.sock = _connect(cfg.statsd_host)

    def critical(self, msg: object, *args: object, **kwargs: Any) -> None:
        super().critical(msg, *args, **kwargs)
        self.increment("gunicorn.log.critical", 1)

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        super().error(msg, *args, **kwargs)
        self.increment("gunicorn.log.error", 1)

    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        super().warning(msg, *args, **kwargs)
        self.increment("gunicorn.log.warning", 1)

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        super().exception(msg, *args, **kwargs)
        self.increment("gunicorn.log.exception", 1)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.log(logging.INFO, msg, *args, **kwargs)

    def debug(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.log(logging.DEBUG, msg, *args, **kwargs)

    def log(self, lvl: int | str, msg: object, *args: object, **kwargs: Any) -> None:
        extra = kwargs.get("extra") or {}
        metric, value = extra.get("metric"), extra.get("value")
        kinds = {
            "gauge": self.gauge,
            "counter": self.increment,
            "histogram": self.histogram,
            "timer": self.timer,
        }
        send = kinds.get(extra.get("mtype"))
        if metric and value is not None and send is not None:
            send(metric, value)
        # A metric may come without a message.
        if msg:
            super().log(lvl, msg, *args, **kwargs)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: Any) -> None:
        super().access(resp, req, environ, request_time)
        status = resp.status
        if isinstance(status, bytes):
            status = status.decode("latin-1")
        if isinstance(status, str):
            status = int(status.split(None, 1)[0])
        self.timer("gunicorn.request.duration", request_time / datetime.timedelta(milliseconds=1))
        self.increment("gunicorn.requests", 1)
        self.increment(f"gunicorn.request.status.{status}", 1)

    def gauge(self, name: str, value: float) -> None:
        self._sock_send(f"{self.prefix}{name}:{value}|g")

    def increment(self, name: str, value: float, sampling_rate: float = 1.0) -> None:
        self._sock_send(f"{self.prefix}{name}:{value}|c|@{sampling_rate}")

    def decrement(self, name: str, value: float, sampling_rate: float = 1.0) -> None:
        self._sock_send(f"{self.prefix}{name}:-{value}|c|@{sampling_rate}")

    def timer(self, name: str, value: float) -> None:
        self._sock_send(f"{self.prefix}{name}:{value}|ms")

    def histogram(self, name: str, value: float) -> None:
        self._sock_send(f"{self.prefix}{name}:{value}|h")

    def _sock_send(self, msg: str | bytes) -> None:
        if self.sock is None:
            return
        data = msg.encode() if isinstance(msg, str) else msg
        if self.dogstatsd_tags:
            data += b"|#" + self.dogstatsd_tags.encode()
        # As datagrams are: what cannot be sent is lost, and no request waits for it.
        with contextlib.suppress(OSError):
            self.sock.send(data)


def _connect(address: Any) -> socket.socket | None:
    if not address:
        return None
    if isinstance(address, str):
        family = socket.AF_UNIX
    else:
        found = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)
        family, address = found[0][0], found[0][4]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock
