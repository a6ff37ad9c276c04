"""`flashkit plan simulate` as people start it."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import pexpect
import pytest

from flashkit.cli import run_command_line

APP = """
from flashkit import VLLM, Weights, cpu_endpoint, gpu_endpoint


@gpu_endpoint(name="llm", gpu="L40S", workers=(0, 4), idle_timeout=30, concurrency=1, engine=VLLM(Weights("acme/m-8B")))
async def llm(prompt: str) -> str:
    return prompt


@cpu_endpoint(name="tool", workers=(1, 2))
def tool(n: int) -> int:
    return n
"""
SMALL = ("--rate", "60/h", "--seconds", "2s", "--time", "2h", "--endpoint", "llm")


@pytest.fixture
def simulate(flashkit, tmp_path):
    (tmp_path / "app.py").write_text(APP)

    def run(*arguments):
        return flashkit("plan", "simulate", *arguments, folder=tmp_path)

    run.folder = tmp_path
    return run


def answer_of(result):
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_settings_and_price_are_the_endpoints_own_and_the_cold_start_is_estimated_from_its_model(simulate):
    found = answer_of(simulate(*SMALL, "--json"))
    (trial,) = found["trials"]
    assert (trial["workers"], trial["idle_timeout"], trial["scaler_type"]) == ([0, 4], 30, "QUEUE_DELAY")
    assert trial["cost_usd"] == pytest.approx(0.00053 * trial["worker_seconds"])
    assert found["cold_start"]["value"] == 74
    assert "16 GB of weights" in found["cold_start"]["formula"]
    assert trial["jobs"] == trial["completed"] == found["load"]["jobs"]
    assert len(trial["points"]) == 96


def test_the_same_command_gives_the_same_answer_and_another_seed_another(simulate):
    first, again, other = (simulate(*SMALL, "--json", "--seed", seed) for seed in ("1", "1", "2"))
    assert first.out == again.out != other.out


def test_what_is_said_on_the_command_line_goes_before_the_endpoints_own(simulate):
    changes = ("--workers", "1,2", "--idle-timeout", "1m", "--scaler", "request-count", "--scaler-value", "2",
               "--concurrency", "3", "--no-flashboot", "--cold-start", "9s", "--thaw", "1s")  # fmt: skip
    found = answer_of(simulate(*SMALL, *changes, "--json"))
    (trial,) = found["trials"]
    assert (trial["workers"], trial["idle_timeout"], trial["concurrency"]) == ([1, 2], 60, 3)
    assert (trial["scaler_type"], trial["scaler_value"], trial["flashboot"]) == ("REQUEST_COUNT", 2, False)
    assert (found["cold_start"]["value"], found["thaw_seconds"]) == (9.0, 1.0)


def test_people_get_a_table_the_course_of_time_and_the_setting_to_write_down(simulate):
    result = simulate(*SMALL, "--compare", "--target-p95", "5s", "--no-flashboot")
    assert (result.code, result.err) == (0, "")
    for name in ("as it is", "one kept", "by the hour", "queue>0 30s", "queue>10 60s", "cheapest"):
        assert f"\n{name} " in result.out
    assert "workers=(" in result.out.partition("cheapest of ")[2]
    assert "idle_timeout=" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines() if line.startswith(("setting", "as it is", "jobs ")))


def test_the_cheapest_setting_meets_its_target_in_json_too(simulate):
    found = answer_of(simulate(*SMALL, "--target-p95", "5s", "--json"))
    assert found["cheapest"]["waits"]["p95_seconds"] <= found["target_p95_seconds"] == 5.0
    assert found["tried"] > 1


def test_the_plot_is_an_svg_file(simulate):
    assert simulate(*SMALL, "--plot", "plot.svg").code == 0
    root = ElementTree.fromstring((simulate.folder / "plot.svg").read_text())
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("p95 wait, s, up to" in (text or "") for text in texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 6
    result = simulate(*SMALL, "--plot", "no/folder/plot.svg")
    assert (result.code, "cannot be written" in result.err) == (2, True)


def test_a_terminal_shows_how_far_it_is(simulate):
    command = ["-m", "flashkit", "plan", "simulate", *SMALL, "--rate", "10000/h"]
    child = pexpect.spawn(
        sys.executable, command, cwd=str(simulate.folder), dimensions=(40, 120), timeout=60, encoding="utf-8"
    )
    child.expect("━━")
    child.expect("as it is")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_an_endpoint_on_a_cpu_has_no_price(simulate):
    result = simulate("--endpoint", "tool", "--rate", "1/s", "--seconds", "1", "--time", "10m", "--load", "poisson")
    assert result.code == 0
    (row,) = (line for line in result.out.splitlines() if line.startswith("as it is"))
    assert row.split()[-1] == "-"
    assert "5 s (assumed: 5 s for the container)" in result.out


def test_prices_may_be_given(simulate):
    """The floor of the CPU endpoint costs as much as a flex worker where nobody says otherwise."""
    load = ("--endpoint", "tool", "--rate", "1/s", "--seconds", "1", "--time", "10m", "--load", "poisson", "--json")
    (same,) = answer_of(simulate(*load, "--flex-price", "0.001"))["trials"]
    assert same["cost_usd"] == pytest.approx(0.001 * same["worker_seconds"])
    (less,) = answer_of(simulate(*load, "--flex-price", "0.001", "--active-price", "0.0005"))["trials"]
    assert less["cost_usd"] == pytest.approx(0.001 * less["flex_seconds"] + 0.0005 * less["active_seconds"])


def test_jobs_that_are_lost_are_shown(simulate):
    result = simulate("--endpoint", "llm", "--rate", "5/s", "--seconds", "900", "--variation", "0", "--load", "poisson",
                      "--time", "1m")  # fmt: skip
    assert "lost" in result.out
    assert "ran into their timeout" in result.out


def test_a_trace_file_is_a_load(simulate):
    (simulate.folder / "trace.csv").write_text("at,seconds,endpoint\n0,2,llm\n1,3,llm\n5,9,tool\n")
    found = answer_of(simulate("--endpoint", "llm", "--load", "trace.csv", "--json"))
    assert found["load"]["jobs"] == 2
    assert found["load"]["mean_seconds"] == 2.5
    (simulate.folder / "traffic.jsonl").write_text('{"at":0,"endpoint":"llm","input":1}\n{"at":9,"endpoint":"llm"}\n')
    found = answer_of(simulate("--endpoint", "llm", "--load", "traffic.jsonl", "--seconds", "4", "--json"))
    assert found["load"]["mean_seconds"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "1/s", "--seconds", "1"), "app.py has several endpoints\n  hint: add --endpoint: llm, tool"),
        (("--endpoint", "lm", "--rate", "1/s"), "no endpoint 'lm'\n  hint: did you mean 'llm'?"),
        (("--endpoint", "llm"), "add for example --rate 2/s --seconds 1.5s"),
        (("--endpoint", "llm", "--rate", "1/s"), "add for example --rate 2/s --seconds 1.5s"),
        ((*SMALL, "--rate", "0/s"), "0.0 is no rate"),
        ((*SMALL, "--rate", "-5/s"), "-5.0 is no rate"),
        ((*SMALL, "--rate", "often"), "--rate 'often' is no rate"),
        ((*SMALL, "--rate", "1/week"), "--rate '1/week' is no rate"),
        ((*SMALL, "--seconds", "0"), "0.0 is no duration"),
        ((*SMALL, "--seconds", "long"), "'long' is no time"),
        ((*SMALL, "--time", "0s"), "0.0 is no time"),
        ((*SMALL, "--rate", "1000/s", "--time", "7d"), "too many to simulate"),
        ((*SMALL, "--peak", "3"), "peak=3.0 cannot be"),
        (("--endpoint", "llm", "--load", "poison"), "did you mean 'poisson'?"),
        ((*SMALL, "--load", "app.py"), "--rate and --peak describe a made-up load, and app.py is a recorded one"),
        (("--endpoint", "llm", "--load", "no.jsonl"), "no.jsonl cannot be read"),
        (("--endpoint", "llm", "--load", "app.py"), "app.py:2 is no JSON"),
        ((*SMALL, "--workers", "3,1"), "min above max"),
        ((*SMALL, "--workers", "0"), "can never run a job"),
        ((*SMALL, "--workers", "few"), "--workers 'few' are no bounds"),
        ((*SMALL, "--idle-timeout", "2h"), "idle_timeout=7200"),
        ((*SMALL, "--concurrency", "0"), "concurrency=0"),
        ((*SMALL, "--cold-start", "10m"), "no worker of endpoint 'llm' would ever start"),
        ((*SMALL, "--flex-price", "0"), "0.0 is not in the range"),
        ((*SMALL, "--target-p95", "1s", "--most-workers", "0"), "0 workers can never run a job"),
        ((*SMALL, "--rate", "5/s", "--time", "5m", "--target-p95", "1s", "--most-workers", "2"), "workers=(2, 2)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_a_hint_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, said):
    """In this process, as each of them starts another one to read the app."""
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    assert run_command_line(["plan", "simulate", *arguments]) == 2
    shown = capsys.readouterr()
    assert (shown.out, said in shown.err) == ("", True), shown.err


def test_the_jobs_of_a_running_flashkit_dev_are_a_load(flashkit, start_dev, project):
    start_dev(project)
    for name in ("Ada", "Grace"):
        assert flashkit("run", "greet", json.dumps({"name": name, "seconds": 0.2}), folder=project).code == 0
    found = answer_of(flashkit("plan", "simulate", "--endpoint", "greet", "--load", "dev", "--json", folder=project))
    assert found["load"]["jobs"] == 2
    assert 0.2 <= found["load"]["mean_seconds"] < 2
    assert "on flashkit dev" in found["cold_start"]["formula"]
    result = flashkit("plan", "simulate", "--endpoint", "count", "--load", "dev", folder=project)
    assert (result.code, "no job of endpoint 'count' has ended" in result.err) == (2, True)


def test_without_a_flashkit_dev_there_are_no_jobs_to_take(simulate):
    result = simulate("--endpoint", "llm", "--load", "dev")
    assert (result.code, "no flashkit dev runs" in result.err) == (2, True)
