"""Workers that die or hang."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from ..clients import Load, Lost, message, wait
from ..run import Case, scenario
from ..servers import Site, alive


@scenario("4", native=True)
def worker_sigkill(case: Case) -> None:
    """A worker is killed every 200 ms while clients ask."""
    site = case.start()
    kills = case.pick(6, 50)
    killed: set[int] = set()
    taken = 0
    # Requests that take some milliseconds from more clients than threads: the queues are never empty.
    with Load(site.address, new=24, kept=8, path=site.target("/busy/5"), pause=0) as load:
        load.go_on(100)
        for _ in range(kills):
            # One that serves: those that are booting have nothing to lose.
            wait(lambda: serving(case, site, load), 5)
            if workers := serving(case, site, load):
                victim = random.choice(workers)
                # Stopped first, so that what it holds is what it loses.
                os.kill(victim, signal.SIGSTOP)
                wait(lambda v=victim: is_stopped(v), 5)
                taken += connections_of(site, victim)
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
            time.sleep(0.2)
        case.eventually("two workers again", lambda: len(site.workers()) == 2, 20)
        case.must("and they serve", load.go_on(200))
    case.number("kills", len(killed))
    case.number("requests", load.asked)
    case.number("lost", len(load.losses))
    case.number("lost for each kill", len(load.losses) / max(1, len(killed)))
    case.number("connections that the killed workers had taken", taken)
    waiting = [loss for loss in load.losses if loss.kind in ("refused", "timed out", "wrong status")]
    case.promise("nobody is refused or left waiting", not waiting, describe(waiting))
    # A connection dies with the process that took it; one that waits in a queue must not.
    case.promise(
        "a kill costs nothing but what its worker had taken", len(load.losses) <= taken, describe(load.losses)
    )
    if not case.kind.is_native:
        begun = {id for pid, id in begun_requests(site) if pid in killed}
        never = [loss for loss in load.losses if loss.id not in begun]
        case.number("lost, and never begun by the application", len(never))


def serving(case: Case, site: Site, load: Load) -> list[int]:
    """The workers of whom there are answers."""
    told = {text.split()[0] for text in list(load.recent)}
    return [pid for pid in site.workers() if case.kind.is_native or str(pid) in told]


def is_stopped(pid: int) -> bool:
    """Whether all threads stand still: the signal takes its time on another CPU."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(stat.rpartition(")")[2].split()[0] in "TZ" for stat in stats)
    return True


def connections_of(site: Site, pid: int) -> int:
    """Connections of clients that this process holds, without those that wait in a listener's queue."""
    port = f":{site.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = "0A"
    numbers = {row[9] for row in rows if row[1].endswith(port) and row[3] != listening}
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(fd)[len("socket:[") : -1] in numbers
    return count


def begun_requests(site: Site) -> list[tuple[int, str]]:
    lines = (site.folder / "begun").read_text().splitlines()
    return [(int(pid), id) for pid, id in (line.split() for line in lines)]


def describe(losses) -> str:
    return f"{len(losses)}: {dict(Counter(f'{loss.client}: {loss.kind}' for loss in losses))}"


@scenario("4")
def worker_crash(case: Case) -> None:
    """Requests that kill their worker, and one that asks to exit."""
    site = case.start(threads=1)
    ways = ("segfault", "exit", "abort", "kill")
    with Load(site.address, new=8, kept=0) as load:
        for way in ways:
            load.go_on(50)
            before = site.workers()
            try:
                site.get(f"/crash/{way}")
                case.promise(f"{way} ends the worker", False)
            except Lost:
                pass
            # Not those of before: a worker that has died is one until it is reaped.
            case.eventually(
                "two workers again",
                lambda before=before: len(site.workers()) == 2 and site.workers() != before,
                20,
            )
    case.number("bystanders lost by a crash", len(load.losses))
    waiting = [loss for loss in load.losses if loss.kind in ("refused", "timed out", "wrong status")]
    case.promise("bystanders are not refused nor left waiting by a crash", not waiting, describe(waiting))
    if not case.kind.name == "granian":
        case.promise("the log names the signal", "SIGSEGV" in site.log() or "signal 11" in site.log())

    workers = site.workers()
    with Load(site.address, new=4, kept=4) as load:
        for _ in range(4):
            with site.connect() as client:
                client.send(message("/crash/sys_exit_3"))
                client.rest()
        time.sleep(case.pick(0.2, 1))
        case.must("sys.exit(3) in a request ends no server", not site.ended() and load.go_on(50))
        case.promise("and no worker", site.workers() == workers)
    case.nothing_lost("sys.exit(3) in a request", load)


@scenario("9")
def worker_timeout(case: Case) -> None:
    """A request that never ends: the worker is found, named in the log, and replaced."""
    for target, text in (
        ("/gate/never", "a request that sleeps"),
        ("/hold/60", "C code that holds the interpreter lock"),
    ):
        site = case.start(threads=1, timeout=1)
        name = target.split("/")[1]
        gate = site.gate("never" if name == "gate" else name)
        with site.connect(30) as client:
            client.send(message(target))
            case.eventually(f"{text} begins", gate.begun)
            victim = gate.pids()[0]
            begun = time.monotonic()
            found = wait(lambda v=victim: not alive(v), case.pick(8, 12))
            case.number(
                f"{text}: replaced after (timeout of 1 s), s", time.monotonic() - begun if found else "never"
            )
            if case.promise(f"{text}: the worker is ended", found):
                case.promise(f"{text}: the log names the request", target in site.log(), site.log()[-500:])
                case.eventually(
                    f"{text}: another one serves",
                    lambda s=site: len(s.workers()) == 2 and s.get("/").status == 200,
                )
        site.kill()
