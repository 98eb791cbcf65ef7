"""Driving a server: one round of a load, by our generator or by wrk."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from workloads import Load


class Generator:
    """A load generator. `run` gives answers, rps, p50, p99, p99.9 and max in microseconds, and failures."""

    def __init__(self, program: str, cpu: str):
        self.program = program
        self.cpu = cpu

    def command(self, load: Load, port: int, seconds: float) -> list[str]:
        raise NotImplementedError

    def parse(self, out: str) -> dict:
        raise NotImplementedError

    def start(self, load: Load, port: int, seconds: float) -> subprocess.Popen:
        return subprocess.Popen(
            ["taskset", "-c", self.cpu, *self.command(load, port, seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen, seconds: float) -> dict:
        try:
            out, errors = process.communicate(timeout=seconds + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise RuntimeError(f"{self.program} does not come to an end") from None
        try:
            return self.parse(out)
        except (ValueError, KeyError, TypeError):
            raise RuntimeError(f"{self.program} says: {(errors or out).strip()[:200]}") from None

    def run(self, load: Load, port: int, seconds: float) -> dict:
        return self.finish(self.start(load, port, seconds), seconds)


class Ours(Generator):
    def command(self, load: Load, port: int, seconds: float) -> list[str]:
        url = f"http://127.0.0.1:{port}{load.path}"
        return [self.program, "-q", "--json", "-", "-d", f"{seconds}s", *load.arguments, url]

    def parse(self, out: str) -> dict:
        result = json.loads(out)
        latency = result["latency_us"] or {}
        bad = sum(result["status_classes"][name] for name in ("3xx", "4xx", "5xx"))
        return {
            "answers": result["answers"],
            "rps": result["answers_per_second"],
            **{name: latency.get(name) for name in ("p50", "p99", "p99.9", "max")},
            "failures": result["failed"] + bad + result["unsent"],
        }


class Wrk(Generator):
    """wrk tells no p99.9 without a script, and takes whole seconds."""

    def command(self, load: Load, port: int, seconds: float) -> list[str]:
        words = [self.program, "-t1", f"-d{max(1, round(seconds))}s", "--latency"]
        arguments = list(load.arguments)
        words.append(f"-c{arguments[arguments.index('-c') + 1]}")
        if "--no-keep-alive" in arguments:
            words += ["-H", "Connection: close"]
        return [*words, f"http://127.0.0.1:{port}{load.path}"]

    def parse(self, out: str) -> dict:
        def latency(name: str) -> float:
            number, unit = re.search(rf"^\s+{name}%\s+([\d.]+)(us|ms|s)", out, re.M).groups()
            return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]

        failures = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", out)
        return {
            "answers": int(re.search(r"(\d+) requests in", out)[1]),
            "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]),
            "p50": latency("50"),
            "p99": latency("99"),
            "p99.9": None,
            "max": None,
            "failures": sum(map(int, failures)),
        }


def find_ours(root: Path, target: str | None) -> Path:
    """Where `make loadtest` puts it."""
    return Path(target or root / "loadtest" / "target") / "release" / "ringhorn-loadtest"
