"""gunicorn.workers.sync."""

from gunicorn.workers import base


class SyncWorker(base.Worker):
    """As a value of `worker_class` it means 'sync'."""
