"""`ringhorn.django`: runserver and ringhorn as commands of a Django project, and the system checks."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import harness
from harness import Server, clean_environment, wait_until

pytestmark = pytest.mark.ringhorn_only

MANAGE = """\
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""

SETTINGS = """\
from pathlib import Path
HERE = Path(__file__).parent
DEBUG = True
SECRET_KEY = "only-for-tests"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["ringhorn.django", "django.contrib.staticfiles"]
ROOT_URLCONF = "site_urls"
STATIC_URL = "/static/"
STATICFILES_DIRS = [HERE / "assets"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [HERE / "pages"]}]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": HERE / "db.sqlite3"}}
"""

URLS = """\
import os
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import path
def code(request):
    return HttpResponse("first code")
def fails(request):
    raise RuntimeError("on purpose")
def scheme(request):
    return HttpResponse(request.scheme)
urlpatterns = [
    path("", code), path("page", lambda request: render(request, "page.txt")), path("fails", fails),
    path("scheme", scheme), path("pid", lambda request: HttpResponse(os.getppid())),
]
"""


class Project:
    """A small Django project in a directory of its own."""

    def __init__(self, directory: Path):
        self.directory = directory
        for name, text in {
            "manage.py": MANAGE,
            "site_settings.py": SETTINGS,
            "site_urls.py": URLS,
            "pages/page.txt": "first page\n",
            "assets/style.css": "body {}\n",
        }.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def settings(self, text: str) -> None:
        with (self.directory / "site_settings.py").open("a") as file:
            file.write(text)

    def manage(self, *args: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        command = [sys.executable, str(self.directory / "manage.py")]
        return harness.run_to_end(command, *args, cwd=self.directory, env=env)


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def runserver(project: Project, log: Path, *args: str, env: dict[str, str] | None = None) -> Server:
    """`manage.py runserver` at a free port."""
    # The harness puts `--bind ADDRESS` behind the command: `sh` swallows that.
    shell = ["sh", "-c", 'shift 2; exec "$@"', "runserver"]
    manage = [sys.executable, str(project.directory / "manage.py"), "runserver", "127.0.0.1:0", *args]
    return Server(shell, ["--bind", "here", *manage], log=log, cwd=project.directory, env=env)


@pytest.fixture
def develop(project, tmp_path_factory) -> Iterator[Callable[..., Server]]:
    log = tmp_path_factory.mktemp("log") / "log"
    with harness.serving(lambda *args, **options: runserver(project, log, *args, **options)) as keep:
        yield keep


def wait_for_text(site: Server, target: str, text: bytes) -> None:
    wait_until(lambda: site.get(target, "Connection: close").body == text, f"{text!r} at {target}")


def test_runserver_greets_as_django_does_and_ends_at_ctrl_c(develop):
    site = develop()
    assert site.get("/").body == b"first code"
    said = site.log()
    assert "Performing system checks..." in said
    assert "System check identified no issues" in said
    assert "using settings 'site_settings'" in said
    assert "Quit the server with CONTROL-C." in said
    os.killpg(site.process.pid, signal.SIGINT)
    assert site.wait() == 0
    assert "Traceback" not in site.log()


def test_runserver_serves_static_files_and_says_so_when_not(develop):
    site = develop()
    answer = site.get("/static/style.css")
    assert (answer.status, answer.body) == (200, b"body {}\n")
    assert answer.field("content-type").startswith("text/css")
    assert site.get("/static/none.css").status == 404
    assert develop("--nostatic").get("/static/style.css").status == 404


def test_insecure_serves_static_files_without_debug(project, develop):
    project.settings("DEBUG = False\n")
    assert develop().get("/static/style.css").status == 404
    assert develop("--insecure").get("/static/style.css").status == 200


def test_code_and_templates_that_change_are_served_at_once(project, develop):
    site = develop()
    wait_for_text(site, "/page", b"first page\n")
    (project.directory / "site_urls.py").write_text(URLS.replace("first code", "second code"))
    wait_for_text(site, "/", b"second code")
    (project.directory / "pages" / "page.txt").write_text("second page\n")
    wait_for_text(site, "/page", b"second page\n")
    master = site.get("/pid").body
    assert master == str(site.process.pid).encode(), "the server is the process that was started"


def test_code_that_is_broken_leaves_the_old_code(project, develop):
    site = develop()
    (project.directory / "site_settings.py").write_text(SETTINGS + "this is no Python\n")
    wait_until(lambda: "SyntaxError" in site.log(), "the error in the log")
    assert site.get("/").body == b"first code"
    (project.directory / "site_settings.py").write_text(SETTINGS)
    (project.directory / "site_urls.py").write_text(URLS.replace("first code", "mended code"))
    wait_for_text(site, "/", b"mended code")


def test_views_that_are_broken_leave_the_old_code(project, develop):
    """Django imports them at the first request; then it would be too late."""
    site = develop()
    urls = project.directory / "site_urls.py"
    urls.write_text(URLS + "this is no Python\n")
    wait_until(lambda: "the reload is dropped" in site.log(), "the broken views to be refused")
    assert "SyntaxError" in site.log() and site.get("/").body == b"first code"
    # What a system check finds.
    urls.write_text(URLS + "handler404 = 'site_urls.none'\n")
    wait_until(lambda: "urls.E008" in site.log(), "the check")
    assert site.get("/").body == b"first code"
    urls.write_text(URLS.replace("first code", "mended code"))
    wait_for_text(site, "/", b"mended code")


def test_checks_can_be_skipped(project, develop):
    (project.directory / "site_urls.py").write_text(URLS + "handler404 = 'site_urls.none'\n")
    site = develop("--skip-checks")
    assert site.get("/").body == b"first code"


def test_noreload_and_nothreading(project, develop):
    site = develop("--noreload", "--nothreading")
    (worker,) = site.workers(1)
    names = [path.read_text().strip() for path in Path(f"/proc/{worker}/task").glob("*/comm")]
    assert "ringhorn-reload"[:15] not in names


def test_a_line_for_each_request_as_django_writes_it(develop):
    site = develop()
    site.get("/")
    site.get("/none?a=1")
    site.get("/fails")
    plain = re.compile(r'\[\d\d/\w{3}/\d{4} \d\d:\d\d:\d\d\] "GET (\S+) HTTP/1.1" (\d{3}) (\d+)')

    def lines() -> dict[str, str]:
        return {found[1]: found[2] for found in plain.finditer(site.log())}

    wait_until(lambda: "/fails" in lines(), "the lines")
    assert (lines()["/"], lines()["/none?a=1"], lines()["/fails"]) == ("200", "404", "500")
    assert '"GET / HTTP/1.1" 200 10' in site.log()


def test_the_lines_are_coloured_in_a_terminal(project):
    terminal, inside = pty.openpty()
    command = [sys.executable, "manage.py", "runserver", "127.0.0.1:0"]
    env = clean_environment({"TERM": "xterm"})
    env.pop("DJANGO_COLORS", None)
    process = subprocess.Popen(
        command,
        cwd=project.directory,
        env=env,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    said = b""

    def shows(pattern: bytes) -> re.Match[bytes] | None:
        nonlocal said
        while select.select([terminal], [], [], 0)[0]:
            said += os.read(terminal, 65536)
        return re.search(pattern, said)

    try:
        wait_until(lambda: shows(rb"Listening at: http://127.0.0.1:(\d+)"), "the address")
        port = int(shows(rb"Listening at: http://127.0.0.1:(\d+)")[1])
        with harness.Client(("127.0.0.1", port)) as client:
            assert client.get("/none").status == 404
        wait_until(lambda: shows(rb'\x1b\[[0-9;]+m"GET /none HTTP/1.1" 404'), "a coloured line")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(harness.PATIENCE) == 0, said
        os.close(terminal)


def test_a_config_file_is_for_production(project, develop):
    (project.directory / "gunicorn.conf.py").write_text("raise RuntimeError('read')\n")
    assert develop().get("/").status == 200


@pytest.fixture
def produce(project, tmp_path_factory) -> Iterator[Callable[..., Server]]:
    log = tmp_path_factory.mktemp("log") / "log"
    command = [sys.executable, str(project.directory / "manage.py"), "ringhorn"]
    with harness.serving(
        lambda *args, **options: Server(command, args, log=log, cwd=log.parent, **options)
    ) as keep:
        yield keep


def test_ringhorn_serves_the_project_with_its_own_options(project, produce):
    project.settings("DEBUG = False\n")
    site = produce("--workers", "2", "--threads", "3", "--settings", "site_settings")
    assert len(site.workers(2)) == 2
    assert site.get("/").body == b"first code"
    assert site.get("/static/style.css").status == 404, "static files are the proxy's, or WhiteNoise's"
    assert site.get("/scheme", "X-Forwarded-Proto: https").body == b"https"
    assert "WARNING" not in site.log()
    (project.directory / "site_urls.py").write_text(URLS.replace("first code", "second code"))
    site.signal(signal.SIGHUP)
    wait_for_text(site, "/", b"second code")


def test_ringhorn_serves_what_wsgi_application_names(project, produce):
    project.settings("DEBUG = False\nWSGI_APPLICATION = 'own.wsgi.main'\n")
    (project.directory / "own").mkdir()
    (project.directory / "own" / "wsgi.py").write_text(
        "def main(environ, start):\n    start('200 OK', [('Content-Length', '3')])\n    return [b'own']\n"
    )
    assert produce("-w", "1").get("/").body == b"own"


def test_ringhorn_warns_and_serves_with_debug(produce):
    site = produce("-w", "1")
    assert "ringhorn.W002" in site.log()


def test_wrong_options_are_the_servers_to_refuse(project):
    code, said = project.manage("ringhorn", "--wokers", "2")
    assert code == 2 and "--workers" in said


def deploy_ids(project: Project, env: dict[str, str] | None = None) -> set[str]:
    code, said = project.manage("check", "--deploy", "--tag", "ringhorn", env=env)
    assert code == 0, said
    return set(re.findall(r"ringhorn\.W\d+", said))


def test_nothing_to_complain_about(project):
    project.settings("DEBUG = False\n")
    assert deploy_ids(project) == set()


@pytest.mark.parametrize(
    ("settings", "config", "expected"),
    [
        ("", "", {"ringhorn.W002"}),
        (
            "DEBUG = False\nSECURE_PROXY_SSL_HEADER = ('HTTP_X_SCHEME', 'https')\n",
            "",
            {"ringhorn.W003", "ringhorn.W005"},
        ),
        (
            "DEBUG = False\nSECURE_PROXY_SSL_HEADER = ('HTTP_X_SCHEME', 'https')\n",
            "secure_scheme_headers = {'X-SCHEME': 'https'}\nforwarded_allow_ips = '*'\n",
            {"ringhorn.W004"},
        ),
        ("DEBUG = False\nDATABASES['default'].update(CONN_MAX_AGE=60)\n", "", set()),
        (
            "DEBUG = False\n"
            "DATABASES['other'] = {'ENGINE': 'django.db.backends.postgresql', 'CONN_MAX_AGE': None}\n",
            "workers = 3\nthreads = 7\n",
            {"ringhorn.W006"},
        ),
    ],
)
def test_settings_that_do_not_go_together(project, settings, config, expected):
    project.settings(settings)
    (project.directory / "gunicorn.conf.py").write_text(config)
    assert deploy_ids(project) == expected


def test_the_count_of_connections_is_told(project):
    project.settings("DATABASES['other'] = {'ENGINE': 'django.db.backends.mysql', 'CONN_MAX_AGE': 5}\n")
    (project.directory / "ringhorn.conf.py").write_text("workers = 3\nthreads = 7\n")
    assert "3 x 7 = 21 connections" in project.manage("check", "--deploy", "--tag", "ringhorn")[1]


def test_the_wrong_order_of_applications(project):
    project.settings("INSTALLED_APPS.reverse()\n")
    assert "ringhorn.W001" in project.manage("check")[1]


def test_ringhorn_itself_needs_no_django():
    code = "import sys; sys.modules['django'] = None; import ringhorn.__main__, ringhorn.django"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=clean_environment(), timeout=harness.PATIENCE
    )
