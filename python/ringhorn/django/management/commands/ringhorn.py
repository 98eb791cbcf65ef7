"""`manage.py ringhorn`: serve the project, with the arguments of the command `ringhorn`."""

from __future__ import annotations

from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, SystemCheckError

from ringhorn import _native
from ringhorn.django import _checks, _launch


class Command(BaseCommand):
    help = "Serves the project with Ringhorn: manage.py ringhorn [options of the command ringhorn]."
    # They are run below, with the arguments known.
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> NoReturn:
        # Not parsed as Django's: --workers, --version and the like mean the server's.
        self._called_from_command_line = True
        try:
            self.handle(*without_settings(argv[2:]))
        except (CommandError, SystemCheckError) as error:
            self.stderr.write(str(error), lambda text: text)
            raise SystemExit(getattr(error, "returncode", 1)) from None

    def handle(self, *args: str, **options: Any) -> NoReturn:
        if not {"--help", "-h", "--version"}.intersection(args):
            _checks.arguments = args
            self.check(tags=[_checks.TAG], include_deployment_checks=True)
        app = [] if _native.positional(list(args)) else [_launch.application()]
        _launch.replace_process("ringhorn", [*args, *app])


def without_settings(argv: list[str]) -> list[str]:
    """Leave Django's `--settings` away: Django has put it into the environment."""
    kept, skip = [], False
    for arg in argv:
        if skip:
            skip = False
        elif arg == "--settings":
            skip = True
        elif not arg.startswith("--settings="):
            kept.append(arg)
    return kept
