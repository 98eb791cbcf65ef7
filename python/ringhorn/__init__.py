"""Ringhorn: an application server for Linux that takes gunicorn's place.

The work is done by the extension module; this package passes arguments to it and carries its types.
Start it as ``ringhorn module:attribute`` or ``python -m ringhorn module:attribute``, or from a program::

    import ringhorn

    ringhorn.serve(app, bind="127.0.0.1:8000", workers=2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ringhorn import _native
from ringhorn._native import __version__, main
from ringhorn._standin import stand_in_for_gunicorn

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ringhorn._types import Settings

__all__ = ["__version__", "main", "serve", "stand_in_for_gunicorn"]


def serve(
    app: str | Callable[[dict[str, Any], Any], Iterable[bytes]],
    /,
    **settings: Unpack[Settings],
) -> int:
    """Serve a WSGI application until the process is told to stop, and return its exit code.

    `app` is the application itself, or its name as on the command line (``"module:attribute"``). Settings
    have the names of config files; docs/settings.md lists them. Neither a config file nor GUNICORN_CMD_ARGS
    is read. Call it on the main thread of a process without other threads: workers are forked from it, and
    signals stop it. A wrong name is a TypeError, a wrong value a ValueError.
    """
    for name in ("config", "wsgi_app"):
        if name in settings:
            raise TypeError(f"serve() takes the application and every setting itself, and no {name}")
    values = {name: _native.check_setting(name, value) for name, value in settings.items()}
    if isinstance(app, str):
        return _native.serve(None, app, values, [], True)
    if not callable(app):
        raise TypeError(f"a WSGI application can be called, and {type(app).__name__} cannot")
    name = getattr(app, "__qualname__", None) or type(app).__qualname__
    return _native.serve(lambda: app, name, values, [], True)
