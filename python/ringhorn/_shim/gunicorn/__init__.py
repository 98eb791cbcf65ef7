"""A stand-in for gunicorn, so that config files and applications made for it can be imported.

It is Ringhorn that serves. What is here has gunicorn's names and, as far as it matters to a server that is
not gunicorn, their meaning. docs/compatibility.md lists it.
"""

from ringhorn import _native

# The gunicorn whose interface this is.
version_info = (27, 0, 1)
__version__ = ".".join(map(str, version_info))
SERVER = "ringhorn"
SERVER_SOFTWARE = _native.SERVER_SOFTWARE
