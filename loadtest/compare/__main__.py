"""Compare WSGI servers on one machine: the same applications and the same load, in turn.

Servers run on one CPU, the load generator on another. Rounds are interleaved (A B C, A B C, ...), so that what else
the machine does hits all alike. The figure to trust is CPU time per request of the server's whole process tree: on a
small machine the load generator, not the server, limits requests per second.

    python3 loadtest/compare --install --peers /tmp/peers          a venv with all servers, once
    python3 loadtest/compare --peers /tmp/peers --marks            all workloads, and what was promised of them
    python3 loadtest/compare --peers /tmp/peers --docs             the same, into docs/performance.md and docs/charts
    python3 loadtest/compare --peers /tmp/peers hello django --servers ringhorn,bjoern --rounds 7
    python3 loadtest/compare --from loadtest/results/FILE.json --docs     the documents again, without a run

Ringhorn is taken from the same venv (`--wheel` installs one there first), so that all run the same Python. A server
that is missing is a row that says so. The load generator is `make loadtest`; `--generator wrk` takes wrk where wrk can.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import report  # noqa: E402
import servers  # noqa: E402
from servers import KINDS, Place, Server, free_ports  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402

from load import Generator, Ours, Wrk, find_ours  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent

# Of a round, unless told otherwise.
SECONDS = 0.6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; all of them by default")
    parser.add_argument("--servers", help="only these, by comma: " + ", ".join(KINDS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a round; some workloads take more")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="venv with all servers")
    parser.add_argument("--install", action="store_true", help="make that venv, and leave")
    parser.add_argument("--wheel", type=Path, help="install this wheel of Ringhorn there first")
    parser.add_argument("--native", type=Path, help="folder of ringhorn-demo [target/release]")
    parser.add_argument(
        "--native-peers", type=Path, help="folder of its peers [loadtest/native-peers/target/release]"
    )
    parser.add_argument("--generator", help="ours, wrk, or the path of ours", default="ours")
    parser.add_argument("--server-cpu", default="0")
    parser.add_argument("--load-cpu", default="1")
    parser.add_argument("--out", type=Path, default=ROOT / "loadtest" / "results", help="for the raw results")
    parser.add_argument(
        "--marks", action="store_true", help="end with the marks; exit code 1 if one is missed"
    )
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md and docs/charts")
    parser.add_argument("--from", dest="source", type=Path, help="take these raw results instead of a run")
    found = parser.parse_args()
    unknown = [name for name in found.workloads if name not in WORKLOADS]
    unknown += [name for name in (found.servers or "").split(",") if name and name not in KINDS]
    if unknown:
        parser.error(f"not known: {', '.join(unknown)}")
    return found


def main() -> int:
    args = arguments()
    args.peers = args.peers.absolute()
    if args.install:
        return install(args.peers)
    if args.source:
        results = json.loads(args.source.read_text())
    else:
        if args.wheel:
            pip = [str(args.peers / "bin" / "pip"), "install", "-q", "--no-deps", "--force-reinstall"]
            subprocess.run([*pip, str(args.wheel)], check=True)
        results = run_all(args)
        args.out.mkdir(parents=True, exist_ok=True)
        file = args.out / f"compare-{time.strftime('%Y%m%d-%H%M%S')}.json"
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"raw results: {file}\n")
        report.write_charts(results, args.out)
    if args.source:
        for workload in results["workloads"]:
            show(results, workload)
    if args.docs:
        report.write_docs(results, ROOT / "docs")
    if args.marks:
        print(report.marks(results))
        return 1 if report.missed(results) else 0
    return 0


def install(venv: Path) -> int:
    """A venv with every server that can be installed here, and the frameworks."""
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    for package in servers.PACKAGES:
        # One by one: a server that cannot be built must not keep the others away.
        done = subprocess.run([str(venv / "bin" / "pip"), "install", "-q", package])
        print(f"{package}: {'installed' if done.returncode == 0 else 'CANNOT be installed'}")
    return 0


def built(workspace: Path) -> Path:
    """Where cargo puts what is built in a workspace."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or workspace / "target") / "release"


def generator(args: argparse.Namespace) -> tuple[Generator, Generator]:
    """The one asked for, and ours for what that one cannot do."""
    own = find_ours(ROOT, os.environ.get("CARGO_TARGET_DIR"))
    own = find_ours(ROOT, None) if not own.exists() else own
    if args.generator not in ("ours", "wrk"):
        own = Path(args.generator)
    if not own.exists():
        sys.exit(f"error: {own} is not there\n  hint: make loadtest")
    ours = Ours(str(own), args.load_cpu)
    if args.generator != "wrk":
        return ours, ours
    if not shutil.which("wrk"):
        sys.exit("error: wrk is not there\n  hint: apt install wrk")
    return Wrk("wrk", args.load_cpu), ours


