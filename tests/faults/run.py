"""What a scenario is given, and what is kept of its run."""

from __future__ import annotations

import contextlib
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .clients import Load, Lost, wait
from .servers import Kind, NotOffered, NotStarted, Settings, Site


class Skipped(Exception):
    """This machine lacks what the scenario needs; the text says what."""


class Cut(Exception):
    """The scenario cannot go on after a broken promise, which has been noted."""


@dataclass
class Promise:
    text: str
    kept: bool
    detail: str = ""


@dataclass
class Outcome:
    scenario: str
    server: str
    full: bool
    promises: list[Promise] = field(default_factory=list)
    numbers: dict[str, float | str] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: str = ""
    """Why there is nothing to see: the server does not offer it, or the machine cannot show it."""
    error: str = ""
    """What went wrong with the scenario itself."""
    logs: str = ""

    @property
    def broken(self) -> list[Promise]:
        return [promise for promise in self.promises if not promise.kept]

    @property
    def verdict(self) -> str:
        if self.skipped:
            return "-"
        if self.error:
            return "error"
        return f"{len(self.broken)} of {len(self.promises)} broken" if self.broken else "kept"

    def as_json(self) -> dict:
        return asdict(self) | {"verdict": self.verdict}

    @classmethod
    def of_json(cls, value: dict) -> Outcome:
        value = {name: each for name, each in value.items() if name != "verdict"}
        return cls(**value | {"promises": [Promise(**promise) for promise in value["promises"]]})


@dataclass
class Scenario:
    name: str
    run: Callable[[Case], None]
    number: str
    """The promises of docs/reliability.md that it is about."""
    network: bool
    """Whether the I/O backend matters."""
    native: bool
    """Whether it asks for nothing but what a native server has, too."""

    @property
    def title(self) -> str:
        return (self.run.__doc__ or "").strip().splitlines()[0]


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    number: str, network: bool = True, native: bool = False
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def register(run: Callable[[Case], None]) -> Callable[[Case], None]:
        SCENARIOS[run.__name__] = Scenario(run.__name__, run, number, network, native)
        return run

    return register


class Case:
    """One run of a scenario: starts servers, and takes down what they keep and what they break."""

    def __init__(self, kind: Kind, full: bool, outcome: Outcome, folder: Path):
        self.kind = kind
        self.full = full
        self.outcome = outcome
        self.folder = folder
        self.sites: list[Site] = []

    def pick(self, short, full):
        """The size of something in the short and in the full form."""
        return full if self.full else short

    def start(self, *, env=None, **options) -> Site:
        """A server in a folder of its own, unless `folder` names one."""
        names = Settings.__dataclass_fields__
        settings = Settings(**{name: options.pop(name) for name in list(options) if name in names})
        folder = options.pop("folder", None) or self.folder / str(len(self.sites))
        folder.mkdir(exist_ok=True)
        # A worker that has given up root's rights writes here, too.
        folder.chmod(0o777)
        site = Site(self.kind, folder, settings, env=env, **options)
        self.sites.append(site)
        return site

    def promise(self, text: str, kept: object, detail: object = "") -> bool:
        self.outcome.promises.append(Promise(text, bool(kept), "" if kept else str(detail)))
        return bool(kept)

    def must(self, text: str, kept: object, detail: object = "") -> None:
        """A promise without which the rest makes no sense."""
        if not self.promise(text, kept, detail):
            raise Cut

    def number(self, name: str, value: float | str) -> None:
        self.outcome.numbers[name] = round(value, 2) if isinstance(value, float) else value

    def add(self, name: str, value: float) -> None:
        self.outcome.numbers[name] = self.outcome.numbers.get(name, 0) + value

    def eventually(
        self, text: str, ready: Callable[[], object], patience: float = 10.0, must: bool = True
    ) -> float:
        """A promise that something comes to be; the seconds it took."""
        begun = time.monotonic()
        kept = wait(ready, patience)
        if must:
            self.must(text, kept, f"not within {patience:.0f} s")
        else:
            self.promise(text, kept, f"not within {patience:.0f} s")
        return time.monotonic() - begun

    def nothing_lost(self, what: str, load: Load) -> None:
        self.add("requests", load.asked)
        self.add("lost", len(load.losses))
        for kind, count in load.lost.items():
            self.add(f"lost: {kind}", count)
        details = [f"{loss.client}: {loss.detail}" for loss in load.losses[:3]]
        self.promise(
            f"{what}: nothing is lost", not load.losses, f"{dict(load.lost)} of {load.asked}; {details}"
        )


def run(name: str, kind: Kind, full: bool) -> Outcome:
    """Runs one scenario. It never raises: what goes wrong is in the outcome."""
    outcome = Outcome(name, kind.label, full)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        # Other users' workers come in.
        Path(folder).chmod(0o777)
        case = Case(kind, full, outcome, Path(folder))
        with ended(case):
            try:
                if kind.is_native and not SCENARIOS[name].native:
                    raise NotOffered("it is about Python applications")
                SCENARIOS[name].run(case)
            except Cut:
                pass
            except (NotOffered, Skipped) as why:
                outcome.skipped = str(why)
            except NotStarted as why:
                outcome.promises.append(Promise("the server starts", False, str(why)))
            except Lost as lost:
                at = traceback.extract_tb(lost.__traceback__)
                line = next((frame for frame in reversed(at) if "scenarios" in frame.filename), at[-1])
                outcome.promises.append(Promise(f"an answer to `{line.line}`", False, str(lost)))
            except Exception:
                outcome.error = traceback.format_exc()
    outcome.seconds = round(time.monotonic() - begun, 1)
    return outcome


@contextlib.contextmanager
def ended(case: Case) -> Iterator[None]:
    """Ends all servers of a case and keeps their logs if something was not as it should be."""
    try:
        yield
    finally:
        for site in case.sites:
            site.kill()
            log = site.log()
            case.outcome.logs += f"--- {site.log_path.name}\n{log[-20_000:]}"
            if case.kind.is_ringhorn and not case.outcome.skipped:
                case.promise("no panic", "panicked" not in log, log)
