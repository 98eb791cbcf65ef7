"""Looks for changed files (`--reload`), in a thread of each worker, and tells the master.

What is watched: the files of the modules that are loaded, other Python files beside them (a new module that
does not work yet is loaded by nobody), and the extra files of the settings. A file has changed when it is not
what it was at the look before. The time of the change goes to the master, which reloads once for all workers.
"""

from __future__ import annotations

import glob
import itertools
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from ringhorn import _native
from ringhorn._log import LEVELS

# Seconds between two looks. With inotify only extra files and new modules are looked for so often.
PERIOD = 1.0
# Seconds from the first event to the look: one save of an editor is several events.
SETTLE = 0.05

Identity = tuple[int, int, int, int]


def watch(tell: Callable[[int], None], engine: str, extra: list[str], since: float) -> None:
    """Start the thread. `tell` is given the time of a change, in milliseconds of the monotonic clock.

    `since` is when the worker began to load the application, in seconds since the epoch.
    """
    watcher = Watcher(tell, extra, since)
    watcher.look()
    inotify = None if engine == "poll" else watcher.open_inotify(engine)
    work = watcher.poll if inotify is None else lambda: watcher.listen(inotify)
    threading.Thread(target=work, name="ringhorn-reload", daemon=True).start()


class Watcher:
    def __init__(self, tell: Callable[[int], None], extra: list[str], since: float) -> None:
        self.tell = tell
        self.extra = [os.path.abspath(pattern) for pattern in extra]
        self.since_ns = int(since * 1e9)
        self.looked_ns = 0
        self.seen: dict[str, Identity] = {}
        self.names: set[str] = set()
        self.directories: set[str] = set()
        self.libraries = tuple(
            os.path.join(path, "")
            for name, path in sysconfig.get_paths().items()
            if name in ("stdlib", "platstdlib", "purelib", "platlib")
        )

    def modules(self) -> set[str]:
        """Give the files of all modules that are loaded, and the Python files beside the application's."""
        files = set()
        # A copy: other threads import meanwhile.
        for module in list(sys.modules.values()):
            # Modules may be any object, with any idea of its attributes.
            path = getattr(module, "__dict__", {}).get("__file__")
            if isinstance(path, str):
                # Made from a source that is beside it, or else this is what there is.
                source = path[:-1] if path.endswith(".pyc") else path
                files.add(os.path.abspath(source if os.path.exists(source) else path))
        ours = {os.path.dirname(path) for path in files if not self.is_library(path)}
        for directory in ours:
            try:
                names = os.listdir(directory)
            except OSError:
                continue
            files.update(os.path.join(directory, name) for name in names if name.endswith(".py"))
        return files

    def is_library(self, path: str) -> bool:
        return path.startswith(self.libraries) or "-packages" + os.sep in path

    def extra_files(self) -> Iterator[str]:
        for pattern in self.extra:
            if glob.has_magic(pattern):
                yield from glob.iglob(pattern, recursive=True)
            else:
                yield pattern

    def look(self, files: Iterable[str] | None = None) -> None:
        """Look at the files (at all, if none are named) and tell of those that have changed."""
        begun_ns = time.time_ns()
        for path in itertools.chain(self.modules(), self.extra_files()) if files is None else files:
            try:
                status = os.stat(path)
            except OSError:
                # Gone. An editor may be about to put a new one there; there is nothing to load until then.
                continue
            now = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
            before = self.seen.get(path)
            self.seen[path] = now
            # Its last change of any kind: a file that was moved here brings an old time of its content along.
            at_ns = status.st_ctime_ns
            if before is None:
                changed = at_ns > self.since_ns
            else:
                changed = now != before
                # The clock of a file system that others share may be behind.
                at_ns = max(at_ns, self.looked_ns)
            if changed:
                self.report(path, at_ns)
        if files is None:
            self.looked_ns = begun_ns

    def report(self, path: str, at_ns: int) -> None:
        _native.log(LEVELS["info"], f"Worker reloading: {path} modified")
        self.tell(max(0, time.monotonic_ns() - (time.time_ns() - at_ns)) // 1_000_000)

    def poll(self) -> None:
        block_signals()
        while True:
            time.sleep(PERIOD)
            self.look()

    def listen(self, inotify: _native.Inotify) -> None:
        block_signals()
        known, looked = len(sys.modules), time.monotonic()
        while True:
            names = inotify.wait(int(PERIOD * 1000))
            if names:
                time.sleep(SETTLE)
            if len(sys.modules) != known or any(self.concerns(name) for name in names):
                known = len(sys.modules)
                self.look()
                try:
                    self.follow(inotify)
                except OSError as error:
                    cannot_listen(error)
                    return self.poll()
            elif time.monotonic() - looked >= PERIOD:
                # Those of a pattern may be in directories that did not exist before.
                looked = time.monotonic()
                self.look(self.extra_files())

    def concerns(self, name: str) -> bool:
        # No name: events were lost. A log file of the application, for one, is nobody's business.
        return not name or name.endswith(".py") or name in self.names

    def follow(self, inotify: _native.Inotify) -> None:
        """Watch the directories of all files that were seen, and of what they are links to."""
        paths = {*self.seen, *map(os.path.realpath, self.seen)}
        self.names = {os.path.basename(path) for path in paths}
        for directory in {os.path.dirname(path) for path in paths} - self.directories:
            try:
                inotify.watch(directory)
            except FileNotFoundError:
                continue
            self.directories.add(directory)

    def open_inotify(self, engine: str) -> _native.Inotify | None:
        try:
            inotify = _native.Inotify()
            self.follow(inotify)
        except OSError as error:
            # Limits of the user's watches and instances, mostly; `auto` takes what there is.
            if engine == "inotify":
                cannot_listen(error)
            return None
        return inotify


def cannot_listen(error: OSError) -> None:
    what = f"inotify cannot watch ({error.strerror}), so files are looked at every second"
    _native.log(LEVELS["warning"], what)


def block_signals() -> None:
    # The process's signals are the main thread's.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
