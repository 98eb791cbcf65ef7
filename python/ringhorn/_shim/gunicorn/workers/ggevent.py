"""gunicorn.workers.ggevent."""

from gunicorn.workers.base_async import AsyncWorker


class GeventWorker(AsyncWorker):
    """For imports only. Leave `worker_class` out: requests that wait get threads, up to `threads`."""


class GeventPyWSGIWorker(GeventWorker):
    """As `GeventWorker`."""
