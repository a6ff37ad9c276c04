"""Traces put together: parents, circles, open spans, and clocks that disagree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.telemetry.tree import build_trace, describe_end
from tests.telemetry.records import BEGIN_NS, TRACE, job, record

NOW_NS = BEGIN_NS + 60_000_000_000


def build(*records):
    return build_trace(records, now_ns=NOW_NS)


def shape(trace):
    return [(node.depth, node.record.name) for node in trace.nodes()]


def node_of(trace, name):
    return next(node for node in trace.nodes() if node.record.name == name)


def test_children_stand_below_their_parents_in_the_order_in_which_they_began():
    trace = build(record("late", start=5, end=6, below="a"), record("early", start=1, end=2, below="a"), job("a"))
    assert shape(trace) == [(0, "a"), (1, "early"), (1, "late")]
    assert (trace.hung, describe_end(trace)) == (None, "")


def test_a_span_without_its_parent_is_a_root():
    assert shape(build(record("a"), record("b", start=0.5, below="nobody"))) == [(0, "a"), (0, "b")]


def test_spans_in_a_circle_are_shown_all_the_same():
    trace = build(record("a", below="b"), record("b", below="a"), record("c", below="c"))
    assert sorted(name for _, name in shape(trace)) == ["a", "b", "c"]


def test_jobs_and_starts_belong_below_what_the_platform_says():
    trace = build(
        job("platform", 0, 30, op="platform", worker=""),
        record("queue", "queue", 0, 8, below="platform", worker=""),
        job("a", 10, 20),
        record("start", "cold_start", 2, 9, below="a"),
    )
    assert shape(trace) == [(0, "platform"), (1, "queue"), (1, "start"), (1, "a")]


def test_a_timeout_names_the_innermost_open_step():
    trace = build(
        job("platform", 0, 5_000, op="platform", worker="", error="ended by the platform"),
        job("a", 10, None),
        record("plan", start=20, end=30, below="a"),
        record("search", "tool", 100, None, below="a"),
    )
    assert (trace.hung.record.name, trace.hung.is_cut_off) == ("search", True)
    assert trace.hung.duration_s == pytest.approx(4.9)
    assert describe_end(trace) == "tool 'search' was running for 4.9 s and never ended; ended by the platform"
    assert node_of(trace, "a").is_cut_off


@pytest.mark.parametrize(
    "ended",
    [{"flashkit__job__status": "TIMED_OUT"}, {"error__type": "job_timed_out"}, {"error__type": "deadline_exceeded"}],
)
def test_a_timeout_that_let_the_handler_cancel_names_what_was_cancelled(ended):
    trace = build(
        job("platform", 0, 5_000, op="platform", worker="", error="ended by the platform", **ended),
        job("a", 10, 5_000, error="JobTimedOut: too long"),
        record("plan", start=20, end=30, below="a"),
        record("search", "tool", 100, 5_000, below="a", error="CancelledError", error__type="CancelledError"),
        job("called", 110, None, op="platform", job_id="job-2", below="search", worker=""),
    )
    assert (trace.hung.record.name, trace.hung.is_cut_off) == ("search", False)
    assert describe_end(trace) == "tool 'search' was running for 4.9 s and was stopped; ended by the platform"
    assert [row["name"] for row in trace.to_json()["spans"] if row["is_stopped"]] == ["search"]


def test_what_is_cancelled_because_another_step_failed_did_not_hang():
    trace = build(
        job("a", 0, 50, error="LookupError", error__type="LookupError"),
        record("search", "tool", 10, 50, below="a", error="CancelledError", error__type="CancelledError"),
    )
    assert (trace.hung, describe_end(trace)) == (None, "")


def test_what_still_runs_is_open_and_not_cut_off():
    trace = build(job("a", 0, None), record("search", start=10, end=None, below="a"))
    assert trace.hung is None
    assert [(node.is_open, node.is_cut_off) for node in trace.nodes()] == [(True, False)] * 2
    assert trace.end_ns == NOW_NS


def test_a_job_that_the_platform_still_has_is_not_cut_off_by_its_callers_end():
    trace = build(
        record("call", "call", 0, 100, error="no result in time"),
        job("platform", 10, None, op="platform", below="call", worker=""),
        job("a", 20, None, worker="w2"),
    )
    assert trace.hung is None


def test_an_attempt_is_over_when_the_next_one_begins():
    trace = build(
        job("platform", 0, None, op="platform", worker=""),
        job("first", 10, None, worker="w1"),
        record("x", start=20, end=None, below="first", worker="w1"),
        job("second", 500, None, worker="w2"),
        record("y", start=510, end=None, below="second", worker="w2"),
    )
    assert (node_of(trace, "x").is_cut_off, node_of(trace, "y").is_cut_off) == (True, False)
    assert node_of(trace, "x").end_ns == node_of(trace, "second").start_ns


def test_a_clock_that_goes_ahead_is_moved_back_and_said():
    trace = build(
        record("call", "call", 100, 200),
        job("a", 5_100, 5_150, worker="w2", below="call"),
        record("x", start=5_110, end=5_120, worker="w2", below="a"),
    )
    moved = node_of(trace, "a")
    assert (moved.start_ns, moved.end_ns) == (BEGIN_NS + 150_000_000, BEGIN_NS + 200_000_000)
    assert node_of(trace, "x").start_ns == BEGIN_NS + 160_000_000
    assert trace.skewed == {"w2": 4_950_000_000}
    assert trace.to_json()["skew_ms"] == {"w2": 4950.0}


def test_a_clock_that_goes_behind_is_moved_on():
    trace = build(record("call", "call", 100, 200), job("a", -5_000, -4_950, worker="w2", below="call"))
    moved = node_of(trace, "a")
    assert (moved.start_ns, moved.end_ns) == (BEGIN_NS + 100_000_000, BEGIN_NS + 150_000_000)


def test_spans_of_one_process_keep_their_times():
    trace = build(job("a", 0, 10), record("x", start=-5, end=20, below="a"))
    assert node_of(trace, "x").skew_ns == 0
    assert trace.skewed == {}


def test_a_job_that_outlives_a_call_that_failed_is_not_taken_for_a_wrong_clock():
    trace = build(record("call", "call", 0, 100, error="timed out"), job("a", 10, 500, worker="w2", below="call"))
    assert node_of(trace, "a").skew_ns == 0


def test_a_very_deep_trace_can_be_shown():
    records = [record("0")] + [record(str(i), start=i / 1e3, below=str(i - 1)) for i in range(1, 3_000)]
    trace = build(*records)
    assert len(list(trace.nodes())) == 3_000
    assert max(node.depth for node in trace.nodes()) <= 110


NAMES = st.sampled_from("abcdef")
SPANS = st.lists(
    st.tuples(
        NAMES, st.none() | NAMES, st.sampled_from(["job", "platform", "step", "cold_start", "", "other"]),
        st.integers(-10_000, 10_000), st.none() | st.integers(-10_000, 10_000), st.sampled_from(["w1", "w2", ""]),
    ),
    min_size=1, max_size=12, unique_by=lambda each: each[0],
)  # fmt: skip


@given(SPANS)
def test_whatever_spans_say_each_is_shown_once_and_inside_of_the_trace(spans):
    trace = build(
        *(record(name, op, start, end, below=below, worker=worker) for name, below, op, start, end, worker in spans)
    )
    nodes = list(trace.nodes())
    assert sorted(node.record.name for node in nodes) == sorted(name for name, *_ in spans)
    assert all(node.duration_s >= 0 and node.start_ns >= trace.start_ns for node in nodes)
    assert trace.to_json()["trace_id"] == TRACE


def test_attempts_are_told_apart_also_before_the_platform_has_told_of_the_job():
    trace = build(job("first", 10, None), record("x", start=20, end=None, below="first"), job("second", 500, None))
    assert (node_of(trace, "x").is_cut_off, node_of(trace, "second").is_cut_off) == (True, False)
