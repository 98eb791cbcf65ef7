"""Programs and config files made for gunicorn, on a machine that has only Ringhorn; and `ringhorn.serve`."""

import signal
import sys
import textwrap
from pathlib import Path

import pytest

from harness import APPS, Server, run_to_end

pytestmark = pytest.mark.ringhorn_only

# gunicorn may be installed here, as the oracle of other tests. This makes Python not find it.
HIDE = """
import sys
from importlib.machinery import PathFinder

class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "gunicorn":
            return None
        for finder in sys.meta_path:
            if finder not in (Hide, PathFinder):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        raise ModuleNotFoundError("No module named 'gunicorn'", name="gunicorn")

sys.meta_path.insert(0, Hide)
"""


@pytest.fixture
def site(tmp_path):
    """A directory for programs, and the environment of a machine without gunicorn."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDE)

    class Site:
        path = tmp_path
        env = {"PYTHONPATH": f"{hidden}:{APPS}"}
        record = tmp_path / "record"

        def write(self, name, text):
            (tmp_path / name).write_text(textwrap.dedent(text))

        def options(self):
            return {"cwd": tmp_path, "env": self.env | {"RECORD": str(self.record)}}

        def run(self, *args, **env):
            return run_to_end([sys.executable], *args, cwd=tmp_path, env=self.env | env)

    return Site()


@pytest.fixture
def program(site, tmp_path):
    """Starts a program that serves; stopped with TERM at the end, which must give exit code 0."""
    started: list[Server] = []

    def start(text: str, *args: str, **options) -> Server:
        site.write("program.py", text)
        # The harness adds a bind where it finds none. Programs bring their own and look at no argument.
        command = [sys.executable, "program.py"]
        server = Server(command, ["--bind=mine", *args], log=tmp_path / "log", **(site.options() | options))
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


STANDALONE = """
import sys
import ringhorn
ringhorn.stand_in_for_gunicorn()
from gunicorn.app.base import BaseApplication
from hooked import app, other

class Standalone(BaseApplication):
    def __init__(self, app, options=None):
        self.options = options or {}
        self.application = app
        super().__init__()

    def load_config(self):
        config = {k: v for k, v in self.options.items() if k in self.cfg.settings and v is not None}
        for key, value in config.items():
            self.cfg.set(key.lower(), value)

    def load(self):
        return self.application

def post_fork(server, worker):
    from recorder import note
    note("post_fork", worker.age, server.cfg.workers)
"""


ASKING = """
def post_fork(server, worker):
    from recorder import note
    app = server.app
    note("app is", app is APP, worker.app is APP, type(app).__name__, app.wsgi() is app.callable)

def post_worker_init(worker):
    from recorder import note
    note("loaded", worker.app is APP, worker.wsgi is worker.app.wsgi())
"""


@pytest.mark.parametrize("kind", ["base", "wsgiapp", "load of its own"])
def test_hooks_get_the_programs_own_object(program, site, kind):
    options = (
        "{'bind': '127.0.0.1:0', 'workers': 1, 'post_fork': post_fork, 'post_worker_init': post_worker_init}"
    )
    if kind == "base":
        text = STANDALONE.replace("def post_fork(", "def unused(") + ASKING
        text += f"APP = Standalone(app, {options})\nAPP.run()\n"
    else:
        text = (
            "import sys\nimport ringhorn\nringhorn.stand_in_for_gunicorn()\n"
            "from gunicorn.app.wsgiapp import WSGIApplication\n" + ASKING + "class Mine(WSGIApplication):\n"
            "    def init(self, parser, opts, args):\n"
            f"        return {options}\n"
        )
        if kind == "wsgiapp":
            site.write("gunicorn.conf.py", "wsgi_app = 'hooked:app'\n")
        else:
            text += "    def load(self):\n        import hooked\n        return hooked.app\n"
        text += "sys.argv = sys.argv[:1]\nAPP = Mine()\nAPP.run()\n"
    server = program(text, env=site.options()["env"])
    assert server.get("/").status == 200
    name = "Standalone" if kind == "base" else "Mine"
    lines = site.record.read_text().splitlines()
    assert f"app is True True {name} True" in lines and "loaded True True" in lines
    assert lines.count("import") == 1


def test_without_gunicorn_and_without_the_stand_in_there_is_no_gunicorn(site):
    code, output = site.run("-c", "import ringhorn; import gunicorn")
    assert code == 1 and "ModuleNotFoundError" in output


def test_an_installed_gunicorn_is_preferred():
    pytest.importorskip("gunicorn")
    text = "import ringhorn; ringhorn.stand_in_for_gunicorn(); import gunicorn; print(gunicorn.__file__)"
    code, output = run_to_end([sys.executable], "-c", text)
    assert code == 0 and "_shim" not in output, output


NAMES = """
from gunicorn import SERVER, SERVER_SOFTWARE, __version__, version_info
from gunicorn.app.base import Application, BaseApplication
from gunicorn.app.wsgiapp import WSGIApplication, run
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config, get_default_config_file, make_settings
from gunicorn.errors import AppImportError, ConfigError, HaltServer
from gunicorn.glogging import CONFIG_DEFAULTS, Logger, SafeAtoms
from gunicorn.http.errors import InvalidHeader
from gunicorn.instrument.statsd import Statsd
from gunicorn.util import bytes_to_str, getcwd, http_date, import_app, is_ipv6, load_class, parse_address
from gunicorn.workers import SUPPORTED_WORKERS
from gunicorn.workers.base import Worker
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker
"""


def test_a_config_file_may_import_what_gunicorn_has(site):
    site.write(
        "gunicorn.conf.py",
        NAMES
        + """
