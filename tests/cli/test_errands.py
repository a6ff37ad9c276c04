"""`flashkit dev` with something to do: --once, --ci, --runpod-tests; with files of jobs; as JSON."""

import dataclasses
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from flashkit.cli.json_lines import JsonLines
from flashkit.emulator import events
from tests.processes import arguments_of

HANDLERS = Path(__file__).parents[1] / "handlers"
PROJECTS = HANDLERS / "worker_projects"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "events.md"


@pytest.fixture
def template(tmp_path):
    return shutil.copytree(PROJECTS / "template", tmp_path / "template")


# ---- one job -----------------------------------------------------------------------------------------------


def test_once_prints_the_output_and_nothing_else(project, flashkit):
    result = flashkit("dev", "--once", "--endpoint", "greet", "--input", '{"name": "Ada"}', folder=project)
    assert (result.code, json.loads(result.out)) == (0, {"text": "hello Ada"})
    assert "platform at http://127.0.0.1:" in result.err
    assert "COMPLETED" in result.err
    assert not (project / ".flashkit" / "dev.json").exists()


def test_once_takes_the_sample_of_a_project_and_the_defaults_of_the_hub(template, flashkit):
    result = flashkit("dev", str(template), "--once", folder=template.parent)
    assert (result.code, json.loads(result.out)) == (0, {"text": "bonjour sample bonjour sample"})


def test_once_prints_the_parts_of_a_handler_that_streams(flashkit, tmp_path):
    project = shutil.copytree(PROJECTS / "root_handler", tmp_path / "worker")
    result = flashkit("dev", "--once", "--json", folder=project)
    assert (result.code, result.out) == (0, '["A","B"]\n')
    kinds = [json.loads(line)["type"] for line in result.err.splitlines()]
    assert (kinds[0], kinds[-1]) == ("start", "worker")


@pytest.mark.parametrize(
    ("app", "options", "code", "message"),
    [
        ("app.py", ["--endpoint", "greet", "--input", '{"name": "nobody"}'], 1, "there is nobody to greet"),
        ("app.py", ["--endpoint", "greet", "--input", '{"nam": 1}'], 6, "did you mean `name`?"),
        ("app.py", ["--endpoint", "greet", "--input", "{"], 2, "the input is not JSON"),
        ("app.py", ["--endpoint", "greet"], 2, "there is no input for 'greet'"),
        ("app.py", ["--endpoint", "gret", "--input", "{}"], 2, "there is no endpoint 'gret'"),
        ("app.py", ["--input", "{}"], 2, "choose one with --endpoint: greet, count"),
        ("broken.py", ["--input", "{}"], 5, "the weights are not where they should be"),
    ],
)
def test_once_exits_with_what_went_wrong(project, flashkit, app, options, code, message):  # noqa: PLR0917
    (project / "broken.py").write_text(f"{(HANDLERS / 'broken.py').read_text()}\nrunpod.serverless.start({{}})\n")
    result = flashkit("dev", app, "--once", *options, folder=project)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_a_sample_that_is_no_job_is_refused(template, flashkit):
    (template / "test_input.json").write_text('{"prompt": "x"}')
    result = flashkit("dev", "--once", folder=template)
    assert result.code == 2
    assert "test_input.json holds no job" in result.err
    (template / "test_input.json").write_text("{")
    assert "test_input.json is not JSON" in flashkit("dev", "--once", folder=template).err


def test_a_start_over_its_budget_is_named(project, flashkit):
    asked = ("dev", "--once", "--endpoint", "greet", "--input", '{"name": "Ada"}', "--cold-start", "greet=0.5")
    assert flashkit(*asked, "--cold-start-budget", "60", folder=project).code == 0
    result = flashkit(*asked, "--cold-start-budget", "0.4", folder=project)
    assert result.code == 7
    assert "hello Ada" in result.out
    assert "of 'greet' took" in result.err
    assert "over the budget of 0.4 s" in result.err


