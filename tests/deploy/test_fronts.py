"""nginx, Caddy and HAProxy in front: requests arrive once, also during a reload, and tell who asked."""

from __future__ import annotations

import signal

import pytest

import fronts
from fronts import HOST, REQUESTS, Visitors, running
from harness import PATIENCE, Server, wait_until
from metrics import Scrape, wait_for

pytestmark = pytest.mark.ringhorn_only

METRICS = ("--metrics-bind", "127.0.0.1:0")
FRONTS = {"nginx": fronts.nginx, "caddy": fronts.caddy, "haproxy": fronts.haproxy}


@pytest.fixture(params=["tcp", "unix"])
def upstream(request, tmp_path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path / 'app.sock'}"


def start(serve, bind: str, *args: str) -> Server:
    return serve("pep3333:app", "--workers", "2", "--bind", bind, *METRICS, *args, ready=None)


@pytest.mark.parametrize("kind", FRONTS)
def test_nothing_is_lost_during_a_reload_and_every_request_counts_once(serve, tmp_path, upstream, kind):
    site = start(serve, upstream, "--ready-path", "/readyz")
    with running(FRONTS[kind](tmp_path, site.address)) as front:
        old = site.workers(2)
        with Visitors(front, REQUESTS) as visitors:
            visitors.until(REQUESTS // 5)
            site.signal(signal.SIGHUP)
            visitors.join()
            visitors.check()
        assert visitors.answered == REQUESTS
        # Old workers wait for idle connections of the front end, 10 s each at most, one worker after the other.
        gone = "the end of the old workers"
        wait_until(lambda: not set(old) & set(site.children()), gone, patience=3 * PATIENCE)
        seen = wait_for(site, "ringhorn_requests_total", REQUESTS, status="2xx")
        assert seen.sum("ringhorn_requests_total") == REQUESTS
        assert seen.sum("ringhorn_reloads_total") == 1
        uploads = sum(n // 10 for n in visitors.counts)
        assert seen.sum("ringhorn_requests_total", method="POST") == uploads
        # HAProxy's health checks come on connections of their own, hence without a bound that is exact.
        assert seen.sum("ringhorn_accepted_connections_total") < REQUESTS / 10, "kept connections"


@pytest.mark.parametrize("kind", FRONTS)
def test_the_application_learns_scheme_host_and_client(serve, tmp_path, upstream, kind):
    site = start(serve, upstream, "--ready-path", "/readyz")
    with running(FRONTS[kind](tmp_path, site.address)) as front:
        liar = ("X-Forwarded-Proto: http", "X-Forwarded-Ssl: off", "X-Forwarded-Protocol: http")
        told = front.ask("/environ/a%20b?c=d", *liar)["environ"]
        assert told["wsgi.url_scheme"] == "https", "what a client says about it is not passed on"
        assert told["HTTP_HOST"] == HOST
        assert told["RAW_URI"] == "/environ/a%20b?c=d"
        assert told["HTTP_X_FORWARDED_FOR"].split(", ")[-1] == "127.0.0.1"
        assert told["REMOTE_ADDR"] == ("127.0.0.1" if upstream.startswith("127") else "")


@pytest.mark.parametrize("kind", FRONTS)
def test_without_trust_in_the_proxy_the_scheme_stays_http(serve, tmp_path, kind):
    site = start(serve, "127.0.0.1:0", "--forwarded-allow-ips", "192.0.2.1", "--ready-path", "/readyz")
    with running(FRONTS[kind](tmp_path, site.address)) as front:
        assert front.ask("/environ")["environ"]["wsgi.url_scheme"] == "http"


def test_proxy_protocol_v2_tells_the_client_on_every_request(serve, tmp_path, upstream):
    site = start(serve, upstream, "--proxy-protocol", "v2", "--proxy-allow-from", "127.0.0.1")
    with running(fronts.haproxy_tcp(tmp_path, site.address)) as front:
        with front.client() as client:
            address, port = client.socket.getsockname()
            for _ in range(3):
                told = client.ask(fronts.message("GET", "/environ")).json()["environ"]
                assert (told["REMOTE_ADDR"], told["REMOTE_PORT"]) == (address, str(port))
        seen = wait_for(site, "ringhorn_requests_total", 3)
        with Visitors(front, REQUESTS) as visitors:
            visitors.until(REQUESTS // 5)
            site.signal(signal.SIGHUP)
            visitors.join()
            visitors.check()
        seen = wait_for(site, "ringhorn_requests_total", REQUESTS + 3)
        assert seen.sum("ringhorn_reloads_total") == 1


def test_instances_are_replaced_one_after_the_other_behind_haproxy(serve, tmp_path):
    paths = [tmp_path / "1.sock", tmp_path / "2.sock"]

    def instance(path) -> Server:
        # Longer than one health check takes to fail.
        return start(serve, f"unix:{path}", "--ready-path", "/readyz", "--drain-delay", "2.5")

    old = [instance(path) for path in paths]
    with running(fronts.haproxy(tmp_path, *map(str, paths))) as front, Visitors(front, None) as visitors:
        visitors.until(200)
        for site, path in zip(old, paths, strict=True):
            site.signal(signal.SIGTERM)
            assert site.wait() == 0
            new = instance(path)
            # The balancer has found it when it serves.
            wait_until(lambda new=new: answered(new) >= 100, "requests for the new instance")
        visitors.check()


def answered(site: Server) -> float:
    seen = Scrape(site)
    return seen.sum("ringhorn_requests_total") if seen.has("ringhorn_requests_total") else 0
