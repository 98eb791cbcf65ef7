"""The functions of gunicorn.util that other projects use."""

from __future__ import annotations

import email.utils
import importlib
import inspect
import ipaddress
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from gunicorn.errors import AppImportError
from ringhorn import _native
from ringhorn._config import parse_address as parse_address


def import_app(module: str) -> Any:
    """Import the application that `module:attribute` names."""
    try:
        return _native.load_application(module)
    except ValueError as error:
        raise AppImportError(str(error)) from None


def load_class(
    uri: Any, default: str = "gunicorn.workers.sync.SyncWorker", section: str = "gunicorn.workers"
) -> Any:
    """Import the class that a dotted name names; a class is returned as it is."""
    if not isinstance(uri, str):
        return uri
    module, _, name = uri.rpartition(".")
    if not module:
        raise RuntimeError(f"{uri!r} does not name a class as module.Class")
    return getattr(importlib.import_module(module), name)


def getcwd() -> str:
    return os.getcwd()


def chown(path: str, uid: int, gid: int) -> None:
    os.chown(path, uid, gid)


def unlink(filename: str) -> None:
    """Remove a file if it is there."""
    try:
        os.unlink(filename)
    except FileNotFoundError:
        pass


def is_ipv6(addr: str) -> bool:
    try:
        return ipaddress.ip_address(addr).version == 6
    except ValueError:
        return False


def http_date(timestamp: float | None = None) -> str:
    return email.utils.formatdate(timestamp, localtime=False, usegmt=True)


def to_bytestring(value: str | bytes, encoding: str = "utf8") -> bytes:
    return value if isinstance(value, bytes) else value.encode(encoding)


def bytes_to_str(value: str | bytes) -> str:
    return value if isinstance(value, str) else str(value, "latin1")


def get_arity(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds for p in inspect.signature(function).parameters.values())


def warn(msg: str) -> None:
    print(f"\n{textwrap.indent(f'WARNING: {msg}', '!!! ')}\n", file=sys.stderr, flush=True)