# ---- a command ---------------------------------------------------------------------------------------------

CHILD = """
import asyncio, os, sys
from flashkit import Client

async def main():
    async with Client() as client:
        print(await client.endpoint("greet").call({"name": "Ada"}))

asyncio.run(main())
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.mark.parametrize("code", [0, 3])
def test_ci_runs_the_command_against_the_platform_and_exits_with_its_code(project, flashkit, code):
    child = (sys.executable, "-c", CHILD)
    secret = {"RUNPOD_API_KEY": "rpa_mine", "FLASHKIT_ENDPOINTS": '{"greet": "abc"}', "CODE": str(code)}
    result = flashkit("dev", "--ci", "--", *child, folder=project, **secret)
    assert (result.code, result.out) == (code, "{'text': 'hello Ada'}\n")


def test_ci_gives_no_account_key_to_the_command(project, flashkit):
    show = "import os, json; print(json.dumps(dict(os.environ)))"
    shown = flashkit("dev", "--ci", "--", sys.executable, "-c", show, folder=project, RUNPOD_API_KEY="rpa_mine").out
    env = json.loads(shown)
    assert env["RUNPOD_API_KEY"] == "local"
    assert env["RUNPOD_ENDPOINT_BASE_URL"].startswith("http://127.0.0.1:")
    assert "rpa_mine" not in shown


def test_ci_leaves_the_record_of_a_running_server_alone(project, start_dev, flashkit):
    dev = start_dev(project)
    before = dev.record.read_text()
    assert flashkit("dev", "--ci", "--", "true", folder=project).code == 0
    assert dev.record.read_text() == before


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["no-such-command"], 2, "cannot run 'no-such-command'"),
        (["sh", "-c", "kill -9 $$"], 137, ""),
    ],
)
def test_ci_says_how_the_command_ended(project, flashkit, command, code, message):
    result = flashkit("dev", "--ci", "--", *command, folder=project)
    assert result.code == code
    assert message in result.err


def test_ci_waits_for_workers_that_are_always_there_and_exits_5_without_them(tmp_path, flashkit):
    code = "import os\nfrom flashkit import cpu_endpoint\nif 'RUNPOD_POD_ID' in os.environ: os._exit(9)\n"
    code += "@cpu_endpoint(name='never', workers=(1, 1))\ndef never(): ...\n"
    (tmp_path / "app.py").write_text(code)
    result = flashkit("dev", "--ci", "--", "echo", "ran", folder=tmp_path)
    assert (result.code, result.out) == (5, "")
    assert "the workers of 'never' do not come up: 3 ended before they were ready" in result.err
    (tmp_path / "app.py").write_text(code.replace("os._exit(9)", "pass"))
    assert flashkit("dev", "--ci", "--", "echo", "ran", folder=tmp_path).out == "ran\n"


def test_a_signal_ends_the_command_too(project, start_dev, assert_gone):
    dev = start_dev(project, "--ci", "--", sys.executable, "-c", "import time; time.sleep(60)", until=None)
    dev.wait_for("platform at")
    while not (child := [process for process in dev.family() if "sleep(60)" in " ".join(arguments_of(process))]):
        assert dev.process.poll() is None
    dev.send(signal.SIGTERM)
    assert dev.end(seconds=30) == 130
    assert_gone(child, seconds=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ci"], "--ci and a command after -- go together"),
        (["--", "true"], "--ci and a command after -- go together"),
        (["--once", "--runpod-tests"], "exclude each other"),
        (["--input", "{}"], "--input goes with --once"),
        (["--cold-start-budget", "1"], "--cold-start-budget goes with"),
        (["--once", "--speed", "fast"], "--speed 'fast' is no speed"),
        (["--once", "--cold-start", "soon"], "--cold-start 'soon' cannot be read"),
        (["--once", "--cold-start", "1", "--cold-start", "greet=1"], "both for every endpoint and for single ones"),
        (["--once", "--cold-start", "gret=1"], "an option names an endpoint 'gret', which there is not"),
        (["--once", "--capacity=-1"], "--capacity '-1' cannot be read"),
        (["--once", "--fault", "greet:eror=1"], "did you mean 'error'?"),
        (["--once", "--fault", "gret:error=1"], "an option names an endpoint 'gret'"),
        (["--once", "--seed", "."], "has no jobs.jsonl"),
    ],
)
def test_options_that_make_no_sense_exit_with_2(project, flashkit, arguments, message):
    result = flashkit("dev", *arguments, folder=project)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


# ---- the Hub's tests ---------------------------------------------------------------------------------------


def test_the_tests_of_the_hub_run_with_their_environment(template, flashkit):
    result = flashkit("dev", "--runpod-tests", str(template), folder=template.parent)
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["✓ greets     ".strip(), "✓ as expected", "2 passed, 0 failed"]


def test_tests_that_fail_say_why_and_exit_with_1(flashkit, tmp_path):
    project = shutil.copytree(PROJECTS / "root_handler", tmp_path / "worker")
    result = flashkit("dev", "--runpod-tests", folder=project)
    assert result.code == 1
    assert "TestFailed: the output is ['X'], and should be ['Y']" in result.out
    assert "KeyError: " in result.out
    assert "✗ test 4" in result.out
    assert "no result within 0.001 s" in result.out
    assert "1 passed, 3 failed" in result.out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tests.json", None, "has no .runpod/tests.json"),
        ("tests.json", "{", "is not JSON"),
        ("tests.json", "[]", "is not a JSON object"),
        ("tests.json", '{"tests": []}', "lists no test"),
        ("tests.json", '{"tests": [{"name": "x"}]}', "test 1 of"),
        ("tests.json", '{"tests": [{"input": {}, "timeout": "soon"}]}', "timeout='soon'"),
        ("tests.json", '{"tests": [{"input": {}}], "config": {"env": [{}]}}', "has no `key`"),
        ("hub.json", "{", "is not JSON"),
    ],
)
def test_files_of_the_hub_that_cannot_be_read_are_refused(template, flashkit, name, text, message):
    file = template / ".runpod" / name
    file.unlink()
    if text is not None:
        file.write_text(text)
    result = flashkit("dev", "--runpod-tests", folder=template)
    assert result.code in (2, 3)
    assert message in result.err


# ---- jobs as files -----------------------------------------------------------------------------------------


SEND_THREE = """
import asyncio
from flashkit import Client, JobFailed

