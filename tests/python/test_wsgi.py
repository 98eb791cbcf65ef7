"""PEP 3333, rule by rule, as an application and its clients see it."""

import base64
import io
import json
import os
import signal
from pathlib import Path

import pytest

from harness import APPS, Client, CutOff, Response, Server, chunked, request, wait_until

PIECES = b"alpha beta gamma\n"


@pytest.fixture(scope="module")
def site(serve_module) -> Server:
    """One process, so that the application's memory can be asked for; several threads, as by default."""
    return serve_module("pep3333:app", "--workers", "1", "--threads", "4")


@pytest.fixture
def key(request) -> str:
    """A name under which the application remembers what happened in this test."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


def events(server: Server, key: str) -> list[str]:
    return server.get(f"/events/{key}").json()


def environ(server: Server, data: bytes) -> dict[str, str]:
    return server.ask(data).json()["environ"]


def assert_usable(client: Client) -> None:
    """Nothing was sent too much and nothing too little: the connection answers another request."""
    again = client.get("/plain")
    assert (again.status, again.body) == (200, b"plain\n")


def assert_500(server: Server, answer: Response) -> None:
    assert answer.status == 500
    assert b"Traceback" not in answer.body
    assert server.get("/plain").status == 200


# --- environ


def test_environ_has_what_pep_3333_requires(site):
    told = site.get("/environ/a?b=c").json()
    environ, types = told["environ"], told["types"]
    assert all(told["wsgi"].values()), told["wsgi"]
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["PATH_INFO"] == "/environ/a"
    assert environ["QUERY_STRING"] == "b=c"
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.version"] == "(1, 0)"
    assert environ["wsgi.multithread"] == "True"
    assert environ["wsgi.multiprocess"] == "False"
    assert environ["wsgi.run_once"] == "False"
    assert types["wsgi.version"] == "tuple"
    for name in ("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once"):
        assert types[name] == "bool"
    for name in environ:
        assert "." in name or types[name] == "str", f"{name} is a {types[name]}"


def test_environ_has_gunicorns_additions(site):
    told = site.get("/environ/%41?x=%41").json()["environ"]
    assert told["wsgi.input_terminated"] == "True"
    assert told["RAW_URI"] == "/environ/%41?x=%41"
    assert told["SERVER_SOFTWARE"].split("/")[0] in ("ringhorn", "gunicorn")


def test_server_and_remote_are_the_two_ends_of_the_connection(site):
    with site.client() as client:
        here = client.socket.getsockname()
        told = client.get("/environ").json()["environ"]
    assert (told["SERVER_NAME"], told["SERVER_PORT"]) == ("127.0.0.1", str(site.port))
    assert (told["REMOTE_ADDR"], told["REMOTE_PORT"]) == ("127.0.0.1", str(here[1]))


def test_server_name_is_not_taken_from_host(site):
    told = environ(site, b"GET /environ HTTP/1.1\r\nHost: example.com:99\r\n\r\n")
    assert (told["SERVER_NAME"], told["SERVER_PORT"]) == ("127.0.0.1", str(site.port))
    assert told["HTTP_HOST"] == "example.com:99"


def test_unix_socket_environ(serve, tmp_path):
    site = serve("pep3333:app", "--workers", "1", "--bind", f"unix:{tmp_path}/s")
    told = environ(site, b"GET /environ HTTP/1.1\r\nHost: example.com:99\r\n\r\n")
    assert told["REMOTE_ADDR"] == ""
    assert "REMOTE_PORT" not in told
    assert (told["SERVER_NAME"], told["SERVER_PORT"]) == ("example.com", "99")


def test_path_is_decoded_to_latin_1_and_kept_apart_from_the_raw_uri(site):
    target = "/environ//caf%C3%A9%2Fb%20c%3F/../d;e=1"
    told = environ(site, request("GET", target + "?q=%C3%A9&r=a+b"))
    assert told["PATH_INFO"] == "/environ//caf\xc3\xa9/b c?/../d;e=1"
    assert told["QUERY_STRING"] == "q=%C3%A9&r=a+b"
    assert told["RAW_URI"] == target + "?q=%C3%A9&r=a+b"


def test_empty_query_and_question_mark_in_the_query(site):
    assert environ(site, request("GET", "/environ"))["QUERY_STRING"] == ""
    assert environ(site, request("GET", "/environ?"))["QUERY_STRING"] == ""
    assert environ(site, request("GET", "/environ?a?b"))["QUERY_STRING"] == "a?b"


def test_absolute_form_is_reduced_to_its_path(site):
    assert environ(site, request("GET", "http://localhost/environ?x=1"))["PATH_INFO"] == "/environ"


def test_content_type_and_length_only_when_sent(site):
    told = environ(site, request("GET", "/environ"))
    assert "CONTENT_TYPE" not in told and "CONTENT_LENGTH" not in told
    told = environ(site, request("POST", "/environ", "Content-Type: a/b; c=d", body=b"12345"))
    assert told["CONTENT_TYPE"] == "a/b; c=d"
    assert told["CONTENT_LENGTH"] == "5"
    assert "HTTP_CONTENT_TYPE" not in told and "HTTP_CONTENT_LENGTH" not in told


@pytest.mark.oracle_differs("gunicorn gives no length, and Django then reads nothing")
def test_a_chunked_request_that_was_read_whole_has_its_length(site):
    told = environ(site, chunked("/environ", [b"he", b"llo"]))
    assert told["CONTENT_LENGTH"] == "5"
    assert told["wsgi.input_terminated"] == "True"


def test_header_fields(site):
    told = environ(
        site,
        request(
            "GET", "/environ", "X-Spaces: \t a  b \t", "x-CASE: kept As Is", "X-Empty:", "X-Latin: caf\xe9"
        ),
    )
    assert told["HTTP_X_SPACES"] == "a  b"
    assert told["HTTP_X_CASE"] == "kept As Is"
    assert told["HTTP_X_EMPTY"] == ""
    assert told["HTTP_X_LATIN"] == "caf\xe9"


def test_repeated_fields_are_joined_in_order(site):
    told = environ(site, request("GET", "/environ", "X-A: 1", "X-B: between", "x-a: 2", "X-A: 3"))
    assert told["HTTP_X_A"] == "1,2,3"


def test_a_name_with_an_underscore_cannot_pose_as_another(site):
    told = environ(site, request("GET", "/environ", "X-User: real", "X_User: forged", "Only_Forged: yes"))
    assert told["HTTP_X_USER"] == "real"
    assert "HTTP_ONLY_FORGED" not in told


@pytest.mark.oracle_differs("gunicorn passes the field on")
def test_a_proxy_header_does_not_reach_the_application(site):
    """httpoxy: libraries that take the environ for the process's environment would use the attacker's proxy."""
    assert "HTTP_PROXY" not in environ(site, request("GET", "/environ", "Proxy: evil"))


def test_http_1_0_is_told(site):
    assert environ(site, request("GET", "/environ", version="HTTP/1.0"))["SERVER_PROTOCOL"] == "HTTP/1.0"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"])
def test_methods_reach_the_application(site, method):
    assert environ(site, request(method, "/environ"))["REQUEST_METHOD"] == method


@pytest.mark.oracle_differs("gunicorn reads the environ again after the call")
def test_changes_to_the_environ_stay_in_their_request(site):
    with site.client() as client:
        assert client.get("/mutate").body == b"mutated"
        assert "HTTP_X_LEFT_BEHIND" not in client.get("/environ").json()["environ"]


def test_several_workers_are_told(serve):
    site = serve("pep3333:app", "--workers", "2", "--threads", "1")
    assert site.get("/environ").json()["environ"]["wsgi.multiprocess"] == "True"


@pytest.mark.ringhorn_only
def test_one_thread_is_told(serve):
    site = serve("pep3333:app", "--workers", "1", "--threads", "1")
    assert site.get("/environ").json()["environ"]["wsgi.multithread"] == "False"


def test_wsgi_errors_reaches_the_log(site, key):
    assert site.get(f"/errors/{key}").status == 200
    wait_until(lambda: f"errors.writelines {key} caf\xe9" in site.log(), "wsgi.errors in the log")
    assert f"errors.write {key}" in site.log()


@pytest.mark.parametrize("python", [False, True])
def test_wsgi_errors_is_the_error_log_where_that_is_a_file(serve, tmp_path: Path, python):
    """Flask's own logger writes there."""
    log = tmp_path / "error.log"
    args = ["--error-logfile", str(log)]
    if python:
        (tmp_path / "mine.py").write_text("from gunicorn.glogging import Logger\nclass Mine(Logger): pass\n")
        args += ["--logger-class", "mine.Mine", "--pythonpath", str(tmp_path)]
    site = serve("pep3333:app", "--workers", "1", *args, listening_in=log)
    assert site.get("/errors/here").status == 200
    wait_until(lambda: "\nerrors.writelines here caf\xe9\n" in log.read_text(), "wsgi.errors in the file")
    assert "\nerrors.write here\n" in log.read_text()
    address = site.address
    log.rename(tmp_path / "old.log")
    site.signal(signal.SIGUSR1)

    def written() -> bool:
        with Client(address) as client:
            client.get("/errors/again")
        return log.exists() and "errors.write again\n" in log.read_text()

    wait_until(written, "wsgi.errors in the new file")


