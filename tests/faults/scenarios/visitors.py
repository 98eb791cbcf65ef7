"""What clients do: slow ones, idle ones, many, rude ones, and those who leave."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import time
from collections import Counter

from ..clients import Connection, Load, Lost, closed_by_peer, message, wait
from ..run import Case, Skipped, scenario
from ..servers import NotOffered, Site

MB = 1_000_000


def raise_descriptors(wanted: int) -> int:
    """For this process and the servers that it starts; how many there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    allowed = min(wanted, hard)
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(soft, allowed)


def settled(site: Site, descriptors: int, patience: float = 15.0) -> bool:
    """Whether the workers come back to so many descriptors, give or take those that a runner keeps open."""
    return wait(lambda: site.descriptors() <= descriptors, patience)


def warm(site: Site) -> None:
    """What the first requests allocate once is nobody's leak."""
    with Load(site.address, new=4, kept=4, path=site.target("/varied/7"), pause=0) as load:
        load.go_on(400)
    time.sleep(0.2)


def slow_kinds(site: Site) -> dict[str, tuple[bytes, int | None]]:
    """What each kind sends at once, and its receive buffer."""
    upload, body = site.target("/upload").encode(), site.target("/body/100000").encode()
    return {
        "head": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", None),
        "body": (
            b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" % upload + b"x" * 1000,
            None,
        ),
        "reader": (b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % body, 4096),
        "unclosed": (b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", None),
    }


@scenario("11", native=True)
def slow_clients(case: Case) -> None:
    """Clients that send a head, send a body, or read byte by byte, and clients that never close."""
    each = case.pick(60, 1000)
    if raise_descriptors(4 * each + 500) < 4 * each + 500:
        raise Skipped(f"needs {4 * each + 500} open files")
    site = case.start(more={"ringhorn": ["--header-timeout", "2"]} if not case.full else {})
    warm(site)
    before = site.resident()
    clients: list[tuple[str, Connection]] = []
    try:
        for kind, (first, receive_buffer) in slow_kinds(site).items():
            for _ in range(each):
                try:
                    client = site.connect(2, receive_buffer=receive_buffer)
                except Lost:
                    # The queue is full: more of them change nothing.
                    break
                client.send(first)
                client.socket.setblocking(False)
                clients.append((kind, client))
        case.number("slow clients that got in", len(clients))
        with Load(site.address, new=4, kept=4, pause=0.01, timeout=2) as load:
            end = time.monotonic() + case.pick(1.5, 8)
            while time.monotonic() < end:
                begun = time.monotonic()
                for kind, client in clients:
                    drip(kind, client)
                time.sleep(max(0.0, 0.5 - (time.monotonic() - begun)))
        case.number("requests of healthy clients", load.asked)
        case.number("healthy clients failed, %", 100 * len(load.losses) / max(1, load.asked))
        case.number("p99 of healthy clients, ms", load.percentile(0.99))
        case.promise("healthy clients notice nothing", not load.losses, f"{dict(load.lost)} of {load.asked}")
        memory = max(0, site.resident() - before)
        case.number("memory for each slow client, KB", memory / max(1, len(clients)) / 1000)
        case.promise("memory is bounded", memory < 300 * MB, f"{memory / MB:.0f} MB")
        if not case.full:
            heads = [client for kind, client in clients if kind == "head"]
            case.eventually(
                "heads that take too long are ended",
                lambda: all(closed_by_peer(c.socket) for c in heads),
                must=False,
            )
    finally:
        for _, client in clients:
            client.close()
    case.promise("and it serves on", serves(site))


def drip(kind: str, client: Connection) -> None:
    with contextlib.suppress(OSError):
        if kind == "reader":
            client.socket.recv(1)
        elif kind != "unclosed":
            client.socket.send(b"x")


def serves(site: Site) -> bool:
    """Each worker answers again, after what it has been through."""
    with contextlib.suppress(Lost):
        return all(site.get("/", timeout=15).status == 200 for _ in range(8))
    return False


@scenario("12", native=True)
def idle_10k(case: Case) -> None:
    """Idle connections: their memory, their CPU, and newcomers when the server is full."""
    count = case.pick(1000, 10_000)
    if raise_descriptors(count + 500) < count + 500:
        raise Skipped(f"needs {count + 500} open files")
    keep = {"ringhorn": ["--keep-alive", "300"], "gunicorn": ["--keep-alive", "300"]}
    site = case.start(connections=2 * count if case.kind.name != "granian" else None, more=keep)
    if site.get_kept("/").ends_connection:
        raise NotOffered("it keeps no connections")
    warm(site)
    before = site.resident()
    with contextlib.ExitStack() as stack:
        held, failed = [], 0
        for number in range(count):
            # Several addresses of our own, so that no range of ports runs out.
            try:
                client = stack.enter_context(site.connect(3, source=f"127.0.0.{2 + number // 5000}"))
                client.get("/")
                held.append(client)
            except Lost:
                failed += 1
                if failed == 3:
                    break
        open_now = sum(not closed_by_peer(client.socket) for client in held)
        case.number("connections held", open_now)
        case.number("memory for each, KB", max(0, site.resident() - before) / max(1, open_now) / 1000)
        case.promise(f"{count} idle connections are held", open_now == count, f"{open_now} of {count}")
        idle = site.cpu_share(1.0)
        case.number("CPUs in use while all are idle", idle)
        case.promise("they cost no CPU", idle < 0.2, idle)
        asked = held[:: max(1, len(held) // 50)]
        case.promise("each of them can go on", all(can_go_on(client) for client in asked))
    site.kill()
    full_house(case)


def can_go_on(client: Connection) -> bool:
    with contextlib.suppress(Lost):
        return client.get("/").status == 200
    return False


def full_house(case: Case) -> None:
    """More idle connections than a worker may hold: newcomers are served all the same."""
    if case.kind.name == "granian":
        return
    site = case.start(
        connections=20, more={"ringhorn": ["--keep-alive", "60"], "gunicorn": ["--keep-alive", "60"]}
    )
    with contextlib.ExitStack() as stack:
        served = 0
        for _ in range(60):
            with contextlib.suppress(Lost):
                client = stack.enter_context(site.connect(2))
                client.get("/")
                served += 1
        with Load(site.address, new=4, kept=0, timeout=2) as load:
            load.go_on(40, patience=4)
        case.number("newcomers to a full server that failed", 60 - served + len(load.losses))
        case.promise(
            "a full server ends idle connections and serves newcomers",
            served == 60 and not load.losses,
            f"{served} of 60, {dict(load.lost)}",
        )


@scenario("13")
def memory_growth(case: Case) -> None:
    """Memory over many requests, a large upload, a large answer, and requests whose answers nobody reads."""
    site = case.start()
    warm(site)
    count = case.pick(6_000, 60_000)
    run = 50
    batch = b"".join(message(f"/varied/{number}") for number in range(run))

    def ask(total: int) -> None:
        for _ in range(total // run // 8):
            with site.connect() as client:
                for _ in range(8):
                    client.send(batch)
                    for _ in range(run):
                        if client.read().ends_connection:
                            break
                    else:
                        continue
                    break

    ask(count // 3)
    before = site.resident()
    ask(count)
    growth = site.resident() - before
    case.number("growth over many requests, MB", growth / MB)
    case.promise("memory is flat over many requests", growth < 8 * MB, f"{growth / MB:.1f} MB")

    size = case.pick(30, 100) * MB
    site.forget_peak()
    base = site.resident()
    answer = site.post("/upload", b"u" * size)
    case.promise("a large upload arrives", answer.body == b"%d\n" % size, answer)
    growth = site.peak() - base
    case.number("peak of an upload, MB", growth / MB)
    case.promise("it is not held in memory", growth < 16 * MB, f"{growth / MB:.1f} MB")

    pieces = case.pick(1_000, 16_000)
    site.forget_peak()
    base = site.resident()
    with site.connect(60) as client:
        client.send(message(f"/stream/{pieces}", "Connection: close"))
        got = 0
        while data := client.socket.recv(1 << 20):
            got += len(data)
    case.promise("a large answer arrives", got >= pieces * 65536, got)
    growth = site.peak() - base
    case.number("peak of a streamed answer, MB", growth / MB)
    case.promise("it is not held in memory", growth < 16 * MB, f"{growth / MB:.1f} MB")

    site.forget_peak()
    base = site.resident()
    with site.connect(10) as client:
        client.socket.setblocking(False)
        sent, end = 0, time.monotonic() + case.pick(1, 5)
        data = message("/body/20000") * 100
        while time.monotonic() < end and sent < 200 * MB:
            try:
                sent += client.socket.send(data)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        growth = site.peak() - base
    case.number("peak of unread pipelined answers, MB", growth / MB)
    case.promise("answers that nobody reads are not piled up", growth < 16 * MB, f"{growth / MB:.1f} MB")
    case.promise("and it serves on", serves(site))


def stages_of(site: Site) -> dict[str, tuple[bytes, int]]:
    """What a client sends and how much it reads before it goes."""
    upload = b"POST %s HTTP/1.1\r\nHost: a\r\n" % site.target("/upload").encode()
    small, large, stream = (
        b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % site.target(path).encode()
        for path in ("/body/10", "/body/1000000", "/stream/16")
    )
    return {
        "before a byte": (b"", 0),
        "mid-head": (b"GET / HTTP/1.1\r\nHost: loc", 0),
        "mid-body": (upload + b"Content-Length: 5000\r\n\r\n" + b"b" * 1000, 0),
        "mid-chunk": (upload + b"Transfer-Encoding: chunked\r\n\r\n1000\r\nabc", 0),
        "before the answer": (small, 0),
        "mid-answer": (large, 1000),
        "mid-stream": (stream, 1000),
        "behind an answer": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT", 10),
    }


@scenario("14", native=True)
def conn_storm(case: Case) -> None:
    """Connections that are opened and dropped at every stage, with FIN and with RST."""
    total = case.pick(2_400, 100_000)
    site = case.start()
    storm(site, 800)
    serves(site)
    settled(site, 0, patience=1)
    before = site.descriptors()
    # What grows in the first half may be tables that got their size; what grows on is a leak.
    failed = storm(site, total // 2)
    settled(site, before)
    memory = site.resident()
    workers = site.workers()
    failed += storm(site, total // 2)
    case.number("connections", total)
    case.number("refused or reset at connecting", failed)
    case.promise("none is refused", failed == 0, failed)
    case.promise("descriptors return", settled(site, before), f"{site.descriptors()}, were {before}")
    case.number("descriptors left over", max(0, site.descriptors() - before))
    growth = site.resident() - memory
    case.number("memory left over of the second half, MB", growth / MB)
    case.promise("memory returns", growth < 4 * MB, f"{growth / MB:.1f} MB")
    case.promise("the same workers live", site.workers() == workers)
    # Slots and buffers: as many connections as the storm had at once are served at the same time.
    with contextlib.ExitStack() as stack:
        clients = []
        with contextlib.suppress(Lost):
            for _ in range(case.pick(200, 800)):
                clients.append(stack.enter_context(site.connect()))
                clients[-1].send(message(site.target("/body/5000")))
            answered = sum(client.read().status == 200 for client in clients)
            case.promise(
                "slots and buffers return: many can ask at once", answered == case.pick(200, 800), answered
            )


def storm(site: Site, total: int, at_once: int = 50) -> int:
    failed = 0
    stages = list(stages_of(site).values())
    for number in range(0, total, at_once):
        batch = []
        for index in range(at_once):
            data, read = stages[(number + index) % len(stages)]
            try:
                client = site.connect(10)
            except Lost:
                failed += 1
                continue
            client.send(data)
            batch.append((client, read))
        for index, (client, read) in enumerate(batch):
            if read:
                with contextlib.suppress(OSError):
                    client.socket.recv(read)
            # FIN and RST change places from round to round, so that each stage meets both.
            if (index // len(stages) + number // at_once) % 2:
                client.reset()
            else:
                client.close()
    return failed


@scenario("14")
def fd_exhaustion(case: Case) -> None:
    """No descriptor is left: first because of clients, then because of the application."""
    site = case.start(descriptors=400, threads=2)
    warm(site)
    log = len(site.log())
    with contextlib.ExitStack() as stack:
        for _ in range(900):
            with contextlib.suppress(Lost):
                stack.enter_context(site.connect(1))
        cpu = site.cpu_share(case.pick(0.5, 3))
        case.number("CPUs in use while full of clients", cpu)
        case.promise("no busy loop while full of clients", cpu < 0.5, cpu)
    begun = time.monotonic()
    case.promise("it serves when they have left", wait(lambda: served(site), 10))
    case.number("served again after, s", time.monotonic() - begun)
    case.promise("no worker died", site.boots() == 2, site.boots())
    case.number("log bytes, clients", len(site.log()) - log)
    case.promise("the log is not flooded", len(site.log()) - log < 20_000, len(site.log()) - log)
    site.kill()

    site = case.start(workers=1, descriptors=400, threads=2)
    log = len(site.log())
    (worker,) = site.workers()
    with site.connect() as kept:
        if kept.get("/").ends_connection:
            # Without a kept connection nobody could ask for the descriptors back.
            return
        kept.get("/hog/all")
        waiting = [site.connect(15) for _ in range(20)]
        for client in waiting:
            client.send(message("/", "Connection: close"))
        cpu = site.cpu_share(case.pick(0.5, 3))
        case.number("CPUs in use while the application has all descriptors", cpu)
        case.promise("no busy loop while it cannot accept", cpu < 0.5, cpu)
        case.promise("connections that are open are served", kept.get("/hog/free").status == 200)
        late = 0
        for client in waiting:
            try:
                client.read()
            except Lost:
                late += 1
        case.number("clients lost that waited meanwhile", late)
        case.promise("those who waited are served then", late == 0, f"{late} of 20")
    case.promise("the worker lives", site.workers() == [worker])
    case.promise("the log is not flooded here either", len(site.log()) - log < 20_000, len(site.log()) - log)


def served(site: Site) -> bool:
    with contextlib.suppress(Lost):
        return site.get("/", timeout=1).status == 200
    return False


@scenario("15", native=True)
def garbage_flood(case: Case) -> None:
    """Bytes that are no requests, or nearly."""
    count = case.pick(800, 20_000)
    site = case.start()
    workers = site.workers()
    log = len(site.log())
    chance = random.Random(2026)
    kinds: Counter[str] = Counter()
    hung = 0
    for number in range(count):
        with contextlib.suppress(OSError), site.connect(3) as client:
            client.send(garbage(chance, number, site.target("/upload")))
            client.socket.shutdown(socket.SHUT_WR)
            try:
                status = client.read().status
                kinds[f"{status // 100}xx"] += 1
            except Lost as lost:
                kinds["closed"] += lost.kind != "timed out"
                hung += lost.kind == "timed out"
    for kind, seen in sorted(kinds.items()):
        case.number(f"answered: {kind}", seen)
    case.promise("no 5xx", not kinds["5xx"], dict(kinds))
    case.promise("none is left hanging", hung == 0, hung)
    case.promise("no worker dies", site.workers() == workers)
    each = (len(site.log()) - log) / count
    case.number("log bytes for each", each)
    case.promise("a short line each at most", each < 200, each)
    case.promise("no traceback", "Traceback" not in site.log())
    case.promise("and it serves on", serves(site))


def garbage(chance: random.Random, number: int, upload: str) -> bytes:
    kind = number % 8
    valid = bytearray(message(f"{upload}?{number}", "X-A: b", method="POST", body=b"body"))
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 3000))
    if kind == 1:
        for _ in range(chance.randrange(1, 6)):
            valid[chance.randrange(len(valid) - 4)] = chance.randrange(256)
        return bytes(valid)
    if kind == 2:
        return bytes(valid[: chance.randrange(1, len(valid))])
    if kind == 3:
        return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500)
    if kind == 4:
        return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * chance.randrange(90, 3000) + b"\r\n"
    if kind == 5:
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.randbytes(50)
    if kind == 6:
        return (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
            + chance.randbytes(20)
        )
    return b"GET /" + b"a" * chance.randrange(1, 70_000) + b" HTTP/1.1\r\nHost: a\r\n\r\n"


@scenario("16")
def client_disconnect(case: Case) -> None:
    """Clients that leave at any time: close() is called once for each answer that was begun."""
    site = case.start()
    workers = site.workers()
    rounds = case.pick(40, 400)
    for number in range(rounds):
        with contextlib.suppress(Lost, OSError):
            client = site.connect(5, receive_buffer=8192)
            client.send(message(f"/stream/{[0, 1, 8, 64][number % 4]}"))
            if number % 3:
                client.socket.recv([1, 100, 70_000][number // 4 % 3])
            (client.reset if number % 2 else client.close)()

    def ends() -> tuple[list[str], list[str]]:
        lines = [line.split() for line in (site.folder / "streams").read_text().splitlines()]
        return [id for what, id in lines if what == "begun"], [id for what, id in lines if what == "closed"]

    begun, closed = [], []

    def over() -> bool:
        # Twice the same: the last request may begin late.
        nonlocal begun, closed
        before = len(begun)
        begun, closed = ends()
        time.sleep(0.1)
        return rounds // 2 < len(begun) == len(closed) == before

    wait(over, 10)
    case.number("answers begun", len(begun))
    case.number("answers closed", len(closed))
    case.promise(
        "close() once for each", sorted(begun) == sorted(closed), f"{len(begun)} begun, {len(closed)} closed"
    )
    case.promise("no traceback", "Traceback" not in site.log())
    case.promise("no worker dies", site.workers() == workers)
    case.promise("and it serves on", serves(site))


@scenario("25")
def distribution(case: Case) -> None:
    """How connections spread over four workers."""
    site = case.start(workers=4)
    with Load(site.address, new=32, kept=0, pause=0) as load:
        load.go_on(case.pick(800, 5000), 30)
    counts = Counter(text.split()[0] for text in load.bodies.elements())
    share = 100 * max(counts.values()) / sum(counts.values())
    case.number("busiest of 4 workers, new connections, %", share)
    case.promise("all workers serve", len(counts) == 4, dict(counts))
    case.promise("the busiest of 4 has 35 % at most of new connections", share <= 35, f"{share:.0f} %")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(site.connect()) for _ in range(64)]
        counts = Counter(client.get("/").body.split()[0] for client in clients)
    case.number("busiest of 4 workers, 64 kept connections, %", 100 * max(counts.values()) / 64)
    case.nothing_lost("32 clients", load)
