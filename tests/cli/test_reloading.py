"""What a saved file restarts, with real workers: the process that answers tells."""

import json
import os
import re

import pytest

APP = """
import os

import steps
from flashkit import cpu_endpoint

FACTOR = 1


@cpu_endpoint(name="web", workers=(1, 2), idle_timeout=600)
def web() -> dict[str, int]:
    return {"pid": os.getpid(), "value": steps.VALUE}


@cpu_endpoint(name="embed", workers=(1, 2), idle_timeout=600)
def embed() -> dict[str, int]:
    return {"pid": os.getpid(), "value": FACTOR}
"""


FILES = {"app.py": APP, "steps.py": "VALUE = 1\n", ".env": "A = 0\n", "settings.toml": "a = 0\n"}


@pytest.fixture(scope="module")
def server(tmp_path_factory, start_shared_dev):
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return start_shared_dev(folder)


@pytest.fixture
def running(server, flashkit):
    """The server with its first code; `call` gives the answer of an endpoint."""
    other = {name for name, text in FILES.items() if (server.folder / name).read_text() != text}
    for name in other:
        (server.folder / name).write_text(FILES[name])
    while other:
        other -= set(re.findall(r"[\w.]+", server.wait_for("changed ").rpartition("changed ")[2]))
    server.call = lambda name: json.loads(flashkit("run", name, "{}", folder=server.folder).out)
    return server


def save(running, name, text):
    (running.folder / name).write_text(text)


def test_a_module_restarts_the_endpoint_that_imports_it_and_the_other_stays_warm(running):
    before = {name: running.call(name) for name in ("web", "embed")}
    save(running, "steps.py", "VALUE = 2\n")
    shown = running.wait_for("changed steps.py")
    assert re.search(
        r"changed steps\.py: restarted `web` \(\d+\.\d s\); `embed` kept warm \(does not use what changed\)$",
        shown.rstrip(),
    )
    now = {name: running.call(name) for name in ("web", "embed")}
    assert (now["web"]["value"], now["embed"]["value"]) == (2, 1)
    assert now["web"]["pid"] != before["web"]["pid"]
    assert now["embed"]["pid"] == before["embed"]["pid"]


def test_in_one_file_the_function_that_changed_is_restarted(running):
    before = {name: running.call(name) for name in ("web", "embed")}
    save(running, "app.py", APP.replace("FACTOR = 1", "FACTOR = 3"))
    assert "restarted `embed`" in running.wait_for("`web` kept warm")
    assert running.call("embed")["value"] == 3
    assert running.call("web") == before["web"]


def test_a_changed_option_restarts_its_endpoint(running):
    save(running, "app.py", APP.replace('"embed", workers=(1, 2)', '"embed", workers=(1, 1)'))
    assert "restarted `embed`" in running.wait_for("`web` kept warm")


def test_two_saves_of_one_size_in_one_second_are_both_seen(running):
    draft = running.folder / "draft"
    for value in (7, 8):
        draft.write_text(f"VALUE = {value}\n")
        os.utime(draft, (1_700_000_000, 1_700_000_000))  # Python's bytecode knows size and second only
        draft.replace(running.folder / "steps.py")
        running.wait_for("changed steps.py")
        assert running.call("web")["value"] == value


def test_what_an_image_is_built_from_is_told_and_restarts_nothing(running):
    before = running.call("web")
    save(running, "requirements.txt", "numpy\n")
    save(running, "Dockerfile", "FROM scratch\n")
    shown = running.wait_for("requirements.txt: nothing restarted")
    assert "restarted `" not in shown
    assert "with the next image" in shown
    assert running.call("web") == before


@pytest.mark.parametrize("name", [".env", "settings.toml"])
def test_settings_restart_every_endpoint(running, name):
    save(running, name, "A = 1\n")
    assert f"changed {name}: restarted `embed`, `web`" in running.wait_for("changed")


@pytest.mark.parametrize("name", ["app.py", "steps.py"])
def test_a_syntax_error_shows_its_line_and_keeps_the_workers(running, name):
    before = running.call("web")
    save(running, name, "import os\nFACTOR = (\n")
    shown = running.wait_for("keep the last good code")
    assert f'{name}", line 2' in shown
    assert "    FACTOR = (" in shown
    assert shown.count("SyntaxError: '(' was never closed") == 1
    assert running.call("web") == before
    save(running, "app.py", APP)
    save(running, "steps.py", "VALUE = 5\n")
    assert "restarted `web`" in running.wait_for("`embed` kept warm")
    assert running.call("web")["value"] == 5


def test_a_file_that_no_endpoint_imports_restarts_nothing(running):
    (running.folder / "tests").mkdir()
    save(running, "tests/test_app.py", "def test(): ...\n")
    assert "changed tests/test_app.py: `embed`, `web` kept warm" in running.wait_for("changed")


def test_a_module_that_only_the_import_finds_restarts_every_endpoint(tmp_path, start_dev):
    (tmp_path / "loaded.py").write_text("A = 1\n")
    (tmp_path / "loader.py").write_text("A = getattr(__import__('imp' + 'ortlib'), 'import_module')('loaded')\n")
    (tmp_path / "app.py").write_text(APP.replace("import steps", "import steps, loader"))
    (tmp_path / "steps.py").write_text("VALUE = 1\n")
    dev = start_dev(tmp_path)
    (tmp_path / "loaded.py").write_text("A = 2\n")
    assert "restarted `embed`, `web`" in dev.wait_for("changed loaded.py")


def test_a_reload_is_an_event_for_whoever_follows(running, flashkit):
    def last_reload():
        lines = flashkit("logs", "--json", "-n", "1000", folder=running.folder).out.splitlines()
        return [event for line in lines if (event := json.loads(line))["type"] == "reload"][-1]

    save(running, "steps.py", "VALUE = 9\n")
    running.wait_for("changed steps.py")
    reload = last_reload()
    assert (reload["files"], reload["restarted"], reload["kept"]) == (["steps.py"], ["web"], ["embed"])
    save(running, "app.py", "import nothing_there\n")
    running.wait_for("keep the last good code")
    assert last_reload()["error"]["type"] == "ModuleNotFoundError"
