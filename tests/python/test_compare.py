"""The comparison with other servers (loadtest/compare): what it makes of results, and that it runs."""

import importlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

pytestmark = pytest.mark.ringhorn_only

ROOT = Path(__file__).resolve().parents[2]
COMPARE = ROOT / "loadtest" / "compare"


@pytest.fixture(scope="module")
def report():
    sys.path.insert(0, str(COMPARE))
    try:
        yield importlib.import_module("report")
    finally:
        sys.path.remove(str(COMPARE))


def server(cpu_us, failures=0, **more):
    one = {"answers": 1000, "rps": 1e6 / cpu_us, "cpu_us": cpu_us, "failures": failures}
    one |= {"p50": 100.0, "p99": 900.0, "p99.9": None, "max": 1e6, **more}
    return {"missing": "", "rounds": [one], "memory": {"rss": 30.0, "pss": 20.0}}


def results(**servers):
    return {
        "date": "2026-01-01 00:00 UTC",
        "machine": {"cpu": "A & B", "cpus": 2, "kernel": "6", "congestion": "cubic", "python": "3"},
        "versions": {"ringhorn": "1"},
        "generator": "wrk",
        "rounds": 1,
        "seconds": 1,
        "server_cpu": "0",
        "load_cpu": "1",
        "workloads": {"hello": {"servers": {name.replace("_", "-"): each for name, each in servers.items()}}},
    }


def verdicts(report, found):
    return {
        (mark.server, tuple(mark.others), mark.metric): report.judge(found, mark)[1]
        for mark in report.MARKS
        if mark.workload == "hello"
    }


def test_marks_compare_with_the_best_and_are_missed_by_a_hair(report):
    inline = ("bjoern", "fastwsgi", "fastpysgi")
    peers = {"bjoern": server(10), "fastpysgi": server(20), "granian": server(20), "gthread": server(100)}
    for cpu, verdict in [(8.7, "met"), (8.71, "missed")]:
        found = verdicts(report, results(ringhorn=server(cpu), **peers))
        assert found["ringhorn", inline, "cpu_us"] == verdict
    assert found["ringhorn", ("granian",), "cpu_us"] == "met"
    assert found["ringhorn", ("gthread",), "cpu_us"] == "missed"
    assert found["ringhorn-epoll", inline, "cpu_us"] == "-", "it was not measured"


def test_a_server_whose_answers_failed_is_not_the_best(report):
    found = results(ringhorn=server(8), bjoern=server(1, failures=500), fastpysgi=server(10))
    assert verdicts(report, found)["ringhorn", ("bjoern", "fastwsgi", "fastpysgi"), "cpu_us"] == "met"


def test_a_missing_server_is_a_row_that_says_so(report):
    gone = {"missing": "it is not there", "rounds": [], "memory": {}}
    lines = report.table(results(ringhorn=server(8), bjoern=server(4), sync=gone), "hello").splitlines()
    assert lines[2].startswith("| bjoern | 4.00 | 4.00..4.00 | 0.50 |")
    assert lines[3].startswith("| Ringhorn, io_uring | 8.00 |")
    assert lines[4].startswith("| gunicorn sync | missing: it is not there |")
    assert len({line.count("|") for line in lines}) == 1, "every row has all columns"


def test_a_chart_is_well_formed_and_names_every_server(report):
    drawn = report.chart(results(ringhorn=server(8), bjoern=server(9), sync=server(900)), "hello")
    nodes = list(xml.etree.ElementTree.fromstring(drawn).iter())
    texts = {node.text for node in nodes if node.tag.endswith("}text")}
    assert {"Ringhorn, io_uring", "bjoern", "gunicorn sync", "900.0"} <= texts
    widths = [float(node.get("width")) for node in nodes if node.tag.endswith("}rect")]
    assert max(widths[1:]) < 760, "a bar stays on the page"


def test_documents_are_filled_between_their_markers_only(report):
    page = (
        "a\n<!-- compare:hello -->\nold\n<!-- /compare -->\nb\n<!-- compare:x -->\nkept\n<!-- /compare -->\n"
    )
    parts = report.sections(results(ringhorn=server(8)))
    once = report.fill(page, parts)
    assert "old" not in once and "kept" in once and once.startswith("a\n") and "\nb\n" in once
    assert report.fill(once, parts) == once


def test_the_documents_have_the_checked_in_results(report):
    """Tables and charts are not edited by hand: `loadtest/compare --from docs/charts/results.json`."""
    file = ROOT / "docs" / "charts" / "results.json"
    if not file.exists():
        pytest.skip("nothing was measured yet")
    found = json.loads(file.read_text())
    page = (ROOT / "docs" / "performance.md").read_text()
    assert report.fill(page, report.sections(found)) == page
    for workload in found["workloads"]:
        drawn = report.chart(found, workload)
        if drawn:
            assert (file.parent / f"{workload}.svg").read_text() == drawn


def test_every_kind_of_work_has_its_place_in_the_documents(report):
    page = (ROOT / "docs" / "performance.md").read_text()
    for name in ["machine", "marks", *report.WORKLOADS]:
        assert page.count(f"<!-- compare:{name} -->\n") == 1, name


def test_it_runs(tmp_path):
    """One short round with whatever is installed beside this server."""
    targets = [os.environ.get("CARGO_TARGET_DIR"), ROOT / "loadtest" / "target"]
    built = [Path(target) / "debug" / "ringhorn-loadtest" for target in targets if target]
    program = next((file for file in built if file.exists()), None)
    if program is None:
        pytest.skip("the load generator is not built: cargo build --manifest-path loadtest/Cargo.toml")
    command = [sys.executable, str(COMPARE), "hello", "echo", "--servers", "ringhorn,ringhorn-epoll,bjoern"]
    options = ["--rounds", "1", "--seconds", "0.2", "--peers", sys.prefix, "--out", str(tmp_path)]
    more = ["--generator", str(program), "--server-cpu", "0", "--load-cpu", "0"]
    done = subprocess.run([*command, *options, *more], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    for workload in ("hello", "echo"):
        for name in ("ringhorn", "ringhorn-epoll"):
            one = found["workloads"][workload]["servers"][name]
            assert one["rounds"][0]["answers"] > 0 and one["rounds"][0]["failures"] == 0, one
            assert one["memory"]["pss"] > 1
        assert found["workloads"][workload]["servers"]["bjoern"]["missing"]
        assert (tmp_path / f"{workload}.svg").exists()
