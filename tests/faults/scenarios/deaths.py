"""A master that dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from ..clients import Lost, message, wait
from ..run import Case, scenario
from ..servers import Site, alive


@scenario("19", native=True)
def master_sigkill(case: Case) -> None:
    """The master is killed: its workers leave, idle or busy, and the port is free."""
    for text, target in (
        ("idle workers", None),
        ("a busy worker", "/gate/busy"),
        ("a worker in C code", "/hold/20"),
    ):
        if target and case.kind.is_native:
            continue
        site = case.start()
        workers = site.workers()
        with contextlib.ExitStack() as stack:
            if target:
                client = stack.enter_context(site.connect(30))
                client.send(message(target))
                gate = site.gate("busy" if "gate" in target else "hold")
                case.eventually("the request begins", gate.begun)
            os.kill(site.pid, signal.SIGKILL)
            site.process.wait()
            begun = time.monotonic()
            again = case.start(port=site.port, folder=site.folder, wait_for_answer=False)
            gone = wait(lambda w=workers: not any(map(alive, w)), case.pick(5, 25))
            case.number(f"{text} gone after, s", time.monotonic() - begun if gone else "never")
            case.promise(f"{text} leave", gone)
            up = wait(lambda a=again: a.ended() or answers(a), 10)
            case.promise(f"{text}: the port is free at once", up and not again.ended(), again.log()[-500:])
        for pid in workers:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        again.kill()


def answers(site: Site) -> bool:
    try:
        return site.get("/", timeout=2).status == 200
    except Lost:
        return False
