"""`flashkit dev` from its banner to its end, with real workers."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flashkit import __version__
from flashkit.cli.apps import describe_app
from flashkit.errors import DefinitionError
from tests.processes import arguments_of

HANDLERS = Path(__file__).parents[1] / "handlers"


# ---- what it shows -----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_lines_of_the_banner_work_as_they_are(project, start_dev):
    dev = start_dev(project)
    lines = [line for line in dev.text.splitlines() if line.strip().startswith("curl")]
    assert len(lines) == 2
    done = subprocess.run(lines[1], shell=True, capture_output=True, text=True, timeout=30, check=True)
    assert '"status":"COMPLETED"' in done.stdout


BANNER = """\
flashkit VERSION
  local platform at URL   dashboard URL/

  greet(name: str, seconds: float = 0)  app.py:8
    URL/v2/greet  tool · cpu3c-2-4 · workers 0-2 · queue delay 4 s · idle 5 s · job limit 10 min
    curl -s URL/v2/greet/runsync -H 'Content-Type: application/json' -d '{"input":{"name":"text"}}'

  count(n: int)  app.py:17
    URL/v2/count  gpu · NVIDIA A100 80GB PCIe (or 1 more) · workers 0-3 · queue delay 4 s · idle 5 s · job limit 30 s
    curl -s URL/v2/count/runsync -H 'Content-Type: application/json' -d '{"input":{"n":1}}'

sessions  sqlite VERSION at sqlite:///FOLDER/s.db  see: flashkit sessions list
gpu       REAL OR FAKED
emulated  cold start count=0.5 s · capacity 1 · clock 2x · fault *:latency=1ms · random seed 7 · FlashBoot · rate limits
state     .flashkit  saving a file restarts the endpoints that depend on it
Ctrl-C stops

"""


def test_the_banner_says_what_runs_where_and_under_which_limits(project, start_dev):
    options = ("--cold-start", "count=0.5", "--capacity", "1", "--speed", "2x", "--fault", "latency=1ms")
    store = ("--redis", "sqlite:///s.db", "--random-seed", "7", "--flashboot", "--rate-limits")
    dev = start_dev(project, *options, *store)
    shown = dev.text.replace(dev.url, "URL").replace(str(project), "FOLDER")
    shown = re.sub(r"^(flashkit|sessions  sqlite) [\d.]+", r"\1 VERSION", shown, flags=re.MULTILINE)
    shown = re.sub(r"^gpu       .+", "gpu       REAL OR FAKED", shown, flags=re.MULTILINE)
    assert shown == BANNER


def test_the_banner_of_many_endpoints_fits_a_screen(tmp_path, start_dev):
    code = "from flashkit import cpu_endpoint\n"
    code += "".join(f"@cpu_endpoint(name='e{n}')\ndef f{n}(): ...\n" for n in range(12))
    (tmp_path / "app.py").write_text(code)
    dev = start_dev(tmp_path)
    assert f"  {dev.url}/v2/e11  tool · " in dev.text
    assert len(dev.text.splitlines()) < 24


def test_the_first_line_comes_before_anything_heavy_is_imported(project):
    script = "import sys; sys.modules['rich'] = None; from flashkit.cli import main; main(['dev', '--port', '0'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == f"flashkit {__version__}\n"


def test_jobs_prints_and_errors_are_shown_as_they_happen(project, start_dev, flashkit):
    dev = start_dev(project)
    flashkit("run", "greet", '{"name": "nobody"}', folder=project)
    shown = dev.wait_for("request: ")
    assert re.search(r"^\d\d:\d\d:\d\d · greet +worker \S+ starting$", shown, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d │ greet +about to greet nobody$", shown, re.MULTILINE)
    assert re.search(r"✗ greet +run +[0-9a-f]{8}  FAILED  queue .* · cold start .* · run .* → ", shown)
    assert "           LookupError: there is nobody to greet\n             at app.py:13 in greet\n" in shown
    assert "\x1b" not in dev.text


def test_at_level_info_the_sdk_is_heard_and_queued_jobs_are_shown(project, start_dev, flashkit):
    shutil.copy(HANDLERS / "blocking.py", project)
    dev = start_dev(project, "blocking.py", "--log-level", "info")
    assert flashkit("run", "blocking", "{}", folder=project).code == 0
    shown = dev.wait_for("COMPLETED")
    assert "IN_QUEUE  " in shown
    assert "Starting Serverless Worker" in shown


@pytest.mark.parametrize(("variables", "has_colours"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colours_unless_no_color_is_set(project, start_dev, variables, has_colours):
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from flashkit.cli import main; main(['dev', '--port', '0'])"], cwd=project,
        stdin=theirs, stdout=theirs, stderr=theirs, env={**env, "TERM": "xterm-256color", **variables},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"Ctrl-C stops" not in shown:
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    drain = threading.Thread(target=read_to_end, args=(ours,))
    drain.start()
    assert process.wait(timeout=15) == 0
    drain.join()
    os.close(ours)
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-7]m", shown)) is has_colours


def read_to_end(descriptor):
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:
        pass  # how a terminal says that nobody is left on its other side


# ---- sessions ----------------------------------------------------------------------------------------------

SURROUNDINGS = """
import os

