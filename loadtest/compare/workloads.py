"""The workloads, and what is promised of them."""

from __future__ import annotations

from dataclasses import dataclass, field

OURS = ["ringhorn", "ringhorn-epoll"]
INLINE = ["bjoern", "fastwsgi", "fastpysgi"]
NATIVE = ["ntex", "may", "axum"]
PEERS = [*INLINE, "granian", "uwsgi", "gthread", "sync", "waitress"]


@dataclass(frozen=True)
class Load:
    """What one load generator does: arguments but for the place, the time and the CPU."""

    path: str
    arguments: tuple[str, ...] = ("-c", "64")


@dataclass(frozen=True)
class Workload:
    title: str
    app: str
    load: Load
    servers: list[str]
    # What tables are sorted by and charts show: cpu_us (CPU per request), rps, or a percentile in microseconds.
    metric: str = "cpu_us"
    # What goes on meanwhile and is not measured.
    background: tuple[Load, ...] = ()
    probe: str = ""
    # Seconds of a round, when the usual ones are too few.
    seconds: float = 0.0
    note: str = ""
    # Load generators that can do it; ours can do all.
    wrk: bool = True


WORKLOADS = {
    "hello": Workload(
        "Hello world, 64 keep-alive connections",
        "hello:app",
        Load("/"),
        [*OURS, *PEERS],
    ),
    "connections": Workload(
        "A new connection for each request",
        "hello:app",
        Load("/", ("-c", "64", "--no-keep-alive")),
        [*OURS, *PEERS],
    ),
    "django": Workload("A JSON view of Django", "site_json:app", Load("/"), [*OURS, *PEERS]),
    "django-page": Workload("A template page of Django", "site_json:app", Load("/page"), [*OURS, *PEERS]),
    "flask": Workload("A route of Flask", "flask_app:app", Load("/"), [*OURS, *PEERS]),
    "falcon": Workload("A route of Falcon", "falcon_app:app", Load("/"), [*OURS, *PEERS]),
    "echo": Workload(
        "A POST of 10 KiB echoed",
        "work:app",
        Load("/echo", ("-c", "64", "--body-bytes", "10240")),
        [*OURS, *PEERS],
        probe="/fast",
        wrk=False,
    ),
    "pieces": Workload(
        "A body of 1 MiB in pieces of 64 KiB",
        "work:app",
        Load("/big", ("-c", "16")),
        [*OURS, *PEERS],
        probe="/fast",
    ),
    "file": Workload(
        "A file of 100 MiB through wsgi.file_wrapper",
        "work:app",
        Load("/file", ("-c", "2")),
        [*OURS, *PEERS],
        probe="/fast",
        note="Where a server has no file_wrapper, the application reads the file in pieces of 64 KiB.",
    ),
    "sleep": Workload(
        "A view that sleeps 50 ms, 64 connections",
        "work:app",
        Load("/sleep"),
        [*OURS, "granian", "gthread-64", "gthread"],
        metric="rps",
        probe="/fast",
        seconds=3,
        note="64 connections can have 1,280 answers a second.",
    ),
    "threads": Workload(
        "2 ms of Python, with many threads and with one",
        "work:app",
        Load("/cpu", ("-c", "64")),
        ["ringhorn-16-threads", "ringhorn-1-thread"],
        metric="rps",
        probe="/fast",
        seconds=2,
    ),
    "mixed": Workload(
        "Quick requests while 4 clients sleep 50 ms and 1 burns 500 ms of CPU",
        "work:app",
        # At a constant rate, so that a stall counts for all that it holds up.
        Load("/fast", ("-c", "32", "--rate", "200")),
        [*OURS, "granian", "gthread"],
        metric="p99",
        background=(Load("/sleep", ("-c", "4")), Load("/burn", ("-c", "1"))),
        probe="/fast",
        seconds=4,
        note="The quick ones come at 200 a second; latency counts from when each was due.",
        wrk=False,
    ),
    "latency": Workload(
        "One client with one connection", "hello:app", Load("/", ("-c", "1")), [*OURS, *PEERS], metric="p50"
    ),
    "workers": Workload(
        "2 ms of Python, with two workers on two CPUs and with one",
        "work:app",
        Load("/cpu", ("-c", "64")),
        ["ringhorn-2-workers", "ringhorn"],
        metric="rps",
        probe="/fast",
        seconds=2,
        note="The load generator shares one of the two CPUs.",
    ),
    "native": Workload(
        "Without Python: 13 bytes, 64 keep-alive connections",
        "hello:app",
        Load("/plaintext"),
        ["ringhorn-native", "floor", "nginx", "ringhorn-axum", *NATIVE],
    ),
    "native-512": Workload(
        "Without Python: 13 bytes, 512 keep-alive connections",
        "hello:app",
        Load("/plaintext", ("-c", "512")),
        ["ringhorn-native", "floor", "nginx", "ringhorn-axum", *NATIVE],
    ),
    "native-pipelined": Workload(
        "Without Python: 13 bytes, 16 requests in flight on each of 64 connections",
        "hello:app",
        Load("/plaintext", ("-c", "64", "--pipeline", "16")),
        ["ringhorn-native", "nginx", "ringhorn-axum", *NATIVE],
        wrk=False,
    ),
}


