"""The logs through Python's `logging`, for those who configure it: `logger_class`, `logconfig`, `syslog`."""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import importlib
import json
import logging
import logging.config
import logging.handlers
import os
import socket
import sys
import threading
import traceback
from typing import Any

from ringhorn import _log

CONFIG_DEFAULTS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        "gunicorn.error": {
            "level": "INFO",
            "handlers": ["error_console"],
            "propagate": True,
            "qualname": "gunicorn.error",
        },
        "gunicorn.access": {
            "level": "INFO",
            "handlers": ["console"],
            "propagate": True,
            "qualname": "gunicorn.access",
        },
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stdout"},
        "error_console": {
            "class": "logging.StreamHandler",
            "formatter": "generic",
            "stream": "ext://sys.stderr",
        },
    },
    "formatters": {
        "generic": {
            "format": "%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
            "datefmt": "[%Y-%m-%d %H:%M:%S %z]",
            "class": "logging.Formatter",
        }
    },
}

SYSLOG_FACILITIES = logging.handlers.SysLogHandler.facility_names

# Names that mean the server's own log.
DEFAULTS = (None, "", "simple", "gunicorn.glogging.Logger", "gunicorn.instrument.statsd.Statsd")


class SafeAtoms(dict):
    """The atoms of an access log line; an unknown one is `-`."""

    def __init__(self, atoms: dict[str, Any]) -> None:
        super().__init__()
        for key, value in atoms.items():
            self[key] = value.replace('"', '\\"') if isinstance(value, str) else value

    def __getitem__(self, key: str) -> Any:
        if key.startswith("{"):
            key = key.lower()
        return super().get(key, "-")


