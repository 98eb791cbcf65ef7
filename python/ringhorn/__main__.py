"""The command: ``ringhorn`` and ``python -m ringhorn``."""

import sys

from ringhorn import _native


def main() -> int:
    """Run the server with the arguments of this process and return its exit code."""
    return _native.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
