"""Tables, marks, charts and documents out of results. Results are plain data, so all of it can be made again."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import charts
from servers import KINDS
from workloads import MARKS, WORKLOADS, Mark

METRICS = {
    "cpu_us": "CPU us/request",
    "rps": "requests/s",
    "p50": "p50 us",
    "p99": "p99 us",
    "p99.9": "p99.9 us",
    "pss": "PSS MiB",
    "rss": "RSS MiB",
}


def median(server: dict, metric: str) -> float | None:
    """The median over the rounds; `None` when it was not measured."""
    if metric in ("pss", "rss"):
        return server["memory"].get(metric)
    found = [one[metric] for one in server["rounds"] if one.get(metric) is not None]
    return statistics.median(found) if found else None


def measured(results: dict, workload: str) -> dict[str, dict]:
    """The servers of a workload that did their work: few of the answers failed."""
    servers = results["workloads"].get(workload, {}).get("servers", {})
    return {
        name: server
        for name, server in servers.items()
        if server["rounds"]
        and sum(one["failures"] for one in server["rounds"])
        <= 0.001 * sum(one["answers"] for one in server["rounds"])
    }


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def ordered(results: dict, workload: str) -> list[tuple[str, dict]]:
    """Measured servers, the best first, and those that are missing behind them."""
    metric = WORKLOADS[workload].metric
    sign = -1 if metric == "rps" else 1

    def key(item: tuple[str, dict]) -> tuple:
        value = median(item[1], metric)
        return (value is None, sign * (value or 0))

    return sorted(results["workloads"][workload]["servers"].items(), key=key)


def table(results: dict, workload: str) -> str:
    metric = WORKLOADS[workload].metric
    servers = results["workloads"][workload]["servers"]
    ours = median(servers[next(iter(servers))], metric)
    columns = [metric, *(name for name in METRICS if name != metric)]
    lines = [
        f"| server | {METRICS[metric]} | least..most | of the first | "
        + " | ".join(METRICS[name] for name in columns[1:])
        + " | failures |",
        "| --- |" + " ---: |" * (len(columns) + 3),
    ]
    # The first of the workload is what the others are compared with, wherever it stands.
    for name, server in ordered(results, workload):
        title = KINDS[name].title
        if server["missing"]:
            lines.append(f"| {title} | missing: {server['missing']} |" + " |" * (len(columns) + 2))
            continue
        values = [one[metric] for one in server["rounds"] if one.get(metric) is not None]
        value = median(server, metric)
        relative = f"{value / ours:.2f}" if value and ours else ""
        failures = sum(one["failures"] for one in server["rounds"])
        spread = f"{number(min(values))}..{number(max(values))}" if values else ""
        cells = [number(value), spread, relative]
        cells += [number(median(server, name)) for name in columns[1:]]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {failures} |")
    return "\n".join(lines)


def chart(results: dict, workload: str) -> str | None:
    """`None` when nothing was measured."""
    plan = WORKLOADS[workload]
    rows = []
    for name, server in ordered(results, workload):
        value = median(server, plan.metric)
        if value:
            rows.append((KINDS[name].title, value, number(value), name.startswith("ringhorn")))
    if not rows:
        return None
    better = "more is better" if plan.metric == "rps" else "less is better"
    return charts.bars(
        plan.title, f"{METRICS[plan.metric]}, median of {results['rounds']} rounds; {better}", rows
    )


def judge(results: dict, mark: Mark) -> tuple[str, str]:
    """What was measured and the verdict."""
    servers = measured(results, mark.workload)
    ours = servers.get(mark.server)
    value = median(ours, mark.metric) if ours else None
    if value is None:
        return "not measured", "-"
    shown = f"{value / 1000:.1f}" if mark.text.endswith("ms") else number(value)
    against = ""
    if mark.others:
        others = {name: median(servers[name], mark.metric) for name in mark.others if name in servers}
        others = {name: other for name, other in others.items() if other}
        if not others:
            return f"{shown}; nobody to compare with", "-"
        best = (min if mark.at_most else max)(others, key=others.get)
        against = f" ({number(value)} to {number(others[best])}, {KINDS[best].title})"
        value /= others[best]
        shown = f"{value:.3f}"
    met = value <= mark.limit if mark.at_most else value >= mark.limit
    return f"{shown}{against}", "met" if met else "missed"


def marks(results: dict) -> str:
    lines = ["| workload | mark | measured | |", "| --- | --- | --- | --- |"]
    for mark in MARKS:
        if mark.workload not in results["workloads"]:
            continue
        limit = mark.limit / 1000 if mark.text.endswith("ms") else mark.limit
        wanted = f"{'<=' if mark.at_most else '>='} {limit:g}"
        shown, verdict = judge(results, mark)
        title = WORKLOADS[mark.workload].title
        who = "" if mark.server == "ringhorn" else f" ({KINDS[mark.server].title})"
        lines.append(f"| {title}{who} | {mark.text}: {wanted} | {shown} | {verdict} |")
    return "\n".join(lines)


def missed(results: dict) -> int:
    return sum(judge(results, mark)[1] == "missed" for mark in MARKS)


def machine(results: dict) -> str:
    about = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{results['date']}: {about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']} "
        f"with TCP {about['congestion']}, CPython {about['python']}; "
        f"{versions}. {results['rounds']} interleaved rounds of {results['seconds']:g} s for each server and workload, "
        f"server on CPU {results['server_cpu']}, {results['generator']} on CPU {results['load_cpu']}."
    )


def sections(results: dict) -> dict[str, str]:
    """What stands between the markers of docs/performance.md, by their names."""
    found = {"machine": machine(results), "marks": marks(results)}
    for workload in results["workloads"]:
        plan = WORKLOADS[workload]
        parts = [table(results, workload)]
        if plan.note:
            parts.insert(0, plan.note)
        if any(server["rounds"] for server in results["workloads"][workload]["servers"].values()):
            parts.insert(0, f"![{plan.title}](charts/{workload}.svg)")
        found[workload] = "\n\n".join(parts)
    return found


def readme(results: dict) -> str:
    """The short table of the README."""
    first = median(results["workloads"]["hello"]["servers"]["ringhorn"], "cpu_us")
    lines = [
        f"CPU microseconds per request of the server's whole process tree (user and system time), medians of "
        f"{results['rounds']} interleaved\nrounds: one worker on one CPU, 64 keep-alive connections from another, a "
        f"hello-world WSGI application. {machine(results).partition('. ')[0]}.\n",
        "| server | CPU us/request | of Ringhorn's | requests/s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, server in ordered(results, "hello"):
        value = median(server, "cpu_us")
        if value:
            rps = median(server, "rps")
            lines.append(f"| {KINDS[name].title} | {value:.2f} | {value / first:.2f} | {rps:,.0f} |")
    return "\n".join(lines)


def fill(text: str, parts: dict[str, str]) -> str:
    """Replaces what stands between `<!-- compare:NAME -->` and `<!-- /compare -->`, for the names in `parts`."""

    def replace(match: re.Match) -> str:
        name = match[1]
        return f"<!-- compare:{name} -->\n{parts[name]}\n<!-- /compare -->" if name in parts else match[0]

    return re.sub(r"<!-- compare:([\w-]+) -->\n.*?<!-- /compare -->", replace, text, flags=re.S)


def write_charts(results: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for workload in results["workloads"]:
        drawn = chart(results, workload)
        if drawn:
            (folder / f"{workload}.svg").write_text(drawn)


def write_docs(results: dict, docs: Path) -> None:
    write_charts(results, docs / "charts")
    # A line for each server, so that a diff can be read.
    text = json.dumps(results, indent=1)
    text = re.sub(r"\n {6,}\s*", " ", text).replace("\n     }", " }")
    (docs / "charts" / "results.json").write_text(text + "\n")
    parts = sections(results)
    if results["workloads"].get("hello", {}).get("servers", {}).get("ringhorn", {}).get("rounds"):
        parts["readme"] = readme(results)
    for page in (docs / "performance.md", docs.parent / "README.md"):
        if page.exists():
            page.write_text(fill(page.read_text(), parts))
