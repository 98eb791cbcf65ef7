"""The PROXY protocol: a load balancer says whose connection it passes on, for the whole connection."""

import ipaddress
import struct

import pytest

from harness import Server, request, wait_until

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.2 56324 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int = 0x21, family: int = 0x11, tail: bytes | None = None) -> bytes:
    if tail is None:
        tail = v4("192.0.2.7", "198.51.100.2", 56324, 443)
    return SIGNATURE + struct.pack("!BBH", command, family, len(tail)) + tail


def v4(source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    return addresses + struct.pack("!HH", source_port, destination_port)


@pytest.fixture(scope="module")
def log(io, tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("access") / f"{io}.log")


@pytest.fixture(scope="module")
def site(serve_module, log) -> Server:
    return serve_module(
        "pep3333:app", "-w", "1", "--threads", "4", "--proxy-protocol=auto", "--access-logfile", log
    )


def variables(answer) -> dict:
    environ = answer.json()["environ"]
    names = ("REMOTE_ADDR", "REMOTE_PORT", "PROXY_PROTOCOL", "PROXY_ADDR", "PROXY_PORT")
    return {name: environ.get(name) for name in names}


ANNOUNCED = {
    "REMOTE_ADDR": "192.0.2.7",
    "REMOTE_PORT": "56324",
    "PROXY_PROTOCOL": "TCP4",
    "PROXY_ADDR": "198.51.100.2",
    "PROXY_PORT": "443",
}


@pytest.mark.parametrize(
    "header", [V1, v2(), v2(tail=v4("192.0.2.7", "198.51.100.2", 56324, 443) + b"\4\0\1x")]
)
def test_the_announced_client_is_the_peer(site, header):
    with site.client() as client:
        assert variables(client.ask(header + request("GET", "/environ"))) == ANNOUNCED


@pytest.mark.oracle_differs("gthread forgets it after the first request")
def test_it_holds_for_every_request_of_the_connection(site):
    with site.client() as client:
        client.send(V1)
        for _ in range(3):
            assert variables(client.get("/environ")) == ANNOUNCED
        client.send(request("GET", "/environ") * 3)
        assert [variables(client.read_response()) for _ in range(3)] == [ANNOUNCED] * 3


def test_ipv6(site):
    packed = b"".join(ipaddress.ip_address(a).packed for a in ("2001:db8::1", "::1")) + b"\x00\x50\x01\xbb"
    for header in (b"PROXY TCP6 2001:db8::1 ::1 80 443\r\n", v2(family=0x21, tail=packed)):
        with site.client() as client:
            told = variables(client.ask(header + request("GET", "/environ")))
            assert list(told.values()) == ["2001:db8::1", "80", "TCP6", "::1", "443"]


@pytest.mark.parametrize("header", [V1, v2()])
def test_it_may_arrive_byte_by_byte(site, header):
    with site.client() as client:
        for byte in header + request("GET", "/environ"):
            client.send(bytes([byte]))
        assert variables(client.read_response()) == ANNOUNCED


def test_the_access_log_names_the_announced_client(site, log):
    with site.client() as client:
        client.ask(V1 + request("GET", "/plain?logged"))
    wait_until(lambda: "/plain?logged" in open(log).read(), "the line of the request")
    (line,) = [line for line in open(log) if "/plain?logged" in line]
    assert line.startswith("192.0.2.7 ")


def test_a_header_is_not_demanded(site):
    """As with gunicorn: the health checks of a load balancer may come without one."""
    with site.client() as client:
        told = variables(client.get("/environ"))
        assert (told["REMOTE_ADDR"], told["PROXY_PROTOCOL"]) == ("127.0.0.1", None)
        assert told["REMOTE_PORT"] == str(client.socket.getsockname()[1])


@pytest.mark.oracle_differs("it answers 400, or REMOTE_ADDR is None")
@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::1 1 2\r\n",
        v2(command=0x20, family=0, tail=b""),
        v2(command=0x20),
        v2(family=0, tail=b""),
        v2(family=1, tail=b""),
        v2(family=0x31, tail=bytes(216)),
    ],
)
def test_who_speaks_for_nobody_is_itself_the_peer(site, header):
    with site.client() as client:
        told = variables(client.ask(header + request("GET", "/environ")))
        assert told["REMOTE_ADDR"] == "127.0.0.1"
        assert told["REMOTE_PORT"] == str(client.socket.getsockname()[1])
        assert told["PROXY_PROTOCOL"] is None


