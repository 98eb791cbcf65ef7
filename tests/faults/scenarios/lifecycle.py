"""What operators do on purpose: reload, recycle, scale, upgrade, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ..clients import Connection, Load, Lost, message, wait
from ..run import Case, scenario
from ..servers import NotOffered, Site, alive


@scenario("1, 2, 3", native=True)
def reload_hup(case: Case) -> None:
    """HUP while clients ask: with good versions, one that cannot boot, and one that boots slowly."""
    site = case.start()
    rounds = case.pick(3, 20)
    with Load(site.address) as load:
        for number in range(rounds):
            reload(case, site, load, f"v{number}")
    case.number("reloads", rounds)
    case.nothing_lost(f"{rounds} reloads", load)
    if case.kind.is_native:
        return

    with Load(site.address) as load:
        old = set(site.workers())
        site.release("slow", before="import time\nwhile not os.path.exists('go'): time.sleep(0.01)")
        site.signal(signal.SIGHUP)
        case.eventually("a new worker begins to load", lambda: site.imports("slow"))
        began = time.monotonic()
        served = load.go_on(200, patience=3)
        time.sleep(max(0.0, case.pick(0, 4) - (time.monotonic() - began)))
        case.promise("the old version serves while the new one loads", served)
        (site.folder / "go").touch()
        case.eventually(
            "the version that loads slowly serves in the end",
            lambda: load.only("slow") and not old & set(site.workers()),
            30,
        )
    case.number("slowest while a version loads, ms", load.percentile(1.0))
    case.nothing_lost("a version that loads slowly", load)

    with Load(site.address) as load:
        workers = set(site.workers())
        site.release("broken", before="raise RuntimeError('broken release')")
        site.signal(signal.SIGHUP)
        case.eventually("the broken version is tried", lambda: site.imports("broken"))
        load.go_on(300, patience=3)
        # Long enough for a server that goes down to do so.
        time.sleep(case.pick(0.5, 7))
        case.must("the old version serves on when the new one cannot boot", load.go_on(100, patience=3))
        case.promise("by the same workers", set(site.workers()) == workers)
        tries = len(site.imports("broken"))
        case.number("tries to boot a broken version", tries)
        case.promise("it is not tried again and again", tries <= 4, tries)
        case.promise("the log has its traceback", "broken release" in site.log())
        reload(case, site, load, "mended")
    case.nothing_lost("a version that cannot boot", load)


def reload(case: Case, site: Site, load: Load, version: str) -> None:
    old = set(site.workers())
    site.release(version)
    site.signal(signal.SIGHUP)
    case.eventually(
        f"version {version} takes over",
        lambda: not old & set(site.workers()) and (case.kind.is_native or load.only(version)),
        30,
    )


@scenario("6", native=True)
def max_requests(case: Case) -> None:
    """Workers that are replaced after a number of requests."""
    site = case.start(max_requests=100)
    first = site.boots()
    wanted = case.pick(8, 100)
    with Load(site.address, new=8, kept=8, pause=0) as load:
        # As many as it gets to in this time, but some.
        wait(lambda: site.boots() - first >= wanted, 40)
        case.promise("workers are replaced", site.boots() - first >= 4, site.boots() - first)
    case.number("workers replaced", site.boots() - first)
    case.number("slowest while workers are replaced, ms", load.percentile(1.0))
    case.nothing_lost("replacing workers", load)


@scenario("6", native=True)
def scale_ttin_ttou(case: Case) -> None:
    """One worker more, one less, while clients ask."""
    if case.kind.name == "granian":
        raise NotOffered("no signal that changes the number of workers")
    site = case.start()
    with Load(site.address) as load:
        for _ in range(case.pick(1, 4)):
            for number, count in (
                (signal.SIGTTIN, 3),
                (signal.SIGTTIN, 4),
                (signal.SIGTTOU, 3),
                (signal.SIGTTOU, 2),
            ):
                site.signal(number)
                case.eventually(f"{count} workers", lambda n=count: len(site.workers()) == n, 20)
                load.go_on(100)
        # Faster than they can boot.
        for number in [signal.SIGTTIN] * 3 + [signal.SIGTTOU] * 3:
            site.signal(number)
            time.sleep(0.02)
        case.eventually("the same number as before", lambda: len(site.workers()) == 2, 20)
        load.go_on(100)
    case.nothing_lost("scaling", load)


# --- USR2


@contextlib.contextmanager
def upgraded(case: Case, site: Site, pidfile: Path) -> Iterator[int]:
    """USR2; the new master's process id once its workers serve."""
    second = pidfile.with_name(pidfile.name + ".2")
    boots = site.boots()
    site.signal(signal.SIGUSR2)
    new = 0
    try:
        case.eventually(
            "the new master writes its pidfile", lambda: second.exists() and second.read_text().strip(), 20
        )
        new = int(second.read_text())
        case.eventually(
            "the new master's workers boot",
            lambda: len(site.workers(new)) == 2 and site.boots() >= boots + 2,
            20,
        )
        yield new
    finally:
        if new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(new, signal.SIGTERM)
            if not wait(lambda: not alive(new), 10):
                os.kill(new, signal.SIGKILL)


