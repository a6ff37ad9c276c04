"""The seam: who gets which spans, what they cost while nobody wants them, and how traces begin and go on."""

import asyncio
import threading

import pytest

from flashkit.telemetry import NO_SPAN, Op, Recorder, Span, begin, current, enter_job, recorder, span
from flashkit.telemetry.propagation import TraceContext, read_traceparent, trace_id_of_job
from flashkit.telemetry.spans import HeadSampler, observe, outgoing, use_recorder

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self):
        self.opened_spans, self.ended_spans = [], []

    def opened(self, each):
        self.opened_spans.append(each)

    def ended(self, each):
        self.ended_spans.append(each)

    def close(self):
        pass


@pytest.fixture
def sink():
    kept = Kept()
    before = use_recorder(Recorder(kept, sampler=HeadSampler(1000)))
    yield kept
    use_recorder(before)


@pytest.fixture
def nobody_wants_spans():
    before = use_recorder(None)
    yield
    use_recorder(before)


def job(traceparent=None, job_id="job-1"):
    return enter_job(Op.JOB, "agent", {"flashkit.job.id": job_id}, job_id=job_id, traceparent=traceparent)


def test_while_nobody_wants_spans_there_are_none(nobody_wants_spans):
    assert recorder() is None
    with job() as outer, span(Op.STEP, "search") as inner:
        inner.set("a", 1)
        inner.fail("no")
        assert outer is inner is begin(Op.LLM, "chat") is current() is NO_SPAN
        assert outgoing() is None


def test_what_begins_inside_belongs_below(sink):
    with job() as outer, span(Op.STEP, "search") as step:
        request = begin(Op.LLM, "chat")
        request.end()
        assert current() is step
    assert (step.parent_id, request.parent_id) == (outer.span_id, step.span_id)
    assert {each.trace_id for each in sink.ended_spans} == {outer.trace_id}
    assert [each.name for each in sink.ended_spans] == ["chat", "search", "agent"]
    assert current() is NO_SPAN


def test_a_job_goes_on_with_its_callers_trace(sink):
    with job(PARENT) as made:
        assert (made.trace_id, made.parent_id) == (PARENT[3:35], PARENT[36:52])
        assert outgoing() == TraceContext(made.trace_id, made.span_id, is_sampled=True)


def test_every_attempt_of_a_job_comes_to_the_same_trace(sink):
    ids = []
    for _ in range(2):
        with job() as made:
            ids.append(made.trace_id)
    assert ids == [trace_id_of_job("job-1")] * 2


def test_the_callers_decision_not_to_sample_is_kept_and_passed_on(sink):
    with job(PARENT[:-1] + "0") as made:
        assert span(Op.STEP, "search") is NO_SPAN
        assert outgoing() == TraceContext(made.trace_id, made.span_id, is_sampled=False)
        assert outgoing().to_header().endswith("-00")
    assert sink.opened_spans == sink.ended_spans == []


@pytest.mark.parametrize(
    "value",
    [
        None, 7, "", "00-abc", PARENT.upper(), PARENT.replace("00-", "ff-", 1), PARENT + "-x",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    ],
)  # fmt: skip
def test_what_is_no_traceparent_counts_as_not_there(value):
    assert read_traceparent(value) is None


def test_a_newer_version_of_traceparent_is_read_as_far_as_it_is_known():
    assert read_traceparent(PARENT.replace("00-", "01-", 1) + "-more") == read_traceparent(PARENT)


def test_new_traces_over_the_rate_are_not_sampled_and_counted():
    now = [0.0]
    sampler = HeadSampler(2.0, clock=lambda: now[0])
    assert [sampler.takes_one() for _ in range(4)] == [True, True, False, False]
    now[0] += 0.5
    assert [sampler.takes_one() for _ in range(2)] == [True, False]
    assert sampler.dropped == 3


def test_a_rate_of_zero_begins_no_trace():
    sampler = HeadSampler(0.0)
    assert sampler.takes_one()  # the first one, so that a worker of one job a day is seen
    assert not sampler.takes_one()


def test_an_error_is_told_with_its_class_and_leaves_the_block(sink):
    with pytest.raises(ValueError, match="broken"), job():
        raise ValueError("broken")
    assert sink.ended_spans[0].error == "ValueError: broken"
    assert sink.ended_spans[0].attributes["error.type"] == "ValueError"


def test_the_first_end_counts(sink):
    with job() as made:
        request = begin(Op.LLM, "chat")
        request.end()
        ended = request.end_ns
        request.end(RuntimeError("late"))
    assert (request.end_ns, request.error) == (ended, "")
    assert made.duration_s > 0


def test_branches_and_threads_have_parents_of_their_own(sink):
    def in_thread():
        with span(Op.STEP, "thread"):
            pass

    async def branch(name):
        with span(Op.STEP, name):
            await asyncio.sleep(0)
            with span(Op.LLM, f"{name} model"):
                await asyncio.sleep(0)

    async def run():
        with job():
            await asyncio.gather(branch("a"), branch("b"), asyncio.to_thread(in_thread))

    asyncio.run(run())
    by_name = {each.name: each for each in sink.ended_spans}
    for name in "ab":
        assert by_name[f"{name} model"].parent_id == by_name[name].span_id
    assert by_name["thread"].parent_id == by_name["agent"].span_id


def test_observers_get_every_span_also_without_traces(nobody_wants_spans):
    seen = []
    stop = observe(seen.append)
    with job(), span(Op.TOOL, "search"):
        pass
    stop()
    with job():
        pass
    assert [(each.op, each.is_sampled) for each in seen] == [(Op.TOOL, False), (Op.JOB, False)]


def test_observers_get_spans_of_traces_that_are_not_sampled(sink):
    seen: list[Span] = []
    stop = observe(seen.append)
    with job(PARENT[:-1] + "0"), span(Op.STEP, "search"):
        pass
    stop()
    assert [each.name for each in seen] == ["search", "agent"]
    assert sink.ended_spans == []


def test_nothing_outside_of_a_job_begins_a_trace(sink):
    seen: list[Span] = []
    stop = observe(seen.append)
    assert span(Op.LLM, "warm-up") is NO_SPAN
    stop()
    assert seen == []


def test_what_an_app_traces_with_opentelemetry_is_passed_on(nobody_wants_spans):
    trace = pytest.importorskip("opentelemetry.trace")
    context = trace.SpanContext(int(PARENT[3:35], 16), int(PARENT[36:52], 16), False, trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        assert outgoing().to_header() == PARENT
    assert outgoing() is None


def test_spans_are_made_from_several_threads_at_once(sink):
    def work():
        for _ in range(200):
            with job(), span(Op.STEP, "x"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.span_id for each in sink.ended_spans}) == len(sink.ended_spans) == 1600
