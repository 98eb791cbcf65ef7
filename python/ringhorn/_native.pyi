"""Types of the extension module, which is written in Rust (``src/app/python``)."""

__version__: str

def main(argv: list[str]) -> int:
    """Run the server until it is told to stop, and return the exit code of the process.

    ``argv`` holds the arguments without the program's name. Call it from the main thread of a
    process that has no other threads yet: workers are forked from it. Exit codes are gunicorn's:
    0 after a stop that was asked for, 1 for a setting, a bind or a preloaded application that
    failed, 2 for a wrong command line, 3 when a worker failed to boot, 4 when the application
    failed to load.
    """
