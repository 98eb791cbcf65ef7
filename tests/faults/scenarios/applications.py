"""An application that does what it must not."""

from __future__ import annotations

import sys
from pathlib import Path

from ..clients import Lost, message, wait
from ..run import Case, scenario
from ..servers import APPS, Site


def kinds() -> list[str]:
    if str(APPS) not in sys.path:
        sys.path.insert(0, str(APPS))
    import hostile

    assert Path(hostile.__file__).parent == APPS
    return list(hostile.KINDS)


@scenario("17")
def hostile_app(case: Case) -> None:
    """Applications that raise, lie about lengths, inject fields, and return what is no answer."""
    site = case.start(workers=1, threads=2)
    (worker,) = site.workers()
    names = kinds()
    injected, spilled, odd, silent, deaths = [], [], [], [], []
    for name in names:
        try:
            with site.connect(5) as client:
                # A second request behind it shows whether the connection is still understood.
                client.send(message(f"/hostile/{name}") + message("/", "Connection: close"))
                text = client.rest()
        except Lost:
            text = b""
        judge(name, text, injected, spilled, odd, silent)
        # One that is gone is replaced; the next kind meets the next worker.
        if site.workers() != [worker]:
            deaths.append(name)
            if not recovered(site):
                break
            (worker,) = site.workers()
        if site.ended():
            break
    case.number("kinds of misbehaviour", len(names))
    case.number("workers that died of it", len(deaths))
    case.number("answers with injected fields", len(injected))
    case.number("answers that spill into the next", len(spilled))
    case.number("connections closed without an answer", len(silent))
    case.must("the server lives", not site.ended(), deaths[-1:])
    case.promise("no worker dies", not deaths, deaths)
    case.promise("no field is injected", not injected, injected)
    case.promise("nothing follows the end of an answer but the next one", not spilled, spilled)
    case.promise("each answer is a plain one", not odd, odd)
    case.promise("each gets an answer: 500 where it can be", not silent, silent)
    case.promise("and it serves on", site.get("/").status == 200)


def recovered(site: Site) -> bool:
    def answers() -> bool:
        try:
            return len(site.workers()) == 1 and site.get("/", timeout=2).status == 200
        except Lost:
            return False

    return wait(lambda: site.ended() or answers(), 15) and not site.ended()


def judge(name: str, text: bytes, injected: list, spilled: list, odd: list, silent: list) -> None:
    """Takes the first answer off, strictly, and looks at what is left."""
    if not text:
        silent.append(name)
        return
    head, found, rest = text.partition(b"\r\n\r\n")
    line = head.split(b"\r\n")[0]
    parts = line.split(b" ", 2)
    if (
        not found
        or len(parts) < 2
        or parts[0] != b"HTTP/1.1"
        or not (parts[1].isdigit() and len(parts[1]) == 3)
    ):
        odd.append(f"{name}: {line[:60]!r}")
        return
    fields = head.lower().split(b"\r\n")[1:]
    if any(field.startswith(b"x-injected") for field in fields) or b"\0" in head:
        injected.append(name)
    texts = [field.partition(b":")[2].strip() for field in fields if field.startswith(b"content-length:")]
    if any(not text.isdigit() for text in texts):
        odd.append(f"{name}: Content-Length {texts}")
        return
    lengths = [int(text) for text in texts]
    chunked = any(field.startswith(b"transfer-encoding:") for field in fields)
    if len(lengths) > 1 or (lengths and chunked):
        odd.append(f"{name}: two framings")
    if parts[1] in (b"204", b"304"):
        behind = rest
    elif chunked:
        behind = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            count = int(size, 16)
            if count == 0:
                behind = rest[2:]
                break
            rest = rest[count + 2 :]
    elif lengths:
        behind = rest[lengths[0] :]
    else:
        behind = b""
    if (
        behind
        and not behind.startswith((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 400 "))
        or b"X-Injected: 1" in behind
    ):
        spilled.append(f"{name}: {behind[:60]!r}")
