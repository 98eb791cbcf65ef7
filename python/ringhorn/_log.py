"""The error log for Python code: `server.log`, and the logger `gunicorn.error` that applications borrow."""

from __future__ import annotations

import logging
import sys
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


# gunicorn's form of a line.
ERROR_FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
DATE_FORMAT = "[%Y-%m-%d %H:%M:%S %z]"
MESSAGE = logging.Formatter()

# The logger of this process, when `logger_class`, `logconfig` or the like asked for Python's logging.
current: Any = None


class NativeStream:
    """The server's error log as a stream: what is written stands in the log as it is, and never waits for it."""

    def write(self, text: str) -> int:
        _native.write_log(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: all that was written is on its way."""


class ServerHandler(logging.StreamHandler):
    """Writes records to the server's error log.

    The server itself adds time, process and level, as long as nobody has given this handler a formatter or a
    stream of their own.
    """

    def __init__(self) -> None:
        self.own = (logging.Formatter(ERROR_FORMAT, DATE_FORMAT), NativeStream())
        super().__init__(self.own[1])
        self.setFormatter(self.own[0])
        self._gunicorn = True

    def emit(self, record: logging.LogRecord) -> None:
        if diverted or (self.formatter, self.stream) != self.own:
            super().emit(record)
            return
        try:
            _native.log(record.levelno, MESSAGE.format(record))
        except Exception:
            self.handleError(record)


class AccessFile(logging.FileHandler):
    """The access log's file, for lines that come from Python.

    While the server writes its own lines itself these are few, and nobody tells this handler of USR1: it opens
    the file for each.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if not access_diverted:
            self.close()


# What each logger was when it was connected: its handler, the handler's formatter and stream, and its level.
_installed: dict[str, tuple[Any, int]] = {}

# Where the handler of `gunicorn.access` writes.
_accesslog: str | None = None

# Whether the server's own messages, and its access lines, are records of Python in this process.
diverted = False
access_diverted = False


def install(level: str, accesslog: str | None) -> None:
    """Give `gunicorn.error` and `gunicorn.access` the handlers that they have in gunicorn.

    The server writes both logs itself all the same, until somebody changes one of these loggers.
    """
    error: logging.Handler = ServerHandler()
    access = _access_handler(accesslog)
    threshold = LEVELS.get(level.lower(), logging.INFO)
    for name, handler, least in (("error", error, threshold), ("access", access, logging.INFO)):
        logger = logging.getLogger(f"gunicorn.{name}")
        logger.propagate = False
        logger.setLevel(least)
        for old in [old for old in logger.handlers if getattr(old, "_gunicorn", False)]:
            logger.removeHandler(old)
        if handler is not None:
            logger.addHandler(handler)
        _installed[name] = (_ours(handler), least)


def _access_handler(accesslog: str | None) -> logging.Handler | None:
    global _accesslog
    _accesslog = accesslog
    if accesslog is None:
        return None
    handler = logging.StreamHandler(sys.stdout) if accesslog == "-" else AccessFile(accesslog)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler._gunicorn = True  # type: ignore[union-attr]
    return handler


def _ours(handler: Any) -> list[Any]:
    """What a logger with only this handler has."""
    return [] if handler is None else [_state(handler)]


def _state(handler: logging.Handler) -> tuple[Any, ...]:
    # A file's stream comes and goes.
    stream = None if isinstance(handler, AccessFile) else getattr(handler, "stream", None)
    return (handler, handler.formatter, stream, handler.level, list(handler.filters))


def changed(name: str) -> bool:
    """Whether `gunicorn.error` or `gunicorn.access` has a filter, handler, level or formatter of somebody else."""
    if name not in _installed:
        return False
    handlers, level = _installed[name]
    logger = logging.getLogger(f"gunicorn.{name}")
    return bool(
        logger.filters
        or logger.propagate
        or logger.level != level
        or [_state(handler) for handler in logger.handlers] != handlers
    )


def configure(level: str, accesslog: str | None) -> None:
    """Follow a reload's `loglevel`, unless somebody else has chosen one, and its `accesslog`."""
    if "error" not in _installed:
        return
    logger, (handlers, least) = logging.getLogger("gunicorn.error"), _installed["error"]
    if logger.level == least:
        least = LEVELS.get(level.lower(), logging.INFO)
        logger.setLevel(least)
        _installed["error"] = (handlers, least)
    if accesslog != _accesslog:
        _move_access_log(accesslog)


def _move_access_log(accesslog: str | None) -> None:
    """Let `gunicorn.access` write somewhere else, with what somebody has done to its handler."""
    logger, (before, least) = logging.getLogger("gunicorn.access"), _installed["access"]
    handler = _access_handler(accesslog)
    _installed["access"] = (_ours(handler), least)
    for old in [old for old in logger.handlers if getattr(old, "_gunicorn", False)]:
        logger.removeHandler(old)
        if handler is not None:
            handler.setLevel(old.level)
            handler.filters[:] = old.filters
            if old.formatter is not before[0][1]:
                handler.setFormatter(old.formatter)
    if handler is not None:
        logger.addHandler(handler)


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
