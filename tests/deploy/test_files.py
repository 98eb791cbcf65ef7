"""The files in deploy/ that no front end reads: what they say is run, or checked against the server."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import harness
from fronts import DEPLOY, need
from harness import APPS, ROOT, Client, clean_environment, run_to_end, wait_until
from test_service import Manager

pytestmark = pytest.mark.ringhorn_only

RINGHORN = [sys.executable, "-m", "ringhorn"]


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters="=", comment_prefixes="#")
    parser.optionxform = str
    parser.read(DEPLOY / name)
    return parser


def settings(*args: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """What the server makes of its arguments."""
    code, said = run_to_end(RINGHORN, *args, "--print-config", env=env)
    assert code == 0, said
    return dict(re.findall(r"^(\w+) += (.*?) +# ", said, re.MULTILINE))


# --- systemd


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path):
    program = need("systemd-analyze")
    for name in ("shop.service", "shop.socket"):
        text = (DEPLOY / name).read_text()
        # It looks for the program.
        (tmp_path / name).write_text(text.replace("/srv/shop/venv/bin/ringhorn", "/bin/true"))
    done = subprocess.run(
        [program, "verify", "--man=no", str(tmp_path / "shop.service"), str(tmp_path / "shop.socket")],
        capture_output=True,
        text=True,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    # Other units of the machine may have faults of their own.
    ours = [line for line in done.stderr.splitlines() if "shop" in line]
    assert not ours, done.stderr


def test_the_units_let_io_uring_through():
    program = need("systemd-analyze")
    assert unit("shop.service")["Service"]["SystemCallFilter"] == "@system-service"
    done = subprocess.run([program, "syscall-filter", "@aio"], capture_output=True, text=True, check=True)
    assert {"io_uring_setup", "io_uring_enter", "io_uring_register"} <= set(done.stdout.split())
    done = subprocess.run(
        [program, "syscall-filter", "@system-service"], capture_output=True, text=True, check=True
    )
    assert "@aio" in done.stdout.split()


def test_the_service_starts_reloads_and_stops_as_its_unit_says(tmp_path, io):
    service, listen = unit("shop.service")["Service"], unit("shop.socket")["Socket"]
    assert service["Type"] == "notify" and listen["ListenStream"].startswith("/")
    manager = Manager(tmp_path / "notify")
    path = tmp_path / "shop.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(int(listen["Backlog"]))
    program, *args = shlex.split(service["ExecStart"])
    assert program.endswith("/ringhorn") and args[-1] == "mysite.wsgi"
    runtime = tmp_path / service["RuntimeDirectory"]
    runtime.mkdir()
    # The variables name the process itself, so they are set between fork and exec, as systemd does.
    start = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', WATCHDOG_PID=str(os.getpid()))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'ringhorn', *sys.argv[2:]])\n"
    )
    env = clean_environment(
        {
            "NOTIFY_SOCKET": str(manager.path),
            "RUNTIME_DIRECTORY": str(runtime),
            "WATCHDOG_USEC": str(int(service["WatchdogSec"]) * 10_000),
        }
    )
    command = [sys.executable, "-c", start, str(listener.fileno()), "--io", io, *args[:-1], "pep3333:app"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=APPS, env=env, pass_fds=[listener.fileno()], stdout=log, stderr=log
        )
    try:
        with Client(str(path)) as client:
            assert client.get("/plain").status == 200
        manager.wait_for("READY=1")
        manager.wait_for("WATCHDOG=1")
        assert [each.name for each in runtime.iterdir()] == ["ringhorn.ctl"], "for ringhorn ctl"
        manager.news.clear()
        reload = service["ExecReload"].replace("$MAINPID", str(process.pid))
        subprocess.run(shlex.split(reload), check=True)
        manager.wait_for("RELOADING=1")
        wait_until(
            lambda: manager.heard("READY=1") and "READY=1" in "\n".join(manager.news).split("RELOADING=1")[1],
            "ready after the reload",
        )
        # KillMode=mixed: TERM for the main process alone.
        assert service["KillMode"] == "mixed"
        process.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        assert process.wait(harness.PATIENCE) == 0, (tmp_path / "log").read_text()
        assert path.exists(), "the socket is the manager's"
    finally:
        process.kill()
        process.wait()
        listener.close()
        manager.socket.close()


def test_systemd_waits_longer_than_the_server():
    service = unit("shop.service")["Service"]
    values = settings(*shlex.split(service["ExecStart"])[1:-1], "pep3333:app")
    assert int(service["TimeoutStopSec"]) > int(values["graceful_timeout"]) + int(values["drain_delay"])


# --- containers


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


def test_the_image_is_small_and_without_root():
    found = instructions()
    stages = [rest.split(" AS ")[-1] for name, rest in found if name == "FROM"]
    assert len(stages) == 2
    last = found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]
    user = [rest for name, rest in last if name == "USER"][-1]
    assert user.isdigit() and user != "0", "Kubernetes' runAsNonRoot wants a number"
    for name, rest in found:
        if name == "COPY" and "--from=" in rest:
            assert re.search(r"--from=(\S+)", rest)[1] in stages
        elif name == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest


def test_what_lies_about_in_a_checkout_does_not_get_into_the_image():
    """The first stage copies everything: old builds and, worse, a database that was played with."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]

    def left_out(path: str) -> bool:
        # Docker's rules, as far as the file uses them: from the root, a folder with all that it holds, ** for any.
        def matches(pattern: str) -> bool:
            any_depth = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            return re.fullmatch(f"{any_depth}(/.*)?", path) is not None

        return any(map(matches, patterns))

    rubbish = [
        ".git/HEAD",
        ".venv/bin/python",
        ".venv-3.12/x",
        "target/release/ringhorn",
        "loadtest/target/debug/x",
    ]
    rubbish += [
        "python/ringhorn/_native.so",
        "src/__pycache__/x.pyc",
        ".pytest_cache/x",
        "loadtest/results/x.json",
    ]
    rubbish += ["examples/django/db.sqlite3", "examples/django/db.sqlite3-wal"]
    assert [path for path in rubbish if not left_out(path)] == []
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    assert [path for path in listed.stdout.splitlines() if left_out(path)] == [], (
        "the build needs its sources"
    )


