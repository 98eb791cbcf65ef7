"""gunicorn.config: the settings."""

from __future__ import annotations

import os

from ringhorn import _config
from ringhorn._config import Setting as Setting


class Config(_config.Config):
    """Settings with their defaults, before anybody set one."""

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        super().__init__()
        self.usage = usage
        self.prog = prog


def make_settings(ignore: tuple[str, ...] | None = None) -> dict[str, Setting]:
    return {name: item for name, item in Config().settings.items() if name not in (ignore or ())}


def get_default_config_file() -> str | None:
    path = os.path.join(os.path.abspath(os.getcwd()), "gunicorn.conf.py")
    return path if os.path.exists(path) else None
