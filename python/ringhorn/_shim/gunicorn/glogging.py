"""gunicorn.glogging: what a `logger_class` derives from."""

from __future__ import annotations

from ringhorn._logger import (
    CONFIG_DEFAULTS,
    SYSLOG_FACILITIES,
    Logger,
    SafeAtoms,
    loggers,
    parse_syslog_address,
)

__all__ = [
    "CONFIG_DEFAULTS",
    "SYSLOG_FACILITIES",
    "Logger",
    "SafeAtoms",
    "loggers",
    "parse_syslog_address",
]