@scenario("7", native=True)
def upgrade_usr2(case: Case) -> None:
    """USR2: taken back, with a program that does not start, and carried through."""
    if case.kind.name == "granian":
        raise NotOffered("no upgrade without closing the listeners")
    pidfile = case.folder / "pid"
    site = case.start(pidfile=pidfile)
    with Load(site.address) as load:
        for _ in range(case.pick(1, 3)):
            with upgraded(case, site, pidfile):
                load.go_on(200)
            load.go_on(100)
        case.promise("the pidfile is the old master's again", pidfile.read_text() == f"{site.pid}\n")
    case.nothing_lost("an upgrade that is taken back", load)

    if not case.kind.is_native:
        broken_program(case, site, pidfile)

    site.release("upgraded")
    with Load(site.address) as load, upgraded(case, site, pidfile) as new:
        load.go_on(100)
        site.signal(signal.SIGTERM)
        case.must("the old master ends with 0", site.end(20) == 0)
        case.eventually(
            "the new one gets the pidfile",
            lambda: pidfile.exists() and pidfile.read_text() == f"{new}\n",
            must=False,
        )
        if not case.kind.is_native:
            case.eventually("only the new one answers", lambda: load.only("upgraded"))
        # The load ends before the last master does.
        load.__exit__()
    case.nothing_lost("an upgrade", load)


def broken_program(case: Case, site: Site, pidfile: Path) -> None:
    with Load(site.address) as load:
        site.release("broken", before="raise RuntimeError('broken release')")
        site.signal(signal.SIGUSR2)
        case.eventually("the broken program is tried", lambda: site.imports("broken"))
        case.eventually(
            "a new master that does not start goes away",
            lambda: not pidfile.with_name("pid.2").exists() and len(site.workers()) == 2,
            20,
        )
        case.promise("the old one serves on", load.go_on(100))
    case.nothing_lost("a program that does not start", load)


# --- TERM


@scenario("8", native=True)
def term_graceful(case: Case) -> None:
    """TERM with a request in hand, clients in the queue, idle connections, and a request that never ends."""
    under_load(case)
    if not case.kind.is_native:
        in_hand_and_in_the_queue(case)

    site = case.start(more={"ringhorn": ["--keep-alive", "60"], "gunicorn": ["--keep-alive", "60"]})
    idle = [site.connect() for _ in range(20)]
    for connection in idle:
        connection.get("/")
    site.signal(signal.SIGTERM)
    begun = time.monotonic()
    case.promise("idle connections do not delay the end", site.end(20) == 0)
    case.number("end with idle connections, s", time.monotonic() - begun)
    if case.kind.is_native:
        return

    site = case.start(graceful_timeout=1)
    gate = site.gate("never")
    with site.connect() as client:
        client.send(message("/gate/never"))
        case.eventually("a request begins", gate.begun)
        site.signal(signal.SIGTERM)
        begun = time.monotonic()
        case.promise("a request that never ends is cut off when the grace is over", site.end(20) == 0)
        case.number("end with a request that never ends (grace of 1 s), s", time.monotonic() - begun)


def in_hand_and_in_the_queue(case: Case) -> None:
    site = case.start(workers=1, threads=1, graceful_timeout=20)
    gate = site.gate("in_hand")
    queued = 16
    with site.connect(20) as in_hand, contextlib.ExitStack() as stack:
        in_hand.send(message("/gate/in_hand"))
        case.eventually("a request begins", gate.begun)
        clients = [stack.enter_context(site.connect(20)) for _ in range(queued)]
        for client in clients:
            client.send(message("/", "Connection: close"))
        site.signal(signal.SIGTERM)
        took = case.eventually(
            "new clients are refused while a request is finished", lambda: refused(site), 5, must=False
        )
        case.number("refusal after TERM, s", took)
        gate.open()
        answer = in_hand.read()
        case.promise("the request in hand is finished", answer.status == 200)
        case.promise("and its answer announces the close", answer.ends_connection)
        lost = 0
        for client in clients:
            try:
                client.read()
            except Lost:
                lost += 1
        case.number("clients in the queue at TERM that get no answer", lost)
        case.promise("clients that wait in the queue are answered", lost == 0, f"{lost} of {queued}")
        case.promise("exit code 0", site.end(20) == 0)


def under_load(case: Case) -> None:
    """Whoever is connected gets an answer; only a connection that comes too late may be refused."""
    site = case.start()
    rounds = case.pick(1, 5)
    lost: list[str] = []
    for _ in range(rounds):
        with Load(site.address, pause=0) as load:
            load.go_on(200)
            site.signal(signal.SIGTERM)
            code = site.end(20)
        case.promise("exit code 0 under load", code == 0, code)
        # A reset in the handshake is a refusal: the listener closed between its two halves.
        lost += [
            f"{loss.client}: {loss.detail}" for loss in load.losses if loss.kind not in ("refused", "reset")
        ]
        site = case.start()
    case.number("lost at TERM under load", len(lost))
    case.promise("at TERM clients are answered or refused", not lost, f"{len(lost)}: {lost[:3]}")
    site.kill()


def refused(site: Site) -> bool:
    try:
        Connection(site.address, 5).close()
    except Lost as lost:
        return lost.kind in ("refused", "reset")
    return False
