"""gunicorn's hooks: when they are called, with what, and what becomes of those that fail."""

import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from harness import APPS, Server, request, run_to_end, serving, wait_until

pytestmark = pytest.mark.ringhorn_only

GUNICORN = [sys.executable, "-m", "gunicorn", "--no-control-socket", "-k", "gthread"]

# Everything a hook is given, in a form that is the same for both servers.
RECORDING = """
import os
from recorder import note

wsgi_app = "hooked:app"
bind = "127.0.0.1:0"
workers = 1
threads = 2

def where(server):
    return "master" if os.getpid() == server.pid else "worker"

def own(worker):
    return worker.pid == os.getpid()

def nworkers_changed(server, new, old):
    note("nworkers_changed", new, old, server.num_workers)

def on_starting(server):
    note("on_starting", where(server), server.LISTENERS, server.WORKERS, server.num_workers)

def when_ready(server):
    note("when_ready", where(server), len(server.LISTENERS), server.WORKERS, server.address, server.timeout)
    note("listeners", [type(l.getsockname()) for l in server.LISTENERS], str(server.LISTENERS[0])[:17])

def pre_fork(server, worker):
    note("pre_fork", where(server), worker.pid, worker.age, server.worker_age, worker.booted, worker.alive)
    worker.mine = "set before the fork"

def post_fork(server, worker):
    note("post_fork", where(server), own(worker), worker.ppid == server.pid, worker.age, worker.mine)
    note("of worker", worker.nr, worker.timeout, worker.alive, worker.aborted, len(worker.sockets))

def post_worker_init(worker):
    note("post_worker_init", own(worker), worker.booted, callable(worker.wsgi), worker.cfg.threads)

def pre_request(worker, req):
    req.began = "set before the request"
    names = [name for name, _ in req.headers]
    note("pre_request", worker.nr, worker.booted, req.method, req.uri, req.path, req.query, req.fragment)
    note("of req", req.version, names, req.scheme, len(req.remote_addr), req.trailers, req.should_close())

def post_request(worker, req, environ, resp):
    note("post_request", worker.nr, req.began, environ.get("PATH_INFO"), environ.get("hooked.mine"))
    if resp.status is None:
        note("of resp", "nothing", resp.headers_sent)
    else:
        note("of resp", resp.status, resp.status_code, [n for n, _ in resp.headers], resp.headers_sent)

def worker_int(worker):
    note("worker_int", own(worker), worker.age)

def worker_abort(worker):
    note("worker_abort", own(worker), worker.age)

def worker_exit(server, worker):
    note("worker_exit", where(server), own(worker), worker.age, worker.mine)

def child_exit(server, worker):
    note("child_exit", where(server), type(worker.pid), worker.age, worker.mine, worker.pid in server.WORKERS)

def on_exit(server):
    note("on_exit", where(server), server.WORKERS)
"""


@pytest.fixture
def site(tmp_path):
    """Starts a server with the config file `text`; `site.record()` is what its hooks noted."""
    record = tmp_path / "record"
    env = {"PYTHONPATH": str(APPS), "RECORD": str(record)}

    class Site:
        path = tmp_path

        def config(self, text):
            (tmp_path / "gunicorn.conf.py").write_text(textwrap.dedent(text))

        def record(self):
            return record.read_text().splitlines() if record.exists() else []

        def named(self, *names):
            return [line for line in self.record() if line.split()[0] in names]

        def wait(self, line, count=1):
            wait_until(
                lambda: sum(line in noted for noted in self.record()) >= count, f"{count} times {line}"
            )

        def options(self):
            return {"cwd": tmp_path, "env": env}

    return Site()


def play(server: Server, site) -> None:
    """A life of three workers: requests, an abort, an interrupt, a stop."""
    # The last line of the hook: the next request, or a signal, would be noted in its middle.
    site.wait("of resp")
    server.get("/a%20b/?x=1&y=%20", "Connection: close", "X-Extra: 1")
    site.wait("of resp", 2)
    server.get("/mutate")
    site.wait("of resp", 3)
    assert server.get("/boom").status == 500
    site.wait("of resp", 4)
    os.kill(server.workers(1)[0], signal.SIGABRT)
    site.wait("child_exit")
    site.wait("post_worker_init", 2)
    server.get("/second")
    site.wait("of resp", 5)
    os.kill(server.workers(1)[0], signal.SIGINT)
    site.wait("child_exit", 2)
    site.wait("post_worker_init", 3)
    server.get("/third")
    site.wait("of resp", 6)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("preload", [False, True])