class Logger(_log.Logger):
    """gunicorn's logger: the loggers `gunicorn.error` and `gunicorn.access` with handlers of Python."""

    LOG_LEVELS = _log.LEVELS
    loglevel = logging.INFO
    error_fmt = _log.ERROR_FORMAT
    access_fmt = "%(message)s"
    syslog_fmt = "[%(process)d] %(message)s"
    datefmt = _log.DATE_FORMAT
    atoms_wrapper_class = SafeAtoms

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        for logger in (self.error_log, self.access_log):
            logger.propagate = False
        self.error_handlers: list[logging.Handler] = []
        self.access_handlers: list[logging.Handler] = []
        # `capture_output` is the server's own business.
        self.logfile = None
        self.lock = threading.Lock()
        self.setup(cfg)

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.loglevel = self.LOG_LEVELS.get(cfg.loglevel.lower(), logging.INFO)
        self.error_log.setLevel(self.loglevel)
        self.access_log.setLevel(logging.INFO)
        self._set_handler(self.error_log, cfg.errorlog, logging.Formatter(self.error_fmt, self.datefmt))
        if cfg.accesslog is not None:
            self._set_handler(self.access_log, cfg.accesslog, logging.Formatter(self.access_fmt), sys.stdout)
        if cfg.syslog:
            self._set_syslog_handler(self.error_log, cfg, self.syslog_fmt, "error")
            if not cfg.disable_redirect_access_to_syslog:
                self._set_syslog_handler(self.access_log, cfg, self.syslog_fmt, "access")
        if cfg.logconfig_dict:
            logging.config.dictConfig({**CONFIG_DEFAULTS, **cfg.logconfig_dict})
        elif cfg.logconfig_json:
            with open(cfg.logconfig_json, encoding="utf-8") as file:
                logging.config.dictConfig({**CONFIG_DEFAULTS, **json.load(file)})
        elif cfg.logconfig:
            if not os.path.exists(cfg.logconfig):
                raise RuntimeError(f"there is no logconfig file {cfg.logconfig}")
            defaults = {"__file__": cfg.logconfig, "here": os.path.dirname(cfg.logconfig)}
            logging.config.fileConfig(cfg.logconfig, defaults, disable_existing_loggers=False)

    # The names from here to `access_log_enabled` are gunicorn's: classes that derive from this one use them.

    def _get_gunicorn_handler(self, log: logging.Logger) -> logging.Handler | None:
        return next((handler for handler in log.handlers if getattr(handler, "_gunicorn", False)), None)

    def _set_handler(
        self, log: logging.Logger, output: str | None, fmt: logging.Formatter, stream: Any = None
    ) -> None:
        """Let the handler that is ours write to `output`; a second call takes the place of the first.

        Without an `output` there is none any more. `-` is `stream`, or else standard error.
        """
        while (old := self._get_gunicorn_handler(log)) is not None:
            log.removeHandler(old)
        if output is None:
            return
        if output == "-":
            handler: logging.Handler = logging.StreamHandler(stream)
        else:
            handler = logging.FileHandler(output)
            if os.geteuid() == 0:
                # The workers open it again, as who they are then.
                os.chown(handler.baseFilename, self.cfg.uid, self.cfg.gid)
        handler.setFormatter(fmt)
        handler._gunicorn = True  # type: ignore[attr-defined]
        log.addHandler(handler)

    def _set_syslog_handler(self, log: logging.Logger, cfg: Any, fmt: str, name: str) -> None:
        facility = cfg.syslog_facility.lower()
        if facility not in SYSLOG_FACILITIES:
            raise RuntimeError(f"there is no syslog facility {facility}")
        kind, address = parse_syslog_address(cfg.syslog_addr)
        handler = logging.handlers.SysLogHandler(address, facility, kind)
        # Names are gunicorn's, and so are the filters of those who have some.
        prefix = f"gunicorn.{cfg.syslog_prefix or cfg.proc_name}.{name}"
        handler.setFormatter(logging.Formatter(f"{prefix.replace('%', '%%')}: {fmt}"))
        handler._gunicorn_syslog = True  # type: ignore[attr-defined]
        log.addHandler(handler)

    def _get_user(self, environ: dict[str, Any]) -> str | None:
        """Give the user of Basic authentication."""
        scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(credentials.strip().encode()).decode("utf-8", "replace").partition(":")[0]
        return None

    @property
    def access_log_enabled(self) -> bool:
        cfg = self.cfg
        syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
        return bool(cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json or syslog)

    def atoms(self, resp: Any, req: Any, environ: dict[str, Any], request_time: Any) -> dict[str, Any]:
        """Give what `access_log_format` can name."""
        status = resp.status
        if isinstance(status, bytes):
            status = status.decode("latin-1")
        if isinstance(status, str):
            status = status.split(None, 1)[0]
        sent = getattr(resp, "sent", None)
        micros = request_time // type(request_time)(microseconds=1)
        atoms = {
            "h": environ.get("REMOTE_ADDR") or "-",
            "l": "-",
            "u": self._get_user(environ) or "-",
            "t": self.now(),
            "r": "{REQUEST_METHOD} {RAW_URI} {SERVER_PROTOCOL}".format_map(environ),
            "s": status,
            "m": environ.get("REQUEST_METHOD"),
            "U": environ.get("PATH_INFO"),
            "q": environ.get("QUERY_STRING"),
            "H": environ.get("SERVER_PROTOCOL"),
            "b": "-" if sent is None else str(sent),
            "B": sent,
            "f": environ.get("HTTP_REFERER", "-"),
            "a": environ.get("HTTP_USER_AGENT", "-"),
            "T": micros // 1_000_000,
            "D": micros,
            "M": micros // 1000,
            "L": f"{micros // 1_000_000}.{micros % 1_000_000:06}",
            "p": f"<{os.getpid()}>",
        }
        for pairs, kind in ((req.headers, "i"), (resp.headers, "o"), (environ.items(), "e")):
            atoms.update((f"{{{name.lower()}}}{kind}", value) for name, value in pairs)
        return atoms

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: Any) -> None:
        if not self.access_log_enabled:
            return
        atoms = self.atoms_wrapper_class(self.atoms(resp, req, environ, request_time))
        try:
            self.access_log.info(self.cfg.access_log_format, atoms)
        except Exception:
            self.error(traceback.format_exc())

    def reopen_files(self) -> None:
        """Open every log file of this process again, those of the application too."""
        for handler in _file_handlers():
            handler.acquire()
            try:
                # The handler opens it again with its next record; now, so that the file is there.
                handler.close()
                handler.stream = handler._open()
            finally:
                handler.release()


