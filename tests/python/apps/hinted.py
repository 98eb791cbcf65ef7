"""Sends early hints (RFC 8297) before it answers: the path says which."""

STYLE = ("Link", "</style.css>; rel=preload; as=style")
SCRIPT = (b"Link", b" </script.js>; rel=preload \t")

kept = []


def app(environ, start_response):
    hints = environ["wsgi.early_hints"]
    path = environ["PATH_INFO"]
    fields = [("Content-Length", "2")]
    if path == "/one":
        hints([STYLE])
    elif path == "/several":
        hints([STYLE, SCRIPT])
        hints(iter([("X-Second", "b")]))
    elif path == "/listed":
        hints([list(STYLE)])
    elif path == "/none":
        hints([])
    elif path == "/late":
        start_response("200 OK", fields)(b"o")
        hints([STYLE])
        return [b"k"]
    elif path == "/started":
        # The head leaves with the first piece: until then there is time.
        start_response("200 OK", fields)
        hints([STYLE])
        return [b"ok"]
    elif path == "/bad-name":
        hints([("Li nk", "a")])
    elif path == "/bad-value":
        hints([("Link", "a\r\nX-Injected: b")])
    elif path == "/keep":
        kept.append(hints)
    elif path == "/use-kept":
        # That of an earlier request, whose client may be another one.
        kept[0]([("X-Stranger", "a")])
    elif path == "/many":
        for _ in range(2000):
            hints([("X-Filler", "a" * 1000)])
    start_response("200 OK", fields)
    return [b"ok"]