def test_order_and_arguments_are_gunicorns(start, site, tmp_path_factory, preload):
    """The whole record of a server's life, line by line."""
    site.config(RECORDING + f"preload_app = {preload}\n")
    with serving(start) as keep:
        play(keep(None, **site.options()), site)
    ours = site.record()
    for attempt in (1, 2, 3):
        (site.path / "record").unlink()
        log = tmp_path_factory.mktemp("oracle") / "log"
        oracle = Server(GUNICORN, ["-c", "gunicorn.conf.py"], log=log, **site.options())
        try:
            play(oracle, site)
            break
        except AssertionError:
            # gunicorn raises SystemExit in whatever code the signal meets, and some of that code swallows it.
            if attempt == 3:
                raise
        finally:
            oracle.kill()
    assert ours == site.record()


NUMBERS = """
from recorder import note
wsgi_app = "hooked:app"
bind = "127.0.0.1:0"
workers = 2

def nworkers_changed(server, new, old):
    note("nworkers_changed", new, old, server.num_workers)

def pre_fork(server, worker):
    note("pre_fork", server.num_workers)

def on_reload(server):
    note("on_reload", server.num_workers, server.cfg.workers)
"""


def test_hooks_see_the_number_of_workers_that_gunicorns_see(start, site, tmp_path_factory):
    """TTIN tells before it forks; HUP tells always, also of the same number."""

    def play(server: Server) -> None:
        site.wait("pre_fork 2", 2)
        server.workers(2)
        server.signal(signal.SIGTTIN)
        site.wait("pre_fork 3")
        server.workers(3)
        server.signal(signal.SIGHUP)
        site.wait("pre_fork 2", 4)
        server.workers(2)
        site.config(NUMBERS.replace("workers = 2", "workers = 1"))
        server.signal(signal.SIGHUP)
        site.wait("pre_fork 1")
        server.workers(1)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

    site.config(NUMBERS)
    with serving(start) as keep:
        play(keep(None, **site.options()))
    ours = site.named("nworkers_changed", "pre_fork", "on_reload")
    (site.path / "record").unlink()
    site.config(NUMBERS)
    oracle = Server(
        GUNICORN,
        ["-c", "gunicorn.conf.py"],
        log=tmp_path_factory.mktemp("oracle") / "log",
        **site.options(),
    )
    try:
        play(oracle)
    finally:
        oracle.kill()
    assert ours == site.named("nworkers_changed", "pre_fork", "on_reload")


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("hook", ["on_starting", "when_ready", "pre_fork", "post_fork", "post_worker_init"])
def test_hooks_may_ask_for_the_application(serve, site, hook, preload):
    """`server.app.wsgi()` loads it, and that object is served: gunicorn's way to configure it in a hook."""
    parameters = {"on_starting": "server", "when_ready": "server", "post_worker_init": "worker"}
    site.config(
        f"""
        from recorder import note
        workers = 1
        preload_app = {preload}
        def {hook}({parameters.get(hook, "server, worker")}):
            app = {"server" if hook in ("on_starting", "when_ready") else "worker"}.app
            app.wsgi().greeting = "from {hook}"
            note("same", app.wsgi() is app.wsgi(), app.callable is app.wsgi())
        def post_request(worker, req):
            note("greeting", worker.app.wsgi().greeting, worker.wsgi is worker.app.wsgi())
        """
    )
    serve("hooked:app", **site.options())
    site.wait(f"greeting from {hook} True")
    assert site.named("same") == ["same True True"]
    assert site.named("import") == ["import"]


