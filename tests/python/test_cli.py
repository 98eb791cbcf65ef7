"""The command line: exit codes, messages, and where settings come from."""

import os
import re
import shlex
import socket
import sys
import sysconfig
from pathlib import Path

import pytest

from harness import APPS, Client, run_to_end, wait_until
from harness import request as message

needs_ringhorn = pytest.mark.ringhorn_only


@pytest.fixture
def run(request):
    """Runs the command to its end and gives its exit code and all that it printed."""
    other = request.config.getoption("server")
    command = shlex.split(other) if other else [sys.executable, "-m", "ringhorn"]

    def run(*args, command=command, **options) -> tuple[int, str]:
        return run_to_end(command, *args, **options)

    return run


BIND = ("--bind", "127.0.0.1:0", "--workers", "1")


# --- applications that do not load


@pytest.mark.parametrize(
    ("app", "code", "told"),
    [
        ("no_such_module:app", 3, "no_such_module"),
        ("no_such_module.wsgi", 3, "no_such_module"),
        ("fails_to_import:app", 3, "on purpose while importing"),
        ("not_python:app", 3, "SyntaxError"),
        ("pep3333:no_such_attribute", 4, "no_such_attribute"),
        ("pep3333", 4, "application"),
        ("pep3333:not_callable", 4, "callable"),
        ("pep3333:nothing", 4, "nothing"),
        ("pep3333:create_app()", 4, "create_app"),
        ("pep3333:create_app(os.name)", 4, "literal"),
        ("pep3333:app.attribute", 4, "app.attribute"),
        ("pep3333:create_app(", 4, "create_app("),
    ],
)
def test_an_application_that_does_not_load(run, app, code, told):
    """gunicorn's exit codes: 3 when its import fails, 4 when the module has no such application."""
    got, output = run(*BIND, app)
    assert got == code, output
    assert told in output
    assert "ringhorn/__main__" not in output, "a traceback of ours"


def test_a_preloaded_application_that_does_not_load(run):
    for app in ("no_such_module:app", "pep3333:no_such_attribute"):
        code, output = run(*BIND, "--preload", app)
        assert code == 1, output
        assert app.split(":")[1] in output or "no_such_module" in output


def test_no_application(run):
    code, output = run(*BIND)
    assert code == 1, output
    assert "application" in output.lower()


@pytest.mark.oracle_differs("gunicorn trips over the second one: exit code 1")
def test_a_worker_that_fails_to_boot_takes_its_siblings_along(run):
    code, output = run("--bind", "127.0.0.1:0", "--workers", "3", "fails_to_import:app")
    assert code == 3, output
    assert "Worker failed to boot" in output


# --- settings that cannot be


def test_a_port_in_use(run):
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        code, output = run("--bind", f"127.0.0.1:{port}", "pep3333:app")
    assert code == 1, output
    assert "in use" in output.lower()
    assert str(port) in output


