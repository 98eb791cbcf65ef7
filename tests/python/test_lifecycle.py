"""Nothing is lost: reload, recycle, scale and upgrade while clients ask, counting every request that fails."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import APPS, Server, request, wait_until
from load import Load
from test_processes import alive, listeners, pid_that_answers

pytestmark = pytest.mark.ringhorn_only

REPEATS = 5


def versioned(directory: Path, version: object = 1, before: str = "") -> Path:
    """An application that tells its version; `before` runs when it is imported."""
    path = directory / "versioned.py"
    aside = directory / "versioned.aside"
    aside.write_text(f"{before}\nfrom pep3333 import app as application\nVERSION = {version!r}\n")
    # At once, because a worker may be reading it.
    aside.replace(path)
    return path


@pytest.fixture
def site(serve, tmp_path):
    """Two workers with an application that can be changed."""
    versioned(tmp_path)
    options = ("--workers", "2", "--threads", "4", "--log-level", "debug")
    return serve("versioned", *options, cwd=tmp_path, env={"PYTHONPATH": str(APPS)})


def hang_up(site: Server) -> set[int]:
    """HUP; returns the workers that have taken the place of the others, once the others are gone."""
    old = set(site.workers(2))
    site.signal(signal.SIGHUP)
    wait_until(lambda: len(set(site.children()) - old) == 2, "two new workers")
    wait_until(lambda: not old & set(site.children()), "the end of the old workers")
    return set(site.workers(2))


# --- HUP


def test_reloads_lose_nothing(site):
    with Load(site) as load:
        for _ in range(REPEATS):
            new = hang_up(site)
            load.until_only(new)


def test_a_reload_brings_new_code(serve, tmp_path):
    path = tmp_path / "page.py"
    code = "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'{}']\n"
    path.write_text(code.format("one"))
    site = serve("page", "--workers", "2", cwd=tmp_path)
    assert site.get("/").body == b"one"
    path.write_text(code.format("two"))
    hang_up(site)
    assert site.get("/").body == b"two"


def test_a_version_that_cannot_boot_changes_nothing(site, tmp_path):
    old = set(site.workers(2))
    with Load(site) as load:
        for before in (
            "raise RuntimeError('broken release')",
            "import no_such_module",
            "import os; os._exit(7)",
        ):
            versioned(tmp_path, before=before)
            count = site.log().count("the reload is dropped")
            site.signal(signal.SIGHUP)
            wait_until(lambda n=count: site.log().count("the reload is dropped") > n, "the reload is dropped")
            load.until_only(old)
            assert set(site.workers(2)) == old
        assert "broken release" in site.log()
        versioned(tmp_path)
        load.until_only(hang_up(site))


def test_a_dropped_reload_leaves_the_next_worker_its_directory_and_environment(serve, tmp_path):
    """It was forked into the directory of the release that cannot boot, and could not boot either."""
    config = tmp_path / "release.py"

    def release(name: str, before: str = "") -> None:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "page.py").write_text(
            f"{before}\nimport os\ndef application(environ, start_response):\n"
            "    start_response('200 OK', [])\n"
            "    old, new = os.environ.get('OLD'), os.environ.get('NEW')\n"
            f"    return [f'{name} {{os.getcwd()}} {{old}} {{new}}'.encode()]\n"
        )
        config.write_text(f"chdir = {str(directory)!r}\nraw_env = ['{name.upper()}={name}']\n")

    release("old")
    site = serve("page", "--workers", "1", "--config", str(config), cwd=tmp_path)
    told = f"old {tmp_path / 'old'} old None".encode()
    assert site.get("/").body == told
    release("new", before="raise RuntimeError('broken release')")
    site.signal(signal.SIGHUP)
    wait_until(lambda: "the reload is dropped" in site.log(), "the reload is dropped")
    (worker,) = site.workers(1)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker not in site.children(), "the end of the worker")
    assert site.get("/").body == told


def test_a_version_that_boots_slowly_delays_nobody(site, tmp_path):
    """The new worker imports for as long as the test likes; the old ones serve meanwhile."""
    go = tmp_path / "go"
    versioned(tmp_path, before=f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)")
    old = set(site.workers(2))
    with Load(site) as load:
        site.signal(signal.SIGHUP)
        site.workers(3)
        load.until_only(old)
        load.go_on(500)
        go.touch()
        wait_until(lambda: not old & set(site.children()), "the end of the old workers")
        load.until_only(set(site.workers(2)))


def test_a_request_in_hand_is_finished_by_the_worker_that_has_it(site, tmp_path):
    go = tmp_path / "go"
    with site.client() as client:
        client.send(request("POST", "/until_exists", body=str(go).encode()))
        wait_until(lambda: go.with_suffix(".begun").exists(), "the request has begun")
        old = set(site.workers(2))
        site.signal(signal.SIGHUP)
        wait_until(lambda: site.log().count("told to leave") == 2, "both old workers were told to leave")
        wait_until(lambda: len(old & set(site.children())) == 1, "the idle old worker leaves")
        go.touch()
        answer = client.read_response()
        assert (answer.status, answer.body) == (200, b"it exists")
        assert answer.field("connection") == "close"
        client.assert_closed()
    wait_until(lambda: not old & set(site.children()), "the end of the old workers")


def test_an_idle_connection_survives_a_reload_and_its_next_answer_announces_the_end(site):
    with site.client() as client:
        assert client.get("/plain").field("connection") != "close"
        old = set(site.workers(2))
        site.signal(signal.SIGHUP)
        wait_until(lambda: site.log().count("told to leave") == 2, "both old workers were told to leave")
        wait_until(lambda: len(old & set(site.children())) == 1, "the old worker without connections leaves")
        answer = client.get("/plain")
        assert (answer.status, answer.field("connection")) == (200, "close")
        client.assert_closed()


def test_settings_are_read_again(serve, tmp_path):
    """Through the environment's RINGHORN_CMD_ARGS they could not change; the number of workers set by TTIN can."""
    site = serve("pep3333:app", "--workers", "1", "--pid", str(tmp_path / "pid"))
    site.workers(1)
    site.signal(signal.SIGTTIN)
    site.workers(2)
    old = set(site.children())
    site.signal(signal.SIGHUP)
    wait_until(lambda: len(site.children()) == 1 and not old & set(site.children()), "one new worker")
    assert (tmp_path / "pid").read_text() == f"{site.process.pid}\n"
    wait_until(lambda: listeners(site.port) == 1, "one listener")
    assert site.get("/plain").status == 200