from flashkit import orchestrator_endpoint


@orchestrator_endpoint(name="agent")
async def agent(session) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("FLASHKIT_", "HF_"))}
"""


@pytest.fixture
def agents(tmp_path):
    (tmp_path / "app.py").write_text(SURROUNDINGS)
    return tmp_path


def environment_of_worker(flashkit, folder):
    return json.loads(flashkit("run", "agent", "{}", folder=folder).out)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_sessions_are_kept_by_a_server_that_starts_and_ends_with_it(agents, start_dev, flashkit, assert_gone):
    dev = start_dev(agents, PATH=os.environ["PATH"])
    assert re.search(r"^sessions +\w+ [\d.]+ of its own, .flashkit/redis", dev.text, re.MULTILINE)
    record = json.loads(dev.record.read_text())
    assert record["state"].startswith("unix:///")
    assert (f"http://127.0.0.1:{record['port']}", record["dashboard"]) == (dev.url, f"{dev.url}/")
    assert dev.record.stat().st_mode & 0o077 == 0
    assert environment_of_worker(flashkit, agents)["FLASHKIT_STATE"] == record["state"]
    family = dev.family()
    assert any("server.sock" in " ".join(arguments_of(process)) for process in family)
    dev.send(signal.SIGTERM)
    assert dev.end() == 0
    assert_gone(family, seconds=2)
    start_dev(agents)
    assert len(json.loads(flashkit("sessions", "list", "--json", folder=agents).out)) == 1


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_the_store_can_be_made_to_stop_answering_for_a_while(agents, start_dev, assert_gone):
    dev = start_dev(agents, "--fault", "redis=down@0s-1s")
    dev.wait_for("fault down")
    family = dev.family()
    dev.wait_for("fault up again")
    dev.send(signal.SIGTERM)
    assert dev.end() == 0
    assert_gone(family, seconds=5)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_a_second_server_in_the_folder_says_that_it_borrows_the_store(agents, start_dev):
    first = start_dev(agents)
    store = json.loads(first.record.read_text())["state"]
    second = start_dev(agents)
    second.wait_for("another flashkit dev in this folder uses the same store")
    assert json.loads(second.record.read_text())["state"] == store


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_first_server_may_end_while_a_second_one_uses_the_store(agents, start_dev, flashkit, assert_gone, number):
    first = start_dev(agents)
    environment_of_worker(flashkit, agents)
    keepers = [process for process in first.family() if "server.sock" in " ".join(arguments_of(process))]
    second = start_dev(agents)
    first.send(number)
    first.end()
    environment_of_worker(flashkit, agents)
    assert len(json.loads(flashkit("sessions", "list", "--json", folder=agents).out)) == 2
    second.send(number)
    second.end()
    assert_gone(keepers, seconds=15)


def test_workers_keep_journals_and_short_leases_unless_the_shell_says_otherwise(agents, start_dev, flashkit):
    dev = start_dev(agents, "--redis", "sqlite:///below/sessions.db", FLASHKIT_LEASE_SECONDS="9")
    given = environment_of_worker(flashkit, agents)
    assert (given["FLASHKIT_KEEP_JOURNALS"], given["FLASHKIT_LEASE_SECONDS"]) == ("1", "9")
    assert given["FLASHKIT_STATE"] == f"sqlite:///{agents}/below/sessions.db"
    assert (agents / "below" / "sessions.db").exists()
    assert re.search(r"^sessions +sqlite [\d.]+ at sqlite:///", dev.text, re.MULTILINE)


def test_workers_share_the_developers_weights_and_hugging_face_cache(agents, start_dev, flashkit, tmp_path):
    start_dev(agents, "--redis", "sqlite:///below/sessions.db", HF_HOME=str(tmp_path / "hf"))
    given = environment_of_worker(flashkit, agents)
    assert given["FLASHKIT_WEIGHTS_CACHE"] == str(Path.home() / ".cache/flashkit/weights")
    assert given["HF_HUB_CACHE"] == str(tmp_path / "hf/hub")


def test_the_option_is_preferred_to_the_variable(agents, start_dev):
    dev = start_dev(agents, "--redis", f"sqlite:///{agents}/a.db", FLASHKIT_STATE=f"sqlite:///{agents}/b.db")
    assert json.loads(dev.record.read_text())["state"].endswith("/a.db")


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("http://127.0.0.1:6379", 2, "is not a store for sessions"),
        ("redis://user:secret@127.0.0.1:1/0", 1, "127.0.0.1:1"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_before_anything_starts(agents, flashkit, url, code, message):
    result = flashkit("dev", "--port", "0", "--redis", url, folder=agents)
    assert result.code == code
    assert message in result.err
    assert "secret" not in result.err
    assert "Traceback" not in result.err
    assert not (agents / ".flashkit" / "dev.json").exists()


# ---- apps --------------------------------------------------------------------------------------------------


def test_a_plain_runpod_handler_runs_unmodified_under_the_name_of_its_file(tmp_path, start_dev, flashkit):
    shutil.copy(HANDLERS / "streaming.py", tmp_path / "My_Stream.py")
    start_dev(tmp_path, "My_Stream.py")
    result = flashkit("run", "my-stream", '{"count": 3}', "--stream", folder=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert result.out == '{"number":0}\n{"number":1}\n{"number":2}\n'


def test_two_apps_run_together(project, start_dev, flashkit):
    shutil.copy(HANDLERS / "blocking.py", project)
    start_dev(project, "app.py", "blocking.py")
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out
    assert "slept" in flashkit("run", "blocking", "{}", folder=project).out


def test_two_endpoints_with_one_name_are_refused_with_both_places(project, start_dev):
    shutil.copy(project / "app.py", project / "other.py")
    dev = start_dev(project, "app.py", "other.py", "--no-reload", until=None)
    assert dev.end() == 3
    assert "two endpoints are named 'greet': at app.py:8 and at other.py:8" in dev.text


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("from flashkit import gpu_endpoint\n@gpu_endpoint(gpu='A1OO')\ndef f(): ...\n", "A1OO"),
        ("import sys\nsys.exit(7)\n", "app.py"),
        ("import os\nos._exit(0)\n", "importing app.py ended its process"),
        ("x = 1\n", "app.py defines no endpoint"),
    ],
)
def test_without_reload_an_app_that_cannot_run_exits_with_3_and_says_why(tmp_path, flashkit, code, message):
    (tmp_path / "app.py").write_text(code)
    result = flashkit("dev", "--no-reload", "--port", "0", folder=tmp_path)
    assert result.code == 3
    assert message in result.err
    assert not (tmp_path / ".flashkit" / "dev.json").exists()


def test_without_an_app_it_says_what_to_write(tmp_path, flashkit):
    result = flashkit("dev", folder=tmp_path)
    assert result.code == 2
    assert "flashkit dev APP.py" in result.err


# ---- one at a time on a port -------------------------------------------------------------------------------


def test_a_second_server_on_the_port_exits_with_4_and_names_the_option(project, start_dev, flashkit):
    dev = start_dev(project)
    port = dev.url.rpartition(":")[2]
    result = flashkit("dev", "--port", port, folder=project)
    assert result.code == 4
    assert f"port {port}" in result.err
    assert "--port" in result.err
    assert dev.record.exists()


def test_an_address_of_another_machine_exits_with_2_and_names_the_options(project, flashkit):
    result = flashkit("dev", "--host", "192.0.2.1", "--port", "0", folder=project)
    assert result.code == 2
    assert "--host or --port" in result.err


def test_clients_in_the_folder_and_below_find_the_server_while_it_runs(project, start_dev, flashkit):
    below = project / "deep" / "down"
    below.mkdir(parents=True)
    dev = start_dev(project)
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=below).out
    dev.send(signal.SIGTERM)
    assert dev.end() == 0
    assert not dev.record.exists()
    assert "nowhere to send the job" in flashkit("run", "greet", "{}", folder=below).err


# ---- reloading ---------------------------------------------------------------------------------------------


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_saving_a_file_restarts_its_workers_with_the_new_code(project, start_dev, flashkit):
    dev = start_dev(project)
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out
    edit(project / "app.py", "hello", "good day")
    dev.wait_for("changed app.py: restarted `greet`")
    assert "good day Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out


def test_saving_a_module_that_the_app_imports_reloads_it_too(project, start_dev, flashkit):
    (project / "words.py").write_text('WORD = "hello"\n')
    edit(project / "app.py", "import time", "import time\nfrom words import WORD")
    edit(project / "app.py", 'f"hello {name}"', 'f"{WORD} {name}"')
    dev = start_dev(project)
    (project / "words.py").write_text('WORD = "salut"\n')
    dev.wait_for("changed words.py: restarted `greet`")
    assert "salut Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out


def test_a_broken_save_shows_the_traceback_once_and_the_last_good_code_goes_on(project, start_dev, flashkit):
    dev = start_dev(project)
    edit(project / "app.py", "import time\n", "import time\nimport no_such_module\n")
    shown = dev.wait_for("keep the last good code")
    assert shown.count("Traceback") == 1
    assert shown.count("ModuleNotFoundError: No module named 'no_such_module'") == 1
    (project / "app.py").write_text(
        (project / "app.py").read_text().replace("import no_such_module\n", "").replace("hello", "salut")
    )
    dev.wait_for("changed app.py: restarted `greet`")
    assert "salut Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out


def test_an_app_that_is_broken_at_the_start_comes_up_when_it_is_fixed(project, start_dev, flashkit):
    edit(project / "app.py", "import time\n", "import time\nimport no_such_module\n")
    dev = start_dev(project)
    assert dev.text.count("Traceback") == 1
    dev.wait_for("app.py has no endpoint running")
    refused = flashkit("run", "greet", "{}", folder=project)
    assert "hint: app.py does not import: No module named 'no_such_module'; known endpoints: none" in refused.err
    edit(project / "app.py", "import no_such_module\n", "")
    dev.wait_for("changed app.py: added `count`, `greet`")
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out


def test_what_the_platform_refuses_is_shown_and_the_last_good_code_goes_on(project, start_dev, flashkit):
    dev = start_dev(project)
    good = (project / "app.py").read_text()
    more = good + '\n\n@cpu_endpoint(name="more", env={"RUNPOD_INIT_TIMEOUT": "x"})\ndef more() -> int:\n    return 1\n'
    for text in (more, good.replace("workers=(0, 2)", 'workers=(0, 2), env={"RUNPOD_INIT_TIMEOUT": "x"}')):
        (project / "app.py").write_text(text)
        shown = dev.wait_for("is refused; running workers of `count`, `greet` keep the last good code")
        assert "InputError: RUNPOD_INIT_TIMEOUT='x' of endpoint" in shown
        assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out
    (project / "app.py").write_text(more.replace('"x"', '"60"'))
    assert "added `more`" in dev.wait_for("changed app.py")
    assert flashkit("run", "more", "{}", folder=project).out == "1\n"
    assert "Traceback" not in dev.text


def test_an_app_that_is_gone_is_said_once_and_runs_again_when_it_is_back(project, start_dev, flashkit):
    dev = start_dev(project)
    good = (project / "app.py").read_text()
    (project / "app.py").unlink()
    shown = dev.wait_for("keep the last good code")
    assert shown.count("there is no file 'app.py'") == 1
    assert "Traceback" not in shown
    (project / "app.py").write_text(good)
    dev.wait_for("changed app.py: `count`, `greet` kept warm")
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out


def test_jobs_that_need_a_new_worker_fail_with_what_is_wrong_until_the_app_is_repaired(project, start_dev, flashkit):
    dev = start_dev(project)
    good = (project / "app.py").read_text()
    for _ in range(2):
        (project / "app.py").write_text(good + 'raise SystemExit("not today")\n')
        assert dev.wait_for("keep the last good code").count("SystemExit: not today") == 1
        failed = flashkit("run", "greet", '{"name": "Ada"}', folder=project)
        assert failed.code == 5
        assert "as its app does not import: SystemExit: not today" in failed.err
        (project / "app.py").write_text(good)
        dev.wait_for("changed app.py")
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out


async def test_an_app_whose_folder_is_gone_does_not_import(tmp_path):
    with pytest.raises(DefinitionError, match=r"app\.py cannot be imported in .*: No such file or directory"):
        await describe_app(tmp_path / "gone" / "app.py", env={})


def test_endpoints_come_and_go_with_the_code(project, start_dev, flashkit):
    dev = start_dev(project)
    edit(project / "app.py", 'name="count"', 'name="tally"')
    dev.wait_for("changed app.py: added `tally`; removed `count`; `greet` kept warm")
    assert flashkit("run", "tally", '{"n": 2}', "--stream", folder=project).out == "0 1 \n"
    assert "known endpoints: greet, tally" in flashkit("run", "count", "{}", folder=project).err


def test_files_that_are_no_source_are_not_watched(project, start_dev):
    dev = start_dev(project)
    hidden = project / ".venv" / "lib"
    hidden.mkdir(parents=True)
    (hidden / "module.py").write_text("")
    (project / "notes.txt").write_text("")
    time.sleep(1.5)
    (project / "real.py").write_text("")
    assert "changed real.py: `count`, `greet` kept warm (do not use what changed)" in dev.wait_for("changed")


# ---- the end -----------------------------------------------------------------------------------------------


@pytest.fixture
def running_job(project, start_dev):
    """A server with one job that runs for so many seconds, and everything it started."""

    def start(seconds):
        dev = start_dev(project)
        body = f'{{"input": {{"name": "Ada", "seconds": {seconds}}}}}'
        subprocess.run(
            ["curl", "-s", f"{dev.url}/v2/greet/run", "-H", "Content-Type: application/json", "-d", body],
            check=True, capture_output=True,
        )  # fmt: skip
        dev.wait_for("about to greet Ada")
        return dev

    return start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_job_finish_and_leaves_no_process(running_job, assert_gone, number):
    dev = running_job(1.5)
    family = dev.family()
    assert len(family) >= 2
    dev.send(number)
    assert dev.end() == 0
    assert "COMPLETED" in dev.text
    assert dev.text.splitlines()[-1].endswith("stopped")
    assert "Traceback" not in dev.text
    assert not dev.record.exists()
    assert_gone(family, seconds=2)


def test_a_second_signal_kills_at_once(running_job, assert_gone):
    dev = running_job(60)
    family = dev.family()
    dev.send(signal.SIGINT)
    dev.wait_for("Ctrl-C again kills them")
    started = time.monotonic()
    dev.send(signal.SIGINT)
    assert dev.end() == 130
    assert time.monotonic() - started < 3
    assert "Traceback" not in dev.text
    assert not dev.record.exists()
    assert_gone(family, seconds=2)


def test_a_job_that_does_not_finish_in_time_is_killed(running_job, assert_gone):
    dev = running_job(60)
    family = dev.family()
    dev.send(signal.SIGTERM)
    assert dev.end(seconds=20) == 0
    assert_gone(family, seconds=2)


def test_kill_9_leaves_no_process_behind(running_job, assert_gone, flashkit, project):
    dev = running_job(60)
    family = dev.family()
    assert len(family) >= 2
    dev.send(signal.SIGKILL)
    dev.end()
    assert_gone(family, seconds=2)
    assert "nowhere to send the job" in flashkit("run", "greet", "{}", folder=project).err


def test_a_signal_while_the_app_is_still_importing_ends_it_and_the_import(tmp_path, start_dev, assert_gone):
    (tmp_path / "app.py").write_text("import time\ntime.sleep(60)\n")
    dev = start_dev(tmp_path, until=None)
    while not (family := [process for process in dev.family() if "--describe" in arguments_of(process)]):
        time.sleep(0.05)
    dev.send(signal.SIGINT)
    assert dev.end() == 0
    assert_gone(family, seconds=2)


def test_a_worker_that_is_killed_is_told_and_its_job_goes_on(running_job):
    dev = running_job(1)
    workers = [process for process in dev.family() if "app.py:greet" in arguments_of(process)]
    assert len(workers) == 1
    psutil.Process(workers[0].pid).kill()
    shown = dev.wait_for("attempt 1 lost on ")
    assert re.search("exited: .*(SIGKILL|-9)", shown)
    assert re.search(r"COMPLETED  attempt 2 · .*\n           ↻ attempt 1 lost on greet-\S+: SIGKILL\n", shown)
