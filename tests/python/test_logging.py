"""The logs through Python's `logging`: `logger_class`, `logconfig`, `logconfig_dict`, `logconfig_json`, and
`capture_output`."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import textwrap

import pytest

from harness import Client, request, run_to_end, wait_until

pytestmark = pytest.mark.ringhorn_only

APP = """
import json, logging, os, sys

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise ValueError("as asked")
    if environ["PATH_INFO"] == "/print":
        print("printed by the application", flush=True)
        os.write(2, b"written to standard error\\n")
    if environ["PATH_INFO"] == "/borrow":
        logging.getLogger("gunicorn.error").warning("said by the application")
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Mine", "yes")])
    return [b"hello"]
"""

# Writes what a JSON formatter, or an error tracker, finds in records.
FORMATTER = """
import json, logging

class Atoms(logging.Formatter):
    def format(self, record):
        args = record.args
        if not isinstance(args, dict):
            return json.dumps({"level": record.levelname, "name": record.name, "message": record.getMessage(),
                               "template": record.msg,
                               "exception": record.exc_info and record.exc_info[0].__name__})
        names = ["h", "l", "u", "r", "s", "m", "U", "q", "H", "b", "B", "f", "a", "T", "{x-asked}i",
                 "{X-MINE}o", "{raw_uri}e", "{none}i"]
        return json.dumps({name: args[name] for name in names} | {
            "level": record.levelname, "name": record.name, "format": record.msg,
            "numbers": [type(args[name]).__name__ for name in "TDMB"], "L": args["L"], "p": args["p"]})
"""

CONFIG = """
wsgi_app = "logged:app"
workers = 1
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "logged.py").write_text(APP)
    (tmp_path / "formatter.py").write_text(FORMATTER)

    def configure(text=""):
        (tmp_path / "gunicorn.conf.py").write_text(CONFIG + textwrap.dedent(text))
        return tmp_path

    return configure


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_access_records_have_the_atoms_as_arguments(serve, project):
    project_dir = project("""
        logconfig_dict = {
            "formatters": {"atoms": {"()": "formatter.Atoms"}},
            "handlers": {
                "file": {"class": "logging.FileHandler", "filename": "all.log", "formatter": "atoms"},
                "console": {"class": "logging.StreamHandler"},
            },
            "root": {"level": "INFO", "handlers": []},
            "loggers": {
                "gunicorn.error": {"level": "INFO", "handlers": ["file", "console"], "propagate": False},
                "gunicorn.access": {"level": "INFO", "handlers": ["file"], "propagate": False},
            },
        }
    """)
    server = serve(None, cwd=project_dir, ready=None)
    path = project_dir / "all.log"
    credentials = "Authorization: Basic " + "YW5uYTpzZWNyZXQ="
    server.ask(request("GET", "/a%20b?q=1", "X-Asked: for", "User-Agent: me", credentials))

    def access():
        return [record for record in records(path) if record["name"] == "gunicorn.access"]

    wait_until(access, "an access record")
    record = access()[0]
    micros = record.pop("L")
    assert re.fullmatch(r"\d+\.\d{6}", micros)
    assert record.pop("p") == f"<{server.workers(1)[0]}>"
    assert record == {
        "h": "127.0.0.1",
        "l": "-",
        "u": "anna",
        "r": "GET /a%20b?q=1 HTTP/1.1",
        "s": "200",
        "m": "GET",
        "U": "/a b",
        "q": "q=1",
        "H": "HTTP/1.1",
        "b": "5",
        "B": 5,
        "f": "-",
        "a": "me",
        "T": 0,
        "{x-asked}i": "for",
        "{X-MINE}o": "yes",
        "{raw_uri}e": "/a%20b?q=1",
        "{none}i": "-",
        "level": "INFO",
        "name": "gunicorn.access",
        "format": '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',
        "numbers": ["int", "int", "int", "int"],
    }


def test_error_records_come_from_every_process_and_carry_the_exception(serve, project):
    project_dir = project("""
        logconfig_dict = {
            "formatters": {"generic": {"format": "%(message)s"}, "atoms": {"()": "formatter.Atoms"}},
            "handlers": {
                "console": {"class": "logging.StreamHandler"},
                "error_console": {
                    "class": "logging.FileHandler", "filename": "all.log", "formatter": "atoms"
                },
            },
        }
    """)
    server = serve(None, cwd=project_dir, ready=None)
    path = project_dir / "all.log"
    assert server.get("/fail").status == 500
    server.get("/borrow")

    def found(text, level):
        return [r for r in records(path) if text in r.get("message", "") and r["level"] == level]

    # From the master, a worker's first lines, a runner, and the application.
    wait_until(lambda: found("said by the application", "WARNING"), "the application's record")
    assert found("Listening at", "INFO")
    assert found("Booting worker", "INFO")
    # Error trackers group by the text before the arguments are in it.
    failure = found("Error handling request GET /fail", "ERROR")
    assert [record["template"] for record in failure] == ["Error handling request %s %s"]
    assert [record["exception"] for record in failure] == ["ValueError"]


