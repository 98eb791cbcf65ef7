"""`cfg`: every setting as an attribute, with gunicorn's names."""

from __future__ import annotations

import os
from typing import Any

from ringhorn import _native

# Hooks that nobody set are functions all the same: code that wraps one calls what was there before.
HOOKS = (
    "on_starting on_reload when_ready pre_fork post_fork post_worker_init worker_int worker_abort pre_exec "
    "pre_request post_request child_exit worker_exit nworkers_changed on_exit"
).split()

TLS = (
    "keyfile certfile ssl_version cert_reqs ca_certs suppress_ragged_eofs do_handshake_on_connect ciphers"
).split()


def _nothing(*args: object) -> None:
    """Stand in for a hook that is not set."""


class Setting:
    """One setting with its value."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = _native.check_setting(self.name, value)


class Config:
    """The settings. `cfg.name` reads one, `cfg.set(name, value)` checks a value and keeps it."""

    settings: dict[str, Setting]

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        values = _native.default_settings() if values is None else values
        self.__dict__["settings"] = {name: Setting(name, value) for name, value in values.items()}
        self.__dict__["env_orig"] = dict(os.environ)
        self.__dict__["_changed"] = set()

    def __getattr__(self, name: str) -> Any:
        if name == "settings" or name not in self.settings:
            raise AttributeError(f"No configuration setting for: {name}")
        value = self.settings[name].get()
        if name == "logger_class":
            # Only here: most have no use for Python's logging.
            from ringhorn._logger import make

            return make(value)
        if value is None:
            return self._unset(name)
        if name == "chdir":
            return os.path.abspath(value)
        if name == "pythonpath":
            # One text, as on the command line.
            return ",".join(value) or None
        return value

    def _unset(self, name: str) -> Any:
        """What a setting that nobody set is in effect."""
        if name in HOOKS:
            return _nothing
        if name == "chdir":
            return os.getcwd()
        if name == "user":
            return os.geteuid()
        if name == "group":
            return os.getegid()
        if name == "worker_class":
            return "gthread"
        if name == "sendfile":
            return True
        if name == "config":
            return "./gunicorn.conf.py"
        return None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.settings:
            raise AttributeError("Invalid access!")
        super().__setattr__(name, value)

    def set(self, name: str, value: Any) -> None:
        if name not in self.settings:
            raise AttributeError(f"No configuration setting for: {name}")
        self.settings[name].set(value)
        self._changed.add(name)

    def changed(self) -> dict[str, Any]:
        """The settings that were set here, with their values."""
        return {name: self.settings[name].value for name in sorted(self._changed)}

    def validate(self) -> None:
        """Do nothing: what concerns several settings is checked when the server starts."""

    def __str__(self) -> str:
        width = max(map(len, self.settings))
        return "\n".join(f"{name:{width}} = {self.settings[name].value}" for name in sorted(self.settings))

    # --- what gunicorn computes from settings

    @property
    def address(self) -> list[Any]:
        return [parse_address(bind) for bind in self.settings["bind"].value]

    @property
    def uid(self) -> int:
        return self.user

    @property
    def gid(self) -> int:
        return self.group

    @property
    def env(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.settings["raw_env"].value or [])

    @property
    def proc_name(self) -> str:
        return self.settings["proc_name"].value or self.settings["wsgi_app"].value or "ringhorn"

    @property
    def worker_class_str(self) -> str:
        value = self.worker_class
        return value if isinstance(value, str) else value.__name__

    @property
    def statsd_host(self) -> Any:
        """The (host, port) or the path of the statsd server, as classes that derive from gunicorn's Statsd want it."""
        value = self.settings["statsd_host"].value
        if not value:
            return None
        # A host of that name, as in gunicorn, when a number follows.
        if value.startswith("unix:") and value.removeprefix("unix:").isdecimal():
            return "unix", int(value.removeprefix("unix:"))
        return parse_address(value.removeprefix("udp://"), 8125)

    @property
    def is_ssl(self) -> bool:
        return False

    @property
    def ssl_options(self) -> dict[str, Any]:
        return {name: self.settings[name].value for name in TLS}


def parse_address(text: str, default_port: int = 8000) -> Any:
    """Give the (host, port) or the path that a bind names."""
    if text.startswith("unix:"):
        return text.removeprefix("unix:").removeprefix("//")
    if text.startswith("fd://"):
        return int(text.removeprefix("fd://"))
    text = text.removeprefix("tcp://").lower()
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        host, port = text, ""
    return host.strip("[]") or "0.0.0.0", int(port or default_port)
