"""The control socket, and `ringhorn ctl` as operators and their scripts use it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harness import APPS, PATIENCE, Server, clean_environment, request, run_to_end, wait_until
from load import Load
from test_lifecycle import upgraded, versioned

pytestmark = pytest.mark.ringhorn_only

CTL = [sys.executable, "-m", "ringhorn", "ctl"]


@pytest.fixture
def runtime(tmp_path) -> dict[str, str]:
    """An environment with a runtime directory of its own."""
    directory = tmp_path / "runtime"
    directory.mkdir()
    return {"XDG_RUNTIME_DIR": str(directory), "RUNTIME_DIRECTORY": ""}


def place(runtime: dict[str, str]) -> Path:
    return Path(runtime["XDG_RUNTIME_DIR"], "ringhorn.ctl")


@pytest.fixture
def site(serve, runtime) -> Server:
    """Two workers, found in the runtime directory."""
    server = serve("pep3333:app", "--workers", "2", "--threads", "2", env=runtime)
    server.workers(2)
    return server


def ctl(runtime: dict[str, str], *words: object, code: int = 0) -> str:
    """Run `ringhorn ctl` with these arguments; what it prints."""
    ended, text = run_to_end(CTL, *words, env=runtime)
    assert ended == code, text
    return text


def ask(runtime: dict[str, str], *words: object) -> dict:
    return json.loads(ctl(runtime, "--json", *words))


def say(path: Path, message: bytes) -> dict:
    """One message on a connection of its own, and the line that answers it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(message)
        with client.makefile("rb") as answer:
            return json.loads(answer.readline())


# --- where it is


def test_it_is_in_the_runtime_directory_for_its_user_alone_and_goes_with_the_server(serve, runtime):
    server = serve("pep3333:app", "--workers", "1", env=runtime)
    path = place(runtime)
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert f"Control socket listening at {path}" in server.log()
    assert ctl(runtime, "ping") == f"{server.process.pid}\n"
    server.stop()
    assert list(path.parent.iterdir()) == []


def test_no_control_socket(serve, runtime):
    server = serve("pep3333:app", "--workers", "1", "--no-control-socket", env=runtime)
    assert list(place(runtime).parent.iterdir()) == []
    assert "ontrol socket" not in server.log()
    text = ctl(runtime, "--pid", server.process.pid, "ping", code=1)
    assert "no control socket" in text and "--control-socket" in text