# gunicorn's own logger, and the one that stands in for it where gunicorn is not installed.
BASES = ["gunicorn.glogging", "ringhorn._shim.gunicorn.glogging"]


@pytest.mark.parametrize("base", BASES)
def test_a_failed_request_has_one_access_record(serve, project, base):
    project_dir = project("""
        accesslog = "access.log"
        access_log_format = "%(s)s %(U)s"
        logger_class = "mylog.Mine"
    """)
    (project_dir / "mylog.py").write_text(f"from {base} import Logger\nclass Mine(Logger): pass\n")
    server = serve(None, cwd=project_dir, ready=None)
    server.get("/fail")
    server.get("/print")
    access = project_dir / "access.log"
    wait_until(lambda: access.read_text().count("\n") == 2, "both lines")
    assert access.read_text() == "500 /fail\n200 /print\n"


@pytest.mark.parametrize("base", BASES)
def test_logger_class_may_replace_what_it_likes(serve, project, base):
    project_dir = project(
        f"from {base} import Logger\n"
        + """
accesslog = "access.log"

class Mine(Logger):
    def setup(self, cfg):
        super().setup(cfg)
        self.seen = cfg.workers

    def info(self, msg, *args, **kwargs):
        super().info("<mine %s> " % self.seen + str(msg), *args, **kwargs)

    def access(self, resp, req, environ, request_time):
        if environ["PATH_INFO"] != "/quiet":
            super().access(resp, req, environ, request_time)

    def atoms(self, resp, req, environ, request_time):
        return super().atoms(resp, req, environ, request_time) | {"h": "somebody"}

logger_class = Mine

def when_ready(server):
    server.log.info("type %s", type(server.log).__name__)
"""
    )
    server = serve(None, cwd=project_dir, ready=None)
    server.get("/quiet")
    server.get("/loud")
    access = project_dir / "access.log"
    wait_until(lambda: access.read_text(), "the line")
    assert re.fullmatch(r'somebody - - .*"GET /loud HTTP/1.1" 200 5 .*\n', access.read_text())
    log = server.log()
    assert re.search(r"\[INFO\] <mine 1> Listening at", log)
    assert "<mine 1> type Mine" in log


@pytest.mark.parametrize("base", BASES)
def test_logger_class_may_set_gunicorns_handlers_anew(serve, project, base):
    project_dir = project("logger_class, accesslog = 'mylog.Mine', 'access.log'\n")
    (project_dir / "mylog.py").write_text(f"""
import logging
from {base} import CONFIG_DEFAULTS, SYSLOG_FACILITIES, Logger, loggers, parse_syslog_address

class Mine(Logger):
    def setup(self, cfg):
        super().setup(cfg)
        first = self._get_gunicorn_handler(self.error_log)
        self._set_handler(self.error_log, cfg.errorlog, logging.Formatter("MINE %(levelname)s %(message)s"))
        assert first not in self.error_log.handlers
        self._set_handler(self.access_log, None, None)
        assert self._get_gunicorn_handler(self.access_log) is None
        self._set_handler(self.access_log, cfg.accesslog, logging.Formatter("A %(message)s"))
        self.seen = [self.error_handlers, self.access_handlers, self.logfile, self.access_log_enabled]
        assert {{"gunicorn.error", "gunicorn.access"}} <= {{logger.name for logger in loggers()}}

    def exception(self, msg, *args, **kwargs):
        super().exception("failed: " + msg, *args, **kwargs)
""")
    server = serve(None, cwd=project_dir, ready=None)
    server.get("/fail")
    access = project_dir / "access.log"
    wait_until(lambda: access.read_text(), "the access line")
    assert re.fullmatch(r"A 127.0.0.1 .*\n", access.read_text())
    assert re.search(r"^MINE INFO Listening at", server.log(), re.MULTILINE)
    failed = r"^MINE ERROR failed: Error handling request GET /fail\nTraceback"
    assert len(re.findall(failed, server.log(), re.MULTILINE)) == 1
    assert "ValueError: as asked" in server.log()


