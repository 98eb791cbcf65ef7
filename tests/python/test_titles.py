"""What `ps` shows of the server: gunicorn's titles, without another package."""

from __future__ import annotations

import ast
import os
import signal
from pathlib import Path

import pytest

from harness import wait_until

pytestmark = pytest.mark.ringhorn_only


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def shown(site) -> list[str]:
    return [title(pid) for pid in (site.process.pid, *site.children())]


def test_the_application_names_master_and_workers(serve):
    site = serve("pep3333:app", "--workers", "2")
    site.workers(2)
    worker = "ringhorn: worker [pep3333:app]"
    wait_until(lambda: shown(site) == ["ringhorn: master [pep3333:app]", worker, worker], "the titles")


def test_a_name_of_ones_own_follows_a_reload_and_python_keeps_its_arguments(serve, tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text("proc_name = 'shop'\n")
    (tmp_path / "page.py").write_text(
        "import os, sys\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [repr((sys.argv[1:], sys.orig_argv[1:3], os.environ['LATER'])).encode()]\n"
    )
    site = serve("page", "--workers", "1", cwd=tmp_path, env={"LATER": "x" * 50})
    wait_until(lambda: shown(site) == ["ringhorn: master [shop]", "ringhorn: worker [shop]"], "the titles")
    argv, original, later = ast.literal_eval(site.get("/").body.decode())
    assert argv[-1] == "page" and original == ["-m", "ringhorn"] and later == "x" * 50
    (tmp_path / "gunicorn.conf.py").write_text("proc_name = 'garage'\n")
    site.signal(signal.SIGHUP)
    wait_until(
        lambda: shown(site) == ["ringhorn: master [garage]", "ringhorn: worker [garage]"], "new titles"
    )


def test_a_title_longer_than_the_command_line_was_is_cut(serve):
    site = serve("pep3333:app", "--workers", "1", env={"RINGHORN_CMD_ARGS": f"--name {'long' * 200}"})
    assert title(site.process.pid).startswith("ringhorn: master [longlong")
    assert "]" not in title(site.process.pid)
    environment = Path(f"/proc/{site.process.pid}/environ").read_bytes().split(b"\0")
    assert f"RINGHORN_CMD_ARGS=--name {'long' * 200}".encode() in environment


def test_a_second_master_is_told_apart_until_it_is_promoted(serve, tmp_path):
    pidfile = tmp_path / "pid"
    site = serve("pep3333:app", "--workers", "1", "--pid", str(pidfile))
    junior = pidfile.with_name("pid.2")
    site.signal(signal.SIGUSR2)
    wait_until(junior.exists, "the new master's pidfile")
    new = int(junior.read_text())
    try:
        wait_until(lambda: title(new) == "ringhorn: master [pep3333:app.2]", "the title of the new master")
        site.signal(signal.SIGTERM)
        assert site.wait() == 0
        wait_until(lambda: title(new) == "ringhorn: master [pep3333:app]", "the title after the promotion")
    finally:
        os.kill(new, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists(), "the end of the new master")
