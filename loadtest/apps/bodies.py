"""The application of the scripts in loadtest/: small and large bodies, in both directions."""

import tempfile

PIECE = bytes(64 * 1024)
FILE_BYTES = 64 * 1024 * 1024
FILE = tempfile.NamedTemporaryFile()
FILE.truncate(FILE_BYTES)


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/upload":
        # In pieces, as an application does that writes them to a file.
        total = 0
        while piece := environ["wsgi.input"].read(64 * 1024):
            total += len(piece)
        return answer(start_response, b"%d" % total)
    if path == "/file":
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(FILE_BYTES))])
        return environ["wsgi.file_wrapper"](open(FILE.name, "rb"))
    if path.startswith("/stream/"):
        count = int(path.rpartition("/")[2])
        start_response(
            "200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(count))]
        )
        return stream(count)
    return answer(start_response, b"hello\n")


def answer(start_response, body):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def stream(count):
    while count > 0:
        yield PIECE[: min(count, len(PIECE))]
        count -= len(PIECE)
