#!/usr/bin/env python3
"""Checks our load generator's counts against those of wrk and h2load on the same server.

A view of 1 ms of CPU, one worker: the server is the limit, so each generator must count about as many answers in the
same time. The rounds are interleaved. What else the machine does takes time from the server, and not from all alike,
so the counts are compared for each second of CPU that the server had. Exit code 1 when two
medians differ by more than 5 %.

    python3 loadtest/check.py [--ringhorn .venv/bin/ringhorn] [--seconds 4] [--rounds 3] [--docs]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from operator import itemgetter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "loadtest" / "compare"))

from servers import KINDS, Place, Server, free_ports  # noqa: E402

from load import find_ours  # noqa: E402

APART_MAX = 0.05


def ours(program: str, url: str, connections: int, seconds: int) -> list[str]:
    return [program, "-q", "--json", "-", "-c", str(connections), "-d", str(seconds), url]


def wrk(program: str, url: str, connections: int, seconds: int) -> list[str]:
    return [program, "-t1", f"-c{connections}", f"-d{seconds}s", url]


def h2load(program: str, url: str, connections: int, seconds: int) -> list[str]:
    return [program, "--h1", "-t1", f"-c{connections}", f"-D{seconds}", url]


def both(out: str, count: str, rate: str) -> tuple[float, float]:
    return float(re.search(count, out)[1]), float(re.search(rate, out)[1])


# The command, and what finds the answers and the answers per second in its output.
GENERATORS = {
    "ringhorn-loadtest": (ours, lambda out: itemgetter("answers", "answers_per_second")(json.loads(out))),
    "wrk": (wrk, lambda out: both(out, r"(\d+) requests in", r"Requests/sec:\s+([\d.]+)")),
    "h2load": (h2load, lambda out: both(out, r"(\d+) succeeded", r"finished in [\d.]+s, ([\d.]+) req/s")),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ringhorn", type=Path, default=ROOT / ".venv" / "bin" / "ringhorn")
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--docs", action="store_true", help="write the table to docs/performance.md")
    args = parser.parse_args()
    own = find_ours(ROOT, os.environ.get("CARGO_TARGET_DIR"))
    programs = {"ringhorn-loadtest": str(own) if own.exists() else None}
    programs |= {name: shutil.which(name) for name in ("wrk", "h2load")}
    missing = [name for name, program in programs.items() if not program]
    if missing:
        print(
            f"error: not there: {', '.join(missing)}\n  hint: make loadtest; apt install wrk nghttp2-client"
        )
        return 2
    found: dict[str, list[float]] = {name: [] for name in GENERATORS}
    rates: dict[str, list[float]] = {name: [] for name in GENERATORS}
    with tempfile.TemporaryDirectory() as tmp:
        place = Place(args.ringhorn.absolute().parent, Path(), Path(), Path(tmp), "0", "1")
        server = Server("ringhorn", KINDS["ringhorn"], free_ports(1)[0])
        server.start("work:app", place, "/fast")
        if server.missing:
            print(f"error: {server.missing}")
            return 2
        try:
            url = f"http://127.0.0.1:{server.port}/cpu1"
            for number in range(args.rounds + 1):
                for name, (command, parse) in GENERATORS.items():
                    words = command(programs[name], url, args.connections, args.seconds if number else 1)
                    before = server.cpu_seconds()
                    done = subprocess.run(["taskset", "-c", "1", *words], capture_output=True, text=True)
                    used = server.cpu_seconds() - before
                    if number:
                        count, rate = parse(done.stdout)
                        found[name].append(count / used)
                        rates[name].append(rate)
        finally:
            server.stop()
    medians = {name: statistics.median(values) for name, values in found.items()}
    lines = [
        "| load generator | answers for each second of the server's CPU, median | least..most | answers/s, median |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, values in found.items():
        spread = f"{min(values):.1f}..{max(values):.1f}"
        rate = statistics.median(rates[name])
        lines.append(f"| {name} | {medians[name]:.1f} | {spread} | {rate:.1f} |")
    apart = max(medians.values()) / min(medians.values()) - 1
    lines.append(f"\nThey are {apart:.1%} apart, in {args.rounds} rounds of {args.seconds} s.")
    table = "\n".join(lines)
    print(table)
    if args.docs:
        page = ROOT / "docs" / "performance.md"
        text = re.sub(
            r"<!-- check -->\n.*?<!-- /check -->",
            lambda _: f"<!-- check -->\n{table}\n<!-- /check -->",
            page.read_text(),
            flags=re.S,
        )
        page.write_text(text)
    return 0 if apart <= APART_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
