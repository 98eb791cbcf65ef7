"""Types of the extension module, which is written in Rust (``src/app/python``)."""

from collections.abc import Callable
from typing import Any

__version__: str
SERVER_SOFTWARE: str
COMMANDS: tuple[str, ...]

def main(argv: list[str]) -> int:
    """Run the server until it is told to stop, and return the exit code of the process.

    ``argv`` holds the arguments without the program's name. Call it from the main thread of a
    process that has no other threads yet: workers are forked from it. Exit codes are gunicorn's:
    0 after a stop that was asked for, 1 for a setting, a bind or a preloaded application that
    failed, 2 for a wrong command line, 3 when a worker failed to boot, 4 when the application
    failed to load.
    """

def operate(argv: list[str]) -> int:
    """Run one of COMMANDS with its arguments, and return its exit code. ``argv`` begins with its name."""

def serve(
    load: Callable[[], Any] | None,
    name: str | None,
    values: dict[str, Any],
    argv: list[str],
    alone: bool,
    owner: Any = None,
) -> int:
    """Serve what `load` returns, or the application `name`, with the settings `values`.

    Unless `alone`, the config file, the variables with arguments and `argv` are read too, and win. Hooks find
    `owner` as `server.app`.
    """

def positional(argv: list[str]) -> list[str]:
    """Give the arguments of a command line that are no options. Leaves with code 2 when it is wrong."""

def options(argv: list[str]) -> dict[str, Any]:
    """Give the settings that a command line has options for. Leaves with code 1 or 2 when it is wrong."""

def default_settings() -> dict[str, Any]:
    """Give the default of every setting, by name."""

def check_setting(name: str, value: Any) -> Any:
    """Give a value in the form in which the setting keeps it.

    TypeError for a name that is no setting, ValueError for a value that is not valid.
    """

def load_application(spec: str) -> Any:
    """Import `module:attribute`.

    ImportError when its code fails, ValueError when it has no such application.
    """

def log(level: int, message: str) -> None:
    """Write a line to the error log, at a level of `logging`."""

def write_log(text: str) -> None:
    """Give text to the error log as it is."""

def signal_worker(number: int) -> None:
    """Give this process, a worker, a signal as if it had come from outside."""

def flush_log() -> None:
    """Wait, for a bounded time, until the log is written: this process is about to end."""

def connections() -> int:
    """Count the connections that this process has open."""

def is_leaving() -> bool:
    """Whether this process is a worker that was told to leave."""

def requests() -> int:
    """Count the requests that this process has begun to answer."""

class Inotify:
    """An instance of inotify(7): tells of files that come, that were written, and of changed attributes."""

    def __init__(self) -> None: ...
    def watch(self, directory: str) -> None:
        """Watch a directory. OSError when that cannot be done."""

    def wait(self, timeout_ms: int) -> list[str]:
        """Wait for something to happen, and give the names of the files it happened to.

        The names are without directories; one is empty where events were lost.
        """
