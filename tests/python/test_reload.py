"""`--reload`: a changed file brings new code, once, and a version that does not work leaves the old one."""

from __future__ import annotations

import os
import signal

import pytest

from harness import wait_until
from load import Load

pytestmark = pytest.mark.ringhorn_only

APP = """\
import part
def application(environ, start_response):
    start_response('200 OK', [])
    return [b'one ' + part.NAME]
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "page.py").write_text(APP)
    (tmp_path / "part.py").write_text("NAME = b'part'\n")
    return tmp_path


def answers(site, body: bytes) -> None:
    wait_until(lambda: site.get("/").body == body, f"the answer {body!r}")


def complete(site, count: int) -> None:
    wait_until(lambda: site.log().count("Reload complete") == count, f"{count} reloads are complete")


@pytest.mark.parametrize("engine", ["inotify", "poll"])
def test_a_changed_module_is_loaded_anew_in_every_worker_by_one_reload(serve, project, engine):
    site = serve("page", "--workers", "2", "--reload", "--reload-engine", engine, cwd=project)
    old = set(site.workers(2))
    for count, name in enumerate(("two", "three"), start=1):
        (project / "part.py").write_text(f"NAME = b'{name}'\n")
        complete(site, count)
        wait_until(lambda old=old: not old & set(site.children()), "the old workers leave")
        old = set(site.workers(2))
        answers(site, f"one {name}".encode())
    assert f"Worker reloading: {project / 'part.py'} modified" in site.log()
    assert site.log().count("Hang up: Master") == 2


def test_a_reload_loses_no_request(serve, project):
    code = (
        "import os\n"
        "def application(environ, start_response):\n"
        "    environ['wsgi.input'].read()\n"
        "    start_response('200 OK', [])\n"
        "    return [b'{\"pid\": %d}' % os.getpid()]\n"
    )
    (project / "page.py").write_text(code)
    site = serve("page", "--workers", "2", "--reload", cwd=project)
    with Load(site) as load:
        (project / "page.py").write_text(code + "# changed\n")
        complete(site, 1)
        load.until_only(set(site.workers(2)))


def test_an_editor_that_puts_a_new_file_in_place_is_noticed(serve, project):
    site = serve("page", "--workers", "1", "--reload", cwd=project)
    draft = project / "draft"
    # Of the same length, and older than the server: only the file is another one.
    draft.write_text(APP.replace("one", "two"))
    os.utime(draft, (1, 1))
    draft.rename(project / "page.py")
    answers(site, b"two part")


@pytest.mark.parametrize("engine", ["inotify", "poll"])
def test_a_version_that_does_not_work_leaves_the_old_one_until_it_is_mended(serve, project, engine):
    site = serve("page", "--workers", "1", "--reload", "--reload-engine", engine, cwd=project)
    # The fault is in a module that the old worker does not have.
    (project / "added.py").write_text("NAME = syntax error\n")
    (project / "page.py").write_text(APP.replace("import part", "import added as part").replace("one", "two"))
    wait_until(lambda: "the reload is dropped" in site.log(), "the reload is dropped")
    assert "added.py" in site.log()
    assert site.get("/").body == b"one part"
    (project / "added.py").write_text("NAME = b'mended'\n")
    answers(site, b"two mended")


def test_a_module_that_is_imported_later_is_watched(serve, project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "late.py").write_text("NAME = b'late'\n")
    (project / "page.py").write_text(
        "def application(environ, start_response):\n"
        "    import late\n"
        "    start_response('200 OK', [])\n"
        "    return [late.NAME]\n"
    )
    site = serve("page", "--workers", "1", "--reload", "--pythonpath", str(elsewhere), cwd=project)
    answers(site, b"late")
    (elsewhere / "late.py").write_text("NAME = b'later'\n")
    answers(site, b"later")


@pytest.mark.parametrize("engine", ["inotify", "poll"])
def test_extra_files_are_watched_by_name_and_by_pattern(serve, project, tmp_path_factory, engine):
    data = tmp_path_factory.mktemp("data")
    (data / "settings.toml").write_text("a = 1\n")
    options = ["--reload-extra-file", str(data / "settings.toml"), "--reload-extra-file", f"{data}/*/*.html"]
    site = serve("page", "--workers", "1", "--reload", "--reload-engine", engine, *options, cwd=project)
    (data / "settings.toml").write_text("a = 2\n")
    complete(site, 1)
    (data / "new").mkdir()
    (data / "new" / "page.html").write_text("<p>\n")
    complete(site, 2)
    assert f"{data / 'new' / 'page.html'} modified" in site.log()


def test_without_reload_nothing_is_watched(serve, project):
    site = serve("page", "--workers", "1", cwd=project)
    (project / "page.py").write_text(APP.replace("one", "two"))
    # What reloads is the signal, and only the signal.
    site.signal(signal.SIGHUP)
    complete(site, 1)
    assert site.log().count("Hang up") == 1 and "modified" not in site.log()


def test_a_preloaded_application_is_not_watched_and_the_log_says_so(serve, project):
    site = serve("page", "--workers", "2", "--preload", "--reload", cwd=project)
    # The other worker may answer before the first has said so.
    wait_until(
        lambda: site.log().count("reload does not watch a preloaded application") == 1,
        "the first worker says so",
    )
