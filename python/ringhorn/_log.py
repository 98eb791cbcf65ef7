"""The error log for Python code: `server.log`, and the logger `gunicorn.error` that applications borrow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from ringhorn import _native

LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


# The logger of this process, when `logger_class`, `logconfig` or the like asked for Python's logging.
current: Any = None


class ServerHandler(logging.Handler):
    """Writes records to the server's error log, which adds time, process and level."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _native.log(record.levelno, self.format(record))
        except Exception:
            self.handleError(record)


def install(level: str) -> None:
    """Connect `gunicorn.error` with the error log. Handlers that are there already stay the only ones."""
    logger = logging.getLogger("gunicorn.error")
    logger.propagate = False
    logger.setLevel(LEVELS.get(level.lower(), logging.INFO))
    if not logger.handlers:
        logger.addHandler(ServerHandler())
    access = logging.getLogger("gunicorn.access")
    access.propagate = False
    access.setLevel(logging.INFO)


class Errors:
    """`wsgi.errors` where the error log is a file: what the application says stands in the log as it is."""

    def write(self, text: str) -> int:
        if current is None:
            _native.write_log(text)
            return len(text)
        for handler in logging.getLogger("gunicorn.error").handlers:
            stream = getattr(handler, "stream", None)
            if stream is not None:
                handler.acquire()
                try:
                    stream.write(text)
                    stream.flush()
                finally:
                    handler.release()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        """Do nothing: all that was written is on its way."""


class Logger:
    """gunicorn's logger as hooks use it; what it does not have is asked of `logging`'s logger behind it."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log = logging.getLogger("gunicorn.error")
        self.access_log = logging.getLogger("gunicorn.access")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "error_log" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.error_log, name)

    @property
    def loglevel(self) -> int:
        return self.error_log.level

    def critical(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.error_log.critical(msg, *args, **kwargs)

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.error_log.error(msg, *args, **kwargs)

    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.error_log.warning(msg, *args, **kwargs)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.error_log.info(msg, *args, **kwargs)

    def debug(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.error_log.debug(msg, *args, **kwargs)

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.error_log.exception(msg, *args, **kwargs)

    def log(self, lvl: int | str, msg: object, *args: object, **kwargs: Any) -> None:
        level = LEVELS.get(lvl.lower(), logging.INFO) if isinstance(lvl, str) else lvl
        self.error_log.log(level, msg, *args, **kwargs)

    def now(self) -> str:
        return time.strftime("[%d/%b/%Y:%H:%M:%S %z]")

    def reopen_files(self) -> None:
        """Do nothing: the server opens its logs again on USR1."""

    def close_on_exec(self) -> None:
        """Do nothing: no log is passed on."""


def of(cfg: Any) -> Any:
    """Give the logger that hooks have as `server.log`."""
    if current is None:
        return Logger(cfg)
    # A reload may have changed the format.
    current.cfg = cfg
    return current
