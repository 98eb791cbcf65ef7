"""What is around the server: logs, the clock, rights, files, and a start that cannot succeed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from ..clients import Load, message, wait
from ..run import Case, Skipped, scenario
from ..servers import NotOffered, NotStarted, Site, status_of, write_release

HERE = Path(__file__).resolve().parent.parent


@scenario("18", network=False)
def log_failures(case: Case) -> None:
    """Logs that cannot be written: a full disk, a closed output, a pipe that nobody reads."""
    for text, options in {
        "access log on a full disk": {"access_log": "/dev/full"},
        "error log on a full disk": {"error_log": "/dev/full"},
        "closed standard output": {"access_log": "-", "before_exec": lambda: os.close(1)},
    }.items():
        with contextlib.suppress(NotOffered):
            serve_on(case, text, case.start(**options))

    read, write = os.pipe()
    site = case.start(access_log="-", stdout=write)
    os.close(write)
    os.close(read)
    serve_on(case, "a pipe whose reader has gone", site)

    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    site = case.start(access_log="-", stdout=write)
    os.close(write)
    serve_on(case, "a pipe whose reader stands still", site)
    os.close(read)


def serve_on(case: Case, text: str, site: Site) -> None:
    count = case.pick(150, 600)
    with Load(site.address, new=4, kept=4, pause=0, timeout=2) as load:
        load.go_on(count, patience=case.pick(4, 15))
    failed = len(load.losses)
    case.number(f"{text}: requests that failed", f"{failed} of {load.asked}")
    case.promise(
        f"{text}: it serves on",
        not load.losses and load.answered >= count,
        f"{dict(load.lost)} of {load.asked}",
    )
    site.signal(signal.SIGTERM)
    case.promise(f"{text}: it stops with code 0", site.end(10) == 0)
    site.kill()


@scenario("18", network=False)
def log_rotate(case: Case) -> None:
    """USR1 while clients ask: each answer has its line, and each line is whole."""
    if case.kind.name == "granian":
        raise NotOffered("no log files of its own")
    log = case.folder / "access.log"
    site = case.start(access_log=str(log))
    rounds = case.pick(4, 20)
    with Load(site.address, pause=0) as load:
        for number in range(rounds):
            load.go_on(100)
            log.rename(log.with_suffix(f".{number}"))
            site.signal(signal.SIGUSR1)
            case.eventually("the log is opened again", log.exists)
    site.signal(signal.SIGTERM)
    case.promise("exit code 0", site.end(20) == 0)
    lines = [line for path in case.folder.glob("access.*") for line in path.read_text().splitlines()]
    # Without what was asked before the load.
    lines = [line for line in lines if '"GET / HTTP/1.1"' not in line]
    whole = re.compile(r'127\.0\.0\.1 - - \[[^\]]+\] "GET /\S* HTTP/1\.1" 200 \d+ "-" "-"')
    torn = [line for line in lines if not whole.fullmatch(line)]
    missing = load.answered - len(lines)
    case.number("rotations", rounds)
    case.number("lines missing", missing)
    case.number("lines torn", len(torn))
    case.promise("each answer has its line", missing == 0, missing)
    case.promise("each line is whole", not torn, torn[:3])
    case.nothing_lost("rotating", load)


# --- the clock


def shim(case: Case) -> Path:
    cc = shutil.which("cc")
    if cc is None:
        raise Skipped("needs a C compiler (cc) for the shim that moves the clock")
    library = case.folder / "clock.so"
    subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", library, HERE / "clock.c"], check=True)
    return library


class Clock:
    def __init__(self, case: Case):
        self.path = case.folder / "clock"
        self.env = {"LD_PRELOAD": str(shim(case)), "FAULTS_CLOCK": str(self.path)}
        self.path.write_bytes(struct.pack("q", 0))

    def set(self, seconds: int) -> None:
        with self.path.open("r+b") as file:
            file.write(struct.pack("q", seconds))


@scenario("22", network=False)
def clock_jump(case: Case) -> None:
    """The wall clock jumps an hour and a day, both ways, while serving and during a stop."""
    clock = Clock(case)
    more = {"ringhorn": ["--keep-alive", "10"], "gunicorn": ["--keep-alive", "10"]}
    site = case.start(env=clock.env, timeout=5, more=more)
    day = time.strftime("%a, %d %b %Y", time.gmtime(time.time() + 86400 * 3))
    clock.set(86400 * 3)
    dated = wait(lambda: day in site.get("/").fields.get("date", day), 5)
    case.promise("the clock of the server is moved, or it sends no Date", dated)
    clock.set(0)
    workers = site.workers()
    with Load(site.address, pause=0.001) as load:
        for seconds in (3600, -3600, 86400, -86400, 0):
            clock.set(seconds)
            load.go_on(100, patience=5)
            # Longer than any heartbeat.
            time.sleep(case.pick(0.3, 3))
    case.promise("no worker is killed", site.workers() == workers)
    case.nothing_lost("a clock that jumps", load)
    site.kill()

    for text, seconds in (("back", -3600), ("forth", 3600)):
        clock.set(0)
        site = case.start(env=clock.env, graceful_timeout=2)
        gate = site.gate("never")
        with site.connect(30) as client:
            client.send(message("/gate/never"))
            case.eventually("a request begins", gate.begun)
            site.signal(signal.SIGTERM)
            begun = time.monotonic()
            time.sleep(0.3)
            clock.set(seconds)
            early = site.end(0.7) is not None
            ended = site.end(8) is not None
            case.number(
                f"stop with a grace of 2 s, clock {text} by an hour, s",
                time.monotonic() - begun if ended else "never",
            )
            case.promise(
                f"the grace holds when the clock goes {text}",
                ended and not early,
                "too early" if early else "it does not end",
            )
        site.kill()


# --- rights


@scenario("23", network=False)
def privilege_drop(case: Case) -> None:
    """Started as root with --user and --group: workers keep no right of root's, after a reload, too."""
    if os.geteuid() != 0:
        raise Skipped("needs root")
    try:
        user = pwd.getpwnam("nobody")
    except KeyError:
        raise Skipped("there is no user `nobody`") from None
    # Workers load the application as that user, from an interpreter that may lie in somebody's home.
    if not may_run(user):
        raise Skipped(f"`nobody` may not read the library of {sys.executable}")
    # Root's other groups, as a login shell has them.
    groups = [4, 20, 27]
    site = case.start(user="nobody", group=str(user.pw_gid), before_exec=lambda: os.setgroups(groups))
    look(case, site, user, "")
    case.number("NoNewPrivs", status_of(site.workers()[0])["NoNewPrivs"])
    before = set(site.workers())
    site.release("second")
    site.signal(signal.SIGHUP)
    case.eventually(
        "it reloads", lambda: len(set(site.workers()) - before) == 2 and not before & set(site.workers()), 20
    )
    look(case, site, user, "after a reload ")
    with Load(site.address) as load:
        load.go_on(50)
    case.nothing_lost("without root's rights", load)


