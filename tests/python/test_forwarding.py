"""What a proxy in front says: the scheme, the mount point, names with an underscore, unix sockets."""

import pytest

from harness import Server, request


@pytest.fixture(scope="module")
def near(serve_module) -> Server:
    """Believes this machine, as the default is."""
    return serve_module("pep3333:app", "-w", "1", "--threads", "2")


@pytest.fixture(scope="module")
def far(serve_module) -> Server:
    """Believes only others."""
    return serve_module("pep3333:app", "-w", "1", "--threads", "2", "--forwarded-allow-ips", "192.0.2.1")


def environ(site: Server, target: str, *fields: str) -> dict:
    return site.get(target, *fields).json()["environ"]


# --- forwarded_allow_ips


@pytest.mark.parametrize("trusted", ["*", "127.0.0.1", "127.0.0.0/8", "10.0.0.0/8, 127.0.0.1"])
def test_whom_to_believe(serve, trusted):
    site = serve("pep3333:app", "-w", "1", "--forwarded-allow-ips", trusted)
    assert environ(site, "/environ", "X-Forwarded-Proto: https")["wsgi.url_scheme"] == "https"


@pytest.mark.parametrize("trusted", ["10.0.0.0/8", "127.0.0.2", "::1", ""])
def test_whom_not_to_believe(serve, trusted):
    site = serve("pep3333:app", "-w", "1", "--forwarded-allow-ips", trusted)
    told = environ(site, "/environ", "X-Forwarded-Proto: https", "SCRIPT_NAME: /environ")
    assert (told["wsgi.url_scheme"], told["SCRIPT_NAME"], told["PATH_INFO"]) == ("http", "", "/environ")
    assert told["HTTP_X_FORWARDED_PROTO"] == "https", "the application may have rules of its own"


def test_the_environment_variable(serve):
    site = serve("pep3333:app", "-w", "1", env={"FORWARDED_ALLOW_IPS": "192.0.2.1"})
    assert environ(site, "/environ", "X-Forwarded-Proto: https")["wsgi.url_scheme"] == "http"


def test_the_peer_stays_the_peer(near):
    """REMOTE_ADDR is never taken from a header; frameworks do that when they are told to."""
    told = environ(near, "/environ", "X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9")
    assert told["REMOTE_ADDR"] == "127.0.0.1"
    assert told["HTTP_X_FORWARDED_FOR"] == "203.0.113.9"


# --- secure_scheme_headers


@pytest.mark.parametrize(
    ("field", "scheme"),
    [
        ("X-Forwarded-Proto: https", "https"),
        ("X-Forwarded-Protocol: ssl", "https"),
        ("X-Forwarded-Ssl: on", "https"),
        ("x-forwarded-proto: https", "https"),
        ("X-Forwarded-Proto: http", "http"),
        ("X-Forwarded-Ssl: off", "http"),
        ("X-Scheme: https", "http"),
    ],
)
def test_the_scheme(near, field, scheme):
    assert environ(near, "/environ", field)["wsgi.url_scheme"] == scheme