# --- wsgi.input

BODY = b"first line\n\nthird, a longer line than the others\r\n" + b"x" * 300 + b"\nlast, without an end"
READS = [
    "read",
    "read -1",
    "read 0;read",
    "read 5;read 7;read 100000;read;read 1",
    "read 100000;read 10;readline;readlines",
    "readline;readline;readline;readline;readline;readline",
    "readline 5;readline 100;readline 0;readline",
    "readlines;read",
    "iterate;read",
    "read 3;readline;readline 4;read 2;iterate",
    "next;read 4;next;readlines",
]


@pytest.mark.parametrize("framing", ["sized", "chunked", "bytewise"])
@pytest.mark.parametrize("steps", READS)
def test_input_reads_as_a_file_does(site, steps, framing):
    """Each read gives what the same read on a file with these bytes gives."""
    message = {
        "sized": lambda: request("POST", "/input", f"X-Steps: {steps}", body=BODY),
        "chunked": lambda: chunked("/input", [BODY[:4], BODY[4:60], BODY[60:]], f"X-Steps: {steps}"),
        "bytewise": lambda: chunked("/input", [bytes([byte]) for byte in BODY], f"X-Steps: {steps}"),
    }[framing]()
    with site.client() as client:
        assert client.ask(message).json() == expected_reads(steps, BODY)
        assert_usable(client)


