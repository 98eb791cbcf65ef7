"""Config files, hooks and applications that change the loggers `gunicorn.access` and `gunicorn.error`, without a
`logger_class`: what they are used to from gunicorn. Without a mark a test holds for gunicorn, too."""

import os
import re
import signal
import textwrap

import pytest

from harness import Client, wait_until

APP = """
import logging, os, sys
access, error = logging.getLogger("gunicorn.access"), logging.getLogger("gunicorn.error")

class NoHealth(logging.Filter):
    def filter(self, record):
        return "/health" not in record.getMessage()

class Told(logging.Handler):
    def emit(self, record):
        atoms = record.args if isinstance(record.args, dict) else {}
        kind = record.exc_info and record.exc_info[0].__name__
        os.write(1, f"told {record.name} {atoms.get('s')} {kind} {record.getMessage()}\\n".encode())

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fail":
        raise ValueError("as asked")
    if path == "/access":
        access.info("of the application's own")
    if path == "/error":
        error.warning("borrowed by the application")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""

CONFIG = """
import sys
sys.path.insert(0, ".")
wsgi_app = "borrowing:app"
workers = 1
access_log_format = "%(m)s %(U)s %(s)s"
"""


@pytest.fixture
def project(tmp_path):
    def configure(config="accesslog = '-'", app=""):
        (tmp_path / "borrowing.py").write_text(APP + textwrap.dedent(app))
        (tmp_path / "gunicorn.conf.py").write_text(CONFIG + textwrap.dedent(config))
        return tmp_path

    return configure


def python_writes(server):
    """Whether the worker has the thread that gives messages to Python's logging."""
    worker = server.workers(1)[0]
    tasks = [f"/proc/{worker}/task/{task}/comm" for task in os.listdir(f"/proc/{worker}/task")]
    return any("ringhorn-pylog" in open(path).read() for path in tasks)


FILTER = "import borrowing, logging; logging.getLogger('gunicorn.access').addFilter(borrowing.NoHealth())"


@pytest.mark.parametrize(
    "config, app",
    [
        (FILTER, ""),
        ("def on_starting(server): server.log.access_log.addFilter(__import__('borrowing').NoHealth())", ""),
        (f"def post_fork(server, worker): {FILTER}", ""),
        (f"def post_worker_init(worker): {FILTER}", ""),
        ("", "access.addFilter(NoHealth())"),
        ("", "access.handlers[0].addFilter(NoHealth())"),
        ("preload_app = True", "access.addFilter(NoHealth())"),
    ],
    ids=["config", "on_starting", "post_fork", "post_worker_init", "app", "handler", "preload"],
)
def test_a_filter_of_the_access_log(serve, project, config, app):
    server = serve(None, cwd=project(f"accesslog = '-'\n{config}\n", app), ready=None)
    for path in ("/health", "/a", "/health", "/b"):
        assert server.get(path).status == 200
    wait_until(lambda: "GET /b 200\n" in server.log(), "the access line")
    assert "GET /a 200\n" in server.log()
    assert "/health" not in server.log()


def test_a_handler_of_the_access_log_has_the_records(serve, project):
    server = serve(None, cwd=project(app="access.addHandler(Told())"), ready=None)
    server.get("/a")
    wait_until(lambda: "told gunicorn.access 200 None GET /a 200\n" in server.log(), "the record")
    wait_until(lambda: re.search(r"^GET /a 200$", server.log(), re.MULTILINE), "the access line")


def test_a_handler_of_the_error_log_has_failed_requests_with_their_exceptions(serve, project):
    server = serve(None, cwd=project(app="error.addHandler(Told())"), ready=None)
    assert server.get("/fail").status == 500
    wait_until(lambda: "told gunicorn.error None ValueError Error handling" in server.log(), "the record")
    server.get("/error")
    wait_until(lambda: "told gunicorn.error None None borrowed" in server.log(), "the application's record")
    wait_until(lambda: "] [WARNING] borrowed by the application\n" in server.log(), "the application's line")
    log = server.log()
    # In the error log they are as ever, and once.
    assert len(re.findall(r"\] \[ERROR\] Error handling request .*/fail\nTraceback", log)) == 1
    assert log.count("] [WARNING] borrowed by the application\n") == 1
    assert log.count("told gunicorn.error None None borrowed") == 1


def test_a_handler_from_the_config_file_has_the_masters_messages(serve, project):
    config = """
        import borrowing
        borrowing.error.addHandler(borrowing.Told())
    """
    server = serve(None, cwd=project(config), ready=None)
    assert re.search(r"^told gunicorn.error None None Listening at", server.log(), re.MULTILINE)
    assert re.search(r"^\[.*\] \[INFO\] Listening at", server.log(), re.MULTILINE)


def test_formatters_of_both_logs(serve, project):
    config = """
        import logging
        accesslog = "-"
        def on_starting(server):
            server.log.access_log.handlers[0].setFormatter(logging.Formatter("J %(message)s"))
            server.log.error_log.handlers[0].setFormatter(logging.Formatter("JE %(levelname)s %(message)s"))
    """
    server = serve(None, cwd=project(config), ready=None)
    server.get("/a")
    server.get("/fail")
    server.get("/error")
    wait_until(lambda: "JE WARNING borrowed by the application\n" in server.log(), "the application's line")
    wait_until(lambda: "J GET /error 200\n" in server.log(), "its access line")
    log = server.log()
    assert re.search(r"^JE INFO Listening at", log, re.MULTILINE)
    assert re.search(r"^J GET /a 200$", log, re.MULTILINE)
    assert re.search(r"^JE ERROR Error handling request .*/fail\nTraceback", log, re.MULTILINE)
    assert log.count("borrowed by the application") == 1


