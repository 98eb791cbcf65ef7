"""`manage.py runserver`, on Ringhorn. Its options are Django's."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import Any, NoReturn

from django.apps import apps
from django.conf import settings
from django.template.autoreload import get_template_directories
from django.utils import autoreload

from ringhorn.django import _launch

if apps.is_installed("django.contrib.staticfiles"):
    from django.contrib.staticfiles.management.commands.runserver import Command as RunserverCommand
else:
    from django.core.management.commands.runserver import Command as RunserverCommand


class Command(RunserverCommand):
    help = "Starts Ringhorn for development."

    def run(self, **options: Any) -> NoReturn:
        # Django keeps an error of the first import, for its reloader to show.
        autoreload.raise_last_exception()
        if not options.get("skip_checks"):
            self.stdout.write("Performing system checks...\n\n")
            self.check(display_num_errors=True)
        self.check_migrations()

        addr = "0.0.0.0" if self.addr == "0" else self.addr
        bind = f"[{addr}]:{self.port}" if self._raw_ipv6 else f"{addr}:{self.port}"
        self.stdout.write(
            f"{datetime.now():%B %d, %Y - %X}\n"
            f"Django version {self.get_version()}, using settings {settings.SETTINGS_MODULE!r}\n"
            f"Starting Ringhorn for development at http://{bind}/\n"
            "Quit the server with CONTROL-C."
        )
        # One process: what a developer's code keeps in a module is there at the next request.
        server: dict[str, Any] = {"bind": bind, "workers": 1, "control_socket_disable": True}
        # A page that hangs in a debugger is not a stuck worker.
        server["timeout"] = 0
        if not options["use_threading"]:
            server["threads"] = 1
        if options["use_reloader"]:
            server["reload"] = True
            server["reload_extra_files"] = list(self.files_besides_code())
        words = {
            "static": options.get("use_static_handler"),
            "insecure": options.get("insecure_serving"),
            "checks": not options.get("skip_checks"),
        }
        on = " ".join(word for word, value in words.items() if value)
        _launch.replace_process("ringhorn.django", [json.dumps(server)], RINGHORN_RUNSERVER=on)

    def files_besides_code(self) -> list[str]:
        """Templates of the project; Django's own and those of libraries do not change."""
        directories = sorted(map(str, get_template_directories()))
        ours = [path for path in directories if f"-packages{os.sep}" not in path]
        return [os.path.join(path, "**", "*") for path in ours]
