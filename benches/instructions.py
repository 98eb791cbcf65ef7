#!/usr/bin/env python3
"""Counts the instructions that each part of a request takes, and compares them with what is checked in.

Time on a shared machine drifts by ten per cent and more; instructions of the same program do not. Each part is
run twice under callgrind, with different counts: what start and end take is the same in both and falls out.

    python3 benches/instructions.py             compare with benches/instructions.txt; exit code 1 if one grew
    python3 benches/instructions.py --bless     write benches/instructions.txt anew
    python3 benches/instructions.py --wsgi      a whole WSGI request, in the wheel of .venv, and its environ;
                                                over epoll, since valgrind knows no io_uring

It needs valgrind. Another compiler gives other numbers, so its version stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benches" / "instructions.txt"

# A part has grown when it takes so much more: less is a change of the compiler's mood.
GROWTH_MAX = 0.02
FEW, MANY = 200, 1200


def build() -> Path:
    """The program, with optimisation as it is shipped."""
    command = [
        "cargo",
        "bench",
        "--locked",
        "--features",
        "simulation",
        "--bench",
        "instructions",
        "--no-run",
    ]
    done = subprocess.run(
        [*command, "--message-format=json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "instructions":
            return Path(message["executable"])
    sys.exit("error: cargo names no program")


def collected(words: list[str]) -> int:
    """Instructions of a run."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"error: {' '.join(words)}: {done.stderr[-500:]}")
    return int(found[1])


def measure(program: Path) -> dict[str, float]:
    names = subprocess.run(
        [program, "--list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = {}
    for name in names:
        few, many = (collected([str(program), name, str(count)]) for count in (FEW, MANY))
        found[name] = (many - few) / (MANY - FEW)
        print(f"{name:<36} {found[name]:>12,.1f}", flush=True)
    return found


def compiler() -> str:
    return subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def read() -> tuple[str, dict[str, float]]:
    lines = TABLE.read_text().splitlines() if TABLE.exists() else ["nothing"]
    rows = (line.rsplit(None, 1) for line in lines[1:] if line.strip())
    return lines[0].removeprefix("# "), {name.strip(): float(count) for name, count in rows}


def compare(found: dict[str, float]) -> int:
    by, before = read()
    if by != compiler():
        print(f"\nnote: the table is by {by}, this is {compiler()}")
    grown = 0
    for name, count in found.items():
        if name not in before:
            print(f"{name} is not in the table; --bless writes it")
            grown += 1
        elif count > before[name] * (1 + GROWTH_MAX):
            print(f"{name} has grown: {before[name]:.1f} -> {count:.1f}")
            grown += 1
        elif count < before[name] * (1 - GROWTH_MAX):
            print(f"{name} has shrunk: {before[name]:.1f} -> {count:.1f}; --bless keeps it so")
    return 1 if grown else 0


def wsgi() -> int:
    """Instructions of a whole request: the worker's, over epoll, with one thread."""
    totals, environ = {}, {}
    for count in (300, 1300):
        with tempfile.TemporaryDirectory() as tmp:
            totals[count], environ[count] = serve(count, Path(tmp))
    each = (totals[1300] - totals[300]) / 1000
    print(f"a WSGI request, all of the worker: {each:,.0f} instructions")
    print(f"of these, the environ: {(environ[1300] - environ[300]) / 1000:,.0f}")
    return 0


def serve(count: int, tmp: Path) -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    python = ROOT / ".venv" / "bin" / "python"
    command = ["valgrind", "--tool=callgrind", "--trace-children=yes", f"--callgrind-out-file={tmp}/out.%p"]
    server = subprocess.Popen(
        [
            *command,
            python,
            "-m",
            "ringhorn",
            "--io",
            "epoll",
            "-b",
            f"127.0.0.1:{port}",
            "-w",
            "1",
            "--threads",
            "1",
        ]
        + ["--timeout", "0", "hello:app"],
        cwd=ROOT / "loadtest" / "apps",
        env={**os.environ, "PYTHONPATH": str(ROOT / "loadtest" / "apps"), "PYTHONHASHSEED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", port), timeout=60)
                break
            except OSError:
                if time.monotonic() > until or server.poll() is not None:
                    sys.exit("error: the server does not start under valgrind")
                time.sleep(0.2)
        with client:
            for _ in range(count):
                client.sendall(b"GET /hello HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")
                answer = b""
                while not answer.endswith(b"Hello, World!"):
                    answer += client.recv(4096) or sys.exit("error: the server hung up")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(120)
    # The worker is the process that has built environs.
    best = (0, 0)
    for file in tmp.glob("out.*"):
        command = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(file)]
        text = subprocess.run(command, capture_output=True, text=True).stdout
        total = re.search(r"([\d,]+) \([\d. ]+%\)\s+PROGRAM TOTALS", text)
        part = re.search(r"([\d,]+) \([\d. ]+%\)\s+\S*wsgi\S*::environ\b", text)
        if total and part:
            best = max(best, tuple(int(found[1].replace(",", "")) for found in (total, part)))
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bless", action="store_true")
    parser.add_argument("--wsgi", action="store_true")
    args = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("error: valgrind is not there\n  hint: apt install valgrind")
    if args.wsgi:
        return wsgi()
    found = measure(build())
    if args.bless:
        rows = "".join(f"{name:<36} {count:>12.1f}\n" for name, count in found.items())
        TABLE.write_text(f"# {compiler()}\n{rows}")
        return 0
    return compare(found)


if __name__ == "__main__":
    sys.exit(main())
