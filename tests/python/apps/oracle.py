"""Tells the environ as JSON, and the body: what two servers made of the same bytes."""

import base64
import json

# What tells the servers apart, or the connections.
OWN = {"SERVER_SOFTWARE", "SERVER_PORT", "REMOTE_PORT"}


def app(environ, start_response):
    # A body that cannot be read raises, which is the server's to answer.
    body = environ["wsgi.input"].read()
    told = {
        name: value
        for name, value in environ.items()
        if isinstance(value, str) and name not in OWN and not name.startswith("gunicorn.")
    }
    told["body"] = base64.b64encode(body).decode()
    text = json.dumps(told, sort_keys=True).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
    return [text]