def test_preloaded_code_stays_and_the_log_says_so(serve):
    site = serve("pep3333:app", "--workers", "2", "--preload")
    with Load(site) as load:
        load.until_only(hang_up(site))
    assert "does not load its code again" in site.log()


def test_log_files_are_opened_again(serve, tmp_path):
    log = tmp_path / "error.log"
    site = serve("pep3333:app", "--workers", "2", "--error-logfile", str(log), listening_in=log)
    moved = tmp_path / "error.log.1"
    log.rename(moved)
    hang_up(site)
    assert "Booting worker" in log.read_text()
    assert "Handling signal: hup" in moved.read_text()


# --- max_requests


def test_recycling_loses_nothing(serve):
    site = serve(
        "pep3333:app",
        "--workers",
        "2",
        "--threads",
        "4",
        "--max-requests",
        "100",
        "--max-requests-jitter",
        "20",
    )
    with Load(site) as load:
        wait_until(lambda: load.failures or site.log().count("Booting worker") >= 10, "workers are replaced")
    assert "Autorestarting worker after current request. (max_requests)" in site.log()
    assert site.log().count("Worker exiting") >= 6


def test_the_worker_leaves_when_its_replacement_serves(serve, tmp_path):
    """Its place is never empty, and with one worker this is the one."""
    go, begun = tmp_path / "go", str(tmp_path / "begun")
    versioned(
        tmp_path,
        before=f"import os, time\nfirst = not os.path.exists({begun!r})\nopen({begun!r}, 'w').close()\n"
        f"while not first and not os.path.exists({str(go)!r}): time.sleep(0.01)",
    )
    site = serve(
        "versioned", "--workers", "1", "--max-requests", "5", cwd=tmp_path, env={"PYTHONPATH": str(APPS)}
    )
    (old,) = site.children()[:1]
    for _ in range(20):
        assert pid_that_answers(site) == old
    site.workers(2)
    go.touch()
    wait_until(lambda: old not in site.children(), "the old worker leaves")
    assert pid_that_answers(site) != old


