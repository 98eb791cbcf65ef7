"""System checks: where the settings of Django and of the server do not go together."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Warning

from ringhorn import _native
from ringhorn.django import _launch

# What `manage.py ringhorn` runs; `manage.py check --deploy` runs them among all others.
TAG = "ringhorn"

# The arguments of `manage.py ringhorn`, when it is that command that checks.
arguments: Sequence[str] = ()


def check_order(app_configs: object, **kwargs: object) -> list[CheckMessage]:
    """The first application that has a command wins."""
    names = [config.name for config in apps.get_app_configs()]
    static = "django.contrib.staticfiles"
    if static not in names or names.index("ringhorn.django") < names.index(static):
        return []
    return [
        Warning(
            f"'ringhorn.django' stands behind {static!r} in INSTALLED_APPS, so that `runserver` is Django's.",
            hint="Put 'ringhorn.django' in front of it.",
            id="ringhorn.W001",
        )
    ]


def check_server(app_configs: object, **kwargs: object) -> list[CheckMessage]:
    """What matters when Ringhorn serves the project to others."""
    server = server_settings(arguments)
    return [*check_debug(), *check_scheme(server), *check_connections(server)]


def server_settings(argv: Sequence[str]) -> dict[str, Any]:
    """Every setting of the server, from where it would take them: files, environment, arguments.

    The server itself is asked, in a process of its own, for config files are programs. With settings that it
    does not accept it will not start either, and says more about it than could be said here.
    """
    # A small application is loaded in place of the project's, which is loaded here already.
    app = [] if _native.positional(list(argv)) else ["ringhorn.django._launch:nothing"]
    done = subprocess.run(
        [sys.executable, "-m", "ringhorn", *argv, "--print-config", *app],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_launch.environment(),
    )
    found = _native.default_settings()
    for name, value in re.findall(r"^(\w+) += (.*?) +# .*$", done.stdout, re.MULTILINE):
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            # A function of the config file, for one. Nothing here looks at such settings.
            continue
    return found


def check_debug() -> list[CheckMessage]:
    if not settings.DEBUG:
        return []
    return [
        Warning(
            "DEBUG is True: error pages show the project's code and settings to everybody, and each "
            "connection to the database remembers its queries.",
            hint="Set DEBUG to False, or use `manage.py runserver` for development.",
            id="ringhorn.W002",
        )
    ]


def check_scheme(server: dict[str, Any]) -> list[CheckMessage]:
    """Both tell http from https by a header of the proxy: they should mean the same one, and the proxy's."""
    found = []
    header = settings.SECURE_PROXY_SSL_HEADER
    schemes = {name.upper(): value for name, value in (server["secure_scheme_headers"] or {}).items()}
    if header is not None:
        name, value = header[0].removeprefix("HTTP_").replace("_", "-"), header[1]
        if schemes.get(name) != value:
            known = ", ".join(f"{name}: {value}" for name, value in schemes.items()) or "none"
            found.append(
                Warning(
                    f"SECURE_PROXY_SSL_HEADER takes `{name}: {value}` for https, and the server does not: "
                    f"its secure_scheme_headers are {known}.",
                    hint="Name the header that the proxy sets in both.",
                    id="ringhorn.W003",
                )
            )
    trusted = server["forwarded_allow_ips"]
    trusted = trusted.split(",") if isinstance(trusted, str) else list(trusted or ())
    if "*" in [item.strip() for item in trusted]:
        found.append(
            Warning(
                "forwarded_allow_ips is *: whoever reaches the server can say that a request came by https.",
                hint="Name the addresses of the proxies, or see that nobody else reaches the server.",
                id="ringhorn.W004",
            )
        )
    elif header is not None:
        found.append(
            Warning(
                "With SECURE_PROXY_SSL_HEADER Django believes that header from everybody who reaches the "
                "server. The server believes it from forwarded_allow_ips only, and tells Django the scheme.",
                hint="Leave SECURE_PROXY_SSL_HEADER at None, and name the proxies in forwarded_allow_ips "
                f"(now {','.join(map(str, trusted)) or 'nobody'}; a unix socket's peer is always believed).",
                id="ringhorn.W005",
            )
        )
    return found


def check_connections(server: dict[str, Any]) -> list[CheckMessage]:
    """Django keeps a persistent connection for each thread."""
    workers, threads = server["workers"], server["threads"]
    found = []
    for alias, database in settings.DATABASES.items():
        engine = database.get("ENGINE", "")
        if database.get("CONN_MAX_AGE", 0) == 0 or engine.endswith(("sqlite3", "dummy")):
            continue
        count = f"{workers} x {threads} = {workers * threads}" if workers and threads else "many"
        found.append(
            Warning(
                f"CONN_MAX_AGE keeps a connection to the database {alias!r} open for each thread of each "
                f"worker: {count} connections at most.",
                hint="See that the database allows so many from all servers, lower `threads`, or set "
                "CONN_MAX_AGE to 0 and use a pool (OPTIONS['pool'] with psycopg, or PgBouncer).",
                id="ringhorn.W006",
            )
        )
    return found