@pytest.mark.parametrize("steps", READS)
def test_input_without_a_body_is_at_its_end(site, steps):
    assert site.ask(request("GET", "/input", f"X-Steps: {steps}")).json() == expected_reads(steps, b"")


def test_readlines_with_a_hint_loses_nothing(site):
    first, rest = site.ask(request("POST", "/input", "X-Steps: readlines 12;read", body=BODY)).json()
    assert b"".join(map(base64.b64decode, [*first, rest])) == BODY
    assert all(base64.b64decode(line).endswith(b"\n") for line in first[:-1])


@pytest.mark.ringhorn_only
def test_a_line_ends_at_its_newline_though_another_thread_reads_too(serve, key):
    site = serve("pep3333:app", "--workers", "1", "--threads", "2", "--body-buffer", "2")
    with site.client() as client:
        client.send(request("POST", f"/shared_input?key={key}", "Content-Length: 8") + b"abcd")
        wait_until(lambda: "read" in events(site, key), "a read by another thread")
        client.send(b"\nef\n")
        assert client.read_response().body == b"ab|cd\n"


def expected_reads(steps: str, body: bytes) -> list:
    file = io.BytesIO(body)
    results = []
    for step in steps.split(";"):
        name, *args = step.split()
        if name == "iterate":
            result = list(file)
        elif name == "next":
            result = next(file, b"")
        else:
            result = getattr(file, name)(*map(int, args))
        told = [
            base64.b64encode(piece).decode() for piece in (result if isinstance(result, list) else [result])
        ]
        results.append(told if isinstance(result, list) else told[0])
    return results


