"""Loads: made up, and read from files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.traffic import TrafficRecorder
from flashkit.errors import InputError
from flashkit.simulation.load import DAY_SECONDS, PEAKS, Load, Traffic, load_of, work_by_hour
from flashkit.simulation.trace_file import read_trace

SHAPES = sorted(PEAKS)


def written(folder: Path, text: str, name: str = "trace.jsonl") -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.parametrize("shape", SHAPES)
def test_a_made_up_load_has_the_rate_and_the_durations_that_were_asked_for(shape):
    load = Traffic(shape, jobs_per_second=0.2, seconds=3.0, variation=0.5).make()
    assert len(load) == pytest.approx(0.2 * DAY_SECONDS, rel=0.03)
    assert load.work_seconds / len(load) == pytest.approx(3.0, rel=0.03)
    deviations = math.fsum((seconds - 3.0) ** 2 for seconds in load.seconds)
    assert math.sqrt(deviations / len(load)) == pytest.approx(1.5, rel=0.1)


def test_durations_without_variation_are_all_the_same():
    assert set(Traffic(seconds=2.5, variation=0, window_seconds=60).make().seconds) == {2.5}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_makes_the_same_load_and_another_one_another(shape):
    traffic = Traffic(shape, window_seconds=600, seed=7)
    again, other = Traffic(shape, window_seconds=600, seed=7), Traffic(shape, window_seconds=600, seed=8)
    assert traffic.make().arrivals == again.make().arrivals
    assert traffic.make().seconds == again.make().seconds
    assert traffic.make().arrivals != other.make().arrivals


def test_a_diurnal_load_is_busiest_in_the_afternoon_and_quiet_at_night():
    hours = work_by_hour(Traffic("diurnal", jobs_per_second=0.5).make())
    assert hours.index(max(hours)) in (13, 14, 15)
    assert min(hours[1:4]) < 0.35 * max(hours)


def test_a_burst_has_its_share_of_the_jobs():
    load = Traffic("burst", jobs_per_second=1.0, peak=30.0).make()
    in_bursts = sum(1800 <= arrival % 3600 < 1860 for arrival in load.arrivals)
    assert in_bursts / len(load) == pytest.approx(0.5, abs=0.02)


@settings(deadline=None)
@given(st.sampled_from(SHAPES), st.floats(0.01, 5), st.floats(1, 20_000), st.integers(0, 3))
def test_every_made_up_load_is_in_order_and_within_its_time(shape, rate, window, seed):
    try:
        load = Traffic(shape, jobs_per_second=rate, window_seconds=window, seed=seed).make()
    except InputError as exc:
        assert "has no job" in str(exc)  # noqa: PT017 - a load may be empty by chance
        return
    assert list(load.arrivals) == sorted(load.arrivals)
    assert 0 <= load.arrivals[0] <= load.arrivals[-1] < window
    assert all(seconds > 0 for seconds in load.seconds)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 10)), min_size=1, max_size=30))
def test_most_at_once_is_what_counting_at_each_arrival_gives(jobs):
    load = load_of(jobs)
    spans = list(zip(load.arrivals, load.seconds, strict=True))
    counted = max(sum(at <= moment < at + seconds for at, seconds in spans) for moment, _ in spans)
    assert load.most_at_once() == counted


def test_recorded_jobs_begin_at_zero_in_the_order_of_their_arrival():
    load = load_of([(105.0, 2.0), (100.0, 1.0)])
    assert (list(load.arrivals), list(load.seconds), load.window_seconds) == ([0.0, 5.0], [1.0, 2.0], 5.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jobs_per_second": 0}, "0 is no rate"),
        ({"jobs_per_second": -2.0}, "-2.0 is no rate"),
        ({"jobs_per_second": math.nan}, "nan is no rate"),
        ({"seconds": 0}, "0 is no duration"),
        ({"seconds": math.inf}, "inf is no duration"),
        ({"window_seconds": 0}, "0 is no time"),
        ({"variation": -1}, "variation=-1"),
        ({"shape": "poison"}, "'poison' is no shape"),
        ({"shape": "diurnal", "peak": 3}, "from 1 to 2"),
        ({"shape": "burst", "peak": 0.5}, "from 1 to 60"),
        ({"jobs_per_second": 1000.0}, "too many"),
    ],
)
def test_traffic_that_cannot_be_is_refused_with_the_value(options, said):
    with pytest.raises(InputError, match=said):
        Traffic(**options)


def test_a_load_in_which_nothing_arrives_is_refused():
    with pytest.raises(InputError, match="has no job"):
        Traffic(jobs_per_second=1e-9, window_seconds=1).make()
    with pytest.raises(InputError, match="has no job"):
        load_of([])


@pytest.mark.parametrize(
    ("arrivals", "seconds", "window", "said"),
    [
        ([1.0, 0.5], [1, 1], 2, "job 2 arrives at 0.5"),
        ([-1.0], [1], 2, "job 1 arrives at -1.0"),
        ([1.0], [-1], 2, "job 1 runs for -1"),
        ([1.0], [1, 2], 2, "1 arrivals do not go with 2"),
        ([5.0], [1], 2, "ends after 2 s"),
    ],
)
def test_a_load_that_cannot_be_is_refused(arrivals, seconds, window, said):
    with pytest.raises(InputError, match=said):
        Load(arrivals, seconds, window)


# ------------------------------------------------------------------ files


def test_json_lines_and_csv_give_the_same_load(tmp_path):
    lines = written(tmp_path, '{"at": 10, "seconds": 2}\n\n{"at": 11.5, "seconds": 0.25, "other": 1}\n')
    table = written(tmp_path, "endpoint, at, seconds\nllm, 10, 2\nllm, 11.5, 0.25\n", "trace.csv")
    for file in (lines, table):
        load = read_trace(file)
        assert (list(load.arrivals), list(load.seconds)) == ([0.0, 1.5], [2.0, 0.25])


def test_the_jobs_of_other_endpoints_are_left_out(tmp_path):
    file = written(tmp_path, '{"at":1,"seconds":2,"endpoint":"llm"}\n{"at":0,"seconds":9,"endpoint":"tool"}\n')
    assert list(read_trace(file, endpoint="llm").seconds) == [2.0]
    with pytest.raises(InputError, match="no job of endpoint 'tols'") as caught:
        read_trace(file, endpoint="tols")
    assert "tool" in (caught.value.report.hint or "")


def test_a_recording_of_the_local_platform_is_a_load_once_it_is_said_how_long_jobs_run(tmp_path):
    times = iter([0.0, 1.0, 2.5])
    file = tmp_path / "traffic.jsonl"
    with TrafficRecorder(file, now=lambda: next(times)) as recorder:
        recorder.note("llm", JobRequest({"prompt": "a"}), sync=False)
        recorder.note("llm", JobRequest({"prompt": "b"}), sync=True)
    load = read_trace(file, endpoint="llm", seconds=4.0)
    assert (list(load.arrivals), list(load.seconds)) == ([0.0, 1.5], [4.0, 4.0])
    with pytest.raises(InputError, match=r"traffic\.jsonl:1 does not say how long"):
        read_trace(file, endpoint="llm")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no job"),
        ("\n\n", "has no job"),
        ('{"at": 1, "seconds": 1}\n{"at": 1', "trace.jsonl:2 is no JSON"),
        ("[1, 2]\n", "trace.jsonl:1 is no JSON object"),
        ('{"seconds": 1}\n', "trace.jsonl:1: at=None"),
        ('{"at": "soon", "seconds": 1}\n', "trace.jsonl:1: at='soon'"),
        ('{"at": true, "seconds": 1}\n', "trace.jsonl:1: at=True"),
        ('{"at": 1, "seconds": -3}\n', "trace.jsonl:1: the job ran for -3 s"),
        ('{"at": 1, "seconds": "nan"}\n', "trace.jsonl:1: seconds='nan'"),
        ('{"at": 2, "seconds": 1}\n\n{"at": 1, "seconds": 1}\n', "trace.jsonl:3: the job arrives at 1, before"),
        ('{"at": 1}\n', "trace.jsonl:1 does not say how long"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read_trace(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "trace.csv:1 names no column `at`"),
        ("when,seconds\n1,2\n", "trace.csv:1 names no column `at`"),
        ("at,seconds\n1,2\n3\n", "trace.csv:3 does not say how long"),
        ("at,seconds\n1,2\nx,2\n", "trace.csv:3: at='x'"),
        ("at,seconds\n" + "1," + "9" * 200_000 + "\n", "trace.csv:2 is no CSV|field larger"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read_trace(written(tmp_path, text, "trace.csv"))


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.jsonl cannot be read: No such file"):
        read_trace(tmp_path / "no.jsonl")
    (tmp_path / "trace.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        read_trace(tmp_path / "trace.jsonl")
