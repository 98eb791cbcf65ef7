"""What `manage.py runserver` becomes: a server for development, with the settings of its one argument."""

from __future__ import annotations

import json
import sys

import ringhorn


def main() -> int:
    # Config files are for production, and are not read.
    return ringhorn.serve("ringhorn.django._development:application", **json.loads(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