CHANGING = """
from io import BytesIO
workers = 1

def pre_request(worker, req):
    kind = dict(req.headers).get("X-KIND", "")
    if "append" in kind:
        req.headers.append(("X-TRACE", "abc"))
        req.headers.append(("CONTENT-TYPE", "text/x-mine"))
    if "filter" in kind:
        req.headers = [pair for pair in req.headers if pair[0] != "X-DROP"]
    if "repeat" in kind:
        req.headers += [("X-DROP", "2"), ("X-TWICE", "a"), ("X-TWICE", "b")]
    if "generator" in kind:
        req.headers = (pair for pair in list(req.headers))
    if "path" in kind:
        req.path = "/env/%41%20b"
    if "query" in kind:
        req.query, req.uri = "z=9", "/zzz?z=9"
    if "method" in kind:
        req.method, req.scheme, req.version = "PUT", "https", (1, 0)
    if "body" in kind:
        req.body = BytesIO(b"in place of it")
    if "script" in kind:
        req.headers.append(("SCRIPT_NAME", "/old"))
    if "outside" in kind:
        req.headers.append(("SCRIPT_NAME", "/elsewhere"))
    if "host" in kind:
        req.headers = [("HOST", "other.example"), *[h for h in req.headers if h[0] != "HOST"]]
    if "delete" in kind:
        del req.path
"""

SHOWN = """
import json

def app(environ, start_response):
    told = {key: value for key, value in environ.items() if isinstance(value, str)}
    for key in ("SERVER_SOFTWARE", "SERVER_PORT", "REMOTE_PORT", "SERVER_NAME"):
        told.pop(key, None)
    told["body"] = environ["wsgi.input"].read().decode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]
"""

CHANGES = (
    "nothing append filter repeat generator path query method body script outside host delete "
    "append,filter,path,query,method,body path,script,repeat"
).split()


def test_what_pre_request_changes_reaches_the_application(start, site, tmp_path_factory):
    """gunicorn makes the environ after the hook, from what the hook left."""
    site.config(CHANGING)
    (site.path / "shown.py").write_text(SHOWN)

    def answers(server: Server) -> dict:
        told = {}
        for kind in CHANGES:
            for target in ("/old?a=1", "/old/%41%2Fb"):
                fields = [f"X-Kind: {kind}", "X-Drop: 1", "Cookie: a=b", "Connection: close"]
                for body in (b"", b"body"):
                    with server.client() as client:
                        answer = client.ask(request("POST" if body else "GET", target, *fields, body=body))
                    found = answer.json() if answer.status == 200 else answer.status
                    told[kind, target, body] = found
        # What one request was made is not what the next one is.
        assert told["nothing", "/old?a=1", b""]["PATH_INFO"] == "/old"
        return told

    with serving(start) as keep:
        ours = answers(keep("shown:app", ready=None, **site.options()))
    oracle = Server(
        GUNICORN,
        ["-c", "gunicorn.conf.py", "shown:app"],
        log=tmp_path_factory.mktemp("oracle") / "log",
        **site.options(),
    )
    try:
        theirs = answers(oracle)
    finally:
        oracle.kill()
    changed = ours["append,filter,path,query,method,body", "/old?a=1", b"body"]
    assert (changed["PATH_INFO"], changed["QUERY_STRING"]) == ("/env/A b", "z=9")
    assert (changed["HTTP_X_TRACE"], changed["body"]) == ("abc", "in place of it")
    for key, answer in theirs.items():
        assert ours[key] == answer, key


def test_a_changed_host_names_the_server_of_a_unix_socket(serve, site):
    site.config(CHANGING)
    (site.path / "named.py").write_text(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        '    return [f\'{environ["SERVER_NAME"]}:{environ["SERVER_PORT"]}\'.encode()]\n'
    )
    path = site.path / "socket"
    server = serve("named:app", "--bind", f"unix:{path}", ready=None, **site.options())
    with server.client() as client:
        assert client.get("/", "X-Kind: host,method").body == b"other.example:443"
        assert client.get("/", "X-Kind: nothing").body == b"localhost:80"


