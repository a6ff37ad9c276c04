"""Traces of real workers on the local platform: one a task, kept also when a task is killed."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashkit.protocol import JobStatus
from flashkit.telemetry.store import TraceStore, open_traces
from flashkit.telemetry.tree import Node, Trace, build_trace
from flashkit.testing import LocalPlatform

APP = Path(__file__).with_name("traced_app.py")
PATIENCE_SECONDS = 40.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return open_traces(f"sqlite:///{tmp_path_factory.mktemp('traces')}/traces.db")


@pytest.fixture(scope="module")
def platform(store: TraceStore) -> Iterator[LocalPlatform]:
    with LocalPlatform(APP, traces=store) as platform:
        yield platform


@pytest.fixture
def trace_of(store: TraceStore) -> Callable[..., Trace]:
    """Wait for the trace of a job until it says what a test needs."""

    def wait(job_id: str, until: Callable[[Trace], Any]) -> Trace:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            ids = store.find(job_id)
            records = store.spans(ids[0]) if ids else []
            if records and until(trace := build_trace(records, now_ns=time.time_ns())):
                return trace
            if time.monotonic() > give_up_at:
                pytest.fail(f"the trace never says what it should: {records}")
            time.sleep(0.1)

    return wait


def find(trace: Trace, op: str, name: str = "") -> Node:
    found = [node for node in trace.nodes() if node.record.op == op and name in node.record.name]
    assert found, [(node.record.op, node.record.name) for node in trace.nodes()]
    return found[0]


def path_to(trace: Trace, wanted: Node) -> list[str]:
    parents = {id(child): node for node in trace.nodes() for child in node.children}
    path, node = [], wanted
    while node is not None:
        path.append(f"{node.record.op} {node.record.name}")
        node = parents.get(id(node))
    return path[::-1]


def is_complete(trace: Trace) -> bool:
    nodes = list(trace.nodes())
    return len(trace.roots) == 1 and not any(node.is_open for node in nodes) and nodes[0].record.op == "platform"


def has(trace: Trace, *names: str) -> bool:
    return {f"{node.record.op} {node.record.name}" for node in trace.nodes()} >= set(names)


def test_one_trace_leads_from_the_agent_to_its_tool_and_its_model(platform, trace_of):
    job = platform.endpoint("agent").run({"question": "why"})
    assert job.output() == "A short answer."
    names = (
        "job agent", "call writer", "platform writer", "job writer", "llm chat",
        "tool search", "platform search", "job search", "commit result",
    )  # fmt: skip
    trace = trace_of(job.id, lambda trace: is_complete(trace) and has(trace, *names))
    llm = find(trace, "llm")
    assert path_to(trace, llm) == [
        "platform agent", "job agent", "call writer", "platform writer", "job writer", "llm chat",
    ]  # fmt: skip
    told = llm.record.attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.response.model"] == "tiny"
    assert (told["gen_ai.usage.input_tokens"] > 0, told["gen_ai.usage.output_tokens"] > 0) == (True, True)
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert told["gen_ai.response.time_to_first_chunk"] > 0
    assert "gen_ai.input.messages" not in told
    tool = find(trace, "tool", "search")
    assert tool.record.attributes["gen_ai.tool.name"] == "search"
    assert path_to(trace, find(trace, "job", "search"))[-3:] == ["tool search", "platform search", "job search"]
    assert path_to(trace, find(trace, "commit", "result"))[-2] == "step plan"
    assert find(trace, "job", "agent").record.attributes["flashkit.spent.tokens"] == 7


def test_the_wait_for_a_worker_and_its_start_are_told(platform, trace_of):
    job = platform.endpoint("asks").run({"query": "x"})
    assert job.output() == ["about x"]
    names = ("job search", "platform search", "job asks", "queue queue", "cold_start asks", "phase imports")
    trace = trace_of(job.id, lambda trace: is_complete(trace) and has(trace, *names))
    assert path_to(trace, find(trace, "job", "search"))[:2] == ["platform asks", "job asks"]
    queue, start = find(trace, "queue"), find(trace, "cold_start", "asks")
    assert queue.duration_s > 0
    assert start in trace.roots[0].children
    assert "imports" in [child.record.name for child in start.children]


def test_a_failed_tool_is_an_error_in_each_span_that_it_ended(platform, trace_of):
    job = platform.endpoint("agent").run({"question": "why", "how": "breaks"})
    assert job.wait().status is JobStatus.FAILED
    trace = trace_of(job.id, lambda trace: is_complete(trace) and has(trace, "job broken", "tool broken", "job agent"))
    assert "no answer to WHY" in find(trace, "job", "broken").record.error
    assert "no answer to WHY" in find(trace, "tool", "broken").record.error
    assert find(trace, "job", "agent").record.attributes["error.type"] == "handler_error"


def test_a_task_that_its_timeout_killed_names_the_step_that_hung(platform, trace_of):
    job = platform.endpoint("agent").run({"question": "why", "how": "hangs"}, execution_timeout_ms=5_000)
    assert job.wait().status is JobStatus.TIMED_OUT
    trace = trace_of(job.id, lambda trace: trace.hung is not None)
    hung = trace.hung
    assert (hung.record.op, hung.record.name, hung.is_cut_off) == ("step", "slow_search", True)
    assert path_to(trace, hung) == ["platform agent", "job agent", "step slow_search"]
    assert 1 < hung.duration_s < 30
    assert "'slow_search' was running for" in trace.to_json()["message"]
    assert "execution timeout" in trace.to_json()["message"]


def test_spans_of_a_killed_worker_stay_and_the_next_attempt_goes_on_in_the_same_trace(platform, trace_of):
    job = platform.endpoint("agent").run({"question": "why", "how": "hangs"})
    job.wait_until_taken()
    trace_of(job.id, lambda trace: any(node.record.name == "slow_search" for node in trace.nodes()))
    platform.endpoint("agent").kill_workers()
    trace = trace_of(job.id, lambda trace: sum(node.record.name == "slow_search" for node in trace.nodes()) == 2)
    first, second = sorted(
        (node for node in trace.nodes() if node.record.name == "slow_search"), key=lambda node: node.start_ns
    )
    assert first.record.worker_id != second.record.worker_id
    assert (first.is_cut_off, second.is_cut_off) == (True, False)
    job.cancel()


def test_a_list_shows_the_newest_trace_first(platform, store):
    newest = store.latest(3)
    assert newest == sorted(newest, key=lambda each: -each.start_ns)
    assert {"agent"} <= {each.name for each in newest}