async def main():
    async with Client() as client:
        greet = client.endpoint("greet")
        for name in ("Ada", "Bo", "nobody"):
            try:
                await greet.call({"name": name})
            except JobFailed:
                pass

asyncio.run(main())
"""
WAIT_FOR_THREE = """
import json, os, time, urllib.request

while True:
    with urllib.request.urlopen(os.environ["RUNPOD_ENDPOINT_BASE_URL"] + "/greet/health") as answer:
        jobs = json.load(answer)["jobs"]
    if jobs["completed"] + jobs["failed"] == 3:
        break
    time.sleep(0.1)
"""


def exported(folder):
    rows = [json.loads(line) for line in (folder / "jobs.jsonl").read_text().splitlines()]
    for row in rows:
        row["error"] = json.loads(row["error"])["message"] if "error" in row else None
    return rows


def test_what_was_exported_can_be_sent_again_and_is_the_same(project, flashkit):
    first, second = project / "first", project / "second"
    send = ("--export-on-exit", str(first), "--", sys.executable, "-c", SEND_THREE)
    assert flashkit("dev", "--ci", *send, folder=project).code == 0
    assert [(row["input"]["name"], row["status"], row["error"]) for row in exported(first)] == [
        ("Ada", "COMPLETED", None), ("Bo", "COMPLETED", None), ("nobody", "FAILED", "there is nobody to greet"),
    ]  # fmt: skip
    again = ("--seed", str(first), "--export-on-exit", str(second), "--", sys.executable, "-c", WAIT_FOR_THREE)
    assert flashkit("dev", "--ci", *again, folder=project).code == 0
    assert exported(second) == exported(first)


def test_recorded_traffic_is_replayed_at_its_times(project, start_dev, flashkit):
    recording = project / "traffic.jsonl"
    send = ("--record", str(recording), "--", sys.executable, "-c", SEND_THREE)
    assert flashkit("dev", "--ci", *send, folder=project).code == 0
    wait = ("--replay", str(recording), "--speed", "100x", "--", sys.executable, "-c", WAIT_FOR_THREE)
    result = flashkit("dev", "--ci", *wait, folder=project)
    assert result.code == 0
    assert "replayed the recording: 3 jobs sent" in result.err
    again = flashkit("dev", "--ci", *send, folder=project)
    assert again.code == 2
    assert "the file exists" in again.err
    recording.write_text('{"at": 0, "endpoint": "nobody", "input": 1}\n')
    dev = start_dev(project, "--replay", str(recording))
    dev.wait_for("replayed the recording: 0 jobs sent")
    assert "nobody at 0 s: " in dev.wait_for("nobody")
    recording.write_text('{"at": 0}\n')
    damaged = flashkit("dev", "--port", "0", "--replay", str(recording), folder=project)
    assert damaged.code == 2
    assert "is no line of a recording" in damaged.err


@pytest.mark.parametrize(("line", "message"), [("{", "line 1 of"), ('{"input": 1}', "is no job")])
def test_a_damaged_file_of_jobs_is_refused(project, flashkit, line, message):
    (project / "jobs.jsonl").write_text(line)
    result = flashkit("dev", "--once", "--seed", ".", folder=project)
    assert result.code == 2
    assert message in result.err


# ---- JSON --------------------------------------------------------------------------------------------------


def test_with_json_every_line_is_an_object(project, start_dev, flashkit):
    dev = start_dev(project, "--json", until='"type":"start"')
    flashkit("run", "greet", '{"name": "nobody"}', folder=project)
    dev.wait_for('"FAILED"')
    (project / "app.py").write_text("import nothing_there\n")
    dev.wait_for('"type":"problem"')
    dev.wait_for('"type":"reload"')
    dev.send(signal.SIGTERM)
    assert dev.end() == 0
    lines = [json.loads(line) for line in dev.text.splitlines()]
    assert {line["type"] for line in lines} == {"start", "worker", "job", "log", "problem", "reload", "note"}
    assert all(line["at"] > 1_700_000_000 for line in lines)
    assert lines[0]["endpoints"][0] == {
        "name": "greet", "kind": "cpu", "url": f"{lines[0]['url']}/v2/greet", "where": "app.py:8", "workers": [0, 2],
    }  # fmt: skip


def test_every_field_of_every_event_is_documented():
    page = PAGE.read_text()
    for kind in events.Event.__args__:
        name = "log" if kind is events.LogLine else kind.__name__.removesuffix("Event").lower()
        section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert [field.name for field in dataclasses.fields(kind) if f"`{field.name}`" not in section] == []


def test_the_other_lines_are_documented(capsys):
    page = PAGE.read_text()
    lines = JsonLines(log_level="info")
    lines.show_banner([], url="http://127.0.0.1:1", state_dir=Path(), is_reloading=True)
    lines.say("x")
    for text in capsys.readouterr().out.splitlines():
        line = json.loads(text)
        section = page.partition(f"## {line.pop('type')}\n")[2].partition("\n## ")[0]
        assert [name for name in line if f"`{name}`" not in section and name != "at"] == []


# ---- without a person --------------------------------------------------------------------------------------


def test_headless_watches_nothing_and_ends_where_the_app_is_broken(project, start_dev, flashkit):
    dev = start_dev(project, "--headless")
    assert "reload is off" in dev.text
    (project / "app.py").write_text("import nothing_there\n")
    assert flashkit("dev", "--headless", "--port", "0", folder=project).code == 3
