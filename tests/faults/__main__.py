"""The scenarios from the command line, against any of the servers: a table, and JSON with --json.

python -m tests.faults --server ringhorn --io uring reload_hup
python -m tests.faults --full --server ringhorn --server gunicorn-sync --peers venv/bin --json faults.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from pathlib import Path

from . import scenarios  # noqa: F401  registers them
from .run import SCENARIOS, Outcome, run
from .servers import KINDS, Kind, NotOffered, find, version_of

IO_BACKENDS = ("uring", "epoll")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", nargs="*", help="only these; all of them otherwise")
    parser.add_argument(
        "--server", action="append", choices=[*KINDS, "all"], help="repeatable; default: ringhorn"
    )
    parser.add_argument(
        "--io", action="append", choices=IO_BACKENDS, help="Ringhorn's backend, repeatable; default: both"
    )
    parser.add_argument("--full", action="store_true", help="the long form, as in docs/reliability.md")
    parser.add_argument("--command", help="Ringhorn's command, if not this interpreter's")
    parser.add_argument(
        "--peers",
        type=Path,
        default=os.environ.get("FAULTS_PEERS"),
        help="folder with the other servers' programs",
    )
    parser.add_argument(
        "--earlier", type=Path, action="append", default=[], help="JSON of an earlier run to join; repeatable"
    )
    parser.add_argument("--json", type=Path, help="write all that was seen to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables of docs/reliability.md to this file")
    parser.add_argument(
        "--logs", action="store_true", help="print the servers' logs where a promise was broken"
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios, and end")
    options = parser.parse_args()
    if options.list:
        for each in SCENARIOS.values():
            print(f"{each.name:<18} {each.number:<8} {each.title}")
        return 0
    for name in options.scenario:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}; --list names them")
    servers = options.server or ["ringhorn"]
    if "all" in servers:
        servers = list(KINDS)

    # Ended from outside, it takes its servers along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kinds: list[Kind] = []
    missing: list[str] = []
    for name in servers:
        for io in (options.io or IO_BACKENDS) if name.startswith("ringhorn") else [None]:
            try:
                kinds.append(find(name, io, options.peers and Path(options.peers), options.command))
            except NotOffered as why:
                missing.append(f"{name}: {why}")
                print(missing[-1], file=sys.stderr)
    versions = {kind.label: version_of(kind) for kind in kinds}
    outcomes: list[Outcome] = []
    for path in options.earlier:
        earlier = json.loads(path.read_text())
        versions = earlier["versions"] | versions
        outcomes += [Outcome.of_json(each) for each in earlier["outcomes"]]
    # Earlier runs alone are only joined.
    names = options.scenario or ([] if options.earlier else list(SCENARIOS))
    keep(options, outcomes, versions, missing)
    for name in names:
        for kind in kinds:
            outcome = run(name, kind, options.full)
            outcomes.append(outcome)
            show(outcome, options.logs)
            # After each, so that an interrupted run leaves what it has.
            keep(options, outcomes, versions, missing)
    return 1 if any(o.broken or o.error for o in outcomes if o.server.startswith("ringhorn")) else 0


def keep(options: argparse.Namespace, outcomes: list[Outcome], versions: dict, missing: list[str]) -> None:
    """Writes the files that were asked for."""
    if options.markdown:
        options.markdown.write_text(markdown(outcomes, list(versions), missing))
    if options.json:
        about = {
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "full": options.full,
            "versions": versions,
        }
        seen = [outcome.as_json() for outcome in outcomes]
        options.json.write_text(json.dumps(about | {"missing": missing, "outcomes": seen}, indent=1))


def show(outcome: Outcome, logs: bool) -> None:
    line = f"{outcome.scenario:<18} {outcome.server:<18} {outcome.verdict:<16} {outcome.seconds:>6.1f} s"
    print(f"{line}  {outcome.skipped}".rstrip())
    for name, value in outcome.numbers.items():
        print(f"    {name:<60} {value}")
    for promise in outcome.broken:
        print(f"    BROKEN {promise.text}: {promise.detail}")
    if outcome.error:
        print(outcome.error)
    if logs and (outcome.broken or outcome.error):
        print(outcome.logs)
    sys.stdout.flush()


def markdown(outcomes: list[Outcome], servers: list[str], missing: list[str]) -> str:
    """One row for each number, one column for each server; what is broken or not there is listed below."""
    # The latest counts.
    by_place = {(outcome.scenario, outcome.server): outcome for outcome in outcomes}
    servers = [server for server in servers if any(place[1] == server for place in by_place)]
    rows = [["", *servers], ["---"] * (len(servers) + 1)]
    notes = [f"- {text}" for text in missing]
    for name in dict.fromkeys(outcome.scenario for outcome in outcomes):
        here = [by_place.get((name, server)) for server in servers]
        rows.append([f"`{name}`", *(f"**{outcome.verdict}**" if outcome else "" for outcome in here)])
        for number in dict.fromkeys(number for outcome in here if outcome for number in outcome.numbers):
            rows.append([number, *(str(o.numbers.get(number, "-")) if o else "" for o in here)])
        for outcome in here:
            for promise in outcome.broken if outcome else ():
                notes.append(f"- `{name}`, {outcome.server}: {promise.text}")
            if outcome and outcome.skipped:
                notes.append(f"- `{name}`, {outcome.server}: {outcome.skipped}")
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n" + "\n".join(notes) + "\n"


if __name__ == "__main__":
    sys.exit(main())
