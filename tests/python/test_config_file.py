"""gunicorn.conf.py and ringhorn.conf.py: how they are found, what they may contain, who wins."""

import re
import sys
from pathlib import Path

import pytest

from harness import APPS, run_to_end

pytestmark = pytest.mark.ringhorn_only

RINGHORN = [sys.executable, "-m", "ringhorn"]
GUNICORN = [sys.executable, "-m", "gunicorn", "--no-control-socket"]


def settings(*args, cwd, env=None) -> dict[str, tuple[str, str]]:
    """What `--print-config` says: name to value and source."""
    env = {"PYTHONPATH": str(APPS)} | (env or {})
    code, output = run_to_end(RINGHORN, *args, "--print-config", cwd=cwd, env=env)
    assert code == 0, output
    rows = re.findall(r"(?m)^(\w+) += (.*?) +# (.*)$", output)
    return {name: (value, source) for name, value, source in rows}


@pytest.fixture
def site(tmp_path):
    """A directory to start in, with the files that the test writes."""

    def write(name="gunicorn.conf.py", text=""):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write.path = tmp_path
    return write


# --- which file


def test_gunicorn_conf_py_in_the_start_directory_is_read(site):
    site(text="wsgi_app = 'hooked:app'\nworkers = 3\nbind = ['127.0.0.1:0']")
    found = settings(cwd=site.path)
    assert found["wsgi_app"] == ("'hooked:app'", "./gunicorn.conf.py")
    assert found["workers"] == ("3", "./gunicorn.conf.py")


def test_ringhorn_conf_py_wins_and_is_the_only_one_read(site):
    site(text="threads = 7\nworkers = 3")
    site("ringhorn.conf.py", "workers = 2")
    found = settings("hooked:app", cwd=site.path)
    assert found["workers"][0] == "2"
    assert found["threads"][1].startswith("default")


@pytest.mark.parametrize("prefix", ["", "file:", "./"])
def test_a_named_file_is_read_in_place_of_the_usual_one(site, prefix):
    site(text="workers = 3")
    site("other.py", "threads = 2")
    found = settings("-c", f"{prefix}other.py", "hooked:app", cwd=site.path)
    assert found["threads"][0] == "2"
    assert found["workers"][1].startswith("default")


def test_a_module_is_read(site):
    site("conf/__init__.py", "")
    site("conf/web.py", "from conf import __name__ as package\nworkers = 3")
    assert settings("-c", "python:conf.web", "hooked:app", cwd=site.path)["workers"][0] == "3"


def test_a_file_need_not_end_in_py(site):
    site("web.conf", "workers = 3")
    assert settings("-c", "web.conf", "hooked:app", cwd=site.path)["workers"][0] == "3"


def test_the_file_is_looked_for_where_the_server_was_started(site):
    """gunicorn: --chdir does not change where gunicorn.conf.py is found."""
    site(text="workers = 3")
    site("elsewhere/gunicorn.conf.py", "workers = 4")
    assert settings("--chdir", "elsewhere", "hooked:app", cwd=site.path)["workers"][0] == "3"


def test_the_path_of_a_file_that_was_found_has_no_dot_in_it(site):
    """Files take their project's directory from it: dirname(dirname(__file__))."""
    code = "import os\nprint('at', __file__, os.path.dirname(os.path.dirname(__file__)))\n"
    site("project/gunicorn.conf.py", code)
    for command in (RINGHORN, GUNICORN):
        code, output = run_to_end(
            command, "--check-config", "hooked:app", cwd=site.path / "project", env={"PYTHONPATH": str(APPS)}
        )
        assert code == 0, output
        assert f"at {site.path}/project/gunicorn.conf.py {site.path}\n" in output


def test_one_file_may_build_on_the_other(site):
    """As docs/migrating-from-gunicorn.md shows it."""
    site(text="workers = 3\nthreads = 2\ndef on_exit(server):\n    pass")
    site(
        "ringhorn.conf.py", "import runpy\nglobals().update(runpy.run_path('gunicorn.conf.py'))\nthreads = 8"
    )
    found = settings("hooked:app", cwd=site.path)
    assert (found["workers"][0], found["threads"][0], found["on_exit"][0]) == ("3", "8", "<on_exit()>")


# --- who wins