@needs_ringhorn
def test_a_port_in_use_by_another_group_of_listeners(run):
    """SO_REUSEPORT would let two servers share the port in silence, each getting half of the clients."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as owner:
        code, output = run("--bind", f"127.0.0.1:{owner.getsockname()[1]}", "pep3333:app")
    assert code == 1, output
    assert "in use" in output.lower()


@needs_ringhorn
@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--workers", "0"], ["workers", "command line"]),
        (["--chdir", "/no/such/directory"], ["/no/such/directory", "chdir"]),
        (["--bind", "127.0.0.1:99999"], ["99999"]),
        (["--bind", "127.0.0.1:http"], ["http"]),
        (["--bind", "unix:/no/such/directory/socket"], ["/no/such/directory/socket"]),
        (["--bind", "192.0.2.1:0"], ["192.0.2.1"]),
        (
            ["--access-logfile", "/no/such/directory/log"],
            ["access log /no/such/directory/log", "--access-logfile"],
        ),
        (["--access-logfile", "/"], ["access log /", "--access-logfile"]),
        (
            ["--error-logfile", "/no/such/directory/log"],
            ["error log /no/such/directory/log", "--error-logfile"],
        ),
    ],
)
def test_a_value_that_cannot_be_is_one_message_and_exit_code_1(run, args, told):
    """What failed, where the value came from, what to do."""
    code, output = run(*args, "pep3333:app")
    assert code == 1, output
    # Once the log is open, it is the place for errors.
    assert "error: " in output or "[ERROR] " in output
    for text in told:
        assert text in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "args", [["--no-such-option"], ["--workers"], ["--workers", "many"], ["--graceful-timeout=soon"]]
)
def test_a_wrong_command_line_is_exit_code_2(run, args):
    code, output = run(*args, *(["pep3333:app"] if len(args) > 1 else []))
    assert code == 2, output
    assert args[0].partition("=")[0] in output
    assert "Traceback" not in output


def test_a_number_that_cannot_be_is_exit_code_1(run):
    code, output = run("--workers=-1", "pep3333:app")
    assert code == 1, output
    assert "-1" in output


@needs_ringhorn
def test_an_unknown_option_is_answered_with_the_likely_one(run):
    code, output = run("--wrokers", "2", "pep3333:app")
    assert code == 2
    assert "--workers" in output


# --- checks and words


def test_check_config(run):
    assert run("--check-config", "pep3333:app")[0] == 0
    assert run("--check-config", "pep3333:create_app('a')")[0] == 0
    for app in ("pep3333:no_such_attribute", "no_such_module:app"):
        code, output = run("--check-config", app)
        assert code == 1, output
        assert app.partition(":")[2] in output or app.partition(":")[0] in output


@needs_ringhorn
def test_version_and_help(run):
    import ringhorn

    for option in ("-v", "--version"):
        assert run(option) == (0, f"ringhorn (version {ringhorn.__version__})\n")
    for option in ("-h", "--help"):
        code, output = run(option)
        assert code == 0
        for name in ("--bind", "--workers", "--threads", "--graceful-timeout", "--access-logfile"):
            assert name in output


@needs_ringhorn
def test_the_script_and_the_module_are_the_same_command(run):
    script = Path(sysconfig.get_path("scripts")) / "ringhorn"
    assert run("--version", command=[str(script)]) == run("--version")
    code, output = run("--check-config", "pep3333:app", command=[str(script)])
    assert code == 0, output


@needs_ringhorn
def test_the_package_is_typed_and_knows_its_version():
    import ringhorn

    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", ringhorn.__version__)
    assert (Path(ringhorn.__file__).parent / "py.typed").exists()
    assert (Path(ringhorn.__file__).parent / "_native.pyi").exists()


# --- where settings come from


def test_settings_from_the_environment(serve):
    env = {"GUNICORN_CMD_ARGS": "--bind=127.0.0.1:0 --workers=3"}
    assert_workers(serve("pep3333:app", "-b", "127.0.0.1:0", env=env), 3)


def test_the_command_line_wins_over_the_environment(serve):
    env = {"GUNICORN_CMD_ARGS": "--workers 3", "WEB_CONCURRENCY": "4"}
    assert_workers(serve("pep3333:app", "-w", "2", env=env), 2)


def test_web_concurrency(serve):
    assert_workers(serve("pep3333:app", env={"WEB_CONCURRENCY": "3"}), 3)


@needs_ringhorn
def test_a_worker_for_each_cpu_by_default(serve):
    """One CPU is allowed, so there is one worker; a quota of the container may only lower the number."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is only one CPU")
    assert_workers(serve("pep3333:app", cpus={min(os.sched_getaffinity(0))}), 1)


def assert_workers(site, count: int) -> None:
    """There are `count` workers, and there were never more."""
    assert len(site.workers(count)) == count
    wait_until(lambda: site.log().count("Booting worker") >= count, f"{count} workers")
    assert site.log().count("Booting worker") == count


def test_a_mistake_in_the_environment_is_told_with_its_place(run, request):
    code, output = run("pep3333:app", env={"GUNICORN_CMD_ARGS": "--no-such-option"})
    assert code == 2, output
    assert request.config.getoption("server") or "GUNICORN_CMD_ARGS" in output


def test_several_binds(serve, tmp_path):
    site = serve("pep3333:app", "-b", "127.0.0.1:0", "-b", f"unix:{tmp_path}/s", "-b", "127.0.0.1:0")
    assert len(site.addresses) == 3
    for address in site.addresses:
        with Client(address) as client:
            assert client.ask(message("GET", "/plain")).body == b"plain\n"


def test_the_unix_socket_goes_when_the_server_goes(serve, tmp_path):
    path = tmp_path / "s"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    site = serve("pep3333:app", "--workers", "1", "-b", f"unix:{path}")
    assert site.get("/plain").status == 200
    site.stop()
    assert not path.exists()


@needs_ringhorn
def test_a_file_that_is_no_socket_is_kept(run, tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    code, output = run("-b", f"unix:{path}", "pep3333:app")
    assert code == 1, output
    assert path.read_text() == "data"


def test_chdir_makes_its_applications_importable(serve, tmp_path):
    (tmp_path / "lives_here.py").write_text(
        "import os\nfrom pep3333 import app as application\nprint('in', os.getcwd(), flush=True)\n"
    )
    site = serve(
        "lives_here", "--chdir", str(tmp_path), "-w", "1", cwd=Path("/"), env={"PYTHONPATH": str(APPS)}
    )
    assert site.get("/plain").status == 200
    assert f"in {tmp_path}" in site.log()


def test_logs_go_where_they_are_sent(serve, tmp_path):
    access, error = tmp_path / "access", tmp_path / "error"
    args = ["--access-logfile", str(access), "--error-logfile", str(error), "--log-level", "debug", "-w", "1"]
    site = serve("pep3333:app", *args, listening_in=error)
    assert site.get("/plain?in=the-log", "User-Agent: tester").status == 200
    site.stop()
    line = next(line for line in access.read_text().splitlines() if "in=the-log" in line)
    expected = r'127\.0\.0\.1 - - \[[^]]+\] "GET /plain\?in=the-log HTTP/1\.1" 200 6 "-" "tester"'
    assert re.fullmatch(expected, line), line
    assert re.search(
        r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[\d+\] \[INFO\] ", error.read_text(), re.M
    )
