"""The command: ``ringhorn`` and ``python -m ringhorn``."""

import sys

from ringhorn import _native, stand_in_for_gunicorn


def main() -> int:
    """Run the server with the arguments of this process and return its exit code."""
    # Config files and applications may import gunicorn's classes.
    stand_in_for_gunicorn()
    return _native.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
