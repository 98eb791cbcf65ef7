"""`ringhorn top` in a real terminal (tmux), with a load whose numbers are known."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import PATIENCE, clean_environment, request, run_to_end, wait_until
from test_control import place, runtime, say, site  # noqa: F401 (fixtures)

pytestmark = pytest.mark.ringhorn_only

# A colour in front of a character, by number or of the palette.
COLOUR = re.compile("\x1b\\[(?:[0-9;]*;)?3[0-8]")

TOP = [sys.executable, "-m", "ringhorn", "top"]


class Screen:
    """A terminal of its own, and what stands in it."""

    def __init__(self, name: str, size: tuple[int, int], command: str, env: dict[str, str], out: Path):
        self.tmux = ["tmux", "-L", name, "-f", "/dev/null"]
        self.out = out
        # The exit code is written down, and the pane stays to be looked at.
        line = f"{command}; echo $? > {shlex.quote(str(out))}; exec sleep 600"
        width, height = map(str, size)
        self._run(
            "new-session", "-d", "-s", "top", "-x", width, "-y", height, "sh", "-c", line,
            env=clean_environment(env) | {"TERM": "xterm-256color"},
        )  # fmt: skip

    def _run(self, *words: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*self.tmux, *words], env=env, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        return done.stdout

    def lines(self, *options: str) -> list[str]:
        return self._run("capture-pane", "-p", "-t", "top", *options).splitlines()

    def press(self, *keys: str) -> None:
        self._run("send-keys", "-t", "top", *keys)

    def resize(self, width: int, height: int) -> None:
        self._run("resize-window", "-t", "top", "-x", str(width), "-y", str(height))

    def rows(self) -> dict[str, dict[str, str]]:
        """The table: for each slot, and `all`, what stands under each head."""
        lines = self.lines()
        heads = [line for line in lines if "REQ/S" in line]
        if not heads:
            return {}
        # Numbers end where their heads do; one head has two words.
        ends = {
            match[0]: match.end()
            for match in re.finditer(r"IN HAND|[A-Z0-9%/]+", heads[0].split("REQ/S SO")[0])
        }
        rows = {}
        for line in lines[lines.index(heads[0]) + 1 :]:
            cells = {}
            for head, end in ends.items():
                begin = end
                while begin > 0 and line[begin - 1 : begin].strip():
                    begin -= 1
                cells[head] = line[begin:end].strip()
            if cells.get("SLOT") == "all" or cells.get("SLOT", "").isdigit():
                rows[cells["SLOT"]] = cells
        return rows

    def cell(self, slot: str, head: str) -> str:
        """What stands there; nothing while the screen is being drawn."""
        return self.rows().get(slot, {}).get(head, "")

    def until(self, ready: Callable[[], object], what: str) -> None:
        try:
            wait_until(ready, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.lines())) from None

    def exit_code(self) -> int:
        wait_until(lambda: self.out.exists() and self.out.read_text().strip(), "the command's end")
        return int(self.out.read_text())

    def close(self) -> None:
        subprocess.run([*self.tmux, "kill-server"], capture_output=True, timeout=PATIENCE)


@pytest.fixture
def screen(runtime, tmp_path) -> Iterator[Callable[..., Screen]]:  # noqa: F811
    """Starts `ringhorn top` with these options in a terminal of this size."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: what a terminal shows cannot be looked at")
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(
            *options: str, size: tuple[int, int] = (130, 24), env: dict[str, str] | None = None
        ) -> Screen:
            # A name for each: a server that was told to end may still hold its name.
            name = f"ringhorn-{tmp_path.name}-{next(numbers)}"
            command = shlex.join([*TOP, *options])
            screen = Screen(name, size, command, runtime | (env or {}), tmp_path / "code")
            stack.callback(screen.close)
            return screen

        yield start