# --- max_worker_age, max_worker_memory


def test_workers_of_an_age_are_replaced_one_after_the_other_and_nothing_is_lost(serve):
    options = (
        "--workers",
        "2",
        "--threads",
        "4",
        "--max-worker-age",
        "0.5",
        "--max-worker-age-jitter",
        "0.2",
    )
    site = serve("pep3333:app", *options)
    old = set(site.workers(2))
    with Load(site) as load:
        wait_until(lambda: load.failures or not old & set(site.children()), "both workers are replaced")
    assert "Autorestarting worker after current request. (max_worker_age)" in site.log()


def test_a_worker_that_has_grown_is_replaced(serve, tmp_path):
    (tmp_path / "grows.py").write_text(
        "from pep3333 import app\n"
        "held = []\n"
        "def application(environ, start_response):\n"
        "    if environ['PATH_INFO'] == '/grow': held.append(b'x' * (200 << 20))\n"
        "    return app(environ, start_response)\n"
    )
    options = ("--workers", "1", "--max-worker-memory", "200m")
    site = serve("grows", *options, cwd=tmp_path, env={"PYTHONPATH": str(APPS)})
    old = pid_that_answers(site)
    with site.client() as client:
        # Looked at with each heartbeat, and it is small: two of them change nothing.
        client.get("/plain")
        assert site.children() == [old]
        client.get("/grow")
    wait_until(lambda: old not in site.children(), "the large worker leaves")
    assert "Autorestarting worker after current request. (max_worker_memory)" in site.log()
    new = pid_that_answers(site)
    assert site.children() == [new]


# --- TTIN, TTOU


def test_scaling_loses_nothing(site):
    with Load(site, new=8) as load:
        for _ in range(2):
            for count in (3, 4):
                site.signal(signal.SIGTTIN)
                load.until_only(set(site.workers(count)))
                assert listeners(site.port) == count
            for count in (3, 2):
                site.signal(signal.SIGTTOU)
                wait_until(lambda n=count: len(site.children()) == n or load.failures, f"{count} workers")
                wait_until(lambda n=count: listeners(site.port) == n or load.failures, f"{count} listeners")
                load.until_only(set(site.children()))


def test_the_last_worker_stays(serve):
    site = serve("pep3333:app", "--workers", "1")
    (worker,) = site.workers(1)
    site.signal(signal.SIGTTOU)
    wait_until(lambda: "SIGTTOU has no effect: it is the last worker" in site.log(), "the refusal")
    assert pid_that_answers(site) == worker


def test_a_worker_that_is_added_gets_clients_when_it_serves(serve, tmp_path):
    """It imports for as long as the test likes, and nobody waits for it."""
    versioned(tmp_path)
    site = serve("versioned", "--workers", "1", cwd=tmp_path, env={"PYTHONPATH": str(APPS)})
    (first,) = site.workers(1)
    go = tmp_path / "go"
    versioned(tmp_path, before=f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)")
    site.signal(signal.SIGTTIN)
    site.workers(2)
    wait_until(lambda: listeners(site.port) == 2, "a listener for it")
    for _ in range(50):
        assert pid_that_answers(site) == first
    go.touch()
    wait_until(lambda: pid_that_answers(site) != first, "an answer from the new worker")


# --- stopping


def test_the_server_serves_on_for_drain_delay_and_a_second_term_ends_it(serve):
    site = serve("pep3333:app", "--workers", "1", "--drain-delay", "60")
    with site.client() as kept:
        assert kept.get("/plain").status == 200
        site.signal(signal.SIGTERM)
        wait_until(lambda: "Not ready from now on" in site.log(), "the delay begins")
        # New clients, and those that were there, whose connections are kept.
        assert site.get("/plain").status == 200
        answer = kept.get("/plain")
        assert (answer.status, answer.field("connection")) == (200, None)
        site.signal(signal.SIGTERM)
        assert site.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_stop_has_no_delay(serve, number):
    site = serve("pep3333:app", "--workers", "1", "--drain-delay", "60")
    site.signal(number)
    assert site.wait() == 0