class Quiet(Logger):
    def access(self, resp, req, environ, request_time):
        if environ["PATH_INFO"] != "/health":
            super().access(resp, req, environ, request_time)

class Mine(Worker):
    pass

assert Config().timeout == 30 and "bind" in make_settings()
assert parse_address("[::1]:80") == ("::1", 80) and parse_address("unix:/a") == "/a"
assert SafeAtoms({"a": 'b"'})["a"] == 'b\\\\"' and SafeAtoms({})["x"] == "-"
workers = 2
""",
    )
    code, output = site.run("-m", "ringhorn", "--check-config", "hooked:app")
    assert code == 0, output


def test_the_names_are_gunicorns_own(tmp_path):
    """What the stand-in offers exists in gunicorn, so that nothing works here only."""
    pytest.importorskip("gunicorn")
    text = NAMES.replace("from gunicorn.workers.ggevent import GeventWorker\n", "")
    code, output = run_to_end([sys.executable], "-c", text)
    assert code == 0, output


def test_worker_classes_mean_ours_or_are_refused_with_what_to_do(site):
    for cls, code_wanted, told in [
        ("gunicorn.workers.sync import SyncWorker", 0, ""),
        ("gunicorn.workers.gthread import ThreadWorker", 0, ""),
        ("gunicorn.workers.ggevent import GeventWorker", 1, "leave it out"),
    ]:
        site.write("gunicorn.conf.py", f"from {cls} as worker_class\n")
        code, output = site.run("-m", "ringhorn", "--check-config", "hooked:app")
        assert code == code_wanted, output
        assert told in output


def test_a_worker_that_is_made_by_hand_says_what_to_do(site):
    code, output = site.run(
        "-c",
        "import ringhorn; ringhorn.stand_in_for_gunicorn()\n"
        "from gunicorn.workers.sync import SyncWorker\n"
        "SyncWorker(1, 1, [], None, 1, None, None)",
    )
    assert code == 1
    assert "leave worker_class out" in output


# --- programs


def test_base_application_serves_what_it_loads(program, site):
    server = program(
        STANDALONE
        + 'Standalone(app, {"bind": "127.0.0.1:0", "workers": 1, "post_fork": post_fork, "no_such": 1}).run()'
    )
    assert server.get("/").json()["path"]
    assert site.record.read_text().splitlines().count("post_fork 1 1") == 1


def test_base_application_reads_neither_config_file_nor_variables(program, site):
    """As in gunicorn, where only `load_config` decides."""
    site.write("gunicorn.conf.py", "raise RuntimeError('not for this one')")
    server = program(
        STANDALONE + 'Standalone(other, {"bind": "127.0.0.1:0", "workers": 1}).run()',
        env=site.env | {"GUNICORN_CMD_ARGS": "--no-such-option"},
    )
    assert server.get("/").body == b"other\n"


def test_application_reads_all_sources(program, site):
    """What `init` gives is weaker than the config file, and that weaker than the command line."""
    site.write("gunicorn.conf.py", "workers = 1\nthreads = 3\nraw_env = ['FROM=file']")
    server = program(
        """
        import ringhorn
        ringhorn.stand_in_for_gunicorn()
        from gunicorn.app.base import Application

        class Framework(Application):
            def init(self, parser, opts, args):
                return {"threads": 2, "graceful_timeout": 3, "timeout": 44}

            def load(self):
                from hooked import app
                return app

        import sys
        sys.argv[1:] = ["--bind", "127.0.0.1:0", "--timeout", "55"]
        Framework().run()
        """
    )
    assert server.get("/").json()["environ"]["FROM"] == "file"
    assert "Threads: up to 3 per worker" in server.log()


def test_init_of_an_application_sees_the_options(program, site):
    server = program(
        """
        import ringhorn
        ringhorn.stand_in_for_gunicorn()
        from gunicorn.app.base import Application

        class Framework(Application):
            def init(self, parser, opts, args):
                from recorder import note
                note("opts", opts.bind, opts.threads, opts.timeout, opts.certfile, args, opts.args)
                return {"workers": opts.threads - 1}

            def load(self):
                from hooked import app
                return app

        import sys
        sys.argv[1:] = ["--bind", "127.0.0.1:0", "--threads", "2", "x:y"]
        Framework().run()
        """
    )
    assert server.get("/").status == 200
    assert "opts ['127.0.0.1:0'] 2 None None ['x:y'] ['x:y']" in site.record.read_text()


def test_wsgiapp_run_is_the_command(program, site):
    server = program(
        """
        import sys
        import ringhorn
        ringhorn.stand_in_for_gunicorn()
        from gunicorn.app.wsgiapp import run
        sys.argv[1:] = ["-b", "127.0.0.1:0", "-w", "1", "hooked:other"]
        run()
        """
    )
    assert server.get("/").body == b"other\n"
    assert "Application: hooked:other" in server.log()


def test_wsgi_application_with_a_config_of_its_own(program):
    server = program(
        """
        import ringhorn
        ringhorn.stand_in_for_gunicorn()
        from gunicorn.app.wsgiapp import WSGIApplication

        class Mine(WSGIApplication):
            def __init__(self, uri, options):
                self.options = options
                self.app_uri = uri
                super().__init__()

            def load_config(self):
                for name, value in self.options.items():
                    self.cfg.set(name, value)

        Mine("hooked:other", {"bind": "127.0.0.1:0", "workers": 1}).run()
        """
    )
    assert server.get("/").body == b"other\n"


@pytest.mark.parametrize(
    "options, told",
    [("{'workers': 'many'}", "many"), ("{'post_fork': lambda: 0}", "post_fork")],
)
def test_a_wrong_setting_in_a_program_is_exit_code_1(site, options, told):
    site.write("program.py", STANDALONE + f"Standalone(app, {options}).run()")
    code, output = site.run("program.py")
    assert code == 1 and told in output, output


@pytest.mark.parametrize(
    "body, expected",
    [
        ("raise RuntimeError('on purpose')", 3),
        ("from gunicorn.errors import AppImportError; raise AppImportError('on purpose')", 4),
        ("return None", 4),
        ("return __import__('gunicorn.util').util.import_app('hooked:nothing_there')", 4),
        ("return __import__('gunicorn.util').util.import_app('fails_to_import:app')", 3),
    ],
)
def test_a_program_that_cannot_load_its_application(site, body, expected):
    site.write(
        "program.py",
        STANDALONE
        + f"""
