"""gunicorn.workers: classes to import. Ringhorn's workers are its own; see `worker_class` in docs/settings.md."""

SUPPORTED_WORKERS = {
    "sync": "gunicorn.workers.sync.SyncWorker",
    "gthread": "gunicorn.workers.gthread.ThreadWorker",
}