def test_the_stop_begins_when_drain_delay_is_over(serve):
    site = serve("pep3333:app", "--workers", "1", "--drain-delay", "0.5")
    site.signal(signal.SIGTERM)
    assert site.wait() == 0
    assert "Not ready from now on" in site.log()


def test_those_who_wait_in_the_queue_at_term_are_served(serve):
    """gunicorn resets them (its issue 3397)."""
    site = serve("pep3333:app", "--workers", "1", "--threads", "1")
    (worker,) = site.workers(1)
    os.kill(worker, signal.SIGSTOP)
    clients = [site.client() for _ in range(30)]
    for client in clients:
        client.send(request("GET", "/plain"))
    site.signal(signal.SIGTERM)
    os.kill(worker, signal.SIGCONT)
    for client in clients:
        answer = client.read_response()
        assert (answer.status, answer.body) == (200, b"plain\n")
        client.close()
    assert site.wait() == 0


def test_after_term_new_clients_are_refused_while_a_request_is_finished(serve, tmp_path):
    site = serve("pep3333:app", "--workers", "2", "--threads", "2")
    go = tmp_path / "go"
    with site.client() as client:
        client.send(request("POST", "/until_exists", body=str(go).encode()))
        wait_until(lambda: go.with_suffix(".begun").exists(), "the request has begun")
        site.signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                site.client().close()
            except (ConnectionRefusedError, ConnectionResetError):
                # Reset: the listener closed between the two halves of this handshake; there is no request to lose.
                return True
            return False

        wait_until(refused, "refusal", patience=5)
        go.touch()
        assert client.read_response().body == b"it exists"
    assert site.wait() == 0


# --- USR2


class Upgraded:
    """The second master, which is not our child."""

    def __init__(self, pid: int):
        self.pid = pid

    def children(self) -> list[int]:
        return sorted(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()))


@contextlib.contextmanager
def upgraded(site: Server, pidfile: Path) -> Iterator[Upgraded]:
    """USR2, and the new master with its two workers."""
    site.signal(signal.SIGUSR2)
    second = pidfile.with_name(pidfile.name + ".2")
    wait_until(second.exists, "the second pidfile")
    new = Upgraded(int(second.read_text()))
    try:
        wait_until(lambda: len(new.children()) == 2, "two new workers")
        yield new
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(new.pid, signal.SIGTERM)
        wait_until(lambda: not alive(new.pid), "the end of the new master")


def test_an_upgrade_loses_nothing_and_the_new_master_is_promoted(serve, tmp_path):
    pidfile = tmp_path / "pid"
    site = serve("pep3333:app", "--workers", "2", "--threads", "4", "--pid", str(pidfile))
    site.workers(2)
    with Load(site) as load, upgraded(site, pidfile) as new:
        assert pidfile.read_text() == f"{site.process.pid}\n"
        # Which master's worker takes a connection is the kernel's choice.
        load.go_on()
        site.signal(signal.SIGTERM)
        assert site.wait() == 0
        wait_until(lambda: pidfile.exists() and pidfile.read_text() == f"{new.pid}\n", "the promotion")
        assert not pidfile.with_name("pid.2").exists()
        workers = set(new.children())
        load.until_only(workers)
        assert "Master has been promoted." in site.log()
        # And once more: the new one can be replaced as well.
        os.kill(new.pid, signal.SIGUSR2)
        wait_until(pidfile.with_name("pid.2").exists, "the third master's pidfile")
        third = int(pidfile.with_name("pid.2").read_text())
        wait_until(lambda: len(Upgraded(third).children()) == 2, "two workers of the third master")
        load.go_on()
        os.kill(third, signal.SIGTERM)
        wait_until(lambda: not alive(third), "the third master's end")
        load.until_only(workers)
        # The load ends before the last master does.
        load.stop()
    wait_until(lambda: not pidfile.exists(), "the pidfile goes with the last master")