@pytest.mark.parametrize("target", ["/unread", "/read_some/3", "/plain"])
@pytest.mark.parametrize("size", [10, 20_000])
def test_a_body_left_unread_does_not_become_the_next_request(site, target, size):
    body = b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n".ljust(size, b"#")[:size]
    for message in (request("POST", target, body=body), chunked(target, [body])):
        with site.client() as client:
            assert client.ask(message).status == 200
            assert_usable(client)


# --- shapes of the response


@pytest.mark.parametrize(
    "shape",
    ["list", "tuple", "generator", "iterator", "tracked", "getitem", "bytesio", "with-empty", "map"],
)
def test_every_iterable_of_bytes_is_a_body(site, shape):
    with site.client() as client:
        answer = client.get(f"/shape/{shape}")
        assert (answer.status, answer.body) == (200, PIECES)
        assert_usable(client)


@pytest.mark.parametrize("shape", ["empty-list", "empty-tuple", "empty-generator", "empty-bytes"])
def test_an_empty_body(site, shape):
    with site.client() as client:
        answer = client.get(f"/shape/{shape}")
        assert (answer.status, answer.body) == (200, b"")
        assert_usable(client)


@pytest.mark.oracle_differs("gunicorn sends one chunk")
def test_a_list_of_one_gets_its_length(site):
    answer = site.get("/one")
    assert answer.field("content-length") == "10"
    assert answer.body == b"one piece\n"


def test_a_body_of_unknown_length_is_chunked_for_1_1_and_closed_for_1_0(site):
    assert site.get("/shape/generator").framing == "chunked"
    with site.client() as client:
        answer = client.ask(request("GET", "/shape/generator", "Connection: keep-alive", version="HTTP/1.0"))
        assert (answer.framing, answer.body) == ("close", PIECES)
        client.assert_closed()


def test_a_declared_length_is_kept(site):
    with site.client() as client:
        answer = client.get("/sized_generator")
        assert (answer.framing, answer.all("content-length"), answer.body) == ("length", ["17"], PIECES)
        assert_usable(client)


def test_start_response_inside_a_generator(site):
    assert site.get("/lazy").body == b"lazy\n"


def test_write_comes_before_the_iterable(site, key):
    with site.client() as client:
        assert client.get(f"/write?key={key}").body == b"written twice, then yielded\n"
        assert client.get("/write_sized").body == b"written, sized\n"
        assert_usable(client)
    assert events(site, key) == ["close"]


def test_each_piece_is_sent_before_the_next_is_made(site, key):
    """PEP 3333, buffering and streaming: a server must not delay a block."""
    with site.client() as client:
        client.send(request("GET", f"/gated?key={key}"))
        client.wait_for(b"first\n")
        assert site.get(f"/open/{key}").body == b"open"
        assert client.read_response().body == b"first\nsecond\n"


@pytest.mark.parametrize("count", [2, 50])
def test_pieces_that_come_quickly_are_sent_before_the_next_is_made(site, key, count):
    """They may leave together, but whoever waits for what they say must not wait for the application, too."""
    with site.client() as client:
        client.send(request("GET", f"/gated/{count}?key={key}"))
        client.wait_for(b"piece %d\n" % (count - 1))
        assert site.get(f"/open/{key}").body == b"open"
        pieces = [b"piece %d\n" % number for number in range(count)]
        assert client.read_response().body == b"".join([pieces[0], b"first\n", *pieces[1:], b"second\n"])
        assert_usable(client)


@pytest.mark.ringhorn_only("PEP 3333 has no such threads; here they must not reach another request's answer")
def test_a_thread_inside_write_ends_before_its_request_and_cannot_write_later(site, key):
    with site.client() as client:
        client.send(request("GET", f"/write_from_thread?key={key}"))
        # The application has returned, and the thread waits for this client.
        wait_until(lambda: "close" in events(site, key), "close()")
        assert "written" not in events(site, key)
        with pytest.raises(CutOff) as cut:
            client.read_response()
        assert len(cut.value.body) == 30_000_000
    late = site.get(f"/write_late/{key}")
    assert (late.status, late.body) == (200, b"joined")
    assert events(site, key)[-1].startswith("RuntimeError: start_response or write was called outside")
    assert_500(site, site.get("/never_started"))


