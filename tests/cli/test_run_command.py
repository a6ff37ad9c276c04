"""`flashkit run` against a running `flashkit dev`."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest


@pytest.fixture
def dev(project, start_dev):
    return start_dev(project)


def test_it_prints_what_the_handler_returned(dev, flashkit, project):
    result = flashkit("run", "greet", '{"name": "Ada"}', folder=project)
    assert (result.code, result.out, result.err) == (0, '{\n  "text": "hello Ada"\n}\n', "")
    result = flashkit("run", "greet", '{"name": "Ada"}', "--json", folder=project)
    assert result.out == '{"text":"hello Ada"}\n'


def test_the_input_may_come_from_a_file_or_from_standard_input(dev, flashkit, project):
    (project / "input.json").write_text('{"name": "file"}')
    assert "hello file" in flashkit("run", "greet", "--input-file", "input.json", folder=project).out
    assert "hello pipe" in flashkit("run", "greet", "--input-file", "-", folder=project, stdin='{"name": "pipe"}').out


def test_a_stream_is_printed_as_text_or_as_lines_of_json(dev, flashkit, project):
    assert flashkit("run", "count", '{"n": 3}', "--stream", folder=project).out == "0 1 2 \n"
    assert flashkit("run", "count", '{"n": 2}', "--stream", "--json", folder=project).out == '"0 "\n"1 "\n'
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', "--stream", folder=project).out


def test_a_failed_job_prints_the_report_and_exits_with_1(dev, flashkit, project):
    result = flashkit("run", "greet", '{"name": "nobody"}', folder=project)
    assert (result.code, result.out) == (1, "")
    lines = result.err.splitlines()
    assert lines[:2] == ["LookupError: there is nobody to greet", "  at app.py:13 in greet"]
    assert lines[2].startswith("  request: ")


def test_a_wrong_parameter_names_the_right_one_as_dev_does(dev, flashkit, project):
    result = flashkit("run", "greet", '{"nam": "Ada"}', folder=project)
    assert result.code == 6
    assert "did you mean `name`" in result.err
    shown = dev.wait_for("request: ")
    assert result.err.splitlines()[0] in shown


def test_an_unknown_endpoint_lists_the_known_ones_and_exits_with_2(dev, flashkit, project):
    result = flashkit("run", "gret", "{}", folder=project)
    assert result.code == 2
    assert "'gret'" in result.err
    assert "known endpoints: count, greet" in result.err


@pytest.mark.parametrize(
    ("text", "place", "caret"),
    [
        ("{name: 1}", "line 1, column 2", "     ^"),
        ('{"a": 1,\n "b": }', "line 2, column 7", "          ^"),
        ("", "line 1, column 1", "^"),
    ],
)
def test_bad_json_is_shown_with_its_place_and_the_right_quoting(flashkit, tmp_path, text, place, caret):
    result = flashkit("run", "greet", text, folder=tmp_path)
    assert result.code == 2
    assert place in result.err
    assert f"{caret}\n" in result.err
    assert """flashkit run greet '{"question": "hello"}'""" in result.err


def test_the_json_is_given_once(flashkit, tmp_path):
    result = flashkit("run", "greet", "{}", "--input-file", "-", folder=tmp_path, stdin="{}")
    assert result.code == 2
    assert "not both" in result.err


def test_a_wait_that_ends_says_that_the_job_goes_on(dev, flashkit, project):
    result = flashkit("run", "greet", '{"name": "Ada", "seconds": 2}', "--wait", "0.5", folder=project)
    assert result.code == 1
    assert "after 0.5 s" in result.err
    assert "it goes on" in result.err
    dev.wait_for("COMPLETED")


def test_without_waiting_the_id_of_the_job_is_printed(dev, flashkit, project):
    job_id = flashkit("run", "greet", '{"name": "Ada"}', "--wait", "0", folder=project).out.strip()
    dev.wait_for("COMPLETED")
    with urllib.request.urlopen(f"{dev.url}/v2/greet/status/{job_id}") as answer:
        assert json.load(answer)["output"] == {"text": "hello Ada"}


@pytest.mark.parametrize("form", ["{url}", "{url}/", "{url}/v2", "{bare}"])
def test_the_platform_may_be_named(dev, flashkit, project, tmp_path_factory, form):
    address = form.format(url=dev.url, bare=dev.url.removeprefix("http://"))
    result = flashkit("run", "greet", '{"name": "Ada"}', "--url", address, folder=tmp_path_factory.mktemp("else"))
    assert "hello Ada" in result.out


def test_an_address_that_is_none_is_refused(flashkit, tmp_path):
    result = flashkit("run", "greet", "{}", "--url", "ftp://x", folder=tmp_path)
    assert result.code == 2
    assert "--url" in result.err


def test_a_request_to_an_endpoint_with_a_queue_is_told_of_jobs(dev, flashkit, project):
    for arguments in ((), ("--stream",)):
        result = flashkit("run", "greet", "GET", "/x", *arguments, folder=project)
        assert result.code == 2
        assert "endpoint 'greet' takes jobs, not requests" in result.err
        assert "flashkit run greet '{" in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [(), ("--stream",)])
def test_ctrl_c_and_sigterm_cancel_the_job(dev, project, arguments, number):
    script = "from flashkit.cli import main; main()"
    job_input = '{"name": "Ada", "seconds": 30}'
    process = subprocess.Popen(
        [sys.executable, "-c", script, "run", "greet", job_input, *arguments],
        cwd=project, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    dev.wait_for("about to greet Ada")
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
    dev.wait_for("CANCELLED")
