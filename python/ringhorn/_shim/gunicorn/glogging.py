"""gunicorn.glogging: what a `logger_class` derives from."""

from __future__ import annotations

import logging

from ringhorn._logger import CONFIG_DEFAULTS, Logger, SafeAtoms

__all__ = ["CONFIG_DEFAULTS", "Logger", "SafeAtoms", "loggers"]

loggers = [logging.getLogger("gunicorn.error"), logging.getLogger("gunicorn.access")]
