"""gunicorn.workers.base_async."""

from gunicorn.workers import base


class AsyncWorker(base.Worker):
    """For imports only: Ringhorn has no green threads and needs none for requests that wait."""
