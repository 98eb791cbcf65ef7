"""gunicorn.glogging: what a `logger_class` derives from."""

from __future__ import annotations

import logging
from typing import Any

from ringhorn import _log

loggers = [logging.getLogger("gunicorn.error"), logging.getLogger("gunicorn.access")]

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
    """gunicorn's logger. Deriving from it works; Ringhorn writes the access log itself."""

    LOG_LEVELS = _log.LEVELS
    error_fmt = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
    access_fmt = "%(message)s"
    syslog_fmt = "[%(process)d] %(message)s"
    datefmt = "[%Y-%m-%d %H:%M:%S %z]"
    atoms_wrapper_class = SafeAtoms

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.setup(cfg)

    def setup(self, cfg: Any) -> None:
        """Do nothing: the logs are open."""

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: Any) -> None:
        """Do nothing: the server has written the line."""