@pytest.mark.parametrize("kind", ["one", "two", "write"])
def test_a_body_longer_than_its_length_is_cut_to_it(site, kind, key):
    with site.client() as client:
        answer = client.get(f"/length/7/20/{kind}?key={key}")
        assert answer.status == 500 or (answer.status, answer.body) == (200, b"0123456")
        if answer.status == 200 and answer.field("connection") != "close":
            assert_usable(client)
        else:
            client.assert_closed()
    assert events(site, key) == ["close"]


@pytest.mark.oracle_differs("gunicorn keeps the connection: the next response is taken for the missing bytes")
@pytest.mark.parametrize("kind", ["one", "two", "write"])
def test_a_body_shorter_than_its_length_closes_the_connection(site, kind, key):
    with site.client() as client:
        client.send(request("GET", f"/length/20/7/{kind}?key={key}") + request("GET", "/plain"))
        try:
            assert client.read_response().status == 500
        except CutOff as cut:
            assert cut.body == b"0123456"
        client.assert_closed()
    assert events(site, key) == ["close"]


@pytest.mark.parametrize(
    "target", ["/plain", "/shape/list", "/shape/generator", "/one", "/write", "/file/plain"]
)
def test_head_has_the_fields_and_no_body(site, target):
    with site.client() as client:
        client.send(request("HEAD", target) + request("GET", "/plain"))
        answer = client.read_response(head=True)
        assert answer.status == 200
        assert answer.field("content-type") == "text/plain"
        assert client.read_response().body == b"plain\n"


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none(site, status, key):
    with site.client() as client:
        client.send(request("GET", f"/status/{status}?key={key}") + request("GET", "/plain"))
        answer = client.read_response()
        assert answer.status == status
        assert answer.field("transfer-encoding") is None
        assert status != 204 or answer.field("content-length") is None
        assert client.read_response().body == b"plain\n"
    assert events(site, key) == ["close"]


def test_304_keeps_the_length_of_what_it_stands_for(site):
    with site.client() as client:
        answer = client.get("/not_modified")
        assert (answer.status, answer.field("content-length"), answer.field("etag")) == (304, "1234", '"a"')
        assert_usable(client)


@pytest.mark.parametrize("kind", ["plain", "sized", "part", "memory"])
def test_file_wrapper(site, kind, key):
    file = (APPS / "pep3333.py").read_bytes()
    expected = {"plain": file, "sized": file, "part": file[100:], "memory": PIECES}[kind]
    with site.client() as client:
        assert client.get(f"/file/{kind}?key={key}").body == expected
        assert_usable(client)
    assert events(site, key) == ["close"]


def test_file_wrapper_of_a_packed_file_sends_what_it_unpacks(serve, tmp_path: Path):
    """Its descriptor is that of the packed file."""
    (tmp_path / "packed.py").write_text(
        "import gzip, io\n"
        "with gzip.open('f.gz', 'wb') as file:\n"
        "    file.write(b'unpacked' * 1000)\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    packed = gzip.open('f.gz')\n"
        "    if environ['PATH_INFO'] == '/buffered':\n"
        "        packed = io.BufferedReader(packed)\n"
        "    return environ['wsgi.file_wrapper'](packed)\n"
    )
    # One worker: each writes the file when it loads the application.
    site = serve("packed", "--workers", "1", cwd=tmp_path)
    assert site.get("/").body == b"unpacked" * 1000
    assert site.get("/buffered").body == b"unpacked" * 1000


@pytest.mark.ringhorn_only
@pytest.mark.parametrize("option", [[], ["--no-sendfile"]])
def test_no_sendfile_reads_the_file(serve, tmp_path: Path, option):
    """sendfile(2) leaves the place in the file where it was; reading moves it on."""
    (tmp_path / "place.py").write_text(
        "import os\n"
        "copies = []\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    if environ['PATH_INFO'] == '/place':\n"
        "        return [b'%d' % os.lseek(copies.pop(), 0, os.SEEK_CUR)]\n"
        "    file = open('place.txt', 'rb')\n"
        "    copies.append(os.dup(file.fileno()))\n"
        "    return environ['wsgi.file_wrapper'](file)\n"
    )
    content = b"all of it" * 10_000
    (tmp_path / "place.txt").write_bytes(content)
    site = serve("place", "--workers", "1", *option, cwd=tmp_path)
    assert site.get("/").body == content
    assert site.get("/place").body == (b"%d" % len(content) if option else b"0")


