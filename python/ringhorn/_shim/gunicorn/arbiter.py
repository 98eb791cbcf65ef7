"""gunicorn.arbiter: its constants, and a way to run an application."""

from __future__ import annotations

from typing import Any

from gunicorn.errors import AppImportError as AppImportError
from gunicorn.errors import HaltServer as HaltServer


class Arbiter:
    """The master. `Arbiter(app).run()` serves `app` until the process is told to stop."""

    WORKER_BOOT_ERROR = 3
    APP_LOAD_ERROR = 4

    START_CTX: dict[Any, Any] = {}
    LISTENERS: list[Any] = []
    WORKERS: dict[int, Any] = {}

    def __init__(self, app: Any) -> None:
        self.app = app
        self.cfg = app.cfg

    def run(self) -> None:
        self.app.run()
