"""Ringhorn: an application server for Linux that takes gunicorn's place.

The work is done by the extension module; this package passes arguments to it and carries its types.
Start it as ``ringhorn module:attribute`` or ``python -m ringhorn module:attribute``.
"""

from ringhorn._native import __version__, main

__all__ = ["__version__", "main"]
