"""The application that `manage.py runserver` serves: the project's, static files, a line per request."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import django

django.setup()

from django.apps import apps  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core import checks  # noqa: E402
from django.core.management.base import SystemCheckError  # noqa: E402
from django.core.servers.basehttp import get_internal_wsgi_application  # noqa: E402

# How the command tells its options: the words of those that are on.
OPTIONS = "RINGHORN_RUNSERVER"

# Its formatter has the colours, and projects configure it.
logger = logging.getLogger("django.server")


class Lines:
    """Logs each request as Django's own development server does."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = Answer(environ)

        def start(status: str, *args: Any) -> Any:
            answer.status = int(status[:3])
            return start_response(status, *args)

        answer.pieces = self.application(environ, start)
        return answer


class Answer:
    """Passes the pieces of an answer on, and counts them."""

    def __init__(self, environ: dict[str, Any]) -> None:
        uri = environ.get("RAW_URI") or environ.get("PATH_INFO", "")
        self.request = f"{environ['REQUEST_METHOD']} {uri} {environ.get('SERVER_PROTOCOL', '')}"
        self.status = 0
        self.bytes = 0
        self.pieces: Iterable[bytes] = ()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            self.bytes += len(piece)
            yield piece

    def close(self) -> None:
        try:
            close = getattr(self.pieces, "close", None)
            if close is not None:
                close()
        finally:
            log = (
                logger.error if self.status >= 500 else logger.warning if self.status >= 400 else logger.info
            )
            extra = {"status_code": self.status, "server_time": time.strftime("%d/%b/%Y %H:%M:%S")}
            log('"%s" %s %s', self.request, self.status, self.bytes, extra=extra)


def check() -> None:
    """Raise what is wrong with the project, as Django's runserver finds it after each reload.

    The checks import the project's URLs with all views, which Django does at the first request otherwise. Raised here,
    an error drops the reload, and the code before the change goes on serving.
    """
    wrong = [message for message in checks.run_checks() if message.is_serious() and not message.is_silenced()]
    if wrong:
        raise SystemCheckError("System check identified some issues:\n\n" + "\n".join(map(str, wrong)))


def make() -> Lines:
    options = os.environ.get(OPTIONS, "").split()
    if "checks" in options:
        check()
    handler = get_internal_wsgi_application()
    static = apps.is_installed("django.contrib.staticfiles") and "static" in options
    if static and (settings.DEBUG or "insecure" in options):
        from django.contrib.staticfiles.handlers import StaticFilesHandler

        handler = StaticFilesHandler(handler)
    return Lines(handler)


application = make()
