"""gunicorn.workers.base."""

from __future__ import annotations

from typing import Any


class Worker:
    """What gunicorn's workers derive from. Ringhorn does not run subclasses, and says so when one is set."""

    SIGNALS: list[int] = []
    PIPE: list[int] = []

    def __init__(
        self, age: int, ppid: int, sockets: Any, app: Any, timeout: float, cfg: Any, log: Any
    ) -> None:
        raise RuntimeError(
            f"{type(self).__qualname__} is a worker class of gunicorn, and Ringhorn runs workers of its own; "
            "leave worker_class out, or choose 'sync' or 'gthread'"
        )
