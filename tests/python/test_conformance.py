"""The HTTP/1.1 conformance bench: raw cases for framing, smuggling and PEP 3333, all of which must pass.

The bench is kept beside the repository, in `../shared/conformance`, or where RINGHORN_CONFORMANCE says.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ROOT, clean_environment

BENCH = Path(os.environ.get("RINGHORN_CONFORMANCE", ROOT.parent / "shared" / "conformance"))


@pytest.mark.oracle_differs("it has failures of its own")
@pytest.mark.skipif(
    not (BENCH / "run.py").exists(), reason="the conformance bench is not beside the repository"
)
def test_every_case_passes(serve, tmp_path):
    env = {"BENCH_STATE": str(tmp_path / "state")}
    site = serve("app:app", cwd=BENCH, env=env, ready="/ping/ready")
    result = tmp_path / "result.json"
    command = [sys.executable, str(BENCH / "run.py"), *map(str, site.address), "--json", str(result)]
    done = subprocess.run(
        command, env=clean_environment(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode in (0, 1), done.stdout
    cases = json.loads(result.read_text())["cases"]
    assert len(cases) > 300
    # gunicorn's rule that methods have no lower-case letter and no "#" is kept: safe, and the bench calls it weak.
    bad = [
        case
        for case in cases
        if case["result"] != "PASS" and (case["name"], case["result"]) != ("every-token-character", "WEAK")
    ]
    lines = (
        "{result} {sev} {group}/{name} [{rfc}]: {why}".format(why=case["reason"], **case) for case in bad
    )
    assert not bad, "\n".join([f"{len(bad)} of {len(cases)} cases:", *lines])