def test_headers_that_contradict_each_other_are_refused(near):
    assert near.get("/environ", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off").status == 400


def test_contradictions_of_strangers_are_just_headers(far):
    told = environ(far, "/environ", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off")
    assert told["wsgi.url_scheme"] == "http"


def test_other_names_for_the_scheme(serve, tmp_path):
    config = tmp_path / "conf.py"
    config.write_text('secure_scheme_headers = {"X-SCHEME": "tls"}\n')
    site = serve("pep3333:app", "-w", "1", "-c", str(config))
    assert environ(site, "/environ", "X-Scheme: tls")["wsgi.url_scheme"] == "https"
    assert environ(site, "/environ", "X-Forwarded-Proto: https")["wsgi.url_scheme"] == "http"


# --- SCRIPT_NAME


def test_the_mount_point_by_header(near):
    told = environ(near, "/below/environ/x%20y", "SCRIPT_NAME: /below")
    assert (told["SCRIPT_NAME"], told["PATH_INFO"]) == ("/below", "/environ/x y")
    assert told["RAW_URI"] == "/below/environ/x%20y"


def test_the_mount_point_by_environment(serve):
    site = serve("pep3333:app", "-w", "1", env={"SCRIPT_NAME": "/below"}, ready="/below/plain")
    told = environ(site, "/below/environ")
    assert (told["SCRIPT_NAME"], told["PATH_INFO"]) == ("/below", "/environ")
    told = environ(site, "/deeper/environ", "SCRIPT_NAME: /deeper")
    assert (told["SCRIPT_NAME"], told["PATH_INFO"]) == ("/deeper", "/environ")
    assert site.get("/elsewhere").status == 500


def test_a_mount_point_with_a_percent_sign(near):
    """It is compared with what the client has sent, and not decoded."""
    told = environ(near, "/a%20b/environ", "SCRIPT_NAME: /a%20b")
    assert (told["SCRIPT_NAME"], told["PATH_INFO"]) == ("/a%20b", "/environ")


def test_a_path_outside_of_the_mount_point(near):
    assert near.get("/environ", "SCRIPT_NAME: /below").status == 500
    assert near.get("/plain").status == 200


# --- names with an underscore


def test_underscores_are_dropped(near):
    """X_Real_User and X-Real-User would be the same variable: a client could speak as the proxy."""
    told = environ(near, "/environ", "X_Real_User: mallory", "X-Real-User: alice")
    assert told["HTTP_X_REAL_USER"] == "alice"
    assert "HTTP_X_OTHER" not in environ(near, "/environ", "X_Other: a")


def test_underscores_are_refused(serve):
    site = serve("pep3333:app", "-w", "1", "--header-map", "refuse")
    assert site.get("/environ", "X_Real_User: mallory").status == 400
    assert site.get("/environ", "X-Real-User: alice").status == 200
    assert site.get("/environ", "PATH_INFO: /x").status == 200, "one of forwarder_headers, from a proxy"


def test_underscores_are_kept_by_who_wants_them(serve):
    site = serve("pep3333:app", "-w", "1", "--header-map", "dangerous")
    told = environ(site, "/environ", "X-Real-User: alice", "X_Real_User: mallory")
    assert told["HTTP_X_REAL_USER"] == "alice,mallory"


@pytest.mark.parametrize("options", [("--header-map", "dangerous"), ("--forwarder-headers", "*")])
def test_an_underscore_does_not_make_the_length_or_type_of_a_body(serve, options):
    site = serve("pep3333:app", "-w", "1", *options)
    told = environ(site, "/environ", "Content_Length: 5", "Content_Type: text/x")
    assert (told["HTTP_CONTENT_LENGTH"], told["HTTP_CONTENT_TYPE"]) == ("5", "text/x")
    assert not told.get("CONTENT_LENGTH") and not told.get("CONTENT_TYPE")


@pytest.mark.parametrize("names", ["REMOTE_USER,SSL_CLIENT", "*"])
def test_forwarder_headers(serve, names):
    trusting = serve("pep3333:app", "-w", "1", "--forwarder-headers", names)
    doubting = serve(
        "pep3333:app", "-w", "1", "--forwarder-headers", names, "--forwarded-allow-ips", "192.0.2.1"
    )
    assert environ(trusting, "/environ", "Remote_User: alice")["HTTP_REMOTE_USER"] == "alice"
    assert "HTTP_REMOTE_USER" not in environ(doubting, "/environ", "Remote_User: alice")


def test_forwarder_headers_replace_the_default_ones(serve):
    site = serve("pep3333:app", "-w", "1", "--forwarder-headers", "REMOTE_USER")
    assert environ(site, "/environ", "SCRIPT_NAME: /environ")["SCRIPT_NAME"] == ""


# --- unix sockets


@pytest.fixture(scope="module")
def unix(serve_module, tmp_path_factory) -> Server:
    path = tmp_path_factory.mktemp("unix") / "s"
    return serve_module("pep3333:app", "-w", "1", "--bind", f"unix:{path}", "--forwarded-allow-ips", "")


def test_the_proxy_on_a_unix_socket_is_believed(unix):
    told = environ(unix, "/below/environ", "X-Forwarded-Proto: https", "SCRIPT_NAME: /below")
    assert (told["wsgi.url_scheme"], told["SCRIPT_NAME"]) == ("https", "/below")
    assert told["REMOTE_ADDR"] == ""
    assert "REMOTE_PORT" not in told


@pytest.mark.parametrize(
    ("fields", "server"),
    [
        (["Host: shop.example"], ("shop.example", "80")),
        (["Host: shop.example:8080"], ("shop.example", "8080")),
        (["Host: shop.example", "X-Forwarded-Proto: https"], ("shop.example", "443")),
    ],
)
def test_the_name_of_the_server_is_what_the_client_calls_it(unix, fields, server):
    message = "\r\n".join(["GET /environ HTTP/1.1", *fields, "", ""]).encode()
    told = unix.ask(message).json()["environ"]
    assert (told["SERVER_NAME"], told["SERVER_PORT"]) == server


def test_without_host_the_name_is_the_path(unix):
    told = unix.ask(b"GET /environ HTTP/1.0\r\n\r\n").json()["environ"]
    assert (told["SERVER_NAME"], told["SERVER_PORT"]) == (unix.address, "")


def test_keep_alive_on_a_unix_socket(unix):
    with unix.client() as client:
        for _ in range(3):
            assert client.ask(request("POST", "/echo", body=b"hello")).body == b"hello"
