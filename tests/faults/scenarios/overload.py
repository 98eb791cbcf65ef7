"""Requests that take too long, and more of them than can be served."""

from __future__ import annotations

import contextlib
import time

from ..clients import Load, Lost, message, wait
from ..run import Case, scenario
from ..servers import NotOffered


@scenario("9")
def request_timeout(case: Case) -> None:
    """A request that takes too long is answered for, and costs no other one anything."""
    if not case.kind.is_ringhorn:
        raise NotOffered("no deadline for a single request")
    site = case.start(threads=4, more={"ringhorn": ["--request-timeout", "1"]})
    with Load(site.address) as load:
        for number in range(case.pick(2, 6)):
            gate = site.gate(f"stuck{number}")
            with site.connect(15) as client:
                client.send(message(f"/gate/stuck{number}"))
                begun = time.monotonic()
                answer = client.read()
                case.number("answered after (deadline of 1 s), s", time.monotonic() - begun)
                case.promise(
                    "503 while the request is stuck",
                    answer.status == 503 and gate.begun() == 1,
                    answer.status,
                )
            # The stack is taken by another thread, as long as the request is there.
            wait(lambda number=number: f"/gate/stuck{number}" in site.log(), 5)
            gate.open()
        load.go_on(100)
    case.promise(
        "the log names the request and where it stands",
        "/gate/stuck0" in site.log() and "in gate" in site.log(),
    )
    case.nothing_lost("requests that take too long", load)


@scenario("10")
def overload(case: Case) -> None:
    """More requests than threads: who waits too long is turned away, and never reaches the application."""
    if not case.kind.is_ringhorn:
        raise NotOffered("no bound for waiting requests")
    site = case.start(workers=1, threads=1, more={"ringhorn": ["--queue-timeout", "0.3"]})
    gate = site.gate("blocker")
    count = 20
    with site.connect(30) as blocker, contextlib.ExitStack() as stack:
        # Open already: a worker that cannot serve need not accept.
        clients = [stack.enter_context(site.connect(15)) for _ in range(count)]
        for client in clients:
            client.get("/")
        blocker.send(message("/gate/blocker"))
        case.eventually("the only thread is taken", gate.begun)
        for number, client in enumerate(clients):
            client.send(message(f"/busy/1?id={number}"))
        turned_away = 0
        for client in clients:
            with contextlib.suppress(Lost):
                answer = client.read()
                turned_away += answer.status == 503 and "retry-after" in answer.fields
        gate.open()
        blocker.read()
    case.number("turned away", turned_away)
    case.promise(
        "503 with Retry-After while the thread is taken", turned_away == count, f"{turned_away} of {count}"
    )
    served = site.get("/busy/1?id=served").status == 200
    reached = (site.folder / "begun").read_text().split()[1::2]
    case.promise(
        "none of them reaches the application, and the next one does",
        served and reached == ["served"],
        reached,
    )
