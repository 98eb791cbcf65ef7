#!/usr/bin/env python3
"""Counts the instructions that each part of a request takes, and compares them with what is checked in.

Time on a shared machine drifts by ten per cent and more; instructions of the same program do not. Each part
is run twice under callgrind, with different counts: what start and end take is the same, and falls out.

    python3 benches/instructions.py             compare with benches/instructions.txt; exit code 1 if one grew
    python3 benches/instructions.py --bless     write benches/instructions.txt anew

It needs valgrind. Another compiler gives other numbers, so its version stands beside them.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bless", action="store_true")
    args = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("error: valgrind is not there\n  hint: apt install valgrind")
    found = measure(build())
    if args.bless:
        rows = "".join(f"{name:<36} {count:>12.1f}\n" for name, count in found.items())
        TABLE.write_text(f"# {compiler()}\n{rows}")
        return 0
    return compare(found)


if __name__ == "__main__":
    sys.exit(main())