def test_an_application_that_a_hook_puts_in_its_place_is_served(serve, site):
    site.config(
        """
        workers = 1
        def post_fork(server, worker):
            inner = worker.app.wsgi()
            def outer(environ, start_response):
                environ["PATH_INFO"] = "/mutate"
                return inner(environ, start_response)
            worker.app.callable = outer
        def post_request(worker, req, environ, resp):
            from recorder import note
            note("kept", environ.get("hooked.mine"))
        """
    )
    serve("hooked:app", **site.options())
    site.wait("kept kept")


@pytest.mark.parametrize(
    "hook, code", [("on_starting(server)", 1), ("post_fork(server, worker)", 3)], ids=["master", "worker"]
)
def test_a_hook_whose_application_cannot_be_loaded_ends_the_server(site, hook, code):
    site.config(f"workers = 1\ndef {hook}:\n    server.app.wsgi()\n")
    ended, output = run_to_end(
        [sys.executable, "-m", "ringhorn"],
        "--bind=127.0.0.1:0",
        "fails_to_import:app",
        cwd=site.path,
        env={"PYTHONPATH": str(APPS)},
    )
    assert ended == code, output
    assert "cannot load application 'fails_to_import:app'" in output


def test_a_hook_may_be_named_by_a_text(serve, site):
    site.config("post_request = 'recorder.post_request'\nworkers = 1\n")
    serve("hooked:app", **site.options()).get("/mutate")
    site.wait("post_request /mutate kept")


@pytest.mark.parametrize(
    "parameters, noted",
    [
        ("worker, req", "2 /seen"),
        ("worker, req, environ", "3 /seen"),
        ("worker, req, environ, resp", "4 /seen 200 OK"),
        ("*all", "4 /seen 200 OK"),
    ],
)
def test_post_request_is_given_what_it_takes(serve, site, parameters, noted):
    site.config(
        f"""
        workers = 1
        from recorder import note
        def post_request({parameters}):
            given = {"list(all)" if "*" in parameters else f"[{parameters}]"}
            note(len(given), given[1].path, *[resp.status for resp in given[3:]])
        """
    )
    serve("hooked:app", ready=None, **site.options()).get("/seen")
    site.wait(noted)
    assert site.record() == ["import", noted]


def test_post_request_sees_what_was_sent(serve, site):
    site.config(
        """
        workers = 1
        from recorder import note
        def post_request(worker, req, environ, resp):
            kind = dict(resp.headers)["Content-Type"]
            note(resp.status, resp.sent, resp.response_length, resp.chunked, kind)
        """
    )
    answer = serve("hooked:app", ready=None, **site.options()).get("/")
    site.wait(f"200 OK {len(answer.body)} None False application/json")


def test_requests_that_are_refused_have_no_hooks(serve, site):
    site.config(RECORDING)
    server = serve(None, ready=None, **site.options())
    assert server.ask(b"GET / HTTP/1.1\r\nBad Header: 1\r\n\r\n").status == 400
    server.get("/")
    site.wait("post_request")
    assert len(site.named("pre_request")) == len(site.named("post_request")) == 1