class Failing(Standalone):
    def load(self):
        {body}
Failing(app, {{"bind": "127.0.0.1:0", "workers": 1}}).run()
""",
    )
    code, output = site.run("program.py")
    assert code == expected, output
    if "on purpose" in body:
        assert "on purpose" in output


# --- ringhorn.serve


def test_serve_takes_an_application_and_settings(program, site):
    server = program(
        """
        import ringhorn
        from hooked import app
        from recorder import note

        def when_ready(server):
            note("ready", server.cfg.workers)

        code = ringhorn.serve(app, bind="127.0.0.1:0", workers=1, threads=2, when_ready=when_ready)
        print("came back with", code)
        """
    )
    assert server.get("/").status == 200
    assert "ready 1" in site.record.read_text()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.log().count("came back with 0") == 1


def test_serve_takes_a_name(program):
    server = program("import ringhorn\nringhorn.serve('hooked:other', bind='127.0.0.1:0', workers=1)")
    assert server.get("/").body == b"other\n"


def test_serve_with_a_lambda_and_an_instance(program):
    server = program(
        """
        import ringhorn

        class App:
            def __call__(self, environ, start_response):
                start_response("200 OK", [])
                return [b"instance"]

        ringhorn.serve(App(), bind="127.0.0.1:0", workers=1, preload_app=True)
        """
    )
    assert server.get("/").body == b"instance"


@pytest.mark.parametrize(
    "call, error, told",
    [
        ("serve(app, wrokers=1)", "TypeError", "did you mean workers?"),
        ("serve(app, no_such_thing=1)", "TypeError", "no_such_thing"),
        ("serve(app, workers=0)", "ValueError", "1 or more"),
        ("serve(app, workers='many')", "ValueError", "many"),
        ("serve(app, post_fork=lambda: 0)", "ValueError", "post_fork"),
        ("serve(app, config='other.py')", "TypeError", "config"),
        ("serve(5)", "TypeError", "int"),
    ],
)
def test_serve_says_what_is_wrong_with_an_exception(site, call, error, told):
    code, output = site.run("-c", f"import ringhorn\nfrom hooked import app\nringhorn.{call}")
    assert code == 1
    assert output.splitlines()[-1].startswith(error) and told in output.splitlines()[-1], output


def test_the_types_of_settings_are_those_of_the_table():
    """A name in the type that the table does not have, or the other way round, would be a lie."""
    import ringhorn
    from ringhorn._types import Settings

    known = ringhorn._native.default_settings()
    assert set(Settings.__annotations__) <= set(known)
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    honoured = {
        row.split("`")[1] for row in text.splitlines() if row.startswith("| `") and row.endswith("| yes |")
    }
    only_for_the_command = {"config", "wsgi_app", "check_config", "print_config"}
    assert honoured - set(Settings.__annotations__) - only_for_the_command == set()