def test_the_numbers_on_the_screen_are_those_of_the_load(site, screen):  # noqa: F811
    seconds, requests = 4, 400
    top = screen("--interval", str(seconds))
    top.until(lambda: any("second answer" in line for line in top.lines()), "the first answer")
    # All of them between the first look and the second: the rate is known.
    with site.client() as one, site.client() as two:
        for _ in range(requests // 2):
            assert one.get("/environ").status == two.get("/environ").status == 200
        top.until(lambda: sorted(top.rows()) == ["0", "1", "all"], "the second answer")
    rows = top.rows()
    rate = requests / seconds
    # The time between the two looks is longer than the load by what the machine makes of it.
    assert 0 < float(rows["all"]["REQ/S"]) <= 1.01 * rate, rows
    assert abs(sum(float(rows[slot]["REQ/S"]) for slot in "01") - float(rows["all"]["REQ/S"])) <= 0.11
    assert {rows[slot]["PID"] for slot in "01"} == set(map(str, site.children()))
    assert all(rows[slot]["STATE"] == "ready" for slot in "01")
    # The harness has asked once.
    top.until(lambda: f"2 workers  {requests + 1} requests  {site.url}" in top.lines()[1], "all requests")
    assert f"pid {site.process.pid}" in top.lines()[0] and "pep3333:app" in top.lines()[0]
    # And then nobody asks any more.
    top.until(lambda: top.cell("all", "REQ/S") == "0.0", "a quiet interval")
    top.press("q")
    assert top.exit_code() == 0


def test_keys_scale_reload_pause_sort_and_quit(site, screen):  # noqa: F811
    old = set(site.children())
    top = screen("--interval", "0.2")
    top.until(lambda: "all" in top.rows(), "two answers")
    top.press("+")
    top.until(lambda: "3 workers (there were 2)" in top.lines()[-1] and "2" in top.rows(), "a third worker")
    top.press("-")
    top.until(lambda: sorted(top.rows()) == ["0", "1", "all"], "two workers again")
    top.press("r")

    def renewed() -> bool:
        pids = {row["PID"] for slot, row in top.rows().items() if slot != "all"}
        return len(pids) == 2 and not pids & set(map(str, old))

    top.until(renewed, "new workers")
    top.press("p")
    top.until(lambda: "PAUSED" in top.lines()[0], "the pause")
    top.press("p")
    top.until(lambda: "PAUSED" not in top.lines()[0], "the end of the pause")
    top.press("s")
    top.until(lambda: any("\x1b[1m\x1b[4m" in line or "4m" in line for line in top.lines("-e")), "the mark")
    top.press("Escape")
    assert top.exit_code() == 0
    assert "control: scale +1 (uid:" in site.log()


def test_a_terminal_that_becomes_narrow_keeps_what_matters(site, screen):  # noqa: F811
    top = screen("--interval", "0.2")
    top.until(lambda: "MEMORY" in " ".join(top.rows().get("all", [])), "all columns")
    top.resize(44, 10)
    kept = {"SLOT", "CPU%", "REQ/S", "P99"}

    def narrow() -> bool:
        heads = set(top.rows().get("all", ()))
        return kept <= heads and "MEMORY" not in heads

    top.until(narrow, "fewer columns")
    top.resize(130, 24)
    top.until(lambda: "MEMORY" in top.rows().get("all", []), "all columns again")


def test_colours_unless_no_color(site, screen, tmp_path):  # noqa: F811
    top = screen("--interval", "0.2")
    top.until(lambda: "all" in top.rows(), "two answers")
    assert any(COLOUR.search(line) for line in top.lines("-e"))
    top.close()
    top = screen("--interval", "0.2", env={"NO_COLOR": "1"})
    top.until(lambda: "all" in top.rows(), "two answers")
    assert not any(COLOUR.search(line) for line in top.lines("-e"))


def test_it_ends_with_the_server_and_leaves_the_terminal_as_it_was(site, screen):  # noqa: F811
    top = screen("--interval", "0.2")
    top.until(lambda: "all" in top.rows(), "two answers")
    site.signal(signal.SIGTERM)
    assert top.exit_code() == 1
    assert any("does not answer" in line or "cannot reach" in line for line in top.lines())


def test_it_ends_when_its_terminal_is_closed(site, runtime):  # noqa: F811
    """Also where HUP is ignored, as under nohup: what reads a closed terminal for ever takes a whole CPU."""
    for ignored in (False, True):
        terminal, other_end = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 130, 0, 0))
        os.set_blocking(terminal, False)

        def prepare(ignored: bool = ignored) -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

        command = subprocess.Popen(
            [*TOP, "--interval", "0.2"],
            stdin=other_end,
            stdout=other_end,
            stderr=subprocess.DEVNULL,
            env=clean_environment(runtime) | {"TERM": "xterm-256color"},
            preexec_fn=prepare,
            start_new_session=True,
        )
        os.close(other_end)
        try:
            shown = bytearray()

            def drawn(terminal: int = terminal, shown: bytearray = shown) -> bool:
                with contextlib.suppress(BlockingIOError):
                    shown += os.read(terminal, 65536)
                return b"REQ/S" in shown

            wait_until(drawn, "the table")
            os.close(terminal)
            command.wait(PATIENCE)
        finally:
            command.kill()
            command.wait()


