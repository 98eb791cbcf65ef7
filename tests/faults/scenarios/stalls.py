"""Workers that stand still, and what others notice of it."""

from __future__ import annotations

import os
import signal
import time

from ..clients import Load, message, wait
from ..run import Case, scenario
from ..servers import alive
from .crashes import describe
from .visitors import warm


@scenario("5")
def boot_crash(case: Case) -> None:
    """A version that dies when it is loaded, found when a worker is replaced."""
    site = case.start()
    with Load(site.address, new=4, kept=0) as load:
        site.release("dies", before="os._exit(7)")
        os.kill(site.workers()[0], signal.SIGKILL)
        seconds = case.pick(2.0, 10.0)
        time.sleep(seconds)
        tries = len(site.imports("dies"))
        case.number("boots of a version that dies, per s", tries / seconds)
        case.promise(
            "a worker that dies at once is tried with growing pauses", tries <= 8, f"{tries} in {seconds} s"
        )
        case.must("the other one serves", load.go_on(50, patience=3))
        site.release("mended")
        case.eventually(
            "the mended version is found without a signal",
            lambda: len(site.workers()) == 2 and site.imports("mended"),
            30,
        )
    lost = [loss for loss in load.losses if loss.kind not in ("closed", "truncated")]
    case.promise("nobody waits for the slot that is empty", not lost, describe(lost))


@scenario("10, 9")
def stuck_worker(case: Case) -> None:
    """One request blocks one of two workers that have one thread each."""
    site = case.start(threads=1, timeout=60, graceful_timeout=60)
    gate = site.gate("blocker")
    with Load(site.address, new=4, kept=6, pause=0.01) as before:
        before.go_on(200)
    case.number("p99 of others before, ms", before.percentile(0.99))
    with Load(site.address, new=4, kept=6, pause=0.01) as load, site.connect(60) as blocker:
        load.go_on(100)
        for client in load.clients:
            client.latencies.clear()
        blocker.send(message("/gate/blocker"))
        case.eventually("the request begins", gate.begun)
        began = time.monotonic()
        waiting = load.everyone_goes_on(5, patience=4)
        case.promise(
            "all others are answered while it blocks", waiting == 0, f"{waiting} of {len(load.clients)} wait"
        )
        time.sleep(max(0.0, case.pick(1.0, 5.0) - (time.monotonic() - began)))
        gate.open()
        case.promise("and it is answered in the end", blocker.read().status == 200)
    case.number("p99 of others meanwhile, ms", load.percentile(0.99))
    case.number("slowest of others meanwhile, ms", load.percentile(1.0))
    case.number("others over 0.5 s", sum(time > 0.5 for client in load.clients for time in client.latencies))
    case.nothing_lost("a blocked worker", load)


@scenario("9, 10")
def worker_sigstop(case: Case) -> None:
    """A worker is stopped with SIGSTOP: others take its clients, and it is replaced."""
    site = case.start(timeout=2)
    warm(site)
    victim = site.workers()[0]
    os.kill(victim, signal.SIGSTOP)
    begun = time.monotonic()
    # Clients that it had taken before would have to wait for its end.
    with Load(site.address, new=8, kept=0, pause=0.005, timeout=15) as load:
        # Before the timeout strikes: nobody waits for that.
        waiting = load.everyone_goes_on(3, patience=30)
        served = alive(victim)
        case.promise("new clients are answered by others before it is replaced", waiting == 0 and served)
        found = wait(lambda: not alive(victim), 12)
        case.number("replaced after (timeout of 2 s), s", time.monotonic() - begun if found else "never")
        case.promise("it is replaced", found and wait(lambda: len(site.workers()) == 2, 10))
        load.go_on(100)
        if not found:
            os.kill(victim, signal.SIGKILL)
    case.number("p50 of new clients meanwhile, ms", load.percentile(0.5))
    case.number("slowest new client, ms", load.percentile(1.0))
    case.nothing_lost("a stopped worker", load)