def test_what_the_io_thread_says_reaches_the_logger(serve, project):
    project_dir = project("""
        from gunicorn.glogging import Logger

        class Mine(Logger):
            error_fmt = "mine [%(levelname)s] %(threadName)s %(message)s"

        logger_class = Mine
        loglevel = "debug"
    """)
    server = serve(None, cwd=project_dir, ready=None)
    with server.client() as client:
        client.send(b"NONSENSE\r\n\r\n")
        assert client.read_response().status == 400
    wait_until(lambda: "Invalid request" in server.log() or "invalid" in server.log().lower(), "the message")
    lines = [line for line in server.log().splitlines() if line]
    assert all(line.startswith("mine [") for line in lines), server.log()


@pytest.mark.parametrize("base", BASES)
def test_logs_are_opened_again_on_usr1(serve, project, base):
    project_dir = project("""
        accesslog = "access.log"
        access_log_format = "%(U)s"
        logger_class = "mylog.Mine"
    """)
    (project_dir / "mylog.py").write_text(f"from {base} import Logger\nclass Mine(Logger): pass\n")
    server = serve(None, cwd=project_dir, ready=None)
    access, moved = project_dir / "access.log", project_dir / "old.log"
    server.get("/before")
    wait_until(lambda: access.read_text(), "the first line")
    access.rename(moved)
    server.signal(signal.SIGUSR1)
    # The worker is told by the master, and opens its own.
    wait_until(lambda: [server.get("/after"), access.exists() and access.read_text()][1], "a new line")
    assert moved.read_text().startswith("/before\n")


@pytest.mark.parametrize("kind", ["ini", "json"])
def test_configuration_files(serve, project, kind):
    project_dir = project("accesslog = None\n")
    ini = """
        [loggers]
        keys=root,gunicorn.error,gunicorn.access
        [handlers]
        keys=out
        [formatters]
        keys=short
        [logger_root]
        level=WARNING
        handlers=out
        [logger_gunicorn.error]
        level=INFO
        handlers=out
        propagate=0
        qualname=gunicorn.error
        [logger_gunicorn.access]
        level=INFO
        handlers=out
        propagate=0
        qualname=gunicorn.access
        [handler_out]
        class=StreamHandler
        formatter=short
        args=(sys.stdout,)
        [formatter_short]
        format=short %(levelname)s %(name)s %(message)s
    """
    dictionary = {
        "formatters": {"generic": {"format": "short %(levelname)s %(name)s %(message)s"}},
        "root": {"level": "WARNING", "handlers": ["console"]},
    }
    (project_dir / "log.ini").write_text(textwrap.dedent(ini))
    (project_dir / "log.json").write_text(json.dumps(dictionary))
    option = ["--log-config", "log.ini"] if kind == "ini" else ["--log-config-json", "log.json"]
    server = serve(None, *option, cwd=project_dir, ready=None)
    server.get("/here")
    line = r"short INFO gunicorn.access 127.0.0.1 .*GET /here"
    wait_until(lambda: re.search(line, server.log()), "the line")
    assert re.search(r"short INFO gunicorn.error Listening at", server.log())


@pytest.mark.parametrize(
    "setting, reason",
    [
        ('logger_class = "nowhere.Logger"', "No module named 'nowhere'"),
        ('logconfig = "missing.ini"', "missing.ini"),
        ('logconfig_dict = {"handlers": {"console": {"class": "no.such.Handler"}}}', "console"),
    ],
)
def test_a_configuration_that_cannot_be_used_ends_the_start(project, setting, reason):
    project_dir = project(setting + "\n")
    code, output = run_to_end([sys.executable, "-m", "ringhorn", "-b", "127.0.0.1:0"], cwd=project_dir)
    assert code == 1, output
    assert reason in output
    name = setting.split(" ")[0]
    assert re.search(rf"^error: {name} cannot be used: \w+: ", output, re.MULTILINE), output
    assert re.search(r"^  from: .*gunicorn.conf.py.*", output, re.MULTILINE), output


