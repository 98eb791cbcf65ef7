"""The short form of every scenario, against Ringhorn."""

from __future__ import annotations

import pytest

from . import scenarios  # noqa: F401  registers them
from .__main__ import IO_BACKENDS
from .run import SCENARIOS, run
from .servers import find, uring_missing


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = list(metafunc.config.getoption("--io") or IO_BACKENDS)
    if uring_missing():
        wanted = [io for io in wanted if io != "uring"] or ["uring"]
    metafunc.parametrize(
        ("name", "io"),
        [
            pytest.param(each.name, io, id=f"{each.name}-{io}")
            for each in SCENARIOS.values()
            # What the network's backend has no part in runs once.
            for io in (wanted if each.network else wanted[:1])
        ],
    )


def test_every_promise_is_kept(name: str, io: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--server"):
        pytest.skip("other servers: python -m tests.faults")
    if io == "uring" and uring_missing():
        pytest.skip("io_uring cannot run here")
    outcome = run(name, find("ringhorn", io, None), full=False)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    told = "\n".join(f"{promise.text}: {promise.detail}" for promise in outcome.broken)
    assert not outcome.error and not outcome.broken, (
        f"{told}\n{outcome.error}\n{outcome.numbers}\n{outcome.logs}"
    )
