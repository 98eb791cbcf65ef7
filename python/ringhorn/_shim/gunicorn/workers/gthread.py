"""gunicorn.workers.gthread."""

from gunicorn.workers import base


class ThreadWorker(base.Worker):
    """As a value of `worker_class` it means 'gthread'."""
