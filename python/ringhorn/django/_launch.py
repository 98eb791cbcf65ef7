"""Replaces this process, in which Django is loaded, by a server in which it is not.

Workers are forked from the server. What it has imported they have, too, and a reload could not change it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connections


def replace_process(module: str, arguments: Iterable[str], **variables: str) -> NoReturn:
    """Run `python -m module arguments` in this process. CommandError where that cannot work."""
    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        raise CommandError(
            "Workers import the settings themselves, so they must be a module. Set DJANGO_SETTINGS_MODULE, "
            "or start this project with ringhorn.serve(application)."
        )
    connections.close_all()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment() | variables)


def environment() -> dict[str, str]:
    """This process's environment, with where it finds the project's modules."""
    libraries = tuple(
        os.path.join(path, "")
        for name, path in sysconfig.get_paths().items()
        if name in ("stdlib", "platstdlib", "purelib", "platlib")
    )
    # An empty path is the current directory.
    paths = [os.path.abspath(path) for path in sys.path]
    ours = [
        path for path in paths if not os.path.join(path, "").startswith(libraries) and os.path.isdir(path)
    ]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(ours))}


def application() -> str:
    """The project's WSGI application as the server wants it named."""
    name = settings.WSGI_APPLICATION
    if not name:
        return "ringhorn.django._wsgi:application"
    module, _, attribute = name.rpartition(".")
    return f"{module}:{attribute}"


def nothing(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """An application for those who only want to see the settings."""
    start_response("204 No Content", [])
    return []