def test_levels(serve, project):
    app = "access.setLevel(logging.WARNING); error.setLevel(logging.ERROR)"
    server = serve(None, cwd=project(app=app), ready=None)
    for path in ("/error", "/access", "/a", "/fail"):
        server.get(path)
    wait_until(lambda: "ValueError: as asked" in server.log(), "the error")
    log = server.log()
    assert "borrowed" not in log and "GET /a 200" not in log and "of the application's own" not in log


def test_what_the_application_says_to_the_access_log(serve, project):
    project_dir = project("accesslog = 'access.log'")
    server = serve(None, cwd=project_dir, ready=None)
    access, moved = project_dir / "access.log", project_dir / "old.log"
    server.get("/access")
    wait_until(lambda: "GET /access 200\n" in access.read_text(), "the access line")
    assert "of the application's own\n" in access.read_text()
    access.rename(moved)
    server.signal(signal.SIGUSR1)
    wait_until(lambda: [server.get("/access"), access.exists() and access.read_text()][1], "the new file")
    wait_until(lambda: "of the application's own\n" in access.read_text(), "the application's line in it")


def test_changed_loggers_with_files_follow_usr1(serve, project):
    project_dir = project(
        "accesslog, errorlog = 'access.log', 'error.log'",
        "access.addFilter(NoHealth()); error.addHandler(Told())",
    )
    access, error = project_dir / "access.log", project_dir / "error.log"
    server = serve(None, cwd=project_dir, ready=None, listening_in=error)
    address = server.address
    server.get("/a")
    wait_until(lambda: "GET /a 200\n" in access.read_text(), "the access line")
    access.rename(project_dir / "old-access.log")
    error.rename(project_dir / "old-error.log")
    server.signal(signal.SIGUSR1)

    def ask(path):
        with Client(address) as client:
            client.get(path)

    wait_until(
        lambda: [ask("/b"), access.exists() and "GET /b" in access.read_text()][1], "the new access log"
    )
    wait_until(
        lambda: [ask("/error"), error.exists() and "borrowed" in error.read_text()][1], "the new error log"
    )
    assert "/health" not in access.read_text()


@pytest.mark.ringhorn_only
def test_a_reload_moves_a_changed_access_log(serve, project):
    config = (
        "accesslog = 'one.log'\ndef on_starting(server): server.log.access_log.handlers[0].addFilter(F())\n"
    )
    config += "from borrowing import NoHealth as F\n"
    project_dir = project(config)
    server = serve(None, cwd=project_dir, ready=None)
    server.get("/a")
    wait_until(lambda: "GET /a 200\n" in (project_dir / "one.log").read_text(), "the first line")
    project(config.replace("one.log", "two.log"))
    server.signal(signal.SIGHUP)
    moved = project_dir / "two.log"
    wait_until(
        lambda: [server.get("/health"), server.get("/b"), moved.exists() and moved.read_text()][2],
        "the new file",
    )
    wait_until(lambda: "GET /b 200\n" in moved.read_text(), "the second line")
    assert "/health" not in moved.read_text()


def test_the_error_logs_stream(serve, project):
    config = """
        def when_ready(server):
            server.log.error_log.handlers[0].stream.write("raw\\n")
    """
    server = serve(None, cwd=project(config), ready=None)
    wait_until(lambda: "raw\n" in server.log(), "what was written")


@pytest.mark.ringhorn_only
def test_who_only_reads_the_loggers_keeps_the_servers_own_log(serve, project):
    # As applications on Flask do, for their own logger and the root.
    app = """
        mine, root = logging.getLogger("mine"), logging.getLogger()
        mine.handlers = error.handlers
        mine.setLevel(error.level)
        root.handlers = error.handlers
        mine.propagate = False
        mine.info("of mine")
        logging.warning("of the root")
    """
    server = serve(None, cwd=project(app=app), ready=None)
    server.get("/a")
    wait_until(lambda: "GET /a 200\n" in server.log(), "the access line")
    assert server.log().count("] [INFO] of mine\n") == 1
    assert server.log().count("] [WARNING] of the root\n") == 1
    assert not python_writes(server)


@pytest.mark.ringhorn_only
def test_a_changed_error_log_leaves_the_access_log_alone(serve, project):
    app = """
        made = logging.getLogRecordFactory()
        def make(name, *args, **kwargs):
            os.write(1, f"record of {name}\\n".encode())
            return made(name, *args, **kwargs)
        logging.setLogRecordFactory(make)
        error.addHandler(Told())
    """
    server = serve(None, cwd=project(app=app), ready=None)
    server.get("/a")
    server.get("/fail")
    wait_until(lambda: "GET /fail 500\n" in server.log(), "the access lines")
    wait_until(lambda: "record of gunicorn.error\n" in server.log(), "the record")
    assert "record of gunicorn.access" not in server.log()


@pytest.mark.ringhorn_only
def test_what_a_json_access_log_cannot_honour_is_said_once(serve, project):
    config = "accesslog, access_log_format = '-', 'json'"
    server = serve(None, cwd=project(config, "access.addFilter(NoHealth())"), ready=None)
    server.get("/health")
    wait_until(lambda: '"/health"' in server.log(), "the access line")
    assert server.log().count("of gunicorn.access do not apply") == 1