def test_a_socket_by_name_with_a_mode_is_found_by_the_pidfile(serve, tmp_path, runtime):
    path, pidfile = tmp_path / "here.ctl", tmp_path / "pid"
    options = ("--control-socket", "here.ctl", "--control-socket-mode", "0660", "--pid", str(pidfile))
    server = serve("pep3333:app", *options, cwd=tmp_path, env=runtime | {"PYTHONPATH": str(APPS)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    for option in (("-s", path), ("--pid", pidfile), ("--pid", server.process.pid)):
        assert ctl(runtime, *option, "ping") == f"{server.process.pid}\n"


def test_a_socket_that_cannot_be_is_a_warning_and_the_server_serves(serve, tmp_path, runtime):
    path = tmp_path / "missing" / "here.ctl"
    server = serve("pep3333:app", "--workers", "1", "--control-socket", str(path), env=runtime)
    assert server.get("/environ").status == 200
    assert f"cannot open control_socket {path}: " in server.log()


def test_a_runtime_directory_that_cannot_be_used_is_passed_over_in_silence(serve, tmp_path):
    """In containers the variable often names what is not there. Root has /run then."""
    env = {"XDG_RUNTIME_DIR": str(tmp_path / "missing"), "RUNTIME_DIRECTORY": ""}
    server = serve("pep3333:app", "--workers", "1", env=env)
    assert server.get("/environ").status == 200
    assert "cannot open" not in server.log() and "missing" not in server.log()


def test_two_servers_in_one_directory(site, serve, runtime):
    other = serve("pep3333:app", "--workers", "1", env=runtime)
    second = place(runtime).with_name(f"ringhorn-{other.process.pid}.ctl")
    assert second.exists()
    text = ctl(runtime, "ping", code=2)
    assert str(second) in text and str(place(runtime)) in text and str(site.process.pid) in text
    assert ctl(runtime, "--pid", site.process.pid, "ping") == f"{site.process.pid}\n"
    assert ctl(runtime, "--socket", second, "ping") == f"{other.process.pid}\n"
    other.stop()
    assert ctl(runtime, "ping") == f"{site.process.pid}\n"


def test_what_killed_servers_have_left_is_removed_by_the_next(site, serve, runtime):
    other = serve("pep3333:app", "--workers", "1", env=runtime)
    left = place(runtime).with_name(f"ringhorn-{other.process.pid}.ctl")
    for server in (site, other):
        server.exit_code = -signal.SIGKILL
        server.kill()
    assert left.exists() and place(runtime).exists()
    assert "is gone" in ctl(runtime, "-s", left, "ping", code=1)
    next_one = serve("pep3333:app", "--workers", "1", env=runtime)
    assert not left.exists()
    assert ctl(runtime, "ping") == f"{next_one.process.pid}\n"


def test_a_reload_that_is_dropped_gives_its_names_up(serve, tmp_path, runtime):
    """Pidfile and socket stayed where the settings wanted them that were dropped."""
    config = tmp_path / "names.py"

    def call_it(name: str) -> None:
        config.write_text(f"pidfile = '{name}.pid'\ncontrol_socket = '{name}.ctl'\n")

    call_it("old")
    versioned(tmp_path)
    options = ("--workers", "1", "--config", str(config))
    server = serve("versioned", *options, cwd=tmp_path, env=runtime | {"PYTHONPATH": str(APPS)})
    call_it("new")
    versioned(tmp_path, before="raise RuntimeError('broken release')")
    server.signal(signal.SIGHUP)
    wait_until(lambda: "the reload is dropped" in server.log(), "the reload is dropped")
    wait_until((tmp_path / "old.ctl").exists, "the socket is back")
    assert ctl(runtime, "-s", tmp_path / "old.ctl", "ping") == f"{server.process.pid}\n"
    assert (tmp_path / "old.pid").read_text() == f"{server.process.pid}\n"
    assert not list(tmp_path.glob("new.*"))


def test_errors_say_what_to_do(tmp_path, runtime):
    assert "ENOENT" in ctl(runtime, "-s", tmp_path / "none", "ping", code=1)
    assert "no process" in ctl(runtime, "--pid", 2**22 + 1, "ping", code=1)
    assert "pidfile" in ctl(runtime, "--pid", tmp_path / "none", "ping", code=1)
    (tmp_path / "pid").write_text("1\n")
    assert "is no socket; `--pid`" in ctl(runtime, "-s", tmp_path / "pid", "ping", code=1)
    assert "--help" in ctl(runtime, "--such", code=2)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to become somebody else")
def test_other_users_are_kept_out_by_the_mode_and_by_who_they_are(site, runtime, tmp_path):
    path = place(runtime)
    script = (
        "import contextlib, os, socket, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "client = socket.socket(socket.AF_UNIX)\n"
        "client.connect(sys.argv[1])\n"
        "with contextlib.suppress(BrokenPipeError):\n"
        "    client.sendall(b'stop\\n')\n"
        "print(client.makefile().readline())\n"
    )
    for parent in path.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    command = [sys.executable, "-c", script, str(path)]
    assert "PermissionError" in run_to_end(command)[1]
    # Opened by mistake: the master looks who it is.
    path.chmod(0o666)
    assert "only the server's user and root" in run_to_end(command)[1]
    assert site.get("/environ").status == 200
    assert "user 65534 is refused" in site.log()


# --- what it tells


def test_the_numbers_are_those_of_the_clients(site, runtime):
    def requests() -> int:
        return ask(runtime, "show", "stats")["requests"]

    # Workers publish with their heartbeat. The first request is the harness's.
    wait_until(lambda: requests() == 1, "the first request")
    with site.client() as one, site.client() as two:
        for _ in range(10):
            assert one.get("/environ").status == two.get("/environ").status == 200
    wait_until(lambda: requests() == 21, "20 requests more")
    workers = ask(runtime, "show", "workers")["workers"]
    assert sum(worker["requests"] for worker in workers) == 21
    assert [worker["slot"] for worker in workers] == [0, 1]
    assert sorted(worker["pid"] for worker in workers) == site.children()
    for worker in workers:
        assert worker["state"] == "ready" and worker["booted"] and worker["memory_bytes"] > 1 << 20
        assert worker["last_heartbeat"] < PATIENCE and worker["cpu_seconds"] >= 0
    # Those of workers that are gone still count.
    ctl(runtime, "reload", "--wait")
    assert requests() == 21


def test_requests_in_hand_are_shown_until_they_are_answered(serve, runtime):
    site = serve("stuck", "--workers", "1", "--threads", "2", env=runtime)
    assert ctl(runtime, "show", "requests") == "no request has been in hand for a second\n"

    def shown() -> list[dict]:
        return ask(runtime, "show", "requests")["requests"]

    with site.client() as client:
        client.send(request("GET", "/wait?password=secret"))
        wait_until(lambda: len(shown()) == 1, "the request to be published")
        [found] = shown()
        assert found["request"].startswith("GET /wait from 127.0.0.1:") and found["seconds"] >= 1
        assert (found["slot"], found["pid"]) == (0, site.children()[0])
        assert "GET /wait from" in ctl(runtime, "show", "requests")
        assert site.get("/go_on").status == 200
        assert client.read_response().body == b"late"
    wait_until(lambda: shown() == [], "the request to be forgotten")


def test_workers_count_while_somebody_looks(site, runtime, tmp_path):
    """Nobody pays for numbers that nobody sees, and those that are seen are right."""

    def meters(words: bytes) -> list[dict | None]:
        answer = say(place(runtime), b"show " + words + b"\n")["data"]
        return [worker["meter"] for worker in answer.get("web_workers") or answer["workers"]]

    def requests() -> int | None:
        found = meters(b"load 5")
        return None if None in found else sum(meter["requests"] for meter in found)

    timed = 0
    with site.client() as client:
        for before in (0, 10):
            wait_until(lambda: meters(b"workers") == [None, None], "nobody looks any more")
            assert client.get("/environ").status == 200
            gate = tmp_path / f"gate-{before}"
            client.send(request("POST", "/until_exists", body=str(gate).encode()))
            wait_until(Path(f"{gate}.begun").exists, "a request in hand")
            wait_until(lambda: requests() is not None, "the workers to count")
            assert requests() == before, "what nobody saw"
            gate.touch()
            assert client.read_response().status == 200
            for _ in range(9):
                assert client.get("/environ").status == 200
            wait_until(lambda: requests() == before + 10, "ten requests more")  # noqa: B023
            found = meters(b"workers")
            timed += 9
            times = sum(count for meter in found for _, count in meter["times"])
            assert times == timed, "of the request that was in hand nobody knows since when"
            assert sum(meter["in_hand"] + meter["waiting"] for meter in found) == 0
            assert sum(meter["runners"] for meter in found) >= 2
    for wrong in ("0", "151", "x"):
        assert "number of seconds" in ctl(runtime, "show", "load", wrong, code=1)


def test_tables_for_people(site, runtime):
    lines = ctl(runtime, "show", "workers").splitlines()
    assert lines[0].split()[:4] == ["SLOT", "PID", "AGE", "STATE"] and len(lines) == 3
    assert "up to 2 per worker" in ctl(runtime, "show", "stats")
    assert site.url in ctl(runtime, "show", "listeners")
    settings = ctl(runtime, "show", "settings")
    assert any(line.split()[:2] == ["workers", "2"] and "--workers" in line for line in settings.splitlines())
    assert ask(runtime, "show", "config")["threads"] == "2"
    assert "scale N" in ctl(runtime, "help")
    assert "try show all, " in ctl(runtime, "show", "nothing", code=1)


def test_commands_from_a_script(site, runtime):
    command = [*CTL, "--json"]
    done = subprocess.run(
        command,
        input="ping\n\nnonsense\nping\n",
        env=clean_environment(runtime),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.count(str(site.process.pid)) == 2
    assert "no command" in done.stderr and done.returncode == 1


def test_plain_words_and_json_lines_on_the_socket(site, runtime):
    pid = {"pid": site.process.pid}
    assert say(place(runtime), b"ping\n") == {"id": None, "status": "ok", "data": pid}
    message = json.dumps({"id": "a", "command": "ping"}).encode() + b"\n"
    assert say(place(runtime), message) == {"id": "a", "status": "ok", "data": pid}
    message = json.dumps({"id": 2, "command": "scale", "args": ["x"]}).encode() + b"\n"
    assert say(place(runtime), message)["status"] == "error"
    for hostile in (b"GET / HTTP/1.1\r\n", b"{\n", b"\xff\n", b"x" * 20_000 + b"\n", b'{"command": 1}\n'):
        assert say(place(runtime), hostile)["status"] == "error"
    assert site.get("/environ").status == 200


def test_gunicorns_own_client_works(site, runtime):
    """Its users' scripts go on working; the names and the framing are gunicorn's."""
    client = [sys.executable, "-m", "gunicorn.ctl.cli", "-s", str(place(runtime)), "-c"]
    wait_until(lambda: run_to_end(client, "show workers")[1].count(" yes ") == 2, "both have booted")
    code, text = run_to_end(client, "show workers")
    assert code == 0 and "Total: 2 workers" in text, text
    for words in ("show all", "show stats", "show listeners", "show config", "show dirty", "help"):
        assert run_to_end(client, words)[0] == 0, words
    code, text = run_to_end(client, "worker add 1", "--json")
    assert (code, json.loads(text)) == (0, {"added": 1, "previous": 2, "total": 3})
    code, text = run_to_end(client, "worker remove 7", "--json")
    assert (code, json.loads(text)) == (0, {"removed": 2, "previous": 3, "total": 1})
    code, text = run_to_end(client, "nonsense")
    assert code == 1 and "no command" in text


def test_a_client_that_stops_in_the_middle_holds_nobody_up(site, runtime):
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(place(runtime)))
        slow.sendall(b'{"command": "show')
        assert ctl(runtime, "ping") == f"{site.process.pid}\n"
        ctl(runtime, "reload", "--wait")


# --- what it does


def test_scale(site, runtime):
    for words, count in ((["+2"], 4), (["-1"], 3), (["1"], 1), (["2"], 2)):
        assert ctl(runtime, "scale", *words).startswith(f"{count} workers")
        site.workers(count)
    for words in ("0", "-2", "99999", "many"):
        ctl(runtime, "scale", words, code=1)
    site.workers(2)
    assert "control: scale +2 (uid:" in site.log()


def test_retire_replaces_one_worker_and_loses_nothing(site, runtime):
    old = ask(runtime, "show", "workers")["workers"]
    with Load(site) as load:
        ctl(runtime, "retire", 1)
        wait_until(lambda: old[1]["pid"] not in site.children(), "the end of the old worker")
        load.go_on()
    new = ask(runtime, "show", "workers")["workers"]
    assert new[0]["pid"] == old[0]["pid"] and new[1]["slot"] == 1
    ctl(runtime, "retire", 7, code=1)


def test_kill_lets_a_worker_leave_and_another_one_come(site, runtime):
    victim = site.children()[0]
    ctl(runtime, "worker", "kill", victim)
    wait_until(lambda: victim not in site.children() and len(site.children()) == 2, "another worker")
    assert "no worker with pid" in ctl(runtime, "worker", "kill", os.getpid(), code=1)


def test_reload_waits_for_the_new_workers_or_tells_that_there_are_none(serve, tmp_path, runtime):
    versioned(tmp_path)
    env = runtime | {"PYTHONPATH": str(APPS)}
    server = serve("versioned", "--workers", "2", cwd=tmp_path, env=env)
    old = set(server.workers(2))
    assert ctl(runtime, "reload", "--wait") == "reloaded; 2 workers\n"
    assert ask(runtime, "show", "stats")["reloads"] == 1
    new = {
        worker["pid"] for worker in ask(runtime, "show", "workers")["workers"] if worker["state"] == "ready"
    }
    assert len(new) == 2 and not new & old
    versioned(tmp_path, before="raise SystemError('broken on purpose')")
    assert "old workers serve on" in ctl(runtime, "reload", "--wait", code=1)
    assert server.get("/environ").status == 200
    assert ask(runtime, "show", "stats")["reloads_failed"] == 1


def test_a_reload_moves_the_socket(serve, tmp_path, runtime):
    config = tmp_path / "conf.py"
    first, second = tmp_path / "first.ctl", tmp_path / "second.ctl"
    config.write_text(f"control_socket = {str(first)!r}\n")
    server = serve("pep3333:app", "--workers", "1", "-c", str(config), env=runtime)
    config.write_text(f"control_socket = {str(second)!r}\n")
    server.signal(signal.SIGHUP)
    wait_until(second.exists, "the new socket")
    assert ctl(runtime, "-s", second, "ping") == f"{server.process.pid}\n"
    assert not first.exists()


def test_reopen_opens_the_log_again(serve, tmp_path, runtime):
    log = tmp_path / "error.log"
    serve("pep3333:app", "--workers", "1", "--error-logfile", str(log), env=runtime, listening_in=log)
    log.rename(tmp_path / "old.log")
    assert ctl(runtime, "reopen") == "reopening\n"
    wait_until(log.exists, "the log again")


@pytest.mark.parametrize(
    "words", [["stop"], ["stop", "--quick"], ["shutdown", "graceful"], ["shutdown", "quick"]]
)
def test_stop(site, runtime, words):
    assert ctl(runtime, *words) == "shutting down\n"
    assert site.wait() == 0
    assert not place(runtime).exists()


def test_upgrade_hands_the_socket_to_the_new_master_and_takes_it_back(serve, tmp_path, runtime):
    pidfile = tmp_path / "pid"
    site = serve("pep3333:app", "--workers", "2", "--pid", str(pidfile), env=runtime)
    site.workers(2)
    with upgraded(site, pidfile) as new:
        wait_until(lambda: ctl(runtime, "ping") == f"{new.pid}\n", "the new master has the socket")
        stats = ask(runtime, "show", "stats")
        assert (stats["state"], stats["earlier_master_pid"]) == ("upgrading", site.process.pid)
        assert "an upgrade is under way" in ctl(runtime, "scale", 3, code=1)
    # The new one has ended: the old one is there again.
    wait_until(lambda: place(runtime).exists(), "the socket is back")
    assert ctl(runtime, "ping") == f"{site.process.pid}\n"
    with upgraded(site, pidfile) as new:
        wait_until(lambda: ctl(runtime, "ping") == f"{new.pid}\n", "the new master has the socket")
        site.signal(signal.SIGTERM)
        assert site.wait() == 0
        wait_until(lambda: ask(runtime, "show", "stats")["state"] == "serving", "the promotion")
        assert ctl(runtime, "ping") == f"{new.pid}\n"


# --- the command line


def test_applications_called_as_the_commands_are_can_be_served(serve, tmp_path, runtime):
    (tmp_path / "top.py").write_text("from pep3333 import app as application\n")
    (tmp_path / "ctl.py").write_text("from pep3333 import app as application\n")
    env = runtime | {"PYTHONPATH": str(APPS)}
    for arguments in (["--workers", "1", "top"], ["top:application"], ["--", "ctl"]):
        server = serve(None, *arguments, cwd=tmp_path, env=env)
        assert server.get("/environ").status == 200


def test_help():
    for name in ("ctl", "top"):
        code, text = run_to_end([sys.executable, "-m", "ringhorn"], name, "--help")
        assert code == 0 and "--socket" in text
    assert "ringhorn ctl" in run_to_end([sys.executable, "-m", "ringhorn"], "--help")[1]