def test_a_forked_child_that_returns_from_its_request_answers_nobody(serve, tmp_path: Path):
    """The child of os.fork() has none of the server's threads, and none of its descriptors."""
    (tmp_path / "forking.py").write_text(
        "import os\n"
        "def application(environ, start_response):\n"
        "    child = os.fork()\n"
        "    ended = child and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "    if child:\n"
        "        start_response('200 OK', [])\n"
        "    return [b'the child ended with %d' % ended]\n"
    )
    site = serve("forking", cwd=tmp_path)
    with site.client() as client:
        assert client.get("/").body == b"the child ended with 1"
        assert client.get("/").body == b"the child ended with 1"


# --- start_response


def test_fields_reach_the_client_in_order_and_unchanged(site):
    answer = site.get("/fields")
    assert answer.all("set-cookie") == ["a=1", "b=2"]
    assert answer.field("x-latin") == "caf\xe9"
    assert answer.field("x-empty") == ""
    assert answer.field("date").endswith(" GMT")
    assert answer.field("server")


def test_a_field_may_be_a_list_of_two(site):
    answer = site.get("/listed_fields")
    assert (answer.status, answer.body) == (200, b"listed\n")
    assert (answer.field("x-listed"), answer.field("x-pair")) == ("a", "b")


@pytest.mark.parametrize(
    "kind",
    """status-bytes status-number status-word status-short status-crlf name-crlf name-space name-empty
    name-bytes value-crlf value-lf value-nul value-bytes value-number value-not-latin-1
    name-not-latin-1 name-long pair-of-three list-of-three length-twice""".split(),
)
def test_what_must_not_reach_the_wire_is_a_500(site, kind):
    answer = site.get(f"/bad_start/{kind}")
    assert answer.field("x-injected") is None
    assert_500(site, answer)


@pytest.mark.oracle_differs("gunicorn sends the answer without the header")
@pytest.mark.parametrize("kind", ["value-lf", "value-number", "value-not-latin-1", "pair-of-three"])
def test_an_error_of_start_response_that_is_swallowed_is_a_500(site, kind):
    assert site.get(f"/swallowed_start/{kind}").status == 500


@pytest.mark.ringhorn_only
@pytest.mark.parametrize(
    "kind, named",
    {
        "value-lf": "'X-A' cannot be sent: a header value has a control character",
        "value-not-latin-1": "'X-A' cannot be sent: it is not latin-1 text",
        "name-not-latin-1": "'X-\u20ac' cannot be sent: it is not latin-1 text",
        "name-crlf": r"'X-A: b\r\nX-Injected' cannot be sent",
        "name-long": "'X " + "n" * 62 + "...' cannot be sent",
        "length-twice": "'Content-Length' cannot be sent",
    }.items(),
)
def test_the_log_names_the_header_that_cannot_be_sent(site, kind, named):
    """An application may set dozens; the value may be a secret."""
    told = site.log().count(f"response header {named}")
    assert_500(site, site.get(f"/bad_start/{kind}"))
    wait_until(lambda: site.log().count(f"response header {named}") > told, named)
    assert "X-Injected: yes" not in site.log()


@pytest.mark.parametrize(
    "field",
    [
        "Connection/X-Secret",
        "Keep-Alive/timeout=99",
        "Transfer-Encoding/chunked",
        "Upgrade/h2c",
        "TE/trailers",
    ],
)
def test_hop_by_hop_fields_are_the_servers_own(site, field):
    """PEP 3333: an application must not send them. They are refused or left out, never passed on."""
    name, value = field.split("/")
    with site.client() as client:
        answer = client.get(f"/hop_by_hop/{field}")
        assert answer.status == 500 or answer.body == b"hop by hop\n"
        assert name == "Transfer-Encoding" or value not in answer.all(name)
        if answer.status == 200:
            assert_usable(client)