def may_run(user: pwd.struct_passwd) -> bool:
    with contextlib.suppress(PermissionError):
        probe = [sys.executable, "-c", "import ast, json"]
        done = subprocess.run(probe, user=user.pw_uid, group=user.pw_gid, cwd="/", capture_output=True)
        return done.returncode == 0
    return False


def look(case: Case, site: Site, user: pwd.struct_passwd, when: str) -> None:
    for pid in site.workers():
        status = status_of(pid)
        case.promise(f"{when}user", status["Uid"].split() == [str(user.pw_uid)] * 4, status["Uid"])
        case.promise(f"{when}group", status["Gid"].split() == [str(user.pw_gid)] * 4, status["Gid"])
        left = set(status["Groups"].split()) - {str(user.pw_gid)}
        case.promise(f"{when}no other groups", not left, left)
        kept = [name for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status[name], 16)]
        case.promise(f"{when}no capabilities", not kept, kept)


# --- starting


@scenario("20", network=False)
def boot_errors(case: Case) -> None:
    """Starts that cannot succeed end quickly and say why; remains of an earlier life are no obstacle."""
    slowest = 0.0
    for text, options, said in (
        ("a module that is missing", {"before": "import no_such_module"}, "no_such_module"),
        ("a module that raises", {"before": "raise RuntimeError('broken release')"}, "broken release"),
        ("a syntax error", {"before": "def :"}, "SyntaxError"),
        ("an option that is unknown", {"args": ["--no-such-option"]}, "no-such-option"),
        ("a number that is none", {"args": ["--workers", "many"]}, "many"),
    ):
        slowest = max(slowest, cannot_start(case, text, said, **options))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        slowest = max(slowest, cannot_start(case, "a port that is taken", "in use", port=port))
    case.number("longest start that fails, s", slowest)
    pidfiles(case)
    sockets(case)


