#!/usr/bin/env python3
"""Counts the instructions that each part of a request takes, and compares them with what is checked in.

Time on a shared machine drifts by ten per cent and more; instructions of the same program do not. Each part
is run twice under callgrind, with different counts: what start and end take is the same, and falls out.

    python3 benches/instructions.py             compare with benches/instructions.txt; exit code 1 if one grew
    python3 benches/instructions.py --bless     write benches/instructions.txt anew

It needs valgrind, and a Python with a shared library: the one that runs this, whose interpreter builds the environs.
Another compiler or another Python gives other numbers, so their versions stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benches" / "instructions.txt"

# A part has grown when it takes so much more: less is a change of the compiler's mood.
GROWTH_MAX = 0.02
FEW, MANY = 200, 1200

LIBRARY = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDLIBRARY"))
ENVIRONMENT = {
    **os.environ,
    "PYO3_PYTHON": sys.executable,
    "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(LIBRARY.parent), os.getenv("LD_LIBRARY_PATH")])),
    # Where the keys of a dict collide, and so what it costs, shall not change from run to run.
    "PYTHONHASHSEED": "0",
}


def build() -> Path:
    """The program, with optimisation as it is shipped."""
    command = [
        "cargo",
        "bench",
        "--locked",
        "--features",
        "simulation,python",
        "--bench",
        "instructions",
        "--no-run",
    ]
    done = subprocess.run(
        [*command, "--message-format=json"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "instructions":
            return Path(message["executable"])
    sys.exit("error: cargo names no program")


def collected(words: list[str]) -> int:
    """Instructions of a run."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"error: {' '.join(words)}: {done.stderr[-500:]}")
    return int(found[1])


def measure(program: Path) -> dict[str, float]:
    names = subprocess.run(
        [program, "--list"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = {}
    for name in names:
        few, many = (collected([str(program), name, str(count)]) for count in (FEW, MANY))
        found[name] = (many - few) / (MANY - FEW)
        print(f"{name:<36} {found[name]:>12,.1f}", flush=True)
    return found


def versions() -> str:
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{rustc}, CPython {platform.python_version()}"


def read() -> tuple[str, dict[str, float]]:
    lines = TABLE.read_text().splitlines() if TABLE.exists() else ["nothing"]
    rows = (line.rsplit(None, 1) for line in lines[1:] if line.strip())
    return lines[0].removeprefix("# "), {name.strip(): float(count) for name, count in rows}


def compare(found: dict[str, float]) -> int:
    by, before = read()
    if by != versions():
        print(f"\nnote: the table is by {by}, this is {versions()}")
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
    if ".so" not in LIBRARY.name or not LIBRARY.exists():
        sys.exit(
            f"error: {sys.executable} has no shared library ({LIBRARY})\n  hint: run this with another Python"
        )
    found = measure(build())
    if args.bless:
        rows = "".join(f"{name:<36} {count:>12.1f}\n" for name, count in found.items())
        TABLE.write_text(f"# {versions()}\n{rows}")
        return 0
    return compare(found)


if __name__ == "__main__":
    sys.exit(main())