@pytest.mark.oracle_differs("gunicorn drops both")
@pytest.mark.parametrize("name", ["Server", "Date"])
def test_server_and_date_may_be_the_applications(site, name):
    assert site.get(f"/hop_by_hop/{name}/mine").all(name) == ["mine"]


@pytest.mark.oracle_differs("gunicorn drops it and keeps the connection")
def test_close_of_the_application_closes(site):
    with site.client() as client:
        assert client.get("/hop_by_hop/Connection/close").all("Connection") == ["close"]
        client.assert_closed()


def test_start_response_never_called_is_a_500(site):
    assert_500(site, site.get("/never_started"))


def test_start_response_twice_without_exc_info_is_a_500(site):
    assert_500(site, site.get("/started_twice"))


@pytest.mark.oracle_differs("gunicorn sends the headers of both calls")
def test_exc_info_before_the_head_replaces_status_and_fields(site, key):
    answer = site.get(f"/exc_info/early?key={key}")
    assert (answer.status, answer.reason, answer.body) == (503, "Replaced", b"replaced")
    assert answer.field("x-first") is None
    assert answer.field("x-second") == "yes"
    assert events(site, key) == ["close"]


def test_exc_info_after_the_head_raises_again_and_cuts_the_response(site, key):
    with site.client() as client:
        with pytest.raises(CutOff) as cut:
            client.get(f"/exc_info/late?key={key}")
        assert cut.value.head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert cut.value.body == b"first"
    wait_until(lambda: events(site, key) == ["raised again", "close"], "close() after the cut")


# --- failures of the application


SENDS_THE_HEAD_FIRST = pytest.mark.oracle_differs("gunicorn has sent the head by then")


@pytest.mark.parametrize(
    "when",
    [
        "before",
        "after",
        "start-of-iteration",
        pytest.param("empty-first", marks=SENDS_THE_HEAD_FIRST),
        pytest.param("text", marks=SENDS_THE_HEAD_FIRST),
        "none",
    ],
)
def test_an_exception_before_the_head_is_a_500_with_the_traceback_in_the_log(site, when, key):
    # What the server itself finds wrong has no frames to show; it says what it is instead.
    told = {"text": "must be bytes, not str", "none": "returned None"}.get(
        when, "Traceback (most recent call last)"
    )
    before = site.log().count(told)
    assert_500(site, site.get(f"/fail/{when}?key={key}"))
    if when not in ("before", "after", "none"):
        assert events(site, key) == ["close"]
    wait_until(lambda: site.log().count(told) > before, f"{told!r} in the log")
    assert f"/fail/{when}" in site.log()


@pytest.mark.oracle_differs("gunicorn closes without an answer")
def test_sys_exit_in_a_request_does_not_end_the_worker(site):
    pid = site.get("/environ").json()["pid"]
    assert_500(site, site.get("/fail/exit"))
    assert site.get("/environ").json()["pid"] == pid


def test_an_exception_in_the_middle_cuts_the_response(site, key):
    """What was sent cannot be taken back; the missing last chunk tells the client that it is not whole."""
    with site.client() as client:
        client.send(request("GET", f"/fail/middle?key={key}") + request("GET", "/plain"))
        with pytest.raises(CutOff) as cut:
            client.read_response()
        assert cut.value.body == b"alpha beta "
        client.assert_closed()
    assert events(site, key) == ["close"]
    assert site.get("/plain").status == 200


def test_close_that_raises_harms_nobody(site, key):
    answer = site.get(f"/failing_close?key={key}")
    assert (answer.status, answer.body) == (200, PIECES)
    assert events(site, key) == ["close"]
    assert site.get("/plain").status == 200


# --- close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_close_is_called_once(site, method, key):
    assert site.ask(request(method, f"/shape/tracked?key={key}")).status == 200
    wait_until(lambda: events(site, key), "close()")
    assert events(site, key) == ["close"]


def test_close_is_called_when_the_client_goes_away(site, key):
    with site.client() as client:
        client.send(request("GET", f"/big/200000000/65536?key={key}"))
        assert client.socket.recv(1000)
        client.reset()
    wait_until(lambda: events(site, key) == ["close"], "close() after the client went away")


