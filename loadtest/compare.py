#!/usr/bin/env python3
"""Compare WSGI servers on one machine: the same application, the same load, in turn.

Each server is pinned to one CPU and wrk to another. The rounds are interleaved (A B C, A B C, ...), so that what
else the machine does hits all alike. The figure to trust is CPU time per request of the server's whole process tree:
on a small machine the load generator, not the server, limits requests per second.

    python3 loadtest/compare.py --bin .venv/bin --servers ringhorn,bjoern,fastpysgi,granian,gthread

The servers are looked for in --bin: `pip install gunicorn granian bjoern fastwsgi fastpysgi waitress` (bjoern needs
libev's headers, FastWSGI libuv's). wrk is Debian's package. A server that is missing is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")

# {py} is the interpreter, {bin} the directory of the commands, {port} the port, {app} and {module}/{name} the application.
SERVERS = {
    "ringhorn": "{bin}/ringhorn -b 127.0.0.1:{port} -w 1 {app}",
    "ringhorn-epoll": "{bin}/ringhorn --io epoll -b 127.0.0.1:{port} -w 1 {app}",
    "sync": "{bin}/gunicorn --no-control-socket -b 127.0.0.1:{port} {app}",
    "gthread": "{bin}/gunicorn --no-control-socket -b 127.0.0.1:{port} -k gthread --threads 4 {app}",
    "granian": "{bin}/granian --interface wsgi --host 127.0.0.1 --port {port} --workers 1 --no-ws {app}",
    "waitress": "{bin}/waitress-serve --listen=127.0.0.1:{port} --threads=4 {app}",
    "bjoern": "{py} -c 'import bjoern, {module}; bjoern.run({module}.{name}, \"127.0.0.1\", {port})'",
    "fastwsgi": "{py} -c 'import fastwsgi, {module}; fastwsgi.server.loglevel = 0; "
    'fastwsgi.run(wsgi_app={module}.{name}, host="127.0.0.1", port={port})\'',
    "fastpysgi": "{py} -c 'import fastpysgi, {module}; fastpysgi.server.loglevel = 0; "
    'fastpysgi.run({module}.{name}, host="127.0.0.1", port={port})\'',
}


@dataclass
class Server:
    name: str
    port: int
    process: subprocess.Popen | None = None
    missing: str = ""
    rounds: list[dict] = field(default_factory=list)


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                todo += map(int, children.read_text().split())
            except OSError:
                pass
    return found


def cpu_seconds(pid: int) -> float:
    ticks = 0
    for each in tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def memory_mib(pid: int) -> float:
    """Proportional set size: what the processes share is counted once."""
    kib = 0
    for each in tree(pid):
        try:
            found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{each}/smaps_rollup").read_text(), re.M)
        except OSError:
            continue
        kib += int(found[1]) if found else 0
    return kib / 1024


def start(server: Server, args: argparse.Namespace) -> None:
    module, name = args.app.split(":")
    command = SERVERS[server.name].format(
        py=f"{args.bin}/python", bin=args.bin, port=server.port, app=args.app, module=module, name=name
    )
    words = shlex.split(command)
    if not Path(words[0]).exists():
        server.missing = f"{words[0]} is not there"
        return
    log = open(args.out / f"{server.name}.log", "w")
    server.process = subprocess.Popen(
        ["taskset", "-c", args.server_cpu, *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=HERE / "apps",
        env={**os.environ, "PYTHONPATH": str(HERE / "apps")},
    )
    for _ in range(150):
        if server.process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    server.missing = f"it does not start; see {log.name}"
    server.process.kill()


def drive(server: Server, args: argparse.Namespace, seconds: int) -> dict:
    command = ["taskset", "-c", args.load_cpu, "wrk", "-t1", f"-c{args.connections}", f"-d{seconds}s", "--latency"]
    if args.close:
        command += ["-H", "Connection: close"]
    before = cpu_seconds(server.process.pid)
    out = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}{args.path}"], capture_output=True, text=True, check=True
    ).stdout
    used = cpu_seconds(server.process.pid) - before
    requests = int(re.search(r"(\d+) requests in", out)[1])
    errors = sum(map(int, re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", out)))
    return {
        "cpu_us": used / requests * 1e6 if requests else float("nan"),
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]),
        "p50": re.search(r"^\s+50%\s+(\S+)", out, re.M)[1],
        "p99": re.search(r"^\s+99%\s+(\S+)", out, re.M)[1],
        "errors": errors,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", default="ringhorn,ringhorn-epoll,bjoern,fastwsgi,fastpysgi,granian,gthread,sync")
    parser.add_argument("--app", default="hello:app", help="one of loadtest/apps")
    parser.add_argument("--path", default="/")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--close", action="store_true", help="a new connection for each request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each round; wrk takes whole ones")
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--server-cpu", default="0")
    parser.add_argument("--load-cpu", default="1")
    parser.add_argument("--port", type=int, default=24200)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="for logs and the raw results")
    args = parser.parse_args()
    args.bin = args.bin.absolute()
    args.out.mkdir(parents=True, exist_ok=True)

    servers = [Server(name, args.port + at) for at, name in enumerate(args.servers.split(","))]
    try:
        for server in servers:
            start(server, args)
        running = [server for server in servers if not server.missing]
        # The first round warms up and does not count.
        for number in range(args.rounds + 1):
            for server in running:
                result = drive(server, args, args.seconds if number else 1)
                if number:
                    server.rounds.append(result)
        report(servers, args)
    finally:
        for server in servers:
            if server.process and server.process.poll() is None:
                server.process.terminate()
        for server in servers:
            if server.process:
                try:
                    server.process.wait(10)
                except subprocess.TimeoutExpired:
                    server.process.kill()
    return 0


def report(servers: list[Server], args: argparse.Namespace) -> None:
    median = {s.name: statistics.median(r["cpu_us"] for r in s.rounds) for s in servers if s.rounds}
    reference = next(iter(median.values()), float("nan"))
    print(f"{args.app}{args.path}, {args.connections} connections, {args.rounds} rounds of {args.seconds} s")
    print("| server | CPU us/request | least..most | of the first | requests/s | p50 | p99 | errors | MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for server in servers:
        if server.missing:
            print(f"| {server.name} | missing: {server.missing} | | | | | | | |")
            continue
        cpu = [r["cpu_us"] for r in server.rounds]
        rps = statistics.median(r["rps"] for r in server.rounds)
        middle = sorted(server.rounds, key=lambda r: r["cpu_us"])[len(cpu) // 2]
        errors = sum(r["errors"] for r in server.rounds)
        print(
            f"| {server.name} | {median[server.name]:.2f} | {min(cpu):.2f}..{max(cpu):.2f} "
            f"| {median[server.name] / reference:.2f} | {rps:.0f} | {middle['p50']} | {middle['p99']} | {errors} "
            f"| {memory_mib(server.process.pid):.1f} |"
        )
    raw = {
        "machine": {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "rounds": {server.name: server.rounds or server.missing for server in servers},
    }
    file = args.out / f"{args.app.replace(':', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(raw, indent=1) + "\n")
    print(f"\nraw results: {file}")


if __name__ == "__main__":
    sys.exit(main())
