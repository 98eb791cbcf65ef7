"""gunicorn.app.wsgiapp: the command."""

from __future__ import annotations

import sys
from typing import Any

from gunicorn import util
from gunicorn.app.base import Application
from ringhorn import _native


class WSGIApplication(Application):
    """The application that the command line or the config file names."""

    app_uri: str | None = None

    def init(self, parser: Any, opts: Any, args: list[str]) -> dict[str, Any] | None:
        if args:
            self.app_uri = args[0]
        return None

    def load(self) -> Any:
        return util.import_app(self.app_uri or self.cfg.wsgi_app or "")

    def load_wsgiapp(self) -> Any:
        return self.load()

    def run(self) -> None:
        if type(self).load is WSGIApplication.load and self._argv is not None:
            # Nobody has another idea of what to load, so the server finds it as the command does.
            sys.exit(_native.serve(None, self.app_uri, self.cfg.changed(), self._argv, False, self))
        super().run()

    def _name(self) -> str | None:
        return self.app_uri or super()._name()


def run(prog: str | None = None) -> None:
    """Do what the command `gunicorn` does."""
    WSGIApplication(prog=prog).run()


if __name__ == "__main__":
    run()