def cannot_start(
    case: Case, text: str, said: str, before: str = "", args: list[str] | None = None, **options
) -> float:
    folder = case.folder / f"boot-{len(case.sites)}"
    folder.mkdir()
    more = {name: args or [] for name in ("ringhorn", "gunicorn", "granian")}
    begun = time.monotonic()
    if before:
        write_release(folder, "broken", before)
    site = case.start(folder=folder, more=more, wait_for_answer=False, **options)
    code = site.end(15)
    took = time.monotonic() - begun
    case.promise(f"{text}: it ends by itself", code is not None)
    case.promise(f"{text}: exit code is not 0", code not in (0, None), code)
    case.promise(f"{text}: the reason is told", said in site.log(), site.log()[-300:])
    site.kill()
    return took


def pidfiles(case: Case) -> None:
    for text, content in (
        ("a pidfile of a process that is gone", "4194303\n"),
        ("a pidfile that names a stranger", f"{os.getpid()}\n"),
        ("a pidfile full of garbage", "not a number\n"),
        ("an empty pidfile", ""),
    ):
        path = case.folder / "stale.pid"
        path.write_text(content)
        try:
            site = case.start(pidfile=path)
        except NotStarted as why:
            case.promise(f"{text} is no obstacle", False, str(why)[-300:])
            continue
        case.promise(f"{text} is no obstacle", path.read_text() == f"{site.pid}\n")
        site.signal(signal.SIGTERM)
        site.end(10)
        case.promise(f"{text}: it is removed at the end", not path.exists())


def sockets(case: Case) -> None:
    path = case.folder / "app.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
    more = {
        "ringhorn": ["--bind", f"unix:{path}"],
        "gunicorn": ["--bind", f"unix:{path}"],
        "granian": ["--uds", str(path)],
    }
    site = case.start(bind=False, more=more, wait_for_answer=False)
    case.promise(
        "a Unix socket left behind is no obstacle",
        wait(lambda: site.ended() or over_unix(path), 10) and not site.ended(),
        site.log()[-300:],
    )
    site.kill()

    path = case.folder / "precious"
    path.write_text("precious\n")
    more = {
        "ringhorn": ["--bind", f"unix:{path}"],
        "gunicorn": ["--bind", f"unix:{path}"],
        "granian": ["--uds", str(path)],
    }
    site = case.start(bind=False, more=more, wait_for_answer=False)
    code = site.end(8)
    kept = path.is_file() and path.read_text() == "precious\n"
    case.promise("a plain file in the place of a socket is kept", kept)
    case.promise("and the start fails", code not in (0, None), code)
    site.kill()


def over_unix(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        client.connect(str(path))
        client.sendall(message("/", "Connection: close"))
        return client.recv(100).startswith(b"HTTP/1.1 200")
    return False
