"""Python's logging as the log, when its handlers are slow or its settings change."""

import signal

import pytest

from harness import Client, wait_until

pytestmark = pytest.mark.ringhorn_only

HANDLER = """
import logging, os, time


class Slow(logging.StreamHandler):
    # Takes the first refusal, and returns when the file is there.
    def emit(self, record):
        while "Invalid request" in record.getMessage() and not os.path.exists("go"):
            time.sleep(0.01)
        super().emit(record)
"""

CONFIG = """
import sys
sys.path.insert(0, ".")
wsgi_app = "app:app"
workers = 1
threads = 4
logconfig_dict = {
    "formatters": {"generic": {"format": "[%(levelname)s] %(message)s"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "generic"},
        "error_console": {"class": "handler.Slow", "formatter": "generic"},
    },
}
"""

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_what_a_slow_handler_has_no_room_for_is_counted_and_requests_go_on(serve, tmp_path):
    """1024 messages of the I/O thread wait for Python; the handler has the first."""
    (tmp_path / "handler.py").write_text(HANDLER)
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    server = serve(None, cwd=tmp_path, ready=None)
    refused = 1500
    for _ in range(refused):
        with Client(server.address) as client:
            client.send(b"NONSENSE\r\n\r\n")
            assert client.read_response().status == 400
    assert server.get("/").status == 200
    (tmp_path / "go").touch()
    wait_until(lambda: "messages were lost: the log was too slow" in server.log(), "the count")
    log = server.log()
    lost = int(log.partition(" messages were lost")[0].rsplit(" ", 1)[1])
    assert lost > 0
    assert log.count("Invalid request from ip=127.0.0.1") + lost >= refused


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("statsd_host = '127.0.0.1:8125'", "statsd_host = '127.0.0.1:8126'", "statsd_host"),
        ("", "syslog = True", "syslog"),
        ("errorlog = '-'", "errorlog = 'other.log'", "errorlog"),
    ],
)
def test_a_reload_tells_which_log_settings_stay(serve, tmp_path, before, after, name):
    (tmp_path / "app.py").write_text(APP)
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(f"wsgi_app = 'app:app'\nworkers = 1\n{before}\n")
    server = serve(None, cwd=tmp_path, ready=None)
    config.write_text(f"wsgi_app = 'app:app'\nworkers = 1\n{after}\n")
    server.signal(signal.SIGHUP)
    expected = f"changed settings that need a restart, and stay as they were: {name}"
    wait_until(lambda: expected in server.log(), "the warning")
    assert server.get("/").status == 200