def test_req_knows_what_a_proxy_announced(serve, site):
    site.config(
        """
        workers = 1
        proxy_protocol = "v1"
        from recorder import note
        def pre_request(worker, req):
            note(req.remote_addr, sorted((req.proxy_protocol_info or {}).items()))
        """
    )
    server = serve("hooked:app", ready=None, **site.options())
    server.ask(b"PROXY TCP4 192.0.2.7 198.51.100.2 51814 443\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
    told = {
        "client_addr": "192.0.2.7",
        "client_port": 51814,
        "proxy_addr": "198.51.100.2",
        "proxy_port": 443,
        "proxy_protocol": "TCP4",
    }
    site.wait(f"('192.0.2.7', 51814) {sorted(told.items())}")


def test_pre_request_can_close_the_connection(serve, site):
    site.config("workers = 1\ndef pre_request(worker, req):\n    req.force_close()\n")
    with serve("hooked:app", **site.options()).client() as client:
        assert client.get("/").field("connection") == "close"
        client.assert_closed()


# --- hooks that fail

FAILING = {
    # The hook, what it does, and the exit code.
    "nworkers_changed": ("server, new, old", 1),
    "on_starting": ("server", 1),
    "when_ready": ("server", 1),
    "pre_fork": ("server, worker", 255),
    "post_fork": ("server, worker", 3),
    "post_worker_init": ("worker", 3),
}


@pytest.mark.parametrize("hook", FAILING)
@pytest.mark.parametrize("server", ["ringhorn", "gunicorn"])
def test_a_hook_that_fails_at_the_start_ends_the_server(site, hook, server):
    parameters, expected = FAILING[hook]
    site.config(
        f"""
        bind = "127.0.0.1:0"
        # A second worker would end a gunicorn that is ending already.
        workers = 2 if "{hook}" == "pre_fork" else 1
        pidfile = "server.pid"
        def {hook}({parameters}):
            raise LookupError("on purpose")
        """
    )
    command = [sys.executable, "-m", "ringhorn"] if server == "ringhorn" else GUNICORN
    code, output = run_to_end(command, "hooked:app", **site.options())
    assert code == expected, output
    assert "LookupError: on purpose" in output
    if hook == "pre_fork":
        assert output.count("Unhandled exception in main loop") == 1
    if server == "ringhorn":
        assert f"in {hook}" in output, "the traceback"
        assert not (site.path / "server.pid").exists()


@pytest.mark.parametrize("hook", ["on_starting", "when_ready"])
@pytest.mark.parametrize("server", ["ringhorn", "gunicorn"])
def test_a_hook_may_choose_the_exit_code(site, hook, server):
    site.config(f"bind = '127.0.0.1:0'\nworkers = 1\ndef {hook}(server):\n    import sys\n    sys.exit(7)\n")
    command = [sys.executable, "-m", "ringhorn"] if server == "ringhorn" else GUNICORN
    code, output = run_to_end(command, "hooked:app", **site.options())
    assert code == 7, output


def test_on_exit_that_fails_is_told_by_the_exit_code(serve, site):
    site.config("workers = 1\ndef on_exit(server):\n    raise LookupError('on purpose')\n")
    server = serve("hooked:app", **site.options())
    server.exit_code = 1
    server.signal(signal.SIGTERM)
    server.wait()
    assert "LookupError: on purpose" in server.log()


def test_pre_request_that_fails_is_a_500_and_post_request_is_called_all_the_same(serve, site):
    site.config(
        """
        workers = 1
        from recorder import note
        def pre_request(worker, req):
            if req.path == "/fail":
                raise LookupError("on purpose")
        def post_request(worker, req, environ, resp):
            note("after", req.path, environ, resp)
        """
    )
    server = serve("hooked:app", ready=None, **site.options())
    assert server.get("/fail").status == 500
    site.wait("after /fail {} None")
    wait_until(lambda: "LookupError: on purpose" in server.log(), "the traceback")
    assert server.get("/").status == 200


def test_post_request_that_fails_is_logged_and_changes_nothing(serve, site):
    site.config("workers = 1\ndef post_request(worker, req):\n    raise LookupError('on purpose')\n")
    with serve("hooked:app", **site.options()).client() as client:
        assert client.get("/").status == client.get("/").status == 200
    server = serve("hooked:app", **site.options())
    server.get("/")
    wait_until(lambda: "Exception in post_request hook" in server.log(), "the log line")
    assert "LookupError: on purpose" in server.log()


def test_worker_exit_that_fails_is_logged(serve, site):
    site.config("workers = 1\ndef worker_exit(server, worker):\n    raise LookupError('on purpose')\n")
    server = serve("hooked:app", **site.options())
    server.signal(signal.SIGTERM)
    server.wait()
    assert "Exception during worker exit" in server.log()


# --- signals of a worker


def test_worker_int_runs_while_a_request_is_in_hand(serve, site):
    """Where the thread stacks are dumped that tell why a worker hangs."""
    site.config(RECORDING + "threads = 1\n")
    server = serve(None, **site.options())
    with server.client() as client:
        client.send(f"GET /hold?{site.path}/free HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        site.wait("held")
        os.kill(server.workers(1)[0], signal.SIGQUIT)
        site.wait("worker_int True 1")
        site.wait("child_exit")


def test_child_exit_hears_of_a_killed_worker(serve, site):
    """prometheus_client removes the files of dead workers there."""
    site.config("workers = 1\nfrom recorder import note\ndef child_exit(s, w):\n    note('dead', w.pid)\n")
    server = serve("hooked:app", **site.options())
    (worker,) = server.workers(1)
    os.kill(worker, signal.SIGKILL)
    site.wait(f"dead {worker}")


def test_pre_exec_runs_in_the_process_that_becomes_the_next_master(serve, site, tmp_path):
    """As in gunicorn: what the hook closes or changes there, the old master, which serves on, still has."""
    site.config(
        "import os\nfrom recorder import note\nworkers = 1\npidfile = 'pid'\n"
        "def pre_exec(s):\n    note('before', os.getpid() == s.pid, os.getppid() == s.pid)\n"
    )
    server = serve("hooked:app", **site.options())
    server.signal(signal.SIGUSR2)
    second = tmp_path / "pid.2"
    wait_until(second.exists, "the second pidfile")
    os.kill(int(second.read_text()), signal.SIGTERM)
    wait_until(lambda: not second.exists(), "the new master's end")
    assert site.named("before") == ["before False True"]


def test_pre_exec_that_fails_leaves_the_old_master_serving(serve, site):
    site.config("workers = 1\ndef pre_exec(s):\n    raise ValueError('not now')\n")
    server = serve("hooked:app", **site.options())
    server.signal(signal.SIGUSR2)
    wait_until(lambda: "the new master (pid:" in server.log(), "the end of the new master")
    assert "the hook pre_exec failed: not now" in server.log()
    assert server.get("/seen").status == 200


# --- what hooks do


def test_a_worker_leaves_when_a_hook_sets_alive_to_false(serve, site):
    """Memory watchers do that: the request in hand is answered, and the worker is replaced."""
    site.config(
        """
        workers = 1
        from recorder import note
        def post_request(worker, req):
            if req.path == "/last":
                worker.alive = False
                note("alive", worker.age)
        def worker_exit(server, worker):
            note("left", worker.age, worker.alive)
        """
    )
    server = serve("hooked:app", **site.options())
    first = server.get("/").json()["pid"]
    assert server.get("/last").json()["pid"] == first
    site.wait("left 1 False")
    assert server.get("/").json()["pid"] != first


def test_the_servers_log_is_a_logger_whose_lines_are_in_the_error_log(serve, site):
    site.config(
        """
        workers = 1
        def when_ready(server):
            server.log.info("ready with %d", server.num_workers)
            server.log.warning("one\\ntwo")
            server.log.debug("nobody sees this")
            try:
                1 / 0
            except ZeroDivisionError:
                server.log.exception("caught")
            server.log.critical("all %s", "lost")
            assert server.log.isEnabledFor(20)
        def post_fork(server, worker):
            worker.log.error("in the worker")
        """
    )
    server = serve("hooked:app", **site.options())
    server.get("/log")
    wait_until(lambda: "told by the application, with 100%" in server.log(), "the application's line")
    log, master, worker = server.log(), server.process.pid, server.workers(1)[0]
    stamp = r"(?m)^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] "
    assert re.search(stamp + rf"\[{master}\] \[INFO\] ready with 1$", log)
    assert re.search(stamp + rf"\[{master}\] \[WARNING\] one\ntwo$", log)
    assert re.search(stamp + rf"\[{master}\] \[ERROR\] caught\nTraceback .*\n(.*\n)+ZeroDivisionError", log)
    assert re.search(stamp + rf"\[{master}\] \[CRITICAL\] all lost$", log)
    assert re.search(stamp + rf"\[{worker}\] \[ERROR\] in the worker$", log)
    assert re.search(stamp + rf"\[{worker}\] \[WARNING\] told by the application", log)
    assert "nobody sees this" not in log


def test_cfg_has_every_setting(serve, site):
    site.config(
        """
        workers = 1
        raw_env = ["A=b"]
        forwarder_headers = "X"
        from recorder import note
        def on_starting(server):
            cfg = server.cfg
            note(cfg.workers, cfg.env, cfg.preload_app, cfg.timeout, cfg.forwarder_headers, cfg.uid)
            note(cfg.pre_request(None, None), cfg.max_requests, cfg.worker_class_str)
            note(cfg.on_starting is on_starting, hasattr(cfg, "no_such"), cfg.settings["timeout"].get())
        """
    )
    serve("hooked:app", **site.options())
    assert site.record()[:3] == [
        f"1 {{'A': 'b'}} False 30 ['X'] {os.geteuid()}",
        "None 0 gthread",
        "True False 30",
    ]


CFG = """
import logging
wsgi_app = "hooked:app"
bind = "127.0.0.1:0"
workers = 1
chdir = "inner"
pythonpath = "lib,other"
pidfile = "pid"
from recorder import note

def when_ready(server):
    cfg = server.cfg
    note("paths", cfg.chdir, cfg.pythonpath, cfg.config, cfg.sendfile, sorted(cfg.ssl_options))
    note("pidfile", server.pidfile.fname, server.pidfile.pid == server.pid)

def post_fork(server, worker):
    note("of worker", worker.SIGNALS, worker.cfg.logger_class.__name__, worker.cfg.chdir)
"""


@pytest.mark.parametrize("unset", [False, True])
def test_cfg_and_its_owners_are_gunicorns(start, site, tmp_path_factory, unset):
    (site.path / "inner").mkdir()
    text = CFG
    if unset:
        text = text.replace("chdir = ", "unused = ").replace("pythonpath = ", "also_unused = ")
    site.config(text)
    with serving(start) as keep:
        keep(None, **site.options())
        site.wait("of worker")
    ours = site.named("paths", "pidfile", "of")
    (site.path / "record").unlink()
    log = tmp_path_factory.mktemp("oracle") / "log"
    oracle = Server(GUNICORN, [], log=log, **site.options())
    try:
        site.wait("of worker")
    finally:
        oracle.kill()
    assert ours == site.named("paths", "pidfile", "of")
    assert len(ours) == 3


def test_threads_that_when_ready_starts_do_not_hold_up_the_server(serve, site):
    site.config(
        """
        workers = 1
        from recorder import note
        def when_ready(server):
            import threading, time
            def watch():
                while not server.WORKERS:
                    time.sleep(0.01)
                note("watched", list(server.WORKERS))
            threading.Thread(target=watch, daemon=True).start()
        """
    )
    server = serve("hooked:app", **site.options())
    site.wait(f"watched {server.workers(1)}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
def test_post_fork_still_has_the_masters_rights_and_the_application_has_not(serve, site):
    # The directories of pytest are closed to others, and those of Python may be: what the worker needs lies
    # elsewhere, and imports nothing that the master has not imported.
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o777)
        record = Path(open_to_all, "record")
        shutil.copy(APPS / "recorder.py", open_to_all)
        Path(open_to_all, "tiny.py").write_text(
            textwrap.dedent(
                """
                import os
                from recorder import note
                note("import", os.getuid())
                def app(environ, start_response):
                    start_response("200 OK", [])
                    return [str(os.getuid()).encode()]
                """
            )
        )
        Path(open_to_all, "gunicorn.conf.py").write_text(
            textwrap.dedent(
                """
                workers = 1
                user = group = 65534
                import os
                from recorder import note
                def post_fork(server, worker):
                    note("post_fork", os.getuid(), os.getgid())
                def post_worker_init(worker):
                    note("post_worker_init", os.getuid(), os.getgid())
                """
            )
        )
        record.touch()
        record.chmod(0o666)
        server = serve("tiny:app", cwd=Path(open_to_all), env={"RECORD": str(record)})
        assert server.get("/").body == b"65534"
        assert record.read_text().splitlines() == [
            "post_fork 0 0",
            "import 65534",
            "post_worker_init 65534 65534",
        ]
        server.stop()


def test_num_workers_changes_by_one_at_a_time(serve, site):
    """Assigning more than one step would be lost in part, since signals do not count."""
    site.config(
        """
        workers = 1
        from recorder import note
        def when_ready(server):
            try:
                server.num_workers += 2
            except ValueError as error:
                note("refused", error)
        """
    )
    serve("hooked:app", **site.options())
    site.wait("refused")