@pytest.mark.oracle_differs("it answers 500 to some")
@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.7 198.51.100.2 56324\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.2 56324 65536\r\n",
        b"PROXY TCP4 nobody 198.51.100.2 56324 443\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        b"PROXY UDP4 192.0.2.7 198.51.100.2 56324 443\r\n",
        v2(command=0x31),
        v2(command=0x22),
        v2(family=0x12),
        v2(tail=b"\1\2\3\4"),
    ],
)
def test_a_damaged_header_is_refused(site, header):
    """Whoever is behind it, nothing is served in the wrong name."""
    with site.client() as client:
        client.send(header + request("GET", "/wait?key=behind-a-damaged-header"))
        assert client.read_response().status == 400
        client.assert_closed()
    assert site.get("/events/behind-a-damaged-header").json() == []


def test_a_second_header_is_no_request(site):
    with site.client() as client:
        assert client.ask(V1 + request("GET", "/plain")).status == 200
        client.send(V1 + request("GET", "/plain"))
        assert client.read_response().status == 400
        client.assert_closed()


def test_peers_that_may_not_send_it_are_forbidden(serve):
    site = serve("pep3333:app", "-w", "1", "--proxy-protocol=auto", "--proxy-allow-from", "192.0.2.0/24")
    for header in (V1, v2(), v2(command=0x20, family=0, tail=b"")):
        with site.client() as client:
            client.send(header + request("GET", "/wait?key=forbidden"))
            assert client.read_response().status == 403
            client.assert_closed()
    assert site.get("/events/forbidden").json() == []
    assert site.get("/plain").status == 200


@pytest.mark.parametrize("networks", ["127.0.0.0/8", "*"])
def test_networks_may_be_allowed(serve, networks):
    site = serve("pep3333:app", "-w", "1", "--proxy-protocol=auto", "--proxy-allow-from", networks)
    with site.client() as client:
        assert variables(client.ask(V1 + request("GET", "/environ"))) == ANNOUNCED


@pytest.mark.oracle_differs("it closes the connection at the second leading line end")
def test_only_the_version_that_was_asked_for(serve):
    one = serve("pep3333:app", "-w", "1", "--proxy-protocol=v1")
    two = serve("pep3333:app", "-w", "1", "--proxy-protocol=v2")
    for site, right, wrong in ((one, V1, v2()), (two, v2(), V1)):
        assert variables(site.ask(right + request("GET", "/environ"))) == ANNOUNCED
        assert site.ask(wrong + request("GET", "/environ")).status == 400


def test_off_is_the_default(serve):
    site = serve("pep3333:app", "-w", "1")
    assert site.ask(V1 + request("GET", "/environ")).status == 400


def test_on_a_unix_socket_everybody_may(serve, tmp_path):
    path = str(tmp_path / "s")
    site = serve("pep3333:app", "-w", "1", "--bind", f"unix:{path}", "--proxy-protocol=auto")
    assert variables(site.ask(V1 + request("GET", "/environ"))) == ANNOUNCED
    assert variables(site.get("/environ"))["REMOTE_ADDR"] == ""


def test_trust_in_forwarded_headers_follows_the_real_peer(serve):
    """The load balancer is asked for its word, not the client that it announces."""
    believed = serve("pep3333:app", "-w", "1", "--proxy-protocol=auto")
    with believed.client() as client:
        environ = client.ask(V1 + request("GET", "/environ", "X-Forwarded-Proto: https")).json()["environ"]
        assert environ["wsgi.url_scheme"] == "https"
    options = ("--proxy-protocol=auto", "--forwarded-allow-ips", "192.0.2.7")
    doubted = serve("pep3333:app", "-w", "1", *options)
    with doubted.client() as client:
        environ = client.ask(V1 + request("GET", "/environ", "X-Forwarded-Proto: https")).json()["environ"]
        assert environ["wsgi.url_scheme"] == "http"


@pytest.mark.ringhorn_only
@pytest.mark.parametrize("part", [b"PROXY TCP4 192.0", SIGNATURE, V1, b""])
def test_a_header_that_stays_alone_is_closed_in_time(serve, part):
    timeouts = ("--header-timeout", "0.2", "--first-byte-timeout", "0.2")
    site = serve("pep3333:app", "-w", "1", "--proxy-protocol=auto", *timeouts)
    with site.client() as client:
        client.send(part)
        answer = client.read_to_end()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 "), answer


@pytest.mark.ringhorn_only
def test_settings_that_forgive_old_clients_leave_the_header_alone(serve):
    """`casefold_http_method` changes bytes of the head; those of the PROXY header are addresses."""
    site = serve("pep3333:app", "-w", "1", "--proxy-protocol=auto", "--casefold-http-method")
    letters = v4("97.98.99.100", "101.102.103.104", 0x6162, 0x6364)
    with site.client() as client:
        client.send(v2(tail=letters) + request("GET", "/environ").replace(b"GET", b"get"))
        told = variables(client.read_response())
        assert (told["REMOTE_ADDR"], told["PROXY_ADDR"]) == ("97.98.99.100", "101.102.103.104")