def test_an_upgrade_can_be_taken_back(serve, tmp_path):
    pidfile = tmp_path / "pid"
    site = serve("pep3333:app", "--workers", "2", "--threads", "4", "--pid", str(pidfile))
    old_workers = set(site.workers(2))
    with Load(site) as load:
        for _ in range(2):
            with upgraded(site, pidfile):
                load.go_on()
            load.until_only(old_workers)
    assert pidfile.read_text() == f"{site.process.pid}\n"


def test_binds_that_change_during_an_upgrade_are_opened_by_the_next_reload(serve, tmp_path):
    """They were taken for open, and no reload opened them."""
    pidfile, late, config = tmp_path / "pid", tmp_path / "late.sock", tmp_path / "binds.py"
    config.write_text("bind = ['127.0.0.1:0']\n")
    options = ("--workers", "2", "--pid", str(pidfile), "--config", str(config))
    site = serve("pep3333:app", *options, binds=1)
    with upgraded(site, pidfile):
        config.write_text(f"bind = ['127.0.0.1:0', 'unix:{late}']\n")
        site.signal(signal.SIGHUP)
        wait_until(lambda: "bind stays as it is" in site.log(), "the reload")
    wait_until(lambda: "; this one goes on" in site.log(), "the end of the upgrade")
    site.signal(signal.SIGHUP)
    wait_until(late.exists, "the address is opened")


def test_a_new_program_that_does_not_start_leaves_the_old_one_alone(serve, tmp_path):
    versioned(tmp_path)
    site = serve("versioned", "--workers", "2", cwd=tmp_path, env={"PYTHONPATH": str(APPS)})
    workers = set(site.workers(2))
    versioned(tmp_path, before="raise RuntimeError('broken release')")
    with Load(site) as load:
        site.signal(signal.SIGUSR2)
        wait_until(lambda: "exited with code 3; this one goes on" in site.log(), "the end of the new master")
        load.until_only(workers)
    versioned(tmp_path)
    site.signal(signal.SIGUSR2)
    wait_until(lambda: len(site.children()) == 3, "another try")
    (new,) = set(site.children()) - workers
    wait_until(lambda: len(Upgraded(new).children()) == 2, "its workers")
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: not alive(new), "its end")


def test_a_unix_socket_outlives_an_upgrade_and_goes_with_the_last_master(serve, tmp_path):
    pidfile, socket = tmp_path / "pid", tmp_path / "app.sock"
    site = serve("pep3333:app", "--workers", "2", "--bind", f"unix:{socket}", "--pid", str(pidfile))
    with upgraded(site, pidfile):
        site.signal(signal.SIGTERM)
        assert site.wait() == 0
        assert socket.exists()
        assert site.get("/plain").status == 200
        wait_until(lambda: "Master has been promoted." in site.log(), "the promotion")
    assert not socket.exists()


def test_both_masters_of_an_upgrade_stop_at_once_and_leave_no_unix_socket(serve, tmp_path):
    """Each left the file to the other one."""
    pidfile, socket = tmp_path / "pid", tmp_path / "app.sock"
    site = serve("pep3333:app", "--workers", "2", "--bind", f"unix:{socket}", "--pid", str(pidfile))
    with upgraded(site, pidfile) as new:
        os.kill(new.pid, signal.SIGTERM)
        site.signal(signal.SIGTERM)
        assert site.wait() == 0
    assert not socket.exists()
    assert not pidfile.exists() and not pidfile.with_name("pid.2").exists()