def parse_syslog_address(text: str) -> tuple[socket.SocketKind | None, Any]:
    """Give the kind of socket and the address that `syslog_addr` names."""
    if text.startswith("unix://"):
        path, _, kind = text.removeprefix("unix://").partition("#")
        kinds = {"": None, "dgram": socket.SOCK_DGRAM, "stream": socket.SOCK_STREAM}
        if kind not in kinds:
            raise RuntimeError(f"invalid syslog address {text}: {kind} is neither dgram nor stream")
        return kinds[kind], path
    kinds = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
    scheme, slashes, rest = text.partition("://")
    if not slashes or scheme not in kinds:
        raise RuntimeError(f"syslog address {text}: it starts with none of udp://, tcp://, unix://")
    host, colon, port = rest.lower().rpartition(":")
    if not colon or port.endswith("]"):
        host, port = rest.lower(), "514"
    if not port.isdecimal():
        raise RuntimeError(f"invalid syslog address {text}: {port} is not a port")
    return kinds[scheme], (host.strip("[]") or "localhost", int(port))


def _file_handlers() -> list[logging.FileHandler]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    found = {
        handler: None
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.FileHandler)
    }
    return list(found)


def loggers() -> list[logging.Logger]:
    """Give every logger that somebody has asked for by its name."""
    return [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]


def start(values: dict[str, Any]) -> tuple[Any, int]:
    """Make the logger that the settings ask for. Return it with the least level that it takes."""
    from ringhorn._config import Config

    cfg = Config(values)
    try:
        wanted = make(cfg.logger_class)
    except Exception as error:
        # The message is to name the setting.
        error.is_about_logger_class = True  # type: ignore[attr-defined]
        raise
    _log.current = wanted(cfg)
    return _log.current, _log.current.error_log.getEffectiveLevel()


def adopt(values: dict[str, Any], errors: bool, access: bool) -> tuple[Any, int]:
    """Make a logger of `gunicorn.error` and `gunicorn.access` as somebody left them. Return as `start`.

    `errors` and `access` say of which of them the server's own lines become records.
    """
    from ringhorn._config import Config

    # The master may have made it, for its messages. A worker has settings of its own.
    logger = _log.current or Logger.__new__(Logger)
    # Not as a new logger begins: that would take back what makes these ones special.
    _log.Logger.__init__(logger, Config(values))
    if errors:
        _log.diverted = True
        _log.current = logger
    _log.access_diverted = access
    for handler in logger.access_log.handlers:
        if access and isinstance(handler, _log.AccessFile) and handler.stream is None:
            # As the server opens it: at the start, where a failure is told, and so that the file is there.
            handler.stream = handler._open()
    return logger, logger.error_log.getEffectiveLevel()


def make(wanted: Any) -> Any:
    """Give the class that the setting `logger_class` names."""
    named = wanted
    if isinstance(wanted, type):
        named = f"{wanted.__module__}.{wanted.__qualname__}"
    if named in DEFAULTS:
        return Logger
    if not isinstance(wanted, str):
        return wanted
    module, _, name = wanted.rpartition(":" if ":" in wanted else ".")
    return getattr(importlib.import_module(module), name)


def access(logger: Any, resp: Any, req: Any, environ: dict[str, Any], micros: int) -> None:
    """Write the line of a request that took `micros` microseconds."""
    logger.access(resp, req, environ, datetime.timedelta(microseconds=micros))


def metric(logger: Any, text: str, name: str, value: int, kind: str) -> None:
    """Tell a metric of the master as gunicorn tells it: a class that derives from its Statsd sends it."""
    logger.debug(text, extra={"metric": name, "value": value, "mtype": kind})


def failed(logger: Any, method: str, uri: str, error: BaseException, tb: Any) -> None:
    """Tell that a request failed, with the exception in the record and in gunicorn's words.

    Error trackers read the one and group by the others.
    """
    logger.exception("Error handling request %s %s", method, uri, exc_info=(type(error), error, tb))