def test_each_source_replaces_the_whole_value_of_the_weaker_ones(site):
    site(text="bind = ['127.0.0.1:1', '127.0.0.1:2']\nworkers = 2\nthreads = 2\nbacklog = 2\ntimeout = 2")
    env = {
        "WEB_CONCURRENCY": "1",
        "PORT": "1",
        "GUNICORN_CMD_ARGS": "--threads 3 --backlog 3 --timeout 3",
        "RINGHORN_CMD_ARGS": "--backlog 4 --timeout 4",
    }
    found = settings("--timeout", "5", "-b", "127.0.0.1:5", "hooked:app", cwd=site.path, env=env)
    values = {name: found[name][0] for name in ("bind", "workers", "threads", "backlog", "timeout")}
    assert values == {
        "bind": "['127.0.0.1:5']",
        "workers": "2",
        "threads": "3",
        "backlog": "4",
        "timeout": "5",
    }


def test_the_file_may_be_named_in_a_variable(site):
    site("other.py", "workers = 3")
    found = settings("hooked:app", cwd=site.path, env={"GUNICORN_CMD_ARGS": "--config other.py"})
    assert found["workers"][0] == "3"


def test_none_means_the_default(site):
    """Files copied from gunicorn's template set most names to None."""
    site(text="keyfile = None\npidfile = None\nworker_class = None\nbacklog = None\nlogconfig = None")
    assert settings("hooked:app", cwd=site.path)["backlog"][0] == "2048"


# --- what it may contain


def test_it_is_python(serve, site):
    """Values are computed, other modules imported, and the file can be imported as __config__."""
    site(
        text=(
            "import multiprocessing, os\n"
            "from beside import loud\n"
            "bind = ('127.0.0.1:0',)\n"
            "workers = min(1, multiprocessing.cpu_count() * 2 + 1)\n"
            "raw_env = ['GREETING=' + loud('hello'), 'AB=c=d']\n"
            "wsgi_app = 'hooked:app'\n"
            "mine = 5\n"
        )
    )
    site("beside.py", "def loud(text):\n    return text.upper()\n")
    server = serve(None, "-w", "1", cwd=site.path, env={"PYTHONPATH": str(APPS)})
    seen = server.get("/").json()
    assert (seen["environ"]["GREETING"], seen["environ"]["AB"]) == ("HELLO", "c=d")
    assert seen["environ"]["SERVER_SOFTWARE"].startswith("ringhorn/")
    assert "mine" in seen["config"]


def test_the_application_on_the_command_line_wins_over_the_one_in_the_file(serve, site):
    site(text="wsgi_app = 'hooked:app'\nworkers = 1")
    server = serve("hooked:other", cwd=site.path, env={"PYTHONPATH": str(APPS)})
    assert server.get("/").body == b"other\n"


def test_chdir_and_pythonpath_are_in_place_before_the_application_loads(serve, site):
    site("inner/lib/only_here.py", "from hooked import app\n")
    site(text="chdir = 'inner'\npythonpath = 'lib'\nworkers = 1\nwsgi_app = 'only_here:app'")
    seen = serve(None, cwd=site.path, env={"PYTHONPATH": str(APPS)}).get("/").json()
    assert seen["cwd"] == str(site.path / "inner")
    assert seen["path"][:2] == ["lib", str(site.path / "inner")]


@pytest.mark.parametrize("text", [None, "workers = 1\n"])
def test_chdir_leaves_the_directory_of_the_start_importable(site, text):
    """A project's packages lie there, config file or not. `python -m` would put it on the path by itself."""
    site("web/__init__.py")
    site("web/other.py", "from hooked import app\n")
    site("web/main.py", "import sys\nfrom web.other import app\nprint('path', sys.path[:2])\n")
    if text is not None:
        site(text=text)
    shown = f"path ['{site.path}/web', '{site.path}']\n"
    for name in ("ringhorn", "gunicorn"):
        command = [str(Path(sys.executable).with_name(name))]
        code, output = run_to_end(
            command,
            "--check-config",
            "--chdir",
            "web",
            "main:app",
            cwd=site.path,
            env={"PYTHONPATH": str(APPS)},
        )
        assert code == 0, output
        if name == "ringhorn":
            assert shown in output


