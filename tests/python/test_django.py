"""The example Django project, end to end, through the two clients that people use from Python."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import requests

from harness import ROOT, Server, clean_environment

EXAMPLE = ROOT / "examples" / "django"


@pytest.fixture(scope="module")
def site(serve_module, tmp_path_factory) -> Server:
    """Two workers on an empty database: they race for its first migration."""
    env = {"DJANGO_DB": str(tmp_path_factory.mktemp("db") / "demo.sqlite3"), "DEMO": "1"}
    return serve_module("mysite.wsgi", "--workers", "2", "--threads", "4", cwd=EXAMPLE, env=env)


@pytest.fixture(params=["requests", "httpx"])
def browser(request: pytest.FixtureRequest, site: Server) -> Iterator[Browser]:
    """A client with cookies that keeps its connection, like a browser with one tab."""
    with (
        requests.Session() if request.param == "requests" else httpx.Client(follow_redirects=True)
    ) as session:
        yield Browser(session, site.url)


class Browser:
    """What `requests` and `httpx` have in common, for one site."""

    def __init__(self, session: requests.Session | httpx.Client, url: str):
        self.session = session
        self.url = url

    def get(self, path: str, **options):
        return self.session.get(self.url + path, timeout=20, **options)

    def post(self, path: str, **options):
        return self.session.post(self.url + path, timeout=20, **options)

    def raw(self, body: bytes) -> dict:
        """The option that sends `body` as it is; the two clients name it differently."""
        return {"content" if isinstance(self.session, httpx.Client) else "data": body}

    def submit(self, path: str, **fields: str):
        """Fill in the form of a page and send it with the token that the page holds, as a browser does."""
        page = self.get(path)
        assert page.status_code == 200
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
        return self.post(
            path, data=fields | {"csrfmiddlewaretoken": token[1]}, headers={"Referer": self.url + path}
        )

    def connections(self) -> int:
        """How many connections were opened so far."""
        if isinstance(self.session, httpx.Client):
            return len(self.session._transport._pool.connections)
        pools = self.session.get_adapter(self.url).poolmanager.pools
        return sum(pools[key].num_connections for key in pools.keys())

    def log_in(self):
        return self.submit("/admin/login/?next=/admin/", username="admin", password="admin")


def test_pages_and_their_style(browser):
    page = browser.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    style = re.search(r'href="(/static/\S+\.css)"', page.text)
    sheet = browser.get(style[1])
    assert sheet.status_code == 200
    assert sheet.headers["content-type"].startswith("text/css")
    assert sheet.text == (EXAMPLE / "guestbook" / style[1].lstrip("/")).read_text()
    assert browser.get("/no-such-page").status_code == 404
    assert browser.connections() == 1


def test_static_files_are_not_sent_again_when_they_have_not_changed(browser):
    first = browser.get("/static/admin/css/base.css")
    again = browser.get(
        "/static/admin/css/base.css", headers={"If-Modified-Since": first.headers["last-modified"]}
    )
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert browser.get("/api/hello").status_code == 200
    assert browser.connections() == 1


def test_signing_the_guestbook(browser):
    """A form with its token, a redirect, and the entry on the page, escaped, and in the JSON."""
    mark = hex(random.getrandbits(64))
    page = browser.submit("/", name="Zo\u00eb <b>", message=f"caf\u00e9 & {mark}")
    assert page.status_code == 200
    assert page.url == browser.url + "/"
    assert f"caf\u00e9 &amp; {mark}" in page.text and "Zo\u00eb &lt;b&gt;" in page.text
    newest = browser.get("/api/entries").json()["entries"]
    assert {"Zo\u00eb <b>"} == {entry["name"] for entry in newest if mark in entry["message"]}
    assert browser.connections() == 1


def test_a_form_that_is_not_filled_in_comes_back(browser):
    page = browser.submit("/", name="", message="")
    assert page.status_code == 422
    assert "This field is required" in page.text


def test_a_form_without_its_token_is_refused(browser):
    assert browser.post("/", data={"name": "a", "message": "b"}).status_code == 403


def test_admin_login_and_work(browser):
    """Login needs the cookie and the token; then an entry is made, found and deleted."""
    assert "Log in" in browser.get("/admin/").text
    home = browser.log_in()
    assert home.status_code == 200
    assert "Site administration" in home.text
    mark = hex(random.getrandbits(64))
    listed = browser.submit("/admin/guestbook/entry/add/", name="by the admin", message=mark)
    assert "was added successfully" in listed.text
    found = browser.get(f"/admin/guestbook/entry/?q={mark}")
    number = re.search(r"/admin/guestbook/entry/(\d+)/change/", found.text)[1]
    assert (
        "was deleted successfully"
        in browser.submit(f"/admin/guestbook/entry/{number}/delete/", post="yes").text
    )
    assert browser.connections() == 1


def test_a_wrong_password_is_refused(browser):
    page = browser.submit("/admin/login/?next=/admin/", username="admin", password="wrong")
    assert page.status_code == 200
    assert "Please enter the correct username and password" in page.text


def test_the_files_of_the_admin(browser):
    page = browser.get("/admin/login/")
    files = re.findall(r'(?:href|src)="(/static/admin/[^"]+)"', page.text)
    assert len(files) >= 4
    for file in files:
        assert browser.get(file).status_code == 200, file
    assert browser.connections() == 1


def test_a_5_mb_upload(browser):
    body = random.Random(5).randbytes(5_000_000)
    expected = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    assert browser.post("/upload", files={"file": ("name.bin", body)}).json() == expected
    assert browser.post("/upload", **browser.raw(body)).json() == expected
    assert browser.post("/upload", files={"other": ("name.bin", b"")}).status_code == 400
    assert browser.connections() == 1


def test_a_streamed_response_comes_line_by_line(site):
    """The first line is here while the last is far from being made."""
    with requests.get(site.url + "/stream?count=1000&ms=1000", stream=True, timeout=20) as answer:
        assert next(answer.iter_lines()) == b"line 0"
    with httpx.stream("GET", site.url + "/stream?count=1000&ms=1000", timeout=20) as answer:
        assert next(answer.iter_lines()) == "line 0"


def test_a_whole_stream(browser):
    page = browser.get("/stream?count=200&ms=0")
    assert page.text == "".join(f"line {number}\n" for number in range(200))
    assert browser.get("/api/hello").json()["message"] == "hello"
    assert browser.connections() == 1


def test_head_and_conditional_requests_keep_the_connection(browser):
    for path in ("/", "/upload", "/static/admin/css/base.css"):
        answer = browser.session.head(browser.url + path, timeout=20)
        assert (answer.status_code, answer.content) == (200, b"")
    assert browser.connections() == 1


def test_a_method_that_is_not_allowed(browser):
    answer = browser.session.options(browser.url + "/api/hello", timeout=20)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_a_host_that_is_not_ours_is_refused(site):
    assert site.ask(b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").status == 400


def test_many_visitors_at_once(site):
    """Readers and writers, on both workers and one SQLite file, without an error."""

    def visit(number: int) -> None:
        with requests.Session() as session:
            visitor = Browser(session, site.url)
            assert visitor.submit("/", name=f"visitor {number}", message="was here").status_code == 200
            assert visitor.get("/sleep?ms=20").json() == {"slept_ms": 20}
            assert visitor.get("/api/entries").status_code == 200

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(visit, range(48)))
    assert "Traceback" not in site.log()


def test_the_first_start_makes_the_database_once(site):
    assert site.log().count("made the user admin") == 1


def test_curl(site, tmp_path):
    """The commands of the README, with the client that nobody can do without."""

    def curl(*args: str) -> bytes:
        command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "20", *args]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, env=clean_environment()).stdout

    body = random.Random(6).randbytes(5_000_000)
    file = tmp_path / "file"
    file.write_bytes(body)
    digest = hashlib.sha256(body).hexdigest().encode()
    assert b"Guestbook" in curl(site.url + "/")
    assert b"hello" in curl(site.url + "/api/hello", "--http1.0")
    assert digest in curl("--form", f"file=@{file}", site.url + "/upload")
    assert digest in curl("--upload-file", str(file), site.url + "/upload")
    assert curl("--no-buffer", site.url + "/stream?count=3&ms=1") == b"line 0\nline 1\nline 2\n"


def test_manage_py_finds_nothing_to_complain_about(tmp_path):
    env = clean_environment({"DJANGO_DB": str(tmp_path / "db")})
    for command in (["check"], ["makemigrations", "--check", "--dry-run"]):
        done = subprocess.run(
            [sys.executable, "manage.py", *command], cwd=EXAMPLE, env=env, capture_output=True
        )
        assert done.returncode == 0, done
