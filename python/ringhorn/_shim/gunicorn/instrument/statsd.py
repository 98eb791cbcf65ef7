"""gunicorn.instrument.statsd."""

from gunicorn.glogging import Logger


class Statsd(Logger):
    """For imports only: `statsd_host` is the server's own business."""