@pytest.mark.parametrize("python", [False, True])
def test_capture_output(serve, project, python):
    project_dir = project(
        """
        capture_output = True
        errorlog = "error.log"
    """
        + ('    logconfig_dict = {"root": {"handlers": []}}\n' if python else "")
    )
    log = project_dir / "error.log"
    server = serve(None, cwd=project_dir, ready=None, listening_in=log)
    server.get("/print")
    wait_until(lambda: "written to standard error" in log.read_text(), "what the application wrote")
    assert "printed by the application" in log.read_text()
    moved = project_dir / "old.log"
    log.rename(moved)
    server.signal(signal.SIGUSR1)
    wait_until(log.exists, "the new file")
    address = [int(port) for port in re.findall(r"Listening at: http://127.0.0.1:(\d+)", moved.read_text())]

    def printed():
        with Client(("127.0.0.1", address[0])) as client:
            client.get("/print")
        return "printed" in log.read_text()

    wait_until(printed, "output in the new file")


def test_the_default_logger_by_its_name_is_the_servers_own(serve, project):
    project_dir = project("""
        logger_class = "gunicorn.glogging.Logger"
        accesslog = "-"
        access_log_format = "%(U)s %(s)s"
    """)
    server = serve(None, cwd=project_dir, ready=None)
    server.get("/x")
    wait_until(lambda: "/x 200\n" in server.log(), "the access line")
    worker = server.workers(1)[0]
    threads = {open(f"/proc/{worker}/task/{task}/comm").read() for task in os.listdir(f"/proc/{worker}/task")}
    assert "ringhorn-pylog\n" not in threads


def test_a_reload_changes_the_format_and_says_what_it_does_not_change(serve, project):
    text = """
        accesslog = "access.log"
        access_log_format = "%(U)s one"
        logconfig_dict = {"disable_existing_loggers": False, "loggers": {}}
    """
    project_dir = project(text)
    server = serve(None, cwd=project_dir, ready=None)
    server.get("/before")
    project(text.replace("one", "two").replace("False", "True").replace('"access.log"', '"elsewhere.log"'))
    server.signal(signal.SIGHUP)
    access = project_dir / "access.log"
    wait_until(lambda: [server.get("/after"), "/after two\n" in access.read_text()][1], "the new format")
    assert access.read_text().startswith("/before one\n")
    told = re.search(r"need a restart.*", access.read_text() + server.log())
    assert told and "logconfig_dict" in told[0] and "accesslog" in told[0]
    assert not (project_dir / "elsewhere.log").exists()


class Metrics:
    """What a statsd server is sent."""

    def __init__(self, statsd: socket.socket):
        self.statsd = statsd
        statsd.settimeout(0.01)
        self.seen: list[str] = []

    def wait_for(self, pattern: str) -> None:
        def came() -> bool:
            with contextlib.suppress(TimeoutError):
                while True:
                    self.seen.extend(self.statsd.recv(4096).decode().split("\n"))
            return any(re.fullmatch(pattern, metric) for metric in self.seen)

        wait_until(came, pattern)


@pytest.mark.parametrize("extra", ["", "logconfig_dict = {'loggers': {}}"])
def test_statsd_is_told_of_requests_workers_and_errors(serve, project, extra):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        project_dir = project(f"""
            statsd_host = "127.0.0.1:{statsd.getsockname()[1]}"
            statsd_prefix = "shop"
            dogstatsd_tags = "env:test"
            {extra}
        """)
        server = serve(None, cwd=project_dir, ready=None)
        server.get("/x")
        server.get("/fail")
        metrics = Metrics(statsd)
        has = metrics.wait_for
        has(r"shop\.gunicorn\.workers:1\|g\|#env:test")
        has(r"shop\.gunicorn\.request\.status\.500:1\|c\|@1\.0\|#env:test")
        has(r"shop\.gunicorn\.request\.status\.200:1\|c\|@1\.0\|#env:test")
        has(r"shop\.gunicorn\.request\.duration:\d+\.\d+\|ms\|#env:test")
        assert sum(metric.startswith("shop.gunicorn.requests:1|c") for metric in metrics.seen) == 2
        has(r"shop\.gunicorn\.log\.error:1\|c\|@1\.0\|#env:test")