def test_a_new_master_that_dies_while_the_old_one_stops_leaves_no_unix_socket(serve, tmp_path):
    pidfile, socket, go = tmp_path / "pid", tmp_path / "app.sock", tmp_path / "go"
    site = serve("pep3333:app", "--workers", "2", "--bind", f"unix:{socket}", "--pid", str(pidfile))
    with site.client() as client:
        client.send(request("POST", "/until_exists", body=str(go).encode()))
        wait_until(lambda: go.with_suffix(".begun").exists(), "the request has begun")
        with upgraded(site, pidfile) as new:
            site.signal(signal.SIGTERM)
            wait_until(lambda: "Handling signal: term" in site.log(), "the stop")
            os.kill(new.pid, signal.SIGKILL)
            wait_until(lambda: "; this one goes on" in site.log(), "the end of the new master")
        go.touch()
        assert client.read_response().status == 200
    assert site.wait() == 0
    assert not socket.exists()


def test_a_stop_during_a_reload_to_another_unix_socket_leaves_neither(serve, tmp_path):
    """Nor does it wait for the new worker, which still loads beside one that serves."""
    old, new, config = tmp_path / "old.sock", tmp_path / "new.sock", tmp_path / "binds.py"
    config.write_text(f"bind = 'unix:{old}'\n")
    versioned(tmp_path)
    options = ("--workers", "1", "--config", str(config))
    site = serve("versioned", *options, binds=1, cwd=tmp_path, env={"PYTHONPATH": str(APPS)})
    versioned(tmp_path, before="import time\nprint('it loads', flush=True)\ntime.sleep(3600)")
    config.write_text(f"bind = 'unix:{new}'\n")
    site.signal(signal.SIGHUP)
    wait_until(lambda: "it loads" in site.log(), "the new worker loads")
    assert old.exists() and new.exists()
    site.signal(signal.SIGTERM)
    assert site.wait() == 0
    assert not old.exists() and not new.exists()
    assert "graceful_timeout is over" not in site.log()


def test_the_console_script_can_be_upgraded_too(tmp_path, io):
    """`ringhorn`, not `python -m ringhorn`; started from another directory than the application's."""
    import sys

    command = [str(Path(sys.executable).with_name("ringhorn")), "--io", io]
    pidfile = tmp_path / "pid"
    arguments = ["--workers", "2", "--pid", str(pidfile), "--chdir", str(APPS), "pep3333:app"]
    site = Server(command, arguments, log=tmp_path / "log", cwd=tmp_path)
    try:
        with Load(site) as load, upgraded(site, pidfile) as new:
            site.signal(signal.SIGTERM)
            assert site.wait() == 0
            load.until_only(set(new.children()))
            load.stop()
    finally:
        site.kill()


# --- the config file


def test_a_config_file_is_run_again_and_its_hooks_are_called(serve, tmp_path):
    """The number of workers and the environment change; settings that are wrong change nothing."""
    config = tmp_path / "gunicorn.conf.py"
    hooks = (
        "def on_reload(server): server.log.info('on_reload called')\n"
        "def nworkers_changed(server, new, old): server.log.info('workers: %s, were %s', new, old)\n"
    )
    config.write_text(hooks + "workers = 1\nraw_env = ['RELEASE=1', 'OLD=1']\n")
    (tmp_path / "told.py").write_text(
        "import os\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [f\"{os.environ.get('RELEASE')} {os.environ.get('OLD')}\".encode()]\n"
    )
    site = serve("told", "--config", str(config), cwd=tmp_path)
    assert site.get("/").body == b"1 1"
    old = set(site.workers(1))
    for count, (bad, told) in enumerate(
        [
            ("workers = nonsense", "nonsense"),
            ("accesslog = '/no/such/directory/log'", "/no/such/directory/log"),
        ],
        start=1,
    ):
        config.write_text(bad + "\n")
        site.signal(signal.SIGHUP)
        wait_until(lambda count=count: site.log().count("the old settings stay") == count, "the refusal")
        assert told in site.log()
        assert site.get("/").body == b"1 1"
        assert set(site.workers(1)) == old
    config.write_text(hooks + "workers = 2\nraw_env = ['RELEASE=2']\n")
    site.signal(signal.SIGHUP)
    wait_until(lambda: "Reload complete" in site.log(), "the reload")
    wait_until(lambda: not old & set(site.children()), "the end of the old worker")
    assert {site.get("/").body for _ in range(20)} == {b"2 None"}
    assert "on_reload called" in site.log() and "workers: 2, were 1" in site.log()