def test_once_prints_a_table_and_needs_no_terminal(site, runtime):  # noqa: F811
    code, text = run_to_end(TOP, "--once", "--interval", "0.2", env=runtime)
    assert code == 0 and "\x1b" not in text
    lines = text.splitlines()
    assert "pep3333:app" in lines[0] and lines[2].split()[:3] == ["SLOT", "PID", "STATE"]
    assert [line.split()[0] for line in lines[3:]] == ["all", "0", "1"]


def test_without_a_terminal_it_says_what_to_do(site, runtime):  # noqa: F811
    code, text = run_to_end(TOP, env=runtime)
    assert code == 1 and "--once" in text
    assert run_to_end(TOP, "--interval", "0", env=runtime)[0] == 2


@pytest.mark.parametrize("options", [(), ("--metrics-bind", "127.0.0.1:0")], ids=["plain", "metrics"])
def test_what_is_in_hand_and_how_long_it_takes(serve, screen, runtime, options):  # noqa: F811
    """What the server counts for Prometheus is on the screen, too, and without an address for it as well."""
    site = serve("pep3333:app", "--workers", "1", "--threads", "3", *options, env=runtime)  # noqa: F811
    top = screen("--interval", "0.2")
    top.until(lambda: "all" in top.rows(), "two answers")
    with site.client() as one, site.client() as two:
        for client in (one, two):
            client.send(request("GET", "/wait?key=top"))
        top.until(lambda: (top.cell("0", "IN HAND"), top.cell("0", "CONN")) == ("2", "2"), "two in hand")
        assert site.get("/open/top").status == 200
        assert one.read_response().body == two.read_response().body == b"opened"
        top.until(lambda: top.cell("0", "IN HAND") == "0", "none in hand")

        def timed() -> bool:
            assert one.get("/environ").status == 200
            return re.fullmatch(r"\d+(us|ms)", top.cell("0", "P50")) is not None

        top.until(timed, "latencies")


def test_what_was_there_before_anybody_looked(serve, screen, runtime):  # noqa: F811
    """Both runners blocked, a request that waits, and nothing that moves: this is when somebody looks."""
    site = serve("pep3333:app", "--workers", "1", "--threads", "2", env=runtime)  # noqa: F811
    with ExitStack() as stack:
        clients = [stack.enter_context(site.client()) for _ in range(3)]
        for client in clients:
            client.send(request("GET", "/wait?key=before"))
        wait_until(lambda: say(place(runtime), b"show requests\n")["data"]["count"] == 2, "both are blocked")
        top = screen("--interval", "0.2")

        def shown() -> tuple[str, ...]:
            return tuple(top.cell("0", head) for head in ("IN HAND", "BLOCKED", "QUEUE", "CONN"))

        top.until(lambda: shown() == ("2", "2/2", "1", "3"), "the blocked runners")
        top.press("q")
        assert top.exit_code() == 0
        site.signal(signal.SIGINT)
        site.wait()


def test_one_table_has_latencies(site, runtime):  # noqa: F811
    """All of what `--once` shows is of its one interval, in which the workers count."""
    with site.client() as client:
        table = subprocess.Popen(
            [*TOP, "--once", "--interval", "2"],
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(runtime),
        )
        while table.poll() is None:
            assert client.get("/environ").status == 200
        lines = table.communicate(timeout=PATIENCE)[0].splitlines()
    assert table.returncode == 0
    assert lines[3].split()[0] == "all"
    assert re.search(r" \d[\d.]*(us|ms) +\d[\d.]*(us|ms) ", lines[3]), lines