# --- wsgiref.validate


@pytest.fixture(scope="module")
def validated(serve_module) -> Server:
    return serve_module("pep3333:validated", "--workers", "1", "--threads", "4")


@pytest.mark.parametrize(
    "message",
    [
        *(
            request("GET", target)
            for target in """/environ?a=b /plain /one /shape/list /shape/tuple /shape/generator /shape/tracked
            /shape/with-empty /shape/empty-list /lazy /write /write_sized /fields /sized_generator
            /file/sized /errors/validated /big/1000000/10000""".split()
        ),
        request("HEAD", "/plain"),
        request("HEAD", "/shape/generator"),
        request("GET", "/not_modified"),
        request("GET", "/plain", version="HTTP/1.0"),
        request("POST", "/digest/1000", "Content-Type: text/plain", body=BODY),
        chunked("/digest/7", [BODY], "Content-Type: text/plain"),
        request("POST", "/input", "X-Steps: read 5;readline;readlines;iterate", body=BODY),
    ],
    ids=lambda message: message.split(b" HTTP")[0].decode(),
)
def test_wsgiref_validate_has_nothing_to_say(validated, message):
    with validated.client() as client:
        answer = client.ask(message)
        assert answer.status in (200, 304), answer
    assert "AssertionError" not in validated.log()
    assert "without being closed" not in validated.log()


# --- loading


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        ("pep3333:create_app('hello')", b"hello debug=None"),
        ("pep3333:create_app('x', debug=False)", b"x debug=False"),
        ("pep3333:create_app(greeting='caf\\xe9 (1, 2)', debug=[1, {'a': (2.5, None)}])", None),
    ],
)
def test_a_factory_with_literal_arguments(serve, app, expected):
    body = serve(app, "--workers", "1").get("/").body
    assert body == (expected or "caf\xe9 (1, 2) debug=[1, {'a': (2.5, None)}]".encode())


def test_the_attribute_is_application_by_default_and_the_current_directory_is_importable(
    serve, tmp_path: Path
):
    (tmp_path / "plainly_named.py").write_text("from pep3333 import app as application\n")
    env = {"PYTHONPATH": str(APPS)}
    assert serve("plainly_named", "--workers", "1", cwd=tmp_path, env=env).get("/plain").status == 200


def test_preload_imports_once_before_the_fork(serve, tmp_path: Path):
    (tmp_path / "once.py").write_text(
        "import os\nprint('imported by', os.getpid(), flush=True)\nfrom pep3333 import app as application\n"
    )
    env = {"PYTHONPATH": str(APPS)}
    site = serve("once", "--preload", "--workers", "2", cwd=tmp_path, env=env)
    assert site.log().count("imported by") == 1
    assert f"imported by {site.process.pid}" in site.log()
    assert site.get("/environ").json()["pid"] != site.process.pid


def test_environment_and_python_path_from_the_command_line(serve, tmp_path: Path):
    """raw_env is set before the application is imported."""
    (tmp_path / "told.py").write_text(
        "import os, json\nseen = json.dumps([os.environ['COLOUR'], os.environ['EQUALS']]).encode()\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', str(len(seen)))])\n    return [seen]\n"
    )
    arguments = ["-e", "COLOUR=green", "--env", "EQUALS=a=b", "--pythonpath", str(tmp_path), "--workers", "1"]
    assert json.loads(serve("told", *arguments).get("/").body) == ["green", "a=b"]


def test_signals_the_application_handles_reach_its_handlers(serve, tmp_path: Path):
    """The application is imported on the main thread, so that signal.signal works, as under gunicorn."""
    (tmp_path / "handles.py").write_text(
        "import os, signal\nfrom pep3333 import app as application\n"
        "signal.signal(signal.SIGWINCH, lambda *_: print('handled in', os.getpid(), flush=True))\n"
    )
    site = serve("handles", "--workers", "1", cwd=tmp_path, env={"PYTHONPATH": str(APPS)})
    (worker,) = site.workers(1)
    os.kill(worker, signal.SIGWINCH)
    wait_until(lambda: f"handled in {worker}" in site.log(), "the application's handler")