@pytest.mark.parametrize("preload", [False, True])
def test_raw_env_is_there_when_the_application_is_imported(serve, site, preload):
    site("early.py", "import os\nEARLY = os.environ['EARLY']\nfrom hooked import app\n")
    site(text=f"raw_env = ['EARLY=1']\nworkers = 1\npreload_app = {preload}")
    assert serve("early:app", cwd=site.path, env={"PYTHONPATH": str(APPS)}).get("/").status == 200


def test_an_imported_module_is_no_setting(site):
    site(text="import io\nworkers = 3")
    found = settings("hooked:app", cwd=site.path)
    assert (found["io"][0], found["workers"][0]) == ("'auto'", "3")


# --- what is wrong

BAD = {
    "an exception": ("def deep():\n    raise RuntimeError('on purpose')\ndeep()", ["on purpose", "in deep"]),
    "a syntax error": ("workers = = 3", ["SyntaxError"]),
    "a missing import": ("import no_such_module", ["no_such_module"]),
    "a wrong type": ("workers = 'many'", ["workers", "many"]),
    "a negative number": ("backlog = -1", ["backlog"]),
    "a hook that is no function": ("post_fork = 5", ["post_fork"]),
    "a hook with another arity": ("def post_fork(server):\n    pass", ["post_fork"]),
    "a hook that cannot be imported": ("post_fork = 'no_such_module.hook'", ["post_fork", "no_such_module"]),
    "a hook that is not there": ("post_fork = 'recorder.no_such'", ["post_fork", "no_such"]),
    "a hook without a module": ("post_fork = 'no_such'", ["post_fork", "no_such"]),
    "a wrong directory": ("chdir = '/no/such/directory'", ["/no/such/directory"]),
}


@pytest.mark.parametrize("text, told", BAD.values(), ids=BAD.keys())
def test_a_wrong_file_ends_the_start_as_in_gunicorn(site, text, told):
    site(text=text)
    for command in (RINGHORN, GUNICORN):
        env = {"PYTHONPATH": str(APPS)}
        code, output = run_to_end(command, "hooked:app", cwd=site.path, env=env)
        assert code == 1, output
        if command is RINGHORN:
            assert [word for word in told if word not in output] == [], output
            assert "gunicorn.conf.py" in output


@pytest.mark.parametrize("location", ["no_such.py", "file:no_such.py", "python:no_such"])
def test_a_named_file_that_is_not_there(site, location):
    for command in (RINGHORN, GUNICORN):
        code, output = run_to_end(command, "-c", location, "hooked:app", cwd=site.path)
        assert code == 1, output
        assert "no_such" in output


def test_a_slip_of_the_pen_gets_a_suggestion_and_the_server_goes_on(site):
    site(text="worker = 3\ndef pre_frok(server, worker):\n    pass\nimport logging\nhelpers = 1\n")
    code, output = run_to_end(
        RINGHORN, "--check-config", "hooked:app", cwd=site.path, env={"PYTHONPATH": str(APPS)}
    )
    assert code == 0, output
    assert "worker in ./gunicorn.conf.py is no setting; did you mean workers?" in output
    assert "did you mean pre_fork?" in output
    assert "helpers" not in output and "logging" not in output


@pytest.mark.parametrize(
    "text, told",
    [
        ("class Mine:\n    pass\nworker_class = Mine", "leave it out"),
        ("worker_class = 'gevent'", "--threads"),
        ("worker_class = 'uvicorn.workers.UvicornWorker'", "ASGI"),
    ],
)
def test_a_worker_class_that_cannot_work_is_refused_with_what_to_do(site, text, told):
    site(text=text)
    code, output = run_to_end(RINGHORN, "hooked:app", cwd=site.path, env={"PYTHONPATH": str(APPS)})
    assert code == 1, output
    assert told in output and "gunicorn.conf.py" in output


@pytest.mark.parametrize("name, shown", [("sync.SyncWorker", "sync"), ("gthread.ThreadWorker", "gthread")])
def test_gunicorns_own_worker_classes_mean_ours(serve, site, name, shown):
    module, _, cls = name.rpartition(".")
    site(text=f"from gunicorn.workers.{module} import {cls} as worker_class\nworkers = 1")
    server = serve("hooked:app", cwd=site.path, env={"PYTHONPATH": str(APPS)})
    assert f"Using worker: {shown}" in server.log()