def test_the_image_starts_the_server_without_a_shell_and_with_arguments_that_it_takes():
    found = dict(instructions())
    program, *args = json.loads(found["ENTRYPOINT"])
    app = json.loads(found["CMD"])
    assert program == "ringhorn" and app == ["mysite.wsgi"]
    assert settings(*args, "pep3333:app")["bind"] == "['0.0.0.0:8000']"


def test_the_server_as_process_1(tmp_path, io):
    """In a process namespace of its own: process 1 has no default actions for signals, and adopts orphans."""
    unshare = [need("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no process namespaces here")
    (tmp_path / "orphans.py").write_text(
        "import os, pep3333\n"
        "def application(environ, start):\n"
        "    if environ['PATH_INFO'] == '/orphan' and os.fork() == 0:\n"
        "        if os.fork() == 0: os.execvp('true', ['true'])\n"
        "        os._exit(0)\n"
        "    if environ['PATH_INFO'] == '/zombies':\n"
        "        states = [open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[:2]\n"
        "                  for p in os.listdir('/proc') if p.isdigit()]\n"
        "        body = str(sum(s == ['Z', '1'] for s in states)).encode()\n"
        "        start('200 OK', [('Content-Length', str(len(body)))]); return [body]\n"
        "    return pep3333.app(environ, start)\n"
    )
    site = harness.Server(
        [*unshare, *RINGHORN, "--io", io],
        ["--workers", "1", "orphans"],
        log=tmp_path / "log",
        cwd=tmp_path,
        env={"PYTHONPATH": str(APPS)},
        ready=None,
    )
    try:
        for _ in range(3):
            site.get("/orphan", "Connection: close")
        wait_until(lambda: site.get("/zombies", "Connection: close").body == b"0", "orphans are reaped")
        (master,) = site.children()
        assert "NSpid:" in (status := Path(f"/proc/{master}/status").read_text())
        assert re.search(r"NSpid:\s+\d+\s+1$", status, re.MULTILINE), "it is process 1"
        os.kill(master, signal.SIGTERM)
        assert site.wait() == 0, site.log()
    finally:
        site.kill()


def test_kubernetes_waits_longer_than_the_server_and_asks_for_its_paths():
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    image = json.loads(dict(instructions())["ENTRYPOINT"])[1:]
    env = {item["name"]: item["value"] for item in container["env"]}
    values = settings(*image, *container["args"][:-1], "pep3333:app", env=env)
    assert values["workers"] == env["WEB_CONCURRENCY"]
    delay, graceful = int(values["drain_delay"]), int(values["graceful_timeout"])
    assert pod["terminationGracePeriodSeconds"] > delay + graceful
    ready, live, startup = (container[f"{kind}Probe"] for kind in ("readiness", "liveness", "startup"))
    # Kubernetes has seen it before the server stops.
    assert ready["periodSeconds"] * ready["failureThreshold"] < delay
    assert repr(ready["httpGet"]["path"]) == repr(startup["httpGet"]["path"]) == values["ready_path"]
    assert repr(live["httpGet"]["path"]) == values["health_path"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert values["bind"] == f"['0.0.0.0:{ports['http']}']"
    assert values["metrics_bind"] == f"'0.0.0.0:{ports['metrics']}'"
    assert service["spec"]["ports"][0]["targetPort"] in ports
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert str(pod["securityContext"]["runAsUser"]) == dict(instructions())["USER"]


def test_the_manifest_is_what_the_schemas_of_kubernetes_say():
    """Those of all versions at hand, and nothing in it that they do not know: a slip in a name is ignored otherwise."""
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate, with the schemas of Kubernetes, is not installed"
    )
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Deployment", "Service"]
    for version in sorted(set(kubernetes.utils.all_versions())):
        for document in documents:
            kubernetes.validate(document, version, strict=True)
    (container,) = documents[0]["spec"]["template"]["spec"]["containers"]
    container["readinesProbe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes.ValidationError, match="readinesProbe"):
        kubernetes.validate(documents[0], version, strict=True)


def test_the_seccomp_profile_gets_io_uring_and_loses_nothing():
    before = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}],
    }
    done = subprocess.run(
        [str(DEPLOY / "seccomp-io-uring")],
        input=json.dumps(before),
        capture_output=True,
        text=True,
        check=True,
    )
    after = json.loads(done.stdout)
    added = after["syscalls"].pop()
    assert after == before
    assert added["action"] == "SCMP_ACT_ALLOW"
    assert sorted(added["names"]) == ["io_uring_enter", "io_uring_register", "io_uring_setup"]
