"""Finds a stand-in for the package `gunicorn` where gunicorn itself is not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

PLACE = Path(__file__).parent / "_shim" / "gunicorn"


class Finder:
    """The last entry of `sys.meta_path`: asked only for what nobody else has found."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "gunicorn":
            # Its modules are found through the package's own path.
            return None
        return importlib.util.spec_from_file_location(
            name, PLACE / "__init__.py", submodule_search_locations=[str(PLACE)]
        )


def stand_in_for_gunicorn() -> None:
    """Let ``import gunicorn`` work where gunicorn is not installed.

    Config files and applications that import gunicorn's classes can then be served without a change. The
    command `ringhorn` calls this; a program that subclasses `gunicorn.app.base.BaseApplication` does so
    itself, before its first import of gunicorn. An installed gunicorn is always preferred.
    """
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)
