"""The command: ``ringhorn`` and ``python -m ringhorn``."""

import sys

from ringhorn import _native, stand_in_for_gunicorn


def main() -> int:
    """Run the server, or an operator's command, with the arguments of this process; return its exit code."""
    if sys.argv[1:] and sys.argv[1] in _native.COMMANDS:
        return operate(sys.argv[1:])
    # Config files and applications may import gunicorn's classes.
    stand_in_for_gunicorn()
    return _native.main(sys.argv[1:])


def operate(argv: list[str]) -> int:
    """Run ``ringhorn ctl`` or ``ringhorn top``."""
    # Built in, and therefore quick to import. An interrupt is to end the command, also while it waits for
    # the server: there is no Python code that could notice it.
    import _signal

    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    return _native.operate(argv)


if __name__ == "__main__":
    sys.exit(main())
