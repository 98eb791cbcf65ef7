"""Views of the guestbook, and small ones that show a server at work."""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods

from guestbook.forms import EntryForm
from guestbook.models import Entry

ENTRIES_SHOWN = 50
UPLOAD_PIECE_BYTES = 64 * 1024


@require_http_methods(["GET", "HEAD", "POST"])
def index(request: HttpRequest) -> HttpResponse:
    """The entries and the form that adds one."""
    form = EntryForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        form.save()
        return redirect("index")
    status = 422 if request.method == "POST" else 200
    shown = Entry.objects.all()[:ENTRIES_SHOWN]
    return render(request, "guestbook/index.html", {"form": form, "entries": shown}, status=status)


@require_GET
def hello(request: HttpRequest) -> JsonResponse:
    """A small answer without the database, with the process that gave it."""
    server = request.META.get("SERVER_SOFTWARE", "")
    return JsonResponse({"message": "hello", "server": server, "pid": os.getpid()})


@require_GET
def entries(request: HttpRequest) -> JsonResponse:
    """The newest entries."""
    rows = Entry.objects.values("id", "name", "message", "created")[:ENTRIES_SHOWN]
    return JsonResponse({"entries": list(rows)})


@require_GET
def stream(request: HttpRequest) -> HttpResponseBase:
    """``count`` lines, one every ``ms`` milliseconds, each sent when it is made."""
    count = _number(request, "count", default=10, most=10_000)
    pause = _number(request, "ms", default=200, most=10_000) / 1000

    def lines() -> Iterator[str]:
        for index in range(count):
            if index:
                time.sleep(pause)
            yield f"line {index}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain; charset=utf-8")


# An upload changes nothing here, so the check that a form needs would only be in curl's way.
@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST", "PUT"])
def upload(request: HttpRequest) -> HttpResponse:
    """A form for a file; its size and SHA-256 as JSON when it is sent.

    Takes the field ``file`` of a form (``curl -F file=@name``) or a plain body (``curl -T name``).
    """
    if request.method not in ("POST", "PUT"):
        return render(request, "guestbook/upload.html")
    if request.content_type == "multipart/form-data":
        if "file" not in request.FILES:
            return JsonResponse({"error": "the form has no field named file"}, status=400)
        return _digest(request.FILES["file"].chunks(UPLOAD_PIECE_BYTES))
    return _digest(iter(lambda: request.read(UPLOAD_PIECE_BYTES), b""))


@require_GET
def sleep(request: HttpRequest) -> JsonResponse:
    """An answer that takes ``ms`` milliseconds, as one that waits for a database would."""
    ms = _number(request, "ms", default=50, most=60_000)
    time.sleep(ms / 1000)
    return JsonResponse({"slept_ms": ms})


def _digest(pieces: Iterable[bytes]) -> JsonResponse:
    digest = hashlib.sha256()
    size = 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return JsonResponse({"sha256": digest.hexdigest(), "bytes": size})


def _number(request: HttpRequest, name: str, *, default: int, most: int) -> int:
    """A whole number of the query, kept between 0 and ``most``."""
    try:
        return max(0, min(int(request.GET.get(name, default)), most))
    except ValueError:
        return default
