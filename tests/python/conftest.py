"""Fixtures: a server on each I/O backend, started with any application and arguments. The options
are in ../conftest.py.

`--server "gunicorn -k gthread --threads 4"` runs the same tests against another server: it is the
oracle for what is not Ringhorn's own.
"""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Callable, Iterator

import pytest

import harness
from harness import Server

IO_BACKENDS = ("uring", "epoll")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "io" in metafunc.fixturenames:
        config = metafunc.config
        backends = ["other"] if config.getoption("server") else config.getoption("io") or IO_BACKENDS
        metafunc.parametrize("io", backends, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("server"):
        return
    for item in items:
        for marker in ("ringhorn_only", "oracle_differs"):
            found = item.get_closest_marker(marker)
            if found:
                item.add_marker(pytest.mark.skip(reason=" ".join([marker, *found.args])))


@pytest.fixture(scope="session")
def io(request: pytest.FixtureRequest) -> str:
    """The I/O backend of this run; skipped where the machine does not have it."""
    missing = harness.uring_missing() if request.param == "uring" else None
    if missing:
        pytest.skip(f"io_uring cannot run here: {missing}")
    return request.param


@pytest.fixture(scope="session")
def start(
    io: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Server]:
    """Starts a server for an application: `start("module:attribute", "-w", "1", env={...})`."""
    other = request.config.getoption("server")
    command = shlex.split(other) if other else [sys.executable, "-m", "ringhorn", "--io", io]
    logs = tmp_path_factory.mktemp("logs")
    count = itertools.count()

    def run(app: str | None, *args: str, **options) -> Server:
        # Without an application the config file names it.
        return Server(command, [*args, app] if app else args, log=logs / f"{next(count)}.log", **options)

    return run


@pytest.fixture
def serve(start: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """Servers of one test: stopped with TERM at its end, which must give exit code 0 and no panic."""
    with harness.serving(start) as keep:
        yield keep


@pytest.fixture(scope="module")
def serve_module(start: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """The same for servers that all tests of a module share."""
    with harness.serving(start) as keep:
        yield keep
