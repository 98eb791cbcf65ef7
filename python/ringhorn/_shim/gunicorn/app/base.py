"""gunicorn.app.base: programs that bring their own application and settings."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from gunicorn.config import Config
from ringhorn import _native


class BaseApplication:
    """An application with its settings. Subclasses define `load_config` and `load`; `run` serves."""

    # The command line, where it is to be read.
    _argv: list[str] | None = None

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        self.usage = usage
        self.prog = prog
        self.cfg: Any = None
        self.callable: Any = None
        self.logger: Any = None
        self.do_load_config()

    def do_load_config(self) -> None:
        try:
            self.load_default_config()
            self.load_config()
            self.cfg.validate()
        except Exception as error:
            print(f"\nError: {error}", file=sys.stderr, flush=True)
            sys.exit(1)

    def load_default_config(self) -> None:
        self.cfg = Config(self.usage, prog=self.prog)

    def init(self, parser: Any, opts: Any, args: list[str]) -> dict[str, Any] | None:
        raise NotImplementedError

    def load(self) -> Any:
        raise NotImplementedError

    def load_config(self) -> None:
        raise NotImplementedError

    def reload(self) -> None:
        self.do_load_config()

    def wsgi(self) -> Any:
        if self.callable is None:
            self.callable = self.load()
        return self.callable

    def run(self) -> None:
        """Serve until told to stop, then leave with gunicorn's exit codes."""
        argv = self._argv or []
        values = self.cfg.changed()
        sys.exit(_native.serve(self.wsgi, self._name(), values, argv, self._argv is None, self))

    def _name(self) -> str | None:
        return type(self).__name__


class Application(BaseApplication):
    """As `BaseApplication`, and reads the command line, GUNICORN_CMD_ARGS and the config file."""

    def load_config(self) -> None:
        self._argv = sys.argv[1:]
        args = _native.positional(self._argv)
        given = dict.fromkeys(self.cfg.settings) | _native.options(self._argv)
        options = SimpleNamespace(**given, args=args)
        for name, value in (self.init(None, options, args) or {}).items():
            self.cfg.set(name.lower(), value)

    def chdir(self) -> None:
        """Do nothing: the server changes to the directory when it starts."""