def run_all(args: argparse.Namespace) -> dict:
    chosen, ours = generator(args)
    results = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "cpu": cpu_name(),
            "cpus": os.cpu_count(),
            "kernel": platform.release().partition("-")[0],
            "congestion": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
            "python": python_version(args.peers),
        },
        "commit": output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
        "versions": versions(args.peers),
        "generator": Path(chosen.program).name,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "server_cpu": args.server_cpu,
        "load_cpu": args.load_cpu,
        "workloads": {},
    }
    print(f"this takes about {estimate(args) / 60:.0f} minutes\n", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="compare-") as tmp:
        place = Place(
            bin=args.peers / "bin",
            native=args.native or built(ROOT),
            native_peers=args.native_peers or built(ROOT / "loadtest" / "native-peers"),
            tmp=Path(tmp),
            server_cpu=args.server_cpu,
            load_cpu=args.load_cpu,
        )
        for name in args.workloads or WORKLOADS:
            workload = WORKLOADS[name]
            begin = time.monotonic()
            names = [s for s in workload.servers if not args.servers or s in args.servers.split(",")]
            if not names:
                continue
            field = [
                Server(each, KINDS[each], port)
                for each, port in zip(names, free_ports(len(names)), strict=True)
            ]
            try:
                run_one(workload, field, chosen if workload.wrk else ours, ours, args, place)
            finally:
                for server in field:
                    server.stop()
            results["workloads"][name] = {
                "app": workload.app,
                "path": workload.load.path,
                "arguments": workload.load.arguments,
                "servers": {
                    s.name: {"missing": s.missing, "rounds": s.rounds, "memory": s.memory} for s in field
                },
            }
            show(results, name)
            print(f"({time.monotonic() - begin:.0f} s)\n", flush=True)
    return results


def run_one(
    workload: Workload,
    field: list[Server],
    chosen: Generator,
    ours: Generator,
    args: argparse.Namespace,
    place: Place,
) -> None:
    seconds = workload_seconds(workload, args)
    for server in field:
        server.start(workload.app, place, workload.probe or workload.load.path)
    # The first round warms up and does not count.
    for number in range(args.rounds + 1):
        for server in field:
            if not server.running:
                continue
            length = seconds if number else min(seconds, 1.0)
            try:
                others = [ours.start(load, server.port, length + 0.5) for load in workload.background]
                if others:
                    # What goes on meanwhile has begun when the quick ones come.
                    time.sleep(0.25)
                before = server.cpu_seconds()
                result = chosen.run(workload.load, server.port, length)
                used = server.cpu_seconds() - before
                for other in others:
                    ours.finish(other, length)
            except RuntimeError as error:
                server.missing = str(error).replace("\n", " ").replace("|", "/")
                server.stop()
                continue
            # With others at work the server's time is not this load's alone.
            alone = result["answers"] and not workload.background
            result["cpu_us"] = used / result["answers"] * 1e6 if alone else None
            if number:
                server.rounds.append(result)
    for server in field:
        answers = sum(one["answers"] for one in server.rounds)
        failures = sum(one["failures"] for one in server.rounds)
        if server.running and failures > 0.01 * (answers + failures):
            server.missing = f"{failures} failures among {answers} answers"
            server.rounds.clear()
        if server.running:
            server.memory = servers.memory(server.process.pid)


def workload_seconds(workload: Workload, args: argparse.Namespace) -> float:
    """The seconds of a round: what a workload asks for is in proportion to the usual ones."""
    return max(args.seconds, workload.seconds * min(1.0, args.seconds / SECONDS))


def estimate(args: argparse.Namespace) -> float:
    """Seconds that the run will take, about: a server takes one to start, a load generator a sixth."""
    total = 0.0
    for name in args.workloads or WORKLOADS:
        workload = WORKLOADS[name]
        count = len([s for s in workload.servers if not args.servers or s in args.servers.split(",")])
        each = workload_seconds(workload, args) + (0.75 if workload.background else 0.15)
        total += count * (1 + args.rounds * each + min(each, 1.2))
    return total


def show(results: dict, workload: str) -> None:
    print(f"## {WORKLOADS[workload].title}\n\n{report.table(results, workload)}", flush=True)


def output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def python_version(venv: Path) -> str:
    return output([str(venv / "bin" / "python"), "-c", "import platform; print(platform.python_version())"])


def versions(venv: Path) -> dict[str, str]:
    """Of all that takes part, by the name of the package."""
    wanted = ["ringhorn", *servers.PACKAGES]
    code = (
        "import sys, importlib.metadata as m\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    lines = output([str(venv / "bin" / "python"), "-c", code, *wanted]).splitlines()
    found = dict(line.split(" ", 1) for line in lines)
    if shutil.which("nginx"):
        told = subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr
        found["nginx"] = told.strip().rpartition("/")[2]
    return found


if __name__ == "__main__":
    sys.exit(main())
