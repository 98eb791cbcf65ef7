"""gunicorn's exceptions."""


class HaltServer(BaseException):
    """Ends the server with an exit code."""

    def __init__(self, reason: str, exit_status: int = 1) -> None:
        super().__init__(reason, exit_status)
        self.reason = reason
        self.exit_status = exit_status


class ConfigError(Exception):
    """A setting is wrong."""


class AppImportError(Exception):
    """The application cannot be loaded; the worker's exit code is 4."""
