"""What hooks of a config file are given: the server, its workers, requests and responses.

The names are gunicorn's, as far as hooks in use need them. The work is done by the extension module, which
makes one `Server` when there is a hook, and tells it what happens.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from ringhorn import _log, _native
from ringhorn._config import Config, parse_address


class Server:
    """gunicorn's arbiter as hooks know it: `server` in `when_ready(server)`."""

    def __init__(
        self, settings: dict[str, Any], load: Callable[[], Any] | None = None, owner: Any = None
    ) -> None:
        self.cfg = _entered(settings)
        self.log = _log.of(self.cfg)
        self.pid = os.getpid()
        self.app: Any = owner
        if owner is None:
            self.app = Application(self.cfg, load)
        elif load is None:
            # The config file may have named what the program left open.
            owner.app_uri = self.cfg.settings["wsgi_app"].value
        self.master_name = "Master"
        self.master_pid = 0
        self.reexec_pid = 0
        self.worker_age = 0
        self.LISTENERS: list[Listener] = []
        self.WORKERS: dict[int, Worker] = {}
        self.START_CTX = {"args": [sys.executable, *sys.argv], "cwd": os.getcwd(), 0: sys.executable}
        self._workers: int | None = None
        self._workers_before: int | None = None
        self._worker: Worker | None = None

    @property
    def address(self) -> list[Any]:
        return self.cfg.address

    @property
    def timeout(self) -> float:
        return self.cfg.timeout

    @property
    def proc_name(self) -> str:
        return self.cfg.proc_name

    @property
    def pidfile(self) -> Pidfile | None:
        path = self.cfg.pidfile
        return Pidfile(path, self.pid) if path else None

    @property
    def num_workers(self) -> int | None:
        return self._workers

    @num_workers.setter
    def num_workers(self, count: int) -> None:
        step = count - (self._workers or 0)
        if step not in (-1, 0, 1):
            raise ValueError("num_workers can be changed by one at a time")
        if step:
            os.kill(self.pid, signal.SIGTTIN if step > 0 else signal.SIGTTOU)

    def kill_worker(self, pid: int, sig: int) -> None:
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            # Its end is about to be noticed.
            self.log.debug("worker (pid:%s) has ended already", pid)

    def kill_workers(self, sig: int) -> None:
        for pid in list(self.WORKERS):
            self.kill_worker(pid, sig)

    def reload(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def reexec(self) -> None:
        os.kill(self.pid, signal.SIGUSR2)

    def stop(self, graceful: bool = True) -> None:
        os.kill(self.pid, signal.SIGTERM if graceful else signal.SIGQUIT)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        if reason is not None:
            self.log.error("Reason: %s", reason)
        self.stop()

    # --- steps of the master's life, called by the extension module

    def _configure(self, settings: dict[str, Any]) -> None:
        self.cfg = _entered(settings)
        self.log = _log.of(self.cfg)
        if isinstance(self.app, Application):
            self.app.configure(self.cfg)

    def _resume(self, settings: dict[str, Any]) -> None:
        self._configure(settings)
        self._workers = self._workers_before

    def _call(self, name: str, *args: object) -> None:
        hook = self.cfg.settings[name].value
        if hook is not None:
            hook(*args)

    def nworkers_changed(self, new: int, old: int | None) -> None:
        if new != self._workers:
            # Otherwise a reload has told of it.
            self._workers = self._workers_before = new
            self._call("nworkers_changed", self, new, old)

    def preloaded(self, application: object) -> None:
        self.app.callable = application

    def on_starting(self) -> None:
        self._call("on_starting", self)

    def on_reload(self, workers: int) -> None:
        self._workers_before, self._workers = self._workers, workers
        # As gunicorn's, also when the number is the same.
        self._call("nworkers_changed", self, workers, self._workers_before)
        self._call("on_reload", self)

    def when_ready(self, addresses: list[str]) -> None:
        self.LISTENERS = [Listener(address) for address in addresses]
        self._call("when_ready", self)

    def pre_fork(self, age: int) -> None:
        self.worker_age = age
        self._worker = Worker(self, age)
        self._call("pre_fork", self, self._worker)

    def forked(self, pid: int) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.pid = pid
            self.WORKERS[pid] = worker

    def child_exit(self, pid: int) -> None:
        worker = self.WORKERS.pop(pid, None)
        if worker is not None:
            self._call("child_exit", self, worker)

    def pre_exec(self) -> None:
        self._call("pre_exec", self)

    def on_exit(self) -> None:
        self._call("on_exit", self)

    # --- steps of a worker's life

    def post_fork(self) -> None:
        worker = self._worker
        if worker is not None:
            worker.pid = os.getpid()
            self._call("post_fork", self, worker)

    def init_signals(self) -> None:
        """Put Python handlers where a hook wants to hear of a signal. The application may replace them."""
        if self.cfg.settings["worker_int"].value is not None:
            signal.signal(signal.SIGINT, self._on_int)
            signal.signal(signal.SIGQUIT, self._on_int)
        # gunicorn ends the worker by an exception, so both are called.
        if any(self.cfg.settings[name].value is not None for name in ("worker_abort", "worker_exit")):
            signal.signal(signal.SIGABRT, self._on_abort)

    def post_worker_init(self, application: object) -> None:
        worker = self._worker
        if worker is not None:
            worker.wsgi = worker.app.callable = application
            self._call("post_worker_init", worker)
            worker.booted = True

    def begin_late(self, application: object) -> None:
        """Make the worker, in its own process, where no hook wanted one before."""
        self._worker = worker = Worker(self, self.worker_age)
        worker.pid, worker.ppid = os.getpid(), os.getppid()
        worker.wsgi = worker.app.callable = application
        worker.booted = True

    def worker_exit(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._call("worker_exit", self, worker)

    def _on_int(self, number: int, frame: object) -> None:
        self._tell("worker_int")
        # What the server's own handler would have done.
        _native.signal_worker(number)

    def _on_abort(self, number: int, frame: object) -> NoReturn:
        self._tell("worker_abort")
        try:
            self.worker_exit()
        except Exception:
            self.log.warning("Exception during worker exit:\n%s", traceback.format_exc())
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        _native.flush_log()
        # Threads that hang are the usual reason to be here: do not wait for them.
        os._exit(1)

    def _tell(self, name: str) -> None:
        try:
            self._call(name, self._worker)
        except Exception:
            self.log.exception("Exception in %s hook", name)


def _entered(settings: dict[str, Any]) -> Config:
    """Give the settings as they are once the directory of `chdir` has been entered."""
    if settings["chdir"] is not None:
        # Counted from there a relative name would be another directory.
        settings["chdir"] = os.getcwd()
    return Config(settings)


class Pidfile:
    """`server.pidfile`. The file is the server's own business."""

    def __init__(self, fname: str, pid: int) -> None:
        self.fname = fname
        self.pid = pid


class Application:
    """`server.app` and `worker.app`: what is served."""

    def __init__(self, cfg: Config, load: Callable[[], Any] | None) -> None:
        self.callable: Any = None
        self._load = load
        self.configure(cfg)

    def configure(self, cfg: Config) -> None:
        self.cfg = cfg
        self.app_uri: str = cfg.settings["wsgi_app"].value

    def load(self) -> Any:
        return _native.load_application(self.app_uri) if self._load is None else self._load()

    def wsgi(self) -> Any:
        """Give the application. Loaded in the master it is that of all workers, as with `preload_app`."""
        if self.callable is None:
            self.callable = self.load()
        return self.callable


class Listener:
    """An address that the server listens on."""

    def __init__(self, address: str) -> None:
        self._text = address
        self.cfg_addr: Any = parse_address(address.removeprefix("http://"))

    def getsockname(self) -> Any:
        return self.cfg_addr

    def __str__(self) -> str:
        return self._text


class Worker:
    """gunicorn's worker as hooks know it. The master has one for each worker, a worker has its own."""

    SIGNALS = [
        getattr(signal, "SIG" + name) for name in "ABRT HUP QUIT INT TERM USR1 USR2 WINCH CHLD".split()
    ]

    def __init__(self, server: Server, age: int) -> None:
        self.age = age
        self.pid: int | str = "[booting]"
        self.ppid = server.pid
        self.sockets = server.LISTENERS
        self.app = server.app
        self.cfg = server.cfg
        self.log = server.log
        self.timeout = server.cfg.timeout / 2
        self.max_requests = server.cfg.max_requests or sys.maxsize
        self.booted = False
        self.aborted = False
        self.reloader = None
        self.wsgi: Any = None
        self.tmp = Heartbeat()

    @property
    def alive(self) -> bool:
        """Whether this worker goes on. False makes it leave after the requests in hand."""
        return not _native.is_leaving()

    @alive.setter
    def alive(self, alive: bool) -> None:
        if not alive and self.pid == os.getpid():
            _native.signal_worker(signal.SIGTERM)

    @property
    def nr(self) -> int:
        """Requests that this worker has begun to answer."""
        return _native.requests() if self.pid == os.getpid() else 0

    @property
    def nr_conns(self) -> int:
        """Connections that this worker has open."""
        return _native.connections() if self.pid == os.getpid() else 0

    def notify(self) -> None:
        """Do nothing: the server itself tells the master that this worker lives."""

    def __str__(self) -> str:
        return f"<Worker {self.pid}>"


class Heartbeat:
    """`worker.tmp`. The heartbeat is in shared memory and is the server's own business."""

    def notify(self) -> None:
        """Do nothing."""

    def last_update(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        """Do nothing."""


class Request:
    """`req` of `pre_request` and `post_request`. A hook may keep attributes of its own on it."""

    def __init__(
        self,
        worker: Worker,
        method: str,
        uri: str,
        path: str,
        query: str,
        version: tuple[int, int],
        headers: list[tuple[str, str]],
        scheme: str,
        peer: tuple[str, int] | str,
        body: Any,
        keep_alive: bool,
        proxy: dict[str, Any] | None,
        number: int,
    ) -> None:
        self.cfg = worker.cfg
        self.method = method
        self.uri = uri
        self.path = path
        self.query = query
        self.version = version
        self.headers = headers
        self.scheme = scheme
        self.remote_addr = self.peer_addr = peer
        self.body = body
        self.must_close = False
        self.proxy_protocol_info = proxy
        self.req_number = number
        self._keep_alive = keep_alive

    fragment = ""
    unreader = None

    @property
    def trailers(self) -> list[tuple[str, str]]:
        return []

    def _variables(self) -> tuple[Any, ...]:
        """Give what the environ is made from. `pre_request` may have changed any of it."""
        return (
            self.method,
            self.uri,
            self.path,
            self.query,
            self.version,
            self.scheme,
            self.body,
            list(self.headers),
        )

    def force_close(self) -> None:
        """Close the connection after this request. Has an effect in `pre_request`."""
        self.must_close = True

    def should_close(self) -> bool:
        return self.must_close or not self._keep_alive


def change_environ(
    environ: dict[str, Any], sent: tuple[Any, ...], wanted: tuple[Any, ...], unix: bool
) -> None:
    """Make the environ of a request what gunicorn would have made it from `wanted`; it is that of `sent`."""
    method, uri, path, query, version, scheme, body, headers = wanted
    environ["REQUEST_METHOD"] = method
    environ["RAW_URI"] = uri
    environ["QUERY_STRING"] = query
    environ["SERVER_PROTOCOL"] = "HTTP/" + ".".join(map(str, version))
    environ["wsgi.url_scheme"] = scheme
    environ["wsgi.input"] = body
    script = environ["SCRIPT_NAME"]
    if headers != sent[-1]:
        script = _change_headers(environ, sent[-1], headers, script)
    if path != sent[2] or script != environ["SCRIPT_NAME"]:
        if not path.startswith(script):
            raise ValueError(f"the path {path!r} is not below SCRIPT_NAME {script!r}")
        environ["PATH_INFO"] = unquote_to_bytes(path[len(script) :]).decode("latin-1")
        environ["SCRIPT_NAME"] = script
    host = dict(headers).get("HOST") if unix else None
    if host:
        name, colon, port = host.rpartition(":")
        if not colon or "]" in port:
            name, port = host, {"http": "80", "https": "443"}.get(scheme, "")
        environ["SERVER_NAME"], environ["SERVER_PORT"] = name, port


def _change_headers(
    environ: dict[str, Any], sent: list[tuple[str, str]], headers: list[tuple[str, str]], script: str
) -> str:
    """Put `headers` in the place of those that came, and give the mount point that follows from them."""
    for name, _ in sent:
        environ.pop(_variable(name), None)
        if name == "SCRIPT_NAME":
            script = os.environ.get("SCRIPT_NAME", "")
    for name, value in headers:
        key = _variable(name)
        if name == "SCRIPT_NAME":
            script = value
        if key in environ and key.startswith("HTTP_"):
            value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
        environ[key] = value
    return script


def _variable(name: str) -> str:
    key = name.replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


class Response:
    """`resp` of `post_request`, as the application made it and as far as it was sent."""

    def __init__(
        self,
        req: Request,
        status: str | None,
        status_code: int | None,
        headers: list[tuple[str, str]],
        sent: int,
        response_length: int | None,
        headers_sent: bool,
        chunked: bool,
        must_close: bool,
    ) -> None:
        self.req = req
        self.status = status
        self.status_code = status_code
        self.headers = headers
        self.sent = sent
        self.response_length = response_length
        self.headers_sent = headers_sent
        self.chunked = chunked
        self.must_close = must_close
        self.version = _native.SERVER_SOFTWARE

    sock = None

    def should_close(self) -> bool:
        return self.must_close