@pytest.mark.parametrize("base", ["gunicorn.instrument.statsd", "ringhorn._shim.gunicorn.instrument.statsd"])
def test_a_logger_class_that_derives_from_statsd_sends_the_metrics(serve, project, base):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        project_dir = project(f"""
            statsd_host = "127.0.0.1:{statsd.getsockname()[1]}"
            statsd_prefix = "shop"
            dogstatsd_tags = "env:test"
            enable_backlog_metric = True
            logger_class = "mylog.Mine"

            def post_request(worker, req, environ, resp):
                worker.log.info("measured", extra={{"metric": "mine", "value": 3, "mtype": "gauge"}})
        """)
        (project_dir / "mylog.py").write_text(f"""
from {base} import Statsd

class Mine(Statsd):
    def access(self, resp, req, environ, request_time):
        super().access(resp, req, environ, request_time)
        self.increment("asked" + environ["PATH_INFO"].replace("/", "."), 1)
""")
        server = serve(None, cwd=project_dir, ready=None)
        server.get("/x")
        server.get("/fail")
        metrics = Metrics(statsd)
        has = metrics.wait_for
        has(r"shop\.asked\.x:1\|c\|@1\.0\|#env:test")
        has(r"shop\.asked\.fail:1\|c\|@1\.0\|#env:test")
        has(r"shop\.mine:3\|g\|#env:test")
        has(r"shop\.gunicorn\.workers:1\|g\|#env:test")
        has(r"shop\.gunicorn\.backlog:\d+\|h\|#env:test")
        has(r"shop\.gunicorn\.request\.status\.200:1\|c\|@1\.0\|#env:test")
        has(r"shop\.gunicorn\.request\.status\.500:1\|c\|@1\.0\|#env:test")
        has(r"shop\.gunicorn\.request\.duration:[\d.]+\|ms\|#env:test")
        has(r"shop\.gunicorn\.log\.exception:1\|c\|@1\.0\|#env:test")
        assert sum(metric.startswith("shop.gunicorn.requests:1|c") for metric in metrics.seen) == 2


def syslog_messages(server, daemon, wanted):
    """What `daemon`, a datagram socket, receives until every pattern of `wanted` was seen."""
    seen = []

    def look():
        with contextlib.suppress(TimeoutError):
            while True:
                seen.append(daemon.recv(4096).rstrip(b"\0").decode())
        return all(any(re.search(pattern, text) for text in seen) for pattern in wanted)

    wait_until(look, f"syslog messages {wanted}")
    return seen


def test_syslog_has_both_logs_with_prefix_and_facility(serve, project):
    project_dir = project()
    path = project_dir / "log.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        daemon.settimeout(0.01)
        options = ["--log-syslog", "--log-syslog-to", f"unix://{path}", "--log-syslog-facility", "local3"]
        server = serve(None, *options, "--log-syslog-prefix", "100%shop", cwd=project_dir, ready=None)
        server.get("/x")
        pid = server.process.pid
        # 19 is local3; 6 is info: 19 * 8 + 6.
        syslog_messages(
            server,
            daemon,
            [
                rf"<158>gunicorn\.100%shop\.error: \[{pid}\] Listening at: ",
                r'<158>gunicorn\.100%shop\.access: \[\d+\] 127\.0\.0\.1 - - \[.*\] "GET /x HTTP/1.1" 200 5 ',
            ],
        )
        # The other logs stay.
        assert f"[{pid}] [INFO] Listening at: " in server.log()


def test_syslog_may_go_without_the_access_log(serve, project):
    project_dir = project()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        daemon.settimeout(0.01)
        to = f"udp://127.0.0.1:{daemon.getsockname()[1]}"
        options = ["--log-syslog", "--log-syslog-to", to, "--disable-redirect-access-to-syslog", "-n", "shop"]
        server = serve(None, *options, cwd=project_dir, ready=None)
        server.get("/x")
        # Whoever failed later than the first request is told of later than its access line would be.
        server.get("/fail")
        wanted = [r"<11>gunicorn\.shop\.error: \[\d+\] Error handling request GET /fail\nTraceback"]
        seen = syslog_messages(server, daemon, wanted)
        assert not any("gunicorn.shop.access" in text for text in seen)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("udp://localhost:514", (socket.SOCK_DGRAM, ("localhost", 514))),
        ("tcp://[::1]:601", (socket.SOCK_STREAM, ("::1", 601))),
        ("udp://logs", (socket.SOCK_DGRAM, ("logs", 514))),
        ("unix:///dev/log", (None, "/dev/log")),
        ("unix:///dev/log#stream", (socket.SOCK_STREAM, "/dev/log")),
        ("localhost:514", "starts with none"),
        ("unix:///dev/log#other", "neither dgram nor stream"),
    ],
)
def test_addresses_of_syslog(text, wanted):
    from ringhorn._logger import parse_syslog_address

    if isinstance(wanted, str):
        with pytest.raises(RuntimeError, match=wanted):
            parse_syslog_address(text)
    else:
        assert parse_syslog_address(text) == wanted
