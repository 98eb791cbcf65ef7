"""wsgi.early_hints: interim responses (RFC 8297) with gunicorn's bytes, and what must not come of them."""

import sys

import pytest

import harness
from harness import Client, Server, request


@pytest.fixture(scope="module")
def site(serve_module) -> Server:
    return serve_module("hinted:app", "--workers", "1", "--threads", "4")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    log = tmp_path_factory.mktemp("gunicorn") / "log"
    command = [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "4", "--no-control-socket"]
    with harness.serving(lambda *args: Server(command, args, log=log)) as start:
        yield start("hinted:app")


def interims(server: Server, target: str, version: str = "HTTP/1.1") -> tuple[bytes, int]:
    """All that comes before the final response, and the status of that one."""
    with server.client() as client:
        client.send(request("GET", target, "Connection: close", version=version))
        data = client.read_to_end()
    before = b""
    while data.startswith(b"HTTP/1.1 103 "):
        head, end, data = data.partition(b"\r\n\r\n")
        before += head + end
    return before, int(data.split(b" ")[1])


PATHS = ["/one", "/several", "/listed", "/none", "/late", "/started", "/bad-name", "/bad-value", "/plain"]


@pytest.mark.ringhorn_only
@pytest.mark.parametrize("path", PATHS)
def test_the_bytes_are_gunicorns(site, theirs, path):
    assert interims(site, path) == interims(theirs, path)


@pytest.mark.ringhorn_only
@pytest.mark.parametrize("path", PATHS)
def test_a_client_of_http_1_0_gets_none(site, theirs, path):
    ours = interims(site, path, "HTTP/1.0")
    assert ours == interims(theirs, path, "HTTP/1.0")
    assert ours[0] == b""


def test_hints_come_before_the_answer_and_leave_the_connection_usable(site):
    with site.client() as client:
        for _ in range(3):
            first = client.get("/several")
            assert (first.status, first.reason) == (103, "Early Hints")
            assert first.all("link") == ["</style.css>; rel=preload; as=style", "</script.js>; rel=preload"]
            assert client.read_response().field("x-second") == "b"
            assert (final := client.read_response()).status == 200
            assert final.body == b"ok"


@pytest.mark.ringhorn_only
def test_the_callable_of_an_earlier_request_speaks_to_nobody(site):
    assert interims(site, "/keep") == (b"", 200)
    assert interims(site, "/use-kept") == (b"", 200)
    # The next requests have one that works.
    assert interims(site, "/one")[0].startswith(b"HTTP/1.1 103 Early Hints\r\nLink: ")


def test_a_client_that_does_not_read_its_hints_gets_all_of_them_later(site):
    """2 MB of hints: more than the sockets hold."""
    with Client(site.address, receive_buffer=4096) as client:
        client.send(request("GET", "/many"))
        assert site.get("/plain").status == 200, "others are served meanwhile"
        for _ in range(2000):
            assert client.read_response().status == 103
        assert client.read_response().body == b"ok"