@dataclass(frozen=True)
class Mark:
    """A promise: the ratio of a metric to the best of others', or a number."""

    workload: str
    text: str
    metric: str
    limit: float
    # at_most or at_least the limit.
    at_most: bool = True
    server: str = "ringhorn"
    # Compared with the best of these; with the limit itself when empty.
    others: list[str] = field(default_factory=list)


def ratio(workload: str, limit: float, others: list[str], metric: str = "cpu_us", **more) -> Mark:
    names = "the best of all peers" if others == PEERS else " / ".join(others)
    what = {"cpu_us": "CPU per request", "rps": "throughput", "pss": "memory (PSS)", "rss": "memory (RSS)"}
    return Mark(workload, f"{what.get(metric, metric)}, of {names}", metric, limit, others=others, **more)


MARKS = [
    ratio("hello", 0.87, INLINE),
    ratio("hello", 0.5, ["granian"]),
    ratio("hello", 0.07, ["gthread"]),
    ratio("hello", 0.95, INLINE, server="ringhorn-epoll"),
    ratio("connections", 0.8, PEERS),
    ratio("django", 0.95, PEERS),
    ratio("django", 0.65, ["granian"]),
    ratio("django", 0.4, ["gthread"]),
    ratio("django-page", 1.0, PEERS),
    ratio("flask", 1.0, PEERS),
    ratio("falcon", 1.0, PEERS),
    ratio("echo", 1.0, PEERS),
    ratio("pieces", 1.0, PEERS),
    ratio("file", 1.0, PEERS),
    Mark("sleep", "answers a second, of the ideal 1,280", "rps", 0.97 * 1280, at_most=False),
    ratio("threads", 0.97, ["ringhorn-1-thread"], "rps", server="ringhorn-16-threads", at_most=False),
    Mark("mixed", "p99 of the quick requests, ms", "p99", 30_000.0),
    ratio("latency", 1.0, PEERS, "p50"),
    ratio("latency", 1.0, PEERS, "p99"),
    ratio("workers", 1.9, ["ringhorn"], "rps", server="ringhorn-2-workers", at_most=False),
    *(
        ratio(workload, limit, [other], server="ringhorn-native")
        for workload in ("native", "native-512")
        for limit, other in ((1.08, "floor"), (0.92, "nginx"))
    ),
    ratio("native-pipelined", 0.1, ["nginx"], server="ringhorn-native"),
    ratio("native-pipelined", 1.0, NATIVE, server="ringhorn-native"),
    ratio("native", 0.9, ["axum"], server="ringhorn-axum"),
    ratio("hello", 1.0, ["sync"], "pss"),
    ratio("hello", 1.0, ["sync"], "rss"),
    ratio("django", 1.0, ["sync"], "pss"),
    ratio("django", 1.0, ["sync"], "rss"),
]
